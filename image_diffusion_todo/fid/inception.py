"""The Inception network that turns images into features: pytorch-fid's, with its weights file.

Features are float32 and those of `python -m pytorch_fid`: the output of one of four layers, averaged over the image.
"""

import hashlib
import socket
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_fid import inception as pytorch_fid
from torch import nn
from tqdm import tqdm

from cli import UserError
from images import read_image

WIDTHS = tuple(pytorch_fid.InceptionV3.BLOCK_INDEX_BY_DIM)  # 64, 192, 768, 2048
STANDARD_WIDTH = 2048  # the last layer, whose distance is called FID
RESOLUTION = 299  # to which the network resizes its input


class PytorchFidInception(nn.Module):
    """pytorch-fid's network up to the layer that has `dims` features, ready to measure.

    The weights (about 90 MB) are downloaded if they are not there.

    Raises:
        UserError: when the weights file is not what it should be.
        OSError: when the weights cannot be downloaded; the message says which file to put where.
    """

    name = "pytorch-fid"

    def __init__(self, dims: int = STANDARD_WIDTH, device: torch.device | str = "cpu"):
        super().__init__()
        self.weights = weights_file()
        if not self.weights.exists():
            _download_weights(self.weights)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about what pytorch-fid calls in torch and torchvision
                # pytorch-fid unpickles the file. Reading it as mere tensors first shows that it holds no code.
                torch.load(self.weights, map_location="cpu", weights_only=True)
                network = pytorch_fid.InceptionV3([pytorch_fid.InceptionV3.BLOCK_INDEX_BY_DIM[dims]])
        except Exception as error:  # the two loaders raise nearly anything for other files
            raise UserError(
                f"{self.weights}: not the Inception weights, or damaged; without this file they are downloaded anew"
            ) from error
        self.weights_sha256 = hashlib.sha256(self.weights.read_bytes()).hexdigest()
        # Channels last: the same sums, about 1.3 times as fast on CPUs.
        self.network = network.eval().to(device, memory_format=torch.channels_last)
        self.dims, self.device = dims, device
        torch.backends.cudnn.allow_tf32 = False  # which keeps 10 bits in convolutions, and moves the distance

    def read(self, file: Path) -> torch.Tensor:
        """The pixels of an image file, uint8 [3, H, W]."""
        return torch.from_numpy(np.array(read_image(file))).permute(2, 0, 1)

    @torch.inference_mode()
    def forward(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Images as `read` gives them -> features [B, dims]."""
        if len({image.shape for image in images}) == 1:
            batch = torch.stack(list(images)).to(self.device) / 255
        else:  # images of different sizes are resized one by one, as the network would
            size = (RESOLUTION, RESOLUTION)
            batch = torch.cat([F.interpolate(x[None].to(self.device) / 255, size, mode="bilinear") for x in images])
        return self.network(batch)[0].mean(dim=(2, 3))


def extract_features(files: Sequence[Path], network: nn.Module, batch_size: int = 50, name: str = "") -> np.ndarray:
    """The features of image files, float32 [N, D] in their order.

    Raises:
        UserError: for a broken image, or features that are not finite.
    """
    batches = [files[i : i + batch_size] for i in range(0, len(files), batch_size)]
    features = []
    bar = tqdm(total=len(files), desc=f"features of {name}", unit="image", leave=False)
    with bar, ThreadPoolExecutor() as pool:
        decoding = pool.map(network.read, batches[0])
        for following in [*batches[1:], []]:
            images = list(decoding)
            decoding = pool.map(network.read, following)  # while the network works on `images`
            features.append(network(images).float().cpu().numpy())
            if not np.isfinite(features[-1]).all():
                width = features[-1].shape[1]
                raise UserError(
                    f"{network.weights}: damaged or incomplete, its features of --dims {width} are not finite: "
                    "fetch it anew, or try smaller --dims"
                )
            bar.update(len(images))
    return np.concatenate(features)


def weights_file() -> Path:
    """Where pytorch-fid looks for the network's weights: in PyTorch's hub folder, which TORCH_HOME moves."""
    return Path(torch.hub.get_dir()) / "checkpoints" / pytorch_fid.FID_WEIGHTS_URL.rpartition("/")[2]


def _download_weights(path: Path) -> None:
    """Leaves a file only if it is complete: its name ends with the start of its checksum."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # seconds; without it, a network that drops packets blocks for minutes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(pytorch_fid.FID_WEIGHTS_URL, str(path), hash_prefix=path.stem.rpartition("-")[2])
    except (OSError, HTTPException, RuntimeError) as error:
        url = pytorch_fid.FID_WEIGHTS_URL
        raise OSError(
            f"the Inception weights cannot be downloaded ({error}): fetch {url} and save it as {path}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
