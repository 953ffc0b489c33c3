"""Three ways back from noise to an image that ask the same network: DDPM, DDIM and DPM-Solver++(2M).

Whatever a network predicts says two things of x_t, the image and the noise in it (`to_x0_and_eps`):

    x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) eps                                  DDPM, eq. 4

Below, x_0 and eps are these predictions at step t; `prev` is the step that the chain goes to, which may lie many
timesteps below t, and is -1 for the clean image, where alpha-bar is 1.

**ddpm** (Ho et al., 2020, arXiv:2006.11239, Algorithm 2) takes every timestep: see `scheduler.py`.

**ddim** (Song et al., 2021, arXiv:2010.02502) puts less of the predicted noise back in, with some fresh noise in its
place. Without any (eta = 0) the chain is Euler's method for an ordinary differential equation; with eta = 1 and all
timesteps it is DDPM with the small variance:

    x_prev = sqrt(alpha-bar_prev) x_0 + sqrt(1 - alpha-bar_prev - sigma^2) eps + sigma z     DDIM, eq. 12
    sigma  = eta sqrt((1 - alpha-bar_prev) / (1 - alpha-bar_t)) sqrt(1 - alpha-bar_t / alpha-bar_prev)     eq. 16

**dpm** (Lu et al., 2022, arXiv:2211.01095, Algorithm 2) solves the same equation to second order in the time

    lambda_t = log(sqrt(alpha-bar_t) / sqrt(1 - alpha-bar_t)),    h = lambda_prev - lambda_t

which rises from noise to image: it draws a line through the present x_0 and the one of the step before, where h was
h_before, and looks half a step ahead on it.

    D      = x_0 + h / (2 h_before) (x_0 - x_0 of the step before)
    x_prev = sqrt(1 - alpha-bar_prev) / sqrt(1 - alpha-bar_t) x_t - sqrt(alpha-bar_prev) (exp(-h) - 1) D

The first step has none before it and the last an infinite h; both take D = x_0, and so the last gives x_0 itself.

Which timesteps. ddim takes evenly spaced ones. dpm takes them evenly spaced in lambda: with a perfect network for
Gaussian data of standard deviation 0.4, 20 steps of the linear schedule lead to 0.406 so, and to 0.51 where they are
evenly spaced in t. Both end at timestep 0, not T / N - 1 as in Task 1, since the fine structure of images is decided
there. Both begin at the last timestep with a trace of the image, `MIN_ALPHA_BAR`. For 1000 steps that is T - 1 of
the linear and the quad schedule. The cosine schedule goes on to a last step that is capped, from alpha-bar = 2e-6 to
2e-9. There, x_0 is 20,000 times as wrong as the noise that a network predicts, and x_t, one leap of 20 timesteps
later, 660 times. DDPM's small steps and fresh noise make up for some of it; a chain without noise takes it along.

x_0 is not clipped to [-1, 1]: guidance leaves that range, and the step that would need it is not taken.
"""

import math
from abc import ABC, abstractmethod
from itertools import pairwise

import numpy as np
import torch

from scheduler import DDPMScheduler

METHODS = ("ddpm", "ddim", "dpm")
DEFAULT_STEPS = {"ddim": 50, "dpm": 20}
MIN_ALPHA_BAR = 4e-5  # where the linear schedule of 1000 steps ends


class Sampler(ABC):
    """One reverse chain: which timesteps it visits, and how it goes from one to the next.

    Args:
        scheduler: the schedule that the network was trained with.
        predictor: what the network predicts: "noise", "x0" or "mean".
        timesteps: those at which the network is asked, falling.
    """

    needs_noise = True

    def __init__(self, scheduler: DDPMScheduler, predictor: str, timesteps: list[int]):
        self.scheduler = scheduler
        self.predictor = predictor
        self.timesteps = timesteps

    @property
    def steps(self) -> list[tuple[int, int]]:
        """From which timestep to which: the last one is to -1, the clean image."""
        return list(pairwise([*self.timesteps, -1]))

    @abstractmethod
    def step(
        self, x_t: torch.Tensor, t: int, t_prev: int, net_out: torch.Tensor, z: torch.Tensor | None
    ) -> torch.Tensor:
        """One step of the chain; the steps must be taken in their order.

        Args:
            x_t: noisy images at timestep t [B, C, H, W].
            t: where they are.
            t_prev: where they go, as in `steps`.
            net_out: the network's answer to x_t and t [B, C, H, W].
            z: standard Gaussian noise [B, C, H, W]; without use, and None, unless `needs_noise`.

        Returns:
            Images at timestep t_prev [B, C, H, W].
        """


class DDPM(Sampler):
    """Every timestep in turn."""

    def __init__(self, scheduler: DDPMScheduler, predictor: str):
        super().__init__(scheduler, predictor, scheduler.timesteps.tolist())

    def step(
        self, x_t: torch.Tensor, t: int, t_prev: int, net_out: torch.Tensor, z: torch.Tensor | None
    ) -> torch.Tensor:
        """See `Sampler`."""
        return self.scheduler.step(x_t, t, net_out, self.predictor, z)


class DDIM(Sampler):
    """Leaps over evenly spaced timesteps.

    Args:
        scheduler, predictor: see `Sampler`.
        num_steps: how many timesteps.
        eta: how much fresh noise, 0 (none) to 1 (as DDPM).
    """

    def __init__(self, scheduler: DDPMScheduler, predictor: str, num_steps: int, eta: float = 0.0):
        first = start_timestep(scheduler)
        super().__init__(scheduler, predictor, round_distinct(np.linspace(first, 0, num_steps)))
        self.eta = eta
        self.needs_noise = eta > 0

    def step(
        self, x_t: torch.Tensor, t: int, t_prev: int, net_out: torch.Tensor, z: torch.Tensor | None
    ) -> torch.Tensor:
        """See `Sampler`."""
        x_0, eps = self.scheduler.to_x0_and_eps(x_t, t, net_out, self.predictor)
        alpha_bar, alpha_bar_prev = self.scheduler.alpha_bar(t), self.scheduler.alpha_bar(t_prev)
        variance = self.eta**2 * (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
        x_prev = alpha_bar_prev**0.5 * x_0 + (1 - alpha_bar_prev - variance) ** 0.5 * eps
        return x_prev + variance**0.5 * z if self.needs_noise else x_prev


class DPM(Sampler):
    """DPM-Solver++(2M): leaps that are evenly spaced in lambda, and a memory of one step.

    Args:
        scheduler, predictor: see `Sampler`.
        num_steps: how many timesteps.
    """

    needs_noise = False

    def __init__(self, scheduler: DDPMScheduler, predictor: str, num_steps: int):
        t = np.arange(start_timestep(scheduler), -1, -1)
        rising = [half_log_snr(scheduler, int(i)) for i in t]
        wanted = np.interp(np.linspace(rising[0], rising[-1], num_steps), rising, t)
        super().__init__(scheduler, predictor, round_distinct(wanted))
        self.before: tuple[torch.Tensor, float] | None = None  # x_0 and h of the step before

    def step(
        self, x_t: torch.Tensor, t: int, t_prev: int, net_out: torch.Tensor, z: torch.Tensor | None
    ) -> torch.Tensor:
        """See `Sampler`."""
        x_0, _ = self.scheduler.to_x0_and_eps(x_t, t, net_out, self.predictor)
        alpha_bar, alpha_bar_prev = self.scheduler.alpha_bar(t), self.scheduler.alpha_bar(t_prev)
        h = half_log_snr(self.scheduler, t_prev) - half_log_snr(self.scheduler, t)
        D = x_0
        if self.before is not None and t_prev >= 0:
            x_0_before, h_before = self.before
            D = x_0 + h / (2 * h_before) * (x_0 - x_0_before)
        self.before = x_0, h
        return ((1 - alpha_bar_prev) / (1 - alpha_bar)) ** 0.5 * x_t - alpha_bar_prev**0.5 * math.expm1(-h) * D


def half_log_snr(scheduler: DDPMScheduler, t: int) -> float:
    """lambda_t, infinite at t = -1."""
    alpha_bar = scheduler.alpha_bar(t)
    return 0.5 * math.log(alpha_bar / (1 - alpha_bar)) if t >= 0 else math.inf


def start_timestep(scheduler: DDPMScheduler) -> int:
    """The last timestep whose alpha-bar is at least `MIN_ALPHA_BAR` (0 if none is)."""
    T = scheduler.num_train_timesteps
    return next((t for t in reversed(range(T)) if scheduler.alpha_bar(t) >= MIN_ALPHA_BAR), 0)


def round_distinct(wanted: np.ndarray) -> list[int]:
    """The falling numbers [n] from the first timestep to 0, rounded and moved apart where two would be the same.

    All timesteps from the first one on where there are not n of them.
    """
    n = min(len(wanted), round(wanted[0]) + 1)
    timesteps = [round(wanted[0])]
    for k in range(1, n):
        timesteps.append(max(min(round(wanted[k]), timesteps[-1] - 1), n - 1 - k))
    return timesteps


def build_sampler(
    scheduler: DDPMScheduler,
    predictor: str,
    sample_method: str = "ddpm",
    num_inference_steps: int | None = None,
    eta: float = 0.0,
) -> Sampler:
    """A sampler for one chain.

    Args:
        scheduler: the schedule that the network was trained with.
        predictor: what the network predicts: "noise", "x0" or "mean".
        sample_method: one of `METHODS`.
        num_inference_steps: how many times the network is asked, 1 to T (but see `start_timestep`: the cosine schedule
            of 1000 steps has 995 to go through). None: all for ddpm, otherwise `DEFAULT_STEPS`, or T if that is less.
        eta: for ddim, the share of fresh noise, 0 to 1.

    Raises:
        ValueError: for a method that is not known, or settings that do not fit it.
    """
    T = scheduler.num_train_timesteps
    if sample_method not in METHODS:
        raise ValueError(f"sample_method: {sample_method!r} is not one of {', '.join(METHODS)}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: {eta} is not a number from 0 to 1")
    if eta and sample_method != "ddim":
        raise ValueError(f"eta: does nothing with {sample_method}, only with ddim")
    if num_inference_steps is None:
        num_inference_steps = min(T, DEFAULT_STEPS.get(sample_method, T))
    if sample_method == "ddpm" and num_inference_steps != T:
        raise ValueError(f"num_inference_steps: ddpm takes all {T}, not {num_inference_steps}; ddim and dpm take fewer")
    if not 1 <= num_inference_steps <= T:
        raise ValueError(f"num_inference_steps: {num_inference_steps} is not a whole number from 1 to {T}")
    if sample_method == "ddpm":
        return DDPM(scheduler, predictor)
    if sample_method == "ddim":
        return DDIM(scheduler, predictor, num_inference_steps, eta)
    return DPM(scheduler, predictor, num_inference_steps)
