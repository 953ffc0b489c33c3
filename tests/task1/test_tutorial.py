"""Training and the tutorial as their users run them."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import chamferdist
from chamferdist import chamfer_distance
from dataset import DATASETS, TwoDimDataClass, get_data_iterator
from ddpm import BaseScheduler, DiffusionModule
from network import SimpleNet
from oracles import refused
from training import train

PICTURES = ["target_and_prior", "q_sample", "loss", "reverse_chain", "samples"]


def test_a_short_training_lowers_the_loss_and_the_distance():
    data = TwoDimDataClass("swiss_roll", 10_000, 128)
    ddpm = DiffusionModule(SimpleNet(2, 2, [64, 64], 100), BaseScheduler(100, mode="cosine"))

    def distance():
        return chamfer_distance(ddpm.p_sample_loop((1000, 2)), data[:1000])

    before = distance()
    losses = train(ddpm, get_data_iterator(data.get_dataloader()), num_iterations=500)
    assert losses.shape == (500,) and losses.isfinite().all()
    assert losses[-100:].mean() < 0.8 * losses[:20].mean()
    assert distance() < before / 5


@pytest.mark.parametrize("decay", [True, False])
def test_learning_rate_falls_unless_told_otherwise(decay, monkeypatch):
    rates = []

    class Adam(torch.optim.Adam):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
            return super().step()

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    ddpm = DiffusionModule(SimpleNet(2, 2, [4], 10), BaseScheduler(10))
    train(
        ddpm,
        get_data_iterator([torch.zeros(8, 2)]),
        num_iterations=10,
        learning_rate=0.1,
        **{} if decay else {"decay": False},
    )
    expected = [0.05 * (1 + math.cos(math.pi * i / 10)) for i in range(10)] if decay else [0.1] * 10
    assert rates == pytest.approx(expected)


def test_tutorial_makes_every_picture_and_prints_the_distance(program, tmp_path, monkeypatch):
    out = tmp_path / "a folder" / "results"
    strip, measured = [], []
    q_sample = DiffusionModule.q_sample

    def spied_q_sample(self, x0, t, noise=None):
        strip.append((len(x0), t))
        return q_sample(self, x0, t, noise)

    def spied_chamfer_distance(S1, S2):
        measured.append((S1, S2))
        return chamfer_distance(S1, S2)

    monkeypatch.setattr(DiffusionModule, "q_sample", spied_q_sample)
    monkeypatch.setattr(chamferdist, "chamfer_distance", spied_chamfer_distance)
    run = program("ddpm_tutorial.py", "--num_iterations", 60, "--out", out, "--seed", 3)
    assert run.returncode == 0, run.stderr
    files = sorted(path.name for path in out.iterdir())
    assert files == sorted([f"swiss_roll_{name}.png" for name in PICTURES] + ["swiss_roll.ckpt", "swiss_roll.json"])
    numbers = json.loads((out / "swiss_roll.json").read_text())
    assert f"DDPM Chamfer Distance: {numbers['chamfer']:.4f}" in run.stdout
    assert f"2048 target points: {numbers['floor']:.4f}" in run.stdout
    assert all((out / name).stat().st_size > 5000 for name in files if not name.endswith(".json"))
    # The strip: 500 points at t = 0, 50, ..., 450. The score: 2048 samples against the first 2048 of the target.
    assert [(n, int(t.unique())) for n, t in strip[:10]] == [(500, t) for t in range(0, 500, 50)]
    (samples, target), (more_target, same_target) = measured
    np.random.seed(3)
    assert samples.shape == (2048, 2)
    points = TwoDimDataClass("swiss_roll", 1_000_000, 128)
    assert torch.equal(target, points[:2048])
    assert torch.equal(torch.cat([same_target, more_target]), points[:4096])

    last = run.stdout.strip().splitlines()[-1]
    assert last.startswith("DDPM Chamfer Distance: ")
    assert float(last.split(": ")[1]) > 0
    assert last == f"DDPM Chamfer Distance: {float(last.split(': ')[1]):.4f}"

    again = DiffusionModule(None, None)
    again.load(out / "swiss_roll.ckpt")
    assert again.network.config["dim_hids"] == [128, 128, 128]


def test_the_seed_decides_everything(program, task_folder, tmp_path):
    runs = [
        program(
            "ddpm_tutorial.py", "--num_iterations", 20, "--out", tmp_path, "--dataset", "moon", "--seed", seed
        ).stdout
        for seed in (1, 2)
    ]
    assert runs[0] != runs[1]
    # Once more as its users start it, in a process of its own.
    command = [
        sys.executable,
        "ddpm_tutorial.py",
        "--num_iterations",
        "20",
        "--out",
        str(tmp_path),
        "--dataset",
        "moon",
    ]
    again = subprocess.run([*command, "--seed", "1"], cwd=task_folder, capture_output=True, text=True, check=True)
    assert again.stdout == runs[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", DATASETS)
def test_tutorial_learns_every_data_set(program, tmp_path, name):
    run = program("ddpm_tutorial.py", "--num_iterations", 2000, "--out", tmp_path, "--dataset", name)
    assert run.returncode == 0, run.stderr
    distance = float(run.stdout.strip().rsplit(": ", 1)[1])
    # Two true samples of the area-filling sets are 20 to 30 apart, those of curves below 1.
    assert distance < (150 if name.startswith(("gaussian", "checker")) else 30)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "spiral"], "--dataset: invalid choice: 'spiral'"),
        (["--seed", "-1"], "--seed: '-1' is not a whole number from 0 to 4294967295"),
        (["--seed", "1.5"], "--seed: '1.5' is not a whole number"),
        (["--num_iterations", "0"], "--num_iterations: '0' is not a whole number >= 1"),
        (["--device", "toaster"], "--device: 'toaster' is not a device of this machine"),
        (["--device", "meta"], "--device: 'meta' is not a device of this machine"),
        (["--device", "cuda:99"], "--device: 'cuda:99' is not a device of this machine"),
        (["--out", "a_file"], "--out: 'a_file' is in the way"),
        (["--out", "a_file/results"], "--out: 'a_file/results' is in the way"),
        (["--epochs", "3"], "unrecognized arguments: --epochs 3"),
    ],
)
def test_bad_arguments_end_in_one_line(program, tmp_path, arguments, words):
    (tmp_path / "a_file").write_text("in the way")
    run = program("ddpm_tutorial.py", *arguments)
    assert refused(run, words)
    assert run.stdout == ""


def test_help_names_every_data_set(program):
    run = program("ddpm_tutorial.py", "--help")
    assert run.returncode == 0
    assert all(name in run.stdout for name in DATASETS)


def test_notebook_cells_alternate_text_and_code(task_folder):
    text = (task_folder / "ddpm_tutorial.py").read_text()
    assert text.startswith("# %% [markdown]\n")
    assert text.count("# %% [markdown]\n") >= 5
    for cell in text.split("# %%")[1:]:
        if cell.startswith(" [markdown]"):
            body = cell.split("\n", 1)[1].strip()
            assert all(line.startswith("#") for line in body.splitlines()), body
