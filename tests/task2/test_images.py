"""Listing, reading and resizing image files of every kind, and refusing files that are not images."""

import os
import struct
import sys
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
    for name in ("elsewhere/folder/a.png", "elsewhere/b.png", "pets/c.png"):
        write_image(tmp_path / name)
    (tmp_path / "pets" / "linked").symlink_to(tmp_path / "elsewhere" / "folder", target_is_directory=True)
    (tmp_path / "pets" / "b.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    for name, target in {"self": ".", "up": "..", "pets/circle": "."}.items():
        (tmp_path / "pets" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "pets" / name).symlink_to(target, target_is_directory=True)
    (tmp_path / "link").symlink_to("pets")
    for folder in ("pets", "link"):
        assert names_below(tmp_path / folder) == ["b.png", "c.png", "linked/a.png"]


def test_all_endings_of_images_count_and_others_are_listed(tmp_path, capsys):
    for name in ("a.jfif", "b.JPE", "c.jp2", "d.avif"):
        Image.fromarray(NOISE).save(tmp_path / f"{name[0]}.png")
        (tmp_path / f"{name[0]}.png").rename(tmp_path / name)
    for name in ("e.heic", "f.HEIC", "notes.txt", "README", ".hidden.xyz", "Thumbs.db"):
        (tmp_path / name).touch()
    assert names_below(tmp_path) == ["a.jfif", "b.JPE", "c.jp2", "d.avif"]
    note = capsys.readouterr().err
    assert "4 files" in note and ".heic (2), " in note and ".xyz" not in note


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "pets").symlink_to("nowhere")
    with pytest.raises(OSError, match="pets"):
        list_images(tmp_path / "pets")


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


def test_16_bits_of_grey_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 128 * 257], [65535, 65535 - 257, 300 * 100]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[..., 0].tolist() == [[0, 1, 128], [255, 254, 117]]


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_16_bit_images_that_use_fewer_bits_are_said_to_be_dark(tmp_path, capsys, bits):
    values = np.random.default_rng(0).integers(0, 2**bits, (8, 8), dtype=np.uint16)
    values[0, 0] = 2**bits - 1
    Image.fromarray(values).save(tmp_path / "a.png")
    read_image(tmp_path / "a.png")
    assert (str(tmp_path) in capsys.readouterr().err) == (bits < 16)


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
    """A PNG of some bytes that says that it is 50,000 pixels wide and high."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


def damage(path, change):
    content = bytearray(write_image(path).read_bytes())
    change(content)
    path.write_bytes(content)


def flip_a_bit(content):
    content[60] ^= 1


BROKEN = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"hello"),
    "cut": lambda path: damage(path, lambda content: content.__delitem__(slice(500, None))),
    "flipped bit": lambda path: damage(path, flip_a_bit),
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


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system takes no such names")
def test_names_of_any_bytes_are_listed_and_read(tmp_path):
    names = [os.fsdecode(b"caf\xe9\n.png"), "two\nlines.png", "-rf *.png", "\x1b[31m.png", "%s {} ü.png"]
    for name in names:
        Image.fromarray(NOISE).save(tmp_path / name)
    assert {path.name for path in list_images(tmp_path)} == set(names)
    assert all(np.array_equal(pixels(path), NOISE) for path in list_images(tmp_path))
    assert len(fingerprint(list_images(tmp_path), tmp_path)) == 16
