"""Any command line is taken, or refused in one line with exit code 2 before any work starts."""

import io
import re
import runpy
import sys
from contextlib import redirect_stdout

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cli
import sampling
import train
from cli import UserError, exit_on_user_error, select_device
from conftest import SMALL_FLAGS
from oracles import refused
from trainer import build_network

numbers = st.one_of(
    st.integers(-5, 5),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.sampled_from([0, 1, 2, 32, 64, 1000, 1e-4, 0.02, 0.999, "inf", "-0", "1e999", "0x10", "1_000", "１２"]),
)
words = st.one_of(
    numbers.map(str), st.text(max_size=8), st.sampled_from(["linear", "x0", "cpu", "cuda:99", "--", "-1"])
)
any_flags = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def command_lines(parse):
    """Up to five of a program's own flags, each with up to three words."""
    with redirect_stdout(io.StringIO()) as help, pytest.raises(SystemExit):
        parse(["--help"])
    flags = sorted(set(re.findall(r"^  (--\w+)", help.getvalue(), re.MULTILINE)))
    pairs = st.lists(st.tuples(st.sampled_from(flags), st.lists(words, max_size=3)), max_size=5)
    return pairs.map(lambda pairs: [text for flag, values in pairs for text in (flag, *values)])


def parsed(parse, arguments, capsys):
    """The settings, or None where the line was refused as it should be."""
    try:
        return parse(arguments)
    except UserError:  # one line by `exit_on_user_error`
        return None
    except SystemExit as end:
        assert end.code == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and "error: " in message
        return None


@any_flags
@given(arguments=command_lines(train.parse_arguments))
def test_any_training_command_line(capsys, arguments):
    args = parsed(train.parse_arguments, arguments, capsys)
    if args is None:
        return
    assert args.batch_size >= 1 and args.train_num_steps >= 1 and args.log_interval >= 1 and args.warmup_steps >= 0
    assert 2 <= args.num_diffusion_train_timesteps <= 1_000_000 and 0 < args.beta_1 <= args.beta_T < 1
    assert 0 <= args.dropout < 1 and 0 <= args.cfg_dropout <= 1 and 0 <= args.ema_decay <= 1
    if args.num_res_blocks * len(args.ch_mult) > 12 or args.num_diffusion_train_timesteps > 2000:
        return  # good, but slow to build
    try:
        with torch.device("meta"):
            build_network(args, 3)
    except ValueError as error:
        assert "\n" not in str(error)


@any_flags
@given(arguments=command_lines(sampling.parse_arguments))
def test_any_sampling_command_line(capsys, arguments):
    base = ["--ckpt_path", "model.ckpt", "--save_dir", "out"]
    args = parsed(sampling.parse_arguments, [*base, *arguments], capsys)
    if args is not None:
        assert args.num_samples >= 1 and args.batch_size >= 1 and 0 <= args.eta <= 1 and 0 <= args.cfg_scale <= 100
        assert args.num_inference_steps is None or args.num_inference_steps >= 1


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["--mode", "sigmoid"], "--mode"),
        (["--batch_size", 0], "--batch_size"),
        (["--batch_size", 100], "--batch_size"),
        (["--dropout", 2], "--dropout"),
        (["--learning_rate", "nan"], "--learning_rate"),
        (["--beta_1", 0.5, "--beta_T", 0.1], "--beta_1"),
        (["--beta_1", "1e-17"], "--beta_1"),
        (["--image_resolution", 20, "--ch_mult", 1, 1, 1, 1], "image_resolution"),
        (["--ch", 40], "ch"),
        (["--attn", 7], "attn"),
        (["--device", "cuda", "--gpu", 99], "'cuda:99'"),
        (["--num_diffusion_train_timesteps", 1], "--num_diffusion_train_timesteps"),
        (["--resume", "nowhere"], "nowhere"),
        (["--resume", "run/step=2.ckpt"], "last.ckpt"),
        (["--learning", 3], "--learning"),
        (["--data_root", "typo"], "--data_root"),
    ],
)
def test_wrong_training_flags_are_one_line_and_leave_nothing(program, faces, tmp_path, arguments, culprit):
    assert refused(program("train.py", "--data_root", faces, *SMALL_FLAGS, "--batch_size", 4, *arguments), culprit)
    assert not list(tmp_path.iterdir())


def test_help_shows_flags_and_defaults(program):
    for name, texts in {
        "train.py": ["--mode", "--resume", "(default: 100000)", "(default: [1, 2, 2, 2])"],
        "sampling.py": ["--ckpt_path", "(default: 500)", "(default: 7.5)"],
        "image_grid.py": ["--out", "(default: 64)"],
        "fid/measure_fid.py": ["--network", "(default: auto)"],
    }.items():
        run = program(name, "--help")
        assert run.returncode == 0 and all(text in run.stdout for text in texts)
        assert "None" not in run.stdout


def test_a_folder_that_cannot_be_written_to_is_named(program, faces, tmp_path):
    flags = ["--data_root", faces, *SMALL_FLAGS, "--batch_size", 2]
    (tmp_path / "results").mkdir(mode=0o555)
    assert refused(program("train.py", *flags), "results")
    assert not any((tmp_path / "results").iterdir())
    (tmp_path / "results").rmdir()
    (tmp_path / "results").write_text("a file")
    assert refused(program("train.py", *flags), "results")


@pytest.mark.parametrize(
    ("error", "code", "culprit"),
    [
        (UserError("a.ckpt: damaged"), 2, "a.ckpt: damaged"),
        (UserError("caf\udce9\n\x1b[31m"), 2, "caf\\udce9\\n\\x1b[31m"),
        (PermissionError(13, "Permission denied", "a.png"), 2, "a.png: Permission denied"),
        (KeyboardInterrupt(), 130, "stopped"),
        (MemoryError(), 2, "--batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB."), 2, "--batch_size"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), 2, "--batch_size"),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), 2, "another process"),
    ],
)
def test_what_the_user_can_fix_is_one_line(capsys, error, code, culprit):
    with pytest.raises(SystemExit) as end, exit_on_user_error():
        raise error
    output = capsys.readouterr().err
    assert end.value.code == code and culprit in output and output.count("\n") == 1


@pytest.mark.parametrize("bug", [ValueError("too many values to unpack"), RuntimeError("shapes differ"), KeyError("x")])
def test_a_bug_keeps_its_traceback(bug):
    with pytest.raises(type(bug)) as raised, exit_on_user_error():
        raise bug
    assert raised.value is bug


def test_other_uncaught_errors_reach_the_hook_that_was_there_before(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda *details: seen.append(details))
    runpy.run_path(cli.__file__)  # installs its own
    sys.excepthook(KeyError, KeyError("x"), None)
    assert seen[0][0] is KeyError


def test_too_large_a_tensor_is_told_by_its_flag(capsys):
    with pytest.raises(SystemExit), exit_on_user_error():
        torch.empty(2**55)
    assert "--batch_size" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["toaster", "meta", "cuda:77", ""])
def test_a_device_that_is_not_there_is_refused_by_name(name):
    with pytest.raises(UserError, match=repr(name)):
        select_device(name)
    assert select_device("cpu", gpu=3) == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="cuda:7"):
            select_device("auto", gpu=7)
