"""The toy data sets and their loaders."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons, make_s_curve, make_swiss_roll
from torch.utils.data import DataLoader, random_split

from dataset import DATASETS, TwoDimDataClass, get_data_iterator, load_twodim, normalize


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_has_any_number_of_points_and_follows_numpys_seed(name):
    for n in (1, 2, 777):
        np.random.seed(5)
        points, other = load_twodim(n, name), load_twodim(n, name)
        assert points.shape == (n, 2) and points.dtype == torch.float32 and points.isfinite().all()
        np.random.seed(5)
        assert torch.equal(load_twodim(n, name), points)
    assert not torch.equal(points, other)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("swiss_roll", lambda: make_swiss_roll(500, noise=0.0, hole=True)[0][:, [0, 2]]),
        ("scurve", lambda: make_s_curve(500, noise=0.0)[0][:, [0, 2]]),
        ("moon", lambda: make_moons(500, noise=0.0)[0]),
    ],
)
def test_shapes_are_scikit_learns_with_mean_0_and_deviation_2(name, make):
    np.random.seed(3)
    expected = make()
    expected = (expected - expected.mean()) / expected.std()
    np.random.seed(3)
    np.testing.assert_allclose(load_twodim(500, name), 2 * expected, atol=1e-6)
    np.testing.assert_allclose(normalize(5 + 3 * expected, scaling_factor=4), 4 * expected, atol=1e-6)


def test_circle_has_two_rings():
    radius = load_twodim(1000, "circle").norm(dim=1)
    assert [((radius - r).abs() < 1e-4).sum() for r in (2, 4)] == [500, 500]


def test_checkerboard_fills_every_second_square_evenly_with_deviation_2():
    points = load_twodim(16000, "checkerboard")
    assert points.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert points.std(correction=0).item() == pytest.approx(2.0, rel=1e-5)
    low, high = points.amin(0), points.amax(0)
    cells = ((points - low) / (high - low) * 3.9999).long()
    counts = torch.bincount(4 * cells[:, 0] + cells[:, 1], minlength=16).reshape(4, 4)
    black = torch.tensor([[(i + j) % 2 == 0 for j in range(4)] for i in range(4)])
    assert counts[~black].sum() < 16  # the edges of the board are known to 1/2000 only
    assert (counts[black] - 2000).abs().max() < 210  # 5 standard deviations


@pytest.mark.parametrize(("name", "mean"), [("gaussian_centered", 0.0), ("gaussian_shift", 1.5)])
def test_gaussians_have_unit_variance_in_any_dimension(name, mean):
    points = load_twodim(40000, name, dimension=3)
    assert points.shape == (40000, 3)
    assert (points.mean(0) - mean).abs().max() < 5 / 200
    assert (points.var(0) - 1).abs().max() < 5 * 2**0.5 / 200


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((10, "spiral"), "spiral.*" + ".*".join(DATASETS)),
        ((0, "moon"), "num_samples.*0"),
        ((10, "moon", 3), "moon.*3"),
        ((10, "gaussian_shift", 0), "gaussian_shift.*0"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        load_twodim(*arguments)


def test_loader_yields_each_point_once_an_epoch_and_reshuffles():
    ds = TwoDimDataClass("moon", 100, 16)
    loader = ds.get_dataloader()
    epochs = [list(loader), list(loader)]
    for batches in epochs:
        assert [len(b) for b in batches] == [16] * 6 + [4]
        assert torch.equal(torch.cat(batches).sort(0).values, ds.X.sort(0).values)
    assert len(loader) == 7 and not torch.equal(epochs[0][0], epochs[1][0])
    assert torch.equal(torch.cat(list(ds.get_dataloader(shuffle=False))), ds.X)


def test_iterator_starts_each_pass_anew_and_never_hangs():
    numbers = itertools.count()
    loader = type("Loader", (), {"__iter__": lambda _: iter([next(numbers)])})()
    assert list(itertools.islice(get_data_iterator(loader), 3)) == [0, 1, 2]
    with pytest.raises(ValueError):
        next(get_data_iterator([]))


def test_indexing_pytorchs_own_loader_and_subsets_work():
    ds = TwoDimDataClass("moon", 100, 16)
    assert len(ds) == 100 and all(torch.equal(ds[i], ds.X[i]) for i in (3, -1, slice(10, 20), [5, 1]))
    parts = [torch.cat(list(DataLoader(part, batch_size=7))) for part in random_split(ds, [80, 20])]
    assert torch.equal(torch.cat(parts).sort(0).values, ds.X.sort(0).values)
