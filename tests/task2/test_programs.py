"""train.py, sampling.py and image_grid.py as their users run them."""

import csv
import json
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from checkpoint import read_checkpoint
from conftest import SMALL_FLAGS
from model import DiffusionModule
from oracles import only_run, refused
from processes import Program
from scheduler import MODES, PREDICTORS

QUICK = [*SMALL_FLAGS, "--batch_size", 4, "--train_num_steps", 6, "--log_interval", 3]


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("mode", MODES)
def test_all_nine_combinations_train_and_sample(program, faces, tmp_path, mode, predictor):
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
    arguments = ["--batch_size", 4, "--train_num_steps", 110, "--log_interval", 200, "--warmup_steps", 100, "--hflip"]
    run = program("train.py", "--data_root", faces, *SMALL_FLAGS, *arguments)
    assert run.returncode == 0, run.stderr
    folder = only_run(tmp_path)
    assert str(folder.relative_to(tmp_path)) in run.stdout

    expected = {"batch_size": 4, "beta_1": 1e-4, "seed": 63, "hflip": True}
    expected |= {"synthetic_faces": True, "classes": ["cat", "dog", "wild"], "num_images": 15}
    assert expected.items() <= json.loads((folder / "config.json").read_text()).items()

    rows = list(csv.DictReader((folder / "stats.csv").open()))
    assert [int(row["step"]) for row in rows] == [50, 100, 110]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([1e-4, 2e-4, 2e-4])
    assert all(0 < float(row["loss"]) < 3 and float(row["images_per_second"]) > 0 for row in rows)
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])

    checkpoint = read_checkpoint(folder / "last.ckpt")
    assert checkpoint["training"]["step"] == 110
    averaged, last = checkpoint["state_dict"], checkpoint["training"]["network"]
    assert any(not averaged[name].equal(last[name]) for name in averaged)


def test_a_run_with_labels_has_its_own_folder_and_knows_its_classes(program, faces, tmp_path):
    run = program("train.py", "--data_root", faces, *QUICK, "--use_cfg", "--cfg_dropout", 0.2)
    assert run.returncode == 0, run.stderr
    folder = only_run(tmp_path)
    assert folder.parent.parent.name == "cfg_predictor_noise"
    ddpm = DiffusionModule(None, None)
    ddpm.load(folder / "last.ckpt")
    assert ddpm.classes == ["cat", "dog", "wild"] and ddpm.network.config["num_classes"] == 3
    assert ddpm.network.config["cfg_dropout"] == 0.2


def test_printed_commands_can_be_pasted(program, faces, tmp_path):
    run = program("train.py", "--data_root", faces, *QUICK)
    assert run.returncode == 0, run.stderr
    only_run(tmp_path).rename(tmp_path / "it's a run")
    run = program("train.py", "--resume", "it's a run", "--train_num_steps", 7)
    assert run.returncode == 0, run.stderr
    _, name, *flags = shlex.split(run.stdout[run.stdout.index("python ") :])
    run = program(name, *flags, "--num_samples", 1)
    assert run.returncode == 0 and (tmp_path / "samples" / "it's a run" / "0.png").exists(), run.stderr


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["--mode", "sigmoid"], "--mode"),
        (["--predictor", "velocity"], "--predictor"),
        (["--batch_size", 0], "--batch_size"),
        (["--batch_size", 100], "--batch_size"),
        (["--dropout", 2], "--dropout"),
        (["--beta_1", 0.5, "--beta_T", 0.1], "--beta_1"),
        (["--beta_1", "1e-17"], "--beta_1"),
        (["--image_resolution", 20, "--ch_mult", 1, 1, 1, 1], "image_resolution"),
        (["--ch", 40], "ch"),
        (["--attn", 7], "attn"),
        (["--device", "toaster"], "'toaster'"),
        (["--device", "cuda", "--gpu", 99], "'cuda:99'"),
        (["--num_diffusion_train_timesteps", 1], "--num_diffusion_train_timesteps"),
        (["--resume", "nowhere"], "nowhere"),
        (["--learning", 3], "--learning"),
        (["--data_root", "typo"], "--data_root"),
    ],
)
def test_wrong_training_flags_are_one_line_and_leave_nothing(program, faces, tmp_path, arguments, culprit):
    assert refused(program("train.py", "--data_root", faces, *SMALL_FLAGS, "--batch_size", 4, *arguments), culprit)
    assert not list(tmp_path.iterdir())


def test_help_shows_flags_and_defaults(program):
    for name, texts in {
        "train.py": ["--mode", "--resume", "(default: 100000)", "(default: [1, 2, 2, 2])"],
        "sampling.py": ["--ckpt_path", "(default: 500)", "(default: 7.5)"],
        "image_grid.py": ["--out", "(default: 64)"],
        "fid/measure_fid.py": ["--network", "(default: auto)"],
    }.items():
        run = program(name, "--help")
        assert run.returncode == 0 and all(text in run.stdout for text in texts)
        assert "None" not in run.stdout


def test_a_contact_sheet_shows_the_images_in_the_order_of_their_numbers(program, tmp_path):
    for i in range(11):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / "in" / f"{i}.png")
    run = program("image_grid.py", "in", "--out", "sheet.png", "--count", 11, "--per_row", 4)
    assert run.returncode == 0, run.stderr
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size == (4 * 6 + 2, 3 * 6 + 2)
    assert [sheet.getpixel((3 + 6 * (i % 4), 3 + 6 * (i // 4)))[0] for i in range(11)] == list(range(11))


@pytest.mark.parametrize(
    ("folder", "out"),
    [
        ("empty", "x.png"),
        ("in", "in/x.png"),
        ("in", "in/deeper/x.png"),
        ("in", "x.txt"),
        ("in", "x.fits"),
        ("in", "x.xbm"),
    ],
)
def test_a_contact_sheet_of_nothing_or_among_its_images_or_of_no_format_is_refused(program, tmp_path, folder, out):
    (tmp_path / "empty").mkdir()
    (tmp_path / "in").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "in" / "0.png")
    assert refused(program("image_grid.py", folder, "--out", out), folder if folder == "empty" else out)
    assert not (tmp_path / out).exists()


def test_a_full_disk_is_one_line_with_the_file_and_leaves_nothing_half_made(tmp_path):
    (tmp_path / "in").mkdir()
    noise = np.random.randint(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "in" / "0.png")
    program = Program("image_grid.py", "in", "--out", "out/sheet.png", place=tmp_path, largest_file=3000)
    assert program.finish() == 2
    assert "sheet.png" in program.output and program.output.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())
