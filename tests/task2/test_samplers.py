"""DDIM and DPM-Solver++(2M) against DDPM, diffusers and the exact solution for Gaussian data, for all predictors."""

import json

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from model import DiffusionModule
from network import UNet
from oracles import Ideal, alpha_bars, alpha_bars_by_definition, awake, eq_7, max_difference, refused
from samplers import DDIM, DPM, METHODS, build_sampler, round_distinct, start_timestep
from scheduler import MODES, PREDICTORS, DDPMScheduler

T = 1000
TIMES = [0, 1, T // 2, T - 1]
SHORT = ("ddim", "dpm")
SMALL = {"image_resolution": 8, "ch": 32, "ch_mult": [1], "attn": [], "num_res_blocks": 1, "dropout": 0.0}


@pytest.fixture(params=MODES)
def scheduler(request):
    return DDPMScheduler(T, 1e-4, 0.02, request.param)


def images(*shape):
    return torch.randn(*(shape or (2, 3, 4, 4)), dtype=torch.float64)


def truth(scheduler, predictor, t, x_0, eps):
    """x_t, and the right answer to it, in float64."""
    alpha_bar, _ = alpha_bars(scheduler, t)
    x_t = alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * eps
    return x_t, {"noise": eps, "x0": x_0, "mean": eq_7(scheduler, t, x_0, x_t)[0]}[predictor]


# What the network said.


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("t", TIMES)
def test_every_answer_tells_image_and_noise(scheduler, predictor, t):
    x_0, eps = images(), images()
    x_t, answer = truth(scheduler, predictor, t, x_0, eps)
    found = scheduler.to_x0_and_eps(x_t, t, answer, predictor)
    assert max_difference(found[0], x_0) < 1e-9 and max_difference(found[1], eps) < 1e-9


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_answers_in_half_precision_are_not_computed_with_in_half_precision(scheduler, predictor):
    x_t, answer = images().float(), images().bfloat16()
    found = scheduler.to_x0_and_eps(x_t, 500, answer, predictor)
    expected = scheduler.to_x0_and_eps(x_t, 500, answer.float(), predictor)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(found, expected, strict=True))


def test_alpha_bar_is_exact_and_1_before_step_0(scheduler):
    expected = alpha_bars_by_definition(scheduler.config["mode"], T)
    np.testing.assert_allclose([scheduler.alpha_bar(t) for t in range(T)], expected, rtol=1e-12)
    assert scheduler.alpha_bar(-1) == 1.0


def test_unknown_predictor_is_an_error(scheduler):
    with pytest.raises(ValueError, match="'velocity': choose one of noise, x0, mean"):
        scheduler.to_x0_and_eps(images(), 0, images(), "velocity")


# Which timesteps.


@pytest.mark.parametrize("method", SHORT)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 20, 50, 250, 995, 1000])
def test_timesteps_fall_from_noise_to_the_first_level(scheduler, method, num_steps):
    sampler = build_sampler(scheduler, "noise", method, num_steps)
    t = np.array(sampler.timesteps)
    first = 994 if scheduler.config["mode"] == "cosine" else 999
    assert len(t) == min(num_steps, first + 1)
    assert t[0] == first and (num_steps == 1 or t[-1] == 0) and (np.diff(t) < 0).all()
    assert sampler.steps[-1] == (t[-1], -1) and [a for a, _ in sampler.steps] == t.tolist()
    if method == "ddim" and num_steps > 2:
        assert np.ptp(np.diff(t)) <= 1
    if method == "dpm" and num_steps == 20:
        alpha_bar = alpha_bars_by_definition(scheduler.config["mode"], T)[
            t[:-3]
        ]  # below, lambda leaps between timesteps
        np.testing.assert_allclose(np.diff(0.5 * np.log(alpha_bar / (1 - alpha_bar))), 0.53, atol=0.15)


def test_a_chain_starts_where_there_is_a_trace_of_the_image():
    assert start_timestep(DDPMScheduler(3, 0.01, 0.02)) == 2
    assert start_timestep(DDPMScheduler(3, 0.9, 0.9999)) == 1
    assert start_timestep(DDPMScheduler(3, 0.99999, 0.99999)) == 0


def test_crowded_timesteps_are_moved_apart():
    assert round_distinct(np.array([9.0, 8.9, 8.8, 0.3, 0.2, 0.0])) == [9, 8, 7, 2, 1, 0]
    assert round_distinct(np.array([2.0, 1.6, 1.2, 0.8, 0.4, 0.0])) == [2, 1, 0]


@pytest.mark.parametrize("method", SHORT)
@pytest.mark.parametrize("mode", MODES)
def test_a_small_error_of_the_network_stays_small(mode, method):
    """At the end of the cosine schedule 0.002 too much noise is 40 too little image."""
    scheduler = DDPMScheduler(T, 1e-4, 0.02, mode)

    class Wrong(Ideal):
        def forward(self, x, t):
            return super().forward(x, t) + 0.002

    right, wrong = (DiffusionModule(net(scheduler, 0.3, 0.4), scheduler) for net in (Ideal, Wrong))
    *_, a = chain(right, sample_method=method)
    *_, b = chain(wrong, sample_method=method)
    assert 1e-4 < max_difference(a, b) < 0.03


# Gaussian data, of which the ideal network and the solution are known.


def chain(ddpm, seed=1, **how):
    torch.manual_seed(seed)
    return ddpm.sample(2, return_traj=True, **how)


def line_of_chain(mode, predictor, m, s, **how):
    """The ideal network is linear, and so a chain without fresh noise is a line: the x_0 of x_T = 0, and the slope."""
    scheduler = DDPMScheduler(T, 1e-4, 0.02, mode)
    ddpm = DiffusionModule(Ideal(scheduler, m, s, predictor), scheduler, predictor)
    x_T = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    *_, x_0 = ddpm.reverse_process(2, noise=lambda: x_T, **how)
    return x_0[0].item(), (x_0[1] - x_0[0]).item()


def exact_line(mode, m, s, to_x0=True):
    """The same for the exact solution of the probability-flow ODE.

    q(x_t) = N(sqrt(alpha-bar_t) m, alpha-bar_t s^2 + 1 - alpha-bar_t) all along, and the flow keeps every point as many
    standard deviations from the mean as it is. Without `to_x0` it goes down to timestep 0 only, and from there all the
    way to what the network says of the image, as any chain ends.
    """
    scheduler = DDPMScheduler(T, 1e-4, 0.02, mode)
    alpha_bar, _ = alpha_bars(scheduler, start_timestep(scheduler))
    slope = s / (alpha_bar * s**2 + 1 - alpha_bar) ** 0.5
    if not to_x0:
        last, _ = alpha_bars(scheduler, 0)
        slope *= (last * s**2 / (last * s**2 + 1 - last)) ** 0.5
    return m - slope * alpha_bar**0.5 * m, slope


@pytest.mark.parametrize(("method", "error"), [("ddim", 0.07), ("dpm", 0.02)])
@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("mode", MODES)
def test_default_steps_turn_noise_into_the_gaussian_data(mode, predictor, method, error):
    m, s = 0.3, 0.4
    mean, deviation = line_of_chain(mode, predictor, m, s, sample_method=method)
    exact_mean, exact_deviation = exact_line(mode, m, s)
    assert mean == pytest.approx(exact_mean, abs=1e-3) and mean == pytest.approx(m, abs=0.015)
    assert deviation == pytest.approx(exact_deviation, rel=error) and exact_deviation == pytest.approx(s, rel=1e-3)


@pytest.mark.parametrize(("method", "falls"), [("ddim", 2), ("dpm", 4)])
@pytest.mark.parametrize("s", [0.4, 1.0])
@pytest.mark.parametrize("mode", MODES)
def test_order_of_convergence(mode, s, method, falls):
    exact = exact_line(mode, 0.3, s, to_x0=False)
    coarse, fine = (
        np.subtract(line_of_chain(mode, "noise", 0.3, s, sample_method=method, num_inference_steps=n), exact)
        for n in (32, 64)
    )
    assert coarse[1] / fine[1] == pytest.approx(falls, rel=0.07)
    assert coarse[0] / fine[0] == pytest.approx(falls, rel=0.07)


@pytest.mark.parametrize("how", [{"sample_method": "ddim"}, {"sample_method": "dpm"}])
@pytest.mark.parametrize("mode", MODES)
def test_predictors_that_say_the_same_make_the_same_chain(mode, how):
    by_noise, *others = (line_of_chain(mode, predictor, 0.3, 0.4, **how) for predictor in PREDICTORS)
    for other in others:
        assert other == pytest.approx(by_noise, abs=1e-10)


# Against DDPM.


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("t", TIMES)
def test_ddim_with_eta_1_takes_the_steps_of_ddpm(scheduler, predictor, t):
    """Mean and noise of eq. 7, at whatever the network says."""
    x_0, eps, z = images(), images(), images()
    x_t, answer = truth(scheduler, predictor, t, x_0, eps)
    mean, variance = eq_7(scheduler, t, x_0, x_t)
    step = DDIM(scheduler, predictor, T, eta=1.0).step(x_t, t, t - 1, answer, z)
    assert max_difference(step, mean + variance**0.5 * z) < 1e-9
    assert max_difference(step, scheduler.step(x_t, t, answer, predictor, z)) < 1e-5  # whose buffers are float32


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("mode", ["linear", "quad"])
def test_ddim_with_eta_1_and_all_steps_is_the_chain_of_ddpm(mode, predictor):
    scheduler = DDPMScheduler(30, 1e-4, 0.02, mode)
    ddpm = DiffusionModule(Ideal(scheduler, 0.3, 0.4, predictor), scheduler, predictor)
    ancestral = chain(ddpm)
    leaps = chain(ddpm, sample_method="ddim", num_inference_steps=30, eta=1.0)
    assert len(leaps) == len(ancestral) == 31
    assert all(max_difference(a, b) < 1e-4 for a, b in zip(leaps, ancestral, strict=True))


def test_leaps_enlarge_what_is_wrong_with_a_mean_and_with_nothing_else(scheduler):
    """Small errors of the network, the same size for each predictor: why the README says that the mean bears none."""

    class Imprecise(Ideal):
        def forward(self, x, t):
            return super().forward(x, t) + 0.01 * torch.randn(x.shape, generator=noise)

    errors = {}
    for predictor in PREDICTORS:
        for method in ("ddpm", "dpm"):
            samples = []
            for network in (Ideal, Imprecise):
                noise = torch.Generator().manual_seed(1)
                ddpm = DiffusionModule(network(scheduler, 0.3, 0.4, predictor), scheduler, predictor)
                samples.append(chain(ddpm, sample_method=method)[-1])
            errors[predictor, method] = (samples[0] - samples[1]).square().mean().sqrt().item()
    assert errors["mean", "dpm"] > 10 * max(errors["noise", "dpm"], errors["x0", "dpm"])
    assert errors["mean", "dpm"] > 2 * errors["mean", "ddpm"]


# Against diffusers.

THEIRS = {"noise": "epsilon", "x0": "sample"}


@pytest.mark.parametrize("predictor", THEIRS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("t", [19, 20, 500, 994])
def test_ddim_steps_agree_with_diffusers(scheduler, predictor, eta, t):
    x_t, answer, z = images(), images(), images()
    other = diffusers.DDIMScheduler(T, prediction_type=THEIRS[predictor], clip_sample=False)
    other.alphas_cumprod = torch.from_numpy(alpha_bars_by_definition(scheduler.config["mode"], T))
    other.set_timesteps(50)  # leaps of 20
    expected = other.step(answer, t, x_t, eta, variance_noise=z).prev_sample
    step = DDIM(scheduler, predictor, 50, eta).step(x_t, t, t - 20, answer, z)
    assert max_difference(step, expected) < 1e-6 * expected.abs().max()  # their alpha-bar of the clean image is float32


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("predictor", THEIRS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 20])
def test_dpm_chains_agree_with_diffusers(scheduler, predictor, num_steps):
    """At whatever a network says; orders 1, 2, ..., 2, 1."""
    sampler = DPM(scheduler, predictor, num_steps)
    other = diffusers.DPMSolverMultistepScheduler(
        T,
        prediction_type=THEIRS[predictor],
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
    )
    other.alphas_cumprod = torch.from_numpy(alpha_bars_by_definition(scheduler.config["mode"], T))
    other.set_timesteps(timesteps=sampler.timesteps)
    ours = theirs = images().float()
    for t, t_prev in sampler.steps:
        answer = torch.randn_like(ours)
        ours = sampler.step(ours, t, t_prev, answer, None)
        theirs = other.step(answer, t, theirs).prev_sample
        assert max_difference(ours, theirs) < 1e-4 * theirs.abs().max()  # they compute lambda in float32


# Noise, guidance, settings.


@pytest.mark.parametrize(
    ("how", "draws"),
    [
        ({"sample_method": "ddpm"}, 31),
        ({"sample_method": "ddim", "num_inference_steps": 10}, 1),
        ({"sample_method": "ddim", "num_inference_steps": 10, "eta": 0.5}, 11),
        ({"sample_method": "dpm", "num_inference_steps": 10}, 1),
    ],
)
def test_methods_without_fresh_noise_draw_only_the_start(how, draws):
    scheduler = DDPMScheduler(30, 1e-4, 0.02)
    ddpm = DiffusionModule(Ideal(scheduler, 0.3, 0.4), scheduler)
    drawn = []

    def noise():
        drawn.append(torch.randn(2, 3, 8, 8))
        return drawn[-1]

    torch.manual_seed(1)
    *_, given = ddpm.reverse_process(2, noise=noise, **how)
    assert len(drawn) == draws

    def with_later_seed(seed):
        torch.manual_seed(1)
        stations = ddpm.reverse_process(2, **how)
        start = next(stations)
        torch.manual_seed(seed)
        *_, end = stations
        return start, end

    (start, a), (_, b) = with_later_seed(2), with_later_seed(3)
    assert torch.equal(start, drawn[0])
    assert torch.equal(a, b) == torch.equal(a, given) == (draws == 1)


@pytest.mark.parametrize("how", [{"sample_method": "ddim", "eta": 0.5}, {"sample_method": "dpm"}])
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_guidance_works_with_each(predictor, how):
    network = awake(UNet(**SMALL, use_cfg=True, num_classes=3)).eval()
    nn.init.normal_(network.class_embedding.weight, std=3)
    scheduler = DDPMScheduler(5, 0.1, 0.4)
    ddpm = DiffusionModule(network, scheduler, predictor)
    labels = torch.tensor([1, 3])
    stations = chain(ddpm, class_label=labels, guidance_scale=4.0, **how)

    torch.manual_seed(1)
    x_t = torch.randn(2, 3, 8, 8)
    sampler = build_sampler(scheduler, predictor, **how)
    for (t, t_prev), expected in zip(sampler.steps, stations[1:], strict=True):
        with torch.no_grad():
            without = network(x_t, torch.tensor([t, t]))
            with_class = network(x_t, torch.tensor([t, t]), labels)
        z = torch.randn_like(x_t) if how["sample_method"] == "ddim" else None
        x_t = sampler.step(x_t, t, t_prev, without + 4 * (with_class - without), z)
        assert max_difference(x_t, expected) < 1e-4 * expected.abs().max()
    unguided = chain(ddpm, class_label=labels, **how)
    assert max_difference(unguided[-1], stations[-1]) > 1e-2


@pytest.mark.parametrize("method", METHODS)
def test_usual_numbers_of_steps(scheduler, method):
    usual = {"ddpm": T, "ddim": 50, "dpm": 20}[method]
    assert len(build_sampler(scheduler, "noise", method).timesteps) == usual
    assert len(build_sampler(DDPMScheduler(4, 1e-4, 0.02), "noise", method).timesteps) == 4


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"sample_method": "euler"}, "'euler' is not one of ddpm, ddim, dpm"),
        ({"num_inference_steps": 50}, "ddpm takes all 1000, not 50"),
        ({"sample_method": "ddim", "num_inference_steps": 0}, "0 is not a whole number from 1 to 1000"),
        ({"sample_method": "dpm", "num_inference_steps": 1001}, "1001 is not a whole number from 1 to 1000"),
        ({"sample_method": "dpm", "eta": 0.5}, "eta: does nothing with dpm"),
        ({"eta": 1.0}, "eta: does nothing with ddpm"),
        ({"sample_method": "ddim", "eta": 1.5}, "1.5 is not a number from 0 to 1"),
        ({"sample_method": "ddim", "eta": float("nan")}, "nan is not a number from 0 to 1"),
    ],
)
def test_settings_that_do_not_fit_are_errors(scheduler, how, words):
    with pytest.raises(ValueError, match=words):
        DiffusionModule(Ideal(scheduler, 0.3, 0.4), scheduler).sample(1, **how)


# The program.


@pytest.fixture
def command(tmp_path):
    """sampling.py with an untrained network of 12 steps."""
    network = awake(UNet(**SMALL)).eval()
    DiffusionModule(network, DDPMScheduler(12, 1e-4, 0.02), "x0").save(tmp_path / "model.ckpt")
    return ["sampling.py", "--ckpt_path", "model.ckpt", "--num_samples", 3, "--save_dir"]


HOW = {
    "ddim": ["--sample_method", "ddim", "--num_inference_steps", 4],
    "with_noise": ["--sample_method", "ddim", "--num_inference_steps", 4, "--eta", 0.7],
    "dpm": ["--sample_method", "dpm", "--num_inference_steps", 4],
    "ddpm": ["--sample_method", "ddpm", "--num_inference_steps", 12],
}


def test_images_of_each_method(program, command, tmp_path):
    made = {}
    for name, options in HOW.items():
        run = program(*command, name, *options, "--save_traj", "--batch_size", 2)
        assert run.returncode == 0, run.stderr
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["0.png", "1.png", "2.png"]
        frames = 10 if name == "ddpm" else 5
        assert Image.open(tmp_path / f"{name}_traj" / "2.png").size == (10 * frames + 2, 12)
        made[name] = Image.open(tmp_path / name / "2.png").tobytes()
    assert len(set(made.values())) == len(HOW)
    default = program(*command, "default", "--batch_size", 2)
    assert default.returncode == 0, default.stderr
    assert Image.open(tmp_path / "default" / "2.png").tobytes() == made["ddpm"]


def test_a_folder_goes_on_with_its_own_method_only(program, command, tmp_path):
    command = [*command[:-1], "--batch_size", 1, "--save_dir"]
    assert program(*command, "out", *HOW["with_noise"]).returncode == 0
    whole = (tmp_path / "out" / "1.png").read_bytes()
    (tmp_path / "out" / "1.png").unlink()
    assert refused(program(*command, "out"), "sample_method ddim there, ddpm here")
    assert refused(program(*command, "out", *HOW["dpm"]), "sample_method ddim there, dpm here")
    other_number = ["--sample_method", "ddim", "--num_inference_steps", 5, "--eta", 0.7]
    assert refused(program(*command, "out", *other_number), "num_inference_steps 4 there, 5 here")
    assert refused(program(*command, "out", *HOW["ddim"]), "eta 0.7 there, 0.0 here")
    assert not (tmp_path / "out" / "1.png").exists()
    assert program(*command, "out", *HOW["with_noise"]).returncode == 0
    assert (tmp_path / "out" / "1.png").read_bytes() == whole


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sample_method", "euler"], "--sample_method: invalid choice: 'euler'"),
        (["--num_inference_steps", 50], "argument --num_inference_steps: ddpm takes all 12, not 50"),
        (
            ["--sample_method", "dpm", "--num_inference_steps", 13],
            "--num_inference_steps: 13 is not a whole number from 1",
        ),
        (
            ["--sample_method", "dpm", "--num_inference_steps", 0],
            "--num_inference_steps: '0' is not a whole number >= 1",
        ),
        (["--sample_method", "ddim", "--eta", 1.5], "--eta: '1.5' is not a number from 0 to 1"),
        (["--sample_method", "dpm", "--eta", 0], "--eta: does nothing without --sample_method ddim"),
    ],
)
def test_bad_settings_are_one_line(program, command, tmp_path, options, words):
    assert refused(program(*command, "out", *options), words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("predictor", "parametrization"), [("mean", "direct"), ("mean", "preconditioned"), ("x0", "direct")]
)
def test_whoever_leaves_out_steps_of_a_mean_is_told(program, tmp_path, predictor, parametrization):
    network = awake(UNet(T=12, **SMALL))
    ddpm = DiffusionModule(network, DDPMScheduler(12, 1e-3, 0.3), predictor, parametrization=parametrization)
    ddpm.save(tmp_path / "model.ckpt")
    said = {}
    for method in ("ddpm", "dpm"):
        flags = ["--num_samples", 2, "--sample_method", method, "--save_dir", method]
        steps = ["--num_inference_steps", 3] if method == "dpm" else []
        run = program("sampling.py", "--ckpt_path", "model.ckpt", *flags, *steps)
        assert run.returncode == 0, run.stderr
        said[method] = "note: of a network that gives the mean itself" in run.stdout
    assert said == {"ddpm": False, "dpm": (predictor, parametrization) == ("mean", "direct")}


def test_whichever_setting_differs_is_named():
    from sampling import _difference

    theirs = {"seed": 0, "eta": None, "cfg_scale": 7.5}
    assert _difference(json.dumps(theirs), json.dumps(theirs | {"cfg_scale": None})) == "cfg_scale 7.5 there, None here"
