"""Optimisations of speed and memory change the last digits only."""

import itertools
import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import speed
import train
from conftest import SMALL_FLAGS, SMALL_UNET
from dataset import AFHQDataModule
from model import DiffusionModule
from module import AttnBlock
from network import UNet
from oracles import awake, max_difference, refused
from processes import PROGRAMS
from scheduler import DDPMScheduler
from stopping import StopSignals
from trainer import LOG_EVERY

CPU = torch.device("cpu")


def small_model(**settings):
    torch.manual_seed(0)
    network = awake(UNet(**SMALL_UNET | {"ch_mult": [1, 2], "attn": [1]} | settings))
    return DiffusionModule(network, DDPMScheduler(100, 1e-4, 0.02))


def loss_and_gradient(model):
    model.network.zero_grad()
    torch.manual_seed(1)
    np.random.seed(1)
    loss = model.get_loss(torch.rand(8, 3, 8, 8) * 2 - 1)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.network.parameters()])


def weights_after(trainer, steps=4):
    """The weights after a few steps, and their losses."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        trainer.train_step(torch.rand(8, 3, 8, 8, generator=generator) * 2 - 1, torch.ones(8, dtype=torch.long))
    weights = torch.cat([weight.detach().flatten() for weight in trainer.weights])
    return weights, [loss.item() for loss in trainer.pending_losses]


def is_channels_last(network):
    return network.head.weight.is_contiguous(memory_format=torch.channels_last)


# Precision and memory format


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close_and_the_prediction_is_float32(precision):
    model = small_model()
    loss, gradient = loss_and_gradient(model)
    model.precision = precision
    loss_16, gradient_16 = loss_and_gradient(model)
    assert loss_16 != loss and loss_16 == pytest.approx(loss, rel=5e-3)
    assert torch.cosine_similarity(gradient, gradient_16, dim=0) > 0.999
    assert model.predict(torch.randn(1, 3, 8, 8), torch.tensor([3])).dtype == torch.float32


def test_bf16_samples_differ_by_a_few_grey_levels():
    model, samples = small_model().eval(), []
    for model.precision in ("fp32", "bf16"):
        torch.manual_seed(3)
        samples.append(model.sample(4))
    assert 0 < max_difference(*samples) < 0.03 * samples[0].std()


@pytest.mark.parametrize(("avx512", "amx"), [(True, False), (False, True), (False, False)])
def test_auto_uses_bf16_where_the_processor_supports_it(monkeypatch, avx512, amx):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert speed.select_precision("auto", CPU) == ("bf16" if avx512 or amx else "fp32")
    assert all(speed.select_precision(name, CPU) == name for name in ("bf16", "fp16", "fp32"))


@pytest.mark.parametrize(
    ("bf16", "capability", "expected"), [(True, (8, 0), "bf16"), (False, (7, 5), "fp16"), (False, (6, 1), "fp32")]
)
def test_auto_uses_fp16_on_gpus_that_are_fast_with_it_but_lack_bf16(monkeypatch, bf16, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert speed.select_precision("auto", torch.device("cuda")) == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_on_a_cpu_has_its_precision_and_the_memory_format_that_is_fast_with_it(new_trainer, precision):
    trainer = new_trainer("--precision", precision)
    for module in (trainer.model, trainer.ema):
        assert module.precision == precision
        assert is_channels_last(module.network) is (precision == "fp32")


def test_a_gpu_has_channels_last_in_every_precision():
    """Decided by the type of device alone; "meta" stands in for a GPU."""
    for precision in ("fp32", "bf16", "fp16"):
        with torch.device("meta"):
            network = UNet(**SMALL_UNET)
        assert is_channels_last(speed.place_network(network, torch.device("meta"), precision))


def test_the_memory_format_changes_nothing():
    model = small_model()
    loss, gradient = loss_and_gradient(model)
    speed.place_network(model, CPU)
    assert is_channels_last(model.network)
    loss_cl, gradient_cl = loss_and_gradient(model)
    assert loss_cl == pytest.approx(loss, rel=1e-6)
    assert max_difference(gradient, gradient_cl) < 1e-5 * gradient.abs().max().item()


def test_fp16_scales_losses_so_that_no_gradient_vanishes_and_skips_steps_that_overflow(new_trainer):
    trainer = new_trainer("--precision", "fp16")
    images, labels = torch.rand(8, 3, 8, 8) * 2 - 1, torch.ones(8, dtype=torch.long)
    trainer.train_step(images, labels)
    before, scale = trainer.weights[0].detach().clone(), trainer.scaler.get_scale()
    assert scale > 1000
    trainer.scaler.update(new_scale=2.0**40)
    trainer.train_step(images, labels)
    assert torch.equal(trainer.weights[0], before) and trainer.scaler.get_scale() == 2.0**39
    trainer.scaler.update(new_scale=scale)
    trainer.train_step(images, labels)
    assert not torch.equal(trainer.weights[0], before)


def test_fp16_learns_what_float32_learns(new_trainer):
    flags = ["--learning_rate", 1e-3]
    plain, losses = weights_after(new_trainer(*flags))
    fast, losses_16 = weights_after(new_trainer(*flags, "--precision", "fp16"))
    assert losses_16 == pytest.approx(losses, rel=5e-3)
    assert 0 < max_difference(plain, fast) < 1e-2


def test_fp16_is_resumed_bit_for_bit(new_trainer):
    """Also its scale, which doubles here every second step."""
    whole, parts = new_trainer("--precision", "fp16"), new_trainer("--precision", "fp16")
    for trainer in (whole, parts):
        trainer.scaler.set_growth_interval(2)
    whole.train_step(torch.ones(4, 3, 8, 8), torch.ones(4, dtype=torch.long))
    whole.save()
    parts.load()
    weights = []
    for trainer in (whole, parts):
        np.random.seed(5)
        torch.manual_seed(5)
        weights.append(weights_after(trainer)[0])
    assert torch.equal(*weights)
    assert whole.scaler.state_dict() == parts.scaler.state_dict() and whole.scaler.get_scale() > 2**16


# Kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_attention_uses_a_kernel_that_stores_no_matrix_of_weights(memory_format, dtype):
    block = AttnBlock(32).to(dtype=dtype, memory_format=memory_format)
    x = torch.randn(2, 32, 8, 8, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # an error where it cannot be used
        block(x).sum().backward()
    assert x.grad.isfinite().all()


def test_fused_adam_is_adam():
    start = torch.randn(100)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    fused, plain = speed.adam([ours], 1e-2, CPU), torch.optim.Adam([theirs], lr=1e-2)
    assert fused.defaults["fused"]
    for _ in range(20):
        ours.grad = theirs.grad = torch.randn(100)
        fused.step()
        plain.step()
    assert max_difference(ours, theirs) < 1e-6


def test_losses_are_read_from_the_device_only_at_the_end_of_a_row(new_trainer, monkeypatch):
    trainer, reads = new_trainer(), []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda t, *a, o=original, n=name: (reads.append(n), o(t, *a))[1])
    images, labels = torch.rand(8, 3, 8, 8), torch.ones(8, dtype=torch.long)
    for _ in range(LOG_EVERY - 1):
        trainer.train_step(images, labels)
    assert not reads
    trainer.train_step(images, labels)
    assert reads


# Memory


def test_recomputed_activations_give_the_same_gradient_bit_for_bit(new_trainer):
    """Also with dropout, which must be drawn the same a second time."""
    model = small_model(dropout=0.3)
    loss, gradient = loss_and_gradient(model)
    model.network.activation_checkpointing = True
    calls = []
    for block in model.network.downblocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    loss_again, gradient_again = loss_and_gradient(model)
    assert loss_again == loss and torch.equal(gradient, gradient_again)
    assert len(calls) > len(model.network.downblocks)
    for flags in (["--activation_checkpointing"], []):
        assert new_trainer(*flags).network.activation_checkpointing is bool(flags)


def test_a_batch_in_parts_is_the_same_batch(new_trainer):
    flags = ["--learning_rate", 1e-3]
    whole, losses = weights_after(new_trainer(*flags))
    trainer, sizes = new_trainer(*flags, "--accumulate", 4), []
    trainer.network.head.register_forward_hook(lambda layer, inputs, _: sizes.append(len(inputs[0])))
    parts, losses_of_parts = weights_after(trainer)
    assert sizes == [2] * 16
    assert losses_of_parts == pytest.approx(losses, rel=1e-5)
    assert max_difference(whole, parts) < 1e-5


def test_batches_from_the_memory_of_a_device_are_those_of_the_file(faces):
    data = AFHQDataModule(faces, batch_size=4, image_resolution=8)
    from_file, from_memory = data.train_batches(3), data.train_batches(3)
    from_memory.pixels = from_memory.pixels.clone()
    for step in (0, 2, 7):
        assert all(torch.equal(a, b) for a, b in zip(from_file[step], from_memory[step], strict=True))


# Compilation


def test_when_compilation_is_worth_it(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert speed.should_compile("auto", cuda, 2000) and not speed.should_compile("auto", cuda, 100)
    assert speed.should_compile("on", CPU, 1) and not speed.should_compile("auto", CPU, 10**6)
    assert not speed.should_compile("off", cuda, 10**6)
    for name, absent in [
        ("torch.cuda.get_device_capability", lambda device: (6, 1)),
        ("shutil.which", lambda name: None),
        ("importlib.util.find_spec", lambda name: None),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(name, absent)
            assert not speed.should_compile("auto", cuda, 10**6), name


@pytest.fixture
def compiled(monkeypatch):
    """The networks that were to be compiled, and whether to a CUDA graph; none is compiled."""
    calls = []

    def record(network, cuda_graph=True):
        calls.append((network, cuda_graph))
        return network

    monkeypatch.setattr(speed, "compile_network", record)
    return calls


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
    assert len(losses) == 4 and capsys.readouterr().out.count("\n") == 1

    torch.compiler.set_stance("default")
    trainer = new_trainer()
    trainer.save_samples(StopSignals())
    assert trainer.has_samples and capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize("failing_call", [1, 3])
def test_on_ends_with_a_failing_compilation(program, faces, tmp_path, failing_compiler, failing_call):
    failing_compiler(failing_call)
    flags = ["train.py", "--data_root", faces, *SMALL_FLAGS, "--batch_size", 4, "--compile", "on"]
    assert refused(program(*flags), "--compile")
    small_model().save(tmp_path / "model.ckpt")
    flags = ["--ckpt_path", "model.ckpt", "--save_dir", "out", "--num_samples", 2, "--sample_method", "dpm"]
    assert refused(program("sampling.py", *flags, "--compile", "on"), "--compile")


def test_on_without_a_compiler_is_refused_before_there_is_a_run(program, faces, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    flags = ["train.py", "--data_root", faces, *SMALL_FLAGS, "--batch_size", 4, "--compile", "on"]
    assert refused(program(*flags), "--compile")
    assert not list(tmp_path.iterdir())


def test_a_bug_in_the_model_keeps_its_traceback_when_compiled(new_trainer, failing_compiler, monkeypatch):
    failing_compiler(1)
    trainer = new_trainer("--compile", "on")
    monkeypatch.setattr(trainer.model, "weighted_mse", lambda *_: [][0])
    with pytest.raises(IndexError):
        weights_after(trainer)


@pytest.mark.parametrize("method", ["ddpm", "ddim", "dpm"])
def test_a_network_may_write_every_output_into_the_same_memory(method):
    """As a CUDA graph does; what a sampler keeps of earlier outputs must not change."""
    network = awake(UNet(**SMALL_UNET)).eval()
    memory = torch.empty(2, 3, 8, 8)

    class InOnePlace(torch.nn.Module):
        image_resolution = 8

        def forward(self, x, t):
            return memory.copy_(network(x, t))

    samples = []
    for called in (network, InOnePlace()):
        torch.manual_seed(0)
        samples.append(DiffusionModule(called, DDPMScheduler(40, 1e-3, 0.3), "x0").sample(2, sample_method=method))
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


@pytest.mark.slow
def test_200_steps_in_bf16_follow_those_in_float32(new_trainer, monkeypatch):
    """Step by step within the error of bfloat16 (2^-8 of each product), and without drift."""
    monkeypatch.setattr("trainer.LOG_EVERY", 10**6)
    colours = torch.rand(64, 3, 1, 1, generator=torch.Generator().manual_seed(5)).expand(-1, -1, 8, 8) * 2 - 1

    def losses(precision, seed=2):
        trainer = new_trainer("--precision", precision, "--warmup_steps", 20)
        torch.manual_seed(seed)
        np.random.seed(seed)
        for i in range(200):
            trainer.train_step(colours[8 * (i % 8) :][:8], torch.ones(8, dtype=torch.long))
        return torch.stack(trainer.pending_losses)

    plain, fast, other = losses("fp32"), losses("bf16"), losses("fp32", seed=3)
    assert plain[-20:].mean() < plain[:20].mean() / 2
    apart = (fast / plain - 1).abs()
    print(f"\nlosses of bf16 and float32: {apart.max():.4f} apart at most, {apart.mean():.4f} on average")
    assert 0 < apart.max() < 0.05 and apart.mean() < 0.01
    assert (other / plain - 1).abs().mean() > 0.1
    assert fast.mean().item() == pytest.approx(plain.mean().item(), rel=2e-3)


def test_hardly_any_time_is_spent_on_data(new_trainer, faces):
    batches = AFHQDataModule(faces, batch_size=8, image_resolution=32).train_batches(3)
    trainer = new_trainer("--image_resolution", 32, "--ch_mult", 1, 2, 2, "--attn", 2)

    def median_seconds(call, number):
        seconds = []
        for i in range(number):
            started = time.perf_counter()
            call(i)
            seconds.append(time.perf_counter() - started)
        return sorted(seconds)[number // 2]

    data = median_seconds(lambda i: batches[i], 30)  # many epochs
    step = median_seconds(lambda i: trainer.train_step(*batches[i]), 5)
    assert data < 0.05 * step


# The benchmarks


@pytest.fixture
def benchmark(load_report):
    return load_report("../benchmarks/training")


@pytest.fixture
def new_loop(benchmark, faces):
    """A training loop of the benchmark with some of its optimisations."""
    args = train.parse_arguments([*SMALL_FLAGS, "--attn", "0", "--batch_size", "8"])
    data = AFHQDataModule(faces, 8, max_num_images_per_cat=-1, image_resolution=8)
    return lambda optimisations: benchmark.Loop(frozenset(optimisations), args, data, CPU)


@pytest.mark.parametrize("count", range(6))
def test_each_optimisation_of_the_benchmark_is_applied_and_changes_no_loss(benchmark, new_loop, monkeypatch, count):
    """The first `count` of those that a CPU in float32 has."""
    optimisations, decoded = benchmark.OPTIMISATIONS[:count], []
    resize = benchmark.resize
    monkeypatch.setattr(benchmark, "resize", lambda *args: decoded.append(args) or resize(*args))

    def losses_of(loop):
        images = next(loop.images)
        assert images.shape == (8, 3, 8, 8) and -1 <= images.min() < 0 < images.max() <= 1
        loop.images = (torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(3))
        np.random.seed(0)
        torch.manual_seed(0)
        return [loop.step().tolist() for _ in range(3)]

    expected = losses_of(new_loop([]))
    assert decoded
    decoded.clear()
    loop = new_loop(optimisations)
    assert losses_of(loop) == pytest.approx(expected, rel=1e-5)
    assert loop.steps == 3 and loop.model.precision == "fp32"
    assert bool(decoded) == ("cached images" not in optimisations)
    assert bool(loop.optimizer.defaults["fused"]) == ("fused Adam" in optimisations)
    assert is_channels_last(loop.model.network) == ("channels last" in optimisations)


def test_the_last_optimisations_of_the_benchmark_are_applied(benchmark, new_loop, compiled):
    *others, bf16, compilation = benchmark.OPTIMISATIONS
    assert new_loop([*others, bf16]).model.precision == "bf16" and not compiled
    loop = new_loop([*others, bf16, compilation])
    assert [network for network, _ in compiled] == [loop.model.network]
    for optimisations in ([], ["TF32"]):
        with benchmark.process_settings(optimisations):
            assert torch.backends.cuda.matmul.allow_tf32 is bool(optimisations)
    assert torch.backends.cuda.matmul.allow_tf32 is False


def test_the_benchmark_of_training_measures_the_optimisations_of_this_device(program, faces, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])  # the program adds to it
    flags = ["--batch_size", 2, "--turns", 1, "--steps", 1, "--data_root", faces, "--json", "speed.json"]
    run = program("../benchmarks/training.py", *flags)
    assert run.returncode == 0, run.stderr
    (result,) = json.loads((tmp_path / "speed.json").read_text())["results"]
    rows = [row["row"] for row in result["table"]]
    assert rows[0] == "plain" and rows[-1] == "train.py" and "+ channels last" in rows and len(rows) >= 7
    assert all(row["images_per_second"] > 0 and row["row"] in run.stdout for row in result["table"])
    assert 0 < result["share_of_time_on_data"] < 0.2
    hours = result["hours_for_100k_steps_with_pictures"]
    by_steps = {row["row"]: 1e5 * 2 / row["images_per_second"] / 3600 for row in result["table"]}
    sampling = {name: hours[name] - by_steps[name] for name in hours}
    assert 5 < sampling["plain"] / sampling["train.py"] < 80  # 1000 chains, half of them of one image, instead of 50


def test_the_benchmark_of_memory_sees_that_activations_are_recomputed(tmp_path):
    command = [sys.executable, PROGRAMS.parent / "benchmarks/memory.py", "--ch", "32", "--batch_size", "32"]
    command += ["--image_resolution", "32", "--json", "memory.json"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (row,) = json.loads((tmp_path / "memory.json").read_text())
    assert (row["image_resolution"], row["batch_size"]) == (32, 32)
    assert 0 < row["recomputed_gib"] < 0.75 * row["kept_gib"]


@pytest.mark.slow
def test_the_benchmark_of_patches_sees_that_they_save_time_and_memory(tmp_path):
    command = [sys.executable, PROGRAMS.parent / "benchmarks/patches.py", "--networks", "small", "--turns", "1"]
    command += ["--image_resolution", "32", "--json", "patches.json"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rows = json.loads((tmp_path / "patches.json").read_text())
    assert [row["patch_size"] for row in rows] == [1, 2, 4]
    for name in ("step_seconds", "evaluation_seconds", "memory_gib"):
        assert rows[0][name] > rows[1][name] > rows[2][name] > 0, name
