"""The formulas of the lab as functions of named parts, such as the mean and the variance of a step.

The default parts are right and come from `oracles.py`; a mistake (see `mistakes.py`) replaces some of them. A formula
ignores parts that it does not have.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from oracles import alpha_bars_by_definition, betas_by_definition, eq_7

T, BETA_1, BETA_T = 1000, 1e-4, 0.02
LINEAR = SimpleNamespace(config={"mode": "linear"}, num_train_timesteps=T)
BETAS, BARS = betas_by_definition("linear", T), alpha_bars_by_definition("linear", T)
PROBES = 0, 1, T // 2, T - 1  # the timesteps at which the steps are compared


@dataclass(frozen=True)
class Case:
    """One comparison: what the student's code gave, and the formula for it."""

    aspect: str
    where: str
    got: np.ndarray
    formula: Callable[..., Any]
    rel: float = 2e-3  # float32 schedules have 1 - alpha-bar_t to 6e-4 of itself at t = 0
    tolerance: float = 2e-5
    is_flag: bool = False  # a yes or no, or a sequence, whose difference says nothing

    def differences(self, **parts: Any) -> tuple[np.ndarray, bool]:
        """|got - formula|, and whether all of it is rounding."""
        want = np.asarray(self.formula(**parts), dtype=np.float64)
        if want.ndim and want.shape != self.got.shape:
            return np.array([np.inf]), False
        with np.errstate(invalid="ignore"):
            difference = np.abs(self.got - want)
        return difference, bool((difference <= self.tolerance + self.rel * np.abs(want)).all())

    def is_changed_by(self, parts: dict[str, Any]) -> bool:
        """Whether these parts give another result than the right ones."""
        right, other = (np.asarray(self.formula(**each), dtype=np.float64) for each in ({}, parts))
        return right.shape != other.shape or not np.allclose(right, other, self.rel, self.tolerance)

    def holds(self, **parts: Any) -> bool:
        return self.differences(**parts)[1]


# Formulas. `q` holds the schedule at one t; x is x_t, out the network's prediction, z the noise of the step.


def schedule_at(t: int) -> SimpleNamespace:
    before = max(t - 1, 0)  # what (t - 1).clamp(min=0) takes
    return SimpleNamespace(
        t=t,
        beta=BETAS[t],
        alpha=1 - BETAS[t],
        bar=BARS[t],
        prev=BARS[t - 1] if t else 1.0,
        clamped=BARS[before],
        alpha_prev=1 - BETAS[before],
    )


def cosine_betas(s=0.008, power=2, low=0.0, cap=0.999, grid="T+1", first="f(0)", **_) -> np.ndarray:
    if (s, power, low, cap, grid, first) == (0.008, 2, 0.0, 0.999, "T+1", "f(0)"):
        return betas_by_definition("cosine", T)
    u = {"T+1": np.arange(T + 1) / T, "arange": np.arange(T) / T, "linspace": np.linspace(0, 1, T)}[grid]
    f = np.cos((u + s) / (1 + s) * np.pi / 2) ** power
    start = 1.0 if first is None else f[0]
    if grid == "T+1" or first == "short":
        f = f[1:]
    return (1 - f / np.append(start, f[:-1])).clip(low, cap)


def forward(t, x0, eps, drawn=0.0, signal=lambda q: q.bar**0.5, noise=lambda q: (1 - q.bar) ** 0.5, pick=None, **_):
    """x_t, eq. 4."""
    q = schedule_at(t)
    return signal(q) * x0 + noise(q) * (eps if pick is None else pick(eps, drawn))


def mean_eq_7(q, x, x0):
    return eq_7(LINEAR, q.t, x0, x)[0]


def mean_eq_11(q, x, eps):
    """Eq. 11 is eq. 7 at the x_0 that eq. 4 gives for eps."""
    return mean_eq_7(q, x, (x - (1 - q.bar) ** 0.5 * eps) / q.bar**0.5)


def small(q) -> float:
    return eq_7(LINEAR, q.t, 0.0, 0.0)[1]


MEANS = {"noise": mean_eq_11, "x0": mean_eq_7, "mean": lambda q, x, out: out}


def reverse_step(t, x, out, z, uniform, predictor, sigma_type="small", root=np.sqrt, pick=None, **parts):
    """x_{t-1} = mean + sigma_t z, without noise at t = 0."""
    q, is_small = schedule_at(t), sigma_type == "small"
    if t == 0:
        variance = parts.get("last" if is_small else "last_large", lambda q: 0.0)
    else:
        variance = parts.get("variance", small if is_small else lambda q: q.beta)
    mean = parts.get("mean", MEANS[predictor])(q, x, out)
    return mean + root(variance(q)) * (pick(z, uniform) if pick else z)


def ddim_step(t, prev, x, eps, z, eta, before=1.0, variance=None, direction=None, root=np.sqrt, **_):
    """DDIM, eq. 12 and 16."""
    bar, bar_prev = BARS[t], BARS[prev] if prev >= 0 else before
    sigma2 = eta**2 * (variance or (lambda a, b: (1 - b) / (1 - a) * (1 - a / b)))(bar, bar_prev)
    x0 = (x - (1 - bar) ** 0.5 * eps) / bar**0.5
    towards = (direction or (lambda b, v: max(1 - b - v, 0.0) ** 0.5))(bar_prev, sigma2)
    return bar_prev**0.5 * x0 + towards * eps + root(sigma2) * z


def loss(predictor, t, x, x0, eps, out, others, reduce=lambda d: np.mean(d**2), other=None, **parts):
    """The mean of (out - target)^2 over a batch with timesteps t [B] and x_t = x [B, ...].

    `eps` is the noise in x_t; `other` takes one of the `others` for the target.
    """
    eps = eps if other is None else others[other]
    mean = parts.get("mean", mean_eq_7)
    targets = {"noise": lambda q, x, x0, eps: eps, "x0": lambda q, x, x0, eps: x0}
    target = parts.get("target", targets.get(predictor, lambda q, x, x0, eps: mean(q, x, x0)))
    return reduce(out - np.stack([target(schedule_at(int(s)), *row) for s, *row in zip(t, x, x0, eps, strict=True)]))
