"""Time the FID program against `python -m pytorch_fid`, and compare their numbers.

    python benchmarks/fid.py                              # minutes: pytorch-fid's root of a 2048 x 2048 matrix
    python benchmarks/fid.py --dims 768 --pictures 300 --json fid.json

- distance: from synthetic features, whose spectrum decays as that of real ones does, to the number.
- network: from pictures to features.
- whole: from two folders to the number, loading the network included; once more with the real features cached.

Both programs take turns in one process, so that a busy machine slows both. A time is the median of its rounds, with the
lowest and the highest. Without pytorch-fid's weights file the network gets random weights: the times are the same.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "image_diffusion_todo"))

from atomic import atomic_write
from cli import ArgumentParser, exit_on_user_error, int_range, select_device, writable_file
from fid.frechet import fit_gaussian, frechet_distance
from fid.image_sets import find_images
from fid.inception import WIDTHS, PytorchFidInception, extract_features, weights_file
from fid.measure_fid import measure

BATCH_SIZE = 50  # of both programs
WORKERS = min(8, os.cpu_count() or 1)  # as pytorch-fid's command line


def write_pictures(folder: Path, count: int, grain: int) -> Path:
    """Random pictures of 64x64 pixels, enlarged from `grain` x `grain`."""
    rng = np.random.default_rng(grain)
    folder.mkdir(parents=True)
    for i in range(count):
        picture = Image.fromarray(rng.integers(0, 256, (grain, grain, 3), dtype=np.uint8))
        picture.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def write_random_weights(file: Path) -> None:
    """Weights of pytorch-fid's network that preserve the scale of its activations."""
    network = torchvision.models.inception_v3(weights=None, init_weights=False, num_classes=1008, aux_logits=False)
    torch.manual_seed(0)
    for values in network.parameters():
        if values.ndim == 4:
            torch.nn.init.kaiming_normal_(values, nonlinearity="relu")
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)


def compare(rounds: int, theirs: Callable, ours: dict[str, Callable]) -> Iterator[dict]:
    """Run `theirs` and all of `ours` in turns. A row for each of ours: seconds, their ratio, difference of results."""
    programs = {"theirs": theirs} | ours
    seconds, results = {name: [] for name in programs}, {}
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            results[name] = np.asarray(program())
            seconds[name].append(time.perf_counter() - start)
    times = {
        name: {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
        for name, values in seconds.items()
    }
    for name in ours:
        row = {"what": name, "pytorch_fid": times["theirs"], "ours": times[name]}
        row["speedup"] = times["theirs"]["median"] / times[name]["median"]
        difference = np.abs(results[name] - results["theirs"]).max() / np.abs(results["theirs"]).max()
        yield row | {"relative_difference": float(difference)}


def measure_all(args: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """All rows of the table; `folder` gets the pictures."""
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, args.dims + 1) ** -0.5
    features = rng.normal(size=(args.real, args.dims)) * spectrum, rng.normal(size=(args.generated, args.dims)) + 0.02
    features[1][:] *= np.roll(spectrum, args.dims // 10)

    def distance_theirs() -> float:
        (mu1, sigma1), (mu2, sigma2) = [(x.mean(axis=0), np.cov(x, rowvar=False)) for x in features]
        return fid_score.calculate_frechet_distance(mu1, sigma1, mu2, sigma2)

    what = f"distance, {args.real} against {args.generated} features of width {args.dims}"
    yield from compare(args.rounds, distance_theirs, {what: lambda: frechet_distance(*map(fit_gaussian, features))})

    folders = write_pictures(folder / "a/real", args.pictures, 16), write_pictures(folder / "b", args.pictures, 8)
    files = find_images(folders[0]).files
    network = PytorchFidInception(args.dims, args.device)
    their_network = fid_score.InceptionV3([fid_score.InceptionV3.BLOCK_INDEX_BY_DIM[args.dims]]).to(args.device)
    yield from compare(
        args.rounds,
        lambda: fid_score.get_activations(files, their_network, BATCH_SIZE, args.dims, args.device, WORKERS),
        {f"network, {args.pictures} pictures": lambda: extract_features(files, network, BATCH_SIZE)},
    )

    def whole_theirs() -> float:
        paths = [str(path) for path in folders]
        return fid_score.calculate_fid_given_paths(paths, BATCH_SIZE, args.device, args.dims, WORKERS)

    def whole_cached() -> float:
        real, generated = map(find_images, folders)
        return measure(real, generated, PytorchFidInception(args.dims, args.device), BATCH_SIZE)["distance"]

    def whole() -> float:
        rmtree(folder / "a/.cache", ignore_errors=True)
        return whole_cached()

    what = f"whole, {args.pictures} + {args.pictures} pictures"
    yield from compare(args.rounds, whole_theirs, {what: whole, f"{what}, real ones known": whole_cached})


def main() -> None:
    """Measure and print the table, in Markdown."""
    parser = ArgumentParser(description="Our FID program against pytorch-fid: times, and the difference of results.")
    add = parser.add_argument
    add("--real", type=int_range(2), default=1500, help="synthetic features of the real side (default: 1500)")
    add("--generated", type=int_range(2), default=500, help="and of the generated side (default: 500)")
    add("--dims", type=int, choices=WIDTHS, default=2048, help="number of features (default: 2048)")
    add("--pictures", type=int_range(2), default=16, help="pictures in each of the two folders (default: 16)")
    add("--rounds", type=int_range(1), default=3, help="of each measurement (default: 3)")
    add("--device", type=select_device, default="cpu", help="auto, cpu, cuda, cuda:1, mps (default: cpu)")
    add("--json", type=writable_file, metavar="FILE", help="also write all numbers to this file")
    args = parser.parse_args()

    random_weights = not weights_file().exists()
    sqrtm = linalg.sqrtm  # pytorch-fid calls it with `disp`, which SciPy 1.18 took away, and wants two values
    with (
        exit_on_user_error(),
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ),
        mock.patch.object(linalg, "sqrtm", lambda A, disp: (sqrtm(A), 0.0)),
        warnings.catch_warnings(),
        redirect_stdout(sys.stderr),
    ):
        warnings.simplefilter("ignore")
        if random_weights:
            os.environ["TORCH_HOME"] = str(Path(folder, "torch"))
            write_random_weights(weights_file())
        rows = list(measure_all(args, Path(folder)))
        settings = {name: str(value) for name, value in vars(args).items() if name != "json"}
        result = {"rows": rows, "random_weights": random_weights, "settings": settings}
        result["threads"] = torch.get_num_threads()
        result["versions"] = {name: version(name) for name in ("pytorch-fid", "torch", "torchvision", "numpy", "scipy")}
        if args.json:
            with atomic_write(args.json) as file:
                file.write((json.dumps(result, indent=2) + "\n").encode())

    print("| | pytorch-fid, seconds | ours, seconds | times as fast | relative difference |\n|---|---|---|---|---|")
    for row in rows:
        times = ["{median:.2f} ({lowest:.2f} to {highest:.2f})".format(**row[name]) for name in ("pytorch_fid", "ours")]
        print(f"| {row['what']} | {' | '.join(times)} | {row['speedup']:.1f} | {row['relative_difference']:.1e} |")
    if random_weights:
        print("The network's weights are random: the distances of the whole are no FID.")


if __name__ == "__main__":
    main()
