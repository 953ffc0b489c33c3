"""Forward and reverse process as identities: against float64, closed forms and another library."""

from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

from ddpm import MODES, BaseScheduler, DiffusionModule
from network import SimpleNet
from oracles import Ideal, Says, alpha_bars, ideal_noise, max_difference
from oracles import moments_of_ancestral_chain as moments
from oracles import product_of_gaussians as bayes

T = 1000
TIMES = [0, 1, T // 2, T - 1]


@pytest.fixture(params=MODES)
def scheduler(request):
    return BaseScheduler(T, mode=request.param)


def seeded(function, *arguments):
    """The function's result from one fixed random state."""
    torch.manual_seed(3)
    return function(*arguments)


@pytest.mark.parametrize("t", TIMES)
def test_q_sample_is_eq_4(scheduler, t):
    x0, eps = torch.randn(64, 2), seeded(torch.randn, 64, 2)
    alpha_bar, _ = alpha_bars(scheduler, t)
    expected = alpha_bar**0.5 * x0.double() + (1 - alpha_bar) ** 0.5 * eps.double()
    ddpm = DiffusionModule(None, scheduler)
    assert max_difference(ddpm.q_sample(x0, t, eps), expected) < 1e-6
    assert torch.equal(seeded(ddpm.q_sample, x0, t), ddpm.q_sample(x0, t, eps))


@pytest.mark.parametrize("method", ["q_sample", "p_sample"])
def test_every_form_of_t_is_accepted_and_a_different_t_for_each_point(method):
    step = getattr(DiffusionModule(SimpleNet(2, 2, [16], T), BaseScheduler(T)), method)
    x = torch.randn(3, 2)
    reference = seeded(step, x, torch.tensor([7, 7, 7]))
    for t in (7, torch.tensor(7), torch.tensor([7]), torch.tensor([[7]] * 3), torch.full((3, 1), 7.0)):
        assert torch.allclose(seeded(step, x, t), reference, atol=1e-6)
    mixed = seeded(step, x, torch.tensor([0, 7, 999]))
    for i, t in enumerate([0, 7, 999]):
        assert torch.allclose(mixed[i], seeded(step, x, t)[i], atol=1e-5)


def test_loss_is_0_for_the_exact_noise_and_1_for_a_prediction_of_0(scheduler):
    class Exact(nn.Module):
        """For data at the origin, where x_t is scaled noise: right only at the t that made x_t."""

        def forward(self, x, t):
            return x / scheduler.sqrt_one_minus_alphas_cumprod[t, None]

    x0 = torch.zeros(20_000, 2)
    assert DiffusionModule(Exact(), scheduler).compute_loss(x0).item() < 1e-10
    zero = DiffusionModule(Says(x0), scheduler).compute_loss(x0)
    assert zero.item() == pytest.approx(1, abs=5 * (2 / 40_000) ** 0.5)


@pytest.mark.parametrize("batch_size", [1, 128])
def test_training_timesteps_follow_the_power_law_over_the_whole_range(batch_size):
    ddpm = DiffusionModule(None, BaseScheduler(10))
    t = torch.cat([ddpm.draw_timesteps(batch_size) for _ in range(20_000 // batch_size)])
    share = torch.bincount(t, minlength=10) / len(t)
    expected = ((torch.arange(11) / 10) ** (1 / 1.5)).diff()
    assert len(share) == 10 and (share - expected).abs().max() < 5 * (0.25 / len(t)) ** 0.5


@pytest.mark.parametrize("t", TIMES)
def test_reverse_step_samples_the_posterior_when_the_noise_is_known(scheduler, t):
    """One draw, of the shape of x_t. At t = 0 the step is x0 itself, which alpha-bar_0 in place of 1 would double."""
    x0, eps = torch.randn(64, 2).double(), torch.randn(64, 2).double()
    alpha_bar, _ = alpha_bars(scheduler, t)
    xt = alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * eps
    mean, variance = bayes(scheduler, t, x0, xt)
    step = seeded(DiffusionModule(Says(eps.float()), scheduler).p_sample, xt.float(), t)
    assert max_difference(step, mean + variance**0.5 * seeded(torch.randn, 64, 2)) < 2e-5


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("t", [19, 499, 999])
def test_ddim_step_agrees_with_diffusers(t, eta):
    xt, eps = torch.randn(8, 2), torch.randn(8, 2)
    other = diffusers.DDIMScheduler(T, beta_start=1e-4, beta_end=0.02, clip_sample=False, set_alpha_to_one=True)
    other.set_timesteps(50)
    expected = seeded(lambda: other.step(eps, t, xt, eta=eta)).prev_sample
    step = seeded(DiffusionModule(Says(eps), BaseScheduler(T)).ddim_p_sample, xt, t, t - 20, eta)
    assert max_difference(step, expected) < 5e-4


def test_ddpm_chain_turns_noise_into_gaussian_data(scheduler):
    m, s, n = 1.5, 0.5, 20_000
    mean, variance = moments(scheduler, m, s)
    assert mean == pytest.approx(m, abs=0.02) and variance == pytest.approx(s**2, rel=0.06)
    x = DiffusionModule(Ideal(scheduler, m, s), scheduler).p_sample_loop((n, 2)).double()
    assert x.mean().item() == pytest.approx(mean, abs=5 * (variance / (2 * n)) ** 0.5)
    assert x.var().item() == pytest.approx(variance, rel=5 * (2 / (2 * n)) ** 0.5)


@pytest.mark.parametrize("num_steps", [1, 7, 50, 1000])
def test_deterministic_ddim_chain_follows_the_exact_map(scheduler, num_steps):
    m, s = 1.5, 0.5
    x = seeded(DiffusionModule(Ideal(scheduler, m, s), scheduler).ddim_p_sample_loop, (100, 2), num_steps)
    expected = seeded(torch.randn, 100, 2).double()
    for t, t_prev in pairwise(np.rint(np.linspace(T - 1, -1, num_steps + 1)).astype(int)):
        alpha_bar, _ = alpha_bars(scheduler, t)
        alpha_bar_prev = 1.0 if t_prev < 0 else alpha_bars(scheduler, t_prev)[0]
        eps = ideal_noise(scheduler, t, expected, m, s)
        x0 = (expected - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
        expected = alpha_bar_prev**0.5 * x0 + (1 - alpha_bar_prev) ** 0.5 * eps
    assert max_difference(x, expected) < 5e-3


def test_trajectory_runs_from_noise_to_the_samples_without_a_graph():
    ddpm = DiffusionModule(SimpleNet(2, 2, [8], 20), BaseScheduler(20))
    samples, traj = seeded(ddpm.p_sample_loop, (6, 2)), seeded(ddpm.p_sample_loop, (6, 2), True)
    assert len(traj) == 21 and torch.equal(traj[-1], samples) and torch.equal(traj[0], seeded(torch.randn, 6, 2))
    assert not samples.requires_grad and not ddpm.ddim_p_sample_loop((6, 2), 5).requires_grad


@pytest.mark.parametrize(
    ("method", "arguments", "named"),
    [
        ("ddim_p_sample", (torch.zeros(2, 2), 3, 7), "t_prev"),
        ("ddim_p_sample", (torch.zeros(2, 2), 3, 2, 2.0), "eta.*2.0"),
        ("ddim_p_sample_loop", ((2, 2), 0), "1..20.*0"),
        ("ddim_p_sample_loop", ((2, 2), 21), "1..20.*21"),
    ],
)
def test_bad_ddim_settings_are_named(method, arguments, named):
    ddpm = DiffusionModule(Says(torch.zeros(2, 2)), BaseScheduler(20))
    with pytest.raises(ValueError, match=named):
        getattr(ddpm, method)(*arguments)


def test_a_network_of_fewer_timesteps_than_the_schedule_is_rejected():
    with pytest.raises(ValueError, match=r"5.*10"):
        DiffusionModule(SimpleNet(2, 2, [4], 5), BaseScheduler(10))
