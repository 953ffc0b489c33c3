"""DDPM (Ho et al., 2020, arXiv:2006.11239) and DDIM (Song et al., 2021, arXiv:2010.02502) on points.

With alpha_t = 1 - beta_t and alpha-bar_t = alpha_0 alpha_1 ... alpha_t:

    DDPM eq. 4     x_t ~ N(sqrt(alpha-bar_t) x0, (1 - alpha-bar_t) I)
    DDPM eq. 14    loss = E |eps - eps_theta(sqrt(alpha-bar_t) x0 + sqrt(1 - alpha-bar_t) eps, t)|^2
    DDPM eq. 11    x_{t-1} ~ N(1 / sqrt(alpha_t) (x_t - beta_t / sqrt(1 - alpha-bar_t) eps_theta), beta~_t I)
    DDPM eq. 7     beta~_t = (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t) beta_t
    DDIM eq. 12    x_s ~ N(sqrt(alpha-bar_s) x0_pred + sqrt(1 - alpha-bar_s - sigma^2) eps_theta, sigma^2 I), s < t
                   x0_pred = (x_t - sqrt(1 - alpha-bar_t) eps_theta) / sqrt(alpha-bar_t)
    DDIM eq. 16    sigma^2 = eta^2 (1 - alpha-bar_s) / (1 - alpha-bar_t) (1 - alpha-bar_t / alpha-bar_s)

Timesteps count from 0: t = 0 .. T-1, where the paper has 1 .. T. The clean data x0 come before the first, at t = -1,
where alpha-bar is 1. Shapes: x0, xt and noise are [B, ...]; t is an int or [B].
"""

import io
import math
import os
import pickle
import zipfile
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from cli import UserError, atomic_write
from network import SimpleNet, as_timesteps

MODES = ("linear", "quad", "cosine")
MAX_TIMESTEPS = 1_000_000
CHECKPOINT_FORMAT = "ddpm-2d"
CHECKPOINT_VERSION = 1


def extract(input: Tensor, t: int | Tensor, x: Tensor) -> Tensor:
    """The entries input[t] of a schedule [T], shaped [B, 1, ...] (or [1, 1, ...]) to broadcast over x [B, ...]."""
    return input.gather(0, as_timesteps(t, input.device)).reshape(-1, *[1] * (x.ndim - 1))


def beta_schedule(T: int, beta_1: float, beta_T: float, mode: str) -> Tensor:
    """beta_t, float64 [T], from beta_1 to beta_T, which the cosine mode ignores.

    linear   beta rises linearly (DDPM, Sec. 4)
    quad     sqrt(beta) does
    cosine   alpha-bar = f(u) / f(0), f(u) = cos^2((u + s) / (1 + s) pi/2), s = 0.008, u from 0 to 1 in T steps;
             beta capped at 0.999 (Nichol & Dhariwal, 2021, arXiv:2102.09672, eq. 17)
    """
    if mode == "linear":
        return torch.linspace(beta_1, beta_T, T, dtype=torch.float64)
    if mode == "quad":
        return torch.linspace(beta_1**0.5, beta_T**0.5, T, dtype=torch.float64) ** 2
    if mode == "cosine":
        u = torch.linspace(0, 1, T + 1, dtype=torch.float64)
        f = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - f[1:] / f[:-1]).clamp(max=0.999)
    raise ValueError(f"unknown mode {mode!r}: choose one of {', '.join(MODES)}")


class BaseScheduler(nn.Module):
    """The noise schedule: `beta_schedule` for T = num_train_timesteps, and everything that follows from it.

    Attributes:
        alpha_bars: alpha-bar as T + 1 Python floats; alpha_bars[-1] is the clean data's, 1.
        Buffers, float32 [T]: betas, alphas, alphas_cumprod (alpha-bar_t), alphas_cumprod_prev (alpha-bar_{t-1}, 1 at
        t = 0), sqrt_alphas_cumprod, sqrt_one_minus_alphas_cumprod, posterior_variance (eq. 7; 0 at t = 0).

    Raises:
        ValueError: for an unknown mode, or T or betas out of range.
    """

    def __init__(self, num_train_timesteps: int, beta_1: float = 1e-4, beta_T: float = 0.02, mode: str = "linear"):
        super().__init__()
        if not 1 <= num_train_timesteps <= MAX_TIMESTEPS:
            raise ValueError(f"num_train_timesteps must be from 1 to {MAX_TIMESTEPS}, got {num_train_timesteps}")
        if not 1e-9 <= beta_1 <= beta_T < 1:  # below 1e-16, 1 - beta is 1 and eq. 7 becomes 0 / 0
            raise ValueError(f"betas must satisfy 1e-9 <= beta_1 <= beta_T < 1, got {beta_1} and {beta_T}")
        # The arguments, saved in checkpoints to rebuild the schedule.
        self.config = dict(num_train_timesteps=num_train_timesteps, beta_1=beta_1, beta_T=beta_T, mode=mode)
        self.num_train_timesteps = num_train_timesteps
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)  # the order of sampling

        # In float64, cast once: in float32, 1 - alpha-bar_t loses four of its seven digits at small t.
        betas = beta_schedule(num_train_timesteps, beta_1, beta_T, mode)
        alphas_cumprod = (1 - betas).cumprod(0)
        alphas_cumprod_prev = F.pad(alphas_cumprod[:-1], (1, 0), value=1.0)
        self.alpha_bars = [*alphas_cumprod.tolist(), 1.0]
        for name, values in {
            "betas": betas,
            "alphas": 1 - betas,
            "alphas_cumprod": alphas_cumprod,
            "alphas_cumprod_prev": alphas_cumprod_prev,
            "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - alphas_cumprod).sqrt(),
            "posterior_variance": (1 - alphas_cumprod_prev) / (1 - alphas_cumprod) * betas,
        }.items():
            self.register_buffer(name, values.float(), persistent=False)  # `config` rebuilds them


class DiffusionModule(nn.Module):
    """A noise-predicting network, called as network(xt, t), and a noise schedule; both may be None before `load`."""

    def __init__(self, network: nn.Module | None, var_scheduler: BaseScheduler | None):
        super().__init__()
        if isinstance(network, SimpleNet) and var_scheduler is not None:
            known, T = network.config["num_timesteps"], var_scheduler.num_train_timesteps
            if known < T:
                raise ValueError(f"the network has {known} timesteps, the schedule has {T}")
        self.network, self.var_scheduler = network, var_scheduler

    @property
    def device(self) -> torch.device:
        """The device of network and schedule."""
        return self.var_scheduler.betas.device

    def q_sample(self, x0: Tensor, t: int | Tensor, noise: Tensor | None = None) -> Tensor:
        """x_t, DDPM eq. 4; `noise` is drawn if None."""
        if noise is None:
            noise = torch.randn_like(x0)
        sqrt_alpha_bar_t = extract(self.var_scheduler.sqrt_alphas_cumprod, t, x0)
        sqrt_one_minus_alpha_bar_t = extract(self.var_scheduler.sqrt_one_minus_alphas_cumprod, t, x0)
        return sqrt_alpha_bar_t * x0 + sqrt_one_minus_alpha_bar_t * noise

    def draw_timesteps(self, batch_size: int) -> Tensor:
        """Training timesteps [batch_size]: t = T u^1.5, u uniform in [0, 1).

        DDPM draws t itself uniformly (Algorithm 1, line 3). The power favours small t, where fine detail is decided;
        the optimum is the same, since eq. 14 is minimised at each t separately.
        """
        T = self.var_scheduler.num_train_timesteps
        u = torch.rand(batch_size, device=self.device)
        return (T * u**1.5).long().clamp(max=T - 1)  # rounding may give T

    def compute_loss(self, x0: Tensor) -> Tensor:
        """DDPM eq. 14 (Algorithm 1) as a mean over batch and features: 1 for a network that predicts 0."""
        t = self.draw_timesteps(x0.shape[0])
        noise = torch.randn_like(x0)
        xt = self.q_sample(x0, t, noise)
        return F.mse_loss(self.network(xt, t), noise)

    @torch.no_grad()
    def p_sample(self, xt: Tensor, t: int | Tensor) -> Tensor:
        """x_{t-1}, DDPM eq. 11 and 7 (Algorithm 2, lines 3 and 4). At t = 0 no noise is added: the variance is 0."""
        t = as_timesteps(t, xt.device)
        beta_t = extract(self.var_scheduler.betas, t, xt)
        alpha_t = extract(self.var_scheduler.alphas, t, xt)
        sqrt_one_minus_alpha_bar_t = extract(self.var_scheduler.sqrt_one_minus_alphas_cumprod, t, xt)
        posterior_variance = extract(self.var_scheduler.posterior_variance, t, xt)

        eps = self.network(xt, t)
        mean = (xt - beta_t / sqrt_one_minus_alpha_bar_t * eps) / alpha_t.sqrt()
        return mean + posterior_variance.sqrt() * torch.randn_like(xt)

    @torch.no_grad()
    def p_sample_loop(self, shape: tuple[int, ...], return_traj: bool = False) -> Tensor | list[Tensor]:
        """Samples of a shape such as (num_points, 2), DDPM Algorithm 2; with return_traj, the list x_T ... x_0."""
        xt = torch.randn(shape, device=self.device)
        traj = [xt]
        for t in tqdm(self.var_scheduler.timesteps.tolist(), desc="DDPM sampling", leave=False):
            xt = self.p_sample(xt, t)
            if return_traj:
                traj.append(xt)
        return traj if return_traj else xt

    @torch.no_grad()
    def ddim_p_sample(self, xt: Tensor, t: int | Tensor, t_prev: int | Tensor, eta: float = 0.0) -> Tensor:
        """x_s for any s = t_prev < t (-1 for clean data), DDIM eq. 12 and 16; eta = 0: no noise, 1: as in DDPM."""
        t, t_prev = as_timesteps(t, xt.device), as_timesteps(t_prev, xt.device)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta}")
        if not (t_prev < t).all():
            raise ValueError("t_prev must be less than t")
        # Entry t + 1 holds timestep t, so that the clean data (-1) have one.
        sqrt_alpha_bar = F.pad(self.var_scheduler.sqrt_alphas_cumprod, (1, 0), value=1.0)
        sqrt_one_minus_alpha_bar = F.pad(self.var_scheduler.sqrt_one_minus_alphas_cumprod, (1, 0), value=0.0)
        signal_t, signal_s = (extract(sqrt_alpha_bar, i + 1, xt) for i in (t, t_prev))
        noise_t, noise_s = (extract(sqrt_one_minus_alpha_bar, i + 1, xt) for i in (t, t_prev))

        eps = self.network(xt, t)
        x0_pred = (xt - noise_t * eps) / signal_t
        sigma = eta * noise_s / noise_t * (1 - (signal_t / signal_s) ** 2).sqrt()
        direction = (noise_s**2 - sigma**2).clamp(min=0).sqrt() * eps  # rounding may give a negative square
        x_s = signal_s * x0_pred + direction
        return x_s + sigma * torch.randn_like(xt) if eta > 0 else x_s

    @torch.no_grad()
    def ddim_p_sample_loop(self, shape: tuple[int, ...], num_inference_timesteps: int = 50, eta: float = 0.0) -> Tensor:
        """Samples in `num_inference_timesteps` (1 to T) DDIM steps, evenly spaced from T - 1 to the clean data."""
        T = self.var_scheduler.num_train_timesteps
        if not 1 <= num_inference_timesteps <= T:
            raise ValueError(f"num_inference_timesteps must be in 1..{T}, got {num_inference_timesteps}")
        timesteps = torch.linspace(T - 1, -1, num_inference_timesteps + 1).round().long().tolist()
        xt = torch.randn(shape, device=self.device)
        for t, t_prev in pairwise(timesteps):
            xt = self.ddim_p_sample(xt, t, t_prev, eta)
        return xt

    def save(self, path: str | os.PathLike) -> None:
        """Write a checkpoint of plain numbers and tensors, enough to rebuild network and schedule.

        Raises:
            TypeError: for any other network or schedule, a subclass too: `load` could not rebuild it.
            OSError: when it cannot be written; an older file stays.
        """
        for part, kind in ((self.network, SimpleNet), (self.var_scheduler, BaseScheduler)):
            if type(part) is not kind:
                raise TypeError(f"only a {kind.__name__} itself can be saved, not a {type(part).__name__}")
        checkpoint = {
            "format": CHECKPOINT_FORMAT,
            "version": CHECKPOINT_VERSION,
            "network": self.network.config,
            "var_scheduler": self.var_scheduler.config,
            "state_dict": self.network.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with atomic_write(Path(path)) as partial:
            partial.write_bytes(buffer.getvalue())

    def load(self, path: str | os.PathLike) -> None:
        """Replace network and schedule by those of a checkpoint, on the same device. Runs no code of the file.

        Raises:
            OSError: when the file cannot be read.
            UserError: when it is not a valid checkpoint; the module then stays as it was.
        """
        content = Path(path).read_bytes()
        try:
            loaded = DiffusionModule(*_rebuild(content))
        except Exception as error:  # damaged bytes, and any plain data where numbers are expected, fail in many ways
            reason = "" if isinstance(error, pickle.UnpicklingError) else f": {' '.join(str(error).split())}"
            raise UserError(f"{path}: not a checkpoint of this program, or damaged{reason}") from error
        if self.var_scheduler is not None:
            loaded.to(self.device)
        self.network, self.var_scheduler = loaded.network, loaded.var_scheduler


def _rebuild(content: bytes) -> tuple[SimpleNet, BaseScheduler]:
    """The network and schedule of a checkpoint; any kind of Exception for other or damaged content."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if damaged := archive.testzip():  # torch.load does not compare the checksums
            raise ValueError(damaged)
    checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    kind = checkpoint.get("format"), checkpoint.get("version")
    if kind != (CHECKPOINT_FORMAT, CHECKPOINT_VERSION):
        raise ValueError(f"its format and version are {kind}")
    weights = checkpoint["state_dict"]
    if sum(weight.numel() * weight.element_size() for weight in weights.values()) > len(content):
        raise ValueError("its weights are larger than the file")
    scheduler = BaseScheduler(**checkpoint["var_scheduler"])
    if checkpoint["network"]["num_timesteps"] > MAX_TIMESTEPS:
        raise ValueError(f"more than {MAX_TIMESTEPS} timesteps")
    with torch.device("meta"):  # takes no memory, whatever the sizes
        expected = SimpleNet(**checkpoint["network"]).state_dict()
    if {name: w.shape for name, w in weights.items()} != {name: w.shape for name, w in expected.items()}:
        raise ValueError("the shapes of its weights are not those of its network")
    network = SimpleNet(**checkpoint["network"])
    network.load_state_dict(weights)
    if not all(weight.isfinite().all() for weight in network.parameters()):
        raise ValueError("its weights are not finite")
    return network, scheduler
