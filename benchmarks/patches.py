"""Time and memory of a training step, and time of a network evaluation, for patches of 1, 2 and 4 pixels.

    python benchmarks/patches.py --json report/tables/patches_cpu.json
    python benchmarks/patches.py --networks small --image_resolution 32 --turns 1

The patch sizes of a network take turns in one process; a time is the median of the turns. Memory is measured as in
`memory.py`.
"""

from collections.abc import Callable

import bench
import torch
from bench_tables import PATCHES, markdown, table, with_speedups

import speed
from cli import exit_on_user_error, int_range
from model import DiffusionModule
from network import PATCH_SIZES, UNet
from progress import tqdm
from scheduler import DDPMScheduler

NETWORKS = {  # arguments of UNet, and the batch size
    "small": ({"ch": 64, "attn": [2], "num_res_blocks": 1}, 16),
    "the lab's": ({}, 1),
}


def make_calls(unet: dict, batch_size: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """A training step and an evaluation, in the precision that train.py would take."""
    network = UNet(**unet)
    model = DiffusionModule(network, DDPMScheduler(1000), precision=speed.select_precision("auto", bench.CPU))
    speed.place_network(model, bench.CPU, model.precision)
    adam = speed.adam(list(network.parameters()), 2e-4, bench.CPU)
    images = torch.randn(batch_size, 3, network.image_resolution, network.image_resolution)

    def train() -> None:
        adam.zero_grad()
        model.get_loss(images).backward()
        adam.step()

    @torch.no_grad()
    def evaluate() -> None:
        model.predict(images, 500)

    return train, evaluate


def main() -> None:
    parser = bench.make_parser(__doc__, turns=5)
    parser.add_argument("--networks", choices=NETWORKS, nargs="+", default=list(NETWORKS), help="networks to measure")
    size = {"type": int_range(32), "default": 64, "metavar": "N"}
    parser.add_argument("--image_resolution", help="height and width of the images", **size)
    args = parser.parse_args()
    with exit_on_user_error():
        unets = {
            (name, p): NETWORKS[name][0] | {"image_resolution": args.image_resolution, "patch_size": p}
            for name in args.networks
            for p in PATCH_SIZES
        }
        # While this process is small.
        bar = tqdm(unets.items(), desc="memory", leave=False)
        peaks = {(name, p): bench.peak_memory(unet, NETWORKS[name][1])[0] for (name, p), unet in bar}
        rows = []
        for name in args.networks:
            batch_size = NETWORKS[name][1]
            calls = {}
            for p in PATCH_SIZES:
                calls["step", p], calls["evaluation", p] = make_calls(unets[name, p], batch_size)
            bench.take_turns(calls, 1)  # warm-up
            seconds = bench.medians(bench.take_turns(calls, args.turns))
            for p in PATCH_SIZES:
                row = {"network": name, "batch_size": batch_size, "image_resolution": args.image_resolution}
                row |= {"patch_size": p, "step_seconds": seconds["step", p]}
                rows.append(row | {"evaluation_seconds": seconds["evaluation", p], "memory_gib": peaks[name, p]})
        print(markdown(table(with_speedups(rows), PATCHES)))
        bench.write_json(args.json, rows)


if __name__ == "__main__":
    main()
