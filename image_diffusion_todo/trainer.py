"""Training step, logging, checkpointing and resuming.

A resumed run ends bit for bit like an uninterrupted one: last.ckpt holds the states of all random generators, and the
images of a step follow from the seed and the step (see `dataset.TrainingBatches`).
"""

import argparse
import copy
import math
import shlex
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

import speed
from atomic import atomic_write, remove_partials
from checkpoint import read_checkpoint, write_checkpoint
from cli import UserError, note
from dataset import tensor_to_pil_image
from distributed import Distributed
from image_grid import trajectory_frames, trajectory_image
from model import DiffusionModule
from network import UNet
from run_folder import COLUMNS, write_stats
from samplers import ImageNoise
from scheduler import DDPMScheduler
from stopping import Stopped, StopSignals
from training_state import load_optimizer, random_states, restore_random_states

LOG_EVERY = 50  # steps per row of stats.csv; their losses are copied from the device together
# Flags that have the names of arguments of `UNet`.
NETWORK_FLAGS = ("image_resolution", "patch_size", "ch", "ch_mult", "attn", "num_res_blocks", "dropout")
NETWORK_FLAGS += ("use_cfg", "cfg_dropout")


def build_network(args: argparse.Namespace, num_classes: int) -> UNet:
    """The network for the flags of train.py; UserError for sizes that do not fit together."""
    options = {name: getattr(args, name) for name in NETWORK_FLAGS}
    return UNet(args.num_diffusion_train_timesteps, num_classes=num_classes if args.use_cfg else None, **options)


def build_model(args: argparse.Namespace, num_classes: int) -> DiffusionModule:
    """The model for the flags of train.py."""
    network = build_network(args, num_classes)
    schedule = DDPMScheduler(args.num_diffusion_train_timesteps, args.beta_1, args.beta_T, args.mode)
    options = {"parametrization": args.parametrization, "loss_weight": args.loss_weight}
    return DiffusionModule(network, schedule, args.predictor, **options)


def update_ema(ema: list[Tensor], weights: list[Tensor], decay: float, step: int) -> None:
    """Move the averages towards the weights after `step` steps (DDPM, App. B).

    The decay rises to its value as (1 + step) / (10 + step), so that the random initial weights are soon forgotten.
    """
    get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))(ema, weights, step)


class Trainer:
    """A training run. Each of several processes computes its share of a batch; rank 0 writes the folder.

    Attributes:
        model: the module that is trained; with several processes, its network is wrapped.
        ema: the same module with averaged weights, to sample from.
        network: the network that is trained, never wrapped.
        step: number of finished steps.
        stats: rows of stats.csv.
        pending_losses: losses since the last row, on the device.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        num_classes: int,
        device: torch.device,
        folder: Path,
        distributed: Distributed | None = None,
    ):
        self.args, self.device, self.folder = args, device, folder
        self.distributed = distributed or Distributed()
        self.model = build_model(args, num_classes)
        self.model.precision = speed.select_precision(args.precision, device)
        speed.place_network(self.model, device, self.model.precision)
        self.network = self.model.network
        self.network.activation_checkpointing = args.activation_checkpointing
        wrapped = self.distributed.wrap(self.network)  # which may change the weights
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.model.network = wrapped
        compiles = speed.should_compile(args.compile, device, args.train_num_steps)
        self.compile_switch = args.compile if compiles else "off"
        if compiles:
            # A CUDA graph overwrites gradients, to which accumulation and other processes add.
            speed.compile_network(self.network, cuda_graph=args.accumulate == 1 and self.distributed.size == 1)
            speed.compile_network(self.ema.network)
        self.weights, self.averages = list(self.network.parameters()), list(self.ema.network.parameters())
        self.optimizer = speed.adam(self.weights, args.learning_rate, device)
        # Keeps small gradients in the range of float16; does nothing in other precisions.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.model.precision == "fp16")
        self.step = 0
        self.saved_step = -1  # of last.ckpt
        self.stats: list[dict[str, Any]] = []
        self.pending_losses: list[Tensor] = []
        self.row_started = time.perf_counter()

    # Training step

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """A gradient step on images [B, 3, H, W] in [-1, 1] and labels [B]; UserError if training has failed."""
        if self.args.hflip:
            flipped = torch.rand(len(images), 1, 1, 1, device=self.device) < 0.5
            images = torch.where(flipped, images.flip(3), images)
        lr = self.args.learning_rate * min(1.0, (self.step + 1) / max(1, self.args.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = speed.call_compiled(lambda: self.compute_gradient(images, labels), self.compile_switch, self.device)
        self.pending_losses.append(loss)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        update_ema(self.averages, self.weights, self.args.ema_decay, self.step)
        if self.step % LOG_EVERY == 0 or self.step == self.args.train_num_steps:
            losses = self.read_losses()
            images_per_second = len(losses) * self.args.batch_size / (time.perf_counter() - self.row_started)
            row = self.step, f"{sum(losses) / len(losses):.6g}", f"{lr:.3g}", f"{images_per_second:.2f}"
            self.stats.append(dict(zip(COLUMNS, row, strict=True)))
            self.pending_losses = []
            self.row_started = time.perf_counter()

    def compute_gradient(self, images: Tensor, labels: Tensor) -> Tensor:
        """The (scaled) gradient of the batch's mean loss, in --accumulate parts; returns the loss [], on the device."""
        self.optimizer.zero_grad()
        n = self.args.accumulate
        total = torch.zeros((), device=self.device)
        for i, (part, part_labels) in enumerate(zip(images.chunk(n), labels.chunk(n), strict=True), start=1):
            with self.distributed.grad_sync(self.model.network, i == n):
                loss = self.model.get_loss(part, part_labels if self.args.use_cfg else None) / n
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def read_losses(self) -> list[float]:
        """The pending losses, from the device, averaged over the processes; UserError if one is not finite."""
        losses = self.distributed.mean(torch.stack(self.pending_losses).cpu()).tolist() if self.pending_losses else []
        for step, loss in enumerate(losses, start=self.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise UserError(f"the loss of step {step} is {loss}: training has failed. {self.resume_hint()}")
        return losses

    @property
    def resume_command(self) -> str:
        """The command that continues this run."""
        size = self.distributed.size
        program = "python" if size == 1 else f"torchrun --nproc_per_node {size}"
        return f"{program} train.py --resume {shlex.quote(str(self.folder))}"

    def resume_hint(self) -> str:
        """What to do after training has failed."""
        if not (self.folder / "last.ckpt").exists():
            return "Nothing was saved; a smaller --learning_rate may help"
        command = f"{self.resume_command} --learning_rate {self.args.learning_rate / 2:g}"
        return f"Resume from the last good checkpoint with a lower learning rate: {command}"

    # Samples, statistics and checkpoints

    def save_and_sample(self, stop: StopSignals) -> None:
        """Write the checkpoint and the samples of this step. Samples skipped because of a stop are made on resuming."""
        started = time.perf_counter()
        self.save()
        if self.distributed.is_rank_zero:
            with suppress(Stopped):
                self.save_samples(stop)
        self.row_started += time.perf_counter() - started  # does not count as training time

    @property
    def has_samples(self) -> bool:
        """Whether the samples of this step exist; the trajectory is written last."""
        return (self.folder / f"step={self.step}-traj.png").exists()

    def save_samples(self, stop: StopSignals) -> None:
        """Write four samples of `ema` and the trajectory of the first, from the same noise each time."""
        indices = range(4)
        labels = torch.tensor([i % self.network.num_classes + 1 for i in indices]) if self.args.use_cfg else None

        def sample() -> Tensor:
            noise = ImageNoise(self.args.seed, indices, self.args.image_resolution, self.device)
            chain = self.ema.reverse_process(len(indices), labels, clip_x0=self.args.clip_x0, randn_like=noise)
            return trajectory_frames(stop.interruptible(chain), self.args.num_diffusion_train_timesteps)

        frames = speed.call_compiled(sample, self.compile_switch, self.device)
        for i, image in enumerate(tensor_to_pil_image(frames[-1])):
            with atomic_write(self.folder / f"step={self.step}-{i}.png") as file:
                image.save(file, format="PNG")
        with atomic_write(self.folder / f"step={self.step}-traj.png") as file:
            trajectory_image(frames[:, :1]).save(file, format="PNG")

    def save(self) -> None:
        """Write last.ckpt, a checkpoint of `ema` with the state of training, then stats.csv and loss.png.

        UserError if losses or weights are not finite; then the last.ckpt from before stays.
        """
        if self.saved_step == self.step:
            return
        training = {
            "step": self.step,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "stats": self.stats,
            "recent": self.read_losses(),
            "row_seconds": time.perf_counter() - self.row_started,
            "random": self.distributed.gather(random_states(self.device)),
        }
        self.saved_step = self.step
        if self.distributed.is_rank_zero:
            self._write_checkpoint("last.ckpt", training=training)
            write_stats(self.stats, self.args, self.folder)

    def save_averaged(self) -> None:
        """Write step={N}.ckpt, the averaged weights of this step alone; errors as for `save`."""
        started = time.perf_counter()
        if self.distributed.is_rank_zero:
            self._write_checkpoint(f"step={self.step}.ckpt")
        self.row_started += time.perf_counter() - started  # does not count as training time

    def _write_checkpoint(self, name: str, **more: Any) -> None:
        try:
            write_checkpoint(self.ema.checkpoint() | more, self.folder / name)
        except UserError as error:
            raise UserError(f"step {self.step}: {error}: training has failed. {self.resume_hint()}") from error

    def load(self) -> None:
        """Continue from the folder's last.ckpt; without it and stats.csv, from the start.

        UserError if it is damaged or does not belong to this run.
        """
        if self.distributed.is_rank_zero:
            remove_partials(self.folder)
        path = self.folder / "last.ckpt"
        if not path.exists() and not (self.folder / "stats.csv").exists():
            return
        checkpoint = read_checkpoint(path)
        try:
            checkpoint["network"] = {"patch_size": 1} | checkpoint["network"]  # absent from older checkpoints
            for name, expected in self.ema.checkpoint().items():
                # Older checkpoints have no classes; `train.check_same_data` compares those of the data.
                if name not in ("state_dict", "classes") and checkpoint[name] != expected:
                    raise ValueError(f"its {name} is {checkpoint[name]}, the run has {expected}")
            training = checkpoint["training"]
            self.ema.network.load_state_dict(checkpoint["state_dict"])
            self.network.load_state_dict(training["network"])
            load_optimizer(self.optimizer, training["optimizer"])
            self.step = training["step"]
            if type(self.step) is not int or self.step < 0:
                raise ValueError(f"its step is {self.step!r}")
            self.scaler.load_state_dict(training.get("scaler", {}))
            self.stats = [{name: row[name] for name in COLUMNS} for row in training["stats"]]
            self.pending_losses = [torch.tensor(float(loss), device=self.device) for loss in training["recent"]]
            self.row_started = time.perf_counter() - training["row_seconds"]
            states = training["random"]
            if len(states) == self.distributed.size:
                restore_random_states(states[self.distributed.rank], self.device)
            elif self.distributed.is_rank_zero:
                size = self.distributed.size
                note(f"trained by {len(states)} processes and resumed by {size}: random numbers differ")
            if self.distributed.is_rank_zero:
                write_stats(self.stats, self.args, self.folder)  # in case a kill came before it
        except OSError:
            raise
        except Exception as error:  # the checkpoint may hold anything
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: this run cannot be resumed from it: {reason}") from error
        self.saved_step = self.step
