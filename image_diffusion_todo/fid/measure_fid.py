"""How far generated images are from real ones: the Frechet Inception distance (FID).

    python fid/measure_fid.py data/afhq/eval samples              # ends with FID: 12.3456
    python fid/measure_fid.py data/afhq/eval samples --dims 768   # ends with FID-768: 0.1234

The Inception network turns each image into a vector of features. Take the features of each folder for
draws of a Gaussian; the distance of the two Gaussians N(mu_1, S_1) and N(mu_2, S_2) is

    d^2 = |mu_1 - mu_2|^2 + Tr S_1 + Tr S_2 - 2 Tr (S_1 S_2)^{1/2}

(Dowson & Landau, 1982, J. Multivariate Analysis 12(3), 450-455; as a score of images: Heusel et al., 2017,
arXiv:1706.08500, eq. 6); `gaussian_distance` computes it. The network and all that happens to an image in it are
pytorch-fid's, and so are the numbers. "FID" alone means the 2048 features of the last layer; other widths measure on
other scales.

Every image below a folder counts, those in subfolders too; what is hidden (a name with a leading dot) does not.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import socket
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_fid.inception import FID_WEIGHTS_URL, InceptionV3
from tqdm import tqdm

if __name__ == "__main__":
    # Started as a script, Python looks for neighbours in this folder only; they are one folder up.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from atomic import atomic_write
from cli import ArgumentParser, exit_on_user_error, int_range, select_device, writable_file
from data_folder import SYNTHETIC_MARK, cache_dirs
from images import fingerprint, list_images, read_image

WIDTHS = tuple(InceptionV3.BLOCK_INDEX_BY_DIM)  # 64, 192, 768, 2048
STANDARD_WIDTH = 2048
RESOLUTION = 299  # to which the network resizes its input
CACHE_FORMAT = 2  # to be counted up when what is kept, or what it means, changes


# The distance.


class Gaussian(NamedTuple):
    """N(mu, F F^T). Features of N images need a factor F of N columns only, however wide they are."""

    mu: np.ndarray  # [D]
    factor: np.ndarray  # F [D, K], K <= D


def fit_gaussian(features: np.ndarray) -> Gaussian:
    """Mean and (unbiased) covariance of feature vectors, in float64, the covariance as a factor.

    Args:
        features: one vector per image [N, D], N >= 2.

    Returns:
        The Gaussian, whose factor has min(N, D) columns.

    Raises:
        ValueError: for fewer than two vectors, or another shape.
    """
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must have shape [N, D] with N >= 2, got {list(features.shape)}")
    count, width = features.shape
    mu = features.mean(axis=0)
    deviations = (features - mu) / np.sqrt(count - 1)  # A [N, D], sigma = A^T A
    if count > width:
        deviations = np.linalg.qr(deviations, mode="r")  # A = Q R, so A^T A = R^T R
    return Gaussian(mu, deviations.T)


def gaussian_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared Frechet distance of two Gaussians (Dowson & Landau, 1982; Heusel et al., 2017, eq. 6).

    With S_1 = F_1 F_1^T and S_2 = F_2 F_2^T, the eigenvalues of S_1 S_2 are the squared singular values of
    F_1^T F_2, so Tr (S_1 S_2)^{1/2} is the sum of these singular values. That matrix has the size of the numbers of
    images. A root of the product S_1 S_2 itself costs far more, and turns its rounding errors of 1e-16 into 1e-8, once
    per missing dimension; this way, singular covariances (fewer images than features) are as exact as others.

    Returns:
        The distance, >= 0, in squared units of the features.
    """
    trace_of_root = np.linalg.svd(a.factor.T @ b.factor, compute_uv=False).sum()
    traces = np.square(a.factor).sum() + np.square(b.factor).sum()
    distance = np.square(a.mu - b.mu).sum() + traces - 2 * trace_of_root
    return max(float(distance), 0.0)  # rounding may leave -1e-12 where 0 is meant


# The same for those who have covariances, from this program or another.


def feature_statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D] of feature vectors [N, D]; see `fit_gaussian`."""
    mu, factor = fit_gaussian(features)
    return mu, factor @ factor.T


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """The squared Frechet distance of two Gaussians, see `gaussian_distance`.

    Args:
        mu1: mean [D].
        sigma1: covariance [D, D], symmetric, without negative eigenvalues; zero ones are fine.
        mu2: mean [D].
        sigma2: covariance [D, D], likewise.

    Returns:
        The distance, >= 0, in squared units of the features.

    Raises:
        ValueError: when the shapes do not fit together, or values are not finite.
    """
    statistics = [np.asarray(values, dtype=np.float64) for values in (mu1, sigma1, mu2, sigma2)]
    mu1, sigma1, mu2, sigma2 = statistics
    shapes, width = [values.shape for values in statistics], mu1.size
    if shapes != [(width,), (width, width)] * 2:
        raise ValueError(f"statistics must have the shapes [D], [D, D], [D], [D, D], got {shapes}")
    if not all(np.isfinite(values).all() for values in statistics):
        raise ValueError("statistics hold values that are not finite")
    return gaussian_distance(Gaussian(mu1, _factor(sigma1)), Gaussian(mu2, _factor(sigma2)))


def _factor(sigma: np.ndarray) -> np.ndarray:
    """F [D, rank] with sigma = F F^T; directions whose variance is nothing but rounding are left out."""
    variances, directions = np.linalg.eigh(sigma)
    kept = variances > len(sigma) * np.finfo(np.float64).eps * variances[-1]
    return directions[:, kept] * np.sqrt(variances[kept])


# From images to features.


def images_to_measure(folder: str | os.PathLike) -> list[Path]:
    """Every image below `folder`, see `images.list_images`.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when it is a file, or has fewer images than the two that a covariance takes.
    """
    if not Path(folder).exists():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not Path(folder).is_dir():
        raise ValueError(f"{folder}: a file, where a folder of images is wanted")
    files = list_images(folder)
    if len(files) < 2:
        raise ValueError(f"{folder}: {'only one image' if files else 'no images'} in it, at least 2 are wanted")
    return files


@torch.inference_mode()
def features_of_folder(folder: str | os.PathLike, network: InceptionV3, batch_size: int = 50) -> np.ndarray:
    """The features of every image below `folder`.

    Args:
        folder: images of any kinds and sizes.
        network: see `load_inception`; it runs where it is.
        batch_size: images per pass through the network.

    Returns:
        float64 [N, D] in the order of `images_to_measure`: the network's output, averaged over the places in the image.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: for too few images, a broken one, or features that are not finite.
    """
    files = images_to_measure(folder)
    batches = [files[i : i + batch_size] for i in range(0, len(files), batch_size)]
    place = next(network.parameters()).device
    features = []
    bar = tqdm(total=len(files), desc=f"features of {Path(folder).name}", unit="image", leave=False)
    with bar, ThreadPoolExecutor() as pool:
        decoding = pool.map(_pixels, batches[0])
        for following in [*batches[1:], []]:
            images = list(decoding)
            decoding = pool.map(_pixels, following)  # while the network is at work on these
            (output,) = network(_as_batch(images, place))  # [B, D, H, W]
            features.append(output.mean(dim=(2, 3)).cpu().double())
            if not features[-1].isfinite().all():
                raise ValueError(
                    f"{weights_file()}: its features of width {output.shape[1]} are not finite, so the file is damaged "
                    f"or incomplete there; fetch it anew, or try other --dims "
                    f"({', '.join(str(width) for width in WIDTHS if width != output.shape[1])})"
                )
            bar.update(len(images))
    return torch.cat(features).numpy()


def sizes_of(files: Sequence[Path]) -> list[str]:
    """Which sizes the images have, as "64x64" (width first), from their headers.

    Raises:
        ValueError: for a broken image; the message names it.
    """
    sizes = set()
    for file in files:
        try:
            with Image.open(file) as image:
                sizes.add(image.size)
        except (OSError, SyntaxError, ValueError):
            read_image(file)  # says what is wrong
    return [f"{width}x{height}" for width, height in sorted(sizes)]


def _pixels(file: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(read_image(file))).permute(2, 0, 1)  # uint8 [3, H, W]


def _as_batch(images: Sequence[torch.Tensor], place: torch.device) -> torch.Tensor:
    """Bytes [3, H, W] -> floats [B, 3, H, W] from 0 to 1."""
    if len({image.shape for image in images}) == 1:
        return torch.stack(list(images)).to(place) / 255
    # Sizes that differ do not stack: here each image is resized alone, in the network's own way.
    size = (RESOLUTION, RESOLUTION)
    return torch.cat([F.interpolate(image[None].to(place) / 255, size, mode="bilinear") for image in images])


# The network.


def weights_file() -> Path:
    """Where pytorch-fid looks for the network's weights: in PyTorch's hub folder, which TORCH_HOME moves."""
    return Path(torch.hub.get_dir()) / "checkpoints" / FID_WEIGHTS_URL.rpartition("/")[2]


def load_inception(dims: int = STANDARD_WIDTH, device: torch.device | str = "cpu") -> InceptionV3:
    """pytorch-fid's Inception network up to the layer that has `dims` features, ready to measure.

    The weights (about 90 MB) are downloaded if they are not there.

    Raises:
        ValueError: when `dims` is not one of `WIDTHS`, or the weights file is not what it should be.
        OSError: when the weights cannot be downloaded; the message says which file to put where.
    """
    if dims not in WIDTHS:
        raise ValueError(f"dims must be one of {', '.join(map(str, WIDTHS))}, got {dims}")
    path = weights_file()
    if not path.exists():
        _download_weights(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the age of the file, and of what pytorch-fid asks of torchvision
            # pytorch-fid unpickles what it finds. A file that is read as mere tensors first has no code that could run.
            torch.load(path, map_location="cpu", weights_only=True)
            network = InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[dims]])
    except Exception as error:  # what other files make the two loaders raise is open-ended
        raise ValueError(
            f"{path}: not the Inception weights, or damaged; without this file they are downloaded anew"
        ) from error
    # Channels last: the same sums, about 1.3 times as fast on CPUs.
    return network.eval().to(device, memory_format=torch.channels_last)


def _download_weights(path: Path) -> None:
    """Leaves a file only if it is complete: its name ends with the start of its checksum."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # seconds; by default, a network that swallows packets holds us up for minutes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(FID_WEIGHTS_URL, str(path), hash_prefix=path.stem.rpartition("-")[2])
    except (OSError, HTTPException, RuntimeError) as error:
        raise OSError(
            f"the Inception weights cannot be downloaded ({error}): fetch {FID_WEIGHTS_URL} and save it as {path}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


# The cache of the real images' statistics: measured once, compared with often.


def _cache_files(folder: Path, dims: int, other: Path) -> list[Path]:
    """Where the statistics may lie: beside the folder or, where that cannot be, in the user's cache folder.

    `other` is the folder to compare with. If it holds both, "beside" would be inside of it.
    """
    folder, other = folder.resolve(), other.resolve()
    places = [place for place in cache_dirs(folder.parent) if not place.is_relative_to(other)]
    return [place / f"{folder.name}-fid-{dims}.npz" for place in places]


def _read_cache(files: Sequence[Path], key: str) -> Gaussian | None:
    for file in files:
        # A damaged file, which may raise nearly anything, is as good as none.
        with suppress(Exception), np.load(file, allow_pickle=False) as content:
            if content["key"] == key:
                return Gaussian(content["mu"], content["factor"])
    return None


def _write_cache(files: Sequence[Path], key: str, gaussian: Gaussian) -> None:
    content = io.BytesIO()
    np.savez(content, key=key, **gaussian._asdict())
    for file in files:
        with suppress(OSError):  # a full disk or a read-only folder: measuring again is the worst that follows
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as whole:
                whole.write(content.getvalue())
            return


# The program.


def measure(
    gt_dir: str | os.PathLike,
    gen_dir: str | os.PathLike,
    dims: int = STANDARD_WIDTH,
    batch_size: int = 50,
    device: torch.device | str = "cpu",
) -> dict[str, str | int | float | dict[str, str]]:
    """The distance of the images below `gen_dir` from those below `gt_dir`, and how it was measured.

    The statistics of `gt_dir` are kept in a `.cache` folder beside it, and used again until an image changes.

    Args:
        gt_dir: the real images.
        gen_dir: the generated images.
        dims: number of features, one of `WIDTHS`.
        batch_size: images per pass through the network; does not change the result.
        device: of the network.

    Returns:
        "name" ("FID", or "FID-768" and so on), "distance" and "dims"; folders, numbers and sizes of images; whether the
        first ones are drawn faces; device, checksum of the weights, versions of the libraries.

    Raises:
        ValueError: for bad images, folders, widths or weights; the message is one line for the user.
        OSError: for a missing folder, or weights that cannot be downloaded; likewise.
    """
    gt_dir, gen_dir = Path(gt_dir), Path(gen_dir)
    # Both before the network gets to work: a mistyped second folder shall not cost minutes.
    gt_files, gen_files = images_to_measure(gt_dir), images_to_measure(gen_dir)
    gt_sizes, gen_sizes = sizes_of(gt_files), sizes_of(gen_files)
    torch.backends.cudnn.allow_tf32 = False  # on GPUs of NVIDIA convolutions would keep 10 bits, and move the distance
    network = load_inception(dims, device)

    weights = hashlib.sha256(weights_file().read_bytes()).hexdigest()
    # All that the statistics depend on, besides the width: names, sizes and times of change of the images; the network.
    key = f"{CACHE_FORMAT} {fingerprint(gt_files, gt_dir, RESOLUTION)} {weights} {version('pytorch-fid')}"
    cache_files = _cache_files(gt_dir, dims, gen_dir)
    real = _read_cache(cache_files, key)
    if real is None:
        real = fit_gaussian(features_of_folder(gt_dir, network, batch_size))
        _write_cache(cache_files, key, real)
    generated = fit_gaussian(features_of_folder(gen_dir, network, batch_size))
    return {
        "name": "FID" if dims == STANDARD_WIDTH else f"FID-{dims}",
        "distance": gaussian_distance(real, generated),
        "dims": dims,
        "gt_dir": str(gt_dir),
        "gt_images": len(gt_files),
        "gt_sizes": gt_sizes,
        "gt_synthetic": any((folder / SYNTHETIC_MARK).is_file() for folder in [gt_dir, *gt_dir.absolute().parents[:3]]),
        "gen_dir": str(gen_dir),
        "gen_images": len(gen_files),
        "gen_sizes": gen_sizes,
        "device": str(device),
        "weights_sha256": weights,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("pytorch-fid", "torch", "torchvision", "numpy", "pillow")},
        },
    }


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command line."""
    parser = ArgumentParser(
        description="The Frechet Inception distance (FID) of generated images from real ones; smaller is better.",
        epilog="Every image below the two folders counts. Compare only distances of the same width "
        "and of about the same numbers of images: fewer images lie further apart.",
    )
    add = parser.add_argument
    add("gt_dir", metavar="GT_DIR", help="folder of real images, for instance data/afhq/eval")
    add("gen_dir", metavar="GEN_DIR", help="folder of generated images")
    add(
        "--dims",
        type=int,
        choices=WIDTHS,
        default=STANDARD_WIDTH,
        help=f"number of Inception features; the usual FID has {STANDARD_WIDTH} (default: {STANDARD_WIDTH})",
    )
    add("--batch_size", type=int_range(1), default=50, help="images per pass through the network (default: 50)")
    add("--device", type=select_device, default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add(
        "--json",
        type=writable_file,
        metavar="PATH",
        help="also write distance, counts, folders and versions to this file",
    )
    return parser


def _summary(result: dict) -> str:
    """What was measured against what, and why the distance may mean less than it seems to."""
    gt_sizes, gen_sizes = (
        ", ".join(sizes) if len(sizes) < 4 else f"{len(sizes)} sizes"
        for sizes in (result["gt_sizes"], result["gen_sizes"])
    )
    kind = "synthetic" if result["gt_synthetic"] else "real"
    text = (
        f"{result['gt_images']} {kind} images of {gt_sizes} in {result['gt_dir']}, "
        f"{result['gen_images']} generated ones of {gen_sizes} in {result['gen_dir']}"
    )
    if result["gt_sizes"] != result["gen_sizes"] or len(result["gt_sizes"]) > 1:
        text += "\nNote: images of different sizes differ by their sharpness alone; the distance holds that too"
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; the last line is the distance."""
    args = make_parser().parse_args(arguments)
    with exit_on_user_error():
        result = measure(args.gt_dir, args.gen_dir, args.dims, args.batch_size, args.device)
        if args.json:
            with atomic_write(args.json) as file:
                file.write((json.dumps(result, indent=2) + "\n").encode())
    print(_summary(result))
    print("{name}: {distance:.4f}".format(**result))


if __name__ == "__main__":
    main()
