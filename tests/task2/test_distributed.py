"""Several processes, here two on a CPU, train one model and share the samples."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import train
from checkpoint import read_checkpoint
from dataset import AFHQDataModule
from distributed import Distributed
from model import DiffusionModule
from network import UNet
from oracles import awake, max_difference, only_run, refused
from processes import PROGRAMS, start_together
from scheduler import DDPMScheduler
from synthetic_faces import write_synthetic_set
from trainer import Trainer

TINY = ["--ch", 32, "--ch_mult", 1, "--attn", "--num_res_blocks", 1, "--image_resolution", 8]
TINY += ["--num_diffusion_train_timesteps", 12, "--batch_size", 4, "--log_interval", 20]


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    root = tmp_path_factory.mktemp("faces") / "afhq"
    write_synthetic_set(root, 5)
    return root


def finish(programs, code=0):
    codes = [program.finish() for program in programs]
    assert codes == [code] * len(programs), "".join(program.said for program in programs)
    return programs[0].said


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_of_two_is_the_mean_of_their_gradients(faces, tmp_path, parts):
    flags = [
        *TINY,
        "--accumulate",
        parts,
        "--dropout",
        0.3,
        "--hflip",
        "--learning_rate",
        1e-3,
        "--warmup_steps",
        0,
        "--train_num_steps",
        1,
    ]
    said = finish(start_together(2, "train.py", "--data_root", faces, *flags, place=tmp_path))
    assert "on 2 devices" in said and "Warning" not in said
    training = read_checkpoint(only_run(tmp_path) / "last.ckpt")["training"]

    # The same in one process, one share after the other.
    args = train.parse_arguments([str(flag) for flag in flags])
    data = AFHQDataModule(faces, batch_size=4, image_resolution=8, max_num_images_per_cat=3000)
    trainers, losses = [], []
    for rank in range(2):
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(args.seed + rank)
        trainer = Trainer(args, 3, torch.device("cpu"), tmp_path)
        if rank:
            trainer.ddpm.network.load_state_dict(trainers[0].ddpm.network.state_dict())
        images, _ = data.train_batches(args.seed, share=slice(rank, None, 2))[0]
        assert len(images) == 2
        if args.hflip:
            mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
            images = torch.where(mirrored, images.flip(3), images)
        losses.append(trainer._gradient(images, None).item())
        trainers.append(trainer)
    first, second = trainers
    for ours, theirs in zip(first.weights, second.weights, strict=True):
        ours.grad = (ours.grad + theirs.grad) / 2
    first.optimizer.step()
    for name, weight in first.ddpm.network.state_dict().items():
        assert max_difference(weight, training["network"][name]) < 1e-6, name
    assert float(training["stats"][0]["loss"]) == pytest.approx(sum(losses) / 2, abs=1e-6)


def end_of(folder):
    checkpoint = read_checkpoint(folder / "last.ckpt")
    training = checkpoint["training"]
    states = [state["torch"] for state in training["random"]]
    return list(checkpoint["state_dict"].values()) + list(training["network"].values()) + states


def test_two_that_are_stopped_and_resumed_end_the_same(faces, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    flags = ["--data_root", faces, *TINY, "--dropout", 0.2, "--train_num_steps", 150]
    finish(start_together(2, "train.py", *flags, place=tmp_path / "whole"))
    programs = start_together(2, "train.py", *flags, place=tmp_path / "parts")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("parts/results/*/*/*/step=20-traj.png")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(tmp_path.glob("parts/results/*/*/*/step=20-traj.png")), programs[0].said
    os.kill(programs[1].process.pid, signal.SIGTERM)  # one is told, both stop
    said = finish(programs, code=130)
    assert "stopped at step" in said
    parts = only_run(tmp_path / "parts")
    assert 20 <= read_checkpoint(parts / "last.ckpt")["training"]["step"] < 150
    alone = tmp_path / "alone"
    shutil.copytree(parts, alone)
    finish(start_together(2, "train.py", "--resume", parts, place=tmp_path / "parts"))
    whole = only_run(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(end_of(whole), end_of(parts), strict=True))
    for picture in whole.glob("step=*.png"):
        assert (parts / picture.name).read_bytes() == picture.read_bytes()
    said = finish(start_together(1, "train.py", "--resume", alone, place=tmp_path))
    assert "was trained by 2 processes and goes on with 1: with other random numbers" in said
    assert read_checkpoint(alone / "last.ckpt")["training"]["step"] == 150


def test_what_only_the_first_finds_ends_all(model, faces, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/stranger.png").touch()
    first, other = start_together(2, "sampling.py", "--ckpt_path", model, "--save_dir", "out", place=tmp_path)
    assert (first.finish(), other.finish()) == (2, 2)
    assert "stranger.png" in first.said and first.said.count("\n") == 1 and other.said == ""

    broken = tmp_path / "afhq"
    shutil.copytree(faces, broken)
    next(broken.glob("train/cat/*")).write_text("no image")
    first, other = start_together(2, "train.py", "--data_root", broken, *TINY, place=tmp_path)
    assert (first.finish(), other.finish()) == (2, 2)
    assert "train.py: error:" in first.said and "Traceback" not in first.said and other.said == ""


def test_who_loses_the_others_says_so_in_a_line(faces, tmp_path):
    flags = ["--data_root", faces, *TINY, "--train_num_steps", 10**5, "--log_interval", 10**5]
    first, other = start_together(2, "train.py", *flags, place=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("results/*/*/*/step=0-traj.png")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert first.kill(0.1)
    assert other.finish() == 2
    assert (
        other.said
        == "train.py: error: another process of this program has ended; what it printed, if anything, says why\n"
    )


@pytest.mark.parametrize(("rank", "hidden"), [("0", {False}), ("1", {True})])
def test_only_the_first_process_shows_bars(program, model, monkeypatch, rank, hidden):
    shown = []

    def bar(items, disable=False, **how):
        shown.append(disable)
        return items

    for name in ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, {"RANK": rank}.get(name, "2"))
    monkeypatch.setattr("tqdm.tqdm", bar)
    monkeypatch.setattr("model.tqdm", bar)
    monkeypatch.setattr(Distributed, "connect", lambda self, device: None)
    monkeypatch.setattr(Distributed, "on_rank_zero", lambda self, call: [0, 1, 2])
    monkeypatch.setattr(Distributed, "any", lambda self, flag: flag)
    run = program("sampling.py", "--ckpt_path", model, "--save_dir", "out", "--num_samples", 3)
    assert run.returncode == 0, run.stderr
    assert set(shown) == hidden and len(shown) == 2  # the batches, and the steps of the one batch


def test_a_batch_that_cannot_be_shared_is_refused(program, faces, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")  # as clusters set it for programs that they start once
    assert refused(program("train.py", "--data_root", faces, *TINY, "--batch_size", 100), "argument --batch_size: 100")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    run = program("train.py", "--data_root", faces, *TINY)
    assert refused(run, "--batch_size: 4 cannot be shared by 3 processes of --accumulate 1 parts")
    monkeypatch.delenv("WORLD_SIZE")
    assert refused(program("train.py", "--data_root", faces, *TINY, "--accumulate", 3), "1 processes of --accumulate 3")


def test_two_make_the_images_that_one_makes(model, tmp_path):
    def images(name):
        return {path.name: np.asarray(Image.open(path)).astype(int) for path in (tmp_path / name).iterdir()}

    flags = ["--ckpt_path", model, "--num_samples", 7, "--batch_size", 2, "--save_traj"]
    finish(start_together(1, "sampling.py", *flags, "--save_dir", "one", place=tmp_path))
    said = finish(start_together(2, "sampling.py", *flags, "--save_dir", "two", place=tmp_path))
    assert said.count("7 images in two") == 1
    one, two = images("one"), images("two")
    assert one.keys() == two.keys() and len(one) == 7
    assert all(np.abs(one[name] - two[name]).max() <= 1 for name in one)  # batches of other sizes: rounding
    assert (tmp_path / "two_traj.png").read_bytes() == (tmp_path / "one_traj.png").read_bytes()
    (tmp_path / "two" / "3.png").unlink()
    said = finish(start_together(2, "sampling.py", *flags, "--save_dir", "two", place=tmp_path))
    assert "6 of 7 images are there already" in said and len(images("two")) == 7


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    network = awake(UNet(T=12, image_resolution=8, ch=32, ch_mult=[1], attn=[0], num_res_blocks=1))
    path = tmp_path_factory.mktemp("model") / "model.ckpt"
    DiffusionModule(network, DDPMScheduler(12, 1e-4, 0.3), "noise").save(path)
    return path


@pytest.mark.slow
def test_compiled_sampling_gives_the_same_images(program, model, tmp_path):
    for switch in ("on", "off"):
        flags = ["--num_samples", 5, "--batch_size", 3, "--compile", switch]
        run = program("sampling.py", "--ckpt_path", model, "--save_dir", switch, *flags)
        assert run.returncode == 0, run.stderr
        assert len(list((tmp_path / switch).iterdir())) == 5
    for i in range(5):
        on, off = (np.asarray(Image.open(tmp_path / switch / f"{i}.png")).astype(int) for switch in ("on", "off"))
        assert np.abs(on - off).max() <= 1


@pytest.mark.slow
def test_the_command_with_torchrun(faces, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    command += [PROGRAMS / "train.py", "--data_root", faces, *TINY, "--train_num_steps", 3]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert "on 2 devices" in run.stdout and "finished at step 3" in run.stdout
