"""Folders of images as training data: AFHQ, synthetic faces, or any set with the same layout (see `data_folder.py`).

    python dataset.py                                        # download AFHQ if it is missing
    python dataset.py --synthetic 500                        # no download: draw 500 training images per class
    python dataset.py --data_root pictures --val_share 0.1   # your images: link a tenth into pictures/split/val

Each also makes the folder eval/ of every validation image at 64x64, for `fid/measure_fid.py`.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cli import ArgumentParser, UserError, exit_on_user_error, float_range, int_range, one_line
from data_folder import SPLITS, is_synthetic, list_classes, present_splits, resolve_root, split_dir, split_off_val
from download import download_afhq
from eval_images import EVAL_RESOLUTION, make_eval_images
from images import cached, decode_images, fingerprint, read_image
from synthetic_faces import write_synthetic_set

CPU = torch.device("cpu")


def tensor_to_pil_image(x: Tensor, single_image: bool = False) -> list[Image.Image] | Image.Image:
    """Floats [B, C, H, W] in [-1, 1], clipped, as Pillow images; C is 3 (RGB) or 1 (grey).

    With `single_image`, or x [C, H, W], the first image rather than a list.
    """
    if x.ndim == 3:
        x, single_image = x[None], True
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.is_floating_point():
        raise ValueError(f"images must be floats [B, C, H, W] with C = 1 or 3, got {x.dtype} {list(x.shape)}")
    if x.isnan().any():
        raise UserError("the images hold NaN: the model has diverged")
    x = ((x.detach().float() + 1) * 127.5).clamp(0, 255).round().byte()
    images = [Image.fromarray(pixels) for pixels in x.permute(0, 2, 3, 1).squeeze(-1).cpu().numpy()]
    return images[0] if single_image else images


def to_tensor(pixels: np.ndarray | Tensor) -> Tensor:
    """Bytes 0..255 of any shape as float32 in [-1, 1]."""
    return torch.as_tensor(pixels).float().div_(127.5).sub_(1)


def get_data_iterator(iterable: Iterable[Any]) -> Iterator[Any]:
    """Iterate over `iterable` again and again; unlike `itertools.cycle`, a shuffling loader shuffles each pass anew."""
    while True:
        empty = True
        for item in iterable:
            empty = False
            yield item
        if empty:
            raise ValueError("cannot iterate endlessly over an empty iterable")


class AFHQDataset(Dataset):
    """The images below `root/split/<class>/` as pairs `(image, label)`.

    Args:
        root: the data root.
        split: "train" or "val"; errors as in `list_classes`.
        transform: applied to each RGB Pillow image; None returns the image itself.
        max_num_images_per_cat: use only so many images of each class, the first by name; -1 for all.
        label_offset: label of the first class, in the order of `list_classes`; label 0 is left for "no class".
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        transform: Callable[[Image.Image], Any] | None = None,
        max_num_images_per_cat: int = -1,
        label_offset: int = 1,
    ):
        if max_num_images_per_cat < 1 and max_num_images_per_cat != -1:
            raise UserError(f"max_num_images_per_cat must be at least 1, or -1 for all, got {max_num_images_per_cat}")
        self.root, self.split, self.transform = Path(root), split, transform
        self.max_num_images_per_cat = max_num_images_per_cat
        images = list_classes(self.root, split)
        self.classes = list(images)
        self.num_classes = len(self.classes)
        self.fnames: list[Path] = []
        self.labels: list[int] = []
        for label, files in enumerate(images.values(), start=label_offset):
            self.fnames += files if max_num_images_per_cat == -1 else files[:max_num_images_per_cat]
            self.labels += [label] * (len(self.fnames) - len(self.labels))

    def __len__(self) -> int:
        return len(self.fnames)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = read_image(self.fnames[index])
        return image if self.transform is None else self.transform(image), self.labels[index]


class CachedAFHQDataset(AFHQDataset):
    """The same as float32 [3, R, R] in [-1, 1], for R = `resolution`, decoded at first use and cached on disk.

    With `crop` the centre square of each image. With `skip_broken`, `decode` removes images that cannot be decoded from
    `fnames` and `labels`.

    Attributes:
        pixels: uint8 [N, 3, R, R]; None before `decode`.
        skipped: a message about each image that was skipped.
        fingerprint: of the names and contents of all files, and of the settings.
    """

    def __init__(
        self, root: Path, split: str, resolution: int, crop: bool = False, skip_broken: bool = False, **options: int
    ):
        super().__init__(root, split, **options)
        self.settings = (resolution, crop, skip_broken)
        self.pixels: Tensor | None = None
        self.skipped: list[str] = []
        self.fingerprint = ""

    def decode(self) -> None:
        """Decode the images or read the cache, unless that was done before.

        UserError for a broken image, unless `skip_broken`; or when all images of a class are broken.
        """
        if self.pixels is not None:
            return
        self.fingerprint = fingerprint(self.fnames, self.root, *self.settings)
        name = f"{self.split}-{self.settings[0]}px-{self.max_num_images_per_cat}".removesuffix("--1")
        decode = partial(decode_images, self.fnames, *self.settings, f"decoding {self.split}/")
        arrays = cached(self.root, name, self.fingerprint, decode)
        self.skipped = arrays["reasons"].tolist()
        whole = np.delete(np.arange(len(self.fnames)), arrays["broken"])
        labels = [self.labels[i] for i in whole]
        if {*labels} != {*self.labels}:
            folder = split_dir(self.root, self.split)
            raise UserError(f"{folder}: all images of a class are broken, as {self.skipped[0]}")
        self.fnames, self.labels = [self.fnames[i] for i in whole], labels
        self.pixels = torch.from_numpy(arrays["pixels"])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.decode()
        return to_tensor(self.pixels[index]), self.labels[index]


class TrainingBatches:
    """The batch of each training step, which depends on the seed and the step alone, so that a run can be resumed.

    Each epoch has an order of its own, and leaves out the last images, which do not fill a batch. `share` is the part
    of each batch for one of several processes. A GPU keeps all images in its memory if they take less than a quarter.
    """

    def __init__(
        self, dataset: CachedAFHQDataset, batch_size: int, seed: int, device: torch.device, share: slice = slice(None)
    ):
        self.pixels, self.labels = dataset.pixels, torch.tensor(dataset.labels)
        self.batch_size, self.seed, self.device, self.share = batch_size, seed, device, share
        self.order = lru_cache(maxsize=1)(self._order)
        if device.type == "cuda" and self.pixels.nbytes < torch.cuda.mem_get_info(device)[0] / 4:
            self.pixels, self.labels = self.pixels.to(device), self.labels.to(device)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images [batch_size, 3, R, R] in [-1, 1] and labels [batch_size] of step 0, 1, 2, ..."""
        epoch, i = divmod(step, len(self.labels) // self.batch_size)
        indices = self.order(epoch)[i * self.batch_size : (i + 1) * self.batch_size][self.share]
        indices = torch.from_numpy(indices).to(self.pixels.device, non_blocking=True)
        pixels = self.pixels.index_select(0, indices)  # faster than [indices]
        return to_tensor(pixels.to(self.device)), self.labels[indices].to(self.device)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.labels))


class AFHQDataModule:
    """Training and validation loaders; downloads AFHQ if there is no data set.

    Args:
        root: see `resolve_root`.
        num_workers: processes that run `transform`.
        max_num_images_per_cat, label_offset: see `AFHQDataset`.
        image_resolution, crop, skip_broken: see `CachedAFHQDataset`; without a `transform`.
        transform: from an RGB Pillow image to a tensor, anew each time; None takes the cached images.

    UserError when the splits have different classes; see also `list_classes` and `download_afhq`.
    """

    def __init__(
        self,
        root: str | os.PathLike = "data",
        batch_size: int = 32,
        num_workers: int = 4,
        max_num_images_per_cat: int = 1000,
        image_resolution: int = 64,
        label_offset: int = 1,
        transform: Callable[[Image.Image], Tensor] | None = None,
        crop: bool = False,
        skip_broken: bool = False,
    ):
        self.root, self.batch_size, self.num_workers = resolve_root(root), batch_size, num_workers
        if not present_splits(self.root):
            download_afhq(self.root)
        options = {"max_num_images_per_cat": max_num_images_per_cat, "label_offset": label_offset}
        if transform is None:
            options |= {"resolution": image_resolution, "crop": crop, "skip_broken": skip_broken}
            load = partial(CachedAFHQDataset, self.root, **options)
        else:
            load = partial(AFHQDataset, self.root, transform=transform, **options)
        self.train_ds, self.val_ds = load("train"), load("val")
        if self.train_ds.classes != self.val_ds.classes:
            raise UserError(
                f"{self.root}: the classes in train/ ({', '.join(self.train_ds.classes)}) "
                f"are not those in val/ ({', '.join(self.val_ds.classes)})"
            )
        self.num_classes = self.train_ds.num_classes

    def check_batch_size(self) -> None:
        """Raise a UserError unless the training images fill a batch."""
        if len(self.train_ds) < self.batch_size:
            raise UserError(
                f"argument --batch_size: {self.batch_size} is more than the {len(self.train_ds)} images of "
                f"{split_dir(self.root, 'train')}"
            )

    def train_batches(self, seed: int, device: torch.device = CPU, share: slice = slice(None)) -> TrainingBatches:
        """Batches like those of `train_dataloader`, but by step (for the default transform)."""
        self.train_ds.decode()
        self.check_batch_size()
        return TrainingBatches(self.train_ds, self.batch_size, seed, device, share)

    def train_dataloader(self) -> DataLoader:
        """Shuffled full batches: images [batch_size, 3, R, R] and labels [batch_size]."""
        loader = self._loader(self.train_ds, shuffle=True, drop_last=True)
        self.check_batch_size()
        return loader

    def val_dataloader(self) -> DataLoader:
        """Batches in the order of the files; the last one may be smaller."""
        return self._loader(self.val_ds)

    def _loader(self, dataset: AFHQDataset, **options: bool) -> DataLoader:
        workers = self.num_workers
        if isinstance(dataset, CachedAFHQDataset):
            dataset.decode()  # it may skip images, and the loader needs their number
            workers = 0  # batches are copied from memory
        return DataLoader(dataset, self.batch_size, num_workers=workers, **options)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    help = "folder with train/ and val/, or one to create"
    add("--data_root", type=Path, default="data/afhq", metavar="DIR", help=help)
    source = parser.add_mutually_exclusive_group()
    help = "draw N training images per class instead of downloading AFHQ"
    source.add_argument("--synthetic", type=int_range(1), metavar="N", help=help)
    help = "split images without val/, flat or one folder per class: DIR/split/ gets links to all, a share P in val/"
    source.add_argument("--val_share", type=float_range(0.001, 0.999), metavar="P", help=help)
    add("--seed", type=int_range(0), default=0, metavar="N", help="of the synthetic images")
    help = "size of the images in eval/: that of the model's samples"
    add("--image_resolution", type=int_range(1), default=EVAL_RESOLUTION, metavar="N", help=help)
    help = "format of the images in eval/; jpeg gives those of the lab's dataset.py"
    add("--eval_format", choices=["png", "jpeg"], default="png", help=help)
    add("--crop", action="store_true", help="take the centre square of each validation image, as train.py --crop does")
    add("--skip_broken", action="store_true", help="leave out validation images that cannot be decoded")
    args = parser.parse_args()

    with exit_on_user_error():
        root = resolve_root(args.data_root)
        if not root.is_dir():
            root = args.data_root
        if args.synthetic:
            write_synthetic_set(root, args.synthetic, args.seed)
        elif args.val_share and len(present_splits(root)) == len(SPLITS):
            print(f"{root} has train/ and val/ already: --val_share has no effect")
        elif args.val_share:
            root = split_off_val(root, args.val_share)
        elif not present_splits(root):
            download_afhq(root)
        train = AFHQDataset(root, "train")
        made, is_new = make_eval_images(root, args.image_resolution, args.eval_format, args.crop, args.skip_broken)
    synthetic = "synthetic " * is_synthetic(root)
    classes = f"{train.num_classes} class{'es' * (train.num_classes > 1)}: {', '.join(train.classes)}"
    print(f"{split_dir(root, 'train')}: {len(train)} {synthetic}images of {classes}")
    if max(Counter(train.labels).values()) > 3000:
        print("    of which train.py takes the first 3000 per class; --max_num_images_per_cat -1 takes all")
    n, state = args.image_resolution, "made now" if is_new else "up to date"
    print(f"{root / 'eval'}: {len(made.names)} {synthetic}images of {n}x{n}, {state}")
    if made.skipped:
        print(f"{len(made.skipped)} broken images skipped:", *map(one_line, made.skipped), sep="\n    ")
    if synthetic and not args.synthetic:
        print(f"These faces are synthetic. For AFHQ, remove {root} and run this program again")


if __name__ == "__main__":
    main()
