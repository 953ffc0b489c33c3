"""Wrong command lines are refused in one line with exit code 2 before any work starts."""

import runpy
import sys

import pytest
import torch

import cli
from cli import UserError, exit_on_user_error, select_device
from conftest import SMALL_FLAGS
from oracles import refused


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


def test_a_tensor_larger_than_the_memory_is_one_line_and_a_bug_keeps_its_traceback(capsys):
    with pytest.raises(SystemExit), exit_on_user_error():
        torch.empty(2**55)
    assert "--batch_size" in capsys.readouterr().err
    for bug in (ValueError("too many values to unpack"), RuntimeError("shapes differ"), KeyError("x")):
        with pytest.raises(type(bug)), exit_on_user_error():
            raise bug


def test_other_uncaught_errors_reach_the_hook_that_was_there_before(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda *details: seen.append(details))
    runpy.run_path(cli.__file__)  # installs its own
    sys.excepthook(KeyError, KeyError("x"), None)
    assert seen[0][0] is KeyError


def test_a_device_that_is_not_there_is_refused_by_name():
    for name in ("toaster", "meta", "cuda:77", ""):
        with pytest.raises(UserError, match=repr(name)):
            select_device(name)
    assert select_device("cpu", gpu=3) == torch.device("cpu")
