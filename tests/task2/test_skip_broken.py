"""Broken images with --skip_broken: left out, counted and listed by name. Without it, refused."""

import json
import os
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoint import read_checkpoint
from dataset import AFHQDataModule
from images import read_image
from oracles import only_run, refused

TINY = ["--ch", 32, "--ch_mult", 1, "--attn", "--num_res_blocks", 1, "--image_resolution", 8]
TINY += ["--num_diffusion_train_timesteps", 2, "--batch_size", 2, "--train_num_steps", 6]
STRANGE = os.fsdecode(b"caf\xe9\n.png") if sys.platform != "darwin" else "two\nlines.png"


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


def break_file(path, content=b"hello"):
    """Break it, or make a new broken one."""
    path.write_bytes(content)
    return path


@pytest.fixture
def broken(root):
    """Two broken images, the last cat but one and a dog with a name of two lines."""
    return [break_file(root / "train" / "cat" / "3.png"), break_file(root / "train" / "dog" / STRANGE)]


@pytest.fixture
def decoded(monkeypatch):
    """The files that the cache decodes from here on."""
    files = []

    def spy(path):
        files.append(path)
        return read_image(path)

    monkeypatch.setattr("image_cache.read_image", spy)
    return files


def training_set(root, skip_broken=True):
    train = AFHQDataModule(root, batch_size=2, image_resolution=8, skip_broken=skip_broken).train_ds
    train.decode()
    return train


# The data set.


def test_what_is_left_is_the_whole_images_with_their_labels(root, broken):
    train = training_set(root)
    assert len(train) == len(train.labels) == len(train.fnames) == 9
    assert not set(broken) & set(train.fnames)
    for i, (path, label) in enumerate(zip(train.fnames, train.labels, strict=True)):
        assert path.parent.name == train.classes[label - 1]
        (x,), (same_label,) = zip(*train.__getitems__([i]), strict=True)
        red, green, _ = ((x + 1) * 127.5).round()[:, 0, 0].tolist()
        assert (f"{red:.0f}.png", green) == (path.name, label - 1)
        assert torch.equal(train[i][0], x) and train[i][1] == same_label == label


def test_batches_hold_each_whole_image_once_with_its_label(root, broken):
    data = AFHQDataModule(root, batch_size=3, image_resolution=8, skip_broken=True)
    batches = data.train_batches(seed=0)
    seen = []
    for step in range(3):
        images, labels = batches[step]
        red, green, _ = ((images + 1) * 127.5).round()[:, :, 0, 0].T.tolist()
        assert green == (labels - 1).tolist()
        seen += zip(green, red, strict=True)
    assert sorted(seen) == [(0, 0), (0, 1), (0, 2), (0, 4), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]


def test_each_broken_image_is_named(root, broken):
    skipped = training_set(root).skipped
    assert len(skipped) == 2
    assert all(reason.startswith(f"{path}: not an image") for path, reason in zip(broken, skipped, strict=True))


def test_the_second_start_decodes_nothing_and_still_names_them(root, broken, decoded):
    first = training_set(root)
    assert len(decoded) == 11
    second = training_set(root)
    assert len(decoded) == 11
    assert second.skipped == first.skipped and len(second.skipped) == 2
    assert second.fnames == first.fnames and second.labels == first.labels
    assert np.array_equal(second.pixels, first.pixels)


def test_without_the_flag_a_broken_image_is_refused_whatever_was_decoded_before(root, broken):
    for skip_broken in (False, True, False):
        if skip_broken:
            training_set(root)
        else:
            with pytest.raises(ValueError, match=r"3\.png: not an image, or a broken one"):
                training_set(root, skip_broken=False)
    broken[0].unlink()
    broken[1].unlink()
    assert len(training_set(root, skip_broken=False)) == 9


def test_the_flag_is_off_by_default(root, broken):
    with pytest.raises(ValueError, match="broken one"):
        AFHQDataModule(root, batch_size=2, image_resolution=8).train_batches(0)


def test_a_mended_image_counts_again(root, broken):
    assert len(training_set(root)) == 9
    Image.new("RGB", (8, 8), (3, 0, 0)).save(broken[0])
    train = training_set(root)
    assert len(train) == 10 and broken[0] in train.fnames and len(train.skipped) == 1
    broken[1].unlink()
    for skip_broken in (True, False):
        train = training_set(root, skip_broken)
        assert len(train) == 10 and train.skipped == []
    assert [path.suffix for path in (root / ".cache").iterdir()] == [".npy"]


def test_a_broken_image_is_named_as_it_is_called_now(root, broken):
    training_set(root)
    renamed = broken[0].rename(broken[0].with_name("3b.png"))
    assert training_set(root).skipped[0].startswith(f"{renamed}: ")


def test_an_image_that_breaks_is_left_out_from_then_on(root):
    assert len(training_set(root)) == 10
    path = break_file(root / "train" / "dog" / "0.png")
    train = training_set(root)
    assert len(train) == 9 and path not in train.fnames and len(train.skipped) == 1


def test_a_list_of_the_broken_that_was_cut_off_is_made_anew(root, broken):
    training_set(root)
    (path,) = (root / ".cache").glob("*.broken.json")
    path.write_text(path.read_text()[:20])
    assert len(training_set(root).skipped) == 2


def test_a_class_of_broken_images_only_is_an_error(root):
    for red in range(5):
        break_file(root / "train" / "cat" / f"{red}.png")
    with pytest.raises(ValueError, match=r"train: all images of a class are broken, as .*0\.png: not an image"):
        training_set(root)


def test_too_few_whole_images_for_a_batch_are_an_error(root, broken):
    data = AFHQDataModule(root, batch_size=10, image_resolution=8, skip_broken=True)
    with pytest.raises(ValueError, match="gives 9 images, fewer than one batch of 10"):
        data.train_batches(0)


# The program.


def test_training_goes_on_and_lists_what_it_left_out(program, root, broken, tmp_path):
    run = program("train.py", "--data_root", root, *TINY, "--skip_broken")
    assert run.returncode == 0, run.stderr
    folder = only_run(tmp_path)
    assert f"2 broken images are left out; {folder.relative_to(tmp_path) / 'skipped.txt'} lists them" in run.stdout
    assert ": 9 images, 2 classes" in run.stdout
    lines = (folder / "skipped.txt").read_text().splitlines()
    assert len(lines) == 2
    assert "cat/3.png: not an image" in lines[0]
    assert (r"dog/caf\udce9\n.png" if sys.platform != "darwin" else r"dog/two\nlines.png") in lines[1]
    config = json.loads((folder / "config.json").read_text())
    assert config["skip_broken"] is True and config["num_images"] == 9
    assert read_checkpoint(folder / "last.ckpt")["training"]["step"] == 6


def test_whole_images_need_no_list(program, root, tmp_path):
    run = program("train.py", "--data_root", root, *TINY, "--skip_broken")
    assert run.returncode == 0 and "left out" not in run.stdout
    assert not (only_run(tmp_path) / "skipped.txt").exists()


def test_the_program_refuses_them_without_the_flag_and_leaves_nothing(program, root, broken, tmp_path):
    run = program("train.py", "--data_root", root, *TINY)
    assert refused(run, "cat/3.png: not an image, or a broken one")
    assert not (tmp_path / "results").exists()


def test_a_class_of_broken_images_only_is_one_line(program, root, tmp_path):
    for red in range(5):
        break_file(root / "train" / "dog" / f"{red}.png")
    run = program("train.py", "--data_root", root, *TINY, "--skip_broken")
    assert refused(run, "all images of a class are broken")
    assert not (tmp_path / "results").exists()


def test_resumed_is_bit_for_bit_the_same(program, root, broken, tmp_path, monkeypatch):
    from trainer import Trainer

    def end_of(folder):
        checkpoint = read_checkpoint(folder / "last.ckpt")
        training = checkpoint["training"]
        numbers = [(row["step"], row["loss"], row["learning_rate"]) for row in training["stats"]]
        tensors = [*checkpoint["state_dict"].values(), *training["network"].values()]
        tensors += [m for moments in training["optimizer"]["state"].values() for m in moments.values()]
        return numbers, (folder / "skipped.txt").read_text(), [t.numpy().tobytes() for t in tensors]

    assert program("train.py", "--data_root", root, *TINY, "--skip_broken").returncode == 0
    undisturbed = end_of(only_run(tmp_path))
    (tmp_path / "results").rename(tmp_path / "before")

    ordinary = Trainer.train_step

    def train_step(trainer, images, labels):
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        ordinary(trainer, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        run = program("train.py", "--data_root", root, *TINY, "--skip_broken")
    assert run.returncode == 130 and "stopped at step 3" in run.stdout
    folder = only_run(tmp_path)
    run = program("train.py", "--resume", folder)
    assert run.returncode == 0 and "2 broken images are left out" in run.stdout
    assert end_of(folder) == undisturbed

    Image.new("RGB", (8, 8), (3, 0, 0)).save(broken[0])
    run = program("train.py", "--resume", folder, "--train_num_steps", 9)
    assert refused(run, "num_images is 10 now, and was 9")


def test_loaders_know_how_many_images_are_left(root, broken):
    data = AFHQDataModule(root, batch_size=2, image_resolution=8, skip_broken=True)
    assert sum(len(labels) for _, labels in data.train_dataloader()) == 8
    break_file(root / "val" / "cat" / "0.png")
    data = AFHQDataModule(root, batch_size=2, image_resolution=8, skip_broken=True)
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 9


def test_a_class_of_broken_images_only_stays_an_error(root):
    for red in range(5):
        break_file(root / "train" / "cat" / f"{red}.png")
    train = AFHQDataModule(root, batch_size=2, image_resolution=8, skip_broken=True).train_ds
    for _ in range(2):
        with pytest.raises(ValueError, match="all images of a class are broken"):
            train.decode()


def test_an_image_that_could_not_be_read_for_a_moment_counts_again_once_it_was_read(root, monkeypatch):

    def unreadable(path):
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("image_cache.read_image", lambda p: unreadable(p) if p.name == "3.png" else read_image(p))
        assert len(training_set(root)) == 8
    assert len(training_set(root, skip_broken=False)) == 10
    assert len(training_set(root)) == 10


@pytest.mark.parametrize("content", ["[]", "null", '{"99": "x"}', '{"3": 5}'])
def test_a_list_of_the_broken_that_is_none_is_made_anew(root, broken, content):
    training_set(root)
    (path,) = (root / ".cache").glob("*.broken.json")
    path.write_text(content)
    assert len(training_set(root)) == 9


def test_links_to_nothing_are_broken_images_too(root):
    (root / "train" / "cat" / "6.png").symlink_to("nowhere.png")
    assert len(training_set(root).skipped) == 1
