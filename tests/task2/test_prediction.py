"""Conversions between noise, x_0, mean and v, and the loss weights."""

import pytest
import torch
from torch import nn

from model import DiffusionModule
from oracles import alpha_bars, eq_7, max_difference
from prediction import LOSS_WEIGHTS, loss_weights, to_x0_and_eps
from scheduler import MODES, PREDICTORS, DDPMScheduler

T = 1000


@pytest.fixture(params=MODES)
def scheduler(request):
    return DDPMScheduler(T, 1e-4, 0.02, request.param)


@pytest.mark.parametrize("kind", [*PREDICTORS, "v"])
@pytest.mark.parametrize("t", [0, 1, T // 2, T - 2, T - 1])
def test_every_kind_of_output_gives_x0_and_eps(scheduler, kind, t):
    x_0, eps = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    alpha_bar, _ = alpha_bars(scheduler, t)
    a, s = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    x_t = a * x_0 + s * eps
    output = {"noise": eps, "x0": x_0, "mean": eq_7(scheduler, t, x_0, x_t)[0], "v": a * eps - s * x_0}[kind]
    found_x_0, found_eps = to_x0_and_eps(output, x_t, t, kind, scheduler)
    # Near x_T, x_0 is a small part of noise and mean, whose coefficients are float32.
    assert max_difference(found_x_0, x_0) < (2e-3 if kind in ("noise", "mean") else 1e-6)
    assert max_difference(found_eps, eps) < 1e-4


def test_outputs_in_half_precision_are_converted_in_float32(scheduler):
    x_t, output = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4).bfloat16()
    for kind in (*PREDICTORS, "v"):
        found = to_x0_and_eps(output, x_t, 500, kind, scheduler)
        expected = to_x0_and_eps(output.float(), x_t, 500, kind, scheduler)
        assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(found, expected, strict=True))


class KnowsX0(nn.Module):
    """A network that outputs the true v of known images, plus an error."""

    def __init__(self, scheduler, x_0, error=0.0):
        super().__init__()
        self.scheduler, self.x_0, self.error = scheduler, x_0, error

    def forward(self, x_t, t):
        outputs = []
        for x, x_0, t_i in zip(x_t.double(), self.x_0.double(), t.tolist(), strict=True):
            alpha_bar, _ = alpha_bars(self.scheduler, t_i)
            eps = (x - alpha_bar**0.5 * x_0) / (1 - alpha_bar) ** 0.5
            outputs.append(alpha_bar**0.5 * eps - (1 - alpha_bar) ** 0.5 * x_0)
        return (torch.stack(outputs) + self.error).float()


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_preconditioned_module_converts_the_output_of_its_network(scheduler, predictor):
    x_0 = torch.randn(16, 3, 8, 8)
    model = DiffusionModule(KnowsX0(scheduler, x_0), scheduler, predictor, parametrization="preconditioned")
    assert model.get_loss(x_0).item() < 1e-9


@pytest.mark.parametrize("kind", ["snr", "min-snr"])
def test_weighted_losses_of_all_predictors_are_equal_and_weight_the_error_of_x0(scheduler, kind):
    x_0 = torch.randn(64, 3, 8, 8)
    t = torch.linspace(5, T - 5, len(x_0)).long()
    scheduler.uniform_sample_t = lambda batch_size, device=None: t
    losses = []
    for predictor in PREDICTORS:
        network = KnowsX0(scheduler, x_0, error=0.1)  # of v; sqrt(1 - alpha-bar) times that of x_0
        model = DiffusionModule(network, scheduler, predictor, "fp32", "preconditioned", kind)
        losses.append(model.get_loss(x_0).item())
    expected = 0.0
    for t_i in t.tolist():
        alpha_bar, _ = alpha_bars(scheduler, t_i)
        snr = alpha_bar / (1 - alpha_bar)
        expected += (snr if kind == "snr" else min(snr, 5.0)) * (1 - alpha_bar) * 0.01 / len(t)
    assert losses == pytest.approx([expected] * 3, rel=2e-3)


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("kind", LOSS_WEIGHTS)
def test_weights_are_finite_where_alpha_bar_underflows(predictor, kind):
    scheduler = DDPMScheduler(100_000, 1e-4, 0.02)
    assert scheduler.alpha_bars[99_999] < 1e-300
    weights = loss_weights(kind, predictor, scheduler)
    assert weights.isfinite().all() and (weights >= 0).all()
    if kind == "none" or (kind, predictor) == ("snr", "noise"):  # the plain loss
        assert (weights == 1).all()


@pytest.mark.parametrize("argument", ["predictor", "precision", "parametrization", "loss_weight"])
def test_unknown_choices_are_value_errors(argument):
    with pytest.raises(ValueError, match="'velocity'"):
        DiffusionModule(None, None, **{argument: "velocity"})
