"""Losses, the reverse process, guidance and files of the image model."""

import pytest
import torch
from torch import nn

from conftest import small_model
from model import DiffusionModule
from oracles import Ideal, Says, eq_7, max_difference, moments_of_ancestral_chain
from scheduler import MODES, PREDICTORS, DDPMScheduler


def schedule(mode="linear", T=1000, sigma_type="small"):
    return DDPMScheduler(T, 1e-4, 0.02, mode, sigma_type)


class Recorder(Says):
    """Always predicts the same, and keeps its inputs."""

    def forward(self, *inputs):
        self.inputs = inputs
        return self.answer


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("mode", MODES)
def test_loss_is_the_mse_against_the_target_of_the_predictor(mode, predictor):
    x0, noise, prediction = torch.randn(3, 64, 3, 8, 8)
    model = DiffusionModule(Recorder(prediction), schedule(mode), predictor)
    loss = model.get_loss(x0, noise=noise)
    x_t, t = model.network.inputs
    assert torch.equal(x_t, model.var_scheduler.add_noise(x0, t, noise)[0])
    assert t.unique().numel() > 40
    mean = [eq_7(model.var_scheduler, int(t[i]), x0[i].double(), x_t[i].double())[0] for i in range(len(t))]
    target = {"noise": noise, "x0": x0, "mean": torch.stack(mean)}[predictor].double()
    assert loss.item() == pytest.approx((prediction - target).square().mean().item(), rel=1e-5)
    label = torch.ones(64, dtype=torch.long)
    getattr(model, f"get_loss_{predictor}")(x0, label, noise)
    assert torch.equal(model.network.inputs[2], label)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("predictor", "sigma_type"), [*((predictor, "small") for predictor in PREDICTORS), ("noise", "large")]
)
def test_ancestral_chain_turns_noise_into_gaussian_data(mode, predictor, sigma_type):
    m, s, n = 0.3, 0.4, 40
    scheduler = schedule(mode, sigma_type=sigma_type)
    mean, variance = moments_of_ancestral_chain(scheduler, m, s, large=sigma_type == "large")
    assert mean == pytest.approx(m, abs=0.01) and variance == pytest.approx(s**2, rel=0.08)
    x0 = DiffusionModule(Ideal(scheduler, m, s, predictor), scheduler, predictor).sample(n).double()
    assert x0.shape == (n, 3, 8, 8)
    assert x0.mean().item() == pytest.approx(mean, abs=5 * (variance / x0.numel()) ** 0.5)
    assert x0.var().item() == pytest.approx(variance, rel=5 * (2 / x0.numel()) ** 0.5)


def test_trajectory_holds_all_T_steps_in_the_order_of_draws_of_the_contract():
    model = small_model(T=20).eval()
    samples = sample(model, 2)
    traj = sample(model, 2, return_traj=True)
    assert isinstance(traj, list) and len(traj) == 21
    assert torch.equal(traj[-1], samples) and not samples.requires_grad
    torch.manual_seed(1)
    x_t = torch.randn(2, 3, 8, 8)
    assert torch.equal(traj[0], x_t)
    with torch.no_grad():
        eps_theta = model.network(x_t, torch.tensor([19, 19]))
    assert torch.equal(traj[1], model.var_scheduler.step(x_t, 19, eps_theta, "noise"))


# Guidance.


@pytest.fixture
def conditional():
    model = small_model(T=5, schedule=(0.1, 0.4), use_cfg=True, num_classes=3).eval()
    nn.init.normal_(model.network.class_embedding.weight, std=3)
    return model


def sample(model, *args, **kwargs):
    torch.manual_seed(1)
    return model.sample(*args, **kwargs)


def test_guidance_scale_1_is_the_conditional_model_and_0_the_unconditional(conditional):
    label = torch.tensor([1, 3])
    plain, none = sample(conditional, 2, class_label=label), sample(conditional, 2)
    assert max_difference(plain, none) > 1e-2
    assert torch.allclose(sample(conditional, 2, class_label=label, guidance_scale=1 + 1e-6), plain, atol=1e-4)
    assert torch.allclose(sample(conditional, 2, class_label=label, guidance_scale=0.0), none, atol=1e-5)
    assert torch.allclose(sample(conditional, 2, class_label=torch.zeros(2)), none, atol=1e-5)


@pytest.mark.parametrize(("label", "scale"), [([1, 4], 1.0), ([-1, 1], 1.0), ([0.5, 1], 1.0), ([1], 1.0), (None, 3.0)])
def test_labels_that_do_not_exist_are_value_errors(conditional, label, scale):
    with pytest.raises(ValueError, match="class_label"):
        conditional.sample(2, class_label=None if label is None else torch.tensor(label), guidance_scale=scale)


# Files.


def test_an_empty_module_becomes_the_saved_one(tmp_path):
    model = small_model("x0", 20, (1e-4, 0.02, "cosine", "large"), "preconditioned").eval()
    model.save(tmp_path / "model.ckpt")
    loaded = DiffusionModule(None, None).eval()
    loaded.load(tmp_path / "model.ckpt")
    assert (loaded.predictor, loaded.parametrization) == ("x0", "preconditioned")
    assert loaded.var_scheduler.config == model.var_scheduler.config
    assert loaded.network.config == model.network.config
    assert torch.equal(sample(loaded, 2), sample(model, 2))


@pytest.mark.parametrize("part", ["network", "var_scheduler"])
def test_classes_that_load_could_not_rebuild_are_not_saved(tmp_path, part):
    model = small_model()
    getattr(model, part).__class__ = type("Own", (type(getattr(model, part)),), {})
    with pytest.raises(TypeError, match="Own"):
        model.save(tmp_path / "model.ckpt")
    assert not list(tmp_path.iterdir())
