"""The building blocks of the U-Net. Shapes are [B, C, H, W]; t is [B]."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import init


def small_init(layer: nn.Conv2d) -> nn.Conv2d:
    """Nearly zero weights, for the last layer of a residual branch and of the network.

    Blocks start as identities, and the network predicts 0, the mean of the noise. Not exactly zero, so that all
    parameters have a gradient from the first step.
    """
    init.xavier_uniform_(layer.weight, gain=1e-5)
    init.zeros_(layer.bias)
    return layer


def xavier_init(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Xavier-uniform weights and zero bias, for all other layers."""
    init.xavier_uniform_(layer.weight)
    init.zeros_(layer.bias)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups as in DDPM, but at least four channels per group.

    The time embedding shifts each channel, and a group of a single channel would normalise the shift away: a network of
    32 channels in 32 groups cannot depend on t.
    """
    return nn.GroupNorm(min(32, channels // 4), channels)


class Swish(nn.Module):
    """x sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class TimeEmbedding(nn.Module):
    """Timestep -> sinusoids (Vaswani et al., 2017, arXiv:1706.03762, Sec. 3.5) -> two-layer MLP -> vector.

    The frequency_embedding_size (even) sinusoids have frequencies from 1 down to 1/10000.
    """

    def __init__(self, hidden_size: int, frequency_embedding_size: int = 256):
        super().__init__()
        half = frequency_embedding_size // 2
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(half) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(
            xavier_init(nn.Linear(2 * half, hidden_size)),
            Swish(),
            xavier_init(nn.Linear(hidden_size, hidden_size)),
        )

    def forward(self, t: int | Tensor) -> Tensor:
        """t: [B] or [B, 1] -> [B, hidden_size]; an int or a 0-d tensor -> [1, hidden_size]."""
        t = torch.as_tensor(t, dtype=torch.float32, device=self.frequencies.device)
        angles = t.reshape(-1, 1) * self.frequencies  # [B, half]
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))


class DownSample(nn.Module):
    """Half the height and width, by a convolution of stride 2."""

    def __init__(self, in_ch: int):
        super().__init__()
        self.main = xavier_init(nn.Conv2d(in_ch, in_ch, 3, stride=2, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


class UpSample(nn.Module):
    """Twice the height and width: nearest-neighbour interpolation, then a convolution."""

    def __init__(self, in_ch: int):
        super().__init__()
        self.main = xavier_init(nn.Conv2d(in_ch, in_ch, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(F.interpolate(x, scale_factor=2, mode="nearest"))


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions, as a residual branch."""

    def __init__(self, in_ch: int):
        super().__init__()
        self.group_norm = group_norm(in_ch)
        self.proj_q = xavier_init(nn.Conv2d(in_ch, in_ch, 1))
        self.proj_k = xavier_init(nn.Conv2d(in_ch, in_ch, 1))
        self.proj_v = xavier_init(nn.Conv2d(in_ch, in_ch, 1))
        self.proj = small_init(nn.Conv2d(in_ch, in_ch, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x)
        # [B, 1 head, HW, C], contiguous: fused kernels, which store no HW x HW matrix, need this layout.
        q, k, v = (
            proj(h).flatten(2).transpose(1, 2)[:, None].contiguous() for proj in (self.proj_q, self.proj_k, self.proj_v)
        )
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(h[:, 0].transpose(1, 2).reshape(x.shape))


class ResBlock(nn.Module):
    """Two convolutions with the time (and class) embedding of width tdim added between them, and a shortcut.

    in_ch and out_ch are multiples of 32; with attn, the block ends with self-attention.
    """

    def __init__(self, in_ch: int, out_ch: int, tdim: int, dropout: float, attn: bool = False):
        super().__init__()
        self.block1 = nn.Sequential(
            group_norm(in_ch),
            Swish(),
            xavier_init(nn.Conv2d(in_ch, out_ch, 3, padding=1)),
        )
        self.temb_proj = nn.Sequential(Swish(), xavier_init(nn.Linear(tdim, out_ch)))
        self.block2 = nn.Sequential(
            group_norm(out_ch),
            Swish(),
            nn.Dropout(dropout),
            small_init(nn.Conv2d(out_ch, out_ch, 3, padding=1)),
        )
        self.shortcut = nn.Identity() if in_ch == out_ch else xavier_init(nn.Conv2d(in_ch, out_ch, 1))
        self.attn = AttnBlock(out_ch) if attn else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """x: [B, in_ch, H, W], temb: [B or 1, tdim] -> [B, out_ch, H, W]."""
        h = self.block1(x) + self.temb_proj(temb)[:, :, None, None]
        return self.attn(self.shortcut(x) + self.block2(h))
