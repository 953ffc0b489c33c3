"""Typical mistakes: each says which parts of a formula its code gets wrong, what to tell, and the right formula.

A wrong result that equals the formula with these parts has that cause.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from solution_check.formulas import BARS, BETA_1, BETA_T, BETAS, MEANS, T, mean_eq_7, mean_eq_11, small


@dataclass(frozen=True)
class Mistake:
    """A typical mistake."""

    name: str
    functions: tuple[str, ...]  # in which it occurs
    variants: tuple[dict[str, Any], ...]  # the parts that it replaces, in one or several ways
    what: str
    right: str


MISTAKES: list[Mistake] = []


def group(right: str, *functions: str) -> Callable[..., None]:
    """A function that adds mistakes in `functions`, where `right` is right."""

    def add(name: str, what: str, *variants: dict[str, Any], **parts: Any) -> None:
        MISTAKES.append(Mistake(name, functions, variants or (parts,), what, right))

    return add


STEPS = "p_sample", "step_predict_noise", "step_predict_x0", "step_predict_mean"
FROM_NOISE = "p_sample", "step_predict_noise"
FORWARD = "q_sample", "add_noise"
LOSSES = "compute_loss", "get_loss_noise", "get_loss_x0", "get_loss_mean"
LOOPS = "p_sample_loop", "sample"

COSINE = "alpha-bar = f(u) / f(0), f(u) = cos^2((u + 0.008) / 1.008 pi/2), beta_t <= 0.999 (Nichol & Dhariwal eq. 17)"
QUAD = "sqrt(beta_t) rises linearly from sqrt(beta_1) to sqrt(beta_T)"
EQ_4 = "x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) eps (DDPM eq. 4)"
EQ_7 = (
    "mean = sqrt(alpha-bar_{t-1}) beta_t / (1 - alpha-bar_t) x_0 "
    "+ sqrt(alpha_t) (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t) x_t (DDPM eq. 7)"
)
EQ_8 = f"mean of (mu - mu_theta(x_t, t))^2 (DDPM eq. 8), {EQ_7}"
EQ_11 = "mean = (x_t - beta_t / sqrt(1 - alpha-bar_t) eps) / sqrt(alpha_t) (DDPM eq. 11)"
EQ_14 = "mean of (eps - eps_theta(x_t, t))^2 (DDPM eq. 14)"
SIGMA = "sigma_t^2 = (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t) beta_t (DDPM eq. 7)"
NOISE = "x_{t-1} = mean + sigma_t z, z ~ N(0, I) for t > 0, z = 0 at t = 0 (DDPM Algorithm 2)"
ALGORITHM_1 = "t uniform over all T steps, 0 .. T-1 in code, for each sample its own (DDPM Algorithm 1, line 3)"
ALGORITHM_2 = "x_T ~ N(0, I), then x_t -> x_{t-1} for t = T-1, ..., 0 (DDPM Algorithm 2)"
DDIM = (
    "x_prev = sqrt(alpha-bar_prev) x_0 + sqrt(1 - alpha-bar_prev - sigma^2) eps + sigma z (DDIM eq. 12), "
    "sigma^2 = eta^2 (1 - alpha-bar_prev) / (1 - alpha-bar_t) (1 - alpha-bar_t / alpha-bar_prev) (DDIM eq. 16)"
)
DDIM_LOOP = "n decreasing timesteps and then clean data, where alpha-bar is 1 (DDIM Sec. 4.2)"
NETWORK = (
    "eps_theta(x_t, t) (DDPM eq. 11): TimeLinear layers, each times an embedding of t, an activation between them, "
    "none at the end"
)
PREDICTORS = "noise: eq. 11, x0: eq. 7, mean: the mean itself, each with its function (DDPM Sec. 3.2)"

RIGHT = {  # of each function, for what no mistake explains
    "SimpleNet": NETWORK,
    "linear": "beta_t rises linearly from beta_1 to beta_T (DDPM Sec. 4)",
    "quad": QUAD,
    "cosine": COSINE,
    "sigmas": f"{SIGMA} for sigma_type small, beta_t for large (Sec. 3.2)",
    **dict.fromkeys(FORWARD, EQ_4),
    **dict.fromkeys(FROM_NOISE, f"{NOISE}, {EQ_11}, {SIGMA}"),
    "step_predict_x0": f"{NOISE}, {EQ_7}, {SIGMA}",
    "step_predict_mean": f"{NOISE}, mean = the prediction, {SIGMA}",
    "compute_loss": EQ_14,
    "get_loss_noise": EQ_14,
    "get_loss_x0": "mean of (x_0 - prediction)^2",
    "get_loss_mean": EQ_8,
    **dict.fromkeys(LOOPS, ALGORITHM_2),
    "ddim_p_sample": DDIM,
    "ddim_p_sample_loop": DDIM_LOOP,
    "training": "a Chamfer distance below 20",
}
COMMENT = "(as in the handout's comment)"
CLIPPED = "x_0 is clipped to [-1, 1] inside the step, which DDPM's own code does and the lab's formula does not"

# Schedules

cosine = group(COSINE, "cosine")
cosine("cosine-cap-beta-T", "betas are capped at beta_T", cap=BETA_T)
cosine("cosine-cap-0.9999", "betas are capped at 0.9999, not at 0.999", cap=0.9999)
cosine("cosine-no-cap", "betas are not capped", cap=np.inf)
cosine("cosine-floor", "betas are raised to at least beta_1", low=BETA_1)
cosine("cosine-not-normalised", "alpha-bar is not divided by f(0), so the first beta is too large", first=None)
cosine("cosine-no-square", "the cosine is not squared", power=1)
cosine("cosine-no-s", "s = 0.008 is missing", s=0.0)
shifted = [{"grid": grid, "first": first} for grid in ("arange", "linspace") for first in ("f(0)", None, "short")]
cosine("cosine-T-points", "f is taken at T points, not T + 1, so the betas are shifted or one is missing", *shifted)
no_square, no_root = {"betas": lambda: np.linspace(BETA_1**0.5, BETA_T**0.5, T)}, {"betas": lambda: BETAS**2}
group(QUAD, "quad")("quad-roots", "a root or the square is missing", no_square, no_root)

# x_t from x_0

forward = group(EQ_4, *FORWARD)
forward("forward-no-roots", "both roots are missing", signal=lambda q: q.bar, noise=lambda q: 1 - q.bar)
forward("forward-signal-root", "the root over alpha-bar_t is missing", signal=lambda q: q.bar)
roots = {"noise": lambda q: 1 - q.bar}, {"noise": lambda q: 1 - q.bar**0.5}
forward("forward-noise-root", "the root over 1 - alpha-bar_t is missing or within the difference", *roots)
by_alpha = {"signal": lambda q: q.alpha**0.5, "noise": lambda q: q.beta**0.5}
forward("forward-alpha", "alpha_t stands where alpha-bar_t belongs", by_alpha)
swapped = {"signal": lambda q: (1 - q.bar) ** 0.5, "noise": lambda q: q.bar**0.5}
forward("forward-swapped", "the two coefficients are swapped", swapped)
forward("forward-own-noise", "the noise that is passed in is not used", pick=lambda eps, drawn: drawn)
as_index = group(f"t.long() before it indexes alpha-bar_t of {EQ_4}", "q_sample")
as_index("float-t", "a float tensor of t, as in the tutorial, is refused", float_t=0)
pair = group(f"two tensors, x_t and the eps in it: {EQ_4}", "add_noise")
pair("no-pair", "x_t and the eps in it are not both returned", pair=0)

# Reverse steps: variance

sigma = group(SIGMA, *STEPS)
sigma("sigma-not-rooted", "the variance is used as the standard deviation", root=lambda v: v)
sigma("beta-for-small", "beta_t is used, which DDPM allows and the handout does not", variance=lambda q: q.beta)
of_alpha = f"alpha_t stands where alpha-bar_t belongs in the variance {COMMENT}"
sigma("sigma-alpha", of_alpha, variance=lambda q: (1 - q.alpha_prev) / (1 - q.alpha) * q.beta)
swapped = "alpha-bar_{t-1} and alpha-bar_t are swapped in the variance"
sigma("sigma-swapped", swapped, variance=lambda q: (1 - q.bar) / (1 - q.clamped) * q.beta)
sigma("sigma-forward", "the variance is 1 - alpha-bar_t, that of the forward process", variance=lambda q: 1 - q.bar)
noise = group(NOISE, *STEPS)
noise("no-noise", "no noise is added", variance=lambda q: 0.0)
at_0 = {"last": lambda q: q.beta}, {"last_large": lambda q: q.beta}
why = "since (t - 1).clamp(min=0) or beta_t make sigma_0 larger than 0"
noise("noise-at-0", f"noise is added at t = 0, {why}", *at_0, at_0[0] | at_0[1])
noise("uniform-noise", "z is uniform (torch.rand), not Gaussian (torch.randn_like)", pick=lambda z, uniform: uniform)
device = group(f"torch.randn_like(x_t), on x_t's device: {NOISE}", *STEPS, *LOOPS)
device("fixed-device", "torch.randn draws on the CPU, which fails on a GPU", device=0)
sigmas = group(RIGHT["sigmas"], "sigmas")
sigmas("small-for-large", "sigma_type large has the small variance", large=small)
sigmas("large-for-small", "sigma_type small has beta_t", small=lambda q: q.beta)
sigmas("sigmas-not-rooted", "sigmas holds variances, not standard deviations", root=lambda v: v)

# The mean from predicted noise, in a step; and from the true noise, in the loss of the mean


def of_noise(name: str, what: str, mean: Callable, is_loss: bool = True) -> None:
    group(EQ_11, *FROM_NOISE)(name, what, mean=mean)
    if is_loss:
        group(EQ_11, "get_loss_mean")(f"loss-{name}", what, target=lambda q, x, x0, eps: mean(q, x, eps))


def k(q: Any) -> float:
    return q.beta / (1 - q.bar) ** 0.5


def x0_of_noise(q: Any, x: Any, eps: Any) -> Any:
    return (x - (1 - q.bar) ** 0.5 * eps) / q.bar**0.5


of_noise("mean-no-1/sqrt(alpha)", "1/sqrt(alpha_t) is missing", lambda q, x, e: x - k(q) * e)
of_noise("mean-1/alpha", "1/alpha_t stands for 1/sqrt(alpha_t)", lambda q, x, e: (x - k(q) * e) / q.alpha)
for_alpha = "1/sqrt(alpha-bar_t) stands for 1/sqrt(alpha_t)"
of_noise("mean-1/sqrt(alpha-bar)", for_alpha, lambda q, x, e: (x - k(q) * e) / q.bar**0.5)
under_root = f"alpha_t stands under the root where alpha-bar_t belongs {COMMENT}"
of_noise("mean-alpha-under-root", under_root, lambda q, x, e: (x - q.beta / (1 - q.alpha) ** 0.5 * e) / q.alpha**0.5)
no_root = "the root over 1 - alpha-bar_t is missing"
of_noise("mean-no-root", no_root, lambda q, x, e: (x - q.beta / (1 - q.bar) * e) / q.alpha**0.5)
of_noise("mean-plus", "the noise is added, not subtracted", lambda q, x, e: (x + k(q) * e) / q.alpha**0.5)
whole = f"eps multiplies the whole bracket {COMMENT}"
of_noise("mean-printed-brackets", whole, lambda q, x, e: (x - q.beta / (1 - q.alpha) ** 0.5) * e / q.alpha**0.5)
# In the loss, these are within rounding, "target" or harmless.
of_noise("mean-brackets", "1/sqrt(alpha_t) multiplies x_t alone", lambda q, x, e: x / q.alpha**0.5 - k(q) * e, False)
of_noise("mean-is-x0", "the predicted x_0 is taken for the mean", x0_of_noise, False)
of_noise("clip-x0-of-noise", CLIPPED, lambda q, x, e: mean_eq_7(q, x, np.clip(x0_of_noise(q, x, e), -1, 1)), False)

# The mean from predicted x_0, in a step; and from the true x_0, in the loss of the mean


def by_eq_7(x0: Callable, xt: Callable) -> dict[str, Callable]:
    """A mean with other coefficients than those of eq. 7."""
    return {"mean": lambda q, x, out: x0(q) * out + xt(q) * x}


def c_x0(q: Any) -> float:
    return q.prev**0.5 * q.beta / (1 - q.bar)


def c_xt(q: Any) -> float:
    return q.alpha**0.5 * (1 - q.prev) / (1 - q.bar)


eq_7 = group(EQ_7, "step_predict_x0", "get_loss_mean")
eq_7("eq7-swapped", "x_0 and x_t, or their coefficients, are swapped", by_eq_7(c_xt, c_x0))
eq_7(
    "clamped-t-prev",
    "alpha-bar before the first step is 1, but (t - 1).clamp(min=0) takes alpha-bar_0 (the handout's hint), which "
    "doubles x at t = 0",
    by_eq_7(lambda q: q.clamped**0.5 * q.beta / (1 - q.bar), lambda q: q.alpha**0.5 * (1 - q.clamped) / (1 - q.bar)),
)
eq_7(
    "eq7-bars-swapped",
    "alpha-bar_{t-1} and alpha-bar_t are swapped",
    by_eq_7(lambda q: q.bar**0.5 * q.beta / (1 - q.clamped), lambda q: q.alpha**0.5 * (1 - q.bar) / (1 - q.clamped)),
)
no_roots = by_eq_7(lambda q: q.prev * q.beta / (1 - q.bar), lambda q: q.alpha * (1 - q.prev) / (1 - q.bar))
eq_7("eq7-no-roots", "the roots are missing", no_roots)
eq_7(
    "eq7-bar-for-prev",
    "alpha-bar_t stands for alpha-bar_{t-1}",
    by_eq_7(lambda q: q.bar**0.5 * q.beta / (1 - q.bar), lambda q: q.alpha**0.5),
    by_eq_7(lambda q: q.bar**0.5 * q.beta / (1 - q.bar), c_xt),
)
for_alpha = by_eq_7(c_x0, lambda q: q.bar**0.5 * (1 - q.prev) / (1 - q.bar))
eq_7("eq7-bar-for-alpha", "sqrt(alpha-bar_t) stands for sqrt(alpha_t)", for_alpha)
step_x0 = group(EQ_7, "step_predict_x0")
step_x0("clip-x0", CLIPPED, mean=lambda q, x, x0: mean_eq_7(q, x, np.clip(x0, -1, 1)))
step_x0("x0-as-noise", "the predicted x_0 is treated as noise", mean=mean_eq_11)
step_x0("x0-as-mean", "the predicted x_0 is taken for the mean", mean=MEANS["mean"])
step_x0(
    "x0-to-noise",
    "x_0 is converted to noise without the root over 1 - alpha-bar_t",
    mean=lambda q, x, x0: mean_eq_11(q, x, (x - q.bar**0.5 * x0) / (1 - q.bar)),
)
twice = group("mean = the prediction (DDPM eq. 8)", "step_predict_mean")
twice("mean-twice", "the predicted mean is converted to a mean once more", {"mean": mean_eq_7}, {"mean": mean_eq_11})

# Losses

TARGETS = {
    "noise": lambda q, x, x0, eps: eps,
    "x0": lambda q, x, x0, eps: x0,
    "x_t": lambda q, x, x0, eps: x,
    "mean": lambda q, x, x0, eps: mean_eq_7(q, x, x0),
}
for function in LOSSES:
    own = function.removeprefix("get_loss_").replace("compute_loss", "noise")
    others = [{"target": target} for kind, target in TARGETS.items() if kind != own]
    group(RIGHT[function], function)(f"target-{function}", "the prediction is compared with the wrong target", *others)
squares = group("the mean over all entries of the squared difference (as in DDPM eq. 14)", *LOSSES)
sums = [lambda d: np.sum(d**2), lambda d: np.sum(d**2) / len(d), lambda d: 0.5 * np.mean(d**2)]
squares("sum", "a sum, or another multiple of the mean", *[{"reduce": reduce} for reduce in sums])
norms = [lambda d: np.mean(np.abs(d)), lambda d: np.mean(d**2) ** 0.5, lambda d: np.mean(d)]
norms += [lambda d: np.mean(np.where(np.abs(d) < 1, d**2 / 2, np.abs(d) - 0.5))]
squares("not-squared", "another norm than the square (absolute, Huber, a root)", *[{"reduce": n} for n in norms])
group(EQ_14, *LOSSES)("clean-input", "the network gets x_0, not x_t", signal=lambda q: 1.0, noise=lambda q: 0.0)
unpaired = "x_t and the target have different noise, since the noise is drawn twice or not passed on"
group(EQ_14, "compute_loss", "get_loss_noise")("unpaired-noise", unpaired, {"other": 0}, {"other": 1})
of_other = [{"target": lambda q, x, x0, eps: mean_eq_11(q, x, eps), "other": other} for other in (0, 1)]
group(EQ_11, "get_loss_mean")("loss-unpaired-noise", unpaired, *of_other)
draws = group(ALGORITHM_1, *LOSSES)
draws("t-from-1", "t is drawn from 1 on, so t = 0 is never trained", {"span": (0, 1)}, {"span": (0, 2)})
draws("t-too-narrow", "t does not reach T - 1", {"span": (1, 0)}, {"span": (0, 0)})
draws("one-t", "the whole batch has one t", each=0)
detached = group("a gradient step on the loss (DDPM Algorithm 1, line 5)", *LOSSES)
detached("loss-detached", "no gradient reaches the network, detach() or torch.no_grad() is in its way", gradient=0)

# Loops

loop = group(ALGORITHM_2, *LOOPS)
loop("loop-upwards", "the loop goes from 0 up", order=np.arange(T))
loop("loop-without-0", "the loop leaves out t = 0", {"order": np.arange(T - 1, 0, -1)}, {"order": np.arange(T, 0, -1)})
loop("loop-late", "the loop leaves out t = T - 1", order=np.arange(T - 2, -1, -1))
loop("loop-from-zeros", "the loop does not begin with Gaussian noise", start=0)
loop("loop-not-fed", "a step does not get what the step before it returned", chain=0)
loop("loop-other-result", "the result is not what the last step returned", result=0)
loop("loop-gradient", "torch.no_grad() is missing, so the graph of all T steps is kept", gradient=0)
trajectory = group("x_T, ..., x_0, T + 1 tensors (DDPM Algorithm 2)", "sample")
trajectory("trajectory", "return_traj gives another list", trajectory=0)
ddim = group(DDIM, "ddim_p_sample")
ddim("ddim-clamp", "alpha-bar before the first step is 1, not alpha-bar_0", before=BARS[0])
ddim("ddim-direction", "sigma^2 is missing under the second root", direction=lambda b, v: (1 - b) ** 0.5)
ddim("ddim-sigma-root", "the variance is used as the standard deviation", root=lambda v: v)
swapped = "alpha-bar_t and alpha-bar_prev are swapped in sigma"
ddim("ddim-sigma", swapped, variance=lambda a, b: (1 - b) / (1 - a) * (b / a - 1))
group(DDIM_LOOP, "ddim_p_sample_loop")("ddim-loop", "the timesteps do not follow on each other", steps=0)
dispatch = group(PREDICTORS, "step", "get_loss")
for kind in "noise", "x0", "mean":
    dispatch(f"dispatch-{kind}", f"predictor {kind} does not call its function", {f"dispatch-{kind}": 0})

# Network

net = group(NETWORK, "SimpleNet")
net("last-activation", "an activation follows the last layer, but noise has both signs", end=0)
net("no-activation", "no activation between the layers, so the output is linear in x", between=0)
net("time-in-few-layers", "t enters only some of the layers", time=0)
net("time-added", "TimeLinear adds the embedding of t to its output, it does not multiply by it", factor=0)
net("t-ignored", "the output does not depend on t", depends=0)
net("wrong-shape", "the output has not the shape [B, dim_out]", shape=0)
