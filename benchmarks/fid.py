"""Time the FID program against `python -m pytorch_fid`, and compare their numbers.

    python benchmarks/fid.py                              # minutes: pytorch-fid's root of a 2048 x 2048 matrix
    python benchmarks/fid.py --dims 768 --images 300 --json fid.json

- distance: from synthetic features, whose spectrum decays as that of real ones does, to the number.
- network: from images to features.
- whole: from two folders to the number, loading the network included; once more with the real features cached.

Both programs take turns in one process. A time is the median of its turns; the JSON also has the lowest and the
highest. Without pytorch-fid's weights file the network gets random weights: the times are the same.
"""

import os
import statistics
import sys
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from unittest import mock

import bench
import numpy as np
import torch
import torchvision
from bench_tables import FID, markdown, table
from PIL import Image
from pytorch_fid import fid_score
from scipy import linalg

from cli import exit_on_user_error, int_range, select_device
from fid.frechet import fit_gaussian, frechet_distance
from fid.image_sets import find_images
from fid.inception import WIDTHS, PytorchFidInception, extract_features, weights_file
from fid.measure_fid import measure

BATCH_SIZE = 50  # of both programs
WORKERS = min(8, os.cpu_count() or 1)  # as pytorch-fid's command line


def write_images(folder: Path, count: int, grain: int) -> Path:
    """Random images of 64x64 pixels, enlarged from `grain` x `grain`."""
    rng = np.random.default_rng(grain)
    folder.mkdir(parents=True)
    for i in range(count):
        image = Image.fromarray(rng.integers(0, 256, (grain, grain, 3), dtype=np.uint8))
        image.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
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


def compare(turns: int, theirs: Callable, ours: dict[str, Callable]) -> Iterator[dict]:
    """Run `theirs` and all of `ours` in turns. A row for each of ours: seconds, their ratio, difference of results."""
    programs, results = {"theirs": theirs} | ours, {}

    def run(name: str) -> None:
        results[name] = np.asarray(programs[name]())

    seconds = bench.take_turns({name: lambda name=name: run(name) for name in programs}, turns)
    times = {
        name: {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
        for name, values in seconds.items()
    }
    for name in ours:
        difference = np.abs(results[name] - results["theirs"]).max() / np.abs(results["theirs"]).max()
        yield {
            "what": name,
            "pytorch_fid": times["theirs"],
            "ours": times[name],
            "speedup": times["theirs"]["median"] / times[name]["median"],
            "relative_difference": float(difference),
        }


def measure_all(args: Namespace, folder: Path) -> Iterator[dict]:
    """All rows of the table; `folder` gets the images."""
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, args.dims + 1) ** -0.5
    features = [
        rng.normal(size=(args.real, args.dims)) * spectrum,
        (rng.normal(size=(args.generated, args.dims)) + 0.02) * np.roll(spectrum, args.dims // 10),
    ]

    def distance_theirs() -> float:
        (mu1, sigma1), (mu2, sigma2) = [(x.mean(axis=0), np.cov(x, rowvar=False)) for x in features]
        return fid_score.calculate_frechet_distance(mu1, sigma1, mu2, sigma2)

    what = f"distance, {args.real} against {args.generated} features of width {args.dims}"
    yield from compare(args.turns, distance_theirs, {what: lambda: frechet_distance(*map(fit_gaussian, features))})

    folders = write_images(folder / "a/real", args.images, 16), write_images(folder / "b", args.images, 8)
    files = find_images(folders[0]).files
    network = PytorchFidInception(args.dims, args.device)
    their_network = fid_score.InceptionV3([fid_score.InceptionV3.BLOCK_INDEX_BY_DIM[args.dims]]).to(args.device)
    yield from compare(
        args.turns,
        lambda: fid_score.get_activations(files, their_network, BATCH_SIZE, args.dims, args.device, WORKERS),
        {f"network, {args.images} images": lambda: extract_features(files, network, BATCH_SIZE)},
    )

    def whole_theirs() -> float:
        paths = [str(path) for path in folders]
        return fid_score.calculate_fid_given_paths(paths, BATCH_SIZE, args.device, args.dims, WORKERS)

    def whole_cached() -> float:
        network = PytorchFidInception(args.dims, args.device)
        return measure(*map(find_images, folders), network, BATCH_SIZE)["distance"]

    def whole() -> float:
        rmtree(folder / "a/.cache", ignore_errors=True)
        return whole_cached()

    what = f"whole, {args.images} + {args.images} images"
    yield from compare(args.turns, whole_theirs, {what: whole, f"{what}, real features cached": whole_cached})


def main() -> None:
    """Measure and print the table, in Markdown."""
    parser = bench.make_parser(__doc__, turns=3)
    add = parser.add_argument
    add("--real", type=int_range(2), default=1500, metavar="N", help="synthetic features of the real side")
    add("--generated", type=int_range(2), default=500, metavar="N", help="and of the generated side")
    add("--dims", type=int, choices=WIDTHS, default=2048, help="number of features")
    add("--images", type=int_range(2), default=16, metavar="N", help="images in each of the two folders")
    add("--device", type=select_device, default="cpu", help="auto, cpu, cuda, cuda:1, mps")
    args = parser.parse_args()

    random_weights = not weights_file().exists()
    sqrtm = linalg.sqrtm  # pytorch-fid passes `disp`, which SciPy 1.18 removed, and expects two values
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
        result = {
            "rows": rows,
            "random_weights": random_weights,
            "settings": {name: str(value) for name, value in vars(args).items() if name != "json"},
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("pytorch-fid", "torch", "torchvision", "numpy", "scipy")},
        }
        bench.write_json(args.json, result)

    print(markdown(table(rows, FID)))
    if random_weights:
        print("The network's weights are random: the distances are not FIDs.")


if __name__ == "__main__":
    main()
