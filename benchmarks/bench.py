"""Shared by the benchmarks: timing, memory, command line. Importing it puts Task 2's modules on the path."""

import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "image_diffusion_todo"))

from atomic import atomic_write
from cli import ArgumentParser, int_range, writable_file
from network import UNet
from progress import tqdm

CPU = torch.device("cpu")


def make_parser(description: str, turns: int | None = None) -> ArgumentParser:
    """A parser with --json, and with --turns where it has a default."""
    parser = ArgumentParser(description=description)
    if turns:
        help = "rounds, each of which times every row once"
        parser.add_argument("--turns", type=int_range(1), default=turns, metavar="N", help=help)
    parser.add_argument("--json", type=writable_file, metavar="FILE", help="also write the results to this file")
    return parser


def write_json(path: Path | None, result: Mapping | Sequence) -> None:
    """Write a result for `--json`, which may not be given."""
    if path:
        with atomic_write(path) as file:
            file.write((json.dumps(result, indent=2) + "\n").encode())


def seconds_per_call(call: Callable[[], object], calls: int = 1, device: torch.device = CPU) -> float:
    """Mean seconds of consecutive calls, with the work that they leave to a GPU."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronise()
    started = time.perf_counter()
    for _ in range(calls):
        call()
    synchronise()
    return (time.perf_counter() - started) / calls


def take_turns(
    rows: Mapping[Any, Callable[[], object]], turns: int, calls: int = 1, device: torch.device = CPU
) -> dict[Any, list[float]]:
    """Seconds per call of each row in each turn. All rows take turns, so that other load affects all alike."""
    seconds = {name: [] for name in rows}
    for _ in tqdm(range(turns), desc="measuring", unit="turn", leave=False):
        for name, call in rows.items():
            seconds[name].append(seconds_per_call(call, calls, device))
    return seconds


def medians(seconds: Mapping[Any, Sequence[float]]) -> dict[Any, float]:
    """The median turn of each row."""
    return {name: statistics.median(turns) for name, turns in seconds.items()}


def peak_memory(unet: dict[str, Any], batch_size: int, activation_checkpointing: bool = False) -> tuple[float, float]:
    """Peak memory in GiB, above what the process held before, and seconds of a training step of `UNet(**unet)`.

    In float32, in a process of its own. Call it from a small one: on Linux, the peak of a new process begins at what
    its parent holds.
    """
    with multiprocessing.get_context("spawn").Pool(1) as new_process:
        return new_process.apply(_measure_step, (unet, batch_size, activation_checkpointing))


def _measure_step(unet: dict[str, Any], batch_size: int, activation_checkpointing: bool) -> tuple[float, float]:
    network = UNet(**unet)
    network.activation_checkpointing = activation_checkpointing
    images = torch.randn(batch_size, 3, network.image_resolution, network.image_resolution)
    unit = 2**30 if sys.platform == "darwin" else 2**20  # of ru_maxrss, to GiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    seconds = seconds_per_call(lambda: network(images, torch.zeros(batch_size)).square().mean().backward())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit - before, seconds
