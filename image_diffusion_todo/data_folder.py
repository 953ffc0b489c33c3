"""Find the images of a data set by its layout, and split off a validation set.

afhq/                   the data root
    train/cat/*.jpg     one folder per class, in both splits
    val/cat/*.jpg       (or test/, valid/, validation/)
    eval/*.png          every validation image, resized, see `eval_images.py`
    split/              in a folder of images without val/: a data root, made by `python dataset.py --val_share 0.1`
    SYNTHETIC.txt       only where `synthetic_faces.py` drew the images
    .cache/             decoded training images
"""

import os
import random
import shlex
import shutil
import unicodedata
from pathlib import Path

from atomic import atomic_dir
from cli import UserError, check_writable
from images import JUNK, image_suffixes, is_junk, list_images, note

# The names that the folder of a split may have, in any letter case.
SPLITS = {"train": ("train", "training"), "val": ("val", "test", "valid", "validation")}
SYNTHETIC_MARKER = "SYNTHETIC.txt"


def split_dir(root: Path, split: str) -> Path:
    """The folder of a split, which need not exist."""
    names = SPLITS.get(split, ())
    folders = {name.lower(): root / name for name in visible_names(root) if name.lower() in names}
    return next((folders[name] for name in names if name in folders and folders[name].is_dir()), root / split)


def present_splits(root: Path) -> list[str]:
    """Which of the two splits `root` holds."""
    return [split for split in SPLITS if split_dir(root, split).is_dir()]


def resolve_root(root: str | os.PathLike) -> Path:
    """The data root that `root` means: itself, or the folder in it with the data. It need not exist."""
    root = Path(root)
    places = [root, root / "afhq", root / root.name, root / "split"]
    found = [place for place in places if present_splits(place)]
    if found:
        return max(found, key=lambda place: len(present_splits(place)))
    return root if root.name == "afhq" else root / "afhq"


def check_has_data(root: str | os.PathLike) -> None:
    """Raise a UserError unless there are data at `root`, the `--data_root` of programs that do not download."""
    if not present_splits(resolve_root(root)):
        raise UserError(f"argument --data_root: {_describe(Path(root))}")


def _describe(root: Path) -> str:
    """What is at `root`, what is expected there, and how to get it."""
    names = visible_names(root)
    found = f"holds {', '.join(names[:3])}{', ...' * (len(names) > 3)}" if names else "is empty"
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
    return f"{root} {found}; expected train/ and val/, each with one folder of images per class: {_remedy(root)}"


def _remedy(root: Path) -> str:
    command = f"`python dataset.py --data_root {shlex.quote(str(root))}"
    if inner := _inner_root(root):
        return f"choose {inner}, which has train/ and val/"
    if visible_names(root):
        return f"{command} --val_share 0.1` takes a tenth of the images there for val/"
    return f"{command}` downloads AFHQ, with --synthetic 500 it draws faces"


def _inner_root(root: Path) -> Path | None:
    """A data root in `root`, or in a folder in it, as archives have them."""
    folders = (path for pattern in ("*", "*/*") for path in sorted(root.glob(pattern)) if path.is_dir())
    return next((path for path in folders if len(present_splits(path)) == len(SPLITS)), None)


def is_synthetic(root: str | os.PathLike) -> bool:
    """Whether `synthetic_faces.py` drew the images in a data root, or in the folder `afhq` in it."""
    return (resolve_root(root) / SYNTHETIC_MARKER).is_file()


def list_classes(root: Path, split: str) -> dict[str, list[Path]]:
    """The images of each class in a split, see `find_classes`; FileNotFoundError when there is no such split."""
    folder = split_dir(root, split)
    if not folder.is_dir():
        raise FileNotFoundError(f"no split {split!r}: {_describe(root)}")
    return find_classes(folder)


def find_classes(folder: Path) -> dict[str, list[Path]]:
    """The images of each class, a folder in `folder`; images without one are a single class, "images".

    Classes are in the order of their names, or numbers; images in the order of their paths. A class includes the images
    in subfolders of its folder. UserError when there are no classes, or a class has no images.
    """
    classes: dict[str, list[Path]] = {}
    loose = []
    for path in [folder / name for name in visible_names(folder)]:
        is_image = path.suffix.lower() in image_suffixes()
        if path.is_dir() or not (is_image or path.exists()):  # a link to nothing is an error in `list_images`
            # The same name in two Unicode forms (macOS decomposes "é") is one class.
            classes.setdefault(unicodedata.normalize("NFC", path.name), []).extend(list_images(path))
        elif is_image:
            loose.append(path)
    if not any(classes.values()):
        classes = {"images": loose}
    elif loose:
        note(f"{folder}: {len(loose)} image{'s' * (len(loose) > 1)} outside of the folders of the classes ignored")
    if empty := [name for name, files in classes.items() if not files]:
        raise UserError(f"{folder if empty == ['images'] else folder / empty[0]} holds no images")
    return dict(sorted(classes.items(), key=lambda item: item[0].zfill(255) if item[0].isdecimal() else item[0]))


def visible_names(folder: Path) -> list[str]:
    """The names in a folder, sorted, without junk files."""
    return sorted(path.name for path in folder.iterdir() if not is_junk(path.name)) if folder.is_dir() else []


def split_off_val(root: Path, share: float) -> Path:
    """Make the data root `root/split` of images in `root` that have no val/: flat, per class, or in `root/train/`.

    A random share of each class goes to val/. The images stay where they are: the new ones are hard links, or copies
    where the file system has no links. UserError when there are too few images, or `root/split` exists.
    """
    source, target = split_dir(root, "train"), root / "split"
    if not source.is_dir():
        source = root
    if split_dir(root, "val").is_dir():
        raise UserError(f"{root} has val/ and no train/: put the training images into {root / 'train'}")
    if inner := _inner_root(root):
        raise UserError(f"{inner} has train/ and val/: choose it as --data_root")
    if target.exists():
        raise UserError(f"{target} already exists: rename it")
    if len({file.parent == source for file in list_images(source)}) > 1:
        raise UserError(f"{source} holds images both in folders and outside: put each into a folder of its class")
    classes = find_classes(source)
    check_writable(root)
    with atomic_dir(target) as partial:
        for name, files in classes.items():
            if len(files) < 2:
                raise UserError(f"argument --val_share: {source} holds only one image of class {name}")
            count = min(max(round(share * len(files)), 1), len(files) - 1)
            val = set(random.Random(0).sample(files, count))
            for file in files:
                inner = Path(name, file.name) if file.parent == source else file.relative_to(source)
                place = partial / ("val" if file in val else "train") / inner
                place.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(file.resolve(), place)
                except OSError:
                    shutil.copyfile(file, place)
    return target


def check_free(root: Path) -> None:
    """UserError unless new data can be put at `root`, an absolute path, without replacing anything."""
    check_writable(root)
    check_writable(root.parent)
    found = sorted(path.name for path in root.iterdir()) if root.exists() else []
    if others := [name for name in found if name.lower() not in JUNK | {".cache"}]:
        remedy = "" if present_splits(root) else f"; {_remedy(root)}"
        names = ", ".join(others[:3])
        raise UserError(f"{root} already holds other files ({names}): move them or choose another folder{remedy}")
