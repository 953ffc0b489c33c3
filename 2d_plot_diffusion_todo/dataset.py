"""Two-dimensional toy distributions, kept in memory as one tensor.

The shapes have a standard deviation of about 2, twice that of the noise that the diffusion ends in; the
two Gaussians have 1.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from torch.utils.data import DataLoader, Dataset


def normalize(ds: np.ndarray, scaling_factor: float = 2.0) -> np.ndarray:
    """Shift and scale `ds` to mean 0 and standard deviation `scaling_factor`.

    Both are taken over the whole array, not column by column, so that the shape keeps
    its proportions.
    """
    return (ds - ds.mean()) / ds.std() * scaling_factor


def _checkerboard(n: int) -> np.ndarray:
    """The black squares of a 4x4 board that covers [-4, 4] x [-4, 4]."""
    column = np.random.randint(0, 4, size=n)
    row = 2 * np.random.randint(0, 2, size=n) + column % 2
    corner = np.stack([column, row], axis=1) - 2.0
    return 2.0 * (corner + np.random.rand(n, 2))


# Each entry draws n points from NumPy's global generator: np.random.seed makes it repeatable.
_SHAPES: dict[str, Callable[[int], np.ndarray]] = {
    "swiss_roll": lambda n: normalize(datasets.make_swiss_roll(n, noise=0.0, hole=True)[0][:, [0, 2]]),
    "moon": lambda n: normalize(datasets.make_moons(n, noise=0.0)[0]),
    "circle": lambda n: datasets.make_circles(n, noise=0.0, factor=0.5)[0] * 4.0,
    "scurve": lambda n: normalize(datasets.make_s_curve(n, noise=0.0)[0][:, [0, 2]]),
    "checkerboard": _checkerboard,
}
_GAUSSIAN_MEANS = {"gaussian_centered": 0.0, "gaussian_shift": 1.5}

DATASETS = (*_SHAPES, *_GAUSSIAN_MEANS)


def load_twodim(num_samples: int, dataset: str, dimension: int = 2) -> torch.Tensor:
    """Draw `num_samples` points of the named distribution from NumPy's global generator.

    Args:
        num_samples: how many points, at least 1.
        dataset: one of `DATASETS`.
        dimension: width of a point; only the two Gaussians come in other widths than 2.

    Returns:
        float32 tensor [num_samples, dimension].

    Raises:
        ValueError: for an unknown name, no points, or a width that the set does not have.
    """
    if dataset not in DATASETS:
        raise ValueError(f"unknown dataset {dataset!r}: choose one of {', '.join(DATASETS)}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if dimension < 1 or (dimension != 2 and dataset in _SHAPES):
        raise ValueError(f"dataset {dataset!r} has no points of dimension {dimension}")

    if dataset in _SHAPES:
        points = _SHAPES[dataset](num_samples)
    else:
        points = np.random.normal(_GAUSSIAN_MEANS[dataset], size=(num_samples, dimension))
    return torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32))


def _keep(batch: torch.Tensor) -> torch.Tensor:
    return batch


class TwoDimDataClass(Dataset):
    """`N` points of a named distribution as a data set; the points are `.X` [N, dimension].

    Args:
        dataset_type: one of `DATASETS`.
        N: how many points.
        batch_size: of the loaders that `get_dataloader` makes.
        dimension: width of a point, see `load_twodim`.
    """

    def __init__(self, dataset_type: str, N: int, batch_size: int, dimension: int = 2):
        self.X = load_twodim(N, dataset_type, dimension)
        self.name = dataset_type
        self.batch_size = batch_size
        self.dimension = dimension

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, idx: int | slice | torch.Tensor) -> torch.Tensor:
        return self.X[idx]

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        # The loader asks for a whole batch at once: one gather instead of 128 look-ups.
        return self.X[indices]

    def get_dataloader(self, shuffle: bool = True) -> DataLoader:
        """Batches [batch_size, dimension]; the last one of an epoch may be shorter."""
        return DataLoader(self, self.batch_size, shuffle=shuffle, collate_fn=_keep)


def get_data_iterator(iterable: Iterable[Any]) -> Iterator[Any]:
    """Go through `iterable` again and again, without an end.

    Unlike `itertools.cycle` it starts a new pass each time, so a shuffling loader shuffles anew.

    Raises:
        ValueError: when a pass gives nothing, which would otherwise loop for ever.
    """
    while True:
        empty = True
        for item in iterable:
            empty = False
            yield item
        if empty:
            raise ValueError("cannot iterate endlessly over an empty iterable")
