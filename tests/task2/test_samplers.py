"""DDIM and DPM-Solver++(2M) against DDPM, diffusers and the exact solution for Gaussian data, for all predictors."""

import diffusers
import numpy as np
import pytest
import torch

from model import DiffusionModule
from oracles import Ideal, alpha_bars, alpha_bars_by_definition, max_difference
from prediction import to_x0_and_eps
from samplers import METHODS, ImageNoise, ddim, dpm, sampling_timesteps
from scheduler import MODES, PREDICTORS, DDPMScheduler

T = 1000


@pytest.fixture(params=MODES)
def scheduler(request):
    return DDPMScheduler(T, 1e-4, 0.02, request.param)


def images():
    return torch.randn(2, 3, 4, 4, dtype=torch.float64)


def constant(scheduler, predictor, net_out):
    """`predict` of a network that always gives the same."""
    return lambda x_t, t: to_x0_and_eps(net_out, x_t, t, predictor, scheduler)


# Timesteps.


@pytest.mark.parametrize("method", ["ddim", "dpm"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 20, 50, 250, 995, 1000, None])
def test_timesteps_decrease_to_0_from_the_last_with_a_trace_of_the_image(scheduler, method, num_steps):
    t = np.array(sampling_timesteps(scheduler, method, num_steps))
    start = 994 if scheduler.config["mode"] == "cosine" else 999
    assert len(t) == min(num_steps or {"ddim": 50, "dpm": 20}[method], start + 1)
    assert t[0] == start and (num_steps == 1 or t[-1] == 0) and (np.diff(t) < 0).all()
    if method == "ddim" and len(t) > 2:
        assert np.ptp(np.diff(t)) <= 1
    if method == "dpm" and num_steps == 20:
        alpha_bar = alpha_bars_by_definition(scheduler.config["mode"], T)[t[:-3]]  # then lambda is coarse
        np.testing.assert_allclose(np.diff(0.5 * np.log(alpha_bar / (1 - alpha_bar))), 0.53, atol=0.15)


@pytest.mark.parametrize("method", ["ddim", "dpm"])
@pytest.mark.parametrize("num_steps", [2, 20, 900, 1000])
def test_chains_end_at_the_last_timestep_that_is_asked_for(scheduler, method, num_steps):
    t = np.array(sampling_timesteps(scheduler, method, num_steps, last_timestep=75))
    start = sampling_timesteps(scheduler, method)[0]
    assert (t[0], t[-1]) == (start, 75) and (np.diff(t) < 0).all() and len(t) == min(num_steps, start - 75 + 1)
    assert sampling_timesteps(scheduler, method, num_steps, last_timestep=start) == [start]


def test_timesteps_of_short_chains():
    for betas, start in ((0.01, 0.02), 2), ((0.9, 0.9999), 1), ((0.99999, 0.99999), 0):
        assert sampling_timesteps(DDPMScheduler(3, *betas), "ddim", 3)[0] == start
    assert [len(sampling_timesteps(DDPMScheduler(4, 1e-4, 0.02), method)) for method in METHODS] == [4, 4, 4]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("euler",), "sample_method"),
        (("ddpm", 50), "num_inference_steps"),
        (("dpm", 1001), "num_inference_steps"),
        (("dpm", 20, 0.5), "eta"),
        (("ddim", 20, float("nan")), "eta"),
        (("ddim", 20, 0, 1000), "last_timestep"),
        (("dpm", 20, 0, -1), "last_timestep"),
        (("ddpm", None, 0, 75), "last_timestep"),
        (("dpm", 1, 0, 75), "last_timestep"),
    ],
)
def test_settings_that_do_not_fit_are_errors_that_begin_with_the_argument(scheduler, arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        sampling_timesteps(scheduler, *arguments)


# Gaussian data, for which the ideal network and the solution are known.


def sample_chain(model, seed=1, **settings):
    torch.manual_seed(seed)
    return model.sample(2, return_traj=True, **settings)


def offset_and_slope(mode, m, s, sample_method, num_steps, last_timestep=0):
    """The ideal network is affine in x_t, and so is x_0 in x_T: its value at x_T = 0, and its slope."""
    scheduler = DDPMScheduler(T, 1e-4, 0.02, mode)
    model = DiffusionModule(Ideal(scheduler, m, s), scheduler)
    x_T = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    timesteps = sampling_timesteps(scheduler, sample_method, num_steps, last_timestep=last_timestep)
    *_, x_0 = model.reverse_process(2, sample_method=sample_method, timesteps=timesteps, randn_like=lambda _: x_T)
    return x_0[0].item(), (x_0[1] - x_0[0]).item()


def exact_offset_and_slope(mode, m, s, last_timestep=0):
    """The same for the exact solution of the probability-flow ODE to last_timestep, followed by the predicted x_0.

    q(x_t) = N(sqrt(alpha-bar_t) m, alpha-bar_t s^2 + 1 - alpha-bar_t), and the flow preserves the number of standard
    deviations from the mean.
    """
    scheduler = DDPMScheduler(T, 1e-4, 0.02, mode)
    first, last = (alpha_bars(scheduler, t)[0] for t in (sampling_timesteps(scheduler, "ddim")[0], last_timestep))
    slope = s / (first * s**2 + 1 - first) ** 0.5 * (last * s**2 / (last * s**2 + 1 - last)) ** 0.5
    return m - slope * first**0.5 * m, slope


@pytest.mark.parametrize(("method", "ratio"), [("ddim", 2), ("dpm", 4)])
@pytest.mark.parametrize("s", [0.4, 1.0])
@pytest.mark.parametrize("mode", MODES)
def test_ddim_converges_to_first_and_dpm_to_second_order(mode, s, method, ratio):
    exact = exact_offset_and_slope(mode, 0.3, s)
    coarse, fine = (np.subtract(offset_and_slope(mode, 0.3, s, method, n), exact) for n in (32, 64))
    np.testing.assert_allclose(coarse / fine, ratio, rtol=0.07)


@pytest.mark.parametrize(("method", "num_steps"), [("ddim", 900), ("dpm", 64)])
@pytest.mark.parametrize("mode", MODES)
def test_the_sample_is_the_x_0_of_the_last_timestep(mode, method, num_steps):
    """With a standard deviation of 0.4, ending at timestep 300 instead of 0 makes the slope 39 to 69 % smaller."""
    ends = offset_and_slope(mode, 0.3, 0.4, method, num_steps, 300)
    np.testing.assert_allclose(ends, exact_offset_and_slope(mode, 0.3, 0.4, 300), rtol=0.001)


@pytest.mark.parametrize("method", ["ddim", "dpm"])
@pytest.mark.parametrize("mode", MODES)
def test_a_small_error_of_the_network_stays_small(mode, method):
    """From the last timestep of the cosine schedule, where an error of x_0 is 20,000 times that of the noise, the
    unclipped ddim would end 0.6 off: see `MIN_ALPHA_BAR`."""
    scheduler = DDPMScheduler(T, 1e-4, 0.02, mode)

    class Biased(Ideal):
        def forward(self, x, t):
            return super().forward(x, t) + 0.002

    exact, biased = (DiffusionModule(net(scheduler, 0.3, 0.4), scheduler) for net in (Ideal, Biased))
    ends = [sample_chain(model, sample_method=method)[-1] for model in (exact, biased)]
    assert 1e-4 < max_difference(*ends) < 0.03


class TooLittleNoise(Ideal):
    """Predicts 10 % too little noise, and never beyond 3: about what a briefly trained network does."""

    def forward(self, x, t):
        return (0.9 * super().forward(x, t)).clamp(-3, 3)


@pytest.mark.parametrize("method", METHODS)
def test_clipping_keeps_the_chain_of_an_imprecise_network_in_range_and_leaves_others_alone(method):
    for kind, mode, s in (TooLittleNoise, "cosine", 0.45), (Ideal, "linear", 0.05):
        scheduler = DDPMScheduler(T, 1e-4, 0.02, mode)
        model = DiffusionModule(kind(scheduler, 0.0, s), scheduler)
        plain, clipped = (sample_chain(model, sample_method=method, clip_x0=clip)[-1] for clip in (False, True))
        if kind is Ideal:
            assert max_difference(plain, clipped) < 1e-4
        else:
            assert clipped.std().item() == pytest.approx(0.45 if method == "ddpm" else 0.6, abs=0.05)
            assert plain.std() > (500 if method == "ddpm" else 2)


# Against DDPM and diffusers.


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("t", [0, 1, T // 2, T - 1])
def test_a_ddim_step_with_eta_1_is_a_ddpm_step(scheduler, predictor, t):
    x_0, eps, z = images(), images(), images()
    x_t = scheduler.add_noise(x_0, t, eps)[0]
    net_out = {"noise": eps, "x0": x_0, "mean": scheduler.posterior_mean(x_0, x_t, t)}[predictor]
    predict = constant(scheduler, predictor, net_out)
    step = next(ddim(predict, scheduler, x_t, [t, t - 1] if t else [0], 1.0, lambda _: z))  # the first of two
    assert max_difference(step, scheduler.step(x_t, t, net_out, predictor, z)) < 5e-5


THEIR_TYPES = {"noise": "epsilon", "x0": "sample"}


def from_diffusers(kind, scheduler, predictor, **settings):
    other = kind(T, prediction_type=THEIR_TYPES[predictor], **settings)
    other.alphas_cumprod = torch.from_numpy(alpha_bars_by_definition(scheduler.config["mode"], T))
    return other


@pytest.mark.parametrize("predictor", THEIR_TYPES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("t", [20, 500, 994])
def test_ddim_steps_agree_with_diffusers(scheduler, predictor, eta, t):
    x_t, net_out, z = images(), images(), images()
    other = from_diffusers(diffusers.DDIMScheduler, scheduler, predictor, clip_sample=False)
    other.set_timesteps(50)  # steps of 20 timesteps
    expected = other.step(net_out, t, x_t, eta, variance_noise=z).prev_sample
    step = next(ddim(constant(scheduler, predictor, net_out), scheduler, x_t, [t, t - 20], eta, lambda _: z))
    assert max_difference(step, expected) < 1e-5 * expected.abs().max()


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("predictor", THEIR_TYPES)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 20])
def test_dpm_chains_agree_with_diffusers(scheduler, predictor, num_steps):
    """For arbitrary predictions; orders 1, 2, ..., 2, 1."""
    settings = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "final_sigmas_type": "zero"}
    other = from_diffusers(diffusers.DPMSolverMultistepScheduler, scheduler, predictor, **settings)
    timesteps = sampling_timesteps(scheduler, "dpm", num_steps)
    other.set_timesteps(timesteps=timesteps)
    x_T = x = images().float()
    outputs = {t: torch.randn_like(x_T) for t in timesteps}

    def predict(x_t, t):
        return to_x0_and_eps(outputs[t], x_t, t, predictor, scheduler)

    for t, ours in zip(timesteps, dpm(predict, scheduler, x_T, timesteps), strict=True):
        x = other.step(outputs[t], t, x).prev_sample
        assert max_difference(ours, x) < 1e-4 * x.abs().max()  # they compute lambda in float32


# Noise and guidance.


@pytest.mark.parametrize(
    ("method", "eta", "draws"), [("ddpm", 0, 31), ("ddim", 0, 1), ("ddim", 0.5, 11), ("dpm", 0, 1)]
)
def test_noise_is_drawn_once_for_x_T_and_once_per_stochastic_step(method, eta, draws):
    scheduler = DDPMScheduler(30, 1e-4, 0.02)
    model = DiffusionModule(Ideal(scheduler, 0.3, 0.4), scheduler)
    sample_chain(model, sample_method=method, eta=eta, num_inference_steps=None if method == "ddpm" else 10)
    after = torch.randn(1)
    torch.manual_seed(1)
    for _ in range(draws):
        torch.randn(2, 3, 8, 8)
    assert torch.equal(after, torch.randn(1))


def test_noise_of_an_image_depends_on_seed_and_index_alone():
    together = ImageNoise(3, [0, 1, 5], 8, torch.device("cpu"))
    alone = ImageNoise(3, [5], 8, torch.device("cpu"))
    other_seed = ImageNoise(4, [5], 8, torch.device("cpu"))
    x, seen = torch.empty(1, 3, 8, 8), []
    for _ in range(2 * ImageNoise.BLOCK + 3):
        a, b, c = together(x), alone(x), other_seed(x)
        assert torch.equal(a[2:], b) and not torch.equal(b, c)
        seen.append(b)
    noise = torch.stack(seen)
    assert noise.std().item() == pytest.approx(1, abs=5 / (2 * noise.numel()) ** 0.5)
    assert len({x.sum().item() for x in seen}) == len(seen)


@pytest.mark.parametrize("settings", [{}, {"sample_method": "ddim", "eta": 0.5}, {"sample_method": "dpm"}])
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_guidance_extrapolates_the_prediction_in_every_sampler(predictor, settings):
    class LinearInLabel(Ideal):
        factor = 0.1

        def forward(self, x, t, labels):
            return super().forward(x, t) + self.factor * labels[:, None, None, None]

    scheduler = DDPMScheduler(5, 0.1, 0.4)
    network = LinearInLabel(scheduler, 0.3, 0.4, predictor)
    model = DiffusionModule(network, scheduler, predictor)
    guided = sample_chain(model, class_label=torch.tensor([1, 3]), guidance_scale=4.0, **settings)
    network.factor = 0.4  # by four times as far from the prediction without a label
    expected = sample_chain(model, class_label=torch.tensor([1, 3]), **settings)
    assert all(max_difference(a, b) < 1e-4 * b.abs().max() for a, b in zip(guided, expected, strict=True))
