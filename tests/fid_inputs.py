"""What the tests of the FID program measure, and networks of random weights to measure it with."""

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.models.inception import BasicConv2d, InceptionA, InceptionB, InceptionC, InceptionD, InceptionE

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"  # of pytorch-fid


def write_images(folder, count, seed, size=(32, 24), grain=(32, 24), suffix="png"):
    """Random RGB images, enlarged from `grain`: features of different grain lie far from each other."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image = Image.fromarray(rng.integers(0, 256, (*grain[::-1], 3), dtype=np.uint8))
        image.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.{suffix}")
    return folder


def write_two_folders(place):
    """Folders of images that differ: five real ones, four generated ones."""
    return write_images(place / "data/real", 5, seed=1), write_images(place / "made", 4, seed=2, grain=(4, 3))


def write_inception(home):
    """pytorch-fid's weights in a TORCH_HOME: random ones up to 192 features, NaN in all layers after that."""
    torch.manual_seed(0)
    network = torchvision.models.inception_v3(weights=None, init_weights=False, num_classes=1008, aux_logits=False)
    weights = network.state_dict()
    for name, values in weights.items():
        if not name.startswith(("Conv2d_1a", "Conv2d_2a", "Conv2d_2b", "Conv2d_3b", "Conv2d_4a")):
            fill = torch.nan if values.is_floating_point() else 0
            weights[name] = torch.tensor(fill, dtype=values.dtype).expand(values.shape)  # takes no room in the file
    file = home / "hub/checkpoints" / WEIGHTS
    file.parent.mkdir(parents=True)
    torch.save(weights, file)
    return file


class LabRecipe(nn.Module):
    """The lab's Inception, written down layer by layer, with random weights."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.block1 = nn.Sequential(
            BasicConv2d(3, 32, kernel_size=3, stride=2),
            BasicConv2d(32, 32, kernel_size=3),
            BasicConv2d(32, 64, kernel_size=3, padding=1),
        )
        self.block2 = nn.Sequential(BasicConv2d(64, 80, kernel_size=1), BasicConv2d(80, 192, kernel_size=3))
        mixed_5 = InceptionA(192, 32), InceptionA(256, 64), InceptionA(288, 64)
        mixed_6 = InceptionB(288), *(InceptionC(768, width) for width in (128, 160, 160, 192))
        self.block3 = nn.Sequential(*mixed_5, *mixed_6)
        self.block4 = nn.Sequential(InceptionD(768), InceptionE(1280), InceptionE(2048))
        self.final_fc = nn.Linear(2048, 3)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.running_mean, std=0.2)
                nn.init.uniform_(layer.running_var, 0.5, 2)
        self.eval()

    @torch.no_grad()
    def features(self, file):
        """Of an image file, in float64 [2048]."""
        self.double()
        image = Image.open(file).convert("RGB").resize((256, 256), Image.BILINEAR)
        x = torch.tensor(np.asarray(image, dtype=np.float64) / 127.5 - 1).permute(2, 0, 1)[None]
        x = nn.functional.max_pool2d(self.block1(x), 3, 2)
        x = nn.functional.max_pool2d(self.block2(x), 3, 2)
        return self.block4(self.block3(x)).mean(dim=(2, 3))[0]
