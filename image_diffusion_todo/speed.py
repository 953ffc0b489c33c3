"""Optimisations that change precision and order of summation only, one per function (see `benchmarks/training.py`)."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from cli import UserError, note
from training_state import random_states, restore_random_states

Result = TypeVar("Result")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")
AUTO_ON_OFF = ("auto", "on", "off")


def select_precision(name: str, device: torch.device) -> str:
    """Precision of convolutions and matrix products: "bf16", "fp16" or "fp32"; "auto": the first that is fast there."""
    if name != "auto":
        return name
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"  # Ampere, Volta
    # CPUs without such units emulate bfloat16, twenty times slower.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return "bf16" if device.type == "cpu" and any(check is not None and check() for check in checks) else "fp32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which the network is called."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def place_network(network: nn.Module, device: torch.device, precision: str = "fp32") -> nn.Module:
    """Move the network to a device, in channels-last memory format, and allow TF32 products on NVIDIA GPUs.

    On a CPU in half precision the memory format stays contiguous: `nn.GroupNorm` is several times slower there in
    channels-last, which costs more than the convolutions of a narrow network gain.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    contiguous = device.type == "cpu" and precision != "fp32"
    return network.to(device, memory_format=torch.contiguous_format if contiguous else torch.channels_last)


def should_compile(switch: str, device: torch.device, num_calls: int) -> bool:
    """Whether to compile; "auto": on GPUs, if there are enough calls of the network to repay the compilation.

    Raises:
        UserError: for "on" where it is known to fail.
    """
    if switch == "off" or (switch == "auto" and (device.type != "cuda" or num_calls < 2000)):
        return False
    variables = [word for name in ("CC", "CXX") for word in os.environ.get(name, "").split()[:1]]
    missing = None
    if not any(map(shutil.which, ("cc", "gcc", "clang", "c++", "g++", "clang++", "cl", *variables))):
        missing = "a C compiler"
    elif device.type == "cuda" and importlib.util.find_spec("triton") is None:
        missing = "Triton"
    elif device.type == "cuda" and torch.cuda.get_device_capability(device) < (7, 0):
        missing = "a GPU for which Triton compiles"
    if missing and switch == "on":
        raise UserError(f"argument --compile: this machine lacks {missing}")
    return not missing


def compile_network(network: nn.Module, cuda_graph: bool = True) -> None:
    """Compile the network in place; with `cuda_graph`, GPUs run it as one CUDA graph. The first call takes minutes."""
    network.compile(mode="reduce-overhead" if cuda_graph else "default", dynamic=False)


def call_compiled(call: Callable[[], Result], switch: str, device: torch.device) -> Result:
    """Call a function that runs compiled networks; where the compiler fails, call it again without compilation
    and with the same random numbers.

    With the switch "on" that failure is a UserError, with "auto" a note; "off" means that nothing is compiled.
    """
    if switch == "off":
        return call()
    states = random_states(device)
    try:
        return call()
    except Exception as error:
        restore_random_states(states, device)
        with torch.compiler.set_stance("force_eager"):
            result = call()  # an error with another cause occurs again
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        if switch == "on":
            raise UserError(f"argument --compile: compilation failed ({reason})") from error
        torch.compiler.set_stance("force_eager")
        note(f"compilation failed ({reason}); continuing without it")
        return result


def adam(parameters: list[nn.Parameter], lr: float, device: torch.device) -> torch.optim.Adam:
    """Adam, with one fused kernel for all parameters where the device has it."""
    return torch.optim.Adam(parameters, lr=lr, fused=device.type in ("cpu", "cuda"))
