"""Checkpoint files: plain numbers and tensors from which a model or a whole run can be rebuilt.

    python checkpoint.py results/predictor_noise/beta_linear/11-23-204512/last.ckpt --out cats.ckpt --half

writes only the weights to sample from, in half precision: about an eighth of the size.

    format, version     "ddpm-image" and the version of this list
    network             the arguments of `UNet`
    var_scheduler       the arguments of `DDPMScheduler`
    predictor           "noise", "x0" or "mean"
    parametrization     "direct" (the default) or "preconditioned"
    classes             names of the labels 1, 2, ..., or None (the default)
    state_dict          the weights to sample from, float32 or float16
    training            only in those of train.py: see `Trainer.save`

A checkpoint may come from an untrusted source. Reading one runs no code of the file and takes memory in proportion to
its size. All its values are checked, and so is the checksum of each part.
"""

import os
import pickletools
import reprlib
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from atomic import atomic_write
from cli import ArgumentParser, UserError, exit_on_user_error, writable_file
from network import UNet
from prediction import PARAMETRIZATIONS
from scheduler import PREDICTORS, DDPMScheduler

FORMAT, VERSION = "ddpm-image", 1
TENSOR_GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}
TENSOR_GLOBALS |= {f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Byte", "Long")}


def write_checkpoint(checkpoint: dict, path: str | os.PathLike) -> None:
    """Write a checkpoint; UserError when a weight is not finite. An error leaves an existing file as it is."""
    _check_finite(checkpoint)
    with atomic_write(Path(path)) as file:
        torch.save({"format": FORMAT, "version": VERSION} | checkpoint, file)


def read_checkpoint(path: str | os.PathLike) -> dict:
    """The contents of a checkpoint, on the CPU, its weights in float32; UserError for a damaged file or another one."""
    path = Path(path)
    with open_checkpoint(path) as file:
        try:
            if unexpected := archive_globals(file) - TENSOR_GLOBALS:  # torch.load alone takes, say, a huge bytearray
                raise ValueError(f"names {min(unexpected)}")
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # on arbitrary bytes the readers fail in many ways, IndexError among them
            raise UserError(f"{path}: not a checkpoint of this program, or a damaged one") from error
    try:
        check_contents(checkpoint, path.stat().st_size)
    except Exception as error:  # plain data of any kind may stand where numbers should
        raise UserError(f"{path}: not a checkpoint that this program can use: {error}") from error
    return checkpoint


def build_network(checkpoint: dict) -> UNet:
    """The network of a checkpoint from `read_checkpoint`, with its weights."""
    network = UNet(**checkpoint["network"])
    network.load_state_dict(checkpoint["state_dict"])
    return network


def open_checkpoint(path: Path) -> BinaryIO:
    """Open a file to read; UserError for anything else, such as a pipe, on which reading would block."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a file")
    return path.open("rb")


def archive_globals(file: BinaryIO) -> set[str]:
    """The global names in the pickle of a file that torch.save wrote.

    Fails, in many ways, on a file that is damaged, of another kind, or compressed (and so of any real size).
    """
    names = set()
    with zipfile.ZipFile(file) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise ValueError("compressed")
        if damaged := archive.testzip():  # torch.load does not verify the checksums
            raise ValueError(f"{damaged} is damaged")
        for part in archive.namelist():
            if part.endswith("data.pkl"):
                for operation, argument, _ in pickletools.genops(archive.read(part)):
                    if operation.name in ("STACK_GLOBAL", "INST", "OBJ"):
                        raise ValueError(operation.name)
                    if operation.name == "GLOBAL":
                        names.add(argument)
    file.seek(0)
    return names


def check_contents(checkpoint: dict, file_size: int) -> None:
    """Check that no part is missing, that they fit together and in the file's size; convert the weights to float32."""
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise ValueError("it has another format")
    if checkpoint.get("version") != VERSION:
        raise ValueError(f"its version is {reprlib.repr(checkpoint.get('version'))}, not {VERSION}")
    checkpoint.setdefault("parametrization", "direct")
    for name, known in [("predictor", PREDICTORS), ("parametrization", PARAMETRIZATIONS)]:
        if checkpoint[name] not in known:
            raise ValueError(f"unknown {name} {reprlib.repr(checkpoint[name])}")
    classes = checkpoint.setdefault("classes", None)
    if classes is not None and not (
        isinstance(classes, list)
        and all(isinstance(name, str) for name in classes)
        and len(classes) == checkpoint["network"]["num_classes"]
    ):
        raise ValueError(f"classes are not its network's: {reprlib.repr(classes)}")
    DDPMScheduler(**checkpoint["var_scheduler"])
    with torch.device("meta"):  # shapes only: the sizes may be absurd
        expected = UNet(**checkpoint["network"]).state_dict()
    checkpoint["state_dict"] = _check_weights(checkpoint["state_dict"], expected, file_size)
    if "training" in checkpoint:
        _check_weights(checkpoint["training"]["network"], expected, file_size)


def _check_weights(weights: dict, expected: dict[str, Tensor], file_size: int) -> dict[str, Tensor]:
    if not isinstance(weights, dict) or not all(type(w) is Tensor for w in weights.values()):
        raise ValueError("state_dict must hold tensors")
    if sum(w.numel() * w.element_size() for w in weights.values()) > file_size:
        raise ValueError("state_dict is larger than the file")
    weights = {name: w.float() if w.dtype == torch.float16 else w for name, w in weights.items()}
    needed, found = ({(n, w.shape, w.dtype, w.layout) for n, w in part.items()} for part in (expected, weights))
    if wrong := needed ^ found:
        raise ValueError(f"weights are missing, too many or of another shape: {min(str(name) for name, *_ in wrong)}")
    _check_finite(weights)
    return weights


def _check_finite(part: dict) -> None:
    """UserError for a tensor that holds NaN or infinities, anywhere in nested dictionaries."""
    for name, value in part.items():
        if isinstance(value, dict):
            _check_finite(value)
        elif isinstance(value, Tensor) and not value.isfinite().all():
            raise UserError(f"weights are not finite: {name}")


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of train.py")
    parser.add_argument("--out", type=writable_file, required=True, metavar="FILE", help="checkpoint to write")
    parser.add_argument("--half", action="store_true", help="in half precision")
    args = parser.parse_args()
    with exit_on_user_error():
        if args.out.exists() and args.out.samefile(args.checkpoint):  # the state of training would be lost
            raise UserError(f"argument --out: {args.out} is the checkpoint itself: choose another file")
        checkpoint = read_checkpoint(args.checkpoint)
        checkpoint.pop("training", None)
        if args.half:
            checkpoint["state_dict"] = {name: w.half() for name, w in checkpoint["state_dict"].items()}
        write_checkpoint(checkpoint, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
