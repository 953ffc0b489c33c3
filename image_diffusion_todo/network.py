"""The U-Net of DDPM (Ho et al., 2020, App. B). Shapes: images [B, 3, H, W], features [B, C, H, W], t [B]."""

import reprlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cli import UserError
from module import DownSample, ResBlock, Swish, TimeEmbedding, UpSample, group_norm, small_init, xavier_init
from scheduler import MAX_TIMESTEPS

# Upper limits, so that a typo does not fill the memory.
LIMITS = {"T": MAX_TIMESTEPS, "image_resolution": 2048, "ch": 2048, "ch_mult": 64, "num_res_blocks": 64}
PATCH_SIZES = (1, 2, 4)


class UNet(nn.Module):
    """Noisy images and their timesteps -> a prediction of the same shape.

    Level i works at 1 / (patch_size 2^i) of the image size with ch * ch_mult[i] channels. It has num_res_blocks blocks
    on the way down and one more on the way up, where each also receives the features of the way down.

    Args:
        T: number of diffusion steps; only kept in `config`, since the time embedding takes any t.
        image_resolution: height and width of the images.
        ch: channels of the first level, a multiple of 32.
        ch_mult: channels of each level, in units of ch.
        attn: levels whose blocks end with self-attention; the middle always has it.
        num_res_blocks: blocks of each level on the way down.
        dropout: in the residual blocks, in [0, 1).
        use_cfg: take class labels, for classifier-free guidance (Ho & Salimans, 2022, arXiv:2207.12598).
        cfg_dropout: share of labels replaced by 0, "no class", in training.
        num_classes: labels are 1 .. num_classes; required with use_cfg.
        patch_size: 1, 2 or 4; patches of that side become channels at the input and pixels again at the output
            (Luhman & Luhman, 2022, arXiv:2207.04316), so that the blocks work on patch_size^2 fewer positions.

    UserError for sizes that do not fit together.
    """

    def __init__(
        self,
        T: int = 1000,
        image_resolution: int = 64,
        ch: int = 128,
        ch_mult: list[int] | tuple[int, ...] = (1, 2, 2, 2),
        attn: list[int] | tuple[int, ...] = (1,),
        num_res_blocks: int = 4,
        dropout: float = 0.1,
        use_cfg: bool = False,
        cfg_dropout: float = 0.1,
        num_classes: int | None = None,
        patch_size: int = 1,
    ):
        super().__init__()
        # The arguments, saved in checkpoints to rebuild the network.
        self.config = dict(T=T, image_resolution=image_resolution, ch=ch, ch_mult=list(ch_mult), attn=list(attn))
        self.config |= dict(num_res_blocks=num_res_blocks, dropout=dropout, patch_size=patch_size)
        self.config |= dict(use_cfg=use_cfg, cfg_dropout=cfg_dropout, num_classes=num_classes)
        for name, limit in LIMITS.items():
            value = self.config[name]
            sizes = value if isinstance(value, list) else [value]
            if not sizes or not all(isinstance(size, int) and 1 <= size <= limit for size in sizes):
                raise UserError(f"{name} takes whole numbers from 1 to {limit}, got {reprlib.repr(value)}")
        if not (0 <= dropout < 1 and 0 <= cfg_dropout <= 1):
            raise UserError(f"dropout and cfg_dropout are shares of 1, got {dropout} and {cfg_dropout}")
        if patch_size not in PATCH_SIZES:
            raise UserError(f"patch_size must be 1, 2 or 4, got {reprlib.repr(patch_size)}")
        divisor = patch_size * 2 ** (len(ch_mult) - 1)
        if image_resolution % divisor:
            raise UserError(
                f"image_resolution {image_resolution} is not a multiple of {divisor}, as patch_size {patch_size} "
                f"and {len(ch_mult)} levels of ch_mult require"
            )
        if ch % 32:
            raise UserError(f"ch must be a multiple of 32, for the groups of the normalisation, got {ch}")
        if not set(attn) <= set(range(len(ch_mult))):
            raise UserError(f"attn names levels 0 to {len(ch_mult) - 1}, got {list(attn)}")
        if use_cfg and not num_classes:
            raise UserError("use_cfg needs num_classes")
        self.image_resolution, self.patch_size = image_resolution, patch_size
        self.use_cfg, self.cfg_dropout, self.num_classes = use_cfg, cfg_dropout, num_classes
        self.activation_checkpointing = False  # recompute activations in the backward pass, to save memory

        tdim = 4 * ch
        self.time_embedding = TimeEmbedding(tdim)
        if use_cfg:
            self.class_embedding = nn.Embedding(num_classes + 1, tdim)

        self.head = xavier_init(nn.Conv2d(3 * patch_size**2, ch, 3, padding=1))

        self.downblocks = nn.ModuleList()
        now_ch, skip_chs = ch, [ch]
        for level, mult in enumerate(ch_mult):
            for _ in range(num_res_blocks):
                self.downblocks.append(ResBlock(now_ch, ch * mult, tdim, dropout, attn=level in attn))
                now_ch = ch * mult
                skip_chs.append(now_ch)
            if level != len(ch_mult) - 1:
                self.downblocks.append(DownSample(now_ch))
                skip_chs.append(now_ch)

        self.middleblocks = nn.ModuleList(
            [ResBlock(now_ch, now_ch, tdim, dropout, attn=True), ResBlock(now_ch, now_ch, tdim, dropout)]
        )

        self.upblocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(ch_mult))):
            for _ in range(num_res_blocks + 1):
                self.upblocks.append(ResBlock(now_ch + skip_chs.pop(), ch * mult, tdim, dropout, attn=level in attn))
                now_ch = ch * mult
            if level != 0:
                self.upblocks.append(UpSample(now_ch))

        last_conv = small_init(nn.Conv2d(now_ch, 3 * patch_size**2, 3, padding=1))
        self.tail = nn.Sequential(group_norm(now_ch), Swish(), last_conv)

    def forward(self, x: Tensor, timestep: int | Tensor, class_label: Tensor | None = None) -> Tensor:
        """The prediction for noisy images x; a single timestep is that of the whole batch.

        class_label is [B] in 0 .. num_classes, 0 or None for "no class"; a ValueError without use_cfg.
        """
        temb = self.time_embedding(timestep)
        if self.use_cfg:
            temb = temb + self._embed_class(class_label, x)
        elif class_label is not None:
            raise ValueError("this network was built without use_cfg and takes no class_label")

        h = self.head(F.pixel_unshuffle(x, self.patch_size))
        skips = [h]
        for block in self.downblocks:
            h = self._run(block, h, temb) if isinstance(block, ResBlock) else block(h)
            skips.append(h)
        for block in self.middleblocks:
            h = self._run(block, h, temb)
        for block in self.upblocks:
            h = self._run(block, torch.cat([h, skips.pop()], dim=1), temb) if isinstance(block, ResBlock) else block(h)
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 would round the output to half a grey level
            return F.pixel_shuffle(self.tail(h.float()), self.patch_size)

    def _run(self, block: ResBlock, h: Tensor, temb: Tensor) -> Tensor:
        if self.activation_checkpointing and self.training:
            return checkpoint(block, h, temb, use_reentrant=False)
        return block(h, temb)

    def _embed_class(self, class_label: Tensor | None, x: Tensor) -> Tensor:
        if class_label is None:
            class_label = torch.zeros(len(x), dtype=torch.long, device=x.device)
        if self.training:
            dropped = torch.rand(len(x), device=x.device) < self.cfg_dropout
            class_label = class_label.masked_fill(dropped, 0)
        return self.class_embedding(class_label)
