"""report/figures.py and runs.py: figures show what the runs contain, and what is missing is named."""

import re
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

import figures
import runs
from common import read_table, write
from conftest import SMALL_FLAGS, SMALL_UNET
from dataset import CachedAFHQDataset, tensor_to_pil_image
from model import DiffusionModule
from network import UNet
from oracles import alpha_bars_by_definition, betas_by_definition, only_run, refused
from prediction import to_x0_and_eps
from run_inputs import SIZE, T, folder_of, make_run, measured
from samplers import ImageNoise
from scheduler import MODES, PREDICTORS, DDPMScheduler

FIGURES = "../report/figures.py"
FRAMES = [0, 1, 3, 4, 5, 7, 8, 9, 11, 12]  # steps taken, evenly spaced over T
TRAJECTORIES, SAMPLES = "figures/trajectories.png", "figures/predictor_samples.png"
COLOUR = "figures/mean_colour.svg"
PRECONDITIONED = {"parametrization": "preconditioned", "loss_weight": "min-snr"}


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """The precision of the expected chains, on a machine with bfloat16 too."""
    monkeypatch.setattr("speed.select_precision", lambda *_: "fp32")


@pytest.fixture(scope="module")
def all_runs(tmp_path_factory):
    """A run of each schedule and predictor, each with other weights, and three preconditioned ones."""
    root = tmp_path_factory.mktemp("runs with a blank")
    for i, mode in enumerate(MODES):
        for k, predictor in enumerate(PREDICTORS):
            make_run(root / "direct", mode, predictor, weights=3 * i + k, step=100 + 50 * i)
    for predictor in PREDICTORS:
        make_run(root / "preconditioned", "cosine", predictor, weights=20, **PRECONDITIONED)
    return root


def chain_of(folder, clip_x0=False):
    """All x_t and x_0 [T + 1, 8, ...] of the reverse chains of seed 0, straight from the scheduler's steps."""
    ddpm = DiffusionModule(None, None).eval()
    ddpm.load(folder / "last.ckpt")
    noise = ImageNoise(0, range(8), SIZE, torch.device("cpu"))
    x_t, x_0, schedule = [noise(None)], [], ddpm.var_scheduler
    with torch.no_grad():
        for t in reversed(range(T)):
            output, kind = ddpm.predict(x_t[-1], t), ddpm.predictor
            x_0.append(to_x0_and_eps(output, x_t[-1], t, kind, schedule)[0])
            if clip_x0:
                output, kind = x_0[-1].clamp(-1, 1), "x0"
            x_t.append(schedule.step(x_t[-1], t, output, kind, noise(None)))
    return torch.stack(x_t), torch.stack([*x_0, x_t[-1]])


def shown(path, rows, per_row, bottom=0):
    """The images in a figure, bytes [rows, per_row, SIZE, SIZE, 3]; they were enlarged by a whole factor."""
    width, height = (SIZE + 2) * per_row + 2, SIZE + 4
    scale = round(1102.5 / width)
    figure = np.asarray(Image.open(path).convert("RGB"))
    end = figure.shape[0] - bottom
    figure = figure[end - scale * height * rows : end, -scale * width :]
    small = figure[scale // 2 :: scale, scale // 2 :: scale]
    assert np.array_equal(np.repeat(np.repeat(small, scale, 0), scale, 1), figure)
    images = small.reshape(rows, height, width, 3)[:, 2:-2, 2:].reshape(rows, SIZE, per_row, SIZE + 2, 3)
    return images[:, :, :, :SIZE].transpose(0, 2, 1, 3, 4)


def same(images, expected):
    """Whether bytes [N, H, W, 3] are the images [N, 3, H, W], up to rounding."""
    expected = np.stack([np.asarray(image) for image in tensor_to_pil_image(expected)])
    return np.abs(images.astype(int) - expected).max() <= 1


def made(out):
    return {path.relative_to(out).as_posix() for path in out.rglob("*.*")}


def test_all_products_show_their_runs(program, all_runs, tmp_path, faces):
    out = tmp_path / "out"
    run = program(FIGURES, "--runs", all_runs, "--out", "out", "--mode", "cosine", "--data_root", faces)
    assert run.returncode == 0, run.stderr
    products = {"figures/schedules.svg", TRAJECTORIES, SAMPLES, COLOUR, "tables/runs.csv"}
    products |= {"figures/trajectories_preconditioned.png"}
    assert made(out) == products and all(f"out/{path}" in run.stdout for path in products)

    rows = shown(out / TRAJECTORIES, 6, 10)
    for x_t, x_0, mode in zip(rows[::2], rows[1::2], MODES, strict=True):
        chain = chain_of(folder_of(all_runs, mode, "noise"))
        assert same(x_t, chain[0][FRAMES, 0]) and same(x_0, chain[1][FRAMES, 0])
        assert np.array_equal(x_t[0], rows[0, 0])  # the same noise
    x_t, _ = shown(out / "figures/trajectories_preconditioned.png", 2, 10)
    chain = chain_of(folder_of(all_runs, "cosine", "noise", "preconditioned"), clip_x0=True)
    assert same(x_t, chain[0][FRAMES, 0])

    rows = [("direct", predictor, clip) for predictor in PREDICTORS for clip in (False, True)]
    rows += [("preconditioned", predictor, True) for predictor in PREDICTORS]
    *images, real = shown(out / SAMPLES, 10, 8)
    for row, (form, predictor, clip) in zip(images, rows, strict=True):
        assert same(row, chain_of(folder_of(all_runs, "cosine", predictor, form), clip)[0][-1])
    val = CachedAFHQDataset(faces, "val", SIZE)
    assert same(real, torch.stack([val[i % len(val)][0] for i in range(8)]))

    rows = read_table(out / "tables/runs.csv")
    assert [(row["parametrization"], row["predictor"], row["mode"]) for row in rows] == [
        *[("direct", predictor, mode) for predictor in PREDICTORS for mode in MODES],
        *[("preconditioned", predictor, "cosine") for predictor in PREDICTORS],
    ]
    expected = {"loss_weight": "none", "seed": "63", "steps": "200", "T": "12", "num_images": "12"}
    expected |= {"classes": "cat wild", "synthetic_faces": "False", "last_loss": "0.005000"}
    expected |= {"weights": str(sum(p.numel() for p in UNet(T=T, **SMALL_UNET).parameters()))}
    assert expected.items() <= rows[2].items()
    assert f"note: the runs of {TRAJECTORIES} differ in steps: 100, 150, 200" in run.stdout


def test_flags_choose_what_is_shown_and_missing_runs_are_named(program, all_runs, tmp_path):
    """The chains of x0 without the quad schedule; samples of the linear schedule without the mean predictor."""
    shutil.copytree(all_runs / "direct", tmp_path / "runs/direct")
    shutil.rmtree(tmp_path / "runs/direct/predictor_x0/beta_quad")
    shutil.rmtree(tmp_path / "runs/direct/predictor_mean/beta_linear")
    run = program(FIGURES, "--runs", "runs", "--out", "out", "--predictor", "x0")
    assert run.returncode == 0, run.stderr
    quad, mean = "--mode quad --predictor x0", "--mode linear --predictor mean"
    missing = {TRAJECTORIES: quad, COLOUR: quad, SAMPLES: mean}
    assert re.findall("^missing in (.*): (.*)$", run.stdout, re.MULTILINE) == [*missing.items()]
    for row, mode in zip(shown(tmp_path / "out" / TRAJECTORIES, 4, 10)[::2], ("linear", "cosine"), strict=True):
        assert same(row, chain_of(folder_of(tmp_path / "runs", mode, "x0"))[0][FRAMES, 0])
    for row, predictor in zip(shown(tmp_path / "out" / SAMPLES, 4, 8)[::2], ("noise", "x0"), strict=True):
        assert same(row, chain_of(folder_of(tmp_path / "runs", "linear", predictor))[0][-1])
    assert not any("preconditioned" in path for path in made(tmp_path / "out"))


def test_the_mean_colour_is_that_of_the_chains_and_of_noised_images(all_runs):
    run, real = runs.read_run(folder_of(all_runs, "quad", "x0")), torch.rand(5, 3, SIZE, SIZE)
    fig = figures.draw_mean_colour([run], real, torch.device("cpu"))
    (ax,), (legend,) = fig.axes, fig.legends
    assert {text.get_text() for text in legend.get_texts()} == {line.get_label() for line in ax.lines}
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    for label, clip_x0 in [("not clipped", False), ("clipped", True)]:
        means = chain_of(run.folder, clip_x0)[0].mean(dim=(3, 4))
        assert np.allclose(lines[label], means.square().mean(dim=(1, 2)).sqrt(), atol=1e-5)
    torch.manual_seed(0)
    noised = real.repeat(20_000, 1, 1, 1)
    alpha_bar = DDPMScheduler(T, 1e-3, 0.3, "quad").alpha_bars[T // 2]
    noised = alpha_bar**0.5 * noised + (1 - alpha_bar) ** 0.5 * torch.randn(noised.shape)
    expected = noised.mean(dim=(2, 3)).square().mean().sqrt().item()
    assert lines["real images, noised"][T - T // 2 - 1] == pytest.approx(expected, rel=0.01)
    assert ax.lines[0].get_xdata()[T - T // 2 - 1] == T // 2 + 1


def test_runs_that_cannot_be_compared_are_not_shown_together(program, tmp_path):
    make_run(tmp_path / "a", "linear", "noise")
    make_run(tmp_path / "b", "quad", "noise", size=16)
    run = program(FIGURES, "--runs", "a", "b", "--out", "out")
    assert run.returncode == 0, run.stderr
    for product in (TRAJECTORIES, COLOUR):
        (line,) = (line for line in run.stdout.splitlines() if line.startswith(f"skipped: {product}"))
        assert "image_resolution" in line and "8 in a/" in line and "16 in b/" in line
    assert made(tmp_path / "out") == {"figures/schedules.svg", SAMPLES, "tables/runs.csv"}  # samples of one run


def test_a_run_of_train_py_on_synthetic_faces(program, faces, tmp_path):
    steps = ["--batch_size", 4, "--train_num_steps", 6, "--log_interval", 6]
    run = program("train.py", "--data_root", faces, "--mode", "cosine", "--predictor", "x0", *SMALL_FLAGS, *steps)
    assert run.returncode == 0, run.stderr
    folder = only_run(tmp_path)
    run = program(FIGURES, "--runs", "results", "--out", "out", "--predictor", "x0")
    assert run.returncode == 0, run.stderr
    (row,) = read_table(tmp_path / "out/tables/runs.csv")
    assert (row["synthetic_faces"], row["classes"], row["steps"]) == ("True", "cat dog wild", "6")
    assert row["last_loss"] == read_table(folder / "stats.csv")[-1]["loss"]
    note = 35  # pixels below the images
    images, _ = shown(tmp_path / "out" / TRAJECTORIES, 2, 10, bottom=note)
    assert same(images, chain_of(folder)[0][FRAMES, 0])
    assert (np.asarray(Image.open(tmp_path / "out" / TRAJECTORIES).convert("L"))[-note:] < 100).any()


def test_schedules_are_the_formulas_and_the_drawing_is_the_same_each_time(program, tmp_path):
    fig = figures.draw_schedules()
    for mode in MODES:
        alpha_bar = alpha_bars_by_definition(mode, 1000)
        expected = betas_by_definition(mode, 1000), alpha_bar, np.log(alpha_bar / (1 - alpha_bar))
        for ax, curve in zip(fig.axes, expected, strict=True):
            (line,) = (line for line in ax.lines if line.get_label() == mode)
            t, y = line.get_data()
            assert np.array_equal(t, np.arange(1000)) and np.allclose(y, curve, rtol=1e-4, atol=1e-6)
    (tmp_path / "empty").mkdir()
    run = program(FIGURES, "--runs", "empty", "--out", "out")
    assert run.returncode == 0, run.stderr
    assert made(tmp_path / "out") == {"figures/schedules.svg"}
    drawing = (tmp_path / "out/figures/schedules.svg").read_bytes()
    write(tmp_path / "again.svg", fig)
    assert drawing == (tmp_path / "again.svg").read_bytes() and len(drawing) < 100_000
    assert ElementTree.fromstring(drawing).get("width") == "453.6pt"  # the 16 cm of text on a page
    missing = [line for line in run.stdout.splitlines() if line.startswith("missing")]
    assert len(missing) == 3 and missing[0].count("--mode") == 3


def test_the_best_distance_comes_with_the_run_behind_its_samples(program, all_runs, tmp_path):
    folders = {predictor: folder_of(all_runs, "quad", predictor) for predictor in ("noise", "x0")}
    settings = {"noise": ["--seed", 5], "x0": ["--weights", "last", "--sample_method", "dpm", "--last_timestep", 2]}
    for predictor, folder in folders.items():
        flags = ["--ckpt_path", folder / "last.ckpt", "--save_dir", predictor, "--num_samples", 3]
        assert program("sampling.py", *flags, *settings[predictor]).returncode == 0
    a = measured(tmp_path / "a.json", "noise", 12.5)
    b = measured(tmp_path / "b.json", tmp_path / "x0", 11.25)
    run = program(FIGURES, "--runs", *folders.values(), "--out", "out", "--fid", a, b, "--predictor", "mean")
    assert run.returncode == 0, run.stderr
    best = {row["key"]: row["value"] for row in read_table(tmp_path / "out/tables/best.csv")}
    expected = {"name": "FID", "distance": "11.2500", "samples": "3", "mode": "quad", "predictor": "x0", "seed": "63"}
    expected |= {
        "steps": "150",
        "sample_method": "dpm",
        "last_timestep": "2",
        "sample_seed": "0",
        "averaged_weights": "False",
    }
    expected |= {"real_are_synthetic": "False", "learning_rate": "0.001", "ch_mult": "1"}
    assert expected.items() <= best.items()
    sheet = np.asarray(Image.open(tmp_path / "out/figures/best_samples.png").convert("RGB"))
    for i in range(3):
        assert np.array_equal(sheet[2:-2, 2 + 10 * i :][:, :8], np.asarray(Image.open(tmp_path / f"x0/{i}.png")))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--runs", "nowhere"], "argument --runs: nowhere"),
        (["--out", "file"], "file is a file"),
        (["--fid", "nowhere.json"], "nowhere.json"),
        (["--fid", "file"], "argument --fid: file"),
        (["--roll", "nowhere"], "nowhere/swiss_roll.json"),
        (["--data_root", "nowhere"], "argument --data_root: nowhere"),
    ],
)
def test_bad_arguments_end_in_one_line_and_leave_nothing(program, tmp_path, arguments, words):
    (tmp_path / "file").write_text("[]")
    assert refused(program(FIGURES, "--out", "out", *arguments), words)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_results_of_task_1_are_copied_and_files_of_other_runs_are_named(program, tmp_path):
    (tmp_path / "roll").mkdir()
    names = ["swiss_roll.json", *(f"swiss_roll_{name}.png" for name in ("q_sample", "loss", "samples"))]
    for name in names:
        (tmp_path / "roll" / name).write_text(f"{name} of this run")
    make_run(tmp_path / "runs", "linear", "noise", step=50)
    (tmp_path / "out/tables").mkdir(parents=True)
    (tmp_path / "out/tables/study.csv").touch()
    run = program(FIGURES, "--runs", "runs", "--out", "out", "--roll", "roll")
    assert run.returncode == 0, run.stderr
    for name in names:
        folder = "tables" if name.endswith("json") else "figures"
        assert (tmp_path / "out" / folder / name).read_text() == f"{name} of this run"
    assert re.findall(r"^stale: (\S+),", run.stdout, re.MULTILINE) == ["out/tables/study.csv"]
