"""Checks that both tasks share: call the student's function on known inputs and compare with the formulas."""

import importlib
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from solution_check.formulas import BARS, PROBES, Case, T, forward, loss, mean_eq_7, reverse_step, schedule_at
from solution_check.judge import NotWritten, call, flag, numbers, shaped, timestep, written
from solution_check.sandbox import Draws, Network

MIDDLE = T // 2


class Solution:
    """A student's folder of one task; its modules can be imported by bare name."""

    shape: tuple[int, ...]  # of one sample

    def __init__(self, folder: Path):
        self.folder = folder
        self.notes: list[str] = []  # on the present check

    def make(self, file: str, name: str, *args: Any, **optional: Any) -> Any:
        """An object of one of the student's classes; optional arguments that it does not have are left out."""
        made = getattr(importlib.import_module(file), name, None)
        if made is None:
            raise NotWritten(f"{file}.py has no {name}")
        with Draws():
            return call(made, *args, **optional)

    def full(self, *values: float) -> torch.Tensor:
        """A batch with one value for each sample."""
        return torch.tensor(values).reshape(-1, *[1] * len(self.shape)).expand(-1, *self.shape).contiguous()


def q_of_xt(x_0: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """x_t by eq. 4; a t that is too large is taken for T - 1."""
    bar = torch.tensor(BARS[numbers(t).reshape(-1).astype(int).clip(0, T - 1)], dtype=x_0.dtype)
    bar = bar.reshape(-1, *[1] * (x_0.ndim - 1))
    return bar.sqrt() * x_0 + (1 - bar).sqrt() * eps


def forward_cases(solution: Solution, function: Callable, float_t: bool = False) -> list[Case]:
    """`function(x_0, t, eps)` gives x_t; eps is drawn where it is left out. One batch with several t."""
    rows = [(t, x0, eps) for t in PROBES for x0, eps in ((1.0, 0.0), (0.0, 1.0), (0.7, 1.3))]
    t, x0, eps = (list(column) for column in zip(*rows, strict=True))
    t, x0, eps, drawn = torch.tensor(t), solution.full(*x0), solution.full(*eps), 0.37

    def cases(aspect, x_t, drawn=drawn, same=None):
        x_t = shaped(x_t, x0)
        if same is not None and np.allclose(x_t, same, atol=1e-5):
            return [Case(aspect, "", x_t, lambda **_: x_t)]  # wrong at most in the way that "formula" tells
        formulas = [partial(forward, *row, row[2] if drawn is None else drawn) for row in rows]
        return [Case(aspect, f"t = {row[0]}", x_t[i], formulas[i]) for i, row in enumerate(rows)]

    with Draws(z=torch.full_like(x0, drawn)):
        x_t = function(x0, t, eps)
        found, x_t = cases("formula", x_t), numbers(x_t)
        if float_t:  # as the tutorial has it
            try:
                found += cases("t as float", function(x0, t.float(), eps), same=x_t)
            except Exception as error:
                found.append(flag("t as float", f"{type(error).__name__} for a float tensor of t", 0, "float_t"))
    with Draws(z=eps, more_z=[torch.full_like(x0, drawn)]):
        return found + cases("own noise", function(x0, t), None, x_t)


INPUTS = ("x_t alone", 1, 0, 0), ("the prediction alone", 0, 0.5, 0), ("z alone", 0, 0, 1), ("both", 0.3, 2, 0)


def step_cases(solution, step: Callable, predictor: str, forms: tuple[str, ...], sigma_type="small") -> list[Case]:
    """`step(x_t, t, prediction)` gives x_{t-1}. A batch of four tells the parts of the sum apart."""
    values = [(x, -out if predictor == "noise" else out, z) for _, x, out, z in INPUTS]  # so that nothing cancels
    x, out, z = (solution.full(*map(float, column)) for column in zip(*values, strict=True))
    ways = {
        "an int": lambda t: t,
        "a 0-d tensor": torch.tensor,
        "a tensor [1]": lambda t: torch.tensor([t]),
        "a tensor [B]": lambda t: torch.full((len(x),), t),
    }
    results, errors = {}, {}
    draws = Draws(z=z, uniform=z / 2)
    for form in forms:
        try:
            with draws:
                results[form] = shaped(step(x.clone(), ways[form](MIDDLE), out.clone()), x)
        except (NotWritten, NotImplementedError, NameError):
            raise
        except Exception as error:
            errors[form] = error
    if not results:
        raise errors[forms[0]]
    solution.notes += [f"fails for t as {form}" for form in errors]
    form, middle = next(iter(results.items()))
    cases = [Case("forms of t", f"t as {other}", result, lambda **_: middle) for other, result in results.items()]
    for t in PROBES:
        with draws:
            got = numbers(step(x.clone(), ways[form](t), out.clone()))
        for (name, *_), row, inputs in zip(INPUTS, got, values, strict=True):
            part = ("variance" if name == "z alone" else "mean") if t else "t = 0"
            aspect = part if sigma_type == "small" else "variance (large)"
            formula = partial(reverse_step, t, *inputs, inputs[2] / 2, predictor, sigma_type)
            # The coefficient of x_0 falls to 1e-4. At t = 0, rounding 1 - alpha-bar_0 moves a mean from eps by 2e-4.
            tolerance = 1e-7 if t else 2e-5 if name == "z alone" else 5e-4
            cases.append(Case(aspect, f"t = {t}, {name}", row, formula, tolerance=tolerance))
    cases.append(flag("device", "z is drawn on the CPU whatever the device of x_t is", not draws.clashed, "device"))
    if odd := draws.shapes - {tuple(z.shape)}:
        solution.notes.append(f"draws noise of shape {sorted(odd)[0]}, not of x_t's")
    return cases


def loss_cases(solution, make: Callable, function: Callable, predictor: str, helper: Callable | None) -> list[Case]:
    """`function(module, x_0)` gives the loss; `helper(module)` puts a right x_t from x_0 into the module."""
    B = 16
    generator = torch.Generator().manual_seed(1)
    x0 = 0.2 + torch.rand(B, *solution.shape, generator=generator) / 2
    *drawn, out = (torch.randn(B, *solution.shape, generator=generator) for _ in range(4))
    network = Network()
    module = make(network)
    if helper:
        helper(module)
    rounds = [(probe, lambda x: out, {}) for probe in PROBES]
    if predictor == "mean":  # the x_0 term of eq. 7 is small, so let the network give the x_t term alone
        c_xt = float(mean_eq_7(schedule_at(MIDDLE), 1.0, 0.0))
        rounds.append((MIDDLE, lambda x: c_xt * x, {"rel": 5e-3, "tolerance": 1e-9}))
    cases = []
    for probe, answer, tolerances in rounds:
        network.out = answer
        with Draws(z=drawn[0], more_z=drawn[1:], integers=torch.full((B,), probe)):
            value = function(module, x0)
        if not network.calls:
            raise NotWritten
        value, (x, t) = written(value), network.calls[-1]
        ts = np.broadcast_to(numbers(t).reshape(-1), B).astype(int).clip(0, T - 1)
        predicted, x = numbers(answer(x)), numbers(x)
        where = f"t = {ts[0]}" if (ts == ts[0]).all() else "random t"
        eps, *others = _noise_in(x, ts, numbers(x0), [numbers(each) for each in drawn])
        batch = ts, x, numbers(x0), eps, predicted, others
        cases.append(Case("target", where, numbers(value), partial(loss, predictor, *batch), **tolerances))
        inputs = [*zip(ts, numbers(x0), eps, strict=True)]
        cases.append(Case("input", where, x, lambda rows=inputs, **p: np.stack([forward(*r, **p) for r in rows])))
    requires_grad = isinstance(value, torch.Tensor) and value.requires_grad
    cases.append(flag("gradient", "the loss has no gradient", requires_grad, "gradient"))
    network.calls.clear()
    with Draws():
        function(module, torch.randn(20 * T, *solution.shape[:1], *[1] * (len(solution.shape) - 1)))
    t = numbers(network.calls[-1][1])
    is_one = len(np.unique(t)) == 1
    span = (1, 1) if is_one else (t.min() == 0, 1 + np.sign(t.max() - (T - 1)))
    cases.append(flag("range of t", f"t from {t.min():g} to {t.max():g}", span, "span", (1, 1)))
    return [*cases, flag("a t for each sample", f"t = {t.flat[0]:g} for all", not is_one, "each")]


def _noise_in(x: np.ndarray, ts: np.ndarray, x0: np.ndarray, drawn: list[np.ndarray]) -> list[np.ndarray]:
    """`drawn` with the noise that x_t = x was made with in front; as it is where that is none of them."""
    for eps in drawn:
        x_t = np.stack([forward(*row) for row in zip(ts, x0, eps, strict=True)])
        if x.shape == x_t.shape and np.allclose(x, x_t, 2e-3, 2e-5):
            return [eps, *[each for each in drawn if each is not eps]]
    return drawn


def loop_cases(
    make, owner, step: str, run, shape: tuple[int, ...], reference: bool, offset: float = 0.01
) -> list[Case]:
    """`run(module)` samples by calls of `step` of `owner(module)`, which is replaced by a known map (`reference`)."""
    network, steps = Network(), []
    module = make(network)

    def known_step(*args: Any, **kwargs: Any) -> torch.Tensor:
        x, t = [*args, *kwargs.values()][:2]
        steps.append((x, t, 0.9 * x + network.weight + offset))
        return steps[-1][2]

    if reference:
        setattr(owner(module), step, known_step)
    z = torch.linspace(-1, 1, int(np.prod(shape))).reshape(shape)
    with Draws(z=z) as draws:
        result = run(module)
    seen = steps if reference else [(x, t, None) for x, t in network.calls]
    if not seen or result is None:
        raise NotWritten
    ts = np.array([timestep(t) for _, t, _ in seen])
    order = f"{len(ts)} steps, t = {', '.join(f'{t:g}' for t in ts[:3])}, ..., {ts[-1]:g}"
    x_T = seen[0][0]
    starts = _same(x_T, z) if x_T.shape == z.shape else tuple(x_T.shape) in draws.shapes  # a resolution of their own
    fed = not reference or all(b[0] is a[2] or _same(b[0], a[2]) for a, b in pairwise(seen))
    ends = not reference or _same(result, seen[-1][2])
    return [
        flag("order", order, ts, "order", np.arange(T - 1, -1, -1)),
        flag("start", "x_T is not the noise that was drawn", starts, "start"),
        flag("chain", "a step is not given the result of the step before it", fed, "chain"),
        flag("result", "the result is not that of the last step", ends, "result"),
        flag("device", "x_T is drawn on the CPU whatever the device is", id(x_T) not in draws.on_cpu, "device"),
        flag("gradient", "the result requires a gradient", not result.requires_grad, "gradient"),
    ]


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool(torch.allclose(a.cpu().double(), b.cpu().double(), atol=1e-6))
