"""Chamfer distance between two point sets."""

import numpy as np
from scipy.spatial import KDTree
from torch import Tensor


def chamfer_distance(S1: np.ndarray | Tensor, S2: np.ndarray | Tensor) -> np.float64:
    """CD(S1, S2) = sum_{x in S1} min_{y in S2} |x - y|^2 + sum_{y in S2} min_{x in S1} |x - y|^2.

    A sum, not a mean: it grows with the number of points. S1 [N, D] and S2 [M, D] are finite, and arrays or tensors on
    any device. Computed in float64 with KD-trees, in O(N log N).
    """
    S1, S2 = _as_points(S1, "S1"), _as_points(S2, "S2")
    if S1.shape[1] != S2.shape[1]:
        raise ValueError(f"points of S1 have {S1.shape[1]} coordinates, those of S2 have {S2.shape[1]}")
    to_S2, _ = KDTree(S2).query(S1, workers=-1)
    to_S1, _ = KDTree(S1).query(S2, workers=-1)
    return np.square(to_S2).sum() + np.square(to_S1).sum()


def _as_points(points: np.ndarray | Tensor, name: str) -> np.ndarray:
    if isinstance(points, Tensor):
        points = points.detach().cpu().numpy()
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.size == 0 or not np.isfinite(points).all():
        raise ValueError(f"{name} must be finite points of shape [N, D], N and D >= 1; its shape is {points.shape}")
    return points
