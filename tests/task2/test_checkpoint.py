"""Checkpoint files from strangers: refused in one line, whatever they are, and no code of theirs is run."""

import io
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
from conftest import SMALL_UNET
from model import DiffusionModule
from network import UNet
from oracles import Harmful, refused
from scheduler import DDPMScheduler


@pytest.fixture
def saved(tmp_path):
    ddpm = DiffusionModule(UNet(**SMALL_UNET).eval(), DDPMScheduler(20, 1e-4, 0.02, "cosine", "large"), "x0")
    ddpm.save(tmp_path / "model.ckpt")
    return ddpm, tmp_path / "model.ckpt"


def with_change(path, change):
    """Let a checkpoint say something else."""
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(version=9), "version 9 of a checkpoint, this program reads 1"),
        (lambda c: c.update(version=torch.zeros(3)), "this program reads 1"),
        (lambda c: c.pop("version"), "version None"),
        (lambda c: c.update(format="ddpm-2d"), "not a checkpoint of this program"),
        (lambda c: c.pop("format"), "not a checkpoint of this program"),
        (lambda c: c.pop("predictor"), "does not fit"),
        (lambda c: c.update(predictor="velocity"), "unknown predictor 'velocity'"),
        (lambda c: c.update(predictor=["x0"]), "unknown predictor"),
        (lambda c: c["network"].update(ch=64), "of another shape"),
        (lambda c: c["network"].update(ch=10**12), "ch must be made of whole numbers from 1 to 2048"),
        (lambda c: c["network"].update(num_res_blocks=10**9), "num_res_blocks must be"),
        (lambda c: c["network"].update(image_resolution=2**30), "image_resolution must be"),
        (lambda c: c["network"].update(ch_mult=[1] * 10**6), "does not fit"),
        (lambda c: c["network"].update(ch="32"), "ch must be"),
        (lambda c: c["network"].update(dropout=float("nan")), "shares of 1"),
        (lambda c: c["network"].update(shell="rm"), "unexpected keyword argument 'shell'"),
        (lambda c: c.update(network=None), "does not fit"),
        (lambda c: c["var_scheduler"].update(mode="sigmoid"), "unknown mode"),
        (lambda c: c["var_scheduler"].update(num_train_timesteps=10**13), "num_train_timesteps must be"),
        (lambda c: c["var_scheduler"].update(beta_T=2.0), "betas must satisfy"),
        (lambda c: c["state_dict"].popitem(), "1 weights are missing, too many or of another shape"),
        (lambda c: c["state_dict"].update(more=torch.zeros(1)), "too many or of another shape: more"),
        (lambda c: c["state_dict"].update({"head.bias": torch.zeros(31)}), "of another shape: head.bias"),
        (lambda c: c["state_dict"].update({"head.bias": torch.zeros(32).double()}), "of another shape: head.bias"),
        (lambda c: c["state_dict"].update({"head.bias": torch.zeros(32).to_sparse()}), "or a damaged one"),
        (lambda c: c["state_dict"].update({"head.bias": [0.0] * 32}), "state_dict must hold tensors"),
        (lambda c: c["state_dict"].update({"head.bias": torch.zeros(1).expand(10**12)}), "larger than the file"),
        (lambda c: c["state_dict"]["head.bias"].fill_(float("nan")), "not finite: head.bias"),
        (lambda c: c.update(state_dict=3), "state_dict must hold tensors"),
    ],
)
def test_contradictions_are_refused_in_one_line(saved, change, words):
    ddpm, path = saved
    with_change(path, change)
    network, started = ddpm.network, time.monotonic()
    with pytest.raises(ValueError, match=words) as refusal:
        ddpm.load(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
    assert ddpm.network is network
    assert time.monotonic() - started < 20


def zipped(path, content, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)


def torchscript(path, _):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path)


def compressed(path, whole):
    """The very contents of a good checkpoint, but packed: it could unpack to any size."""
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part))


class Large:
    """A few bytes of a pickle that become a gigabyte when it is read."""

    def __reduce__(self):
        return bytearray, (10**9,)


# Each makes a file at `path`; `whole` is a good checkpoint, and `witness` what code of the file would make.
HOSTILE = {
    "nothing": lambda path, whole: path.write_bytes(b""),
    "text": lambda path, whole: path.write_text("hello\n" * 1000),
    "a picture": lambda path, whole: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000)),
    "half a checkpoint": lambda path, whole: path.write_bytes(whole[: len(whole) // 2]),
    "the other half": lambda path, whole: path.write_bytes(whole[len(whole) // 2 :]),
    "all but a byte": lambda path, whole: path.write_bytes(whole[:-1]),
    "an empty archive": lambda path, whole: zipfile.ZipFile(path, "w").close(),
    "an archive of nonsense": lambda path, whole: zipped(path, os.urandom(1000)),
    "a packed bomb": lambda path, whole: zipped(path, bytes(10**8)),
    "a packed checkpoint": compressed,
    "TorchScript": torchscript,
    "a folder": lambda path, whole: path.mkdir(),
    "a pipe": lambda path, whole: os.mkfifo(path),
    "a link to itself": lambda path, whole: path.symlink_to(path),
    "a link to nothing": lambda path, whole: path.symlink_to("nothing"),
    "another program's tensors": lambda path, whole: torch.save({"model": torch.zeros(3)}, path),
    "a gigabyte in a line": lambda path, whole: torch.save({"format": "ddpm-image", "version": 1, "a": Large()}, path),
    "a list": lambda path, whole: torch.save([1, 2], path),
    "a whole module": lambda path, whole: torch.save(torch.nn.Linear(1, 1), path),
    "code in a pickle": lambda path, whole: path.write_bytes(pickle.dumps(Harmful(path.parent / "witness"))),
    "code in an archive": lambda path, whole: torch.save(
        {"format": "ddpm-image", "version": 1, "network": Harmful(path.parent / "witness")}, path
    ),
    "code in the old format": lambda path, whole: torch.save(
        {"format": "ddpm-image", "state_dict": Harmful(path.parent / "witness")},
        path,
        _use_new_zipfile_serialization=False,
    ),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
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


def test_the_harm_is_real(tmp_path):
    """What the tests above would notice."""
    path = tmp_path / "evil.ckpt"
    HOSTILE["code in a pickle"](path, b"")
    pickle.loads(path.read_bytes())
    assert (tmp_path / "witness").exists()


def damages(content, chance):
    """A damaged copy of a file: bits flipped, bytes overwritten, cut out, doubled, or the end cut off."""
    damaged = bytearray(content)
    start = chance.randrange(len(damaged))
    length = min(chance.choice([1, 1, 4, 100, 5000]), len(damaged) - start)
    kind = chance.choice(["flip", "overwrite", "zero", "remove", "double", "cut"])
    if kind == "flip":
        damaged[start] ^= 1 << chance.randrange(8)
    elif kind == "overwrite":
        damaged[start : start + length] = chance.randbytes(length)
    elif kind == "zero":
        damaged[start : start + length] = bytes(length)
    elif kind == "remove":
        del damaged[start : start + length]
    elif kind == "double":
        damaged[start:start] = damaged[start : start + length]
    else:
        del damaged[start:]
    return bytes(damaged)


@pytest.mark.parametrize("tries", [150, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_unharmed(tmp_path, tries):
    """A damage may hit what does not matter; then the weights are those of the whole file. Anything else is refused."""
    network = UNet(**SMALL_UNET)
    path = tmp_path / "model.ckpt"
    DiffusionModule(network, DDPMScheduler(20, 1e-4, 0.02)).save(path)
    whole = path.read_bytes()
    # Most of the file is weights: half of the damages go to the rest, where the structure is.
    weights = len(whole) - 20_000
    chance = random.Random(0)
    refusals = 0
    for _ in range(tries):
        if chance.random() < 0.5:
            path.write_bytes(damages(whole, chance))
        else:
            path.write_bytes(whole[:weights] + damages(whole[weights:], chance))
        try:
            checkpoint = read_checkpoint(path)
        except ValueError as refusal:
            assert str(path) in str(refusal)
            refusals += 1
        else:
            assert all(torch.equal(w, checkpoint["state_dict"][name]) for name, w in network.state_dict().items())
    assert refusals > 0.8 * tries
    print(f"{refusals} of {tries} damaged files refused, the others unharmed")


def test_what_is_not_finite_is_not_written(tmp_path):
    ddpm = DiffusionModule(UNet(**SMALL_UNET), DDPMScheduler(20, 1e-4, 0.02))
    ddpm.save(tmp_path / "model.ckpt")
    before = (tmp_path / "model.ckpt").read_bytes()
    with torch.no_grad():
        ddpm.network.head.bias[3] = float("inf")
    with pytest.raises(ValueError, match=r"not finite: head\.bias"):
        write_checkpoint(ddpm.checkpoint(), tmp_path / "model.ckpt")
    assert (tmp_path / "model.ckpt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]
