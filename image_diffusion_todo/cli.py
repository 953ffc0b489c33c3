"""Command lines that are checked before any work starts, and errors that are one line.

What the user gave wrongly ends a program with exit code 2 and a line that names the flag or the file, the value and
what would be right.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch


class UserError(ValueError):
    """Something that the user can fix: a file, a flag or a value. It ends a program with one line and exit code 2."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse without the page of usage in front of each complaint (`--help` has it), and without abbreviations."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


@contextmanager
def exit_on_user_error(interrupted: str = "stopped") -> Iterator[None]:
    """Around a whole program: what its user can mend is one line and exit code 2; Ctrl-C ends it with code 130."""
    try:
        yield
        return
    except KeyboardInterrupt:
        message, code = interrupted, 130
    except OSError as error:
        message, code = f"{error.filename}: {error.strerror}" if error.filename else str(error), 2
    except ValueError as error:
        message, code = str(error), 2
    except (MemoryError, RuntimeError) as error:
        code = 2
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            message = "out of memory: a smaller --batch_size needs less, and so does train.py with --accumulate"
        elif re.search("Connection (closed|reset) by peer", str(error)):
            message = "another process of this program has ended; what it printed, if anything, says why"
        else:
            raise
    print(f"{Path(sys.argv[0]).name}: error: {one_line(message)}", file=sys.stderr)
    sys.exit(code)


def one_line(message: str) -> str:
    """A message with line breaks, and what else a file name may hold that is not print, spelled out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)


def int_range(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: whole numbers from `low` to `high` (None: no upper end)."""
    wanted = f"a whole number >= {low}" if high is None else f"a whole number from {low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return value

    return parse


def device(text: str) -> torch.device:
    """An argparse type: auto (a GPU if there is one), or a cpu, cuda or mps device that is really here."""
    if text == "auto":
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(text)
        if chosen.type in ("cpu", "cuda", "mps"):
            torch.empty(0, device=chosen)
            return chosen
    except (RuntimeError, AssertionError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a device of this machine; auto and cpu always are")


def writable_folder(text: str) -> Path:
    """An argparse type: a folder to write into, made if it is not there."""
    folder = Path(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise argparse.ArgumentTypeError(f"{text!r} is in the way: a file, where a folder is wanted") from None
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written to")
    return folder


def writable_file(text: str) -> Path:
    """An argparse type: a file to write, new or to be replaced, in a folder that is made if it is not there."""
    file = Path(text)
    if file.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is in the way: a folder, where a file is wanted")
    writable_folder(str(file.parent))
    return file


def float_range(low: float, high: float, open_ends: bool = False) -> Callable[[str], float]:
    """An argparse type: numbers from `low` to `high`, both included unless `open_ends`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
        if open_ends and value in (low, high):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number between {low} and {high}")
        return value

    return parse


def choose_device(name: str, gpu: int) -> torch.device:
    """The device behind `--device` and `--gpu`: auto takes the GPU of that index if there is one, else the CPU.

    Raises:
        ValueError: for a device or an index that is not there.
    """
    if name == "auto":
        name = str(device("auto").type)
        if gpu and name != "cuda":
            raise ValueError(f"argument --gpu: there is no GPU {gpu} on this machine")
    if name == "cuda":
        name = f"cuda:{gpu}"
    try:
        return device(name)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"argument --device/--gpu: {error}") from None
