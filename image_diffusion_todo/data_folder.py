"""The folder of a data set: its layout, and its evaluation images.

afhq/                   the data root
    train/cat/*.jpg     one folder per class, in both splits
    val/cat/*.jpg
    eval/cat_*.png      every validation image, resized; made by `python dataset.py`
    SYNTHETIC.txt       only where `synthetic_faces.py` drew the images
    .cache/             decoded training images
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cli import UserError
from images import fingerprint, is_writable, list_images, read_image, resize

SPLITS = ("train", "val")
SYNTHETIC_MARK = "SYNTHETIC.txt"
EVAL_MARK = ".images.json"
EVAL_RESOLUTION = 64

# What may be replaced: decoded images, and what `synthetic_faces.py` writes. Everything else is the user's.
_CACHE = re.compile(r"\.cache(/.*)?")
_SYNTHETIC = re.compile(
    rf"{_CACHE.pattern}|{SYNTHETIC_MARK}|eval(/.*)?|(train|val)(/(cat|dog|wild)(/\w+_\d{{5}}\.png)?)?"
)


# The layout.


def resolve_root(root: str | os.PathLike) -> Path:
    """The data root that `root` means: itself, or the folder `afhq` in it. It need not exist."""
    root = Path(root)
    if root.name == "afhq" or has_split(root):
        return root
    return root / "afhq"


def has_split(root: Path) -> bool:
    """Whether `root` holds at least one of the two splits."""
    return any((root / split).is_dir() for split in SPLITS)


def check_has_data(root: str | os.PathLike) -> None:
    """Raise a UserError unless there are data at `root`, the `--data_root` of programs that do not download."""
    if not has_split(resolve_root(root)):
        raise UserError(
            f"argument --data_root: {root} holds no train/ and val/; "
            f"`python dataset.py --data_root {root}` downloads AFHQ, with --synthetic 500 it draws faces"
        )


def is_synthetic(root: str | os.PathLike) -> bool:
    """Whether `synthetic_faces.py` drew the images in a data root, or in the folder `afhq` in it."""
    return (resolve_root(root) / SYNTHETIC_MARK).is_file()


def list_classes(root: Path, split: str) -> dict[str, list[Path]]:
    """The images of each class in a split; classes and images in the order of their names.

    Images in folders inside a class's folder belong to the class.

    Raises:
        FileNotFoundError: when there is no such split.
        UserError: when the split has no classes or a class has no images; the message names the folder.
    """
    folder = root / split
    if not folder.is_dir():
        raise FileNotFoundError(f"no split {split!r} in {root}: {folder} is not a folder")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise UserError(f"{folder} must hold one folder of images per class, and it holds none")
    classes = {name: list_images(folder / name) for name in names}
    for name, files in classes.items():
        if not files:
            raise UserError(f"{folder / name} holds no images")
    return classes


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
        paths = {path.relative_to(root) for path in root.rglob("*")}
        others = {path for path in paths if not ours.fullmatch(path.as_posix())}
        others = sorted(str(path) for path in others if path.parent not in others)  # a folder stands for its contents
        if others:
            raise UserError(
                f"{root} already holds other things ({', '.join(others[:3])}): move them or choose another folder"
            )
    elif root.exists():
        raise UserError(f"{root} is a file, where a folder is wanted")
    check_writable(root.parent)


# The evaluation images.


def make_eval_images(root: Path, resolution: int = EVAL_RESOLUTION) -> tuple[int, bool]:
    """Make `root/eval/`, unless it is up to date: every validation image as a PNG `<class>_<name>.png`, resized.

    The list of its images in `EVAL_MARK` tells whether they are all there (see `check_eval_complete`), and whether
    they were made from the present validation images in the same way.

    Returns:
        How many images there are, and whether they were made now.

    Raises:
        PermissionError: when the root is read-only.
        UserError: when a validation image is broken, or `eval/` holds files that this function did not make.
    """
    folder = root / "eval"
    files = [file for images in list_classes(root, "val").values() for file in images]
    names = _eval_names(files, root / "val")
    made_from = fingerprint(files, root, "png", resolution)
    mark = _read_mark(folder)
    if mark["made_from"] == made_from and _visible(folder) == set(mark["images"]):
        return len(files), False
    if others := sorted(_visible(folder) - set(mark["images"])):
        raise UserError(f"{folder} holds files that this program did not make ({', '.join(others[:3])}): move them")
    if not is_writable(root):
        raise PermissionError(f"{root} is read-only, so eval/ cannot be made there: copy the data set")
    with atomic_dir(folder) as partial, ThreadPoolExecutor() as pool:

        def make(file: Path, name: str) -> None:
            resize(read_image(file), resolution).save(partial / name)

        list(tqdm(pool.map(make, files, names), "evaluation images", len(files), unit="image"))
        (partial / EVAL_MARK).write_text(json.dumps({"made_from": made_from, "images": names}))
    return len(files), True


def check_eval_complete(folder: Path) -> None:
    """Raise a UserError if `make_eval_images` made this folder, and images were removed or added since."""
    mark = _read_mark(folder)
    if mark["images"] and _visible(folder) != set(mark["images"]):
        raise UserError(
            f"{folder} holds {len(_visible(folder))} files, and {len(mark['images'])} evaluation images belong there; "
            "run dataset.py again"
        )


def _read_mark(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return json.loads((folder / EVAL_MARK).read_text())
    return {"made_from": None, "images": []}


def _visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()


def _eval_names(files: Sequence[Path], folder: Path) -> list[str]:
    """A file name for each image, unique even where letter case does not count."""
    names, taken = [], set()
    for file in files:
        stem = name = "_".join(file.relative_to(folder).with_suffix("").parts)
        number = 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        names.append(f"{name}.png")
    return names
