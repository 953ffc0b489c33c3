"""Chamfer distance: how far two point sets are from covering each other."""

import numpy as np
import torch
from scipy.spatial import KDTree


def chamfer_distance(S1: np.ndarray | torch.Tensor, S2: np.ndarray | torch.Tensor) -> float:
    """Squared distance from each point to the nearest point of the other set, summed both ways.

    CD(S1, S2) = sum_{x in S1} min_{y in S2} |x - y|^2 + sum_{y in S2} min_{x in S1} |x - y|^2

    It is a sum, not a mean: doubling both sets about doubles it. A KD-tree finds the
    neighbours in O(N log N), in float64 whatever the input.

    Args:
        S1: points [N, D], array or tensor on any device.
        S2: points [M, D].

    Returns:
        The distance, >= 0, in squared units of the points.

    Raises:
        ValueError: when a set is empty, not a matrix, not finite, or the widths differ.
    """
    S1, S2 = _as_points(S1, "S1"), _as_points(S2, "S2")
    if S1.shape[1] != S2.shape[1]:
        raise ValueError(f"points of S1 have {S1.shape[1]} coordinates, those of S2 have {S2.shape[1]}")
    to_S2, _ = KDTree(S2).query(S1, workers=-1)
    to_S1, _ = KDTree(S1).query(S2, workers=-1)
    return float(np.square(to_S2).sum() + np.square(to_S1).sum())


def _as_points(points: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    if isinstance(points, torch.Tensor):
        points = points.detach().cpu().numpy()
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.size == 0:
        raise ValueError(f"{name} must be points of shape [N, D] with N, D >= 1, got shape {list(points.shape)}")
    if not np.isfinite(points).all():
        raise ValueError(f"{name} holds points that are not finite")
    return points
