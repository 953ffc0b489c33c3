"""Training steps, samples, statistics and checkpoints, each against the same computed by hand."""

import copy
import csv
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import train
from checkpoint import read_checkpoint
from conftest import SMALL_FLAGS
from dataset import tensor_to_pil_image
from oracles import awake, only_run
from run_folder import new_run_folder, read_config, save_config
from samplers import ImageNoise
from stopping import StopSignals
from trainer import build_model

T4 = ["--num_diffusion_train_timesteps", 4, "--beta_T", 0.3]


def batch(size=4):
    return torch.rand(size, 3, 8, 8) * 2 - 1, torch.arange(size) % 3 + 1


def record_losses(trainer, scale=1.0):
    """The (images, labels, loss) of each call of the trainer's loss, which is scaled, from here on."""
    calls, get_loss = [], trainer.model.get_loss

    def recorded(images, labels):
        calls.append((images, labels, scale * get_loss(images, labels)))
        return calls[-1][2]

    trainer.model.get_loss = recorded
    return calls


def flat(weights):
    return torch.cat([weight.detach().flatten() for weight in weights]).double()


# Training step


@pytest.mark.parametrize("flag", [[], ["--hflip"]])
def test_hflip_flips_about_half_of_the_images(new_trainer, flag):
    trainer, (images, labels) = new_trainer(*flag), batch(100)
    calls = record_losses(trainer)
    trainer.train_step(images, labels)
    flipped = [torch.equal(x, y.flip(2)) for x, y in zip(calls[0][0], images, strict=True)]
    assert all(f or torch.equal(x, y) for f, x, y in zip(flipped, calls[0][0], images, strict=True))
    assert sum(flipped) == (pytest.approx(50, abs=25) if flag else 0)


def test_labels_reach_the_loss_of_a_conditional_model_only_if_they_exist(new_trainer):
    images, labels = batch()
    for flags, expected in (["--use_cfg"], labels.tolist()), ([], None):
        trainer = new_trainer(*flags)
        calls = record_losses(trainer)
        trainer.train_step(images, labels)
        assert (calls[0][1].tolist() if flags else calls[0][1]) == expected
    for wrong in ([1, 4, 1, 1], [-1, 1, 1, 1], [1.7, 1, 1, 1], [1, 2]):
        with pytest.raises(ValueError, match="class_label"):
            new_trainer("--use_cfg").train_step(images, torch.tensor(wrong))


@pytest.mark.parametrize(("warmup", "rates"), [(4, [0.002, 0.004, 0.006, 0.008, 0.008]), (0, [0.008]), (1, [0.008])])
def test_learning_rate_rises_linearly_and_then_stays(new_trainer, warmup, rates):
    trainer = new_trainer("--learning_rate", 0.008, "--warmup_steps", warmup)
    before = trainer.network.tail[-1].bias.detach().clone()
    for step, rate in enumerate(rates):
        trainer.train_step(*batch())
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        if step == 0:  # Adam's first moments are g and g^2, so its first update is g / |g| times the learning rate
            moved = (trainer.network.tail[-1].bias - before).abs()
            assert moved.tolist() == pytest.approx([rate] * 3, rel=1e-3)


def test_ema_is_the_average_of_the_weights_after_each_step_with_a_rising_decay(new_trainer):
    trainer = new_trainer("--learning_rate", 0.01, "--warmup_steps", 0, "--ema_decay", 0.3)
    average = flat(trainer.weights)
    for step in range(1, 6):
        trainer.train_step(*batch())
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * flat(trainer.weights)
    assert (flat(trainer.ema.network.parameters()) - average).abs().max() < 1e-6
    assert (flat(trainer.weights) - average).abs().max() > 1e-3


def test_flags_of_the_model_reach_both_modules_and_the_checkpoint(new_trainer, tmp_path):
    trainer = new_trainer(
        *("--ch", 64, "--ch_mult", 1, 2, "--attn", 0, "--num_res_blocks", 2, "--dropout", 0.3, "--use_cfg"),
        *("--cfg_dropout", 0.7, "--image_resolution", 12, "--patch_size", 2, "--num_diffusion_train_timesteps", 7),
        *("--beta_1", 0.01, "--beta_T", 0.2, "--mode", "quad", "--predictor", "mean"),
        *("--parametrization", "preconditioned", "--loss_weight", "min-snr"),
    )
    assert trainer.model.loss_weight == "min-snr"
    trainer.save()
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    network = dict(T=7, image_resolution=12, ch=64, ch_mult=[1, 2], attn=[0], num_res_blocks=2, dropout=0.3)
    assert checkpoint["network"] == network | dict(use_cfg=True, cfg_dropout=0.7, num_classes=3, patch_size=2)
    schedule = dict(num_train_timesteps=7, beta_1=0.01, beta_T=0.2, mode="quad", sigma_type="small")
    assert checkpoint["var_scheduler"] == schedule
    assert (checkpoint["predictor"], checkpoint["parametrization"]) == ("mean", "preconditioned")


# Samples


def chain_by_hand(model, network, seed, indices, labels=None, scale=1.0):
    """The images of these indices, sampled from the model with this network in eval mode."""
    model = copy.deepcopy(model)
    model.network = copy.deepcopy(network).eval()
    labels = None if labels is None else torch.tensor(labels)
    noise = ImageNoise(seed, indices, 8, torch.device("cpu"))
    *_, x_0 = model.reverse_process(len(indices), labels, scale, clip_x0=True, randn_like=noise)
    return tensor_to_pil_image(x_0)


def same(files, images):
    """Whether files hold these images, up to rounding."""
    pixels = [[np.asarray(image, dtype=int) for image in some] for some in (map(Image.open, files), images)]
    return bool((np.abs(np.subtract(*pixels)) <= 1).all())


def test_samples_are_of_the_averaged_network_in_eval_mode_and_of_classes_1_2_3_1(new_trainer, tmp_path):
    trainer = new_trainer(*T4, "--use_cfg", "--dropout", 0.5, "--seed", 7, "--precision", "fp32")
    last, averaged = awake(trainer.network), awake(trainer.ema.network)
    trainer.save_samples(StopSignals())
    files = [tmp_path / f"step=0-{i}.png" for i in range(4)]
    assert same(files, chain_by_hand(trainer.model, averaged, 7, range(4), [1, 2, 3, 1]))
    assert not same(files, chain_by_hand(trainer.model, averaged, 7, range(4), [0, 1, 2, 0]))
    assert not same(files, chain_by_hand(trainer.model, last, 7, range(4), [1, 2, 3, 1]))


def test_sampling_leaves_training_unchanged(new_trainer):
    ends = []
    for samples in (False, True):
        trainer, (images, labels) = new_trainer(*T4, "--dropout", 0.5), batch()
        for _ in range(2):
            if samples:
                trainer.save_samples(StopSignals())
            trainer.train_step(images, labels)
        ends.append(flat(trainer.weights))
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("flags", "labels", "scale"),
    [([], None, 1.0), (["--use_cfg", "--cfg_scale", 2.5, "--weights", "last"], [1, 2, 3, 1, 2], 2.5)],
)
def test_sampling_program_takes_the_given_weights_classes_and_guidance(
    program, new_trainer, tmp_path, flags, labels, scale
):
    trainer = new_trainer(*T4, "--use_cfg", "--dropout", 0.5, "--precision", "fp32")
    awake(trainer.network)
    awake(trainer.ema.network)
    trainer.save()
    base = ["--ckpt_path", "last.ckpt", "--save_dir", "out", "--num_samples", 5, "--batch_size", 4, "--seed", 4]
    run = program("sampling.py", *base, "--precision", "fp32", *flags)
    assert run.returncode == 0, run.stderr
    network, expected = trainer.network if "last" in flags else trainer.ema.network, []
    for indices in (range(4), range(4, 5)):
        some_labels = None if labels is None else [labels[i] for i in indices]
        expected += chain_by_hand(trainer.ema, network, 4, indices, some_labels, scale)
    assert same([tmp_path / "out" / f"{i}.png" for i in range(5)], expected)


# Statistics


def test_a_row_is_the_mean_loss_of_exactly_its_steps(new_trainer, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.LOG_EVERY", 3)
    trainer = new_trainer("--train_num_steps", 7, "--learning_rate", 0.01, "--warmup_steps", 5)
    calls = record_losses(trainer, scale=1e-7)
    for _ in range(7):
        trainer.train_step(*batch())
    trainer.save()
    losses = [loss.item() for *_, loss in calls]
    rows = list(csv.DictReader((tmp_path / "stats.csv").open()))
    assert [int(row["step"]) for row in rows] == [3, 6, 7]
    means = [sum(losses[:3]) / 3, sum(losses[3:6]) / 3, losses[6]]
    assert [float(row["loss"]) for row in rows] == pytest.approx(means, rel=1e-5)
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([0.006, 0.01, 0.01])


def test_images_per_second_exclude_samples_and_pauses(new_trainer, monkeypatch):
    """By a clock that advances by half a second a step."""
    now = [0.0]
    monkeypatch.setattr("trainer.LOG_EVERY", 3)
    monkeypatch.setattr("trainer.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def wait(seconds):
        now[0] += seconds

    trainer = new_trainer("--batch_size", 4)
    for step in range(7):
        trainer.save_samples = lambda _: wait(100)
        if step in (0, 1, 3, 5):
            trainer.save_and_sample(StopSignals())
        if step == 5:  # stopped, and resumed much later
            wait(10_000)
            trainer = new_trainer("--batch_size", 4)
            trainer.load()
        wait(0.5)
        trainer.train_step(*batch())
    assert [float(row["images_per_second"]) for row in trainer.stats] == [8.0, 8.0]


# The program


@pytest.fixture
def end_of_run(program, faces, tmp_path):
    """The settings, loss, weights and first sample of a short run with these flags."""

    def run(*flags):
        run = program("train.py", "--data_root", faces, *SMALL_FLAGS, "--batch_size", 3, "--train_num_steps", 2, *flags)
        assert run.returncode == 0, run.stderr
        folder = only_run(tmp_path)
        training, config = read_checkpoint(folder / "last.ckpt")["training"], read_config(folder)
        sample = (folder / "step=0-0.png").read_bytes()
        shutil.rmtree(tmp_path / "results")
        return config, training["stats"][0]["loss"], flat(training["network"].values()).tolist(), sample

    return run


def test_seed_limit_crop_and_clip_x0_reach_the_run(end_of_run):
    flags = ["--max_num_images_per_cat", 2]
    config, loss, weights, sample = end_of_run(*flags)
    assert config["num_images"] == 6
    assert end_of_run(*flags)[1:3] == (loss, weights) != end_of_run(*flags, "--seed", 2)[1:3]
    other_config, _, other_weights, other_sample = end_of_run(*flags, "--no-clip_x0")
    assert other_sample != sample and other_weights == weights and other_config["fingerprint"] == config["fingerprint"]
    assert end_of_run(*flags, "--crop")[0]["fingerprint"] != config["fingerprint"]


def test_kept_checkpoints_hold_the_averaged_weights_of_their_step(program, faces, tmp_path):
    run = program("train.py", "--data_root", faces, *SMALL_FLAGS, "--batch_size", 4, "--keep_every", 2)
    assert run.returncode == 0, run.stderr
    folder = only_run(tmp_path)
    last, kept = read_checkpoint(folder / "last.ckpt"), read_checkpoint(folder / "step=4.ckpt")
    assert {path.name for path in folder.glob("*.ckpt")} == {"last.ckpt", "step=2.ckpt", "step=4.ckpt"}
    assert kept.keys() == last.keys() - {"training"}
    assert torch.equal(flat(kept["state_dict"].values()), flat(last["state_dict"].values()))
    run = program("train.py", "--resume", folder, "--train_num_steps", 6, "--keep_every", 3)
    assert run.returncode == 0 and (folder / "step=6.ckpt").exists(), run.stderr


def test_only_a_schedule_that_leaves_much_signal_in_x_T_is_told_the_betas_that_fit(capsys):
    for flags, fits in (["--beta_T", "0.02"], False), (["--mode", "cosine"], True):
        args = train.parse_arguments([*SMALL_FLAGS, *flags])
        train.check_noise(build_model(args, 3).var_scheduler)
        assert ("--beta_1 0.0083 --beta_T 0.999" in capsys.readouterr().err) is not fits


@pytest.mark.parametrize(
    ("flags", "clips"),
    [
        ("--predictor noise", True),
        ("--predictor mean --parametrization preconditioned", True),
        ("--predictor mean", False),
        ("--predictor mean --clip_x0", True),
        ("--predictor x0 --no-clip_x0", False),
    ],
)
def test_x0_is_clipped_except_for_a_direct_mean_unless_a_flag_says_otherwise(flags, clips, tmp_path):
    args = train.parse_arguments(flags.split())
    assert args.clip_x0 is clips
    save_config(vars(args) | {"classes": ["cat"]}, [], tmp_path)
    assert train.parse_arguments(["--resume", str(tmp_path)]).clip_x0 is clips


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = SimpleNamespace(mode="quad", predictor="x0", use_cfg=True)
    assert len({new_run_folder(args) for _ in range(5)}) == 5
