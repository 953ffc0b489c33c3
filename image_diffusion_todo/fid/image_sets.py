"""What is compared: the images in a folder, or the statistics of images in an `.npz` file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from atomic import atomic_write
from cli import UserError
from data_folder import SYNTHETIC_MARKER
from eval_images import check_eval_complete
from fid.frechet import Gaussian, fit_gaussian, gaussian_from_statistics
from fid.inception import FeatureNetwork, extract_features
from images import cached, fingerprint, list_images, read_image

CACHE_FORMAT = 3  # increase it when what is cached, or its meaning, changes


@dataclass(kw_only=True)
class ImageSet:
    """The images below a folder, or only their statistics; a file of pytorch-fid has no other fields."""

    path: Path
    files: Sequence[Path] = ()
    statistics: tuple[np.ndarray, np.ndarray] | None = None  # mean [D] and covariance [D, D], instead of files
    network: str | None = None  # that measured the statistics, and the checksum of its weights
    weights_sha256: str | None = None
    count: int | None = None
    sizes: Sequence[str] = ()  # all that occur, as "64x64" (width first)
    formats: Sequence[str] = ()  # likewise, as "PNG"
    synthetic: bool = False  # drawn by synthetic_faces.py

    def check_comparable(self, network: FeatureNetwork) -> None:
        """Raise a UserError for statistics of other features than those of `network`."""
        if self.statistics is None:
            return
        if self.network != network.name:
            raise UserError(f"argument --network: {self.path} holds features of {self.network}, not of {network.name}")
        if (dims := len(self.statistics[0])) != network.dims:
            raise UserError(f"argument --dims: {self.path} holds {dims} features, not {network.dims}")
        if self.weights_sha256 not in (None, network.weights_sha256):
            raise UserError(f"{self.path}: made with other weights than {network.weights}")

    def measure(
        self, network: FeatureNetwork, batch_size: int = 50, cache: bool = False
    ) -> tuple[Gaussian, np.ndarray | None]:
        """The Gaussian of the features, and the features [N, D] unless only statistics are known.

        With `cache`, features are kept in `.cache/` beside the folder, or in the user's, until an image changes.
        """
        if self.statistics:
            return gaussian_from_statistics(*self.statistics), None
        folder = self.path.resolve()

        def compute() -> dict[str, np.ndarray]:
            return {"features": extract_features(self.files, network, batch_size, folder.name)}

        if cache:
            key = fingerprint(self.files, self.path, CACHE_FORMAT, network.name, network.weights_sha256)
            found = cached(folder.parent, f"{folder.name}-fid-{network.name}-{network.dims}", key, compute)
        else:
            found = compute()
        return fit_gaussian(found["features"]), found["features"]


def open_image_set(path: str | os.PathLike) -> ImageSet:
    """What a path of the command line names: a folder, see `find_images`, or an `.npz` file."""
    if Path(path).suffix.lower() == ".npz" and Path(path).is_file():
        return read_statistics(Path(path))
    return find_images(path)


def find_images(path: str | os.PathLike) -> ImageSet:
    """The images below a folder, see `images.list_images`.

    UserError when it is not a folder, lacks images that `dataset.py` made, holds a broken one, or holds fewer than the
    two that a covariance needs.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} {'is a file, not a folder of images' if path.exists() else 'does not exist'}")
    check_eval_complete(path)
    files = list_images(path)
    if len(files) < 2:
        raise UserError(f"{path} holds {'only one image' if files else 'no images'}; at least 2 are needed")
    sizes, formats = set(), set()
    for file in files:
        try:
            if not file.is_file():  # a pipe, whose opening would block
                raise OSError
            with Image.open(file) as image:  # reads the header only
                sizes.add(image.size)
                formats.add(image.format)
        except Exception:  # each decoder has its own way to fail
            read_image(file)  # says what is wrong
    return ImageSet(
        path=path,
        files=files,
        count=len(files),
        sizes=[f"{width}x{height}" for width, height in sorted(sizes)],
        formats=sorted(formats),
        synthetic=any((folder / SYNTHETIC_MARKER).is_file() for folder in [path, *path.absolute().parents[:3]]),
    )


def read_statistics(path: Path) -> ImageSet:
    """The statistics in an `.npz` file of this program or of pytorch-fid, which does not name its network."""
    texts = {"count": int, "synthetic": bool, "network": str, "weights_sha256": str}
    lists = {"sizes": np.ndarray.tolist, "formats": np.ndarray.tolist}
    try:
        with np.load(path, allow_pickle=False) as file:
            mu, sigma = (file[name].astype(np.float64) for name in ("mu", "sigma"))
            known = {name: convert(file[name]) for name, convert in (texts | lists).items() if name in file}
        if sigma.shape != (mu.size, mu.size) or mu.ndim != 1 or not np.isfinite(mu.sum() + sigma.sum()):
            raise ValueError(f"mu {mu.shape} and sigma {sigma.shape} do not fit, or are not finite")
    except Exception as error:  # other files make the reader raise nearly anything
        raise UserError(f"{path}: not statistics (mu and sigma) as pytorch-fid writes them, or damaged") from error
    return ImageSet(path=path, statistics=(mu, sigma), **{"network": "pytorch-fid"} | known)


def save_statistics(path: Path, images: ImageSet, network: FeatureNetwork, batch_size: int = 50) -> None:
    """Write what `read_statistics` and pytorch-fid read."""
    images.check_comparable(network)
    gaussian, _ = images.measure(network, batch_size, cache=True)
    known = {name: getattr(images, name) for name in ("count", "sizes", "formats", "synthetic") if images.count}
    known |= {"network": network.name, "weights_sha256": network.weights_sha256}
    with atomic_write(path) as file:
        np.savez(file, mu=gaussian.mu, sigma=gaussian.factor @ gaussian.factor.T, **known)
