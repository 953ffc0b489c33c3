"""Checkpoint files from strangers: refused in one line, whatever they are, and none of their code runs."""

import os
import pickle
import random
import resource
import time
import zipfile
from pathlib import Path

import pytest
import torch

from checkpoint import read_checkpoint, write_checkpoint
from cli import UserError
from conftest import small_model
from model import DiffusionModule
from oracles import Harmful, refused


@pytest.fixture
def saved(tmp_path):
    ddpm = small_model("x0", T=20, schedule=(1e-4, 0.02, "cosine", "large")).eval()
    ddpm.save(tmp_path / "model.ckpt")
    return ddpm, tmp_path / "model.ckpt"


INCONSISTENT = [
    ("version", lambda c: c.update(version=9)),
    ("", lambda c: c.update(version=torch.zeros(3))),
    ("predictor", lambda c: c.pop("predictor")),
    ("'velocity'", lambda c: c.update(predictor="velocity")),
    ("'v'", lambda c: c.update(parametrization="v")),
    ("classes", lambda c: c.update(classes=["cat"])),
    ("downblocks.", lambda c: c["network"].update(ch=64)),
    ("ch", lambda c: c["network"].update(ch=10**12)),
    ("image_resolution", lambda c: c["network"].update(image_resolution=2**30)),
    ("", lambda c: c["network"].update(ch_mult=[1] * 10**6)),
    ("'shell'", lambda c: c["network"].update(shell="rm")),
    ("'sigmoid'", lambda c: c["var_scheduler"].update(mode="sigmoid")),
    ("num_train_timesteps", lambda c: c["var_scheduler"].update(num_train_timesteps=10**13)),
    ("tail.", lambda c: c["state_dict"].popitem()),
    ("head.bias", lambda c: c["state_dict"].update({"head.bias": torch.zeros(31)})),
    ("head.bias", lambda c: c["state_dict"].update({"head.bias": torch.zeros(32).double()})),
    ("head.bias", lambda c: c["state_dict"]["head.bias"].fill_(float("nan"))),
    ("", lambda c: c["state_dict"].update({"head.bias": torch.zeros(32).to_sparse()})),
    ("state_dict", lambda c: c["state_dict"].update({"head.bias": torch.zeros(1).expand(10**12)})),
    ("state_dict", lambda c: c.update(state_dict=3)),
]


@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")
@pytest.mark.parametrize(("culprit", "change"), INCONSISTENT)
def test_inconsistent_contents_are_refused_by_name_and_leave_the_module_as_it_was(saved, culprit, change):
    ddpm, path = saved
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    network, start = ddpm.network, time.process_time()
    with pytest.raises(UserError) as refusal:
        ddpm.load(path)
    assert str(path) in str(refusal.value) and culprit in str(refusal.value).removeprefix(str(path))
    assert ddpm.network is network
    assert time.process_time() - start < 20


# Each makes a file at `path`; `whole` is a good checkpoint, and `witness` what code of the file would make.


def write_bomb(path):
    """An archive of a megabyte that unpacks to a gigabyte."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data.pkl", "w") as part:
        for _ in range(1000):
            part.write(bytes(10**6))


class Large:
    """A few bytes of a pickle that become a gigabyte when it is read."""

    def __reduce__(self):
        return bytearray, (10**9,)


HEAD = {"format": "ddpm-image", "version": 1}
# Each makes a file at `path`; `whole` is a good checkpoint, and code in the file would make the file `witness`.
HOSTILE = {
    "empty file": lambda path, whole: path.write_bytes(b""),
    "half a checkpoint": lambda path, whole: path.write_bytes(whole[: len(whole) // 2]),
    "all but a byte": lambda path, whole: path.write_bytes(whole[:-1]),
    "bomb": lambda path, whole: write_bomb(path),
    "folder": lambda path, whole: path.mkdir(),
    "pipe": lambda path, whole: os.mkfifo(path),
    "other tensors": lambda path, whole: torch.save({"model": torch.zeros(3)}, path),
    "gigabyte in a line": lambda path, whole: torch.save(HEAD | {"a": Large()}, path),
    "module": lambda path, whole: torch.save(torch.nn.Linear(1, 1), path),
    "code in a pickle": lambda path, whole: path.write_bytes(pickle.dumps(Harmful(path.parent / "witness"))),
    "code": lambda path, whole: torch.save(HEAD | {"network": Harmful(path.parent / "witness")}, path),
    "code in the old format": lambda path, whole: torch.save(
        HEAD | {"state_dict": Harmful(path.parent / "witness")}, path, _use_new_zipfile_serialization=False
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_by_name(program, saved, kind):
    path = saved[1].with_name(f"a {kind}\n.ckpt")
    HOSTILE[kind](path, saved[1].read_bytes())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = program("sampling.py", "--ckpt_path", path, "--save_dir", "out", "--num_samples", 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 300_000  # kilobytes
    assert refused(run, f"a {kind}\\n.ckpt")
    assert not Path("out").exists()
    assert not path.with_name("witness").exists()
    if kind == "code in a pickle":
        pickle.loads(path.read_bytes())
        assert path.with_name("witness").exists()


def damaged_copy(content, chance):
    """Bits flipped, bytes overwritten, cut out or doubled, or the end cut off."""
    start = chance.randrange(len(content))
    length = min(chance.choice([1, 1, 4, 100, 5000]), len(content) - start)
    before, part, after = content[:start], content[start : start + length], content[start + length :]
    flipped = bytes([part[0] ^ 1 << chance.randrange(8)]) + part[1:]
    return before + chance.choice(
        [flipped + after, chance.randbytes(length) + after, bytes(length) + after, after, 2 * part + after, b""]
    )


@pytest.mark.parametrize("tries", [150, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_have_the_weights_of_the_undamaged_file(saved, tries):
    ddpm, path = saved
    whole = path.read_bytes()
    weights = len(whole) - 20_000  # half of the damage goes to the rest, where the structure is
    chance = random.Random(0)
    refusals = 0
    for _ in range(tries):
        kept = chance.choice([0, weights])
        path.write_bytes(whole[:kept] + damaged_copy(whole[kept:], chance))
        try:
            checkpoint = read_checkpoint(path)
        except UserError as refusal:
            assert str(path) in str(refusal)
            refusals += 1
        else:
            assert all(torch.equal(w, checkpoint["state_dict"][name]) for name, w in ddpm.network.state_dict().items())
    assert refusals > 0.8 * tries


def test_weights_that_are_not_finite_are_not_written(saved):
    ddpm, path = saved
    before = path.read_bytes()
    with torch.no_grad():
        ddpm.network.head.bias[3] = float("inf")
    with pytest.raises(ValueError, match=r"head\.bias"):
        write_checkpoint(ddpm.checkpoint(), path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("flags", [[], ["--half"]])
def test_an_export_holds_the_averaged_weights_alone_and_samples_from_them(program, saved, tmp_path, flags):
    ddpm, path = saved
    averaged = ddpm.network.state_dict()
    last = {name: weight + 1 for name, weight in averaged.items()}
    write_checkpoint(ddpm.checkpoint() | {"training": {"network": last}}, path)
    run = program("checkpoint.py", path, "--out", "small.ckpt", *flags)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "small.ckpt").stat().st_size < path.stat().st_size / (3.5 if flags else 1.8)
    exported = DiffusionModule(None, None)
    exported.load(tmp_path / "small.ckpt")
    for name, weight in exported.network.state_dict().items():
        assert torch.equal(weight, averaged[name].half().float() if flags else averaged[name])
    run = program("sampling.py", "--ckpt_path", "small.ckpt", "--save_dir", "out", "--num_samples", 1)
    assert run.returncode == 0, run.stderr


def test_an_export_over_its_own_checkpoint_is_refused(program, saved):
    path, before = saved[1], saved[1].read_bytes()
    assert refused(program("checkpoint.py", path, "--out", path), "--out") and path.read_bytes() == before


def test_an_export_of_no_checkpoint_or_to_no_file_is_refused(program, tmp_path):
    (tmp_path / "text.ckpt").write_text("hello")
    assert refused(program("checkpoint.py", "text.ckpt", "--out", "out.ckpt"), "text.ckpt")
    os.mkfifo("pipe")  # which the program would replace
    assert refused(program("checkpoint.py", "text.ckpt", "--out", "pipe"), "--out: 'pipe'")
    assert not (tmp_path / "out.ckpt").exists()
