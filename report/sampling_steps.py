"""FID and KID against the number of function evaluations (NFE) of the network, for each sampler.

    python report/sampling_steps.py --ckpt_path RUN/last.ckpt --data_root DIR --save_dir DIR --out TABLE.csv

Each number of --steps is measured with DPM-Solver and DDIM; the last row is DDPM with all T steps, for which there is
no --last_timestep. The first two rows bound the scale: as many random training images against the same validation
images, and images of uniform noise. `DIR/eval` must hold the validation images at the size of the model (`dataset.py
--image_resolution`). The results of measure_fid.py stand beside the samples, for `figures.py --fid`. An interrupted
call resumes when it is repeated. All rows of a table are of one model, which the table names by a hash. An SVG beside
the table plots it.
"""

import argparse
import asyncio
import random
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

import common
from cli import ArgumentParser, UserError, exit_on_user_error, int_range, writable_file
from common import ResultTable, plt
from data_folder import resolve_root, split_dir
from fid.inception import WIDTHS
from images import list_images, read_image, resize
from samplers import METHODS, sampling_timesteps
from sampling import model_hash
from scheduler import DDPMScheduler

KEY = ("sample_method", "steps", "images", "clip_x0", "last_timestep")
RESULTS = ("distance", "kid", "name", "model")


def real_images(train: Path, number: int, resolution: int) -> Iterator[Image.Image]:
    """Random images of a folder; UserError if there are fewer than `number`."""
    files = list_images(train)
    if len(files) < number:
        raise UserError(f"argument --num_samples: {train} has only {len(files)} images to compare with")
    for file in random.Random(0).sample(files, number):
        yield resize(read_image(file), resolution)


def plain_noise(number: int, resolution: int) -> Iterator[Image.Image]:
    """Images of independent, uniform pixels."""
    generator = np.random.default_rng(0)
    for _ in range(number):
        yield Image.fromarray(generator.integers(0, 256, (resolution, resolution, 3), dtype=np.uint8))


def settings(
    methods: Collection[str], steps: Iterable[int], scheduler: DDPMScheduler, last: int
) -> dict[tuple[str, int], int]:
    """(sampler, NFE) -> --num_inference_steps, which is larger than the NFE where a solver takes fewer timesteps."""
    T = scheduler.num_train_timesteps
    wanted = [(method, n) for n in sorted(steps) if n <= T for method in ("dpm", "ddim")] + [("ddpm", T)]
    wanted = [(method, n) for method, n in wanted if method in methods]
    try:
        return {(name, len(sampling_timesteps(scheduler, name, n, last_timestep=last))): n for name, n in wanted}
    except ValueError as error:
        raise UserError(f"argument --{error}") from None


def draw_distances(rows: list[dict[str, str]], num_samples: str) -> plt.Figure:
    """The distance over the NFE of each sampler, for the rows with one number of samples."""
    fig, ax = plt.subplots(figsize=(common.WIDTH / 2, 2.5), layout="constrained")
    rows = [row for row in rows if row["images"] == num_samples]
    markers = dict(zip(METHODS, "^os", strict=True))
    curves = {}
    for row in rows:
        if (method := row["sample_method"]) in markers:
            clips, last = row["clip_x0"] == "True", row["last_timestep"]
            label = method + ", not clipped" * (not clips) + f", to t = {last}" * (last != "0")
            style = {"fillstyle": "full" if clips else "none", "color": "black" if last == "0" else "0.5"}
            points, _ = curves.setdefault(label, ([], style | {"marker": markers[method], "markersize": 4}))
            points.append((int(row["steps"]), float(row["distance"])))
    for label, (points, style) in sorted(curves.items()):
        ax.plot(*zip(*sorted(points), strict=True), label=label, **style)
    floor = next(float(row["distance"]) for row in rows if row["sample_method"] == "real images")
    ax.axhline(floor, color="0.7", linestyle="--", label="real images")
    ax.set(xlabel="NFE", ylabel=rows[0]["name"], xscale="log", ylim=(0, None))
    common.label_log_axis(ax.xaxis)
    ax.grid()
    fig.legend(loc="outside lower center", ncols=2)
    return fig


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--ckpt_path", type=Path, required=True, metavar="FILE", help="a trained model")
    add("--data_root", type=Path, required=True, metavar="DIR", help="its data")
    add("--save_dir", type=Path, required=True, metavar="DIR", help="parent folder of the samples of each row")
    add("--out", type=writable_file, required=True, metavar="FILE", help="the table")
    what = "NFE of the solvers, ignored beyond the model's T"
    add("--steps", type=int_range(1), nargs="+", default=[20, 50, 100, 250, 1000], metavar="N", help=what)
    add("--methods", choices=METHODS, nargs="+", default=METHODS, help="samplers (default: all)")
    add("--num_samples", type=int_range(2), default=500, metavar="N", help="images for each row")
    add("--clip_x0", action=argparse.BooleanOptionalAction, default=True, help="clamp each predicted x_0 to [-1, 1]")
    add("--last_timestep", type=int_range(0), default=0, metavar="N", help="of DPM-Solver and DDIM, see sampling.py")
    add("--dims", type=int, choices=WIDTHS, default=2048, help="features of pytorch-fid's Inception")
    args = parser.parse_args()
    number = args.num_samples
    with exit_on_user_error(interrupted="stopped; the same command resumes"):
        real = common.find_eval_images(args.data_root)
        ddpm = common.load_model(args.ckpt_path)
        last = args.last_timestep
        samplers = settings(args.methods, args.steps, ddpm.var_scheduler, last)
        name, model = "FID" if args.dims == 2048 else f"FID-{args.dims}", model_hash(ddpm)
        table = ResultTable(args.out, KEY, RESULTS)
        for row in table.rows:
            if (row["name"], row["model"]) != (name, model):
                raise UserError(f"argument --out: {args.out} has {row['name']} of model {row['model']}, not {model}")
        measuring = ["--dims", args.dims, "--kid"]

        def add_row(key: tuple[object, ...], result: dict) -> None:
            table.add(*key, f"{result['distance']:.4f}", f"{result['kid']['mean']:.6f}", name, model)

        train, size = split_dir(resolve_root(args.data_root), "train"), ddpm.image_resolution
        bounds = {"real images": real_images(train, number, size), "plain noise": plain_noise(number, size)}
        for bound, images in bounds.items():
            key = bound, 0, number, "", ""
            if table.find(*key) is None:
                with TemporaryDirectory() as temporary:
                    folder = Path(temporary, "images")
                    folder.mkdir()
                    for i, image in enumerate(images):
                        image.save(folder / f"{i}.png")
                    add_row(key, asyncio.run(common.measure(real, folder, *measuring)))

        for (method, nfe), steps in samplers.items():
            key = method, nfe, number, args.clip_x0, last
            if table.find(*key) is None:
                suffix = "-unclipped" * (not args.clip_x0) + f"-to-{last}" * (last > 0)
                folder = args.save_dir / str(number) / f"{method}-{nfe}{suffix}"
                sampling = ["--num_samples", number, "--sample_method", method, "--num_inference_steps", steps]
                sampling += ["--clip_x0" if args.clip_x0 else "--no-clip_x0", "--last_timestep", last]
                result = common.sample_and_measure(args.ckpt_path, real, folder.resolve(), sampling, measuring)
                add_row(key, asyncio.run(result))
        common.write(args.out.with_suffix(".svg"), draw_distances(table.rows, str(number)))


if __name__ == "__main__":
    main()
