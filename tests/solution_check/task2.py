"""The checks of Task 2, images: schedules, x_t from x_0, the reverse steps, the losses, the sampling loop."""

from functools import partial
from typing import Any

import numpy as np
import torch

from solution_check.formulas import PROBES, Case, T, betas_by_definition, cosine_betas, schedule_at, small
from solution_check.judge import Check, NotWritten, call, flag, method, numbers, written
from solution_check.probes import MIDDLE, Solution, forward_cases, loop_cases, loss_cases, q_of_xt, step_cases
from solution_check.sandbox import Draws, Network
from solution_check.task1 import BOTH, LOOP, LOSS, STEP

PREDICTORS = "noise", "x0", "mean"
SAMPLES = 2, 3, 4, 4


class Images(Solution):
    """A student's Task 2."""

    shape = (3, 4, 4)

    def scheduler(self, mode: str = "linear", sigma_type: str = "small") -> Any:
        """Their DDPMScheduler with the lab's ends."""
        made = partial(self.make, "scheduler", "DDPMScheduler", T, beta_1=1e-4, beta_T=0.02, mode=mode)
        return made(sigma_type=sigma_type)

    def module(self, network: Network, predictor: str = "noise") -> Any:
        """Their DiffusionModule."""
        module = self.make("model", "DiffusionModule", network, self.scheduler(), predictor=predictor)
        module.predictor = predictor
        return module


def schedule(mode: str, solution: Solution, _: str) -> list[Case]:
    betas = numbers(written(solution.scheduler(mode).betas))
    formula = {
        "linear": lambda **_: betas_by_definition("linear", T),
        "quad": lambda betas=lambda: betas_by_definition("quad", T), **_: betas(),
        "cosine": cosine_betas,
    }[mode]
    return [Case("betas", "t = {}", betas, formula, 3e-4, 1e-6)]


def sigmas(solution: Solution, _: str) -> list[Case]:
    cases = []
    for kind, right in (("small", small), ("large", lambda q: q.beta)):
        got = getattr(solution.scheduler(sigma_type=kind), "sigmas", None)
        if got is None or len(got) != T:
            raise NotWritten
        for t in PROBES[1:]:
            formula = partial(_sigma, schedule_at(t), kind, right)
            cases.append(Case(kind, f"t = {t}", numbers(got[t]), formula))
    return cases


def _sigma(q, kind, right, root=np.sqrt, **parts):
    return root(parts.get(kind, right)(q))


def add_noise(solution: Solution, _: str) -> list[Case]:
    scheduler, pairs, noise = solution.scheduler(), [], []

    def x_t(x0, t, *eps):
        result = written(method(scheduler, "add_noise")(x0, t, *eps))
        is_pair = isinstance(result, tuple | list) and len(result) == 2
        x_t = written(result[0] if is_pair else result)
        noise.extend(eps)  # also what is drawn where none is given
        is_noise = is_pair and (eps or np.allclose(numbers(result[1]), numbers(noise[0]), atol=1e-5))
        pairs.append(is_noise and not any(torch.equal(each, result[1]) for each in (x0, x_t)))
        return x_t

    cases = forward_cases(solution, x_t)
    return [*cases, flag("returns x_t, eps", "the second result is not the noise", all(pairs), "pair")]


def reverse_step(predictor: str, solution: Solution, _: str) -> list[Case]:
    def step_of(scheduler):
        own = getattr(scheduler, f"step_predict_{predictor}", None)
        return own or (lambda x, t, out: method(scheduler, "step")(x, t, out, predictor))

    forms = "an int", "a 0-d tensor"
    cases = step_cases(solution, step_of(solution.scheduler()), predictor, forms)
    notes = list(solution.notes)
    large = step_cases(solution, step_of(solution.scheduler(sigma_type="large")), predictor, forms, "large")
    solution.notes[:] = notes
    large = [case for case in large if "z alone" in case.where]
    alone = [case for case in cases if "z alone" in case.where]
    ignored = all(np.allclose(a.got, b.got, 1e-3, 1e-6) for a, b in zip(alone, large, strict=True))
    if ignored and not all(case.holds() for case in large):  # judged with "small"
        if all(case.holds() for case in alone):  # what the handout's comments ask for
            solution.notes.append("uses the small variance for sigma_type large too")
        large = []
    return [*cases, *large]


def dispatch(prefix: str, solution: Solution, _: str) -> list[Case]:
    """`step` calls the `step_predict_...` of its predictor, `get_loss` the `get_loss_...`."""
    cases, x = [], solution.full(1.0)
    for predictor in PREDICTORS:
        called = []

        def note(name, *_args, called=called, **_kwargs):
            called.append(name)
            return x.mean()

        owner = solution.scheduler() if prefix == "step_predict" else solution.module(Network(), predictor)
        if hasattr(owner, f"{prefix}_{predictor}"):
            for each in PREDICTORS:
                setattr(owner, f"{prefix}_{each}", partial(note, each))
            with Draws():
                if prefix == "step_predict":
                    method(owner, "step")(x, MIDDLE, x, predictor)
                else:
                    method(owner, "get_loss")(x)
        else:
            called = [predictor]  # all in one function, where it is judged
        where = f"predictor {predictor} goes to {' and '.join(called) or 'none'}"
        cases.append(flag(predictor, where, called[:1] == [predictor], f"dispatch-{predictor}"))
    return cases


def get_loss(predictor: str, solution: Solution, attempt: str) -> list[Case]:
    def right_add_noise(module):
        def add_noise(x_0, t, eps=None, **other):
            eps = next(iter(other.values()), eps)
            eps = torch.randn_like(x_0) if eps is None else eps
            return q_of_xt(x_0, t, eps), eps

        module.var_scheduler.add_noise = add_noise

    def function(module, x0):
        own = getattr(module, f"get_loss_{predictor}", None) or method(module, "get_loss")
        return own(x0)

    helper = right_add_noise if attempt == "reference" else None
    return loss_cases(solution, lambda net: solution.module(net, predictor), function, predictor, helper)


def sample(solution: Solution, attempt: str) -> list[Case]:
    reference = attempt == "reference"

    def owner(module):
        return module.var_scheduler

    def run(module):
        return written(method(module, "sample")(SAMPLES[0]))

    cases = loop_cases(solution.module, owner, "step", run, SAMPLES, reference)
    module, z = solution.module(Network()), torch.ones(SAMPLES)
    steps = []

    def known_step(x, *_args, **_kwargs):
        steps.append((x, 0.99 * x))
        return steps[-1][1]

    if reference:
        owner(module).step = known_step
    with Draws(z=z):
        trajectory = call(module.sample, SAMPLES[0], return_traj=True)
    length = len(trajectory) if isinstance(trajectory, list | tuple) else -1
    calls = steps or module.network.calls
    wanted = len(calls) + 1
    x_T = calls[0][0].cpu() if calls else z
    is_whole = length == wanted and bool((trajectory[0].cpu() == x_T).all())
    if is_whole and reference:
        is_whole = bool((trajectory[-1].cpu() == steps[-1][1]).all())
    where = f"{length} tensors" if length != wanted else "the first is not x_T or the last not x_0"
    return [*cases, flag("trajectory", where, is_whole, "trajectory")]


CHECKS = [
    Check(2, "-", "linear", "scheduler", ("betas",), partial(schedule, "linear")),
    Check(2, "-", "quad", "scheduler", ("betas",), partial(schedule, "quad")),
    Check(2, "4", "cosine", "scheduler", ("betas",), partial(schedule, "cosine")),
    Check(2, "-", "sigmas", "scheduler", ("small", "large"), sigmas, is_optional=True),
    Check(2, "1", "add_noise", "scheduler", ("formula", "own noise", "returns x_t, eps"), add_noise),
    *[
        Check(2, "5", f"step_predict_{each}", "scheduler", (*STEP, "variance (large)"), partial(reverse_step, each))
        for each in PREDICTORS
    ],
    Check(2, "5", "step", "scheduler", PREDICTORS, partial(dispatch, "step_predict")),
    *[Check(2, "5", f"get_loss_{each}", "model", LOSS, partial(get_loss, each), BOTH) for each in PREDICTORS],
    Check(2, "5", "get_loss", "model", PREDICTORS, partial(dispatch, "get_loss")),
    Check(2, "-", "sample", "model", (*LOOP, "trajectory"), sample, BOTH),
]
