import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from chamferdist import chamfer_distance


def by_definition(S1, S2):
    squared = ((np.asarray(S1, float)[:, None] - np.asarray(S2, float)[None]) ** 2).sum(-1)
    return squared.min(1).sum() + squared.min(0).sum()


points = st.tuples(st.integers(1, 30), st.just(2)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(-100, 100, width=32))
)


@settings(max_examples=60, deadline=None)
@given(points, points)
def test_agrees_with_the_definition(S1, S2):
    assert chamfer_distance(S1, S2) == pytest.approx(by_definition(S1, S2), rel=1e-9, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(points, points)
def test_is_symmetric_and_zero_for_the_same_set(S1, S2):
    assert chamfer_distance(S1, S2) == pytest.approx(chamfer_distance(S2, S1), rel=1e-12)
    assert chamfer_distance(S1, S1[::-1]) == 0


def test_is_a_sum_of_squares_both_ways():
    # 3^2 and 4^2 from S1, and 3^2 from the single point of S2.
    assert chamfer_distance(np.array([[3.0, 0.0], [0.0, 4.0]]), np.array([[0.0, 0.0]])) == 9 + 16 + 9


def test_takes_tensors_of_any_width_and_type():
    S1, S2 = torch.randn(20, 5, requires_grad=True), torch.randn(30, 5).double()
    assert chamfer_distance(S1, S2) == pytest.approx(by_definition(S1.detach(), S2), rel=1e-6)
    assert isinstance(chamfer_distance(S1, S2), float)


def test_counts_in_float64_whatever_comes_in():
    many = torch.full((5000, 1), 0.1)
    assert chamfer_distance(many, torch.zeros(1, 1)) == pytest.approx(5001 * float(many[0]) ** 2, rel=1e-12)


def test_a_hundred_thousand_points_a_side():
    S1, S2 = np.random.randn(100_000, 2), np.random.randn(100_000, 2)
    # A matrix of all pairs would take 80 GB. The nearest of N points is about 1/N away, squared.
    assert 0 < chamfer_distance(S1, S2) < 100


@pytest.mark.parametrize(
    ("S1", "S2", "words"),
    [
        (np.zeros((0, 2)), np.zeros((3, 2)), "S1 must be points"),
        (np.zeros((3, 2)), np.zeros(3), "S2 must be points"),
        (np.zeros((3, 2)), np.zeros((3, 1)), "S1 have 2 coordinates, those of S2 have 1"),
        (np.zeros((3, 2)), np.full((3, 2), np.nan), "S2 holds points that are not finite"),
    ],
)
def test_bad_sets_are_named(S1, S2, words):
    with pytest.raises(ValueError, match=words):
        chamfer_distance(S1, S2)
