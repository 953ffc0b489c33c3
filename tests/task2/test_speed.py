"""The levers of speed and memory change nothing but the last digits."""

import copy
import json
import subprocess
import sys
import time
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import sampling
import speed
import train
from dataset import AFHQDataModule
from model import DiffusionModule
from module import AttnBlock
from network import UNet
from oracles import awake, max_difference
from processes import PROGRAMS
from scheduler import DDPMScheduler
from synthetic_faces import write_synthetic_set
from trainer import LOG_EVERY, Trainer

CPU = torch.device("cpu")


def small_model(**settings):
    torch.manual_seed(0)
    network = UNet(**{"image_resolution": 8, "ch": 32, "ch_mult": [1, 2], "attn": [1], "num_res_blocks": 1} | settings)
    return DiffusionModule(awake(network), DDPMScheduler(100, 1e-4, 0.02))


def loss_and_gradient(ddpm):
    torch.manual_seed(1)
    np.random.seed(1)
    loss = ddpm.get_loss(torch.rand(8, 3, 8, 8) * 2 - 1)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in ddpm.network.parameters()])


def trainer_with(tmp_path, *flags):
    tiny = "--ch 32 --ch_mult 1 --attn --num_res_blocks 1 --image_resolution 8 --num_diffusion_train_timesteps 12"
    args = train.parse_arguments([*tiny.split(), "--batch_size", "8", *flags])
    torch.manual_seed(0)
    np.random.seed(0)
    return Trainer(args, 3, CPU, tmp_path)


def weights_after(trainer, steps=4):
    torch.manual_seed(2)
    np.random.seed(2)
    for i in range(steps):
        images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(i)) * 2 - 1
        trainer.train_step(images, torch.ones(8, dtype=torch.long))
    return torch.cat([weight.detach().flatten() for weight in trainer.weights]), [
        loss.item() for loss in trainer.recent
    ]


def test_bf16_is_close_and_the_answer_is_float32():
    ddpm = small_model(dropout=0.0)
    loss, gradient = loss_and_gradient(ddpm)
    ddpm.network.zero_grad()
    ddpm.bf16 = True
    loss_16, gradient_16 = loss_and_gradient(ddpm)
    assert loss_16 != loss and loss_16 == pytest.approx(loss, rel=5e-3)
    assert torch.cosine_similarity(gradient, gradient_16, dim=0) > 0.999
    assert ddpm.predict(torch.randn(1, 3, 8, 8), torch.tensor([3]), None).dtype == torch.float32


def test_bf16_leaves_whole_samples_within_a_few_grey_levels():
    ddpm = small_model().eval()
    torch.manual_seed(3)
    plain = ddpm.sample(4)
    ddpm.bf16 = True
    torch.manual_seed(3)
    fast = ddpm.sample(4)
    assert 0 < (plain - fast).abs().max() < 0.03 * plain.std()


@pytest.mark.parametrize("avx512", [True, False])
@pytest.mark.parametrize("amx", [True, False])
def test_auto_takes_bf16_where_the_processor_has_it(monkeypatch, avx512, amx):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert speed.uses_bf16("auto", CPU) is (avx512 or amx)
    assert speed.uses_bf16("bf16", CPU) and not speed.uses_bf16("fp32", CPU)


def test_a_run_says_its_precision_to_its_modules(tmp_path):
    for flag in ("bf16", "fp32"):
        trainer = trainer_with(tmp_path, "--precision", flag)
        assert trainer.learner.bf16 is trainer.sampler.bf16 is (flag == "bf16")


def test_the_order_of_bytes_changes_nothing():
    ddpm = small_model(dropout=0.0)
    loss, gradient = loss_and_gradient(ddpm)
    ddpm.network.zero_grad()
    speed.place_network(ddpm, CPU)
    assert is_channels_last(ddpm.network)
    loss_cl, gradient_cl = loss_and_gradient(ddpm)
    assert loss_cl == pytest.approx(loss, rel=1e-6)
    assert max_difference(gradient, gradient_cl) < 1e-5 * gradient.abs().max().item()


def is_channels_last(network):
    return network.head.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("precision", "expected"), [("fp32", True), ("bf16", False)])
def test_a_run_on_a_cpu_has_the_order_of_bytes_that_is_fast_there(tmp_path, precision, expected):
    trainer = trainer_with(tmp_path, "--precision", precision)
    assert is_channels_last(trainer.ddpm.network) is is_channels_last(trainer.ema.network) is expected


def test_a_gpu_has_channels_last_in_every_precision():
    """Told by the kind of device alone; "meta" stands for it, and needs none."""
    for bf16 in (False, True):
        with torch.device("meta"):
            network = UNet(image_resolution=8, ch=32, ch_mult=[1], attn=[], num_res_blocks=1)
        assert is_channels_last(speed.place_network(network, torch.device("meta"), bf16))


def test_sampling_has_the_order_of_its_precision(tmp_path, monkeypatch):
    small_model().save(tmp_path / "model.ckpt")
    orders = []
    ordinary = speed.place_network
    prepare = lambda ddpm, *how: orders.append(is_channels_last(ordinary(ddpm, *how).network)) or ddpm  # noqa: E731
    monkeypatch.setattr(speed, "prepare", prepare)
    for precision in ("bf16", "fp32"):
        flags = ["--ckpt_path", str(tmp_path / "model.ckpt"), "--save_dir", str(tmp_path / precision)]
        flags += ["--num_samples", "1", "--sample_method", "dpm", "--num_inference_steps", "1"]
        with ExitStack() as cleanup:
            sampling.sample(sampling.parse_arguments([*flags, "--precision", precision]), cleanup)
    assert orders == [False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_attention_never_writes_out_its_matrix_of_weights(order, dtype):
    """In either order of bytes, with gradients: a kernel that would is not allowed here, and one must be found."""
    block = AttnBlock(32).to(dtype=dtype, memory_format=order)
    x = torch.randn(2, 32, 8, 8, dtype=dtype).contiguous(memory_format=order).requires_grad_()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        block(x).sum().backward()
    assert x.grad.isfinite().all()


def test_one_kernel_adam_is_adam():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(100, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    fast, plain = speed.adam([ours], 1e-2, CPU), torch.optim.Adam([theirs], lr=1e-2)
    assert fast.defaults["fused"]
    for _ in range(20):
        ours.grad = theirs.grad = torch.randn(100, generator=generator)
        fast.step()
        plain.step()
    assert max_difference(ours, theirs) < 1e-6


def test_recomputed_activations_give_the_same_gradient_bit_for_bit():
    """Also with dropout, which must be drawn the same a second time."""
    ddpm = small_model(dropout=0.3)
    loss, gradient = loss_and_gradient(ddpm)
    ddpm.network.zero_grad()
    ddpm.network.activation_checkpointing = True
    calls = []
    for block in ddpm.network.downblocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    loss_again, gradient_again = loss_and_gradient(ddpm)
    assert loss_again == loss and torch.equal(gradient, gradient_again)
    assert len(calls) > len(ddpm.network.downblocks)  # it did compute them twice


def test_the_flag_for_it_reaches_the_network(tmp_path):
    assert trainer_with(tmp_path, "--activation_checkpointing").ddpm.network.activation_checkpointing
    assert not trainer_with(tmp_path).ddpm.network.activation_checkpointing


def test_a_batch_in_parts_is_the_same_batch(tmp_path):
    whole, losses = weights_after(trainer_with(tmp_path, "--dropout", "0", "--learning_rate", "1e-3"))
    trainer = trainer_with(tmp_path, "--dropout", "0", "--learning_rate", "1e-3", "--accumulate", "4")
    sizes = []
    trainer.ddpm.network.head.register_forward_hook(lambda layer, inputs, _: sizes.append(len(inputs[0])))
    parts, losses_of_parts = weights_after(trainer)
    assert sizes == [2] * 16
    assert losses_of_parts == pytest.approx(losses, rel=1e-5)
    assert max_difference(whole, parts) < 1e-5


def test_losses_are_read_from_the_device_only_every_so_often(tmp_path, monkeypatch):
    trainer = trainer_with(tmp_path)
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy"):
        ordinary = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda t, *a, o=ordinary, n=name: (reads.append(n), o(t, *a))[1])
    images = torch.rand(8, 3, 8, 8)
    for _ in range(LOG_EVERY - 1):
        trainer.train_step(images, torch.ones(8, dtype=torch.long))
    assert not reads
    trainer.train_step(images, torch.ones(8, dtype=torch.long))
    assert reads


def test_images_in_the_memory_of_a_device_are_those_of_the_file(tmp_path):
    write_synthetic_set(tmp_path / "afhq", 4)
    data = AFHQDataModule(tmp_path, batch_size=4, image_resolution=8)
    from_file, from_memory = data.train_batches(3), data.train_batches(3)
    from_memory.pixels = from_memory.pixels.clone()
    for step in (0, 2, 7):
        assert torch.equal(from_file[step][0], from_memory[step][0])
        assert torch.equal(from_file[step][1], from_memory[step][1])


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


@pytest.mark.parametrize(("flags", "alone"), [([], True), (["--accumulate", "2"], False)])
def test_a_cuda_graph_does_not_write_gradients_that_are_added_to(tmp_path, monkeypatch, flags, alone):
    asked = []
    monkeypatch.setattr(speed, "compiled", lambda network, cuda_graph=True: (asked.append(cuda_graph), network)[1])
    trainer_with(tmp_path, "--compile", "on", *flags)
    assert asked == [alone, True]


@pytest.mark.parametrize("method", ["ddpm", "ddim", "dpm"])
def test_a_network_may_answer_in_the_same_memory_each_time(method):
    """As a CUDA graph does; what a chain remembers of earlier answers must not change."""
    scheduler = DDPMScheduler(40, 1e-3, 0.3)
    network = UNet(image_resolution=8, ch=32, ch_mult=[1], attn=[], num_res_blocks=1, dropout=0.0)
    awake(network).eval()
    memory = torch.empty(2, 3, 8, 8)

    class InOnePlace(torch.nn.Module):
        image_resolution = 8

        def forward(self, x, t):
            return memory.copy_(network(x, t))

    samples = []
    for called in (network, InOnePlace()):
        torch.manual_seed(0)
        samples.append(DiffusionModule(called, scheduler, "x0").sample(2, sample_method=method))
    assert torch.equal(*samples)


@pytest.mark.slow
def test_a_compiled_network_learns_and_samples_the_same(tmp_path):
    """Compilation takes a minute or so."""
    flags = ["--dropout", "0", "--learning_rate", "1e-3"]
    plain, losses = weights_after(trainer_with(tmp_path, *flags))
    trainer = trainer_with(tmp_path, *flags, "--compile", "on")
    fast, fast_losses = weights_after(trainer)
    assert fast_losses == pytest.approx(losses, rel=1e-4)
    assert max_difference(plain, fast) < 1e-4
    eager = copy.deepcopy(trainer.ema.network)
    x, t = torch.randn(4, 3, 8, 8), torch.full((4,), 5)
    with torch.no_grad():
        assert max_difference(trainer.sampler.predict(x, t, None), eager(x, t)) < 1e-5


def test_what_is_compiled_is_asked_for_batches_of_one_size(program, tmp_path, monkeypatch):
    """Another size would be compiled anew, which takes a minute."""
    small_model().save(tmp_path / "model.ckpt")
    sizes = set()

    def compiled(network):
        network.register_forward_pre_hook(lambda network, given: sizes.add(len(given[0])))
        return network

    monkeypatch.setattr(speed, "compiled", compiled)
    flags = ["--num_samples", 5, "--batch_size", 2, "--sample_method", "dpm", "--num_inference_steps", 2]
    run = program("sampling.py", "--ckpt_path", "model.ckpt", "--save_dir", "out", *flags, "--compile", "on")
    assert run.returncode == 0, run.stderr
    assert sizes == {2} and len(list((tmp_path / "out").iterdir())) == 5


@pytest.fixture
def benchmark(load_report):
    return load_report("../benchmarks/training")


@pytest.fixture
def new_loop(benchmark, tmp_path):
    """A training loop of the benchmark with some of its levers."""
    write_synthetic_set(tmp_path / "afhq", 4)
    tiny = "--ch 32 --ch_mult 1 2 --attn 1 --num_res_blocks 1 --image_resolution 8 --dropout 0 --batch_size 8"
    args = train.parse_arguments(tiny.split())
    data = AFHQDataModule(tmp_path / "afhq", 8, max_num_images_per_cat=-1, image_resolution=8)
    return lambda levers: benchmark.Loop(frozenset(levers), args, data, CPU)


@pytest.mark.parametrize("count", range(7))
def test_each_lever_of_the_benchmark_is_pulled_and_changes_no_loss(benchmark, new_loop, monkeypatch, count):
    """Those before bfloat16, one after the other."""
    *levers, _, _ = benchmark.LEVERS
    levers = levers[:count]
    called = []
    read, attention = torch.Tensor.item, benchmark.written_out_attention
    # Adam reads its count of steps, too; only a loss has a history.
    monkeypatch.setattr(torch.Tensor, "item", lambda x: (x.grad_fn is None or called.append("item"), read(x))[1])
    monkeypatch.setattr(benchmark, "written_out_attention", lambda *x: (called.append("attention"), attention(*x))[1])
    resize = benchmark.resize
    monkeypatch.setattr(benchmark, "resize", lambda *x: (called.append("decode"), resize(*x))[1])

    def losses_of(loop):
        images = next(loop.images)
        assert images.shape == (8, 3, 8, 8) and -1 <= images.min() < 0 < images.max() <= 1
        loop.images = (torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(3))
        np.random.seed(0)
        torch.manual_seed(0)
        return [loop.step().tolist() for _ in range(3)]

    expected = losses_of(new_loop([]))
    assert called.count("item") == 3 and called.count("attention") > 3
    called.clear()
    loop = new_loop(levers)
    assert losses_of(loop) == pytest.approx(expected, rel=1e-5)
    assert loop.steps == 3 and loop.learner.bf16 is False
    assert ("decode" in called) == ("cached bytes" not in levers)
    assert ("item" in called) == ("losses read rarely" not in levers)
    assert ("attention" in called) == ("fused attention" not in levers)
    assert bool(loop.optimizer.defaults["fused"]) == ("one-kernel Adam" in levers)
    assert is_channels_last(loop.ddpm.network) == ("channels last" in levers)


def test_the_last_levers_of_the_benchmark_are_pulled(benchmark, new_loop, monkeypatch):
    compiled = []
    monkeypatch.setattr(speed, "compiled", lambda network: (compiled.append(network), network)[1])
    monkeypatch.setattr(speed, "uses_bf16", lambda precision, device: precision == "auto")
    *others, bf16, last = benchmark.LEVERS
    assert new_loop([*others, bf16]).learner.bf16 and not compiled
    loop = new_loop([*others, bf16, last])
    assert compiled == [loop.ddpm.network]
    for levers in ([], ["TF32"]):
        with benchmark.settings_of(levers):
            assert torch.backends.cuda.matmul.allow_tf32 is bool(levers)
    assert torch.backends.cuda.matmul.allow_tf32 is False


def test_the_benchmark_counts_the_operations_of_the_labs_network(benchmark):
    args = train.parse_arguments(benchmark.FULL.split())
    assert benchmark.forward_flop(args) == pytest.approx(89.4e9, rel=1e-3)


def test_the_benchmark_of_training_measures_all_levers_of_this_device(program, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])  # the program adds to it
    write_synthetic_set(tmp_path / "afhq", 2)
    small = ["--batch_size", 2, "--turns", 1, "--steps", 1, "--data_root", "afhq", "--json", "speed.json"]
    run = program("../benchmarks/training.py", *small, "--peak_tflops", 1)
    assert run.returncode == 0, run.stderr
    (result,) = json.loads((tmp_path / "speed.json").read_text())["results"]
    rows = [row["row"] for row in result["table"]]
    assert rows[0] == "plain" and rows[-1] == "train.py" and "+ channels last" in rows and len(rows) >= 7
    assert all(row["images_per_second"] > 0 and row["row"] in run.stdout for row in result["table"])
    assert 0 < result["share_of_time_on_data"] < 0.2 and "of its time on loading images" in run.stdout
    hours = result["hours_for_100k_steps_with_pictures"]
    assert 0 < hours["train.py"] < hours["plain"]
    by_steps = {row["row"]: 1e5 * 2 / row["images_per_second"] / 3600 for row in result["table"]}
    pictures = {name: hours[name] - by_steps[name] for name in hours}
    assert 5 < pictures["plain"] / pictures["train.py"] < 80  # 1000 chains, half of them of one image, instead of 50


def test_the_benchmark_of_memory_sees_that_activations_are_not_kept(tmp_path):
    command = [sys.executable, PROGRAMS.parent / "benchmarks/memory.py", "--ch", "32", "--batch_size", "48"]
    command += ["--image_resolution", "32", "--json", "memory.json"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    _, _, row = run.stdout.splitlines()
    size, batch, kept, twice, _ = (cell.strip() for cell in row.strip("|").split("|"))
    assert (size, batch) == ("32x32", "48") and float(twice) < 0.75 * float(kept)
    (written,) = json.loads((tmp_path / "memory.json").read_text())
    assert (f"{written['kept_gib']:.2f}", f"{written['twice_gib']:.2f}") == (kept, twice)


@pytest.mark.slow
def test_200_steps_in_bf16_follow_those_in_float32(tmp_path):
    """Step by step within bfloat16's error (2^-8 of each product), and no drift: their means are alike."""

    def losses(precision, seed=2):
        trainer = trainer_with(tmp_path, "--precision", precision, "--dropout", "0", "--warmup_steps", "20")
        torch.manual_seed(seed)
        np.random.seed(seed)
        generator = torch.Generator().manual_seed(5)
        images = torch.rand(64, 3, 1, 1, generator=generator).expand(-1, -1, 8, 8) * 2 - 1  # plain colours
        kept = []
        gradient = trainer._gradient
        trainer._gradient = lambda *batch: kept.append(gradient(*batch)) or kept[-1]
        for i in range(200):
            trainer.train_step(images[8 * (i % 8) :][:8], torch.ones(8, dtype=torch.long))
        return torch.stack(kept)

    plain, fast, other = losses("fp32"), losses("bf16"), losses("fp32", seed=3)
    assert plain[-20:].mean() < plain[:20].mean() / 2  # something was learned meanwhile
    apart = (fast / plain - 1).abs()
    print(f"\nlosses of bf16 and float32: {apart.max():.4f} apart at most, {apart.mean():.4f} on average")
    assert 0 < apart.max() < 0.05 and apart.mean() < 0.01
    assert (other / plain - 1).abs().mean() > 0.1  # another seed is another thing altogether
    assert fast.mean().item() == pytest.approx(plain.mean().item(), rel=2e-3)


def test_hardly_any_time_of_an_epoch_is_spent_on_data(tmp_path):
    write_synthetic_set(tmp_path / "afhq", 8)
    batches = AFHQDataModule(tmp_path, batch_size=8, image_resolution=32).train_batches(3)
    flags = ["--image_resolution", "32", "--ch_mult", "1", "2", "2", "--attn", "2"]
    trainer = trainer_with(tmp_path, *flags)

    def median_seconds(what, number):
        seconds = []
        for i in range(number):
            started = time.perf_counter()
            what(i)
            seconds.append(time.perf_counter() - started)
        return sorted(seconds)[number // 2]

    data = median_seconds(lambda i: batches[i], 30)  # ten epochs
    step = median_seconds(lambda i: trainer.train_step(*batches[i]), 5)
    print(f"\nshare of data: {data / step:.4f}")
    assert data < 0.05 * step
