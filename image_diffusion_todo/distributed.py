"""Several processes, one per device, started by `torchrun --nproc_per_node N`; a single process is the case N = 1."""

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cli import select_device


class Distributed:
    """This process and its place among those that run the program together.

    Attributes:
        rank: index of this process.
        size: number of processes.
        local_rank: index among the processes of this machine, and of this process's GPU.
        is_rank_zero: whether this is the process that writes and prints.
        share: this process's share of a sequence that all processes have, every size-th item.
        tqdm_options: only rank 0 shows progress bars.
    """

    def __init__(self) -> None:
        # Cluster schedulers set some of these variables too, for programs that they start once.
        environment = os.environ if dist.is_torchelastic_launched() else {}
        self.rank = int(environment.get("RANK", 0))
        self.size = int(environment.get("WORLD_SIZE", 1))
        self.local_rank = int(environment.get("LOCAL_RANK", 0))
        self.is_rank_zero = self.rank == 0
        self.share = slice(self.rank, None, self.size)
        self.tqdm_options = {} if self.is_rank_zero else {"disable": True}

    def device(self, name: str, gpu: int) -> torch.device:
        """The device for `--device` and `--gpu`; with several processes, the GPU of the local rank."""
        return select_device(name, self.local_rank if self.size > 1 and torch.cuda.is_available() else gpu)

    def connect(self, device: torch.device) -> None:
        """Join the process group: NCCL for gradients on GPUs, gloo for everything else."""
        if self.size > 1:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(hours=12))  # the others wait while rank 0 samples

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def on_rank_zero(self, call: Callable[[], Any]) -> Any:
        """Call on rank 0 alone and return the result on all. If it raises, the other ranks exit silently."""
        if self.size == 1:
            return call()
        outcome, error = [None, False], SystemExit(2)
        if self.is_rank_zero:
            try:
                outcome[0] = call()
            except Exception as caught:
                outcome[1], error = True, caught
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1]:
            raise error
        return outcome[0]

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network with the weights of rank 0, whose backward pass averages the gradients of all processes."""
        if self.size == 1:
            return network
        # A flag below has a new name in PyTorch 2.14; the strides of 1x1 kernels are arbitrary.
        for harmless in ("`broadcast_buffers` is deprecated", "Grad strides do not match bucket view strides"):
            warnings.filterwarnings("ignore", harmless)
        # The only buffer, of the time embedding, is constant.
        return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)

    def grad_sync(self, wrapped: nn.Module, last_part: bool) -> AbstractContextManager:
        """The context of a backward pass; only that of a batch's last part averages the gradients."""
        return nullcontext() if last_part or self.size == 1 else wrapped.no_sync()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a CPU tensor over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.mean(torch.tensor(float(flag))))

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()
