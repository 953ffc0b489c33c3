"""Several processes, here two on a CPU, train one model and share the samples."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoint import read_checkpoint
from conftest import SMALL_FLAGS, small_model
from dataset import AFHQDataModule
from oracles import max_difference, only_run, refused
from processes import PROGRAMS, start_together

FLAGS = [*SMALL_FLAGS, "--batch_size", 4, "--log_interval", 20]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.ckpt"
    small_model().save(path)
    return path


def finish(programs, code=0):
    codes = [program.finish() for program in programs]
    assert codes == [code] * len(programs), "".join(program.output for program in programs)
    return programs[0].output


def wait_for(place, name):
    deadline = time.monotonic() + 120
    while not list(place.rglob(name)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(place.rglob(name))


def test_a_step_of_two_processes_is_the_mean_of_their_gradients(new_trainer, faces, tmp_path):
    flags = ["--batch_size", 4, "--accumulate", 2, "--dropout", 0.3, "--learning_rate", 1e-3, "--warmup_steps", 0]
    command = ["train.py", "--data_root", faces, *SMALL_FLAGS, *flags, "--train_num_steps", 1]
    output = finish(start_together(2, *command, place=tmp_path))
    assert "Warning" not in output
    training = read_checkpoint(only_run(tmp_path) / "last.ckpt")["training"]

    # The same in one process, one share after the other.
    data = AFHQDataModule(faces, batch_size=4, image_resolution=8, max_num_images_per_cat=3000)
    trainers, losses = [], []
    for rank in range(2):
        trainer = new_trainer(*flags, seed=63 + rank)
        if rank:
            trainer.network.load_state_dict(trainers[0].network.state_dict())
        images, labels = data.train_batches(63, share=slice(rank, None, 2))[0]
        assert len(images) == 2
        losses.append(trainer.compute_gradient(images, labels).item())
        trainers.append(trainer)
    first, second = trainers
    for ours, theirs in zip(first.weights, second.weights, strict=True):
        ours.grad = (ours.grad + theirs.grad) / 2
    first.optimizer.step()
    for name, weight in first.network.state_dict().items():
        assert max_difference(weight, training["network"][name]) < 1e-6, name
    assert float(training["stats"][0]["loss"]) == pytest.approx(sum(losses) / 2, abs=1e-6)


def tensors_at_the_end(folder):
    checkpoint = read_checkpoint(folder / "last.ckpt")
    training = checkpoint["training"]
    states = [state["torch"] for state in training["random"]]
    return list(checkpoint["state_dict"].values()) + list(training["network"].values()) + states


def test_two_processes_stopped_and_resumed_end_the_same(program, faces, tmp_path):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    flags = ["train.py", "--data_root", faces, *FLAGS, "--dropout", 0.2, "--train_num_steps", 60]
    both = start_together(2, *flags, place=tmp_path / "whole"), start_together(2, *flags, place=tmp_path / "parts")
    wait_for(tmp_path / "parts", "step=20-traj.png")
    os.kill(both[1][1].process.pid, signal.SIGTERM)  # one is told, both stop
    assert "torchrun --nproc_per_node 2 train.py --resume" in finish(both[1], code=130)
    assert "training" not in both[1][1].output  # rank 0 alone shows a bar
    finish(both[0])
    whole, parts = only_run(tmp_path / "whole"), only_run(tmp_path / "parts")
    assert 20 <= read_checkpoint(parts / "last.ckpt")["training"]["step"] < 60
    alone = shutil.copytree(parts, tmp_path / "alone")
    finish(start_together(2, "train.py", "--resume", parts, place=tmp_path / "parts"))
    assert all(torch.equal(a, b) for a, b in zip(*map(tensors_at_the_end, (whole, parts)), strict=True))
    for path in whole.glob("step=*.png"):
        assert (parts / path.name).read_bytes() == path.read_bytes()
    run = program("train.py", "--resume", alone)
    assert run.returncode == 0 and "2 processes" in run.stderr
    assert read_checkpoint(alone / "last.ckpt")["training"]["step"] == 60


def test_an_error_of_rank_0_is_one_line_and_ends_all(model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/stranger.png").touch()
    first, other = start_together(2, "sampling.py", "--ckpt_path", model, "--save_dir", "out", place=tmp_path)
    assert (first.finish(), other.finish()) == (2, 2)
    assert "stranger.png" in first.output and first.output.count("\n") == 1 and other.output == ""


def test_a_process_that_loses_the_others_says_so_in_one_line(faces, tmp_path):
    flags = ["--data_root", faces, *FLAGS, "--train_num_steps", 10**5, "--log_interval", 10**5]
    first, other = start_together(2, "train.py", *flags, place=tmp_path)
    wait_for(tmp_path, "step=0-traj.png")
    assert first.kill(0.1)
    assert other.finish() == 2
    assert other.output.startswith("train.py: error: ") and other.output.count("\n") == 1


def test_a_batch_that_cannot_be_divided_is_refused(program, faces, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")  # as clusters set it for programs that they start once
    flags = ["train.py", "--data_root", faces, *FLAGS]
    assert refused(program(*flags, "--accumulate", 3), "--batch_size: 4 ")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    assert refused(program(*flags), "--batch_size: 4 ")


def pixels_in(folder):
    return {path.name: np.asarray(Image.open(path)).astype(int) for path in folder.iterdir()}


def test_two_processes_make_the_images_of_one(program, model, tmp_path):
    flags = ["sampling.py", "--ckpt_path", model, "--num_samples", 7, "--batch_size", 2, "--save_traj", "--save_dir"]
    run = program(*flags, "one")
    assert run.returncode == 0, run.stderr
    one = pixels_in(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for i in (1, 4, 5, 6):  # the first of a chain that is saved, too
        (tmp_path / "two" / f"{i}.png").unlink()
    output = finish(start_together(2, *flags, "two", place=tmp_path))
    assert output.count("7 images") == 2 and "3 of 7 images" in output
    two = pixels_in(tmp_path / "two")
    assert one.keys() == two.keys() and len(one) == 7
    assert all(np.abs(one[name] - two[name]).max() <= 1 for name in one)  # batches of other sizes: rounding
    assert (tmp_path / "two_traj.png").read_bytes() == (tmp_path / "one_traj.png").read_bytes()


@pytest.mark.slow
def test_the_command_with_torchrun(faces, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    command += [PROGRAMS / "train.py", "--data_root", faces, *FLAGS, "--train_num_steps", 3]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert read_checkpoint(only_run(tmp_path) / "last.ckpt")["training"]["step"] == 3
