"""The evaluation images of a data set: every validation image, resized, in the folder `eval/`."""

import json
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from atomic import atomic_dir
from cli import UserError, check_writable
from data_folder import list_classes, split_dir, visible_names
from images import center_square, fingerprint, list_images, process_images, read_image, resize, to_rgb

EVAL_MANIFEST = ".images.json"
EVAL_RESOLUTION = 64


class EvalImages(NamedTuple):
    """What `make_eval_images` wrote into a folder; saved there as `EVAL_MANIFEST`."""

    made_from: str  # the `fingerprint` of validation images and settings
    names: list[str]
    skipped: list[str]  # a message about each image that was skipped


def make_eval_images(
    root: Path,
    resolution: int = EVAL_RESOLUTION,
    file_format: str = "png",
    crop: bool = False,
    skip_broken: bool = False,
) -> tuple[EvalImages, bool]:
    """Make `root/eval/`, unless it is up to date, and return what is in it and whether it is new.

    Args:
        root: the data root.
        resolution: height and width.
        file_format: "png" makes `<class>_<name>.png`, resized like training images. "jpeg" does what the lab does: the
            name stays, and Pillow's defaults resize and save the image in the mode that it has.
        crop: take the centre square of each image.
        skip_broken: leave out images that cannot be decoded; otherwise one is a UserError.

    UserError also when `eval/` holds files that this program did not write.
    """
    folder, settings = root / "eval", (file_format, resolution, crop)
    files = [file for images in list_classes(root, "val").values() for file in images]
    made_from = fingerprint(files, root, *settings)
    present, manifest = set(visible_names(folder)), _read_manifest(folder)
    if manifest.made_from == made_from and present == set(manifest.names) and (skip_broken or not manifest.skipped):
        return manifest, False
    if others := sorted(present - set(manifest.names)):
        is_lab = all(name.lower().endswith(".jpg") for name in others)
        kind = "JPEG images, as the lab's dataset.py makes them" if is_lab else "files that this program did not make"
        raise UserError(
            f"{folder} holds {len(others)} {kind} ({', '.join(others[:3])}): measure against them as they are, "
            "or move the folder and run this again (--eval_format jpeg makes the lab's images)"
        )
    check_writable(root)

    def lab_resize(image: Image.Image) -> Image.Image:
        image = (center_square(image) if crop else image).resize((resolution, resolution))
        return image if image.mode in ("L", "RGB", "CMYK") else to_rgb(image)

    def read(file: Path) -> Image.Image:
        return read_image(file, lab_resize) if file_format == "jpeg" else resize(read_image(file), resolution, crop)

    names = _eval_names(files, split_dir(root, "val"), file_format)
    with atomic_dir(folder) as partial:

        def save(i: int, image: Image.Image) -> None:
            image.save(partial / names[i])

        reasons = process_images(files, read, save, skip_broken, "evaluation images")
        names = [name for name, reason in zip(names, reasons, strict=True) if not reason]
        manifest = EvalImages(made_from, names, [reason for reason in reasons if reason])
        (partial / EVAL_MANIFEST).write_text(json.dumps(manifest._asdict()))
    return manifest, True


def check_eval_complete(folder: Path) -> None:
    """Raise a UserError if `make_eval_images` made this folder, and images were removed or added since."""
    made = set(_read_manifest(folder).names)
    present = {path.relative_to(folder).as_posix() for path in list_images(folder)}
    if made and present != made:
        raise UserError(
            f"{folder} holds {len(present & made)} of the {len(made)} images that dataset.py made, and "
            f"{len(present - made)} other images: remove the folder and run dataset.py again"
        )


def _read_manifest(folder: Path) -> EvalImages:
    """The manifest in a folder, an empty one if there is none; a UserError if it is damaged."""
    path = folder / EVAL_MANIFEST
    if not path.exists():
        return EvalImages("", [], [])
    try:
        manifest = json.loads(path.read_text())
        return EvalImages(manifest.get("made_from", ""), list(manifest["names"]), manifest.get("skipped", []))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged, or of another version: move {folder} and run dataset.py again") from None


def _eval_names(files: Sequence[Path], folder: Path, file_format: str) -> list[str]:
    """A file name for each image, unique even where a file system ignores letter case or Unicode form."""
    names, taken = [], set()
    for file in files:
        suffix = ".png"
        stem = "_".join(file.relative_to(folder).with_suffix("").parts)
        if file_format == "jpeg":
            stem, suffix = file.stem, file.suffix if file.suffix.lower() in (".jpg", ".jpeg") else ".jpg"
        if len(os.fsencode(stem)) > 200:  # names have 255 bytes at most
            stem = os.fsencode(stem)[:200].decode(errors="ignore")
        name, number = stem, 1
        while (key := unicodedata.normalize("NFC", name).casefold()) in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(key)
        names.append(name + suffix)
    return names
