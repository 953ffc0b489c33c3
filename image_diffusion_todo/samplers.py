"""Samplers: DDPM, DDIM and DPM-Solver++(2M). Each is a generator that yields x after each step.

All of them rest on eq. 4 of DDPM, x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) eps: with it, a prediction of the
network is an estimate of both x_0 and eps. `prev` is the timestep that a step leads to; it may lie many timesteps below
t, and is -1 for the clean image, where alpha-bar is 1.

**ddpm** (Ho et al., 2020, arXiv:2006.11239, Algorithm 2) takes all T timesteps.

**ddim** (Song et al., 2021, arXiv:2010.02502) skips timesteps. eta = 0 is deterministic, Euler's method for an ordinary
differential equation; eta = 1 with all timesteps is DDPM with the small variance:

    x_prev = sqrt(alpha-bar_prev) x_0 + sqrt(1 - alpha-bar_prev - sigma^2) eps + sigma z     DDIM, eq. 12
    sigma  = eta sqrt((1 - alpha-bar_prev) / (1 - alpha-bar_t)) sqrt(1 - alpha-bar_t / alpha-bar_prev)     eq. 16

**dpm** (Lu et al., 2022, arXiv:2211.01095, Algorithm 2) solves the same equation to second order in

    lambda_t = log(sqrt(alpha-bar_t) / sqrt(1 - alpha-bar_t)),    h = lambda_prev - lambda_t

by extrapolating x_0 linearly from the previous step, marked ' below, to the middle of the present one:

    D      = x_0 + h / (2 h') (x_0 - x_0')
    x_prev = sqrt(1 - alpha-bar_prev) / sqrt(1 - alpha-bar_t) x_t - sqrt(alpha-bar_prev) (exp(-h) - 1) D

The first step has no previous one and the last an infinite h; both take D = x_0, so the last returns x_0 itself.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from scheduler import DDPMScheduler

METHODS = ("ddpm", "ddim", "dpm")
DEFAULT_STEPS = {"ddim": 50, "dpm": 20}
# The cosine schedule ends at alpha-bar = 2e-9. From there, unclipped ddim turns an error of 0.002 of the noise into one
# of 0.6 to 2.7. Clipping, or v, prevents that, but dpm would still take 6 of its 20 steps where x_t is only noise.
MIN_ALPHA_BAR = 4e-5

Predict = Callable[[Tensor, int], Tensor]  # x_t [B, C, H, W], t -> prediction [B, C, H, W]
PredictBoth = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # x_t, t -> x_0 and eps
RandnLike = Callable[[Tensor], Tensor]


def ddpm(
    predict: Predict,
    scheduler: DDPMScheduler,
    x: Tensor,
    predictor: str = "noise",
    randn_like: RandnLike = torch.randn_like,
) -> Iterator[Tensor]:
    """All T steps from x = x_T; `predict` returns what `predictor` names: "noise", "x0" or "mean"."""
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(x, t, predict(x, t), predictor, randn_like(x))
        yield x


def ddim(
    predict: PredictBoth,
    scheduler: DDPMScheduler,
    x: Tensor,
    timesteps: list[int],
    eta: float = 0.0,
    randn_like: RandnLike = torch.randn_like,
) -> Iterator[Tensor]:
    """Steps over decreasing timesteps; eta in [0, 1] is the share of fresh noise."""
    for t, prev in pairwise([*timesteps, -1]):
        x_0, eps = predict(x, t)
        alpha_bar, alpha_bar_prev = scheduler.alpha_bars[t], scheduler.alpha_bars[prev]
        variance = eta**2 * (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
        x = alpha_bar_prev**0.5 * x_0 + (1 - alpha_bar_prev - variance) ** 0.5 * eps
        if eta > 0:
            x = x + variance**0.5 * randn_like(x)
        yield x


def dpm(predict: PredictBoth, scheduler: DDPMScheduler, x: Tensor, timesteps: list[int]) -> Iterator[Tensor]:
    """Second-order deterministic steps over decreasing timesteps."""
    x_0_before = h_before = None
    for t, prev in pairwise([*timesteps, -1]):
        x_0, _ = predict(x, t)
        alpha_bar, alpha_bar_prev = scheduler.alpha_bars[t], scheduler.alpha_bars[prev]
        h = half_log_snr(scheduler, prev) - half_log_snr(scheduler, t)
        D = x_0 if x_0_before is None or prev < 0 else x_0 + h / (2 * h_before) * (x_0 - x_0_before)
        x = ((1 - alpha_bar_prev) / (1 - alpha_bar)) ** 0.5 * x - alpha_bar_prev**0.5 * math.expm1(-h) * D
        x_0_before, h_before = x_0, h
        yield x


def half_log_snr(scheduler: DDPMScheduler, t: int) -> float:
    """lambda_t; infinite at t = -1."""
    alpha_bar = scheduler.alpha_bars[t]
    return 0.5 * math.log(alpha_bar / (1 - alpha_bar)) if t >= 0 else math.inf


def sampling_timesteps(
    scheduler: DDPMScheduler,
    sample_method: str = "ddpm",
    num_inference_steps: int | None = None,
    eta: float = 0.0,
    last_timestep: int = 0,
) -> list[int]:
    """The decreasing timesteps at which a sampler evaluates the network.

    ddpm takes all T. ddim takes evenly spaced ones and dpm ones evenly spaced in lambda (for Gaussian data of standard
    deviation 0.4 and an exact network, 20 dpm steps of the linear schedule end at 0.406; evenly spaced in t, at 0.51),
    both from the highest timestep with alpha-bar >= `MIN_ALPHA_BAR` down to last_timestep, whose predicted x_0 is the
    sample.

    num_inference_steps None means T for ddpm, else `DEFAULT_STEPS`. The result is shorter where fewer timesteps exist.
    ValueError for settings that do not fit together; its message begins with the argument's name.
    """
    T = scheduler.num_train_timesteps
    if sample_method not in METHODS:
        raise ValueError(f"sample_method: {sample_method!r} is not one of {', '.join(METHODS)}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: {eta} is not a number from 0 to 1")
    if eta and sample_method != "ddim":
        raise ValueError(f"eta: has no effect with {sample_method}, only with ddim")
    n = min(T, DEFAULT_STEPS.get(sample_method, T)) if num_inference_steps is None else num_inference_steps
    if not 1 <= n <= T:
        raise ValueError(f"num_inference_steps: {n} is not a whole number from 1 to {T}")
    if last_timestep and (sample_method == "ddpm" or n == 1):
        raise ValueError("last_timestep: has no effect with ddpm or with a single step")
    if sample_method == "ddpm":
        if n != T:
            raise ValueError(f"num_inference_steps: ddpm takes all {T} steps, not {n}; ddim and dpm take fewer")
        return scheduler.timesteps.tolist()
    start = next((t for t in reversed(range(T)) if scheduler.alpha_bars[t] >= MIN_ALPHA_BAR), 0)
    if not 0 <= last_timestep <= start:
        raise ValueError(f"last_timestep: {last_timestep} is not from 0 to {start}, where sampling starts")
    if sample_method == "ddim":
        return round_distinct(np.linspace(start, last_timestep, n))
    t = np.arange(start, last_timestep - 1, -1)
    lambdas = [half_log_snr(scheduler, int(i)) for i in t]
    return round_distinct(np.interp(np.linspace(lambdas[0], lambdas[-1], n), lambdas, t))


def round_distinct(timesteps: np.ndarray) -> list[int]:
    """Decreasing numbers [n], the last one whole, rounded to distinct integers; all integers where n is too many."""
    last = round(timesteps[-1])
    n = min(len(timesteps), round(timesteps[0]) - last + 1)
    rounded = [round(timesteps[0])]
    for k in range(1, n):
        rounded.append(max(min(round(timesteps[k]), rounded[-1] - 1), last + n - 1 - k))
    return rounded


class ImageNoise:
    """`randn_like` for a batch in which image i of a seed always gets the same noise, whatever the batch.

    Each image has a generator of its own, seeded by (seed, i), on the device; each kind of device draws other noise.
    The network may still round differently in batches of different sizes.
    """

    BLOCK = 16  # steps drawn at once for an image: one call per image and step would take longer than the network

    def __init__(self, seed: int, indices: Iterable[int], resolution: int, device: torch.device):
        seeds = [int(np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0]) for i in indices]
        self.generators = [torch.Generator(device).manual_seed(s) for s in seeds]
        self.shape = self.BLOCK, 3, resolution, resolution
        self.steps = iter(())

    def __call__(self, x: Tensor) -> Tensor:
        """Standard Gaussian noise of x's shape [B, 3, resolution, resolution], new at each call."""
        try:
            return next(self.steps)
        except StopIteration:
            blocks = [torch.randn(self.shape, generator=g, device=g.device) for g in self.generators]
            self.steps = iter(torch.stack(blocks, dim=1))
            return next(self.steps)
