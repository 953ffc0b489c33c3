"""Folders of images as training data: AFHQ, drawn faces, or any set that lies like them (see `data_folder.py`).

    python dataset.py                 # get AFHQ if it is not there, and make data/afhq/eval
    python dataset.py --synthetic 500     # no download: draw 500 training images of each kind

Afterwards `data/afhq/eval` holds every validation image at 64x64, for `fid/measure_fid.py`.
"""

import argparse
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from cli import ArgumentParser, UserError, exit_on_user_error, int_range
from data_folder import SPLITS, is_synthetic, is_writable, resolve_root
from download import download_afhq
from image_cache import cached_pixels
from images import fingerprint, list_images, read_image, resize
from synthetic_faces import write_synthetic_set

EVAL_RESOLUTION = 64

__all__ = [
    "AFHQDataModule",
    "AFHQDataset",
    "get_data_iterator",
    "is_synthetic",
    "make_eval_images",
    "tensor_to_pil_image",
    "to_tensor",
]


def tensor_to_pil_image(x: torch.Tensor, single_image: bool = False) -> list[Image.Image] | Image.Image:
    """Images in [-1, 1] as pictures; values outside are cut off.

    Args:
        x: [B, C, H, W] or [C, H, W], with 3 channels (RGB) or 1 (grey), of any floating-point type on any device.
        single_image: give one picture, the first, rather than a list. [C, H, W] always gives one.

    Returns:
        A list of B pictures, or one.

    Raises:
        ValueError: for another shape, or for values that are not numbers (a diverged model).
    """
    if x.ndim == 3:
        x, single_image = x[None], True
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"images must be [B, C, H, W] or [C, H, W] with 1 or 3 channels, got shape {list(x.shape)}")
    if x.isnan().any():
        raise UserError("images hold NaN")
    x = ((x.detach().float() + 1) * 127.5).clamp(0, 255).round().byte()
    images = [Image.fromarray(pixels) for pixels in x.permute(0, 2, 3, 1).squeeze(-1).cpu().numpy()]
    return images[0] if single_image else images


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """Bytes 0..255 of any shape as float32 in [-1, 1]."""
    return torch.from_numpy(pixels).float().div_(127.5).sub_(1)


def get_data_iterator(iterable: Iterable[Any]) -> Iterator[Any]:
    """Go through `iterable` again and again, without an end.

    Unlike `itertools.cycle` it starts a new pass each time, so a shuffling loader shuffles anew.

    Raises:
        ValueError: when a pass gives nothing, which would otherwise loop for ever.
    """
    while True:
        empty = True
        for item in iterable:
            empty = False
            yield item
        if empty:
            raise ValueError("cannot iterate endlessly over an empty iterable")


class AFHQDataset(Dataset):
    """The images below `root/split/<class>/` as pairs `(image, label)`.

    Images in folders inside a class's folder belong to the class; hidden files, and files that are not images by their
    suffix, are passed over.

    Args:
        root: the data root; it holds the split.
        split: "train" or "val".
        transform: applied to each RGB picture; None gives the picture itself.
        max_num_images_per_cat: take the first so many images of each class, in the order of their paths; -1 takes all.
        label_offset: label of the first class. At 1, label 0 is left to mean "no class".

    Attributes:
        classes: names of the classes, sorted; class k has label `k + label_offset`.
        num_classes: how many.
        fnames, labels: path and label of each image.

    Raises:
        FileNotFoundError: when there is no such split.
        ValueError: when the split has no classes or a class has no images; the message names the folder.
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
        self.root = Path(root)
        self.split = split
        self.transform = transform
        folder = self.root / split
        if not folder.is_dir():
            raise FileNotFoundError(f"no split {split!r} in {self.root}: {folder} is not a folder")
        self.classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
        if not self.classes:
            raise UserError(f"{folder} must hold one folder of images a class, and it holds none")
        self.num_classes = len(self.classes)

        self.fnames: list[Path] = []
        self.labels: list[int] = []
        for label, name in enumerate(self.classes, start=label_offset):
            files = list_images(folder / name)
            if not files:
                raise UserError(f"{folder / name} holds no images")
            if max_num_images_per_cat != -1:
                files = files[:max_num_images_per_cat]
            self.fnames += files
            self.labels += [label] * len(files)

    def __len__(self) -> int:
        return len(self.fnames)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = read_image(self.fnames[index])
        return image if self.transform is None else self.transform(image), self.labels[index]


class CachedAFHQDataset(AFHQDataset):
    """The same, resized, as float32 [3, R, R] in [-1, 1], from a memory-mapped file of bytes (see `image_cache.py`).

    Attributes:
        pixels: uint8 [N, 3, R, R]; decoded when first asked for.
        skipped: what is wrong with each image that `skip_broken` left out; known, like the length, after `decode`.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        resolution: int,
        max_num_images_per_cat: int = -1,
        label_offset: int = 1,
        skip_broken: bool = False,
    ):
        super().__init__(root, split, None, max_num_images_per_cat, label_offset)
        self.resolution = resolution
        self.cache_name = split if max_num_images_per_cat == -1 else f"{split}-{max_num_images_per_cat}"
        self.skip_broken = skip_broken
        self.skipped: list[str] = []

    @cached_property
    def pixels(self) -> np.ndarray:
        pixels, broken = cached_pixels(self.fnames, self.root, self.resolution, self.cache_name, self.skip_broken)
        if broken:
            whole = [i for i in range(len(pixels)) if i not in broken]
            labels = [self.labels[i] for i in whole]
            if set(labels) != set(self.labels):
                reason = next(iter(broken.values()))
                raise UserError(f"{self.root / self.split}: all images of a class are broken, as {reason}")
            self.fnames, self.labels = [self.fnames[i] for i in whole], labels
            self.skipped = list(broken.values())
            pixels = pixels[whole]  # in memory: the price of broken images
        return pixels

    def decode(self) -> None:
        """Decode the images now.

        Raises:
            ValueError: for a broken image, unless `skip_broken`; or when all images of a class are broken.
        """
        _ = self.pixels

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return to_tensor(np.array(self.pixels[index])), self.labels[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, int]]:
        # The loader asks for a whole batch at once: one gather and one conversion.
        images = to_tensor(self.pixels[indices])
        return [(image, self.labels[index]) for image, index in zip(images, indices, strict=True)]


class TrainingBatches:
    """The batch of each training step: a function of the seed and the number of the step, and of nothing else.

    So a run that is resumed at step n sees the images that it would have seen. A pass over the data takes them in an
    order drawn from (seed, number of the pass), and leaves out the last few that do not fill a batch.

    On a GPU the bytes of all images lie in its memory, if they fit well.

    Args:
        dataset: images as bytes, from `AFHQDataModule`.
        batch_size: images in a batch.
        seed: at least 0.
        device: where the images are wanted.
        share: which images of each batch; several processes take a share each.
    """

    def __init__(
        self,
        dataset: CachedAFHQDataset,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        share: slice = slice(None),
    ):
        self.pixels, self.labels = dataset.pixels, torch.tensor(dataset.labels)
        self.batch_size, self.seed, self.device, self.share = batch_size, seed, torch.device(device), share
        self.order_of_pass = lru_cache(maxsize=1)(self._order_of_pass)
        if self.device.type == "cuda" and self.pixels.nbytes < torch.cuda.mem_get_info(self.device)[0] / 4:
            self.pixels = torch.from_numpy(np.array(self.pixels)).to(self.device)
            self.labels = self.labels.to(self.device)

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [batch_size, 3, R, R] in [-1, 1] and labels [batch_size] of step 0, 1, 2, ..."""
        number, k = divmod(step, len(self.labels) // self.batch_size)
        indices = self.order_of_pass(number)[k * self.batch_size : (k + 1) * self.batch_size][self.share]
        if isinstance(self.pixels, torch.Tensor):
            indices = torch.from_numpy(indices).to(self.device, non_blocking=True)
            return self.pixels[indices].float().div_(127.5).sub_(1), self.labels[indices]
        return to_tensor(self.pixels[indices]).to(self.device), self.labels[indices].to(self.device)

    def _order_of_pass(self, number: int) -> np.ndarray:
        return np.random.default_rng([self.seed, number]).permutation(len(self.labels))


class AFHQDataModule:
    """Training and validation loaders; a data set that is not there is downloaded.

    With the default transform the images are decoded once into a file of bytes, and batches come from there so quickly
    that no worker processes are used.

    Args:
        root: the data root, which holds `train/` and `val/`, or the folder in which it is called `afhq`.
        batch_size: images in a batch.
        num_workers: processes that decode images for a `transform`.
        max_num_images_per_cat: see `AFHQDataset`; holds for both splits.
        image_resolution: height and width of the images, for the default transform.
        label_offset: see `AFHQDataset`.
        transform: from an RGB picture to a tensor; None resizes and gives float32 [3, R, R] in [-1, 1].
        skip_broken: leave out images that cannot be decoded, for the default transform.

    Attributes:
        train_ds, val_ds: the two `AFHQDataset`s.
        num_classes: how many classes both have.

    Raises:
        FileNotFoundError, ValueError: when there is only one split, or a folder of other things; when the two have
            different classes, or when an image cannot be decoded (then on first use); the message names it.
        ConnectionError: when there are no data and they cannot be downloaded.
    """

    def __init__(
        self,
        root: str | os.PathLike = "data",
        batch_size: int = 32,
        num_workers: int = 4,
        max_num_images_per_cat: int = 1000,
        image_resolution: int = 64,
        label_offset: int = 1,
        transform: Callable[[Image.Image], torch.Tensor] | None = None,
        skip_broken: bool = False,
    ):
        self.root = resolve_root(root)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.image_resolution = image_resolution
        if not any((self.root / split).is_dir() for split in SPLITS):
            if self.root.is_dir() and any(self.root.iterdir()):
                raise UserError(f"{self.root} holds neither train/ nor val/")
            download_afhq(self.root)

        def load(split: str) -> AFHQDataset:
            if transform is None:
                return CachedAFHQDataset(
                    self.root, split, image_resolution, max_num_images_per_cat, label_offset, skip_broken
                )
            return AFHQDataset(self.root, split, transform, max_num_images_per_cat, label_offset)

        self.train_ds, self.val_ds = load("train"), load("val")
        if self.train_ds.classes != self.val_ds.classes:
            raise UserError(
                f"{self.root}: the classes in train/ ({', '.join(self.train_ds.classes)}) "
                f"are not those in val/ ({', '.join(self.val_ds.classes)})"
            )
        self.num_classes = self.train_ds.num_classes

    def check_batch_size(self) -> None:
        """See that the training images fill a batch.

        Raises:
            ValueError: when they do not.
        """
        if len(self.train_ds) < self.batch_size:
            raise UserError(
                f"{self.root / 'train'} gives {len(self.train_ds)} images, fewer than one batch of {self.batch_size}: "
                "choose a smaller batch size"
            )

    def train_batches(
        self, seed: int, device: torch.device | str = "cpu", share: slice = slice(None)
    ) -> TrainingBatches:
        """Batches as `train_dataloader` has them, but by the number of the step (for the default transform).

        Raises:
            ValueError: when there are fewer images than one batch takes.
        """
        self.train_ds.decode()
        self.check_batch_size()
        return TrainingBatches(self.train_ds, self.batch_size, seed, device, share)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches, all full: images [batch_size, 3, R, R] and labels [batch_size].

        Raises:
            ValueError: when there are fewer images than one batch takes.
        """
        self._decode(self.train_ds)
        self.check_batch_size()
        return self._loader(self.train_ds, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """Batches in the order of the files; the last one may be shorter."""
        self._decode(self.val_ds)
        return self._loader(self.val_ds)

    @staticmethod
    def _decode(dataset: AFHQDataset) -> None:
        if isinstance(dataset, CachedAFHQDataset):
            dataset.decode()  # only then is it known how many images are left

    def _loader(self, dataset: AFHQDataset, **how: bool) -> DataLoader:
        decoded = isinstance(dataset, CachedAFHQDataset)  # a batch is then a copy of bytes: workers would only cost
        return DataLoader(dataset, self.batch_size, num_workers=0 if decoded else self.num_workers, **how)


def make_eval_images(root: str | os.PathLike, resolution: int = EVAL_RESOLUTION) -> tuple[int, int]:
    """Bring `root/eval/` up to date: every validation image as a small PNG `<class>_<name>.png`, and nothing else.

    Each PNG carries a fingerprint of the file that it was made from. So a second call finds nothing to do, and a later
    one sees which validation images were changed, added or removed, or are wanted at another resolution.

    Returns:
        How many images there are, and how many of them were made now.

    Raises:
        PermissionError: when the root is read-only.
        ValueError: when a validation image is broken, or `eval/` holds something that this program did not put there.
    """
    root = Path(root)
    sources = _eval_names(AFHQDataset(root, "val"))
    if not is_writable(root):
        raise PermissionError(f"{root} is read-only, so eval/ cannot be made there: copy the data set")
    folder, temporary_folder = root / "eval", root / ".cache"
    folder.mkdir(exist_ok=True)
    temporary_folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name in sources or path.name.startswith("."):
            continue
        if _made_from(path) is None:
            raise UserError(f"{path} is not a validation image, and the distance would be measured against it: move it")
        path.unlink()

    def update(name: str) -> bool:
        source = sources[name]
        origin = fingerprint([source], root, resolution)
        if _made_from(folder / name) == origin:
            return False
        info = PngImagePlugin.PngInfo()
        info.add_text("Source", origin)
        temporary = temporary_folder / f"{name}.tmp"  # not in eval/, where a killed run would leave it
        resize(read_image(source), resolution).save(temporary, format="PNG", pnginfo=info)
        temporary.replace(folder / name)
        return True

    with ThreadPoolExecutor() as pool:
        made = list(tqdm(pool.map(update, sources), desc="evaluation images", total=len(sources), unit="image"))
    return len(sources), sum(made)


def _eval_names(dataset: AFHQDataset) -> dict[str, Path]:
    """A file name for each image, different even where letter case does not count."""
    names: dict[str, Path] = {}
    taken = set()
    for file in dataset.fnames:
        stem = name = "_".join(file.relative_to(dataset.root / dataset.split).with_suffix("").parts)
        number = 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        names[f"{name}.png"] = file
    return names


def _made_from(path: Path) -> str | None:
    """The fingerprint in an evaluation image, or None if this is no such file."""
    try:
        with Image.open(path) as image:
            return image.info.get("Source")
    except (OSError, SyntaxError):
        return None


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    place = "folder that holds, or shall hold, train/ and val/ (default: data/afhq)"
    add("--data_root", type=Path, default="data/afhq", metavar="DIR", help=place)
    add("--synthetic", type=int_range(1), metavar="N", help="draw N training images a class instead of a download")
    add("--seed", type=int_range(0), default=0, metavar="N", help="of the drawn images (default: 0)")
    size = f"of the images in eval/: that of the model (default: {EVAL_RESOLUTION})"
    add("--image_resolution", type=int_range(1), default=EVAL_RESOLUTION, metavar="N", help=size)
    args = parser.parse_args()

    root = resolve_root(args.data_root)
    if not root.is_dir():
        root = args.data_root
    with exit_on_user_error():
        if args.synthetic:
            write_synthetic_set(root, args.synthetic, args.seed)
        elif not any((root / split).is_dir() for split in SPLITS):
            download_afhq(root)
        train = AFHQDataset(root, "train")
        total, made = make_eval_images(root, args.image_resolution)
    drawn = "drawn " * is_synthetic(root)
    print(f"{root / 'train'}: {len(train)} {drawn}images of {', '.join(train.classes)}")
    print(f"{root / 'eval'}: {total} {drawn}images of {args.image_resolution}x{args.image_resolution}, {made} made now")
    if drawn and not args.synthetic:
        print(f"These faces are drawn. For AFHQ, remove {root} and call this program again")


if __name__ == "__main__":
    main()
