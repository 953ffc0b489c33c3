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
    """A context in which signals that would end the program set `requested` instead.

    They are Ctrl-C, SIGTERM, SIGHUP (a lost connection; left alone where `nohup` ignores it), and SIGUSR1, SIGUSR2 and
    SIGXCPU (a cluster's warning before its time limit). A second Ctrl-C or SIGTERM ends the program at once.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopSignals":
        names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows has the first two
        self._previous = {
            number: signal.signal(number, self._request)
            for number in numbers
            if signal.getsignal(number) != signal.SIG_IGN or number == signal.SIGINT
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: FrameType | None) -> None:
        self.requested = True
        if number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._previous[number])
            with suppress(OSError):  # not print, which may not be called while tqdm is in the middle of a write
                os.write(2, b"\nstopping after this step; repeat to end at once\n")

    def interruptible(self, steps: Iterator[Any]) -> Iterator[Any]:
        """The same steps, until a stop is requested; then it raises `Stopped`."""
        for step in steps:
            if self.requested:
                raise Stopped
            yield step
