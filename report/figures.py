"""The figures and tables of the lab report, from training runs.

    python report/figures.py
    python report/figures.py --runs DIR [more ...] --fid FILE.json [more ...] --roll DIR --out DIR

The runs are all that are somewhere below the folders of --runs. `--out` gets

    figures/schedules.svg                          beta, alpha-bar and log-SNR of the three schedules; needs no run
    figures/losses.svg                             the loss of each predictor under each schedule
    figures/trajectories.png                       from the same noise to an image under each schedule
    figures/trajectories_preconditioned.png        the same of preconditioned models, if there are any
    figures/predictor_samples.png                  8 samples of each predictor, all from the same noise
    figures/predictor_samples_preconditioned.png   the same of preconditioned models, if there are any
    figures/best_samples.png                       the first 64 samples of the model with the best distance
    tables/runs.csv                                the runs that all this is about
    tables/best.csv                                the lowest of the distances in --fid, and the model that has it

A figure compares either baseline models (direct, plain loss) or preconditioned ones with loss weights min(SNR, 5).
Missing runs are named. Samples come from the averaged weights of `last.ckpt` by all T steps of DDPM from seed 0: up to
rounding, they are the first images of `sampling.py --no-clip_x0` on the same kind of device.
"""

import io
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

import common
import speed
from cli import ArgumentParser, exit_on_user_error, int_range, one_line, select_device
from common import FORMS, WIDTH, draw_strips, label_log_axis, plt
from data_folder import check_writable
from image_grid import contact_sheet, image_grid, trajectory_frames, trajectory_image
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
    """beta_t, alpha-bar_t and log-SNR_t of the three schedules, t = 1 ... T as the paper counts."""
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.1), layout="constrained")
    for mode in MODES:
        scheduler = DDPMScheduler(T, 1e-4, 0.02, mode)
        log_snr = [2 * half_log_snr(scheduler, t) for t in range(T)]
        for ax, curve in zip(axes, (scheduler.betas, scheduler.alphas_cumprod, log_snr), strict=True):
            ax.plot(np.arange(1, T + 1), curve, **STYLES[mode], label=mode)
    axes[0].set_yscale("log")
    for ax, name in zip(axes, (r"$\beta_t$", r"$\bar{\alpha}_t$", r"$\log\,\mathrm{SNR}_t$"), strict=True):
        ax.set(xlabel="$t$", ylabel=name, xlim=(0, T), xticks=[0, T // 2, T])
        ax.grid()
    axes[1].legend(handlelength=2.6, frameon=False)
    return fig


def draw_losses(runs: Sequence[Run]) -> plt.Figure:
    """The losses of runs over their steps, a panel for each predictor and a line for each schedule."""
    note = _note(runs) and f", {_note(runs)}"
    predictors = [name for name in PREDICTORS if name in {run.config["predictor"] for run in runs}]
    fig, axes = plt.subplots(1, len(predictors), figsize=(WIDTH, 2.1), layout="constrained", squeeze=False)
    for ax, predictor in zip(axes[0], predictors, strict=True):
        for mode, run in ((r.config["mode"], r) for r in runs if r.config["predictor"] == predictor):
            ax.plot(*thinned(run.losses), **STYLES[mode], label=mode, gid=f"{predictor}-{mode}")
        ax.set(xlabel="step", yscale="log", title=f"{predictor} predictor" + note)
        label_log_axis(ax.yaxis)
        ax.locator_params(axis="x", nbins=4)
        ax.grid()
    axes[0, 0].set_ylabel("training loss")
    lines = {line.get_label(): line for ax in axes[0] for line in ax.lines}
    axes[0, 0].legend(handles=[lines[mode] for mode in MODES if mode in lines], handlelength=2.6, frameon=False)
    return fig


def thinned(losses: Sequence[tuple[int, float]], most: int = 200) -> tuple[list[float], list[float]]:
    """Steps and losses, averaged in groups to at most so many points; each stands at the last step of its group."""
    groups = np.array_split(np.asarray(losses, dtype=float), min(most, len(losses)))
    return [group[-1, 0] for group in groups], [group[:, 1].mean() for group in groups]


def frames_of(run: Run, count: int, device: torch.device) -> torch.Tensor:
    """Ten frames [10, count, 3, H, W] of `count` reverse chains, noise first; the noise is the same for every run."""
    ddpm = common.load_model(run.folder / "last.ckpt")
    speed.place_network(ddpm, device)
    noise = ImageNoise(SEED, range(count), ddpm.image_resolution, device)
    return trajectory_frames(ddpm.reverse_process(count, randn_like=noise), ddpm.var_scheduler.num_train_timesteps)


def draw_trajectories(runs: Sequence[Run], chains: int, device: torch.device) -> plt.Figure:
    """The chains to the same images under each schedule, below their timesteps from T (noise) to 0 (image)."""
    T = runs[0].config["num_diffusion_train_timesteps"]
    first, *times = trajectory_frames((torch.tensor(t) for t in range(T, -1, -1)), T).tolist()
    bar = tqdm(runs, desc="trajectories", unit="run", leave=False)
    strips = {run.config["mode"]: trajectory_image(frames_of(run, chains, device)) for run in bar}
    return draw_strips(strips, [f"t = {first}", *map(str, times)], _note(runs))


def draw_samples(runs: Sequence[Run], device: torch.device) -> plt.Figure:
    """The same 8 images as each predictor makes them."""
    bar = tqdm(runs, desc="samples", unit="run", leave=False)
    grids = ((run.config["predictor"], frames_of(run, NUM_SAMPLES, device)[-1]) for run in bar)
    return draw_strips({name: image_grid(images, NUM_SAMPLES) for name, images in grids}, note=_note(runs))


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
            print(one_line(f"left out: {figure}: {name} is {values}"))
            return []
    if len({run.step for run in found}) > 1:
        print(f"note: the runs of {figure} differ in steps: {', '.join(str(run.step) for run in found)}")
    return found


def main() -> None:
    """The program."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    results = common.PROGRAMS / "results"
    add("--runs", type=Path, nargs="+", metavar="DIR", help="where runs are (default: image_diffusion_todo/results)")
    add("--fid", type=Path, nargs="+", default=[], metavar="FILE", help="what fid/measure_fid.py --json wrote")
    what = "the samples of each --fid, in that order (default: where they were when they were measured)"
    add("--samples", type=Path, nargs="+", default=[], metavar="DIR", help=what)
    what = "gets figures/ and tables/ (default: report)"
    add("--out", type=Path, default=common.ROOT / "report", metavar="DIR", help=what)
    add("--predictor", choices=PREDICTORS, default="noise", help="of the trajectories")
    add("--roll", type=Path, metavar="DIR", help="results of Task 1, to be copied")
    add("--chains", type=int_range(1, 2), default=1, metavar="N", help="trajectories a schedule")
    add("--mode", choices=MODES, default="cosine", help="of the predictors' samples")
    add("--device", type=select_device, default="auto", metavar="NAME", help="auto, cpu, cuda, mps")
    args = parser.parse_args()
    if args.samples and len(args.samples) != len(args.fid):
        parser.error(f"argument --samples: {len(args.samples)} folders for {len(args.fid)} files of --fid")
    with exit_on_user_error(interrupted="stopped; the files named above are whole"):
        check_writable(args.out)
        distances = read_distances(args.fid)
        found = find_runs(args.runs or [results] * results.is_dir())
        runs = choose_runs(found)
        for key, run in runs.items():
            print(f"taken: {flags_of(key)}: {one_line(str(run.folder))}, step {run.step}")
        written = set()

        def write(product: str, content: bytes | plt.Figure | list[dict[str, object]]) -> None:
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
            best, folder = best_of(distances, args.samples, found)
            write("tables/best.csv", [{"key": key, "value": value} for key, value in best.items()])
            sheet = io.BytesIO()
            contact_sheet(folder, 64, per_row=8).save(sheet, format="PNG")
            write("figures/best_samples.png", sheet.getvalue())

        baseline = [(mode, predictor, "direct", FORMS["direct"]) for predictor in PREDICTORS for mode in MODES]
        figures = {"figures/losses.svg": (draw_losses, baseline)}
        for form, suffix in zip(FORMS.items(), ("", "_preconditioned"), strict=True):
            figures |= {
                f"figures/trajectories{suffix}.png": (
                    partial(draw_trajectories, chains=args.chains, device=args.device),
                    [(mode, args.predictor, *form) for mode in MODES],
                ),
                f"figures/predictor_samples{suffix}.png": (
                    partial(draw_samples, device=args.device),
                    [(args.mode, predictor, *form) for predictor in PREDICTORS],
                ),
            }
        for product, (draw, keys) in figures.items():
            if "preconditioned" in product and not runs.keys() & set(keys):
                continue  # optional in the report
            if shown := comparable_runs(product, keys, runs):
                write(product, draw(shown))

        text = (common.ROOT / "report/report.typ").read_text(encoding="utf-8")
        for product in sorted(set(re.findall(r'"((?:figures|tables)/[^"]+)"', text)) - written):
            if (args.out / product).exists():
                print(f"old: {args.out / product}, which the report shows, is not from these runs")


if __name__ == "__main__":
    main()
