"""Training and the tutorial as their users run them."""

import contextlib
import io
import json
import math
import os
import re
import runpy
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from chamferdist import chamfer_distance
from cli import UserError, exit_on_user_error
from dataset import TwoDimDataClass, get_data_iterator
from ddpm import BaseScheduler, DiffusionModule
from oracles import refused
from training import train

FIGURES = ["target_and_prior", "q_sample", "loss", "reverse_chain", "samples"]
BAD_FLAGS = "--dataset spiral, --seed -1, --seed 1.5, --num_iterations 0, --device toaster, --device cuda:99, "
BAD_FLAGS += "--out a_file, --out a_file/results, --epochs 3, --num 3"


@pytest.mark.parametrize("decay", [True, False])
def test_learning_rate_falls_along_half_a_cosine_or_stays(decay):
    """Under a constant gradient, each step of Adam moves a weight by the learning rate."""

    class Weight(DiffusionModule):
        def compute_loss(self, x0):
            path.append(self.network.weight.item())
            return self.network.weight.sum()

    path = []
    ddpm = Weight(torch.nn.Linear(1, 1, bias=False), BaseScheduler(10))
    train(ddpm, get_data_iterator([torch.zeros(8, 2)]), 11, 0.1, decay=decay)
    expected = [0.05 * (1 + math.cos(math.pi * i / 11)) if decay else 0.1 for i in range(10)]
    assert -np.diff(path) == pytest.approx(expected, rel=1e-3)


@pytest.fixture(scope="module")
def tutorial(task_folder, tmp_path_factory):
    """A short run of the tutorial with seed 3: its arguments, output folder, variables and standard output."""
    out = tmp_path_factory.mktemp("a folder") / "new" / "résultats"
    arguments = ["ddpm_tutorial.py", "--num_iterations", "60", "--seed", "3", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as stdout:
        patch.setattr(sys, "argv", arguments)
        variables = runpy.run_path(str(task_folder / "ddpm_tutorial.py"), run_name="__main__")
    return arguments, out, variables, stdout.getvalue()


def test_tutorial_writes_every_file(tutorial):
    _, out, _, stdout = tutorial
    suffixes = [*(f"_{name}.png" for name in FIGURES), "_reverse_chain.gif", ".ckpt", ".json"]
    assert {path.name for path in out.iterdir()} == {f"swiss_roll{suffix}" for suffix in suffixes}
    assert set(stdout.splitlines()[:-2]) == {str(path) for path in out.iterdir()}
    assert all(path.stat().st_size > 5000 for path in out.iterdir() if path.suffix != ".json")
    with Image.open(out / "swiss_roll_reverse_chain.gif") as gif:
        assert 30 <= gif.n_frames <= 100
    DiffusionModule(None, None).load(out / "swiss_roll.ckpt")


def test_tutorial_shows_and_measures_what_the_lab_asks_for(tutorial):
    _, out, variables, stdout = tutorial
    assert [*map(int, re.findall(r"\d+", " ".join(variables["noisy"])))] == list(range(0, 500, 50))
    assert all(x_t.shape == (500, 2) for x_t in variables["noisy"].values())
    np.random.seed(3)
    points = TwoDimDataClass("swiss_roll", 1_000_000, 128)[:4096]
    assert variables["samples"].shape == (2048, 2)
    floor, distance = (chamfer_distance(points[:2048], other) for other in (points[2048:], variables["samples"]))
    assert [line.split(": ")[1] for line in stdout.splitlines()[-2:]] == [f"{floor:.4f}", f"{distance:.4f}"]
    assert stdout.splitlines()[-1].startswith("DDPM Chamfer Distance: ")
    result = json.loads((out / "swiss_roll.json").read_text())
    assert [result["floor"], result["chamfer"]] == pytest.approx([floor, distance], abs=1e-4) and result["seed"] == 3


def test_the_seed_decides_everything_in_another_process_too(tutorial, task_folder):
    """In a terminal that knows ASCII alone, and with a backend of Matplotlib that is not installed."""
    arguments, _, variables, stdout = tutorial
    torch.manual_seed(3)
    assert torch.equal(variables["prior"], torch.randn(500, 2))
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "MPLBACKEND": "module://no_such_module"}
    again = subprocess.run(
        [sys.executable, *arguments], cwd=task_folder, capture_output=True, text=True, env=environment
    )
    assert again.returncode == 0 and again.stdout == stdout.encode("ascii", "backslashreplace").decode()


def test_a_full_disk_is_one_line_with_the_file_and_leaves_nothing_incomplete(program, tmp_path, full_disk):
    with full_disk(3000):
        run = program("ddpm_tutorial.py", "--num_iterations", 1, "--out", "out")
    assert refused(run, "swiss_roll_target_and_prior.png") and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("arguments", BAD_FLAGS.split(", "))
def test_bad_flags_end_in_one_line_that_names_flag_and_value(program, tmp_path, arguments):
    (tmp_path / "a_file").touch()
    run = program("ddpm_tutorial.py", *arguments.split())
    assert all(refused(run, argument) for argument in arguments.split()) and run.stdout == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("a.ckpt:\nbroken"), 2), (FileNotFoundError(2, "missing", "a.ckpt"), 2), (KeyboardInterrupt(), 130)],
)
def test_user_errors_are_one_line_and_an_exit_code(error, code, capsys):
    with pytest.raises(SystemExit) as stop, exit_on_user_error("a.ckpt is incomplete"):
        raise error
    message = capsys.readouterr().err
    assert stop.value.code == code and "a.ckpt" in message and message.count("\n") == 1 and "Errno" not in message
    with pytest.raises(ValueError), exit_on_user_error():  # a bug keeps its traceback
        raise ValueError


@pytest.mark.parametrize(
    ("argv", "dataset"),
    [(["/env/ipykernel_launcher.py", "-f", "kernel.json"], "swiss_roll"), (["a_copy.py", "--dataset", "moon"], "moon")],
)
def test_a_notebook_ignores_the_arguments_of_its_kernel_alone(task_folder, tmp_path, monkeypatch, argv, dataset):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    first_code_cell = (task_folder / "ddpm_tutorial.py").read_text().split("# %%\n")[1]
    variables = {"__name__": "__main__"} | ({"__file__": argv[0]} if dataset == "moon" else {})
    exec(first_code_cell, variables)
    assert variables["args"].dataset == dataset
