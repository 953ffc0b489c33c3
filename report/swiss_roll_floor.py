"""Task 1: the lowest loss possible at each t, and the trained network's -> {tables,figures}/swiss_roll_floor.{csv,svg}.

    python report/swiss_roll_floor.py    # trains as ddpm_tutorial.py does, with seed 0, then measures: minutes

At each t the loss of eq. 14 is least for the prediction E[eps | x_t]. The target is known, so this mean is computable:
it is a sum over target points, weighted by the likelihood that each of them gives x_t. Both losses are means over the
same noisy points, at the middle of 50 bins of timesteps; `share` is the share of training timesteps in a bin.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "2d_plot_diffusion_todo"))

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import trange

import common
from cli import ArgumentParser, exit_on_user_error, int_range
from common import plt
from dataset import TwoDimDataClass, get_data_iterator
from ddpm import BaseScheduler, DiffusionModule
from network import SimpleNet
from training import train

T, BINS = 1000, 50


def best_prediction(x_t: torch.Tensor, target: torch.Tensor, alpha_bar: float) -> torch.Tensor:
    """E[eps | x_t] for x_0 drawn from the points `target` [M, 2]; x_t and result are [N, 2]. In float64."""
    x_t, target = x_t.double(), target.double()
    a, s = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    half_squares = a * target.square().sum(1) / 2
    x_0 = [
        # log of exp(-|x_t - a x_0|^2 / (2 s^2)), without what is the same for all target points
        torch.softmax((part @ target.T - half_squares) * (a / s**2), dim=1) @ target
        for part in x_t.split(64)
    ]
    return (x_t - a * torch.cat(x_0)) / s


def measure(ddpm: DiffusionModule, points: torch.Tensor, target: torch.Tensor) -> list[dict[str, object]]:
    """The rows of the table: both losses for `points` [N, 2], which are not in `target`."""
    width = T // BINS
    share = torch.bincount(ddpm.draw_timesteps(10**6) // width, minlength=BINS) / 1e6
    rows = []
    for i in trange(BINS, desc="timesteps"):
        t = i * width + width // 2
        noise = torch.randn_like(points)
        x_t = ddpm.q_sample(points, t, noise)
        with torch.no_grad():
            losses = [
                F.mse_loss(prediction, noise.to(prediction)).item()
                for prediction in (best_prediction(x_t, target, ddpm.var_scheduler.alpha_bars[t]), ddpm.network(x_t, t))
            ]
        rows.append({"t": t, "best": f"{losses[0]:.4f}", "model": f"{losses[1]:.4f}", "share": f"{share[i]:.4f}"})
    return rows


def draw(rows: list[dict[str, object]]) -> plt.Figure:
    """Both losses over t."""
    fig, ax = plt.subplots(figsize=(common.WIDTH, 1.9), layout="constrained")
    for name, label, color, width in (("best", "lowest possible", "0.6", 3), ("model", "trained network", "black", 1)):
        losses = [float(row[name]) for row in rows]
        ax.plot([row["t"] for row in rows], losses, label=label, color=color, linewidth=width)
    ax.set(xlabel="timestep t", ylabel="loss at t", xlim=(0, T), ylim=(0, None))
    ax.legend()
    ax.grid()
    return fig


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--num_iterations", type=int_range(1), default=5000, help="training steps")
    add("--points", type=int_range(1), default=2048, help="noisy points at each timestep")
    add("--target", type=int_range(1), default=50_000, help="target points that the lowest loss is computed from")
    add("--out", **common.OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    np.random.seed(0)
    torch.manual_seed(0)
    with exit_on_user_error():
        data = TwoDimDataClass("swiss_roll", 1_000_000, 128)
        ddpm = DiffusionModule(SimpleNet(2, 2, [128, 128, 128], T), BaseScheduler(T))
        train(ddpm, get_data_iterator(data.get_dataloader()), args.num_iterations)
        rows = measure(ddpm, data[: args.points], data[-args.target :])
        common.write(args.out / "tables/swiss_roll_floor.csv", rows)
        common.write(args.out / "figures/swiss_roll_floor.svg", draw(rows))


if __name__ == "__main__":
    main()
