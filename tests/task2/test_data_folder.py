"""The evaluation images, and dataset.py as a program."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_folder import check_eval_complete, is_synthetic, make_eval_images
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


def state(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_eval_holds_every_validation_image_once_and_follows_changes(root):
    assert make_eval_images(root) == (4, True)
    assert names(root / "eval") == ["cat_cat0.png", "cat_cat1.png", "dog_dog0.png", "dog_dog1.png"]
    for path in (root / "eval").glob("*.png"):
        source = root / "val" / path.name[:3] / path.name[4:]
        assert np.array_equal(Image.open(path), resize(read_image(source), 64))
    before = state(root / "eval")
    assert make_eval_images(root) == (4, False) and state(root / "eval") == before
    write(root / "val" / "cat" / "cat0.png", 55)
    write(root / "val" / "cat" / "new.png", 56)
    (root / "val" / "dog" / "dog1.png").unlink()
    assert make_eval_images(root) == (4, True)
    assert names(root / "eval") == ["cat_cat0.png", "cat_cat1.png", "cat_new.png", "dog_dog0.png"]
    assert np.array_equal(Image.open(root / "eval" / "cat_cat0.png"), read_image(root / "val" / "cat" / "cat0.png"))
    assert make_eval_images(root, resolution=16) == (4, True)
    assert {read_image(path).size for path in list_images(root / "eval")} == {(16, 16)}
    assert names(root) == ["eval", "train", "val"]


def test_names_in_eval_never_collide(root):
    for i, name in enumerate(["cat/a.png", "cat/a.bmp", "dog/a.png", "cat/x/y.png", "cat/x_y.png", "cat/A.png"]):
        write(root / "val" / name, 60 + i)
    assert make_eval_images(root) == (10, True)
    assert len({np.asarray(read_image(path)).tobytes() for path in list_images(root / "eval")}) == 10
    assert len({name.lower() for name in names(root / "eval")}) == 10
    assert make_eval_images(root) == (10, False)


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
    assert make_eval_images(root) == (4, True)
    check_eval_complete(root / "eval")


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
    ],
)
def test_what_the_user_can_fix_is_one_line_and_code_2(program, arguments, words, tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
    (tmp_path / "file").touch()
    write(tmp_path / "pets" / "train" / "cat" / "a.png")
    write(tmp_path / "pets" / "val" / "cat" / "broken.png").write_bytes(b"hello")
    assert refused(program("dataset.py", *arguments), words)
