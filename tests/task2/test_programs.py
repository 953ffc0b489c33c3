"""train.py, sampling.py and image_grid.py as their users run them."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from PIL import Image

from checkpoint import read_checkpoint
from conftest import SMALL_FLAGS, write_image
from model import DiffusionModule
from oracles import only_run, refused
from scheduler import MODES, PREDICTORS

QUICK = [*SMALL_FLAGS, "--batch_size", 4, "--train_num_steps", 6, "--log_interval", 3]


@pytest.mark.parametrize(("mode", "predictor"), [*zip(MODES, PREDICTORS, strict=True)])
def test_every_schedule_and_predictor_trains_and_samples(program, faces, tmp_path, mode, predictor):
    run = program("train.py", "--data_root", faces, "--mode", mode, "--predictor", predictor, *QUICK)
    assert run.returncode == 0, run.stderr
    folder = only_run(tmp_path)
    assert folder.parent == tmp_path / "results" / f"predictor_{predictor}" / f"beta_{mode}"
    assert re.fullmatch(r"\d\d-\d\d-\d{6}", folder.name)
    pictures = [f"step={n}-{i}.png" for n in (0, 3, 6) for i in (0, 1, 2, 3, "traj")]
    assert {p.name for p in folder.iterdir()} == {*pictures, "config.json", "last.ckpt", "loss.png", "stats.csv"}
    assert Image.open(folder / "step=6-0.png").size == (8, 8)
    assert Image.open(folder / "step=6-traj.png").size == (10 * 10 + 2, 10 + 2)

    run = program("sampling.py", "--ckpt_path", folder / "last.ckpt", "--save_dir", "out", "--num_samples", 3)
    assert run.returncode == 0, run.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"{i}.png" for i in range(3)]
    assert Image.open(tmp_path / "out" / "2.png").size == (8, 8)


def test_a_run_keeps_its_settings_its_numbers_and_both_kinds_of_weights(program, faces, tmp_path):
    arguments = ["--batch_size", 4, "--train_num_steps", 110, "--log_interval", 200, "--warmup_steps", 100, "--use_cfg"]
    run = program("train.py", "--data_root", faces, *SMALL_FLAGS, *arguments)
    assert run.returncode == 0, run.stderr
    folder = only_run(tmp_path)
    assert folder.parent.parent.name == "cfg_predictor_noise" and str(folder.relative_to(tmp_path)) in run.stdout

    expected = {"batch_size": 4, "beta_1": 1e-4, "seed": 63, "use_cfg": True}
    expected |= {"synthetic_faces": True, "classes": ["cat", "dog", "wild"], "num_images": 15}
    assert expected.items() <= json.loads((folder / "config.json").read_text()).items()

    rows = list(csv.DictReader((folder / "stats.csv").open()))
    assert [int(row["step"]) for row in rows] == [50, 100, 110]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([1e-4, 2e-4, 2e-4])
    assert all(0 < float(row["loss"]) < 3 and float(row["images_per_second"]) > 0 for row in rows)
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])

    checkpoint = read_checkpoint(folder / "last.ckpt")
    averaged, last = checkpoint["state_dict"], checkpoint["training"]["network"]
    assert any(not averaged[name].equal(last[name]) for name in averaged)
    ddpm = DiffusionModule(None, None)
    ddpm.load(folder / "last.ckpt")
    assert ddpm.classes == ["cat", "dog", "wild"] and ddpm.network.config["num_classes"] == 3


def test_train_starts_where_a_notebook_exports_a_backend_that_is_not_installed(task_folder):
    environment = os.environ | {"MPLBACKEND": "module://no_such_module.backend_inline"}
    subprocess.run([sys.executable, task_folder / "train.py", "--help"], env=environment, check=True)


def test_printed_commands_can_be_pasted(program, half_a_run, tmp_path):
    half_a_run.rename(tmp_path / "it's a run")
    run = program("train.py", "--resume", "it's a run", "--train_num_steps", 4)
    assert run.returncode == 0, run.stderr
    _, name, *flags = shlex.split(run.stdout[run.stdout.index("python ") :])
    run = program(name, *flags, "--num_samples", 1)
    assert run.returncode == 0 and (tmp_path / "samples" / "it's a run" / "0.png").exists(), run.stderr


def test_an_image_grid_shows_the_images_in_the_order_of_their_numbers(program, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(11):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / "in" / f"{i}.png")
    run = program("image_grid.py", "in", "--out", "grid.png", "--count", 11, "--per_row", 4)
    assert run.returncode == 0, run.stderr
    grid = Image.open(tmp_path / "grid.png")
    assert grid.size == (4 * 6 + 2, 3 * 6 + 2)
    assert [grid.getpixel((3 + 6 * (i % 4), 3 + 6 * (i // 4)))[0] for i in range(11)] == list(range(11))


@pytest.mark.parametrize(
    ("folder", "out"), [("empty", "x.png"), ("in", "in/x.png"), ("in", "in/deeper/x.png"), ("in", "x.txt")]
)
def test_an_image_grid_of_nothing_or_among_its_images_or_of_no_format_is_refused(program, tmp_path, folder, out):
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / "in" / "0.png")
    assert refused(program("image_grid.py", folder, "--out", out), folder if folder == "empty" else out)
    assert not (tmp_path / out).exists()


def test_a_full_disk_is_one_line_with_the_file_and_leaves_nothing_incomplete(program, full_disk, tmp_path):
    write_image(tmp_path / "in" / "0.png")
    with full_disk(3000):
        assert refused(program("image_grid.py", "in", "--out", "out/grid.png"), "grid.png")
    assert not list((tmp_path / "out").iterdir())
