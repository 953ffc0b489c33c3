"""The process in which a student's code runs: it judges folders and writes what happens as lines of JSON."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from solution_check import task1, task2
from solution_check.judge import judge_all
from solution_check.process import Row
from solution_check.sandbox import bare_imports


def judge_folder(
    task: int, folder: Path, train: bool = False, finished: set[str] = frozenset()
) -> Iterator[tuple[str, Row]]:
    """See `judge_all`."""
    with bare_imports(folder):
        if task == 1:
            yield from judge_all(task1.Points(folder), [*task1.CHECKS, *[task1.TRAINING] * train], finished)
        else:
            yield from judge_all(task2.Images(folder), task2.CHECKS, finished)


def main() -> None:
    """Lines go to what was stdout; prints of the student's code go nowhere."""
    tasks, train, finished = json.loads(sys.argv[1])
    parent = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    tests = str(Path(__file__).parent.parent)
    sys.path[:] = [path for path in sys.path if path not in ("", tests, str(Path.cwd()))]
    torch.set_default_device = lambda device: None  # a GPU, which is not there
    for task, folder in tasks:
        os.chdir(folder)
        for kind, row in judge_folder(task, Path(folder), train, set(finished)):
            print(json.dumps([kind, asdict(row)]), file=parent)
    print(json.dumps(["end", None]), file=parent)
    os._exit(0)  # without waiting for threads that the student's code may have left


if __name__ == "__main__":
    main()
