"""What each choice behind the Swiss roll result gave: a ladder from a plain solution to this one.

    python report/swiss_roll_choices.py [--seeds 3] [--jobs 2]

Each rung undoes fewer of the choices that the code of `2d_plot_diffusion_todo` makes, and the last is
that code. Below the ladder stand the code with single choices taken out, and ideas that were not taken.
Every run keeps the lab's hyper-parameters (5000 iterations of batch 128, Adam from 1e-3, T = 1000, three
hidden layers of 128) and is scored by the mean Chamfer distance of four sets of 2048 samples against the
first 2048 target points. Results go to report/tables/swiss_roll_choices.csv, one line a run. Runs that are
there are not made again, so delete the file after a change of the code.
"""

import argparse
import csv
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from unittest.mock import patch

REPORT = Path(__file__).parent
TABLE = REPORT / "tables" / "swiss_roll_choices.csv"
sys.path.insert(0, str(REPORT.parent / "2d_plot_diffusion_todo"))

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from chamferdist import chamfer_distance
from dataset import TwoDimDataClass, get_data_iterator
from ddpm import BaseScheduler, DiffusionModule
from network import SimpleNet, TimeLinear
from options import OneLineParser, integer_from
from training import train

# The choices that the code makes, in the order in which the ladder adds them.
CHOICES = {
    "time": "`TimeLinear` in every layer",
    "silu": "SiLU instead of ReLU",
    "decay": "learning rate falls to 0 (half a cosine)",
    "wide": "first layer bends over the whole cloud",
    "power": "small t more often (t = T u^1.5)",
    "gates": "time factors of the layers start near 1",
}
PLAIN = "plain: time in the first layer only, ReLU, constant learning rate, t uniform"
LADDER = {PLAIN: list(CHOICES)} | {f"+ {text}": list(CHOICES)[i + 1 :] for i, text in enumerate(CHOICES.values())}
NOT_TAKEN = {
    "small t still more often (t = T u^2)": ["gates", "+u2"],
    "u spread evenly over each batch": ["gates", "+spread"],
    "average of the weights (EMA, decay 0.999)": ["gates", "+ema"],
    "DDIM, 50 steps": ["gates", "+ddim"],
}
TAKEN_OUT = {f"without: {text}": [name] for name, text in CHOICES.items() if name != "gates"}
VARIANTS = LADDER | TAKEN_OUT | NOT_TAKEN
HEADINGS = {
    next(iter(TAKEN_OUT)): "*the last rung with one choice taken out*",
    next(iter(NOT_TAKEN)): "*tried on the rung before the last, not taken*",
}


class LinearOnly(nn.Module):
    """A TimeLinear without its ear for time."""

    def __init__(self, layer: TimeLinear):
        super().__init__()
        self.fc = layer.fc

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


class OtherTimesteps(DiffusionModule):
    """Draws t = T u^power, u spread evenly or independently."""

    def __init__(self, network: nn.Module, var_scheduler: BaseScheduler, power: float, spread: bool):
        super().__init__(network, var_scheduler)
        self.power, self.spread = power, spread

    def draw_timesteps(self, batch_size: int) -> torch.Tensor:
        u = (torch.randperm(batch_size) + torch.rand(1)) / batch_size if self.spread else torch.rand(batch_size)
        T = self.var_scheduler.num_train_timesteps
        return (T * u**self.power).long().clamp(max=T - 1)


def run(variant: str, seed: int) -> dict:
    """Train and score one variant, on one core."""
    torch.set_num_threads(1)
    np.random.seed(seed)
    torch.manual_seed(seed)
    changes = VARIANTS[variant]

    data = TwoDimDataClass("swiss_roll", 1_000_000, 128)
    # Without the choice, the factors' biases keep the values that PyTorch drew for them.
    with patch("torch.nn.init.ones_") if "gates" in changes else nullcontext():
        network = SimpleNet(2, 2, [128, 128, 128], 1000)
    if "silu" in changes:
        network.activation = nn.ReLU()
    if "wide" in changes:
        network.layers[0].fc.reset_parameters()
    if "time" in changes:
        for i in range(1, len(network.layers)):
            network.layers[i] = LinearOnly(network.layers[i])
    ddpm = DiffusionModule(network, BaseScheduler(1000))
    if {"power", "+u2", "+spread"} & set(changes):
        power = 2.0 if "+u2" in changes else 1.0 if "power" in changes else 1.5
        ddpm = OtherTimesteps(network, ddpm.var_scheduler, power, spread="+spread" in changes)

    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    hook = register_optimizer_step_post_hook(lambda *_: averaged.update_parameters(network))
    if "+ema" not in changes:
        hook.remove()
    start = time.perf_counter()
    train(ddpm, get_data_iterator(data.get_dataloader()), decay="decay" not in changes)
    seconds = time.perf_counter() - start
    hook.remove()
    if "+ema" in changes:
        ddpm.network = averaged.module

    samples = ddpm.ddim_p_sample_loop((8192, 2)) if "+ddim" in changes else ddpm.p_sample_loop((8192, 2))
    distance = mean(chamfer_distance(part, data[:2048]) for part in samples.chunk(4))
    return {
        "variant": variant,
        "seed": seed,
        "chamfer": f"{distance:.4f}",
        "training_seconds": f"{seconds:.1f}",
    }


def read_table() -> list[dict]:
    """The runs made so far."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def as_markdown(rows: list[dict]) -> str:
    """Mean and range over the seeds of each variant, as the README shows them."""
    distances = defaultdict(list)
    for row in rows:
        distances[row["variant"]].append(float(row["chamfer"]))
    lines = ["| choice | Chamfer distance, mean | lowest to highest | seeds |", "|---|---|---|---|"]
    for variant in VARIANTS:
        if variant in HEADINGS:
            lines.append(f"| {HEADINGS[variant]} | | | |")
        if d := distances[variant]:
            lines.append(f"| {variant} | {mean(d):.2f} | {min(d):.2f} to {max(d):.2f} | {len(d)} |")
    return "\n".join(lines)


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seeds", type=integer_from(1), default=3, help="seeds 0 to N-1 of each variant (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=integer_from(1), default=2, help="runs side by side (default: %(default)s)")
    args = parser.parse_args()

    rows = read_table()
    done = {(row["variant"], int(row["seed"])) for row in rows}
    todo = [(v, seed) for seed in range(args.seeds) for v in VARIANTS if (v, seed) not in done]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run, *task) for task in todo]):
            rows.append(future.result())
            rows.sort(key=lambda row: (list(VARIANTS).index(row["variant"]), int(row["seed"])))
            TABLE.parent.mkdir(exist_ok=True)
            with TABLE.open("w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=rows[0], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    print(as_markdown(rows))


if __name__ == "__main__":
    main()
