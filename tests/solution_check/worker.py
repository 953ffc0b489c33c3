"""The process in which a student's code runs: it judges folders and writes what happens as lines of JSON."""

import json
import os
import sys
from pathlib import Path

import torch

from solution_check import task1, task2
from solution_check.judge import judge_all
from solution_check.sandbox import bare_imports


def solution_and_checks(task: int, folder: Path, train: bool = False) -> tuple:
    """What `judge_all` takes, for a folder of Task 1 or 2."""
    if task == 1:
        return task1.Points(folder), [*task1.CHECKS, *[task1.TRAINING] * train]
    return task2.Images(folder), task2.CHECKS


def main() -> None:
    """Lines go to what was stdout; prints of the student's code go nowhere."""
    tasks, train, finished = json.loads(sys.argv[1])
    parent = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    here = str(Path(__file__).parent.parent)
    sys.path[:] = [path for path in sys.path if path not in ("", here, str(Path.cwd()))]
    torch.set_default_device = lambda device: None  # a GPU, which is not there
    for task, folder in tasks:
        os.chdir(folder)
        with bare_imports(Path(folder)):
            solution, checks = solution_and_checks(task, Path(folder), train)
            for kind, row in judge_all(solution, checks, set(finished)):
                print(json.dumps([kind, row.as_dict()]), file=parent)
    print(json.dumps(["end", "all"]), file=parent)
    os._exit(0)  # without waiting for threads that the student's code may have left


if __name__ == "__main__":
    main()
