"""What a network may predict (noise, x_0, posterior mean, v): conversions between them, and loss weights.

With a = sqrt(alpha-bar_t) and s = sqrt(1 - alpha-bar_t), eq. 4 of DDPM reads x_t = a x_0 + s eps. Given x_t, each of
the four determines x_0 and eps:

    noise   eps itself
    x0      x_0 itself
    mean    mu~_t, eq. 7, solved for x_0
    v       a eps - s x_0, so that x_0 = a x_t - s v and eps = s x_t + a v    (Salimans & Ho, 2022, arXiv:2202.00512)

A network that predicts x_0 at small t, or the mean at any t, must copy x_t almost exactly; the useful signal is a
small residual. v has unit variance at every t for data of unit variance. A *preconditioned* network predicts v, and
noise, x_0 or mean are computed from it (as in EDM: Karras et al., 2022, arXiv:2206.00364, Table 1).
"""

import torch
from torch import Tensor

from scheduler import DDPMScheduler, extract

PARAMETRIZATIONS = ("direct", "preconditioned")
LOSS_WEIGHTS = ("none", "snr", "min-snr")
MIN_SNR_GAMMA = 5  # Hang et al., Sec. 4.2


def to_x0_and_eps(
    output: Tensor, x_t: Tensor, t: int | Tensor, kind: str, scheduler: DDPMScheduler
) -> tuple[Tensor, Tensor]:
    """x_0 and eps [B, C, H, W] from a network output [B, C, H, W] of one kind: "noise", "x0", "mean" or "v"."""
    a, s = extract(scheduler.sqrt_alphas_cumprod, t, x_t), extract(scheduler.sqrt_one_minus_alphas_cumprod, t, x_t)
    output = output.to(x_t.dtype)  # may be half precision
    if kind == "noise":
        return (x_t - s * output) / a, output
    if kind == "v":
        return a * x_t - s * output, s * x_t + a * output
    if kind == "mean":
        coef_x0 = extract(scheduler.posterior_mean_coef_x0, t, x_t)
        coef_xt = extract(scheduler.posterior_mean_coef_xt, t, x_t)
        output = (output - coef_xt * x_t) / coef_x0
    return output, (x_t - a * output) / s


def from_v(v: Tensor, x_t: Tensor, t: int | Tensor, predictor: str, scheduler: DDPMScheduler) -> Tensor:
    """The noise, x_0 or posterior mean [B, C, H, W] that v [B, C, H, W] implies."""
    x_0, eps = to_x0_and_eps(v, x_t, t, "v", scheduler)
    if predictor == "noise":
        return eps
    return x_0 if predictor == "x0" else scheduler.posterior_mean(x_0, x_t, t)


def should_clip_x0(predictor: str, parametrization: str) -> bool:
    """Whether samples improve when each predicted x_0 is clamped to [-1, 1].

    A mean that the network outputs itself is the exception: divided by eq. 7's coefficient of x_0, which falls from 1
    to about 1e-4 (linear schedule of 1000 steps), its errors exceed the range of x_0.
    """
    return (predictor, parametrization) != ("mean", "direct")


def loss_weights(kind: str, predictor: str, scheduler: DDPMScheduler) -> Tensor:
    """The weight of the squared error at each timestep [T].

    An error d of x_0 is an error k_t d of the prediction: k_t = 1 for x0, sqrt(SNR_t) for the noise, and eq. 7's
    coefficient of x_0 for the mean, where SNR_t = alpha-bar_t / (1 - alpha-bar_t). A plain mean of squares therefore
    weights the squared error of x_0 by k_t^2. A weight W_t / k_t^2 makes it W_t for all three predictors:

        "none"      weight 1, the plain mean of squares
        "snr"       W_t = SNR_t, as in the noise predictor's plain loss (DDPM, eq. 14)
        "min-snr"   W_t = min(SNR_t, 5) (Hang et al., 2023, arXiv:2303.09556)
    """
    if kind == "none":
        return torch.ones_like(scheduler.betas)
    betas = scheduler.betas.cpu().double()  # not every device has float64
    sigma2 = scheduler.sqrt_one_minus_alphas_cumprod.cpu().double() ** 2
    snr = scheduler.sqrt_alphas_cumprod.cpu().double() ** 2 / sigma2
    if predictor == "noise":
        weight = torch.ones_like(snr)
    elif predictor == "x0":
        weight = snr
    else:  # SNR_t / k_t^2 with alpha-bar cancelled, which may be 0 at the end of a very long chain
        weight = (1 - betas) * sigma2 / betas**2
    if kind == "min-snr":
        weight = weight * (MIN_SNR_GAMMA / snr).clamp(max=1)
    return weight.to(scheduler.betas)
