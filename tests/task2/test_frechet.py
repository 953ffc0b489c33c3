"""The Frechet distance by its closed forms, by SciPy's matrix root, and from few features."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from fid.frechet import fit_gaussian, frechet_distance, gaussian_from_statistics


def random_covariance(rng, width, rank):
    factor = rng.normal(size=(width, rank))
    return factor @ factor.T / rank


def rotation(rng, width):
    return np.linalg.qr(rng.normal(size=(width, width)))[0]


def distance(mu1, sigma1, mu2, sigma2):
    return frechet_distance(gaussian_from_statistics(mu1, sigma1), gaussian_from_statistics(mu2, sigma2))


@pytest.mark.parametrize("rank", [1, 5, 20, 100])
def test_equal_covariances_leave_the_squared_distance_of_the_means(rank):
    rng = np.random.default_rng(0)
    sigma, mu1, mu2 = random_covariance(rng, 20, rank), rng.normal(size=20), rng.normal(size=20)
    assert distance(mu1, sigma, mu2, sigma) == pytest.approx(((mu1 - mu2) ** 2).sum(), rel=1e-12)
    assert distance(mu1, sigma, mu1, sigma) == pytest.approx(0, abs=1e-12 * np.trace(sigma))


def test_one_dimension_is_a_formula_by_hand():
    assert distance([1.0], [[4.0]], [3.0], [[25.0]]) == pytest.approx(2**2 + (2 - 5) ** 2)


def test_covariances_that_commute_compare_deviation_by_deviation():
    rng = np.random.default_rng(0)
    a, b, Q, mu = rng.uniform(0, 9, 20), rng.uniform(0, 9, 20), rotation(rng, 20), np.zeros(20)
    a[:3] = b[2:6] = 0
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert distance(mu, np.diag(a), mu, np.diag(b)) == pytest.approx(expected, rel=1e-12)
    assert distance(mu, Q * a @ Q.T, mu, Q * b @ Q.T) == pytest.approx(expected, rel=1e-12)


def test_covariances_without_a_common_direction_add_up():
    rng = np.random.default_rng(0)
    sigma1, sigma2, Q, mu = np.zeros((20, 20)), np.zeros((20, 20)), rotation(rng, 20), np.zeros(20)
    sigma1[:8, :8], sigma2[8:, 8:] = random_covariance(rng, 8, 8), random_covariance(rng, 12, 3)
    expected = np.trace(sigma1) + np.trace(sigma2)
    assert distance(mu, Q @ sigma1 @ Q.T, mu, Q @ sigma2 @ Q.T) == pytest.approx(expected, rel=1e-12)
    assert distance(mu, sigma1, mu, np.zeros((20, 20))) == pytest.approx(np.trace(sigma1), rel=1e-12)


@pytest.mark.parametrize("width", [1, 2, 30, 100])
def test_agrees_with_scipys_matrix_root(width):
    rng = np.random.default_rng(width)
    sigma1, sigma2 = random_covariance(rng, width, 3 * width), random_covariance(rng, width, 3 * width)
    mu1, mu2 = rng.normal(size=width), rng.normal(size=width)
    root = np.trace(linalg.sqrtm(sigma1 @ sigma2)).real
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * root
    assert distance(mu1, sigma1, mu2, sigma2) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 15), st.integers(1, 15), st.floats(0.1, 10))
def test_is_a_squared_distance_that_depends_on_no_axes_and_no_origin(seed, width, rank1, rank2, scale):
    rng = np.random.default_rng(seed)
    mu1, mu2 = rng.normal(size=(2, width))
    sigma1, sigma2 = random_covariance(rng, width, rank1), random_covariance(rng, width, rank2)
    found = distance(mu1, sigma1, mu2, sigma2)
    assert found >= ((mu1 - mu2) ** 2).sum() * (1 - 1e-9)
    assert distance(mu2, sigma2, mu1, sigma1) == pytest.approx(found, rel=1e-9)
    A, b = scale * rotation(rng, width), rng.normal(size=width)
    moved = distance(A @ mu1 + b, A @ sigma1 @ A.T, A @ mu2 + b, A @ sigma2 @ A.T)
    assert moved == pytest.approx(scale**2 * found, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (10, 40), (40, 10), (100, 101), (300, 50)])
def test_features_have_the_distance_of_their_covariances(n, m):
    """However few they are."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(100, 100)) * np.geomspace(1, 1e-3, 100)
    X, Y = rng.normal(size=(n, 100)) @ mixing, rng.normal(size=(m, 100)) @ mixing + 0.01
    for features in (X, Y):
        mu, factor = fit_gaussian(features)
        assert mu == pytest.approx(features.mean(axis=0), rel=1e-12)
        assert factor.shape == (100, min(len(features), 100))
        assert factor @ factor.T == pytest.approx(np.cov(features, rowvar=False), rel=1e-9, abs=1e-12)
    expected = distance(X.mean(0), np.cov(X, rowvar=False), Y.mean(0), np.cov(Y, rowvar=False))
    assert frechet_distance(fit_gaussian(X), fit_gaussian(Y)) == pytest.approx(expected, rel=1e-9)


def test_statistics_are_taken_in_float64():
    """In float32, squares of values near 4096 swallow a deviation of 1/64."""
    features = np.full((1000, 2), 4096, dtype=np.float32)
    features[::2] += np.float32(1 / 32)
    mu, factor = fit_gaussian(features)
    assert mu == pytest.approx([4096 + 1 / 64] * 2, rel=1e-14)
    assert factor @ factor.T == pytest.approx(np.full((2, 2), 1000 / 999 / 64**2), rel=1e-9)


def test_few_images_need_no_square_matrix():
    """What makes the distance of wide features cheap: nothing is as large as a covariance."""
    width = 4096
    X = np.random.default_rng(0).normal(size=(20, width))
    tracemalloc.start()
    try:
        frechet_distance(fit_gaussian(X), fit_gaussian(X[5:] + 1))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert X.nbytes < peak < 8 * width**2 / 20
