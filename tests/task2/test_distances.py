"""The Frechet distance and KID by closed forms, by SciPy's matrix root and by scikit-learn's kernel."""

import numpy as np
import pytest
from scipy import linalg
from sklearn.metrics.pairwise import polynomial_kernel

from fid.frechet import fit_gaussian, frechet_distance, gaussian_from_statistics
from fid.kid import kernel_distance, squared_mmd


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


def test_covariances_that_commute_compare_deviation_by_deviation():
    rng = np.random.default_rng(0)
    a, b, Q, mu = rng.uniform(0, 9, 20), rng.uniform(0, 9, 20), rotation(rng, 20), np.zeros(20)
    a[:3] = b[2:6] = 0
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert distance(mu, np.diag(a), mu, np.diag(b)) == pytest.approx(expected, rel=1e-12)
    assert distance(mu, Q * a @ Q.T, mu, Q * b @ Q.T) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("width", [1, 2, 30, 100])
def test_agrees_with_scipys_matrix_root(width):
    rng = np.random.default_rng(width)
    sigma1, sigma2 = random_covariance(rng, width, 3 * width), random_covariance(rng, width, 3 * width)
    mu1, mu2 = rng.normal(size=width), rng.normal(size=width)
    root = np.trace(linalg.sqrtm(sigma1 @ sigma2)).real
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * root
    assert distance(mu1, sigma1, mu2, sigma2) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (10, 40), (40, 10), (100, 101), (300, 50)])
def test_features_have_the_distance_of_their_covariances_however_few_they_are(n, m):
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
    """In float32, squares of values near 4096 lose a deviation of 1/64."""
    features = np.full((1000, 2), 4096, dtype=np.float32)
    features[::2] += np.float32(1 / 32)
    mu, factor = fit_gaussian(features)
    assert mu == pytest.approx([4096 + 1 / 64] * 2, rel=1e-14)
    assert factor @ factor.T == pytest.approx(np.full((2, 2), 1000 / 999 / 64**2), rel=1e-9)


# KID.


def test_the_estimate_is_the_mean_over_pairs_of_different_images():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(7, 30)), rng.normal(size=(5, 30)) + 0.5

    def mean(A, B, same):
        kernel = polynomial_kernel(A, B, degree=3)
        return np.mean([kernel[i, j] for i in range(len(A)) for j in range(len(B)) if not (same and i == j)])

    assert squared_mmd(X, Y) == pytest.approx(mean(X, X, True) + mean(Y, Y, True) - 2 * mean(X, Y, False), rel=1e-12)


def test_mean_and_deviation_are_those_of_subsets_of_half_the_smaller_set():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(90, 10)), rng.normal(size=(40, 10)) + 0.1
    mean, std, subsets, size = kernel_distance(X, Y)
    assert (subsets, size) == (100, 20)
    assert mean == pytest.approx(squared_mmd(X, Y), abs=4 * std / 100**0.5)
    assert 0 < std < kernel_distance(X[:20], Y[:20]).std
    assert kernel_distance(X, Y) == (mean, std, subsets, size)
    assert kernel_distance(X, Y, seed=1).mean != mean
    assert kernel_distance(np.zeros((4000, 1)), np.zeros((2500, 1)), subsets=1).subset_size == 1000
