"""The distance of samples from real images against the number of network calls, for each way of sampling.

    python report/sampling_steps.py --ckpt_path RUN/last.ckpt --data_root DIR --save_dir DIR --out TABLE.csv

`DIR/eval` must hold the validation images at the size of the model (`dataset.py --image_resolution`). The first row of
the table is the floor: as many real training images, drawn at random, against the same validation images. Stopped and
called again, it goes on.
"""

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "image_diffusion_todo"
sys.path.insert(0, str(PROGRAMS))

from checkpoint import read_checkpoint
from images import list_images, read_image, resize
from options import OneLineParser, errors_in_one_line, integer_from, writable_file

WAYS = [("ddpm", None), ("dpm", 20), ("ddim", 50), ("dpm", 10), ("dpm", 50), ("ddim", 20), ("ddim", 100)]
COLUMNS = ("sample_method", "steps", "images", "distance", "name", "seconds")


def run(*command: object) -> None:
    """Run one of Task 2's programs; ValueError when it failed, of which it has said why."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=PROGRAMS, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise ValueError(f"{command[0]} failed with code {done.returncode}")


def distance(gt_dir: Path, gen_dir: Path, dims: int) -> tuple[str, float]:
    """The name and value that fid/measure_fid.py finds."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "fid.json"
        run("fid/measure_fid.py", gt_dir.resolve(), gen_dir.resolve(), "--dims", dims, "--json", result)
        found = json.loads(result.read_text())
    return found["name"], found["distance"]


def floor(data_root: Path, number: int, resolution: int, dims: int) -> tuple[str, float]:
    """The distance of so many real training images, drawn at random, from the validation images."""
    files = random.Random(0).sample(list_images(data_root / "train"), number)
    with tempfile.TemporaryDirectory() as folder:
        for i, file in enumerate(files):
            resize(read_image(file), resolution).save(Path(folder) / f"{i}.png")
        return distance(data_root / "eval", Path(folder), dims)


def main() -> None:
    """The program."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ckpt_path", type=Path, required=True, metavar="FILE", help="a trained model")
    add("--data_root", type=Path, required=True, metavar="DIR", help="its data")
    add("--save_dir", type=Path, required=True, metavar="DIR", help="gets a folder of samples for each way")
    add("--out", type=writable_file, required=True, metavar="FILE", help="the table")
    add("--num_samples", type=integer_from(2), default=500, metavar="N", help="images for each way (default: 500)")
    add("--dims", type=int, default=2048, metavar="D", help="features of the distance (default: 2048)")
    args = parser.parse_args()
    with errors_in_one_line(if_stopped="stopped; the same command goes on"):
        network = read_checkpoint(args.ckpt_path)["network"]
        rows = list(csv.DictReader(args.out.open())) if args.out.exists() else []
        done = {(row["sample_method"], row["steps"]) for row in rows}

        def keep(method: str, steps: int, name: str, value: float, seconds: float) -> None:
            row = method, steps, args.num_samples, f"{value:.4f}", name, f"{seconds:.0f}"
            rows.append(dict(zip(COLUMNS, row, strict=True)))
            with args.out.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            print(*row, flush=True)

        if ("real images", "0") not in done:
            keep("real images", 0, *floor(args.data_root, args.num_samples, network["image_resolution"], args.dims), 0)
        for method, steps in WAYS:
            number = steps or network["T"]
            if number > network["T"] or (method, str(number)) in done:
                continue
            folder = args.save_dir / f"{method}-{number}"
            command = ["sampling.py", "--ckpt_path", args.ckpt_path.resolve(), "--save_dir", folder.resolve()]
            command += ["--num_samples", args.num_samples, "--sample_method", method]
            command += ["--num_inference_steps", steps] if steps else []
            started = time.perf_counter()
            run(*command)
            seconds = time.perf_counter() - started
            keep(method, number, *distance(args.data_root / "eval", folder, args.dims), seconds)


if __name__ == "__main__":
    main()
