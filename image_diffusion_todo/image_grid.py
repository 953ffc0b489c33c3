"""Images side by side: a contact sheet of a folder, or the frames of a reverse chain.

python image_grid.py samples/linear --out linear.png      # the first 64 images of a folder
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from torchvision.utils import make_grid

from atomic import atomic_write
from cli import ArgumentParser, UserError, exit_on_user_error, int_range, writable_file
from dataset import tensor_to_pil_image, to_tensor
from images import list_images, read_image


def image_grid(images: Tensor, per_row: int) -> Image.Image:
    """Images [B, 3, H, W] in [-1, 1] (clipped) in rows, with thin gaps."""
    return tensor_to_pil_image(make_grid(images, nrow=per_row, padding=2, pad_value=1.0))


def trajectory_frames(chain: Iterator[Tensor], num_steps: int, num_frames: int = 10) -> Tensor:
    """Run a reverse chain x_T ... x_0 of `num_steps` + 1 tensors [B, 3, H, W] and keep evenly spaced frames of it.

    Returns:
        [num_frames, B, 3, H, W] on the CPU, from x_T to x_0; fewer frames if the chain is shorter, x_0 alone if
        num_frames is 1.
    """
    kept = set(torch.linspace(num_steps, 0, num_frames).round().long().tolist())
    return torch.stack([x_t.cpu() for i, x_t in enumerate(chain) if i in kept])


def trajectory_image(frames: Tensor) -> Image.Image:
    """Frames [F, B, 3, H, W] as a picture: a row for each image, time from left to right."""
    return image_grid(frames.transpose(0, 1).flatten(0, 1), per_row=len(frames))


def contact_sheet(folder: Path, count: int, per_row: int) -> Image.Image:
    """The first `count` images of a folder, in the order of their numbers or names, in rows."""
    files = sorted(list_images(folder), key=lambda path: (len(path.stem), path.stem))[:count]
    if not files:
        raise UserError(f"{folder} holds no images" if folder.is_dir() else f"there is no folder {folder}")
    images = [read_image(path) for path in files]
    if len({image.size for image in images}) > 1:
        raise UserError(f"{folder} holds images of different sizes")
    return image_grid(to_tensor(torch.stack([pil_to_tensor(image) for image in images])), per_row)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of images, all of one size")
    parser.add_argument("--out", type=writable_file, required=True, metavar="FILE", help="picture to write")
    parser.add_argument("--count", type=int_range(1), default=64, metavar="N", help="images in the picture")
    parser.add_argument("--per_row", type=int_range(1), default=8, metavar="N", help="images in a row")
    args = parser.parse_args()
    if args.folder.resolve() in args.out.resolve().parents:
        parser.error(f"argument --out: {args.out} is among the images, and the FID program would measure it too")
    picture_format = Image.registered_extensions().get(args.out.suffix.lower())
    if picture_format not in Image.SAVE:
        parser.error(f"argument --out: {args.out} does not end in the suffix of an image file, such as .png")
    with exit_on_user_error():
        sheet = contact_sheet(args.folder, args.count, args.per_row)
        with atomic_write(args.out) as file:
            sheet.save(file, format=picture_format)
    print(args.out)


if __name__ == "__main__":
    main()
