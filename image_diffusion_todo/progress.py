"""Progress bars that print a line a minute where the output is not a terminal, as in the log of a cluster job."""

import io
import sys
from contextlib import suppress
from typing import Any

from tqdm import tqdm as terminal_tqdm

SECONDS = 60  # between two lines, and before the first


class tqdm(terminal_tqdm):
    """tqdm that prints one line a minute in a log, and nothing for anything shorter."""

    def __init__(self, *args: Any, **options: Any):
        self.prints_lines = not sys.stderr.isatty() and "ipykernel" not in sys.modules
        if self.prints_lines:
            options |= {"mininterval": SECONDS, "miniters": 1, "delay": SECONDS, "leave": False, "file": io.StringIO()}
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Show the bar or, in a log, print it. tqdm clears a bar by an empty message."""
        if not self.prints_lines:
            return super().display(msg, pos)
        if msg is None:
            with suppress(OSError):  # a log that takes no more, such as a closed pipe, does not end the program
                print(self, file=sys.stderr, flush=True)
        return True
