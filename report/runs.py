"""Training runs for the figures: reading them, choosing between them, and finding the one behind the best FID."""

import itertools
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import common
from checkpoint import read_checkpoint
from cli import UserError, one_line
from images import list_images
from prediction import LOSS_WEIGHTS, PARAMETRIZATIONS
from progress import tqdm
from sample_folder import SETTINGS_KEY
from sampling import model_hash
from scheduler import MODES, PREDICTORS

Key = tuple[str, str, str, str]  # mode, predictor, parametrization, loss weight
KEY = ("mode", "predictor", "parametrization", "loss_weight")
# What two distances must share to be compared.
SAME = ("name", "gt_synthetic", "gt_images", "gt_sizes", "gen_images", "weights_sha256")


@dataclass(frozen=True)
class Run:
    """A finished or unfinished run of train.py."""

    folder: Path
    config: dict[str, Any]
    row: dict[str, object]  # of the table of runs

    @property
    def key(self) -> Key:
        """The combination of settings, as in `KEY`."""
        return tuple(self.config[name] for name in KEY)

    @property
    def step(self) -> int:
        """Training steps of last.ckpt."""
        return self.row["steps"]


def read_run(folder: Path) -> Run:
    """The run in a folder; OSError, ValueError, KeyError or TypeError if it is incomplete or damaged."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stats = common.read_table(folder / "stats.csv")
    if not stats:
        raise UserError("no losses in stats.csv yet")
    checkpoint = read_checkpoint(folder / "last.ckpt")
    row = {name: config[name] for name in (*KEY, "seed")} | {"steps": checkpoint["training"]["step"]}
    row |= {name: config[name] for name in ("batch_size", "image_resolution", "ch")}
    row |= {"T": config["num_diffusion_train_timesteps"], "num_images": config["num_images"]}
    row |= {"classes": " ".join(config["classes"]), "synthetic_faces": config["synthetic_faces"]}
    row |= {
        "last_loss": f"{float(stats[-1]['loss']):.6f}",
        "weights": sum(w.numel() for w in checkpoint["state_dict"].values()),
    }
    return Run(folder, config, row)


def find_runs(folders: Iterable[Path]) -> list[Run]:
    """All runs anywhere below some folders; those that cannot be read are named on stdout."""
    found, visited = {}, set()
    for place in folders:
        if not place.is_dir():
            raise UserError(f"argument --runs: {place} is not a folder")
        for folder, inside, files in os.walk(place, followlinks=True):
            if (resolved := Path(folder).resolve()) in visited:
                inside.clear()  # a link to a folder that was seen
            elif "config.json" in files:
                found[resolved] = Path(folder)
            visited.add(resolved)
    runs = []
    for folder in tqdm(sorted(found.values()), desc="reading runs", unit="run", leave=False):
        try:
            runs.append(read_run(folder))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            tqdm.write(one_line(f"skipped: {folder}: {reason}"))
    return runs


def choose_runs(runs: Iterable[Run]) -> dict[Key, Run]:
    """One run of each combination, in the order of the tables: the one with the most steps, of these the newest."""

    def rank(run: Run) -> tuple:
        # Folders are named MM-DD-HHMMSS, with -2, -3, ... where that was taken.
        return run.step, [int(number) for number in re.findall(r"\d+", run.folder.resolve().name)]

    chosen = {}
    for run in sorted(runs, key=rank):
        if run.config["use_cfg"]:
            print(one_line(f"skipped: {run.folder}: trained with --use_cfg, which the figures do not show"))
        else:
            chosen[run.key] = run
    order = itertools.product(PARAMETRIZATIONS, LOSS_WEIGHTS, PREDICTORS, MODES)
    keys = [(mode, predictor, *form) for *form, predictor, mode in order]
    return {key: chosen[key] for key in keys if key in chosen}


def flags_of(key: Key) -> str:
    """The flags of train.py for a combination."""
    return " ".join(
        f"--{name} {value}" for name, value in zip(KEY, key, strict=True) if value not in ("direct", "none")
    )


def read_distances(files: Iterable[Path]) -> list[dict[str, Any]]:
    """The results that fid/measure_fid.py --json wrote; UserError if they cannot be compared."""
    results = []
    for path in files:
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            results.append({name: result[name] for name in (*SAME, "distance", "network", "gen_dir", "gen_sizes")})
        except (ValueError, KeyError, TypeError):
            raise UserError(f"argument --fid: {path} was not written by fid/measure_fid.py --json") from None
        for name in SAME:
            first, this = results[0][name], results[-1][name]
            if first != this:
                raise UserError(f"argument --fid: {path} cannot be compared with the first: {name} {this}, not {first}")
    return results


def settings_of(folder: Path, count: int) -> dict[str, Any]:
    """The settings that sampling.py left in each of the `count` images of a folder."""
    found = []
    for file in list_images(folder):
        with Image.open(file) as image:
            settings = json.loads(image.info.get(SETTINGS_KEY, "{}"))
        found.append({name: value for name, value in settings.items() if value is not None})  # older images lack some
    if len(found) != count or found[0] == {} or any(settings != found[0] for settings in found):
        raise UserError(f"{folder} does not hold the {count} images of one call of sampling.py")
    return found[0]


def best_of(results: Sequence[dict[str, Any]], runs: Iterable[Run]) -> tuple[dict[str, object], Path]:
    """All that is known about the lowest distance, and the folder of its samples; UserError if these are not found.

    Samples name the hash of their model, and the run is the one whose checkpoint has this hash, or whose half-precision
    export has it.
    """
    result = min(results, key=lambda result: result["distance"])
    measured = Path(result["gen_dir"])
    folder = next((folder for folder in (measured, common.TASK2 / measured) if folder.is_dir()), None)
    if folder is None:
        raise UserError(f"argument --fid: the samples of the lowest distance are no longer in {measured}")
    settings = settings_of(folder, result["gen_images"])
    candidates = itertools.product(tqdm(runs, desc="looking for the best model", leave=False), ("ema", "last"))
    for run, weights in candidates:
        ddpm = common.load_model(run.folder / "last.ckpt", weights)
        hashes = [model_hash(ddpm)]
        ddpm.network.half().float()  # as `checkpoint.py --half` rounds
        if settings["model"] in (*hashes, model_hash(ddpm)):
            return _best_row(result, settings, run, weights), folder
    raise UserError(
        f"argument --runs: no run there has the model {settings['model']} of {folder}; "
        "if it was trained further, sample and measure again"
    )


def _best_row(result: dict[str, Any], settings: dict[str, Any], run: Run, weights: str) -> dict[str, object]:
    of_sampling = "sample_method", "num_inference_steps", "eta", "last_timestep", "cfg_scale", "clip_x0"
    of_training = "learning_rate", "patch_size", "ch_mult", "attn", "num_res_blocks", "dropout", "hflip", "ema_decay"
    of_training += "beta_1", "beta_T", "use_cfg", "max_num_images_per_cat"
    row = {
        "name": result["name"],
        "network": result["network"],
        "distance": f"{result['distance']:.4f}",
        "samples": result["gen_images"],
        "samples_size": result["gen_sizes"],
        "real_images": result["gt_images"],
        "real_size": result["gt_sizes"],
        "real_are_synthetic": result["gt_synthetic"],
        "averaged_weights": weights == "ema",
        **{name: settings.get(name) for name in of_sampling},
        "sample_seed": settings["seed"],
        "run": run.folder.resolve().name,
        **run.row,
        **{name: run.config.get(name) for name in of_training},
    }
    lists = {name: " ".join(map(str, value)) for name, value in row.items() if isinstance(value, list)}
    return {name: value for name, value in (row | lists).items() if value is not None}
