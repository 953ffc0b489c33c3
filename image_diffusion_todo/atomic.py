"""Write files and folders that are either complete or absent, and lock folders against a second program."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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

    It is written beside `path`, flushed to the disk and renamed. A kill, a full disk or a power cut leaves the old file
    or the new one. An error removes the partial file and names `path`; after a kill, `remove_partials` removes it.
    """
    partial = path.with_name(f".{path.name[:40]}.{os.getpid()}.partial")  # short: names end at 255 bytes
    try:
        with name_in_errors(path, instead_of=partial):
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_dir(folder: Path) -> Iterator[Path]:
    """A new folder that replaces `folder` at the end of the block, which is either complete or as before.

    An error removes the new folder; after a kill, the next call does.
    """
    folder = folder.resolve()  # a link stays one
    partial = folder.with_name(f".{folder.name[:60]}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with name_in_errors(partial):
            yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def name_in_errors(path: Path, instead_of: Path | None = None) -> Iterator[None]:
    """Let an OSError that names no file, as on a full disk, or the file `instead_of`, name `path`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save raises a RuntimeError of its own when writing fails.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError) and (not cause.filename or str(cause.filename) == str(instead_of)):
            if cause.errno is None:  # raised by a library
                raise OSError(f"{path}: {cause}") from error
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise


def remove_partials(folder: Path) -> None:
    """Remove what killed programs left of `atomic_write` in `folder`."""
    for path in folder.glob(".*.partial"):
        if re.fullmatch(r"\..+\.\d+\.partial", path.name) and path.is_file():
            path.unlink()


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder during the block; UserError when another program of this project holds the lock."""
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
