"""FID and KID against the number of function evaluations (NFE) of the network, for each sampler.

    python report/sampling_steps.py --ckpt_path RUN/last.ckpt --data_root DIR --save_dir DIR --out TABLE.csv

Each number of --steps is measured with DPM-Solver and DDIM; the last row is DDPM with all T steps. The first two rows
bound the scale: as many random training images against the same validation images, and images of uniform noise.
`DIR/eval` must hold the validation images at the size of the model (`dataset.py --image_resolution`). The results of
measure_fid.py stand beside the samples, for `figures.py --fid`. An interrupted call resumes when it is repeated. All
rows of a table are of one model, which the table names by a hash. An SVG beside the table plots it.
"""

import argparse
import asyncio
import itertools
import random
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

import common
from cli import ArgumentParser, UserError, exit_on_user_error, int_range, writable_file
from common import measure, plt, read_table, run_program
from data_folder import check_has_data, resolve_root, split_dir
from fid.inception import WIDTHS
from images import list_images, read_image, resize
from samplers import METHODS, sampling_timesteps
from sampling import model_hash
from scheduler import DDPMScheduler

COLUMNS = ("sample_method", "steps", "images", "clip_x0", "distance", "kid", "name", "model")


def real_images(data_root: Path, number: int, resolution: int) -> Iterator[Image.Image]:
    """Random training images.

    Raises:
        UserError: if there are fewer than `number`.
    """
    train = split_dir(data_root, "train")
    files = list_images(train)
    if len(files) < number:
        raise UserError(f"argument --num_samples: {train} has only {len(files)} images to compare with")
    for file in random.Random(0).sample(files, number):
        yield resize(read_image(file), resolution)


def plain_noise(_: Path, number: int, resolution: int) -> Iterator[Image.Image]:
    """Images of independent, uniform pixels."""
    generator = np.random.default_rng(0)
    for _ in range(number):
        yield Image.fromarray(generator.integers(0, 256, (resolution, resolution, 3), dtype=np.uint8))


BOUNDS = {"real images": real_images, "plain noise": plain_noise}  # in the column of the sampler


def settings(methods: Collection[str], steps: Iterable[int], scheduler: DDPMScheduler) -> dict[tuple[str, int], int]:
    """(sampler, NFE) -> --num_inference_steps, which is larger than the NFE where a solver starts below T - 1."""
    T = scheduler.num_train_timesteps
    wanted = [(method, n) for n in sorted(steps) if n <= T for method in ("dpm", "ddim")] + [("ddpm", T)]
    return {(name, len(sampling_timesteps(scheduler, name, n))): n for name, n in wanted if name in methods}


def draw_distances(rows: list[dict[str, str]], num_samples: str) -> plt.Figure:
    """The distance over the NFE of each sampler, clipped or not, for the rows with one number of samples."""
    fig, ax = plt.subplots(figsize=(common.WIDTH / 2, 2.3), layout="constrained")
    rows = [row for row in rows if row["images"] == num_samples]
    for (method, marker), clip in itertools.product(zip(METHODS, "^os", strict=True), (True, False)):
        own = [row for row in rows if (row["sample_method"], row["clip_x0"]) == (method, str(clip))]
        points = sorted((int(row["steps"]), float(row["distance"])) for row in own)
        if points:
            style = {"fillstyle": "full", "linestyle": "-"} if clip else {"fillstyle": "none", "linestyle": "--"}
            label = method + ", not clipped" * (not clip)
            ax.plot(*zip(*points, strict=True), color="black", marker=marker, markersize=4, label=label, **style)
    floor = next(float(row["distance"]) for row in rows if row["sample_method"] == "real images")
    ax.axhline(floor, color="0.6", label="real images")
    ax.set(xlabel="NFE", ylabel=rows[0]["name"], xscale="log", ylim=(0, None))
    common.label_log_axis(ax.xaxis)
    ax.grid()
    ax.legend()
    return fig


def main() -> None:
    """The program."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--ckpt_path", type=Path, required=True, metavar="FILE", help="a trained model")
    add("--data_root", type=Path, required=True, metavar="DIR", help="its data")
    add("--save_dir", type=Path, required=True, metavar="DIR", help="gets a folder of samples for each row")
    add("--out", type=writable_file, required=True, metavar="FILE", help="the table")
    what = "NFE of the solvers, ignored beyond the model's T"
    add("--steps", type=int_range(1), nargs="+", default=[20, 50, 100, 250, 1000], metavar="N", help=what)
    add("--methods", choices=METHODS, nargs="+", default=METHODS, help="samplers (default: all)")
    add("--num_samples", type=int_range(2), default=500, metavar="N", help="images for each row")
    add("--clip_x0", action=argparse.BooleanOptionalAction, default=True, help="clamp each predicted x_0 to [-1, 1]")
    add("--dims", type=int, choices=WIDTHS, default=2048, help="features of pytorch-fid's Inception")
    args = parser.parse_args()
    with exit_on_user_error(interrupted="stopped; the same command resumes"), TemporaryDirectory() as temporary:
        check_has_data(args.data_root)
        data_root = resolve_root(args.data_root)
        ddpm = common.load_model(args.ckpt_path)
        model = model_hash(ddpm)
        rows = read_table(args.out, COLUMNS)
        name = "FID" if args.dims == 2048 else f"FID-{args.dims}"
        if others := {row["name"] for row in rows} - {name}:
            raise UserError(f"argument --dims: {args.out} has rows of {', '.join(others)}, not {name}")
        if any(row["model"] != model for row in rows):
            raise UserError(f"argument --out: {args.out} is about another model than {args.ckpt_path}")
        done = {tuple(row[name] for name in COLUMNS[:4]) for row in rows}

        to_measure = settings(args.methods, args.steps, ddpm.var_scheduler)
        for method, nfe in [*((name, 0) for name in BOUNDS), *to_measure]:
            bound = method in BOUNDS
            key = method, str(nfe), str(args.num_samples), "" if bound else str(args.clip_x0)
            if key in done:
                continue
            parent = Path(temporary if bound else args.save_dir, str(args.num_samples))
            folder = (parent / f"{method}-{nfe}{'-unclipped' * (not args.clip_x0)}").resolve()
            if bound:
                folder.mkdir(parents=True)
                for i, image in enumerate(BOUNDS[method](data_root, args.num_samples, ddpm.image_resolution)):
                    image.save(folder / f"{i}.png")
            else:
                flags = ["--ckpt_path", args.ckpt_path, "--save_dir", folder, "--num_samples", args.num_samples]
                flags += ["--sample_method", method, "--num_inference_steps", to_measure[method, nfe]]
                flags.append("--clip_x0" if args.clip_x0 else "--no-clip_x0")
                asyncio.run(run_program("sampling.py", *flags))
            flags = "--network", "pytorch-fid", "--dims", args.dims, "--kid"
            found = asyncio.run(measure(data_root / "eval", folder, *flags))
            values = *key, f"{found['distance']:.4f}", f"{found['kid']['mean']:.6f}", found["name"], model
            rows.append(dict(zip(COLUMNS, values, strict=True)))
            common.write(args.out, rows)
            print(*values, flush=True)
        common.write(args.out.with_suffix(".svg"), draw_distances(rows, str(args.num_samples)))


if __name__ == "__main__":
    main()
