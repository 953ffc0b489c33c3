"""`check_solution.py` judges any solution of the lab: what is right passes, each known mistake is named."""

from pathlib import Path

import pytest

import check_solution
from planted import PLANTED
from solution_check.judge import judge_all
from solution_check.mistakes import MISTAKES
from solution_check.sandbox import bare_imports
from solution_check.worker import solution_and_checks

TESTS = Path(__file__).parent
EXAMPLE = TESTS / "example_solution"
TASKS = {1: "points", 2: "images"}
# Mistakes in helpers show in the functions that use them.
DEPENDENT = {"sigmas": {f"step_predict_{each}" for each in ("noise", "x0", "mean")}}


def copy_example(target: Path, changes=()) -> list[int]:
    """Copy the example with some changes (after, old, new); the tasks whose files have changed."""
    changed = []
    for task, name in TASKS.items():
        (target / name).mkdir(parents=True)
        for file in (EXAMPLE / name).glob("*.py"):
            text = file.read_text()
            for after, old, new in changes:
                head, mark, tail = text.partition(after)
                if mark and old in tail:
                    text = head + mark + tail.replace(old, new, 1)
                    changed.append(task)
            (target / name / file.name).write_text(text)
    return changed


def judge_here(folder: Path, task: int) -> dict:
    """The rows of one task by function, judged in this process."""
    with bare_imports(folder):
        solution, checks = solution_and_checks(task, folder)
        return {row.function: row for kind, row in judge_all(solution, checks) if kind == "row"}


@pytest.mark.parametrize("place", [TESTS.parent, EXAMPLE], ids=["project", "example"])
def test_a_right_solution_is_right_throughout(place):
    for task, folder in check_solution.find_tasks(place / "." if place == EXAMPLE else place).items():
        rows = judge_here(folder, task)
        assert {name: (row.verdict, row.details) for name, row in rows.items() if row.verdict != "right"} == {}


def test_every_mistake_of_the_catalogue_is_planted():
    assert {mistake for mistake, *_ in PLANTED} == {mistake.name for mistake in MISTAKES}
    assert len(MISTAKES) >= 25


@pytest.mark.parametrize("mistake, function, changes", PLANTED, ids=[f"{m}-{f}" for m, f, _ in PLANTED])
def test_a_planted_mistake_is_named_and_nothing_else_is_called_wrong(tmp_path, mistake, function, changes):
    tasks = copy_example(tmp_path, changes)
    assert len(tasks) == len(changes) and len(set(tasks)) == 1, "the change fits no line"
    rows = judge_here(tmp_path / TASKS[tasks[0]], tasks[0])
    assert rows[function].verdict == "wrong"
    assert {detail["name"] for detail in rows[function].details} == {mistake}
    others = {name: row.details for name, row in rows.items() if row.verdict != "right"}
    assert set(others) - DEPENDENT.get(function, set()) == {function}, others
