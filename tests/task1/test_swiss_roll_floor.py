"""The lowest possible loss: the mean of the noise given x_t, from the points of the target."""

import csv

import pytest
import torch

from ddpm import BaseScheduler, DiffusionModule


@pytest.fixture
def floor(load_report):
    return load_report("swiss_roll_floor")


@pytest.mark.parametrize("t", [300, 600])
def test_the_best_prediction_for_a_gaussian_is_the_known_one(floor, t):
    target, x_0, noise = torch.randn(100_000, 2), torch.randn(500, 2), torch.randn(500, 2)
    scheduler = BaseScheduler(1000)
    alpha_bar = scheduler.alpha_bars[t]
    x_t = DiffusionModule(None, scheduler).q_sample(2 * x_0, t, noise)
    exact = (1 - alpha_bar) ** 0.5 / (4 * alpha_bar + 1 - alpha_bar) * x_t
    found = floor.best_prediction(x_t, 2 * target, alpha_bar)
    assert (found - exact).square().mean() < 0.01 * exact.square().mean()


def test_the_best_prediction_of_a_single_point_is_the_noise_itself(floor):
    noise = torch.randn(5, 2)
    assert torch.allclose(
        floor.best_prediction(0.6 * torch.ones(5, 2) + 0.8 * noise, torch.ones(1, 2), 0.36), noise.double()
    )


def test_the_program_compares_a_trained_network_with_it(program, tmp_path):
    run = program(
        "../report/swiss_roll_floor.py", "--num_iterations", 20, "--points", 100, "--target", 5000, "--out", "."
    )
    assert run.returncode == 0, run.stderr
    rows = list(csv.DictReader((tmp_path / "tables/swiss_roll_floor.csv").open()))
    assert [int(row["t"]) for row in rows] == list(range(10, 1000, 20))
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1, abs=1e-3)
    assert float(rows[0]["share"]) > 0.05 > float(rows[-1]["share"])
    assert sum(float(row["best"]) for row in rows) < sum(float(row["model"]) for row in rows)
    assert (tmp_path / "figures/swiss_roll_floor.svg").stat().st_size > 1000
