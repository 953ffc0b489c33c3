"""sampling.py with each sampler."""

import pytest
from PIL import Image

from model import DiffusionModule
from network import UNet
from oracles import awake, refused
from scheduler import DDPMScheduler

SMALL = {"image_resolution": 8, "ch": 32, "ch_mult": [1], "attn": [], "num_res_blocks": 1, "dropout": 0.0}


@pytest.fixture
def command(tmp_path):
    """sampling.py with an untrained network of 12 steps."""
    network = awake(UNet(**SMALL)).eval()
    DiffusionModule(network, DDPMScheduler(12, 1e-4, 0.02), "x0").save(tmp_path / "model.ckpt")
    return ["sampling.py", "--ckpt_path", "model.ckpt", "--num_samples", 3, "--save_dir"]


HOW = {
    "ddim": ["--sample_method", "ddim", "--num_inference_steps", 4],
    "with_noise": ["--sample_method", "ddim", "--num_inference_steps", 4, "--eta", 0.7],
    "dpm": ["--sample_method", "dpm", "--num_inference_steps", 4],
    "ddpm": ["--sample_method", "ddpm", "--num_inference_steps", 12],
}


def test_images_of_each_method(program, command, tmp_path):
    made = {}
    for name, options in HOW.items():
        run = program(*command, name, *options, "--save_traj", "--batch_size", 2)
        assert run.returncode == 0, run.stderr
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["0.png", "1.png", "2.png"]
        frames = 10 if name == "ddpm" else 5
        assert Image.open(tmp_path / f"{name}_traj" / "2.png").size == (10 * frames + 2, 12)
        made[name] = Image.open(tmp_path / name / "2.png").tobytes()
    assert len(set(made.values())) == len(HOW)
    default = program(*command, "default", "--batch_size", 2)
    assert default.returncode == 0, default.stderr
    assert Image.open(tmp_path / "default" / "2.png").tobytes() == made["ddpm"]


def test_a_folder_goes_on_with_its_own_method_only(program, command, tmp_path):
    command = [*command[:-1], "--batch_size", 1, "--save_dir"]
    assert program(*command, "out", *HOW["with_noise"]).returncode == 0
    whole = (tmp_path / "out" / "1.png").read_bytes()
    (tmp_path / "out" / "1.png").unlink()
    assert refused(program(*command, "out"), "sample_method ddim there, ddpm here")
    assert refused(program(*command, "out", *HOW["dpm"]), "sample_method ddim there, dpm here")
    other_number = ["--sample_method", "ddim", "--num_inference_steps", 5, "--eta", 0.7]
    assert refused(program(*command, "out", *other_number), "num_inference_steps 4 there, 5 here")
    assert refused(program(*command, "out", *HOW["ddim"]), "eta 0.7 there, 0.0 here")
    assert not (tmp_path / "out" / "1.png").exists()
    assert program(*command, "out", *HOW["with_noise"]).returncode == 0
    assert (tmp_path / "out" / "1.png").read_bytes() == whole


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sample_method", "euler"], "--sample_method: invalid choice: 'euler'"),
        (["--num_inference_steps", 50], "argument --num_inference_steps: 50"),
        (
            ["--sample_method", "dpm", "--num_inference_steps", 13],
            "--num_inference_steps: 13 is not a whole number from 1",
        ),
        (
            ["--sample_method", "dpm", "--num_inference_steps", 0],
            "--num_inference_steps: '0' is not a whole number >= 1",
        ),
        (["--sample_method", "ddim", "--eta", 1.5], "--eta: '1.5' is not a number from 0 to 1"),
        (["--sample_method", "dpm", "--eta", 0], "--eta: does nothing without --sample_method ddim"),
    ],
)
def test_bad_settings_are_one_line(program, command, tmp_path, options, words):
    assert refused(program(*command, "out", *options), words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("predictor", "parametrization"), [("mean", "direct"), ("mean", "preconditioned"), ("x0", "direct")]
)
def test_whoever_leaves_out_steps_of_a_mean_is_told(program, tmp_path, predictor, parametrization):
    network = awake(UNet(T=12, **SMALL))
    ddpm = DiffusionModule(network, DDPMScheduler(12, 1e-3, 0.3), predictor, parametrization=parametrization)
    ddpm.save(tmp_path / "model.ckpt")
    said = {}
    for method in ("ddpm", "dpm"):
        flags = ["--num_samples", 2, "--sample_method", method, "--save_dir", method]
        steps = ["--num_inference_steps", 3] if method == "dpm" else []
        run = program("sampling.py", "--ckpt_path", "model.ckpt", *flags, *steps)
        assert run.returncode == 0, run.stderr
        said[method] = "note: of a network that gives the mean itself" in run.stdout
    assert said == {"ddpm": False, "dpm": (predictor, parametrization) == ("mean", "direct")}
