"""The checks of Task 1, points: the network, x_t from x_0, the reverse step and its loop, the loss, DDIM."""

from functools import partial
from typing import Any

import numpy as np
import torch

from solution_check.formulas import Case, T, ddim_step
from solution_check.judge import Check, NotWritten, flag, method, numbers, shaped, timestep, written
from solution_check.probes import INPUTS, Solution, forward_cases, loop_cases, loss_cases, q_of_xt, step_cases
from solution_check.sandbox import Draws, Network


class Points(Solution):
    """A student's Task 1."""

    shape = (2,)

    def module(self, network: Network) -> Any:
        """Their DiffusionModule with the lab's schedule."""
        scheduler = self.make("ddpm", "BaseScheduler", T, beta_1=1e-4, beta_T=0.02, mode="linear")
        return self.make("ddpm", "DiffusionModule", network, scheduler)


def _time_enters(layer: torch.nn.Module, args: tuple, kwargs: dict) -> int:
    """How the embedding of t enters a TimeLinear: 1 as a factor, 0 as a summand, 2 in another way.

    Also 1 where that cannot be told: there is no TimeEmbedding in it, or it has no influence.
    """
    embedded = []

    def scale(factor, _module, _args, out):
        embedded.append(out)
        return factor * out

    def output(factor):
        embeddings = [module for module in layer.modules() if type(module).__name__ == "TimeEmbedding"]
        hooks = [module.register_forward_hook(partial(scale, factor)) for module in embeddings]
        with Draws(), torch.no_grad():
            result = layer(*args, **kwargs)
        for hook in hooks:
            hook.remove()
        return numbers(result)

    none, once, twice = map(output, (0.0, 1.0, 2.0))
    if not embedded or np.allclose(none, once):
        return 1
    if np.allclose(none, 0, atol=1e-5) and np.allclose(twice, 2 * once, 1e-3, 1e-5):
        return 1
    e = numbers(embedded[-1])
    return 0 if e.size == once.size and np.allclose(once - none, e.reshape(once.shape), 1e-3, 1e-4) else 2


def network(solution: Solution, _: str) -> list[Case]:
    """SimpleNet with random weights: what it does with x and t, not what it has learned."""
    widths = [8, 16, 8]
    net = solution.make("network", "SimpleNet", 3, 5, widths, T)
    if not [*net.parameters()]:
        raise NotWritten
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5)
    net.eval()
    time_layers = []
    for layer in net.modules():
        if type(layer).__name__ == "TimeLinear":
            layer.register_forward_hook(lambda layer, *given: time_layers.append((layer, *given[:2])), with_kwargs=True)
    x = torch.randn(512, 3)

    def predict(x, t):
        with Draws():
            return numbers(written(net(x, torch.full((len(x),), t)), x))

    y = predict(x, T // 2)
    if not time_layers:
        solution.notes.append("has no TimeLinear layers: whether t enters each layer is not judged")
    timed = len(time_layers)
    ways = [_time_enters(*each) for each in time_layers[:timed]]
    enters = next((way for way in ways if way != 1), 1)
    a, b, c = (predict(v, T // 2) for v in (x, -3 * x, -x))  # affine in x: f(-x) = (f(x) + f(-3x)) / 2
    bend = np.abs(c - (a + b) / 2).max() / np.abs(a - b).max()
    change = max(np.abs(predict(x, t) - y).max() for t in (0, 1, T - 1)) / np.abs(y).max()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(10)  # so that only what an activation cuts off is small
    far = np.stack([predict(1e4 * x, t) for t in (0, T // 2, T - 1)])
    interval = f"[{far.min():.2g}, {far.max():.2g}]"
    both_signs = min(far.max(), -far.min()) >= 0.02 * np.abs(far).max() and np.abs(far).max() > 1.001
    return [
        flag("shape", f"the output has shape {list(y.shape)}, not {[512, 5]}", y.shape == (512, 5), "shape"),
        flag("t in each layer", f"{timed} of {len(widths) + 1} layers get t", timed in (0, len(widths) + 1), "time"),
        flag("t as a factor", "a TimeLinear does not multiply by the embedding of t", enters, "factor"),
        flag("activation between", "the output is linear in x", bend > 1e-4, "between"),
        flag("no activation at the end", f"all outputs are in {interval} for large x", both_signs, "end"),
        flag("depends on t", "the output is the same at all t", change > 1e-5, "depends"),
    ]


def q_sample(solution: Solution, _: str) -> list[Case]:
    return forward_cases(solution, method(solution.module(Network()), "q_sample"), float_t=True)


def p_sample(solution: Solution, _: str) -> list[Case]:
    network = Network()
    module = solution.module(network)

    def step(x, t, out):
        network.out = lambda _: out
        return method(module, "p_sample")(x, t)

    cases = step_cases(solution, step, "noise", ("an int", "a 0-d tensor", "a tensor [1]", "a tensor [B]"))
    if not network.calls:
        raise NotWritten("p_sample does not call the network")
    return cases


def p_sample_loop(solution: Solution, attempt: str) -> list[Case]:
    def run(module):
        return method(module, "p_sample_loop")((5, 2))

    # Steps of 0.5 end far out, where a clamp would show.
    return loop_cases(solution.module, lambda module: module, "p_sample", run, (5, 2), attempt == "reference", 0.5)


def compute_loss(solution: Solution, attempt: str) -> list[Case]:
    def right_q_sample(module):
        module.q_sample = lambda x0, t, noise=None: q_of_xt(x0, t, torch.randn_like(x0) if noise is None else noise)

    helper = right_q_sample if attempt == "reference" else None
    return loss_cases(solution, solution.module, lambda module, x0: method(module, "compute_loss")(x0), "noise", helper)


def ddim_p_sample(solution: Solution, _: str) -> list[Case]:
    network = Network()
    module = solution.module(network)
    values = [(x, -out, z) for _, x, out, z in INPUTS]
    x, out, z = (solution.full(*map(float, column)) for column in zip(*values, strict=True))
    network.out = lambda _: out
    step, cases = method(module, "ddim_p_sample"), []
    for t, prev in ((980, 960), (500, 480), (19, -1)):
        for eta in (0.0, 1.0):
            with Draws(z=z):
                got = shaped(step(x, torch.tensor(t), torch.tensor(prev), eta), x)
            for row, inputs in zip(got, values, strict=True):
                cases.append(Case(f"eta = {eta:g}", f"t = {t}", row, partial(ddim_step, t, prev, *inputs, eta)))
    return cases


def ddim_p_sample_loop(solution: Solution, _: str) -> list[Case]:
    network, steps = Network(), []
    module = solution.module(network)

    def known_step(xt, t, t_prev, *_args, **_kwargs):
        steps.append((timestep(t), timestep(t_prev)))
        return 0.9 * xt

    module.ddim_p_sample = known_step
    with Draws():
        method(module, "ddim_p_sample_loop")((5, 2), 50)
    if not steps:
        raise NotWritten
    ts, prev = (list(column) for column in zip(*steps, strict=True))
    falls = len(ts) == 50 and ts[1:] == prev[:-1] and all(p < t for t, p in steps) and prev[-1] < 0
    where = f"{len(ts)} steps, t = {ts[0]:g}, ..., {ts[-1]:g} to {prev[-1]:g}"
    return [flag("order", where, falls and ts[0] >= T - 1 - T // 50, "steps")]


def training(solution: Solution, _: str) -> list[Case]:
    """The lab's training of the Swiss roll, 5000 steps, and the Chamfer distance of 2048 samples.

    The learning rate falls to 0, so that chance moves the distance less: at a constant rate right code reaches 28.
    """
    from sklearn.datasets import make_swiss_roll

    points = make_swiss_roll(100_000, noise=0.0, hole=True, random_state=0)[0][:, [0, 2]]
    points = torch.tensor((points - points.mean()) / points.std() * 2, dtype=torch.float32)
    module = solution.module(solution.make("network", "SimpleNet", 2, 2, [128, 128, 128], T))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5000)
    with Draws():
        for _ in range(5000):
            optimizer.zero_grad()
            module.compute_loss(points[torch.randint(len(points), (128,))]).backward()
            optimizer.step()
            schedule.step()
        samples = module.p_sample_loop((2048, 2))
    squared = torch.cdist(samples.detach(), points[:2048]) ** 2
    distance = float(squared.min(0).values.sum() + squared.min(1).values.sum())
    solution.notes.append(f"Chamfer distance {distance:.2f}")
    return [flag("Chamfer distance", f"{distance:.2f}, not below 20", distance < 20, "distance")]


STEP = "mean", "variance", "t = 0", "forms of t", "device"
LOSS = "target", "input", "gradient", "range of t", "a t for each sample"
LOOP = "order", "start", "chain", "result", "gradient", "device"
NETWORK = "shape", "t in each layer", "t as a factor", "activation between", "no activation at the end", "depends on t"
BOTH = "reference", "own"
CHECKS = [
    Check(1, "1", "SimpleNet", "network", NETWORK, network),
    Check(1, "2", "q_sample", "ddpm", ("formula", "t as float", "own noise"), q_sample),
    Check(1, "3", "p_sample", "ddpm", STEP, p_sample),
    Check(1, "4", "p_sample_loop", "ddpm", LOOP, p_sample_loop, BOTH),
    Check(1, "5", "compute_loss", "ddpm", LOSS, compute_loss, BOTH),
    Check(1, "-", "ddim_p_sample", "ddpm", ("eta = 0", "eta = 1"), ddim_p_sample, is_optional=True),
    Check(1, "-", "ddim_p_sample_loop", "ddpm", ("order",), ddim_p_sample_loop, is_optional=True),
]
TRAINING = Check(1, "5", "training", "ddpm", ("Chamfer distance",), training)
