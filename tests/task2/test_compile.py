"""Compiled networks: when, how they are called, and what happens where compilation fails."""

import pytest
import torch

import speed
from cli import UserError
from conftest import SMALL_FLAGS, small_model, weights_after
from network import UNet
from oracles import max_difference, refused
from stopping import StopSignals

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def new_gpu(monkeypatch):
    """A machine with a GPU and everything that compilation for it needs."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.mark.usefixtures("new_gpu")
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


@pytest.mark.usefixtures("new_gpu")
@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("torch.cuda.get_device_capability", lambda device: (6, 1)),
        ("shutil.which", lambda name: None),
        ("importlib.util.find_spec", lambda name: None),
    ],
)
def test_where_compilation_cannot_work_auto_goes_without_and_on_is_an_error(monkeypatch, name, absent):
    monkeypatch.setattr(name, absent)
    assert not speed.should_compile("auto", CUDA, 10**6)
    with pytest.raises(UserError, match="--compile"):
        speed.should_compile("on", CUDA, 10**6)


def test_a_compiler_that_CC_names_is_found(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: name if name == "/opt/bin/icx" else None)
    monkeypatch.setenv("CC", "/opt/bin/icx -O2")
    assert speed.should_compile("on", CPU, 1)


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


@pytest.fixture(params=["when compiled", "when called"])
def failing_compiler(monkeypatch, request):
    """Every compiled network fails."""

    def fail(*_):
        raise RuntimeError("no\nkernel")

    def compiler(graph, inputs):
        return fail if request.param == "when called" else fail()

    monkeypatch.setattr(speed, "compile_network", lambda network, **_: network.compile(backend=compiler))
    yield
    torch.compiler.set_stance("default")
    torch.compiler.reset()


@pytest.mark.usefixtures("failing_compiler")
def test_auto_goes_on_without_a_compilation_that_fails(new_trainer, monkeypatch, capsys):
    _, losses = weights_after(new_trainer("--compile", "off"))
    monkeypatch.setattr(speed, "should_compile", lambda *_: True)
    assert weights_after(new_trainer())[1] == losses  # with the same noise and timesteps
    assert capsys.readouterr().err.count("\n") == 1

    torch.compiler.set_stance("default")
    trainer = new_trainer()
    trainer.save_samples(StopSignals())
    assert trainer.has_samples and [line[:5] for line in capsys.readouterr().err.splitlines()] == ["note:"]


@pytest.mark.usefixtures("failing_compiler")
def test_on_ends_with_a_failing_compilation_but_a_bug_keeps_its_traceback(program, new_trainer, tmp_path, monkeypatch):
    trainer = new_trainer("--compile", "on")
    with pytest.raises(UserError, match="--compile"):
        weights_after(trainer)
    monkeypatch.setattr(trainer.model, "weighted_mse", lambda *_: [][0])
    with pytest.raises(IndexError):
        weights_after(trainer)
    small_model().save(tmp_path / "model.ckpt")
    flags = ["--ckpt_path", "model.ckpt", "--save_dir", "out", "--num_samples", 2, "--sample_method", "dpm"]
    assert refused(program("sampling.py", *flags, "--compile", "on"), "--compile")


@pytest.mark.parametrize("method", ["ddpm", "ddim", "dpm"])
def test_a_network_may_write_every_output_into_the_same_memory(method):
    """As a CUDA graph does; what a sampler keeps of earlier outputs must not change."""
    model = small_model("x0", T=40).eval()
    memory, samples, forward = torch.empty(2, 3, 8, 8), [], model.network.forward
    for model.network.forward in (forward, lambda x, t: memory.copy_(forward(x, t))):
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


def test_on_without_a_compiler_is_refused_before_there_is_a_run(program, faces, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    flags = ["train.py", "--data_root", faces, *SMALL_FLAGS, "--batch_size", 4, "--compile", "on"]
    assert refused(program(*flags), "--compile")
    assert not list(tmp_path.iterdir())
