"""DDPM (Ho et al., 2020, arXiv:2006.11239) and DDIM (Song et al., 2021, arXiv:2010.02502) over points.

The forward process destroys data x_0 in T small steps, each of which shrinks the point a
little and adds a little noise. Any x_t can be had in one go:

    q(x_t | x_0) = N( sqrt(alpha-bar_t) x_0, (1 - alpha-bar_t) I )                 DDPM eq. 4

    alpha_t = 1 - beta_t,    alpha-bar_t = alpha_0 alpha_1 ... alpha_t

The reverse process starts from noise x_{T-1} ~ N(0, I) and takes the steps back, each a
Gaussian whose mean needs one thing that is not known, the noise eps in x_t. A network learns
to tell it:

    L = E | eps - eps_theta(sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) eps, t) |^2   DDPM eq. 14

    x_{t-1} ~ N( 1/sqrt(alpha_t) (x_t - beta_t / sqrt(1 - alpha-bar_t) eps_theta),      DDPM eq. 11
                 (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t) beta_t I )                   DDPM eq. 7

Timesteps count from 0 as in code, where the paper counts from 1. So timestep 0 is the first noisy
level, x_0 in the formulas is the clean data before it, alpha-bar "before step 0" is 1, and the last
reverse step, at t = 0, adds no noise.
"""

import math
import os
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from network import SimpleNet, as_timesteps

MODES = ("linear", "quad", "cosine")
CHECKPOINT_FORMAT = "ddpm-2d"
CHECKPOINT_VERSION = 1


def extract(input: torch.Tensor, t: int | torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The entries of a schedule at t, shaped to multiply x.

    Args:
        input: one number per timestep [T].
        t: timesteps in 0..T-1, in any form that `as_timesteps` takes.
        x: the batch [B, ...] that the result will be combined with.

    Returns:
        input[t] with as many axes as x: [B, 1, ...], or [1, 1, ...] for a single t.

    Raises:
        RuntimeError: for t outside 0..T-1.
    """
    t = as_timesteps(t, input.device)
    return input.gather(0, t).reshape(-1, *[1] * (x.ndim - 1))


class BaseScheduler(nn.Module):
    """The noise schedule: beta_t and all that follows from it, for t = 0 .. T-1.

    Everything is computed in float64 and cast once. In float32, 1 - alpha-bar_t is the
    difference of two nearly equal numbers at small t and loses four of its seven digits there,
    so what the formulas need of it has a buffer of its own.

    Args:
        num_train_timesteps: T.
        beta_1: first beta of the linear and quad modes (cosine has no free ends).
        beta_T: last beta of the linear and quad modes.
        mode: "linear": beta from beta_1 to beta_T (DDPM, Sec. 4);
            "quad": the same for sqrt(beta);
            "cosine": alpha-bar = f(u) / f(0), f(u) = cos^2((u + s) / (1 + s) pi/2), s = 0.008, for u from
            0 to 1, with beta capped at 0.999 (Nichol & Dhariwal, 2021, arXiv:2102.09672, eq. 17).

    Buffers, all float32 [T]:
        betas, alphas, alphas_cumprod: beta_t, alpha_t, alpha-bar_t.
        one_minus_alphas_cumprod: 1 - alpha-bar_t, the variance of q(x_t | x_0).
        alphas_cumprod_prev, one_minus_alphas_cumprod_prev: the same one step earlier; entry 0 is
            clean data: 1 and 0.
        posterior_variance: (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t) beta_t (DDPM eq. 7); 0 at t = 0.

    Raises:
        ValueError: for an unknown mode, T < 1, or betas not in 0 < beta_1 <= beta_T < 1.
    """

    def __init__(self, num_train_timesteps: int, beta_1: float = 1e-4, beta_T: float = 0.02, mode: str = "linear"):
        super().__init__()
        if num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps must be at least 1, got {num_train_timesteps}")
        if not 0 < beta_1 <= beta_T < 1:
            raise ValueError(f"betas must satisfy 0 < beta_1 <= beta_T < 1, got {beta_1} and {beta_T}")

        # Plain numbers from which the same schedule can be built again; they travel in checkpoints.
        self.config = {
            "num_train_timesteps": num_train_timesteps,
            "beta_1": beta_1,
            "beta_T": beta_T,
            "mode": mode,
        }
        self.num_train_timesteps = num_train_timesteps
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)  # the order of sampling

        if mode == "linear":
            betas = torch.linspace(beta_1, beta_T, num_train_timesteps, dtype=torch.float64)
        elif mode == "quad":
            betas = torch.linspace(beta_1**0.5, beta_T**0.5, num_train_timesteps, dtype=torch.float64) ** 2
        elif mode == "cosine":
            u = torch.linspace(0, 1, num_train_timesteps + 1, dtype=torch.float64)
            f = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)
        else:
            raise ValueError(f"unknown mode {mode!r}: choose one of {', '.join(MODES)}")

        alphas = 1 - betas
        alphas_cumprod = alphas.cumprod(0)
        alphas_cumprod_prev = F.pad(alphas_cumprod[:-1], (1, 0), value=1.0)

        for name, values in {
            "betas": betas,
            "alphas": alphas,
            "alphas_cumprod": alphas_cumprod,
            "one_minus_alphas_cumprod": 1 - alphas_cumprod,
            "alphas_cumprod_prev": alphas_cumprod_prev,
            "one_minus_alphas_cumprod_prev": 1 - alphas_cumprod_prev,
            "posterior_variance": (1 - alphas_cumprod_prev) / (1 - alphas_cumprod) * betas,
        }.items():
            # Not in the state dict: the five numbers in `config` say it all, and can't contradict it.
            self.register_buffer(name, values.float(), persistent=False)


class DiffusionModule(nn.Module):
    """A noise-predicting network and a schedule: training loss, DDPM and DDIM sampling, files.

    Args:
        network: eps_theta, called as network(x_t [B, ...], t [B] or [1]) -> predicted noise [B, ...].
            None when a checkpoint is about to be loaded.
        var_scheduler: the schedule; None likewise.

    Raises:
        ValueError: when a `SimpleNet` was built for fewer timesteps than the schedule has.
    """

    def __init__(self, network: nn.Module | None, var_scheduler: BaseScheduler | None):
        super().__init__()
        if isinstance(network, SimpleNet) and var_scheduler is not None:
            known, T = network.config["num_timesteps"], var_scheduler.num_train_timesteps
            if known < T:
                raise ValueError(f"the network knows {known} timesteps, the schedule has {T}")
        self.network = network
        self.var_scheduler = var_scheduler

    @property
    def device(self) -> torch.device:
        """The device that network and schedule are on."""
        return self.var_scheduler.betas.device

    # Forward process and training.

    def q_sample(self, x0: torch.Tensor, t: int | torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """x_t ~ q(x_t | x_0), DDPM eq. 4.

        Args:
            x0: clean points [B, ...].
            t: timesteps, an int or [B].
            noise: the standard Gaussian draw to use [B, ...]; a fresh one if None.

        Returns:
            Noisy points [B, ...].
        """
        if noise is None:
            noise = torch.randn_like(x0)
        alphas_prod_t = extract(self.var_scheduler.alphas_cumprod, t, x0)
        variance = extract(self.var_scheduler.one_minus_alphas_cumprod, t, x0)
        return alphas_prod_t.sqrt() * x0 + variance.sqrt() * noise

    def draw_timesteps(self, batch_size: int) -> torch.Tensor:
        """Timesteps for a training batch: t = T u^1.5 with u uniform in [0, 1).

        DDPM draws t itself uniformly (Algorithm 1, line 3). The power makes small t, where the fine
        detail is decided, more frequent. The optimum stays: eq. 14 is minimised at each t by itself.

        Returns:
            int64 [batch_size] in 0..T-1.
        """
        T = self.var_scheduler.num_train_timesteps
        u = torch.rand(batch_size, device=self.device)
        return (T * u**1.5).long().clamp(max=T - 1)  # T u^1.5 may round up to T

    def compute_loss(self, x0: torch.Tensor) -> torch.Tensor:
        """The simplified noise-matching loss (DDPM eq. 14; Algorithm 1), a mean over batch and features.

        Args:
            x0: clean points [B, ...].

        Returns:
            Scalar; 1 for a network that always says 0, since the noise has variance 1.
        """
        t = self.draw_timesteps(x0.shape[0])
        noise = torch.randn_like(x0)
        xt = self.q_sample(x0, t, noise)
        return F.mse_loss(self.network(xt, t), noise)

    # Reverse process, DDPM.

    @torch.no_grad()
    def p_sample(self, xt: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
        """One reverse step x_t -> x_{t-1}, DDPM eq. 11 (Algorithm 2, lines 3 and 4).

        Args:
            xt: points at timestep t [B, ...].
            t: the timestep, an int or [B].

        Returns:
            Points at timestep t - 1 [B, ...]; at t = 0 these are clean points.
        """
        t = as_timesteps(t, xt.device)
        beta_t = extract(self.var_scheduler.betas, t, xt)
        alpha_t = extract(self.var_scheduler.alphas, t, xt)
        one_minus_alpha_bar_t = extract(self.var_scheduler.one_minus_alphas_cumprod, t, xt)
        posterior_variance = extract(self.var_scheduler.posterior_variance, t, xt)

        eps = self.network(xt, t)
        mean = (xt - beta_t / one_minus_alpha_bar_t.sqrt() * eps) / alpha_t.sqrt()
        return mean + posterior_variance.sqrt() * torch.randn_like(xt)

    @torch.no_grad()
    def p_sample_loop(self, shape: tuple[int, ...], return_traj: bool = False) -> torch.Tensor | list[torch.Tensor]:
        """Sample from noise in T steps, DDPM Algorithm 2.

        Args:
            shape: of the samples, for instance (num_points, 2).
            return_traj: also keep the way there.

        Returns:
            Samples of that shape; with `return_traj` the list of T + 1 tensors from noise to samples.
        """
        xt = torch.randn(shape, device=self.device)
        traj = [xt]
        for t in tqdm(self.var_scheduler.timesteps.tolist(), desc="DDPM sampling", leave=False):
            xt = self.p_sample(xt, t)
            if return_traj:
                traj.append(xt)
        return traj if return_traj else xt

    # Reverse process, DDIM.

    @torch.no_grad()
    def ddim_p_sample(
        self, xt: torch.Tensor, t: int | torch.Tensor, t_prev: int | torch.Tensor, eta: float = 0.0
    ) -> torch.Tensor:
        """One reverse step x_t -> x_{t_prev} that may skip timesteps (DDIM paper, eq. 12 and 16).

        Args:
            xt: points at timestep t [B, ...].
            t: the timestep, an int or [B].
            t_prev: the timestep to go to, less than t; -1 is clean data.
            eta: how much fresh noise, 0 (none: deterministic) to 1 (as DDPM).

        Returns:
            Points at timestep t_prev [B, ...].

        Raises:
            ValueError: for eta not in [0, 1], or t_prev not less than t.
        """
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta}")
        t, t_prev = as_timesteps(t, xt.device), as_timesteps(t_prev, xt.device)
        if not (t_prev < t).all():
            raise ValueError("t_prev must be less than t")
        alpha_bar_t = extract(self.var_scheduler.alphas_cumprod, t, xt)
        one_minus_alpha_bar_t = extract(self.var_scheduler.one_minus_alphas_cumprod, t, xt)
        # The "prev" buffers hold t_prev at entry t_prev + 1, so that -1 has a place.
        alpha_bar_prev = extract(self.var_scheduler.alphas_cumprod_prev, t_prev + 1, xt)
        one_minus_alpha_bar_prev = extract(self.var_scheduler.one_minus_alphas_cumprod_prev, t_prev + 1, xt)

        eps = self.network(xt, t)
        x0_pred = (xt - one_minus_alpha_bar_t.sqrt() * eps) / alpha_bar_t.sqrt()
        # The last factor is good to 5e-4 of itself in float32 near t = 0, and only sets how much fresh noise there is.
        variance = eta**2 * one_minus_alpha_bar_prev / one_minus_alpha_bar_t * (1 - alpha_bar_t / alpha_bar_prev)
        direction = (one_minus_alpha_bar_prev - variance).sqrt() * eps
        x_prev = alpha_bar_prev.sqrt() * x0_pred + direction
        if eta > 0:
            x_prev = x_prev + variance.sqrt() * torch.randn_like(xt)
        return x_prev

    @torch.no_grad()
    def ddim_p_sample_loop(
        self, shape: tuple[int, ...], num_inference_timesteps: int = 50, eta: float = 0.0
    ) -> torch.Tensor:
        """Sample from noise in few steps, evenly spread from T - 1 down to clean data.

        Args:
            shape: of the samples, for instance (num_points, 2).
            num_inference_timesteps: number of network calls, 1 to T.
            eta: see `ddim_p_sample`.

        Returns:
            Samples of that shape.

        Raises:
            ValueError: for a number of steps that is not in 1..T, or eta not in [0, 1].
        """
        T = self.var_scheduler.num_train_timesteps
        if not 1 <= num_inference_timesteps <= T:
            raise ValueError(f"num_inference_timesteps must be in 1..{T}, got {num_inference_timesteps}")
        timesteps = torch.linspace(T - 1, -1, num_inference_timesteps + 1).round().long().tolist()
        xt = torch.randn(shape, device=self.device)
        for t, t_prev in pairwise(timesteps):
            xt = self.ddim_p_sample(xt, t, t_prev, eta)
        return xt

    # Files.

    def save(self, path: str | os.PathLike) -> None:
        """Write a checkpoint: plain numbers and tensors, enough to rebuild network and schedule.

        Raises:
            TypeError: when the network is not a `SimpleNet`, and so could not be rebuilt from numbers.
        """
        if not isinstance(self.network, SimpleNet):
            raise TypeError(f"only a SimpleNet can be saved, not a {type(self.network).__name__}")
        checkpoint = {
            "format": CHECKPOINT_FORMAT,
            "version": CHECKPOINT_VERSION,
            "network": self.network.config,
            "var_scheduler": self.var_scheduler.config,
            "state_dict": self.network.state_dict(),
        }
        torch.save(checkpoint, path)

    def load(self, path: str | os.PathLike) -> None:
        """Replace network and schedule by those of a checkpoint. Runs no code of the file.

        They come to the device that the module was on, or to the CPU where it was empty.

        Raises:
            OSError: when the file is not there or cannot be read.
            ValueError: when the file is not a checkpoint that `save` wrote; the module stays as it was.
        """
        with Path(path).open("rb") as file:
            try:
                checkpoint = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # on foreign bytes the reader fails in many ways, IndexError among them
                raise ValueError(f"{path}: not a checkpoint of this program, or a damaged one") from error
        if not isinstance(checkpoint, dict) or checkpoint.get("format") != CHECKPOINT_FORMAT:
            raise ValueError(f"{path}: not a checkpoint of this program")
        if str(checkpoint.get("version")) != str(CHECKPOINT_VERSION):
            raise ValueError(
                f"{path}: checkpoint version {checkpoint.get('version')}, this program reads {CHECKPOINT_VERSION}"
            )
        try:
            network = SimpleNet(**checkpoint["network"])
            var_scheduler = BaseScheduler(**checkpoint["var_scheduler"])
            network.load_state_dict(checkpoint["state_dict"])
            loaded = DiffusionModule(network, var_scheduler)
        except Exception as error:  # plain data of any kind may stand where numbers should
            reason = " ".join(str(error).split())
            raise ValueError(f"{path}: what the checkpoint says of itself does not fit: {reason}") from error
        if self.var_scheduler is not None:
            loaded.to(self.device)
        self.network, self.var_scheduler = loaded.network, loaded.var_scheduler
