"""The schedules, the forward process and the reverse steps, as identities."""

import ast

import numpy as np
import pytest
import torch

from conftest import ROOT
from oracles import alpha_bars, alpha_bars_by_definition, betas_by_definition, eq_7, max_difference
from oracles import product_of_gaussians as product
from scheduler import MODES, PREDICTORS, BaseScheduler, DDPMScheduler, as_timesteps

T = 1000
TIMES = [0, 1, T // 2, T - 1]


@pytest.fixture(params=MODES)
def scheduler(request):
    return DDPMScheduler(T, 1e-4, 0.02, request.param)


@pytest.fixture
def x0():
    return torch.randn(4, 3, 8, 8)


# Schedules.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("T", [1, 2, 10, 1000])
def test_buffers_agree_with_their_definitions_in_float64(mode, T):
    assert all(buffer.isfinite().all() for buffer in DDPMScheduler(T, 1e-9, 1e-9, mode).buffers())
    small, large = (DDPMScheduler(T, 1e-4, 0.02, mode, sigma_type) for sigma_type in ("small", "large"))
    betas, alpha_bar = betas_by_definition(mode, T), alpha_bars_by_definition(mode, T)
    prev = np.concatenate([[1.0], alpha_bar[:-1]])
    expected = {
        "betas": betas,
        "alphas": 1 - betas,
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": prev,
        "sqrt_alphas_cumprod": np.sqrt(alpha_bar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - alpha_bar),
        "posterior_variance": betas * (1 - prev) / (1 - alpha_bar),
        "sigmas": np.sqrt(betas * (1 - prev) / (1 - alpha_bar)),
        "posterior_mean_coef_x0": np.sqrt(prev) * betas / (1 - alpha_bar),
        "posterior_mean_coef_xt": np.sqrt(1 - betas) * (1 - prev) / (1 - alpha_bar),
    }
    buffers = dict(small.named_buffers())
    assert set(buffers) == set(expected)
    for name, values in expected.items():
        assert buffers[name].dtype == torch.float32
        np.testing.assert_allclose(buffers[name].numpy(), values, rtol=3e-7, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(large.sigmas.numpy(), np.sqrt(betas), rtol=3e-7)
    np.testing.assert_allclose(small.alpha_bars, [*alpha_bar, 1.0], rtol=1e-12)
    assert small.timesteps.tolist() == list(range(T))[::-1] and small.num_train_timesteps == T


def sources(*files):
    """The source text of each function and class at the top of some files, and of the methods of the classes."""
    found = {}
    for text in ((ROOT / file).read_text(encoding="utf-8") for file in files):
        for node in ast.parse(text).body:
            for part in [node, *(node.body if isinstance(node, ast.ClassDef) else [])]:
                if isinstance(part, ast.FunctionDef | ast.ClassDef):
                    name = part.name if part is node else f"{node.name}.{part.name}"
                    found[name] = ast.get_source_segment(text, part)
    return found


@pytest.mark.parametrize("name", ["as_timesteps", "extract", "beta_schedule", "BaseScheduler.__init__"])
def test_the_schedule_is_the_same_text_in_both_tasks(name):
    """So the tests of this file hold for Task 1's schedule too."""
    task1 = sources("2d_plot_diffusion_todo/ddpm.py", "2d_plot_diffusion_todo/network.py")
    assert task1[name] == sources("image_diffusion_todo/scheduler.py")[name]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((10, 1e-4, 0.02, "sigmoid"), "'sigmoid'.*linear, quad, cosine"),
        ((10, 1e-4, 0.02, "linear", "medium"), "'medium'.*small or large"),
        ((0, 1e-4, 0.02), "num_train_timesteps.*0"),
        ((10, 1e-17, 0.02), "1e-17"),
        ((10, 0.02, 1e-4), "0.02 and 0.0001"),
        ((10, 1e-4, 1.0), "1.0"),
    ],
)
def test_invalid_arguments_are_value_errors(arguments, named):
    with pytest.raises(ValueError, match=named):
        DDPMScheduler(*arguments)


def test_training_timesteps_come_from_numpys_generator():
    np.random.seed(7)
    t = BaseScheduler(10, 1e-4, 0.02).uniform_sample_t(20_000)
    np.random.seed(7)
    assert t.tolist() == np.random.choice(np.arange(10), 20_000).tolist()
    assert t.dtype == torch.int64 and t.shape == (20_000,)


def test_timesteps_and_predictors_that_do_not_exist_are_errors(scheduler, x0):
    with pytest.raises(ValueError, match=r"'velocity'.*noise, x0, mean"):
        scheduler.step(x0, 9, x0, "velocity")
    for t in (T, -1, torch.tensor([0, 1, 2, T]), torch.tensor([-1, 0, 1, 2])):
        with pytest.raises(RuntimeError, match="out of bounds"):
            scheduler.add_noise(x0, t)
        with pytest.raises(RuntimeError, match="out of bounds"):
            scheduler.step(x0, t, x0, "noise")
    for t in (0.5, torch.tensor([1.0, 2.5]), torch.tensor(float("nan"))):
        with pytest.raises(ValueError, match="whole numbers"):
            as_timesteps(t, torch.device("cpu"))


# Forward.


@pytest.mark.parametrize("t", TIMES)
def test_add_noise_is_eq_4_and_draws_one_randn(scheduler, x0, t):
    torch.manual_seed(1)
    x_t, eps = scheduler.add_noise(x0, t)
    torch.manual_seed(1)
    assert torch.equal(eps, torch.randn(x0.shape))
    alpha_bar, _ = alpha_bars(scheduler, t)
    assert max_difference(x_t, alpha_bar**0.5 * x0.double() + (1 - alpha_bar) ** 0.5 * eps.double()) < 1e-6
    assert torch.equal(scheduler.add_noise(x0, t, eps)[0], x_t)


# One step back.


@pytest.mark.parametrize("sigma_type", ["small", "large"])
@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("mode", MODES)
def test_every_predictor_samples_the_posterior_of_bayes_rule_when_it_is_right(x0, mode, t, predictor, sigma_type):
    """At t = 0 that is the image, without noise; with alpha-bar_0 in place of 1, x0 and mean would double it."""
    scheduler = DDPMScheduler(T, 1e-4, 0.02, mode, sigma_type)
    x_t, eps = scheduler.add_noise(x0, t)
    torch.manual_seed(3)
    z = torch.randn_like(x0)
    mean, variance = product(scheduler, t, x0.double(), x_t.double())
    if sigma_type == "large" and t > 0:
        variance = betas_by_definition(mode, T)[t]
    assert max_difference(eq_7(scheduler, t, x0.double(), x_t.double())[0], mean) < 1e-7
    assert max_difference(scheduler.posterior_mean(x0, x_t, t), mean) < 2e-6
    net_out = {"noise": eps, "x0": x0, "mean": mean.float()}[predictor]
    torch.manual_seed(3)
    step = scheduler.step(x_t, t, net_out, predictor)
    # Eq. 11 divides by sqrt(alpha_t), 0.03 at the end of the cosine schedule.
    assert max_difference(step, mean + variance**0.5 * z) < 3e-5
    assert torch.equal(scheduler.step(x_t, t, net_out, predictor, z), step)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float32])
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_a_batch_may_mix_timesteps_in_every_form(x0, predictor, dtype):
    scheduler, net_out, z = DDPMScheduler(200), torch.randn_like(x0), torch.randn_like(x0)
    times = [0, 1, 50, 199]
    for t in (torch.tensor(times, dtype=dtype), torch.tensor(times, dtype=dtype)[:, None]):
        mixed = scheduler.step(x0, t, net_out, predictor, z)
        for i, t_i in enumerate(times):
            for alone in (t_i, torch.tensor(t_i, dtype=dtype), torch.tensor([t_i], dtype=dtype)):
                assert torch.allclose(mixed[i], scheduler.step(x0, alone, net_out, predictor, z)[i], atol=1e-5)
