"""The Frechet Inception distance (FID) of generated images from real ones.

    python fid/measure_fid.py data/afhq/eval samples                           # ends with FID: 12.3456
    python fid/measure_fid.py data/afhq/eval samples --kid --network lab       # KID too, with the lab's network
    python fid/measure_fid.py data/afhq/eval samples --dims 768                # ends with FID-768: 0.1234
    python fid/measure_fid.py data/afhq/eval --save_stats eval.npz             # a file to use in place of GT_DIR

Which FID it is depends on the network. The lab's marks are on the scale of its own Inception, which is trained on AFHQ
(`fid/afhq_inception_v3.ckpt`). Papers outside the lab use pytorch-fid's, which is trained on ImageNet. Only compare
distances of the same network, of the same --dims, and of about the same numbers of images: fewer images give a larger
FID, though not a larger KID. Smaller is better.

Every image in the two folders and in their subfolders counts, except hidden ones and what operating systems leave.
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

if not __package__:  # run as a script, or imported from inside this folder: our modules are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from atomic import atomic_write
from cli import ArgumentParser, UserError, exit_on_user_error, int_range, select_device, writable_file
from fid.frechet import frechet_distance
from fid.image_sets import ImageSet, open_image_set, save_statistics
from fid.inception import NETWORKS, STANDARD_WIDTH, WIDTHS, FeatureNetwork, load_network
from fid.kid import kernel_distance

TRAINED_ON = {
    "lab": "trained on AFHQ, the scale of the lab's marks",
    "pytorch-fid": "trained on ImageNet, not the scale of the lab's marks",
}


def measure(
    real: ImageSet, generated: ImageSet, network: FeatureNetwork, batch_size: int = 50, kid: bool = False
) -> dict[str, Any]:
    """The result, as in --json: "name" (FID, FID-768, ...), "distance", "kid" with `kid`, and how it was measured."""
    for images in (real, generated):
        images.check_comparable(network)
        if kid and images.statistics:
            raise UserError(f"argument --kid: {images.path} holds statistics, but KID needs the images")
    gaussian, features = real.measure(network, batch_size, cache=True)
    gen_gaussian, gen_features = generated.measure(network, batch_size)
    result = {
        "name": "FID" if network.dims == STANDARD_WIDTH else f"FID-{network.dims}",
        "distance": frechet_distance(gaussian, gen_gaussian),
        "network": network.name,
        "dims": network.dims,
    }
    for side, images in (("gt", real), ("gen", generated)):
        result |= {f"{side}_dir": str(images.path), f"{side}_images": images.count}
        result |= {f"{side}_sizes": list(images.sizes), f"{side}_formats": list(images.formats)}
    result |= {
        "gt_synthetic": real.synthetic,
        "device": str(network.device),
        "weights": str(network.weights),
        "weights_sha256": network.weights_sha256,
        "versions": {name: version(name) for name in ("pytorch-fid", "torch", "torchvision", "numpy", "pillow")},
    }
    result["versions"]["python"] = platform.python_version()
    if kid:
        result["kid"] = kernel_distance(features, gen_features)._asdict()
    return result


def summary(result: dict[str, Any]) -> str:
    """What was measured against what, what besides quality adds to the distance, KID, and the network."""

    def describe(side: str, kind: str) -> str:
        folder, count, sizes, formats = (result[f"{side}_{what}"] for what in ("dir", "images", "sizes", "formats"))
        if count is None:
            return f"the statistics of {kind} in {folder}"
        sizes = ", ".join(sizes) if len(sizes) < 4 else f"{len(sizes)} sizes"
        return f"{count} {kind} of {sizes} ({', '.join(formats)}) in {folder}"

    real = describe("gt", "synthetic images" if result["gt_synthetic"] else "real images")
    lines = [f"{real}, {describe('gen', 'generated ones')}"]
    for what, effect in (("sizes", "they differ in sharpness"), ("formats", "lossy compression changes images")):
        if len({*result[f"gt_{what}"], *result[f"gen_{what}"]}) > 1:
            lines.append(f"Note: images of different {what}: {effect}, which adds to the distance")
    if "kid" in result:
        text = "KID: {mean:.6f} (standard deviation {std:.6f}, {subsets} subsets of {subset_size})"
        lines.append(text.format(**result["kid"]))
    lines.append(f"Network: {result['network']}, {TRAINED_ON[result['network']]} ({result['weights']})")
    return "\n".join(lines)


def npz_file(text: str) -> Path:
    """An argparse type: a `writable_file` that ends in .npz."""
    if not text.lower().endswith(".npz"):
        raise UserError(f"{text!r} does not end in .npz")
    return writable_file(text)


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command line."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("gt_dir", metavar="GT_DIR", help="folder of real images (data/afhq/eval), or an .npz file of their statistics")
    add("gen_dir", metavar="GEN_DIR", nargs="?", help="folder of generated images, or an .npz file")
    add("--network", choices=NETWORKS, default="auto", help="auto: lab if fid/afhq_inception_v3.ckpt is there")
    add("--dims", type=int, choices=WIDTHS, default=STANDARD_WIDTH, help="number of features, 2048 for lab")
    add("--kid", action="store_true", help="also measure the kernel Inception distance")
    add("--save_stats", type=npz_file, metavar="PATH.npz", help="write GT_DIR's statistics, in pytorch-fid's format")
    add("--batch_size", type=int_range(1), default=50, help="images per pass through the network")
    add("--device", type=select_device, default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--json", type=writable_file, metavar="PATH", help="also write the result, counts, folders and versions here")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; the last line is the distance."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if not args.gen_dir and (not args.save_stats or args.kid or args.json):
        parser.error("the following arguments are required: GEN_DIR (only --save_stats works without it)")
    with exit_on_user_error():
        # Both before the network is loaded: a mistyped folder should not cost minutes.
        sides = [open_image_set(path) for path in (args.gt_dir, args.gen_dir) if path]
        if args.network == "auto":
            args.network = next((images.network for images in sides if images.network), "auto")
        network = load_network(args.network, args.dims, args.device)
        if args.save_stats:
            save_statistics(args.save_stats, sides[0], network, args.batch_size)
            print(f"Statistics of {args.gt_dir} by the network {network.name} written to {args.save_stats}")
        if args.gen_dir:
            result = measure(*sides, network, args.batch_size, args.kid)
            if args.json:
                with atomic_write(args.json) as file:
                    file.write((json.dumps(result, indent=2) + "\n").encode())
            print(summary(result))
            print("{name}: {distance:.4f}".format(**result))


if __name__ == "__main__":
    main()
