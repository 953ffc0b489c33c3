"""Peak memory of a training step on a CPU: against batch and image size, with activations kept or computed twice.

    python benchmarks/memory.py                                  # the lab's network
    python benchmarks/memory.py --ch 32 --batch_size 1 2 --image_resolution 16 --json memory.json

Each figure is the peak of a process of its own, less what that process held before the step, from one step in float32.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "image_diffusion_todo"))

from cli import ArgumentParser, exit_on_user_error, int_range, writable_file
from network import UNet


def measure(ch: int, batch_size: int, resolution: int, activation_checkpointing: bool) -> tuple[float, float]:
    """GiB and seconds of one forward and backward pass."""
    network = UNet(ch=ch, image_resolution=resolution)
    network.activation_checkpointing = activation_checkpointing
    images = torch.randn(batch_size, 3, resolution, resolution)
    unit = 2**30 if sys.platform == "darwin" else 2**20  # of what the system reports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    started = time.perf_counter()
    network(images, torch.zeros(batch_size)).square().mean().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit - before, time.perf_counter() - started


def main() -> None:
    """The program."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    many = {"type": int_range(1), "nargs": "+", "metavar": "N"}
    parser.add_argument("--batch_size", default=[1, 4, 8], help="(default: 1 4 8)", **many)
    parser.add_argument("--image_resolution", default=[64], help="(default: 64)", **many)
    parser.add_argument("--ch", type=int_range(32), default=128, metavar="N", help="(default: 128)")
    what = "also write all figures to this file"
    parser.add_argument("--json", type=writable_file, metavar="FILE", help=what)
    args = parser.parse_args()
    print("| images | batch | kept, GiB | computed twice, GiB | times as long |\n|---|---|---|---|---|")
    with exit_on_user_error():
        rows = []
        for resolution in args.image_resolution:
            for batch_size in args.batch_size:
                results = []
                for twice in (False, True):
                    with multiprocessing.get_context("spawn").Pool(1) as fresh:
                        results.append(fresh.apply(measure, (args.ch, batch_size, resolution, twice)))
                (kept, seconds), (saved, longer) = results
                size = f"{resolution}x{resolution}"
                print(f"| {size} | {batch_size} | {kept:.2f} | {saved:.2f} | {longer / seconds:.2f} |", flush=True)
                row = {"image_resolution": resolution, "batch_size": batch_size, "ch": args.ch}
                rows.append(row | {"kept_gib": kept, "twice_gib": saved, "times_as_long": longer / seconds})
        if args.json:
            args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
