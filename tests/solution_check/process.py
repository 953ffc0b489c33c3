"""Run a student's code in a process of its own, which is started anew where it hangs or ends."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, field
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

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def run_tasks(tasks: dict[int, Path], limit: float, train: bool = False) -> list[Row]:
    """Judge the folders of some tasks. What takes more than `limit` seconds, or ends the process, has crashed."""
    rows: list[Row] = []
    finished: list[str] = []
    while True:
        process = _start(tasks, train, finished)
        lines: queue.Queue = queue.Queue()
        threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
        current, seconds = None, START_SECONDS
        try:
            while (line := lines.get(timeout=seconds))[0] != "end":
                kind, row = line[0], Row(**line[1])
                if kind == "row":
                    rows.append(row)
                else:
                    current, seconds = row, limit
                    if row.function == "training":
                        seconds = TRAINING_SECONDS
                    elif row.function.endswith(".py"):  # libraries may be slow to import
                        seconds = 3 * limit
                if not row.function.endswith(".py") or kind == "row":  # a file must be imported anew
                    finished.append(row.key)
            if line[1] == "all":
                return rows
            problem = f"the process ended (exit code {process.wait()})"
        except queue.Empty:
            problem = f"did not end within {seconds:g} s"
        finally:
            _kill(process)
        if current is None:
            raise RuntimeError(f"the checks did not start: {problem}")
        current.note = problem
        rows.append(current)
        finished.append(current.key)


def _start(tasks: dict[int, Path], train: bool, finished: list[str]) -> subprocess.Popen:
    job = json.dumps([[[task, str(folder)] for task, folder in tasks.items()], train, finished])
    settings = {"PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    settings |= {"CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1", "MPLBACKEND": "Agg"}
    settings |= {} if train else {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "solution_check.worker", job],
        env=os.environ | settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        encoding="utf-8",
    )


def _read(stream, lines: queue.Queue) -> None:
    for line in stream:
        lines.put(json.loads(line))
    lines.put(("end", "early"))


def _kill(process: subprocess.Popen) -> None:
    """End the process and what it started."""
    with suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
