"""report/explain_predictors.py: its quantities against regression, the sampler and ideal networks."""

import numpy as np
import pytest
import torch

import common
import explain_predictors
import samplers
from conftest import SMALL_UNET
from model import DiffusionModule
from network import UNet
from oracles import Ideal, alpha_bars, awake, eq_7
from scheduler import MODES, PREDICTORS, DDPMScheduler


@pytest.mark.parametrize("mode", MODES)
def test_the_residual_of_a_target_is_what_regression_leaves(mode):
    """Against a least-squares fit of the target to x_t, on data of variance 1."""
    scheduler = DDPMScheduler(1000, 1e-4, 0.02, mode)
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 200_000, generator=generator, dtype=torch.float64)
    for t in (0, 500, 900):
        alpha_bar, _ = alpha_bars(scheduler, t)
        x_t = alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * eps
        for predictor, target in {"noise": eps, "x0": x_0, "mean": eq_7(scheduler, t, x_0, x_t)[0]}.items():
            rest = target - (target @ x_t) / (x_t @ x_t) * x_t
            expected = explain_predictors.residual(scheduler, predictor)[t]
            assert rest.square().mean().sqrt().item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("mode", MODES)
def test_the_weight_of_an_error_of_x0_is_the_square_of_what_it_becomes(mode):
    """A difference of 1 in x_0 is one of noise and mean; its square is the weight, up to a factor."""
    scheduler, squares = DDPMScheduler(1000, 1e-4, 0.02, mode), []
    for t in range(0, 1000, 111):
        alpha_bar, _ = alpha_bars(scheduler, t)
        squares.append((alpha_bar / (1 - alpha_bar), 1, eq_7(scheduler, t, 1, 0)[0] ** 2))
    for predictor, expected in zip(("noise", "x0", "mean"), np.transpose(squares), strict=True):
        weights = explain_predictors.weight_on_x0(scheduler, predictor)[::111]
        assert weights.max() <= 1 and np.allclose(weights / weights[0], expected / expected[0], rtol=1e-3)


@pytest.mark.parametrize("first_only", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_the_growth_of_an_error_is_that_in_a_chain_of_the_sampler(mode, first_only):
    scheduler = DDPMScheduler(100, mode=mode)
    ideal = Ideal(scheduler, 0.0, 0.5)
    for std, network in ((0.5, ideal), (None, lambda x, t: torch.zeros_like(x))):

        def predict(x, t, network=network):
            return network(x, torch.tensor(t)) - float(t == 99 or not first_only)

        *_, x_0 = samplers.ddpm(predict, scheduler, torch.zeros(1, 1, 1, 1), randn_like=torch.zeros_like)
        assert x_0.item() == pytest.approx(explain_predictors.error_growth(scheduler, std, first_only), rel=1e-3)


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_errors_of_models_are_comparable_between_predictors(predictor):
    """An ideal network for Gaussian images has the errors of E[x_0 | x_t], whatever it predicts."""
    scheduler = DDPMScheduler(100, 1e-3, 0.2, "cosine")
    ddpm = DiffusionModule(Ideal(scheduler, 0.0, 0.5, predictor), scheduler, predictor)
    images = 0.5 * torch.randn(400, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    for t, of_x0, of_eps in explain_predictors.errors_of(ddpm, images, [10, 50, 90]):
        alpha_bar, _ = alpha_bars(scheduler, t)
        variance = 0.25 * (1 - alpha_bar) / (0.25 * alpha_bar + 1 - alpha_bar)
        assert of_x0 == pytest.approx(variance**0.5, rel=0.02)
        assert of_eps == pytest.approx((variance * alpha_bar / (1 - alpha_bar)) ** 0.5, rel=0.02)


def test_the_errors_of_checkpoints_become_a_figure_and_a_table(program, faces, tmp_path):
    for name, mode, predictor in [("model", "cosine", "x0"), ("mean", "linear", "mean")]:
        network, scheduler = awake(UNet(T=12, **SMALL_UNET)), DDPMScheduler(12, 1e-3, 0.3, mode)
        DiffusionModule(network, scheduler, predictor).save(tmp_path / f"{name}.ckpt")
    flags = ["--data_root", faces, "--images", 1, "--out", "out"]
    run = program("../report/explain_predictors.py", "--ckpt_path", "model.ckpt", "mean.ckpt", *flags)
    assert run.returncode == 0, run.stderr
    assert {path.name for path in (tmp_path / "out/figures").iterdir()} == {"predictors.png", "predictor_errors.png"}
    rows = common.read_table(tmp_path / "out/tables/predictor_errors.csv")
    assert {row["model"] for row in rows} == {"cosine, x0, direct", "linear, mean, direct"}
    assert {int(row["t"]) for row in rows} == set(range(12))
    assert len(common.read_table(tmp_path / "out/tables/error_growth.csv")) == 2 * len(MODES)
