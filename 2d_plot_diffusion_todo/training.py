"""The training loop of the 2D task: DDPM Algorithm 1 with Adam and a falling learning rate."""

from collections.abc import Iterator

import torch
from tqdm import trange

from ddpm import DiffusionModule


def train(
    ddpm: DiffusionModule,
    batches: Iterator[torch.Tensor],
    num_iterations: int = 5000,
    learning_rate: float = 1e-3,
    decay: bool = True,
) -> torch.Tensor:
    """Train the network in place.

    Args:
        ddpm: network and schedule, on the device to train on.
        batches: endless clean points [B, D], see `dataset.get_data_iterator`.
        num_iterations: number of gradient steps.
        learning_rate: Adam's at the start.
        decay: let it fall to 0 along half a cosine, so that the last steps average out the noise
            of the gradients; otherwise it stays.

    Returns:
        The loss of every step, float32 [num_iterations] on the CPU.
    """
    optimizer = torch.optim.Adam(ddpm.parameters(), lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_iterations) if decay else None
    # Losses stay on the device until the end: reading one number a step would make a GPU wait.
    losses = torch.empty(num_iterations, device=ddpm.device)
    for i in trange(num_iterations, desc="training"):
        loss = ddpm.compute_loss(next(batches).to(ddpm.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule:
            schedule.step()
        losses[i] = loss.detach()
    return losses.cpu()
