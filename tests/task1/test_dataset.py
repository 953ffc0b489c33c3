import itertools

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons, make_s_curve, make_swiss_roll

from dataset import DATASETS, TwoDimDataClass, get_data_iterator, load_twodim, normalize


def test_normalize_scales_the_whole_array_and_keeps_proportions():
    points = np.random.rand(1000, 2) * [3.0, 1.0] + 5.0
    scaled = normalize(points, scaling_factor=4.0)
    assert scaled.mean() == pytest.approx(0.0, abs=1e-9)
    assert scaled.std() == pytest.approx(4.0)
    ratio = np.ptp(scaled, axis=0) / np.ptp(points, axis=0)
    assert ratio[0] == pytest.approx(ratio[1])


def test_the_contracts_data_sets_are_all_there():
    expected = {"swiss_roll", "moon", "circle", "scurve", "checkerboard", "gaussian_centered", "gaussian_shift"}
    assert set(DATASETS) == expected


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("n", [1, 2, 777])
def test_every_data_set_gives_what_was_asked_for(name, n):
    if n == 1 and name in ("swiss_roll", "moon", "scurve"):
        # One normalised point still has two coordinates of mean 0 and deviation 2.
        assert load_twodim(n, name).abs().max() == pytest.approx(2.0, rel=1e-4)
    points = load_twodim(n, name)
    assert points.shape == (n, 2)
    assert points.dtype == torch.float32
    assert points.isfinite().all()


@pytest.mark.parametrize("name", DATASETS)
def test_data_follow_numpys_seed(name):
    np.random.seed(5)
    first = load_twodim(64, name)
    second = load_twodim(64, name)
    np.random.seed(5)
    assert torch.equal(load_twodim(64, name), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["swiss_roll", "moon", "scurve"])
def test_normalised_sets_have_mean_0_and_deviation_2(name):
    points = load_twodim(5000, name).double()
    assert points.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert points.std(correction=0).item() == pytest.approx(2.0, rel=1e-5)


def test_shapes_are_scikit_learns():
    make = {
        "swiss_roll": lambda n: make_swiss_roll(n, noise=0.0, hole=True)[0][:, [0, 2]],
        "scurve": lambda n: make_s_curve(n, noise=0.0)[0][:, [0, 2]],
        "moon": lambda n: make_moons(n, noise=0.0)[0],
    }
    for name, points in make.items():
        np.random.seed(3)
        expected = points(500)
        expected = (expected - expected.mean()) / expected.std() * 2
        np.random.seed(3)
        np.testing.assert_allclose(load_twodim(500, name).numpy(), expected, atol=1e-6, err_msg=name)


def test_circle_has_two_rings():
    radius = load_twodim(1000, "circle").norm(dim=1)
    assert ((radius - 4).abs() < 1e-4).sum() == 500
    assert ((radius - 2).abs() < 1e-4).sum() == 500


def test_checkerboard_fills_every_second_square_evenly():
    cells = (load_twodim(16000, "checkerboard") / 2 + 2).floor().long()
    assert cells.min() == 0 and cells.max() == 3
    counts = torch.zeros(4, 4).index_put_((cells[:, 0], cells[:, 1]), torch.ones(16000), accumulate=True)
    black = torch.tensor([[(i + j) % 2 == 0 for j in range(4)] for i in range(4)])
    assert counts[~black].sum() == 0
    # 2000 expected in each of the 8 squares, standard deviation 42.
    assert (counts[black] - 2000).abs().max() < 210


@pytest.mark.parametrize(("name", "mean"), [("gaussian_centered", 0.0), ("gaussian_shift", 1.5)])
def test_gaussians_have_unit_variance_at_their_mean_in_any_dimension(name, mean):
    points = load_twodim(40000, name, dimension=3)
    assert points.shape == (40000, 3)
    assert (points.mean(0) - mean).abs().max() < 5 / 200
    assert (points.var(0) - 1).abs().max() < 5 * 2**0.5 / 200


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((10, "spiral"), "'spiral': choose one of swiss_roll, moon"),
        ((0, "moon"), "num_samples must be at least 1"),
        ((10, "moon", 3), "'moon' has no points of dimension 3"),
        ((10, "gaussian_shift", 0), "no points of dimension 0"),
    ],
)
def test_bad_requests_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        load_twodim(*arguments)


def test_data_class_indexes_like_its_points():
    ds = TwoDimDataClass("moon", 100, 16)
    assert len(ds) == 100
    assert ds.X.shape == (100, 2)
    assert torch.equal(ds[3], ds.X[3])
    assert torch.equal(ds[-1], ds.X[99])
    assert torch.equal(ds[10:20], ds.X[10:20])
    assert torch.equal(ds[torch.tensor([5, 1])], ds.X[[5, 1]])


def test_loader_gives_each_point_once_an_epoch_and_shuffles_anew():
    ds = TwoDimDataClass("moon", 100, 16)
    loader = ds.get_dataloader()
    epochs = [list(loader), list(loader)]
    for batches in epochs:
        assert [len(b) for b in batches] == [16] * 6 + [4]
        assert torch.equal(torch.cat(batches).sort(0).values, ds.X.sort(0).values)
    assert not torch.equal(epochs[0][0], epochs[1][0])
    in_order = torch.cat(list(ds.get_dataloader(shuffle=False)))
    assert torch.equal(in_order, ds.X)


def test_iterator_is_endless_and_starts_a_new_pass_each_time():
    passes = itertools.count()

    class Shuffled:
        def __iter__(self):
            k = next(passes)
            return iter([10 * k, 10 * k + 1])

    assert list(itertools.islice(get_data_iterator(Shuffled()), 5)) == [0, 1, 10, 11, 20]


def test_iterator_over_nothing_is_an_error_rather_than_a_hang():
    with pytest.raises(ValueError, match="empty"):
        next(get_data_iterator([]))
