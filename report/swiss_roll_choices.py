"""Task 1's ablation: what each choice behind the Swiss roll result contributes -> tables/swiss_roll_choices.csv.

    python report/swiss_roll_choices.py --seeds 3 --jobs 2

The rows go from a plain network to the code of `2d_plot_diffusion_todo/`, one choice at a time. Below them are the full
code without a single choice, and rejected ideas. Every run has the lab's hyper-parameters: 5000 iterations of batch
128, Adam from 1e-3, T = 1000, three hidden layers of 128. Its score is the mean Chamfer distance of four sets of 2048
samples to the first 2048 target points. Runs already in the table are skipped: delete it after changing the code.
"""

import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "2d_plot_diffusion_todo"))

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import common
from chamferdist import chamfer_distance
from cli import ArgumentParser, exit_on_user_error, int_range
from dataset import TwoDimDataClass, get_data_iterator
from ddpm import BaseScheduler, DiffusionModule
from network import SimpleNet, TimeLinear
from training import train

TABLE = common.REPORT / "tables/swiss_roll_choices.csv"
# The choices of the code, in the order of the rows that add them.
CHOICES = {
    "time": "`TimeLinear` in every layer",
    "silu": "SiLU instead of ReLU",
    "decay": "learning rate falls to 0 (half a cosine)",
    "wide": "larger initial values in the first layer",
    "power": "small t drawn more often (t = T u^1.5)",
    "gates": "time factors of the layers start near 1",
}
# Each variant by its name in the table: the choices left out, and what is added ("+...").
PLAIN = "plain: time in the first layer only, ReLU, constant learning rate, t uniform"
CUMULATIVE = {PLAIN: list(CHOICES)} | {f"+ {text}": list(CHOICES)[i + 1 :] for i, text in enumerate(CHOICES.values())}
LEFT_OUT = {f"without: {text}": [name] for name, text in CHOICES.items() if name != "gates"}
REJECTED = {
    "small t drawn still more often (t = T u^2)": ["gates", "+u2"],
    "u spread evenly over each batch": ["gates", "+spread"],
    "average of the weights (EMA, decay 0.999)": ["gates", "+ema"],
    "DDIM, 50 steps": ["gates", "+ddim"],
}
VARIANTS = CUMULATIVE | LEFT_OUT | REJECTED


class AffineOnly(nn.Module):
    """The affine map of a TimeLinear, independent of t."""

    def __init__(self, layer: TimeLinear):
        super().__init__()
        self.fc = layer.fc

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


class OtherTimesteps(DiffusionModule):
    """Draws t = T u^power, with u independent or, with `spread`, evenly spaced in each batch."""

    def __init__(self, network: nn.Module, var_scheduler: BaseScheduler, power: float, spread: bool):
        super().__init__(network, var_scheduler)
        self.power, self.spread = power, spread

    def draw_timesteps(self, batch_size: int) -> torch.Tensor:
        u = (torch.randperm(batch_size) + torch.rand(1)) / batch_size if self.spread else torch.rand(batch_size)
        T = self.var_scheduler.num_train_timesteps
        return (T * u**self.power).long().clamp(max=T - 1)


def run(variant: str, seed: int) -> tuple[str, int, str, str]:
    """Train and evaluate one variant on one core: variant, seed, Chamfer distance and seconds of training."""
    torch.set_num_threads(1)
    np.random.seed(seed)
    torch.manual_seed(seed)
    changes = VARIANTS[variant]

    data = TwoDimDataClass("swiss_roll", 1_000_000, 128)
    # Without this choice, the biases of the factors keep PyTorch's initial values.
    with patch("torch.nn.init.ones_") if "gates" in changes else nullcontext():
        network = SimpleNet(2, 2, [128, 128, 128], 1000)
    if "silu" in changes:
        network.activation = nn.ReLU()
    if "wide" in changes:
        network.layers[0].fc.reset_parameters()
    if "time" in changes:
        first, *others = network.layers
        network.layers = nn.ModuleList([first, *map(AffineOnly, others)])
    ddpm = DiffusionModule(network, BaseScheduler(1000))
    if {"power", "+u2", "+spread"} & set(changes):
        power = 2.0 if "+u2" in changes else 1.0 if "power" in changes else 1.5
        ddpm = OtherTimesteps(network, ddpm.var_scheduler, power, spread="+spread" in changes)

    start = time.perf_counter()
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    hook = register_optimizer_step_post_hook(lambda *_: averaged.update_parameters(network))
    if "+ema" not in changes:
        hook.remove()
    train(ddpm, get_data_iterator(data.get_dataloader()), decay="decay" not in changes)
    hook.remove()
    if "+ema" in changes:
        ddpm.network = averaged.module
    seconds = time.perf_counter() - start

    samples = ddpm.ddim_p_sample_loop((8192, 2)) if "+ddim" in changes else ddpm.p_sample_loop((8192, 2))
    distance = mean(chamfer_distance(part, data[:2048]) for part in samples.chunk(4))
    return variant, seed, f"{distance:.4f}", f"{seconds:.1f}"


def position(row: dict[str, str]) -> tuple[int, int]:
    """Where a row stands in the table."""
    return list(VARIANTS).index(row["variant"]), int(row["seed"])


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--seeds", type=int_range(1), default=3, help="run each variant with the seeds 0 to N-1")
    add("--jobs", type=int_range(1), default=2, help="parallel runs")
    args = parser.parse_args()

    with exit_on_user_error(interrupted="stopped; the same command resumes"):
        results = "chamfer", "training_seconds"
        table = common.ResultTable(TABLE, ["variant", "seed"], results, order=position)
        todo = [(variant, seed) for seed in range(args.seeds) for variant in VARIANTS if not table.find(variant, seed)]
        # Ctrl-C ends the workers at once.
        worker_settings = dict(initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_DFL))
        with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn"), **worker_settings) as pool:
            try:
                for future in as_completed([pool.submit(run, *task) for task in todo]):
                    table.add(*future.result())
            finally:
                pool.shutdown(cancel_futures=True)  # no new run after Ctrl-C or an error
    print(TABLE)


if __name__ == "__main__":
    main()
