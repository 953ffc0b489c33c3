"""Broken images: refused, and with --skip_broken left out, counted and listed by name."""

import json
import os
import sys

import pytest
from PIL import Image

from conftest import SMALL_FLAGS
from dataset import AFHQDataModule
from oracles import only_run, refused

STRANGE = os.fsdecode(b"caf\xe9\n.png") if sys.platform != "darwin" else "two\nlines.png"
FLAGS = [*SMALL_FLAGS, "--batch_size", 2, "--train_num_steps", 6]


@pytest.fixture
def root(tmp_path):
    """Two classes of five images, each of its own colour: green is the class, red the number."""
    root = tmp_path / "data" / "afhq"
    for split in ("train", "val"):
        for green, name in enumerate(["cat", "dog"]):
            (root / split / name).mkdir(parents=True)
            for red in range(5):
                Image.new("RGB", (8, 8), (red, green, 0)).save(root / split / name / f"{red}.png")
    return root


@pytest.fixture
def broken(root):
    """Two broken images, the last cat but one and a dog with a name of two lines."""
    paths = [root / "train" / "cat" / "3.png", root / "train" / "dog" / STRANGE]
    for path in paths:
        path.write_bytes(b"hello")
    return paths


def training_set(root, skip_broken=True):
    train = AFHQDataModule(root, 2, image_resolution=8, skip_broken=skip_broken).train_ds
    train.decode()
    return train


def color(x):
    """Red and green of a single-coloured image [3, H, W]."""
    return tuple(((x + 1) * 127.5).round()[:2, 0, 0].int().tolist())


def test_what_is_left_is_the_whole_images_with_their_labels(root, broken):
    for _ in range(2):  # decoded, then from the cache
        train = training_set(root)
        assert len(train) == len(train.labels) == len(train.fnames) == 9
        for i, (path, label) in enumerate(zip(train.fnames, train.labels, strict=True)):
            assert path not in broken and path.parent.name == train.classes[label - 1]
            x, same_label = train[i]
            assert color(x) == (int(path.stem), label - 1) and same_label == label
        assert [reason.split(":")[0] for reason in train.skipped] == list(map(str, broken))
    with pytest.raises(ValueError, match=r"--batch_size: 10 .* 9 images"):
        AFHQDataModule(root, 10, image_resolution=8, skip_broken=True).train_batches(0)


def test_an_image_counts_from_when_it_is_repaired_to_when_it_breaks(root, broken):
    for skip_broken in (False, True, False):  # whatever was cached before
        if skip_broken:
            assert len(training_set(root)) == 9
        else:
            with pytest.raises(ValueError, match=r"3\.png.*--skip_broken"):
                training_set(root, skip_broken=False)
    Image.new("RGB", (8, 8), (3, 0, 0)).save(broken[0])
    train = training_set(root)
    assert len(train) == 10 and broken[0] in train.fnames and len(train.skipped) == 1
    broken[1].unlink()
    for skip_broken in (True, False):
        train = training_set(root, skip_broken)
        assert len(train) == 10 and train.skipped == []
    broken[0].write_bytes(b"hello")
    assert len(training_set(root)) == 9


# The program.


def test_training_lists_what_it_leaves_out_and_so_does_a_resumed_run(program, root, broken, tmp_path):
    run = program("train.py", "--data_root", root, *FLAGS, "--skip_broken")
    assert run.returncode == 0, run.stderr
    folder = only_run(tmp_path)
    assert str(folder.relative_to(tmp_path) / "skipped.txt") in run.stdout
    lines = (folder / "skipped.txt").read_text().splitlines()
    assert len(lines) == 2 and "cat/3.png" in lines[0]
    assert (r"dog/caf\udce9\n.png" if sys.platform != "darwin" else r"dog/two\nlines.png") in lines[1]
    config = json.loads((folder / "config.json").read_text())
    assert config["skip_broken"] is True and config["num_images"] == 9
    run = program("train.py", "--resume", folder, "--train_num_steps", 8)
    assert run.returncode == 0 and "skipped.txt" in run.stdout


def test_a_class_of_broken_images_only_is_refused_and_leaves_nothing(program, root, tmp_path):
    for red in range(5):
        (root / "train" / "cat" / f"{red}.png").write_bytes(b"hello")
    for flag in ([], ["--skip_broken"], ["--skip_broken"]):  # decoded, then from the cache
        assert refused(program("train.py", "--data_root", root, *FLAGS, *flag), "cat/0.png")
    assert not (tmp_path / "results").exists()
