"""The noise-predicting network of the 2D task: a small MLP that knows the time in every layer."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


def as_timesteps(t: int | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Timesteps in any usual form -> int64 tensor [B], or [1] where one t serves the whole batch.

    Args:
        t: an int, or a tensor [], [B] or [B, 1], of an integer type or a float one of whole numbers.
        device: where the result is wanted.

    Raises:
        ValueError: for a timestep that is not a whole number.
    """
    t = torch.as_tensor(t, device=device)
    if t.is_floating_point() and not torch.equal(t, t.round()):
        raise ValueError("timesteps must be whole numbers")
    return t.long().reshape(-1)


class TimeEmbedding(nn.Module):
    """Timestep -> vector: sinusoids of many frequencies, then a two-layer MLP.

    The sinusoids are the position encoding of "Attention Is All You Need" (Sec. 3.5), which
    DDPM uses for t: frequencies fall geometrically from 1 to 1/10000.

    Args:
        hidden_size: width of the embedding.
        frequency_embedding_size: number of sinusoids, half cosines and half sines (even).
    """

    def __init__(self, hidden_size: int, frequency_embedding_size: int = 256):
        super().__init__()
        half = frequency_embedding_size // 2
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(half) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * half, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def sinusoids(self, t: int | torch.Tensor) -> torch.Tensor:
        """t: [B] or [B, 1] -> [B, frequency_embedding_size]; an int or a 0-d tensor -> [1, ...]."""
        t = torch.as_tensor(t, dtype=self.frequencies.dtype, device=self.frequencies.device)
        angles = t.reshape(-1, 1) * self.frequencies  # [B, half]
        return torch.cat([angles.cos(), angles.sin()], dim=1)

    def forward(self, t: int | torch.Tensor) -> torch.Tensor:
        """t: [B] or [B, 1] -> [B, hidden_size]; an int or a 0-d tensor -> [1, hidden_size]."""
        return self.mlp(self.sinusoids(t))


class TimeLinear(nn.Module):
    """An affine map of x whose output features are scaled by an embedding of t.

    Args:
        dim_in: width of x.
        dim_out: width of the output.
        num_timesteps: T, the number of values that t takes.
    """

    def __init__(self, dim_in: int, dim_out: int, num_timesteps: int):
        super().__init__()
        self.num_timesteps = num_timesteps
        self.time_embedding = TimeEmbedding(dim_out)
        self.fc = nn.Linear(dim_in, dim_out)
        # Factors around 1 at the start: the layer begins as nearly a plain one and learns to listen to t.
        nn.init.ones_(self.time_embedding.mlp[-1].bias)
        # t takes T values only, and to look their sinusoids up is quicker than to compute them each time.
        self.register_buffer("sinusoids", self.time_embedding.sinusoids(torch.arange(num_timesteps)), persistent=False)

    def forward(self, x: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
        """x: [B, dim_in], t: [B] in 0..T-1 (or one t for the whole batch) -> [B, dim_out]."""
        sinusoids = F.embedding(as_timesteps(t, x.device), self.sinusoids)  # a look-up that refuses t outside 0..T-1
        return self.time_embedding.mlp(sinusoids) * self.fc(x)


class SimpleNet(nn.Module):
    """eps_theta(x_t, t): `TimeLinear` layers of widths [dim_in, *dim_hids, dim_out], SiLU between them.

    The time enters every layer, the last one too: the size of the right answer depends on t
    all the way to the output. No activation follows the last layer, since noise has both signs.

    Args:
        dim_in: width of a point.
        dim_out: width of the prediction (the same as dim_in for a noise prediction).
        dim_hids: widths of the hidden layers; may be empty.
        num_timesteps: T.
    """

    def __init__(self, dim_in: int, dim_out: int, dim_hids: list[int], num_timesteps: int):
        super().__init__()
        # Plain numbers from which the same network can be built again; they travel in checkpoints.
        self.config = {
            "dim_in": dim_in,
            "dim_out": dim_out,
            "dim_hids": list(dim_hids),
            "num_timesteps": num_timesteps,
        }
        widths = [dim_in, *dim_hids, dim_out]
        self.layers = nn.ModuleList(TimeLinear(a, b, num_timesteps) for a, b in pairwise(widths))
        self.activation = nn.SiLU()
        # A feature silu(w x + b) bends around w x = -b. With PyTorch's initial weights these bends are near the
        # origin and as wide as the whole cloud. Now they reach twice as far out and are half as wide.
        with torch.no_grad():
            self.layers[0].fc.weight.mul_(2)
            self.layers[0].fc.bias.mul_(4)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x: noisy points [B, dim_in]; t: their timesteps [B] -> predicted noise [B, dim_out]."""
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x, t))
        return last(x, t)
