"""Broken images: refused, and with --skip_broken left out, counted and listed by name."""

import json
import os
import sys

import numpy as np
import pytest
import torch

from conftest import SMALL_FLAGS, write_image
from dataset import AFHQDataModule, to_tensor
from images import read_image, resize
from oracles import only_run, refused

STRANGE = os.fsdecode(b"caf\xe9\n.png") if sys.platform != "darwin" else "two\nlines.png"
FLAGS = [*SMALL_FLAGS, "--batch_size", 2, "--train_num_steps", 6]


@pytest.fixture
def broken(pets):
    """Of the now nine training images two are broken: the second cat, and a dog with a name of two lines."""
    paths = [pets / "train" / "cat" / "cat1.png", pets / "train" / "dog" / STRANGE]
    for path in paths:
        path.write_bytes(b"hello")
    return paths


def training_set(root, skip_broken=True):
    train = AFHQDataModule(root, 2, image_resolution=8, skip_broken=skip_broken).train_ds
    train.decode()
    return train


def test_what_is_left_is_the_whole_images_with_their_labels(pets, broken):
    for _ in range(2):  # decoded, then from the cache
        train = training_set(pets)
        assert len(train) == len(train.labels) == len(train.fnames) == 7
        for i, (path, label) in enumerate(zip(train.fnames, train.labels, strict=True)):
            assert path not in broken and path.parent.name == train.classes[label - 1]
            x, same_label = train[i]
            expected = to_tensor(np.array(resize(read_image(path), 8)).transpose(2, 0, 1))
            assert torch.equal(x, expected) and same_label == label
        assert [reason.split(":")[0] for reason in train.skipped] == list(map(str, broken))
    with pytest.raises(ValueError, match=r"--batch_size: 10 .* 7 images"):
        AFHQDataModule(pets, 10, image_resolution=8, skip_broken=True).train_batches(0)


def test_an_image_counts_from_when_it_is_repaired_to_when_it_breaks(pets, broken):
    assert len(training_set(pets)) == 7
    with pytest.raises(ValueError, match=r"cat1\.png.*--skip_broken"):  # whatever was cached before
        training_set(pets, skip_broken=False)
    write_image(broken[0])
    assert len(training_set(pets)) == 8
    broken[1].unlink()
    for skip_broken in (True, False):
        train = training_set(pets, skip_broken)
        assert len(train) == 8 and train.skipped == []
    broken[0].write_bytes(b"hello")
    assert len(training_set(pets)) == 7


def test_training_lists_what_it_leaves_out_and_so_does_a_resumed_run(program, pets, broken, tmp_path):
    run = program("train.py", "--data_root", pets, *FLAGS, "--skip_broken")
    assert run.returncode == 0, run.stderr
    folder = only_run(tmp_path)
    assert str(folder.relative_to(tmp_path) / "skipped.txt") in run.stdout
    lines = (folder / "skipped.txt").read_text().splitlines()
    assert len(lines) == 2 and "cat/cat1.png" in lines[0] and repr(STRANGE)[1:-1] in lines[1]
    config = json.loads((folder / "config.json").read_text())
    assert config["skip_broken"] is True and config["num_images"] == 7
    run = program("train.py", "--resume", folder, "--train_num_steps", 8)
    assert run.returncode == 0 and "skipped.txt" in run.stdout


def test_a_class_of_broken_images_only_is_refused_and_leaves_nothing(program, pets, tmp_path):
    for path in (pets / "train" / "cat").iterdir():
        path.write_bytes(b"hello")
    for flag in ([], ["--skip_broken"], ["--skip_broken"]):  # decoded, then from the cache
        assert refused(program("train.py", "--data_root", pets, *FLAGS, *flag), "cat/cat0.png")
    assert not (tmp_path / "results").exists()
