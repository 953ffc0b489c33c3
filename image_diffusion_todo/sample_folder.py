"""The folder that sampling.py writes: 0.png, 1.png, ..., each with its settings and class as PNG texts."""

import json
from pathlib import Path

from PIL import Image, PngImagePlugin

from atomic import atomic_write, remove_partials
from cli import UserError, one_line
from images import list_images

SETTINGS_KEY, CLASS_KEY = "Made by", "Class"  # names of the PNG texts


class SampleFolder:
    """The numbered images of a folder, created if necessary, with all settings that they depend on."""

    def __init__(self, folder: Path, settings: dict):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.settings = folder, settings

    def missing(self, num_samples: int) -> list[int]:
        """Which of the images 0 .. num_samples - 1 are missing or damaged.

        UserError when the folder holds other images, which the FID program would measure as well.
        """
        paths = [self.folder / f"{i}.png" for i in range(num_samples)]
        there = set(list_images(self.folder))
        if unexpected := sorted(there.difference(paths)):
            raise UserError(
                f"argument --save_dir: {unexpected[0]} is not one of the {num_samples} images: choose another folder"
            )
        remove_partials(self.folder)
        return [i for i, path in enumerate(paths) if path not in there or not self._is_complete(path)]

    def _is_complete(self, path: Path) -> bool:
        settings = None
        try:
            with Image.open(path) as image:
                settings = image.info.get(SETTINGS_KEY)
                image.load()
            complete = True
        except (OSError, SyntaxError, ValueError):
            complete = False
        if difference := _difference(settings, self.settings):
            raise UserError(
                f"argument --save_dir: {path} was made with other settings ({difference}): choose another folder"
            )
        return complete

    def save(self, i: int, image: Image.Image, class_name: str | None = None) -> None:
        """Write image i."""
        text = PngImagePlugin.PngInfo()
        text.add_text(SETTINGS_KEY, json.dumps(self.settings, sort_keys=True))
        if class_name is not None:
            text.add_text(CLASS_KEY, one_line(class_name))
        with atomic_write(self.folder / f"{i}.png") as file:
            image.save(file, format="PNG", pnginfo=text)


def _difference(text: str | None, ours: dict) -> str:
    """The settings in which an image's text differs from ours, as a message; an absent one counts as None."""
    try:
        theirs = json.loads(text)
        names = sorted(theirs.keys() | ours.keys())
    except (TypeError, ValueError, AttributeError):
        return "it has none"
    return ", ".join(f"{n} {theirs.get(n)} there, {ours.get(n)} here" for n in names if theirs.get(n) != ours.get(n))
