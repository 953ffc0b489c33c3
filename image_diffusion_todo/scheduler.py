"""The noise schedule and the steps of DDPM (Ho et al., 2020, arXiv:2006.11239) on images.

Forward, eq. 4:       x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) eps

Backward, were x_0 known, eq. 6 and 7:

    q(x_{t-1} | x_t, x_0) = N(mu~_t(x_t, x_0), beta~_t I)

    mu~_t  = sqrt(alpha-bar_{t-1}) beta_t / (1 - alpha-bar_t) x_0
             + sqrt(alpha_t) (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t) x_t
    beta~_t = (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t) beta_t

It is not known, so a network predicts one of three things, and each leads to a mean:

    "mean"     mu~ itself
    "x0"       x_0, put into eq. 7
    "noise"    eps, from which eq. 11: (x_t - beta_t / sqrt(1 - alpha-bar_t) eps) / sqrt(alpha_t)

A reverse step adds noise to that mean, except the last one. Timesteps count from 0, where the paper
counts from 1: timestep 0 is the first noisy level, x_0 the clean image before it, and alpha-bar there is 1.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

MODES = ("linear", "quad", "cosine")
PREDICTORS = ("noise", "x0", "mean")
PARAMETRIZATIONS = ("direct", "preconditioned")
LOSS_WEIGHTS = ("none", "snr", "min-snr")
MAX_TIMESTEPS = 1_000_000


def as_timesteps(t: int | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Timesteps in any usual form -> int64 tensor [B], or [1] where one t serves the whole batch.

    Args:
        t: an int, or a tensor [], [B] or [B, 1], of an integer type or a float one of whole numbers.
        device: where the result is wanted.

    Raises:
        ValueError: for a timestep that is not a whole number.
    """
    if isinstance(t, int):
        return torch.full((1,), t, device=device)  # written by the device itself: a copy would wait for it
    t = torch.as_tensor(t, device=device)
    if t.is_floating_point() and not torch.equal(t, t.round()):
        raise ValueError("timesteps must be whole numbers")
    return t.long().reshape(-1)


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


def check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    """ValueError for a value that is not among the known ones."""
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}: choose one of {', '.join(known)}")


def check_predictor(predictor: str) -> None:
    """ValueError for what no network here predicts."""
    check_choice("predictor", predictor, PREDICTORS)


class BaseScheduler(nn.Module):
    """beta_t and what follows from it, for t = 0 .. T-1.

    Everything is computed in float64 and cast once: in float32, 1 - alpha-bar_t is the difference
    of two nearly equal numbers at small t and loses four of its seven digits there.

    Args:
        num_train_timesteps: T.
        beta_1: first beta of the linear and quad modes (cosine has no free ends).
        beta_T: last beta of the linear and quad modes.
        mode: "linear": beta from beta_1 to beta_T (DDPM, Sec. 4);
            "quad": the same for sqrt(beta);
            "cosine": alpha-bar = f(u) / f(0), f(u) = cos^2((u + s) / (1 + s) pi/2), s = 0.008, for u from
            0 to 1, with beta capped at 0.999 (Nichol & Dhariwal, 2021, arXiv:2102.09672, eq. 17).

    Buffers, float32 [T]:
        betas, alphas, alphas_cumprod: beta_t, alpha_t = 1 - beta_t, alpha-bar_t.
        alphas_cumprod_prev: alpha-bar_{t-1}; 1 at t = 0.
        sqrt_one_minus_alphas_cumprod: the standard deviation of q(x_t | x_0).

    Raises:
        ValueError: for an unknown mode, T out of range, or betas not in 0 < beta_1 <= beta_T < 1.
    """

    def __init__(self, num_train_timesteps: int, beta_1: float, beta_T: float, mode: str = "linear"):
        super().__init__()
        if not 1 <= num_train_timesteps <= MAX_TIMESTEPS:
            raise ValueError(f"num_train_timesteps must be from 1 to {MAX_TIMESTEPS}, got {num_train_timesteps}")
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

        alphas_cumprod = (1 - betas).cumprod(0)
        alphas_cumprod_prev = F.pad(alphas_cumprod[:-1], (1, 0), value=1.0)
        self._keep(
            betas=betas,
            alphas=1 - betas,
            alphas_cumprod=alphas_cumprod,
            alphas_cumprod_prev=alphas_cumprod_prev,
            sqrt_one_minus_alphas_cumprod=(1 - alphas_cumprod).sqrt(),
        )
        self._float64 = betas, alphas_cumprod, alphas_cumprod_prev  # for what a subclass derives

    def _keep(self, **values: torch.Tensor) -> None:
        """Register float32 buffers; not in the state dict, since `config` says it all."""
        for name, value in values.items():
            self.register_buffer(name, value.float(), persistent=False)

    def alpha_bar(self, t: int) -> float:
        """alpha-bar_t in float64; 1 at t = -1, the clean image before step 0."""
        _, alphas_cumprod, _ = self._float64
        return alphas_cumprod[t].item() if t >= 0 else 1.0

    def uniform_sample_t(self, batch_size: int, device: torch.device | None = None) -> torch.Tensor:
        """Training timesteps, int64 [batch_size], uniform over 0..T-1, from NumPy's global generator."""
        t = np.random.choice(np.arange(self.num_train_timesteps), batch_size)
        return torch.from_numpy(t).to(device, non_blocking=True)


class DDPMScheduler(BaseScheduler):
    """The forward process in one go, and one reverse step for each predictor.

    Args:
        num_train_timesteps, beta_1, beta_T, mode: see `BaseScheduler`.
        sigma_type: the noise of a reverse step; DDPM, Sec. 3.2 names both and finds them alike.
            "small": variance beta~_t, right if x_0 were known;
            "large": variance beta_t, right if the data were a standard Gaussian.

    Buffers, float32 [T], besides those of `BaseScheduler`:
        sigmas: the standard deviation of a reverse step.
        posterior_mean_coef_x0, posterior_mean_coef_xt: the two coefficients of eq. 7; 1 and 0 at t = 0.

    Raises:
        ValueError: for an unknown sigma_type, and what `BaseScheduler` raises.
    """

    def __init__(
        self,
        num_train_timesteps: int,
        beta_1: float,
        beta_T: float,
        mode: str = "linear",
        sigma_type: str = "small",
    ):
        super().__init__(num_train_timesteps, beta_1, beta_T, mode)
        self.config["sigma_type"] = sigma_type
        betas, alphas_cumprod, prev = self._float64
        if sigma_type == "small":
            variance = (1 - prev) / (1 - alphas_cumprod) * betas
        elif sigma_type == "large":
            variance = betas
        else:
            raise ValueError(f"unknown sigma_type {sigma_type!r}: choose small or large")
        coef_x0 = prev.sqrt() * betas / (1 - alphas_cumprod)
        coef_xt = (1 - betas).sqrt() * (1 - prev) / (1 - alphas_cumprod)
        self._keep(sigmas=variance.sqrt(), posterior_mean_coef_x0=coef_x0, posterior_mean_coef_xt=coef_xt)
        self._float64_eq_7 = coef_x0, coef_xt

    def add_noise(
        self, x_0: torch.Tensor, t: int | torch.Tensor, eps: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x_t ~ q(x_t | x_0), eq. 4.

        Args:
            x_0: clean images [B, C, H, W].
            t: timesteps, an int or [B].
            eps: the standard Gaussian draw to use [B, C, H, W]; a fresh one if None.

        Returns:
            x_t and eps, both [B, C, H, W].
        """
        if eps is None:
            eps = torch.randn(x_0.shape, device=x_0.device, dtype=x_0.dtype)
        sqrt_alpha_bar_t = extract(self.alphas_cumprod, t, x_0).sqrt()
        x_t = sqrt_alpha_bar_t * x_0 + extract(self.sqrt_one_minus_alphas_cumprod, t, x_0) * eps
        return x_t, eps

    def posterior_mean(self, x_0: torch.Tensor, x_t: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
        """mu~_t(x_t, x_0), eq. 7: where x_t most likely was one step earlier, given x_0 [B, C, H, W]."""
        return extract(self.posterior_mean_coef_x0, t, x_t) * x_0 + extract(self.posterior_mean_coef_xt, t, x_t) * x_t

    def to_x0_and_eps(
        self, x_t: torch.Tensor, t: int, net_out: torch.Tensor, predictor: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network said, as the clean image and as the noise in x_t.

        By eq. 4 each follows from the other. From a mean, eq. 7 gives the x_0 that leads to it.

        Args:
            x_t: noisy images at timestep t [B, C, H, W].
            t: the timestep, the same for all of them.
            net_out: the network's answer [B, C, H, W].
            predictor: what it means: "noise", "x0" or "mean".

        Returns:
            x_0 and eps, both [B, C, H, W].

        Raises:
            ValueError: for an unknown predictor.
        """
        check_predictor(predictor)
        net_out = net_out.to(x_t.dtype)  # a network may answer in half precision
        sqrt_alpha_bar, sigma = self.alpha_bar(t) ** 0.5, (1 - self.alpha_bar(t)) ** 0.5
        if predictor == "noise":
            return (x_t - sigma * net_out) / sqrt_alpha_bar, net_out
        x_0 = net_out
        if predictor == "mean":
            coef_x0, coef_xt = (coef[t].item() for coef in self._float64_eq_7)
            x_0 = (net_out - coef_xt * x_t) / coef_x0
        return x_0, (x_t - sqrt_alpha_bar * x_0) / sigma

    def from_v(self, output: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor, predictor: str) -> torch.Tensor:
        """What the predictor stands for, from a network whose output is of unit size at every t.

        Asked for x_0 at small t or for the mean at any t, a network must copy x_t almost exactly, and what matters is
        a small difference on top. Asked for the noise at small t, it must enlarge a small difference. Here the copying
        is done outside, as in EDM (Karras et al., 2022, arXiv:2206.00364, Table 1): the output is

            v = sqrt(alpha-bar_t) eps - sqrt(1 - alpha-bar_t) x_0        (Salimans & Ho, 2022, arXiv:2202.00512)

        of variance 1 for data of variance 1, and with eq. 4 everything follows from it and x_t:

            x_0 = sqrt(alpha-bar_t) x_t - sqrt(1 - alpha-bar_t) v
            eps = sqrt(1 - alpha-bar_t) x_t + sqrt(alpha-bar_t) v
            mu~ = eq. 7 at this x_0

        Args:
            output: v [B, C, H, W].
            x_t: noisy images [B, C, H, W].
            t: timesteps, an int or [B].
            predictor: "noise", "x0" or "mean".

        Returns:
            The noise, clean image or mean [B, C, H, W] that losses and steps are about.
        """
        sqrt_alpha_bar_t = extract(self.alphas_cumprod, t, x_t).sqrt()
        sqrt_one_minus_alpha_bar_t = extract(self.sqrt_one_minus_alphas_cumprod, t, x_t)
        if predictor == "noise":
            return sqrt_one_minus_alpha_bar_t * x_t + sqrt_alpha_bar_t * output
        x_0 = sqrt_alpha_bar_t * x_t - sqrt_one_minus_alpha_bar_t * output
        return x_0 if predictor == "x0" else self.posterior_mean(x_0, x_t, t)

    def loss_weight(self, kind: str, predictor: str) -> torch.Tensor:
        """The weight of each timestep's squared error, [T], on the schedule's device.

        An error d of x_0 is an error k_t d of the prediction, with k_t = 1 for x0, sqrt(SNR_t) for the noise, and the
        coefficient of x_0 in eq. 7 for the mean, where SNR_t = alpha-bar_t / (1 - alpha-bar_t). So a plain mean of
        squares weighs the squared error of x_0 by k_t^2: by SNR_t for the noise, evenly for x0, and by something else
        again for the mean. Weights of W_t / k_t^2 let all three weigh it by W_t:

            "none"      weight 1: the plain mean of squares
            "snr"       W_t = SNR_t: what the noise predictor's plain loss does (DDPM, eq. 14)
            "min-snr"   W_t = min(SNR_t, 5) (Hang et al., 2023, arXiv:2303.09556): the almost clean images count less

        Raises:
            ValueError: for an unknown kind or predictor.
        """
        check_predictor(predictor)
        check_choice("loss weight", kind, LOSS_WEIGHTS)
        if kind == "none":
            return torch.ones_like(self.betas)
        betas, alphas_cumprod, _ = self._float64
        snr = alphas_cumprod / (1 - alphas_cumprod)
        # SNR_t / k_t^2, for the mean with alpha-bar cancelled, which may be 0 at the end of a long chain.
        of_mean = (1 - betas) * (1 - alphas_cumprod) / betas**2
        snr_over_k2 = {"noise": torch.ones_like(snr), "x0": snr, "mean": of_mean}[predictor]
        return (snr_over_k2 if kind == "snr" else snr_over_k2 * (5 / snr).clamp(max=1)).to(self.betas)

    def step(
        self,
        x_t: torch.Tensor,
        t: int | torch.Tensor,
        net_out: torch.Tensor,
        predictor: str,
        z: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One reverse step x_t -> x_{t-1} from what the network said.

        Args:
            x_t: noisy images at timestep t [B, C, H, W].
            t: the timestep, an int or [B].
            net_out: the network's answer [B, C, H, W].
            predictor: what it means: "noise", "x0" or "mean".
            z: the standard Gaussian draw to use [B, C, H, W]; a fresh one if None.

        Raises:
            ValueError: for an unknown predictor.
        """
        check_predictor(predictor)
        return getattr(self, f"step_predict_{predictor}")(x_t, t, net_out, z)

    def step_predict_noise(
        self, x_t: torch.Tensor, t: int | torch.Tensor, eps_theta: torch.Tensor, z: torch.Tensor | None = None
    ) -> torch.Tensor:
        """A reverse step from the predicted noise: its mean is eq. 11."""
        beta_t, alpha_t = extract(self.betas, t, x_t), extract(self.alphas, t, x_t)
        sqrt_one_minus_alpha_bar_t = extract(self.sqrt_one_minus_alphas_cumprod, t, x_t)
        mean = (x_t - beta_t / sqrt_one_minus_alpha_bar_t * eps_theta) / alpha_t.sqrt()
        return self.step_predict_mean(x_t, t, mean, z)

    def step_predict_x0(
        self, x_t: torch.Tensor, t: int | torch.Tensor, x0_pred: torch.Tensor, z: torch.Tensor | None = None
    ) -> torch.Tensor:
        """A reverse step from the predicted clean image: its mean is eq. 7."""
        return self.step_predict_mean(x_t, t, self.posterior_mean(x0_pred, x_t, t), z)

    def step_predict_mean(
        self, x_t: torch.Tensor, t: int | torch.Tensor, mean_theta: torch.Tensor, z: torch.Tensor | None = None
    ) -> torch.Tensor:
        """A reverse step from its predicted mean: x_{t-1} = mean + sigma_t z, without noise at t = 0."""
        sigma_t = extract(self.sigmas, t, x_t)
        is_last = (as_timesteps(t, x_t.device) == 0).view_as(sigma_t)
        return mean_theta + sigma_t.masked_fill(is_last, 0.0) * (torch.randn_like(x_t) if z is None else z)
