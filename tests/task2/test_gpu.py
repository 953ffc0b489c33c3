"""What only a GPU can show; left out where there is none."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import speed
import train
from checkpoint import read_checkpoint
from dataset import AFHQDataModule
from model import DiffusionModule
from network import UNet
from oracles import awake, only_run
from scheduler import PREDICTORS, DDPMScheduler
from synthetic_faces import write_synthetic_set
from trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

TINY = "--ch 32 --ch_mult 1 2 --attn 1 --num_res_blocks 1 --image_resolution 16 --num_diffusion_train_timesteps 20"
TINY = [*TINY.split(), "--batch_size", "8", "--dropout", "0", "--warmup_steps", "10", "--learning_rate", "1e-3"]


def small_model(predictor="noise"):
    torch.manual_seed(0)
    network = awake(UNet(T=20, image_resolution=16, ch=32, ch_mult=[1, 2], attn=[1], num_res_blocks=1)).eval()
    return DiffusionModule(network, DDPMScheduler(20, 1e-3, 0.3), predictor)


@pytest.fixture
def faces(tmp_path):
    write_synthetic_set(tmp_path / "afhq", 8)
    return tmp_path / "afhq"


def losses_of(faces, tmp_path, steps, *flags):
    args = train.parse_arguments([*TINY, *flags])
    torch.manual_seed(1)
    np.random.seed(1)
    cuda = torch.device("cuda:0")
    trainer = Trainer(args, 3, cuda, tmp_path)
    batches = AFHQDataModule(faces, batch_size=8, image_resolution=16).train_batches(3, cuda)
    kept = []
    gradient = trainer._gradient
    trainer._gradient = lambda *batch: kept.append(gradient(*batch).clone()) or kept[-1]
    for step in range(steps):
        trainer.train_step(*batches[step])
    return torch.stack(kept).cpu()


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_the_answer_is_that_of_the_cpu(predictor):
    ddpm = small_model(predictor)
    x_t, t = torch.randn(4, 3, 16, 16), torch.tensor([0, 5, 12, 19])
    with torch.no_grad():
        expected = ddpm.predict(x_t, t)
        speed.place_network(ddpm, torch.device("cuda:0"))
        for bf16, tolerance in ((False, 1e-2), (True, 0.1)):
            ddpm.bf16 = bf16
            answer = ddpm.predict(x_t.cuda(), t.cuda()).cpu()
            assert (answer - expected).abs().max() < tolerance * expected.std()


@pytest.mark.parametrize(
    "flags",
    [[], ["--compile", "on"], ["--compile", "on", "--accumulate", "2"], ["--activation_checkpointing"]],
    ids=" ".join,
)
def test_every_way_of_training_has_the_losses_of_the_plain_one(faces, tmp_path, flags):
    """CUDA graphs with and without accumulation, fused Adam, bf16, data in the GPU's memory."""
    plain = losses_of(faces, tmp_path, 60, "--precision", "fp32", "--compile", "off")
    fast = losses_of(faces, tmp_path, 60, "--precision", "bf16", *flags)
    assert plain[-10:].mean() < 0.7 * plain[:10].mean()
    apart = (fast / plain - 1).abs()
    assert apart.max() < 0.1 and apart.mean() < 0.02


def test_a_compiled_chain_is_the_plain_one():
    ddpm = small_model()
    speed.place_network(ddpm, torch.device("cuda:0"))
    fast = copy.deepcopy(ddpm)
    fast.network = speed.compile_network(fast.network)
    for method in ("ddpm", "ddim", "dpm"):
        samples = []
        for module in (ddpm, fast):
            torch.manual_seed(4)
            samples.append(module.sample(2, sample_method=method, num_inference_steps=None if method == "ddpm" else 8))
        assert (samples[0] - samples[1]).abs().max() < 0.02 * samples[0].std()


def test_a_run_goes_on_on_the_gpu_and_is_sampled_on_either_device(program, faces, tmp_path):
    flags = ["--data_root", faces, *TINY, "--log_interval", 10, "--train_num_steps", 20]
    run = program("train.py", *flags)
    assert run.returncode == 0 and "on cuda:0" in run.stdout, run.stderr
    folder = only_run(tmp_path)
    run = program("train.py", "--resume", folder, "--train_num_steps", 30)
    assert run.returncode == 0 and "finished at step 30" in run.stdout, run.stderr
    assert read_checkpoint(folder / "last.ckpt")["training"]["step"] == 30
    for flags in (["--device", "cpu"], ["--compile", "on"], ["--precision", "fp32"]):
        place = flags[-1]
        run = program(
            *("sampling.py", "--ckpt_path", folder / "last.ckpt", "--save_dir", place),
            *("--num_samples", 5, "--batch_size", 4, *flags),
        )
        assert run.returncode == 0, run.stderr
        assert [Image.open(tmp_path / place / f"{i}.png").size for i in range(5)] == [(16, 16)] * 5
    fast, plain = (
        np.stack([np.asarray(Image.open(tmp_path / place / f"{i}.png")) for i in range(5)]).astype(int)
        for place in ("on", "fp32")
    )
    assert np.abs(fast - plain).mean() < 3
