"""DDPM on images: three losses of one shape, and sampling with or without a class.

Training (DDPM, Algorithm 1) noises an image to a random x_t, asks the network, and compares its
answer with what the predictor stands for:

    "noise"   the noise in x_t (eq. 14)
    "x0"      the clean image
    "mean"    mu~_t(x_t, x_0), the mean of q(x_{t-1} | x_t, x_0) (eq. 7 and 8)
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from checkpoint import build_network, read_checkpoint, write_checkpoint
from network import UNet
from samplers import build_sampler
from scheduler import LOSS_WEIGHTS, PARAMETRIZATIONS, PREDICTORS, DDPMScheduler, as_timesteps, check_choice


class DiffusionModule(nn.Module):
    """A network, a schedule, and what the network predicts.

    Args:
        network: called as network(x_t [B, 3, H, W], t [B]), with labels as network(x_t, t, class_label [B]).
            None when a checkpoint is about to be loaded.
        var_scheduler: the schedule; None likewise.
        predictor: "noise", "x0" or "mean".
        bf16: let the network compute in bfloat16, but for its last layer; everything else stays float32.
        parametrization: "direct": the network says it in so many words; "preconditioned": it gives an output of unit
            size from which the prediction follows (see `DDPMScheduler.from_v`).
        loss_weight: how much each timestep's squared error counts (see `DDPMScheduler.loss_weight`).

    Raises:
        ValueError: for an unknown predictor, parametrization or loss weight.
    """

    def __init__(
        self,
        network: nn.Module | None,
        var_scheduler: DDPMScheduler | None,
        predictor: str = "noise",
        bf16: bool = False,
        parametrization: str = "direct",
        loss_weight: str = "none",
    ):
        super().__init__()
        check_choice("predictor", predictor, PREDICTORS)
        check_choice("parametrization", parametrization, PARAMETRIZATIONS)
        check_choice("loss weight", loss_weight, LOSS_WEIGHTS)
        self.network = network
        self.var_scheduler = var_scheduler
        self.predictor = predictor
        self.bf16 = bf16
        self.parametrization = parametrization
        self.loss_weight = loss_weight
        self._weight: torch.Tensor | None = None  # of each timestep, made when it is first needed

    @property
    def device(self) -> torch.device:
        """The device that network and schedule are on."""
        return self.var_scheduler.betas.device

    @property
    def image_resolution(self) -> int:
        """Height and width of the images that the network was built for."""
        return self.network.image_resolution

    # Training.

    def get_loss(
        self, x0: torch.Tensor, class_label: torch.Tensor | None = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The loss of this module's predictor: a scalar, the mean over batch and pixels.

        Args:
            x0: clean images [B, 3, H, W] in [-1, 1].
            class_label: [B], 1 .. num_classes; None for an unconditional network.
            noise: the noise to add [B, 3, H, W]; fresh noise if None.

        Raises:
            ValueError: for labels that do not exist.
        """
        return getattr(self, f"get_loss_{self.predictor}")(x0, class_label, noise)

    def get_loss_noise(
        self, x0: torch.Tensor, class_label: torch.Tensor | None = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """MSE against the noise in x_t (eq. 14)."""
        net_out, _, t, noise = self.noise_and_predict(x0, class_label, noise)
        return self.weighted_mse(net_out, noise, t)

    def get_loss_x0(
        self, x0: torch.Tensor, class_label: torch.Tensor | None = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """MSE against the clean image."""
        net_out, _, t, _ = self.noise_and_predict(x0, class_label, noise)
        return self.weighted_mse(net_out, x0, t)

    def get_loss_mean(
        self, x0: torch.Tensor, class_label: torch.Tensor | None = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """MSE against the posterior mean (eq. 7), which is eq. 8 without its weight."""
        net_out, x_t, t, _ = self.noise_and_predict(x0, class_label, noise)
        return self.weighted_mse(net_out, self.var_scheduler.posterior_mean(x0, x_t, t), t)

    def noise_and_predict(
        self, x0: torch.Tensor, class_label: torch.Tensor | None, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The network's answer to x_t at random timesteps; x_t, these timesteps [B], and the noise in x_t."""
        class_label = self._check_labels(len(x0), class_label)
        t = self.var_scheduler.uniform_sample_t(len(x0), x0.device)
        x_t, noise = self.var_scheduler.add_noise(x0, t, noise)
        return self.predict(x_t, t, class_label), x_t, t, noise

    def weighted_mse(self, net_out: torch.Tensor, target: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The mean of squared errors, weighted as asked for."""
        if self.loss_weight == "none":
            return F.mse_loss(net_out, target)
        if self._weight is None or self._weight.device != t.device:
            self._weight = self.var_scheduler.loss_weight(self.loss_weight, self.predictor).to(t.device)
        weight = self._weight
        return (weight[t] * (net_out - target).square().flatten(1).mean(dim=1)).mean()

    def predict(
        self, x_t: torch.Tensor, t: int | torch.Tensor, class_label: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The prediction for noisy images [B, 3, H, W] at timesteps t: noise, x_0 or mean [B, 3, H, W]."""
        t = as_timesteps(t, x_t.device).expand(len(x_t))
        labels = () if class_label is None else (class_label,)
        with torch.autocast(x_t.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            net_out = self.network(x_t, t, *labels)
        if not torch.is_grad_enabled():
            net_out = net_out.clone()  # a CUDA graph writes its next answer into the same memory, and chains remember
        if self.parametrization == "preconditioned":
            net_out = self.var_scheduler.from_v(net_out, x_t, t, self.predictor)
        return net_out

    # Sampling.

    def sample(
        self,
        batch_size: int,
        return_traj: bool = False,
        class_label: torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        sample_method: str = "ddpm",
        num_inference_steps: int | None = None,
        eta: float = 0.0,
    ) -> torch.Tensor | list[torch.Tensor]:
        """Images from noise, by default in T steps (DDPM, Algorithm 2), in the network's present mode (see `eval`).

        Args:
            batch_size: B, how many images.
            return_traj: also keep the way there, on the CPU.
            class_label: [B], 0 .. num_classes; None for no class.
            guidance_scale: see `reverse_process`.
            sample_method: "ddpm", "ddim" or "dpm" (see `samplers.py`).
            num_inference_steps: how often the network is asked; None for as often as usual.
            eta: how much fresh noise, for ddim.

        Returns:
            Images [B, 3, H, W], in [-1, 1] but for overshoot; with return_traj the list x_T ... x_0 of
            T + 1 such tensors on the CPU, or as many as there are steps and 1.

        Raises:
            ValueError: for labels that do not exist, guidance without labels, or what `build_sampler` refuses.
        """
        traj = []
        how = sample_method, num_inference_steps, eta
        for x_t in self.reverse_process(batch_size, class_label, guidance_scale, None, *how):
            if return_traj:
                traj.append(x_t.cpu())
        return traj if return_traj else x_t

    @torch.no_grad()
    def reverse_process(
        self,
        batch_size: int,
        class_label: torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        noise: Callable[[], torch.Tensor] | None = None,
        sample_method: str = "ddpm",
        num_inference_steps: int | None = None,
        eta: float = 0.0,
        progress: bool = True,
    ) -> Iterator[torch.Tensor]:
        """The stations of a reverse chain, one by one: noise x_T first, images x_0 last; T + 1 of them for DDPM.

        With labels, each step follows f_0 + s (f_c - f_0), where f_0 and f_c are the network's answers without
        and with the class (Ho & Salimans, 2022, eq. 6, whose w is s - 1): s = 1 is the plain conditional
        model, s = 0 the unconditional one, and more than 1 trades variety for likeness to the class. It
        means the same for each predictor, since x0 and mean are linear in the noise.

        Args:
            batch_size: B.
            class_label: [B], 0 .. num_classes; None for no class.
            guidance_scale: s; anything but 1 needs labels.
            noise: called for x_T and then once a step if the method needs it, gives standard Gaussian
                noise [B, 3, H, W] (see `ImageNoise`); None draws from torch's global generator.
            sample_method: "ddpm", "ddim" or "dpm" (see `samplers.py`).
            num_inference_steps: how often the network is asked; None for as often as usual.
            eta: how much fresh noise, for ddim.
            progress: show a bar.

        Yields:
            x_t [B, 3, H, W] on the module's device.

        Raises:
            ValueError: for labels that do not exist, guidance without labels, or what `build_sampler` refuses.
        """
        class_label = self._check_labels(batch_size, class_label, guidance_scale)
        sampler = build_sampler(self.var_scheduler, self.predictor, sample_method, num_inference_steps, eta)
        shape = batch_size, 3, self.image_resolution, self.image_resolution
        x_t = noise() if noise else torch.randn(shape, device=self.device)
        yield x_t
        for t, t_prev in tqdm(sampler.steps, desc="sampling", leave=False, disable=not progress):
            if class_label is None or guidance_scale == 1:
                net_out = self.predict(x_t, t, class_label)
            else:
                no_class = torch.zeros_like(class_label)
                both = self.predict(torch.cat([x_t, x_t]), t, torch.cat([no_class, class_label]))
                without, with_class = both.chunk(2)
                net_out = without + guidance_scale * (with_class - without)
            z = None
            if sampler.needs_noise:
                z = noise() if noise else torch.randn_like(x_t)
            x_t = sampler.step(x_t, t, t_prev, net_out, z)
            yield x_t

    def _check_labels(
        self, batch_size: int, class_label: torch.Tensor | None, guidance_scale: float = 1.0
    ) -> torch.Tensor | None:
        """The labels as int64 [B] on the module's device; ValueError for what are none."""
        if class_label is None:
            if guidance_scale != 1:
                raise ValueError(f"guidance_scale {guidance_scale} needs class_label")
            return None
        class_label = torch.as_tensor(class_label)
        if class_label.shape != (batch_size,):
            raise ValueError(f"class_label must have shape [{batch_size}], got {list(class_label.shape)}")
        num_classes = getattr(self.network, "num_classes", None)
        exist = class_label == class_label.round()
        if num_classes:
            exist &= (class_label >= 0) & (class_label <= num_classes)
        # Reading them from a GPU would wait for it; in training they are the data's, which were counted.
        if class_label.device.type == "cpu" and not exist.all():
            raise ValueError(f"class_label must be whole numbers in 0..{num_classes}, got {class_label.tolist()}")
        return class_label.long().to(self.device)

    # Files.

    def checkpoint(self) -> dict:
        """All that is needed to build this module again, as plain numbers and tensors (see `checkpoint.py`).

        Raises:
            TypeError: when the network is not a `UNet`, and so could not be rebuilt from numbers.
        """
        if not isinstance(self.network, UNet):
            raise TypeError(f"only a UNet can be saved, not a {type(self.network).__name__}")
        return {
            "network": self.network.config,
            "var_scheduler": self.var_scheduler.config,
            "predictor": self.predictor,
            "parametrization": self.parametrization,
            "state_dict": self.network.state_dict(),
        }

    def save(self, path: str | os.PathLike) -> None:
        """Write `checkpoint()` to a file, which replaces one that was there only when it is whole.

        Raises:
            TypeError: see `checkpoint`.
            ValueError, OSError: see `write_checkpoint`.
        """
        write_checkpoint(self.checkpoint(), path)

    def load(self, path: str | os.PathLike, weights: str = "ema") -> None:
        """Replace network, schedule and predictor by those of a checkpoint.

        They come to the device that the module was on, or to the CPU where it was empty.

        Args:
            path: the file.
            weights: "ema": those to sample from; "last": those that train.py had reached.

        Raises:
            OSError, ValueError: see `read_checkpoint`; the module stays as it was.
        """
        checkpoint = read_checkpoint(path)
        if weights == "last":
            if "training" not in checkpoint:
                raise ValueError(f"{path}: holds no other weights than those to sample from")
            checkpoint["state_dict"] = checkpoint["training"]["network"]
        network, var_scheduler = build_network(checkpoint), DDPMScheduler(**checkpoint["var_scheduler"])
        if self.var_scheduler is not None:
            network, var_scheduler = network.to(self.device), var_scheduler.to(self.device)
        self.network, self.var_scheduler, self.predictor = network, var_scheduler, checkpoint["predictor"]
        self.parametrization = checkpoint["parametrization"]
        self._weight = None
        self.train(self.training)  # a module in eval mode has a network in eval mode


class ImageNoise:
    """Noise that belongs to an image and not to its batch: image i of a seed is the same in whichever batch it is made.

    Each image has a generator of its own, seeded by (seed, i). The network may still round differently in batches of
    different sizes.

    Args:
        seed: of all images together, at least 0.
        numbers: i of each image in the batch.
        resolution: height and width of the images.
        device: where the noise is drawn. The kinds of device have generators of their own, and other noise.
    """

    BLOCK = 16  # steps drawn at once for an image: one call an image and step would take longer than the network

    def __init__(self, seed: int, numbers: Iterable[int], resolution: int, device: torch.device):
        seeds = [int(np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0]) for i in numbers]
        self.generators = [torch.Generator(device).manual_seed(s) for s in seeds]
        self.shape = self.BLOCK, 3, resolution, resolution
        self.steps = iter(())

    def __call__(self) -> torch.Tensor:
        """The next noise, standard Gaussian [B, 3, resolution, resolution]."""
        try:
            return next(self.steps)
        except StopIteration:
            drawn = [torch.randn(self.shape, generator=g, device=g.device) for g in self.generators]
            self.steps = iter(torch.stack(drawn, dim=1))
            return next(self.steps)
