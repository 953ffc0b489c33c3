"""What train.py --resume accepts, and what it refuses in one line."""

import json
import random
import shutil

import pytest
import torch

from conftest import RUN_FLAGS
from oracles import only_run, refused


def test_more_steps_are_allowed_and_fewer_are_not(program, half_a_run):
    run = program("train.py", "--resume", half_a_run, "--train_num_steps", 5)
    assert run.returncode == 0, run.stderr
    assert json.loads((half_a_run / "config.json").read_text())["train_num_steps"] == 5
    assert refused(program("train.py", "--resume", half_a_run, "--train_num_steps", 4), "--train_num_steps")
    before = (half_a_run / "last.ckpt").read_bytes()
    assert program("train.py", "--resume", half_a_run).returncode == 0  # nothing to do
    assert (half_a_run / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mode", "quad"], ("--mode quad", "linear")),
        (["--ch_mult", 2], ("--ch_mult [2]", "[1]")),
        (["--skip_broken"], ("--skip_broken True", "False")),
    ],
)
def test_flags_that_contradict_the_run_are_named(program, half_a_run, flags, words):
    run = program("train.py", "--resume", half_a_run, *flags)
    assert all(refused(run, word) for word in words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": "many"}, "config.json: error: argument --batch_size: 'many'"),
        ({"ch_mult": [1, 2, [3]]}, "config.json: error: argument --ch_mult: '[3]'"),
        ({"hflip": 3}, "config.json: error: argument --hflip: "),
        ({"num_images": 14}, "num_images"),
        ({"fingerprint": "0123456789abcdef"}, "fingerprint"),
        ({"predictor": "x0"}, "last.ckpt"),
        ({"ch": 64}, "last.ckpt"),
        ("{}", "config.json"),
        ("\x00", "config.json"),
    ],
)
def test_a_config_that_was_changed_by_hand_is_refused(program, half_a_run, change, words):
    path = half_a_run / "config.json"
    path.write_text(change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change))
    assert refused(program("train.py", "--resume", half_a_run), words)


NUMBERS = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)}


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(step=-1),
        lambda t: t.update(stats=[dict.fromkeys(("step", "loss", "learning_rate", "images_per_second"), "much")]),
        lambda t: t.update(row_seconds=None),
        lambda t: t.pop("random"),
        lambda t: t["random"][0].update(torch=torch.zeros(3)),
        lambda t: t["random"][0].update(numpy=()),
        lambda t: t["network"].popitem(),
        lambda t: t["optimizer"].update(state={0: NUMBERS}),
        lambda t: t["optimizer"]["state"][0]["exp_avg"].fill_(float("inf")),
        lambda t: t["optimizer"]["state"][0]["step"].fill_(float("nan")),
        lambda t: t["optimizer"]["state"][0].pop("step"),
    ],
)
def test_a_checkpoint_whose_training_state_does_not_fit_is_refused(program, half_a_run, change):
    path = half_a_run / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint["training"])
    torch.save(checkpoint, path)
    assert refused(program("train.py", "--resume", half_a_run), "last.ckpt: ")


def test_other_images_under_the_same_names_are_refused(program, faces, tmp_path):
    root = shutil.copytree(faces, tmp_path / "faces" / "afhq")
    assert program("train.py", "--data_root", root, *RUN_FLAGS, "--train_num_steps", 1).returncode == 0
    resume = ["--resume", only_run(tmp_path), "--train_num_steps", 2]
    shutil.copytree(root, tmp_path / "moved")
    run = program("train.py", *resume, "--data_root", tmp_path / "moved")
    assert run.returncode == 0, run.stderr
    first, second, *_ = sorted((root / "train" / "cat").iterdir())
    first.write_bytes(second.read_bytes())
    assert refused(program("train.py", *resume, "--data_root", root), str(root))


def test_a_run_of_an_older_version_is_resumed_and_sampled(program, half_a_run):
    """One that knew no parametrizations, patches and classes, and kept the state of Python's random numbers."""
    path = half_a_run / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["parametrization"], checkpoint["network"]["patch_size"], checkpoint["classes"]
    checkpoint["training"]["random"][0]["python"] = random.getstate()
    torch.save(checkpoint, path)
    config = json.loads((half_a_run / "config.json").read_text())
    for name in ("parametrization", "patch_size", "crop", "clip_x0", "keep_every", "fingerprint"):
        del config[name]
    (half_a_run / "config.json").write_text(json.dumps(config))
    run = program("sampling.py", "--ckpt_path", half_a_run, "--save_dir", "samples", "--num_samples", 1)
    assert run.returncode == 0, run.stderr
    run = program("train.py", "--resume", half_a_run, "--train_num_steps", 5)
    assert run.returncode == 0, run.stderr


def test_a_lost_checkpoint_does_not_silently_start_the_run_anew(program, half_a_run):
    (half_a_run / "last.ckpt").unlink()
    assert refused(program("train.py", "--resume", half_a_run), "last.ckpt")
