"""Train a DDPM on animal faces.

    python train.py --mode cosine --predictor noise
    python train.py --resume results/predictor_noise/beta_cosine/11-23-204512

Everything that a run makes goes to results/predictor_{predictor}/beta_{mode}/{MM-DD-HHMMSS}/ (cfg_predictor_...
with --use_cfg): config.json, stats.csv, loss.png, last.ckpt, and every --log_interval steps four samples
step={N}-{i}.png and the way to them, step={N}-traj.png.
"""

import argparse
import copy
import csv
import json
import random
import signal
import sys
import time
from datetime import datetime
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from dataset import AFHQDataModule, get_data_iterator, is_drawn, tensor_to_pil_image
from model import DiffusionModule, read_checkpoint
from network import UNet
from options import OneLineParser, choose_device, integer_from, number_between
from pictures import follow, trajectory_picture
from scheduler import MODES, PREDICTORS, DDPMScheduler

STATS_EVERY = 50  # steps that share a row of stats.csv; their losses are read from the device at once
MAY_CHANGE = {"train_num_steps", "log_interval", "device", "gpu"}  # on --resume


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags over, on --resume, the run's own settings, over the defaults."""
    parser = OneLineParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # so that a flag that was not given can be told from its default
    )
    defaults = {}

    def add(name: str, default: object, help: str, **how: object) -> None:
        defaults[name] = default
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        parser.add_argument(f"--{name}", help=f"{help} (default: {shown})", **how)

    add("mode", "linear", "beta schedule", choices=MODES)
    add("predictor", "noise", "what the network predicts", choices=PREDICTORS)
    add("data_root", "data/afhq", "folder that holds train/ and val/, a folder for each class", metavar="DIR")
    add("batch_size", 16, "images a step", type=integer_from(1), metavar="N")
    add("train_num_steps", 100_000, "gradient steps", type=integer_from(1), metavar="N")
    add("learning_rate", 2e-4, "of Adam, after the warm-up", type=number_between(0, 1), metavar="LR")
    add("warmup_steps", 200, "steps over which the learning rate rises", type=integer_from(0), metavar="N")
    add("log_interval", 2000, "steps between pictures and checkpoints", type=integer_from(1), metavar="N")
    add("max_num_images_per_cat", 3000, "images of each class, -1 for all", type=integer_from(-1), metavar="N")
    add("image_resolution", 64, "height and width", type=integer_from(1), metavar="N")
    add("hflip", False, "mirror images at random", action="store_true")
    add("seed", 63, "of weights, data order and noise", type=integer_from(0, 2**32 - 1), metavar="N")
    add("num_diffusion_train_timesteps", 1000, "T", type=integer_from(1), metavar="T")
    add("beta_1", 1e-4, "first beta (linear, quad)", type=number_between(0, 1), metavar="B")
    add("beta_T", 0.02, "last beta (linear, quad)", type=number_between(0, 1), metavar="B")
    add("sample_method", "ddpm", "how the pictures are sampled", choices=["ddpm"])
    add("use_cfg", False, "train with class labels, for guidance", action="store_true")
    add("cfg_dropout", 0.1, "share of labels left out, with --use_cfg", type=number_between(0, 1), metavar="P")
    add("ch", 128, "channels of the first level", type=integer_from(32), metavar="N")
    add("ch_mult", [1, 2, 2, 2], "channels of each level, times --ch", type=integer_from(1), nargs="+", metavar="N")
    add("attn", [1], "levels with attention", type=integer_from(0), nargs="*", metavar="LEVEL")
    add("num_res_blocks", 4, "blocks a level", type=integer_from(1), metavar="N")
    add("dropout", 0.1, "share of features left out in training", type=number_between(0, 0.99), metavar="P")
    add("ema_decay", 0.9999, "of the averaged weights, which are sampled from", type=number_between(0, 1), metavar="D")
    add("device", "auto", "auto, cpu, cuda, mps", metavar="NAME")
    add("gpu", 0, "index of the GPU", type=integer_from(0), metavar="I")
    parser.add_argument("--resume", type=Path, metavar="RUN_DIR", help="go on with that run, in its folder")
    given = vars(parser.parse_args(argv))

    run = given.pop("resume", None)
    saved = {}
    if run:
        try:
            saved = json.loads((run / "config.json").read_text())
        except (OSError, ValueError):
            parser.error(f"argument --resume: {str(run)!r} is not the folder of a run: it has no readable config.json")
        saved = {name: saved[name] for name in defaults if name in saved}
        conflicts = [n for n in given if n not in MAY_CHANGE and n in saved and given[n] != saved[n]]
        if conflicts:
            said = ", ".join(f"--{n} {given[n]} (the run has {saved[n]})" for n in conflicts)
            parser.error(f"argument --resume: the run was started with other settings: {said}")
    return argparse.Namespace(**(defaults | saved | given), resume=run)


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


class EMA:
    """An exponential moving average of weights (DDPM, App. B), which samples better than the last weights.

    With a warm-up: after n steps the decay is at most (1 + n) / (10 + n), so that short runs are not
    weighed down by their random start.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)


class Trainer:
    """The state of a run (network, average, optimizer, step) and what is written of it."""

    def __init__(self, args: argparse.Namespace, num_classes: int, device: torch.device, folder: Path):
        self.args, self.folder, self.device = args, folder, device
        network = UNet(
            T=args.num_diffusion_train_timesteps,
            image_resolution=args.image_resolution,
            ch=args.ch,
            ch_mult=args.ch_mult,
            attn=args.attn,
            num_res_blocks=args.num_res_blocks,
            dropout=args.dropout,
            use_cfg=args.use_cfg,
            cfg_dropout=args.cfg_dropout,
            num_classes=num_classes if args.use_cfg else None,
        )
        schedule = DDPMScheduler(args.num_diffusion_train_timesteps, args.beta_1, args.beta_T, args.mode)
        self.ddpm = DiffusionModule(network, schedule, args.predictor).to(device)
        self.ema = EMA(self.ddpm.network, args.ema_decay)
        self.optimizer = torch.optim.Adam(self.ddpm.network.parameters(), lr=args.learning_rate)
        self.step = 0
        self.stats: list[dict] = []  # rows of stats.csv
        self.recent: list[torch.Tensor] = []  # losses since the last row, still on the device
        self.row_started = time.perf_counter()

    # One step.

    def train_step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """A gradient step on images [B, 3, H, W] in [-1, 1] and labels [B]."""
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True) if self.args.use_cfg else None
        if self.args.hflip:
            mirrored = torch.rand(len(images), 1, 1, 1, device=self.device) < 0.5
            images = torch.where(mirrored, images.flip(3), images)

        rate = self.args.learning_rate * min(1.0, (self.step + 1) / max(1, self.args.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.ddpm.get_loss(images, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        self.ema.update(self.ddpm.network, self.step)

        self.recent.append(loss.detach())
        if len(self.recent) == STATS_EVERY or self.step == self.args.train_num_steps:
            mean_loss = torch.stack(self.recent).mean().item()
            seconds = time.perf_counter() - self.row_started
            self.stats.append(
                {
                    "step": self.step,
                    "loss": f"{mean_loss:.6f}",
                    "learning_rate": f"{rate:.3g}",
                    "images_per_second": f"{len(self.recent) * len(images) / seconds:.2f}",
                }
            )
            self.recent = []
            self.row_started = time.perf_counter()

    # Pictures, numbers, checkpoints.

    def draw(self) -> None:
        """Four samples of the averaged weights and the way to them, from one chain of one batch."""
        started = time.perf_counter()
        ddpm = DiffusionModule(self.ema.network, self.ddpm.var_scheduler, self.args.predictor)
        classes = self.ddpm.network.num_classes
        labels = torch.arange(4, device=self.device) % classes + 1 if self.args.use_cfg else None
        frames = follow(ddpm.reverse_process(4, labels), self.args.num_diffusion_train_timesteps)
        for i, image in enumerate(tensor_to_pil_image(frames[-1])):
            image.save(self.folder / f"step={self.step}-{i}.png")
        trajectory_picture(frames).save(self.folder / f"step={self.step}-traj.png")
        self.row_started += time.perf_counter() - started  # pictures do not count as training time

    def write_stats(self) -> None:
        """stats.csv and loss.png, made anew."""
        with (self.folder / "stats.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["step", "loss", "learning_rate", "images_per_second"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.stats)
        fig, ax = plt.subplots(figsize=(8, 4))
        ax.plot([r["step"] for r in self.stats], [float(r["loss"]) for r in self.stats], linewidth=0.8)
        ax.set(xlabel="step", ylabel=f"loss, mean of {STATS_EVERY} steps", yscale="log")
        ax.set_title(f"{self.args.predictor} predictor, {self.args.mode} schedule")
        ax.grid(alpha=0.3)
        fig.savefig(self.folder / "loss.png", dpi=110, bbox_inches="tight")
        plt.close(fig)

    def save(self) -> None:
        """last.ckpt: a `DiffusionModule` of the averaged weights, and what training needs to go on."""
        averaged = DiffusionModule(self.ema.network, self.ddpm.var_scheduler, self.args.predictor)
        checkpoint = averaged.checkpoint() | {
            "training": {
                "step": self.step,
                "network": self.ddpm.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "stats": self.stats,
                "recent": [loss.item() for loss in self.recent],
                "random": random_states(),
            }
        }
        partial = self.folder / "last.ckpt.partial"
        torch.save(checkpoint, partial)
        partial.replace(self.folder / "last.ckpt")

    def load(self) -> None:
        """Take up the state of the folder's last.ckpt.

        Raises:
            OSError, ValueError: when there is no such checkpoint, or it is not one of this run.
        """
        path = self.folder / "last.ckpt"
        checkpoint = read_checkpoint(path)
        try:
            training = checkpoint["training"]
            self.ema.network.load_state_dict(checkpoint["state_dict"])
            self.ddpm.network.load_state_dict(training["network"])
            self.optimizer.load_state_dict(training["optimizer"])
            self.step, self.stats = training["step"], training["stats"]
            self.recent = [torch.tensor(loss, device=self.device) for loss in training["recent"]]
            restore_random_states(training["random"])
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise ValueError(f"{path}: cannot be resumed from: {' '.join(str(error).split())}") from error


def random_states() -> dict:
    """The states of all generators that training draws from, as plain data."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict) -> None:
    """The reverse of `random_states`."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


class StopSignals:
    """Ctrl-C and SIGTERM ask for a stop after the present step; `requested` says whether one came."""

    def __init__(self) -> None:
        self.requested = False

    def _request(self, *_: object) -> None:
        self.requested = True

    def __enter__(self) -> "StopSignals":
        self._previous = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def train(args: argparse.Namespace) -> None:
    """Train as the flags say; resumes when `args.resume` names a run.

    Raises:
        ValueError, OSError: for settings or files that do not fit, with a line for the user.
    """
    device = choose_device(args.device, args.gpu)
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)

    data = AFHQDataModule(
        args.data_root,
        batch_size=args.batch_size,
        max_num_images_per_cat=args.max_num_images_per_cat,
        image_resolution=args.image_resolution,
    )
    loader = data.train_dataloader()
    trainer = Trainer(args, data.num_classes, device, args.resume or Path())
    if args.resume:
        trainer.load()
    else:
        trainer.folder = new_run_folder(args)
        facts = {"drawn_faces": is_drawn(args.data_root), "num_classes": data.num_classes, "torch": torch.__version__}
        config = {name: value for name, value in vars(args).items() if name != "resume"} | facts
        (trainer.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    drawn = "drawn " if is_drawn(args.data_root) else ""
    print(f"{trainer.folder}: {len(data.train_ds)} {drawn}images, {data.num_classes} classes, on {device}")

    def record() -> None:
        trainer.draw()
        trainer.write_stats()
        trainer.save()

    if trainer.step == 0:
        record()
    batches = get_data_iterator(loader)
    trainer.row_started = time.perf_counter()
    with StopSignals() as stop, tqdm(total=args.train_num_steps, initial=trainer.step, desc="training") as bar:
        while trainer.step < args.train_num_steps and not stop.requested:
            trainer.train_step(*next(batches))
            bar.update()
            if trainer.stats:
                bar.set_postfix(loss=trainer.stats[-1]["loss"], refresh=False)
            if trainer.step % args.log_interval == 0:
                record()
    trainer.write_stats()
    trainer.save()
    if stop.requested:
        print(f"stopped at step {trainer.step}; go on with: python train.py --resume {trainer.folder}")


def main() -> None:
    """The program: errors in what the user gave are one line and exit code 2."""
    try:
        train(parse_arguments())
    except (ValueError, OSError) as error:
        sys.exit(_complain(error))


def _complain(error: Exception) -> int:
    print(f"train.py: error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
