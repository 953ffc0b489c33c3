"""Write files that are either complete or absent, and lock folders against a second program."""

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
    """A binary file that replaces `path` at the end of the block.

    It is written beside `path`, flushed to the disk and renamed. A kill, a full disk or a power cut leaves the old
    file or the new one. An error removes the partial file; after a kill, `remove_partials` does.

    Raises:
        OSError: when it cannot be written; the error names `path`.
    """
    partial = path.with_name(f".{path.name[:40]}.{os.getpid()}.partial")  # short: names end at 255 bytes
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        with suppress(OSError):  # Windows opens no folders
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # the renaming, too, survives a power cut
            finally:
                os.close(descriptor)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        # torch.save raises a RuntimeError of its own when writing fails.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            raise OSError(cause.errno, f"cannot be written: {cause.strerror or cause}", str(path)) from error
        raise


def is_partial(path: Path) -> bool:
    """Whether this is a file that `atomic_write` has not finished."""
    return re.fullmatch(r"\..+\.\d+\.partial", path.name) is not None and path.is_file()


def remove_partials(folder: Path) -> None:
    """Remove the unfinished files of killed programs in `folder`."""
    for path in list(folder.iterdir()):
        if is_partial(path):
            path.unlink()


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder against other programs of this project during the block.

    Raises:
        UserError: when another one holds the lock.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is in use by another program") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)
