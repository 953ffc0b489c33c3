"""The preconditioned output and the loss weights: other ways to train the same three predictors."""

import pytest
import torch
from torch import nn

from checkpoint import read_checkpoint
from model import DiffusionModule
from network import UNet
from oracles import alpha_bars, awake, eq_7, max_difference
from scheduler import LOSS_WEIGHTS, MODES, PREDICTORS, DDPMScheduler

T = 1000
TIMESTEPS = [0, 1, T // 2, T - 2, T - 1]


def schedule(mode):
    return DDPMScheduler(T, 1e-4, 0.02, mode)


class Gives(nn.Module):
    """A network that knows x_0 and gives v, the same at each t as the formula says."""

    image_resolution = 8

    def __init__(self, scheduler, x_0, wrong=0.0):
        super().__init__()
        self.scheduler, self.x_0, self.wrong = scheduler, x_0, wrong

    def forward(self, x_t, t):
        answers = []
        for x, x_0, number in zip(x_t.double(), self.x_0.double(), t.tolist(), strict=True):
            alpha_bar, _ = alpha_bars(self.scheduler, number)
            eps = (x - alpha_bar**0.5 * x_0) / (1 - alpha_bar) ** 0.5
            answers.append(alpha_bar**0.5 * eps - (1 - alpha_bar) ** 0.5 * x_0)
        self.answer = torch.stack(answers)
        return (self.answer + self.wrong).float()


@pytest.mark.parametrize("t", TIMESTEPS)
@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("mode", MODES)
def test_the_right_output_gives_the_right_prediction(mode, predictor, t):
    """v, put together in float64 from noise and image, comes out as noise, image or mean."""
    scheduler = schedule(mode)
    x_0, eps = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    alpha_bar, _ = alpha_bars(scheduler, t)
    x_t = alpha_bar**0.5 * x_0.double() + (1 - alpha_bar) ** 0.5 * eps.double()
    v = alpha_bar**0.5 * eps.double() - (1 - alpha_bar) ** 0.5 * x_0.double()
    said = scheduler.from_v(v.float(), x_t.float(), torch.full((4,), t), predictor)
    expected = {"noise": eps.double(), "x0": x_0.double(), "mean": eq_7(scheduler, t, x_0.double(), x_t)[0]}[predictor]
    assert max_difference(said, expected) < 2e-5


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("mode", MODES)
def test_the_output_is_of_unit_size_at_every_t(mode, predictor):
    """`from_v` is a line in the output: what it must be for the right prediction follows from two values."""
    scheduler = schedule(mode)
    x_0, eps = torch.randn(2, 3, 32, 32)
    for t in range(0, T, 71):
        alpha_bar, _ = alpha_bars(scheduler, t)
        x_t = alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * eps
        right = {"noise": eps, "x0": x_0, "mean": eq_7(scheduler, t, x_0, x_t)[0]}[predictor]
        zero, one = (scheduler.from_v(torch.full_like(x_t, v), x_t, t, predictor) for v in (0.0, 1.0))
        output = (right - zero) / (one - zero)
        assert output.square().mean().sqrt() == pytest.approx(1, abs=0.05), t


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_a_module_asks_its_network_through_it(predictor):
    scheduler, x_0 = schedule("cosine"), torch.randn(16, 3, 8, 8)
    ddpm = DiffusionModule(Gives(scheduler, x_0), scheduler, predictor, parametrization="preconditioned")
    assert ddpm.get_loss(x_0).item() < 1e-9
    direct = DiffusionModule(Gives(scheduler, x_0), scheduler, predictor)
    assert direct.get_loss(x_0).item() > 0.1 or predictor == "mean"
    assert direct.parametrization == "direct" and direct.loss_weight == "none"  # the handout's


@pytest.mark.parametrize("kind", LOSS_WEIGHTS[1:])
@pytest.mark.parametrize("mode", MODES)
def test_weighted_losses_of_all_predictors_are_one_number(mode, kind):
    """The same error of v, so of x_0, costs the same whatever it is called; and it costs W_t times its square."""
    scheduler = schedule(mode)
    x_0 = torch.randn(64, 3, 8, 8)
    losses = []
    for predictor in PREDICTORS:
        torch.manual_seed(0)
        network = Gives(scheduler, x_0, wrong=0.1)
        t = torch.linspace(5, T - 5, len(x_0)).long()
        scheduler.uniform_sample_t = lambda batch_size, device=None, t=t: t
        ddpm = DiffusionModule(network, scheduler, predictor, 0, "preconditioned", kind)
        losses.append(ddpm.get_loss(x_0).item())
    expected = 0.0
    for number in t.tolist():
        alpha_bar, _ = alpha_bars(scheduler, number)
        snr = alpha_bar / (1 - alpha_bar)
        expected += (snr if kind == "snr" else min(snr, 5.0)) * (1 - alpha_bar) * 0.01 / len(t)
    assert losses == pytest.approx([expected] * 3, rel=2e-3)


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("mode", MODES)
def test_no_weight_is_the_plain_mean_of_squares(mode, predictor):
    assert torch.equal(schedule(mode).loss_weight("none", predictor), torch.ones(T))


@pytest.mark.parametrize("kind", LOSS_WEIGHTS)
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_weights_of_a_chain_that_ends_in_pure_noise_are_numbers(predictor, kind):
    scheduler = DDPMScheduler(100_000, 1e-4, 0.02)
    assert scheduler.alpha_bar(99_999) < 1e-300
    weight = scheduler.loss_weight(kind, predictor)
    assert weight.isfinite().all() and (weight >= 0).all()


def test_snr_weights_leave_the_noise_predictor_as_it_is():
    assert torch.allclose(schedule("linear").loss_weight("snr", "noise"), torch.ones(T))


def test_a_checkpoint_knows_its_parametrization(tmp_path):
    small = {"image_resolution": 8, "ch": 32, "ch_mult": [1], "attn": [], "num_res_blocks": 1}
    network = awake(UNet(**small)).eval()
    ddpm = DiffusionModule(network, DDPMScheduler(12, 1e-4, 0.3), "x0", parametrization="preconditioned").eval()
    ddpm.save(tmp_path / "model.ckpt")
    again = DiffusionModule(None, None).eval()
    again.load(tmp_path / "model.ckpt")
    assert again.parametrization == "preconditioned"
    samples = []
    for module in (ddpm, again, DiffusionModule(network, ddpm.var_scheduler, "x0").eval()):
        torch.manual_seed(0)
        samples.append(module.sample(2))
    assert torch.equal(samples[0], samples[1]) and not torch.allclose(samples[0], samples[2])

    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=True)
    torch.save(checkpoint | {"parametrization": "magic"}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="unknown parametrization 'magic'"):
        read_checkpoint(tmp_path / "model.ckpt")
    del checkpoint["parametrization"]  # as written before there was a choice
    torch.save(checkpoint, tmp_path / "model.ckpt")
    again.load(tmp_path / "model.ckpt")
    assert again.parametrization == "direct"


@pytest.mark.parametrize(("name", "value"), [("parametrization", "v"), ("loss_weight", "p2")])
def test_what_is_unknown_is_named(name, value):
    with pytest.raises(ValueError, match=f"'{value}': choose one of"):
        DiffusionModule(None, None, **{name: value})
