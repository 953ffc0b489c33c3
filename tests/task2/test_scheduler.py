"""The schedules, the forward process and the reverse steps, as identities and against diffusers."""

import ast
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from oracles import (
    alpha_bars,
    alpha_bars_by_definition,
    betas_by_definition,
    eq_7,
    max_difference,
    product_of_gaussians,
)
from scheduler import MODES, PREDICTORS, BaseScheduler, DDPMScheduler, extract

ROOT = Path(__file__).parents[2]
T = 1000
TIMES = [0, 1, T // 2, T - 1]
THEIR_NAMES = {"linear": "linear", "quad": "scaled_linear", "cosine": "squaredcos_cap_v2"}


@pytest.fixture(params=MODES)
def scheduler(request):
    return DDPMScheduler(T, 1e-4, 0.02, request.param)


@pytest.fixture
def x0():
    return torch.randn(4, 3, 8, 8)


@pytest.fixture
def without_fresh_noise(monkeypatch):
    """Reverse steps give their mean."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)


def truth_for(predictor, x0, eps, mean):
    return {"noise": eps, "x0": x0, "mean": mean}[predictor]


# Schedules.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("T", [1, 2, 10, 1000])
def test_buffers_agree_with_their_definitions_in_float64(mode, T):
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
    assert small.timesteps.tolist() == list(range(T))[::-1]


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
    task1 = sources("2d_plot_diffusion_todo/ddpm.py", "2d_plot_diffusion_todo/network.py")
    assert task1[name] == sources("image_diffusion_todo/scheduler.py")[name]


@pytest.mark.parametrize("mode", MODES)
def test_schedules_agree_with_diffusers(mode):
    other = diffusers.DDPMScheduler(T, beta_start=1e-4, beta_end=0.02, beta_schedule=THEIR_NAMES[mode])
    torch.testing.assert_close(DDPMScheduler(T, 1e-4, 0.02, mode).betas, other.betas, rtol=2e-4, atol=1e-7)


def test_cosine_beta_is_capped_at_0_999_in_the_last_step_only():
    betas = DDPMScheduler(T, 1e-4, 0.02, "cosine").betas
    assert betas[-1] == torch.tensor(0.999)
    assert (betas < 0.999).sum() == T - 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((10, 1e-4, 0.02, "sigmoid"), "'sigmoid': choose one of linear, quad, cosine"),
        ((10, 1e-4, 0.02, "linear", "medium"), "'medium': choose small or large"),
        ((0, 1e-4, 0.02), "num_train_timesteps must be from 1"),
        ((10, 0.02, 1e-4), "got 0.02 and 0.0001"),
    ],
)
def test_invalid_arguments_are_value_errors(arguments, words):
    with pytest.raises(ValueError, match=words):
        DDPMScheduler(*arguments)


def test_training_timesteps_come_from_numpys_generator():
    scheduler = BaseScheduler(10, 1e-4, 0.02)
    np.random.seed(7)
    t = scheduler.uniform_sample_t(20_000)
    np.random.seed(7)
    assert t.tolist() == np.random.choice(np.arange(10), 20_000).tolist()
    assert t.dtype == torch.int64 and t.shape == (20_000,)
    assert (torch.bincount(t, minlength=10) - 2000).abs().max() < 5 * 2000**0.5


# Forward.


@pytest.mark.parametrize("t", TIMES)
def test_add_noise_is_eq_4(scheduler, x0, t):
    eps = torch.randn_like(x0)
    alpha_bar, _ = alpha_bars(scheduler, t)
    x_t, same_eps = scheduler.add_noise(x0, t, eps)
    assert same_eps is eps
    assert max_difference(x_t, alpha_bar**0.5 * x0.double() + (1 - alpha_bar) ** 0.5 * eps.double()) < 1e-6


def test_add_noise_draws_one_randn(scheduler, x0):
    torch.manual_seed(1)
    x_t, eps = scheduler.add_noise(x0, 500)
    torch.manual_seed(1)
    assert torch.equal(eps, torch.randn(x0.shape))
    assert torch.equal(x_t, scheduler.add_noise(x0, 500, eps)[0])


def test_double_precision_stays_double(scheduler, x0):
    x0 = x0.double()
    torch.manual_seed(1)
    x_t, eps = scheduler.add_noise(x0, 500)
    torch.manual_seed(1)
    assert torch.equal(eps, torch.randn(x0.shape, dtype=torch.float64))
    assert x_t.dtype == torch.float64
    alpha_bar, _ = alpha_bars(scheduler, 500)
    assert max_difference(x_t, alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * eps) < 1e-6
    for predictor in PREDICTORS:
        assert scheduler.step(x_t, 500, eps, predictor).dtype == torch.float64


@pytest.mark.parametrize("t", [-1, T, [0, 1, 2, -1], [0, 1, 2, T]])
def test_timesteps_that_do_not_exist_are_errors(scheduler, x0, t):
    t = torch.tensor(t)
    with pytest.raises(RuntimeError, match="out of bounds"):
        scheduler.add_noise(x0, t)
    for predictor in PREDICTORS:
        with pytest.raises(RuntimeError, match="out of bounds"):
            scheduler.step(x0, t, x0, predictor)


def test_every_form_of_t_is_accepted(scheduler, x0, without_fresh_noise):
    eps = torch.randn_like(x0)
    forms = (7, torch.tensor(7), torch.tensor([7]), torch.tensor([7] * 4), torch.full((4, 1), 7), torch.full((4,), 7.0))
    for t in forms:
        assert torch.equal(scheduler.add_noise(x0, t, eps)[0], scheduler.add_noise(x0, 7, eps)[0])
        for predictor in PREDICTORS:
            assert torch.equal(scheduler.step(x0, t, eps, predictor), scheduler.step(x0, 7, eps, predictor))
    with pytest.raises(ValueError, match="whole numbers"):
        extract(scheduler.betas, torch.tensor([0.5]), x0)


# One step back.


@pytest.mark.parametrize("t", TIMES)
def test_posterior_mean_is_bayes_rule(scheduler, x0, t):
    x_t, _ = scheduler.add_noise(x0, t)
    bayes, _ = product_of_gaussians(scheduler, t, x0.double(), x_t.double())
    assert max_difference(eq_7(scheduler, t, x0.double(), x_t.double())[0], bayes) < 1e-7
    assert max_difference(scheduler.posterior_mean(x0, x_t, t), bayes) < 2e-6


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("t", TIMES)
def test_every_predictor_steps_to_the_posterior_mean_when_it_is_right(scheduler, x0, t, predictor, without_fresh_noise):
    x_t, eps = scheduler.add_noise(x0, t)
    mean, _ = product_of_gaussians(scheduler, t, x0.double(), x_t.double())
    step = scheduler.step(x_t, t, truth_for(predictor, x0, eps, mean.float()), predictor)
    # Eq. 11 divides by sqrt(alpha_t), 0.03 at the end of the cosine schedule.
    assert max_difference(step, mean) < 3e-5


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_last_step_returns_the_image_without_noise(scheduler, x0, predictor):
    """With alpha-bar_0 in place of 1 before step 0, x0 and mean would double the image."""
    x_t, eps = scheduler.add_noise(x0, 0)
    step = scheduler.step(x_t, 0, truth_for(predictor, x0, eps, x0), predictor)
    assert max_difference(step, x0) < 1e-6


@pytest.mark.parametrize("sigma_type", ["small", "large"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("t", TIMES)
def test_noise_of_a_step_has_the_right_size(mode, sigma_type, t, x0, monkeypatch):
    scheduler = DDPMScheduler(T, 1e-4, 0.02, mode, sigma_type)
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    added = scheduler.step_predict_mean(x0, t, torch.zeros_like(x0))
    variance = product_of_gaussians(scheduler, t, 0.0, 0.0)[1] if sigma_type == "small" else scheduler.betas[t].item()
    expected = 0.0 if t == 0 else variance
    assert max_difference(added.square(), torch.full_like(x0, expected)) <= 1e-6 * expected


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_steps_draw_one_randn_like(scheduler, x0, predictor):
    net_out = torch.randn_like(x0)
    for t in (0, 500):
        torch.manual_seed(1)
        scheduler.step(x0, t, net_out, predictor)
        after = torch.randn(3)
        torch.manual_seed(1)
        torch.randn_like(x0)
        assert torch.equal(after, torch.randn(3))


def test_a_batch_may_mix_timesteps(scheduler, x0, without_fresh_noise):
    t = torch.tensor([0, 1, 500, 999])
    net_out = torch.randn_like(x0)
    for predictor in PREDICTORS:
        mixed = scheduler.step(x0, t, net_out, predictor)
        for i in range(4):
            alone = scheduler.step(x0[i : i + 1], int(t[i]), net_out[i : i + 1], predictor)
            assert torch.allclose(mixed[i : i + 1], alone, atol=1e-5)


def test_step_dispatches_by_name(scheduler, x0):
    net_out = torch.randn_like(x0)
    for predictor, method in [
        ("noise", scheduler.step_predict_noise),
        ("x0", scheduler.step_predict_x0),
        ("mean", scheduler.step_predict_mean),
    ]:
        torch.manual_seed(2)
        expected = method(x0, 9, net_out)
        torch.manual_seed(2)
        assert torch.equal(scheduler.step(x0, 9, net_out, predictor), expected)
    with pytest.raises(ValueError, match="'velocity': choose one of noise, x0, mean"):
        scheduler.step(x0, 9, net_out, "velocity")


@pytest.mark.parametrize(("predictor", "theirs"), [("noise", "epsilon"), ("x0", "sample")])
@pytest.mark.parametrize("sigma_type", ["small", "large"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("t", TIMES)
def test_steps_agree_with_diffusers(mode, sigma_type, predictor, theirs, t, x0):
    net_out = torch.randn_like(x0)
    other = diffusers.DDPMScheduler(
        T,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule=THEIR_NAMES[mode],
        prediction_type=theirs,
        variance_type=f"fixed_{sigma_type}",
        clip_sample=False,
    )
    torch.manual_seed(3)
    expected = other.step(net_out, t, x0).prev_sample
    torch.manual_seed(3)
    step = DDPMScheduler(T, 1e-4, 0.02, mode, sigma_type).step(x0, t, net_out, predictor)
    # They compute in float32 throughout.
    assert max_difference(step, expected) < 5e-4 * max(1.0, expected.abs().max().item())
