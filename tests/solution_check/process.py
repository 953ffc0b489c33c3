"""Run a student's code in a process of its own, which is restarted when it hangs or dies."""

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

START_SECONDS = 120  # to import PyTorch
TRAINING_SECONDS = 1200


@dataclass
class Row:
    """The verdict on one function, or on a file that cannot be imported."""

    task: int
    todo: str
    function: str
    checks: int
    verdict: str = "crashed"  # or: right, wrong, not written yet
    held: int = 0  # of the checks
    details: list[dict[str, str]] = field(default_factory=list)  # of those that do not hold
    note: str = ""

    @property
    def key(self) -> str:
        """A name that no other row has."""
        return f"{self.task}: {self.function}"

    def seconds(self, limit: float) -> float:
        """How long it may take."""
        is_file = self.function.endswith(".py")  # libraries may be slow to import
        return TRAINING_SECONDS if self.function == "training" else 3 * limit if is_file else limit


def run_tasks(tasks: dict[int, Path], limit: float, train: bool = False) -> list[Row]:
    """Judge the folders of some tasks. What takes more than `limit` seconds, or ends the process, has crashed."""
    rows: list[Row] = []
    while not asyncio.run(_judge(tasks, limit, train, rows)):
        pass
    return rows


async def _judge(tasks: dict[int, Path], limit: float, train: bool, rows: list[Row]) -> bool:
    """Add to `rows` what is not there yet, from one process; whether that came to its end."""
    job = [[task, str(folder)] for task, folder in tasks.items()], train, [row.key for row in rows]
    settings = {"PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    settings |= {"CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1", "MPLBACKEND": "Agg"}
    settings |= {} if train else {"OMP_NUM_THREADS": "1"}
    command = sys.executable, "-m", "solution_check.worker", json.dumps(job)
    nothing, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
    streams = {"stdin": nothing, "stdout": pipe, "stderr": nothing, "limit": 2**20}
    process = await asyncio.create_subprocess_exec(
        *command, **streams, env=os.environ | settings, start_new_session=True
    )
    current, seconds = None, START_SECONDS
    try:
        while line := await asyncio.wait_for(process.stdout.readline(), seconds):
            kind, row = json.loads(line)
            if kind == "end":
                return True
            row = Row(**row)
            if kind == "row":
                rows.append(row)
            else:
                current, seconds = row, row.seconds(limit)
        problem = f"the process ended (exit code {await process.wait()})"
    except asyncio.TimeoutError:
        problem = f"did not end within {seconds:g} s"
    finally:
        with suppress(ProcessLookupError, PermissionError):  # all of it has ended
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        await process.wait()
    if current is None:
        raise RuntimeError(f"the checks did not start: {problem}")
    current.note = problem
    rows.append(current)
    return False
