"""Programs of Task 2 in processes of their own that can be killed, at the price of a fork rather than of an import.

A server process imports PyTorch once; each program then runs in a fork of it.
"""

import multiprocessing
import os
import resource
import runpy
import socket
import sys
from pathlib import Path

PROGRAMS = Path(__file__).parent.parent / "image_diffusion_todo"
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torchvision.utils", "matplotlib.pyplot", "tqdm", "PIL.Image"])


def _run(
    name: str, arguments: list[str], place: str, log: str, largest_file: int | None, environment: dict[str, str]
) -> None:
    os.chdir(place)
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ["TQDM_DISABLE"] = "1"
    import torch

    torch.set_num_threads(1)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.path.insert(0, str(PROGRAMS))
    sys.argv = [name, *arguments]
    runpy.run_path(str(PROGRAMS / name), run_name="__main__")


class Program:
    """A program that runs; `largest_file` in bytes makes the disk seem full to whoever writes a larger one."""

    def __init__(
        self, name: str, *arguments: object, place: Path, largest_file: int | None = None, **environment: object
    ):
        self.log = place / f"log{environment.get('RANK', '')}"
        arguments = [str(a) for a in arguments]
        environment = {key: str(value) for key, value in environment.items()}
        details = name, arguments, str(place), str(self.log), largest_file, environment
        self.process = _context.Process(target=_run, args=details, daemon=True)
        self.process.start()

    def kill(self, after: float) -> bool:
        """Wait so many seconds, then kill -9; whether it was still running."""
        self.process.join(after)
        self.process.kill()
        self.process.join()
        return self.process.exitcode == -9

    def finish(self) -> int:
        """Wait for its end, five minutes at most; the exit code."""
        self.process.join(300)
        self.process.kill()
        self.process.join()
        return self.process.exitcode

    @property
    def output(self) -> str:
        """Everything that it printed."""
        return self.log.read_text()


def start_together(size: int, name: str, *arguments: object, place: Path) -> list[Program]:
    """A program in several processes that find each other, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    return [Program(name, *arguments, place=place, RANK=r, LOCAL_RANK=r, **common) for r in range(size)]
