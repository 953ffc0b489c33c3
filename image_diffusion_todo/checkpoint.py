"""Checkpoint files: plain numbers and tensors, from which a model or a whole run can be built again.

    format, version     "ddpm-image" and the version of this list
    network             the arguments of `UNet`
    var_scheduler       the arguments of `DDPMScheduler`
    predictor           "noise", "x0" or "mean"
    parametrization     "direct" (also where it is absent) or "preconditioned"
    state_dict          the weights to sample from
    training            only in those that train.py writes: see `Trainer.save`

A checkpoint may come from a stranger. Reading one runs no code of the file, takes no more memory than the file is
large, and does not believe what it says of itself: all of it is checked, and a flipped bit is noticed.
"""

import os
import pickletools
import reprlib
import zipfile
from pathlib import Path

import torch

from atomic import atomic_write
from cli import UserError
from network import UNet
from prediction import PARAMETRIZATIONS
from scheduler import PREDICTORS, DDPMScheduler

FORMAT = "ddpm-image"
VERSION = 1
TENSORS_ARE_MADE_OF = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}
TENSORS_ARE_MADE_OF |= {f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Byte", "Long")}


def write_checkpoint(checkpoint: dict, path: str | os.PathLike) -> None:
    """Write a checkpoint; a file that was there stays until the new one is whole.

    Raises:
        ValueError: when a weight is not finite: such a file would be of no use to anyone.
        OSError: when the file cannot be written.
    """
    _check_finite(checkpoint)
    with atomic_write(Path(path)) as file:
        torch.save({"format": FORMAT, "version": VERSION} | checkpoint, file)


def read_checkpoint(path: str | os.PathLike) -> dict:
    """The contents of a checkpoint, on the CPU.

    Raises:
        OSError: when the file is not there or cannot be read.
        ValueError: when it is not a whole checkpoint of this program; the message names it.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe, say, from which reading would wait for ever
        raise UserError(f"{path}: not a file")
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise UserError(f"{path}: not a checkpoint of this program, or one that was cut off")
        try:
            _check_archive(file)
            file.seek(0)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # on foreign bytes the readers fail in many ways, IndexError among them
            raise UserError(f"{path}: not a checkpoint of this program, or a damaged one") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of this program")
    version = checkpoint.get("version")
    if type(version) is not int or version != VERSION:
        raise UserError(f"{path}: version {reprlib.repr(version)} of a checkpoint, this program reads {VERSION}")
    checkpoint.setdefault("parametrization", "direct")
    try:
        _check_contents(checkpoint, path.stat().st_size)
    except Exception as error:  # plain data of any kind may stand where numbers should
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: what the checkpoint says of itself does not fit: {reason}") from error
    return checkpoint


def build_network(checkpoint: dict) -> UNet:
    """The network of a checkpoint from `read_checkpoint`, with its weights."""
    network = UNet(**checkpoint["network"])
    network.load_state_dict(checkpoint["state_dict"])
    return network


def _check_archive(file: object) -> None:
    """See that a zip file is as torch.save writes it: not compressed, and each part with its checksum."""
    with zipfile.ZipFile(file) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise ValueError("compressed")  # could unpack to any size
        damaged = archive.testzip()  # torch.load itself does not look at the checksums
        if damaged:
            raise ValueError(f"{damaged} is damaged")
        for part in archive.namelist():
            if part.endswith("data.pkl"):
                _check_pickle(archive.read(part))


def _check_pickle(content: bytes) -> None:
    """See that a pickle names nothing but tensors; torch.load would also make, say, a bytearray of any size."""
    for operation, argument, _ in pickletools.genops(content):
        if operation.name in ("STACK_GLOBAL", "INST", "OBJ") or (
            operation.name == "GLOBAL" and argument not in TENSORS_ARE_MADE_OF
        ):
            raise ValueError(f"names {argument}")


def _check_contents(checkpoint: dict, file_size: int) -> None:
    """See that the parts are there, fit together, and are no larger than the file that they came from."""
    with torch.device("meta"):  # shapes only, since nothing says yet that the numbers are sensible
        expected = UNet(**checkpoint["network"]).state_dict()
    _check_weights(checkpoint["state_dict"], expected, file_size)
    if "training" in checkpoint:
        _check_weights(checkpoint["training"]["network"], expected, file_size)
    DDPMScheduler(**checkpoint["var_scheduler"])
    if checkpoint["predictor"] not in PREDICTORS:
        raise ValueError(f"unknown predictor {reprlib.repr(checkpoint['predictor'])}")
    if checkpoint["parametrization"] not in PARAMETRIZATIONS:
        raise ValueError(f"unknown parametrization {reprlib.repr(checkpoint['parametrization'])}")


def _check_weights(weights: dict, expected: dict[str, torch.Tensor], file_size: int) -> None:
    if not isinstance(weights, dict) or not all(type(w) is torch.Tensor for w in weights.values()):
        raise ValueError("state_dict must hold tensors")
    if sum(w.numel() * w.element_size() for w in weights.values()) > file_size:
        raise ValueError("state_dict is larger than the file")
    wrong = [name for name in expected.keys() ^ weights.keys()]
    wrong += [n for n in expected.keys() & weights.keys() if _kind(expected[n]) != _kind(weights[n])]
    if wrong:
        raise ValueError(f"{len(wrong)} weights are missing, too many or of another shape: {min(map(str, wrong))}")
    _check_finite(weights)


def _kind(tensor: torch.Tensor) -> tuple:
    return tensor.shape, tensor.dtype, tensor.layout


def _check_finite(part: dict) -> None:
    """ValueError for a tensor that holds NaN or infinities, anywhere in nested dictionaries."""
    for name, value in part.items():
        if isinstance(value, dict):
            _check_finite(value)
        elif isinstance(value, torch.Tensor) and not value.isfinite().all():
            raise ValueError(f"weights hold numbers that are not finite: {name}")
