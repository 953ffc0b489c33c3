"""Command lines: values are checked before any work starts, and user errors end in one line and exit code 2."""

import argparse
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch


class UserError(ValueError, argparse.ArgumentTypeError):
    """A mistake in a file, flag or value that the user can fix. The argparse types below raise it too."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the description and shows the default of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default is None or action.default is False or "(default:" in (action.help or "")
        return action.help if plain else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse without abbreviated flags and without the usage text before an error (`--help` shows it).

    From `parse_args` on, an ASCII terminal shows other letters escaped.
    """

    def __init__(self, **settings: Any):
        super().__init__(**{"allow_abbrev": False, "formatter_class": HelpFormatter, **settings})

    def parse_args(self, *args: Any, **kwargs: Any) -> argparse.Namespace:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError):  # a notebook's stream has no such method
                stream.reconfigure(errors="backslashreplace")
        return super().parse_args(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


@contextmanager
def exit_on_user_error(interrupted: str = "stopped") -> Iterator[None]:
    """End the program with one line for what its user can fix; any other error is a bug and keeps its traceback."""
    code = 2
    try:
        yield
        return
    except KeyboardInterrupt:
        message, code = interrupted, 130
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except UserError as error:
        message = str(error)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or re.search("out of memory|allocate memory|ALLOC_FAILED", str(error)):
            message = "out of memory: a smaller --batch_size needs less, and so does train.py with --accumulate"
        elif re.search("Connection (closed|reset) by peer|remote process exited", str(error)):
            message = "another process of this program has ended; see its message"
        else:
            raise
    print(f"{Path(sys.argv[0]).name}: error: {one_line(message)}", file=sys.stderr)
    sys.exit(code)


def note(message: str) -> None:
    """Print a note on stderr; the program continues."""
    print(f"note: {one_line(message)}", file=sys.stderr)


def one_line(message: str) -> str:
    """A message with line breaks and all other characters that are not printable escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)


def int_range(low: int, high: float = math.inf) -> Callable[[str], int]:
    """An argparse type: whole numbers from `low` to `high`."""
    limits = f">= {low}" if high == math.inf else f"from {low} to {high}"
    return _number(int, low, high, f"a whole number {limits}")


def float_range(low: float, high: float) -> Callable[[str], float]:
    """An argparse type: numbers from `low` to `high`."""
    return _number(float, low, high, f"a number from {low} to {high}")


def _number(convert: type, low: float, high: float, expected: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        with suppress(ValueError):
            value = convert(text)
            if low <= value <= high:
                return value
        raise UserError(f"{text!r} is not {expected}")

    return parse


def select_device(name: str = "auto", gpu: int = 0) -> torch.device:
    """The device for `--device` (auto, cpu, cuda, cuda:I, mps) and `--gpu`; auto is a GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() or gpu else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{gpu}"
    with suppress(RuntimeError, AssertionError):
        device = torch.device(name)
        if device.type in ("cpu", "cuda", "mps"):
            torch.empty(0, device=device)
            return device
    raise UserError(f"{name!r} is not a device of this machine: choose another --device or --gpu")


def writable_folder(text: str) -> Path:
    """An argparse type: a folder to write to, created if missing."""
    folder = Path(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create folder {text!r}: {error.strerror}") from None
    check_writable(folder)
    return folder


def writable_file(text: str) -> Path:
    """An argparse type: a file to write or replace; its folder is created if missing."""
    file = Path(text)
    if file.exists() and not file.is_file():  # a device or pipe would be replaced
        raise UserError(f"{text!r} is not a file")
    writable_folder(str(file.parent))
    return file


def check_writable(folder: Path) -> None:
    """UserError unless `folder` can be created, or written to if it exists."""
    existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    if not existing.is_dir():
        raise UserError(f"{existing} is a file, not a folder")
    if not is_writable(existing):
        raise UserError(f"{existing} is read-only: choose another place")


def is_writable(folder: Path) -> bool:
    """Whether to write below `folder`; not if its mode is read-only, even as an administrator who could."""
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def _exit_on_missing_name(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """One line if a module beside this one lacks a name: imports come before `exit_on_user_error`."""
    if isinstance(error, ImportError) and error.path and Path(error.path).parent == Path(__file__).parent:
        importer = traceback.extract_tb(where)[-1]
        message = f"{Path(importer.filename).name}, line {importer.lineno}: {error}"
        print(f"{Path(sys.argv[0]).name}: error: {one_line(message)}", file=sys.stderr)
        sys.exit(2)
    _previous_hook(kind, error, where)


_previous_hook, sys.excepthook = sys.excepthook, _exit_on_missing_name
