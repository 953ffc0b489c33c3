"""Which predictor, which schedule? Every combination trained alike, as the handout has it and mended.

    python report/study.py --data_root DIR --work_dir DIR --minutes 60
    python report/study.py --data_root DIR --work_dir DIR --flags "--ch 64" --train_num_steps 20000

Each of the 3 schedules x 3 predictors is trained in two forms: directly with the plain loss, and preconditioned with
loss weights of min(SNR, 5). All runs have the same budget and network, and the same seed unless --seeds names several;
the distance is that of 500 samples from the validation images. Samples take 20 steps of DPM-Solver, or with
`--sample_method ddpm` the whole chain, as in the lab; where the network gives the mean itself, only the whole chain
leads to an image. A row is added to the table when a run is done; what was trained already is only sampled. After
--minutes, or Ctrl-C, the runs of the moment are saved, and the same command goes on with them. `--jobs 2` runs two side
by side; on a CPU set OMP_NUM_THREADS to the cores of each. `DIR/eval` must hold the validation images at the size of
the model (`dataset.py --image_resolution`).
"""

import argparse
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "image_diffusion_todo"
sys.path[:0] = [str(PROGRAMS), str(Path(__file__).resolve().parent)]

from cli import ArgumentParser, exit_on_user_error, float_range, int_range, select_device, writable_file
from csv_table import read_table, write_table
from data_folder import check_has_data
from fid.inception import PytorchFidInception
from fid.measure_fid import find_images
from scheduler import MODES, PREDICTORS
from speed import PRECISIONS, uses_bf16
from train import EXIT_INTERRUPTED

# A network that trains on a CPU; the chain is short so that sampling is affordable too.
SMALL = (
    "--image_resolution 32 --ch 32 --ch_mult 1 2 2 --attn 2 --num_res_blocks 1 --dropout 0 --hflip "
    "--num_diffusion_train_timesteps 100 --beta_1 1e-3 --beta_T 0.2 --batch_size 16 --learning_rate 1e-3 "
    "--ema_decay 0.995 --max_num_images_per_cat -1"
)
FORMS = {"direct": "none", "preconditioned": "min-snr"}  # and the loss weight of each
SETTINGS = ("mode", "predictor", "parametrization", "loss_weight", "precision", "seed")
COLUMNS = (*SETTINGS, "steps", "images", "sampler", "fid768")
Setting = tuple[str, str, str, str, str, int]


class OutOfTime(Exception):
    """The minutes are over, or Ctrl-C came."""


class Clock:
    """When to stop: at a deadline, or when told to."""

    def __init__(self, minutes: float):
        self.deadline = time.monotonic() + 60 * minutes
        self.stopped = threading.Event()

    @property
    def over(self) -> bool:
        """Whether it is time to stop."""
        return self.stopped.is_set() or time.monotonic() > self.deadline


def run(command: list[object], cwd: Path, clock: Clock) -> None:
    """Run a program; ask it to stop when the time is over, as Ctrl-C would.

    Raises:
        OutOfTime: when the time was over first, or the program was told to stop by someone else.
        ValueError: when the program failed.
    """
    if clock.over:
        raise OutOfTime
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches this program alone, which passes it on: a second would end them
    )
    while True:
        try:
            process.wait(timeout=0.5)
            break
        except subprocess.TimeoutExpired:
            if clock.over:
                process.send_signal(signal.SIGINT)
                process.wait()
                raise OutOfTime from None
    if process.returncode == EXIT_INTERRUPTED:
        raise OutOfTime
    if process.returncode:
        raise ValueError(f"{command[0]} failed with code {process.returncode}")


def sampler_of(predictor: str, parametrization: str, wanted: str) -> str:
    """How a model is sampled: a mean that the network gives itself does not bear steps left out."""
    return "ddpm" if (predictor, parametrization) == ("mean", "direct") else wanted


def keep_to(settings: dict[str, str], file: Path) -> None:
    """See that a study has the flags that its first finished run had, which `file` keeps.

    Raises:
        ValueError: when it has not.
    """
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else settings
    for name, value in settings.items():
        if before.get(name) != value:
            raise ValueError(
                f"argument --{name}: {value!r} is not what {file} says of the study so far, {before.get(name)!r}: "
                "another study wants another --work_dir and --out"
            )


def check_ready(args: argparse.Namespace) -> None:
    """See that what comes after the training will find what it needs; the Inception weights are fetched now.

    Raises:
        ValueError, OSError: when something is missing.
    """
    check_has_data(args.data_root)
    find_images(args.data_root / "eval")
    PytorchFidInception(768)


def one_run(setting: Setting, args: argparse.Namespace, clock: Clock) -> float:
    """Train (or go on), sample and measure; the distance."""
    mode, predictor, parametrization, loss_weight, precision, seed = setting
    place = (args.work_dir / "-".join(map(str, setting))).resolve()
    place.mkdir(parents=True, exist_ok=True)
    begun = list(place.glob("results/*/*/*/config.json"))
    if begun:
        command = [PROGRAMS / "train.py", "--resume", begun[0].parent]  # which refuses other flags than before
    else:
        command = [PROGRAMS / "train.py", "--mode", mode, "--predictor", predictor, "--seed", seed]
        command += ["--parametrization", parametrization, "--loss_weight", loss_weight]
    command += ["--data_root", args.data_root.resolve(), *args.flags.split(), "--precision", precision]
    command += ["--train_num_steps", args.train_num_steps, "--log_interval", args.train_num_steps]
    run(command, place, clock)
    (checkpoint,) = place.glob("results/*/*/*/last.ckpt")
    method = sampler_of(predictor, parametrization, args.sample_method)
    samples = place / f"samples-{args.train_num_steps}-{args.num_samples}-{method}"
    command = [PROGRAMS / "sampling.py", "--ckpt_path", checkpoint, "--save_dir", samples]
    command += ["--num_samples", args.num_samples, "--sample_method", method, "--precision", precision]
    run(command, place, clock)
    command = [PROGRAMS / "image_grid.py", samples, "--out", samples.with_suffix(".png"), "--count", 32]
    run(command, place, clock)
    result = samples.with_suffix(".json")  # what the FID program says of them
    command = [PROGRAMS / "fid/measure_fid.py", args.data_root.resolve() / "eval", samples, "--dims", 768]
    run([*command, "--json", result], place, clock)
    return json.loads(result.read_text())["distance"]


def main() -> None:
    """The program."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data_root", type=Path, required=True, metavar="DIR", help="images, with eval/ at the size of the model")
    add("--work_dir", type=Path, required=True, metavar="DIR", help="gets runs and samples")
    what = "the table, which is gone on with (default: study.csv in --work_dir)"
    add("--out", type=writable_file, metavar="FILE", help=what)
    add("--flags", default=SMALL, metavar="TEXT", help="of train.py, for all runs (default: a network for a CPU)")
    add("--train_num_steps", type=int_range(1), default=3000, metavar="N", help="of each run (default: 3000)")
    add("--num_samples", type=int_range(2), default=500, metavar="N", help="of each run (default: 500)")
    what = "of the samples; the direct mean takes ddpm (default: dpm)"
    add("--sample_method", choices=["dpm", "ddpm"], default="dpm", help=what)
    add("--jobs", type=int_range(1), default=1, metavar="N", help="runs side by side (default: 1)")
    add("--seeds", type=int_range(0), nargs="+", default=[63], metavar="N", help="(default: 63)")
    add("--modes", choices=MODES, nargs="+", default=MODES, help="schedules (default: all)")
    add("--predictors", choices=PREDICTORS, nargs="+", default=PREDICTORS, help="predictors (default: all)")
    add("--forms", choices=FORMS, nargs="+", default=[*FORMS], help="what the network gives (default: both)")
    what = "of training and samples; auto: bf16 where the hardware has it (default: auto)"
    add("--precision", choices=PRECISIONS, default="auto", help=what)
    add("--minutes", type=float_range(0, 1e4), default=1e4, metavar="M", help="when to stop (default: when done)")
    args = parser.parse_args()
    clock = Clock(args.minutes)
    with exit_on_user_error(interrupted="stopped; the same command goes on"):
        args.work_dir.mkdir(parents=True, exist_ok=True)
        precision = "bf16" if uses_bf16(args.precision, select_device()) else "fp32"
        out = args.out or args.work_dir / "study.csv"
        rows = read_table(out, COLUMNS)
        settings = {"flags": args.flags, "data_root": str(args.data_root.resolve())}
        records = [args.work_dir / "study.json", out.with_suffix(".json")]  # of the runs, and of the rows
        for record in records:
            keep_to(settings, record)
        done = {tuple(row[name] for name in COLUMNS[:-1]) for row in rows}
        writing = threading.Lock()

        def add_row(key: tuple[str, ...], setting: Setting) -> None:
            if clock.over:
                raise OutOfTime
            try:
                distance = one_run(setting, args, clock)
                row = *key, f"{distance:.4f}"
                with writing:
                    for record in records:
                        record.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
                    rows.append(dict(zip(COLUMNS, row, strict=True)))
                    write_table(out, COLUMNS, rows)
            except BaseException:
                clock.stopped.set()  # the other runs are saved, and none is begun
                raise
            print(*row, flush=True)

        wanted = {}
        for form, predictor, mode, seed in itertools.product(args.forms, args.predictors, args.modes, args.seeds):
            sampler = sampler_of(predictor, form, args.sample_method)
            setting = mode, predictor, form, FORMS[form], precision, seed
            wanted[tuple(map(str, (*setting, args.train_num_steps, args.num_samples, sampler)))] = setting
        check_ready(args)
        if there := done & wanted.keys():
            print(f"{len(there)} of {len(wanted)} runs are in {out} already, with these steps and seeds")
        runs = []
        with ThreadPoolExecutor(args.jobs) as pool:
            try:
                runs += [pool.submit(add_row, key, wanted[key]) for key in wanted if key not in done]
                wait(runs)
            finally:  # Ctrl-C may have come
                clock.stopped.set()
        for error in filter(None, (each.exception() for each in runs)):
            if not isinstance(error, OutOfTime):
                raise error
        if any(each.exception() for each in runs):
            print("out of time; the same command goes on")


if __name__ == "__main__":
    main()
