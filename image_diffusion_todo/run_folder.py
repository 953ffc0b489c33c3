"""The folder of a training run: its name, config.json, skipped.txt, stats.csv and loss.png."""

import argparse
import csv
import io
import itertools
import json
import os
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

if "ipykernel" not in sys.modules:  # a notebook exports its own backend to its programs, where it may be missing
    os.environ["MPLBACKEND"] = "Agg"

from matplotlib.figure import Figure

from atomic import atomic_write
from cli import UserError, one_line
from data_folder import is_synthetic

COLUMNS = ("step", "loss", "learning_rate", "images_per_second")  # of stats.csv


def new_run_folder(args: argparse.Namespace) -> Path:
    """Create results/predictor_{predictor}/beta_{mode}/{MM-DD-HHMMSS}, with -2, -3, ... if it exists."""
    parent = Path("results") / f"{'cfg_' * args.use_cfg}predictor_{args.predictor}" / f"beta_{args.mode}"
    parent.mkdir(parents=True, exist_ok=True)
    name = datetime.now().strftime("%m-%d-%H%M%S")
    for k in itertools.count(1):
        folder = parent / (name if k == 1 else f"{name}-{k}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder


def save_config(settings: dict[str, Any], skipped: list[str], folder: Path) -> None:
    """Write config.json and, if images were skipped, skipped.txt with the reasons."""
    with atomic_write(folder / "config.json") as file:
        file.write((json.dumps(settings, indent=2) + "\n").encode())
    if skipped:
        with atomic_write(folder / "skipped.txt") as file:
            file.write("".join(one_line(reason) + "\n" for reason in skipped).encode())
        print(f"{len(skipped)} broken images skipped, see {folder / 'skipped.txt'}")


def read_config(folder: Path) -> dict[str, Any]:
    """The contents of config.json; UserError if the folder has none that can be read."""
    try:
        return dict(json.loads((folder / "config.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{str(folder)!r} is not the folder of a run: it has no readable config.json") from None


def write_stats(stats: list[dict[str, Any]], args: argparse.Namespace, folder: Path) -> None:
    """Write stats.csv and loss.png."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(stats)
    with atomic_write(folder / "stats.csv") as file:
        file.write(text.getvalue().encode())

    figure = Figure(figsize=(8, 4))
    ax = figure.subplots()
    ax.plot([row["step"] for row in stats], [float(row["loss"]) for row in stats], linewidth=0.8)
    synthetic = ", synthetic faces" * is_synthetic(args.data_root)
    ax.set(xlabel="step", ylabel="loss", yscale="log")
    ax.set_title(f"{args.predictor} predictor, {args.mode} schedule{synthetic}")
    ax.grid(alpha=0.3)
    with atomic_write(folder / "loss.png") as file:
        figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
