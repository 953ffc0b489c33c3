"""What all tests share: bare module names for each task, small settings, a small data set, and running programs.

Both task folders hold a `dataset.py` and a `network.py` and import their neighbours by bare name. In one process, the
first `import network` would decide for both. So tests below `tests/task1` are imported and run with the first folder on
`sys.path`, tests below `tests/task2` with the second. In between, the folder's modules are kept outside `sys.modules`.
"""

import importlib.util
import os
import re
import resource
import runpy
import shutil
import signal
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
from PIL import Image

from oracles import awake, only_run

matplotlib.use("Agg")
torch.set_num_threads(1)  # the tests' tensors are small: more threads would only wait for each other
# A background job of a shell ignores Ctrl-C, and so would the programs that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
FOLDERS = {"task1": ROOT / "2d_plot_diffusion_todo", "task2": ROOT / "image_diffusion_todo"}

# A network that takes milliseconds: the arguments of `UNet`, and the flags of train.py for the same with T = 12.
SMALL_UNET = {"image_resolution": 8, "ch": 32, "ch_mult": [1], "attn": [], "num_res_blocks": 1, "dropout": 0.0}
SMALL_FLAGS = ["--image_resolution", 8, "--ch", 32, "--ch_mult", 1, "--attn", "--num_res_blocks", 1, "--dropout", 0]
SMALL_FLAGS += ["--num_diffusion_train_timesteps", 12, "--beta_T", 0.9, "--train_num_steps", 4]
SMALL_FLAGS = [*map(str, SMALL_FLAGS)]
# A run that draws random numbers of every kind.
RUN_FLAGS = ["--batch_size", 4, "--log_interval", 20, "--hflip", "--use_cfg", "--dropout", 0.2, "--ema_decay", 0.99]
RUN_FLAGS = [*SMALL_FLAGS, *map(str, RUN_FLAGS)]

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


@pytest.fixture(autouse=True, scope="module")
def _own_matplotlib_settings():
    """What a test file, or a program in its fixtures, sets in matplotlib does not reach the next file."""
    with matplotlib.rc_context():
        yield


@pytest.fixture(autouse=True)
def _same_start():
    """Every test starts from the same random state and matplotlib settings, whichever ran before."""
    np.random.seed(0)
    torch.manual_seed(0)
    with matplotlib.rc_context():
        yield


@pytest.fixture(scope="session")
def faces(tmp_path_factory) -> Path:
    """A data root of synthetic faces: three classes with 5 training images and 1 validation image each.

    Shared by all tests of Task 2. Programs may add their cache; a test that changes anything else takes a copy.
    """
    from synthetic_faces import write_synthetic_set

    root = tmp_path_factory.mktemp("a folder with blanks") / "afhq"
    write_synthetic_set(root, 5)
    return root


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (64, 64)) -> Path:
    """Write an RGB image of noise; another seed gives another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)
    return path


def replace_image(path: Path) -> None:
    """Write another image with the same size in bytes and the same time of change."""
    before = path.stat()
    Image.new("RGB", (32, 24), "red").save(path)
    path.write_bytes(path.read_bytes().ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def files_in(folder: Path) -> dict[Path, bytes]:
    """The contents of all files below a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder is marked read-only during the block."""
    folder.chmod(0o555)
    try:
        yield
    finally:
        folder.chmod(0o755)


@pytest.fixture
def pets(tmp_path) -> Path:
    """A data root of noise: training images dog0 .. dog4, cat0 .. cat2, validation images dog0, dog1, cat0, cat1."""
    root = tmp_path / "with blank" / "afhq"
    for split, counts in {"train": {"dog": 5, "cat": 3}, "val": {"dog": 2, "cat": 2}}.items():
        for name, count in counts.items():
            for i in range(count):
                seed = 100 * (split == "val") + 10 * (name == "cat") + i
                write_image(root / split / name / f"{name}{i}.png", seed, size=(64, 64) if i % 2 else (100, 80))
    return root


@pytest.fixture
def full_disk():
    """A context in which no file can grow beyond so many bytes, as on a full disk."""

    @contextmanager
    def limit(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture
def new_trainer(tmp_path):
    """Build the `Trainer` of a small run of three classes on the CPU, with further flags."""
    import train
    from trainer import Trainer

    def build(*flags, seed=0):
        np.random.seed(seed)
        torch.manual_seed(seed)
        args = train.parse_arguments([*SMALL_FLAGS, "--train_num_steps", "1000", *map(str, flags)])
        return Trainer(args, 3, torch.device("cpu"), tmp_path)

    return build


def small_model(predictor="noise", T=12, schedule=(), parametrization="direct", **settings):
    """A module of Task 2 with a small network, as if trained."""
    from model import DiffusionModule
    from network import UNet
    from scheduler import DDPMScheduler

    network, scheduler = awake(UNet(T=T, **SMALL_UNET | settings)), DDPMScheduler(T, *(schedule or (1e-3, 0.3)))
    return DiffusionModule(network, scheduler, predictor, parametrization=parametrization)


def weights_after(trainer, steps=4, seed=2):
    """The weights after a few steps, and their losses. The seed decides images, noise and timesteps."""
    np.random.seed(seed)
    torch.manual_seed(seed)
    for _ in range(steps):
        trainer.train_step(torch.rand(8, 3, 8, 8) * 2 - 1, torch.ones(8, dtype=torch.long))
    weights = torch.cat([weight.detach().flatten() for weight in trainer.weights])
    return weights, [loss.item() for loss in trainer.pending_losses]


@pytest.fixture
def compiled(monkeypatch):
    """The networks that were to be compiled, and whether to a CUDA graph; none is compiled."""
    import speed

    calls = []

    def record(network, cuda_graph=True):
        calls.append((network, cuda_graph))

    monkeypatch.setattr(speed, "compile_network", record)
    return calls


@pytest.fixture(scope="session")
def _run_of_3_steps(faces, tmp_path_factory):
    from processes import Program

    place = tmp_path_factory.mktemp("run")
    run = Program("train.py", "--data_root", faces, *RUN_FLAGS, "--train_num_steps", 3, place=place)
    assert run.finish() == 0, run.output
    return only_run(place)


@pytest.fixture
def half_a_run(_run_of_3_steps, tmp_path):
    """A run of 3 steps, to be resumed."""
    return shutil.copytree(_run_of_3_steps, tmp_path / "half a run")


@pytest.fixture
def load_report() -> Callable[[str], ModuleType]:
    """Import a program of report/ by its name; what it puts on `sys.path` is taken off again."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / "report" / f"{name}.py")
        program = importlib.util.module_from_spec(spec)
        path = sys.path.copy()
        spec.loader.exec_module(program)
        sys.path[:] = path
        return program

    return load


@pytest.fixture(scope="module")
def task_folder(request) -> Path:
    """The folder whose programs the test is about."""
    return next(folder for task, folder in FOLDERS.items() if ROOT / "tests" / task in request.path.parents)


@pytest.fixture
def program(task_folder, tmp_path, monkeypatch, capsys):
    """Run a program of the task's folder as `__main__`, with `tmp_path` as the working directory.

    In this process, since importing PyTorch anew takes seconds. Returns what a subprocess would: returncode,
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
        output = capsys.readouterr()
        lines = re.split(r"[\r\n]+", output.err.replace("\x1b[A", ""))  # how tqdm goes back to an outer bar
        lines = [line for line in lines if line.strip() and not re.search(r"\d%\||/s\]", line)]
        return SimpleNamespace(returncode=code, stdout=output.out, stderr="\n".join(lines))

    return run
