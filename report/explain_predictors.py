"""Why the noise, x0 and mean predictors differ in quality: figures of the schedules and of the errors of models.

    python report/explain_predictors.py
    python report/explain_predictors.py --ckpt_path RUN/last.ckpt OTHER/last.ckpt --data_root DIR

figures/predictors.png shows `residual` and `weight_on_x0` for each schedule. With checkpoints, it also plots the errors
of the implied x_0 and of the implied noise, which are comparable between predictors: root mean squares over validation
images, at 40 timesteps. They go to tables/predictor_errors.csv as well.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import common
from cli import ArgumentParser, UserError, exit_on_user_error, int_range
from common import plt
from data_folder import check_has_data
from dataset import AFHQDataModule
from model import DiffusionModule
from prediction import loss_weights, to_x0_and_eps
from progress import tqdm
from scheduler import MODES, PREDICTORS, DDPMScheduler

STYLES = {"noise": "-", "x0": "--", "mean": ":"}
COLUMNS = ("model", "t", "error_of_x0", "error_of_noise")


def residual(scheduler: DDPMScheduler, predictor: str) -> np.ndarray:
    """The standard deviation of what the best multiple of x_t leaves of the target, for data of variance 1; [T].

    The network must add this to a copy of its input. For the mean it is at most 0.01: the useful signal is small.
    """
    alpha_bar = scheduler.alphas_cumprod.double()
    of_x0 = (1 - alpha_bar).sqrt()
    sizes = {"noise": alpha_bar.sqrt(), "x0": of_x0, "mean": scheduler.posterior_mean_coef_x0.double() * of_x0}
    return sizes[predictor].numpy()


def weight_on_x0(scheduler: DDPMScheduler, predictor: str) -> np.ndarray:
    """The plain loss's weight on a squared error of x_0, divided by its maximum over t; [T]."""
    # loss_weights("snr") turns the plain loss into one that weights errors of x_0 by SNR.
    alpha_bar = scheduler.alphas_cumprod.double()
    weight = (alpha_bar / (1 - alpha_bar)) / loss_weights("snr", predictor, scheduler).double()
    return (weight / weight.max()).numpy()


def draw_schedules(T: int) -> plt.Figure:
    """Residual and weight for all schedules and predictors."""
    fig, axes = plt.subplots(2, 3, figsize=(common.WIDTH, 3.2), sharex=True, sharey="row", layout="constrained")
    for (top, bottom), mode in zip(axes.T, MODES, strict=True):
        scheduler = DDPMScheduler(T, 1e-4, 0.02, mode)
        for predictor in PREDICTORS:
            for ax, quantity in ((top, residual), (bottom, weight_on_x0)):
                ax.plot(quantity(scheduler, predictor), STYLES[predictor], color="black", label=predictor)
        top.set(title=f"{mode} schedule", yscale="log")
        bottom.set(xlabel="timestep t", yscale="log", ylim=(1e-6, 2))
    axes[0, 0].set_ylabel("residual of\nthe target")
    axes[1, 0].set_ylabel("weight of an\nerror of $x_0$")
    axes[0, 0].legend(loc="lower left")
    for ax in axes.flat:
        ax.grid()
    return fig


@torch.no_grad()
def errors_of(ddpm: DiffusionModule, images: torch.Tensor, timesteps: Iterable[int]) -> Iterator[tuple]:
    """(t, error of the implied x_0, error of the implied noise) at some timesteps: root mean squares, without labels.

    The clean images [N, 3, H, W] are in [-1, 1].
    """
    generator = torch.Generator().manual_seed(0)  # the same noise for every model
    for t in tqdm(timesteps, desc="errors", unit="timestep", leave=False):
        eps = torch.randn(images.shape, generator=generator)
        x_t, _ = ddpm.var_scheduler.add_noise(images, t, eps)
        output = torch.cat([ddpm.predict(part, t) for part in x_t.split(64)])
        x_0_and_eps = to_x0_and_eps(output, x_t, t, ddpm.predictor, ddpm.var_scheduler)
        yield t, *(F.mse_loss(*pair).sqrt().item() for pair in zip(x_0_and_eps, (images, eps), strict=True))


def draw_errors(rows: list[dict[str, object]]) -> plt.Figure:
    """The errors of models over t, from the rows of the table; preconditioned models as broad grey lines."""
    fig, axes = plt.subplots(1, 2, figsize=(common.WIDTH, 2.7), sharex=True, layout="constrained")
    for ax, column, what in zip(axes, COLUMNS[2:], ("$x_0$", "noise"), strict=True):
        for name in dict.fromkeys(row["model"] for row in rows):
            _, predictor, parametrization = name.split(", ")
            style = dict(color="black", linewidth=1.2, zorder=2)
            if parametrization != "direct":
                style = dict(color="0.6", linewidth=2.5, zorder=1)
            t, error = zip(*((int(row["t"]), float(row[column])) for row in rows if row["model"] == name), strict=True)
            ax.plot(t, error, STYLES[predictor], label=name, **style)
        ax.set(xlabel="timestep t", ylabel=f"error of the implied {what}", yscale="log")
        ax.grid()
    axes[0].legend()
    return fig


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--ckpt_path", type=Path, nargs="+", default=[], metavar="FILE", help="trained models to measure")
    add("--data_root", type=Path, default=common.TASK2 / "data/afhq", metavar="DIR", help="their data")
    add("--images", type=int_range(1), default=128, metavar="N", help="validation images of a class")
    add("--out", **common.OUT)
    args = parser.parse_args()
    with exit_on_user_error():
        if args.ckpt_path:
            check_has_data(args.data_root)
        common.write(args.out / "figures/predictors.png", draw_schedules(1000))
        rows = []
        for path in args.ckpt_path:
            ddpm = common.load_model(path)
            name = f"{ddpm.var_scheduler.config['mode']}, {ddpm.predictor}, {ddpm.parametrization}"
            if any(row["model"] == name for row in rows):  # its line would mix with the other's
                raise UserError(f"argument --ckpt_path: {path} is a second model of {name}")
            size = ddpm.image_resolution
            data = AFHQDataModule(args.data_root, max_num_images_per_cat=args.images, image_resolution=size)
            images = torch.stack([image for image, _ in data.val_ds])
            timesteps = np.unique(np.linspace(0, ddpm.var_scheduler.num_train_timesteps - 1, 40).round().astype(int))
            for t, *errors in errors_of(ddpm, images, timesteps.tolist()):
                rows.append(dict(zip(COLUMNS, (name, t, *(f"{error:.5g}" for error in errors)), strict=True)))
        if rows:
            common.write(args.out / "figures/predictor_errors.png", draw_errors(rows))
            common.write(args.out / "tables/predictor_errors.csv", rows)


if __name__ == "__main__":
    main()
