# %% [markdown]
# # A diffusion model learns the Swiss roll
#
# Given a cloud of points, we want *more points like these*, without a formula for their distribution.
# A diffusion model adds noise to the data step by step until only noise is left, and learns to reverse
# each of these steps. New data then come from fresh noise.
#
# This file is a notebook (VS Code opens its cells as they are, Jupyter with jupytext) and a program:
#
#     python ddpm_tutorial.py --dataset swiss_roll --seed 0 --device auto --out results

# %%
import argparse
import json
import os
import sys
from pathlib import Path

IN_NOTEBOOK = "ipykernel" in sys.modules
if not IN_NOTEBOOK:
    os.environ["MPLBACKEND"] = "Agg"  # write files, open no windows

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from torch import Tensor

from chamferdist import chamfer_distance
from cli import ArgumentParser, atomic_write, exit_on_user_error, int_range, select_device, writable_folder
from dataset import DATASETS, TwoDimDataClass, get_data_iterator
from ddpm import BaseScheduler, DiffusionModule
from network import SimpleNet
from training import train


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description="Train a DDPM on 2D points, plot each stage and measure the result.")
    add = parser.add_argument
    add("--dataset", choices=DATASETS, default="swiss_roll", help="the target distribution")
    add("--seed", type=int_range(0, 2**32 - 1), default=0, help="of data, weights and noise")
    add("--device", type=select_device, default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--out", type=writable_folder, default="results", help="folder for figures and checkpoint")
    add("--num_iterations", type=int_range(1), default=5000, help="training steps")
    # A kernel's sys.argv is that of its launcher; after `%run ddpm_tutorial.py ...` it is this file's.
    is_script = not IN_NOTEBOOK or Path(sys.argv[0]).resolve() == Path(globals().get("__file__", "")).resolve()
    return parser.parse_args(None if is_script else [])


args = parse_arguments()
torch.set_num_threads(1)  # more threads do not speed up tensors this small
np.random.seed(args.seed)
torch.manual_seed(args.seed)

# %%
# The hyper-parameters of the lab.
config = {
    "num_diffusion_steps": 1000,
    "dim_hids": [128, 128, 128],
    "lr": 1e-3,
    "batch_size": 128,
    "num_iterations": args.num_iterations,
    "num_target_points": 1_000_000,
    "num_vis_particles": 500,
    "num_eval_points": 2048,
}
T, num_vis_particles = config["num_diffusion_steps"], config["num_vis_particles"]
files: list[Path] = []

plt.rcParams.update({"figure.dpi": 110, "savefig.bbox": "tight", "font.size": 11})
BLUE, ORANGE = "#2a6fbb", "#e07b28"


def output(name: str) -> Path:
    """The path of an output file, listed at the end."""
    files.append(args.out / f"{args.dataset}{name}")
    return files[-1]


@exit_on_user_error()
def save_figure(fig: plt.Figure, name: str) -> None:
    """Write a figure to a file; a notebook shows it as well."""
    with atomic_write(output(f"_{name}.png")) as partial:
        fig.savefig(partial)
    if not IN_NOTEBOOK:
        plt.close(fig)


def scatter(ax: plt.Axes, points: Tensor, color: str | Tensor, **title: object) -> None:
    """Plot points [N, 2] at equal scales, without axes."""
    ax.scatter(*points.cpu().T, s=9, c=color, linewidths=0)
    ax.set(aspect="equal", **title)
    ax.set_axis_off()


def save_strip(clouds: dict[str, Tensor], color: Tensor, name: str) -> None:
    """A row of point clouds by title; each point has the same colour in all of them."""
    fig, axs = plt.subplots(1, len(clouds), figsize=(28, 3), sharex=True, sharey=True)
    with plt.rc_context({"axes.titlesize": 30}):  # the strip is shown much smaller than it is
        for ax, (title, points) in zip(axs, clouds.items(), strict=True):
            scatter(ax, points, color, title=title)
    save_figure(fig, name)


# %% [markdown]
# ## Target and prior
#
# Left: the target distribution. Right: the *prior*, a standard Gaussian, where sampling starts.
# The target is a set of a million points; the figures show 500 of them.

# %%
target_ds = TwoDimDataClass(args.dataset, config["num_target_points"], config["batch_size"])
target = target_ds[:num_vis_particles]
prior = torch.randn(num_vis_particles, 2)

fig, axs = plt.subplots(1, 2, figsize=(8, 4), sharex=True, sharey=True)
scatter(axs[0], target, BLUE, title="target")
scatter(axs[1], prior, "gray", title="prior")
save_figure(fig, "target_and_prior")

# %% [markdown]
# ## Forward process
#
# Each step scales a point down a little and adds a little Gaussian noise. Sums of Gaussians are
# Gaussian, so $x_t$ can be sampled directly from a target point $x$ (DDPM, eq. 4; $t$ counts from 0):
#
# $$x_t = \sqrt{\bar\alpha_t}\, x + \sqrt{1 - \bar\alpha_t}\, \epsilon, \qquad \epsilon \sim \mathcal N(0, I)$$
#
# The colour of a point is its distance from the centre at $t = 0$. Fine structure disappears first:
# at $t = 100$ the roll is thick, at $t = 250$ its arms have merged, and at $t = 450$ it is a blur in
# which the colours are still slightly ordered.

# %%
network = SimpleNet(dim_in=2, dim_out=2, dim_hids=config["dim_hids"], num_timesteps=T)
var_scheduler = BaseScheduler(T, beta_1=1e-4, beta_T=0.02, mode="linear")
ddpm = DiffusionModule(network, var_scheduler).to(args.device)

x = target.to(ddpm.device)
noisy = {f"$q(x_{{{t}}})$": ddpm.q_sample(x, torch.full((num_vis_particles,), t)) for t in range(0, 500, 50)}
save_strip(noisy, target.norm(dim=1), "q_sample")

# %% [markdown]
# ## Training
#
# The network receives a noisy point and its timestep, and predicts the noise in it. The loss is the
# mean squared error of this prediction (DDPM, eq. 14); a prediction of 0 has a loss of 1.
#
# The curve falls quickly and then stays almost constant, far above 0. This is expected. A point moved
# *along* the roll is as likely as before, so this component of its noise cannot be predicted: at small
# $t$ no network gets below about 0.5. (At large $t$, $x_t$ is nearly all noise and the task is easy.)
# Progress after the first 1000 steps hardly shows in this average, but makes the samples sharp.

# %%
with exit_on_user_error():
    losses = train(ddpm, get_data_iterator(target_ds.get_dataloader()), config["num_iterations"], config["lr"])

window = max(1, len(losses) // 50)
smoothed = np.convolve(losses, np.ones(window) / window, mode="valid")
fig, ax = plt.subplots(figsize=(8, 4))
ax.plot(losses, color=BLUE, alpha=0.25, linewidth=0.6, label="each step")
ax.plot(np.arange(len(smoothed)) + window / 2, smoothed, color=BLUE, linewidth=2, label=f"mean of {window} steps")
ax.set(xlabel="training step", ylabel="loss", title="Noise-matching loss", ylim=(0, None))
ax.legend(frameon=False)
ax.grid(alpha=0.3)
save_figure(fig, "loss")

# %% [markdown]
# ## Sampling
#
# Sampling starts from the prior and takes 1000 reverse steps (DDPM, Algorithm 2). Each step moves the
# points towards the data that the network predicts, and adds a little fresh noise, except the last.
#
# The figure shows the same points at ten steps; their colour is the distance from the centre at the
# end. The colours are ordered before the shape appears, and the arms separate only in the last fifth.

# %%
with exit_on_user_error():
    traj = torch.stack(ddpm.p_sample_loop((config["num_eval_points"], 2), return_traj=True)).cpu()  # [T + 1, N, 2]
samples = traj[-1]
visible, color = traj[:, :num_vis_particles], samples[:num_vis_particles].norm(dim=1)

steps_left = [1000, 800, 600, 450, 350, 250, 150, 100, 50, 0]
save_strip({f"{left} left": visible[T - left] for left in steps_left}, color, "reverse_chain")

# %%
# The same as an animation of 60 frames, most of them near the end.
fig, ax = plt.subplots(figsize=(3.5, 3.5))
scatter(ax, visible[-1], color)
(dots,) = ax.collections
dots.set_clip_on(False)


def draw_frame(left: int) -> None:
    dots.set_offsets(visible[T - left])
    ax.set_title(f"{left} steps left")


animation = FuncAnimation(fig, draw_frame, frames=(T * np.linspace(1, 0, 60) ** 2).round().astype(int))
with exit_on_user_error(), atomic_write(output("_reverse_chain.gif")) as partial:
    animation.save(partial, writer=PillowWriter(fps=15))
plt.close(fig)

# %% [markdown]
# ## Evaluation
#
# The Chamfer distance compares samples with target points: for each point the squared distance to the
# nearest point of the other set, summed both ways. It grows with stray samples, far from any target
# point, and with gaps, target points far from any sample. Two sets of 2048 points of the Swiss roll are
# about 0.4 apart, which is the best that a model can reach; the lab asks for less than 20.

# %%
num_eval = config["num_eval_points"]
distance = chamfer_distance(samples, target_ds[:num_eval])
floor = chamfer_distance(target_ds[num_eval : 2 * num_eval], target_ds[:num_eval])

fig, ax = plt.subplots(figsize=(5, 5))
scatter(ax, target, BLUE)
scatter(ax, samples[:num_vis_particles], ORANGE, title=f"Chamfer distance {distance:.2f}")
ax.legend(["target", "samples"], frameon=False, loc="upper right", bbox_to_anchor=(1.15, 1.0))
save_figure(fig, "samples")

# %%
result = {"dataset": args.dataset, "seed": args.seed, "chamfer": round(distance, 4), "floor": round(floor, 4), **config}
with exit_on_user_error():
    with atomic_write(output(".json")) as partial:
        partial.write_text(json.dumps(result, indent=2) + "\n")
    ddpm.save(output(".ckpt"))
    print(*files, sep="\n")
print(f"Two sets of {num_eval} target points: {floor:.4f}")
print(f"DDPM Chamfer Distance: {distance:.4f}")
