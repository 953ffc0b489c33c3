"""The kernel Inception distance (KID), whose estimate does not depend on the number of images.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),    k(x, y) = (x . y / D + 1)^3

(Binkowski et al., 2018, arXiv:1801.01401.) The mean over pairs of different images estimates it without bias, whereas
FID is larger for fewer images. As in the paper, it is estimated on random subsets, whose spread shows the uncertainty.
"""

from typing import NamedTuple

import numpy as np


class KID(NamedTuple):
    """Mean and standard deviation over subsets of `subset_size` images of each set."""

    mean: float
    std: float
    subsets: int
    subset_size: int


def polynomial_kernel(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """k of all pairs of features [M, D] and [N, D], [M, N]."""
    return (X @ Y.T / X.shape[1] + 1) ** 3


def squared_mmd(X: np.ndarray, Y: np.ndarray) -> float:
    """The unbiased estimate from features [M, D] and [N, D], M, N >= 2. It may be negative."""

    def mean_of_pairs(features: np.ndarray) -> float:
        kernel, count = polynomial_kernel(features, features), len(features)
        return (kernel.sum() - kernel.trace()) / (count * (count - 1))

    return float(mean_of_pairs(X) + mean_of_pairs(Y) - 2 * polynomial_kernel(X, Y).mean())


def kernel_distance(X: np.ndarray, Y: np.ndarray, subsets: int = 100, seed: int = 0) -> KID:
    """KID of two sets of features, [M, D] and [N, D].

    A subset has 1000 images, or half of the smaller set: subsets that are the whole set would have no spread.
    """
    X, Y = np.asarray(X, dtype=np.float64), np.asarray(Y, dtype=np.float64)
    size = max(2, min(1000, len(X) // 2, len(Y) // 2))
    rng = np.random.default_rng(seed)
    estimates = [
        squared_mmd(X[rng.choice(len(X), size, replace=False)], Y[rng.choice(len(Y), size, replace=False)])
        for _ in range(subsets)
    ]
    return KID(float(np.mean(estimates)), float(np.std(estimates)), subsets, size)
