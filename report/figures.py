"""The figures and tables of the lab report, from training runs.

    python report/figures.py
    python report/figures.py --runs DIR [more ...] --fid FILE.json [more ...] --roll DIR --out DIR

The runs are all that are somewhere below the folders of --runs. `--out` will hold

    figures/schedules.svg                     beta, alpha-bar and log-SNR of the three schedules; needs no run
    figures/trajectories.png                  from the same noise to an image under each schedule, not clipped
    figures/trajectories_preconditioned.png   the same of preconditioned models, clipped, if there are any
    figures/mean_colour.svg                   the mean colour of the chains behind the first, clipped or not
    figures/predictor_samples.png             8 samples of each predictor, all from the same noise
    figures/best_samples.png                  the first 64 samples of the model with the best distance
    tables/runs.csv                           the runs that all this is about
    tables/best.csv                           the lowest of the distances in --fid, and the model that has it

Baseline models are direct, with the plain loss; preconditioned ones have loss weights min(SNR, 5). Missing runs are
named. Samples come from the averaged weights of `last.ckpt` by all T steps of DDPM from seed 0: up to rounding, they
are the first images of `sampling.py` on the same kind of device.
"""

import re
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import common
import speed
from cli import ArgumentParser, check_writable, exit_on_user_error, one_line, select_device
from common import LOSS_WEIGHT_OF, WIDTH, draw_strips, plt
from data_folder import check_has_data
from dataset import AFHQDataModule
from image_grid import contact_sheet, image_grid, trajectory_frames, trajectory_image
from prediction import to_x0_and_eps
from progress import tqdm
from runs import Key, Run, best_of, choose_runs, find_runs, flags_of, read_distances
from samplers import ImageNoise, half_log_snr
from scheduler import MODES, PREDICTORS, DDPMScheduler

SEED = 0
NUM_SAMPLES = 8
SHARED = ("image_resolution", "num_diffusion_train_timesteps", "synthetic_faces")  # by all runs of a figure
# Line styles and lightness differ, so that the lines differ in grey as well.
STYLES = {
    "linear": {"color": "#10204f", "linestyle": "-"},
    "quad": {"color": "#c8501e", "linestyle": "--"},
    "cosine": {"color": "#5fae8a", "linestyle": "-."},
}


def draw_schedules(T: int = 1000) -> plt.Figure:
    """beta_t, alpha-bar_t and log-SNR_t of the three schedules, t = 0 ... T - 1."""
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.1), layout="constrained")
    for mode in MODES:
        scheduler = DDPMScheduler(T, 1e-4, 0.02, mode)
        log_snr = [2 * half_log_snr(scheduler, t) for t in range(T)]
        for ax, curve in zip(axes, (scheduler.betas, scheduler.alphas_cumprod, log_snr), strict=True):
            ax.plot(range(T), curve, **STYLES[mode], label=mode)
    axes[0].set_yscale("log")
    for ax, name in zip(axes, (r"$\beta_t$", r"$\bar{\alpha}_t$", r"$\log\,\mathrm{SNR}_t$"), strict=True):
        ax.set(xlabel="$t$", ylabel=name, xlim=(0, T), xticks=[0, T // 2, T])
        ax.grid()
    axes[1].legend(handlelength=2.6, frameon=False)
    return fig


class Chains(NamedTuple):
    """`NUM_SAMPLES` reverse chains of a model, from the same noise for every model."""

    frames: torch.Tensor  # x_t at ten times [10, B, 3, H, W], noise first
    x_0: torch.Tensor  # the x_0 predicted from each of them; of the last frame, the image itself
    times: list[int]  # steps left, T ... 0
    colour: torch.Tensor  # root mean square over images and channels of the mean colour of x_t [T + 1], noise first


@cache
def reverse_chains(checkpoint: Path, clip_x0: bool, device: torch.device) -> Chains:
    """Run all T steps of DDPM, in the precision in which sampling.py would."""
    ddpm = common.load_model(checkpoint)
    ddpm.precision = speed.select_precision("auto", device)
    speed.place_network(ddpm, device, ddpm.precision)
    scheduler, noise = ddpm.var_scheduler, ImageNoise(SEED, range(NUM_SAMPLES), ddpm.image_resolution, device)
    T = scheduler.num_train_timesteps
    colour = []

    def measured() -> Iterator[torch.Tensor]:
        for x_t in ddpm.reverse_process(NUM_SAMPLES, clip_x0=clip_x0, randn_like=noise):
            colour.append(rms_of_means(x_t))
            yield x_t

    frames = trajectory_frames(measured(), T)
    times = trajectory_frames((torch.tensor(t) for t in range(T, -1, -1)), T).tolist()
    x_0 = frames.clone()
    for i, t in enumerate(times[:-1]):
        x_t = frames[i].to(device)
        with torch.no_grad():
            x_0[i] = to_x0_and_eps(ddpm.predict(x_t, t - 1), x_t, t - 1, ddpm.predictor, scheduler)[0]
    return Chains(frames, x_0, times, torch.stack(colour).cpu())


def rms_of_means(images: torch.Tensor) -> torch.Tensor:
    """The root mean square, over images [B, 3, H, W] and channels, of their mean colour."""
    return images.mean(dim=(2, 3)).square().mean().sqrt()


def chains_of(runs: Sequence[Run], clip_x0: bool, device: torch.device) -> dict[str, Chains]:
    """The chains of runs, by their schedules."""
    bar = tqdm(runs, desc="reverse chains", unit="run", leave=False)
    return {run.config["mode"]: reverse_chains(run.folder / "last.ckpt", clip_x0, device) for run in bar}


def draw_trajectories(runs: Sequence[Run], clip_x0: bool, device: torch.device) -> plt.Figure:
    """The chain to the same image under each schedule, with the predicted x_0, below the numbers of steps left."""
    strips = {}
    for mode, chains in chains_of(runs, clip_x0, device).items():
        strips[f"{mode}: $x_t$"] = trajectory_image(chains.frames[:, :1])
        strips[f"{mode}: $x_0$"] = trajectory_image(chains.x_0[:, :1])
    first, *times = chains.times
    return draw_strips(strips, [f"{first} steps left", *map(str, times)], _note(runs))


def draw_mean_colour(runs: Sequence[Run], real: torch.Tensor | None, device: torch.device) -> plt.Figure:
    """The mean colour along the chain under each schedule; grey: of noised real images [N, 3, H, W]."""
    fig, axes = plt.subplots(1, len(runs), figsize=(WIDTH, 2.1), sharey=True, layout="constrained", squeeze=False)
    unclipped, clipped = (chains_of(runs, clip_x0, device) for clip_x0 in (False, True))
    for ax, run in zip(axes[0], runs, strict=True):
        mode, ddpm = run.config["mode"], common.load_model(run.folder / "last.ckpt")
        left = range(ddpm.var_scheduler.num_train_timesteps, -1, -1)
        if real is not None:
            alpha_bar = np.array([ddpm.var_scheduler.alpha_bars[t - 1] for t in left])
            expected = alpha_bar * rms_of_means(real).item() ** 2 + (1 - alpha_bar) / real[0, 0].numel()
            ax.plot(left, expected**0.5, color="0.7", linewidth=3, label="real images, noised")
        ax.plot(left, unclipped[mode].colour, "-k", label="not clipped")
        ax.plot(left, clipped[mode].colour, "--k", label="clipped")
        ax.set(xlabel="steps left", yscale="log", title=f"{mode} schedule")
        ax.invert_xaxis()
        ax.grid()
    axes[0, 0].set_ylabel("mean colour of $x_t$")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return fig


def draw_samples(runs: Sequence[Run], real: torch.Tensor | None, device: torch.device) -> plt.Figure:
    """The same 8 images as each predictor makes them, baselines unclipped and clipped; the first 8 real images."""
    rows = {}
    for run in tqdm(runs, desc="samples", unit="run", leave=False):
        path, name = run.folder / "last.ckpt", run.config["predictor"]
        if run.config["parametrization"] == "direct":
            rows[name] = reverse_chains(path, False, device).frames[-1]
            rows[f"{name}, clipped"] = reverse_chains(path, True, device).frames[-1]
        else:
            rows[f"{name}, precond."] = reverse_chains(path, True, device).frames[-1]
    if real is not None:
        rows["real"] = real[torch.arange(NUM_SAMPLES) % len(real)]
    return draw_strips({name: image_grid(images, NUM_SAMPLES) for name, images in rows.items()}, note=_note(runs))


def read_real_images(data_root: Path, resolution: int) -> torch.Tensor:
    """Up to 500 validation images of each class [N, 3, R, R] in [-1, 1]."""
    data = AFHQDataModule(data_root, max_num_images_per_cat=500, image_resolution=resolution)
    return torch.stack([image for image, _ in data.val_ds])


def _note(runs: Sequence[Run]) -> str:
    return "synthetic faces" * runs[0].config["synthetic_faces"]


def comparable_runs(figure: str, keys: Sequence[Key], runs: dict[Key, Run]) -> list[Run]:
    """The runs that a figure shows. Missing ones are named; none are returned if they differ too much."""
    found = [runs[key] for key in keys if key in runs]
    if len(found) < len(keys):
        print(f"missing in {figure}: {', '.join(flags_of(key) for key in keys if key not in runs)}")
    for name in SHARED:
        if len({run.config[name] for run in found}) > 1:
            values = ", ".join(f"{run.config[name]} in {run.folder}" for run in found)
            print(one_line(f"skipped: {figure}: {name} is {values}"))
            return []
    if len({run.step for run in found}) > 1:
        print(f"note: the runs of {figure} differ in steps: {', '.join(str(run.step) for run in found)}")
    return found


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    results = common.TASK2 / "results"
    add("--runs", type=Path, nargs="+", metavar="DIR", help="where runs are (default: image_diffusion_todo/results)")
    add("--fid", type=Path, nargs="+", default=[], metavar="FILE", help="what fid/measure_fid.py --json wrote")
    what = "folder for figures/ and tables/ (default: report)"
    add("--out", type=Path, default=common.REPORT, metavar="DIR", help=what)
    add("--predictor", choices=PREDICTORS, default="noise", help="of the trajectories")
    add("--roll", type=Path, metavar="DIR", help="results of Task 1, to be copied")
    add("--mode", choices=MODES, default="linear", help="of the predictors' samples")
    add("--data_root", type=Path, metavar="DIR", help="the runs' data, to show real images beside the samples")
    add("--device", type=select_device, default="auto", metavar="NAME", help="auto, cpu, cuda, mps")
    args = parser.parse_args()
    with exit_on_user_error(interrupted="stopped; the files named above are complete"):
        check_writable(args.out)
        if args.data_root:
            check_has_data(args.data_root)
        make_all(args, args.runs or [results] * results.is_dir())


def make_all(args: Namespace, places: Sequence[Path]) -> None:
    """Write all figures and tables for which there are runs, and name what is missing."""
    distances, found = read_distances(args.fid), find_runs(places)
    runs = choose_runs(found)
    for key, run in runs.items():
        print(f"using: {flags_of(key)}: {one_line(str(run.folder))}, step {run.step}")
    written = set()

    def write(product: str, content: common.Content) -> None:
        common.write(args.out / product, content)
        written.add(product)
        print(args.out / product)

    if args.roll:
        names = "figures/swiss_roll_q_sample.png", "figures/swiss_roll_loss.png", "figures/swiss_roll_samples.png"
        for product in ("tables/swiss_roll.json", *names):
            write(product, (args.roll / Path(product).name).read_bytes())
    write("figures/schedules.svg", draw_schedules())
    if runs:
        write("tables/runs.csv", [run.row for run in runs.values()])
    if distances:
        best, folder = best_of(distances, found)
        write("tables/best.csv", [{"key": key, "value": value} for key, value in best.items()])
        write("figures/best_samples.png", contact_sheet(folder, 64, per_row=8))

    def keys(predictors: Sequence[str], modes: Sequence[str], parametrization: str) -> list[Key]:
        form = parametrization, LOSS_WEIGHT_OF[parametrization]
        return [(mode, predictor, *form) for predictor in predictors for mode in modes]

    direct, preconditioned = (keys([args.predictor], MODES, name) for name in LOSS_WEIGHT_OF)
    samples = keys(PREDICTORS, [args.mode], "direct")
    samples += [key for key in keys(PREDICTORS, [args.mode], "preconditioned") if key in runs]
    real = None
    if args.data_root and runs:
        real = read_real_images(args.data_root, next(iter(runs.values())).config["image_resolution"])

    def draw(product: str, keys: Sequence[Key], function: Callable[..., plt.Figure], *settings: object) -> None:
        if shown := comparable_runs(product, keys, runs):
            write(product, function(shown, *settings))

    draw("figures/trajectories.png", direct, draw_trajectories, False, args.device)
    draw("figures/mean_colour.svg", direct, draw_mean_colour, real, args.device)
    draw("figures/predictor_samples.png", samples, draw_samples, real, args.device)
    if runs.keys() & set(preconditioned):  # optional in the report
        draw("figures/trajectories_preconditioned.png", preconditioned, draw_trajectories, True, args.device)

    text = (common.REPORT / "report.typ").read_text(encoding="utf-8")
    for product in sorted(set(re.findall(r'"((?:figures|tables)/[^"]+)"', text)) - written):
        if (args.out / product).exists():
            print(f"stale: {args.out / product}, which the report shows, is not from these runs")


if __name__ == "__main__":
    main()
