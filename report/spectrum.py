"""The mean power spectra of folders of images, by spatial frequency: a check of samples that needs no Inception.

    python report/spectrum.py DATA/eval samples/ddim-20 samples/dpm-20 --out report/tables/cats64_spectrum.csv

The power of the grey images is averaged over all frequencies (u, v) of the same rounded length. Natural images have
little power in fine detail, noise has equal power everywhere. The table has a column for each folder, under its name.
"""

from pathlib import Path

import numpy as np

import common
from cli import ArgumentParser, UserError, exit_on_user_error, writable_file
from fid.image_sets import find_images
from images import read_image


def log_spectrum(images: np.ndarray) -> np.ndarray:
    """log10 of the mean power at frequencies 1 .. H/2 - 1, in cycles per image, of grey images [N, H, H] in 0..255."""
    size = images.shape[1]
    power = np.square(np.abs(np.fft.fft2(images / 255.0))).mean(axis=0) / size**2  # [H, H]
    frequency = np.fft.fftfreq(size, 1 / size)
    radius = np.hypot(*np.meshgrid(frequency, frequency)).round()
    return np.log10([power[radius == r].mean() for r in range(1, size // 2)])


def read_grey(folder: Path) -> np.ndarray:
    """All images below a folder, grey [N, H, H]; UserError if they are not square and of one size."""
    images = [np.asarray(read_image(path).convert("L")) for path in find_images(folder).files]
    if {image.shape for image in images} != {(len(images[0]),) * 2}:
        raise UserError(f"{folder}: its images are not square, or not of one size")
    return np.stack(images)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="images of one size")
    parser.add_argument("--out", type=writable_file, required=True, metavar="FILE", help="the table")
    args = parser.parse_args()
    with exit_on_user_error():
        spectra = {folder.resolve().name: log_spectrum(read_grey(folder)) for folder in args.folders}
        rows = []
        for frequency, values in enumerate(zip(*spectra.values(), strict=True), start=1):
            cells = {name: f"{value:.4f}" for name, value in zip(spectra, values, strict=True)}
            rows.append({"frequency": frequency, **cells})
        common.write(args.out, rows)


if __name__ == "__main__":
    main()
