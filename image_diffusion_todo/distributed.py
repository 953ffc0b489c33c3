"""Several processes, one for each device, started by `torchrun --nproc_per_node N`; one process is the case N = 1."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from cli import select_device


class Distributed:
    """What the processes of a program tell each other.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        local_rank: number of this process among those on the same machine, and so of its GPU.
    """

    def __init__(self) -> None:
        # Schedulers of clusters set some of these too, for programs that they start once.
        told = os.environ if dist.is_torchelastic_launched() else {}
        self.rank = int(told.get("RANK", 0))
        self.size = int(told.get("WORLD_SIZE", 1))
        self.local_rank = int(told.get("LOCAL_RANK", 0))

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def tqdm_options(self) -> dict[str, bool]:
        """For tqdm: only the first process shows a bar."""
        return {} if self.is_rank_zero else {"disable": True}

    def device(self, name: str, gpu: int) -> torch.device:
        """The device that `--device` and `--gpu` mean; of several processes each has the GPU of its own number.

        Raises:
            ValueError: for a device or an index that is not there.
        """
        return select_device(name, self.local_rank if self.size > 1 and torch.cuda.is_available() else gpu)

    def connect(self, device: torch.device) -> None:
        """Find the other processes. Gradients of GPUs go over NCCL, everything else over gloo."""
        if self.size > 1:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            # The first process draws pictures while the others wait for its next gradient.
            dist.init_process_group(backend, timeout=timedelta(hours=12))

    def close(self) -> None:
        """Part from the other processes."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def share(self) -> slice:
        """This process's share of a sequence that all have: every size-th item."""
        return slice(self.rank, None, self.size)

    def on_rank_zero(self, call: Callable[[], Any]) -> Any:
        """What `call` returns in the first process, the only one that calls it.

        Raises:
            ValueError, OSError: those of `call`, in the first process; the others end without a word then.
        """
        if self.size == 1:
            return call()
        outcome = [None]
        if self.is_rank_zero:
            try:
                outcome = [call()]
            except (ValueError, OSError) as error:
                outcome = [error]
        dist.broadcast_object_list(outcome, src=0)
        if isinstance(outcome[0], Exception):
            if self.is_rank_zero:
                raise outcome[0]
            raise SystemExit(2)
        return outcome[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over all processes of a tensor on the CPU."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()
