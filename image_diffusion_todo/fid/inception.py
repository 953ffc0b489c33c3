"""The two Inception networks that turn images into features, with their weights files.

- `lab`: trained to tell AFHQ's three classes apart, on images at 256x256. The lab's marks are on its scale. The file
  comes with the lab's skeleton.
- `pytorch-fid`: trained on ImageNet; its features are those of `python -m pytorch_fid`, the output of one of four
  layers, averaged over the image. The file is downloaded.
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
from PIL import Image
from pytorch_fid import inception as pytorch_fid
from torch import Tensor, nn
from torchvision.models import inception_v3
from torchvision.transforms.functional import pil_to_tensor

from cli import UserError
from images import read_image
from progress import tqdm

WIDTHS = tuple(pytorch_fid.InceptionV3.BLOCK_INDEX_BY_DIM)  # 64, 192, 768, 2048
STANDARD_WIDTH = 2048  # the last layer, whose distance is called FID
NETWORKS = ("auto", "lab", "pytorch-fid")
LAB_BLOCKS = {  # torchvision's names of the layers in each block of the lab's file
    "block1": ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"),
    "block2": ("Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    "block3": tuple(f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e")),
    "block4": ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
}
LAB_WEIGHTS = Path(__file__).resolve().with_name("afhq_inception_v3.ckpt")


class FeatureNetwork:
    """A network that is ready to measure, with what identifies it.

    The constructors of the subclasses raise a UserError or OSError when the file of weights is missing or damaged.
    """

    name: str  # of `--network`

    def __init__(self, network: nn.Module, weights: Path, dims: int, device: torch.device | str):
        torch.backends.cudnn.allow_tf32 = False  # TF32 convolutions keep 10 bits, which changes the distance
        # Channels last: the same sums, about 1.3 times as fast on CPUs.
        self.network = network.eval().to(device, memory_format=torch.channels_last)
        self.weights, self.weights_sha256 = weights, hashlib.sha256(weights.read_bytes()).hexdigest()
        self.dims, self.device = dims, device

    def read(self, file: Path) -> Tensor:
        """The pixels of an image file, uint8 [3, H, W]."""
        return pil_to_tensor(read_image(file))

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        """Images from `read` -> features [B, dims]."""
        raise NotImplementedError


class LabInception(FeatureNetwork):
    """The lab's network."""

    name = "lab"
    origin = "the file comes with the lab's skeleton, in image_diffusion_todo/fid/"

    def __init__(self, device: torch.device | str = "cpu"):
        if not LAB_WEIGHTS.is_file():
            raise UserError(f"{LAB_WEIGHTS} does not exist: {self.origin}; --network pytorch-fid does not need it")
        network = inception_v3(weights=None, aux_logits=False, init_weights=False)
        network.fc = network.dropout = nn.Identity()
        try:
            state = {}
            for name, values in torch.load(LAB_WEIGHTS, map_location="cpu", weights_only=True).items():
                if not name.startswith("final_fc."):  # the three classes
                    block, i, rest = name.split(".", 2)
                    state[f"{LAB_BLOCKS[block][int(i)]}.{rest}"] = values
            network.load_state_dict(state)
        except Exception as error:  # other files make the loader raise nearly anything
            raise UserError(f"{LAB_WEIGHTS}: not the lab's Inception weights, or damaged; {self.origin}") from error
        super().__init__(network, LAB_WEIGHTS, STANDARD_WIDTH, device)

    def read(self, file: Path) -> Tensor:
        """The pixels of an image file at the size that the network was trained on, uint8 [3, 256, 256]."""
        return pil_to_tensor(read_image(file).resize((256, 256), Image.Resampling.BILINEAR))

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        return self.network(torch.stack(list(images)).to(self.device) / 127.5 - 1)


class PytorchFidInception(FeatureNetwork):
    """pytorch-fid's network up to the layer that has `dims` features. A missing file is downloaded."""

    name = "pytorch-fid"

    def __init__(self, dims: int = STANDARD_WIDTH, device: torch.device | str = "cpu"):
        weights = weights_file()
        if not weights.exists():
            _download_weights(weights)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pytorch-fid calls deprecated functions
                # pytorch-fid unpickles the file, which may run code. This read fails if it holds anything but tensors.
                torch.load(weights, map_location="cpu", weights_only=True)
                network = pytorch_fid.InceptionV3([pytorch_fid.InceptionV3.BLOCK_INDEX_BY_DIM[dims]])
        except Exception as error:
            hint = "remove the file to download it again"
            raise UserError(f"{weights}: not the Inception weights, or damaged; {hint}") from error
        super().__init__(network, weights, dims, device)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        if len({image.shape for image in images}) == 1:
            batch = torch.stack(list(images)).to(self.device) / 255
        else:  # images of different sizes are resized one by one, as the network would
            scaled = (x[None].to(self.device) / 255 for x in images)
            batch = torch.cat([F.interpolate(x, (299, 299), mode="bilinear") for x in scaled])
        return self.network(batch)[0].mean(dim=(2, 3))


def load_network(name: str, dims: int = STANDARD_WIDTH, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The network that `--network` names; auto is the lab's if its file exists and dims is its width."""
    if name == "lab" and dims != STANDARD_WIDTH:
        raise UserError(f"argument --dims: the lab's network has {STANDARD_WIDTH} features, not {dims}")
    if name == "lab" or (name == "auto" and dims == STANDARD_WIDTH and LAB_WEIGHTS.exists()):
        return LabInception(device)
    return PytorchFidInception(dims, device)


def extract_features(
    files: Sequence[Path], network: FeatureNetwork, batch_size: int = 50, name: str = "images"
) -> np.ndarray:
    """The features of image files, float32 [N, D] in their order; UserError for features that are not finite."""
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
                damage = f"damaged or incomplete, its features of --dims {network.dims} are not finite"
                raise UserError(f"{network.weights}: {damage}: download it again, or try smaller --dims")
            bar.update(len(images))
    return np.concatenate(features)


def weights_file() -> Path:
    """Where pytorch-fid looks for its weights: in PyTorch's hub folder, which TORCH_HOME moves."""
    return Path(torch.hub.get_dir()) / "checkpoints" / pytorch_fid.FID_WEIGHTS_URL.rpartition("/")[2]


def _download_weights(path: Path) -> None:
    """Leaves a file only if it is complete: its name ends with the start of its checksum."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # seconds; without it, a network that drops packets blocks for minutes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(pytorch_fid.FID_WEIGHTS_URL, str(path), hash_prefix=path.stem.rpartition("-")[2])
    except (OSError, HTTPException, RuntimeError) as error:
        by_hand = f"download {pytorch_fid.FID_WEIGHTS_URL} and save it as {path}"
        raise OSError(f"the Inception weights cannot be downloaded ({error}): {by_hand}") from error
    finally:
        socket.setdefaulttimeout(timeout)
