"""Quality against training: the FID-768 and samples of each checkpoint `step=N.ckpt` of a run.

    python report/training_curve.py --run RUN --data_root DIR --save_dir DIR

The table training_curve.csv gets a row for each checkpoint; an interrupted call resumes when it is repeated.
training_curve.svg plots the FID-768 over the steps, training_samples.png shows the same samples at each of them.
`DIR/eval` must hold the validation images at the size of the model (`dataset.py --image_resolution`).
"""

import asyncio
from pathlib import Path

import common
from cli import ArgumentParser, UserError, exit_on_user_error, int_range
from common import measure, plt, read_table, run_program
from data_folder import check_has_data, resolve_root
from fid.image_sets import find_images
from image_grid import contact_sheet
from samplers import METHODS
from sampling import model_hash

COLUMNS = ("steps", "sample_method", "num_inference_steps", "images", "model", "fid768")


def find_checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints that a run kept, by their training steps, in order."""
    found = {int(path.stem[5:]): path for path in run.glob("step=*.ckpt") if path.stem[5:].isdecimal()}
    if not found:
        raise UserError(f"argument --run: {run} holds no step=N.ckpt, which train.py --keep_every N writes")
    return dict(sorted(found.items()))


def draw_curve(rows: list[dict[str, str]]) -> plt.Figure:
    """The FID-768 over the training steps."""
    fig, ax = plt.subplots(figsize=(common.WIDTH / 2, 2.1), layout="constrained")
    ax.plot([int(row["steps"]) for row in rows], [float(row["fid768"]) for row in rows], "o-k", markersize=3)
    ax.set(xlabel="training steps", ylabel="FID-768", xscale="log", yscale="log")
    for axis in (ax.xaxis, ax.yaxis):
        common.label_log_axis(axis)
    ax.grid()
    return fig


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="a folder of train.py")
    add("--data_root", type=Path, required=True, metavar="DIR", help="its data")
    add("--save_dir", type=Path, required=True, metavar="DIR", help="gets a folder of samples for each checkpoint")
    add("--out", **common.OUT)
    add("--num_samples", type=int_range(2), default=500, metavar="N", help="of each checkpoint")
    add("--sample_method", choices=METHODS, default="ddim", help="sampler")
    add("--num_inference_steps", type=int_range(1), default=20, metavar="N", help="of the sampler")
    add("--show", type=int_range(1), default=8, metavar="N", help="samples in the figure")
    args = parser.parse_args()
    with exit_on_user_error(interrupted="stopped; the same command resumes"):
        check_has_data(args.data_root)
        checkpoints, real = find_checkpoints(args.run), find_images(resolve_root(args.data_root) / "eval").path
        table, sampler = args.out / "tables/training_curve.csv", (args.sample_method, str(args.num_inference_steps))
        done = {tuple(row.values())[:4]: row for row in read_table(table, COLUMNS)}
        rows, strips = [], {}
        for step, path in checkpoints.items():
            key, model = (str(step), *sampler, str(args.num_samples)), model_hash(common.load_model(path))
            folder = (args.save_dir / f"step={step}").resolve()
            if done.get(key, {"model": model})["model"] != model:
                raise UserError(f"argument --out: {table} is about another run than {args.run}")
            if key not in done or not folder.exists():
                flags = ["--ckpt_path", path, "--save_dir", folder, "--num_samples", args.num_samples]
                flags += ["--sample_method", args.sample_method, "--num_inference_steps", args.num_inference_steps]
                asyncio.run(run_program("sampling.py", *flags))
            if key not in done:
                result = asyncio.run(measure(real, folder, "--dims", 768))
                done[key] = dict(zip(COLUMNS, (*key, model, f"{result['distance']:.4f}"), strict=True))
                common.write(table, sorted(done.values(), key=lambda row: int(row["steps"])))
            rows.append(done[key])
            print(*done[key].values(), flush=True)
            strips[f"{step:,}"] = contact_sheet(folder, args.show, per_row=args.show)
        common.write(args.out / "figures/training_curve.svg", draw_curve(rows))
        common.write(args.out / "figures/training_samples.png", common.draw_strips(strips))


if __name__ == "__main__":
    main()
