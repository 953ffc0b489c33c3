# %% [markdown]
# # A diffusion model learns the Swiss roll
#
# We have a cloud of points and want *more points like these*, without a formula for where they come
# from. A diffusion model does it in two moves. It destroys the data with noise, step by step, until
# nothing is left of it. Then it learns to take each of these steps back. Whoever can take them back
# can start from fresh noise and arrive at fresh data.
#
# This file is a notebook (VS Code opens its cells as they are, Jupyter with jupytext) and a
# program:
#
#     python ddpm_tutorial.py [--dataset swiss_roll] [--seed 0] [--device auto] [--out results]

# %%
import argparse
import json
import sys
from pathlib import Path

import matplotlib

IN_NOTEBOOK = "ipykernel" in sys.modules
if not IN_NOTEBOOK:
    matplotlib.use("Agg")  # a program draws into files and needs no screen

import matplotlib.pyplot as plt
import numpy as np
import torch

from chamferdist import chamfer_distance
from dataset import DATASETS, TwoDimDataClass, get_data_iterator
from ddpm import BaseScheduler, DiffusionModule
from network import SimpleNet
from options import OneLineParser, device, integer_from, writable_folder
from training import train


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(description="Train a DDPM on 2D points, draw what happens, measure how well it went.")
    add = parser.add_argument
    add("--dataset", choices=DATASETS, default="swiss_roll", help="the points to learn (default: swiss_roll)")
    add("--seed", type=integer_from(0, 2**32 - 1), default=0, help="of data, weights and noise (default: 0)")
    add("--device", type=device, default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add("--out", type=writable_folder, default="results", help="folder for the pictures (default: results)")
    add("--num_iterations", type=integer_from(1), default=5000, help="training steps (default: 5000)")
    return parser.parse_args([] if IN_NOTEBOOK else None)


args = parse_arguments()
torch.set_num_threads(1)  # for tensors this small, more gain little, and on a busy machine they wait for each other
np.random.seed(args.seed)
torch.manual_seed(args.seed)

# %%
# What the lab fixes.
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
num_vis_particles = config["num_vis_particles"]
pictures: list[Path] = []

plt.rcParams.update(
    {
        "figure.dpi": 110,
        "savefig.bbox": "tight",
        "font.size": 11,
        "image.cmap": "viridis",
    }
)
BLUE, ORANGE = "#2a6fbb", "#e07b28"
STRIP = 30  # size of letters over a strip of ten pictures, which is shown much smaller than it is


def keep(fig: plt.Figure, name: str) -> None:
    """Write the figure beside the others; a notebook shows it as well."""
    pictures.append(args.out / f"{args.dataset}_{name}.png")
    fig.savefig(pictures[-1])
    if not IN_NOTEBOOK:
        plt.close(fig)


def scatter(ax: plt.Axes, points: torch.Tensor, color: str | torch.Tensor, title: str = "", size: int = 13) -> None:
    """Points [N, 2] with the same scale in both directions and no axes."""
    points = points.cpu()
    ax.scatter(points[:, 0], points[:, 1], s=9, c=color, linewidths=0)
    ax.set_title(title, fontsize=size)
    ax.set_aspect("equal")
    ax.set_axis_off()


# %% [markdown]
# ## Target and prior
#
# On the left is what the model shall learn to draw. On the right is where it will start: points of
# a standard Gaussian, the *prior*, which anybody can draw. The million target points stay in
# memory; the pictures show 500 of them.

# %%
target_ds = TwoDimDataClass(args.dataset, config["num_target_points"], config["batch_size"])
target = target_ds[:num_vis_particles]
prior = torch.randn(num_vis_particles, 2)

fig, axs = plt.subplots(1, 2, figsize=(8, 4), sharex=True, sharey=True)
scatter(axs[0], target, BLUE, "target $q(x_0)$")
scatter(axs[1], prior, "gray", "prior $p(x_T)$")
keep(fig, "target_and_prior")

# %% [markdown]
# ## The way into noise
#
# One step of the forward process shrinks a point a little and adds a little noise. Steps of
# Gaussian noise add up to Gaussian noise, so any $x_t$ can be had at once, without walking there
# (DDPM, eq. 4):
#
# $$x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon, \qquad \epsilon \sim \mathcal N(0, I)$$
#
# Each point keeps the colour that it has at $t = 0$ (its distance from the centre). Fine structure
# goes first: at $t = 100$ the roll is already thick, at $t = 250$ its arms have grown together, at
# $t = 450$ only a blur with a little of the colours' order is left.

# %%
network = SimpleNet(dim_in=2, dim_out=2, dim_hids=config["dim_hids"], num_timesteps=config["num_diffusion_steps"])
var_scheduler = BaseScheduler(config["num_diffusion_steps"], beta_1=1e-4, beta_T=0.02, mode="linear")
ddpm = DiffusionModule(network, var_scheduler).to(args.device)

fig, axs = plt.subplots(1, 10, figsize=(28, 3), sharex=True, sharey=True)
for ax, t in zip(axs, range(0, 500, 50), strict=True):
    x_t = ddpm.q_sample(target.to(ddpm.device), torch.full((num_vis_particles,), t))
    scatter(ax, x_t, target.norm(dim=1), f"$q(x_{{{t}}})$", STRIP)
keep(fig, "q_sample")

# %% [markdown]
# ## Learning the way back
#
# The network sees a noisy point and its timestep, and says which noise is in it. The loss is the
# mean squared error of that answer (DDPM, eq. 14); saying nothing at all would cost 1.
#
# The curve falls quickly and then seems to stand still, far above 0. That is not a failure. A point
# that was moved *along* the roll is as good a point of the roll as before, so this part of its noise
# cannot be told: at small $t$ no network gets below about one half. (At large $t$ the task is easy:
# $x_t$ is nearly all noise.) What the model still learns after the first 1000 steps hardly shows in
# this average, and decides how sharp the samples are.

# %%
losses = train(ddpm, get_data_iterator(target_ds.get_dataloader()), config["num_iterations"], config["lr"])

window = max(1, len(losses) // 50)
smoothed = np.convolve(losses, np.ones(window) / window, mode="valid")
fig, ax = plt.subplots(figsize=(8, 4))
ax.plot(losses, color=BLUE, alpha=0.25, linewidth=0.6, label="each step")
ax.plot(np.arange(len(smoothed)) + window / 2, smoothed, color=BLUE, linewidth=2, label=f"mean of {window} steps")
ax.set(xlabel="training step", ylabel="loss", title="Noise-matching loss", ylim=(0, None))
ax.legend(frameon=False)
ax.grid(alpha=0.3)
keep(fig, "loss")

# %% [markdown]
# ## New points
#
# Sampling starts from the prior and takes a thousand small steps back (DDPM, Algorithm 2). Each
# moves the points to where the network believes they came from, and adds a little fresh noise,
# except the last.
#
# Here are the same points at ten moments of the way, coloured by where they end. For a long time
# nothing seems to happen; the order of the colours appears before the shape does, and the arms
# separate only in the last fifth.

# %%
traj = ddpm.p_sample_loop((config["num_eval_points"], 2), return_traj=True)
samples = traj[-1].cpu()

fig, axs = plt.subplots(1, 10, figsize=(28, 3), sharex=True, sharey=True)
for ax, t in zip(axs, [1000, 800, 600, 450, 350, 250, 150, 100, 50, 0], strict=True):
    x_t = traj[len(traj) - 1 - t][:num_vis_particles]  # the list starts with noise
    scatter(ax, x_t, samples[:num_vis_particles].norm(dim=1), f"{t} left", STRIP)
keep(fig, "reverse_chain")

# %% [markdown]
# ## How good are they?
#
# Below, samples lie over target points. The Chamfer distance says in a number how well: for each
# point the squared distance to the nearest point of the other set, summed both ways. It grows with
# stray samples (far from any target) and with gaps (targets that no sample comes near). Two sets of
# 2048 target points are about 0.4 apart, so that is the floor; below 20 is what the lab asks for.

# %%
num_eval = config["num_eval_points"]
distance = chamfer_distance(samples, target_ds[:num_eval])
floor = chamfer_distance(target_ds[num_eval : 2 * num_eval], target_ds[:num_eval])

fig, ax = plt.subplots(figsize=(5, 5))
scatter(ax, target, BLUE)
scatter(ax, samples[:num_vis_particles], ORANGE, f"Chamfer distance {distance:.2f}")
ax.legend(["target", "samples"], frameon=False, loc="upper right", bbox_to_anchor=(1.15, 1.0))
keep(fig, "samples")

# %%
ddpm.save(args.out / f"{args.dataset}.ckpt")
result = {"dataset": args.dataset, "seed": args.seed, "chamfer": round(distance, 4), "floor": round(floor, 4), **config}
numbers = args.out / f"{args.dataset}.json"
numbers.write_text(json.dumps(result, indent=2) + "\n")
for path in [*pictures, numbers, args.out / f"{args.dataset}.ckpt"]:
    print(path)
print(f"Two sets of {num_eval} target points: {floor:.4f}")
print(f"DDPM Chamfer Distance: {distance:.4f}")
