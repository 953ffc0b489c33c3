"""Progress bars in a terminal and in a log."""

import sys
import time

import pytest

import progress


@pytest.mark.parametrize(("seconds", "lines"), [(0.5, range(2, 5)), (60, range(1))])
def test_a_log_gets_a_line_each_interval_and_nothing_of_short_work(capsys, monkeypatch, seconds, lines):
    monkeypatch.setattr(progress, "SECONDS", seconds)
    for _ in progress.tqdm(range(20), desc="outer"):
        for _ in progress.tqdm(range(10), desc="inner", leave=False):
            time.sleep(0.01)
    output = capsys.readouterr().err
    assert output.count("\n") in lines and "\r" not in output and "inner" not in output
    assert all(line.startswith("outer: ") for line in output.splitlines())


def test_a_terminal_gets_a_bar_that_moves(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for _ in progress.tqdm(range(3), desc="outer"):
        pass
    output = capsys.readouterr().err
    assert output.count("\r") >= 2 and "3/3" in output


def test_a_disabled_bar_is_silent(capsys):
    assert list(progress.tqdm(range(3), disable=True)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
