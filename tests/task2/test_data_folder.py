"""The layout of a data set, making one of any folder of images, and dataset.py as a program."""

import shutil
from pathlib import Path

import pytest

from conftest import SMALL_FLAGS, files_in, write_image
from data_folder import check_has_data, is_synthetic, list_classes, resolve_root
from dataset import AFHQDataModule, AFHQDataset
from images import list_images
from oracles import only_run, refused


def add_junk(folder):
    for name in (".DS_Store", "Thumbs.db", "._0.png", "0.png:Zone.Identifier"):
        (folder / name).write_text("junk")
    for name in (".ipynb_checkpoints", "@eaDir"):
        write_image(folder / name / "0.png" / "thumbnail.jpg")


# Classes.


def test_what_is_missing_is_named(pets):
    with pytest.raises(FileNotFoundError, match="'test'"):
        AFHQDataset(pets, "test")
    (pets / "train" / "ape").mkdir()
    with pytest.raises(ValueError, match="ape holds no images"):
        AFHQDataset(pets, "train")
    (pets / "train" / "ape").rmdir()
    shutil.rmtree(pets / "val" / "cat")
    with pytest.raises(ValueError, match=r"train/ \(cat, dog\) are not those in val/ \(dog\)"):
        AFHQDataModule(pets)


def test_images_in_folders_of_a_class_belong_to_it_and_junk_is_ignored(pets):
    write_image(pets / "train" / "cat" / "more" / "deep" / "a.png")
    for folder in (pets, pets / "train", pets / "train" / "cat", pets / "val" / "dog"):
        add_junk(folder)
    train = AFHQDataset(pets, "train")
    assert train.classes == ["cat", "dog"] and len(train) == 9 and len(AFHQDataset(pets, "val")) == 4
    assert [path.name for path in train.fnames[:4]] == ["cat0.png", "cat1.png", "cat2.png", "a.png"]


def test_images_without_a_class_are_one_class_or_ignored_with_a_note(pets, capsys):
    write_image(pets / "val" / "a.png")
    assert list(list_classes(pets, "val")) == ["cat", "dog"]
    assert "val: 1 image outside" in capsys.readouterr().err
    for name in ("cat", "dog"):
        shutil.rmtree(pets / "val" / name)
    (pets / "val" / "empty").mkdir()
    assert list_classes(pets, "val") == {"images": [pets / "val" / "a.png"]}


# The data root.


@pytest.mark.parametrize("inner", ["", "afhq", "pets", "split"])
def test_the_root_is_the_data_set_or_a_folder_in_it(tmp_path, inner):
    root = tmp_path / "pets"
    for split in ("Training", "test"):
        write_image(root / inner / split / "cat" / "a.png")
    write_image(root / "Training" / "10" / "a.png")  # not a whole data set, where `inner` has one
    write_image(root / "Training" / "9" / "a.png")
    check_has_data(root)
    assert resolve_root(root) == root / inner
    assert list(list_classes(root, "train"))[:2] == ["9", "10"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["a.png", ".hidden.png"], ["holds a.png;", "dataset.py --data_root", "--val_share"]),
        (["around/v2/train/cat/a.png", "around/v2/test/cat/a.png"], ["holds around;", "with blank/around/v2"]),
        ([], ["does not exist", "--synthetic"]),
    ],
)
def test_training_without_data_says_what_is_there_and_what_to_do(program, tmp_path, files, words):
    for name in files:
        write_image(tmp_path / "with blank" / name)
    run = program("train.py", "--data_root", tmp_path / "with blank", *SMALL_FLAGS)
    assert all(refused(run, word) for word in ["folder of images per class", *words])


# Dividing images without val/.


LAYOUTS = {
    "flat": [f"{i}.png" for i in range(10)],
    "classes": [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(5)],
    "train only": [f"train/{name}/more/{i}.png" for name in ("cat", "dog") for i in range(5)],
}


@pytest.mark.parametrize("can_link", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_share_of_ten_images_becomes_val_and_the_images_stay(program, tmp_path, monkeypatch, layout, can_link):
    root = tmp_path / "my pets"
    for seed, name in enumerate(LAYOUTS[layout]):
        write_image(root / name, seed)
    before = files_in(root)
    add_junk(root)
    assert refused(program("train.py", "--data_root", root, *SMALL_FLAGS), "--val_share")
    if not can_link:
        monkeypatch.setattr("os.link", lambda *_: Path("nowhere").stat())
    run = program("dataset.py", "--data_root", root, "--val_share", 0.2)
    assert run.returncode == 0 and "8 images of" in run.stdout and not run.stderr
    after = files_in(root)
    assert before.items() <= after.items()
    train, val = (AFHQDataset(root / "split", split) for split in ("train", "val"))
    assert train.classes == val.classes in (["images"], ["cat", "dog"])
    assert len(val) == 2 and set(val.labels) == set(train.labels)
    assert sorted(file.read_bytes() for file in train.fnames + val.fnames) == sorted(before.values())
    run = program("dataset.py", "--data_root", root, "--val_share", 0.5)
    assert run.returncode == 0 and "--val_share" in run.stdout and files_in(root) == after
    assert program("train.py", "--data_root", root, *SMALL_FLAGS, "--batch_size", 2).returncode == 0
    assert '"num_images": 8' in (only_run(tmp_path) / "config.json").read_text()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["cat/a.png", "cat/b.png", "dog/a.png"], "one image of class dog"),
        (["a.png", "b.png", "split/mine.png"], "split"),
        (["a.png", "cat/a.png", "cat/b.png"], "folder of its class"),
        (["val/cat/a.png", "val/cat/b.png"], "no train/"),
        (["around/v2/train/cat/a.png", "around/v2/test/cat/a.png"], "around/v2"),
        ([".hidden.png"], "holds no images"),
    ],
)
def test_what_cannot_be_divided_stays_and_is_refused(program, tmp_path, files, words):
    for i, name in enumerate(files):
        write_image(tmp_path / "pets" / name, i)
    before = files_in(tmp_path)
    assert refused(program("dataset.py", "--data_root", "pets", "--val_share", "0.1"), words)
    assert files_in(tmp_path) == before


# dataset.py.


def test_the_program_draws_and_makes_eval(program, tmp_path):
    run = program("dataset.py", "--synthetic", 2, "--seed", 5)
    assert run.returncode == 0 and not run.stderr and "6 synthetic images" in run.stdout
    assert is_synthetic(tmp_path / "data") and len(list_images(tmp_path / "data" / "afhq" / "eval")) == 3
    assert program("dataset.py").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--synthetic", "9", "--val_share", "0.1"], "--val_share"),
        (["--val_share", "1"], "--val_share: '1'"),
        (["--data_root", "file"], "file is a file"),
        (["--data_root", "some where/afhq"], "some where/afhq.zip"),
        (["--data_root", "pets", "--synthetic", "2"], "pets already holds other files (train, val)"),
        (["--data_root", "pets"], "broken.png"),
        (["--data_root", "pets/train"], "--val_share"),
        (["--data_root", "pets/train/cat"], "cat already holds other files (a.png)"),
    ],
)
def test_what_the_user_can_fix_is_one_line_and_code_2(program, arguments, words, tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
    (tmp_path / "file").touch()
    write_image(tmp_path / "pets" / "train" / "cat" / "a.png")
    write_image(tmp_path / "pets" / "val" / "cat" / "broken.png").write_bytes(b"hello")
    assert refused(program("dataset.py", *arguments), words)
