"""A training run: what it does in a step, what it writes down, and how it goes on after a stop.

A run that was interrupted and resumed ends with the very numbers of one that was not: `last.ckpt` holds the states of
all random generators, and the images of a step follow from the seed and the number of the step (`TrainingBatches`).
"""

import argparse
import copy
import csv
import io
import math
import random
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import speed
from atomic import atomic_write, remove_partials
from checkpoint import read_checkpoint, write_checkpoint
from dataset import is_synthetic, tensor_to_pil_image
from distributed import Distributed
from image_grid import trajectory_frames, trajectory_image
from model import DiffusionModule
from network import UNet
from samplers import ImageNoise
from scheduler import DDPMScheduler

LOG_EVERY = 50  # steps that share a row of stats.csv; their losses are read from the device at once
COLUMNS = ("step", "loss", "learning_rate", "images_per_second")  # of stats.csv


def build_network(args: argparse.Namespace, num_classes: int) -> UNet:
    """The network that the flags of train.py describe.

    Raises:
        UserError: for settings that do not fit together.
    """
    return UNet(
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


def build_model(args: argparse.Namespace, num_classes: int) -> DiffusionModule:
    """The model that the flags of train.py describe."""
    network = build_network(args, num_classes)
    schedule = DDPMScheduler(args.num_diffusion_train_timesteps, args.beta_1, args.beta_T, args.mode)
    return around(network, schedule, args)


def around(
    network: nn.Module, schedule: DDPMScheduler, args: argparse.Namespace, bf16: bool = False
) -> DiffusionModule:
    """A module of the flags' predictor around a network, which modules may share."""
    return DiffusionModule(network, schedule, args.predictor, bf16, args.parametrization, args.loss_weight)


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


class Stopped(Exception):
    """Ctrl-C or SIGTERM came while something was done that need not be finished."""


class StopSignals:
    """Ctrl-C and SIGTERM ask for a stop after the present step; `requested` says whether this process got one."""

    def __init__(self) -> None:
        self.requested = False

    def _request(self, number: int, _: object) -> None:
        self.requested = True
        print("\nstopping after this step; once more ends at once", file=sys.stderr)
        signal.signal(number, self._previous[number])

    def __enter__(self) -> "StopSignals":
        self._previous = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def interruptible(self, steps: Iterator[Any]) -> Iterator[Any]:
        """The same steps; raises `Stopped` between two of them when a stop was asked for."""
        for step in steps:
            if self.requested:
                raise Stopped
            yield step


class Trainer:
    """The state of a run (network, average, optimizer, step) and what is written of it.

    Args:
        args: the flags of train.py.
        num_classes: of the data.
        device: to train on.
        folder: where the run is written, and where a resumed one is read from.
        processes: those that train together; each sees its share of a batch, and only the first writes.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        num_classes: int,
        device: torch.device,
        folder: Path,
        processes: Distributed | None = None,
    ):
        self.args, self.folder, self.device = args, folder, device
        self.processes = processes or Distributed()
        bf16 = speed.uses_bf16(args.precision, device)
        self.ddpm = speed.place_network(build_model(args, num_classes), device, bf16)
        self.ddpm.network.activation_checkpointing = args.activation_checkpointing
        network = self.ddpm.network
        self.weights = list(network.parameters())
        if self.processes.size > 1:
            # PyTorch 2.14 has a new name for a flag below, and the strides of a 1x1 kernel mean nothing.
            for harmless in ("`broadcast_buffers` is deprecated", "Grad strides do not match bucket view strides"):
                warnings.filterwarnings("ignore", harmless)
            # Starts by giving all the first one's weights. The only buffer, of the time embedding, never changes.
            network = DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
        self.ema = EMA(self.ddpm.network, args.ema_decay)
        averaged = self.ema.network
        if speed.should_compile(args.compile, device, args.train_num_steps):
            # The second part of a batch, and other processes, add to gradients that a graph would write anew.
            alone = args.accumulate == 1 and self.processes.size == 1
            network, averaged = speed.compile_network(network, cuda_graph=alone), speed.compile_network(averaged)
        # Modules around the same weights: `ddpm` and `ema` hold them, these are what is called.
        self.learner = around(network, self.ddpm.var_scheduler, args, bf16)
        self.sampler = around(averaged, self.ddpm.var_scheduler, args, bf16)
        self.optimizer = speed.adam(self.weights, args.learning_rate, device)
        self.step = 0
        self.saved_step = -1  # of last.ckpt
        self.stats: list[dict] = []  # rows of stats.csv
        self.recent: list[torch.Tensor] = []  # losses since the last row, still on the device
        self.row_started = time.perf_counter()

    # One step.

    def train_step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """A gradient step on images [B, 3, H, W] in [-1, 1] and labels [B].

        Raises:
            ValueError: when the loss was not finite in one of the last `LOG_EVERY` steps.
        """
        labels = labels if self.args.use_cfg else None
        if self.args.hflip:
            mirrored = torch.rand(len(images), 1, 1, 1, device=self.device) < 0.5
            images = torch.where(mirrored, images.flip(3), images)

        rate = self.args.learning_rate * min(1.0, (self.step + 1) / max(1, self.args.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._gradient(images, labels)
        self.optimizer.step()
        self.step += 1
        self.ema.update(self.ddpm.network, self.step)

        self.recent.append(loss)
        if self.step % LOG_EVERY == 0 or self.step == self.args.train_num_steps:
            mean_loss = sum(self.read_losses()) / len(self.recent)
            seconds = time.perf_counter() - self.row_started
            images_per_second = len(self.recent) * self.args.batch_size / seconds
            row = self.step, f"{mean_loss:.6f}", f"{rate:.3g}", f"{images_per_second:.2f}"
            self.stats.append(dict(zip(COLUMNS, row, strict=True)))
            self.recent = []
            self.row_started = time.perf_counter()

    def _gradient(self, images: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """The gradient of the batch's mean loss, put together from --accumulate parts; the loss [], on the device."""
        self.optimizer.zero_grad()
        number = self.args.accumulate
        parts = images.chunk(number), [None] * number if labels is None else labels.chunk(number)
        total = torch.zeros((), device=self.device)
        for i, (some_images, their_labels) in enumerate(zip(*parts, strict=True)):
            with self.grad_sync(i == number - 1):
                loss = self.learner.get_loss(some_images, their_labels) / number
                loss.backward()
            total += loss.detach()
        return total

    def grad_sync(self, wanted: bool) -> AbstractContextManager:
        """Whether the backward pass adds up the gradients of all processes; that of a batch's last part does."""
        return nullcontext() if wanted or self.processes.size == 1 else self.learner.network.no_sync()

    def read_losses(self) -> list[float]:
        """The losses since the last row of stats.csv, read from the device: the mean of all processes.

        Raises:
            ValueError: when one is not finite.
        """
        losses = self.processes.mean(torch.stack(self.recent).cpu()).tolist() if self.recent else []
        for step, loss in enumerate(losses, start=self.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise ValueError(f"the loss of step {step} is {loss}: training has failed. {self.resume_hint()}")
        return losses

    def resume_hint(self) -> str:
        if not (self.folder / "last.ckpt").exists():
            return "Nothing was saved; a smaller --learning_rate may help"
        return (
            "The last checkpoint is from before that; go on from there, more carefully, with: "
            f"python train.py --resume {self.folder} --learning_rate {self.args.learning_rate / 2:g}"
        )

    # Pictures, numbers, checkpoints.

    def save_and_sample(self, stop: StopSignals) -> None:
        """Checkpoint and pictures of the present step; pictures that a stop prevents are made on resuming.

        Raises:
            ValueError: when training has failed; the last checkpoint stays.
            OSError: when something cannot be written.
        """
        started = time.perf_counter()
        self.save()
        if self.processes.is_rank_zero:
            with suppress(Stopped):
                self.save_samples(stop)
        self.row_started += time.perf_counter() - started  # does not count as training time

    @property
    def has_samples(self) -> bool:
        """Whether the pictures of the present step are there; the trajectory is written last."""
        return self._trajectory_path().exists()

    def _trajectory_path(self) -> Path:
        return self.folder / f"step={self.step}-traj.png"

    def save_samples(self, stop: StopSignals) -> None:
        """Four samples of the averaged weights and the way to them, from one chain of one batch.

        The noise is the same each time, so that the pictures of a run show the same four becoming better.

        Raises:
            Stopped: when a stop was asked for meanwhile.
        """
        numbers = range(4)
        noise = ImageNoise(self.args.seed, numbers, self.args.image_resolution, self.device)
        labels = None
        if self.args.use_cfg:
            labels = torch.tensor([i % self.ddpm.network.num_classes + 1 for i in numbers], device=self.device)
        chain = self.sampler.reverse_process(len(numbers), labels, randn_like=noise)
        frames = trajectory_frames(stop.interruptible(chain), self.args.num_diffusion_train_timesteps)
        for i, image in enumerate(tensor_to_pil_image(frames[-1])):
            with atomic_write(self.folder / f"step={self.step}-{i}.png") as file:
                image.save(file, format="PNG")
        with atomic_write(self._trajectory_path()) as file:
            trajectory_image(frames).save(file, format="PNG")

    def write_stats(self) -> None:
        """stats.csv and loss.png, made anew."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.stats)
        with atomic_write(self.folder / "stats.csv") as file:
            file.write(text.getvalue().encode())

        fig, ax = plt.subplots(figsize=(8, 4))
        ax.plot([r["step"] for r in self.stats], [float(r["loss"]) for r in self.stats], linewidth=0.8)
        ax.set(xlabel="step", ylabel=f"loss, mean of {LOG_EVERY} steps", yscale="log")
        drawn = ", drawn faces" * is_synthetic(self.args.data_root)
        ax.set_title(f"{self.args.predictor} predictor, {self.args.mode} schedule{drawn}")
        ax.grid(alpha=0.3)
        with atomic_write(self.folder / "loss.png") as file:
            fig.savefig(file, format="png", dpi=110, bbox_inches="tight")
        plt.close(fig)

    def save(self) -> None:
        """last.ckpt: a `DiffusionModule` of the averaged weights, and what training needs to go on. Then the numbers.

        Raises:
            ValueError: when losses or weights are not finite; the last checkpoint stays.
            OSError: when it cannot be written; likewise.
        """
        if self.saved_step == self.step:
            return
        training = {
            "step": self.step,
            "network": self.ddpm.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stats": self.stats,
            "recent": self.read_losses(),
            "row_seconds": time.perf_counter() - self.row_started,
            "random": self.processes.gather(random_states(self.device)),
        }
        self.saved_step = self.step
        if not self.processes.is_rank_zero:
            return
        try:
            write_checkpoint(self._averaged().checkpoint() | {"training": training}, self.folder / "last.ckpt")
        except ValueError as error:
            raise ValueError(f"step {self.step}: {error}: training has failed. {self.resume_hint()}") from error
        self.write_stats()

    def _averaged(self) -> DiffusionModule:
        return around(self.ema.network, self.ddpm.var_scheduler, self.args)

    def load(self) -> None:
        """Take up the state of the folder's last.ckpt. Where none was written yet, the run starts anew.

        Raises:
            OSError, ValueError: when the checkpoint is gone or damaged, or not one of this run.
        """
        if self.processes.is_rank_zero:
            remove_partials(self.folder)
        path = self.folder / "last.ckpt"
        if not path.exists() and not (self.folder / "stats.csv").exists():
            return
        checkpoint = read_checkpoint(path)
        try:
            for name, ours in self._averaged().checkpoint().items():
                if name != "state_dict" and checkpoint[name] != ours:
                    raise ValueError(f"its {name} is {checkpoint[name]}, the run has {ours}")
            training = checkpoint["training"]
            self.ema.network.load_state_dict(checkpoint["state_dict"])
            self.ddpm.network.load_state_dict(training["network"])
            self._load_optimizer(training["optimizer"])
            self.step = _at_least(0, training["step"], int)
            self.stats = [{name: row[name] for name in COLUMNS} for row in training["stats"]]
            self.recent = [torch.tensor(_at_least(0, x, float), device=self.device) for x in training["recent"]]
            row_seconds = _at_least(0, training["row_seconds"], float)
            if len(training["random"]) == self.processes.size:
                restore_random_states(training["random"][self.processes.rank], self.device)
            elif self.processes.is_rank_zero:
                before, now = len(training["random"]), self.processes.size
                print(f"this run was trained by {before} processes and goes on with {now}: with other random numbers")
        except Exception as error:  # plain data of any kind may stand where numbers should
            reason = " ".join(str(error).split())
            raise ValueError(f"{path}: this run cannot be resumed from it: {reason}") from error
        self.saved_step = self.step
        if self.processes.is_rank_zero:
            self.write_stats()  # in case that the run was killed between the checkpoint and these
        self.row_started = time.perf_counter() - row_seconds

    def _load_optimizer(self, state: dict) -> None:
        for index, moments in state["state"].items():
            for name in ("exp_avg", "exp_avg_sq"):
                if moments[name].shape != self.weights[index].shape or not moments[name].isfinite().all():
                    raise ValueError(f"the optimizer's {name} of parameter {index} does not fit")
                # Fused Adam goes through weights and moments as they lie in memory: they must lie alike.
                moments[name] = torch.empty_like(self.weights[index]).copy_(moments[name])
        ours = self.optimizer.state_dict()["param_groups"]  # whether kernels are fused depends on this device
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": ours})


def _at_least(low: float, value: Any, kind: type) -> Any:
    if type(value) is not kind or not low <= value < math.inf:
        raise ValueError(f"{value!r} is not a number >= {low}")
    return value


def random_states(device: torch.device) -> dict:
    """The states of all generators that training on a device draws from, as plain data."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_states(states: dict, device: torch.device) -> None:
    """The reverse of `random_states`; on a device of another kind, its own generator stays as it is."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
