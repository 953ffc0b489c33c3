"""Every mistake of the catalogue as a change of `example_solution`: (mistake, function, [(after, old, new), ...]).

The change is made at the first `old` behind `after`, in the file that holds `after`.
"""

Change = tuple[str, str, str]
PLANTED: list[tuple[str, str, list[Change]]] = []


def plant(mistake: str, function: str, old: str, new: str, after: str | None = None, *more: Change) -> None:
    PLANTED.append((mistake, function, [(after or f"def {function}(", old, new), *more]))


# Task 1: the network
BETWEEN = "if i < len(self.layers) - 1:"
plant("last-activation", "SimpleNet", BETWEEN, "if True:", "class SimpleNet")
plant("no-activation", "SimpleNet", BETWEEN, "if False:", "class SimpleNet")
plant("t-ignored", "SimpleNet", "return alpha * x", "return x", "class TimeLinear")
plant("time-added", "SimpleNet", "return alpha * x", "return alpha + x", "class TimeLinear")
plant("wrong-shape", "SimpleNet", "*dim_hids, dim_out]", "*dim_hids, dim_in]", "class SimpleNet")
layer = "TimeLinear(dims[i], dims[i + 1], num_timesteps)"
only_first = f"append({layer} if i == 0 else nn.Linear(dims[i], dims[i + 1]))"
plain = ("class SimpleNet", "x = layer(x, t)", "x = layer(x, t) if i == 0 else layer(x)")
plant("time-in-few-layers", "SimpleNet", f"append({layer})", only_first, "class SimpleNet", plain)

# x_t from x_0
for function, bar, old in [
    ("q_sample", "alphas_prod_t", "alphas_prod_t.sqrt() * x0 + (1 - alphas_prod_t).sqrt() * noise"),
    ("add_noise", "alpha_bar_t", "alpha_bar_t.sqrt() * x_0 + (1 - alpha_bar_t).sqrt() * eps"),
]:
    signal, noise = old.split(" + ")
    signal, noise = signal.split(" * ")[1], noise.split(" * ")[1]
    for mistake, new in {
        "forward-no-roots": f"{bar} * {signal} + (1 - {bar}) * {noise}",
        "forward-signal-root": f"{bar} * {signal} + (1 - {bar}).sqrt() * {noise}",
        "forward-noise-root": f"{bar}.sqrt() * {signal} + (1 - {bar}) * {noise}",
        "forward-swapped": f"(1 - {bar}).sqrt() * {signal} + {bar}.sqrt() * {noise}",
    }.items():
        plant(mistake, function, old, new)
plant("forward-alpha", "q_sample", "var_scheduler.alphas_cumprod", "var_scheduler.alphas")
plant("forward-alpha", "add_noise", "self.alphas_cumprod", "self.alphas")
plant("forward-own-noise", "q_sample", "if noise is None:", "if True:")
plant("forward-own-noise", "add_noise", "if eps is None:", "if True:")
plant("float-t", "q_sample", "t.long().to(input.device)", "t.to(input.device)", "as F")
plant("no-pair", "add_noise", "return x_t, eps", "return x_t")
plant("no-pair", "add_noise", "return x_t, eps", "return x_t, torch.randn_like(x_0)")

# Reverse steps: variance
VARIANCE = "(1 - alpha_bar_t_prev) / (1 - alpha_bar_t) * beta_t"
BEFORE = "extract(self.var_scheduler.alphas, (t - 1).clamp(min=0), xt)"
for mistake, new in {
    "beta-for-small": "beta_t",
    "sigma-alpha": f"(1 - {BEFORE}) / (1 - alpha_t) * beta_t",
    "sigma-swapped": "(1 - alpha_bar_t) / (1 - alpha_bar_t_prev) * beta_t",
    "sigma-forward": "1 - alpha_bar_t",
    "no-noise": "0 * beta_t",
}.items():
    plant(mistake, "p_sample", VARIANCE, new)
plant("sigma-not-rooted", "p_sample", "var.sqrt()", "var")
plant("noise-at-0", "p_sample", "mask * var", "var")
plant("uniform-noise", "p_sample", "torch.randn_like", "torch.rand_like")
plant("fixed-device", "p_sample", "torch.randn_like(xt)", "torch.randn(xt.shape)")
SIGMA = "extract(self.sigmas, t, x_t)"
for name in "noise", "x0", "mean":
    function = f"step_predict_{name}"
    plant("sigma-not-rooted", function, SIGMA, f"{SIGMA} ** 2")
    plant("beta-for-small", function, SIGMA, "extract(self.betas, t, x_t).sqrt()")
    plant("uniform-noise", function, "torch.randn_like", "torch.rand_like")
    plant("fixed-device", function, "torch.randn_like(x_t)", "torch.randn(x_t.shape)")
    plant("no-noise", function, "torch.randn_like(x_t)", "torch.zeros_like(x_t)")
AT_0 = "(extract(self.sigmas, t, x_t) if t > 0 else extract(self.betas, t, x_t).sqrt())"
of_both_types = "((1 - self.bar_prev(t, x_t)) / (1 - alpha_bar_t) * beta_t)"
plant("sigma-not-rooted", "step_predict_noise", SIGMA, of_both_types)
plant("noise-at-0", "step_predict_mean", "if t > 0", "if True", None, ("def step_predict_mean(", SIGMA, AT_0))
plant("noise-at-0", "step_predict_x0", SIGMA, AT_0, None, ("def step_predict_x0(", "if t == 0", "if False"))
always = ("sigma_type", 'if sigma_type == "small":', "if True:")
plant("small-for-large", "sigmas", "var = self.betas", "var = var", "if sigma_type", always)
in_init = "super().__init__(num_train_timesteps, beta_1"
plant("large-for-small", "sigmas", 'if sigma_type == "small"', "if False", in_init)
plant("sigmas-not-rooted", "sigmas", "var**0.5", "var", "sigma_type")

# Means of predicted noise, in a step and in a loss
for mistake, new in {
    "mean-no-1/sqrt(alpha)": "x - b / (1 - ab).sqrt() * e",
    "mean-1/alpha": "(x - b / (1 - ab).sqrt() * e) / a",
    "mean-1/sqrt(alpha-bar)": "(x - b / (1 - ab).sqrt() * e) / ab.sqrt()",
    "mean-alpha-under-root": "(x - b / (1 - a).sqrt() * e) / a.sqrt()",
    "mean-no-root": "(x - b / (1 - ab) * e) / a.sqrt()",
    "mean-plus": "(x + b / (1 - ab).sqrt() * e) / a.sqrt()",
    "mean-brackets": "x / a.sqrt() - b / (1 - ab).sqrt() * e",
    "mean-printed-brackets": "1 / a.sqrt() * (x - b / (1 - a).sqrt()) * e",
    "mean-is-x0": "(x - (1 - ab).sqrt() * e) / ab.sqrt()",
    "clip-x0-of-noise": "p.sqrt() * b / (1 - ab) * ((x - (1 - ab).sqrt() * e) / ab.sqrt()).clamp(-1, 1)"
    " + a.sqrt() * (1 - p) / (1 - ab) * x",
}.items():
    one = "torch.where(t.reshape(-1, 1) > 0, alpha_bar_t_prev, torch.ones(()))"
    names = f"x, e, b, a, ab, p = xt, eps, beta_t, alpha_t, alpha_bar_t, {one}; mean = "
    plant(mistake, "p_sample", "mean = (xt - eps_factor * eps) / alpha_t.sqrt()", names + new)
    names = "x, e, b, a, ab, p = x_t, eps_theta, beta_t, alpha_t, alpha_bar_t, self.bar_prev(t, x_t); mean = "
    old = "mean = 1 / alpha_t.sqrt() * (x_t - beta_t / (1 - alpha_bar_t).sqrt() * eps_theta)"
    plant(mistake, "step_predict_noise", old, names + new)
    old = "true_mean = ab_prev.sqrt() * b / (1 - ab) * x0 + a.sqrt() * (1 - ab_prev) / (1 - ab) * x_t"
    if mistake not in ("mean-brackets", "mean-is-x0", "clip-x0-of-noise"):
        plant(f"loss-{mistake}", "get_loss_mean", old, f"x, e, p = x_t, noise, ab_prev; true_mean = {new}")

# Means of x_0, in a step and in a loss
for mistake, c0, ct in [
    ("eq7-swapped", "a.sqrt() * (1 - p) / (1 - ab)", "p.sqrt() * b / (1 - ab)"),
    ("clamped-t-prev", "c.sqrt() * b / (1 - ab)", "a.sqrt() * (1 - c) / (1 - ab)"),
    ("eq7-bars-swapped", "ab.sqrt() * b / (1 - c)", "a.sqrt() * (1 - ab) / (1 - c)"),
    ("eq7-no-roots", "p * b / (1 - ab)", "a * (1 - p) / (1 - ab)"),
    ("eq7-bar-for-prev", "ab.sqrt() * b / (1 - ab)", "a.sqrt() * (1 - ab) / (1 - ab)"),
    ("eq7-bar-for-alpha", "p.sqrt() * b / (1 - ab)", "ab.sqrt() * (1 - p) / (1 - ab)"),
]:
    c = "extract(self.alphas_cumprod, max(int(t) - 1, 0), x_t)"
    names = f"b, a, ab, p, c = beta_t, alpha_t, alpha_bar_t, alpha_bar_prev, {c}; x0_mean = "
    plant(mistake, "step_predict_x0", "x0_mean = c0 * x0_pred + ct * x_t", f"{names}{c0} * x0_pred + {ct} * x_t")
    names = "p, c = ab_prev, extract(sched.alphas_cumprod, (t - 1).clamp(min=0), x0); true_mean = "
    plant(mistake, "get_loss_mean", old, f"{names}{c0} * x0 + {ct} * x_t")
MEAN = "x0_mean = c0 * x0_pred + ct * x_t"
plant("eq7-bar-for-prev", "step_predict_x0", "c0 = alpha_bar_prev.sqrt()", "c0 = alpha_bar_t.sqrt()")
plant("clip-x0", "step_predict_x0", MEAN, "x0_mean = c0 * x0_pred.clamp(-1, 1) + ct * x_t")
plant("x0-as-mean", "step_predict_x0", MEAN, "x0_mean = x0_pred")
as_noise = "x0_mean = (x_t - beta_t / (1 - alpha_bar_t).sqrt() * x0_pred) / alpha_t.sqrt()"
plant("x0-as-noise", "step_predict_x0", MEAN, as_noise)
for each in "x0", "noise":
    twice = f"sample_prev = self.step_predict_{each}(x_t, t, mean_theta)"
    plant("mean-twice", "step_predict_mean", "sample_prev = mean_theta + sigma_t * noise", twice)

# Schedules
for mistake, old, new in [
    ("cosine-cap-beta-T", "clamp(0, 0.999)", "clamp(0, beta_T)"),
    ("cosine-cap-0.9999", "clamp(0, 0.999)", "clamp(0, 0.9999)"),
    ("cosine-no-cap", "betas.clamp(0, 0.999)", "betas"),
    ("cosine-floor", "clamp(0, 0.999)", "clamp(beta_1, 0.999)"),
    ("cosine-not-normalised", "alpha_bar[1:] / alpha_bar[:-1]", "alpha_bar[1:] / torch.cat([1 / f0, alpha_bar[1:-1]])"),
    ("cosine-T-points", "torch.arange(T + 1, dtype=torch.float64) / T", "torch.linspace(0, 1, T)"),
    ("cosine-no-square", "math.pi / 2) ** 2", "math.pi / 2)"),
    ("cosine-no-s", "s = 0.008", "s = 0"),
]:
    keep = [("elif mode", "alpha_bar = alpha_bar / alpha_bar[0]", "f0 = alpha_bar[:1]; alpha_bar = alpha_bar / f0")]
    plant(mistake, "cosine", old, new, 'elif mode == "cosine"', *keep * (mistake == "cosine-not-normalised"))
shifted = "alpha_bar / torch.cat([alpha_bar[:1], alpha_bar[:-1]])"
points = ('elif mode == "cosine"', "torch.arange(T + 1, dtype=torch.float64) / T", "torch.arange(T) / T")
plant("cosine-T-points", "cosine", "alpha_bar[1:] / alpha_bar[:-1]", shifted, 'elif mode == "cosine"', points)
plant("quad-roots", "quad", ", T) ** 2", ", T)", 'elif mode == "quad"')

# Losses
plant("target-compute_loss", "compute_loss", "mse_loss(eps_pred, noise)", "mse_loss(eps_pred, x0)")
plant("target-get_loss_noise", "get_loss_noise", "), noise)", "), x0)")
plant("target-get_loss_x0", "get_loss_x0", "x0_pred - x0", "x0_pred - noise")
plant("target-get_loss_x0", "get_loss_x0", "x0_pred - x0", "x0_pred - x_t")
plant("target-get_loss_mean", "get_loss_mean", "t), true_mean)", "t), x_t)")
plant("sum", "compute_loss", "pred, noise)", "pred, noise, reduction='sum')")
plant("sum", "get_loss_x0", "((x0_pred - x0) ** 2).mean()", "((x0_pred - x0) ** 2).flatten(1).sum(1).mean()")
plant("not-squared", "get_loss_x0", "((x0_pred - x0) ** 2)", "(x0_pred - x0).abs()")
plant("not-squared", "get_loss_noise", "F.mse_loss", "F.l1_loss")
plant("clean-input", "compute_loss", "self.network(xt, t)", "self.network(x0, t)")
plant("unpaired-noise", "compute_loss", "q_sample(x0, t, noise)", "q_sample(x0, t)")
plant("unpaired-noise", "compute_loss", "mse_loss(eps_pred, noise)", "mse_loss(eps_pred, torch.randn_like(x0))")
plant("unpaired-noise", "get_loss_noise", "), noise)", "), torch.randn_like(x0))")
eq_11 = "true_mean = (x_t - b / (1 - ab).sqrt() * torch.randn_like(x0)) / a.sqrt()"
plant("loss-unpaired-noise", "get_loss_mean", "true_mean = ", f"{eq_11}; unused = ")
plant("t-from-1", "compute_loss", "randint(0, T", "randint(1, T")
plant("t-from-1", "compute_loss", "randint(0, T", "randint(1, T + 1")
plant("t-too-narrow", "compute_loss", "randint(0, T", "randint(0, T // 2")
plant("one-t", "compute_loss", "size=(batch_size,))", "size=(1,)).repeat(batch_size)")
plant("one-t", "get_loss_noise", "uniform_sample_t(x0.shape[0], self.device)", "uniform_sample_t(1, self.device)")
plant("loss-detached", "get_loss_x0", "x0_pred = self.network(x_t, t)", "x0_pred = self.network(x_t, t).detach()")

# Loops
TIMESTEPS = "self.var_scheduler.timesteps"
for mistake, old, new in [
    ("loop-upwards", TIMESTEPS, f"{TIMESTEPS}.flip(0)"),
    ("loop-without-0", TIMESTEPS, f"{TIMESTEPS}[:-1]"),
    ("loop-without-0", TIMESTEPS, f"{TIMESTEPS} + 1"),
    ("loop-late", TIMESTEPS, f"{TIMESTEPS}[1:]"),
]:
    plant(mistake, "p_sample_loop", old, new)
    plant(mistake, "sample", old, new)
plant("loop-from-zeros", "p_sample_loop", "torch.randn", "torch.zeros")
plant("loop-from-zeros", "sample", "torch.randn", "torch.ones")
fed = ("def p_sample_loop", "pred = x", "pred = y")
plant("loop-not-fed", "p_sample_loop", "x = self.p_sample", "y = self.p_sample", None, fed)
plant("loop-other-result", "p_sample_loop", "x0_pred = x", "x0_pred = 2 * x")
plant("loop-gradient", "p_sample_loop", "@torch.no_grad()", "", "return x_t_prev")
plant("fixed-device", "p_sample_loop", ".to(self.device)", "")
plant("fixed-device", "sample", ".to(self.device)", "")
plant("loop-from-zeros", "sample", "torch.randn", "torch.rand")
plant("trajectory", "sample", "return traj if", "return traj[1:] if")

# DDIM, dispatch
plant("ddim-clamp", "ddim_p_sample", "torch.ones_like(ab)", "extract(self.var_scheduler.alphas_cumprod, 0 * t, xt)")
plant("ddim-direction", "ddim_p_sample", "(1 - ab_prev - var).sqrt()", "(1 - ab_prev).sqrt()")
plant("ddim-sigma-root", "ddim_p_sample", "var.sqrt() * torch", "var * torch")
plant("ddim-sigma", "ddim_p_sample", "(1 - ab / ab_prev)", "(ab_prev / ab - 1)")
plant("ddim-loop", "ddim_p_sample_loop", "in zip(timesteps, prev_timesteps)", "in zip(timesteps, timesteps)")
for name, other in ("noise", "x0"), ("x0", "noise"), ("mean", "x0"):
    plant(f"dispatch-{name}", "step", f".step_predict_{name}", f".step_predict_{other}", 'if predictor == "noise"')
    plant(f"dispatch-{name}", "get_loss", f".get_loss_{name}", f".get_loss_{other}", 'if self.predictor == "noise"')
to_noise = "eps = (x_t - alpha_bar_t.sqrt() * x0_pred) / (1 - alpha_bar_t)"
plant("x0-to-noise", "step_predict_x0", MEAN, f"{to_noise}; {as_noise.replace('x0_pred', 'eps')}")
plant("forward-noise-root", "q_sample", "(1 - alphas_prod_t).sqrt()", "(1 - alphas_prod_t.sqrt())")
plant("not-squared", "compute_loss", "F.mse_loss", "F.smooth_l1_loss")
