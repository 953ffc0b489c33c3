"""What a training step does, what a run writes down, and whose images are drawn: each against the same by hand."""

import copy
import csv
from types import SimpleNamespace

import matplotlib.axes
import numpy as np
import pytest
import torch
from PIL import Image

import train
from checkpoint import read_checkpoint
from dataset import tensor_to_pil_image
from model import DiffusionModule
from oracles import awake, max_difference, refused
from samplers import ImageNoise
from scheduler import PREDICTORS, DDPMScheduler
from synthetic_faces import write_synthetic_set
from trainer import StopSignals, Trainer

CPU = torch.device("cpu")
TINY = ["--ch", 32, "--ch_mult", 1, "--attn", "--num_res_blocks", 1, "--image_resolution", 8]
TINY += ["--num_diffusion_train_timesteps", 4, "--beta_T", 0.3]


@pytest.fixture
def new_trainer(tmp_path):
    """A run of three classes with these flags besides the tiny network's."""

    def make(*flags):
        args = train.parse_arguments([str(flag) for flag in (*TINY, *flags)])
        return Trainer(args, 3, CPU, tmp_path)

    return make


def batch(size=4):
    return torch.rand(size, 3, 8, 8) * 2 - 1, torch.arange(size) % 3 + 1


@pytest.fixture
def asked(monkeypatch):
    """What losses are asked for, as (images, labels, loss)."""
    asked = []
    ordinary = DiffusionModule.get_loss

    def get_loss(ddpm, images, labels):
        loss = ordinary(ddpm, images, labels)
        asked.append((images, labels, loss.item()))
        return loss

    monkeypatch.setattr(DiffusionModule, "get_loss", get_loss)
    return asked


def chain_by_hand(ddpm, network, seed, numbers, labels=None, scale=1.0):
    """The images of these numbers, from the module with this network in eval mode."""
    ddpm = copy.deepcopy(ddpm)
    ddpm.network = copy.deepcopy(network).eval()
    labels = None if labels is None else torch.tensor(labels)
    *_, x_0 = ddpm.reverse_process(len(numbers), labels, scale, ImageNoise(seed, numbers, 8, CPU))
    return tensor_to_pil_image(x_0)


def same(files, images):
    """Whether files hold these images, up to one level of 255, by which kernels may round differently."""
    pixels = [[np.asarray(image, dtype=int) for image in some] for some in (map(Image.open, files), images)]
    return bool((np.abs(np.subtract(*pixels)) <= 1).all())


# A step.


def test_the_preconditioned_predictors_with_loss_weights_are_one_model(new_trainer, tmp_path):
    """And not the direct ones, which are three."""

    def trained(*flags):
        np.random.seed(0)
        torch.manual_seed(0)
        exact = ["--precision", "fp32", "--dropout", 0]
        trainer = new_trainer(*exact, "--warmup_steps", 0, "--learning_rate", 1e-3, *flags)
        for _ in range(20):
            trainer.train_step(*batch(8))
        trainer.save()
        weights = torch.cat([weight.detach().flatten() for weight in trainer.weights])
        return weights, trainer.read_losses(), read_checkpoint(tmp_path / "last.ckpt")

    mended = ["--parametrization", "preconditioned", "--loss_weight", "min-snr"]
    weights, losses, checkpoint = trained("--predictor", "noise", *mended)
    assert checkpoint["parametrization"] == "preconditioned"
    for predictor in ("x0", "mean"):
        others, their_losses, _ = trained("--predictor", predictor, *mended)
        assert max_difference(others, weights) < 1e-3 and their_losses == pytest.approx(losses, rel=1e-3)
    for predictor in PREDICTORS:
        for flags in ([], mended[:2], mended[2:]):  # each of the two does something
            if (predictor, flags) != ("noise", mended[:2]):
                others, their_losses, _ = trained("--predictor", predictor, *flags)
                assert their_losses != pytest.approx(losses, rel=0.01), (predictor, flags)


def test_about_half_of_the_images_are_mirrored_left_to_right(new_trainer, asked):
    trainer, (images, labels) = new_trainer("--hflip"), batch(100)
    trainer.train_step(images, labels)
    seen = asked[0][0]
    mirrored = [torch.equal(x, y.flip(2)) for x, y in zip(seen, images, strict=True)]
    assert all(m or torch.equal(x, y) for m, x, y in zip(mirrored, seen, images, strict=True))
    assert sum(mirrored) == pytest.approx(50, abs=5 * 25**0.5)
    trainer.train_step(images, labels)
    assert not torch.equal(asked[1][0], seen)


def test_without_the_flag_no_image_is_mirrored(new_trainer, asked):
    trainer, (images, labels) = new_trainer(), batch(40)
    trainer.train_step(images, labels)
    assert torch.equal(asked[0][0], images)


def test_labels_reach_the_loss_of_a_conditional_model_only(new_trainer, asked):
    for flags in (["--use_cfg"], []):
        trainer, (images, labels) = new_trainer(*flags), batch()
        trainer.train_step(images, labels)
        seen = asked[-1][1]
        assert torch.equal(seen, labels) if flags else seen is None


def test_the_learning_rate_rises_and_then_stays(new_trainer):
    trainer = new_trainer("--learning_rate", 0.008, "--warmup_steps", 4)
    rates = []
    for _ in range(6):
        trainer.train_step(*batch())
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.008, 0.008])


@pytest.mark.parametrize(("warmup", "rate"), [(4, 0.002), (0, 0.008), (1, 0.008)])
def test_adams_first_step_is_as_long_as_the_learning_rate(new_trainer, warmup, rate):
    """Its moments are then g and g^2, and their quotient g / |g|."""
    trainer = new_trainer("--learning_rate", 0.008, "--warmup_steps", warmup)
    before = copy.deepcopy(trainer.ddpm.network.tail[-1].bias)
    trainer.train_step(*batch())
    moved = (trainer.ddpm.network.tail[-1].bias - before).abs()
    assert moved.tolist() == pytest.approx([rate] * 3, rel=1e-3)


def test_the_average_is_that_of_the_weights_after_each_step(new_trainer):
    trainer = new_trainer("--learning_rate", 0.01, "--warmup_steps", 0, "--ema_decay", 0.3)

    def weights(network):
        return torch.cat([p.detach().flatten() for p in network.parameters()]).double()

    average = weights(trainer.ddpm.network)
    for step in range(1, 6):
        trainer.train_step(*batch())
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights(trainer.ddpm.network)
    assert (weights(trainer.ema.network) - average).abs().max() < 1e-6
    assert (weights(trainer.ddpm.network) - average).abs().max() > 1e-3


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_each_predictor_is_trained_by_its_own_loss(new_trainer, monkeypatch, predictor):
    for other in {*PREDICTORS} - {predictor}:
        monkeypatch.delattr(DiffusionModule, f"get_loss_{other}")
    trainer = new_trainer("--predictor", predictor)
    trainer.train_step(*batch())
    assert trainer.step == 1


@pytest.mark.parametrize("wrong", [[1, 4, 1, 1], [-1, 1, 1, 1], [1.7, 1, 1, 1], [float("nan"), 1, 1, 1], [1, 2]])
def test_labels_that_do_not_exist_are_not_trained_on(new_trainer, wrong):
    trainer = new_trainer("--use_cfg")
    with pytest.raises(ValueError, match="class_label must"):
        trainer.train_step(batch()[0], torch.tensor(wrong))
    assert trainer.step == 0


# Pictures.


def test_pictures_are_the_averaged_networks_in_eval_mode_of_classes_1_2_3_1(new_trainer, tmp_path):
    trainer = new_trainer("--use_cfg", "--dropout", 0.5, "--seed", 7)
    last, averaged = awake(trainer.ddpm.network), awake(trainer.ema.network)
    with StopSignals() as stop:
        trainer.draw(stop)
    files = [tmp_path / f"step=0-{i}.png" for i in range(4)]
    assert same(files, chain_by_hand(trainer.ddpm, averaged, 7, range(4), [1, 2, 3, 1]))
    assert not same(files, chain_by_hand(trainer.ddpm, averaged, 7, range(4), [0, 1, 2, 0]))
    assert not same(files, chain_by_hand(trainer.ddpm, last, 7, range(4), [1, 2, 3, 1]))


def test_pictures_leave_training_as_it_was(new_trainer):
    """A run with pictures and one without are the same run."""
    ends = []
    for pictures in (False, True):
        torch.manual_seed(1)
        np.random.seed(1)
        trainer, (images, labels) = new_trainer("--dropout", 0.5), batch()
        for _ in range(2):
            if pictures:
                with StopSignals() as stop:
                    trainer.draw(stop)
            trainer.train_step(images, labels)
        ends.append(trainer.ddpm.network.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_module_in_eval_mode_stays_in_it_when_it_loads(new_trainer, tmp_path):
    ddpm = new_trainer("--dropout", 0.5).ddpm.eval()
    awake(ddpm.network)
    ddpm.save(tmp_path / "model.ckpt")

    def sample():
        torch.manual_seed(1)
        return ddpm.sample(2)

    before = sample()
    ddpm.load(tmp_path / "model.ckpt")
    assert torch.allclose(sample(), before, atol=1e-3)
    ddpm.train()
    ddpm.load(tmp_path / "model.ckpt")
    assert ddpm.network.training and not torch.allclose(sample(), before, atol=0.1)


# Numbers.


def test_a_row_is_the_mean_loss_of_exactly_its_steps(new_trainer, asked, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.LOG_EVERY", 3)
    trainer = new_trainer("--train_num_steps", 7, "--learning_rate", 0.01, "--warmup_steps", 5)
    for _ in range(7):
        trainer.train_step(*batch())
    trainer.write_stats()
    losses = [loss for *_, loss in asked]
    assert len(set(losses)) == 7
    rows = list(csv.DictReader((tmp_path / "stats.csv").open()))
    assert [int(row["step"]) for row in rows] == [3, 6, 7]
    means = [sum(losses[:3]) / 3, sum(losses[3:6]) / 3, losses[6]]
    assert [float(row["loss"]) for row in rows] == pytest.approx(means, abs=1e-6)
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([0.006, 0.01, 0.01])


def test_images_per_second_count_neither_pictures_nor_checkpoints_nor_pauses(new_trainer, monkeypatch):
    """By a clock that stands still but for half a second a step."""
    now = [0.0]
    monkeypatch.setattr("trainer.LOG_EVERY", 3)
    monkeypatch.setattr("trainer.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def wait(seconds, then=lambda *_: None):
        def slow(*args):
            now[0] += seconds
            return then(*args)

        return slow

    def slow_trainer():
        trainer = new_trainer("--batch_size", 4)
        trainer.load()
        trainer.draw, trainer.write_stats = wait(100), wait(1000)
        trainer.optimizer.zero_grad = wait(0.5, trainer.optimizer.zero_grad)
        return trainer

    trainer = slow_trainer()
    for step in range(7):
        if step in (0, 1, 3, 5):
            trainer.save_and_sample(None)
        if step == 5:  # stopped, and resumed much later
            now[0] += 10_000
            trainer = slow_trainer()
        trainer.train_step(*batch())
    assert [float(row["images_per_second"]) for row in trainer.stats] == [8.0, 8.0]


@pytest.mark.parametrize("synthetic", [True, False])
def test_drawn_faces_are_named_in_the_title_of_the_losses(new_trainer, tmp_path, monkeypatch, synthetic):
    titles = []
    monkeypatch.setattr(matplotlib.axes.Axes, "set_title", lambda axes, title, **_: titles.append(title))
    (tmp_path / "afhq").mkdir()
    if synthetic:
        (tmp_path / "afhq" / "SYNTHETIC.txt").touch()
    new_trainer("--data_root", tmp_path, "--predictor", "x0", "--mode", "cosine").write_stats()
    assert titles == ["x0 predictor, cosine schedule" + ", drawn faces" * synthetic]


def test_the_checkpoint_says_every_flag_of_network_and_schedule(new_trainer, tmp_path):
    new_trainer(
        *("--ch", 64, "--ch_mult", 1, 2, "--attn", 0, "--num_res_blocks", 2, "--dropout", 0.3, "--use_cfg"),
        *("--cfg_dropout", 0.7, "--image_resolution", 12, "--num_diffusion_train_timesteps", 7),
        *("--beta_1", 0.01, "--beta_T", 0.2, "--mode", "quad", "--predictor", "mean"),
    ).save()
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    assert checkpoint["network"] == {
        **{"T": 7, "image_resolution": 12, "ch": 64, "ch_mult": [1, 2], "attn": [0], "num_res_blocks": 2},
        **{"dropout": 0.3, "use_cfg": True, "cfg_dropout": 0.7, "num_classes": 3},
    }
    schedule = {"num_train_timesteps": 7, "beta_1": 0.01, "beta_T": 0.2, "mode": "quad", "sigma_type": "small"}
    assert checkpoint["var_scheduler"] == schedule
    assert checkpoint["predictor"] == "mean"


# The whole programs.


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    root = tmp_path_factory.mktemp("faces") / "afhq"
    write_synthetic_set(root, 4)
    return root


@pytest.fixture
def run(program, faces, tmp_path):
    """Train for two steps in a folder of its own; what was said, and the checkpoint."""

    def start(*flags):
        before = set(tmp_path.rglob("last.ckpt"))
        ended = program("train.py", "--data_root", faces, *TINY, "--batch_size", 3, "--train_num_steps", 2, *flags)
        assert ended.returncode == 0, ended.stderr
        (path,) = set(tmp_path.rglob("last.ckpt")) - before
        return ended.stdout, read_checkpoint(path)

    return start


@pytest.mark.parametrize(("limit", "images"), [(2, 6), (-1, 12)])
def test_the_number_of_images_of_each_class_follows_the_flag(run, limit, images):
    said, _ = run("--max_num_images_per_cat", limit)
    assert f": {images} drawn images, 3 classes" in said


def test_the_seed_decides_weights_losses_and_the_order_of_the_images(run, monkeypatch):
    ordinary, seen = Trainer.train_step, []

    def train_step(trainer, images, labels):
        seen.append((images, trainer.ddpm.network.head.weight.detach().clone()))
        ordinary(trainer, images, labels)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    a, again, b = (run("--seed", seed)[1]["training"] for seed in (1, 1, 2))
    assert a["stats"][0]["loss"] == again["stats"][0]["loss"] != b["stats"][0]["loss"]
    for name, weights in a["network"].items():
        assert torch.equal(weights, again["network"][name]), name
    of_a, _, of_again, _, of_b, _ = seen
    for ours, same, other in zip(of_a, of_again, of_b, strict=True):
        assert torch.equal(ours, same) and not torch.equal(ours, other)


@pytest.fixture
def trained(new_trainer, tmp_path):
    """A run whose averaged and last weights are far from each other and from 0, and its checkpoint."""
    trainer = new_trainer("--use_cfg", "--dropout", 0.5)
    awake(trainer.ddpm.network)
    awake(trainer.ema.network)
    trainer.save()
    return trainer, tmp_path / "last.ckpt"


@pytest.mark.parametrize(
    ("flags", "labels", "scale"),
    [
        ([], None, 1.0),
        (["--weights", "ema"], None, 1.0),
        (["--weights", "last"], None, 1.0),
        (["--use_cfg"], [1, 2, 3, 1, 2], 7.5),
        (["--use_cfg", "--cfg_scale", 2.5], [1, 2, 3, 1, 2], 2.5),
        (["--use_cfg", "--cfg_scale", 1, "--weights", "last"], [1, 2, 3, 1, 2], 1.0),
    ],
)
def test_samples_are_the_chain_of_the_wanted_weights_classes_and_guidance(
    program, trained, tmp_path, flags, labels, scale
):
    trainer, path = trained
    base = ["--ckpt_path", path, "--save_dir", "out", "--num_samples", 5, "--batch_size", 4, "--seed", 4]
    base += ["--precision", "fp32"]  # as the chain below: guidance multiplies what bfloat16 rounds off
    ended = program("sampling.py", *base, *flags)
    assert ended.returncode == 0, ended.stderr
    network = trainer.ddpm.network if "last" in flags else trainer.ema.network
    ddpm, by_hand = DiffusionModule(network, DDPMScheduler(4, 1e-4, 0.3)), []
    for numbers in (range(4), range(4, 5)):
        wanted = None if labels is None else [labels[i] for i in numbers]
        by_hand += chain_by_hand(ddpm, network, 4, numbers, wanted, scale)
    assert same([tmp_path / "out" / f"{i}.png" for i in range(5)], by_hand)


def test_a_guidance_scale_without_guidance_is_refused(program, trained):
    base = ["--ckpt_path", trained[1], "--save_dir", "out", "--num_samples", 1]
    assert refused(program("sampling.py", *base, "--cfg_scale", 2), "--cfg_scale: does nothing without --use_cfg")


def test_last_weights_of_a_checkpoint_without_them_are_refused(program, trained, tmp_path):
    trainer, _ = trained
    trainer.ddpm.save(tmp_path / "shared.ckpt")
    base = ["--ckpt_path", "shared.ckpt", "--save_dir", "out", "--num_samples", 1]
    assert refused(program("sampling.py", *base, "--weights", "last"), "shared.ckpt: holds no other weights")
