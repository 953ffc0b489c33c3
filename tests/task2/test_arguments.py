"""Whatever stands on a command line: it is taken, or refused in one line with exit code 2 before any work starts."""

import os
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sampling
import train
from conftest import SMALL_FLAGS
from oracles import refused
from trainer import build_model

numbers = st.one_of(
    st.integers(-5, 5),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.sampled_from([0, 1, 2, 32, 64, 1000, 1e-4, 0.02, 0.999, "inf", "-0", "1e999", "0x10", "1_000", "１２"]),
)
words = st.one_of(
    numbers.map(str), st.text(max_size=8), st.sampled_from(["linear", "x0", "cpu", "cuda:99", "--", "-1"])
)
FLAGS = {
    "train": [
        *(
            "mode",
            "predictor",
            "parametrization",
            "loss_weight",
            "data_root",
            "batch_size",
            "train_num_steps",
            "learning_rate",
            "warmup_steps",
        ),
        *("log_interval", "max_num_images_per_cat", "image_resolution", "skip_broken", "hflip", "seed"),
        *("num_diffusion_train_timesteps", "beta_1", "beta_T", "sample_method", "use_cfg", "cfg_dropout", "ch"),
        *(
            "ch_mult",
            "precision",
            "compile",
            "accumulate",
            "activation_checkpointing",
            "attn",
            "num_res_blocks",
            "dropout",
            "ema_decay",
            "device",
            "gpu",
            "resume",
        ),
    ],
    "sampling": [
        *("num_samples", "batch_size", "seed", "sample_method", "use_cfg", "cfg_scale", "save_traj", "mode"),
        *(
            "predictor",
            "device",
            "gpu",
            "weights",
            "ckpt_path",
            "save_dir",
            "num_inference_steps",
            "eta",
            "precision",
            "compile",
        ),
    ],
}


def command_lines(flags):
    return st.lists(st.tuples(st.sampled_from(flags), st.lists(words, max_size=3)), max_size=5).map(
        lambda given: [text for flag, values in given for text in (f"--{flag}", *values)]
    )


def parsed(parse, arguments, capsys):
    """The settings, or None where the line was refused as it should be."""
    capsys.readouterr()
    try:
        return parse(arguments)
    except SystemExit as end:
        if end.code == 0:  # --help, which no list of flags above holds
            raise AssertionError from end
        assert end.code == 2
        complaint = capsys.readouterr().err
        assert complaint.count("\n") == 1 and "error: " in complaint
        return None


quietly = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quietly
@given(arguments=command_lines(FLAGS["train"]))
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
            build_model(args, 3)
    except ValueError as error:
        assert "\n" not in str(error)


@quietly
@given(arguments=command_lines(FLAGS["sampling"]))
def test_any_sampling_command_line(capsys, tmp_path, arguments):
    base = ["--ckpt_path", "model.ckpt", "--save_dir", str(tmp_path / "out")]
    args = parsed(sampling.parse_arguments, [*base, *arguments], capsys)
    if args is not None:
        assert args.num_samples >= 1 and args.batch_size >= 1 and 0 <= args.cfg_scale <= 100
        assert args.num_inference_steps is None or args.num_inference_steps >= 1
        assert 0 <= args.eta <= 1 and (args.eta == 0 or args.sample_method == "ddim")


def test_the_flags_above_are_all_there_are(capsys):
    for name, module in {"train": train, "sampling": sampling}.items():
        with pytest.raises(SystemExit):
            module.parse_arguments(["--help"])
        said = capsys.readouterr().out
        in_help = {line.split()[0].removeprefix("--") for line in said.splitlines() if line.startswith("  --")}
        assert in_help == set(FLAGS[name]), name


def test_no_images_are_decoded_before_the_arguments_are_known_to_be_good(program, faces, monkeypatch, tmp_path):
    import images

    monkeypatch.setattr(images, "read_image", None)  # a call would be a TypeError
    base = ["train.py", "--data_root", faces, *SMALL_FLAGS]
    assert refused(program(*base, "--ch", 40), "multiple of 32")
    assert refused(program(*base, "--batch_size", 9999), "argument --batch_size: 9999 is more than the 15 images")
    assert refused(program(*base, "--beta_1", 0.5), "--beta_1: 0.5 is larger than --beta_T, 0.02")
    assert refused(program(*base, "--device", "cuda:77"), "'cuda:77' is not a device")
    if not torch.cuda.is_available():
        assert refused(program(*base, "--gpu", 7), "--gpu: there is no GPU 7 on this machine")
    assert refused(program(*base, "--num_diffusion_train_timesteps", 1), "from 2 to 1000000")
    (tmp_path / "results").write_text("a file")
    assert refused(program(*base, "--batch_size", 2), "results is a file, where a folder is wanted")


def test_a_folder_that_cannot_be_written_to_is_named(program, faces, tmp_path):
    (tmp_path / "results").mkdir(mode=0o555)
    run = program("train.py", "--data_root", faces, *SMALL_FLAGS, "--batch_size", 2)
    assert refused(run, "results is read-only: choose another place")
    assert not any((tmp_path / "results").iterdir())


def test_ctrl_c_before_training_is_one_line(program, faces, monkeypatch):
    import images

    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "read_image", interrupted)
    run = program("train.py", "--data_root", faces, *SMALL_FLAGS, "--batch_size", 2, "--max_num_images_per_cat", 4)
    assert run.returncode == 130 and run.stderr == "train.py: error: stopped"


def test_too_little_memory_is_one_line(program, faces, monkeypatch):
    from trainer import Trainer

    def train_step(trainer, images, labels):
        torch.empty(2**55)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    steps = ["--batch_size", 2, "--num_diffusion_train_timesteps", 3]
    run = program("train.py", "--data_root", faces, *SMALL_FLAGS, *steps)
    assert refused(run, "out of memory: a smaller --batch_size needs less, and so does")


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system takes no such names")
def test_names_that_are_not_print_are_spelled_out(program, tmp_path):
    folder = os.fsdecode(b"caf\xe9\n\x1b[31m")
    run = program("train.py", "--resume", tmp_path / folder)
    assert refused(run, "caf\\udce9\\n\\x1b[31m")
