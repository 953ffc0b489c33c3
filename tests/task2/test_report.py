"""The programs of report/ that train, sample and measure, with stand-ins for the programs that they run."""

import json
import os
import shutil
import signal
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

import common
import sampling
import sampling_steps
import study
import training_curve
from cli import UserError
from conftest import SMALL_UNET
from model import DiffusionModule
from network import UNet
from oracles import awake, refused
from scheduler import DDPMScheduler

# Stands in for the programs of Task 2, and logs its calls. train.py does what the file `behaviour` says.
STAND_IN = """
import json, os, sys, time
from pathlib import Path

name, arguments, here = Path(sys.argv[0]).name, sys.argv[1:], Path(os.environ["STAND_INS"])
with (here / "log").open("a") as log:
    log.write(json.dumps([name, Path.cwd().name, arguments]) + "\\n")

def value(flag):
    return Path(arguments[arguments.index(flag) + 1])

if name == "train.py":
    run, behaviour = Path("results/predictor/beta/now"), (here / "behaviour").read_text()
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").touch()
    if behaviour == "slow" or behaviour == "fail" and "linear" in Path.cwd().name:
        try:  # saves at the first Ctrl-C, which takes a while, and ends at once at a second
            (run / "started").touch()
            time.sleep(60)
        except KeyboardInterrupt:
            time.sleep(0.5)
            (run / "saved").write_text(str(os.getsid(0) == os.getpid()))
            sys.exit(130)
    if behaviour == "fail":
        while not list(Path("..").glob("linear*/results/*/*/*/started")):
            time.sleep(0.02)
        sys.exit(3)
    (run / "last.ckpt").touch()
if name == "sampling.py":
    value("--save_dir").mkdir(parents=True, exist_ok=True)
    for i in range(int(str(value("--num_samples")))):
        (value("--save_dir") / f"{i}.ppm").write_text("P3 1 1 255 0 0 0")
if name == "measure_fid.py":
    result = {"distance": len(list(Path(arguments[1]).iterdir())) + 0.5, "kid": {"mean": 0.01}}
    value("--json").write_text(json.dumps(result | {"name": f"FID-{value('--dims')}"}))
"""


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """The folder of the stand-ins, in place of Task 2's programs."""
    folder = tmp_path / "programs"
    (folder / "fid").mkdir(parents=True)
    for name in ("train.py", "sampling.py", "image_grid.py", "fid/measure_fid.py"):
        (folder / name).write_text(STAND_IN)
    (folder / "behaviour").write_text("work")
    monkeypatch.setenv("STAND_INS", str(folder))
    monkeypatch.setattr(common, "TASK2", folder)
    monkeypatch.setattr(common, "find_eval_images", lambda data_root: data_root / "eval")
    monkeypatch.setattr(study, "PytorchFidInception", lambda dims: None)
    monkeypatch.chdir(tmp_path)
    return folder


def calls(stand_ins, name):
    """(folder, arguments) of each call of a program so far."""
    log = [json.loads(line) for line in (stand_ins / "log").read_text().splitlines()]
    return [(folder, arguments) for program, folder, arguments in log if program == name]


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a program of report/; the one line that it ends with, or None after exit code 0."""

    def run(module, *arguments, code=2):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        capsys.readouterr()
        try:
            module.main()
        except SystemExit as stop:
            assert stop.code == code
            (line,) = capsys.readouterr().err.splitlines()
            return line

    return run


STUDY = ["--data_root", "data", "--work_dir", "w", "--precision", "fp32", "--train_num_steps", 7]
FEW = ["--modes", "quad", "--predictors", "x0", "mean"]


def test_a_study_resumes_after_its_time_is_over_and_does_nothing_twice(stand_ins, call, tmp_path):
    (stand_ins / "behaviour").write_text("slow")
    assert call(study, *STUDY, *FEW, "--jobs", 2, "--minutes", 0.04) is None
    assert len(list((tmp_path / "w").rglob("saved"))) == 2 and not (tmp_path / "w/study.csv").exists()

    (stand_ins / "behaviour").write_text("work")
    call(study, *STUDY, *FEW)
    rows = common.read_table(tmp_path / "w/study.csv")
    expected = [
        (predictor, form, study.SAMPLING, "True") for form in common.LOSS_WEIGHT_OF for predictor in ("x0", "mean")
    ]
    columns = "predictor", "parametrization", "sampling", "clip_x0"
    assert [tuple(row[name] for name in columns) for row in rows] == expected
    trained = calls(stand_ins, "train.py")
    assert [("--resume" in arguments) for _, arguments in trained] == [False, False, True, True, False, False]
    for _, arguments in trained + calls(stand_ins, "sampling.py"):
        assert arguments[arguments.index("--precision") + 1] == "fp32"
    folders = [f"quad-{row['predictor']}-{row['parametrization']}-{row['loss_weight']}-fp32-63" for row in rows]
    assert [folder for folder, _ in trained[2:]] == folders
    call(study, *STUDY, *FEW)
    assert len(calls(stand_ins, "train.py")) == 6

    call(study, *STUDY, *FEW, "--sampling", "--sample_method dpm", "--no-clip_x0")  # other samples of the same runs
    rows = common.read_table(tmp_path / "w/study.csv")
    assert [(row["sampling"], row["clip_x0"]) for row in rows[4:]] == [("--sample_method dpm", "False")] * 4
    requested = [sampling.parse_arguments(arguments) for _, arguments in calls(stand_ins, "sampling.py")]
    assert {(args.sample_method, args.eta, args.clip_x0) for args in requested[:4]} == {("ddim", 1.0, True)}
    assert {(args.sample_method, args.clip_x0) for args in requested[4:]} == {("dpm", False)}
    assert len(list((tmp_path / "w" / folders[0]).glob("*.json"))) == 2


def test_a_program_that_fails_ends_the_study_and_the_other_run_is_saved(stand_ins, call, tmp_path):
    (stand_ins / "behaviour").write_text("fail")
    line = call(study, *STUDY, "--jobs", 2)
    assert "train.py" in line and "code 3" in line
    assert [path.parents[4].name for path in (tmp_path / "w").rglob("saved")] == ["linear-noise-direct-none-fp32-63"]


def test_ctrl_c_interrupts_each_run_of_a_study_once(stand_ins, call, tmp_path):
    """Each runs in a session of its own, since a terminal sends Ctrl-C to the study's whole group of processes."""
    (stand_ins / "behaviour").write_text("slow")

    def interrupt():
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "w").rglob("started"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert call(study, *STUDY, "--jobs", 2, code=130)
    thread.join()
    assert [path.read_text() for path in (tmp_path / "w").rglob("saved")] == ["True", "True"]
    assert len(calls(stand_ins, "train.py")) == 2


def test_another_study_needs_another_folder(stand_ins, call):
    flags = [*STUDY, "--modes", "quad", "--predictors", "x0", "--parametrizations", "direct"]
    assert call(study, *flags, "--flags=--ch 64") is None
    for other, flag in [([], "--flags"), (["--flags=--ch 64", "--data_root", "others"], "--data_root")]:
        line = call(study, *flags, *other)
        assert f"argument {flag}" in line and "w/study.json" in line


@pytest.mark.parametrize("content", [b"", b"b,a\n", b"a,b\n\xff,1\n", b"a,b\n" + b"1" * 200_000])
def test_tables_are_read_as_written_and_other_files_are_not_extended(tmp_path, content):
    file, rows = tmp_path / "t.csv", [{"a": "x, y", "b": "1"}, {"a": "", "b": "é"}]
    assert common.read_table(file, ("a", "b")) == []
    common.write(file, rows)
    assert common.read_table(file, ("a", "b")) == rows
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"t\.csv .* a, b"):
        common.read_table(file, ("a", "b"))


def save_model(path):
    """A small network with T = 12 and new weights."""
    network = awake(UNet(T=12, **SMALL_UNET))
    DiffusionModule(network, DDPMScheduler(12, 1e-3, 0.3, "cosine"), "x0").save(path)


@pytest.fixture
def checkpoint(tmp_path):
    """model.ckpt in the current folder."""
    save_model(tmp_path / "model.ckpt")


def test_every_sampler_is_measured_with_each_nfe_and_none_twice(stand_ins, call, checkpoint, faces, tmp_path):
    arguments = ["--ckpt_path", "model.ckpt", "--data_root", faces, "--save_dir", "s", "--out", "t.csv", "--dims", 64]

    def rows(*flags):
        assert call(sampling_steps, *arguments, *flags) is None
        return common.read_table(tmp_path / "t.csv")

    settings = ["--num_samples", 4, "--steps", 12, 5, 3, 5, 50]
    rows(*settings, "--methods", "dpm")
    table = rows(*settings)
    expected = [("dpm", 3), ("dpm", 5), ("dpm", 11), ("ddim", 3), ("ddim", 5), ("ddim", 11), ("ddpm", 12)]
    keys = [("real images", 0), ("plain noise", 0), *expected]
    assert [(row["sample_method"], int(row["steps"]), row["images"]) for row in table] == [(*key, "4") for key in keys]
    assert len(calls(stand_ins, "measure_fid.py")) == len(table)
    assert {(row["distance"], row["kid"], row["name"]) for row in table} == {("4.5000", "0.010000", "FID-64")}
    requested = [sampling.parse_arguments(arguments) for _, arguments in calls(stand_ins, "sampling.py")]
    requested = [(args.sample_method, args.num_inference_steps, args.num_samples, args.clip_x0) for args in requested]
    assert requested == [(name, 12 if nfe == 11 else nfe, 4, True) for name, nfe in expected]
    folders = {f"{name}-{nfe}" for name, nfe in expected}
    assert {path.stem for path in (tmp_path / "s/4").glob("*.json")} == folders  # but of no bound
    clipped = [row["clip_x0"] for row in rows(*settings, "--methods", "ddpm", "--no-clip_x0")]
    assert clipped == ["", "", *["True"] * len(expected), "False"]
    assert "--no-clip_x0" in calls(stand_ins, "sampling.py")[-1][1]
    last = rows(*settings, "--methods", "dpm", "--last_timestep", 9)[-1]
    assert (last["steps"], last["last_timestep"]) == ("2", "9")  # the chain starts at timestep 10
    assert (tmp_path / "s/4/dpm-2-to-9.json").exists()
    assert calls(stand_ins, "sampling.py")[-1][1][-2:] == ["--last_timestep", "9"]
    assert (tmp_path / "t.svg").exists()

    assert "--last_timestep: " in call(sampling_steps, *arguments, "--last_timestep", 9)  # ddpm has none
    assert "--last_timestep: 40" in call(
        sampling_steps, *arguments, "--methods", "ddim", "--steps", 5, "--last_timestep", 40
    )
    assert "t.csv has FID-64" in call(sampling_steps, *arguments, "--dims", 192)
    save_model(tmp_path / "model.ckpt")
    assert "t.csv has FID-64" in call(sampling_steps, *arguments)
    assert "--num_samples" in call(sampling_steps, *arguments, "--num_samples", 16, "--out", "new.csv")


def test_the_bounds_are_random_real_images_and_uniform_pixels(tmp_path):
    (tmp_path / "train/a").mkdir(parents=True)
    for i in range(40):
        Image.new("RGB", (10, 10), (i, 0, 0)).save(tmp_path / f"train/a/{i:02}.png")
    draws = [[image.getpixel((0, 0))[0] for image in sampling_steps.real_images(tmp_path, 10, 8)] for _ in range(2)]
    assert draws[0] == draws[1] and len({*draws[0]}) == 10 and sorted(draws[0]) not in ([*range(10)], [*range(30, 40)])
    noise = np.stack([np.asarray(image) for image in sampling_steps.plain_noise(10, 8)])
    assert noise.shape == (10, 8, 8, 3) and np.histogram(noise, 4)[0].min() > 400


def test_the_curve_of_a_run_has_a_row_and_samples_for_each_checkpoint(stand_ins, call, checkpoint, tmp_path):
    (tmp_path / "run").mkdir()
    flags = ["--run", "run", "--data_root", "data", "--save_dir", "s", "--out", "out", "--num_samples", 9]
    for step, runs in [(200, 1), (1000, 2), (50, 3)]:
        shutil.copy("model.ckpt", f"run/step={step}.ckpt")
        assert call(training_curve, *flags) is None
        assert len(calls(stand_ins, "sampling.py")) == runs  # none twice
    rows = common.read_table(tmp_path / "out/tables/training_curve.csv")
    assert [row["steps"] for row in rows] == ["50", "200", "1000"] and rows[0]["distance"] == "9.5000"
    requested = [sampling.parse_arguments(arguments) for _, arguments in calls(stand_ins, "sampling.py")]
    settings = {(args.sample_method, args.num_inference_steps, args.num_samples, args.clip_x0) for args in requested}
    assert settings == {("ddim", 20, 9, None)}  # None: as sampling.py does by default
    assert {tuple(args[2:6]) for _, args in calls(stand_ins, "measure_fid.py")} == {
        ("--network", "pytorch-fid", "--dims", "768")
    }
    assert (tmp_path / "out/figures/training_curve.svg").exists()
    width, height = Image.open(tmp_path / "out/figures/training_samples.png").size
    assert width > height  # three rows of 8 images
    assert call(training_curve, *flags, "--steps", 50, 1000, "--out", "some") is None
    rows = common.read_table(tmp_path / "some/tables/training_curve.csv")
    assert [row["steps"] for row in rows] == ["50", "1000"]
    assert "step=7.ckpt" in call(training_curve, *flags, "--steps", 7)


@pytest.mark.parametrize(
    ("program_and_flags", "word"),
    [
        ("training_curve.py --run RUN --data_root DATA --save_dir s --out .", "--run: RUN"),
        ("study.py --data_root nowhere --work_dir w", "--data_root: nowhere"),
        ("explain_predictors.py --ckpt_path model.ckpt --data_root nowhere --out .", "--data_root: nowhere"),
        ("explain_predictors.py --ckpt_path model.ckpt model.ckpt --data_root DATA --out .", "a second model of"),
        ("neighbours.py --samples nowhere --data_root nowhere", "--data_root: nowhere"),
        ("spectrum.py nowhere --out s.csv", "nowhere"),
    ],
)
def test_wrong_arguments_are_one_line(program, checkpoint, faces, program_and_flags, word):
    name, *flags = program_and_flags.split()
    assert refused(program(f"../report/{name}", *[faces if flag == "DATA" else flag for flag in flags]), word)
