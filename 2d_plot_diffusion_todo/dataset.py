"""Two-dimensional toy distributions, held in memory as one tensor."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler


def normalize(ds: np.ndarray, scaling_factor: float = 2.0) -> np.ndarray:
    """Shift and scale to mean 0 and standard deviation `scaling_factor`.

    Both are taken over the whole array, not per column, to keep the proportions of the shape.
    """
    return (ds - ds.mean()) / ds.std() * scaling_factor


def _checkerboard(n: int) -> np.ndarray:
    """The black squares of a 4x4 board with squares of side 1."""
    column = np.random.randint(0, 4, size=n)
    row = 2 * np.random.randint(0, 2, size=n) + column % 2
    return np.stack([column, row], axis=1) + np.random.rand(n, 2)


# n points each, from NumPy's global generator.
_SHAPES: dict[str, Callable[[int], np.ndarray]] = {
    "swiss_roll": lambda n: normalize(datasets.make_swiss_roll(n, noise=0.0, hole=True)[0][:, [0, 2]]),
    "moon": lambda n: normalize(datasets.make_moons(n, noise=0.0)[0]),
    "circle": lambda n: datasets.make_circles(n, noise=0.0, factor=0.5)[0] * 4.0,
    "scurve": lambda n: normalize(datasets.make_s_curve(n, noise=0.0)[0][:, [0, 2]]),
    "checkerboard": lambda n: normalize(_checkerboard(n)),
}
_GAUSSIAN_MEANS = {"gaussian_centered": 0.0, "gaussian_shift": 1.5}

DATASETS = (*_SHAPES, *_GAUSSIAN_MEANS)


def load_twodim(num_samples: int, dataset: str, dimension: int = 2) -> Tensor:
    """Points of one of `DATASETS`, float32 [num_samples, dimension]; only the Gaussians have another dimension than 2.

    Raises:
        ValueError: for an unknown name, num_samples < 1, or a dimension that the data set does not have.
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


class TwoDimDataClass(Dataset):
    """N points from `load_twodim`, all of them in `.X`, [N, dimension]; `batch_size` is for `get_dataloader`."""

    def __init__(self, dataset_type: str, N: int, batch_size: int, dimension: int = 2):
        self.X = load_twodim(N, dataset_type, dimension)
        self.name = dataset_type
        self.batch_size = batch_size
        self.dimension = dimension

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, idx: int | slice | list[int] | Tensor) -> Tensor:
        return self.X[idx]

    def get_dataloader(self, shuffle: bool = True) -> DataLoader:
        """Batches [batch_size, dimension]; the last one of an epoch may be smaller."""
        sampler = RandomSampler(self) if shuffle else SequentialSampler(self)
        # Each index is a list for a whole batch: one gather instead of a look-up per point.
        return DataLoader(self, batch_size=None, sampler=BatchSampler(sampler, self.batch_size, drop_last=False))


def get_data_iterator(iterable: Iterable[Any]) -> Iterator[Any]:
    """Iterate endlessly; unlike `itertools.cycle`, each pass starts anew, so a shuffling loader reshuffles.

    Raises:
        ValueError: when a pass yields nothing.
    """
    while True:
        empty = True
        for item in iterable:
            empty = False
            yield item
        if empty:
            raise ValueError("cannot iterate endlessly over an empty iterable")
