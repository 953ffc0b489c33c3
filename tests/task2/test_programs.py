"""train.py, sampling.py and image_grid.py as their users run them, on small drawn faces."""

import csv
import json
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from checkpoint import read_checkpoint
from conftest import SMALL_FLAGS
from model import DiffusionModule
from oracles import awake, only_run, refused
from scheduler import MODES, PREDICTORS

QUICK = [*SMALL_FLAGS, "--batch_size", "4", "--train_num_steps", "6", "--log_interval", "3"]


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
    assert Image.open(folder / "step=6-traj.png").size == (10 * 10 + 2, 4 * 10 + 2)

    run = program(
        "sampling.py", "--ckpt_path", folder / "last.ckpt", "--save_dir", "out", "--num_samples", 5, "--batch_size", 2
    )
    assert run.returncode == 0, run.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"{i}.png" for i in range(5)]
    assert Image.open(tmp_path / "out" / "4.png").size == (8, 8)


def test_what_a_run_writes_down(program, faces, tmp_path):
    arguments = ["--batch_size", 4, "--train_num_steps", 110, "--log_interval", 200, "--warmup_steps", 100, "--hflip"]
    run = program("train.py", "--data_root", faces, *SMALL_FLAGS, *arguments)
    assert run.returncode == 0, run.stderr
    folder = only_run(tmp_path)
    assert str(folder.relative_to(tmp_path)) in run.stdout

    config = json.loads((folder / "config.json").read_text())
    assert config["batch_size"] == 4 and config["beta_1"] == 1e-4 and config["seed"] == 63 and config["hflip"] is True
    assert (
        config["synthetic_faces"] is True and config["classes"] == ["cat", "dog", "wild"] and config["num_images"] == 15
    )

    rows = list(csv.DictReader((folder / "stats.csv").open()))
    assert [int(row["step"]) for row in rows] == [50, 100, 110]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([1e-4, 2e-4, 2e-4])
    assert all(0 < float(row["loss"]) < 3 and float(row["images_per_second"]) > 0 for row in rows)
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])

    checkpoint = read_checkpoint(folder / "last.ckpt")
    assert checkpoint["training"]["step"] == 110
    # What is sampled from is the average, not the last weights.
    averaged, last = checkpoint["state_dict"], checkpoint["training"]["network"]
    assert any(not torch.equal(averaged[name], last[name]) for name in averaged)


def test_two_runs_of_one_second_do_not_collide(faces, tmp_path, monkeypatch):
    import train

    monkeypatch.chdir(tmp_path)
    args = train.parse_arguments(["--mode", "quad"])
    folders = [train.new_run_folder(args) for _ in range(5)]
    assert len(set(folders)) == 5 and all(folder.is_dir() for folder in folders)


def test_average_warms_up_and_then_has_its_decay():
    import trainer

    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(network.weight)
    ema = trainer.EMA(network, decay=0.5)
    torch.nn.init.zeros_(network.weight)
    expected = 1.0
    for step in range(1, 30):
        ema.update(network, step)
        expected *= min(0.5, (1 + step) / (10 + step))
        assert ema.network.weight.item() == pytest.approx(expected, rel=1e-5)
    assert not ema.network.weight.requires_grad


def test_guidance_from_training_to_images(program, faces, tmp_path):
    run = program("train.py", "--data_root", faces, *QUICK, "--use_cfg", "--cfg_dropout", 0.2)
    assert run.returncode == 0, run.stderr
    folder = only_run(tmp_path)
    assert folder.parent.parent.name == "cfg_predictor_noise"
    ddpm = DiffusionModule(None, None)
    ddpm.load(folder / "last.ckpt")
    assert ddpm.network.config["num_classes"] == 3 and ddpm.network.config["cfg_dropout"] == 0.2
    awake(ddpm.network)
    ddpm.save(tmp_path / "awake.ckpt")
    for name, options in {"no": [], "cfg": ["--use_cfg", "--cfg_scale", 3]}.items():
        run = program("sampling.py", "--ckpt_path", "awake.ckpt", "--save_dir", name, "--num_samples", 3, *options)
        assert run.returncode == 0, run.stderr
    assert any(
        (tmp_path / "no" / f"{i}.png").read_bytes() != (tmp_path / "cfg" / f"{i}.png").read_bytes() for i in range(3)
    )


@pytest.fixture(scope="module")
def trained(task_folder, faces, tmp_path_factory):
    place = tmp_path_factory.mktemp("trained")
    command = [sys.executable, task_folder / "train.py", "--data_root", faces, "--mode", "cosine", *QUICK]
    subprocess.run(command, cwd=place, check=True, capture_output=True)
    return only_run(place)


def test_trajectories_lie_beside_the_samples(program, trained, tmp_path):
    run = program(
        "sampling.py", "--ckpt_path", trained / "last.ckpt", "--save_dir", "out", "--num_samples", 3, "--save_traj"
    )
    assert run.returncode == 0, run.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"out", "out_traj"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"0.png", "1.png", "2.png"}
    strip = Image.open(tmp_path / "out_traj" / "1.png")
    assert strip.size == (10 * 10 + 2, 12)
    # The last frame is the sample.
    assert strip.crop((92, 2, 100, 10)).tobytes() == Image.open(tmp_path / "out" / "1.png").convert("RGB").tobytes()


def test_the_seed_decides_the_samples(program, trained, tmp_path):
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        run = program(
            "sampling.py", "--ckpt_path", trained / "last.ckpt", "--save_dir", name, "--num_samples", 1, "--seed", seed
        )
        assert run.returncode == 0, run.stderr
    a, b, c = ((tmp_path / name / "0.png").read_bytes() for name in "abc")
    assert a == b != c


def test_schedule_and_predictor_are_checked_against_the_checkpoint(program, trained, tmp_path):
    base = ["--ckpt_path", trained / "last.ckpt", "--save_dir", "out", "--num_samples", 1]
    assert refused(program("sampling.py", *base, "--mode", "linear"), "linear was asked for")
    run = program("sampling.py", *base, "--predictor", "x0")
    assert refused(run, "--predictor: x0 was asked for") and "trained with noise" in run.stderr
    assert refused(program("sampling.py", *base, "--use_cfg"), "was trained without it")
    run = program("sampling.py", *base, "--mode", "cosine", "--predictor", "noise")
    assert run.returncode == 0, run.stderr
    assert refused(program("sampling.py", *base, "--seed", 1), "(seed 0 there, 1 here)")


def test_a_stopped_run_goes_on_in_its_folder(program, task_folder, faces, tmp_path):
    command = [sys.executable, task_folder / "train.py", "--data_root", faces, *SMALL_FLAGS, "--batch_size", "4"]
    command += ["--train_num_steps", "100000", "--log_interval", "20"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("step=20-0.png")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    folder = only_run(tmp_path)
    step = read_checkpoint(folder / "last.ckpt")["training"]["step"]
    assert f"stopped at step {step}" in stdout and "--resume" in stdout

    assert refused(program("train.py", "--resume", folder, "--batch_size", 2), "--batch_size 2 (the run has 4)")
    assert refused(program("train.py", "--resume", tmp_path), "not the folder of a run")
    run = program("train.py", "--resume", folder, "--train_num_steps", step + 5)
    assert run.returncode == 0, run.stderr
    assert only_run(tmp_path) == folder
    rows = list(csv.DictReader((folder / "stats.csv").open()))
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps)) and steps[-1] == step + 5
    assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mode", "sigmoid"], "--mode: invalid choice: 'sigmoid'"),
        (["--predictor", "velocity"], "--predictor: invalid choice"),
        (["--batch_size", "0"], "--batch_size: '0' is not a whole number >= 1"),
        (["--batch_size", "100"], "argument --batch_size: 100"),
        (["--dropout", "2"], "--dropout: '2' is not a number from 0 to 0.99"),
        (["--beta_1", "0.5", "--beta_T", "0.1"], "--beta_1: 0.5 is larger than --beta_T, 0.1"),
        (["--image_resolution", "20", "--ch_mult", "1", "1", "1", "1"], "multiple of 8"),
        (["--ch", "40"], "multiple of 32"),
        (["--attn", "7"], "attn names levels"),
        (["--device", "toaster"], "'toaster' is not a device"),
        (["--device", "cuda", "--gpu", "99"], "'cuda:99' is not a device"),
        (["--resume", "nowhere"], "'nowhere' is not the folder of a run"),
        (["--learning", "3"], "unrecognized arguments"),
    ],
)
def test_bad_training_arguments_end_in_one_line_and_leave_nothing(program, faces, tmp_path, arguments, words):
    assert refused(program("train.py", "--data_root", faces, *SMALL_FLAGS, "--batch_size", 4, *arguments), words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: --ckpt_path, --save_dir"),
        (["--ckpt_path", "none.ckpt", "--save_dir", "out"], "none.ckpt"),
        (["--ckpt_path", "text.ckpt", "--save_dir", "out"], "text.ckpt: not a checkpoint of this program"),
        (["--ckpt_path", "text.ckpt", "--save_dir", "text.ckpt"], "text.ckpt is a file, where a folder is wanted"),
        (["--ckpt_path", "text.ckpt", "--save_dir", "out", "--num_samples", "0"], "--num_samples: '0'"),
    ],
)
def test_bad_sampling_arguments_end_in_one_line(program, tmp_path, arguments, words):
    (tmp_path / "text.ckpt").write_text("hello")
    assert refused(program("sampling.py", *arguments), words)


def test_help_reads_as_documentation(program):
    for name in ("train.py", "sampling.py", "image_grid.py"):
        run = program(name, "--help")
        assert run.returncode == 0 and "--" in run.stdout
    text = program("train.py", "--help").stdout
    for flag in ("mode", "predictor", "gpu", "warmup_steps", "cfg_dropout", "ema_decay", "resume", "data_root"):
        assert f"--{flag}" in text
    assert "(default: 100000)" in text and "(default: 1 2 2 2)" in text


def test_contact_sheet_shows_the_images_in_the_order_of_their_numbers(program, tmp_path):
    for i in range(11):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / "in" / f"{i}.png")
    run = program("image_grid.py", "in", "--out", "sheet.png", "--count", 11, "--per_row", 4)
    assert run.returncode == 0, run.stderr
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size == (4 * 6 + 2, 3 * 6 + 2)
    assert [sheet.getpixel((3 + 6 * (i % 4), 3 + 6 * (i // 4)))[0] for i in range(11)] == list(range(11))
    (tmp_path / "empty").mkdir()
    assert refused(program("image_grid.py", "empty", "--out", "sheet.png"), "holds no images")


def test_a_sheet_is_not_put_among_the_images_that_it_shows(program, tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "in" / "0.png")
    assert refused(program("image_grid.py", "in", "--out", "in/deeper/sheet.png"), "would lie among the images")
    assert refused(program("image_grid.py", "in", "--out", "in/sheet.png"), "would lie among the images")


def test_a_wrong_place_for_the_data_or_the_checkpoint_is_said(program, trained, tmp_path):
    assert refused(
        program("train.py", "--data_root", "typo"), "typo holds no train/ and val/; `python dataset.py --data_root"
    )
    assert not list(tmp_path.iterdir())
    run = program("sampling.py", "--ckpt_path", trained, "--save_dir", "out")
    assert refused(run, f"is a folder; try {trained / 'last.ckpt'}")
    assert refused(program("sampling.py", "--ckpt_path", "no.ckpt", "--save_dir", "out"), "no.ckpt: No such file")
    assert not list(tmp_path.iterdir())
