"""report/explain_predictors.py: its quantities against regression, the sampler and ideal networks."""

import numpy as np
import pytest
import torch

import explain_predictors
from common import read_table
from conftest import SMALL_UNET
from model import DiffusionModule
from network import UNet
from oracles import Ideal, alpha_bars, awake, eq_7
from scheduler import MODES, PREDICTORS, DDPMScheduler


@pytest.mark.parametrize("mode", MODES)
def test_residuals_are_what_regression_leaves_and_weights_squares_of_what_an_error_of_x0_becomes(mode):
    """The residual: against a least-squares fit of the target to x_t, on data of variance 1."""
    scheduler, squares = DDPMScheduler(1000, 1e-4, 0.02, mode), {predictor: [] for predictor in PREDICTORS}
    x_0, eps = torch.randn(2, 200_000, dtype=torch.float64)
    for t in (0, 500, 900):
        alpha_bar, _ = alpha_bars(scheduler, t)
        x_t = alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * eps
        for predictor, target in {"noise": eps, "x0": x_0, "mean": eq_7(scheduler, t, x_0, x_t)[0]}.items():
            rest = target - (target @ x_t) / (x_t @ x_t) * x_t
            expected = explain_predictors.residual(scheduler, predictor)[t]
            assert rest.square().mean().sqrt().item() == pytest.approx(expected, rel=0.02)
            of_x0 = {"noise": (alpha_bar / (1 - alpha_bar)) ** 0.5, "x0": 1, "mean": eq_7(scheduler, t, 1, 0)[0]}
            squares[predictor].append(of_x0[predictor] ** 2)
    for predictor, expected in squares.items():
        weights = explain_predictors.weight_on_x0(scheduler, predictor)
        assert weights.max() == 1
        assert np.allclose(weights[[0, 500, 900]] / weights[0], np.array(expected) / expected[0], rtol=1e-3)


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_errors_of_models_are_comparable_between_predictors(predictor):
    """An ideal network for Gaussian images has the errors of E[x_0 | x_t], whatever it predicts."""
    scheduler = DDPMScheduler(100, 1e-3, 0.2, "cosine")
    ddpm = DiffusionModule(Ideal(scheduler, 0.0, 0.5, predictor), scheduler, predictor)
    images = 0.5 * torch.randn(400, 3, 8, 8, generator=torch.Generator().manual_seed(5))  # unlike the noise
    for t, of_x0, of_eps in explain_predictors.errors_of(ddpm, images, [10, 50, 90]):
        alpha_bar, _ = alpha_bars(scheduler, t)
        variance = 0.25 * (1 - alpha_bar) / (0.25 * alpha_bar + 1 - alpha_bar)
        assert of_x0 == pytest.approx(variance**0.5, rel=0.02)
        assert of_eps == pytest.approx((variance * alpha_bar / (1 - alpha_bar)) ** 0.5, rel=0.02)


def test_the_errors_of_checkpoints_become_a_figure_and_a_table(program, faces, tmp_path):
    for name, mode, predictor in [("a", "cosine", "x0"), ("b", "linear", "mean")]:
        network, scheduler = awake(UNet(T=12, **SMALL_UNET)), DDPMScheduler(12, 1e-3, 0.3, mode)
        DiffusionModule(network, scheduler, predictor).save(tmp_path / f"{name}.ckpt")
    flags = ["--ckpt_path", "a.ckpt", "b.ckpt", "--data_root", faces, "--images", 1, "--out", "out"]
    run = program("../report/explain_predictors.py", *flags)
    assert run.returncode == 0, run.stderr
    assert {path.name for path in (tmp_path / "out/figures").iterdir()} == {"predictors.png", "predictor_errors.png"}
    rows = read_table(tmp_path / "out/tables/predictor_errors.csv")
    assert {row["model"] for row in rows} == {"cosine, x0, direct", "linear, mean, direct"}
    assert {int(row["t"]) for row in rows} == set(range(12))
