"""DDPM on images: one training loss for each predictor, and sampling with or without a class.

Training (DDPM, Algorithm 1) noises an image to a random x_t and compares the network's prediction with a target:

    "noise"   the noise in x_t (eq. 14)
    "x0"      the clean image
    "mean"    mu~_t(x_t, x_0), the mean of q(x_{t-1} | x_t, x_0) (eq. 7 and 8)

Shapes: images and noise [B, 3, H, W], images in [-1, 1]; t [B]; class_label [B], 1 .. num_classes, 0 for "no class".
"""

import math
import os
from collections import deque
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import speed
from checkpoint import build_network, read_checkpoint, write_checkpoint
from cli import UserError
from network import UNet
from prediction import LOSS_WEIGHTS, PARAMETRIZATIONS, from_v, loss_weights, to_x0_and_eps
from progress import tqdm
from samplers import RandnLike, ddim, ddpm, dpm, sampling_timesteps
from scheduler import PREDICTORS, DDPMScheduler, as_timesteps


class DiffusionModule(nn.Module):
    """A network, a schedule, and what the network predicts.

    Args:
        network: called as network(x_t, t), with labels as network(x_t, t, class_label). None before `load`.
        var_scheduler: the schedule; None before `load`.
        predictor: "noise", "x0" or "mean".
        precision: "fp32", "bf16" or "fp16" of the network without its last layer; everything else stays float32.
        parametrization: "direct": the network outputs the prediction; "preconditioned": v (see `prediction.py`).
        loss_weight: weighting of the timesteps in the loss, see `prediction.loss_weights`.

    Attributes:
        classes: names of the labels 1, 2, ..., if known; saved in checkpoints.
    """

    def __init__(
        self,
        network: nn.Module | None,
        var_scheduler: DDPMScheduler | None,
        predictor: str = "noise",
        precision: str = "fp32",
        parametrization: str = "direct",
        loss_weight: str = "none",
    ):
        super().__init__()
        for name, value, known in [
            ("predictor", predictor, PREDICTORS),
            ("precision", precision, ("fp32", "bf16", "fp16")),
            ("parametrization", parametrization, PARAMETRIZATIONS),
            ("loss weight", loss_weight, LOSS_WEIGHTS),
        ]:
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")
        self.network, self.var_scheduler = network, var_scheduler
        self.predictor, self.parametrization = predictor, parametrization
        self.precision, self.loss_weight = precision, loss_weight
        self.classes: list[str] | None = None
        self._loss_weights: Tensor | None = None  # [T], computed at the first loss

    @property
    def device(self) -> torch.device:
        """The device of network and schedule."""
        return self.var_scheduler.betas.device

    @property
    def image_resolution(self) -> int:
        """Height and width of the images that the network was built for."""
        return self.network.image_resolution

    # Training

    def get_loss(self, x0: Tensor, class_label: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """The loss of this module's predictor, a scalar: the mean over batch and pixels. Noise is drawn if None."""
        losses = {"noise": self.get_loss_noise, "x0": self.get_loss_x0, "mean": self.get_loss_mean}
        return losses[self.predictor](x0, class_label, noise)

    def get_loss_noise(self, x0: Tensor, class_label: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """MSE against the noise in x_t (eq. 14)."""
        eps_theta, _, t, noise = self.noise_and_predict(x0, class_label, noise)
        return self.weighted_mse(eps_theta, noise, t)

    def get_loss_x0(self, x0: Tensor, class_label: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """MSE against the clean image."""
        x0_pred, _, t, _ = self.noise_and_predict(x0, class_label, noise)
        return self.weighted_mse(x0_pred, x0, t)

    def get_loss_mean(self, x0: Tensor, class_label: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """MSE against the posterior mean (eq. 7): eq. 8 without its factor."""
        mean_theta, x_t, t, _ = self.noise_and_predict(x0, class_label, noise)
        return self.weighted_mse(mean_theta, self.var_scheduler.posterior_mean(x0, x_t, t), t)

    def noise_and_predict(
        self, x0: Tensor, class_label: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The prediction at random timesteps; x_t, these timesteps [B], and the noise in x_t."""
        class_label = self._check_labels(len(x0), class_label)
        t = self.var_scheduler.uniform_sample_t(len(x0), x0.device)
        x_t, noise = self.var_scheduler.add_noise(x0, t, noise)
        return self.predict(x_t, t, class_label), x_t, t, noise

    def weighted_mse(self, prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """The mean squared error, each image weighted by its timestep."""
        if self.loss_weight == "none":
            return F.mse_loss(prediction, target)
        if self._loss_weights is None or self._loss_weights.device != t.device:
            self._loss_weights = loss_weights(self.loss_weight, self.predictor, self.var_scheduler).to(t.device)
        return (self._loss_weights[t] * (prediction - target).square().flatten(1).mean(dim=1)).mean()

    def predict(self, x_t: Tensor, t: int | Tensor, class_label: Tensor | None = None) -> Tensor:
        """The predicted noise, x_0 or mean for noisy images."""
        t = as_timesteps(t, x_t.device).expand(len(x_t))
        labels = () if class_label is None else (class_label,)
        with speed.autocast(self.precision, x_t.device):
            output = self.network(x_t, t, *labels)
        if not torch.is_grad_enabled():
            output = output.clone()  # a CUDA graph overwrites its output at the next call, and samplers keep some
        if self.parametrization == "preconditioned":
            output = from_v(output, x_t, t, self.predictor, self.var_scheduler)
        return output

    # Sampling

    def sample(
        self,
        batch_size: int,
        return_traj: bool = False,
        class_label: Tensor | None = None,
        guidance_scale: float = 1.0,
        sample_method: str = "ddpm",
        num_inference_steps: int | None = None,
        eta: float = 0.0,
        clip_x0: bool = False,
    ) -> Tensor | list[Tensor]:
        """Images [B, 3, H, W] from noise, by default in T steps (DDPM, Algorithm 2); see `reverse_process`.

        With return_traj, all x_T ... x_0 on the CPU, one more than there are steps. Call `eval()` first to switch
        dropout off.
        """
        timesteps = sampling_timesteps(self.var_scheduler, sample_method, num_inference_steps, eta)
        chain = self.reverse_process(batch_size, class_label, guidance_scale, sample_method, timesteps, eta, clip_x0)
        if return_traj:
            return [x_t.cpu() for x_t in chain]
        return deque(chain, maxlen=1).pop()

    @torch.no_grad()
    def reverse_process(
        self,
        batch_size: int,
        class_label: Tensor | None = None,
        guidance_scale: float = 1.0,
        sample_method: str = "ddpm",
        timesteps: list[int] | None = None,
        eta: float = 0.0,
        clip_x0: bool = False,
        randn_like: RandnLike = torch.randn_like,
        progress: bool = True,
    ) -> Iterator[Tensor]:
        """x_T ... x_0, one by one.

        Args:
            batch_size: B.
            class_label: [B], or None for no class.
            guidance_scale: s of classifier-free guidance (Ho & Salimans, 2022, arXiv:2207.12598, eq. 6 with w = s - 1).
                The prediction is f_0 + s (f_c - f_0), f_0 without and f_c with the class. s != 1 needs labels.
            sample_method: "ddpm", "ddim" or "dpm" (see `samplers.py`).
            timesteps: those of `samplers.sampling_timesteps`; None for its default.
            eta: share of fresh noise, for ddim.
            clip_x0: clamp each predicted x_0 to [-1, 1], as DDPM's own code does.
            randn_like: draws x_T and then the noise of each step.
            progress: show a bar.
        """
        class_label = self._check_labels(batch_size, class_label, guidance_scale)
        scheduler = self.var_scheduler
        if timesteps is None:
            timesteps = sampling_timesteps(scheduler, sample_method, eta=eta)

        def predict(x_t: Tensor, t: int) -> Tensor:
            if class_label is None or guidance_scale == 1:
                return self.predict(x_t, t, class_label)
            both_labels = torch.cat([torch.zeros_like(class_label), class_label])
            without, with_class = self.predict(torch.cat([x_t, x_t]), t, both_labels).chunk(2)
            return without + guidance_scale * (with_class - without)

        def x0_and_eps(x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
            x_0, eps = to_x0_and_eps(predict(x_t, t), x_t, t, self.predictor, scheduler)
            return to_x0_and_eps(x_0.clamp(-1, 1), x_t, t, "x0", scheduler) if clip_x0 else (x_0, eps)

        size = self.image_resolution
        x_T = randn_like(torch.empty(batch_size, 3, size, size, device=self.device))
        if sample_method == "ddim":
            steps = ddim(x0_and_eps, scheduler, x_T, timesteps, eta, randn_like)
        elif sample_method == "dpm":
            steps = dpm(x0_and_eps, scheduler, x_T, timesteps)
        elif clip_x0:
            steps = ddpm(lambda x_t, t: x0_and_eps(x_t, t)[0], scheduler, x_T, "x0", randn_like)
        else:  # not via x_0, which would lose digits where alpha-bar is 2e-9
            steps = ddpm(predict, scheduler, x_T, self.predictor, randn_like)
        yield x_T
        options = {} if progress else {"disable": True}  # an explicit False would override TQDM_DISABLE
        yield from tqdm(steps, desc="sampling", total=len(timesteps), leave=False, **options)

    def _check_labels(self, batch_size: int, class_label: Tensor | None, guidance_scale: float = 1.0) -> Tensor | None:
        """The labels as int64 [B] on the module's device; ValueError for labels that do not exist."""
        if class_label is None:
            if guidance_scale != 1:
                raise ValueError(f"guidance_scale {guidance_scale} needs class_label")
            return None
        class_label = torch.as_tensor(class_label)
        last = getattr(self.network, "num_classes", None) or math.inf
        valid = class_label.shape == (batch_size,)
        if valid and class_label.device.type == "cpu":  # to read them from a GPU would synchronise with it
            valid = ((class_label == class_label.round()) & (class_label >= 0) & (class_label <= last)).all()
        if not valid:
            raise ValueError(f"class_label must be {batch_size} labels of 0..{last}, got {class_label.tolist()}")
        return class_label.long().to(self.device)

    # Files

    def checkpoint(self) -> dict:
        """Everything needed to rebuild this module, as plain numbers and tensors (see `checkpoint.py`).

        TypeError for a network or schedule of another class, for which `load` would build the one below.
        """
        for part, kind in ((self.network, UNet), (self.var_scheduler, DDPMScheduler)):
            if type(part) is not kind:
                raise TypeError(f"only a {kind.__name__} itself can be saved, not a {type(part).__name__}")
        return {
            "network": self.network.config,
            "var_scheduler": self.var_scheduler.config,
            "predictor": self.predictor,
            "parametrization": self.parametrization,
            "classes": self.classes,
            "state_dict": self.network.state_dict(),
        }

    def save(self, path: str | os.PathLike) -> None:
        """Write `checkpoint()` to a file; see `write_checkpoint`."""
        write_checkpoint(self.checkpoint(), path)

    def load(self, path: str | os.PathLike, weights: str = "ema") -> None:
        """Replace network, schedule and predictor by those of a checkpoint, on the same device (else the CPU).

        weights is "ema", the averaged ones, or "last", the latest ones in a checkpoint of train.py. After an error, see
        `read_checkpoint`, the module is as before.
        """
        checkpoint = read_checkpoint(path)
        if weights == "last":
            if "training" not in checkpoint:
                raise UserError(f"{path}: holds averaged weights only, no latest ones")
            checkpoint["state_dict"] = checkpoint["training"]["network"]
        network, var_scheduler = build_network(checkpoint), DDPMScheduler(**checkpoint["var_scheduler"])
        if self.var_scheduler is not None:
            network, var_scheduler = network.to(self.device), var_scheduler.to(self.device)
        self.network, self.var_scheduler, self.predictor = network, var_scheduler, checkpoint["predictor"]
        self.parametrization, self.classes = checkpoint["parametrization"], checkpoint["classes"]
        self._loss_weights = None
        self.train(self.training)  # puts the new network into the module's mode
