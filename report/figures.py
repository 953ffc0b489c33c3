"""The figures and tables of the lab report, from training runs.

    python report/figures.py
    python report/figures.py --runs DIR [more ...] --fid FILE.json [more ...] --roll DIR --out DIR

The runs are all that lie somewhere below the folders of --runs. `--out` gets

    figures/schedules.svg                          beta, alpha-bar and log-SNR of the three schedules; needs no run
    figures/trajectories.png                       the way from one noise to an image under each schedule
    figures/trajectories_preconditioned.png        the same of preconditioned models, where there are any
    figures/predictor_samples.png                  8 samples of each predictor, all from the same noise
    figures/predictor_samples_preconditioned.png   the same of preconditioned models, where there are any
    figures/losses.svg                             what each predictor's loss did under each schedule
    figures/best_samples.png                       the first 64 samples of the model with the best distance
    tables/runs.csv                                the runs that all this is about
    tables/best.csv                                the lowest of the distances in --fid, and the model that has it

Figures compare direct models with the plain loss, or preconditioned ones with weights of min(SNR, 5), as the study
does. What no run is there for is left out and named. Samples come from the averaged weights of `last.ckpt`, by DDPM in
all T steps, from seed 0: but for rounding they are the first images that sampling.py makes on the same kind of device.
"""

import argparse
import csv
import io
import itertools
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFilter import MaxFilter, MinFilter
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "image_diffusion_todo"
sys.path[:0] = [str(PROGRAMS), str(Path(__file__).resolve().parent)]

import speed
from atomic import atomic_write
from checkpoint import read_checkpoint
from cli import ArgumentParser, exit_on_user_error, int_range, one_line, select_device
from data_folder import check_writable
from image_grid import contact_sheet, image_grid, trajectory_frames, trajectory_image
from images import list_images
from model import DiffusionModule
from prediction import LOSS_WEIGHTS, PARAMETRIZATIONS
from samplers import ImageNoise, half_log_snr
from sampling import SETTINGS_KEY, model_hash
from scheduler import MODES, PREDICTORS, DDPMScheduler
from study import FORMS

SCHEDULES, LOSSES = "figures/schedules.svg", "figures/losses.svg"
TRAJECTORIES = {
    "direct": "figures/trajectories.png",
    "preconditioned": "figures/trajectories_preconditioned.png",
}
SAMPLES = {
    "direct": "figures/predictor_samples.png",
    "preconditioned": "figures/predictor_samples_preconditioned.png",
}
BEST_SAMPLES = "figures/best_samples.png"
RUNS, BEST = "tables/runs.csv", "tables/best.csv"
ROLL = ("q_sample.png", "loss.png", "samples.png")  # of Task 1's results

SEED = 0
NUM_SAMPLES = 8
ALIKE = ("image_resolution", "num_diffusion_train_timesteps", "synthetic_faces")  # must be so in all runs of a figure
FACTS = ("seed", "batch_size", "ch", "num_images", "classes", *ALIKE)  # that a run has to know of itself

# Told apart in grey print too, by the line and by how dark it is.
STYLES = {
    "linear": {"color": "#10204f", "linestyle": "-"},
    "quad": {"color": "#c8501e", "linestyle": "--"},
    "cosine": {"color": "#5fae8a", "linestyle": "-."},
}
WIDTH = 6.3  # inches of the drawings, which is 16 cm: the text on a page
TEXT = {"font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7}
PIXELS = 1100  # about the width of the images in a picture
MAX_BYTES = 350_000  # of a picture


# The runs.


@dataclass(frozen=True)
class Run:
    """A run of train.py that can be sampled from."""

    folder: Path
    config: dict[str, Any]
    step: int  # of last.ckpt
    num_weights: int
    losses: list[tuple[int, float]]  # (step, mean since the row before), from stats.csv

    @property
    def key(self) -> tuple[str, str, str, str]:
        """The combination that this is a run of: mode, predictor, parametrization, loss weight."""
        names = "mode", "predictor", "parametrization", "loss_weight"
        return tuple(self.config[name] for name in names)


def read_run(folder: Path) -> Run:
    """The run in a folder.

    Raises:
        OSError, ValueError: when it is damaged or unfinished, with the reason.
    """
    try:
        config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise ValueError("no readable config.json") from None
    config = {"parametrization": "direct", "loss_weight": "none", "use_cfg": False} | config  # absent in old runs
    if lacking := [name for name in ("mode", "predictor", *FACTS) if name not in config]:
        raise ValueError(f"config.json lacks {', '.join(lacking)}")
    if config["loss_weight"] not in LOSS_WEIGHTS:
        raise ValueError(f"unknown loss weight {config['loss_weight']!r}")
    for name, kind in (("classes", list), ("synthetic_faces", bool)):
        if type(config[name]) is not kind:
            raise ValueError(f"{name} is {config[name]!r} in config.json")
    if not (folder / "last.ckpt").exists():
        raise ValueError("no last.ckpt yet")
    checkpoint = read_checkpoint(folder / "last.ckpt")
    is_so = checkpoint["network"] | checkpoint["var_scheduler"]
    is_so |= {"predictor": checkpoint["predictor"], "parametrization": checkpoint["parametrization"]}
    is_so["num_diffusion_train_timesteps"] = is_so["num_train_timesteps"]
    for name in ("mode", "predictor", "parametrization", "image_resolution", "ch", "num_diffusion_train_timesteps"):
        if config[name] != is_so[name]:
            raise ValueError(f"{name} is {config[name]} in config.json and {is_so[name]} in last.ckpt")
    step = checkpoint["training"].get("step") if "training" in checkpoint else None
    if type(step) is not int:
        raise ValueError("last.ckpt does not know its step: train.py did not write it")
    num_weights = sum(weight.numel() for weight in checkpoint["state_dict"].values())
    return Run(folder, config, step, num_weights, read_losses(folder / "stats.csv"))


def read_losses(path: Path) -> list[tuple[int, float]]:
    """The (step, loss) of a run's stats.csv.

    Raises:
        ValueError: when it is not there, damaged, or without a row yet.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            losses = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
        if not all(loss >= 0 and math.isfinite(loss) for _, loss in losses):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        raise ValueError("no readable stats.csv") from None
    if not losses:
        raise ValueError("no losses in stats.csv yet")
    return losses


def find_runs(places: Iterable[Path]) -> list[Run]:
    """All whole runs below some folders; the others are named on stdout.

    Raises:
        ValueError: when a folder is not there.
    """
    folders = {}
    for place in places:
        if not place.is_dir():
            raise ValueError(f"argument --runs: {place} is not a folder that is there")
        for name in ("config.json", "last.ckpt", "stats.csv"):
            folders |= {path.parent.resolve(): path.parent for path in place.rglob(name)}
    runs = []
    for folder in tqdm(sorted(folders.values()), desc="reading runs", unit="run", leave=False):
        try:
            runs.append(read_run(folder))
        except (OSError, ValueError) as error:
            tqdm.write(f"left out: {one_line(f'{folder}: {error}')}")
    return runs


def choose(runs: Iterable[Run]) -> dict[tuple[str, str, str, str], Run]:
    """One run of each combination, in the order of the tables: that of the most steps, of these the newest."""
    chosen = {}
    for run in runs:
        if run.config["use_cfg"]:
            print(f"left out: {one_line(str(run.folder))}: trained with --use_cfg, which the figures do not show")
        elif run.key not in chosen or _rank(run) > _rank(chosen[run.key]):
            chosen[run.key] = run
    order = itertools.product(PARAMETRIZATIONS, LOSS_WEIGHTS, PREDICTORS, MODES)
    keys = [(mode, predictor, *form) for *form, predictor, mode in order]
    return {key: chosen[key] for key in keys if key in chosen}


def _rank(run: Run) -> tuple:
    """Folders are named MM-DD-HHMMSS, with -2, -3, ... where that was taken."""
    return run.step, [int(number) for number in re.findall(r"\d+", run.folder.name)], str(run.folder)


def flags_of(key: tuple[str, str, str, str]) -> str:
    """The flags of train.py that make a run of a combination."""
    mode, predictor, parametrization, loss_weight = key
    flags = f"--mode {mode} --predictor {predictor}"
    flags += f" --parametrization {parametrization}" * (parametrization != "direct")
    return flags + f" --loss_weight {loss_weight}" * (loss_weight != "none")


class Report:
    """What is written below --out, and what could not be."""

    def __init__(self, out: Path, runs: dict[tuple[str, str, str, str], Run]):
        self.out, self.runs = out, runs
        self.missing: dict[str, list[str]] = {}  # what, and for which products
        self.written: set[str] = set()

    def rows(self, product: str, keys: Iterable[tuple[str, str, str, str]]) -> list[Run]:
        """The runs of a figure that are there; none when they should not stand side by side."""
        keys = list(keys)
        found = [self.runs[key] for key in keys if key in self.runs]
        for key in keys:
            if key not in self.runs:
                self.missing.setdefault(f"a run of {flags_of(key)}", []).append(product)
        for name in ALIKE:
            for run in found[1:]:
                if run.config[name] != found[0].config[name]:
                    values = " and ".join(f"{r.config[name]} in {r.folder}" for r in (found[0], run))
                    self.missing.setdefault(f"runs that can be compared ({name} is {values})", []).append(product)
                    return []
        if len({run.step for run in found}) > 1:
            tqdm.write(f"note: the runs of {product} differ in steps: {', '.join(str(run.step) for run in found)}")
        return found

    def write(self, product: str, content: bytes) -> None:
        """One file, whole or not at all."""
        path = self.out / product
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(content)
        self.written.add(product)
        tqdm.write(str(path))

    def write_table(self, product: str, rows: Iterable[Sequence[object]]) -> None:
        """A table, its header first."""
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        self.write(product, text.getvalue().encode())

    def write_drawing(self, product: str, fig: plt.Figure) -> None:
        """An SVG whose bytes follow from what is drawn."""
        content = io.BytesIO()
        with plt.rc_context({"svg.hashsalt": product, "svg.fonttype": "path"}):
            fig.savefig(content, format="svg", metadata={"Date": None})
        plt.close(fig)
        self.write(product, content.getvalue())

    def say_what_is_missing(self) -> None:
        """A line for each thing that was not there, and for each file that is therefore from another call."""
        for what, products in self.missing.items():
            print(f"missing: {one_line(what)}, for {', '.join(products)}")
        text = (ROOT / "report/report.typ").read_text(encoding="utf-8")
        for product in sorted(set(re.findall(r'"((?:figures|tables)/[^"]+)"', text)) - self.written):
            if (self.out / product).exists():
                print(f"old: {self.out / product}, which the report shows, is not from these runs")


# Drawings.


def draw_schedules(T: int = 1000) -> plt.Figure:
    """beta_t, alpha-bar_t and log-SNR_t of the three schedules, t = 1 ... T as the paper counts."""
    with plt.rc_context(TEXT):
        fig, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.1), layout="constrained")
        t = np.arange(1, T + 1)
        for mode in MODES:
            scheduler = DDPMScheduler(T, 1e-4, 0.02, mode)
            log_snr = [2 * half_log_snr(scheduler, i) for i in range(T)]
            for ax, curve in zip(axes, (scheduler.betas, scheduler.alphas_cumprod, log_snr), strict=True):
                ax.plot(t, curve, **STYLES[mode], linewidth=1.2, label=mode)
        axes[0].set_yscale("log")
        for ax, name in zip(axes, (r"$\beta_t$", r"$\bar{\alpha}_t$", r"$\log\,\mathrm{SNR}_t$"), strict=True):
            ax.set(xlabel="$t$", ylabel=name, xlim=(0, T), xticks=[0, T // 2, T])
            ax.grid(alpha=0.3, linewidth=0.5)
        axes[1].legend(handlelength=2.6, frameon=False)
    return fig


def draw_losses(runs: Sequence[Run]) -> plt.Figure:
    """The losses of runs over their steps, a panel for each predictor and a line for each schedule."""
    predictors = [name for name in PREDICTORS if name in {run.config["predictor"] for run in runs}]
    with plt.rc_context(TEXT):
        fig, axes = plt.subplots(1, len(predictors), figsize=(WIDTH, 2.1), layout="constrained", squeeze=False)
        for ax, predictor in zip(axes[0], predictors, strict=True):
            for run in runs:
                mode = run.config["mode"]
                if run.config["predictor"] == predictor:
                    steps, losses = zip(*thinned(run.losses), strict=True)
                    gid = f"{predictor}-{mode}"  # the name of the line in the file
                    ax.plot(steps, losses, **STYLES[mode], linewidth=1, label=mode, gid=gid)
            drawn = ", drawn faces" * runs[0].config["synthetic_faces"]
            ax.set(xlabel="step", yscale="log", title=f"{predictor} predictor{drawn}")
            ticks = ticks_around(*ax.dataLim.intervaly)
            ax.set(ylim=(ticks[0], ticks[-1]), yticks=ticks if len(ticks) < 12 else ticks[::3])
            ax.yaxis.set_major_formatter("{x:g}")
            ax.minorticks_off()
            ax.grid(alpha=0.3, linewidth=0.5)
        axes[0, 0].set_ylabel("training loss")
        lines = {line.get_label(): line for ax in axes[0] for line in ax.lines}
        axes[0, 0].legend(handles=[lines[mode] for mode in MODES if mode in lines], handlelength=2.6, frameon=False)
    return fig


def ticks_around(low: float, high: float) -> list[float]:
    """0.1, 0.2, 0.5, 1, ...: from the last such number below two losses to the first one above them."""
    ticks = [float(f"{k}e{exponent}") for exponent in range(-6, 39) for k in (1, 2, 5)]  # stats.csv has six digits
    first = max((i for i, tick in enumerate(ticks) if tick <= low), default=0)
    return ticks[first : 1 + next(i for i, tick in enumerate(ticks) if i > first and tick >= high)]


def thinned(losses: Sequence[tuple[int, float]], most: int = 200) -> list[tuple[int, float]]:
    """At most so many points; each is the mean of those that it stands for, at the last one's step."""
    parts = np.array_split(np.asarray(losses, dtype=float), min(most, len(losses)))
    return [(int(part[-1, 0]), float(part[:, 1].mean())) for part in parts]


# Pictures.


def chain_of(run: Run, count: int, place: torch.device) -> torch.Tensor:
    """Ten stations of `count` reverse chains of a run's averaged weights; the noise depends on the size alone.

    Returns:
        [10, count, 3, H, W] on the CPU, noise first (fewer stations for T < 9).
    """
    ddpm = DiffusionModule(None, None).eval()
    ddpm.load(run.folder / "last.ckpt")
    speed.place_network(ddpm, place)
    noise = ImageNoise(SEED, range(count), ddpm.image_resolution, place)
    return trajectory_frames(ddpm.reverse_process(count, randn_like=noise), ddpm.var_scheduler.num_train_timesteps)


def draw_trajectories(runs: Sequence[Run], chains: int, place: torch.device) -> bytes:
    """The way to the same `chains` images under each schedule; above it t, from T (noise) to 0 (the image)."""
    T = runs[0].config["num_diffusion_train_timesteps"]
    times = trajectory_frames((torch.tensor(t) for t in range(T, -1, -1)), T).tolist()
    bar = tqdm(runs, desc="trajectories", unit="run", leave=False)
    strips = [(run.config["mode"], trajectory_image(chain_of(run, chains, place))) for run in bar]
    return labelled(strips, [f"t = {times[0]}", *map(str, times[1:])], runs[0].config["synthetic_faces"])


def draw_samples(runs: Sequence[Run], place: torch.device) -> bytes:
    """The same 8 images as each predictor makes them."""
    bar = tqdm(runs, desc="samples", unit="run", leave=False)
    strips = [(r.config["predictor"], image_grid(chain_of(r, NUM_SAMPLES, place)[-1], NUM_SAMPLES)) for r in bar]
    return labelled(strips, [], runs[0].config["synthetic_faces"])


def labelled(strips: Sequence[tuple[str, Image.Image]], columns: Sequence[str], drawn: bool) -> bytes:
    """A PNG of strips of one size below each other, with their names at the left.

    The strips are enlarged pixel by pixel. Noise does not compress: one that would be a larger file than `MAX_BYTES`
    gets coarser where it is rough, and then smaller, as far as that helps.

    Args:
        strips: name and picture of each.
        columns: what stands above, evenly spaced over the width; may be empty.
        drawn: say below that the models learnt from drawn faces.
    """
    scale = max(1, round(PIXELS / strips[0][1].width))
    for how_coarse, factor in ((0, scale), (1, scale), (2, scale), (2, 1), (3, 1)):
        content = io.BytesIO()
        pictures = [(name, coarser(strip, how_coarse)) for name, strip in strips]
        _compose(pictures, columns, drawn, factor).save(content, "PNG")
        if content.tell() <= MAX_BYTES:
            break
    return content.getvalue()


def coarser(picture: Image.Image, how_coarse: int) -> Image.Image:
    """Fewer shades where neighbours differ much anyway: steps of at most an eighth of that, times `how_coarse`."""
    pixels = np.asarray(picture).astype(int)
    highest, lowest = (np.asarray(picture.filter(kind(3))).astype(int) for kind in (MaxFilter, MinFilter))
    step = 2 ** np.log2(np.maximum(1, (highest - lowest) * how_coarse / 8)).astype(int)
    return Image.fromarray(((pixels + step // 2) // step * step).clip(0, 255).astype(np.uint8))


def _compose(strips: Sequence[tuple[str, Image.Image]], columns: Sequence[str], drawn: bool, scale: int) -> Image.Image:
    width, height = (scale * pixels for pixels in strips[0][1].size)
    size = max(12, width // 48)
    # The font that comes with matplotlib: the same on every machine.
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
    left = round(max(font.getlength(name) for name, _ in strips)) + size
    top, bottom = 2 * size * bool(columns), 2 * size * drawn
    whole = Image.new("RGB", (left + width, top + height * len(strips) + bottom), "white")
    draw = ImageDraw.Draw(whole)
    for i, text in enumerate(columns):
        draw.text((left + (i + 0.5) * width / len(columns), top // 2), text, "black", font, "mm")
    for i, (name, picture) in enumerate(strips):
        draw.text((size // 2, top + round((i + 0.5) * height)), name, "black", font, "lm")
        whole.paste(picture.resize((width, height), Image.Resampling.NEAREST), (left, top + i * height))
    if drawn:
        draw.text((left, whole.height - bottom // 2), "trained on drawn faces", "black", font, "lm")
    return whole


# Tables.


def facts_of(run: Run) -> dict[str, object]:
    """A run as a row."""
    config = run.config
    return {
        **dict(zip(("mode", "predictor", "parametrization", "loss_weight"), run.key, strict=True)),
        "seed": config["seed"],
        "steps": run.step,
        "batch_size": config["batch_size"],
        "image_resolution": config["image_resolution"],
        "ch": config["ch"],
        "T": config["num_diffusion_train_timesteps"],
        "num_images": config["num_images"],
        "classes": " ".join(map(str, config["classes"])),
        "synthetic_faces": config["synthetic_faces"],
        "last_loss": f"{run.losses[-1][1]:.6f}",
        "weights": run.num_weights,
    }


# What two measurements must share for their distances to be compared, and what else is told of the best.
SAME = ("name", "gt_synthetic", "gt_images", "gt_sizes", "gen_images", "weights_sha256")
OF_DISTANCE = {
    "distance": float,
    "gen_dir": str,
    "gen_sizes": list,
    "name": str,
    "gt_synthetic": bool,
    "gt_images": int,
}
OF_DISTANCE |= {"gt_sizes": list, "gen_images": int, "weights_sha256": str}


def read_distances(files: Iterable[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """What fid/measure_fid.py --json wrote.

    Raises:
        OSError, ValueError: for other files, or distances that cannot be compared.
    """
    results = []
    for path in files:
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            sound = all(type(result[name]) is kind for name, kind in OF_DISTANCE.items())
        except (ValueError, TypeError, KeyError):
            sound = False
        if not sound or not math.isfinite(result["distance"]):
            raise ValueError(f"argument --fid: {path} is not a file that fid/measure_fid.py --json wrote")
        results.append((path, result))
        first, firsts = results[0]
        for name in SAME:
            if result[name] != firsts[name]:
                values = f"{name} is {firsts[name]} in {first} and {result[name]} in {path}"
                raise ValueError(f"argument --fid: these distances cannot be compared: {values}")
    return results


def mark_of(folder: Path, count: int) -> dict[str, Any]:
    """The settings that sampling.py left in each of the `count` images of a folder.

    Raises:
        ValueError: when these are other images, or not all alike.
    """
    files = list_images(folder)
    if len(files) != count:
        raise ValueError(f"{folder} holds {len(files)} images, where {count} were measured")
    marks = set()
    for file in files:
        try:
            with Image.open(file) as image:
                marks.add(image.info.get(SETTINGS_KEY))
        except (OSError, SyntaxError, ValueError):
            marks.add(None)
    try:
        (mark,) = marks
        mark = dict(json.loads(mark))
        return mark | {"model": str(mark["model"])}
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{folder} holds other images than those of one call of sampling.py") from None


def best_of(
    results: list[tuple[Path, dict[str, Any]]], samples: Sequence[Path], runs: Iterable[Run]
) -> tuple[dict[str, object], Path]:
    """The lowest distance and all that is known of the samples that have it, keys and values; and their folder.

    Each sample carries a checksum of the model that made it, so the run is the one whose checkpoint has this checksum.

    Raises:
        OSError, ValueError: when the samples are gone, or no run has their model.
    """
    i = min(range(len(results)), key=lambda k: results[k][1]["distance"])
    path, result = results[i]
    folders = [samples[i]] if samples else [Path(result["gen_dir"]), PROGRAMS / result["gen_dir"]]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise ValueError(f"{path}: its samples are not in {folders[0]} any more: name their folder with --samples")
    mark = mark_of(folder, result["gen_images"])
    for run in tqdm(runs, desc="looking for the best model", unit="run", leave=False):
        for weights in ("ema", "last"):
            ddpm = DiffusionModule(None, None)
            ddpm.load(run.folder / "last.ckpt", weights)
            if model_hash(ddpm) == mark["model"]:
                return _best(result, mark, run, weights), folder
    raise ValueError(
        f"{path}: no run below --runs has the model {mark['model']} that made the images in {folder}: "
        "name its folder with --runs, or sample and measure again if it was trained further"
    )


def _best(result: dict[str, Any], mark: dict[str, Any], run: Run, weights: str) -> dict[str, object]:
    names = "learning_rate", "ch_mult", "attn", "num_res_blocks", "dropout", "hflip", "ema_decay", "beta_1", "beta_T"
    names += "use_cfg", "max_num_images_per_cat"
    best = {
        "name": result["name"],
        "distance": f"{result['distance']:.4f}",
        "samples": result["gen_images"],
        "samples_size": " ".join(result["gen_sizes"]),
        "real_images": result["gt_images"],
        "real_size": " ".join(result["gt_sizes"]),
        "real_are_drawn": result["gt_synthetic"],
        "averaged_weights": weights == "ema",
    }
    best |= {name: mark.get(name) for name in ("sample_method", "num_inference_steps", "eta", "cfg_scale")}
    best |= {"sample_seed": mark.get("seed"), "run": run.folder.resolve().name} | facts_of(run)
    best |= {name: run.config[name] for name in names if name in run.config}
    return {
        key: " ".join(map(str, value)) if isinstance(value, list) else value
        for key, value in best.items()
        if value is not None
    }


def main() -> None:
    """The program."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    results = PROGRAMS / "results"
    add("--runs", type=Path, nargs="+", metavar="DIR", help="where runs are (default: image_diffusion_todo/results)")
    add("--fid", type=Path, nargs="+", default=[], metavar="FILE", help="what fid/measure_fid.py --json wrote")
    where = "where the samples of each --fid are, in that order, if not where they were when they were measured"
    add("--samples", type=Path, nargs="+", default=[], metavar="DIR", help=where)
    add("--out", type=Path, default=ROOT / "report", metavar="DIR", help="gets figures/ and tables/ (default: report)")
    add("--predictor", choices=PREDICTORS, default="noise", help="of the trajectories (default: noise)")
    add("--roll", type=Path, metavar="DIR", help="results of Task 1, to be shown too")
    add("--chains", type=int_range(1, 2), default=1, metavar="N", help="trajectories a schedule (default: 1)")
    add("--mode", choices=MODES, default="cosine", help="of the predictors' samples (default: cosine)")
    add("--device", type=select_device, default="auto", metavar="NAME", help="auto, cpu, cuda, mps (default: auto)")
    args = parser.parse_args()
    if args.samples and len(args.samples) != len(args.fid):
        parser.error(f"argument --samples: {len(args.samples)} folders for {len(args.fid)} files of --fid")
    with exit_on_user_error(interrupted="stopped; the files named above are whole"):
        check_writable(args.out)
        distances = read_distances(args.fid)
        found = find_runs(args.runs or [results] * results.is_dir())
        runs = choose(found)
        best = best_of(distances, args.samples, found) if distances else None
        for key, run in runs.items():
            print(f"taken: {flags_of(key)}: {one_line(str(run.folder))}, step {run.step}")

        report = Report(args.out, runs)
        if args.roll:
            report.write("tables/swiss_roll.json", (args.roll / "swiss_roll.json").read_bytes())
            for name in ROLL:
                report.write(f"figures/swiss_roll_{name}", (args.roll / f"swiss_roll_{name}").read_bytes())
        report.write_drawing(SCHEDULES, draw_schedules())
        if runs:
            rows = [facts_of(run) for run in runs.values()]
            report.write_table(RUNS, [list(rows[0]), *(row.values() for row in rows)])
        if best:
            facts, folder = best
            report.write_table(BEST, [("key", "value"), *facts.items()])
            sheet = io.BytesIO()
            contact_sheet(folder, 64, per_row=8).save(sheet, format="PNG")
            report.write(BEST_SAMPLES, sheet.getvalue())

        direct = [(mode, predictor, "direct", FORMS["direct"]) for predictor in PREDICTORS for mode in MODES]
        if rows := report.rows(LOSSES, direct):
            report.write_drawing(LOSSES, draw_losses(rows))
        for how in FORMS.items():
            of_modes = [(mode, args.predictor, *how) for mode in MODES]
            of_predictors = [(args.mode, predictor, *how) for predictor in PREDICTORS]
            for product, keys in ((TRAJECTORIES[how[0]], of_modes), (SAMPLES[how[0]], of_predictors)):
                if how[0] != "direct" and not any(key in runs for key in keys):
                    continue  # the lab does not ask for it
                rows = report.rows(product, keys)
                if rows and keys is of_modes:
                    report.write(product, draw_trajectories(rows, args.chains, args.device))
                elif rows:
                    report.write(product, draw_samples(rows, args.device))
        report.say_what_is_missing()


if __name__ == "__main__":
    main()
