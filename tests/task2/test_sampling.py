"""sampling.py: which images it makes, completes or refuses, and its messages about wrong flags."""

import json
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import FOLDERS, small_model, write_image
from oracles import refused
from processes import Program
from sample_folder import SETTINGS_KEY

SAMPLERS = {
    "ddpm": ["--sample_method", "ddpm", "--num_inference_steps", 12],
    "ddim": ["--sample_method", "ddim", "--num_inference_steps", 4],
    "ddim_with_noise": ["--sample_method", "ddim", "--num_inference_steps", 4, "--eta", 0.7],
    "dpm": ["--sample_method", "dpm", "--num_inference_steps", 4],
    "dpm_to_2": ["--sample_method", "dpm", "--num_inference_steps", 4, "--last_timestep", 2],
}
OPTIONS = {
    **SAMPLERS,
    "not clipped": ["--no-clip_x0"],
    "guided": ["--use_cfg"],
    "less": ["--use_cfg", "--cfg_scale", 3],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of 12 steps with labels, whose network is as if trained."""
    torch.manual_seed(0)
    ddpm = small_model(schedule=(1e-4, 0.3), use_cfg=True, num_classes=3)
    ddpm.classes = ["cat", "chat", "é"]
    path = tmp_path_factory.mktemp("model") / "last.ckpt"
    ddpm.save(path)
    return path


@pytest.fixture
def sample(program, model):
    """Run sampling.py with that checkpoint into a folder."""
    return lambda folder, *flags: program("sampling.py", "--ckpt_path", model, "--save_dir", folder, *flags)


def images_in(folder):
    assert all(re.fullmatch(r"\d+\.png", path.name) for path in folder.iterdir())
    return {int(path.stem): path.read_bytes() for path in folder.iterdir()}


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_each_option_makes_other_images_and_ddpm_is_the_default(sample, model, tmp_path):
    """A run folder stands for its checkpoint, and flags that agree with it are accepted."""
    same = [
        "--ckpt_path",
        model.parent,
        "--mode",
        "linear",
        "--beta_1",
        "1e-4",
        "--beta_T",
        0.3,
        "--predictor",
        "noise",
    ]
    images = {}
    for name, flags in (OPTIONS | {"default": same}).items():
        run = sample(name, "--num_samples", 3, "--batch_size", 2, *flags)
        assert run.returncode == 0, run.stderr
        assert images_in(tmp_path / name).keys() == {0, 1, 2}
        images[name] = pixels(tmp_path / name / "2.png").tobytes()
    assert images.pop("default") == images["ddpm"]
    assert len(set(images.values())) == len(OPTIONS)


def test_an_image_depends_on_seed_and_number_alone(sample, tmp_path):
    made = {}
    for batch_size, num_samples in [(7, 7), (1, 3), (3, 5), (64, 6)]:
        folder = tmp_path / f"{batch_size}"
        run = sample(folder, "--batch_size", batch_size, "--num_samples", num_samples)
        assert run.returncode == 0, run.stderr
        made[batch_size] = [pixels(folder / f"{i}.png") for i in range(num_samples)]
    assert len({image.tobytes() for image in made[7]}) == 7
    for images in made.values():  # batches of other sizes may round differently: one grey level at most
        assert all(np.abs(a - b).max() <= 1 for a, b in zip(images, made[7], strict=False))
    assert sample("other", "--num_samples", 1, "--seed", 1).returncode == 0
    assert np.abs(pixels(tmp_path / "other" / "0.png") - made[7][0]).max() > 10


@pytest.mark.parametrize(
    ("classes", "expected"),
    [([], ["cat", "chat", "é"]), (["e\u0301", "cat"], ["é", "cat", "é"]), (["chat"], ["chat"] * 3)],
)
def test_each_image_holds_its_class_by_name(sample, model, tmp_path, classes, expected):
    flags = ["--use_cfg", "--num_samples", 3, *(["--classes", *classes] if classes else [])]
    run = sample("out", *flags)
    assert run.returncode == 0, run.stderr
    assert [Image.open(tmp_path / "out" / f"{i}.png").info["Class"] for i in range(3)] == expected
    if classes == ["chat"]:
        assert refused(sample("out", "--use_cfg", "--num_samples", 3), "classes")
        checkpoint = torch.load(model, weights_only=True)
        torch.save(checkpoint | {"classes": None}, tmp_path / "nameless.ckpt")  # classes have numbers
        flags = ["--use_cfg", "--num_samples", 3, "--classes", 2, "--ckpt_path", "nameless.ckpt"]
        assert sample("by number", *flags).returncode == 0
        assert all(np.array_equal(*(pixels(tmp_path / f / f"{i}.png") for f in ("out", "by number"))) for i in range(3))


def test_images_that_are_complete_are_not_made_again(sample, tmp_path):
    assert sample("whole", "--num_samples", 10, "--batch_size", 4).returncode == 0
    assert sample("parts", "--num_samples", 6, "--batch_size", 4).returncode == 0
    parts = tmp_path / "parts"
    (parts / "3.png").unlink()
    content = (parts / "4.png").read_bytes()
    (parts / "4.png").write_bytes(content[:-60])
    (parts / ".5.png.123.partial").write_bytes(content[:100])
    untouched = {i: (parts / f"{i}.png").stat().st_mtime_ns for i in (0, 1, 2, 5)}
    run = sample("parts", "--num_samples", 10, "--batch_size", 4)
    assert run.returncode == 0 and "4 of 10" in run.stdout
    assert {i: (parts / f"{i}.png").stat().st_mtime_ns for i in untouched} == untouched
    assert images_in(parts).keys() == images_in(tmp_path / "whole").keys()


def test_sampling_that_is_killed_again_and_again_ends_with_the_same_images(model, tmp_path):
    command = ["sampling.py", "--ckpt_path", model, "--batch_size", 1, "--num_samples", 40, "--save_dir"]
    whole = Program(*command, "whole", place=tmp_path)
    assert whole.finish() == 0, whole.output
    for wanted in (1, 3, 10, 11, 27):
        program = Program(*command, "killed", place=tmp_path)
        while program.process.is_alive() and len(list((tmp_path / "killed").glob("*.png"))) < wanted:
            time.sleep(0.002)
        assert program.kill(after=0)
    last = Program(*command, "killed", place=tmp_path)
    assert last.finish() == 0, last.output
    assert images_in(tmp_path / "killed") == images_in(tmp_path / "whole")


def test_a_full_disk_is_one_line_with_the_file_and_leaves_nothing_half_made(sample, tmp_path, full_disk):
    with full_disk(500):
        assert refused(sample("out", "--num_samples", 3, "--save_traj"), "out_traj.png")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not list((tmp_path / "out").iterdir())


def test_a_folder_of_other_settings_or_another_model_is_refused_and_left_alone(sample, model, tmp_path):
    flags = SAMPLERS["ddim_with_noise"]
    assert sample("out", "--num_samples", 3, *flags).returncode == 0
    before = images_in(tmp_path / "out")
    other = torch.load(model, weights_only=True)
    other["state_dict"]["head.bias"] += 1
    torch.save(other, tmp_path / "other.ckpt")
    for others, setting in [
        (SAMPLERS["ddpm"], "sample_method ddim there, ddpm here"),
        (SAMPLERS["ddim"], "eta 0.7 there, 0.0 here"),
        ([*flags, "--seed", 5], "seed 0 there, 5 here"),
        ([*flags, "--use_cfg"], "cfg_scale None there, 7.5 here"),
        ([*flags, "--no-clip_x0"], "clip_x0 True there, None here"),
        ([*flags, "--ckpt_path", "other.ckpt"], "model"),
    ]:
        run = sample("out", "--num_samples", 3, *others)
        assert refused(run, setting) and "0.png" in run.stderr
    assert refused(sample("out", "--num_samples", 2, *flags), "2.png")
    assert images_in(tmp_path / "out") == before


def test_only_images_that_the_fid_program_would_measure_are_in_the_way(sample, tmp_path):
    assert sample("out", "--num_samples", 2).returncode == 0
    out = tmp_path / "out"
    for name in (".DS_Store", "Thumbs.db", "._0.png", ".ipynb_checkpoints/0-checkpoint.png"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(b"junk")
    run = sample("out", "--num_samples", 3)
    assert run.returncode == 0 and "2 of 3" in run.stdout, run.stderr
    for name, content in {"0.png": b"", "mine.jpg": b"", "1.png": write_image(tmp_path / "1.png").read_bytes()}.items():
        (out / name).write_bytes(content)
        assert refused(sample("out", "--num_samples", 3), name)
        (out / name).unlink()


@pytest.mark.parametrize(("sampler", "frames"), [("ddpm", 10), ("dpm", 5)])
def test_the_chains_of_the_first_images_are_a_picture_and_an_animation(sample, tmp_path, sampler, frames):
    flags = ["--num_samples", 10, "--batch_size", 9, *SAMPLERS[sampler]]
    for _ in range(2):  # the second call finds all images there
        run = sample("samples/out", *flags, "--save_traj", "--save_gif")
        assert run.returncode == 0, run.stderr
        assert {path.name for path in (tmp_path / "samples").iterdir()} == {"out", "out_traj.png", "out.gif"}
        assert images_in(tmp_path / "samples/out").keys() == set(range(10))
        chains = pixels(tmp_path / "samples/out_traj.png")
        assert chains.shape == (8 * 10 + 2, frames * 10 + 2, 3)
        for i in range(8):  # the last frame is the image
            assert np.array_equal(chains[2 + 10 * i :, -10:-2][:8], pixels(tmp_path / f"samples/out/{i}.png"))
        with Image.open(tmp_path / "samples/out.gif") as animation:
            assert animation.size == (42, 22) and animation.n_frames == (13 if sampler == "ddpm" else 5)
        (tmp_path / "samples/out.gif").unlink()


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        (["--mode", "cosine"], "--mode: cosine"),
        (["--predictor", "x0"], "--predictor: x0"),
        (["--beta_1", 0.01], "--beta_1: 0.01"),
        (["--beta_T", 0.02], "--beta_T: 0.02"),
        (["--sample_method", "euler"], "'euler'"),
        (["--num_inference_steps", 50], "--num_inference_steps: 50"),
        (["--sample_method", "dpm", "--num_inference_steps", 13], "--num_inference_steps: 13"),
        (["--sample_method", "ddim", "--eta", 1.5], "--eta: '1.5'"),
        (["--sample_method", "dpm", "--eta", 0.5], "--eta: "),
        (["--last_timestep", 2], "--last_timestep: has no effect with ddpm"),
        (["--sample_method", "dpm", "--last_timestep", 12], "--last_timestep: 12"),
        (["--cfg_scale", 3], "--cfg_scale"),
        (["--classes", "cat"], "--classes"),
        (["--use_cfg", "--classes", "cat", "cow"], "--classes: 'cow'"),
        (["--num_samples", 0], "--num_samples: '0'"),
        (["--ckpt_path", "none.ckpt"], "none.ckpt"),
        (["--ckpt_path", "."], "last.ckpt"),
        (["--save_dir", "a_file/out"], "a_file"),
        (["--device", "cuda:77"], "'cuda:77'"),
    ],
)
def test_wrong_flags_are_one_line_and_leave_nothing(sample, tmp_path, flags, culprit):
    (tmp_path / "a_file").write_text("")
    assert refused(sample("out", *flags), culprit)
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]


@pytest.mark.parametrize(
    ("predictor", "parametrization", "method", "has_note", "clips"),
    [
        ("mean", "direct", "dpm", True, None),
        ("mean", "direct", "ddpm", False, None),
        ("mean", "preconditioned", "dpm", False, True),
        ("x0", "direct", "dpm", False, True),
    ],
)
def test_a_direct_mean_is_not_clipped_and_gets_a_note_where_steps_are_skipped(
    program, tmp_path, predictor, parametrization, method, has_note, clips
):
    small_model(predictor, parametrization=parametrization).save(tmp_path / "model.ckpt")
    flags = ["--num_samples", 1, "--save_dir", "out", *SAMPLERS[method]]
    run = program("sampling.py", "--ckpt_path", "model.ckpt", *flags)
    assert run.returncode == 0 and ("note:" in run.stderr) is has_note, run.stderr
    with Image.open(tmp_path / "out/0.png") as image:
        assert json.loads(image.info[SETTINGS_KEY])["clip_x0"] is clips


def test_a_name_that_a_students_file_lacks_is_one_line(tmp_path):
    folder = shutil.copytree(FOLDERS["task2"], tmp_path / "code", ignore=shutil.ignore_patterns("data", "__pycache__"))
    scheduler = folder / "scheduler.py"
    scheduler.write_text(scheduler.read_text().replace("MODES", "KINDS"))
    run = subprocess.run([sys.executable, folder / "sampling.py", "--help"], capture_output=True, text=True)
    assert refused(run, "MODES") and str(scheduler) in run.stderr
