"""What makes the same computation faster, each lever in one function.

None of them changes a formula: precision and order of summation are all that differs. What each gives is measured by
`benchmarks/training.py`.
"""

import importlib.util
import shutil

import torch
from torch import nn

PRECISIONS = ("auto", "bf16", "fp32")
AUTO_ON_OFF = ("auto", "on", "off")


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether the network's convolutions and matrix products run in bfloat16; "auto": where the hardware has them."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without such units, bfloat16 on a CPU is emulated, and twenty times slower.
    units = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return device.type == "cpu" and any(supported is not None and supported() for supported in units)


def place_network(network: nn.Module, device: torch.device, bf16: bool = False) -> nn.Module:
    """The network on its device, with the channels of a pixel side by side, as fast convolutions read them.

    On a CPU in bfloat16 it keeps PyTorch's usual order: `nn.GroupNorm` takes several times as long there in the other,
    more than the convolutions of a narrow network save. On NVIDIA GPUs, float32 products are taken with factors of
    TF32's 10 bits.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    usual = device.type == "cpu" and bf16
    return network.to(device, memory_format=torch.contiguous_format if usual else torch.channels_last)


def should_compile(switch: str, device: torch.device, num_calls: int) -> bool:
    """Whether to compile; "auto": on GPUs, when there are so many calls of the network that it pays."""
    if switch != "auto":
        return switch == "on"
    has_compiler = importlib.util.find_spec("triton") is not None and any(map(shutil.which, ("cc", "gcc", "clang")))
    return device.type == "cuda" and has_compiler and num_calls >= 2000 and _is_recent(device)


def _is_recent(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (7, 0)  # Volta: Triton knows no older ones


def compile_network(network: nn.Module, cuda_graph: bool = True) -> nn.Module:
    """The network with its operations fused, and on a GPU launched together as one CUDA graph unless told otherwise.

    It shares its weights with `network`. The first call takes a minute or more.
    """
    return torch.compile(network, mode="reduce-overhead" if cuda_graph else "default", dynamic=False)


def adam(parameters: list[nn.Parameter], learning_rate: float, device: torch.device) -> torch.optim.Adam:
    """Adam that updates all parameters in one kernel."""
    return torch.optim.Adam(parameters, lr=learning_rate, fused=device.type in ("cpu", "cuda"))
