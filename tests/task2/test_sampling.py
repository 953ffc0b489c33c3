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

from conftest import FOLDERS, SMALL_UNET
from model import DiffusionModule
from network import UNet
from oracles import awake, refused
from processes import Program
from sample_folder import SETTINGS_KEY
from scheduler import DDPMScheduler

SAMPLERS = {
    "ddpm": ["--sample_method", "ddpm", "--num_inference_steps", 12],
    "ddim": ["--sample_method", "ddim", "--num_inference_steps", 4],
    "ddim_with_noise": ["--sample_method", "ddim", "--num_inference_steps", 4, "--eta", 0.7],
    "dpm": ["--sample_method", "dpm", "--num_inference_steps", 4],
    "plain": ["--no-clip_x0"],
}


CLASSES = ["cat", "chat", "é"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of 12 steps with labels, whose network is as if trained."""
    torch.manual_seed(0)
    network = awake(UNet(**SMALL_UNET, use_cfg=True, num_classes=3))
    path = tmp_path_factory.mktemp("model") / "last.ckpt"
    ddpm = DiffusionModule(network, DDPMScheduler(12, 1e-4, 0.3))
    ddpm.classes = CLASSES
    ddpm.save(path)
    return path


@pytest.fixture
def sample(program, model):
    """Run sampling.py with that checkpoint into a folder."""
    return lambda folder, *flags: program("sampling.py", "--ckpt_path", model, "--save_dir", folder, *flags)


@pytest.mark.parametrize(("parametrization", "clips"), [("direct", None), ("preconditioned", True)])
def test_a_direct_mean_is_not_clipped_by_default(program, parametrization, clips, tmp_path):
    network, scheduler = awake(UNet(**SMALL_UNET)), DDPMScheduler(12, 1e-4, 0.3)
    DiffusionModule(network, scheduler, "mean", parametrization=parametrization).save(tmp_path / "mean.ckpt")
    run = program("sampling.py", "--ckpt_path", "mean.ckpt", "--save_dir", "s", "--num_samples", 1)
    assert run.returncode == 0, run.stderr
    with Image.open(tmp_path / "s/0.png") as image:
        assert json.loads(image.info[SETTINGS_KEY])["clip_x0"] is clips


def images_in(folder):
    assert all(re.fullmatch(r"\d+\.png", path.name) for path in folder.iterdir())
    return {int(path.stem): path.read_bytes() for path in folder.iterdir()}


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_each_sampler_makes_other_images_and_ddpm_is_the_default(sample, tmp_path):
    images = {}
    for name, flags in {**SAMPLERS, "default": []}.items():
        run = sample(name, "--num_samples", 3, "--batch_size", 2, *flags)
        assert run.returncode == 0, run.stderr
        assert images_in(tmp_path / name).keys() == {0, 1, 2}
        images[name] = pixels(tmp_path / name / "2.png").tobytes()
    assert images.pop("default") == images["ddpm"]
    assert len(set(images.values())) == len(SAMPLERS)


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


def test_guidance_changes_images_and_its_default_scale_may_be_written_out(sample, tmp_path):
    flags = {"no class": ["--cfg_scale", 7.5], "3": ["--use_cfg", "--cfg_scale", 3], "7.5": ["--use_cfg"]}
    for name, options in flags.items():
        run = sample(name, "--num_samples", 1, *options)
        assert run.returncode == 0, run.stderr
    assert len({(tmp_path / name / "0.png").read_bytes() for name in flags}) == 3


@pytest.mark.parametrize(
    ("classes", "expected"),
    [([], CLASSES), (["e\u0301", "cat"], ["é", "cat", "é"]), (["chat"], ["chat"] * 3)],
)
def test_each_image_holds_its_class_by_name(sample, tmp_path, classes, expected):
    flags = ["--use_cfg", "--num_samples", 3, *(["--classes", *classes] if classes else [])]
    run = sample("out", *flags)
    assert run.returncode == 0, run.stderr
    assert [Image.open(tmp_path / "out" / f"{i}.png").info["Class"] for i in range(3)] == expected
    if classes:
        assert refused(sample("out", "--use_cfg", "--num_samples", 3), "classes")


def test_a_class_without_a_name_is_chosen_by_its_number(sample, model, tmp_path):
    ddpm = DiffusionModule(None, None)
    ddpm.load(model)
    ddpm.classes = None
    ddpm.save(tmp_path / "nameless.ckpt")
    for name, path in [("3", "nameless.ckpt"), ("é", model)]:
        run = sample(name, "--num_samples", 1, "--use_cfg", "--classes", name, "--ckpt_path", path)
        assert run.returncode == 0, run.stderr
    assert np.array_equal(pixels(tmp_path / "3/0.png"), pixels(tmp_path / "é/0.png"))


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


def test_a_folder_of_other_settings_or_other_images_is_refused_and_left_alone(sample, model, tmp_path):
    assert sample("out", "--num_samples", 3, *SAMPLERS["ddim_with_noise"]).returncode == 0
    before = images_in(tmp_path / "out")
    for flags, setting in {
        (): "sample_method ddim there, ddpm here",
        tuple(SAMPLERS["dpm"]): "eta 0.7 there, None here",
        tuple(SAMPLERS["ddim"]): "eta 0.7 there, 0.0 here",
        (*SAMPLERS["ddim_with_noise"], "--seed", 5): "seed 0 there, 5 here",
        (*SAMPLERS["ddim_with_noise"], "--use_cfg"): "cfg_scale None there, 7.5 here",
        (*SAMPLERS["ddim_with_noise"], "--no-clip_x0"): "clip_x0 True there, None here",
    }.items():
        run = sample("out", "--num_samples", 3, *flags)
        assert refused(run, setting) and "0.png" in run.stderr
    assert refused(sample("out", "--num_samples", 2, *SAMPLERS["ddim_with_noise"]), "2.png")
    assert images_in(tmp_path / "out") == before
    other = torch.load(model, weights_only=True)
    other["state_dict"]["head.bias"] += 1
    torch.save(other, tmp_path / "other.ckpt")
    flags = [*SAMPLERS["ddim_with_noise"], "--ckpt_path", "other.ckpt"]
    assert refused(sample("out", "--num_samples", 3, *flags), "model")


def test_only_images_that_the_fid_program_would_measure_are_in_the_way(sample, tmp_path):
    assert sample("out", "--num_samples", 2).returncode == 0
    before = images_in(tmp_path / "out")
    litter = [".DS_Store", "Thumbs.db", "desktop.ini", ".directory", "._0.png", ".nfs0001", "0.png:Zone.Identifier"]
    for name in litter:
        (tmp_path / "out" / name).write_bytes(b"junk")
    (tmp_path / "out" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "out" / ".ipynb_checkpoints" / "0-checkpoint.png").write_bytes(before[0])
    run = sample("out", "--num_samples", 3)
    assert run.returncode == 0 and "2 of 3" in run.stdout, run.stderr
    assert all((tmp_path / "out" / name).exists() for name in litter)
    for name, content in {"0.png": b"", "mine.jpg": b"", "1.png": b"without text"}.items():
        (tmp_path / "out" / name).write_bytes(content)
        assert refused(sample("out", "--num_samples", 3), name)
        (tmp_path / "out" / name).unlink()
    Image.new("RGB", (8, 8)).save(tmp_path / "out" / "1.png")
    assert refused(sample("out", "--num_samples", 3), "1.png")


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
        (["--num_inference_steps", 0], "--num_inference_steps: '0'"),
        (["--sample_method", "ddim", "--eta", 1.5], "--eta: '1.5'"),
        (["--sample_method", "dpm", "--eta", 0.5], "--eta: "),
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


def test_a_run_folder_stands_for_its_checkpoint_and_right_flags_are_taken(sample, model):
    flags = ["--mode", "linear", "--beta_1", "1e-4", "--beta_T", 0.3, "--predictor", "noise"]
    run = sample("out", "--num_samples", 1, "--ckpt_path", model.parent, *flags)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("predictor", "parametrization", "method"),
    [("mean", "direct", "dpm"), ("mean", "direct", "ddpm"), ("mean", "preconditioned", "dpm"), ("x0", "direct", "dpm")],
)
def test_only_direct_mean_prediction_that_skips_steps_gets_a_note(
    program, tmp_path, predictor, parametrization, method
):
    network, scheduler = UNet(**SMALL_UNET), DDPMScheduler(12, 1e-3, 0.3)
    DiffusionModule(network, scheduler, predictor, parametrization=parametrization).save(tmp_path / "model.ckpt")
    flags = ["--num_samples", 1, "--save_dir", "out", *SAMPLERS[method]]
    run = program("sampling.py", "--ckpt_path", "model.ckpt", *flags)
    assert run.returncode == 0, run.stderr
    assert ("note:" in run.stderr) == ((predictor, parametrization, method) == ("mean", "direct", "dpm"))


def test_a_name_that_a_students_file_lacks_is_one_line(tmp_path):
    folder = shutil.copytree(FOLDERS["task2"], tmp_path / "code", ignore=shutil.ignore_patterns("data", "__pycache__"))
    scheduler = folder / "scheduler.py"
    scheduler.write_text(scheduler.read_text().replace("MODES", "KINDS"))
    run = subprocess.run([sys.executable, folder / "sampling.py", "--help"], capture_output=True, text=True)
    assert refused(run, "MODES") and str(scheduler) in run.stderr
