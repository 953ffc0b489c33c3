"""The folder of a data set: its layout, and its evaluation images.

afhq/                   the data root
    train/cat/*.jpg     one folder per class, in both splits
    val/cat/*.jpg       (or test/, valid/, validation/)
    eval/*.png          every validation image, resized; made by `python dataset.py`
    SYNTHETIC.txt       only where `synthetic_faces.py` drew the images
    .cache/             decoded training images
"""

import json
import math
import os
import re
import shlex
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from cli import UserError
from images import LITTER, center_square, fingerprint, is_litter, is_writable, list_images, read_image, resize, to_rgb
from progress import tqdm

SPLITS = {
    "train": ("train",),
    "val": ("val", "test", "valid", "validation"),
}  # and the names that their folders may have
SYNTHETIC_MARK = "SYNTHETIC.txt"
EVAL_MARK = ".images.json"
EVAL_RESOLUTION = 64

# What may be replaced: decoded images, and what `synthetic_faces.py` writes. Everything else is the user's.
_CACHE = re.compile(r"\.cache(/.*)?")
_SYNTHETIC = re.compile(
    rf"{_CACHE.pattern}|{SYNTHETIC_MARK}|eval(\.partial)?(/.*)?|(train|val)(/(cat|dog|wild)(/\w+_\d{{5}}\.png)?)?"
)


# The layout.


def resolve_root(root: str | os.PathLike) -> Path:
    """The data root that `root` means: itself, or the folder `afhq` in it. It need not exist."""
    root = Path(root)
    if root.name == "afhq" or has_split(root):
        return root
    return root / "afhq"


def split_dir(root: Path, split: str) -> Path:
    """The folder of a split, which need not exist."""
    return next((root / name for name in SPLITS.get(split, ()) if (root / name).is_dir()), root / split)


def has_split(root: Path) -> bool:
    """Whether `root` holds at least one of the two splits."""
    return any(split_dir(root, split).is_dir() for split in SPLITS)


def check_has_data(root: str | os.PathLike) -> None:
    """Raise a UserError unless there are data at `root`, the `--data_root` of programs that do not download."""
    if has_split(resolve_root(root)):
        return
    found = visible_names(Path(root))
    raise UserError(
        f"argument --data_root: {root} holds {', '.join(found[:3]) or 'nothing'}{', ...' * (len(found) > 3)}, and no "
        "train/ and val/ with a folder of images per class; "
        f"`python dataset.py --data_root {shlex.quote(str(root))}` downloads AFHQ, with --synthetic 500 it draws faces"
    )


def is_synthetic(root: str | os.PathLike) -> bool:
    """Whether `synthetic_faces.py` drew the images in a data root, or in the folder `afhq` in it."""
    return (resolve_root(root) / SYNTHETIC_MARK).is_file()


def list_classes(root: Path, split: str) -> dict[str, list[Path]]:
    """The images of each class in a split; images in the order of their names, classes too unless they are numbers.

    Images in folders inside a class's folder belong to the class.

    Raises:
        FileNotFoundError: when there is no such split.
        UserError: when the split has no classes or a class has no images; the message names the folder.
    """
    folder = split_dir(root, split)
    if not folder.is_dir():
        found = ", ".join(visible_names(root)[:3]) or "nothing"
        raise FileNotFoundError(f"no split {split!r} in {root}: {folder} is not a folder, {found} is there")
    classes: dict[str, list[Path]] = {}
    for name in visible_names(folder):
        if (folder / name).is_dir():
            files = list_images(folder / name)
            if not files:
                raise UserError(f"{folder / name} holds no images")
            # One name in two Unicode forms, as macOS and others write "é", is one class.
            classes.setdefault(unicodedata.normalize("NFC", name), []).extend(files)
    if not classes:
        raise UserError(
            f"{folder} must hold one folder of images per class, and holds {len(list_images(folder))} images"
        )
    return dict(sorted(classes.items(), key=lambda item: (int(item[0]) if item[0].isdecimal() else math.inf, item[0])))


def visible_names(folder: Path) -> list[str]:
    """What is in a folder, sorted, without litter."""
    return sorted(path.name for path in folder.iterdir() if not is_litter(path.name)) if folder.is_dir() else []


def check_writable(folder: Path) -> None:
    """Check that `folder` can be made, or written to if it exists.

    Raises:
        PermissionError: when it, or the folder that it would be in, is read-only.
        UserError: when a file is in the way.
    """
    existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    if not existing.is_dir():
        raise UserError(f"{existing} is a file, where a folder is wanted")
    if not is_writable(existing):
        raise PermissionError(f"{existing} is read-only: choose another place")


@contextmanager
def atomic_dir(folder: Path) -> Iterator[Path]:
    """A new folder `{folder}.partial` that takes the place of `folder` at the end of the block.

    So a folder is whole or not there. An error removes the new folder; after a kill, the next call does.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with naming(partial):
            yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in an OSError that names no file, as a full disk raises it."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def check_free(root: Path) -> None:
    """Check that new data can be put at `root`, an absolute path.

    Raises:
        PermissionError: when the folder that `root` would be in is read-only.
        UserError: when something other than synthetic data is there; the message names it.
    """
    if root.is_dir():
        ours = _SYNTHETIC if is_synthetic(root) else _CACHE
        paths = {path.relative_to(root) for path in root.rglob("*") if path.name.lower() not in LITTER}
        others = {path for path in paths if not ours.fullmatch(path.as_posix())}
        others = sorted(str(path) for path in others if path.parent not in others)  # a folder stands for its contents
        if others:
            raise UserError(
                f"{root} already holds other things ({', '.join(others[:3])}): move them or choose another folder; "
                "a data set of your own needs train/ and val/ with a folder of images per class"
            )
    elif root.exists():
        raise UserError(f"{root} is a file, where a folder is wanted")
    check_writable(root.parent)


# The evaluation images.


class EvalImages(NamedTuple):
    """What `make_eval_images` put into a folder, as `EVAL_MARK` in it says."""

    made_from: str  # the `fingerprint` of validation images and settings
    names: list[str]
    skipped: list[str]  # what is wrong with each image that was left out


def make_eval_images(
    root: Path,
    resolution: int = EVAL_RESOLUTION,
    file_format: str = "png",
    crop: bool = False,
    skip_broken: bool = False,
) -> tuple[EvalImages, bool]:
    """Make `root/eval/`, unless it is up to date: every validation image, resized.

    Args:
        root: the data root.
        resolution: height and width.
        file_format: "png" makes `<class>_<name>.png`, resized like training images. "jpeg" does what the lab does: the
            name stays, and Pillow's defaults resize and save the image in the mode that it has.
        crop: take the centre square of each image.
        skip_broken: leave out images that cannot be decoded.

    Returns:
        The images, and whether they were made now.

    Raises:
        PermissionError: when the root is read-only.
        UserError: for a broken image, unless `skip_broken`; or when `eval/` holds files that are not from here.
    """
    folder, settings = root / "eval", (file_format, resolution, crop)
    files = [file for images in list_classes(root, "val").values() for file in images]
    made_from = fingerprint(files, root, *settings)
    present, mark = set(visible_names(folder)), _read_mark(folder) or EvalImages("", [], [])
    if mark.made_from == made_from and present == set(mark.names) and (skip_broken or not mark.skipped):
        return mark, False
    if others := sorted(present - set(mark.names)):
        is_lab = all(name.lower().endswith(".jpg") for name in others)
        kind = "JPEG images, as the lab's dataset.py makes them" if is_lab else "files that this program did not make"
        raise UserError(
            f"{folder} holds {len(others)} {kind} ({', '.join(others[:3])}): measure against them as they are, "
            "or move the folder and run this again (--eval_format jpeg makes the lab's images)"
        )
    if not is_writable(root):
        raise PermissionError(f"{root} is read-only, so eval/ cannot be made there: copy the data set")

    def lab_resize(image: Image.Image) -> Image.Image:
        image = (center_square(image) if crop else image).resize((resolution, resolution))
        return image if image.mode in ("L", "RGB", "CMYK") else to_rgb(image)

    def make(file: Path, name: str) -> str:
        try:
            as_lab = file_format == "jpeg"
            image = read_image(file, lab_resize) if as_lab else resize(read_image(file), resolution, crop)
        except (OSError, UserError) as error:
            if not skip_broken:
                raise UserError(f"{error}; --skip_broken leaves such images out") from error
            return str(error)
        image.save(partial / name)
        return ""

    names = _eval_names(files, split_dir(root, "val"), file_format)
    with atomic_dir(folder) as partial, ThreadPoolExecutor() as pool:
        reasons = list(tqdm(pool.map(make, files, names), "evaluation images", len(files), unit="image"))
        names = [name for name, reason in zip(names, reasons, strict=True) if not reason]
        mark = EvalImages(made_from, names, [reason for reason in reasons if reason])
        (partial / EVAL_MARK).write_text(json.dumps(mark._asdict()))
    return mark, True


def check_eval_complete(folder: Path) -> None:
    """Raise a UserError if `make_eval_images` made this folder, and images were removed or added since."""
    mark, present = _read_mark(folder), set(visible_names(folder))
    if mark and present != set(mark.names):
        raise UserError(
            f"{folder} holds {len(present & set(mark.names))} of the {len(mark.names)} images that dataset.py made, "
            f"and {len(present - set(mark.names))} other files: remove the folder and run dataset.py again"
        )


def _read_mark(folder: Path) -> EvalImages | None:
    with suppress(OSError, ValueError, TypeError):
        return EvalImages(**json.loads((folder / EVAL_MARK).read_text()))
    return None


def _eval_names(files: Sequence[Path], folder: Path, file_format: str) -> list[str]:
    """A file name for each image, unique even where letter case does not count."""
    names, taken = [], set()
    for file in files:
        suffix = ".png"
        stem = "_".join(file.relative_to(folder).with_suffix("").parts)
        if file_format == "jpeg":
            stem, suffix = file.stem, file.suffix if file.suffix.lower() in (".jpg", ".jpeg") else ".jpg"
        if len(os.fsencode(stem)) > 200:  # names have 255 bytes at most
            stem = os.fsencode(stem)[:200].decode(errors="ignore")
        name, number = stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        names.append(name + suffix)
    return names
