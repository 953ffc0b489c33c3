"""Optimisations that change precision and order of summation only, one per function (see `benchmarks/training.py`)."""

import importlib.util
import shutil

import torch
from torch import nn

PRECISIONS = ("auto", "bf16", "fp32")
AUTO_ON_OFF = ("auto", "on", "off")


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether convolutions and matrix products run in bfloat16; "auto": where the hardware supports it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # CPUs without such units emulate bfloat16, twenty times slower.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return device.type == "cpu" and any(check is not None and check() for check in checks)


def place_network(network: nn.Module, device: torch.device, bf16: bool = False) -> nn.Module:
    """Move the network to a device, in channels-last memory format, and allow TF32 products on NVIDIA GPUs.

    On a CPU in bfloat16 the memory format stays contiguous: `nn.GroupNorm` is several times slower there in
    channels-last, which costs more than the convolutions of a narrow network gain.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    contiguous = device.type == "cpu" and bf16
    return network.to(device, memory_format=torch.contiguous_format if contiguous else torch.channels_last)


def should_compile(switch: str, device: torch.device, num_calls: int) -> bool:
    """Whether to compile; "auto": on GPUs, if there are enough calls of the network to make up for it."""
    if switch != "auto":
        return switch == "on"
    if device.type != "cuda" or num_calls < 2000 or torch.cuda.get_device_capability(device) < (7, 0):
        return False  # Triton needs at least Volta
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, ("cc", "gcc", "clang")))


def compile_network(network: nn.Module, cuda_graph: bool = True) -> nn.Module:
    """Compile the network in place, on a GPU to one CUDA graph unless told otherwise. The first call takes minutes."""
    network.compile(mode="reduce-overhead" if cuda_graph else "default", dynamic=False)
    return network


def adam(parameters: list[nn.Parameter], lr: float, device: torch.device) -> torch.optim.Adam:
    """Adam, with one fused kernel for all parameters where the device has it."""
    return torch.optim.Adam(parameters, lr=lr, fused=device.type in ("cpu", "cuda"))
