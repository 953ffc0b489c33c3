"""The Chamfer distance against its definition."""

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


points = st.integers(1, 30).flatmap(lambda n: arrays(np.float64, (n, 2), elements=st.floats(-100, 100, width=32)))


@settings(max_examples=60, deadline=None)
@given(points, points)
def test_agrees_with_the_definition_and_is_symmetric(S1, S2):
    distance = chamfer_distance(S1, S2)
    assert distance == pytest.approx(by_definition(S1, S2), rel=1e-9, abs=1e-9)
    assert distance == pytest.approx(chamfer_distance(S2, S1), rel=1e-12)
    assert chamfer_distance(S1, S1[::-1]) == 0


def test_takes_arrays_and_tensors_and_returns_a_float64():
    S1, S2 = torch.randn(20, 5, requires_grad=True), np.random.randn(30, 5)
    distance = chamfer_distance(S1, S2)
    assert type(distance) is np.float64
    assert distance.item() == pytest.approx(by_definition(S1.detach(), S2), rel=1e-12)


def test_takes_a_hundred_thousand_points_without_a_matrix_of_all_pairs():
    S1, S2 = np.random.randn(100_000, 2), np.random.randn(100_000, 2)
    assert 0 < chamfer_distance(S1, S2) < 100  # the nearest of N points is about 1/N away, squared


@pytest.mark.parametrize(
    ("S1", "S2", "named"),
    [
        (np.zeros((0, 2)), np.zeros((3, 2)), "S1"),
        (np.zeros((3, 2)), np.zeros(3), "S2"),
        (np.zeros((3, 2)), np.full((3, 2), np.nan), "S2"),
        (np.zeros((3, 2)), np.zeros((3, 1)), "S1.*S2"),
    ],
)
def test_bad_sets_are_named(S1, S2, named):
    with pytest.raises(ValueError, match=named):
        chamfer_distance(S1, S2)
