"""Forward and reverse process as identities: against float64, closed forms and another library."""

from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

from ddpm import MODES, BaseScheduler, DiffusionModule
from network import SimpleNet
from oracles import (
    Ideal,
    Says,
    alpha_bars,
    eq_7,
    ideal_noise,
    max_difference,
    moments_of_ancestral_chain,
    product_of_gaussians,
)

T = 1000
TIMES = [0, 1, T // 2, T - 1]


@pytest.fixture(params=MODES)
def scheduler(request):
    return BaseScheduler(T, mode=request.param)


@pytest.fixture
def without_fresh_noise(monkeypatch):
    """Reverse steps give their mean."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)


# Forward process.


@pytest.mark.parametrize("t", TIMES)
def test_q_sample_is_eq_4(scheduler, t):
    x0, eps = torch.randn(64, 2), torch.randn(64, 2)
    alpha_bar, _ = alpha_bars(scheduler, t)
    expected = alpha_bar**0.5 * x0.double() + (1 - alpha_bar) ** 0.5 * eps.double()
    assert max_difference(DiffusionModule(None, scheduler).q_sample(x0, t, eps), expected) < 1e-6


@pytest.mark.parametrize("t", TIMES)
def test_q_sample_draws_the_moments_of_eq_4(scheduler, t):
    n = 200_000
    alpha_bar, _ = alpha_bars(scheduler, t)
    x0 = torch.tensor([1.0, -2.0]).expand(n, 2)
    xt = DiffusionModule(None, scheduler).q_sample(x0, t).double()
    standard_error = ((1 - alpha_bar) / n) ** 0.5
    assert max_difference(xt.mean(0), alpha_bar**0.5 * x0[0]) < 5 * standard_error + 1e-6
    assert max_difference(xt.var(0) / (1 - alpha_bar), torch.ones(2)) < 5 * (2 / n) ** 0.5


def test_q_sample_agrees_with_many_single_steps():
    """Eq. 4 is eq. 2 repeated: the closed form has the moments of the chain."""
    scheduler = BaseScheduler(20, mode="cosine")
    mean, variance = 1.0, 0.0
    for t in range(20):
        beta = scheduler.betas[t].item()
        mean, variance = (1 - beta) ** 0.5 * mean, (1 - beta) * variance + beta
        ddpm = DiffusionModule(None, scheduler)
        assert ddpm.q_sample(torch.ones(1, 1), t, torch.zeros(1, 1)).item() == pytest.approx(mean, rel=1e-5)
        assert ddpm.q_sample(torch.zeros(1, 1), t, torch.ones(1, 1)).item() == pytest.approx(variance**0.5, rel=1e-5)


def test_q_sample_takes_every_form_of_t():
    ddpm = DiffusionModule(None, BaseScheduler(T))
    x0, eps = torch.randn(3, 2), torch.randn(3, 2)
    reference = ddpm.q_sample(x0, torch.tensor([5, 5, 5]), eps)
    for t in (5, torch.tensor(5), torch.tensor([5]), torch.tensor([[5], [5], [5]]), torch.ones(3, 1) * 5):
        assert torch.equal(ddpm.q_sample(x0, t, eps), reference)


# Loss.


def test_loss_is_0_for_the_exact_noise_and_1_for_none(scheduler):
    class Exact(nn.Module):
        """Knows that all data sit at the origin, so x_t is noise and nothing else."""

        def forward(self, x, t):
            return x / scheduler.one_minus_alphas_cumprod[t, None].sqrt()

    x0 = torch.zeros(20_000, 2)
    assert DiffusionModule(Exact(), scheduler).compute_loss(x0).item() < 1e-10
    zero = DiffusionModule(Says(torch.zeros(20_000, 2)), scheduler).compute_loss(x0)
    assert zero.item() == pytest.approx(1, abs=5 * (2 / 40_000) ** 0.5)


@pytest.mark.parametrize("batch_size", [1, 7, 128])
def test_timesteps_are_spread_by_the_power_law_over_the_whole_range(batch_size):
    ddpm = DiffusionModule(None, BaseScheduler(10))
    t = torch.cat([ddpm.draw_timesteps(batch_size) for _ in range(20_000 // batch_size)])
    edges = (torch.arange(11) / 10) ** (1 / 1.5)
    share = torch.bincount(t, minlength=10) / len(t)
    assert len(share) == 10
    assert (share - edges.diff()).abs().max() < 5 * (0.25 / len(t)) ** 0.5


def test_loss_asks_the_network_at_the_timesteps_that_made_the_noise(scheduler):
    class Listens(nn.Module):
        def forward(self, x, t):
            self.x, self.t = x, t
            return torch.zeros_like(x)

    ddpm = DiffusionModule(Listens(), scheduler)
    ddpm.compute_loss(torch.full((50_000, 2), 3.0))
    # Data at 3: x_t has mean 3 sqrt(alpha-bar_t), which gives away the t that made it.
    for part in ddpm.network.t.argsort().chunk(3):
        mean = 3 * scheduler.alphas_cumprod[ddpm.network.t[part]].sqrt().mean()
        assert ddpm.network.x[part].mean().item() == pytest.approx(mean.item(), abs=5 / len(part) ** 0.5)


def test_loss_gives_every_parameter_a_finite_gradient():
    ddpm = DiffusionModule(SimpleNet(2, 2, [128] * 3, T), BaseScheduler(T))
    ddpm.compute_loss(torch.randn(32, 2)).backward()
    for name, parameter in ddpm.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


# One reverse step.


@pytest.mark.parametrize("t", TIMES)
def test_step_mean_is_the_posterior_mean_when_the_noise_is_known(scheduler, t, without_fresh_noise):
    """Eq. 11 at the true noise is eq. 7 at the true x_0, and that is Bayes' rule."""
    x0, eps = torch.randn(64, 2).double(), torch.randn(64, 2).double()
    alpha_bar, _ = alpha_bars(scheduler, t)
    xt = alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * eps
    x0_again = (xt - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5  # eq. 15
    bayes, _ = product_of_gaussians(scheduler, t, x0, xt)
    assert max_difference(eq_7(scheduler, t, x0_again, xt)[0], bayes) < 1e-7
    step = DiffusionModule(Says(eps.float()), scheduler).p_sample(xt.float(), t)
    assert max_difference(step, bayes) < 2e-5


@pytest.mark.parametrize("t", TIMES)
def test_step_variance_is_the_posterior_variance(scheduler, t, monkeypatch):
    xt = torch.zeros(4, 2)
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    step = DiffusionModule(Says(xt), scheduler).p_sample(xt, t)
    _, variance = product_of_gaussians(scheduler, t, xt.double(), xt.double())
    assert max_difference(step.square(), torch.full((4, 2), variance)) <= 1e-6 * variance
    assert variance == pytest.approx(eq_7(scheduler, t, xt, xt)[1], rel=1e-6)


def test_last_step_gives_back_the_data_exactly_and_adds_no_noise(scheduler):
    """The trap: with alpha-bar before step 0 taken for alpha-bar_0, this doubles x_0."""
    x0, eps = torch.randn(64, 2), torch.randn(64, 2)
    ddpm = DiffusionModule(Says(eps), scheduler)
    x1 = ddpm.q_sample(x0, 0, eps)
    assert max_difference(ddpm.p_sample(x1, 0), x0) < 1e-6
    assert torch.equal(ddpm.p_sample(x1, 0), ddpm.p_sample(x1, 0))
    assert max_difference(ddpm.ddim_p_sample(x1, 0, -1), x0) < 1e-6


def test_step_draws_noise_once_with_the_shape_of_xt():
    scheduler = BaseScheduler(T)
    xt = torch.randn(5, 2)
    ddpm = DiffusionModule(Says(torch.randn(5, 2)), scheduler)
    torch.manual_seed(1)
    step = ddpm.p_sample(xt, 500)
    after = torch.randn(3)
    torch.manual_seed(1)
    z = torch.randn(5, 2)
    assert torch.equal(after, torch.randn(3))
    torch.manual_seed(2)
    z_other = torch.randn(5, 2)
    torch.manual_seed(2)
    step_other = ddpm.p_sample(xt, 500)
    assert torch.allclose(step - step_other, scheduler.posterior_variance[500].sqrt() * (z - z_other), atol=1e-6)


def test_step_takes_every_form_of_t_and_a_different_t_for_each_point(without_fresh_noise):
    ddpm = DiffusionModule(SimpleNet(2, 2, [16], T), BaseScheduler(T))
    xt = torch.randn(3, 2)
    reference = ddpm.p_sample(xt, torch.tensor([7, 7, 7]))
    for t in (7, torch.tensor(7), torch.tensor([7]), torch.tensor([[7]] * 3), torch.full((3, 1), 7.0)):
        assert torch.allclose(ddpm.p_sample(xt, t), reference, atol=1e-6)
    mixed = ddpm.p_sample(xt, torch.tensor([0, 7, 999]))
    for i, t in enumerate([0, 7, 999]):
        assert torch.allclose(mixed[i], ddpm.p_sample(xt, t)[i], atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "theirs"), [("linear", "linear"), ("quad", "scaled_linear"), ("cosine", "squaredcos_cap_v2")]
)
@pytest.mark.parametrize("t", TIMES)
def test_step_agrees_with_diffusers(mode, theirs, t):
    xt, eps = torch.randn(8, 2), torch.randn(8, 2)
    other = diffusers.DDPMScheduler(
        T, beta_start=1e-4, beta_end=0.02, beta_schedule=theirs, variance_type="fixed_small", clip_sample=False
    )
    torch.manual_seed(3)
    expected = other.step(eps, t, xt).prev_sample
    torch.manual_seed(3)
    step = DiffusionModule(Says(eps), BaseScheduler(T, mode=mode)).p_sample(xt, t)
    # They compute in float32 and go through x_0, which the smallest alpha-bars blow up.
    assert max_difference(step, expected) < 5e-4 * expected.abs().max()


# DDIM steps.


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("t", [19, 499, 999])
def test_ddim_step_agrees_with_diffusers(t, eta):
    xt, eps = torch.randn(8, 2), torch.randn(8, 2)
    other = diffusers.DDIMScheduler(T, beta_start=1e-4, beta_end=0.02, clip_sample=False, set_alpha_to_one=True)
    other.set_timesteps(50)
    torch.manual_seed(3)
    expected = other.step(eps, t, xt, eta=eta).prev_sample
    torch.manual_seed(3)
    step = DiffusionModule(Says(eps), BaseScheduler(T)).ddim_p_sample(xt, t, t - 20, eta)
    assert max_difference(step, expected) < 5e-4


@pytest.mark.parametrize("t", TIMES)
def test_ddim_with_eta_1_and_no_skip_is_ddpm(scheduler, t):
    ddpm = DiffusionModule(SimpleNet(2, 2, [16], T), scheduler)
    xt = torch.randn(64, 2)
    torch.manual_seed(3)
    expected = ddpm.p_sample(xt, t)
    torch.manual_seed(3)
    assert max_difference(ddpm.ddim_p_sample(xt, t, t - 1, eta=1.0), expected) < 1e-3 * expected.abs().max()


def test_ddim_without_noise_moves_along_q(scheduler):
    """With the true noise, a deterministic jump from x_t lands on the x_s of the same x_0 and eps."""
    x0, eps = torch.randn(16, 2), torch.randn(16, 2)
    ddpm = DiffusionModule(Says(eps), scheduler)
    for t, s in [(900, 899), (900, 300), (500, 0), (1, 0)]:
        jump = ddpm.ddim_p_sample(ddpm.q_sample(x0, t, eps), t, s)
        assert max_difference(jump, ddpm.q_sample(x0, s, eps)) < 1e-4


# Whole chains.


def test_ddpm_chain_turns_noise_into_the_gaussian_data(scheduler):
    m, s, n = 1.5, 0.5, 20_000
    mean, variance = moments_of_ancestral_chain(scheduler, m, s)
    assert mean == pytest.approx(m, abs=0.02) and variance == pytest.approx(s**2, rel=0.06)

    x = DiffusionModule(Ideal(scheduler, m, s), scheduler).p_sample_loop((n, 2)).double()
    assert x.mean().item() == pytest.approx(mean, abs=5 * (variance / (2 * n)) ** 0.5)
    assert x.var().item() == pytest.approx(variance, rel=5 * (2 / (2 * n)) ** 0.5)


@pytest.mark.parametrize("num_steps", [1, 7, 50, 1000])
def test_deterministic_ddim_chain_follows_the_exact_map(scheduler, num_steps):
    m, s = 1.5, 0.5
    ddpm = DiffusionModule(Ideal(scheduler, m, s), scheduler)
    torch.manual_seed(4)
    x = ddpm.ddim_p_sample_loop((100, 2), num_steps)

    torch.manual_seed(4)
    expected = torch.randn(100, 2).double()
    times = np.rint(np.linspace(T - 1, -1, num_steps + 1)).astype(int)
    for t, t_prev in pairwise(times):
        alpha_bar, _ = alpha_bars(scheduler, t)
        alpha_bar_prev = 1.0 if t_prev < 0 else alpha_bars(scheduler, t_prev)[0]
        eps = ideal_noise(ddpm.var_scheduler, t, expected, m, s)
        x0 = (expected - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
        expected = alpha_bar_prev**0.5 * x0 + (1 - alpha_bar_prev) ** 0.5 * eps
    assert max_difference(x, expected) < 5e-3
    if num_steps == 1000:
        assert x.mean().item() == pytest.approx(m, abs=0.15) and x.std().item() == pytest.approx(s, rel=0.25)


def test_ddim_chain_with_noise_has_the_variance_of_the_data(scheduler):
    m, s, n = 1.5, 0.5, 20_000
    x = DiffusionModule(Ideal(scheduler, m, s), scheduler).ddim_p_sample_loop((n, 2), 500, eta=1.0)
    assert x.mean().item() == pytest.approx(m, abs=0.03)
    assert x.var().item() == pytest.approx(s**2, rel=0.1)


def test_eta_reaches_every_step_of_the_ddim_chain():
    ddpm = DiffusionModule(SimpleNet(2, 2, [16], 100), BaseScheduler(100))
    torch.manual_seed(4)
    x = ddpm.ddim_p_sample_loop((5, 2), 4, eta=0.7)
    torch.manual_seed(4)
    expected = torch.randn(5, 2)
    for t, t_prev in pairwise([99, 74, 49, 24, -1]):
        expected = ddpm.ddim_p_sample(expected, t, t_prev, 0.7)
    assert torch.equal(x, expected)


@pytest.mark.parametrize(
    ("t", "t_prev", "eta", "words"),
    [(3, 7, 0.0, "t_prev must be less"), (3, 3, 1.0, "t_prev must be less"), (3, 2, 2.0, "eta"), (3, 2, -1.0, "eta")],
)
def test_bad_ddim_steps_are_named(t, t_prev, eta, words):
    with pytest.raises(ValueError, match=words):
        DiffusionModule(Says(torch.zeros(2, 2)), BaseScheduler(20)).ddim_p_sample(torch.zeros(2, 2), t, t_prev, eta)


def test_a_network_of_fewer_timesteps_than_the_schedule_is_refused():
    with pytest.raises(ValueError, match="the network knows 5 timesteps, the schedule has 10"):
        DiffusionModule(SimpleNet(2, 2, [4], 5), BaseScheduler(10))


def test_trajectory_runs_from_noise_to_the_samples():
    ddpm = DiffusionModule(SimpleNet(2, 2, [8], 20), BaseScheduler(20))
    torch.manual_seed(5)
    samples = ddpm.p_sample_loop((6, 2))
    torch.manual_seed(5)
    traj = ddpm.p_sample_loop((6, 2), return_traj=True)
    assert len(traj) == 21
    assert torch.equal(traj[-1], samples)
    torch.manual_seed(5)
    assert torch.equal(traj[0], torch.randn(6, 2))


def test_sampling_keeps_no_graph():
    ddpm = DiffusionModule(SimpleNet(2, 2, [8], 20), BaseScheduler(20))
    assert not ddpm.p_sample_loop((6, 2)).requires_grad
    assert not ddpm.ddim_p_sample_loop((6, 2), 5).requires_grad


@pytest.mark.parametrize(
    ("steps", "eta", "words"),
    [(0, 0.0, "must be in 1..20, got 0"), (21, 0.0, "got 21"), (5, -0.1, "eta must be"), (5, 1.5, "got 1.5")],
)
def test_bad_ddim_settings_are_named(steps, eta, words):
    ddpm = DiffusionModule(SimpleNet(2, 2, [8], 20), BaseScheduler(20))
    with pytest.raises(ValueError, match=words):
        ddpm.ddim_p_sample_loop((6, 2), steps, eta)
