"""Has a model memorised training images? The nearest one to each sample, by pixels and by Inception features.

    python report/neighbours.py --samples DIR --data_root DIR

figures/neighbours.png shows the 8 samples with the smallest feature distance to a training image, and the nearest
training images below them. tables/neighbours.csv compares samples and validation images, which the model has not seen:
the median distance to the nearest training image, and the shares of samples that are closer to one than the median
validation image, and than all but the closest 5 %. Samples as new as validation images have shares of about 0.5 and
0.05; by pixels, smooth samples have larger ones. All images have the size of the samples. By pixels, training images
are mirrored as well.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import common
from cli import ArgumentParser, exit_on_user_error, int_range, select_device
from data_folder import check_has_data, resolve_root, split_dir
from fid.image_sets import find_images
from fid.inception import WIDTHS, PytorchFidInception
from image_grid import image_grid
from images import read_image, resize
from progress import tqdm


def read_images(folder: Path, size: int) -> torch.Tensor:
    """The pixels of all images below a folder, uint8 [N, 3, size, size]."""
    bar = tqdm(find_images(folder).files, desc=f"reading {folder.name}", unit="image", leave=False)
    return torch.from_numpy(np.stack([np.asarray(resize(read_image(file), size)) for file in bar])).permute(0, 3, 1, 2)


def features_of(images: torch.Tensor, network: PytorchFidInception) -> torch.Tensor:
    """Inception features [N, dims] of images uint8 [N, 3, H, W]."""
    bar = tqdm(images.split(50), desc="features", unit="batch", leave=False)
    return torch.cat([network(list(part)).cpu() for part in bar])


def nearest(queries: torch.Tensor, references: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Root mean square difference of each query [M, ...] to its nearest reference [N, ...] and the latter's index."""
    queries = queries.flatten(1).float()
    parts = (part.flatten(1).float() for part in references.split(512))
    distances, indices = torch.cat([torch.cdist(queries, part) for part in parts], dim=1).min(dim=1)
    return distances / queries.shape[1] ** 0.5, indices


def nearest_or_mirrored(queries: torch.Tensor, references: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`nearest` for images [N, 3, H, W], where each reference counts with its mirror image."""
    (distances, indices), (mirrored, others) = (nearest(images, references) for images in (queries, queries.flip(3)))
    return torch.minimum(distances, mirrored), torch.where(distances <= mirrored, indices, others)


def comparison(samples: torch.Tensor, validation: torch.Tensor) -> dict[str, str]:
    """The distances of samples and validation images to their nearest training images, as columns of the table."""
    median, low = validation.quantile(0.5), validation.quantile(0.05)
    return {
        "median_of_samples": f"{samples.quantile(0.5):.4g}",
        "median_of_validation": f"{median:.4g}",
        "share_below_median": f"{(samples < median).float().mean():.3f}",
        "share_below_5_percent": f"{(samples < low).float().mean():.3f}",
    }


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--samples", type=Path, required=True, metavar="DIR", help="images of one size, from sampling.py")
    add("--data_root", type=Path, required=True, metavar="DIR", help="the data that the model was trained on")
    add("--out", **common.OUT)
    add("--show", type=int_range(1), default=8, metavar="N", help="samples in the figure")
    add("--dims", type=int, choices=WIDTHS, default=768, help="Inception features")
    add("--device", type=select_device, default="auto", metavar="NAME", help="auto, cpu, cuda, mps")
    args = parser.parse_args()
    with exit_on_user_error():
        check_has_data(args.data_root)
        root = resolve_root(args.data_root)
        network = PytorchFidInception(args.dims, args.device)
        with Image.open(find_images(args.samples).files[0]) as image:
            size = image.width
        folders = args.samples, split_dir(root, "train"), split_dir(root, "val")
        images = [read_images(folder, size) for folder in folders]
        features = [features_of(image_set, network) for image_set in images]
        table, found = [], {}
        for name, find, values in [("pixels", nearest_or_mirrored, images), ("features", nearest, features)]:
            samples, training, validation = values
            found[name] = find(samples, training)
            columns = comparison(found[name][0], find(validation, training)[0])
            table.append({"distance": name, "samples": len(samples), **columns})
        common.write(args.out / "tables/neighbours.csv", table)

        samples, training, _ = images
        shown = found["features"][0].argsort()[: args.show]
        rows = {"sample": samples[shown]}
        rows |= {f"by {name}": training[indices[shown]] for name, (_, indices) in found.items()}
        strips = {name: image_grid(row / 127.5 - 1, len(shown)) for name, row in rows.items()}
        common.write(args.out / "figures/neighbours.png", common.draw_strips(strips))


if __name__ == "__main__":
    main()
