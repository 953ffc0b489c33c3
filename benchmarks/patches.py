"""Time and memory of a training step, and time of a network evaluation, for patches of 1, 2 and 4 pixels.

    python benchmarks/patches.py --json report/tables/patches_cpu.json
    python benchmarks/patches.py --networks small --image_resolution 32 --turns 1

The patch sizes of a network take turns in one process, so that other programs slow all of them; a time is the median of
its turns. Memory is measured as in `memory.py`.
"""

import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "image_diffusion_todo"), str(HERE)]

from memory import measure

import speed
from cli import ArgumentParser, int_range, writable_file
from model import DiffusionModule
from network import PATCH_SIZES, UNet
from scheduler import DDPMScheduler

NETWORKS = {  # arguments of UNet, and the batch size
    "small": ({"ch": 64, "attn": [2], "num_res_blocks": 1}, 16),
    "the lab's": ({}, 1),
}
CPU = torch.device("cpu")


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def memory(name: str, resolution: int, patch_size: int) -> float:
    """Peak memory of a training step in GiB, from a process of its own.

    It must start from a small one: on Linux, the peak of a new process begins at what its parent holds.
    """
    options, batch_size = NETWORKS[name]
    with multiprocessing.get_context("spawn").Pool(1) as new_process:
        unet = options | {"image_resolution": resolution, "patch_size": patch_size}
        return new_process.apply(measure, (unet, batch_size, False))[0]


def times(name: str, resolution: int, turns: int) -> dict[int, tuple[float, float]]:
    """Seconds of a training step and of an evaluation, by patch size, in the precision that train.py would take."""
    options, batch_size = NETWORKS[name]
    images = torch.randn(batch_size, 3, resolution, resolution)
    steps: dict[int, tuple[Callable[[], object], Callable[[], object]]] = {}
    for patch_size in PATCH_SIZES:
        network = UNet(**options, image_resolution=resolution, patch_size=patch_size)
        model = DiffusionModule(network, DDPMScheduler(1000), precision=speed.select_precision("auto", CPU))
        speed.place_network(model, CPU, model.precision)
        adam = speed.adam(list(network.parameters()), 2e-4, CPU)

        def train(model: DiffusionModule = model, adam: torch.optim.Adam = adam) -> None:
            adam.zero_grad()
            model.get_loss(images).backward()
            adam.step()

        steps[patch_size] = train, torch.no_grad()(lambda model=model: model.predict(images, 500))
    measured = [{p: tuple(map(seconds, steps[p])) for p in PATCH_SIZES} for _ in range(turns + 1)]
    warm = measured[1:]
    return {p: tuple(statistics.median(turn[p][i] for turn in warm) for i in range(2)) for p in PATCH_SIZES}


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--networks", choices=NETWORKS, nargs="+", default=list(NETWORKS), help="networks to measure")
    add("--image_resolution", type=int_range(32), default=64, metavar="N", help="height and width of the images")
    add("--turns", type=int_range(1), default=5, metavar="N", help="turns of each patch size")
    add("--json", type=writable_file, metavar="FILE", help="also write the results to this file")
    args = parser.parse_args()
    print("| network | patch | training step, s | evaluation, s | memory, GiB |\n|---|---|---|---|---|")
    rows = []
    peaks = {(name, p): memory(name, args.image_resolution, p) for name in args.networks for p in PATCH_SIZES}
    for name in args.networks:
        for p, (step, evaluation) in times(name, args.image_resolution, args.turns).items():
            print(f"| {name} | {p} | {step:.3f} | {evaluation:.3f} | {peaks[name, p]:.2f} |", flush=True)
            row = {"network": name, "batch_size": NETWORKS[name][1], "image_resolution": args.image_resolution}
            row |= {"patch_size": p, "step_seconds": step, "evaluation_seconds": evaluation}
            rows.append(row | {"memory_gib": peaks[name, p]})
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
