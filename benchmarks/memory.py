"""Peak memory of a training step on a CPU, by batch and image size, with activations kept or recomputed.

    python benchmarks/memory.py                                  # the lab's network
    python benchmarks/memory.py --ch 32 --batch_size 1 2 --image_resolution 16 --json memory.json

Each figure is the peak of a process of its own during one step in float32, less what it held before.
"""

import itertools
import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "image_diffusion_todo"))

from cli import ArgumentParser, int_range, writable_file
from network import UNet


def measure(unet: dict[str, Any], batch_size: int, activation_checkpointing: bool) -> tuple[float, float]:
    """GiB and seconds of one forward and backward pass of a UNet with these arguments."""
    network = UNet(**unet)
    network.activation_checkpointing = activation_checkpointing
    images = torch.randn(batch_size, 3, network.image_resolution, network.image_resolution)
    unit = 2**30 if sys.platform == "darwin" else 2**20  # of ru_maxrss, to GiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    started = time.perf_counter()
    network(images, torch.zeros(batch_size)).square().mean().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit - before, time.perf_counter() - started


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    several = {"type": int_range(1), "nargs": "+", "metavar": "N"}
    parser.add_argument("--batch_size", default=[1, 4, 8], help="images per step", **several)
    parser.add_argument("--image_resolution", default=[64], help="height and width of the images", **several)
    parser.add_argument("--ch", type=int_range(32), default=128, metavar="N", help="channels of the first level")
    parser.add_argument("--json", type=writable_file, metavar="FILE", help="also write the results to this file")
    args = parser.parse_args()
    print("| images | batch | kept, GiB | recomputed, GiB | time, recomputed / kept |\n|---|---|---|---|---|")
    rows = []
    for resolution, batch_size in itertools.product(args.image_resolution, args.batch_size):
        results = []
        unet = {"ch": args.ch, "image_resolution": resolution}
        for recompute in (False, True):
            with multiprocessing.get_context("spawn").Pool(1) as new_process:
                results.append(new_process.apply(measure, (unet, batch_size, recompute)))
        (kept, seconds), (recomputed, longer) = results
        times = longer / seconds
        print(f"| {resolution}x{resolution} | {batch_size} | {kept:.2f} | {recomputed:.2f} | {times:.2f} |", flush=True)
        row = {"image_resolution": resolution, "batch_size": batch_size, "ch": args.ch}
        rows.append(row | {"kept_gib": kept, "recomputed_gib": recomputed, "slowdown": times})
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
