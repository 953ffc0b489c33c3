"""Why the noise, x0 and mean predictors are not equally good, drawn from the schedules alone and from trained models.

    python report/explain_predictors.py
    python report/explain_predictors.py --ckpt_path RUN/last.ckpt OTHER/last.ckpt --data_root DIR

Without checkpoints it draws, for each schedule and timestep,

- how much of the target the network must add to a multiple of its input. For data of variance 1, the best multiple of
  x_t leaves of the noise a part of size sqrt(alpha-bar), of x_0 sqrt(1 - alpha-bar), and of the mean the same times the
  coefficient of x_0 in eq. 7: a hundredth or less. A network that copies its input is already almost right about the
  mean, and what it has to learn is lost in what it has to copy;
- how much the plain mean of squares weighs a squared error of the implied x_0 (see `DDPMScheduler.loss_weight`).

With checkpoints it also draws their errors, all in one currency: the error of the implied x_0 and of the implied noise,
each as a root mean square, on validation images at 40 timesteps. The numbers go to a table.
"""

import argparse
import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "image_diffusion_todo"))

from cli import ArgumentParser, exit_on_user_error, int_range
from data_folder import check_has_data
from dataset import AFHQDataModule
from model import DiffusionModule
from prediction import loss_weights, to_x0_and_eps
from scheduler import MODES, PREDICTORS, DDPMScheduler

WIDTH = 6.3  # inches of the drawings, 16 cm: the text on a page
plt.rcParams.update({"font.size": 8, "legend.fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7})
STYLES = {"noise": "-", "x0": "--", "mean": ":"}


def new_part(scheduler: DDPMScheduler, predictor: str) -> np.ndarray:
    """The size of what the best multiple of x_t leaves of the target, for data of variance 1; float64 [T]."""
    alpha_bar = scheduler.alphas_cumprod.double()
    of_x0 = (1 - alpha_bar).sqrt()
    sizes = {"noise": alpha_bar.sqrt(), "x0": of_x0, "mean": scheduler.posterior_mean_coef_x0.double() * of_x0}
    return sizes[predictor].numpy()


def weight_on_x0(scheduler: DDPMScheduler, predictor: str) -> np.ndarray:
    """How much the predictor's plain loss weighs a squared error of x_0; float64 [T], the largest is 1."""
    # The weights that turn the loss into one that weighs all by SNR: SNR / k^2.
    alpha_bar = scheduler.alphas_cumprod.double()
    weight = (alpha_bar / (1 - alpha_bar)) / loss_weights("snr", predictor, scheduler).double()
    return (weight / weight.max()).numpy()


def draw_schedules(T: int, path: Path) -> None:
    """Both quantities for all schedules and predictors."""
    fig, axes = plt.subplots(2, 3, figsize=(WIDTH, 3.7), sharex=True, sharey="row")
    for column, mode in enumerate(MODES):
        scheduler = DDPMScheduler(T, 1e-4, 0.02, mode)
        for predictor in PREDICTORS:
            for row, quantity in enumerate((new_part, weight_on_x0)):
                curve = quantity(scheduler, predictor)
                axes[row, column].plot(curve, STYLES[predictor], color="black", linewidth=1.2, label=predictor)
                axes[row, column].set_yscale("log")
                axes[row, column].grid(alpha=0.3)
        axes[0, column].set_title(f"{mode} schedule")
        axes[1, column].set_xlabel("timestep t")
    axes[0, 0].set_ylabel("part of the target that is\nnot a multiple of $x_t$")
    axes[1, 0].set_ylabel("weight of an error of $x_0$\nin the plain loss")
    axes[1, 0].set_ylim(1e-6, 2)
    axes[0, 0].legend(loc="lower left")
    fig.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=220)
    plt.close(fig)


@torch.no_grad()
def errors_of(ddpm: DiffusionModule, images: torch.Tensor, timesteps: list[int]) -> list[tuple[int, float, float]]:
    """Root mean square errors of the implied x_0 and noise.

    Args:
        ddpm: the model; labels are not given.
        images: clean images [N, 3, H, W] in [-1, 1].
        timesteps: where to measure.

    Returns:
        (t, error of x_0, error of the noise) for each timestep.
    """
    results = []
    generator = torch.Generator().manual_seed(0)  # the same noise for every model
    for t in tqdm(timesteps, desc="errors", unit="timestep", leave=False):
        eps = torch.randn(images.shape, generator=generator)
        x_t, _ = ddpm.var_scheduler.add_noise(images, t, eps)
        net_out = torch.cat([ddpm.predict(part, t) for part in x_t.split(64)])
        x_0, implied_eps = to_x0_and_eps(net_out, x_t, t, ddpm.predictor, ddpm.var_scheduler)
        rms = [(a - b).square().mean().sqrt().item() for a, b in ((x_0, images), (implied_eps, eps))]
        results.append((t, *rms))
    return results


def name_of(ddpm: DiffusionModule) -> str:
    """What tells a model from the others."""
    return f"{ddpm.var_scheduler.config['mode']}, {ddpm.predictor}, {ddpm.parametrization}"


def draw_errors(results: dict[str, list[tuple[int, float, float]]], path: Path) -> None:
    """The errors of models, in both currencies."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.7), sharex=True)
    for name, rows in results.items():
        _, predictor, parametrization = name.split(", ")
        direct = parametrization == "direct"
        look = {
            "color": "black" if direct else "0.6",
            "linewidth": 1.2 if direct else 2.5,
            "zorder": 2 if direct else 1,
        }
        t, *errors = zip(*rows, strict=True)
        for ax, error in zip(axes, errors, strict=True):
            ax.plot(t, error, STYLES[predictor], label=name, **look)
    for ax, what in zip(axes, ("$x_0$", "noise"), strict=True):
        ax.set(xlabel="timestep t", ylabel=f"error of the implied {what}", yscale="log")
        ax.grid(alpha=0.3)
    axes[0].legend()
    fig.tight_layout()
    fig.savefig(path, dpi=220)
    plt.close(fig)


def main() -> None:
    """The program."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ckpt_path", type=Path, nargs="+", default=[], metavar="FILE", help="trained models to measure")
    add("--data_root", type=Path, default=ROOT / "image_diffusion_todo/data/afhq", metavar="DIR", help="their data")
    add("--images", type=int_range(1), default=128, metavar="N", help="validation images of a class (default: 128)")
    add("--out", type=Path, default=ROOT / "report", metavar="DIR", help="gets figures/ and tables/ (default: report)")
    args = parser.parse_args()
    with exit_on_user_error():
        if args.ckpt_path:
            check_has_data(args.data_root)
        draw_schedules(1000, args.out / "figures/predictors.png")
        print(args.out / "figures/predictors.png")
        results = {}
        for path in args.ckpt_path:
            ddpm = DiffusionModule(None, None).eval()
            ddpm.load(path)
            if name_of(ddpm) in results:
                raise ValueError(f"argument --ckpt_path: {path} is a second model of {name_of(ddpm)}: one of each")
            size = ddpm.image_resolution
            data = AFHQDataModule(args.data_root, max_num_images_per_cat=args.images, image_resolution=size)
            images = torch.stack([image for image, _ in data.val_ds])
            T = ddpm.var_scheduler.num_train_timesteps
            timesteps = sorted({round(t) for t in np.linspace(0, T - 1, 40)})
            results[name_of(ddpm)] = errors_of(ddpm, images, timesteps)
        if results:
            draw_errors(results, args.out / "figures/predictor_errors.png")
            table = args.out / "tables/predictor_errors.csv"
            table.parent.mkdir(parents=True, exist_ok=True)
            with table.open("w", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["model", "t", "error_of_x0", "error_of_noise"])
                for name, rows in results.items():
                    writer.writerows([name, t, f"{a:.5g}", f"{b:.5g}"] for t, a, b in rows)
            print(args.out / "figures/predictor_errors.png", table, sep="\n")


if __name__ == "__main__":
    main()
