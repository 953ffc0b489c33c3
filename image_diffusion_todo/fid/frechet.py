"""The Frechet distance of two Gaussians, fitted to features or given by their statistics.

    d^2 = |mu_1 - mu_2|^2 + Tr S_1 + Tr S_2 - 2 Tr (S_1 S_2)^{1/2}

(Dowson & Landau, 1982, J. Multivariate Analysis 12(3), 450-455; as a score of images: Heusel et al., 2017,
arXiv:1706.08500, eq. 6.)

With S_1 = F_1 F_1^T and S_2 = F_2 F_2^T, the eigenvalues of S_1 S_2 are the squared singular values of F_1^T F_2, so
Tr (S_1 S_2)^{1/2} is the sum of these singular values. F_1^T F_2 is only as large as the numbers of images. A square
root of S_1 S_2 itself costs far more, and turns rounding errors of 1e-16 into 1e-8 wherever S_1 S_2 is singular, as it
is with fewer images than features.
"""

from typing import NamedTuple

import numpy as np


class Gaussian(NamedTuple):
    """N(mu, F F^T), in float64."""

    mu: np.ndarray  # [D]
    factor: np.ndarray  # F [D, K], K <= D


def fit_gaussian(features: np.ndarray) -> Gaussian:
    """Mean and unbiased covariance of features [N, D], N >= 2; the factor has min(N, D) columns."""
    features = np.asarray(features, dtype=np.float64)
    count, width = features.shape
    mu = features.mean(axis=0)
    deviations = (features - mu) / np.sqrt(count - 1)  # A [N, D], sigma = A^T A
    if count > width:
        deviations = np.linalg.qr(deviations, mode="r")  # A = Q R, so A^T A = R^T R
    return Gaussian(mu, deviations.T)


def gaussian_from_statistics(mu: np.ndarray, sigma: np.ndarray) -> Gaussian:
    """From a mean [D] and a covariance [D, D], which may be singular."""
    variances, directions = np.linalg.eigh(np.asarray(sigma, dtype=np.float64))
    kept = variances > len(variances) * np.finfo(np.float64).eps * variances[-1]  # the others are rounding errors
    return Gaussian(np.asarray(mu, dtype=np.float64), directions[:, kept] * np.sqrt(variances[kept]))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared Frechet distance, >= 0, in squared units of the features."""
    trace_of_root = np.linalg.svd(a.factor.T @ b.factor, compute_uv=False).sum()
    traces = np.square(a.factor).sum() + np.square(b.factor).sum()
    distance = np.square(a.mu - b.mu).sum() + traces - 2 * trace_of_root
    return max(float(distance), 0.0)  # rounding may leave -1e-12 in place of 0
