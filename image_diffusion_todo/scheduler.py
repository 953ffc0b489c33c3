"""The noise schedule and the reverse steps of DDPM (Ho et al., 2020, arXiv:2006.11239) on images.

Forward, eq. 4:       x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) eps

Backward, if x_0 were known, eq. 6 and 7:

    q(x_{t-1} | x_t, x_0) = N(mu~_t(x_t, x_0), beta~_t I)

    mu~_t   = sqrt(alpha-bar_{t-1}) beta_t / (1 - alpha-bar_t) x_0
              + sqrt(alpha_t) (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t) x_t
    beta~_t = (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t) beta_t

A network predicts one of three things, and each gives the mean of a reverse step:

    "mean"     mu~_t itself
    "x0"       x_0, inserted into eq. 7
    "noise"    eps, inserted into eq. 11: (x_t - beta_t / sqrt(1 - alpha-bar_t) eps) / sqrt(alpha_t)

Timesteps count from 0, where the paper counts from 1: t = 0 is the first noisy level. x_0 is the clean image before it,
where alpha-bar is 1, so the last reverse step adds no noise.

Shapes: images x_0, x_t and predictions [B, C, H, W]; t is an int or [B].
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODES = ("linear", "quad", "cosine")
MAX_TIMESTEPS = 1_000_000


def as_timesteps(t: int | Tensor, device: torch.device) -> Tensor:
    """An int, or a tensor [], [B] or [B, 1] of whole numbers -> int64 [B], or [1] for one t for the whole batch."""
    if isinstance(t, int):
        return torch.full((1,), t, device=device)  # filled on the device; a copy would synchronise with it
    t = torch.as_tensor(t, device=device)
    if t.is_floating_point() and not torch.equal(t, t.round()):
        raise ValueError("timesteps must be whole numbers")
    return t.long().reshape(-1)


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

    def uniform_sample_t(self, batch_size: int, device: torch.device | None = None) -> Tensor:
        """Training timesteps, int64 [batch_size], uniform over 0..T-1, from NumPy's global generator."""
        t = np.random.choice(np.arange(self.num_train_timesteps), batch_size)
        return torch.from_numpy(t).to(device, non_blocking=True)


PREDICTORS = ("noise", "x0", "mean")


class DDPMScheduler(BaseScheduler):
    """The forward process, and one reverse step for each predictor.

    Further buffers, float32 [T]: sigmas, the standard deviation of a reverse step; posterior_mean_coef_x0 and
    posterior_mean_coef_xt, the coefficients of eq. 7 (1 and 0 at t = 0). With sigma_type "small", the variance of a
    step is beta~_t, optimal if x_0 is a single point; with "large", beta_t, optimal for x_0 ~ N(0, I) (DDPM, Sec. 3.2).
    """

    def __init__(
        self,
        num_train_timesteps: int,
        beta_1: float = 1e-4,
        beta_T: float = 0.02,
        mode: str = "linear",
        sigma_type: str = "small",
    ):
        super().__init__(num_train_timesteps, beta_1, beta_T, mode)
        if sigma_type not in ("small", "large"):
            raise ValueError(f"unknown sigma_type {sigma_type!r}: choose small or large")
        self.config["sigma_type"] = sigma_type
        betas = beta_schedule(num_train_timesteps, beta_1, beta_T, mode)
        alpha_bars = torch.tensor(self.alpha_bars, dtype=torch.float64)
        alpha_bar, alpha_bar_prev = alpha_bars[:-1], alpha_bars.roll(1)[:-1]
        for name, values in {
            "sigmas": (self.posterior_variance if sigma_type == "small" else self.betas).sqrt(),
            "posterior_mean_coef_x0": alpha_bar_prev.sqrt() * betas / (1 - alpha_bar),
            "posterior_mean_coef_xt": (1 - betas).sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar),
        }.items():
            self.register_buffer(name, values.float(), persistent=False)

    def add_noise(self, x_0: Tensor, t: int | Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x_t ~ q(x_t | x_0), eq. 4, and the noise eps in it (drawn if None)."""
        if eps is None:
            eps = torch.randn(x_0.shape, device=x_0.device, dtype=x_0.dtype)
        a, s = extract(self.sqrt_alphas_cumprod, t, x_0), extract(self.sqrt_one_minus_alphas_cumprod, t, x_0)
        return a * x_0 + s * eps, eps

    def posterior_mean(self, x_0: Tensor, x_t: Tensor, t: int | Tensor) -> Tensor:
        """mu~_t(x_t, x_0), eq. 7."""
        return extract(self.posterior_mean_coef_x0, t, x_t) * x_0 + extract(self.posterior_mean_coef_xt, t, x_t) * x_t

    def step(self, x_t: Tensor, t: int | Tensor, net_out: Tensor, predictor: str, z: Tensor | None = None) -> Tensor:
        """One reverse step x_t -> x_{t-1}; net_out is the predicted "noise", "x0" or "mean", z the step's noise."""
        steps = {"noise": self.step_predict_noise, "x0": self.step_predict_x0, "mean": self.step_predict_mean}
        if predictor not in steps:
            raise ValueError(f"unknown predictor {predictor!r}: choose one of {', '.join(steps)}")
        return steps[predictor](x_t, t, net_out, z)

    def step_predict_noise(self, x_t: Tensor, t: int | Tensor, eps_theta: Tensor, z: Tensor | None = None) -> Tensor:
        """The step with eq. 11 as its mean."""
        beta_t, alpha_t = extract(self.betas, t, x_t), extract(self.alphas, t, x_t)
        mean = (x_t - beta_t / extract(self.sqrt_one_minus_alphas_cumprod, t, x_t) * eps_theta) / alpha_t.sqrt()
        return self.step_predict_mean(x_t, t, mean, z)

    def step_predict_x0(self, x_t: Tensor, t: int | Tensor, x0_pred: Tensor, z: Tensor | None = None) -> Tensor:
        """The step with eq. 7 as its mean."""
        return self.step_predict_mean(x_t, t, self.posterior_mean(x0_pred, x_t, t), z)

    def step_predict_mean(self, x_t: Tensor, t: int | Tensor, mean_theta: Tensor, z: Tensor | None = None) -> Tensor:
        """x_{t-1} = mean + sigma_t z, without noise at t = 0."""
        sigma_t = extract(self.sigmas, t, x_t)
        is_last = (as_timesteps(t, x_t.device) == 0).view_as(sigma_t)
        return mean_theta + sigma_t.masked_fill(is_last, 0.0) * (torch.randn_like(x_t) if z is None else z)
