"""How a data set lies on the disk.

    afhq/               the data root
        train/cat/*.jpg     one folder a class, in both splits
        val/cat/*.jpg
        eval/cat_*.png      every validation image at 64x64, made by `python dataset.py`
        SYNTHETIC.txt           only where the images were drawn by `synthetic_faces.py`
        .cache/             decoded training images

New data are put together in `afhq.partial/` beside the root and renamed when they are complete, so a root that has
`train/` and `val/` is whole.
"""

import hashlib
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from cli import UserError

SPLITS = ("train", "val")
SYNTHETIC_MARK = "SYNTHETIC.txt"

# What may be replaced: decoded images, and what `synthetic_faces.py` writes. Everything else is the user's.
_CACHE = re.compile(r"\.cache(/.*)?")
_DRAWN = re.compile(rf"{_CACHE.pattern}|{SYNTHETIC_MARK}|eval(/.*)?|(train|val)(/(cat|dog|wild)(/\w+_\d{{5}}\.png)?)?")


def has_data(root: str | os.PathLike) -> bool:
    """Whether `root` holds both splits."""
    return all(Path(root, split).is_dir() for split in SPLITS)


def resolve_root(root: str | os.PathLike) -> Path:
    """The data root that `root` means: itself, or the folder `afhq` in it. It need not be there yet."""
    root = Path(root)
    if root.name == "afhq" or any((root / split).is_dir() for split in SPLITS):
        return root
    return root / "afhq"


def check_has_data(root: str | os.PathLike) -> None:
    """See that there is something at `root`, for programs that do not download it on their own.

    Raises:
        ValueError: when there is not, for users who gave it as `--data_root`.
    """
    if not any((resolve_root(root) / split).is_dir() for split in SPLITS):
        raise UserError(
            f"argument --data_root: {root} holds no train/ and val/; "
            f"`python dataset.py --data_root {root}` gets AFHQ, with --synthetic 500 it draws faces"
        )


def is_synthetic(root: str | os.PathLike) -> bool:
    """Whether the images in a data root, or in the folder `afhq` in it, were drawn by `synthetic_faces.py`."""
    return (resolve_root(root) / SYNTHETIC_MARK).is_file()


def is_writable(folder: Path) -> bool:
    """Whether to write below `folder`; one that is marked read-only is left alone even by an administrator."""
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def cache_dirs(root: Path) -> list[Path]:
    """Folders for what can be computed again from `root`: its `.cache/` unless that is read-only, then the user's."""
    places = [root / ".cache"] if is_writable(root) else []
    with suppress(RuntimeError):  # a user without a home
        users_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        places.append(users_cache / "image_diffusion" / hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16])
    return places


def new_partial(root: Path) -> Path:
    """An empty folder beside `root` to put data together in; what a killed run left there is removed."""
    partial = root.with_name(root.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return partial


def check_free(root: Path) -> None:
    """See that data can be put at `root` (an absolute path) without mixing with anything.

    Raises:
        PermissionError: when the folder that `root` would be in is read-only.
        ValueError: when something is there already that is not drawn data; the message names it.
    """
    if root.is_dir():
        ours = _DRAWN if is_synthetic(root) else _CACHE
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


def check_writable(folder: Path) -> None:
    """See that `folder` can be made, or written into where it is there.

    Raises:
        PermissionError: when it, or the folder that it would be in, is read-only.
        ValueError: when a file is in the way.
    """
    existing = next(place for place in [folder.absolute(), *folder.absolute().parents] if place.exists())
    if not existing.is_dir():
        raise UserError(f"{existing} is a file, where a folder is wanted")
    if not is_writable(existing):
        raise PermissionError(f"{existing} is read-only: choose another place")


def commit_dir(partial: Path, root: Path) -> None:
    """Make a complete folder the data root, in place of nothing or of drawn data (see `check_free`)."""
    check_free(root)
    if root.exists():
        shutil.rmtree(root)
    partial.rename(root)
