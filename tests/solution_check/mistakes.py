"""Typical mistakes: each says which parts of a formula its code gets wrong, and what to tell.

A wrong result that equals the formula with these parts has that cause. Two mistakes in one function are found by
replacing the parts of both.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from solution_check.formulas import BARS, BETA_1, BETA_T, MEANS, Case, T, mean_eq_7, mean_eq_11, small


@dataclass(frozen=True)
class Mistake:
    """A typical mistake: the functions it occurs in, the parts it replaces (in one or several ways), what to tell."""

    name: str
    functions: tuple[str, ...]
    variants: tuple[dict[str, Any], ...]
    sentence: str


STEPS = "p_sample", "step_predict_noise", "step_predict_x0", "step_predict_mean"
FROM_NOISE = "p_sample", "step_predict_noise"
FORWARD = "q_sample", "add_noise"
LOSSES = "compute_loss", "get_loss_noise", "get_loss_x0", "get_loss_mean"
LOOPS = "p_sample_loop", "sample"
EQ_4 = "x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) eps (DDPM eq. 4)"
EQ_7 = (
    "sqrt(alpha-bar_{t-1}) beta_t / (1 - alpha-bar_t) x_0 + sqrt(alpha_t) (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t) x_t"
)
EQ_7 = f"mean = {EQ_7} (DDPM eq. 7)"
EQ_11 = "mean = (x_t - beta_t / sqrt(1 - alpha-bar_t) eps) / sqrt(alpha_t) (DDPM eq. 11)"
SIGMA = "sigma_t^2 = (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t) beta_t (DDPM eq. 7)"
COSINE = "alpha-bar = f(u) / f(0), f(u) = cos^2((u + 0.008) / 1.008 pi/2), beta_t <= 0.999 (Nichol & Dhariwal eq. 17)"
EQ_14 = "mean of (eps - eps_theta(x_t, t))^2 (DDPM eq. 14)"
ALGORITHM_1 = "t uniform over all T steps, 0 .. T-1 in code, for each sample anew (DDPM Algorithm 1, line 3)"
ALGORITHM_2 = "x_T ~ N(0, I), then x_t -> x_{t-1} for t = T-1, ..., 0 (DDPM Algorithm 2)"
DDIM = (
    "x_prev = sqrt(alpha-bar_prev) x_0 + sqrt(1 - alpha-bar_prev - sigma^2) eps + sigma z (DDIM eq. 12), "
    "sigma^2 = eta^2 (1 - alpha-bar_prev) / (1 - alpha-bar_t) (1 - alpha-bar_t / alpha-bar_prev) (eq. 16)"
)
TARGETS = {"noise": "the noise (DDPM eq. 14)", "x0": "the clean x_0 (by eq. 7)", "mean": "the mean of eq. 7 (eq. 8)"}

RIGHT = {
    "linear": "beta_t rises linearly from beta_1 to beta_T (DDPM Sec. 4)",
    "quad": "sqrt(beta_t) rises linearly from sqrt(beta_1) to sqrt(beta_T)",
    "cosine": COSINE,
    "sigmas": f"{SIGMA} for sigma_type small, beta_t for large (Sec. 3.2), under a root",
    **dict.fromkeys(FORWARD, EQ_4),
    **dict.fromkeys(FROM_NOISE, f"{EQ_11}, {SIGMA}, no noise at t = 0"),
    "step_predict_x0": f"{EQ_7}, {SIGMA}, no noise at t = 0",
    "step_predict_mean": f"the mean is the prediction itself, {SIGMA}, no noise at t = 0",
    "compute_loss": EQ_14,
    "get_loss_noise": EQ_14,
    "get_loss_x0": "mean of (x_0 - prediction)^2",
    "get_loss_mean": f"mean of (mean - prediction)^2 (DDPM eq. 8) with {EQ_7}",
    **dict.fromkeys(LOOPS, ALGORITHM_2),
    "ddim_p_sample": DDIM,
    "ddim_p_sample_loop": "n decreasing timesteps, the last one to clean data, where alpha-bar is 1 (DDIM Sec. 4.2)",
}


def by_eq_7(x0: Callable, xt: Callable) -> Callable:
    """A mean with other coefficients than those of eq. 7."""
    return lambda q, x, out: x0(q) * out + xt(q) * x


def _mistakes() -> list[Mistake]:
    found = []

    def add(name, functions, sentence, *variants, **parts):
        functions = (functions,) if isinstance(functions, str) else functions
        found.append(Mistake(name, functions, variants or (parts,), sentence))

    # Schedules
    add("cosine-cap-beta-T", "cosine", f"betas are capped at beta_T: right is {COSINE}", cap=BETA_T)
    add("cosine-cap-0.9999", "cosine", f"betas are capped at 0.9999, not at 0.999: right is {COSINE}", cap=0.9999)
    add("cosine-no-cap", "cosine", f"betas are not capped: right is {COSINE}", cap=np.inf)
    add("cosine-floor", "cosine", f"betas are also raised to at least beta_1: right is {COSINE}", low=BETA_1)
    add(
        "cosine-not-normalised",
        "cosine",
        f"alpha-bar is not divided by f(0), so that the first beta is too large: right is {COSINE}",
        first=None,
    )
    grids = [{"grid": grid, "first": first} for grid in ("arange", "linspace") for first in ("f(0)", None, "short")]
    points = f"f is taken at T points instead of T + 1, so that the betas are shifted or one is missing: {COSINE}"
    add("cosine-T-points", "cosine", points, *grids)
    add("cosine-no-square", "cosine", f"the cosine is not squared: right is {COSINE}", power=1)
    add("cosine-no-s", "cosine", f"s = 0.008 is missing: right is {COSINE}", s=0.0)
    roots = np.linspace(BETA_1**0.5, BETA_T**0.5, T)
    squared = {"betas": lambda: np.linspace(BETA_1, BETA_T, T) ** 2}
    add("quad-roots", "quad", f"a root or square is missing: {RIGHT['quad']}", {"betas": lambda: roots}, squared)

    # x_t from x_0
    signal, noise = (lambda q: q.bar), (lambda q: 1 - q.bar)
    add("forward-no-roots", FORWARD, f"both roots are missing: right is {EQ_4}", signal=signal, noise=noise)
    add("forward-signal-root", FORWARD, f"the root over alpha-bar_t is missing: right is {EQ_4}", signal=signal)
    add("forward-noise-root", FORWARD, f"the root over 1 - alpha-bar_t is missing: right is {EQ_4}", noise=noise)
    alpha = {"signal": lambda q: q.alpha**0.5, "noise": lambda q: (1 - q.alpha) ** 0.5}
    add("forward-alpha", FORWARD, f"alpha_t stands where alpha-bar_t belongs: right is {EQ_4}", alpha)
    swapped = {"signal": lambda q: (1 - q.bar) ** 0.5, "noise": lambda q: q.bar**0.5}
    add("forward-swapped", FORWARD, f"the two coefficients are swapped: right is {EQ_4}", swapped)
    fresh = {"pick": lambda eps, drawn: drawn}
    add("forward-own-noise", FORWARD, f"the noise that is passed in is not used, another is drawn: {EQ_4}", fresh)

    # Reverse steps: variance
    add("sigma-not-rooted", STEPS, f"the variance is used as standard deviation: {SIGMA}", root=lambda v: v)
    add("beta-for-small", STEPS, f"beta_t is used for the small variance: {SIGMA}", variance=lambda q: q.beta)
    add(
        "sigma-alpha",
        STEPS,
        f"alpha_t stands where alpha-bar_t belongs in the variance (as in the handout's comment): {SIGMA}",
        variance=lambda q: (1 - q.alpha_prev) / (1 - q.alpha) * q.beta,
    )
    add(
        "sigma-swapped",
        STEPS,
        f"alpha-bar_{{t-1}} and alpha-bar_t are swapped in the variance: {SIGMA}",
        variance=lambda q: (1 - q.bar) / (1 - q.clamped) * q.beta,
    )
    add(
        "sigma-forward",
        STEPS,
        f"the variance is 1 - alpha-bar_t, that of the forward process: {SIGMA}",
        variance=lambda q: 1 - q.bar,
    )
    add("no-noise", STEPS, f"no noise is added: x_{{t-1}} = mean + sigma_t z, {SIGMA}", variance=lambda q: 0.0)
    add(
        "noise-at-0",
        STEPS,
        "noise is added at t = 0: alpha-bar before the first step is 1, so sigma_0 = 0; (t - 1).clamp(min=0) or beta_t "
        "make it larger (DDPM Algorithm 2, line 3)",
        last=lambda q: q.beta,
    )
    add(
        "uniform-noise",
        STEPS,
        "z is uniform (torch.rand), it must be Gaussian: torch.randn_like(x_t) (DDPM Algorithm 2, line 3)",
        pick=lambda z, uniform: uniform,
    )
    add("small-for-large", "sigmas", "sigma_type large must have sigma_t^2 = beta_t (DDPM Sec. 3.2)", large=small)
    add("large-for-small", "sigmas", f"sigma_type small has beta_t: {SIGMA}", small=lambda q: q.beta)
    add("sigmas-not-rooted", "sigmas", f"sigmas holds variances, not their roots: {SIGMA}", root=lambda v: v)

    # Reverse steps: mean of a predicted noise
    def k(q):
        return q.beta / (1 - q.bar) ** 0.5

    def from_noise(name, sentence, mean, in_loss=True):
        sentence = f"{sentence}: right is {EQ_11}"
        add(name, FROM_NOISE, sentence, mean=mean)
        if in_loss:
            add(f"loss-{name}", "get_loss_mean", sentence, target=lambda q, x, x0, eps: mean(q, x, eps))

    def predicted_x0(q, x, eps):
        return (x - (1 - q.bar) ** 0.5 * eps) / q.bar**0.5

    from_noise("mean-no-1/sqrt(alpha)", "1/sqrt(alpha_t) is missing", lambda q, x, e: x - k(q) * e)
    from_noise("mean-1/alpha", "1/alpha_t stands for 1/sqrt(alpha_t)", lambda q, x, e: (x - k(q) * e) / q.alpha)
    from_noise(
        "mean-1/sqrt(alpha-bar)",
        "1/sqrt(alpha-bar_t) stands for 1/sqrt(alpha_t)",
        lambda q, x, e: (x - k(q) * e) / q.bar**0.5,
    )
    from_noise(
        "mean-alpha-under-root",
        "alpha_t stands under the root where alpha-bar_t belongs (as in the handout's comment)",
        lambda q, x, e: (x - q.beta / (1 - q.alpha) ** 0.5 * e) / q.alpha**0.5,
    )
    from_noise(
        "mean-no-root",
        "the root over 1 - alpha-bar_t is missing",
        lambda q, x, e: (x - q.beta / (1 - q.bar) * e) / q.alpha**0.5,
    )
    from_noise("mean-plus", "the noise is added, not subtracted", lambda q, x, e: (x + k(q) * e) / q.alpha**0.5)
    from_noise("mean-brackets", "1/sqrt(alpha_t) is on x_t alone", lambda q, x, e: x / q.alpha**0.5 - k(q) * e, False)
    from_noise(
        "mean-printed-brackets",
        "eps multiplies the whole bracket (as in the handout's comment)",
        lambda q, x, e: (x - q.beta / (1 - q.alpha) ** 0.5) * e / q.alpha**0.5,
    )
    from_noise("mean-is-x0", "the mean is the predicted x_0", predicted_x0, False)
    clipped = "x_0 is clipped to [-1, 1] inside the step: DDPM's own code does, the lab's formula does not"
    from_noise(
        "clip-x0-of-noise", clipped, lambda q, x, e: mean_eq_7(q, x, np.clip(predicted_x0(q, x, e), -1, 1)), False
    )

    # Reverse steps and loss: mean of a predicted or known x_0
    def from_x0(name, sentence, mean, functions=("step_predict_x0", "get_loss_mean")):
        add(name, functions, f"{sentence}: right is {EQ_7}", mean=mean)

    def c_x0(q):
        return q.prev**0.5 * q.beta / (1 - q.bar)

    def c_xt(q):
        return q.alpha**0.5 * (1 - q.prev) / (1 - q.bar)

    from_x0("eq7-swapped", "the coefficients of x_0 and x_t are swapped", by_eq_7(c_xt, c_x0))
    from_x0(
        "clamped-t-prev",
        "alpha-bar before the first step is 1, but (t - 1).clamp(min=0) takes alpha-bar_0 (as in the handout's hint), "
        "which doubles x at t = 0",
        by_eq_7(
            lambda q: q.clamped**0.5 * q.beta / (1 - q.bar),
            lambda q: q.alpha**0.5 * (1 - q.clamped) / (1 - q.bar),
        ),
    )
    from_x0(
        "eq7-bars-swapped",
        "alpha-bar_{t-1} and alpha-bar_t are swapped",
        by_eq_7(
            lambda q: q.bar**0.5 * q.beta / (1 - q.clamped), lambda q: q.alpha**0.5 * (1 - q.bar) / (1 - q.clamped)
        ),
    )
    from_x0(
        "eq7-no-roots",
        "the roots are missing",
        by_eq_7(lambda q: q.prev * q.beta / (1 - q.bar), lambda q: q.alpha * (1 - q.prev) / (1 - q.bar)),
    )
    from_x0(
        "eq7-bar-for-prev",
        "alpha-bar_t stands for alpha-bar_{t-1}",
        by_eq_7(lambda q: q.bar**0.5 * q.beta / (1 - q.bar), lambda q: q.alpha**0.5),
    )
    from_x0(
        "eq7-bar-for-alpha",
        "sqrt(alpha-bar_t) stands for sqrt(alpha_t) at x_t",
        by_eq_7(c_x0, lambda q: q.bar**0.5 * (1 - q.prev) / (1 - q.bar)),
    )
    step_x0 = ("step_predict_x0",)
    from_x0("clip-x0", clipped, lambda q, x, x0: mean_eq_7(q, x, np.clip(x0, -1, 1)), step_x0)
    from_x0("x0-as-noise", "the predicted x_0 is treated as noise", mean_eq_11, step_x0)
    from_x0("x0-as-mean", "the predicted x_0 is taken for the mean", MEANS["mean"], step_x0)
    twice = "the predicted mean is converted once more: it is already the mean of x_{t-1} (DDPM eq. 8)"
    add("mean-twice", "step_predict_mean", twice, {"mean": mean_eq_7}, {"mean": mean_eq_11})

    # Losses
    targets = {
        "noise": lambda q, x, x0, eps: eps,
        "x0": lambda q, x, x0, eps: x0,
        "x_t": lambda q, x, x0, eps: x,
        "mean": lambda q, x, x0, eps: mean_eq_7(q, x, x0),
    }
    for function in LOSSES:
        own = function.removeprefix("get_loss_").replace("compute_loss", "noise")
        others = [{"target": target} for kind, target in targets.items() if kind != own]
        add(f"target-{function}", (function,), f"compared with the wrong target: right is {TARGETS[own]}", *others)
    sums = [lambda d: np.sum(d**2), lambda d: np.sum(d**2) / len(d), lambda d: 0.5 * np.mean(d**2)]
    add("sum", LOSSES, f"a sum, or another multiple of the mean: right is the {EQ_14}", *[{"reduce": r} for r in sums])
    norms = [lambda d: np.mean(np.abs(d)), lambda d: np.mean(d**2) ** 0.5, lambda d: np.mean(d)]
    norm = f"the difference is not squared, or a root is taken: right is the {EQ_14}"
    add("not-squared", LOSSES, norm, *[{"reduce": reduce} for reduce in norms])
    add("clean-input", LOSSES, f"the network gets x_0 instead of x_t: {EQ_14}", signal=lambda q: 1, noise=lambda q: 0)
    from_1 = f"t is drawn from 1 on, so that t = 0 is never trained: {ALGORITHM_1}"
    add("t-from-1", LOSSES, from_1, {"span": (0, 1)}, {"span": (0, 2)})
    add("t-too-narrow", LOSSES, f"t does not reach T - 1: {ALGORITHM_1}", {"span": (1, 0)}, {"span": (0, 0)})
    add("one-t", LOSSES, f"one t for the whole batch: {ALGORITHM_1}", each=0)
    add("loss-detached", LOSSES, "no gradient reaches the network: call it outside torch.no_grad()", gradient=0)

    # Loops
    add("loop-upwards", LOOPS, f"the loop goes from 0 up: {ALGORITHM_2}", order=np.arange(T))
    without_0 = [{"order": np.arange(T - 1, 0, -1)}, {"order": np.arange(T, 0, -1)}]
    add("loop-without-0", LOOPS, f"the loop ends before t = 0: {ALGORITHM_2}", *without_0)
    add("loop-late", LOOPS, f"the loop begins below T - 1: {ALGORITHM_2}", order=np.arange(T - 2, -1, -1))
    add("loop-from-zeros", LOOPS, f"the loop does not begin with Gaussian noise: {ALGORITHM_2}", start=0)
    add("loop-not-fed", LOOPS, f"a step does not get what the step before it returned: {ALGORITHM_2}", chain=0)
    add("loop-other-result", LOOPS, f"what is returned is not the last step's result: {ALGORITHM_2}", result=0)
    keeps = (
        "sampling keeps the graph of all T steps for a gradient: put torch.no_grad() around it (Algorithm 2 has none)"
    )
    add("loop-gradient", LOOPS, keeps, gradient=0)
    add("trajectory", "sample", "return_traj must give x_T, ..., x_0, T + 1 tensors (Algorithm 2)", trajectory=0)

    # DDIM
    add("ddim-clamp", "ddim_p_sample", f"alpha-bar before the first step is 1, not alpha-bar_0: {DDIM}", before=BARS[0])
    direction = {"direction": lambda b, v: (1 - b) ** 0.5}
    add("ddim-direction", "ddim_p_sample", f"sigma^2 is missing under the second root: {DDIM}", direction)
    add("ddim-sigma-root", "ddim_p_sample", f"sigma is not rooted: {DDIM}", root=lambda v: v)
    inverted = {"variance": lambda a, b: (1 - b) / (1 - a) * (1 - b / a) * -1}
    add("ddim-sigma", "ddim_p_sample", f"alpha-bar_t and alpha-bar_prev are swapped in sigma: {DDIM}", inverted)

    # Network
    net = "SimpleNet"
    end = "an activation follows the last layer, which noise of both signs cannot pass: output eps_theta of DDPM eq. 11"
    add("last-activation", net, end, end=0)
    add("no-activation", net, "no activation between the layers, so that eps_theta (eq. 11) is linear in x", between=0)
    time = "t enters only some of the layers: each of eps_theta's layers (DDPM eq. 11) must be a TimeLinear"
    add("time-in-few-layers", net, time, time=0)
    add("t-ignored", net, "the output does not depend on t: eps_theta(x_t, t) (DDPM eq. 11)", depends=0)

    add("wrong-shape", net, "the output must have shape [B, dim_out], as eps in eq. 14 has", shape=0)
    as_float = "t must be accepted as a float tensor too, as the tutorial gives it: t.long()"
    add("float-t", "q_sample", f"{as_float} indexes alpha-bar_t of eq. 4", float_t=0)
    add("no-pair", "add_noise", f"add_noise returns two tensors, x_t and the eps in it: {EQ_4}", pair=0)
    add("ddim-loop", "ddim_p_sample_loop", RIGHT["ddim_p_sample_loop"], steps=0)
    for kind in TARGETS:
        goes = f"step and get_loss must call the function of their predictor: {kind} is {TARGETS[kind]}"
        add(f"dispatch-{kind}", ("step", "get_loss"), goes, {f"dispatch-{kind}": 0})

    device = (
        "torch.randn draws on a fixed device, which fails on a GPU: z = torch.randn_like(x_t) (Algorithm 2, line 3)"
    )
    add("fixed-device", (*STEPS, *LOOPS), device, device=0)
    return found


MISTAKES = _mistakes()


def diagnose(function: str, cases: list[Case]) -> list[tuple[Mistake, dict[str, Any]]]:
    """The fewest mistakes (one or two) that explain all of `cases`, with the parts they replace; or none."""
    known = [(mistake, parts) for mistake in MISTAKES if function in mistake.functions for parts in mistake.variants]
    for size in (1, 2):
        matches = []
        for chosen in itertools.combinations(known, size):
            parts = {name: part for _, each in chosen for name, part in each.items()}
            if len(parts) == sum(len(each) for _, each in chosen) and all(case.holds(**parts) for case in cases):
                distance = sum(float(case.differences(**parts)[0].sum()) for case in cases)
                matches.append((distance, len(matches), [*chosen]))
        if matches:
            return min(matches)[2]
    return []
