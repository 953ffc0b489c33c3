"""Nothing is lost: runs that are stopped, killed or out of disk space end exactly as they would have otherwise."""

import csv
import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import termios
import time

import pytest
import torch

import speed
from atomic import lock_folder, remove_partials
from checkpoint import read_checkpoint
from conftest import RUN_FLAGS, weights_after
from oracles import max_difference, only_run, refused
from processes import Program
from stopping import StopSignals

STEPS = 60


def as_bytes(value):
    """Nested plain data with each tensor as its bytes."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: as_bytes(item) for key, item in value.items()}
    return [as_bytes(item) for item in value] if isinstance(value, list | tuple) else value


def end_of(folder):
    """All that a run leaves, except what depends on the speed of the machine."""
    checkpoint = read_checkpoint(folder / "last.ckpt")
    del checkpoint["training"]["row_seconds"]
    for row in checkpoint["training"]["stats"]:
        del row["images_per_second"]
    rows = [row[:3] for row in csv.reader((folder / "stats.csv").open())]
    samples = {path.name: path.read_bytes() for path in folder.glob("step=*.png")}
    return as_bytes(checkpoint), rows, samples


def step_of(folder):
    return read_checkpoint(folder / "last.ckpt")["training"]["step"]


@pytest.fixture(scope="module")
def flags(faces):
    return ["--data_root", faces, *RUN_FLAGS, "--train_num_steps", STEPS]


@pytest.fixture(scope="module")
def undisturbed(flags, tmp_path_factory):
    place = tmp_path_factory.mktemp("undisturbed")
    run = Program("train.py", *flags, place=place)
    assert run.finish() == 0, run.output
    return end_of(only_run(place))


@pytest.fixture
def before_step(monkeypatch):
    """Call something in the middle of a training step, before its images are seen: `before_step(n, call)`."""
    from trainer import Trainer

    train_step = Trainer.train_step

    def install(step, call):
        def interrupted(trainer, images, labels):
            if trainer.step == step - 1:
                images = call(trainer, images)
            train_step(trainer, images, labels)

        monkeypatch.setattr(Trainer, "train_step", interrupted)

    return install


@pytest.fixture
def hangup_not_ignored():
    """SIGHUP ends a program, also where the tests run under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


# Stops


@pytest.mark.usefixtures("hangup_not_ignored")
@pytest.mark.parametrize("steps", [(1, 20), (7, 49, 50, 51)])
def test_stopped_and_resumed_is_bit_for_bit_the_same(program, undisturbed, flags, tmp_path, before_step, steps):
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
    for step, number in zip(steps, signals, strict=False):
        before_step(step, lambda trainer, images, number=number: (os.kill(os.getpid(), number), images)[1])
        run = program("train.py", *flags)
        assert run.returncode == 130 and run.stderr == "", run.stderr
        folder = only_run(tmp_path)
        assert f"step {step}" in run.stdout and f"--resume {folder.relative_to(tmp_path)}" in run.stdout
        assert step_of(folder) == step
        flags = ["--resume", folder.relative_to(tmp_path) / ("last.ckpt" if step == 7 else "")]
    before_step(0, None)
    run = program("train.py", *flags)
    assert run.returncode == 0, run.stderr
    assert end_of(folder) == undisturbed
    names = {path.name for path in folder.iterdir() if "step=" not in path.name}
    assert names == {"config.json", "last.ckpt", "loss.png", "stats.csv"}


@pytest.mark.usefixtures("hangup_not_ignored")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_a_signal_requests_a_stop_and_a_second_ctrl_c_ends_at_once(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with StopSignals() as stop:
        os.kill(os.getpid(), number)
        assert stop.requested
        if name == "SIGINT":
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


@pytest.mark.usefixtures("hangup_not_ignored")
def test_nohup_keeps_a_run_from_stopping():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested


def test_a_terminal_that_goes_away_costs_no_step(flags, tmp_path):
    terminal, of_program = pty.openpty()
    fcntl.ioctl(of_program, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # a bar needs room
    run = Program("train.py", *flags, "--train_num_steps", 10**5, place=tmp_path, log=os.ttyname(of_program))
    shown = b""
    while not re.search(rb" (2[1-9]|[3-9]\d|\d{3,})/100000", shown):  # beyond the checkpoint of step 20
        assert run.process.is_alive()
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 10**6)
    os.close(of_program)
    os.close(terminal)
    assert run.finish() != -signal.SIGKILL
    assert step_of(only_run(tmp_path)) > 20


def test_samples_that_a_stop_interrupts_are_drawn_on_resuming(program, undisturbed, flags, tmp_path, monkeypatch):
    import trainer

    trajectory_frames = trainer.trajectory_frames

    def interrupted(chain, *details):
        os.kill(os.getpid(), signal.SIGINT)
        return trajectory_frames(chain, *details)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "trajectory_frames", interrupted)
        for _ in range(2):
            run = program("train.py", *flags)
            folder = only_run(tmp_path)
            assert run.returncode == 130 and step_of(folder) == 0
            assert not list(folder.glob("step=*"))
            flags = ["--resume", folder]
    assert program("train.py", *flags).returncode == 0
    assert end_of(folder) == undisturbed


# Kills


def test_killed_again_and_again_it_ends_the_same(undisturbed, flags, tmp_path):
    """In turn while a checkpoint is written and after samples."""
    steps = []
    for pattern in (".last.ckpt.*.partial", "*-traj.png") * 2:
        run = Program("train.py", *flags, place=tmp_path)
        seen = set(tmp_path.rglob(pattern))
        while run.process.is_alive() and set(tmp_path.rglob(pattern)) <= seen:
            time.sleep(0.0005)
        assert run.kill(after=0)
        steps += [step_of(path.parent) for path in tmp_path.rglob("last.ckpt")]  # readable, whenever the kill came
        flags = ["--resume", only_run(tmp_path)]
    run = Program("train.py", *flags, place=tmp_path)
    assert run.finish() == 0, run.output
    assert max(steps) >= 20 and end_of(only_run(tmp_path)) == undisturbed
    assert not list(tmp_path.rglob("*.partial"))


# Errors in the middle of a run


def test_two_programs_do_not_share_a_folder(program, half_a_run):
    with lock_folder(half_a_run):
        assert refused(program("train.py", "--resume", half_a_run), str(half_a_run))
    assert program("train.py", "--resume", half_a_run).returncode == 0


def test_a_write_that_fails_keeps_the_last_checkpoint(program, half_a_run, full_disk):
    path = half_a_run / "last.ckpt"
    before = path.read_bytes()
    with full_disk(len(before) // 2):
        assert refused(program("train.py", "--resume", half_a_run, "--train_num_steps", 9), str(path))
    assert path.read_bytes() == before
    assert not list(half_a_run.glob(".*"))


def set_images_to_nan(trainer, images):
    return images * float("nan")


def set_average_to_inf(trainer, images):
    with torch.no_grad():
        trainer.ema.network.head.bias[0] = float("inf")
    return images


@pytest.mark.parametrize(
    ("step", "diverge", "more", "words"),
    [
        (27, set_images_to_nan, [], "step 27 "),
        (40, set_average_to_inf, [], "head.bias"),
        (24, set_average_to_inf, ["--keep_every", 24], "head.bias"),
    ],
)
def test_training_that_diverges_stops_keeps_the_checkpoint_and_tells_how_to_resume(
    program, flags, tmp_path, before_step, step, diverge, more, words
):
    before_step(step, diverge)
    run = program("train.py", *flags, *more)
    folder = only_run(tmp_path)
    resume = f"--resume {folder.relative_to(tmp_path)} --learning_rate 0.0001"
    assert refused(run, words) and refused(run, resume)
    assert step_of(folder) == 20 and len(list(folder.glob("*.ckpt"))) == 1
    before_step(0, None)
    run = program("train.py", *shlex.split(resume), "--loss_weight", "min-snr", "--train_num_steps", 30)
    assert run.returncode == 0, run.stderr
    config = json.loads((folder / "config.json").read_text())
    assert (config["learning_rate"], config["loss_weight"]) == (0.0001, "min-snr")


def test_a_run_continues_in_another_memory_format(new_trainer, monkeypatch):
    """As when a run of a GPU is resumed on a CPU in bfloat16: fused Adam needs moments and weights in one format."""

    def trainer_in(memory_format):
        monkeypatch.setattr(speed, "place_network", lambda module, *_: module.to(memory_format=memory_format))
        return new_trainer("--learning_rate", 1e-3)

    whole = trainer_in(torch.channels_last)
    weights_after(whole)
    whole.save()
    resumed = trainer_in(torch.contiguous_format)
    resumed.load()
    before = weights_after(resumed, steps=0)[0]
    found, expected = (weights_after(trainer, seed=3)[0] for trainer in (resumed, whole))
    assert max_difference(found, expected) < 0.1 * max_difference(found, before)


def test_other_files_called_partial_are_left_alone(tmp_path):
    for name in ("notes.partial", ".notes.partial", ".last.ckpt.77.partial"):
        (tmp_path / name).write_text("")
    (tmp_path / ".folder.1.partial").mkdir()
    remove_partials(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.partial", ".notes.partial", ".folder.1.partial"}
