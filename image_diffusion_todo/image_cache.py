"""Decoded once, trained on often: the pixels of an image set in one memory-mapped file of bytes.

Decoding 15,000 JPEGs of 512x512 takes a minute or two; reading a batch of them from this file takes a millisecond.
"""

import json
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from atomic import atomic_write
from cli import UserError
from data_folder import cache_dirs
from images import fingerprint, read_image, resize


def cached_pixels(
    files: Sequence[Path], root: Path, resolution: int, name: str, skip_broken: bool = False
) -> tuple[np.ndarray, dict[int, str]]:
    """The pixels of all files, resized, as a read-only memory map; decoded only if that was not done before.

    The file lies in `root/.cache/`, or in the user's cache folder where `root` cannot be written to. Its name holds a
    fingerprint of the files, so that a changed, added or removed image leads to a new one, which replaces the old.

    Args:
        files: image files below `root`.
        root: folder of the data set.
        resolution: height and width of the result.
        name: what the files are among those below `root`, for instance "train".
        skip_broken: go on past files that cannot be decoded.

    Returns:
        uint8 array [N, 3, resolution, resolution], in the order of `files`, black for broken ones; and the number of
        each broken file with what is wrong with it.

    Raises:
        ValueError: when a file cannot be decoded, unless `skip_broken`; the message names it.
        OSError: when neither folder can be written to, or the disk is full.
    """
    shape = (len(files), 3, resolution, resolution)
    name = f"{name}-{resolution}px"
    file_name = f"{name}-{fingerprint(files, root, resolution)}.npy"
    folders = cache_dirs(root)
    for folder in [root / ".cache", *folders]:  # a read-only root may have come with its cache
        with suppress(OSError, ValueError):  # absent, or cut short by a disk error: decode anew
            pixels = np.load(folder / file_name, mmap_mode="r")
            broken = _read_broken(folder / file_name, len(files))
            if pixels.shape == shape and pixels.dtype == np.uint8 and (skip_broken or not broken):
                return pixels, broken

    with _temporary_file(folders) as file:
        temporary = Path(file.name)
        try:
            # Written rather than mapped: on a full disk, a write is an error and a mapped page is a crash.
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            with ThreadPoolExecutor() as pool:  # Pillow decodes and resizes outside of Python's lock
                decoded = pool.map(lambda path: _decode(path, resolution, skip_broken), files)
                broken = {}
                bar = tqdm(decoded, desc=f"decoding {name} once", total=len(files), unit="image")
                for number, (pixels, reason) in enumerate(bar):
                    file.write(pixels.tobytes())
                    if reason:
                        broken[number] = reason
        except BaseException:
            file.close()
            temporary.unlink()
            raise
    target = temporary.with_name(file_name)
    if broken:
        with atomic_write(_broken_list(target)) as file:
            file.write(json.dumps(broken).encode())
    else:
        _broken_list(target).unlink(missing_ok=True)  # what could not be read for a moment
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(
        0o666 & ~umask
    )  # temporary files are their owner's alone, but whoever reads the images may read this
    temporary.replace(target)
    outdated = [
        old for old in target.parent.glob(f"{name}-{'[0-9a-f]' * 16}.*") if old.name.split(".")[0] != target.stem
    ]
    # What a killed run left behind; one that is younger may belong to a program that is still decoding.
    outdated += [old for old in target.parent.glob("*.tmp") if time.time() - old.stat().st_mtime > 24 * 3600]
    for old in outdated:
        with suppress(OSError):  # Windows keeps a file that another program still trains from
            old.unlink()
    return np.load(target, mmap_mode="r"), broken


def _decode(path: Path, resolution: int, skip_broken: bool) -> tuple[np.ndarray, str]:
    """The pixels [3, resolution, resolution] of a file, and what is wrong with it ("" for a whole one)."""
    try:
        return np.asarray(resize(read_image(path), resolution)).transpose(2, 0, 1), ""
    except (OSError, ValueError) as error:
        if not skip_broken:
            if isinstance(error, ValueError):
                raise UserError(f"{error}; train.py --skip_broken leaves such images out") from error
            raise
        return np.zeros((3, resolution, resolution), np.uint8), str(error)


def _broken_list(pixels: Path) -> Path:
    """Where it stands which rows of a file of pixels are of broken images."""
    return pixels.with_suffix(".broken.json")


def _read_broken(pixels: Path, num_files: int) -> dict[int, str]:
    """The numbers of broken files and what is wrong with each; ValueError where the list is none."""
    try:
        listed = json.loads(_broken_list(pixels).read_text())
    except FileNotFoundError:
        return {}
    if not isinstance(listed, dict):
        raise ValueError("no list")
    broken = {int(number): reason for number, reason in listed.items()}
    if not all(0 <= number < num_files and isinstance(reason, str) for number, reason in broken.items()):
        raise ValueError("a list of something else")
    return broken


def _temporary_file(folders: Sequence[Path]) -> BinaryIO:
    """A new file in the first folder that can be written to."""
    for folder in folders:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            return tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False)
    raise OSError(f"no place for the decoded images: cannot write to {' or '.join(map(str, folders))}")
