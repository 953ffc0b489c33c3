"""The model that comes with the project samples cats."""

import csv
from pathlib import Path

import numpy as np
import torch

from checkpoint import read_checkpoint
from model import DiffusionModule
from sampling import model_hash
from spectrum import log_spectrum, read_grey

REPORT = Path(__file__).parents[2] / "report"
MODEL = REPORT / "models/cats64.ckpt"


def test_its_samples_have_the_spectrum_of_cats(program, tmp_path):
    with (REPORT / "tables/cats64_spectrum.csv").open(newline="") as file:
        spectrum = np.array([float(row["eval"]) for row in csv.DictReader(file)])

    def distance(images):
        return np.sqrt(np.square(log_spectrum(images) - spectrum).mean())

    flags = "--num_samples", 16, "--sample_method", "ddim", "--num_inference_steps", 10
    run = program("sampling.py", "--ckpt_path", MODEL, "--save_dir", "cats", *flags)
    assert run.returncode == 0, run.stderr
    samples = read_grey(tmp_path / "cats")
    assert samples.shape == (16, 64, 64)
    noise = np.random.default_rng(0).integers(0, 256, samples.shape)
    faint = samples.mean(axis=(1, 2), keepdims=True) + noise / 256  # the right brightness without structure
    assert distance(samples) < 0.5 * min(distance(noise), distance(faint))
    assert 30 < samples.astype(float).std(axis=0).mean() < 90, "samples differ from each other, in grey levels"


def test_it_is_small_and_holds_no_more_than_the_averaged_weights():
    assert MODEL.stat().st_size < 16 * 2**20
    checkpoint = read_checkpoint(MODEL)
    assert "training" not in checkpoint and checkpoint["network"]["patch_size"] == 2
    stored = torch.load(MODEL, weights_only=True)["state_dict"]
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}


def test_the_distances_of_the_table_are_its_own():
    with (REPORT / "tables/cats64_sampling.csv").open(newline="") as file:
        models = {row["model"] for row in csv.DictReader(file)}
    ddpm = DiffusionModule(None, None)
    ddpm.load(MODEL)
    assert models == {model_hash(ddpm)}


def test_the_spectrum_of_white_noise_is_flat():
    noise = np.random.default_rng(0).normal(0, 255, (200, 32, 32))
    np.testing.assert_allclose(log_spectrum(noise), np.zeros(15), atol=0.05)
