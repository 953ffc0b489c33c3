"""Signals that ask a program to save and stop."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType
from typing import Any


class Stopped(Exception):
    """A stop was requested during work that need not be finished."""


class StopSignals:
    """A context in which Ctrl-C and SIGTERM set `requested`. A second one ends the program at once."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopSignals":
        self._previous = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, self._previous[number])
        with suppress(OSError):  # not print, which may not be called while tqdm is in the middle of a write
            os.write(2, b"\nstopping after this step; repeat to end at once\n")

    def interruptible(self, steps: Iterator[Any]) -> Iterator[Any]:
        """The same steps, until a stop is requested; then it raises `Stopped`."""
        for step in steps:
            if self.requested:
                raise Stopped
            yield step
