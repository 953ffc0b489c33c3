"""The programs of benchmarks/ measure what they say."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import train
from conftest import SMALL_FLAGS
from dataset import AFHQDataModule
from processes import PROGRAMS


@pytest.fixture
def benchmark(load_report):
    return load_report("../benchmarks/training")


@pytest.fixture
def new_loop(benchmark, faces):
    """A training loop of the benchmark with some of its optimisations."""
    args = train.parse_arguments([*SMALL_FLAGS, "--attn", "0", "--batch_size", "8"])
    data = AFHQDataModule(faces, 8, max_num_images_per_cat=-1, image_resolution=8)
    return lambda optimisations: benchmark.Loop(frozenset(optimisations), args, data, torch.device("cpu"))


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
    head = loop.model.network.head.weight
    assert head.is_contiguous(memory_format=torch.channels_last) == ("channels last" in optimisations)


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
    flags += ["--peak_tflops", 1]
    run = program("../benchmarks/training.py", *flags)
    assert run.returncode == 0, run.stderr
    (result,) = json.loads((tmp_path / "speed.json").read_text())["results"]
    rows = [row["row"] for row in result["table"]]
    assert rows[0] == "plain" and rows[-1] == "train.py" and "+ channels last" in rows and len(rows) >= 7
    assert all(row["images_per_second"] > 0 and row["row"] in run.stdout for row in result["table"])
    assert all(f"{row['tflop_per_second']:.0%}" in run.stdout for row in result["table"])  # the share of a peak of 1
    flop = {round(1e12 * row["tflop_per_second"] / row["images_per_second"]) for row in result["table"]}
    assert max(flop) - min(flop) <= 2 and min(flop) > 1e8
    assert 0 < result["share_of_time_on_data"] < 0.2
    hours = result["hours_for_100k_steps_with_pictures"]
    by_steps = {row["row"]: 1e5 * 2 / row["images_per_second"] / 3600 for row in result["table"]}
    sampling = {name: hours[name] - by_steps[name] for name in hours}
    assert 5 < sampling["plain"] / sampling["train.py"] < 80  # 1000 chains, half of them of one image, instead of 50


@pytest.mark.parametrize("name", ["training", "memory", "fid", "patches"])
def test_each_benchmark_starts_in_a_process_of_its_own(name, tmp_path):
    """Whose path is not the one that the tests set."""
    command = [sys.executable, PROGRAMS.parent / f"benchmarks/{name}.py", "--help"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0


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
