"""Train, sample and measure combinations of schedule, predictor and parametrization with the same budget.

    python report/study.py --data_root DIR --work_dir DIR --minutes 60
    python report/study.py --data_root DIR --work_dir DIR --flags "--ch 64" --train_num_steps 20000

The baseline is trained directly with the plain loss; the other form is preconditioned and weights the loss by
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
from common import FORMS, measure, read_table, run_program
from data_folder import check_has_data, resolve_root
from fid.image_sets import find_images
from fid.inception import PytorchFidInception
from scheduler import MODES, PREDICTORS
from speed import PRECISIONS, select_precision

# A network that trains on a CPU, at the lab's image size and length of the chain.
SMALL = (
    "--image_resolution 64 --patch_size 2 --ch 32 --ch_mult 1 2 2 --attn 2 --num_res_blocks 1 --dropout 0 --hflip "
    "--batch_size 16 --learning_rate 5e-4 --ema_decay 0.999 --max_num_images_per_cat -1"
)
SAMPLING = "--sample_method ddim --eta 1 --num_inference_steps 100"  # a tenth of the cost of all T steps of DDPM
SETTINGS = ("mode", "predictor", "parametrization", "loss_weight", "precision", "seed")
COLUMNS = (*SETTINGS, "steps", "images", "sampling", "clip_x0", "fid768")


def wanted_rows(args: argparse.Namespace, precision: str) -> list[dict[str, object]]:
    """The rows that the table should have, without their FID."""
    rows = []
    for form, predictor, mode, seed in itertools.product(args.forms, args.predictors, args.modes, args.seeds):
        values = mode, predictor, form, FORMS[form], precision, seed, args.train_num_steps
        values += args.num_samples, args.sampling, args.clip_x0
        rows.append(dict(zip(COLUMNS, map(str, values), strict=False)))
    return rows


def check_same_study(args: argparse.Namespace, has_rows: bool) -> None:
    """Raise UserError unless flags and data are those of the rows so far, which a JSON file beside the table keeps."""
    settings = {"flags": args.flags, "data_root": str(args.data_root.resolve())}
    record = args.out.with_suffix(".json")
    before = json.loads(record.read_text(encoding="utf-8")) if has_rows and record.exists() else settings
    for name, value in settings.items():
        if before[name] != value:
            raise UserError(
                f"argument --{name}: {value!r}, but {record} has {before[name]!r}: choose another --work_dir and --out"
            )
    common.write(record, (json.dumps(settings, indent=2) + "\n").encode())


def check_ready(data_root: Path) -> None:
    """Fail before the training if the data, the eval images or the Inception weights (downloaded now) are missing."""
    check_has_data(data_root)
    find_images(resolve_root(data_root) / "eval")
    PytorchFidInception(768)


async def one_run(row: dict[str, str], args: argparse.Namespace) -> float:
    """Train or resume the run of a row, sample from it, and return the FID-768."""
    folder = (args.work_dir / "-".join(row[name] for name in SETTINGS)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["--data_root", args.data_root.resolve(), *args.flags.split(), "--precision", row["precision"]]
    flags += ["--train_num_steps", args.train_num_steps, "--log_interval", args.train_num_steps]
    if begun := list(folder.glob("results/*/*/*/config.json")):
        flags += ["--resume", begun[0].parent]
    else:
        names = "mode", "predictor", "parametrization", "loss_weight", "seed"
        flags += itertools.chain.from_iterable((f"--{name}", row[name]) for name in names)
    await run_program("train.py", *flags, cwd=folder)

    (checkpoint,) = folder.glob("results/*/*/*/last.ckpt")
    clip = "--clip_x0" if row["clip_x0"] == "True" else "--no-clip_x0"
    settings = " ".join((row["steps"], row["images"], row["sampling"], clip))
    samples = folder / re.sub(r"\W+", "-", f"samples {settings}")
    flags = ["--ckpt_path", checkpoint, "--save_dir", samples, "--num_samples", row["images"], clip]
    await run_program("sampling.py", *flags, *row["sampling"].split(), "--precision", row["precision"])
    await run_program("image_grid.py", samples, "--out", samples.with_suffix(".png"), "--count", 32)
    return (await measure(resolve_root(args.data_root.resolve()) / "eval", samples, "--dims", 768))["distance"]


async def run_all(rows: list[dict[str, str]], args: argparse.Namespace, table: list[dict[str, str]]) -> bool:
    """Make the rows, `--jobs` at a time, until one fails or the time is over; return whether all are done."""
    slots = asyncio.Semaphore(args.jobs)

    async def make(row: dict[str, str]) -> None:
        async with slots:
            row["fid768"] = f"{await one_run(row, args):.4f}"
            table.append(row)
            common.write(args.out, table)
            print(*row.values(), flush=True)

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
    """The program."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data_root", type=Path, required=True, metavar="DIR", help="images, with eval/ at the size of the model")
    add("--work_dir", type=Path, required=True, metavar="DIR", help="gets runs and samples")
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
    add("--forms", choices=FORMS, nargs="+", default=[*FORMS], help="parametrizations (default: both)")
    add("--precision", choices=PRECISIONS, default="auto", help="auto: bf16 or fp16 where it is fast")
    add("--minutes", type=float_range(0, 1e4), default=1e4, metavar="M", help="when to stop (default: when done)")
    args = parser.parse_args()
    args.out = args.out or args.work_dir / "study.csv"
    with exit_on_user_error(interrupted="stopped; the same command resumes"):
        table = read_table(args.out, COLUMNS)
        check_ready(args.data_root)
        check_same_study(args, has_rows=bool(table))
        precision = select_precision(args.precision, select_device())
        rows = wanted_rows(args, precision)
        keys = [{name: row[name] for name in COLUMNS[:-1]} for row in table]
        missing = [row for row in rows if row not in keys]
        print(f"{len(rows) - len(missing)} of {len(rows)} rows are in {args.out}")
        if missing and not asyncio.run(run_all(missing, args, table)):
            print("out of time; the same command resumes")


if __name__ == "__main__":
    main()
