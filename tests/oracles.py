"""What the tests hold the programs against: the formulas once more, in float64 and by another way.

Nothing here imports the programs. `alpha_bars` reads only the mode and the length of a schedule.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import nn


@lru_cache
def betas_by_definition(mode: str, T: int, beta_1: float = 1e-4, beta_T: float = 0.02) -> np.ndarray:
    k = np.arange(T) / max(T - 1, 1)
    if mode == "linear":
        return beta_1 + k * (beta_T - beta_1)
    if mode == "quad":
        return (beta_1**0.5 + k * (beta_T**0.5 - beta_1**0.5)) ** 2
    alpha_bar = [np.cos((u / T + 0.008) / 1.008 * np.pi / 2) ** 2 for u in range(T + 1)]
    return np.array([min(1 - alpha_bar[t + 1] / alpha_bar[t], 0.999) for t in range(T)])


@lru_cache
def alpha_bars_by_definition(mode: str, T: int) -> np.ndarray:
    return np.cumprod(1 - betas_by_definition(mode, T))


def alpha_bars(scheduler, t: int) -> tuple[float, float]:
    """alpha-bar_t and alpha-bar_{t-1} for a schedule with the default ends, in float64."""
    alpha_bar = alpha_bars_by_definition(scheduler.config["mode"], scheduler.num_train_timesteps)
    return float(alpha_bar[t]), float(alpha_bar[t - 1]) if t else 1.0


def product_of_gaussians(scheduler, t, x0, xt):
    """Mean and variance of q(x_{t-1} | x_t, x_0) by Bayes' rule: the product of q(x_{t-1} | x_0)
    and, as a function of x_{t-1}, q(x_t | x_{t-1})."""
    alpha_bar, prev = alpha_bars(scheduler, t)
    alpha = alpha_bar / prev
    if t == 0:
        return x0, 0.0
    precision = 1 / (1 - prev) + alpha / (1 - alpha)
    mean = (prev**0.5 * x0 / (1 - prev) + alpha**0.5 * xt / (1 - alpha)) / precision
    return mean, 1 / precision


def eq_7(scheduler, t, x0, xt):
    """The same by DDPM's eq. 7."""
    alpha_bar, prev = alpha_bars(scheduler, t)
    beta = 1 - alpha_bar / prev
    mean = prev**0.5 * beta / (1 - alpha_bar) * x0 + (1 - beta) ** 0.5 * (1 - prev) / (1 - alpha_bar) * xt
    return mean, (1 - prev) / (1 - alpha_bar) * beta


def ideal_noise(scheduler, t: int, xt, m: float, s: float):
    """E[eps | x_t] for data N(m, s^2): what a perfect network says."""
    alpha_bar, _ = alpha_bars(scheduler, t)
    return (1 - alpha_bar) ** 0.5 * (xt - alpha_bar**0.5 * m) / (alpha_bar * s**2 + 1 - alpha_bar)


def moments_of_ancestral_chain(scheduler, m: float, s: float, large: bool = False) -> tuple[float, float]:
    """Exact mean and variance at the end of the reverse chain for data N(m, s^2), with noise of the
    posterior variance or (`large`) of variance beta_t.

    The ideal prediction is linear in x_t, so Gaussians stay Gaussian all the way."""
    mean, variance = 0.0, 1.0
    for t in reversed(range(scheduler.num_train_timesteps)):
        alpha_bar, prev = alpha_bars(scheduler, t)
        beta = 1 - alpha_bar / prev
        slope = beta / (alpha_bar * s**2 + 1 - alpha_bar)  # beta / sqrt(1 - alpha-bar) times d eps / d x_t
        mean = (mean - slope * (mean - alpha_bar**0.5 * m)) / (1 - beta) ** 0.5
        fresh = beta * (t > 0) if large else (1 - prev) / (1 - alpha_bar) * beta
        variance = ((1 - slope) ** 2 / (1 - beta)) * variance + fresh
    return mean, variance


class Ideal(nn.Module):
    """The perfect network for data N(m, s^2): E[eps | x_t], E[x_0 | x_t] or the eq. 7 mean at E[x_0 | x_t]."""

    image_resolution = 8

    def __init__(self, scheduler, m: float, s: float, predictor: str = "noise"):
        super().__init__()
        T = scheduler.num_train_timesteps
        self.answer = [self._line(scheduler, t, m, s, predictor) for t in range(T)]

    @staticmethod
    def _line(scheduler, t, m, s, predictor):
        """The answer is a line in x_t: its value at 0 and at 1 say all."""

        def answer(xt):
            if predictor == "noise":
                return ideal_noise(scheduler, t, xt, m, s)
            alpha_bar, _ = alpha_bars(scheduler, t)
            x0 = m + s**2 * alpha_bar**0.5 * (xt - alpha_bar**0.5 * m) / (alpha_bar * s**2 + 1 - alpha_bar)
            return x0 if predictor == "x0" else eq_7(scheduler, t, x0, xt)[0]

        return answer(0.0), answer(1.0) - answer(0.0)

    def forward(self, x, t):
        offset, slope = self.answer[int(t.reshape(-1)[0])]
        return (offset + slope * x.double()).to(x.dtype)


class Says(nn.Module):
    """A network that gives the same answer to everything."""

    def __init__(self, answer: torch.Tensor):
        super().__init__()
        self.answer = answer

    def forward(self, x, t, *_):
        return self.answer


def awake(net: nn.Module) -> nn.Module:
    """The network as if trained: no layer near 0, so that every input matters."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    return net


class Harmful:
    """Whoever unpickles it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def max_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


def refused(run, words):
    """Whether a program ended in exit code 2 and one line that holds `words`."""
    assert run.returncode == 2, run.stderr
    assert words in run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr
    return True


def only_run(place):
    """The folder of the one run of train.py that was started in `place`."""
    (config,) = (place / "results").rglob("config.json")
    return config.parent
