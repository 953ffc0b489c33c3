"""Read checkpoints of the lab's skeleton, and bare state dicts of its network, as data.

The skeleton pickles whole modules: {"hparams": {"network": ..., "var_scheduler": ...}, "state_dict": ...}. Its weights
have the names and shapes of `UNet`. Only tensors are read. Every other name in the pickle becomes an `Inert` object,
so no code of the file runs. The schedule follows from the betas in it; what its network predicts does not.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoint import FORMAT, TENSOR_GLOBALS, VERSION, archive_globals, check_contents, open_checkpoint
from cli import UserError
from scheduler import MAX_TIMESTEPS, MODES, beta_schedule

# Types that torch.load builds itself and a pickled module may hold; not bytearray, say, which may have any size.
PLAIN_GLOBALS = TENSOR_GLOBALS | {f"torch {kind}Storage" for kind in ("Bool", "Int", "Short", "Char")}
PLAIN_GLOBALS |= {"torch._utils _rebuild_parameter", "__builtin__ set", "torch Size", "torch device"}
MAX_BETA_DIFFERENCE = 1e-4  # a cosine schedule in float32 is off by 2e-5


class Inert:
    """Stands in for an object of a class that the file names; accepts any arguments and attributes."""

    def __init__(self, *args: object):
        pass


def read_lab_checkpoint(
    path: Path, predictor: str | None = None, mode: str | None = None, beta_1: float = 1e-4, beta_T: float = 0.02
) -> dict | None:
    """The contents of a lab checkpoint in the form of `read_checkpoint`; None for any other file.

    mode, beta_1 and beta_T are the schedule of a bare state dict, which has 1000 steps; a whole checkpoint has its own.
    UserError when the predictor or the schedule is unknown, or the network is not one of `UNet`.
    """
    try:
        content = _load_inert(path)
        if content.get("format") == FORMAT:  # ours, and refused for a reason
            return None
        content = content if "state_dict" in content else {"state_dict": content}
        state = {name: tensor.detach() for name, tensor in content["state_dict"].items()}
        weights = {n.removeprefix("network."): w for n, w in state.items() if not n.startswith("var_scheduler.")}
        ch = len(weights["head.weight"])
    except Exception:  # on arbitrary bytes the readers fail in many ways
        return None
    if predictor is None:
        raise UserError(f"argument --predictor: required, since {path} does not say what its network predicts")
    try:
        if ch < 128:
            raise ValueError(f"the groups of its normalisation differ from ours for {ch} channels, fewer than 128")
        hparams = content.get("hparams", {})
        buffers = getattr(hparams.get("var_scheduler"), "_buffers", {})
        betas = state.get("var_scheduler.betas", buffers.get("betas"))
        if betas is not None:
            schedule = _schedule_of(betas, state.get("var_scheduler.sigmas", buffers.get("sigmas")))
        elif mode is not None:
            schedule = {"num_train_timesteps": 1000, "mode": mode, "beta_1": beta_1, "beta_T": beta_T}
        else:
            raise ValueError("--mode is required, since the file has no schedule")
        network = _network_of(weights) | {"T": schedule["num_train_timesteps"]}
        network["image_resolution"] = getattr(hparams.get("network"), "image_resolution", 64)
        checkpoint = {"format": FORMAT, "version": VERSION, "network": network, "var_scheduler": schedule}
        checkpoint |= {"predictor": predictor, "state_dict": weights}
        check_contents(checkpoint, path.stat().st_size)
    except Exception as error:  # tensors of any name and shape may stand where weights should
        raise UserError(f"{path}: not a lab checkpoint that this program can use: {error}") from error
    return checkpoint


def _load_inert(path: Path) -> dict[str, Any]:
    with open_checkpoint(path) as file:
        names = archive_globals(file)
        inert = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        if unexpected := {name for name in names if name.replace(" ", ".") not in inert} - PLAIN_GLOBALS:
            raise ValueError(f"names {min(unexpected)}")
        file.seek(0)
        with torch.serialization.safe_globals([(Inert, name) for name in inert]):
            return torch.load(file, map_location="cpu", weights_only=True)


def _schedule_of(betas: Tensor, sigmas: Tensor | None) -> dict[str, Any]:
    """The arguments of the `DDPMScheduler` with these betas and sigmas [T]."""
    if betas.numel() > MAX_TIMESTEPS:
        raise ValueError(f"its schedule has more than {MAX_TIMESTEPS} timesteps")
    beta_1, beta_T = (float(f"{betas[i].item():.6g}") for i in (0, -1))  # 1e-4, not its float32 value

    def difference(mode: str) -> float:
        return (beta_schedule(len(betas), beta_1, beta_T, mode) - betas).abs().max().item()

    mode = min(MODES, key=difference)
    if not difference(mode) <= MAX_BETA_DIFFERENCE:
        raise ValueError(f"its schedule is none of {', '.join(MODES)}: {mode} differs by up to {difference(mode):.2g}")
    schedule = {"num_train_timesteps": len(betas), "mode": mode}
    if mode != "cosine":
        schedule |= {"beta_1": beta_1, "beta_T": beta_T}
    is_large = sigmas is not None and torch.allclose(sigmas, betas.sqrt(), atol=1e-4)
    return schedule | {"sigma_type": "large" if is_large else "small"}


def _network_of(weights: dict[str, Tensor]) -> dict[str, Any]:
    """The arguments of the `UNet` with these weights, except T and image_resolution."""
    ch, in_ch = weights["head.weight"].shape[:2]
    levels: list[list[str]] = [[]]
    for i in sorted({int(name.split(".")[1]) for name in weights if name.startswith("downblocks.")}):
        if f"downblocks.{i}.main.weight" in weights:  # from one level to the next
            levels.append([])
        else:
            levels[-1].append(f"downblocks.{i}")
    network = {
        "ch": ch,
        "ch_mult": [len(weights[f"{level[0]}.block1.2.weight"]) // ch for level in levels],
        "attn": [k for k, level in enumerate(levels) if f"{level[0]}.attn.proj_q.weight" in weights],
        "num_res_blocks": len(levels[0]),
        "patch_size": math.isqrt(in_ch // 3),
    }
    if "class_embedding.weight" in weights:
        network |= {"use_cfg": True, "num_classes": len(weights["class_embedding.weight"]) - 1}
    return network
