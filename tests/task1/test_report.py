"""The report's programs for Task 1: the lowest possible loss, and the ablation."""

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
    noise, x_0 = torch.randn(5, 2), torch.ones(1, 2)
    assert torch.allclose(floor.best_prediction(0.6 * x_0 + 0.8 * noise, x_0, 0.36), noise.double())


def test_the_lowest_loss_is_below_that_of_a_trained_network(program, tmp_path):
    flags = "--num_iterations", 20, "--points", 100, "--target", 5000, "--out", "."
    run = program("../report/swiss_roll_floor.py", *flags)
    assert run.returncode == 0, run.stderr
    rows = list(csv.DictReader((tmp_path / "tables/swiss_roll_floor.csv").open()))
    assert [int(row["t"]) for row in rows] == list(range(10, 1000, 20))
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1, abs=1e-3)
    assert float(rows[0]["share"]) > 0.05 > float(rows[-1]["share"])
    assert sum(float(row["best"]) for row in rows) < sum(float(row["model"]) for row in rows)
    assert (tmp_path / "figures/swiss_roll_floor.svg").stat().st_size > 1000


def test_finished_runs_of_the_ablation_are_not_repeated(program, request):
    table = request.config.rootpath / "report/tables/swiss_roll_choices.csv"
    before = table.stat().st_mtime_ns
    run = program("../report/swiss_roll_choices.py", "--seeds", 3)
    assert run.returncode == 0, run.stderr
    assert str(table) in run.stdout and table.stat().st_mtime_ns == before
