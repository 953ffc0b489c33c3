"""Checkpoints of the lab's skeleton, written by classes of the same names that no longer exist when they are read."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from conftest import SMALL_UNET, small_model
from lab_checkpoint import read_lab_checkpoint
from model import DiffusionModule
from network import UNet
from oracles import Harmful, awake, betas_by_definition, refused
from scheduler import DDPMScheduler

FLAGS = ["--predictor", "noise", "--num_samples", 2]


def small_network(**changes):
    torch.manual_seed(0)
    return awake(UNet(**SMALL_UNET | {"ch": 128, "T": 12} | changes))


@pytest.fixture
def lab(monkeypatch):
    """Write a lab checkpoint, with code of a stranger: `prefix` goes before the names of the weights."""

    def write(path, network, betas, prefix="network."):
        classes = types.ModuleType("lab_classes")
        for name in ("UNet", "DDPMScheduler"):
            setattr(classes, name, type(name, (nn.Module,), {"__module__": "lab_classes", "__qualname__": name}))
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "lab_classes", classes)
            pickled = classes.UNet()
            pickled.image_resolution = network.image_resolution
            for name, child in network.named_children():
                pickled.add_module(name, child)
            scheduler = classes.DDPMScheduler()
            scheduler.register_buffer("betas", torch.tensor(betas, dtype=torch.float32))
            scheduler.register_buffer("timesteps", torch.arange(len(betas) - 1, -1, -1))
            state = {prefix + name: weight for name, weight in network.state_dict().items()}
            state |= {f"var_scheduler.{name}": buffer for name, buffer in scheduler.state_dict().items()}
            hparams = {"network": pickled, "var_scheduler": scheduler, "callback": Harmful(path.parent / "witness")}
            torch.save({"hparams": hparams, "state_dict": state}, path)

    return write


@pytest.mark.parametrize(
    ("mode", "ends", "prefix"), [("linear", (2e-3, 0.4), "network."), ("quad", (), ""), ("cosine", (), "network.")]
)
def test_its_samples_are_bit_for_bit_those_of_the_same_weights_in_a_file_of_ours(
    program, lab, tmp_path, mode, ends, prefix
):
    network = small_network(attn=[0], use_cfg=True, num_classes=3)
    lab(tmp_path / "lab.ckpt", network, betas_by_definition(mode, 12, *ends), prefix=prefix)
    DiffusionModule(network, DDPMScheduler(12, *(ends or (1e-4, 0.02)), mode)).save(tmp_path / "ours.ckpt")
    for name in ("lab", "ours"):
        run = program("sampling.py", "--ckpt_path", f"{name}.ckpt", "--save_dir", name, *FLAGS, "--use_cfg")
        assert run.returncode == 0, run.stderr
    for i in range(2):
        assert np.array_equal(*(Image.open(tmp_path / name / f"{i}.png") for name in ("lab", "ours")))
    assert not (tmp_path / "witness").exists()
    again = ["sampling.py", "--ckpt_path", "lab.ckpt", "--save_dir", "again"]
    assert refused(program(*again), "--predictor")
    assert refused(program(*again, *FLAGS, "--mode", "quad" if mode == "linear" else "linear"), f"has {mode}")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_bare_state_dict_needs_its_schedule_and_predictor(program, tmp_path, wrapped):
    network = small_network(T=1000, image_resolution=64)
    state = network.state_dict()
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "bare.ckpt")
    assert refused(program("sampling.py", "--ckpt_path", "bare.ckpt", "--save_dir", "out", *FLAGS), "--mode")
    checkpoint = read_lab_checkpoint(tmp_path / "bare.ckpt", "x0", "quad", beta_T=0.03)
    assert checkpoint["network"].items() <= network.config.items() and checkpoint["predictor"] == "x0"
    assert DDPMScheduler(**checkpoint["var_scheduler"]).config == DDPMScheduler(1000, 1e-4, 0.03, "quad").config
    assert all(torch.equal(weight, state[name]) for name, weight in checkpoint["state_dict"].items())


def test_a_checkpoint_of_ours_is_never_taken_for_a_bare_state_dict(program, tmp_path):
    small_model().save(tmp_path / "ours.ckpt")
    flags = [*FLAGS, "--mode", "linear", "--weights", "last"]  # which it lacks
    run = program("sampling.py", "--ckpt_path", "ours.ckpt", "--save_dir", "out", *flags)
    assert refused(run, "ours.ckpt") and "--predictor" not in run.stderr


def test_every_architecture_is_found_from_its_weights(tmp_path):
    for changes in [
        {"ch_mult": [1, 2, 2], "attn": [1], "num_res_blocks": 2},
        {"ch_mult": [1, 3], "attn": [0, 1], "patch_size": 2},
        {"use_cfg": True, "num_classes": 7},
    ]:
        network = small_network(image_resolution=64, **changes)
        torch.save(network.state_dict(), tmp_path / "bare.ckpt")
        found = read_lab_checkpoint(tmp_path / "bare.ckpt", "noise", "linear")["network"]
        assert found.items() <= (network.config | {"T": 1000}).items()


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"betas": np.minimum(betas_by_definition("linear", 12), 0.015)}, "linear"),
        ({"betas": np.full(12, np.nan)}, "lab.ckpt"),
        ({"network": {"ch": 64}}, "64"),
    ],
)
def test_other_betas_and_narrower_networks_are_refused(program, lab, tmp_path, change, culprit):
    contents = {"network": {}, "betas": betas_by_definition("linear", 12)} | change
    lab(tmp_path / "lab.ckpt", **contents | {"network": small_network(**contents["network"])})
    run = program("sampling.py", "--ckpt_path", "lab.ckpt", "--save_dir", "out", *FLAGS)
    assert refused(run, culprit) and "lab.ckpt" in run.stderr
