"""Files that are whole or not there, whatever happens while they are written."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cli import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` at the end of the block.

    It is written beside `path`, flushed to the disk and renamed, so that a kill, a full disk or a power cut leaves the
    old file or the new one, never a part. An error removes what was written; after a kill, `remove_partials` does.

    Raises:
        OSError: when it cannot be written, naming `path`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _flush_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        # torch.save turns an error of the file that it writes to into a RuntimeError of its own.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            raise OSError(cause.errno, f"cannot be written: {cause.strerror}", str(path)) from error
        raise


def _flush_folder(folder: Path) -> None:
    """Let the renaming itself survive a power cut, where the system can."""
    with suppress(OSError):  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_partial(path: Path) -> bool:
    """Whether this is what `atomic_write` writes before it is whole."""
    return re.fullmatch(r"\..+\.\d+\.partial", path.name) is not None and path.is_file()


def remove_partials(folder: Path) -> None:
    """Remove what killed programs were writing in `folder` when they were killed."""
    for path in list(folder.iterdir()):
        if is_partial(path):
            path.unlink()


class FolderLock:
    """See `lock_folder`."""

    def __init__(self, descriptor: int | None):
        self.descriptor = descriptor

    def close(self) -> None:
        """Let other programs in."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def lock_folder(folder: Path) -> FolderLock:
    """Keep other programs of this project out of a folder until the lock is closed or this process ends.

    Raises:
        ValueError: when another one is at work there.
    """
    if fcntl is None:  # Windows
        return FolderLock(None)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"{folder}: another program is at work there") from None
    except OSError:
        pass  # a file system that knows no locks
    return FolderLock(descriptor)
