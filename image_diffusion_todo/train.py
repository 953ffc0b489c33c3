"""Train a DDPM on animal faces.

    python train.py --mode cosine --predictor noise
    python train.py --resume results/predictor_noise/beta_cosine/11-23-204512

A run is written to results/predictor_{predictor}/beta_{mode}/{MM-DD-HHMMSS}/ (cfg_predictor_... with --use_cfg):
config.json, stats.csv, loss.png, last.ckpt, and every --log_interval steps four samples step={N}-{i}.png and the
trajectory of the first, step={N}-traj.png; with --keep_every also step={N}.ckpt.
"""

import argparse
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from atomic import lock_folder
from cli import ArgumentParser, UserError, check_writable, exit_on_user_error, float_range, int_range, note
from data_folder import check_has_data, is_synthetic
from dataset import AFHQDataModule
from distributed import Distributed
from network import PATCH_SIZES
from prediction import LOSS_WEIGHTS, PARAMETRIZATIONS, should_clip_x0
from progress import tqdm
from run_folder import new_run_folder, read_config, save_config
from scheduler import MAX_TIMESTEPS, MODES, PREDICTORS, DDPMScheduler
from speed import AUTO_ON_OFF, PRECISIONS, select_precision, should_compile
from stopping import StopSignals
from trainer import Trainer, build_network

# With the same learning rate, loss weight, device, --compile and --accumulate, a resumed run ends bit for bit like an
# uninterrupted one.
MAY_CHANGE = {"train_num_steps", "learning_rate", "log_interval", "data_root", "device", "gpu"}
MAY_CHANGE |= {"compile", "activation_checkpointing", "accumulate", "keep_every", "clip_x0", "loss_weight", "resume"}
EXIT_INTERRUPTED = 130  # exit code after a requested stop, as shells have it after Ctrl-C
STOP_CHECK_EVERY = 10  # steps, with several processes, which wait for each other at each check


def build_parser(prog: str | None = None) -> ArgumentParser:
    """The flags of train.py."""
    parser = ArgumentParser(prog=prog, description=__doc__)
    count = {"type": int_range(1), "metavar": "N"}

    add = parser.add_argument_group("diffusion").add_argument
    add("--mode", default="linear", choices=MODES, help="beta schedule")
    add("--predictor", default="noise", choices=PREDICTORS, help="what the network predicts")
    help = "output of the network: the prediction itself, or v, of unit variance, from which the prediction follows"
    add("--parametrization", default="direct", choices=PARAMETRIZATIONS, help=help)
    help = "weight of the squared error of x_0 at each timestep: that of the plain loss, SNR, or min(SNR, 5)"
    add("--loss_weight", default="none", choices=LOSS_WEIGHTS, help=help)
    T = int_range(2, MAX_TIMESTEPS)
    add("--num_diffusion_train_timesteps", default=1000, type=T, metavar="T", help="length T of the chain")
    beta = {"type": float_range(1e-9, 0.999), "metavar": "B"}  # float64 cannot tell 1 - 1e-17 from 1
    add("--beta_1", default=1e-4, help="first beta (linear, quad)", **beta)
    add("--beta_T", default=0.02, help="last beta (linear, quad)", **beta)
    add("--use_cfg", action="store_true", help="train with class labels, for classifier-free guidance")
    p = float_range(0, 1)
    add("--cfg_dropout", default=0.1, type=p, metavar="P", help="share of labels dropped, with --use_cfg")
    add("--sample_method", default="ddpm", choices=["ddpm"], help="sampler of the samples during training")
    help = "clamp each predicted x_0 of the samples during training to [-1, 1] (default: not with a direct mean)"
    add("--clip_x0", action=argparse.BooleanOptionalAction, help=help)

    add = parser.add_argument_group("network").add_argument
    help = "side of the patches that are folded into channels: the network works at 1/P of the image size"
    add("--patch_size", default=1, type=int, choices=PATCH_SIZES, metavar="P", help=help)
    add("--ch", default=128, help="channels of the first level", **count)
    add("--ch_mult", default=[1, 2, 2, 2], nargs="+", help="channels per level, times --ch", **count)
    add("--attn", default=[1], type=int_range(0), nargs="*", metavar="LEVEL", help="levels with self-attention")
    add("--num_res_blocks", default=4, help="residual blocks per level", **count)
    add("--dropout", default=0.1, type=float_range(0, 0.99), metavar="P", help="dropout rate")

    add = parser.add_argument_group("data").add_argument
    add("--data_root", default="data/afhq", metavar="DIR", help="folder with train/ and val/, one folder per class")
    help = "images per class, -1 for all"
    add("--max_num_images_per_cat", default=3000, type=int_range(-1), metavar="N", help=help)
    add("--image_resolution", default=64, help="height and width of the images", **count)
    add("--crop", action="store_true", help="take the centre square of each image instead of squeezing it")
    add("--skip_broken", action="store_true", help="skip and list images that cannot be decoded")
    add("--hflip", action="store_true", help="flip images left to right at random")

    add = parser.add_argument_group("training").add_argument
    add("--batch_size", default=16, help="images per step", **count)
    add("--train_num_steps", default=100_000, help="gradient steps", **count)
    add("--learning_rate", default=2e-4, type=p, metavar="LR", help="learning rate of Adam after the warm-up")
    add("--warmup_steps", default=200, type=int_range(0), metavar="N", help="steps of linear warm-up")
    add("--ema_decay", default=0.9999, type=p, metavar="D", help="decay of the averaged weights")
    add("--log_interval", default=2000, help="steps between checkpoints, with samples", **count)
    help = "steps between checkpoints step={N}.ckpt of the averaged weights alone, which all stay; 0: none"
    add("--keep_every", default=0, type=int_range(0), metavar="N", help=help)
    help = "seed of weights, data order and noise"
    add("--seed", default=63, type=int_range(0, 2**32 - 1), metavar="N", help=help)
    help = f"folder of a run to continue; these flags may change: {', '.join(sorted(MAY_CHANGE - {'resume'}))}"
    add("--resume", type=run_folder, metavar="RUN_DIR", help=help)

    add = parser.add_argument_group("speed and memory").add_argument
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, mps; auto: a GPU if there is one")
    add("--gpu", default=0, type=int_range(0), metavar="I", help="index of the GPU")
    help = "precision of the network; auto: bf16 or, on older GPUs, fp16 where it is fast"
    add("--precision", default="auto", choices=PRECISIONS, help=help)
    help = "torch.compile; auto: on GPUs, for long runs"
    add("--compile", default="auto", choices=AUTO_ON_OFF, help=help)
    add("--accumulate", default=1, help="parts of a batch, computed one by one to save memory", **count)
    add("--activation_checkpointing", action="store_true", help="recompute activations, to save memory")
    return parser


def run_folder(text: str) -> Path:
    """An argparse type: the folder of a run, given by its path or by that of its last.ckpt."""
    path = Path(text)
    if path.name in ("last.ckpt", "config.json"):
        return path.parent
    if path.suffix == ".ckpt":
        raise UserError(f"{text!r} holds no state of training: give the folder of the run, or its last.ckpt")
    return path


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; with --resume, the run's settings are the defaults."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.resume:
        saved = read_settings(args.resume)
        parser.set_defaults(**saved)
        args = parser.parse_args(argv)
        conflicts = [name for name in saved.keys() - MAY_CHANGE if getattr(args, name) != saved[name]]
        if conflicts:
            values = ", ".join(f"--{n} {getattr(args, n)} (the run has {saved[n]})" for n in sorted(conflicts))
            parser.error(f"argument --resume: the run was started with other settings: {values}")
    if args.beta_1 > args.beta_T:
        parser.error(f"argument --beta_1: {args.beta_1} is larger than --beta_T, {args.beta_T}")
    if args.clip_x0 is None:
        args.clip_x0 = should_clip_x0(args.predictor, args.parametrization)
    return args


def read_settings(run: Path) -> dict[str, object]:
    """The flags in a run's config.json, checked as on a command line; UserError if it has none."""
    config = read_config(run)
    parser = build_parser(f"{Path(sys.argv[0]).name}: {run / 'config.json'}")  # whose errors name the file
    defaults = vars(parser.parse_args([]))
    if config.keys().isdisjoint(defaults):
        parser.error("it holds no settings of train.py")
    flags = []
    for name, default in defaults.items():
        value = config.get(name, default)
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif isinstance(value, bool):
            flags += [f"--{name}"] if value else [f"--no-{name}"] if default is not False else []
        elif (value, default) != (None, None):  # --resume, and --clip_x0 in older runs
            flags.append(f"--{name}={value}")
    return vars(parser.parse_args(flags))


def train(args: argparse.Namespace, cleanup: ExitStack) -> None:
    """Start or resume a run; a requested stop exits the program. `cleanup` closes what was opened."""
    distributed = Distributed()
    device = distributed.device(args.device, args.gpu)
    args.precision = select_precision(args.precision, device)  # the same when resumed elsewhere
    should_compile(args.compile, device, args.train_num_steps)  # or an error, before there is a folder
    if args.batch_size % (distributed.size * args.accumulate):
        parts = f"{distributed.size} processes of --accumulate {args.accumulate} parts"
        raise UserError(f"argument --batch_size: {args.batch_size} cannot be divided among {parts}")
    with torch.device("meta"):  # wrong settings are found before the data are prepared
        build_network(args, num_classes=1)
    check_has_data(args.data_root)
    data = AFHQDataModule(
        args.data_root,
        batch_size=args.batch_size,
        max_num_images_per_cat=args.max_num_images_per_cat,
        image_resolution=args.image_resolution,
        crop=args.crop,
        skip_broken=args.skip_broken,
    )
    data.check_batch_size()
    check_writable(args.resume or Path("results"))

    distributed.connect(device)
    cleanup.callback(distributed.close)
    distributed.on_rank_zero(data.train_ds.decode)  # into the cache, where the others find the images
    batches = data.train_batches(args.seed, device, distributed.share)

    def claim_folder() -> Path:
        folder = args.resume or new_run_folder(args)
        cleanup.enter_context(lock_folder(folder))
        return folder

    folder = distributed.on_rank_zero(claim_folder)
    dataset_info = {
        "classes": data.train_ds.classes,
        "num_images": len(data.train_ds),
        "fingerprint": data.train_ds.fingerprint,
        "synthetic_faces": is_synthetic(args.data_root),
    }
    seed = (args.seed + distributed.rank) % 2**32  # different noise in each process
    np.random.seed(seed)
    torch.manual_seed(seed)
    trainer = Trainer(args, data.num_classes, device, folder, distributed)
    trainer.ema.classes = data.train_ds.classes if args.use_cfg else None
    if args.resume:
        check_same_data(args, dataset_info)
        trainer.load()
        if trainer.step > args.train_num_steps:
            raise UserError(f"argument --train_num_steps: {folder} is already at step {trainer.step}")
    if distributed.is_rank_zero:
        flags = {name: value for name, value in vars(args).items() if name != "resume"}
        save_config(flags | dataset_info | {"torch": torch.__version__}, data.train_ds.skipped, folder)
        images = f"{dataset_info['num_images']} {'synthetic ' * dataset_info['synthetic_faces']}images"
        where = device if distributed.size == 1 else f"{distributed.size} devices"
        print(f"{folder}: {images}, {data.num_classes} class{'es' * (data.num_classes > 1)}, on {where}")
        if not args.resume:
            check_noise(trainer.model.var_scheduler)

    stopping = False
    bar = tqdm(desc="training", total=args.train_num_steps, initial=trainer.step, **distributed.tqdm_options)
    with StopSignals() as stop, bar:
        while True:
            if trainer.step % args.log_interval == 0 and distributed.on_rank_zero(lambda: not trainer.has_samples):
                trainer.save_and_sample(stop)
            if distributed.size == 1 or trainer.step % STOP_CHECK_EVERY == 0:
                stopping = distributed.any(stop.requested)
            if stopping or trainer.step == args.train_num_steps:
                break
            trainer.train_step(*batches[trainer.step])
            if args.keep_every and trainer.step % args.keep_every == 0:
                trainer.save_averaged()
            bar.update()
            if trainer.stats:
                bar.set_postfix(loss=trainer.stats[-1]["loss"], refresh=False)
        trainer.save()
        distributed.barrier()  # torchrun ends all processes when one ends
    if distributed.is_rank_zero and stopping:
        print(f"stopped at step {trainer.step}; resume with: {trainer.resume_command}")
    elif distributed.is_rank_zero:
        paths = [shlex.quote(str(path)) for path in (folder / "last.ckpt", Path("samples", folder.name))]
        sample = "python sampling.py --ckpt_path {} --save_dir {}".format(*paths)
        print(f"finished at step {trainer.step}; sample with: {sample}")
    if stopping:
        sys.exit(EXIT_INTERRUPTED)  # so that `train.py && sampling.py` stops here


def check_noise(scheduler: DDPMScheduler) -> None:
    """If x_T is far from pure noise, print a note with betas that fit the length of the chain."""
    T = scheduler.num_train_timesteps
    signal = scheduler.alpha_bars[T - 1] ** 0.5
    if signal > 0.05:
        beta_1, beta_T = 0.1 / T, min(20 / T, 0.999)  # the defaults fit T = 1000
        note(f"x_T keeps {signal:.0%} of the image; for {T} timesteps, use --beta_1 {beta_1:.2g} --beta_T {beta_T:.3g}")


def check_same_data(args: argparse.Namespace, dataset_info: dict[str, object]) -> None:
    """Raise a UserError unless the data set is the one that the run was started with."""
    config = read_config(args.resume)
    for name in ("classes", "num_images", "fingerprint"):  # of names and contents
        now, before = dataset_info[name], config.get(name, dataset_info[name])
        if now != before:
            change = f"{name} was {before} and is {now}"
            raise UserError(f"{args.data_root}: not the data that {args.resume} was started with: {change}")


def main() -> None:
    with exit_on_user_error(), ExitStack() as cleanup:
        train(parse_arguments(), cleanup)


if __name__ == "__main__":
    main()
