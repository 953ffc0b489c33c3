"""report/figures.py: what it shows is what the runs hold, and what is not there is named."""

import csv
import io
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import image_grid
from checkpoint import write_checkpoint
from dataset import tensor_to_pil_image
from model import DiffusionModule
from network import UNet
from oracles import alpha_bars_by_definition, awake, betas_by_definition, only_run, refused
from samplers import ImageNoise
from scheduler import MODES, PREDICTORS, DDPMScheduler
from synthetic_faces import write_synthetic_set

FIGURES = "../report/figures.py"
T, SIZE = 12, 8
STATIONS = [0, 1, 3, 4, 5, 7, 8, 9, 11, 12]  # steps taken, evenly spaced over 12
TRAJECTORIES, SAMPLES, LOSSES = "figures/trajectories.png", "figures/predictor_samples.png", "figures/losses.svg"
PRECONDITIONED = "figures/predictor_samples_preconditioned.png"
MIN_SNR = {"parametrization": "preconditioned", "loss_weight": "min-snr"}


@pytest.fixture
def figures(load_report):
    return load_report("figures")


def make_run(place, mode, predictor, name="11-24-120000", step=100, size=SIZE, weights=0, **config):
    """The folder of a run as train.py leaves it, of an untrained network."""
    config = {
        "mode": mode,
        "predictor": predictor,
        "parametrization": "direct",
        "loss_weight": "none",
        "batch_size": 4,
        "seed": 63,
        "image_resolution": size,
        "num_diffusion_train_timesteps": T,
        "use_cfg": False,
        "ch": 32,
        "learning_rate": 1e-3,
        "ch_mult": [1],
        "classes": ["cat", "wild"],
        "num_images": 12,
        "synthetic_faces": False,
    } | config
    folder = place / f"predictor_{predictor}" / f"beta_{mode}" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(weights)
    network = awake(UNet(T=T, image_resolution=size, ch=32, ch_mult=[1], attn=[], num_res_blocks=1))
    schedule = DDPMScheduler(T, 1e-3, 0.3, mode)
    ddpm = DiffusionModule(network, schedule, predictor, parametrization=config["parametrization"])
    last = {name: weight + 0.1 for name, weight in network.state_dict().items()}
    training = {"training": {"step": step, "network": last}}
    write_checkpoint(ddpm.checkpoint() | training, folder / "last.ckpt")
    rows = [f"{s},{1 / s:.6f},0.001,5.00\n" for s in range(50, step + 1, 50)]
    (folder / "stats.csv").write_text("step,loss,learning_rate,images_per_second\n" + "".join(rows))
    return folder


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    """A run of each mode and predictor, each of other weights, and three more that are preconditioned."""
    place = tmp_path_factory.mktemp("runs with a blank")
    for i, mode in enumerate(MODES):
        for k, predictor in enumerate(PREDICTORS):
            make_run(place / "direct", mode, predictor, weights=3 * i + k, step=100 + 50 * i)
    for predictor in PREDICTORS:
        make_run(place / "preconditioned", "cosine", predictor, weights=20, **MIN_SNR)
    return place


def folder_of(place, mode, predictor, form="direct"):
    (folder,) = (place / form / f"predictor_{predictor}" / f"beta_{mode}").iterdir()
    return folder


def chain_of(folder, count):
    """All stations of the reverse chains of seed 0, straight from the formulas' own functions; [T + 1, count, ...]."""
    ddpm = DiffusionModule(None, None).eval()
    ddpm.load(folder / "last.ckpt")
    noise = ImageNoise(0, range(count), SIZE, torch.device("cpu"))
    x_t = [noise(None)]
    with torch.no_grad():
        for t in reversed(range(T)):
            x_t.append(ddpm.var_scheduler.step(x_t[-1], t, ddpm.predict(x_t[-1], t), ddpm.predictor, noise(None)))
    return torch.stack(x_t)


def shown(path, rows, per_row, bottom=0):
    """The images in a picture, bytes [rows, per_row, SIZE, SIZE, 3]; each was enlarged evenly."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    scale = round(1100 / ((SIZE + 2) * per_row + 2))
    width = scale * ((SIZE + 2) * per_row + 2)
    height = scale * (SIZE + 4) * rows
    end = picture.shape[0] - bottom
    picture = picture[end - height : end, -width:]
    small = picture[scale // 2 :: scale, scale // 2 :: scale]
    assert np.array_equal(np.repeat(np.repeat(small, scale, 0), scale, 1), picture)
    small = small.reshape(rows, SIZE + 4, width // scale, 3)[:, 2:-2, 2:]
    return small.reshape(rows, SIZE, per_row, SIZE + 2, 3)[:, :, :, :SIZE].transpose(0, 2, 1, 3, 4)


def same(images, expected):
    """Whether bytes [N, H, W, 3] are the images [N, 3, H, W], but for rounding."""
    expected = np.stack([np.asarray(image) for image in tensor_to_pil_image(expected)])
    return np.abs(images.astype(int) - expected).max() <= 1


def table(path):
    return list(csv.DictReader(path.open()))


def test_all_products_are_made_and_show_their_runs(program, nine, tmp_path):
    run = program(FIGURES, "--runs", nine, "--out", "out")
    assert run.returncode == 0, run.stderr
    assert not re.search("^(missing(?!.*trajectories_preconditioned)|left out|old)", run.stdout, re.MULTILINE)
    made = {str(path.relative_to("out")) for path in (tmp_path / "out").relative_to(tmp_path).rglob("*.*")}
    made -= {"figures/trajectories_preconditioned.png"}
    assert made == {"figures/schedules.svg", TRAJECTORIES, SAMPLES, PRECONDITIONED, LOSSES, "tables/runs.csv"}
    assert all((tmp_path / "out" / path).stat().st_size < 400_000 for path in made)
    assert all(f"out/{path}" in run.stdout for path in made)

    stations = shown(tmp_path / "out" / TRAJECTORIES, 3, 10)
    for row, mode in zip(stations, MODES, strict=True):
        assert same(row, chain_of(folder_of(nine, mode, "noise"), 1)[STATIONS, 0])
    assert np.array_equal(stations[0, 0], stations[1, 0]) and np.array_equal(stations[0, 0], stations[2, 0])
    for path, form in [(SAMPLES, "direct"), (PRECONDITIONED, "preconditioned")]:
        for row, predictor in zip(shown(tmp_path / "out" / path, 3, 8), PREDICTORS, strict=True):
            assert same(row, chain_of(folder_of(nine, "cosine", predictor, form), 8)[-1])

    rows = table(tmp_path / "out/tables/runs.csv")
    assert [(row["parametrization"], row["predictor"], row["mode"]) for row in rows] == [
        *[("direct", predictor, mode) for predictor in PREDICTORS for mode in MODES],
        *[("preconditioned", predictor, "cosine") for predictor in PREDICTORS],
    ]
    network = UNet(T=T, image_resolution=SIZE, ch=32, ch_mult=[1], attn=[], num_res_blocks=1)
    assert rows[2] == {
        **{"mode": "cosine", "predictor": "noise", "parametrization": "direct", "loss_weight": "none"},
        **{"seed": "63", "steps": "200", "batch_size": "4", "image_resolution": "8", "ch": "32", "T": "12"},
        **{"num_images": "12", "classes": "cat wild", "synthetic_faces": "False", "last_loss": "0.005000"},
        "weights": str(sum(p.numel() for p in network.parameters())),
    }
    assert rows[-1]["loss_weight"] == "min-snr"
    drawing = (tmp_path / "out" / LOSSES).read_text()
    assert all(f'id="{predictor}-{mode}"' in drawing for predictor in PREDICTORS for mode in MODES)


def test_the_flags_choose_what_is_shown_and_what_is_missing_is_named(program, nine, tmp_path):
    """Two chains of x0, where the run of quad is gone; the samples of linear, where that of mean is gone."""
    runs = tmp_path / "runs"
    shutil.copytree(nine, runs)
    shutil.rmtree(runs / "direct/predictor_x0/beta_quad")
    shutil.rmtree(runs / "direct/predictor_mean/beta_linear")
    (tmp_path / "out/tables").mkdir(parents=True)
    (tmp_path / "out/tables/best.csv").touch()
    flags = ["--predictor", "x0", "--chains", 2, "--mode", "linear"]
    run = program(FIGURES, "--runs", runs / "direct", runs / "preconditioned", "--out", "out", *flags)
    assert run.returncode == 0, run.stderr
    missing = [line for line in run.stdout.splitlines() if line.startswith(("missing", "old"))]
    assert missing == [
        f"missing: a run of --mode quad --predictor x0, for {LOSSES}, {TRAJECTORIES}",
        f"missing: a run of --mode linear --predictor mean, for {LOSSES}, {SAMPLES}",
        *(
            f"missing: a run of --mode {mode} --predictor x0 --parametrization preconditioned --loss_weight min-snr, "
            "for figures/trajectories_preconditioned.png"
            for mode in ("linear", "quad")
        ),
        "old: out/tables/best.csv, which the report shows, is not from these runs",
    ]
    picture = Image.open(tmp_path / "out" / TRAJECTORIES)
    scale, width = 11, 102
    top = picture.height - 2 * scale * (2 * (SIZE + 2) + 2)
    strips = picture.convert("RGB").crop((picture.width - scale * width, top, picture.width, picture.height))
    strips = np.asarray(strips)[scale // 2 :: scale, scale // 2 :: scale].reshape(2, 22, width, 3)
    for strip, mode in zip(strips, ("linear", "cosine"), strict=True):
        expected = chain_of(folder_of(runs, mode, "x0"), 2)
        for k in range(2):
            images = strip[2 + 10 * k : 10 + 10 * k, 2:].reshape(SIZE, 10, SIZE + 2, 3)[:, :, :SIZE]
            assert same(images.transpose(1, 0, 2, 3), expected[STATIONS, k])
    for row, predictor in zip(shown(tmp_path / "out" / SAMPLES, 2, 8), ("noise", "x0"), strict=True):
        assert same(row, chain_of(folder_of(runs, "linear", predictor), 8)[-1])
    assert not (tmp_path / "out" / PRECONDITIONED).exists()


def test_what_cannot_be_compared_is_not_shown_side_by_side(program, tmp_path):
    """One size of images in each figure, and preconditioned models in figures of their own."""
    make_run(tmp_path / "a", "linear", "noise")
    make_run(tmp_path / "b", "quad", "noise", size=16)
    make_run(tmp_path / "c", "cosine", "noise", **MIN_SNR)
    run = program(FIGURES, "--runs", "a", "b", "c", "--out", "out")
    assert run.returncode == 0, run.stderr
    said = [line for line in run.stdout.splitlines() if "image_resolution" in line]
    assert len(said) == 1 and said[0].endswith(f"for {LOSSES}, {TRAJECTORIES}")
    assert "8 in a/predictor_noise/beta_linear/11-24-120000 and 16 in b/predictor_noise/beta_quad" in said[0]
    made = {path.name for path in (tmp_path / "out").rglob("*.*")}
    preconditioned = {"trajectories_preconditioned.png", "predictor_samples_preconditioned.png"}
    assert made == {"schedules.svg", "runs.csv", *preconditioned}
    (row,) = shown(tmp_path / "out/figures/trajectories_preconditioned.png", 1, 10)
    assert same(row, chain_of(tmp_path / "c/predictor_noise/beta_cosine/11-24-120000", 1)[STATIONS, 0])


def test_of_several_runs_the_longest_and_then_the_newest_is_taken(figures, tmp_path, capsys):
    for name, step in [("11-24-120000", 100), ("11-23-120000", 150), ("11-24-110000", 50)]:
        make_run(tmp_path, "linear", "noise", name, step)
    for name in ("11-24-120000-2", "11-24-120000-10", "11-24-120000"):
        make_run(tmp_path, "quad", "x0", name)
    make_run(tmp_path, "quad", "x0", "12-01-000000", 500, use_cfg=True)
    found = figures.find_runs([tmp_path, tmp_path / "predictor_x0"])
    assert len(found) == 7
    chosen = figures.choose(found)
    assert {key: run.folder.name for key, run in chosen.items()} == {
        ("linear", "noise", "direct", "none"): "11-23-120000",
        ("quad", "x0", "direct", "none"): "11-24-120000-10",
    }
    assert "12-01-000000: trained with --use_cfg" in capsys.readouterr().out


def test_damaged_and_unfinished_runs_are_named_and_left_out(figures, tmp_path, capsys):
    def change(name, **values):
        path = folders[name] / "config.json"
        config = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    names = ("whole", "no config", "list", "lacking", "other", "synthetic", "no ckpt", "cut", "foreign", "new", "stats")
    folders = {name: make_run(tmp_path, "linear", "noise", name) for name in names}
    (folders["no config"] / "config.json").unlink()
    (folders["list"] / "config.json").write_text("[1]")
    change("lacking", num_images=None)
    change("other", mode="cosine")
    change("synthetic", synthetic_faces="perhaps")
    (folders["no ckpt"] / "last.ckpt").unlink()
    cut = folders["cut"] / "last.ckpt"
    cut.write_bytes(cut.read_bytes()[:1000])
    ddpm = DiffusionModule(None, None)
    ddpm.load(folders["foreign"] / "last.ckpt")
    ddpm.save(folders["foreign"] / "last.ckpt")
    (folders["new"] / "stats.csv").write_text("step,loss,learning_rate,images_per_second\n")
    (folders["stats"] / "stats.csv").write_text("step,loss\n50,nan\n")
    change("whole", parametrization=None, loss_weight=None, use_cfg=None)  # as older programs wrote it
    (run,) = figures.find_runs([tmp_path])
    assert run.folder == folders["whole"] and run.key == ("linear", "noise", "direct", "none")
    said = capsys.readouterr().out.splitlines()
    reasons = {line.split(": ", 2)[1].rpartition("/")[2]: line.split(": ", 2)[2] for line in said}
    assert len(said) == len(reasons) == len(names) - 1 and all(line.startswith("left out: ") for line in said)
    assert reasons["no config"] == reasons["list"] == "no readable config.json"
    assert reasons["lacking"] == "config.json lacks num_images"
    assert reasons["other"] == "mode is cosine in config.json and linear in last.ckpt"
    assert reasons["synthetic"] == "synthetic_faces is 'perhaps' in config.json"
    assert reasons["no ckpt"] == "no last.ckpt yet"
    assert "cut off" in reasons["cut"]
    assert reasons["foreign"] == "last.ckpt does not know its step: train.py did not write it"
    assert reasons["new"] == "no losses in stats.csv yet"
    assert reasons["stats"] == "no readable stats.csv"


def test_a_run_of_the_training_program_on_drawn_faces(program, tmp_path):
    write_synthetic_set(tmp_path / "afhq", 4)
    tiny = ["--ch", 32, "--ch_mult", 1, "--attn", "--num_res_blocks", 1, "--image_resolution", SIZE]
    tiny += ["--num_diffusion_train_timesteps", T, "--batch_size", 4, "--train_num_steps", 6, "--log_interval", 6]
    run = program("train.py", "--data_root", "afhq", "--mode", "cosine", "--predictor", "x0", *tiny)
    assert run.returncode == 0, run.stderr
    folder = only_run(tmp_path)
    run = program(FIGURES, "--runs", "results", "--out", "out", "--predictor", "x0")
    assert run.returncode == 0, run.stderr
    assert f"taken: --mode cosine --predictor x0: {folder.relative_to(tmp_path)}, step 6" in run.stdout
    (row,) = table(tmp_path / "out/tables/runs.csv")
    assert row["synthetic_faces"] == "True" and row["classes"] == "cat dog wild" and row["steps"] == "6"
    assert row["last_loss"] == table(folder / "stats.csv")[-1]["loss"]
    for path, per_row, expected in [
        (TRAJECTORIES, 10, chain_of(folder, 1)[STATIONS, 0]),
        (SAMPLES, 8, chain_of(folder, 8)[-1]),
    ]:
        scale = round(1100 / (10 * per_row + 2))
        note = 2 * (scale * (10 * per_row + 2) // 48)
        (images,) = shown(tmp_path / "out" / path, 1, per_row, bottom=note)
        assert same(images, expected)
        picture = np.asarray(Image.open(tmp_path / "out" / path).convert("L"))
        assert (picture[-note:] < 100).any()  # the note itself


def test_schedules_are_the_formulas_and_the_drawing_is_the_same_each_time(figures, program, tmp_path):
    fig = figures.draw_schedules()
    assert fig.get_size_inches()[0] == pytest.approx(16 / 2.54, abs=0.01)
    for mode in MODES:
        alpha_bar = alpha_bars_by_definition(mode, 1000)
        expected = betas_by_definition(mode, 1000), alpha_bar, np.log(alpha_bar / (1 - alpha_bar))
        for ax, curve in zip(fig.axes, expected, strict=True):
            (line,) = (line for line in ax.lines if line.get_label() == mode)
            t, y = line.get_data()
            assert np.array_equal(t, np.arange(1, 1001)) and np.allclose(y, curve, rtol=1e-4, atol=1e-6)
    looks = [(line.get_linestyle(), line.get_color()) for line in fig.axes[0].lines]
    assert len({style for style, _ in looks}) == len(looks) == 3
    (tmp_path / "empty").mkdir()
    for out in ("a", "b"):
        run = program(FIGURES, "--runs", "empty", "--out", out)
        assert run.returncode == 0, run.stderr
        assert [path.name for path in (tmp_path / out).rglob("*.*")] == ["schedules.svg"]
    drawing, again = ((tmp_path / out / "figures/schedules.svg").read_bytes() for out in "ab")
    assert drawing == again and len(drawing) < 100_000
    assert ElementTree.fromstring(drawing).get("width") == "453.6pt" and b"<text" not in drawing
    missing = [line for line in run.stdout.splitlines() if line.startswith("missing: a run of --mode ")]
    assert len(missing) == 9
    assert f"missing: a run of --mode cosine --predictor noise, for {LOSSES}, {TRAJECTORIES}, {SAMPLES}" in missing


def test_many_losses_become_few_points_of_the_same_mean(figures):
    losses = [(50 * (i + 1), float(i)) for i in range(1000)]
    few = figures.thinned(losses)
    assert len(few) == 200 and few[0] == (250, 2.0) and few[-1] == (50_000, 997.0)
    assert figures.thinned(losses[:30]) == losses[:30]


def test_the_axis_of_losses_reaches_around_them(figures):
    assert figures.ticks_around(0.07, 1.1) == [0.05, 0.1, 0.2, 0.5, 1, 2]
    assert figures.ticks_around(0.12, 0.13) == [0.1, 0.2]
    assert figures.ticks_around(0.2, 0.2) == [0.2, 0.5]
    assert figures.ticks_around(0.0, 4e-6) == [1e-6, 2e-6, 5e-6]  # what rounds to 0 in stats.csv


def test_large_pictures_are_kept_small_where_they_are_noisy(figures):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(10, 1, 3, 64, 64, generator=generator)
    frames[-1] = torch.linspace(-1, 1, 64)  # what is smooth stays as it is
    strip = image_grid.trajectory_image(frames)
    content = figures.labelled([(mode, strip) for mode in MODES], ["t"] * 10, drawn=False)
    assert len(content) < 400_000
    picture = np.asarray(Image.open(io.BytesIO(content)))
    scale = 2
    picture = picture[-strip.height * scale :: scale, -strip.width * scale :: scale].astype(int)
    errors = np.abs(picture - np.asarray(strip))
    assert errors[3:-3, -65:-3].max() == 0  # but for the gap around it
    assert 0 < errors.max() <= 32


# The best distance.


def measured(path, gen_dir, distance, **changes):
    """What fid/measure_fid.py --json writes."""
    result = {"name": "FID", "distance": distance, "dims": 2048, "gt_dir": "eval", "gt_images": 5, "gt_sizes": ["8x8"]}
    result |= {"gt_synthetic": False, "gen_dir": str(gen_dir), "gen_images": 3, "gen_sizes": ["8x8"], "device": "cpu"}
    path.write_text(json.dumps(result | {"weights_sha256": "abc"} | changes))
    return path


def test_the_best_distance_comes_with_the_run_that_its_samples_are_from(figures, program, nine, tmp_path):
    ckpt = {predictor: folder_of(nine, "quad", predictor) / "last.ckpt" for predictor in ("noise", "x0")}
    settings = {"noise": ["--seed", 5], "x0": ["--weights", "last", "--sample_method", "dpm"]}
    for predictor in ckpt:
        flags = ["--ckpt_path", ckpt[predictor], "--save_dir", predictor, "--num_samples", 3, *settings[predictor]]
        assert program("sampling.py", *flags).returncode == 0
    a = measured(tmp_path / "a.json", "noise", 12.5)
    b = measured(tmp_path / "b.json", tmp_path / "x0", 11.25)
    (tmp_path / "out").mkdir()
    # Of these two runs alone, the program has nothing to sample.
    runs = [ckpt[predictor].parent for predictor in ckpt]
    run = program(FIGURES, "--runs", *runs, "--out", "out", "--fid", a, b, "--predictor", "mean")
    assert run.returncode == 0, run.stderr
    best = {row["key"]: row["value"] for row in table(tmp_path / "out/tables/best.csv")}
    assert best["name"] == "FID" and best["distance"] == "11.2500" and best["samples"] == "3"
    assert best["mode"] == "quad" and best["predictor"] == "x0" and best["steps"] == "150" and best["seed"] == "63"
    assert best["sample_method"] == "dpm" and best["sample_seed"] == "0" and best["averaged_weights"] == "False"
    assert best["real_are_drawn"] == "False" and best["learning_rate"] == "0.001" and best["ch_mult"] == "1"

    shown = np.asarray(Image.open(tmp_path / "out/figures/best_samples.png").convert("RGB"))
    for i in range(3):
        sample = np.asarray(Image.open(tmp_path / f"x0/{i}.png"))
        assert np.array_equal(shown[2:-2, 2 + 10 * i :][:, :8], sample)

    found = figures.find_runs(runs)
    (alone,) = figures.read_distances([a])
    best, folder = figures.best_of([alone], [], found)
    assert folder == Path("noise")
    assert best["predictor"] == "noise" and best["sample_seed"] == 5 and best["averaged_weights"]
    (tmp_path / "noise").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"a\.json: its samples are not in noise any more: .*--samples"):
        figures.best_of([alone], [], found)
    assert figures.best_of([alone], [tmp_path / "moved"], found) == (best, tmp_path / "moved")
    with pytest.raises(ValueError, match=r"no run below --runs has the model [0-9a-f]{16} that made"):
        figures.best_of([alone], [tmp_path / "moved"], [r for r in found if r.config["predictor"] != "noise"])
    shutil.copy(tmp_path / "x0/0.png", tmp_path / "moved/0.png")
    with pytest.raises(ValueError, match="holds other images than those of one call"):
        figures.best_of([alone], [tmp_path / "moved"], found)
    (tmp_path / "moved/0.png").unlink()
    with pytest.raises(ValueError, match="holds 2 images, where 3 were measured"):
        figures.best_of([alone], [tmp_path / "moved"], found)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "FID-768"}, "cannot be compared: name is FID in a.json and FID-768 in b.json"),
        ({"gt_synthetic": True}, "cannot be compared: gt_synthetic is False in a.json and True in b.json"),
        ({"gen_images": 4}, "cannot be compared: gen_images is 3"),
        ({"gt_sizes": ["64x64"]}, "cannot be compared: gt_sizes is ['8x8']"),
        ({"distance": float("nan")}, "b.json is not a file that fid/measure_fid.py --json wrote"),
        ({"distance": "1"}, "b.json is not a file that"),
    ],
)
def test_distances_that_cannot_be_compared_are_refused(program, tmp_path, changes, words):
    measured(tmp_path / "a.json", "a", 12.5)
    measured(tmp_path / "b.json", "b", **({"distance": 11.0} | changes))
    assert refused(program(FIGURES, "--out", "out", "--fid", "a.json", "b.json"), words)
    assert not (tmp_path / "out").exists()


# The command line.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--runs", "nowhere"], "argument --runs: nowhere is not a folder that is there"),
        (["--out", "file"], "file is a file, where a folder is wanted"),
        (["--mode", "sigmoid"], "--mode: invalid choice: 'sigmoid'"),
        (["--predictor", "velocity"], "--predictor: invalid choice"),
        (["--chains", "3"], "--chains: '3' is not a whole number from 1 to 2"),
        (["--device", "toaster"], "'toaster' is not a device"),
        (["--fid", "nowhere.json"], "nowhere.json: No such file"),
        (["--fid", "file"], "file is not a file that fid/measure_fid.py --json wrote"),
        (["--samples", "."], "argument --samples: 1 folders for 0 files of --fid"),
    ],
)
def test_bad_arguments_end_in_one_line_and_leave_nothing(program, tmp_path, arguments, words):
    (tmp_path / "file").write_text("[]")
    assert refused(program(FIGURES, "--out", "out", *arguments), words)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_ctrl_c_ends_in_one_line_and_leaves_whole_files(program, nine, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(image_grid, "trajectory_frames", interrupted)
    run = program(FIGURES, "--runs", nine / "preconditioned", "--out", "out")
    assert run.returncode == 130
    assert run.stderr == "figures.py: error: stopped; the files named above are whole"
    assert {path.name for path in (tmp_path / "out").rglob("*.*")} == {"schedules.svg", "runs.csv"}


def test_task_1_is_taken_over_and_what_the_report_shows_of_others_is_named(program, tmp_path):
    (tmp_path / "roll").mkdir()
    names = ["swiss_roll.json", *(f"swiss_roll_{name}.png" for name in ("q_sample", "loss", "samples"))]
    for name in names:
        (tmp_path / "roll" / name).write_text(f"{name} of this run")
    (tmp_path / "runs").mkdir()
    make_run(tmp_path / "runs", "linear", "noise", step=50)
    make_run(tmp_path / "runs", "quad", "noise", step=100)
    (tmp_path / "out/tables").mkdir(parents=True)
    (tmp_path / "out/tables/study.csv").touch()
    run = program(FIGURES, "--runs", "runs", "--out", "out", "--roll", "roll")
    assert run.returncode == 0, run.stderr
    for name in names:
        folder = "tables" if name.endswith("json") else "figures"
        assert (tmp_path / "out" / folder / name).read_text() == f"{name} of this run"
    old = [line for line in run.stdout.splitlines() if line.startswith("old")]
    assert old == ["old: out/tables/study.csv, which the report shows, is not from these runs"]
    assert f"note: the runs of {TRAJECTORIES} differ in steps: 50, 100" in run.stdout
    run = program(FIGURES, "--runs", "runs", "--out", "out", "--roll", "nowhere")
    assert refused(run, "nowhere/swiss_roll.json")
