"""Checkpoints: what is saved comes back; anything else is refused in one line and changes nothing."""

import pickle

import pytest
import torch
from torch import nn

from cli import UserError
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


def refuses(path, named=None):
    """Whether `load` names the file in one line and leaves the module as it was."""
    ddpm = DiffusionModule(SimpleNet(2, 2, [4], 10), BaseScheduler(10))
    before = ddpm.network, ddpm.var_scheduler
    with pytest.raises(UserError, match=named) as refusal:
        ddpm.load(path)
    message = str(refusal.value)
    return str(path) in message and "\n" not in message and (ddpm.network, ddpm.var_scheduler) == before


@pytest.mark.parametrize("other", [(None, None), (SimpleNet(3, 3, [4], 10), BaseScheduler(10))])
def test_any_module_becomes_the_saved_one(ddpm, saved, other):
    loaded = DiffusionModule(*other)
    loaded.load(str(saved))
    assert loaded.network.config == ddpm.network.config
    assert loaded.var_scheduler.config == ddpm.var_scheduler.config
    torch.manual_seed(1)
    expected = ddpm.p_sample_loop((5, 2))
    torch.manual_seed(1)
    assert torch.equal(loaded.p_sample_loop((5, 2)), expected)


def test_version_1_is_these_plain_data(ddpm, saved):
    layers = ["time_embedding.mlp.0", "time_embedding.mlp.2", "fc"]
    names = [f"layers.{i}.{name}.{kind}" for i in range(3) for name in layers for kind in ("weight", "bias")]
    checkpoint = torch.load(saved, weights_only=True)
    weights = checkpoint.pop("state_dict")
    assert checkpoint == {
        "format": "ddpm-2d",
        "version": 1,
        "network": {"dim_in": 2, "dim_out": 2, "dim_hids": [16, 8], "num_timesteps": 30},
        "var_scheduler": {"num_train_timesteps": 30, "beta_1": 1e-3, "beta_T": 0.1, "mode": "quad"},
    }
    assert list(weights) == names and all(map(torch.equal, weights.values(), ddpm.parameters()))


@pytest.mark.parametrize(
    ("network", "scheduler"),
    [
        (nn.Linear(2, 2), BaseScheduler(10)),
        (type("Subclass", (SimpleNet,), {})(2, 2, [4], 10), BaseScheduler(10)),
        (SimpleNet(2, 2, [4], 10), type("Subclass", (BaseScheduler,), {})(10)),
    ],
)
def test_what_load_could_not_rebuild_is_not_saved(tmp_path, network, scheduler):
    with pytest.raises(TypeError, match=r"Linear|Subclass"):
        DiffusionModule(network, scheduler).save(tmp_path / "model.ckpt")
    assert not list(tmp_path.iterdir())


def test_code_in_a_file_does_not_run(tmp_path):
    path, witness = tmp_path / "evil.ckpt", tmp_path / "ran"
    torch.save({"format": "ddpm-2d", "version": 1, "network": Harmful(witness)}, path)
    assert refuses(path)
    path.write_bytes(pickle.dumps(Harmful(witness), protocol=2))
    assert refuses(path)
    assert not witness.exists()


def test_other_and_truncated_files_are_refused(saved, tmp_path):
    whole = saved.read_bytes()
    parts = [whole[: int(part * len(whole))] for part in (0.1, 0.5, 0.9, 0.999)]
    for content in (b"", b"hello", b"PK\x03\x04 broken", b"\x80\x02.", *parts):
        saved.write_bytes(content)
        assert refuses(saved)
    for other in ([1, 2], {"epoch": 3}, {"format": "something else"}, torch.zeros(3)):
        torch.save(other, saved)
        assert refuses(saved)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c.update(version=2), "version"),
        (lambda c: c.update(version=torch.zeros(2)), None),
        (lambda c: c.pop("network"), "network"),
        (lambda c: c["network"].update(num_timesteps=10), "10.*30"),
        (lambda c: c["var_scheduler"].update(num_train_timesteps=31), "30.*31"),
        (lambda c: c["var_scheduler"].update(num_train_timesteps=2**70), str(2**70)),
        (lambda c: c["network"].update(dim_hids=[16, 9]), "layers"),
        (lambda c: c["network"].update(wings=2), "wings"),
        (lambda c: c["var_scheduler"].update(mode="sigmoid"), "sigmoid"),
        (lambda c: c["state_dict"].popitem(), "layers"),
        (lambda c: c["state_dict"]["layers.1.fc.bias"].fill_(float("nan")), "finite"),
        (lambda c: c["state_dict"]["layers.0.fc.weight"][0].fill_(float("inf")), "finite"),
        (lambda c: c.update(state_dict=[1, 2]), "list"),
    ],
)
def test_contradictory_or_useless_contents_are_refused(saved, change, named):
    checkpoint = torch.load(saved, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, saved)
    assert refuses(saved, named)


def test_files_that_cannot_be_read_or_written_raise_oserror(ddpm, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt"):
        ddpm.load(tmp_path / "nowhere.ckpt")
    with pytest.raises(OSError):
        ddpm.save("/dev/full")
