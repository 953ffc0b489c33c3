"""The training loop of Task 1: DDPM Algorithm 1 with Adam."""

from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import trange

from ddpm import DiffusionModule


def train(
    ddpm: DiffusionModule,
    batches: Iterator[Tensor],
    num_iterations: int = 5000,
    learning_rate: float = 1e-3,
    decay: bool = True,
) -> Tensor:
    """Train the network in place on its device, with endless `batches` of clean points [B, D].

    With `decay`, the learning rate falls to 0 along half a cosine, so that the last steps average out the gradient
    noise. Returns the loss of each step, float32 [num_iterations], on the CPU.
    """
    optimizer = torch.optim.Adam(ddpm.parameters(), lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_iterations) if decay else None
    losses = torch.empty(num_iterations, device=ddpm.device)  # read once at the end: each read would stall a GPU
    for i in trange(num_iterations, desc="training"):
        loss = ddpm.compute_loss(next(batches).to(ddpm.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule:
            schedule.step()
        losses[i] = loss.detach()
    return losses.cpu()
