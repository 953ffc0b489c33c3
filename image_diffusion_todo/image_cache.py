"""Decoded once, trained on often: the pixels of an image set in one memory-mapped file of bytes.

Decoding 15,000 JPEGs of 512x512 takes a minute or two; reading a batch of them from this file takes a millisecond.
"""

import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from images import fingerprint, read_image, resize
from layout import cache_places


def cached_pixels(files: Sequence[Path], root: Path, resolution: int, name: str) -> np.ndarray:
    """The pixels of all files, resized, as a read-only memory map; decoded only if that was not done before.

    The file lies in `root/.cache/`, or in the user's cache folder where `root` cannot be written to. Its name holds a
    fingerprint of the files, so that a changed, added or removed image leads to a new one, which replaces the old.

    Args:
        files: image files below `root`.
        root: folder of the data set.
        resolution: height and width of the result.
        name: what the files are among those below `root`, for instance "train".

    Returns:
        uint8 array [N, 3, resolution, resolution], in the order of `files`.

    Raises:
        ValueError: when a file cannot be decoded; the message names it.
        OSError: when neither folder can be written to, or the disk is full.
    """
    shape = (len(files), 3, resolution, resolution)
    name = f"{name}-{resolution}px"
    file_name = f"{name}-{fingerprint(files, root, resolution)}.npy"
    folders = cache_places(root)
    for folder in [root / ".cache", *folders]:  # a read-only root may have come with its cache
        with suppress(OSError, ValueError):  # absent, or cut short by a disk error: decode anew
            pixels = np.load(folder / file_name, mmap_mode="r")
            if pixels.shape == shape and pixels.dtype == np.uint8:
                return pixels

    with _temporary_file(folders) as file:
        temporary = Path(file.name)
        try:
            # Written rather than mapped: on a full disk, a write is an error and a mapped page is a crash.
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            with ThreadPoolExecutor() as pool:  # Pillow decodes and resizes outside of Python's lock
                decoded = pool.map(lambda path: _decode(path, resolution), files)
                for pixels in tqdm(decoded, desc=f"decoding {name} once", total=len(files), unit="image"):
                    file.write(pixels.tobytes())
        except BaseException:
            file.close()
            temporary.unlink()
            raise
    target = temporary.with_name(file_name)
    temporary.replace(target)
    outdated = [old for old in target.parent.glob(f"{name}-{'[0-9a-f]' * 16}.npy") if old != target]
    # What a killed run left behind; one that is younger may belong to a program that is still decoding.
    outdated += [old for old in target.parent.glob("*.tmp") if time.time() - old.stat().st_mtime > 24 * 3600]
    for old in outdated:
        with suppress(OSError):  # Windows keeps a file that another program still trains from
            old.unlink()
    return np.load(target, mmap_mode="r")


def _decode(path: Path, resolution: int) -> np.ndarray:
    return np.asarray(resize(read_image(path), resolution)).transpose(2, 0, 1)


def _temporary_file(folders: Sequence[Path]) -> BinaryIO:
    """A new file in the first folder that can be written to."""
    for folder in folders:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            return tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False)
    raise OSError(f"no place for the decoded images: cannot write to {' or '.join(map(str, folders))}")
