"""The U-Net of DDPM (Ho et al., 2020, App. B): down to small and wide, up again, with shortcuts across."""

import reprlib

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from module import DownSample, ResBlock, Swish, TimeEmbedding, UpSample, group_norm, small_init, usual_init
from scheduler import MAX_TIMESTEPS

# The largest sizes that are built, so that a slip of the pen does not fill the memory.
LIMITS = {"T": MAX_TIMESTEPS, "image_resolution": 2048, "ch": 2048, "ch_mult": 64, "num_res_blocks": 64}


class UNet(nn.Module):
    """Noisy images and their timesteps -> a prediction of the same shape.

    Level i works at 1 / 2^i of the image size with ch * ch_mult[i] channels. Each level has
    num_res_blocks blocks on the way down and one more on the way up, which also sees what the way
    down had at the same place.

    Args:
        T: number of diffusion steps (t is 0 .. T-1); kept in `config` alone, since the time embedding takes any t.
        image_resolution: height and width of the images.
        ch: channels of the first level, a multiple of 32.
        ch_mult: channels of each level, in units of ch.
        attn: the levels whose blocks end with self-attention; the middle always has one.
        num_res_blocks: blocks of each level on the way down.
        dropout: share of features zeroed in training.
        use_cfg: take class labels, for classifier-free guidance (Ho & Salimans, 2022, arXiv:2207.12598).
        cfg_dropout: share of labels replaced by 0, "no class", in training.
        num_classes: labels are 1 .. num_classes; needed with use_cfg.

    Raises:
        ValueError: for sizes that do not fit together.
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
    ):
        super().__init__()
        # Plain numbers from which the same network can be built again; they travel in checkpoints.
        self.config = {
            "T": T,
            "image_resolution": image_resolution,
            "ch": ch,
            "ch_mult": list(ch_mult),
            "attn": list(attn),
            "num_res_blocks": num_res_blocks,
            "dropout": dropout,
            "use_cfg": use_cfg,
            "cfg_dropout": cfg_dropout,
            "num_classes": num_classes,
        }
        for name, limit in LIMITS.items():
            value = self.config[name]
            sizes = value if isinstance(value, list) else [value]
            if not sizes or not all(isinstance(size, int) and 1 <= size <= limit for size in sizes):
                raise ValueError(f"{name} must be made of whole numbers from 1 to {limit}, got {reprlib.repr(value)}")
        if not (0 <= dropout < 1 and 0 <= cfg_dropout <= 1):
            raise ValueError(f"dropout and cfg_dropout are shares of 1, got {dropout} and {cfg_dropout}")
        smallest = 2 ** (len(ch_mult) - 1)
        if image_resolution < smallest or image_resolution % smallest:
            raise ValueError(
                f"image_resolution {image_resolution} cannot be halved {len(ch_mult) - 1} times, once for each level "
                f"after the first: choose a multiple of {smallest}"
            )
        if ch < 32 or ch % 32:
            raise ValueError(f"ch must be a multiple of 32, so that it divides into normalisation groups, got {ch}")
        if not set(attn) <= set(range(len(ch_mult))):
            raise ValueError(f"attn names levels 0 to {len(ch_mult) - 1}, got {list(attn)}")
        if use_cfg and not num_classes:
            raise ValueError("use_cfg needs num_classes")
        self.image_resolution, self.smallest = image_resolution, smallest
        self.activation_checkpointing = False  # set to compute activations twice in training rather than keep them
        self.use_cfg, self.cfg_dropout, self.num_classes = use_cfg, cfg_dropout, num_classes

        tdim = 4 * ch
        self.time_embedding = TimeEmbedding(tdim)
        if use_cfg:
            self.class_embedding = nn.Embedding(num_classes + 1, tdim)

        self.head = usual_init(nn.Conv2d(3, ch, 3, padding=1))

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

        self.tail = nn.Sequential(group_norm(now_ch), Swish(), small_init(nn.Conv2d(now_ch, 3, 3, padding=1)))

    def forward(
        self, x: torch.Tensor, timestep: int | torch.Tensor, class_label: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Predict noise, x_0 or mean, whichever the network is trained for.

        Args:
            x: noisy images [B, 3, H, W].
            timestep: t [B], or one t for the whole batch.
            class_label: [B] in 0 .. num_classes, 0 for "no class"; only with use_cfg.

        Raises:
            ValueError: for images that the levels cannot halve, and for labels when there is no use_cfg.
        """
        if x.shape[-2] % self.smallest or x.shape[-1] % self.smallest:
            raise ValueError(f"height and width must be multiples of {self.smallest}, got images {list(x.shape)}")
        temb = self.time_embedding(timestep)
        if self.use_cfg:
            temb = temb + self._embed_class(class_label, x)
        elif class_label is not None:
            raise ValueError("this network was built without use_cfg and takes no class_label")

        h = self.head(x)
        skips = [h]
        for block in self.downblocks:
            h = self._run(block, h, temb) if isinstance(block, ResBlock) else block(h)
            skips.append(h)
        for block in self.middleblocks:
            h = self._run(block, h, temb)
        for block in self.upblocks:
            h = self._run(block, torch.cat([h, skips.pop()], dim=1), temb) if isinstance(block, ResBlock) else block(h)
        # In bfloat16 the answer itself would come in steps of half a grey level.
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self.tail(h.float())
        return self.tail(h)

    def _run(self, block: ResBlock, h: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        if self.activation_checkpointing and self.training:
            return checkpoint(block, h, temb, use_reentrant=False)
        return block(h, temb)

    def _embed_class(self, class_label: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
        if class_label is None:
            class_label = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        if self.training:
            dropped = torch.rand(x.shape[0], device=x.device) < self.cfg_dropout
            class_label = class_label.masked_fill(dropped, 0)
        return self.class_embedding(class_label)
