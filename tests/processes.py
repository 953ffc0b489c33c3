"""Programs of Task 2 in processes of their own that can be killed, at the price of a fork rather than of an import.

A server process imports PyTorch once; each program then runs in a fork of it.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
from pathlib import Path

PROGRAMS = Path(__file__).parent.parent / "image_diffusion_todo"
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torchvision.utils", "matplotlib.figure", "tqdm", "PIL.Image"])


def _run(name: str, arguments: list[str], place: str, log: str, environment: dict[str, str]) -> None:
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under `nohup`, too
    os.chdir(place)
    os.environ.update(environment)
    # A terminal that is opened to be read, too, becomes that of the program.
    descriptor = os.open(log, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    import torch

    torch.set_num_threads(1)
    sys.path.insert(0, str(PROGRAMS))
    sys.argv = [name, *arguments]
    runpy.run_path(str(PROGRAMS / name), run_name="__main__")


class Program:
    """A program that runs.

    Args:
        place: the working directory.
        log: where the output goes; a name is a file of that folder.
        environment: further variables.
    """

    def __init__(self, name: str, *arguments: object, place: Path, log: str | Path = "log", **environment: object):
        self.log = place / log
        environment = {key: str(value) for key, value in environment.items()}
        details = name, [str(a) for a in arguments], str(place), str(self.log), environment
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
        self.kill(after=300)
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
    return [
        Program(name, *arguments, place=place, log=f"log{rank}", RANK=rank, LOCAL_RANK=rank, **common)
        for rank in range(size)
    ]
