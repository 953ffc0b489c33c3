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
from image_grid import contact_sheet
from sampling import model_hash

METHOD, NFE, DIMS = "ddim", 20, 768  # of sampling.py and measure_fid.py
SHOWN = 8  # samples in the figure
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
    fig, ax = plt.subplots(figsize=(common.WIDTH / 2, 1.8), layout="constrained")
    distances = [float(row["distance"]) for row in rows]
    ax.plot([int(row["steps"]) for row in rows], distances, "ok", markersize=3)
    ax.set(xlabel="training steps", ylabel=f"FID-{DIMS}", xlim=(0, None), yscale="log")
    common.label_log_axis(ax.yaxis)
    ax.locator_params(axis="x", nbins=4)
    ax.grid()
    return fig


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="a folder of train.py")
    add("--data_root", type=Path, required=True, metavar="DIR", help="its data")
    add("--save_dir", type=Path, required=True, metavar="DIR", help="parent folder of the samples of each checkpoint")
    add("--out", **common.OUT)
    add("--steps", type=int_range(1), nargs="+", metavar="N", help="which step=N.ckpt (default: all)")
    add("--num_samples", type=int_range(2), default=500, metavar="N", help="of each checkpoint")
    args = parser.parse_args()
    with exit_on_user_error(interrupted="stopped; the same command resumes"):
        checkpoints, real = find_checkpoints(args.run, args.steps), common.find_eval_images(args.data_root)
        file = args.out / "tables/training_curve.csv"
        table = ResultTable(file, KEY, ["distance"], order=lambda row: int(row["steps"]))
        sampling = ["--num_samples", args.num_samples, "--sample_method", METHOD, "--num_inference_steps", NFE]
        rows, strips = [], {}
        for step, path in checkpoints.items():
            model, folder = model_hash(common.load_model(path)), (args.save_dir / f"step={step}").resolve()
            key = step, model, METHOD, NFE, args.num_samples, DIMS
            row = table.find(*key)
            if row is None:
                result = asyncio.run(common.sample_and_measure(path, real, folder, sampling, ["--dims", DIMS]))
                row = table.add(*key, f"{result['distance']:.4f}")
            rows.append(row)
            if folder.exists():
                strips[f"{step:,}"] = contact_sheet(folder, SHOWN, per_row=SHOWN)
        common.write(args.out / "figures/training_curve.svg", draw_curve(rows))
        if strips:
            common.write(args.out / "figures/training_samples.png", common.draw_strips(strips))


if __name__ == "__main__":
    main()
