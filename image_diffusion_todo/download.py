"""Download of AFHQ v1 (Choi et al., 2020, arXiv:1912.01865): 512x512 faces of cats, dogs and wild animals."""

import os
import shlex
import shutil
import struct
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from atomic import atomic_dir, name_in_errors
from cli import UserError
from data_folder import SPLITS, check_free, present_splits
from images import image_suffixes, is_junk
from progress import tqdm

AFHQ_URL = "https://www.dropbox.com/s/t9l9o3vsx2jai3z/afhq.zip?dl=1"
AFHQ_COUNTS = {"train": 14_630, "val": 1_500}
MAX_UNPACKED_BYTES = 8 * 2**30  # about ten times what AFHQ needs
TIMEOUT = 30  # seconds without a byte


def download_afhq(root: str | os.PathLike, url: str = AFHQ_URL, counts: Mapping[str, int] = AFHQ_COUNTS) -> None:
    """Download AFHQ to `root`, completely or not at all; nothing happens if both splits exist.

    The archive is downloaded to `{root}.zip.part`, and a later call continues where this one was cut off. An archive
    that the user put at `{root}.zip` is used instead, and left there.

    Args:
        root: the data root.
        url: of a zip archive that holds `train/<class>/<image>` and `val/...`, in any folder.
        counts: how many images each split must have.

    ConnectionError when the archive cannot be downloaded; UserError when it is damaged or not this data set, or
    something else is at `root`.
    """
    root = Path(root).resolve()
    if len(present_splits(root)) == len(SPLITS):
        return
    check_free(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    archive, part = (root.with_name(root.name + suffix) for suffix in (".zip", ".zip.part"))
    if archive.is_file():
        try:
            return _unpack(archive, root, counts)
        except UserError as error:
            raise UserError(f"{archive} is not AFHQ v1: it {error}; unpack any other data set yourself") from error
    by_hand = f"download {url} in another way and save it as {archive}"
    try:
        _fetch(url, part)
    except (ConnectionError, urllib.error.URLError, HTTPException, TimeoutError) as error:
        draw = f"python dataset.py --data_root {shlex.quote(str(root))} --synthetic 500"
        raise ConnectionError(f"cannot download AFHQ ({error}): {by_hand}, or draw faces with `{draw}`") from error
    try:
        _unpack(part, root, counts)
    except UserError as error:
        with part.open("rb") as file:
            is_page = file.read(1000).lstrip().startswith(b"<")
        part.unlink()  # or the next call would use it again
        reason = "is a web page" if is_page else error
        raise UserError(f"what {url} sent is not the archive of AFHQ: it {reason}; {by_hand}") from error
    part.unlink()


def _fetch(url: str, part: Path) -> None:
    """Download to `part`, continuing where it ends; when cut off, retry as long as each try brings new bytes."""
    size = -1
    while True:
        start = part.stat().st_size if part.exists() else 0
        if start <= size:
            raise ConnectionError(f"cut off after {start:,} bytes; run again to continue from there")
        size = start
        try:
            request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"})
            response = urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if start and error.code == 416:  # there is nothing after our last byte
                return
            raise
        with response:
            start = start if response.status == 206 else 0  # a server without Range sends the whole file
            length = response.headers.get("Content-Length")
            total = start + int(length) if length else None
            with (
                name_in_errors(part),
                part.open("ab" if start else "wb") as file,
                tqdm(desc="downloading AFHQ", initial=start, total=total, unit="B", unit_scale=True) as bar,
            ):
                try:
                    while block := response.read(2**18):
                        file.write(block)
                        bar.update(len(block))
                except (HTTPException, ConnectionError, TimeoutError):
                    total = -1  # cut off
        if total in (None, part.stat().st_size):
            return


def _unpack(archive: Path, root: Path, counts: Mapping[str, int]) -> None:
    """Unpack the images of both splits to `root`, and nothing else."""
    try:
        with zipfile.ZipFile(archive) as opened, atomic_dir(root) as partial:
            members = {_place(info.filename): info for info in opened.infolist()}
            members.pop(None, None)
            for split, count in counts.items():
                found = sum(place.parts[0] == split for place in members)
                if found != count:
                    raise UserError(f"holds {found:,} images in {split}/, and AFHQ v1 has {count:,}")
            size = sum(info.file_size for info in members.values())
            if size > MAX_UNPACKED_BYTES:
                raise UserError(f"would unpack to {size:,} bytes")
            for place, info in tqdm(members.items(), desc="unpacking", unit="image"):
                path = partial / place
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(info) as source, path.open("wb") as file:  # reading checks the CRC
                    shutil.copyfileobj(source, file)
            check_free(root)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError) as error:
        raise UserError(f"is not a zip archive, or is damaged ({error})") from error


def _place(name: str) -> PurePosixPath | None:
    """Where a member of the archive belongs below the data root: `split/class/image`, or None for no image of AFHQ."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    folder = parts[-3].lower() if len(parts) > 2 else ""
    split = next((split for split, names in SPLITS.items() if folder in names), None)
    # No name that starts with a dot (".." among them) or holds a drive ("C:") can lead out of the folder.
    if split is None or any(is_junk(part) or ":" in part for part in parts):
        return None
    return PurePosixPath(split, *parts[-2:]) if PurePosixPath(name).suffix.lower() in image_suffixes() else None
