"""Command-line values that are checked before any work starts.

A bad one ends the program with exit code 2 and one line that names the flag, the value and
what would be right.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch


class OneLineParser(argparse.ArgumentParser):
    """argparse without the page of usage in front of each complaint (`--help` has it), and without abbreviations."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def integer_from(low: int, high: int | None = None) -> Callable[[str], int]:
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
