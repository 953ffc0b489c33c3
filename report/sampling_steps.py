"""The distance of samples from real images against the number of network calls, for each way of sampling.

    python report/sampling_steps.py --ckpt_path RUN/last.ckpt --data_root DIR --save_dir DIR --out TABLE.csv

Each number of --steps is tried with both solvers; the last row is DDPM's whole chain. The first rows of the table are
the floor and a ceiling: as many real training images, drawn at random, against the same validation images, and images
of plain noise. `DIR/eval` must hold the validation images at the size of the model (`dataset.py --image_resolution`).
What the FID program said lies beside the samples, for `figures.py --fid`. Stopped and called again, it goes on. A table
is about one model, which it names by a fingerprint.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "image_diffusion_todo"
sys.path[:0] = [str(PROGRAMS), str(Path(__file__).resolve().parent)]

from cli import ArgumentParser, exit_on_user_error, int_range, writable_file
from csv_table import read_table, write_table
from data_folder import check_has_data
from images import list_images, read_image, resize
from model import DiffusionModule
from samplers import METHODS, sampling_timesteps
from sampling import model_hash
from scheduler import DDPMScheduler

COLUMNS = ("sample_method", "steps", "images", "distance", "name", "model")


def run(*command: object) -> None:
    """Run one of Task 2's programs; ValueError when it failed, of which it has said why."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=PROGRAMS, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise ValueError(f"{command[0]} failed with code {done.returncode}")


def distance(gt_dir: Path, gen_dir: Path, dims: int, result: Path) -> tuple[str, str]:
    """The value and name that fid/measure_fid.py finds and writes to `result`."""
    run("fid/measure_fid.py", gt_dir.resolve(), gen_dir.resolve(), "--dims", dims, "--json", result.resolve())
    found = json.loads(result.read_text())
    return f"{found['distance']:.4f}", found["name"]


def real_images(data_root: Path, number: int, resolution: int) -> Iterator[Image.Image]:
    """So many training images, drawn at random.

    Raises:
        ValueError: when there are not so many.
    """
    files = list_images(data_root / "train")
    if len(files) < number:
        raise ValueError(f"argument --num_samples: {data_root / 'train'} has only {len(files)} images to compare with")
    for file in random.Random(0).sample(files, number):
        yield resize(read_image(file), resolution)


def plain_noise(_: Path, number: int, resolution: int) -> Iterator[Image.Image]:
    """So many images whose pixels are drawn evenly and one by one."""
    generator = np.random.default_rng(0)
    for _ in range(number):
        yield Image.fromarray(generator.integers(0, 256, (resolution, resolution, 3), dtype=np.uint8))


LANDMARKS = {"real images": real_images, "plain noise": plain_noise}  # in place of a method


def distance_of(images: Iterable[Image.Image], gt_dir: Path, dims: int) -> tuple[str, str]:
    """The value and name of the distance of these images."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "images"
        place.mkdir()
        for i, image in enumerate(images):
            image.save(place / f"{i}.png")
        return distance(gt_dir, place, dims, Path(folder) / "fid.json")


def ways(methods: Collection[str], steps: Iterable[int], scheduler: DDPMScheduler) -> dict[tuple[str, int], int]:
    """What to measure, what takes longest last: the solvers with each number of steps up to T, and the whole chain.

    Returns:
        For each method and number of steps that it takes, the number to ask for. They differ where a solver is asked
        for nearly all timesteps, since it begins at the last one with a trace of the image (`start_timestep`).
    """
    T = scheduler.num_train_timesteps
    wanted = [(method, n) for n in sorted(steps) if n <= T for method in ("dpm", "ddim")] + [("ddpm", T)]
    return {(name, len(sampling_timesteps(scheduler, name, n))): n for name, n in wanted if name in methods}


def main() -> None:
    """The program."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ckpt_path", type=Path, required=True, metavar="FILE", help="a trained model")
    add("--data_root", type=Path, required=True, metavar="DIR", help="its data")
    add("--save_dir", type=Path, required=True, metavar="DIR", help="gets a folder of samples for each way")
    add("--out", type=writable_file, required=True, metavar="FILE", help="the table")
    default = [20, 50, 100, 250, 1000]
    what = f"network calls of the solvers (default: {' '.join(map(str, default))}; none beyond the model's T)"
    add("--steps", type=int_range(1), nargs="+", default=default, metavar="N", help=what)
    add("--methods", choices=METHODS, nargs="+", default=METHODS, help="ways of sampling (default: all)")
    add("--num_samples", type=int_range(2), default=500, metavar="N", help="images for each way (default: 500)")
    add("--dims", type=int, default=2048, metavar="D", help="features of the distance (default: 2048)")
    args = parser.parse_args()
    with exit_on_user_error(interrupted="stopped; the same command goes on"):
        check_has_data(args.data_root)
        ddpm = DiffusionModule(None, None).eval()
        ddpm.load(args.ckpt_path)
        to_measure = ways(args.methods, args.steps, ddpm.var_scheduler)
        rows = read_table(args.out, COLUMNS)
        name = "FID" if args.dims == 2048 else f"FID-{args.dims}"
        if others := {row["name"] for row in rows} - {name}:
            raise ValueError(f"argument --dims: {args.out} has {', '.join(others)}, which {name} cannot stand beside")
        model = model_hash(ddpm)
        if any(row["model"] != model for row in rows):
            raise ValueError(f"argument --out: {args.out} is about another model than {args.ckpt_path}")
        done = {tuple(row[name] for name in COLUMNS[:3]) for row in rows}

        for method, steps in [*((name, 0) for name in LANDMARKS), *to_measure]:
            key = method, str(steps), str(args.num_samples)
            if key in done:
                continue
            if method in LANDMARKS:
                images = LANDMARKS[method](args.data_root, args.num_samples, ddpm.image_resolution)
                found = distance_of(images, args.data_root / "eval", args.dims)
            else:
                folder = (args.save_dir / str(args.num_samples) / f"{method}-{steps}").resolve()
                command = ["sampling.py", "--ckpt_path", args.ckpt_path.resolve(), "--save_dir", folder]
                command += ["--num_samples", args.num_samples, "--sample_method", method]
                run(*command, "--num_inference_steps", to_measure[method, steps])
                found = distance(args.data_root / "eval", folder, args.dims, folder.with_suffix(".json"))
            rows.append(dict(zip(COLUMNS, (*key, *found, model), strict=True)))
            write_table(args.out, COLUMNS, rows)
            print(*key, *found, flush=True)


if __name__ == "__main__":
    main()
