"""The state of optimizer and random generators, as a checkpoint keeps it."""

from typing import Any

import numpy as np
import torch


def load_optimizer(optimizer: torch.optim.Adam, state: dict[str, Any]) -> None:
    """Restore Adam's moments; ValueError for moments that do not fit or are not finite."""
    groups = optimizer.state_dict()["param_groups"]  # whether Adam is fused depends on the device
    weights = optimizer.param_groups[0]["params"]
    for index, moments in state["state"].items():
        for name, like in [("step", torch.zeros(())), ("exp_avg", weights[index]), ("exp_avg_sq", weights[index])]:
            if moments[name].shape != like.shape or not moments[name].isfinite().all():
                raise ValueError(f"the optimizer's {name} of parameter {index} does not fit")
            # Fused Adam needs moments and weights in the same memory format.
            moments[name] = torch.empty_like(like).copy_(moments[name])
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of all random generators that training on a device uses, as plain data."""
    kind, keys, *rest = np.random.get_state()
    return {
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "mps": torch.mps.get_rng_state() if device.type == "mps" else None,
    }


def restore_random_states(states: dict[str, Any], device: torch.device) -> None:
    """The reverse of `random_states`. A generator of another kind of device stays unchanged."""
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    if states.get("mps") is not None and device.type == "mps":  # older checkpoints have none
        torch.mps.set_rng_state(states["mps"])
