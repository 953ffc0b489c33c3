"""The programs of report/ that work on Task 2."""

import csv
import json
import os
import re
import shutil
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
from PIL import Image

from model import DiffusionModule
from network import UNet
from oracles import Ideal, alpha_bars, awake, eq_7, refused
from scheduler import MODES, PREDICTORS, DDPMScheduler
from synthetic_faces import write_synthetic_set

# A program that saves what it has at the first Ctrl-C, which takes a while, and ends at once at the second.
PATIENT = """
import pathlib, sys, time
try:
    pathlib.Path("started-" + sys.argv[1]).touch()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1.5)
    pathlib.Path(sys.argv[1]).touch()
"""


@pytest.fixture
def explain(load_report):
    return load_report("explain_predictors")


@pytest.fixture
def study(load_report, monkeypatch):
    """The program, which does not look whether data and weights are there."""
    program = load_report("study")
    monkeypatch.setattr(program, "check_ready", lambda args: None)
    return program


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
    write_synthetic_set(tmp_path / "afhq", 2)
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

    shutil.copy(tmp_path / "mean.ckpt", tmp_path / "again.ckpt")
    run = program("../report/explain_predictors.py", *files, "again.ckpt", "--data_root", "afhq", "--images", 1)
    assert refused(run, "again.ckpt is a second model of linear, mean, direct")
    run = program("../report/explain_predictors.py", *files, "--data_root", "nowhere")
    assert refused(run, "argument --data_root: nowhere holds no train/ and val/")


def test_the_study_goes_through_all_combinations_and_goes_on_after_a_stop(study, tmp_path, monkeypatch, capsys):
    trained, asked, sampled = [], [], {}

    def run(command, cwd, clock):
        """What the programs would leave."""
        name, arguments = command[0].name, list(map(str, command[1:]))
        if name == "train.py":
            trained.append(arguments)
            folder = cwd / "results/predictor/beta/now"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").touch()
            if len(trained) == 5:
                raise study.OutOfTime
            (folder / "last.ckpt").touch()
        if name == "sampling.py":
            asked.append(arguments)
            sampled[cwd.name] = arguments[arguments.index("--sample_method") + 1]
        if name == "measure_fid.py":
            Path(arguments[arguments.index("--json") + 1]).write_text(json.dumps({"distance": len(trained)}))

    monkeypatch.setattr(study, "run", run)
    arguments = ["study.py", "--data_root", "data", "--work_dir", str(tmp_path / "w"), "--out", str(tmp_path / "t.csv")]
    arguments += ["--precision", "fp32"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--train_num_steps", "7"])
    study.main()
    assert "out of time" in capsys.readouterr().out
    assert len(list(csv.DictReader((tmp_path / "t.csv").open()))) == 4
    study.main()
    assert len(trained) == 19 and trained[5][0] == "--resume" and trained[6][0] == "--mode"
    assert all(told[told.index("--precision") + 1] == "fp32" for told in [*trained, *asked])
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert tuple(rows[0]) == study.COLUMNS
    kinds = {(row["mode"], row["predictor"], row["parametrization"], row["loss_weight"]) for row in rows}
    assert len(rows) == len(kinds) == 18
    whole_chains = {name for name, method in sampled.items() if method == "ddpm"}
    assert whole_chains == {f"{mode}-mean-direct-none-fp32-63" for mode in MODES}
    assert {row["sampler"] for row in rows if row["predictor"] == "mean"} == {"ddpm", "dpm"}
    study.main()
    assert len(trained) == 19  # nothing is done twice
    chosen = ["--sample_method", "ddpm", "--predictors", "x0", "mean", "--modes", "quad"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--train_num_steps", "7", *chosen])
    study.main()
    new = [row for row in csv.DictReader((tmp_path / "t.csv").open())][18:]
    assert [(row["predictor"], row["parametrization"], row["sampler"]) for row in new] == [
        ("x0", "direct", "ddpm"),
        ("x0", "preconditioned", "ddpm"),
        ("mean", "preconditioned", "ddpm"),
    ]
    assert all(arguments[0] == "--resume" for arguments in trained[19:])
    assert sampled["quad-x0-direct-none-fp32-63"] == "ddpm"
    kept = sorted(path.name for path in (tmp_path / "w/quad-x0-direct-none-fp32-63").glob("*.json"))
    assert kept == ["samples-7-500-ddpm.json", "samples-7-500-dpm.json"]


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

    monkeypatch.setattr(sys, "argv", [*arguments, "--minutes", "0", "--seeds", "64"])
    study.main()
    assert "out of time" in capsys.readouterr().out

    class Patience(study.Clock):
        """The time is over when two runs are under way, however long they took to start."""

        @property
        def over(self):
            if len(list(tmp_path.glob("started-*"))) == 2:
                self.deadline = 0.0
            return super().over

    monkeypatch.setattr(study, "Clock", Patience)
    monkeypatch.setattr(study, "one_run", stopped_run)
    monkeypatch.setattr(sys, "argv", [*arguments, "--jobs", "2", "--seeds", "64"])
    study.main()
    assert "out of time" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("saved-*")} == {"saved-linear", "saved-quad"}
    assert len(list(csv.DictReader((tmp_path / "t.csv").open()))) == 18


def test_a_program_that_fails_ends_the_study_in_one_line(study, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "broken.py"
    wait = "import pathlib, time\nwhile not pathlib.Path('started-saved-linear').exists(): time.sleep(0.05)\n"
    broken.write_text(wait + "raise SystemExit(3)")
    patient = tmp_path / "patient.py"
    patient.write_text(PATIENT)

    def one_run(setting, args, clock):
        if setting[0] == "quad":
            return study.run([broken], tmp_path, clock)
        return study.run([patient, f"saved-{setting[0]}"], tmp_path, clock)  # under way when the second fails

    monkeypatch.setattr(study, "one_run", one_run)
    arguments = [
        "study.py",
        "--data_root",
        "d",
        "--work_dir",
        str(tmp_path),
        "--jobs",
        "2",
        "--out",
        str(tmp_path / "t"),
    ]
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
        f"study.PROGRAMS = pathlib.Path({str(tmp_path)!r})\n"
        "study.check_ready = lambda args: None\nstudy.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("w/*/started-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and said.strip().endswith("stopped; the same command goes on"), said
    assert len(list(tmp_path.glob("w/*/saved"))) == 2


def test_a_table_of_something_else_is_not_gone_on_with(program, tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    run = program("../report/study.py", "--data_root", "d", "--work_dir", "w", "--out", "t.csv")
    assert refused(run, "t.csv is not a table of this program, with the columns mode, predictor")
    assert (tmp_path / "t.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(
    "content", [b"", b"b,a\n", b"a,b\n1\n", b"a,b\n1,2,3\n", b"a,b\n\xff,1\n", b"a,b\n" + b"1" * 200_000]
)
def test_what_is_no_table_is_refused(load_report, tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.csv is not a table of this program, with the columns a, b"):
        load_report("csv_table").read_table(tmp_path / "t.csv", ("a", "b"))


def test_a_table_is_written_whole_or_not_at_all(load_report, tmp_path):
    table = load_report("csv_table")
    rows = [{"a": "x, y", "b": "1"}, {"a": "", "b": "é"}]
    assert table.read_table(tmp_path / "t.csv", ("a", "b")) == []
    table.write_table(tmp_path / "t.csv", ("a", "b"), rows)
    assert table.read_table(tmp_path / "t.csv", ("a", "b")) == rows

    def fails_later():
        yield rows[0]
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        table.write_table(tmp_path / "t.csv", ("a", "b"), fails_later())
    assert table.read_table(tmp_path / "t.csv", ("a", "b")) == rows


def test_a_study_of_one_form_or_several_seeds(study, tmp_path, monkeypatch):
    settings = []
    monkeypatch.setattr(study, "one_run", lambda setting, args, clock: settings.append(setting) or 1.0)
    monkeypatch.setattr(study, "uses_bf16", lambda precision, device: precision == "auto")
    arguments = ["study.py", "--data_root", "data", "--work_dir", str(tmp_path), "--forms", "preconditioned"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--seeds", "63", "64", "--modes", "quad", "--predictors", "x0"])
    study.main()
    assert settings == [("quad", "x0", "preconditioned", "min-snr", "bf16", seed) for seed in (63, 64)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--precision", "fp32", "--modes", "quad", "--predictors", "x0"])
    study.main()
    assert settings[2:] == [("quad", "x0", "preconditioned", "min-snr", "fp32", 63)]


def test_a_study_looks_for_data_and_weights_before_it_trains(load_report, program, tmp_path, monkeypatch):
    study = load_report("study")
    trained = []
    monkeypatch.setattr(study.subprocess, "Popen", lambda *command, **how: trained.append(command))

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    (tmp_path / "home/hub").mkdir(parents=True)
    (tmp_path / "home/hub/checkpoints").write_text("in the way of the weights")
    write_synthetic_set(tmp_path / "afhq", 2)

    def run(data_root):
        return program("../report/study.py", "--data_root", data_root, "--work_dir", "w")

    assert refused(run("nowhere"), "argument --data_root: nowhere holds no train/ and val/")
    assert refused(run("afhq"), "eval")
    shutil.copytree(tmp_path / "afhq/train/cat", tmp_path / "afhq/eval")
    assert refused(run("afhq"), "home/hub/checkpoints")
    assert not trained


def test_another_study_wants_another_folder(program, study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "one_run", lambda setting, args, clock: 1.0)
    arguments = ["--data_root", "data", "--work_dir", "w"]
    monkeypatch.setattr(sys, "argv", ["study.py", *arguments, "--flags", "--ch 64"])
    study.main()
    same = ["--flags", "--ch 64"]
    for other, words in [
        (arguments, "argument --flags: '--image_resolution 32 --ch 32"),
        (["--data_root", "others", *arguments[2:], *same], "others' is not what w/study.json says of the study so far"),
        (
            ["--data_root", "others", "--work_dir", "new", "--out", "w/study.csv", *same],
            "others' is not what w/study.json",
        ),
    ]:
        run = program("../report/study.py", *other, "--train_num_steps", 1)
        assert refused(run, words) and "another study wants another --work_dir and --out" in run.stderr


@pytest.fixture
def small_chain(tmp_path):
    """A checkpoint with a chain of 12 steps, `model.ckpt`, and images to compare with."""
    write_synthetic_set(tmp_path / "afhq", 2)
    torch.manual_seed(0)
    network = awake(UNet(T=12, image_resolution=8, ch=32, ch_mult=[1], attn=[0], num_res_blocks=1))
    DiffusionModule(network, DDPMScheduler(12, 1e-3, 0.3, "cosine"), "x0").save(tmp_path / "model.ckpt")
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


def test_every_way_of_sampling_is_measured_and_none_twice(load_report, small_chain, tmp_path, monkeypatch, capsys):
    """With sampling.py itself, in this process; the distance is that of a stand-in, which counts the images."""
    steps = load_report("sampling_steps")
    monkeypatch.chdir(tmp_path)
    measured, asked, order = [], [], []

    def run(name, *arguments):
        arguments = list(map(str, arguments))
        if name == "sampling.py":
            import sampling

            asked.append(arguments[arguments.index("--num_inference_steps") + 1])
            with ExitStack() as cleanup:
                sampling.sample(sampling.parse_arguments(arguments), cleanup)
            return
        assert Path(arguments[0]) == tmp_path / "afhq/eval"
        images = list(Path(arguments[1]).iterdir())
        assert {Image.open(path).size for path in images} == {(8, 8)}
        measured.append(arguments[1])
        result = {"distance": float(len(images)), "name": "FID-" + arguments[arguments.index("--dims") + 1]}
        Path(arguments[arguments.index("--json") + 1]).write_text(json.dumps(result))
        if len(measured) == 3:
            raise ValueError("as a failure would be")

    def rows():
        return read_table(tmp_path / "t.csv", steps.COLUMNS)

    def call(*settings):
        monkeypatch.setattr(sys, "argv", [*small_chain, "--dims", "64", *settings])
        steps.main()

    read_table = load_report("csv_table").read_table
    monkeypatch.setattr(steps, "run", run)
    ordinary = steps.list_images
    monkeypatch.setattr(steps, "list_images", lambda folder: order.append(ordinary(folder)) or order[-1])
    settings = ["--steps", "12", "5", "3", "5", "50", "--num_samples", "4"]
    with pytest.raises(SystemExit):
        call(*settings)
    assert len(measured) == 3 and len(rows()) == 2
    call(*settings)
    expected = (
        [("real images", 0), ("plain noise", 0)]
        + [(name, n) for n in (3, 5, 11) for name in ("dpm", "ddim")]
        + [("ddpm", 12)]
    )
    assert [(row["sample_method"], int(row["steps"])) for row in rows()] == expected
    assert asked == ["3", "3", "3", "5", "5", "12", "12", "12"]  # the first twice: the failure came after it
    assert {(row["images"], row["distance"], row["name"]) for row in rows()} == {("4", "4.0000", "FID-64")}
    names = sorted(f"{name}-{n}" for name, n in expected[2:])
    assert sorted(path.name for path in Path("s/4").iterdir() if path.is_dir()) == names
    assert sorted(path.stem for path in Path("s/4").glob("*.json")) == names
    assert len(order[0]) == 6 and not Path(measured[0]).exists()
    before = len(measured)
    call(*settings)
    assert len(measured) == before
    call("--steps", "5", "--methods", "dpm", "--num_samples", "2")
    assert [(row["sample_method"], row["images"]) for row in rows()[9:]] == [
        ("real images", "2"),
        ("plain noise", "2"),
        ("dpm", "2"),
    ]
    with pytest.raises(SystemExit):
        call("--dims", "192")
    assert "argument --dims: t.csv has FID-64, which FID-192 cannot stand beside" in capsys.readouterr().err
    network = awake(UNet(T=12, image_resolution=8, ch=32, ch_mult=[1], attn=[0], num_res_blocks=1))
    DiffusionModule(network, DDPMScheduler(12, 1e-3, 0.3, "cosine"), "x0").save(tmp_path / "other.ckpt")
    with pytest.raises(SystemExit):
        call("--ckpt_path", "other.ckpt")
    assert "argument --out: t.csv is about another model than other.ckpt" in capsys.readouterr().err


def test_the_floor_is_of_images_drawn_at_random(load_report, tmp_path, monkeypatch):
    """And the ceiling of pixels that are all alike likely."""
    steps = load_report("sampling_steps")
    (tmp_path / "train/a").mkdir(parents=True)
    for i in range(40):
        Image.new("RGB", (10, 10), (i, 0, 0)).save(tmp_path / f"train/a/{i:02}.png")
    kept = []

    def run(name, real, images, *rest):
        kept.append([Image.open(path).getpixel((0, 0))[0] for path in sorted(images.iterdir())])
        Path(rest[-1]).write_text('{"distance": 1, "name": "FID"}')

    monkeypatch.setattr(steps, "run", run)
    for _ in range(2):
        images = steps.real_images(tmp_path, 10, 8)
        assert steps.distance_of(images, tmp_path / "eval", 2048) == ("1.0000", "FID")
    assert kept[0] == kept[1] and len(set(kept[0])) == 10
    assert not set(kept[0]) <= set(range(10)) and not set(kept[0]) <= set(range(30, 40))
    noise = np.stack([np.asarray(image) for image in steps.plain_noise(tmp_path, 10, 8)])
    assert noise.shape == (10, 8, 8, 3) and np.histogram(noise, 4)[0].min() > 400


def test_a_floor_needs_as_many_real_images(program, small_chain):
    run = program("../report/sampling_steps.py", *small_chain[1:], "--num_samples", 7)
    assert refused(run, "argument --num_samples: afhq/train has only 6 images to compare with")
