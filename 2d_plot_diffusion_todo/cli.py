"""Shared by the programs: types of arguments, device, errors in one line, files written completely or not at all."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch


class UserError(ValueError):
    """What a user can fix: a file, a flag or a value. Any other exception is a bug and keeps its traceback."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults and keeps the line breaks of the description."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse without abbreviated flags and without the usage text before an error (`--help` shows it)."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, formatter_class=HelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


@contextmanager
def exit_on_user_error(interrupted: str = "interrupted") -> Iterator[None]:
    """End the program with one line: exit code 2 after a UserError or OSError, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a notebook's stream has no such method
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal shows other letters escaped
    try:
        yield
        return
    except KeyboardInterrupt:
        message, code = interrupted, 130
    except OSError as error:
        message, code = f"{error.filename}: {error.strerror}" if error.filename else str(error), 2
    except UserError as error:
        message, code = str(error), 2
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which replaces `path` at the end of the block; an error leaves no trace.

    Raises:
        OSError: when it cannot be written, naming `path`.
    """
    partial = path.with_name(f".{os.getpid()}.{path.name}")  # the ending decides the format of a picture
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror or error}", str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def int_range(low: int, high: float = math.inf) -> Callable[[str], int]:
    """An argparse type: whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        with suppress(ValueError):
            value = int(text)
            if low <= value <= high:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")

    return parse


def select_device(text: str) -> torch.device:
    """An argparse type: auto (a GPU if there is one), or an available cpu, cuda or mps device."""
    if text == "auto":
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    with suppress(RuntimeError, AssertionError):
        device = torch.device(text)
        if device.type in ("cpu", "cuda", "mps"):
            torch.empty(0, device=device)
            return device
    raise argparse.ArgumentTypeError(f"{text!r} is not a device of this machine; auto and cpu always work")


def writable_folder(text: str) -> Path:
    """An argparse type: a folder to write to, created if missing."""
    folder = Path(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot create folder {text!r}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write to folder {text!r}")
    return folder
