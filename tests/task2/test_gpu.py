"""What only a GPU can show; skipped without one."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import speed
import train
from checkpoint import read_checkpoint
from conftest import small_model
from dataset import AFHQDataModule
from oracles import only_run
from scheduler import PREDICTORS
from trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

CUDA = torch.device("cuda:0")
FLAGS = "--ch 32 --ch_mult 1 2 --attn 1 --num_res_blocks 1 --image_resolution 16 --num_diffusion_train_timesteps 20"
FLAGS = [*FLAGS.split(), "--batch_size", "8", "--dropout", "0", "--warmup_steps", "10", "--learning_rate", "1e-3"]
SIZES = {"T": 20, "image_resolution": 16, "ch_mult": [1, 2], "attn": [1]}


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_predictions_are_those_of_the_cpu(predictor):
    model = small_model(predictor, **SIZES).eval()
    x_t, t = torch.randn(4, 3, 16, 16), torch.tensor([0, 5, 12, 19])
    with torch.no_grad():
        expected = model.predict(x_t, t)
        speed.place_network(model, CUDA)
        for model.precision, tolerance in (("fp32", 1e-2), ("bf16", 0.1), ("fp16", 0.02)):
            assert (model.predict(x_t.cuda(), t.cuda()).cpu() - expected).abs().max() < tolerance * expected.std()


@pytest.mark.parametrize(
    "flags",
    [
        ["--precision", "bf16"],
        ["--precision", "fp16"],
        ["--precision", "bf16", "--compile", "on"],
        ["--precision", "bf16", "--compile", "on", "--accumulate", "2"],
        ["--precision", "bf16", "--activation_checkpointing"],
    ],
    ids=" ".join,
)
def test_every_way_of_training_has_the_losses_of_the_plain_one(faces, tmp_path, monkeypatch, flags):
    """CUDA graphs with and without accumulation, fused Adam, half precision, data in the GPU's memory."""
    monkeypatch.setattr("trainer.LOG_EVERY", 10**6)
    batches = AFHQDataModule(faces, batch_size=8, image_resolution=16).train_batches(3, CUDA)
    losses = []
    for some in (["--precision", "fp32", "--compile", "off"], flags):
        torch.manual_seed(1)
        np.random.seed(1)
        trainer = Trainer(train.parse_arguments([*FLAGS, *some]), 3, CUDA, tmp_path)
        for step in range(60):
            trainer.train_step(*batches[step])
        losses.append(torch.stack(trainer.pending_losses).cpu())
    plain, fast = losses
    assert plain[-10:].mean() < 0.7 * plain[:10].mean()
    apart = (fast / plain - 1).abs()
    assert apart.max() < 0.1 and apart.mean() < 0.02


@pytest.mark.parametrize("method", ["ddpm", "ddim", "dpm"])
def test_compiled_sampling_gives_the_plain_samples(method):
    model = small_model(**SIZES).eval()
    speed.place_network(model, CUDA)
    compiled = copy.deepcopy(model)
    speed.compile_network(compiled.network)
    samples = []
    for module in (model, compiled):
        torch.manual_seed(4)
        samples.append(module.sample(2, sample_method=method, num_inference_steps=None if method == "ddpm" else 8))
    assert (samples[0] - samples[1]).abs().max() < 0.02 * samples[0].std()


def test_a_run_is_resumed_on_the_gpu_and_sampled_on_either_device(program, faces, tmp_path):
    run = program("train.py", "--data_root", faces, *FLAGS, "--log_interval", 10, "--train_num_steps", 20)
    assert run.returncode == 0 and "cuda:0" in run.stdout, run.stderr
    folder = only_run(tmp_path)
    run = program("train.py", "--resume", folder, "--train_num_steps", 30)
    assert run.returncode == 0, run.stderr
    assert read_checkpoint(folder / "last.ckpt")["training"]["step"] == 30
    images = {}
    for flags in (["--device", "cpu"], ["--compile", "on"], ["--precision", "fp32"]):
        name = flags[-1]
        command = ["--ckpt_path", folder / "last.ckpt", "--save_dir", name, "--num_samples", 5, "--batch_size", 4]
        run = program("sampling.py", *command, *flags)
        assert run.returncode == 0, run.stderr
        images[name] = np.stack([np.asarray(Image.open(tmp_path / name / f"{i}.png")) for i in range(5)]).astype(int)
        assert images[name].shape == (5, 16, 16, 3)
    assert np.abs(images["on"] - images["fp32"]).mean() < 3
