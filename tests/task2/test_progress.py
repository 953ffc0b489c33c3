"""Progress bars in a terminal and in a log."""

import os
import sys

import pytest

import progress


@pytest.fixture
def nested_bars(monkeypatch):
    """Run two nested bars, of work that takes 200 times so many seconds by the clock of tqdm."""

    def run(seconds):
        now = [0.0]
        monkeypatch.setattr("tqdm.std.time", lambda: now[0])
        for _ in progress.tqdm(range(20), desc="outer"):
            for _ in progress.tqdm(range(10), desc="inner", leave=False):
                now[0] += seconds

    return run


@pytest.mark.parametrize(("seconds", "lines"), [(1.0, 3), (0.1, 0)])
def test_a_log_gets_a_line_a_minute_and_nothing_of_short_work(capsys, nested_bars, seconds, lines):
    nested_bars(seconds)
    output = capsys.readouterr().err
    assert output.count("\n") == output.count("outer: ") == lines and "\r" not in output and "inner" not in output


def test_a_log_that_cannot_be_written_ends_no_work(monkeypatch, nested_bars):
    """Such as that of `train.py 2>&1 | tee log` without its tee."""
    reading_end, writing_end = os.pipe()
    os.close(reading_end)
    log = os.fdopen(writing_end, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", log)
    nested_bars(1.0)
    with pytest.raises(BrokenPipeError):  # what was tried to print
        log.close()


def test_a_terminal_gets_a_bar_that_moves(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress.tqdm(range(3), desc="outer")) == [0, 1, 2]
    output = capsys.readouterr().err
    assert output.count("\r") >= 2 and "3/3" in output
