"""Nothing is lost: runs that are stopped, killed or out of disk space end exactly as they would have otherwise."""

import csv
import fcntl
import json
import os
import pty
import random
import signal
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
import torch

import speed
from atomic import lock_folder, remove_partials
from checkpoint import read_checkpoint
from conftest import RUN_FLAGS
from oracles import max_difference, only_run, refused
from processes import PROGRAMS, Program
from stopping import StopSignals

STEPS = 70


def bits(thing):
    """Nested plain data and tensors, with each tensor as its bytes."""
    if isinstance(thing, torch.Tensor):
        return thing.dtype, thing.shape, thing.numpy().tobytes()
    if isinstance(thing, dict):
        return {key: bits(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [bits(value) for value in thing]
    return thing


def end_of(folder):
    """All that a run leaves that does not depend on the speed of the machine."""
    checkpoint = read_checkpoint(folder / "last.ckpt")
    training = checkpoint["training"]
    del training["row_seconds"]
    training["stats"] = [{k: row[k] for k in ("step", "loss", "learning_rate")} for row in training["stats"]]
    rows = [row[:3] for row in csv.reader((folder / "stats.csv").open())]
    samples = {path.name: path.read_bytes() for path in folder.glob("step=*.png")}
    return bits(checkpoint), rows, samples


def step_of(folder):
    return read_checkpoint(folder / "last.ckpt")["training"]["step"]


@pytest.fixture(scope="module")
def undisturbed(faces, tmp_path_factory):
    place = tmp_path_factory.mktemp("undisturbed")
    run = Program("train.py", "--data_root", faces, *RUN_FLAGS, "--train_num_steps", STEPS, place=place)
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


def send(number):
    def call(trainer, images):
        os.kill(os.getpid(), number)
        return images

    return call


@pytest.fixture
def hangups_count():
    """Under `nohup`, where SIGHUP is ignored, too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangups_count")
@pytest.mark.parametrize("steps", [(1,), (20,), (49, 50, 51), (7, 13, 40, 69)])
def test_stopped_and_resumed_is_bit_for_bit_the_same(program, undisturbed, faces, tmp_path, before_step, steps):
    flags = ["--data_root", faces, *RUN_FLAGS, "--train_num_steps", STEPS]
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
    for step, number in zip(steps, signals, strict=False):
        before_step(step, send(number))
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


def test_a_lost_connection_stops_the_run_unless_nohup_ignores_it():
    for handler, requested in ((signal.SIG_DFL, True), (signal.SIG_IGN, False)):
        before = signal.signal(signal.SIGHUP, handler)
        try:
            with StopSignals() as stop:
                for _ in range(2):  # shell and terminal may both send it
                    os.kill(os.getpid(), signal.SIGHUP)
                assert stop.requested is requested
            assert signal.getsignal(signal.SIGHUP) == handler
        finally:
            signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_ends_at_once():
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("hangups_count")
def test_a_terminal_that_goes_away_costs_no_step(faces, tmp_path):
    terminal, of_program = pty.openpty()
    fcntl.ioctl(of_program, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # a bar needs room
    command = [sys.executable, PROGRAMS / "train.py", "--data_root", faces, *RUN_FLAGS, "--train_num_steps", 10**5]
    process = subprocess.Popen(
        [*map(str, command)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(of_program, termios.TIOCSCTTY, 0),
        **dict.fromkeys(("stdin", "stdout", "stderr"), of_program),
    )
    os.close(of_program)
    while process.poll() is None and not list(tmp_path.rglob("step=20-traj.png")):
        os.read(terminal, 10**6)
    os.close(terminal)
    process.wait(60)
    assert step_of(only_run(tmp_path)) > 20


def test_samples_that_a_stop_interrupts_are_drawn_on_resuming(program, undisturbed, faces, tmp_path, monkeypatch):
    import trainer

    trajectory_frames = trainer.trajectory_frames

    def interrupted(chain, *details):
        os.kill(os.getpid(), signal.SIGINT)
        return trajectory_frames(chain, *details)

    flags = ["--data_root", faces, *RUN_FLAGS, "--train_num_steps", STEPS]
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


def kill_repeatedly(faces, place, kills):
    """Start, kill -9, resume, and so on, until the run ends or all kills are done.

    Every second kill comes in the middle of the next write of a checkpoint, the others a random moment after a new
    checkpoint. Returns the number of kills during a write, and the step of last.ckpt after each kill.
    """
    chance = random.Random(kills)
    while_writing, steps = 0, []
    arguments = ["--data_root", faces, *RUN_FLAGS, "--train_num_steps", STEPS]
    for number in range(kills):
        program = Program("train.py", *arguments, place=place)
        seen = None
        while program.process.is_alive():
            partials, checkpoints = list(place.rglob(".last.ckpt.*.partial")), list(place.rglob("last.ckpt"))
            now = checkpoints[0].stat().st_ino if checkpoints else None
            if number % 2 and partials:
                break
            if not number % 2 and now and seen and now != seen:
                program.process.join(chance.uniform(0, 0.1))
                break
            seen = seen or now
            time.sleep(0.0005)
        if not program.kill(after=0):
            break  # it had ended
        while_writing += bool(list(place.rglob(".last.ckpt.*.partial")))
        steps += [step_of(path.parent) for path in place.rglob("last.ckpt")]  # readable, whenever the kill came
        arguments = ["--resume", only_run(place)]
    run = Program("train.py", *arguments, place=place)
    assert run.finish() == 0, run.output
    return while_writing, steps


@pytest.mark.parametrize(
    ("runs", "kills"), [(1, 5), pytest.param(15, 12, marks=pytest.mark.slow)], ids=["once", "15 runs"]
)
def test_killed_repeatedly_it_ends_the_same(undisturbed, faces, tmp_path, runs, kills):
    while_writing, steps = 0, []
    for number in range(runs):
        place = tmp_path / str(number)
        place.mkdir()
        more, at = kill_repeatedly(faces, place, kills)
        while_writing, steps = while_writing + more, steps + at
        assert end_of(only_run(place)) == undisturbed
        assert not list(place.rglob("*.partial"))
    assert len(steps) >= 2 * runs and len(set(steps)) >= 2
    print(f"{len(steps)} kills, {while_writing} of them during a write; bits that differ: 0")


def test_other_files_called_partial_are_left_alone(tmp_path):
    for name in ("notes.partial", ".notes.partial", ".last.ckpt.77.partial"):
        (tmp_path / name).write_text("")
    (tmp_path / ".folder.1.partial").mkdir()
    remove_partials(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.partial", ".notes.partial", ".folder.1.partial"}


# Errors in the middle of a run


def test_two_programs_do_not_share_a_folder(program, half_a_run):
    with lock_folder(half_a_run):
        assert refused(program("train.py", "--resume", half_a_run), str(half_a_run))
    assert program("train.py", "--resume", half_a_run).returncode == 0


def test_a_write_that_fails_keeps_the_last_checkpoint(half_a_run, tmp_path):
    before = (half_a_run / "last.ckpt").read_bytes()
    flags = ["train.py", "--resume", half_a_run, "--train_num_steps", 9]
    run = Program(*flags, place=tmp_path, largest_file=len(before) // 2)
    assert run.finish() == 2
    assert str(half_a_run / "last.ckpt") in run.output.splitlines()[-1]
    assert (half_a_run / "last.ckpt").read_bytes() == before
    assert not list(half_a_run.glob(".*"))
    run = Program("train.py", "--resume", half_a_run, place=tmp_path)
    assert run.finish() == 0 and step_of(half_a_run) == 9, run.output


def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(half_a_run, tmp_path):
    """On a disk of its own, too small for two checkpoints."""
    size = (half_a_run / "last.ckpt").stat().st_size
    total = sum(path.stat().st_size for path in half_a_run.iterdir())
    script = f"""
        mount -t tmpfs -o size={total + size // 2} tmpfs "$2" || exit 77
        cp -r "$1"/. "$2" && cd "$2" && {sys.executable} "$3" --resume . --train_num_steps 9
        code=$?; cmp last.ckpt "$1/last.ckpt" && ls -A && exit $code
    """
    (tmp_path / "disk").mkdir()
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    command += [half_a_run, tmp_path / "disk", PROGRAMS / "train.py"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TQDM_DISABLE": "1"})
    except FileNotFoundError:
        pytest.skip("no unshare on this system")
    if run.returncode in (1, 77) and "train.py" not in run.stderr:
        pytest.skip("this system lets only its administrator mount a disk")
    assert run.returncode == 2, run.stderr
    assert "last.ckpt" in run.stderr.splitlines()[-1] and "Traceback" not in run.stderr
    assert "partial" not in run.stdout


def test_training_that_diverges_stops_and_spoils_no_checkpoint(program, faces, tmp_path, before_step):
    before_step(27, lambda trainer, images: images * float("nan"))
    run = program("train.py", "--data_root", faces, *RUN_FLAGS, "--train_num_steps", STEPS)
    folder = only_run(tmp_path)
    assert refused(run, "step 27 ")
    resume = ["--resume", str(folder.relative_to(tmp_path)), "--learning_rate", "0.0001"]
    assert " ".join(resume) in run.stderr
    assert step_of(folder) == 20
    before_step(0, None)
    run = program("train.py", *resume, "--train_num_steps", 30)
    assert run.returncode == 0, run.stderr
    assert json.loads((folder / "config.json").read_text())["learning_rate"] == 0.0001


def test_weights_that_are_not_finite_are_not_saved(program, faces, tmp_path, before_step):
    def spoil(trainer, images):
        with torch.no_grad():
            trainer.ema.network.head.bias[0] = float("inf")
        return images

    before_step(40, spoil)
    run = program("train.py", "--data_root", faces, *RUN_FLAGS, "--train_num_steps", STEPS)
    assert refused(run, "head.bias")
    assert step_of(only_run(tmp_path)) == 20


def test_a_run_continues_in_another_memory_format(new_trainer, monkeypatch):
    """As when a run of a GPU is resumed on a CPU in bfloat16: fused Adam needs moments and weights in one format."""

    def train(trainer, steps):
        torch.manual_seed(trainer.step)
        np.random.seed(trainer.step)
        for _ in range(steps):
            trainer.train_step(torch.rand(4, 3, 8, 8) * 2 - 1, torch.ones(4, dtype=torch.long))
        return torch.cat([weight.detach().flatten() for weight in trainer.weights])

    def trainer_in(memory_format):
        monkeypatch.setattr(speed, "place_network", lambda module, *_: module.to(memory_format=memory_format))
        return new_trainer("--learning_rate", 1e-3)

    whole = trainer_in(torch.channels_last)
    train(whole, 5)
    whole.save()
    resumed = trainer_in(torch.contiguous_format)
    resumed.load()
    before = torch.cat([weight.detach().flatten() for weight in resumed.weights])
    expected, found = train(whole, 1), train(resumed, 1)
    assert max_difference(found, expected) < 0.01 * max_difference(found, before)
