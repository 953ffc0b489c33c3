"""A check of one function of a student: how it runs, and the row of the table that it gives."""

import importlib
import inspect
import itertools
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from solution_check.formulas import Case
from solution_check.mistakes import MISTAKES, RIGHT, Mistake
from solution_check.process import Row
from solution_check.sandbox import Draws

# Results that the skeleton returns without ever assigning them.
SKELETON_NAMES = {"x_t_prev", "sample_prev", "x_t", "xt", "x0_pred", "loss", "betas", "x_prev"}


class NotWritten(Exception):
    """The function is as the skeleton has it."""


@dataclass(frozen=True)
class Check:
    """A function of the lab. `run` is called with (solution, attempt) and gives its cases.

    The first attempt that runs counts. So a function is judged with right helpers around it ("reference"), or with the
    student's own ("own") if it does not call those helpers.
    """

    task: int
    todo: str
    function: str
    file: str
    aspects: tuple[str, ...]
    run: Callable[..., list[Case]]
    attempts: tuple[str, ...] = ("own",)
    is_optional: bool = False  # left out of the table where it is not written

    def row(self) -> Row:
        """The row for a crash."""
        return Row(self.task, self.todo, self.function, len(self.aspects))


def judge_all(solution: Any, checks: list[Check], finished: set[str] = frozenset()) -> Iterator[tuple[str, Row]]:
    """("start", row) before and ("row", row) after each import of a file and each check; not those in `finished`.

    A row at the start says what it is if the process ends now. A file that cannot be imported has one row.
    """
    for file, group in itertools.groupby(checks, lambda check: check.file):
        own = [*group]
        row = Row(own[0].task, "-", f"{file}.py", sum(len(c.aspects) for c in own if not c.is_optional))
        own = [check for check in own if check.row().key not in finished]
        if row.key in finished or not own:
            continue
        yield "start", row
        if not (solution.folder / f"{file}.py").is_file():
            row.verdict, row.note = "not written yet", "there is no such file"
            yield "row", row
            continue
        try:
            with Draws():
                importlib.import_module(file)
        except (Exception, SystemExit):
            row.note = crash(solution.folder)
            yield "row", row
            continue
        for check in own:
            yield "start", check.row()
            if result := judge(check, solution):
                yield "row", result


def judge(check: Check, solution: Any) -> Row | None:
    """Run a check; None where it is optional and not written."""
    row = check.row()
    for attempt in check.attempts:
        _reset(solution)
        try:
            _fill(row, check, check.run(solution, attempt), solution)
            break
        except (NotWritten, NotImplementedError) as error:
            row.verdict, row.note = "not written yet", "" if isinstance(error, NotImplementedError) else str(error)
        except (Exception, SystemExit) as error:
            unassigned = isinstance(error, NameError) and error.name in SKELETON_NAMES
            row.verdict, row.note = ("not written yet", "") if unassigned else ("crashed", crash(solution.folder))
    return None if check.is_optional and row.verdict == "not written yet" else row


def _reset(solution: Any) -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    solution.notes.clear()


def _fill(row: Row, check: Check, cases: list[Case], solution: Any) -> None:
    """The verdict, and for each aspect that does not hold its largest difference and the likely mistake."""
    failed = list(dict.fromkeys(case.aspect for case in cases if not case.holds()))
    row.held = len(check.aspects) - len(failed)
    row.verdict = "wrong" if failed else "right"
    row.note = "; ".join(solution.notes)
    joint = diagnose(check.function, cases) if failed else []
    for aspect in failed:
        own = [case for case in cases if case.aspect == aspect]
        found = joint or diagnose(check.function, own)
        # Of two mistakes, those that show in this aspect.
        shown = [m for m, parts in found if any(case.is_changed_by(parts) for case in own)] or [m for m, _ in found]
        what = "; ".join(mistake.what for mistake in shown) or "not a mistake that this program knows"
        right = "; ".join(dict.fromkeys(mistake.right for mistake in shown)) or RIGHT.get(check.function, "")
        mistake = what + (f": right is {right}" if right else "")
        name = " + ".join(mistake.name for mistake in shown)
        row.details.append({"aspect": aspect, "difference": _largest(own), "mistake": mistake, "name": name})


def diagnose(function: str, cases: list[Case]) -> list[tuple[Mistake, dict[str, Any]]]:
    """The fewest mistakes (one or two) that explain all of `cases`, with the parts they replace; or none."""
    known = [(mistake, parts) for mistake in MISTAKES if function in mistake.functions for parts in mistake.variants]
    for size in (1, 2):
        matches = []
        for chosen in itertools.combinations(known, size):
            parts = {name: part for _, each in chosen for name, part in each.items()}
            if len(parts) == sum(len(each) for _, each in chosen) and all(case.holds(**parts) for case in cases):
                distance = sum(float(case.differences(**parts)[0].sum()) for case in cases)
                matches.append((distance, len(matches), [*chosen]))
        if matches:
            return min(matches)[2]
    return []


def _largest(cases: list[Case]) -> str:
    """The largest difference and where it is."""

    def differences(case: Case) -> np.ndarray:
        return np.nan_to_num(case.differences()[0], nan=np.inf)

    worst = max((case for case in cases if not case.holds()), key=lambda case: differences(case).max())
    if worst.is_flag:
        return worst.where
    largest, where = differences(worst).max(), worst.where.format(int(differences(worst).argmax()))
    return f"off by {largest:.3g} at {where}" if np.isfinite(largest) else f"no number at {where}"


def crash(folder: Path) -> str:
    """The present exception in one line, with the last line of the student's code that led to it."""
    kind, error, trace = sys.exc_info()
    frames = [frame for frame in traceback.extract_tb(trace) if frame.filename.startswith(str(folder))]
    place = f"{Path(frames[-1].filename).name} line {frames[-1].lineno}: " if frames else ""
    return f"{place}{' '.join(f'{kind.__name__}: {error}'.split())[:200]}"


def method(owner: Any, name: str) -> Callable:
    """A function of the student's, NotWritten where there is none of this name."""
    if not hasattr(owner, name):
        raise NotWritten(f"there is no {name}")
    return getattr(owner, name)


def call(function: Callable, *args: Any, **optional: Any) -> Any:
    """Call with those of the optional arguments that the function knows."""
    known = inspect.signature(function).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in known):
        optional = {name: value for name, value in optional.items() if name in {p.name for p in known}}
    return function(*args, **optional)


def written(result: Any, given: torch.Tensor | None = None) -> Any:
    """The result, unless it is that of a skeleton: None, or what was given."""
    is_given = isinstance(result, torch.Tensor) and given is not None and result.shape == given.shape
    if result is None or (is_given and bool((result == given).all())):
        raise NotWritten
    return result


def shaped(result: Any, given: torch.Tensor) -> np.ndarray:
    """The numbers of a result that must have the shape of `given` and differ from it."""
    values = numbers(written(result, given))
    if values.shape != tuple(given.shape):
        raise ValueError(f"it returns the shape {list(values.shape)}, not {list(given.shape)}")
    return values


def numbers(x: Any) -> np.ndarray:
    """A tensor or number in float64."""
    return (x.detach().cpu().double().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)).astype(np.float64)


def timestep(t: Any) -> float:
    """The one timestep that an int or a tensor of equal entries names, else -1."""
    t = numbers(t).reshape(-1)
    return float(t[0]) if t.size and (t == t[0]).all() else -1.0


def flag(aspect: str, problem: str, value: Any, part: str, right: Any = 1) -> Case:
    """A case that is a yes or no, or a sequence: `part` of the mistakes is what they give instead of `right`."""
    return Case(aspect, problem, np.asarray(value, dtype=np.float64), lambda **p: p.get(part, right), 0, 0, True)
