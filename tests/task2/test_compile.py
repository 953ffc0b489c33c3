"""Compiled networks: when, how they are called, and what happens where compilation fails."""

import itertools

import pytest
import torch

import speed
from conftest import SMALL_FLAGS, small_model, weights_after
from network import UNet
from oracles import max_difference, refused
from stopping import StopSignals

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("switch", "device", "num_calls", "expected"),
    [
        ("auto", CUDA, 2000, True),
        ("auto", CUDA, 100, False),
        ("auto", CPU, 10**6, False),
        ("on", CPU, 1, True),
        ("off", CUDA, 10**6, False),
    ],
)
def test_when_compilation_is_worth_it(switch, device, num_calls, expected):
    assert speed.should_compile(switch, device, num_calls) is expected


@pytest.mark.parametrize(("flags", "cuda_graph"), [([], True), (["--accumulate", 2], False)])
def test_gradients_that_are_added_to_are_not_in_a_cuda_graph(new_trainer, compiled, flags, cuda_graph):
    trainer = new_trainer("--compile", "on", *flags)
    assert compiled == [(trainer.network, cuda_graph), (trainer.ema.network, True)]


def test_a_compiled_network_is_called_with_one_batch_size(program, tmp_path, compiled, monkeypatch):
    """Another size would be compiled anew, which takes a minute."""
    small_model().save(tmp_path / "model.ckpt")
    sizes, forward = set(), UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda network, x, *rest: sizes.add(len(x)) or forward(network, x, *rest))
    flags = ["--num_samples", 5, "--batch_size", 2, "--sample_method", "dpm", "--num_inference_steps", 2]
    run = program("sampling.py", "--ckpt_path", "model.ckpt", "--save_dir", "out", *flags, "--compile", "on")
    assert run.returncode == 0, run.stderr
    assert compiled and sizes == {2} and len(list((tmp_path / "out").iterdir())) == 5


@pytest.fixture
def failing_compiler(monkeypatch):
    """Let every compiled network fail at this call: 1 is its compilation."""

    def install(failing_call):
        def compiler(graph, inputs):
            calls = itertools.count(1)

            def run(*args):
                if next(calls) == failing_call:
                    raise RuntimeError("no\nkernel")
                return graph(*args)

            if failing_call == 1:
                raise RuntimeError("no\ncompiler")
            return run

        monkeypatch.setattr(speed, "compile_network", lambda network, **_: network.compile(backend=compiler))

    yield install
    torch.compiler.set_stance("default")
    torch.compiler.reset()


@pytest.mark.parametrize("failing_call", [1, 3])
def test_auto_goes_on_without_a_compilation_that_fails(
    new_trainer, failing_compiler, monkeypatch, capsys, failing_call
):
    failing_compiler(failing_call)
    monkeypatch.setattr(speed, "should_compile", lambda *_: True)
    _, losses = weights_after(new_trainer())
    assert len(losses) == 4 and capsys.readouterr().err.count("\n") == 1

    torch.compiler.set_stance("default")
    trainer = new_trainer()
    trainer.save_samples(StopSignals())
    assert trainer.has_samples and [line[:5] for line in capsys.readouterr().err.splitlines()] == ["note:"]


@pytest.mark.parametrize("failing_call", [1, 3])
def test_on_ends_with_a_failing_compilation(program, faces, tmp_path, failing_compiler, failing_call):
    failing_compiler(failing_call)
    flags = ["train.py", "--data_root", faces, *SMALL_FLAGS, "--batch_size", 4, "--compile", "on"]
    assert refused(program(*flags), "--compile")
    small_model().save(tmp_path / "model.ckpt")
    flags = ["--ckpt_path", "model.ckpt", "--save_dir", "out", "--num_samples", 2, "--sample_method", "dpm"]
    assert refused(program("sampling.py", *flags, "--compile", "on"), "--compile")


def test_a_bug_in_the_model_keeps_its_traceback_when_compiled(new_trainer, failing_compiler, monkeypatch):
    failing_compiler(1)
    trainer = new_trainer("--compile", "on")
    monkeypatch.setattr(trainer.model, "weighted_mse", lambda *_: [][0])
    with pytest.raises(IndexError):
        weights_after(trainer)


@pytest.mark.parametrize("method", ["ddpm", "ddim", "dpm"])
def test_a_network_may_write_every_output_into_the_same_memory(method):
    """As a CUDA graph does; what a sampler keeps of earlier outputs must not change."""
    model = small_model("x0", T=40).eval()
    network, memory, samples = model.network, torch.empty(2, 3, 8, 8), []

    class InOnePlace(torch.nn.Module):
        image_resolution = 8

        def forward(self, x, t):
            return memory.copy_(network(x, t))

    for model.network in (network, InOnePlace()):
        torch.manual_seed(0)
        samples.append(model.sample(2, sample_method=method))
    assert torch.equal(*samples)


@pytest.mark.slow
def test_a_compiled_network_learns_and_samples_the_same(new_trainer):
    plain, losses = weights_after(new_trainer("--learning_rate", 1e-3))
    trainer = new_trainer("--learning_rate", 1e-3, "--compile", "on")
    fast, fast_losses = weights_after(trainer)
    assert fast_losses == pytest.approx(losses, rel=1e-4)
    assert max_difference(plain, fast) < 1e-4
    x, t = torch.randn(4, 3, 8, 8), torch.full((4,), 5)
    with torch.no_grad():
        predicted = trainer.ema.predict(x, t)
        with torch.compiler.set_stance("force_eager"):
            assert max_difference(predicted, trainer.ema.predict(x, t)) < 1e-5
