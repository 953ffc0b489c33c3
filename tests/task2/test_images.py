"""Listing, reading and resizing image files of every kind, and refusing files that are not images."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from conftest import write_image
from images import center_square, fingerprint, list_images, read_image, resize

NOISE = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)  # no two pixels are likely to be alike


def pixels(path):
    return np.asarray(read_image(path))


def names_below(folder):
    return [path.relative_to(folder).as_posix() for path in list_images(folder)]


def test_links_are_followed_but_not_in_circles(tmp_path):
    for name in ("elsewhere/a.png", "pets/c.png"):
        write_image(tmp_path / name)
    (tmp_path / "pets" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "pets" / "up").symlink_to("..", target_is_directory=True)
    assert names_below(tmp_path / "pets") == ["c.png", "linked/a.png"]


def test_all_endings_of_images_count_and_others_are_listed(tmp_path, capsys):
    for name in ("a.jfif", "b.JPE", "c.jp2", "d.avif"):
        Image.fromarray(NOISE).save(tmp_path / f"{name[0]}.png")
        (tmp_path / f"{name[0]}.png").rename(tmp_path / name)
    for name in ("e.heic", "f.HEIC", "notes.txt", "README", ".hidden.xyz", "Thumbs.db"):
        (tmp_path / name).touch()
    assert names_below(tmp_path) == ["a.jfif", "b.JPE", "c.jp2", "d.avif"]
    note = capsys.readouterr().err
    assert "4 files" in note and ".heic (2), " in note and ".xyz" not in note


@pytest.mark.parametrize("name", ["a b.png", "a.PNG", "a.bmp", "a.ppm", "a.tiff", "a.webp"])
def test_lossless_formats_are_read_bit_for_bit(tmp_path, name):
    Image.fromarray(NOISE).save(tmp_path / name, **({"lossless": True} if "webp" in name else {}))
    assert np.array_equal(pixels(tmp_path / name), NOISE)


@pytest.mark.parametrize(
    ("mode", "format"), [("1", "png"), ("L", "png"), ("P", "gif"), ("L", "jpeg"), ("CMYK", "jpeg")]
)
def test_other_modes_are_converted_as_pillow_does_it_whatever_the_ending_says(tmp_path, mode, format):
    Image.fromarray(NOISE).convert(mode).save(tmp_path / "a.bmp", format=format)
    with Image.open(tmp_path / "a.bmp") as image:
        assert image.mode == mode and np.array_equal(pixels(tmp_path / "a.bmp"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("largest", "is_dark"), [(65535, False), (1023, True)])
def test_16_bits_of_grey_are_scaled_not_clipped_and_nearly_black_ones_noted(tmp_path, capsys, largest, is_dark):
    values = np.linspace(0, largest, 12).round().astype(np.uint16).reshape(3, 4)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.array_equal(pixels(tmp_path / "a.png")[..., 0], (values / 257).round())
    assert (str(tmp_path) in capsys.readouterr().err) is is_dark


def test_transparent_parts_become_white(tmp_path):
    alpha = Image.fromarray(np.array([[0, 128, 255]], dtype=np.uint8))
    for mode, color in [("RGB", (200, 0, 100)), ("L", 100)]:
        image = Image.new(mode, (3, 1), color)
        image.putalpha(alpha)
        image.save(tmp_path / f"{mode}.png")
    indexed = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    indexed.putpalette([10, 20, 30, 40, 50, 60])
    indexed.save(tmp_path / "P.png", transparency=0)
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    assert {path.stem: pixels(path)[0].tolist() for path in tmp_path.glob("*.png")} == {
        "RGB": [[255, 255, 255], [227, 127, 177], [200, 0, 100]],
        "L": [[255] * 3, [177] * 3, [100] * 3],
        "P": [[255, 255, 255], [40, 50, 60]],
        "key": [[255, 255, 255]],
    }


@pytest.mark.parametrize("format", ["png", "gif", "webp"])
def test_an_animation_is_its_first_frame_upright(tmp_path, format):
    frames = [Image.new("RGB", (8, 4), color) for color in ("red", "blue", "lime")]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    options = {"lossless": True} if format == "webp" else {}
    options |= {"exif": exif} if format != "gif" else {}
    frames[0].save(tmp_path / f"a.{format}", save_all=True, append_images=frames[1:], **options)
    image = read_image(tmp_path / f"a.{format}")
    assert image.getcolors() == [(32, (255, 0, 0))] and image.size == ((8, 4) if format == "gif" else (4, 8))
    Image.fromarray(NOISE).save(tmp_path / "noise.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "noise.png"), np.rot90(NOISE, -1))


def test_resize_takes_the_whole_image_antialiased_and_leaves_the_right_size_alone():
    board = np.indices((500, 700)).sum(0) % 2 * 255
    board = np.repeat(board[..., None], 3, -1).astype(np.uint8)
    board[:100, :100] = [255, 0, 0]
    small = np.asarray(resize(Image.fromarray(board), 16)).astype(int)
    assert small.shape == (16, 16, 3) and small[0, 0].tolist() == [255, 0, 0]
    assert np.abs(small[5:, 5:] - 127.5).max() < 4  # grey, not stripes
    assert np.array_equal(resize(Image.fromarray(NOISE[:16]), 16), NOISE[:16])


def test_the_centre_square_of_wide_and_high_images():
    wide = np.zeros((40, 101, 3), np.uint8)
    wide[:, 30:70] = 255
    for pixels in (wide, wide.transpose(1, 0, 2)):
        assert center_square(Image.fromarray(pixels)).getcolors() == [(1600, (255, 255, 255))]
        assert np.min(resize(Image.fromarray(pixels), 16, crop=True)) == 255
        assert np.min(resize(Image.fromarray(pixels), 16)) == 0


def huge(path):
    """A PNG that claims to be 50,000 pixels wide and high, and ends there."""
    size = struct.pack(">I", 50_000) * 2
    content = bytearray(write_image(path).read_bytes())
    content[16:24] = size
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def change(path, start, stop, new):
    content = write_image(path).read_bytes()
    path.write_bytes(content[:start] + new + content[stop:])


BROKEN = {
    "pipe": os.mkfifo,  # reading would block
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"hello"),
    "cut": lambda path: change(path, 500, None, b""),
    "changed bytes": lambda path: change(path, 60, 62, b"??"),
    "32 bits": lambda path: Image.fromarray(np.full((4, 4), 2**20, np.int32)).save(path, format="tiff"),
    "floats": lambda path: Image.new("F", (4, 4)).save(path, format="tiff"),
    "huge": huge,
}
UNREADABLE = {
    "link to itself": lambda path: path.symlink_to(path),
    "link to nothing": lambda path: path.symlink_to(path.with_name("nowhere.png")),
}


@pytest.mark.parametrize("kind", [*BROKEN, *UNREADABLE])
def test_what_cannot_be_read_is_named_in_one_line(tmp_path, kind):
    (BROKEN | UNREADABLE)[kind](tmp_path / "strange.png")
    with pytest.raises((OSError, ValueError), match=r"strange\.png") as refusal:
        read_image(tmp_path / "strange.png")
    assert "\n" not in str(refusal.value) and ("broken" in str(refusal.value)) == (kind in BROKEN)
    assert len(fingerprint([tmp_path / "strange.png"], tmp_path)) == 16  # as train.py --skip_broken needs it


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "pets").symlink_to("nowhere")
    with pytest.raises(OSError, match="pets"):
        list_images(tmp_path / "pets")
