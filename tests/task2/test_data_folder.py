"""The layout of a data set, the evaluation images, and dataset.py as a program."""

import io
import itertools
import os
import resource
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_folder import check_eval_complete, check_has_data, is_synthetic, make_eval_images
from dataset import AFHQDataModule, AFHQDataset
from images import list_images, read_image, resize
from oracles import refused


def write(path, seed=0, size=(64, 64)):
    """An image of noise; another `seed` gives another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def root(tmp_path):
    """A training image, and 2 + 2 validation images of two sizes."""
    root = tmp_path / "with blank" / "afhq"
    write(root / "train" / "cat" / "a.png")
    for seed, (name, i) in enumerate(itertools.product(["dog", "cat"], range(2))):
        write(root / "val" / name / f"{name}{i}.png", seed, size=(64, 64) if i else (100, 80))
    return root


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def counts(result):
    """How many images there are, and whether they were made now."""
    return len(result[0].names), result[1]


def state(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


# The layout.


@pytest.mark.parametrize("name", ["test", "valid", "validation"])
def test_other_names_of_val_are_taken(root, name):
    shutil.copytree(root / "val", root / "train", dirs_exist_ok=True)
    (root / "val").rename(root / name)
    data = AFHQDataModule(root, image_resolution=8)
    assert data.val_ds.fnames[0].parent == root / name / "cat" and len(next(iter(data.val_dataloader()))[1]) == 4
    make_eval_images(root)
    assert names(root / "eval") == ["cat_cat0.png", "cat_cat1.png", "dog_dog0.png", "dog_dog1.png"]


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("10", "b", "9", "cat2", "1"):
        write(tmp_path / "afhq" / "train" / name / "a.png")
    assert AFHQDataset(tmp_path / "afhq", "train").classes == ["1", "9", "10", "b", "cat2"]


def test_one_name_in_two_unicode_forms_is_one_class(root):
    (root / "train" / "cat").rename(root / "train" / unicodedata.normalize("NFD", "é"))
    (root / "val" / "cat").rename(root / "val" / unicodedata.normalize("NFC", "é"))
    shutil.copytree(root / "val" / "dog", root / "train" / "dog")
    data = AFHQDataModule(root, image_resolution=8)
    assert data.train_ds.classes == data.val_ds.classes == ["dog", unicodedata.normalize("NFC", "é")]


@pytest.mark.parametrize("layout", ["a.png", "cat/a.png", "train/a.png"])
def test_another_layout_is_said_with_what_was_found(tmp_path, layout):
    root = tmp_path / "pets"
    write(root / layout)
    (root / ".DS_Store").touch()
    with pytest.raises(ValueError, match=r"pets.* folder of images per class") as refusal:
        check_has_data(root) if "train" not in layout else AFHQDataset(root, "train")
    assert ("1 images" if "train" in layout else layout.split("/")[0]) in str(refusal.value)
    assert ".DS_Store" not in str(refusal.value) and "\n" not in str(refusal.value)


def test_litter_in_any_folder_stops_nothing(root):
    make_eval_images(root)
    for folder in [root, root / "train", root / "val" / "dog", root / "eval"]:
        for name in [
            ".DS_Store",
            "Thumbs.db",
            "desktop.ini",
            ".directory",
            ".nfs01",
            "._0.png",
            "0.png:Zone.Identifier",
        ]:
            (folder / name).write_text("litter")
        for name in [".ipynb_checkpoints", "@eaDir", "__MACOSX"]:
            write(folder / name / "0.png" / "thumbnail.jpg")
    assert counts(make_eval_images(root)) == (4, False)
    check_eval_complete(root / "eval")
    assert AFHQDataset(root, "train").classes == ["cat"] and len(AFHQDataset(root, "val")) == 4


# The evaluation images.


def test_eval_holds_every_validation_image_once_and_follows_changes(root):
    assert counts(make_eval_images(root)) == (4, True)
    assert names(root / "eval") == ["cat_cat0.png", "cat_cat1.png", "dog_dog0.png", "dog_dog1.png"]
    for path in (root / "eval").glob("*.png"):
        source = root / "val" / path.name[:3] / path.name[4:]
        assert np.array_equal(Image.open(path), resize(read_image(source), 64))
    before = state(root / "eval")
    assert counts(make_eval_images(root)) == (4, False) and state(root / "eval") == before
    write(root / "val" / "cat" / "cat0.png", 55)
    write(root / "val" / "cat" / "new.png", 56)
    (root / "val" / "dog" / "dog1.png").unlink()
    assert counts(make_eval_images(root)) == (4, True)
    assert names(root / "eval") == ["cat_cat0.png", "cat_cat1.png", "cat_new.png", "dog_dog0.png"]
    assert np.array_equal(Image.open(root / "eval" / "cat_cat0.png"), read_image(root / "val" / "cat" / "cat0.png"))
    assert counts(make_eval_images(root, resolution=16)) == (4, True)
    assert {read_image(path).size for path in list_images(root / "eval")} == {(16, 16)}
    assert names(root) == ["eval", "train", "val"]


def test_names_in_eval_never_collide(root):
    for i, name in enumerate(["cat/a.png", "cat/a.bmp", "dog/a.png", "cat/x/y.png", "cat/x_y.png", "cat/A.png"]):
        write(root / "val" / name, 60 + i)
    assert counts(make_eval_images(root)) == (10, True)
    assert len({np.asarray(read_image(path)).tobytes() for path in list_images(root / "eval")}) == 10
    assert len({name.lower() for name in names(root / "eval")}) == 10
    assert counts(make_eval_images(root)) == (10, False)


def test_long_names_are_shortened(root):
    for letter in "ab":
        write(root / "val" / "cat" / f"{'x' * 240}{letter}.png", ord(letter))
    write(root / "val" / "cat" / f"{'ü' * 120}.png")
    assert counts(make_eval_images(root)) == (7, True) and counts(make_eval_images(root)) == (7, False)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_in_eval_are_those_of_the_lab_bit_for_bit(root, mode):
    shutil.rmtree(root / "val" / "dog")
    source = root / "val" / "cat" / "flickr_cat_000002.jpg"
    Image.open(root / "val" / "cat" / "cat0.png").convert(mode).save(source, quality=95, comment="from a camera")
    for name in ["cat0.png", "cat1.png"]:
        (root / "val" / "cat" / name).unlink()
    made, _ = make_eval_images(root, file_format="jpeg")
    assert made.names == names(root / "eval") == ["flickr_cat_000002.jpg"]
    lab = source.with_name("lab.jpg")
    Image.open(source).resize((64, 64)).save(lab)
    assert (root / "eval" / "flickr_cat_000002.jpg").read_bytes() == lab.read_bytes()


def test_other_images_become_jpegs_too_and_the_format_can_change(root):
    write(root / "val" / "dog" / "cat0.png", 7)
    Image.new("P", (9, 9)).save(root / "val" / "dog" / "p.gif")
    Image.new("RGBA", (9, 9)).save(root / "val" / "dog" / "a.png")
    for file_format, suffix in [("jpeg", ".jpg"), ("png", ".png"), ("jpeg", ".jpg")]:
        assert counts(make_eval_images(root, file_format=file_format)) == (7, True)
        assert {path.suffix for path in list_images(root / "eval")} == {suffix}
    assert "cat0-2.jpg" in names(root / "eval")


def test_crop_takes_the_centre_square(root):
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = 255
    shutil.rmtree(root / "val" / "dog")
    for name, image in [("cat0", wide), ("cat1", wide.transpose(1, 0, 2))]:
        Image.fromarray(image).save(root / "val" / "cat" / f"{name}.png")
    for file_format in ("png", "jpeg"):
        make_eval_images(root, file_format=file_format, crop=True)
        assert all(np.min(read_image(path)) > 250 for path in list_images(root / "eval"))
        make_eval_images(root, file_format=file_format)
        assert all(np.min(read_image(path)) < 5 for path in list_images(root / "eval"))
    data = AFHQDataModule(shutil.copytree(root / "val", root / "train", dirs_exist_ok=True).parent, crop=True)
    assert next(iter(data.val_dataloader()))[0].min() == 1


def test_broken_images_are_left_out_if_wanted_and_named(root):
    (root / "val" / "dog" / "dog1.png").write_bytes(b"hello")
    (root / "val" / "dog" / "dog2.png").symlink_to("nowhere.png")
    for is_new in (True, False):
        made, new = make_eval_images(root, skip_broken=True)
        assert len(made.names) == 3 and new is is_new
        assert [f"dog{i}.png" in reason for i, reason in enumerate(made.skipped, start=1)] == [True, True]
    check_eval_complete(root / "eval")
    with pytest.raises(ValueError, match=r"dog1\.png.*--skip_broken"):
        make_eval_images(root)


@pytest.mark.parametrize("made_before", [True, False])
def test_files_of_others_in_eval_are_refused_and_stay(root, made_before):
    if made_before:
        make_eval_images(root)
    write(root / "eval" / "mine.png")
    with pytest.raises(ValueError, match=r"mine\.png"):
        make_eval_images(root)
    assert (root / "eval" / "mine.png").exists()


def test_eval_is_whole_or_not_there(root):
    broken = root / "val" / "dog" / "dog1.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:100])
    with pytest.raises(ValueError, match=r"dog1\.png"):
        make_eval_images(root)
    assert names(root) == ["train", "val"]
    broken.write_bytes(content)
    write(root / "eval.partial" / "half.png")  # of a killed program
    make_eval_images(root)
    assert names(root) == ["eval", "train", "val"] and len(names(root / "eval")) == 4


def test_a_full_disk_is_named_and_leaves_the_old_eval(root):
    make_eval_images(root, resolution=8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))  # less than an image takes
    try:
        with pytest.raises(OSError, match=r"eval\.partial"):
            make_eval_images(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(root) == ["eval", "train", "val"] and read_image(root / "eval" / "cat_cat0.png").size == (8, 8)


def test_what_was_removed_from_eval_or_added_to_it_is_noticed(root):
    make_eval_images(root)
    check_eval_complete(root / "eval")
    check_eval_complete(root / "val")  # a folder of others
    moved = (root / "eval" / "cat_cat1.png").rename(root / "cat_cat1.png")
    with pytest.raises(ValueError, match="eval"):
        check_eval_complete(root / "eval")
    moved.rename(root / "eval" / "other.png")
    with pytest.raises(ValueError, match="eval"):
        check_eval_complete(root / "eval")
    (root / "eval" / "other.png").unlink()
    assert counts(make_eval_images(root)) == (4, True)
    check_eval_complete(root / "eval")


def test_a_folder_of_the_lab_is_said_to_be_one_and_stays(root):
    for i in range(4):
        write(root / "eval" / f"flickr_cat_{i:06}.jpg")
    with pytest.raises(ValueError, match=r"4 JPEG images.*lab.*flickr_cat_000000\.jpg.*--eval_format jpeg"):
        make_eval_images(root)
    assert len(names(root / "eval")) == 4


def test_a_read_only_set_gets_no_eval(root):
    root.chmod(0o555)
    try:
        with pytest.raises(PermissionError, match="afhq is read-only"):
            make_eval_images(root)
    finally:
        root.chmod(0o755)


# The program.


def test_the_program_draws_and_makes_eval(program, tmp_path):
    run = program("dataset.py", "--synthetic", 2, "--seed", 5)
    assert run.returncode == 0 and not run.stderr
    assert f"{Path('data', 'afhq', 'train')}: 6 " in run.stdout and f"{Path('data', 'afhq', 'eval')}: 3 " in run.stdout
    assert is_synthetic(tmp_path / "data") and len(names(tmp_path / "data" / "afhq" / "eval")) == 3
    assert program("dataset.py").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--synthetic", "0"], "--synthetic: '0'"),
        (["--data_root", "file"], "file is a file"),
        (["--data_root", "some where/afhq"], "some where/afhq.zip"),
        (["--data_root", "pets", "--synthetic", "2"], "pets already holds other things (train, val)"),
        (["--data_root", "pets"], "broken.png"),
        (["--data_root", "flat"], "flat already holds other things (0.png, 1.png, 2.png)"),
    ],
)
def test_what_the_user_can_fix_is_one_line_and_code_2(program, arguments, words, tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
    (tmp_path / "file").touch()
    write(tmp_path / "pets" / "train" / "cat" / "a.png")
    write(tmp_path / "pets" / "val" / "cat" / "broken.png").write_bytes(b"hello")
    for i in range(3):
        write(tmp_path / "flat" / f"{i}.png")
    assert refused(program("dataset.py", *arguments), words)


def test_the_program_lists_what_it_leaves_out_and_that_training_takes_fewer(program, root):
    for i in range(3000):
        os.link(root / "train" / "cat" / "a.png", root / "train" / "cat" / f"{i}.png")
    (root / "val" / "dog" / "dog1.png").write_bytes(b"hello")
    run = program("dataset.py", "--data_root", root, "--skip_broken", "--eval_format", "jpeg", "--crop")
    assert run.returncode == 0 and "dog1.png" in run.stdout and "--max_num_images_per_cat -1" in run.stdout
    assert names(root / "eval") == ["cat0.jpg", "cat1.jpg", "dog0.jpg"]


def test_a_terminal_of_ascii_letters_is_enough(program, root, monkeypatch):
    root = root.rename(root.with_name("é"))
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert program("dataset.py", "--data_root", root).returncode == 0


def test_the_fid_program_refuses_a_folder_that_is_not_whole(program, root):
    make_eval_images(root)
    (root / "eval" / "cat_cat1.png").unlink()
    assert refused(program("fid/measure_fid.py", root / "eval", root / "val"), "3 of the 4 images")
