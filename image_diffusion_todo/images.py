"""Image files to RGB pixels: one way to read and one to resize, for training and evaluation alike.

Different resize filters on the two sides would add to the distance between them.
"""

import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, ImageOps

from atomic import atomic_write, remove_partials
from cli import UserError, is_writable
from cli import note as print_note
from progress import tqdm

# Left in folders by operating systems, file servers and archives; in lower case.
JUNK = {".directory", ".ds_store", "#recycle", "$recycle.bin", "@eadir", "@recycle", "__macosx", "desktop.ini"}
JUNK |= {"ehthumbs.db", "icon\r", "lost+found", "system volume information", "thumbs.db"}
IDENTIFIED_ONLY = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # formats that Pillow alone does not decode


note = cache(print_note)  # once per process


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of files that the installed Pillow can decode."""
    readable = {*Image.registered_extensions().values()} & {*Image.OPEN, "MPO"} - IDENTIFIED_ONLY
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in readable)


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or was left by an operating system, file server or archive."""
    return name.startswith(".") or name.lower() in JUNK or name.endswith(":Zone.Identifier")


def list_images(folder: str | os.PathLike) -> list[Path]:
    """The image files in `folder` and in all folders below it, sorted by path; links are followed.

    A note tells how many files are ignored because of their suffixes. OSError when a folder cannot be read.
    """

    def fail(error: OSError) -> NoReturn:
        raise error

    found, others = [], Counter()
    visited = set(Path(folder).resolve().parents)  # a link to one of these would be a cycle
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        place = Path(parent).resolve()
        if place in visited:
            folders.clear()
            continue
        visited.add(place)
        folders[:] = sorted(name for name in folders if not is_junk(name))
        for name in names:
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (4x slower)
            if is_junk(name):
                continue
            if suffix in image_suffixes():
                found.append(Path(parent, name))
            else:
                others[suffix or "none"] += 1
    if others:
        counts = ", ".join(f"{suffix} ({count})" for suffix, count in others.most_common(9))
        number = f"{others.total()} file{'s' * (others.total() > 1)}"
        note(f"{folder}: {number} ignored, with suffixes that are not those of images: {counts}")
    return sorted(found)


def to_rgb(image: Image.Image) -> Image.Image:
    """8 bits per channel: transparency becomes white, 16-bit grey is scaled."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("its integers are not within 16 bits")
        image = Image.fromarray((grey / 257).round().astype(np.uint8))
    if image.mode in ("P", "PA", "LA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_image(
    path: str | os.PathLike,
    convert: Callable[[Image.Image], Image.Image] = lambda image: to_rgb(ImageOps.exif_transpose(image)),
) -> Image.Image:
    """Read an image file, or the first frame of an animation; by default as RGB, upright as its EXIF data say.

    OSError when it cannot be read, UserError when it cannot be decoded. A note tells of 16-bit images that are nearly
    black.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():  # reading a pipe would block
            raise ValueError("not a file")
        with Image.open(path) as image:
            is_deep = image.mode.startswith("I") or ";16" in str(image.tile)
            image = convert(image)
        if is_deep and np.max(image.getextrema()) < 64:
            note(f"{Path(path).parent}: 16-bit images that use 14 bits or fewer are nearly black; scale their levels")
        return image
    except Exception as error:  # decoders fail with OSError, SyntaxError, struct.error, ...
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):
            raise
        reason = "" if isinstance(error, Image.UnidentifiedImageError) else f" ({error})"
        raise UserError(f"{path}: not an image, or a broken one{reason}") from error


def process_images(
    files: Sequence[Path],
    read: Callable[[Path], Image.Image],
    use: Callable[[int, Image.Image], None],
    skip_broken: bool,
    title: str,
) -> list[str]:
    """Call `use(i, read(file))` for each file i, in threads: Pillow works without holding Python's lock.

    Returns a message about each broken file and "" for the others; without `skip_broken`, the first broken image raises
    a UserError.
    """

    def process(i: int, file: Path) -> str:
        try:
            image = read(file)
        except (OSError, UserError) as error:
            if not skip_broken:
                raise UserError(f"{error}; --skip_broken leaves such images out") from error
            return str(error)
        use(i, image)
        return ""

    with ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(process, range(len(files)), files), title, len(files), unit="image"))


def center_square(image: Image.Image) -> Image.Image:
    """The largest square in the middle of an image."""
    side = min(image.size)
    left, upper = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, upper, left + side, upper + side))


def resize(image: Image.Image, resolution: int, crop: bool = False) -> Image.Image:
    """The whole image, or its centre square, at `resolution` x `resolution`; bit for bit the same if it has that size.

    Pillow's bicubic filter is antialiased: it widens with the scale. Parmar et al. (2022, arXiv:2104.11222) recommend
    it for distances between image sets; Lanczos rings more along edges.
    """
    image = center_square(image) if crop else image
    return image.resize((resolution, resolution), Image.Resampling.BICUBIC)


def decode_images(
    files: Sequence[Path], resolution: int, crop: bool = False, skip_broken: bool = False, title: str = "decoding"
) -> dict[str, np.ndarray]:
    """Read and resize images; errors as in `process_images`.

    Returns:
        "pixels": uint8 [N, 3, resolution, resolution] of the images that can be decoded, in the order of `files`;
        "broken": the indices in `files` of the others; "reasons": a message about each of them.
    """
    pixels = np.empty((len(files), 3, resolution, resolution), np.uint8)

    def read(file: Path) -> Image.Image:
        return resize(read_image(file), resolution, crop)

    def use(i: int, image: Image.Image) -> None:
        pixels[i] = np.asarray(image).transpose(2, 0, 1)

    reasons = np.array(process_images(files, read, use, skip_broken, title), str)
    broken = np.flatnonzero(reasons)
    pixels = np.delete(pixels, broken, axis=0) if len(broken) else pixels
    return {"pixels": pixels, "broken": broken, "reasons": reasons[broken]}


def cache_dirs(root: Path) -> list[Path]:
    """Folders for a cache of data from `root`, best first: its `.cache/` unless `root` is read-only, and the user's."""
    folders = [root / ".cache"] if is_writable(root) else []
    with suppress(RuntimeError):  # a user without a home
        users_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folders.append(users_cache / "image_diffusion" / hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16])
    return folders


def fingerprint(files: Sequence[Path], root: Path, *settings: object) -> str:
    """16 hex digits that depend on the files (their names below `root` and their contents) and on the settings."""
    digest = hashlib.sha256(repr(settings).encode())
    with ThreadPoolExecutor() as pool:
        for file, checksum in zip(files, pool.map(_checksum, files), strict=True):
            digest.update(os.fsencode(file.relative_to(root).as_posix()) + f"\0{checksum}\0".encode())
    return digest.hexdigest()[:16]


def _checksum(file: Path) -> int | None:
    with suppress(OSError):
        if file.is_file():  # reading a pipe would block
            return zlib.crc32(file.read_bytes())
    return None


def cached(
    root: Path, name: str, key: str, compute: Callable[[], Mapping[str, np.ndarray]]
) -> Mapping[str, np.ndarray]:
    """The arrays that `compute` returns, from `{name}.npz` in the `cache_dirs` of `root` if it was written with `key`.

    `key` must depend on all that the result depends on, see `fingerprint`. If no folder is writable, nothing is cached.
    """
    folders = cache_dirs(root)
    for folder in [root / ".cache", *folders]:  # a read-only root may have come with its cache
        with suppress(Exception), np.load(folder / f"{name}.npz") as file:  # damage may raise nearly anything
            if file["key"] == key:
                return dict(file)
    arrays = compute()
    for folder in folders:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            remove_partials(folder)
            with atomic_write(folder / f"{name}.npz") as file:
                np.savez(file, key=key, **arrays)
            break
    return arrays
