import pickle

import pytest
import torch
from torch import nn

from ddpm import BaseScheduler, DiffusionModule
from network import SimpleNet
from oracles import Harmful


@pytest.fixture
def ddpm():
    return DiffusionModule(SimpleNet(2, 2, [16, 8], 30), BaseScheduler(30, 1e-3, 0.1, mode="quad"))


@pytest.fixture
def saved(ddpm, tmp_path):
    ddpm.save(tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


def rewrite(path, change):
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)


def test_an_empty_module_becomes_the_saved_one(ddpm, saved):
    again = DiffusionModule(None, None)
    again.load(saved)
    assert again.network.config == ddpm.network.config
    assert again.var_scheduler.config == ddpm.var_scheduler.config
    assert torch.equal(again.var_scheduler.betas, ddpm.var_scheduler.betas)
    torch.manual_seed(1)
    expected = ddpm.p_sample_loop((5, 2))
    torch.manual_seed(1)
    assert torch.equal(again.p_sample_loop((5, 2)), expected)


def test_a_module_of_another_size_becomes_the_saved_one(ddpm, saved):
    other = DiffusionModule(SimpleNet(3, 3, [4], 10), BaseScheduler(10))
    other.load(str(saved))
    assert other.network.config == ddpm.network.config
    assert other.var_scheduler.num_train_timesteps == 30


def test_checkpoint_is_plain_data(saved):
    checkpoint = torch.load(saved, weights_only=True)
    assert checkpoint["version"] == 1
    assert checkpoint["var_scheduler"] == {"num_train_timesteps": 30, "beta_1": 1e-3, "beta_T": 0.1, "mode": "quad"}


def test_a_network_that_numbers_cannot_rebuild_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match="not a Linear"):
        DiffusionModule(nn.Linear(2, 2), BaseScheduler(10)).save(tmp_path / "model.ckpt")
    assert not list(tmp_path.iterdir())


def unchanged_after_refusal(path, words):
    ddpm = DiffusionModule(SimpleNet(2, 2, [4], 10), BaseScheduler(10))
    network, scheduler = ddpm.network, ddpm.var_scheduler
    with pytest.raises(ValueError, match=words) as refusal:
        ddpm.load(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert ddpm.network is network and ddpm.var_scheduler is scheduler


def test_code_in_a_file_does_not_run(tmp_path):
    path, witness = tmp_path / "evil.ckpt", tmp_path / "ran"
    torch.save({"format": "ddpm-2d", "version": 1, "network": Harmful(witness)}, path)
    unchanged_after_refusal(path, "not a checkpoint of this program")
    path.write_bytes(pickle.dumps(Harmful(witness)))
    unchanged_after_refusal(path, "not a checkpoint of this program")
    assert not witness.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 broken", b"\x80\x04."])
def test_files_of_other_kinds_are_refused(tmp_path, content):
    path = tmp_path / "other.ckpt"
    path.write_bytes(content)
    unchanged_after_refusal(path, "not a checkpoint of this program")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_cut_files_are_refused(saved, keep):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(keep * len(content))])
    unchanged_after_refusal(saved, "not a checkpoint of this program")


@pytest.mark.parametrize("other", [[1, 2], {"epoch": 3}, {"format": "something else"}, torch.zeros(3)])
def test_other_programs_checkpoints_are_refused(tmp_path, other):
    torch.save(other, tmp_path / "other.ckpt")
    unchanged_after_refusal(tmp_path / "other.ckpt", "not a checkpoint of this program")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(version=2), "checkpoint version 2, this program reads 1"),
        (lambda c: c.update(version=torch.zeros(2)), "this program reads 1"),
        (lambda c: c.pop("network"), "does not fit"),
        (lambda c: c["network"].update(num_timesteps=10), "does not fit"),
        (lambda c: c["var_scheduler"].update(num_train_timesteps=31), "knows 30 timesteps, the schedule has 31"),
        (lambda c: c["var_scheduler"].update(num_train_timesteps=2**70), "does not fit"),
        (lambda c: c["network"].update(dim_hids=[16, 9]), "does not fit"),
        (lambda c: c["network"].update(wings=2), "does not fit"),
        (lambda c: c["var_scheduler"].update(mode="sigmoid"), "does not fit: unknown mode 'sigmoid'"),
        (lambda c: c["state_dict"].popitem(), "does not fit"),
        (lambda c: c.update(state_dict=[1, 2]), "does not fit"),
    ],
)
def test_contradictions_are_refused(saved, change, words):
    rewrite(saved, change)
    unchanged_after_refusal(saved, words)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt"):
        DiffusionModule(None, None).load(tmp_path / "nowhere.ckpt")
