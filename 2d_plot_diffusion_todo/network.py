"""The noise-predicting network of Task 1: an MLP whose every layer depends on the timestep."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def as_timesteps(t: int | Tensor, device: torch.device) -> Tensor:
    """An int, or a tensor [], [B] or [B, 1] of whole numbers -> int64 [B], or [1] for one t for the whole batch."""
    if isinstance(t, int):
        return torch.full((1,), t, device=device)  # filled on the device; a copy would synchronise with it
    t = torch.as_tensor(t, device=device)
    if t.is_floating_point() and not torch.equal(t, t.round()):
        raise ValueError("timesteps must be whole numbers")
    return t.long().reshape(-1)


class TimeEmbedding(nn.Module):
    """Timestep -> `frequency_embedding_size` sinusoids -> two-layer MLP -> vector of `hidden_size`."""

    def __init__(self, hidden_size: int, frequency_embedding_size: int = 256):
        super().__init__()
        self.frequency_embedding_size = frequency_embedding_size
        self.mlp = nn.Sequential(
            nn.Linear(frequency_embedding_size, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    @staticmethod
    def timestep_embedding(t: Tensor, dim: int, max_period: float = 10000) -> Tensor:
        """t [B] -> float32 [B, dim]: cosines, then sines (Vaswani et al., 2017, arXiv:1706.03762, Sec. 3.5).

        Frequencies fall geometrically from 1 to about 1 / max_period; an odd dim ends in a 0.
        """
        half = dim // 2
        frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device) / half)
        angles = t.float().reshape(-1, 1) * frequencies  # [B, half]
        return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))

    def forward(self, t: int | Tensor) -> Tensor:
        """t [B] -> [B, hidden_size]; a single t -> [1, hidden_size]."""
        t = as_timesteps(t, self.mlp[0].weight.device)
        return self.mlp(self.timestep_embedding(t, self.frequency_embedding_size))


class TimeLinear(nn.Module):
    """An affine map of x, multiplied feature by feature by an embedding of t = 0 .. num_timesteps - 1."""

    def __init__(self, dim_in: int, dim_out: int, num_timesteps: int):
        super().__init__()
        self.dim_in, self.dim_out, self.num_timesteps = dim_in, dim_out, num_timesteps
        self.time_embedding = TimeEmbedding(dim_out)
        self.fc = nn.Linear(dim_in, dim_out)
        # The factors start near 1, so the layer is initially almost independent of t.
        nn.init.ones_(self.time_embedding.mlp[-1].bias)
        # The sinusoids of all T timesteps: a look-up is faster than computing them in every call.
        size = self.time_embedding.frequency_embedding_size
        table = self.time_embedding.timestep_embedding(torch.arange(num_timesteps), size)
        self.register_buffer("sinusoids", table, persistent=False)

    def forward(self, x: Tensor, t: int | Tensor) -> Tensor:
        """x [B, dim_in], t [B] (or a single t) -> [B, dim_out]."""
        sinusoids = F.embedding(as_timesteps(t, x.device), self.sinusoids)  # unlike indexing, it rejects t = -1
        return self.time_embedding.mlp(sinusoids) * self.fc(x)


class SimpleNet(nn.Module):
    """eps_theta(x_t, t): `TimeLinear` layers of widths [dim_in, *dim_hids, dim_out], SiLU between them.

    The last layer depends on t as well, since the scale of the noise prediction does, and has no activation.
    """

    def __init__(self, dim_in: int, dim_out: int, dim_hids: list[int], num_timesteps: int):
        super().__init__()
        # The arguments, saved in checkpoints to rebuild the network.
        self.config = dict(dim_in=dim_in, dim_out=dim_out, dim_hids=list(dim_hids), num_timesteps=num_timesteps)
        widths = [dim_in, *dim_hids, dim_out]
        self.layers = nn.ModuleList(TimeLinear(a, b, num_timesteps) for a, b in pairwise(widths))
        self.activation = nn.SiLU()
        # A feature silu(w x + b) bends near w x = -b. PyTorch's default weights put the bends near the origin, each as
        # wide as the data. These reach twice as far out and are half as wide.
        with torch.no_grad():
            self.layers[0].fc.weight.mul_(2)
            self.layers[0].fc.bias.mul_(4)

    def forward(self, x: Tensor, t: int | Tensor) -> Tensor:
        """x: noisy points [B, dim_in], t [B] (or a single t) -> predicted noise [B, dim_out]."""
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x, t))
        return last(x, t)
