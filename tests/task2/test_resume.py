"""Nothing is lost: runs that are stopped, killed, or out of disk go on to the very end they would have had."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import speed
import train
from atomic import lock_folder, remove_partials
from checkpoint import read_checkpoint
from oracles import max_difference, only_run, refused
from processes import PROGRAMS, Program
from synthetic_faces import write_synthetic_set
from trainer import Trainer

TINY = ["--ch", 32, "--ch_mult", 1, "--attn", "--num_res_blocks", 1, "--image_resolution", 8]
TINY += ["--num_diffusion_train_timesteps", 12]
RUN = [*TINY, "--batch_size", 4, "--log_interval", 20, "--hflip", "--use_cfg", "--dropout", 0.2, "--ema_decay", 0.99]
STEPS = 70


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    root = tmp_path_factory.mktemp("faces") / "afhq"
    write_synthetic_set(root, 5)  # 15 images: three batches of 4 and 3 left over
    return root


def bits(thing):
    """Any nest of plain data and tensors, with each tensor as its bytes."""
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
    pictures = {path.name: path.read_bytes() for path in folder.glob("step=*.png")}
    return bits(checkpoint), rows, pictures


@pytest.fixture(scope="module")
def undisturbed(faces, tmp_path_factory):
    place = tmp_path_factory.mktemp("undisturbed")
    run = Program("train.py", "--data_root", faces, *RUN, "--train_num_steps", STEPS, place=place)
    assert run.finish() == 0, run.said
    return end_of(only_run(place))


def stop_at(step, monkeypatch, number=signal.SIGINT):
    """Let a signal come in the middle of that step."""
    from trainer import Trainer

    ordinary = Trainer.train_step

    def train_step(trainer, images, labels):
        if trainer.step == step - 1:
            os.kill(os.getpid(), number)
        ordinary(trainer, images, labels)

    monkeypatch.setattr(Trainer, "train_step", train_step)


@pytest.mark.parametrize("steps", [(1,), (20,), (49, 50, 51), (60, 61), (7, 13, 40, 69)])
def test_stopped_and_resumed_is_bit_for_bit_the_same(program, undisturbed, faces, tmp_path, monkeypatch, steps):
    resume = ["--data_root", faces, *RUN, "--train_num_steps", STEPS]
    for step in steps:
        with monkeypatch.context() as patch:
            stop_at(step, patch, random.choice([signal.SIGINT, signal.SIGTERM]))
            run = program("train.py", *resume)
        assert run.returncode == 130, run.stderr
        folder = only_run(tmp_path)
        assert re.search(rf"stopped at step {step}; go on with: python train.py --resume .*{folder.name}", run.stdout)
        resume = ["--resume", folder]
    run = program("train.py", *resume)
    assert run.returncode == 0, run.stderr
    assert end_of(folder) == undisturbed
    names = {path.name for path in folder.iterdir() if "step=" not in path.name}
    assert names == {"config.json", "last.ckpt", "loss.png", "stats.csv"}


def test_a_stop_during_the_pictures_makes_them_later(program, undisturbed, faces, tmp_path, monkeypatch):
    import trainer

    ordinary = trainer.follow

    def interrupted(chain, *details):
        os.kill(os.getpid(), signal.SIGINT)
        return ordinary(chain, *details)

    arguments = ["--data_root", faces, *RUN, "--train_num_steps", STEPS]
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "trajectory_frames", interrupted)
            run = program("train.py", *arguments)
        assert run.returncode == 130 and "stopped at step 0" in run.stdout
        folder = only_run(tmp_path)
        assert not list(folder.glob("step=*"))
        arguments = ["--resume", folder]
    assert program("train.py", *arguments).returncode == 0
    assert end_of(folder) == undisturbed


def kill_again_and_again(faces, place, kills):
    """Start, kill -9, resume, and so on, until it is done or all kills are behind it.

    Half of the kills come in the middle of the next write of a checkpoint, half a random moment after a new one. Gives
    how many came while one was being written, and the steps at which the run was when it was killed.
    """
    chance = random.Random(kills)
    while_writing, steps = 0, []
    arguments = ["--data_root", faces, *RUN, "--train_num_steps", STEPS]
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
            break  # it was done before
        while_writing += bool(list(place.rglob(".last.ckpt.*.partial")))
        for path in place.rglob("last.ckpt"):
            steps.append(read_checkpoint(path)["training"]["step"])  # whole, whenever the kill came
        arguments = ["--resume", only_run(place)]
    run = Program("train.py", *arguments, place=place)
    assert run.finish() == 0, run.said
    return while_writing, steps


@pytest.mark.parametrize("runs", [1, pytest.param(15, marks=pytest.mark.slow)], ids=["once", "15 runs"])
def test_killed_again_and_again_it_ends_the_same(undisturbed, faces, tmp_path, runs):
    while_writing, steps = 0, []
    for number in range(runs):
        place = tmp_path / str(number)
        place.mkdir()
        more, at = kill_again_and_again(faces, place, kills=12)
        while_writing, steps = while_writing + more, steps + at
        folder = only_run(place)
        assert end_of(folder) == undisturbed
        assert not list(place.rglob("*.partial"))
    assert len(steps) >= 2 * runs and len(set(steps)) >= 2
    print(f"{len(steps)} kills, {while_writing} of them while a checkpoint was written; bits that differ: 0")


def test_two_programs_do_not_work_in_one_folder(program, half_a_run):
    with lock_folder(half_a_run):
        assert refused(program("train.py", "--resume", half_a_run), "another program is at work there")
    assert program("train.py", "--resume", half_a_run).returncode == 0


def test_what_a_stranger_calls_partial_is_left_alone(tmp_path):
    for name in ("notes.partial", ".notes.partial", ".last.ckpt.77.partial"):
        (tmp_path / name).write_text("")
    (tmp_path / ".folder.1.partial").mkdir()
    remove_partials(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.partial", ".notes.partial", ".folder.1.partial"}


@pytest.fixture
def half_a_run(program, faces, tmp_path):
    """A run of 3 steps that wants to be longer."""
    run = program("train.py", "--data_root", faces, *RUN, "--train_num_steps", 3)
    assert run.returncode == 0, run.stderr
    return only_run(tmp_path)


def test_a_file_that_cannot_be_written_costs_nothing(half_a_run, tmp_path):
    before = (half_a_run / "last.ckpt").read_bytes()
    run = Program(
        "train.py", "--resume", half_a_run, "--train_num_steps", 9, place=tmp_path, largest_file=len(before) // 2
    )
    assert run.finish() == 2
    assert (
        run.said.splitlines()[-1] == f"train.py: error: {half_a_run / 'last.ckpt'}: cannot be written: File too large"
    )
    assert (half_a_run / "last.ckpt").read_bytes() == before
    assert not list(half_a_run.glob(".*"))
    run = Program("train.py", "--resume", half_a_run, place=tmp_path)
    assert run.finish() == 0, run.said
    assert read_checkpoint(half_a_run / "last.ckpt")["training"]["step"] == 9


def test_a_full_disk_is_said_and_costs_nothing(half_a_run, tmp_path):
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
        pytest.skip("this system lets nobody but its administrator have a disk")
    assert run.returncode == 2, run.stderr
    assert run.stderr.splitlines()[-1] == "train.py: error: last.ckpt: cannot be written: No space left on device"
    assert not re.search("partial", run.stdout)


def test_training_that_has_failed_stops_and_poisons_no_checkpoint(program, faces, tmp_path, monkeypatch):
    from trainer import Trainer

    ordinary = Trainer.train_step

    def train_step(trainer, images, labels):
        ordinary(trainer, images * float("nan") if trainer.step == 26 else images, labels)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    run = program("train.py", "--data_root", faces, *RUN, "--train_num_steps", STEPS)
    assert refused(run, "the loss of step 27 is nan: training has failed")
    folder = only_run(tmp_path)
    assert f"--resume {folder.relative_to(tmp_path)} --learning_rate 0.0001" in run.stderr
    checkpoint = read_checkpoint(folder / "last.ckpt")
    assert checkpoint["training"]["step"] == 20
    monkeypatch.undo()
    os.chdir(tmp_path)
    run = program("train.py", "--resume", folder, "--learning_rate", "0.0001", "--train_num_steps", 30)
    assert run.returncode == 0, run.stderr
    assert json.loads((folder / "config.json").read_text())["learning_rate"] == 0.0001


def test_weights_that_are_not_finite_are_not_saved(program, faces, tmp_path, monkeypatch):
    from trainer import Trainer

    ordinary = Trainer.train_step

    def train_step(trainer, images, labels):
        ordinary(trainer, images, labels)
        if trainer.step == 40:
            with torch.no_grad():
                trainer.ema.network.head.bias[0] = float("inf")

    monkeypatch.setattr(Trainer, "train_step", train_step)
    run = program("train.py", "--data_root", faces, *RUN, "--train_num_steps", STEPS)
    assert refused(run, "step 40: weights hold numbers that are not finite: head.bias: training has failed")
    assert read_checkpoint(only_run(tmp_path) / "last.ckpt")["training"]["step"] == 20


# What --resume checks.


def test_more_steps_are_allowed_and_fewer_are_not(program, half_a_run):
    run = program("train.py", "--resume", half_a_run, "--train_num_steps", 5)
    assert run.returncode == 0, run.stderr
    assert json.loads((half_a_run / "config.json").read_text())["train_num_steps"] == 5
    assert refused(program("train.py", "--resume", half_a_run, "--train_num_steps", 4), "is already at step 5")
    before = (half_a_run / "last.ckpt").read_bytes()
    assert program("train.py", "--resume", half_a_run).returncode == 0  # nothing to do
    assert (half_a_run / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--batch_size", "2", "--batch_size 2 (the run has 4)"),
        ("--mode", "quad", "--mode quad (the run has linear)"),
        ("--ch_mult", "2", "--ch_mult [2] (the run has [1])"),
        ("--skip_broken", None, "--skip_broken True (the run has False)"),
    ],
)
def test_flags_that_contradict_the_run_are_named(program, half_a_run, flag, value, words):
    arguments = [flag] if value is None else [flag, value]
    assert refused(program("train.py", "--resume", half_a_run, *arguments), words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": "many"}, "argument --batch_size: 'many' is not a whole number"),
        ({"batch_size": -4}, "argument --batch_size: '-4' is not a whole number"),
        ({"ch_mult": [1, 2, [3]]}, "argument --ch_mult: '[3]' is not"),
        ({"hflip": 3}, "unrecognized arguments: 3"),
        ({"mode": None}, "argument --mode: invalid choice: 'None'"),
        ({"num_images": 14}, "num_images is 15 now, and was 14"),
        ({"predictor": "x0"}, "cannot be resumed from it: its predictor is noise, the run has x0"),
        ({"ch": 64}, "cannot be resumed from it: its network is"),
    ],
)
def test_a_config_that_was_tampered_with_is_refused(program, half_a_run, change, words):
    path = half_a_run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert refused(program("train.py", "--resume", half_a_run), words)


@pytest.mark.parametrize("content", ["", "[]", "3", "{", "\x00"])
def test_a_config_that_is_none_is_refused(program, half_a_run, content):
    (half_a_run / "config.json").write_text(content)
    assert refused(program("train.py", "--resume", half_a_run), "config.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(step=-1),
        lambda t: t.update(step="3"),
        lambda t: t.update(stats=[{}]),
        lambda t: t.update(recent=[float("nan")]),
        lambda t: t.update(row_seconds=None),
        lambda t: t.pop("random"),
        lambda t: t["random"][0].update(torch=torch.zeros(3)),
        lambda t: t["random"][0].update(numpy=()),
        lambda t: t["network"].popitem(),
        lambda t: t["optimizer"].update(state={0: {"exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)}}),
        lambda t: t["optimizer"]["state"][0]["exp_avg"].fill_(float("inf")),
        lambda t: t["optimizer"].clear(),
    ],
)
def test_a_checkpoint_whose_training_state_does_not_fit_is_refused(program, half_a_run, change):
    path = half_a_run / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint["training"])
    torch.save(checkpoint, path)
    assert refused(program("train.py", "--resume", half_a_run), "last.ckpt: ")


def test_a_checkpoint_from_before_there_was_a_parametrization_is_of_a_direct_run(program, half_a_run):
    path = half_a_run / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["parametrization"]
    torch.save(checkpoint, path)
    run = program("train.py", "--resume", half_a_run, "--train_num_steps", 5)
    assert run.returncode == 0, run.stderr


def test_a_run_goes_on_in_another_order_of_bytes(tmp_path, monkeypatch):
    """As when a run of a GPU goes on on a CPU in bfloat16. Fused Adam takes weights and moments as they lie."""
    args = train.parse_arguments([str(flag) for flag in [*TINY, "--learning_rate", 1e-3, "--dropout", 0]])

    def trained(trainer, steps):
        random.seed(trainer.step)
        np.random.seed(trainer.step)
        torch.manual_seed(trainer.step)
        for _ in range(steps):
            trainer.train_step(torch.rand(4, 3, 8, 8) * 2 - 1, torch.ones(4, dtype=torch.long))
        return torch.cat([weight.detach().flatten() for weight in trainer.weights])

    def new_trainer(order):
        monkeypatch.setattr(speed, "prepare", lambda module, *_: module.to(memory_format=order))
        return Trainer(args, 3, torch.device("cpu"), tmp_path)

    whole = new_trainer(torch.channels_last)
    trained(whole, 5)
    whole.save()
    resumed = new_trainer(torch.contiguous_format)
    resumed.load()
    before = torch.cat([weight.detach().flatten() for weight in resumed.weights])
    expected, found = trained(whole, 1), trained(resumed, 1)
    assert max_difference(found, expected) < 0.01 * max_difference(found, before)


def test_a_lost_checkpoint_is_not_silently_begun_anew(program, half_a_run):
    (half_a_run / "last.ckpt").unlink()
    assert refused(program("train.py", "--resume", half_a_run), "last.ckpt: No such file")
