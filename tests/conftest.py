"""One pytest run for two programs that share module names.

Both task folders hold a `dataset.py` and a `network.py` and import their neighbours by bare
name, since their commands run from inside the folder. In one process, the first `import
network` would decide for both. So everything below `tests/task1` is imported and run with the
first folder on `sys.path`, and everything below `tests/task2` with the second; in between, the
folder's modules are taken out of `sys.modules` and kept, and put back for the next test of
the same task. A test file therefore says `from ddpm import DiffusionModule`, like any script in the
folder, and the order of the tests does not matter.
"""

import importlib.util
import re
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")
torch.set_num_threads(1)  # the tests' tensors are small: more threads would only wait for each other

ROOT = Path(__file__).parent.parent
FOLDERS = {"task1": ROOT / "2d_plot_diffusion_todo", "task2": ROOT / "image_diffusion_todo"}
_modules: dict[str, dict] = {task: {} for task in FOLDERS}


@contextmanager
def _bare_names_for(path: Path) -> Iterator[None]:
    """Let bare imports mean the folder that the tests at `path` belong to."""
    task = next((task for task in FOLDERS if ROOT / "tests" / task in [path, *path.parents]), None)
    if task is None:
        yield
        return
    folder = str(FOLDERS[task])
    sys.path.insert(0, folder)
    sys.modules.update(_modules[task])
    try:
        yield
    finally:
        sys.path.remove(folder)
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(folder):
                _modules[task][name] = sys.modules.pop(name)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    with _bare_names_for(collector.path):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    with _bare_names_for(item.path):
        return (yield)


@pytest.fixture(autouse=True)
def _alike():
    """Every test starts from the same random state and drawing settings, whichever ran before."""
    np.random.seed(0)
    torch.manual_seed(0)
    with matplotlib.rc_context():
        yield


@pytest.fixture
def load_report(request) -> Callable[[str], ModuleType]:
    """Import a program of report/ by its name; what it puts on `sys.path` is taken off again."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, request.config.rootpath / "report" / f"{name}.py")
        program = importlib.util.module_from_spec(spec)
        path = sys.path.copy()
        spec.loader.exec_module(program)
        sys.path[:] = path
        return program

    return load


@pytest.fixture
def task_folder(request) -> Path:
    """The folder whose programs the test is about."""
    return next(folder for task, folder in FOLDERS.items() if ROOT / "tests" / task in request.path.parents)


@pytest.fixture
def program(task_folder, tmp_path, monkeypatch, capsys):
    """Run a program of the task's folder as `__main__`, with `tmp_path` as the working directory.

    In this process, since importing PyTorch anew takes seconds. Gives what a subprocess would: returncode,
    stdout, stderr (without the progress bars). A warning is an error.
    """
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                runpy.run_path(str(task_folder / name), run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        said = capsys.readouterr()
        lines = re.split(r"[\r\n]+", said.err.replace("\x1b[A", ""))  # how tqdm goes back to an outer bar
        lines = [line for line in lines if line.strip() and not re.search(r"\d%\||/s\]", line)]
        return SimpleNamespace(returncode=code, stdout=said.out, stderr="\n".join(lines))

    return run
