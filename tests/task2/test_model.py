"""Losses, chains, guidance and files of the image model."""

import pytest
import torch
from torch import nn

from model import DiffusionModule
from network import UNet
from oracles import Ideal, Says, awake, eq_7, max_difference, moments_of_ancestral_chain
from scheduler import MODES, PREDICTORS, DDPMScheduler

SMALL = {"image_resolution": 8, "ch": 32, "ch_mult": [1], "attn": [], "num_res_blocks": 1, "dropout": 0.0}


def schedule(mode="linear", T=1000, sigma_type="small"):
    return DDPMScheduler(T, 1e-4, 0.02, mode, sigma_type)


class Listens(nn.Module):
    """Answers 0 and keeps what it was asked."""

    image_resolution = 8

    def forward(self, *inputs):
        self.inputs = inputs
        return torch.zeros_like(inputs[0])


# Losses.


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("mode", MODES)
def test_losses_compare_the_answer_with_their_target(mode, predictor):
    """Each loss is the mean square of (answer - target), the target computed once more in float64."""
    ddpm = DiffusionModule(Listens(), schedule(mode), predictor)
    x0, noise = torch.randn(64, 3, 8, 8), torch.randn(64, 3, 8, 8)
    loss = ddpm.get_loss(x0, noise=noise)
    x_t, t = ddpm.network.inputs
    assert torch.equal(x_t, ddpm.var_scheduler.add_noise(x0, t, noise)[0])
    assert t.unique().numel() > 40
    mean = torch.stack([eq_7(ddpm.var_scheduler, int(t[i]), x0[i].double(), x_t[i].double())[0] for i in range(len(t))])
    target = {"noise": noise, "x0": x0, "mean": mean}[predictor].double()
    assert loss.item() == pytest.approx(target.square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_loss_is_0_for_the_exact_answer(predictor):
    x0, noise = torch.randn(16, 3, 8, 8), torch.randn(16, 3, 8, 8)
    scheduler = schedule("cosine")

    class Exact(nn.Module):
        def forward(self, x_t, t):
            return {"noise": noise, "x0": x0, "mean": scheduler.posterior_mean(x0, x_t, t)}[predictor]

    ddpm = DiffusionModule(Exact(), scheduler, predictor)
    assert ddpm.get_loss(x0, noise=noise).item() < 1e-12
    assert getattr(ddpm, f"get_loss_{predictor}")(x0, None, noise).item() < 1e-12


def test_noise_loss_is_1_for_the_answer_0():
    ddpm = DiffusionModule(Listens(), schedule())
    loss = ddpm.get_loss(torch.randn(500, 3, 8, 8)).item()
    assert loss == pytest.approx(1, abs=5 * (2 / (500 * 192)) ** 0.5)


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_losses_pass_labels_on(predictor):
    ddpm = DiffusionModule(Listens(), schedule(), predictor)
    label = torch.tensor([1, 3])
    ddpm.get_loss(torch.randn(2, 3, 8, 8), class_label=label)
    assert len(ddpm.network.inputs) == 3 and ddpm.network.inputs[2] is label
    ddpm.get_loss(torch.randn(2, 3, 8, 8))
    assert len(ddpm.network.inputs) == 2


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_losses_reach_every_parameter(predictor):
    ddpm = DiffusionModule(UNet(**SMALL), schedule(), predictor)
    ddpm.get_loss(torch.randn(4, 3, 8, 8)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ddpm.parameters())


def test_unknown_predictor_is_an_error():
    with pytest.raises(ValueError, match="'velocity': choose one of noise, x0, mean"):
        DiffusionModule(None, None, "velocity")


# Chains.


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("mode", MODES)
def test_chain_turns_noise_into_the_gaussian_data(mode, predictor):
    m, s, n = 0.3, 0.4, 40
    scheduler = schedule(mode)
    mean, variance = moments_of_ancestral_chain(scheduler, m, s)
    assert mean == pytest.approx(m, abs=0.01) and variance == pytest.approx(s**2, rel=0.08)
    x0 = DiffusionModule(Ideal(scheduler, m, s, predictor), scheduler, predictor).sample(n).double()
    assert x0.shape == (n, 3, 8, 8)
    assert x0.mean().item() == pytest.approx(mean, abs=5 * (variance / x0.numel()) ** 0.5)
    assert x0.var().item() == pytest.approx(variance, rel=5 * (2 / x0.numel()) ** 0.5)


@pytest.mark.parametrize("mode", MODES)
def test_chain_with_large_noise(mode):
    scheduler = schedule(mode, sigma_type="large")
    mean, variance = moments_of_ancestral_chain(scheduler, 0.3, 0.4, large=True)
    x0 = DiffusionModule(Ideal(scheduler, 0.3, 0.4), scheduler).sample(40).double()
    assert x0.mean().item() == pytest.approx(mean, abs=5 * (variance / x0.numel()) ** 0.5)
    assert x0.var().item() == pytest.approx(variance, rel=5 * (2 / x0.numel()) ** 0.5)


def test_trajectory_is_the_whole_chain_in_the_order_of_the_contract():
    ddpm = DiffusionModule(UNet(**SMALL).eval(), schedule(T=20))
    torch.manual_seed(1)
    samples = ddpm.sample(2)
    torch.manual_seed(1)
    traj = ddpm.sample(2, return_traj=True)
    assert isinstance(traj, list) and len(traj) == 21
    assert torch.equal(traj[-1], samples)
    torch.manual_seed(1)
    x_t = torch.randn(2, 3, 8, 8)
    assert torch.equal(traj[0], x_t)
    with torch.no_grad():
        answer = ddpm.network(x_t, torch.tensor([19, 19]))
    assert torch.equal(traj[1], ddpm.var_scheduler.step(x_t, 19, answer, "noise"))


def test_sampling_under_inference_mode_and_without_a_graph():
    ddpm = DiffusionModule(UNet(**SMALL).eval(), schedule(T=3))
    with torch.inference_mode():
        assert ddpm.sample(1).shape == (1, 3, 8, 8)
    assert not ddpm.sample(1).requires_grad
    assert torch.is_grad_enabled()


# Guidance.


@pytest.fixture
def conditional():
    network = awake(UNet(**SMALL, use_cfg=True, num_classes=3)).eval()
    nn.init.normal_(network.class_embedding.weight, std=3)
    return DiffusionModule(network, DDPMScheduler(5, 0.1, 0.4))


def sample(ddpm, *args, **kwargs):
    torch.manual_seed(1)
    return ddpm.sample(*args, **kwargs)


def test_guidance_of_1_is_the_conditional_model_and_0_the_unconditional(conditional):
    label = torch.tensor([1, 3])
    plain = sample(conditional, 2, class_label=label)
    assert torch.equal(sample(conditional, 2, class_label=label, guidance_scale=1.0), plain)
    assert torch.allclose(sample(conditional, 2, class_label=label, guidance_scale=1 + 1e-6), plain, atol=1e-4)
    none = sample(conditional, 2)
    assert torch.allclose(sample(conditional, 2, class_label=label, guidance_scale=0.0), none, atol=1e-5)
    assert torch.allclose(sample(conditional, 2, class_label=torch.zeros(2)), none, atol=1e-5)
    assert not torch.allclose(plain, none, atol=1e-2)


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_guidance_goes_beyond_the_class_on_the_line_from_none(conditional, predictor):
    conditional.predictor = predictor
    chain = conditional.reverse_process(2, torch.tensor([1, 3]), 4.0)
    torch.manual_seed(1)
    x_t, stepped = next(chain), next(chain)
    with torch.no_grad():
        t = torch.tensor([4, 4])
        without, with_class = conditional.network(x_t, t), conditional.network(x_t, t, torch.tensor([1, 3]))
    torch.manual_seed(1)
    torch.randn_like(x_t)
    answer = without + 4 * (with_class - without)
    assert max_difference(stepped, conditional.var_scheduler.step(x_t, 4, answer, predictor)) < 1e-5


@pytest.mark.parametrize(
    ("label", "scale", "words"),
    [
        (torch.tensor([1, 4]), 1.0, r"class_label must be whole numbers in 0..3, got \[1, 4\]"),
        (torch.tensor([-1, 1]), 1.0, r"whole numbers in 0..3"),
        (torch.tensor([1]), 1.0, r"must have shape \[2\], got \[1\]"),
        (None, 3.0, "guidance_scale 3.0 needs class_label"),
    ],
)
def test_labels_that_do_not_exist_are_errors(conditional, label, scale, words):
    with pytest.raises(ValueError, match=words):
        conditional.sample(2, class_label=label, guidance_scale=scale)


# Files.


@pytest.fixture
def saved(tmp_path):
    ddpm = DiffusionModule(UNet(**SMALL).eval(), schedule("cosine", 20, "large"), "x0")
    ddpm.save(tmp_path / "model.ckpt")
    return ddpm, tmp_path / "model.ckpt"


def test_an_empty_module_becomes_the_saved_one(saved):
    ddpm, path = saved
    again = DiffusionModule(None, None)
    again.load(path)
    assert again.predictor == "x0"
    assert again.var_scheduler.config == ddpm.var_scheduler.config
    assert again.network.config == ddpm.network.config
    assert again.image_resolution == 8
    again.eval()
    assert torch.equal(sample(again, 2), sample(ddpm, 2))


def test_a_network_that_numbers_cannot_rebuild_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match="not a Says"):
        DiffusionModule(Says(torch.zeros(1)), schedule()).save(tmp_path / "model.ckpt")
    assert not list(tmp_path.iterdir())
