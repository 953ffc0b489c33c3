"""Train, sample and measure combinations of schedule, predictor and parametrization with the same budget.

    python report/study.py --data_root DIR --work_dir DIR --minutes 60
    python report/study.py --data_root DIR --work_dir DIR --flags "--ch 64" --train_num_steps 20000

The baseline is trained directly with the plain loss. The other parametrization is preconditioned, with loss weights
min(SNR, 5). All runs share budget, network and seed (--seeds names several). The result is the FID-768 of 500 samples
against the validation images in DIR/eval, which must have the model's size (`dataset.py --image_resolution`).
`--sampling` and `--no-clip_x0` say how the samples are drawn; with other values, the same runs are sampled again.

The table gets a row when a run is done. After --minutes or Ctrl-C, unfinished runs are saved, and the same command
resumes them; finished runs are only sampled. `--jobs 2` trains two runs side by side (on a CPU, set OMP_NUM_THREADS to
the cores of each).
"""

import argparse
import asyncio
import itertools
import json
import re
from pathlib import Path

import common
from cli import ArgumentParser, UserError, exit_on_user_error, float_range, int_range, select_device, writable_file
from common import LOSS_WEIGHT_OF, ResultTable, run_program
from fid.inception import PytorchFidInception
from scheduler import MODES, PREDICTORS
from speed import PRECISIONS, select_precision

# A network that trains on a CPU, at the lab's image size and length of the chain.
SMALL = (
    "--image_resolution 64 --patch_size 2 --ch 32 --ch_mult 1 2 2 --attn 2 --num_res_blocks 1 --dropout 0 --hflip "
    "--batch_size 16 --learning_rate 5e-4 --ema_decay 0.999 --max_num_images_per_cat -1"
)
SAMPLING = "--sample_method ddim --eta 1 --num_inference_steps 100"  # a tenth of the cost of all T steps of DDPM
TRAINING = ("mode", "predictor", "parametrization", "loss_weight", "precision", "seed")  # flags of train.py
KEY = (*TRAINING, "steps", "images", "sampling", "clip_x0")


def combinations(args: argparse.Namespace, precision: str) -> list[dict[str, str]]:
    """The settings of the rows that the table should have."""
    budget = args.train_num_steps, args.num_samples, args.sampling, args.clip_x0
    product = itertools.product(args.parametrizations, args.predictors, args.modes, args.seeds)
    rows = [
        (mode, predictor, name, LOSS_WEIGHT_OF[name], precision, seed, *budget)
        for name, predictor, mode, seed in product
    ]
    return [dict(zip(KEY, map(str, row), strict=True)) for row in rows]


def check_same_study(args: argparse.Namespace, has_rows: bool) -> None:
    """UserError unless flags and data are those of the rows so far, which a JSON file beside the table keeps."""
    settings = {"flags": args.flags, "data_root": str(args.data_root.resolve())}
    record = args.out.with_suffix(".json")
    before = json.loads(record.read_text(encoding="utf-8")) if has_rows and record.exists() else settings
    for name, value in settings.items():
        if before[name] != value:
            raise UserError(f"argument --{name}: {record} has {before[name]!r}: choose another --work_dir and --out")
    common.write(record, (json.dumps(settings, indent=2) + "\n").encode())


async def one_run(row: dict[str, str], args: argparse.Namespace, real: Path) -> float:
    """Train or resume the run of a row, sample from it, and return the FID-768 against the images in `real`."""
    folder = (args.work_dir / "-".join(row[name] for name in TRAINING)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["--data_root", args.data_root.resolve(), *args.flags.split(), "--precision", row["precision"]]
    flags += ["--train_num_steps", args.train_num_steps, "--log_interval", args.train_num_steps]
    if begun := list(folder.glob("results/*/*/*/config.json")):
        flags += ["--resume", begun[0].parent]
    else:
        for name in ("mode", "predictor", "parametrization", "loss_weight", "seed"):
            flags += [f"--{name}", row[name]]
    await run_program("train.py", *flags, cwd=folder)

    (checkpoint,) = folder.glob("results/*/*/*/last.ckpt")
    clip = "--clip_x0" if row["clip_x0"] == "True" else "--no-clip_x0"
    samples = folder / re.sub(r"\W+", "-", f"samples {row['steps']} {row['images']} {row['sampling']} {clip}")
    flags = ["--num_samples", row["images"], clip, *row["sampling"].split(), "--precision", row["precision"]]
    result = await common.sample_and_measure(checkpoint, real, samples, flags, ["--dims", 768])
    await run_program("image_grid.py", samples, "--out", samples.with_suffix(".png"), "--count", 32)
    return result["distance"]


async def run_all(rows: list[dict[str, str]], args: argparse.Namespace, real: Path, table: ResultTable) -> bool:
    """Make the rows, `--jobs` at a time, until one fails or the time is over; return whether all are done."""
    slots = asyncio.Semaphore(args.jobs)

    async def make(row: dict[str, str]) -> None:
        async with slots:
            table.add(*row.values(), f"{await one_run(row, args, real):.4f}")

    tasks = [asyncio.create_task(make(row)) for row in rows]
    try:
        done, pending = await asyncio.wait(tasks, timeout=60 * args.minutes, return_when=asyncio.FIRST_EXCEPTION)
    finally:  # also after Ctrl-C, which cancels this coroutine
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # interrupted programs save first
    for task in done:
        task.result()  # raises what the task raised
    return not pending


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data_root", type=Path, required=True, metavar="DIR", help="images, with eval/ at the size of the model")
    add("--work_dir", type=Path, required=True, metavar="DIR", help="folder for runs and samples")
    add("--out", type=writable_file, metavar="FILE", help="table to extend (default: study.csv in --work_dir)")
    add("--flags", default=SMALL, metavar="TEXT", help="train.py flags of all runs (default: a network for a CPU)")
    add("--train_num_steps", type=int_range(1), default=3000, metavar="N", help="of each run")
    add("--num_samples", type=int_range(2), default=500, metavar="N", help="of each run")
    add("--sampling", default=SAMPLING, metavar="TEXT", help="sampling.py flags of all samples")
    add("--clip_x0", action=argparse.BooleanOptionalAction, default=True, help="clamp each predicted x_0 to [-1, 1]")
    add("--jobs", type=int_range(1), default=1, metavar="N", help="runs side by side")
    add("--seeds", type=int_range(0), nargs="+", default=[63], metavar="N", help="training seeds")
    add("--modes", choices=MODES, nargs="+", default=MODES, help="schedules (default: all)")
    add("--predictors", choices=PREDICTORS, nargs="+", default=PREDICTORS, help="predictors (default: all)")
    add(
        "--parametrizations",
        choices=LOSS_WEIGHT_OF,
        nargs="+",
        default=[*LOSS_WEIGHT_OF],
        help="parametrizations (default: both)",
    )
    add("--precision", choices=PRECISIONS, default="auto", help="auto: bf16 or fp16 where it is fast")
    add("--minutes", type=float_range(0, 1e4), default=1e4, metavar="M", help="when to stop (default: when done)")
    args = parser.parse_args()
    args.out = args.out or args.work_dir / "study.csv"
    with exit_on_user_error(interrupted="stopped; the same command resumes"):
        table = ResultTable(args.out, KEY, ["fid768"])
        real = common.find_eval_images(args.data_root)
        PytorchFidInception(768)  # missing weights are downloaded now rather than after the training
        check_same_study(args, has_rows=bool(table.rows))
        rows = combinations(args, select_precision(args.precision, select_device()))
        missing = [row for row in rows if table.find(*row.values()) is None]
        print(f"{len(rows) - len(missing)} of {len(rows)} rows are in {args.out}")
        if missing and not asyncio.run(run_all(missing, args, real, table)):
            print("out of time; the same command resumes")


if __name__ == "__main__":
    main()
