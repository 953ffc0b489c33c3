"""The programs of report/ that work on Task 2."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from drawn_faces import write_drawn_set
from model import DiffusionModule
from network import UNet
from oracles import Ideal, alpha_bars, awake, eq_7, refused
from scheduler import MODES, PREDICTORS, DDPMScheduler

# A program that saves what it has at the first Ctrl-C, which takes a while, and ends at once at the second.
PATIENT = """
import pathlib, sys, time
pathlib.Path("started").touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1.5)
    pathlib.Path(sys.argv[1]).touch()
"""


@pytest.fixture
def explain(load_report):
    return load_report("explain_predictors")


@pytest.fixture
def study(load_report):
    return load_report("study")


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("mode", MODES)
def test_the_new_part_of_a_target_is_what_regression_leaves(explain, mode, predictor):
    """Against a least-squares fit of the target to x_t, on data of variance 1."""
    scheduler = DDPMScheduler(1000, 1e-4, 0.02, mode)
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 200_000, generator=generator, dtype=torch.float64)
    sizes = explain.new_part(scheduler, predictor)
    for t in (0, 500, 900):
        alpha_bar, _ = alpha_bars(scheduler, t)
        x_t = alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * eps
        target = {"noise": eps, "x0": x_0, "mean": eq_7(scheduler, t, x_0, x_t)[0]}[predictor]
        rest = target - (target @ x_t) / (x_t @ x_t) * x_t
        assert rest.square().mean().sqrt().item() == pytest.approx(sizes[t], rel=0.02)


@pytest.mark.parametrize("mode", MODES)
def test_the_weight_of_an_error_is_the_square_of_what_it_becomes(explain, mode):
    """An error of 0.1 in x_0 becomes another in noise and mean; its square is the weight."""
    scheduler = DDPMScheduler(1000, 1e-4, 0.02, mode)
    for predictor in PREDICTORS:
        squares = []
        for t in range(0, 1000, 111):
            alpha_bar, _ = alpha_bars(scheduler, t)
            right, wrong = (
                {
                    "noise": (1.0 - alpha_bar**0.5 * x_0) / (1 - alpha_bar) ** 0.5,
                    "x0": x_0,
                    "mean": eq_7(scheduler, t, x_0, 1.0)[0],
                }[predictor]
                for x_0 in (0.3, 0.4)
            )
            squares.append((right - wrong) ** 2)
        weights = explain.weight_on_x0(scheduler, predictor)[::111]
        assert weights.max() <= 1 and np.allclose(weights / weights[0], np.array(squares) / squares[0], rtol=1e-3)


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_errors_of_models_are_in_one_currency(explain, predictor):
    """A perfect network for Gaussian images has the same errors whatever it predicts: those of E[x_0 | x_t]."""
    scheduler = DDPMScheduler(100, 1e-3, 0.2, "cosine")
    ddpm = DiffusionModule(Ideal(scheduler, 0.0, 0.5, predictor), scheduler, predictor)
    images = 0.5 * torch.randn(400, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    for t, of_x0, of_eps in explain.errors_of(ddpm, images, [10, 50, 90]):
        alpha_bar, _ = alpha_bars(scheduler, t)
        variance = 0.25 * (1 - alpha_bar) / (0.25 * alpha_bar + 1 - alpha_bar)
        assert of_x0 == pytest.approx(variance**0.5, rel=0.02)
        assert of_eps == pytest.approx((variance * alpha_bar / (1 - alpha_bar)) ** 0.5, rel=0.02)


def test_the_explanation_is_drawn_and_tabled(program, tmp_path):
    write_drawn_set(tmp_path / "afhq", 2)
    torch.manual_seed(0)
    for predictor in ("noise", "mean"):
        network = awake(UNet(T=12, image_resolution=8, ch=32, ch_mult=[1], attn=[0], num_res_blocks=1))
        DiffusionModule(network, DDPMScheduler(12, 1e-3, 0.3), predictor).save(tmp_path / f"{predictor}.ckpt")
    files = ["--ckpt_path", "noise.ckpt", "mean.ckpt"]
    run = program("../report/explain_predictors.py", *files, "--data_root", "afhq", "--images", 1, "--out", "out")
    assert run.returncode == 0, run.stderr
    assert {path.name for path in (tmp_path / "out/figures").iterdir()} == {"predictors.png", "predictor_errors.png"}
    rows = list(csv.DictReader((tmp_path / "out/tables/predictor_errors.csv").open()))
    assert {row["model"] for row in rows} == {"linear, noise, direct", "linear, mean, direct"}
    assert {int(row["t"]) for row in rows} == set(range(12))


def test_the_study_goes_through_all_combinations_and_goes_on_after_a_stop(study, tmp_path, monkeypatch, capsys):
    trained = []

    sampled = {}

    def run(command, cwd, clock):
        """What the programs would leave."""
        name, arguments = command[0].name, list(map(str, command[1:]))
        if name == "train.py":
            trained.append(arguments)
            folder = cwd / "results/predictor/beta/now"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").touch()
            if len(trained) == 5:
                return "stopped at step 2"
            (folder / "last.ckpt").touch()
            return "finished at step 7"
        if name == "sampling.py":
            sampled[cwd.name] = arguments[arguments.index("--sample_method") + 1]
        if name == "measure_fid.py":
            (cwd / "fid.json").write_text(json.dumps({"distance": len(trained)}))
        return ""

    monkeypatch.setattr(study, "run", run)
    arguments = ["study.py", "--data_root", "data", "--work_dir", str(tmp_path / "w"), "--out", str(tmp_path / "t.csv")]
    monkeypatch.setattr(sys, "argv", [*arguments, "--train_num_steps", "7"])
    study.main()
    assert "out of time" in capsys.readouterr().out
    assert len(list(csv.DictReader((tmp_path / "t.csv").open()))) == 4
    study.main()
    assert len(trained) == 19 and trained[5][0] == "--resume" and trained[6][0] == "--mode"
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert tuple(rows[0]) == study.COLUMNS
    kinds = {(row["mode"], row["predictor"], row["parametrization"], row["loss_weight"]) for row in rows}
    assert len(rows) == len(kinds) == 18
    whole_chains = {name for name, method in sampled.items() if method == "ddpm"}
    assert whole_chains == {f"{mode}-mean-direct-none-63" for mode in MODES}
    assert {row["sampler"] for row in rows if row["predictor"] == "mean"} == {"ddpm", "dpm"}
    study.main()
    assert len(trained) == 19  # nothing is done twice


def test_runs_side_by_side_are_all_kept_and_all_stopped(study, tmp_path, monkeypatch, capsys):
    """Two at a time do the same as one; at the end of the time those under way are stopped as by Ctrl-C, and wait."""
    both = threading.Barrier(2, timeout=60)

    def one_run(setting, args, clock):
        both.wait()
        return 1.0

    monkeypatch.setattr(study, "one_run", one_run)
    arguments = ["study.py", "--data_root", "data", "--work_dir", str(tmp_path), "--out", str(tmp_path / "t.csv")]
    monkeypatch.setattr(sys, "argv", [*arguments, "--jobs", "2"])
    study.main()
    assert len(list(csv.DictReader((tmp_path / "t.csv").open()))) == 18

    patient = tmp_path / "patient.py"
    patient.write_text(PATIENT)

    def stopped_run(setting, args, clock):
        return study.run([patient, f"saved-{setting[0]}"], tmp_path, clock)

    monkeypatch.setattr(study, "one_run", stopped_run)
    monkeypatch.setattr(sys, "argv", [*arguments, "--jobs", "2", "--minutes", "0.05", "--seeds", "64"])
    study.main()
    assert "out of time" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("saved-*")} == {"saved-linear", "saved-quad"}
    assert len(list(csv.DictReader((tmp_path / "t.csv").open()))) == 18


def test_a_program_that_fails_ends_the_study_in_one_line(study, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit(3)")
    patient = tmp_path / "patient.py"
    patient.write_text(PATIENT)

    def one_run(setting, args, clock):
        if setting[0] == "quad":
            return study.run([broken], tmp_path, clock)
        return study.run([patient, f"saved-{setting[0]}"], tmp_path, clock)  # under way when the second fails

    monkeypatch.setattr(study, "one_run", one_run)
    arguments = ["study.py", "--data_root", "d", "--work_dir", "w", "--jobs", "2", "--out", str(tmp_path / "t")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        study.main()
    assert stop.value.code == 2
    assert re.fullmatch(r"\S+: error: .*broken\.py failed with code 3\n", capsys.readouterr().err)
    assert [path.name for path in tmp_path.glob("saved-*")] == ["saved-linear"]


def test_ctrl_c_reaches_each_run_of_the_study_once(request, tmp_path):
    """As from a terminal, to the whole group of processes; the programs of a study end at once at a second one."""
    patient = tmp_path / "train.py"
    patient.write_text(PATIENT.replace("sys.argv[1]", "'saved'"))
    program = request.config.rootpath / "report/study.py"
    code = (
        f"import runpy, sys; sys.argv = {[str(program), '--data_root', 'd', '--work_dir', 'w', '--jobs', '2']!r}\n"
        f"sys.path.insert(0, {str(program.parent)!r})\nimport pathlib, study\n"
        f"study.PROGRAMS = pathlib.Path({str(tmp_path)!r})\nstudy.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("w/*/started"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and said.strip().endswith("stopped; the same command goes on"), said
    assert len(list(tmp_path.glob("w/*/saved"))) == 2


def test_a_table_of_something_else_is_not_gone_on_with(program, tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    run = program("../report/study.py", "--data_root", "d", "--work_dir", "w", "--out", "t.csv")
    assert refused(run, "t.csv is another table; this one has the columns mode, predictor")
    assert (tmp_path / "t.csv").read_text() == "a,b\n1,2\n"


def test_a_study_of_one_form_or_several_seeds(study, tmp_path, monkeypatch):
    settings = []
    monkeypatch.setattr(study, "one_run", lambda setting, args, clock: settings.append(setting) or 1.0)
    arguments = ["study.py", "--data_root", "data", "--work_dir", str(tmp_path), "--forms", "preconditioned"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--seeds", "63", "64", "--modes", "quad", "--predictors", "x0"])
    study.main()
    assert settings == [("quad", "x0", "preconditioned", "min-snr", seed) for seed in (63, 64)]


@pytest.fixture
def small_chain(tmp_path):
    """A checkpoint with a chain of 12 steps, `model.ckpt`, and images to compare with."""
    write_drawn_set(tmp_path / "afhq", 2)
    torch.manual_seed(0)
    network = awake(UNet(T=12, image_resolution=8, ch=32, ch_mult=[1], attn=[0], num_res_blocks=1))
    DiffusionModule(network, DDPMScheduler(12, 1e-3, 0.3), "x0").save(tmp_path / "model.ckpt")
    return [
        "sampling_steps.py",
        "--ckpt_path",
        "model.ckpt",
        "--data_root",
        "afhq",
        "--save_dir",
        "s",
        "--out",
        "t.csv",
    ]


def test_every_way_of_sampling_is_measured_and_none_twice(load_report, small_chain, tmp_path, monkeypatch):
    """With sampling.py itself, in this process; the distance is that of a stand-in, which counts the images."""
    steps = load_report("sampling_steps")
    monkeypatch.chdir(tmp_path)
    ran = []

    def run(name, *arguments):
        arguments = list(map(str, arguments))
        ran.append(name)
        if name == "sampling.py":
            import sampling

            with ExitStack() as cleanup:
                sampling.sample(sampling.parse_arguments(arguments), cleanup)
        else:
            images = list(Path(arguments[1]).iterdir())
            result = {"distance": float(len(images)), "name": "FID-" + arguments[arguments.index("--dims") + 1]}
            Path(arguments[arguments.index("--json") + 1]).write_text(json.dumps(result))
            if len(ran) == 5:
                raise ValueError("as a failure would be")

    def rows():
        with Path("t.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    monkeypatch.setattr(steps, "run", run)
    settings = ["--steps", "3", "5", "50", "--num_samples", "4", "--dims", "64"]
    monkeypatch.setattr(sys, "argv", [*small_chain, *settings])
    with pytest.raises(SystemExit):
        steps.main()
    assert len(ran) == 5 and len(rows()) == 2
    steps.main()
    ways = [("real images", 0), ("dpm", 3), ("ddim", 3), ("dpm", 5), ("ddim", 5), ("ddpm", 12)]
    assert [(row["sample_method"], int(row["steps"])) for row in rows()] == ways
    assert {(row["images"], row["distance"], row["name"]) for row in rows()} == {("4", "4.0000", "FID-64")}
    names = ["ddim-3", "ddim-5", "ddpm-12", "dpm-3", "dpm-5"]
    assert sorted(path.name for path in Path("s/4").glob("*-*") if path.is_dir()) == names
    assert sorted(path.stem for path in Path("s/4").glob("*.json")) == [*names, "real"]
    before = len(ran)
    steps.main()
    assert len(ran) == before
    few = ["--steps", "5", "--methods", "dpm", "--num_samples", "2", "--dims", "64"]
    monkeypatch.setattr(sys, "argv", [*small_chain, *few])
    steps.main()
    assert [(row["sample_method"], row["images"]) for row in rows()[6:]] == [("real images", "2"), ("dpm", "2")]


def test_a_floor_needs_as_many_real_images(program, small_chain):
    run = program("../report/sampling_steps.py", *small_chain[1:], "--num_samples", 7)
    assert refused(run, "argument --num_samples: afhq/train has only 6 images to compare with")
