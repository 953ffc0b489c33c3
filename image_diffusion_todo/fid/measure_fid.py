"""The Frechet Inception distance (FID) of generated images from real ones.

    python fid/measure_fid.py data/afhq/eval samples                           # ends with FID: 12.3456
    python fid/measure_fid.py data/afhq/eval samples --kid --network lab       # KID too, with the lab's network
    python fid/measure_fid.py data/afhq/eval samples --dims 768                # ends with FID-768: 0.1234

Which FID it is depends on the network. The lab's marks are on the scale of its own Inception, which is trained on AFHQ
(`fid/afhq_inception_v3.ckpt`). Papers outside the lab use the one that pytorch-fid has, which is trained on ImageNet;
the numbers of the two can't be compared, and neither can those of other --dims.

Every image in the two folders and in their subfolders counts, except hidden ones (with a leading dot). The distances
are in `frechet.py` and `kid.py`, the networks in `inception.py`.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

if not __package__:  # run as a script, or imported from inside this folder: our modules are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from atomic import atomic_write
from cli import ArgumentParser, UserError, exit_on_user_error, int_range, select_device, writable_file
from data_folder import SYNTHETIC_MARK
from fid.frechet import fit_gaussian, frechet_distance
from fid.inception import NETWORKS, STANDARD_WIDTH, WIDTHS, FeatureNetwork, extract_features, load_network
from fid.kid import kernel_distance
from images import cached, fingerprint, list_images, read_image

CACHE_FORMAT = 3  # to be counted up when what is cached, or what it means, changes
TRAINED_ON = {
    "lab": "trained on AFHQ, the scale of the lab's marks",
    "pytorch-fid": "trained on ImageNet, not the scale of the lab's marks",
}


class ImageFolder(NamedTuple):
    """The images below a folder, to be measured."""

    path: Path
    files: list[Path]
    sizes: list[str]  # all that occur, as "64x64" (width first)
    formats: list[str]  # likewise, as "PNG"


def find_images(folder: str | os.PathLike) -> ImageFolder:
    """Every image below `folder`, see `images.list_images`.

    Raises:
        UserError: when it is no folder, has fewer than the two images that a covariance takes, or a broken one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: {'a file, where a folder of images is wanted' if folder.exists() else 'not there'}")
    files = list_images(folder)
    if len(files) < 2:
        raise UserError(f"{folder}: {'only one image' if files else 'no images'} in it, at least 2 are wanted")
    sizes, formats = set(), set()
    for file in files:
        try:
            with Image.open(file) as image:  # reads the header only
                sizes.add(image.size)
                formats.add(image.format)
        except (OSError, SyntaxError, ValueError):
            read_image(file)  # says what is wrong
    return ImageFolder(folder, files, [f"{width}x{height}" for width, height in sorted(sizes)], sorted(formats))


def cached_features(images: ImageFolder, network: FeatureNetwork, batch_size: int) -> np.ndarray:
    """`extract_features`, kept in `.cache/` beside the folder (or in the user's cache) until an image changes."""
    folder = images.path.resolve()
    key = fingerprint(images.files, images.path, CACHE_FORMAT, network.name, network.weights_sha256)

    def compute() -> dict[str, np.ndarray]:
        return {"features": extract_features(images.files, network, batch_size, folder.name)}

    return cached(folder.parent, f"{folder.name}-fid-{network.name}-{network.dims}", key, compute)["features"]


def measure(
    real: ImageFolder, generated: ImageFolder, network: FeatureNetwork, batch_size: int = 50, kid: bool = False
) -> dict[str, Any]:
    """The distance of generated images from real ones, and how it was measured.

    Returns:
        "name" ("FID", or "FID-768" and so on), "distance", "network" and "dims"; folders, numbers, sizes and formats of
        images; whether the real ones are synthetic faces; device, checksum of the weights, versions of the libraries.
        With `kid`, "kid" holds its mean and std, the number of subsets and the size of each.
    """
    features = cached_features(real, network, batch_size)
    gen_features = extract_features(generated.files, network, batch_size, generated.path.name)
    parents = [real.path, *real.path.absolute().parents[:3]]
    result = {
        "name": "FID" if network.dims == STANDARD_WIDTH else f"FID-{network.dims}",
        "distance": frechet_distance(fit_gaussian(features), fit_gaussian(gen_features)),
        "network": network.name,
        "dims": network.dims,
        "gt_dir": str(real.path),
        "gt_images": len(real.files),
        "gt_sizes": real.sizes,
        "gt_formats": real.formats,
        "gt_synthetic": any((folder / SYNTHETIC_MARK).is_file() for folder in parents),
        "gen_dir": str(generated.path),
        "gen_images": len(generated.files),
        "gen_sizes": generated.sizes,
        "gen_formats": generated.formats,
        "device": str(network.device),
        "weights": str(network.weights),
        "weights_sha256": network.weights_sha256,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("pytorch-fid", "torch", "torchvision", "numpy", "pillow")},
        },
    }
    return result | ({"kid": kernel_distance(features, gen_features)._asdict()} if kid else {})


def summary(result: dict[str, Any]) -> str:
    """What was measured against what, what else than quality the distance holds, KID, and the network."""

    def images(side: str, kind: str) -> str:
        sizes = result[f"{side}_sizes"]
        sizes = ", ".join(sizes) if len(sizes) < 4 else f"{len(sizes)} sizes"
        formats = ", ".join(result[f"{side}_formats"])
        return f"{result[f'{side}_images']} {kind} of {sizes} ({formats}) in {result[f'{side}_dir']}"

    real = images("gt", "synthetic images" if result["gt_synthetic"] else "real images")
    lines = [f"{real}, {images('gen', 'generated ones')}"]
    for what, effect in (("sizes", "they differ in sharpness"), ("formats", "lossy compression changes images")):
        if result[f"gt_{what}"] != result[f"gen_{what}"] or len(result[f"gt_{what}"]) > 1:
            lines.append(f"Note: images of different {what}: {effect}, which adds to the distance")
    if "kid" in result:
        lines.append(
            "KID: {mean:.6f} (standard deviation {std:.6f}, {subsets} subsets of {subset_size})".format(**result["kid"])
        )
    lines.append(f"Network: {result['network']}, {TRAINED_ON[result['network']]} ({result['weights']})")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command line."""
    parser = ArgumentParser(
        description="The Frechet Inception distance (FID) of generated images from real ones; smaller is better.",
        epilog="Compare only distances of the same network and width and of about the same numbers of images: fewer "
        "images give a larger FID, though not a larger KID.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("gt_dir", metavar="GT_DIR", help="folder of real images, for instance data/afhq/eval")
    add("gen_dir", metavar="GEN_DIR", help="folder of generated images")
    add("--network", choices=NETWORKS, default="auto", help="auto: lab if fid/afhq_inception_v3.ckpt is there")
    add("--dims", type=int, choices=WIDTHS, default=STANDARD_WIDTH, help="number of features, 2048 for lab")
    add("--kid", action="store_true", help="also measure the kernel Inception distance")
    add("--batch_size", type=int_range(1), default=50, help="images per pass through the network")
    add("--device", type=select_device, default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--json", type=writable_file, metavar="PATH", help="also write the result, counts, folders and versions here")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; the last line is the distance."""
    args = make_parser().parse_args(arguments)
    with exit_on_user_error():
        # Both folders before the network: a mistyped second one shall not cost minutes.
        real, generated = find_images(args.gt_dir), find_images(args.gen_dir)
        network = load_network(args.network, args.dims, args.device)
        result = measure(real, generated, network, args.batch_size, args.kid)
        if args.json:
            with atomic_write(args.json) as file:
                file.write((json.dumps(result, indent=2) + "\n").encode())
    print(summary(result))
    print("{name}: {distance:.4f}".format(**result))


if __name__ == "__main__":
    main()
