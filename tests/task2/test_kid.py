"""The kernel distance by closed forms and against scikit-learn's kernel."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel as sklearns_kernel

from fid.kid import kernel_distance, polynomial_kernel, squared_mmd


def test_the_kernel_is_scikit_learns_polynomial_of_degree_3():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(7, 30)), rng.normal(size=(5, 30))
    assert polynomial_kernel(X, Y) == pytest.approx(sklearns_kernel(X, Y, degree=3, gamma=1 / 30, coef0=1), rel=1e-12)


def test_the_estimate_is_the_mean_over_pairs_of_different_images():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(7, 30)), rng.normal(size=(5, 30)) + 0.5

    def mean(A, B, same):
        kernel = sklearns_kernel(A, B, degree=3)
        return np.mean([kernel[i, j] for i in range(len(A)) for j in range(len(B)) if not (same and i == j)])

    assert squared_mmd(X, Y) == pytest.approx(mean(X, X, True) + mean(Y, Y, True) - 2 * mean(X, Y, False), rel=1e-12)


def test_sets_of_equal_images_have_the_distance_of_two_points():
    a, b = np.array([1.0, 2.0]), np.array([3.0, -1.0])
    expected = (5 / 2 + 1) ** 3 + (10 / 2 + 1) ** 3 - 2 * (1 / 2 + 1) ** 3
    found = kernel_distance(np.tile(a, (8, 1)), np.tile(b, (6, 1)))
    assert found.mean == pytest.approx(expected, rel=1e-12) and found.std == pytest.approx(0, abs=1e-9)
    assert squared_mmd(np.tile(a, (2, 1)), np.tile(a, (3, 1))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("count", [2, 20])
def test_the_estimate_has_no_bias_however_few_the_images(count):
    """For N(m, 1) in one dimension, E (x y + 1)^3 is a sum of products of moments."""

    def expected_kernel(m, n):
        moments = [(1, m, m**2 + 1, m**3 + 3 * m) for m in (m, n)]
        return sum(c * a * b for c, a, b in zip((1, 3, 3, 1), *moments, strict=True))

    expected = expected_kernel(0, 0) + expected_kernel(0.5, 0.5) - 2 * expected_kernel(0, 0.5)
    rng = np.random.default_rng(0)
    estimates = [squared_mmd(rng.normal(size=(count, 1)), rng.normal(size=(count, 1)) + 0.5) for _ in range(5000)]
    assert abs(np.mean(estimates) - expected) < 4 * np.std(estimates) / 5000**0.5


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
