"""The evaluation images: their files and pixels; no other files are lost or measured by mistake."""

import shutil

import numpy as np
import pytest
from PIL import Image

from conftest import read_only, write_image
from eval_images import check_eval_complete, make_eval_images
from images import list_images, read_image, resize
from oracles import refused

NAMES = ["cat_cat0.png", "cat_cat1.png", "dog_dog0.png", "dog_dog1.png"]


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def counts(result):
    """How many images there are, and whether they were made now."""
    return len(result[0].names), result[1]


def test_eval_holds_every_validation_image_once_and_follows_changes(pets):
    assert counts(make_eval_images(pets)) == (4, True)
    assert names(pets / "eval") == NAMES and names(pets) == ["eval", "train", "val"]
    for path in (pets / "eval").glob("*.png"):
        source = pets / "val" / path.name[:3] / path.name[4:]
        assert np.array_equal(Image.open(path), resize(read_image(source), 64))
    before = {path.name: path.stat().st_mtime_ns for path in (pets / "eval").iterdir()}
    assert counts(make_eval_images(pets)) == (4, False)
    assert {path.name: path.stat().st_mtime_ns for path in (pets / "eval").iterdir()} == before
    write_image(pets / "val" / "cat" / "cat0.png", 55)
    write_image(pets / "val" / "cat" / "new.png", 56)
    (pets / "val" / "dog" / "dog1.png").unlink()
    assert counts(make_eval_images(pets)) == (4, True)
    assert names(pets / "eval") == [*NAMES[:2], "cat_new.png", NAMES[2]]
    assert np.array_equal(Image.open(pets / "eval" / "cat_cat0.png"), read_image(pets / "val" / "cat" / "cat0.png"))
    assert counts(make_eval_images(pets, resolution=16)) == (4, True)
    assert {read_image(path).size for path in list_images(pets / "eval")} == {(16, 16)}


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_in_eval_are_those_of_the_lab_bit_for_bit(pets, mode):
    source = pets / "val" / "cat" / "flickr_cat_000002.jpg"
    Image.open(pets / "val" / "cat" / "cat0.png").convert(mode).save(source, quality=95, comment="from a camera")
    made, _ = make_eval_images(pets, file_format="jpeg")
    assert made.names == ["cat0.jpg", "cat1.jpg", source.name, "dog0.jpg", "dog1.jpg"]
    Image.open(source).resize((64, 64)).save(source.with_name("lab.jpg"))
    assert (pets / "eval" / source.name).read_bytes() == source.with_name("lab.jpg").read_bytes()


@pytest.mark.parametrize("file_format", ["png", "jpeg"])
def test_names_never_collide_and_are_never_too_long(pets, file_format):
    for i, name in enumerate(["cat/a.png", "cat/a.bmp", "dog/a.png", "cat/x/y.png", "cat/x_y.png", "cat/A.png"]):
        write_image(pets / "val" / name, 60 + i)
    write_image(pets / "val" / "cat" / f"{'ü' * 120}.png", 71)
    write_image(pets / "val" / ("y" * 255) / f"{'x' * 250}.png", 72)
    assert counts(make_eval_images(pets, file_format=file_format)) == (12, True)
    assert len({np.asarray(read_image(path)).tobytes() for path in list_images(pets / "eval")}) == 12
    assert len({name.lower() for name in names(pets / "eval")}) == 12
    assert counts(make_eval_images(pets, file_format=file_format)) == (12, False)


@pytest.mark.parametrize("file_format", ["jpeg", "png"])
def test_crop_takes_the_centre_square(pets, file_format):
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = 255
    Image.fromarray(wide).convert("RGBA").save(pets / "val" / "cat" / "wide.png")
    for crop in (True, False):
        assert counts(make_eval_images(pets, file_format=file_format, crop=crop)) == (5, True)
        (image,) = (pets / "eval").glob("*wide.*")
        assert image.suffix == {"jpeg": ".jpg", "png": ".png"}[file_format]
        assert (np.min(read_image(image)) > 250) == crop


def test_broken_images_are_left_out_if_wanted_and_named(pets):
    (pets / "val" / "dog" / "dog1.png").write_bytes(b"hello")
    (pets / "val" / "dog" / "dog2.png").symlink_to("nowhere.png")
    with pytest.raises(ValueError, match=r"dog1\.png.*--skip_broken"):
        make_eval_images(pets)
    assert names(pets) == ["train", "val"]
    for is_new in (True, False):
        made, new = make_eval_images(pets, skip_broken=True)
        assert len(made.names) == 3 and new is is_new
        assert [f"dog{i}.png" in reason for i, reason in enumerate(made.skipped, start=1)] == [True, True]
    check_eval_complete(pets / "eval")
    with pytest.raises(ValueError, match=r"dog1\.png"):
        make_eval_images(pets)


# What is in eval/.


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine.png", r"files that this program did not make.*mine\.png"),
        ("notes.txt", r"notes\.txt"),
        ("flickr_cat_000000.jpg", r"JPEG images.*lab.*flickr_cat_000000\.jpg.*--eval_format jpeg"),
    ],
)
def test_files_of_others_in_eval_are_refused_and_stay(pets, name, words):
    write_image(pets / "eval" / "mine.png").rename(pets / "eval" / name)
    with pytest.raises(ValueError, match=words):
        make_eval_images(pets)
    assert (pets / "eval" / name).exists()


def test_what_was_removed_from_eval_or_added_to_it_is_noticed(program, pets):
    make_eval_images(pets)
    (pets / "eval" / "notes.txt").touch()  # is not measured
    check_eval_complete(pets / "eval")
    (pets / "eval" / "notes.txt").unlink()
    write_image(pets / "eval" / "more" / "1.png")
    with pytest.raises(ValueError, match=r"4 of the 4 .* 1 other"):
        check_eval_complete(pets / "eval")
    shutil.rmtree(pets / "eval" / "more")
    (pets / "eval" / "cat_cat1.png").unlink()
    assert refused(program("fid/measure_fid.py", pets / "eval", pets / "val"), "3 of the 4 images")
    assert counts(make_eval_images(pets)) == (4, True)


@pytest.mark.parametrize("text", ["", "[]", '{"names": 4}'])
def test_a_damaged_manifest_is_refused_and_the_files_stay(pets, text):
    make_eval_images(pets)
    (pets / "eval" / ".images.json").write_text(text)
    for check in (lambda: make_eval_images(pets, resolution=8), lambda: check_eval_complete(pets / "eval")):
        with pytest.raises(ValueError, match=r"images\.json is damaged"):
            check()
    assert names(pets / "eval") == NAMES


def test_a_full_disk_or_a_read_only_set_is_named_and_leaves_the_old_eval(pets, full_disk):
    make_eval_images(pets, resolution=8)
    with full_disk(3000), pytest.raises(OSError, match=r"eval\.partial"):
        make_eval_images(pets, skip_broken=True)
    with read_only(pets), pytest.raises(ValueError, match="afhq is read-only"):
        make_eval_images(pets)
    assert names(pets) == ["eval", "train", "val"] and read_image(pets / "eval" / "cat_cat0.png").size == (8, 8)
    assert not list(pets.glob(".*.partial"))


def test_half_an_eval_of_a_killed_program_is_removed_and_a_linked_one_stays_linked(pets, tmp_path):
    (tmp_path / "big disk").mkdir()
    (pets / "eval").symlink_to(tmp_path / "big disk")
    write_image(tmp_path / ".big disk.partial" / "half.png")
    make_eval_images(pets)
    make_eval_images(pets, resolution=8)
    assert names(tmp_path / "big disk") == NAMES and (pets / "eval").is_symlink()
    assert not (tmp_path / ".big disk.partial").exists()
