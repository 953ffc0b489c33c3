"""Checkpoints: what is saved comes back; anything else is refused in one line and changes nothing."""

import resource

import pytest
import torch

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


def check_refused(path, named=None):
    """`load` names the file in one line and leaves the module as it was."""
    ddpm = DiffusionModule(SimpleNet(2, 2, [4], 10), BaseScheduler(10))
    before = ddpm.network, ddpm.var_scheduler
    with pytest.raises(UserError, match=named) as refusal:
        ddpm.load(path)
    message = str(refusal.value)
    assert str(path) in message and "\n" not in message and (ddpm.network, ddpm.var_scheduler) == before


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


@pytest.mark.parametrize("part", ["network", "var_scheduler"])
def test_what_load_could_not_rebuild_is_not_saved(ddpm, tmp_path, part):
    getattr(ddpm, part).__class__ = type("Own", (type(getattr(ddpm, part)),), {})
    with pytest.raises(TypeError, match="Own"):
        ddpm.save(tmp_path / "model.ckpt")
    assert not list(tmp_path.iterdir())


def test_other_truncated_and_damaged_files_are_refused_and_their_code_does_not_run(saved, tmp_path):
    whole = saved.read_bytes()
    parts = [whole[: int(part * len(whole))] for part in (0.1, 0.5, 0.9, 0.999)]
    flipped = bytearray(whole)
    flipped[whole.index(b"layers") + 20_000] ^= 1  # a bit of a weight
    for content in (b"", b"hello", b"PK\x03\x04 broken", b"\x80\x02.", *parts, bytes(flipped)):
        saved.write_bytes(content)
        check_refused(saved)
    code = {"format": "ddpm-2d", "version": 1, "network": Harmful(tmp_path / "ran")}
    for other in ([1, 2], {"epoch": 3}, torch.zeros(3), code):
        torch.save(other, saved)
        check_refused(saved)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c.update(version=2), "version.* 2"),
        (lambda c: c.update(version=torch.zeros(2)), None),
        (lambda c: c.pop("network"), "network"),
        (lambda c: c["network"].update(num_timesteps=10), "10.*30"),
        (lambda c: c["network"].update(dim_hids=[16, 10**7]), "shapes"),
        (lambda c: c["network"].update(wings=2), "wings"),
        (lambda c: c["var_scheduler"].update(num_train_timesteps=2**70), str(2**70)),
        (lambda c: c["var_scheduler"].update(mode="sigmoid"), "sigmoid"),
        (lambda c: c["state_dict"].popitem(), "shapes"),
        (lambda c: c["state_dict"].update({"layers.1.fc.bias": torch.zeros(1).expand(10**12)}), "larger"),
        (lambda c: c["state_dict"]["layers.1.fc.bias"].fill_(float("nan")), "finite"),
        (lambda c: c.update(state_dict=[1, 2]), "list"),
    ],
)
def test_contradictory_useless_or_huge_contents_are_refused(saved, change, named):
    checkpoint = torch.load(saved, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, saved)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check_refused(saved, named)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 300_000  # kilobytes


def test_a_full_disk_is_an_oserror_that_names_the_file_and_keeps_the_old_one(ddpm, saved, full_disk):
    before = saved.read_bytes()
    with full_disk(10_000), pytest.raises(OSError, match=r"model\.ckpt"):
        ddpm.save(saved)
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]
