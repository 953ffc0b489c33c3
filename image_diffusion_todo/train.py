"""Train a DDPM on animal faces.

    python train.py --mode cosine --predictor noise
    python train.py --resume results/predictor_noise/beta_cosine/11-23-204512

Everything that a run makes goes to results/predictor_{predictor}/beta_{mode}/{MM-DD-HHMMSS}/ (cfg_predictor_...
with --use_cfg): config.json, stats.csv, loss.png, last.ckpt, and every --log_interval steps four samples
step={N}-{i}.png and the way to them, step={N}-traj.png.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from atomic import atomic_write, lock_folder
from cli import ArgumentParser, exit_on_user_error, float_range, int_range, one_line
from data_folder import check_has_data, check_writable
from dataset import AFHQDataModule, is_synthetic
from distributed import Distributed
from network import LIMITS
from prediction import LOSS_WEIGHTS, PARAMETRIZATIONS
from scheduler import MODES, PREDICTORS
from speed import AUTO_ON_OFF, PRECISIONS, uses_bf16
from trainer import StopSignals, Trainer, build_network

# What may be changed on --resume. A run that is resumed with the same learning rate, device and parts ends the same.
MAY_CHANGE = {"train_num_steps", "learning_rate", "log_interval", "data_root", "device", "gpu"}
MAY_CHANGE |= {"compile", "activation_checkpointing", "accumulate"}
EXIT_INTERRUPTED = 130  # the exit code of a run that was told to stop, as a shell has it after Ctrl-C
ASK_EVERY = 10  # steps between the questions whether one of several processes was told to stop


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags over, on --resume, the run's own settings, over the defaults."""
    parser = ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # so that a flag that was not given can be told from its default
    )
    defaults = {}

    def add(name: str, default: object, help: str, **how: object) -> None:
        defaults[name] = default
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        parser.add_argument(f"--{name}", help=f"{help} (default: {shown})", **how)

    count = {"type": int_range(1), "metavar": "N"}
    add("mode", "linear", "beta schedule", choices=MODES)
    add("predictor", "noise", "what the network predicts", choices=PREDICTORS)
    what = "what the network gives: the prediction itself, or an output of unit size from which it follows"
    add("parametrization", "direct", what, choices=PARAMETRIZATIONS)
    what = "of each timestep's squared error, in terms of x_0: as the plain loss has it, SNR, or min(SNR, 5)"
    add("loss_weight", "none", what, choices=LOSS_WEIGHTS)
    add("data_root", "data/afhq", "folder that holds train/ and val/, a folder for each class", metavar="DIR")
    add("batch_size", 16, "images a step", **count)
    add("train_num_steps", 100_000, "gradient steps", **count)
    add("learning_rate", 2e-4, "of Adam, after the warm-up", type=float_range(0, 1), metavar="LR")
    add("warmup_steps", 200, "steps over which the learning rate rises", type=int_range(0), metavar="N")
    add("log_interval", 2000, "steps between pictures and checkpoints", **count)
    add("max_num_images_per_cat", 3000, "images of each class, -1 for all", type=int_range(-1), metavar="N")
    add("image_resolution", 64, "height and width", type=int_range(1, LIMITS["image_resolution"]), metavar="N")
    add("skip_broken", False, "leave out images that cannot be decoded, and list them", action="store_true")
    add("hflip", False, "mirror images at random", action="store_true")
    add("seed", 63, "of weights, data order and noise", type=int_range(0, 2**32 - 1), metavar="N")
    add("num_diffusion_train_timesteps", 1000, "T, steps of the chain", type=int_range(2, LIMITS["T"]), metavar="T")
    beta = float_range(0, 1, open_ends=True)
    add("beta_1", 1e-4, "first beta (linear, quad)", type=beta, metavar="B")
    add("beta_T", 0.02, "last beta (linear, quad), at least the first", type=beta, metavar="B")
    add("sample_method", "ddpm", "how the pictures are sampled", choices=["ddpm"])
    add("use_cfg", False, "train with class labels, for guidance", action="store_true")
    add("cfg_dropout", 0.1, "share of labels left out, with --use_cfg", type=float_range(0, 1), metavar="P")
    add("ch", 128, "channels of the first level", type=int_range(32, LIMITS["ch"]), metavar="N")
    mult = int_range(1, LIMITS["ch_mult"])
    add("ch_mult", [1, 2, 2, 2], "channels of each level, times --ch", type=mult, nargs="+", metavar="N")
    add("attn", [1], "levels with attention", type=int_range(0), nargs="*", metavar="LEVEL")
    add("num_res_blocks", 4, "blocks a level", type=int_range(1, LIMITS["num_res_blocks"]), metavar="N")
    add("dropout", 0.1, "share of features left out in training", type=float_range(0, 0.99), metavar="P")
    add("ema_decay", 0.9999, "of the averaged weights, which are sampled from", type=float_range(0, 1), metavar="D")
    add("precision", "auto", "of the network; auto: bf16 where the hardware has it", choices=PRECISIONS)
    add("compile", "auto", "fuse operations; auto: on GPUs, for runs that are long enough", choices=AUTO_ON_OFF)
    add("accumulate", 1, "parts of a batch that are computed one by one, to save memory", **count)
    add("activation_checkpointing", False, "compute activations twice rather than keep them", action="store_true")
    add("device", "auto", "auto takes a GPU if there is one; cpu, cuda, mps", metavar="NAME")
    add("gpu", 0, "index of the GPU", type=int_range(0), metavar="I")
    help = f"go on with that run, in its folder; may be changed then: {', '.join(sorted(MAY_CHANGE))}"
    parser.add_argument("--resume", type=Path, metavar="RUN_DIR", help=help)
    given = vars(parser.parse_args(argv))

    run = given.pop("resume", None)
    saved = {}
    if run:
        saved = _settings_of(run, parser, defaults)
        conflicts = [n for n in given if n not in MAY_CHANGE and given[n] != (defaults | saved)[n]]
        if conflicts:
            said = ", ".join(f"--{n} {given[n]} (the run has {(defaults | saved)[n]})" for n in conflicts)
            parser.error(f"argument --resume: the run was started with other settings: {said}")
    args = argparse.Namespace(**(defaults | saved | given), resume=run)
    if not args.beta_1 <= args.beta_T:
        parser.error(f"argument --beta_1: {args.beta_1} is larger than --beta_T, {args.beta_T}")
    return args


def _settings_of(run: Path, parser: ArgumentParser, names: Iterable[str]) -> dict[str, Any]:
    """The flags in a run's config.json, checked as if they had been given."""
    path = run / "config.json"
    try:
        config = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        parser.error(f"argument --resume: {str(run)!r} is not the folder of a run: it has no readable config.json")
    settings = {name: config[name] for name in names if name in config}
    if not settings:
        parser.error(f"argument --resume: {path} holds no settings")
    flags = []
    for name, value in settings.items():
        if value is not False:
            values = value if isinstance(value, list) else [] if value is True else [value]
            flags += [f"--{name}", *map(str, values)]
    parser.prog, prog = f"{parser.prog}: {path}", parser.prog  # who is to blame for a bad value
    settings |= vars(parser.parse_args(flags))
    parser.prog = prog
    return settings


def new_run_folder(args: argparse.Namespace) -> Path:
    """Make results/predictor_{predictor}/beta_{mode}/{MM-DD-HHMMSS}, with -2, -3, ... where that is taken."""
    parent = Path("results") / f"{'cfg_' * args.use_cfg}predictor_{args.predictor}" / f"beta_{args.mode}"
    second = datetime.now().strftime("%m-%d-%H%M%S")
    for suffix in ("", *(f"-{k}" for k in range(2, 1000))):
        try:
            (parent / (second + suffix)).mkdir(parents=True)
            return parent / (second + suffix)
        except FileExistsError:
            continue
    raise FileExistsError(f"{parent / second}: too many runs of one second")


def train(args: argparse.Namespace, cleanup: ExitStack) -> None:
    """Train as the flags say; resumes when `args.resume` names a run. What must be given back goes to `cleanup`.

    Raises:
        ValueError, OSError: for settings or files that do not fit, with a line for the user.
        SystemExit: with the code `EXIT_INTERRUPTED`, after a stop that was asked for.
    """
    processes = Distributed()
    device = processes.device(args.device, args.gpu)
    args.precision = "bf16" if uses_bf16(args.precision, device) else "fp32"  # a resumed run keeps what this one has
    if args.batch_size % (processes.size * args.accumulate):
        parts = f"{processes.size} processes of --accumulate {args.accumulate} parts"
        raise ValueError(f"argument --batch_size: {args.batch_size} cannot be shared by {parts}")
    with torch.device("meta"):  # what does not fit together shall not be found out after the data were prepared
        build_network(args, num_classes=1)
    check_has_data(args.data_root)
    data = AFHQDataModule(
        args.data_root,
        batch_size=args.batch_size,
        max_num_images_per_cat=args.max_num_images_per_cat,
        image_resolution=args.image_resolution,
        skip_broken=args.skip_broken,
    )
    data.check_batch_size()
    check_writable(args.resume or Path("results"))
    processes.connect(device)
    cleanup.callback(processes.close)
    processes.on_rank_zero(data.train_ds.decode)  # the others find the images decoded
    batches = data.train_batches(args.seed, device, processes.share)

    def claim_folder() -> Path:
        folder = args.resume or new_run_folder(args)
        cleanup.enter_context(lock_folder(folder))
        return folder

    folder = processes.on_rank_zero(claim_folder)

    seed = (args.seed + processes.rank) % 2**32  # each process has noise of its own
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    trainer = Trainer(args, data.num_classes, device, folder, processes)
    facts = {
        "classes": data.train_ds.classes,
        "num_images": len(data.train_ds),
        "synthetic_faces": is_synthetic(args.data_root),
        "torch": torch.__version__,
    }
    if args.resume:
        check_same_data(args, facts)
        trainer.load()
        if trainer.step > args.train_num_steps:
            raise ValueError(f"argument --train_num_steps: {folder} is already at step {trainer.step}")
    processes.on_rank_zero(lambda: save_config(args, facts, data.train_ds.skipped, folder))
    if processes.is_rank_zero:
        on = f"{device}" if processes.size == 1 else f"{processes.size} devices"
        images = f"{facts['num_images']} {'drawn ' * facts['synthetic_faces']}images"
        print(f"{folder}: {images}, {data.num_classes} class{'es' * (data.num_classes > 1)}, on {on}")

    bar = tqdm(desc="training", total=args.train_num_steps, initial=trainer.step, **processes.tqdm_options)
    with StopSignals() as stop, bar:
        while True:
            due = trainer.step % args.log_interval == 0
            if due and processes.on_rank_zero(lambda: not trainer.has_samples):
                trainer.save_and_sample(stop)
            # To ask all processes makes them wait for each other: not every step.
            asks = processes.size == 1 or trainer.step % ASK_EVERY == 0
            stopping = asks and processes.any(stop.requested)
            if stopping or trainer.step == args.train_num_steps:
                break
            trainer.train_step(*batches[trainer.step])
            bar.update()
            if trainer.stats:
                bar.set_postfix(loss=trainer.stats[-1]["loss"], refresh=False)
        trainer.save()
        processes.barrier()  # none ends before the first has saved: torchrun would end the others then
    if not processes.is_rank_zero:
        sys.exit(EXIT_INTERRUPTED if stopping else 0)
    python = "python" if processes.size == 1 else f"torchrun --nproc_per_node {processes.size}"
    if stopping:
        print(f"stopped at step {trainer.step}; go on with: {python} train.py --resume {folder}")
        sys.exit(EXIT_INTERRUPTED)  # so that `train.py && sampling.py` goes no further
    else:
        sample = f"python sampling.py --ckpt_path {folder / 'last.ckpt'} --save_dir samples/{folder.name}"
        print(f"finished at step {trainer.step}; sample with: {sample}")


def save_config(args: argparse.Namespace, facts: dict[str, Any], skipped: list[str], folder: Path) -> None:
    """config.json, and which images were left out."""
    config = {name: value for name, value in vars(args).items() if name != "resume"} | facts
    with atomic_write(folder / "config.json") as file:
        file.write((json.dumps(config, indent=2) + "\n").encode())
    if skipped:
        with atomic_write(folder / "skipped.txt") as file:
            file.write("".join(one_line(reason) + "\n" for reason in skipped).encode())
        print(f"{len(skipped)} broken images are left out; {folder / 'skipped.txt'} lists them")


def check_same_data(args: argparse.Namespace, facts: dict[str, Any]) -> None:
    """See that a resumed run gets the images that it was started with.

    Raises:
        ValueError: when their number or the classes are others.
    """
    before = json.loads((args.resume / "config.json").read_text())
    for name in ("classes", "num_images"):
        if before.get(name, facts[name]) != facts[name]:
            raise ValueError(
                f"{args.data_root}: {name} is {facts[name]} now, and was {before[name]} when {args.resume} was started"
            )


def main() -> None:
    """The program: errors in what the user gave are one line and exit code 2."""
    with exit_on_user_error(), ExitStack() as cleanup:
        train(parse_arguments(), cleanup)


if __name__ == "__main__":
    main()
