"""Quality against training: the FID-768 and samples of the checkpoints `step=N.ckpt` that a run kept.

    python report/training_curve.py --run RUN --data_root DIR --save_dir DIR --out DIR
    python report/training_curve.py --run RUN --data_root DIR --save_dir DIR --steps 1000 5000 --num_samples 100

tables/training_curve.csv gets a row for each checkpoint; an interrupted call resumes when it is repeated.
figures/training_curve.svg plots the distance over the steps, training_samples.png shows the same samples at each of
them. Samples are clipped as `sampling.py` does by default. `eval/` in the data root must hold the validation images at
the size of the model (`dataset.py --image_resolution`).
"""

import asyncio
from collections.abc import Collection
from pathlib import Path

import common
from cli import ArgumentParser, UserError, exit_on_user_error, int_range
from common import ResultTable, plt
from fid.inception import WIDTHS
from image_grid import contact_sheet
from samplers import METHODS
from sampling import model_hash

KEY = ("steps", "model", "sample_method", "num_inference_steps", "images", "dims")


def find_checkpoints(run: Path, steps: Collection[int] | None = None) -> dict[int, Path]:
    """The checkpoints that a run kept, all or those after some numbers of training steps, in order."""
    found = {int(path.stem[5:]): path for path in run.glob("step=*.ckpt") if path.stem[5:].isdecimal()}
    if not found:
        raise UserError(f"argument --run: {run} holds no step=N.ckpt, which train.py --keep_every N writes")
    if missing := set(steps or ()) - found.keys():
        raise UserError(f"argument --steps: {run} holds no step={min(missing)}.ckpt")
    return {step: found[step] for step in sorted(steps or found)}


def draw_curve(rows: list[dict[str, str]]) -> plt.Figure:
    """The distance over the training steps."""
    fig, ax = plt.subplots(figsize=(common.WIDTH / 2, 2.1), layout="constrained")
    distances = [float(row["distance"]) for row in rows]
    ax.plot([int(row["steps"]) for row in rows], distances, "o-k", markersize=3)
    ax.set(xlabel="training steps", ylabel=f"FID-{rows[0]['dims']}", xlim=(0, None), ylim=(0, 1.1 * max(distances)))
    ax.locator_params(axis="x", nbins=4)
    ax.grid()
    return fig


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="a folder of train.py")
    add("--data_root", type=Path, required=True, metavar="DIR", help="its data")
    add("--save_dir", type=Path, required=True, metavar="DIR", help="gets a folder of samples for each checkpoint")
    add("--out", **common.OUT)
    add("--steps", type=int_range(1), nargs="+", metavar="N", help="which step=N.ckpt (default: all)")
    add("--num_samples", type=int_range(2), default=500, metavar="N", help="of each checkpoint")
    add("--sample_method", choices=METHODS, default="ddim", help="sampler")
    add("--num_inference_steps", type=int_range(1), default=20, metavar="N", help="of the sampler")
    add("--dims", type=int, choices=WIDTHS, default=768, help="features of pytorch-fid's Inception")
    add("--show", type=int_range(1), default=8, metavar="N", help="samples in the figure")
    args = parser.parse_args()
    with exit_on_user_error(interrupted="stopped; the same command resumes"):
        checkpoints, real = find_checkpoints(args.run, args.steps), common.find_eval_images(args.data_root)
        file = args.out / "tables/training_curve.csv"
        table = ResultTable(file, KEY, ["distance"], order=lambda row: int(row["steps"]))
        sampling = ["--num_samples", args.num_samples, "--sample_method", args.sample_method]
        sampling += ["--num_inference_steps", args.num_inference_steps]
        rows, strips = [], {}
        for step, path in checkpoints.items():
            model, folder = model_hash(common.load_model(path)), (args.save_dir / f"step={step}").resolve()
            key = step, model, args.sample_method, args.num_inference_steps, args.num_samples, args.dims
            row = table.find(*key)
            if row is None:
                measuring = ["--dims", args.dims]
                result = asyncio.run(common.sample_and_measure(path, real, folder, sampling, measuring))
                row = table.add(*key, f"{result['distance']:.4f}")
            rows.append(row)
            if folder.exists():
                strips[f"{step:,}"] = contact_sheet(folder, args.show, per_row=args.show)
        common.write(args.out / "figures/training_curve.svg", draw_curve(rows))
        if strips:
            common.write(args.out / "figures/training_samples.png", common.draw_strips(strips))


if __name__ == "__main__":
    main()
