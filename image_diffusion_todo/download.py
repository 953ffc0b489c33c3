"""Get AFHQ v1 (Choi et al., 2020, arXiv:1912.01865): 512x512 faces of cats, dogs and wild animals."""

import http.client
import os
import re
import shutil
import stat
import struct
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from cli import UserError
from data_folder import SPLITS, check_free, commit_dir, has_data, new_partial
from images import SUFFIXES

AFHQ_URL = "https://www.dropbox.com/s/t9l9o3vsx2jai3z/afhq.zip?dl=1"
AFHQ_COUNTS = {"train": 14_630, "val": 1_500}
MAX_UNPACKED_BYTES = 8 * 2**30  # about ten times what AFHQ needs
TIMEOUT = 30  # seconds without a byte


def download_afhq(root: str | os.PathLike, url: str = AFHQ_URL, counts: Mapping[str, int] = AFHQ_COUNTS) -> None:
    """Put the data set at `root`, whole or not at all; nothing happens where it is already.

    The archive comes to `<root>.zip.part` beside the root, and a later call goes on where this one was cut off. An
    archive that somebody put at `<root>.zip` is used instead, and left there.

    Args:
        root: the data root to be; what it will hold is described in `data_folder.py`.
        url: of a zip archive with `train/<class>/<image>` and `val/...`, in a folder `afhq/` or at its top.
        counts: how many images each split must have.

    Raises:
        ConnectionError: when the archive cannot be fetched; the message says what to do by hand.
        ValueError: when the archive is broken, unsafe or not this data set, or something else is at `root`.
        OSError: when the disk is full or cannot be written to.
    """
    root = Path(root).resolve()
    if has_data(root):
        return
    check_free(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    archive = root.with_name(root.name + ".zip")
    if archive.is_file():
        _unpack(archive, root, counts)
        return
    part = archive.with_name(archive.name + ".part")
    try:
        _fetch(url, part)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.filename and not isinstance(error, urllib.error.HTTPError):
            raise  # the disk, not the network
        raise ConnectionError(
            f"cannot download AFHQ ({error}): fetch {url} in another way and put it at {archive}, "
            f"or draw a data set with `python dataset.py --data_root {root} --synthetic 500`"
        ) from error
    try:
        _unpack(part, root, counts)
    except ValueError:
        part.unlink()  # the next call shall not stumble over it again
        raise
    part.unlink()


def _fetch(url: str, part: Path) -> None:
    """Fetch into `part`, going on where it ends; when cut off, again for as long as that brings new bytes."""
    best = -1
    while not _fetch_rest(url, part):
        size = part.stat().st_size
        if size <= best:
            raise ConnectionError(f"cut off after {size:,} bytes; run again to go on from there")
        best = size


def _fetch_rest(url: str, part: Path) -> bool:
    """One request. Returns whether the file is complete now."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        # Nothing after our last byte: the file is complete, or it is not the one on the server.
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return True
        part.unlink()
        part.touch()
        return False
    with response:
        continues = response.status == 206 and re.match(rf"bytes {start}-", response.headers.get("Content-Range", ""))
        if not continues:  # a server that sends all of it, whatever was asked for
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with (
            part.open("ab" if continues else "wb") as file,
            tqdm(desc="downloading AFHQ", initial=start, total=total, unit="B", unit_scale=True) as bar,
        ):
            try:
                while block := response.read(2**18):
                    file.write(block)
                    bar.update(len(block))
            except (http.client.IncompleteRead, ConnectionResetError, TimeoutError):
                return False
            return total is None or file.tell() == total


def _unpack(archive: Path, root: Path, counts: Mapping[str, int]) -> None:
    partial = new_partial(root)
    try:
        try:
            with zipfile.ZipFile(archive) as opened:
                members = _safe_images(opened)
                _check_counts(members.values(), counts)
                for info, target in tqdm(members.items(), desc="unpacking", unit="image"):
                    path = partial / target
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(info) as source, path.open("wb") as file:  # reading checks the CRC
                        shutil.copyfileobj(source, file)
        except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError) as error:
            raise UserError(f"{archive} is not a zip archive that can be read, or a broken one ({error})") from error
        except ValueError as error:
            raise UserError(f"{archive} is refused: {error}") from error
        commit_dir(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _safe_images(archive: zipfile.ZipFile) -> dict[zipfile.ZipInfo, str]:
    """The members that are images of a split, and where they belong below the data root."""
    size = sum(info.file_size for info in archive.infolist())
    if size > MAX_UNPACKED_BYTES:
        raise UserError(f"it would unpack to {size:,} bytes")
    members = {}
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or ":" in name or stat.S_ISLNK(info.external_attr >> 16):
            raise UserError(f"it holds {info.filename!r}, which could lead out of the folder")
        parts = parts[1:] if parts and parts[0] == "afhq" else parts
        is_image = len(parts) == 3 and not parts[2].startswith(".") and PurePosixPath(name).suffix.lower() in SUFFIXES
        if is_image and parts[0] in SPLITS:
            members[info] = "/".join(parts)
    return members


def _check_counts(targets: Mapping[str, int], counts: Mapping[str, int]) -> None:
    for split, wanted in counts.items():
        found = len({target for target in targets if target.startswith(f"{split}/")})
        if found != wanted:
            raise UserError(f"it holds {found:,} images in {split}/, and AFHQ v1 has {wanted:,}")
