"""The FID program against `python -m pytorch_fid`: how long each takes, and by how much the numbers differ.

    python benchmarks/fid.py                                 # minutes: pytorch-fid's root of a 2048 x 2048 matrix
    python benchmarks/fid.py --pictures 300 --whole_rounds 3 # more of the whole
    python benchmarks/fid.py --dims 768 --json fid.json

Three things are measured, in one process, both programs in turns, so that a busy machine slows both:

- distance: features in, number out. The features are synthetic, with a spectrum that decays as that of real ones does.
- network: pictures in, features out.
- whole: two folders in, number out, as the command lines do it, the network's start included. A second row has the
  statistics of the real folder from our cache.

A figure is the median of its rounds, with the lowest and the highest. The network has the weights that lie where
pytorch-fid keeps them. If there are none, it gets random ones: times are the same, distances are no FID.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from unittest import mock

import numpy as np
import torch
import torchvision
from PIL import Image
from pytorch_fid import fid_score
from scipy import linalg
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "image_diffusion_todo"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "image_diffusion_todo" / "fid"))

import measure_fid

from atomic import atomic_write
from cli import ArgumentParser, exit_on_user_error, int_range, select_device, writable_file

BATCH_SIZE = 50  # of both programs
# As pytorch-fid's command line counts its worker processes.
WORKERS = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0)


# Both programs.


def distance_pytorch_fid(real: np.ndarray, generated: np.ndarray) -> float:
    """From features to the distance as pytorch-fid does it."""
    gaussians = [(features.mean(axis=0), np.cov(features, rowvar=False)) for features in (real, generated)]
    return float(fid_score.calculate_frechet_distance(*gaussians[0], *gaussians[1]))


def distance_ours(real: np.ndarray, generated: np.ndarray) -> float:
    """From features to the distance as our program does it."""
    return measure_fid.gaussian_distance(measure_fid.fit_gaussian(real), measure_fid.fit_gaussian(generated))


@contextmanager
def pytorch_fid_runs() -> Iterator[bool]:
    """Let pytorch-fid run, and quietly; gives whether SciPy's `sqrtm` had to be fitted to it.

    It calls `sqrtm(A, disp=False)` and wants two values. SciPy 1.18 has no such argument any more.
    """
    sqrtm = linalg.sqrtm
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        try:
            sqrtm(np.eye(1), disp=False)
            yield False
        except TypeError:
            with mock.patch.object(linalg, "sqrtm", lambda A, disp=True: sqrtm(A) if disp else (sqrtm(A), 0.0)):
                yield True


# What they work on.


def synthetic_features(real: int, generated: int, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Feature vectors [real, dims] and [generated, dims] of two Gaussians that differ in mean, spread and axes."""
    rng = np.random.default_rng(0)
    deviations = np.arange(1, dims + 1) ** -0.5
    mixed = np.roll(deviations, dims // 10) * 1.1
    return rng.normal(size=(real, dims)) * deviations, rng.normal(size=(generated, dims)) * mixed + 0.02


def write_pictures(folder: Path, count: int, grain: int) -> Path:
    """Random pictures of 64x64 pixels, of `grain` x `grain` soft blots each."""
    rng = np.random.default_rng(grain)
    folder.mkdir(parents=True)
    for i in range(count):
        picture = Image.fromarray(rng.integers(0, 256, (grain, grain, 3), dtype=np.uint8))
        picture.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def write_random_weights(file: Path) -> None:
    """Weights of pytorch-fid's Inception network that keep the size of what runs through it."""
    network = torchvision.models.inception_v3(weights=None, init_weights=False, num_classes=1008, aux_logits=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for values in network.parameters():
            if values.ndim == 4:
                torch.nn.init.kaiming_normal_(values, nonlinearity="relu")
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)


# The measurement.


def take_turns(name: str, rounds: int, programs: dict[str, Callable[[], object]]) -> tuple[dict, dict]:
    """Run each program once a round; seconds of every round, and what came out in the last one."""
    seconds, results = {program: [] for program in programs}, {}
    for _ in tqdm(range(rounds), desc=name, unit="round", leave=False):
        for program, run in programs.items():
            start = time.perf_counter()
            results[program] = run()
            seconds[program].append(time.perf_counter() - start)
    return seconds, results


def compare(name: str, theirs: Sequence[float], ours: Sequence[float], difference: float) -> dict:
    """A row of the table: medians, lowest and highest of the seconds, their ratio, and the results' difference."""
    row = {"what": name, "relative_difference": float(difference)}
    for program, seconds in (("pytorch_fid", theirs), ("ours", ours)):
        row[program] = {
            "median": statistics.median(seconds),
            "lowest": min(seconds),
            "highest": max(seconds),
            "seconds": list(seconds),
        }
    return row | {"speedup": row["pytorch_fid"]["median"] / row["ours"]["median"]}


def measure_all(args: argparse.Namespace, folder: Path) -> list[dict]:
    """All rows of the table; `folder` is an empty one for the pictures.

    Raises:
        ValueError: for weights that are damaged, or do not reach as far as `args.dims`.
    """
    rows = []
    real, generated = synthetic_features(args.real, args.generated, args.dims)
    programs = {
        "theirs": lambda: distance_pytorch_fid(real, generated),
        "ours": lambda: distance_ours(real, generated),
    }
    seconds, found = take_turns("distance", args.rounds, programs)
    name = f"distance, {args.real} against {args.generated} features of width {args.dims}"
    rows.append(compare(name, seconds["theirs"], seconds["ours"], abs(found["ours"] / found["theirs"] - 1)))

    folders = [
        write_pictures(folder / "real", args.pictures, grain=16),
        write_pictures(folder / "generated" / "samples", args.pictures, grain=8),
    ]
    block = fid_score.InceptionV3.BLOCK_INDEX_BY_DIM[args.dims]
    network = measure_fid.load_inception(args.dims, args.device)
    their_network = fid_score.InceptionV3([block]).to(args.device)
    files = measure_fid.images_to_measure(folders[0])
    programs = {
        "theirs": lambda: fid_score.get_activations(files, their_network, BATCH_SIZE, args.dims, args.device, WORKERS),
        "ours": lambda: measure_fid.features_of_folder(folders[0], network, BATCH_SIZE),
    }
    seconds, found = take_turns("network", args.rounds, programs)
    difference = np.abs(found["ours"] - found["theirs"]).max() / np.abs(found["theirs"]).max()
    rows.append(compare(f"network, {args.pictures} pictures", seconds["theirs"], seconds["ours"], difference))

    def whole_ours() -> float:
        return measure_fid.measure(*folders, args.dims, BATCH_SIZE, args.device)["distance"]

    def whole_ours_anew() -> float:
        rmtree(folder / ".cache", ignore_errors=True)
        return whole_ours()

    programs = {
        "theirs": lambda: fid_score.calculate_fid_given_paths(
            [str(path) for path in folders], BATCH_SIZE, args.device, args.dims, WORKERS
        ),
        "ours": whole_ours_anew,
        "cached": whole_ours,
    }
    seconds, found = take_turns("whole", args.whole_rounds, programs)
    name = f"whole, {args.pictures} + {args.pictures} pictures"
    for program, label in (("ours", name), ("cached", f"{name}, real ones known")):
        rows.append(compare(label, seconds["theirs"], seconds[program], abs(found[program] / found["theirs"] - 1)))
    return rows


# The program.


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command line."""
    parser = ArgumentParser(
        description="Our FID program against pytorch-fid: times, and the difference of the numbers."
    )
    add = parser.add_argument
    add("--real", type=int_range(2), default=1500, help="synthetic real feature vectors (default: 1500)")
    add("--generated", type=int_range(2), default=500, help="synthetic generated ones (default: 500)")
    add("--dims", type=int, choices=measure_fid.WIDTHS, default=2048, help="number of features (default: 2048)")
    add("--pictures", type=int_range(2), default=16, help="pictures in each of the two folders (default: 16)")
    add("--rounds", type=int_range(1), default=3, help="of the distance and of the network (default: 3)")
    add("--whole_rounds", type=int_range(1), default=1, help="of the whole (default: 1)")
    add("--device", type=select_device, default="cpu", help="of the network: auto, cpu, cuda, mps (default: cpu)")
    add("--json", type=writable_file, metavar="FILE", help="also write all figures to this file")
    return parser


def table(rows: Sequence[dict]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| | pytorch-fid, seconds | ours, seconds | times as fast | relative difference |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        theirs, ours = (
            "{median:.2f} ({lowest:.2f} to {highest:.2f})".format(**row[program]) for program in ("pytorch_fid", "ours")
        )
        lines.append(f"| {row['what']} | {theirs} | {ours} | {row['speedup']:.1f} | {row['relative_difference']:.1e} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    args = make_parser().parse_args(arguments)
    random_weights = not measure_fid.weights_file().exists()
    with exit_on_user_error(), tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ):
        if random_weights:
            os.environ["TORCH_HOME"] = str(Path(folder, "torch"))
            write_random_weights(measure_fid.weights_file())
        with pytorch_fid_runs() as fitted:
            rows = measure_all(args, Path(folder, "pictures"))
        result = {
            "rows": rows,
            "random_weights": random_weights,
            "sqrtm_fitted": fitted,
            "settings": {name: str(value) if name == "device" else value for name, value in vars(args).items()},
            "threads": torch.get_num_threads(),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("pytorch-fid", "torch", "torchvision", "numpy", "scipy")},
            },
        }
        del result["settings"]["json"]
        if args.json:
            with atomic_write(args.json) as file:
                file.write((json.dumps(result, indent=2) + "\n").encode())
    print(table(rows))
    if random_weights:
        print("The network's weights are random: the distances of the whole are no FID.")
    if fitted:
        print("SciPy's sqrtm has no argument `disp` any more: pytorch-fid got a sqrtm that has.")


if __name__ == "__main__":
    main()
