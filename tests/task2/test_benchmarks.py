"""The programs of benchmarks/ measure what they claim."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from conftest import ROOT, SMALL_FLAGS
from dataset import AFHQDataModule
from oracles import refused

BENCHMARKS = ROOT / "benchmarks"


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


@pytest.fixture
def measured(program, tmp_path, monkeypatch):
    """What a benchmark prints, and what it writes as JSON."""

    monkeypatch.setattr(sys, "path", [*sys.path])  # the programs add to it

    def run(name, *flags):
        run = program(BENCHMARKS / f"{name}.py", *flags, "--json", "measured.json")
        assert run.returncode == 0, run.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["measured.json"]
        return run.stdout, json.loads((tmp_path / "measured.json").read_text())

    return run


def test_training_measures_the_optimisations_of_this_device(measured, faces):
    flags = ["--batch_size", 2, "--turns", 1, "--steps", 1, "--data_root", faces, "--peak_tflops", 1]
    output, found = measured("training", *flags)
    (result,) = found["results"]
    table = result["table"]
    rows = [row["row"] for row in table]
    assert rows[0] == "plain" and rows[-1] == "train.py" and "+ channels last" in rows and len(rows) >= 7
    assert all(row["images_per_second"] > 0 and row["row"] in output for row in table)
    assert all(f"{row['tflop_per_second']:.0%}" in output for row in table)  # the share of a peak of 1
    flop = {round(1e12 * row["tflop_per_second"] / row["images_per_second"]) for row in table}
    assert max(flop) - min(flop) <= 2 and min(flop) > 1e8
    assert result["share_of_time_on_data"] > 0
    # 1000 chains, half of them of one image, against 50.
    hours = result["hours_for_100k_steps_with_samples"]
    by_steps = {row["row"]: 1e5 * 2 / row["images_per_second"] / 3600 for row in table}
    assert hours["plain"] - by_steps["plain"] > 2 * (hours["train.py"] - by_steps["train.py"]) > 0


def test_fid_compares_both_programs(measured, monkeypatch, tmp_path_factory):
    """With random weights where there are none."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("no weights")))
    output, found = measured("fid", "--dims", 64, "--real", 90, "--generated", 80, "--images", 3, "--turns", 2)
    assert found["random_weights"]
    assert [row["what"].split(",")[0] for row in found["rows"]] == ["distance", "network", "whole", "whole"]
    for row in found["rows"]:
        assert row["what"] in output and row["relative_difference"] < 1e-4
        for times in (row["pytorch_fid"], row["ours"]):
            assert 0 < times["lowest"] <= times["median"] <= times["highest"]
        assert row["speedup"] == pytest.approx(row["pytorch_fid"]["median"] / row["ours"]["median"])


@pytest.mark.parametrize("name", ["training", "memory", "fid", "patches"])
def test_each_benchmark_starts_in_a_process_of_its_own(name, tmp_path):
    """Whose path is not the one that the tests set."""
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--help"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0


def run_alone(name, *flags):
    """The JSON of a benchmark in a process of its own, which is small: it measures memory."""
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--image_resolution", "32", "--json", "measured.json", *flags]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(Path("measured.json").read_text())


def test_memory_sees_that_activations_are_recomputed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (row,) = run_alone("memory", "--ch", "32", "--batch_size", "32")
    assert (row["image_resolution"], row["batch_size"]) == (32, 32)
    assert 0 < row["recomputed_gib"] < 0.75 * row["kept_gib"]


@pytest.mark.parametrize(("name", "flags"), [("memory", ["--ch", 33]), ("patches", ["--image_resolution", 36])])
def test_sizes_that_do_not_fit_end_in_one_line(program, monkeypatch, name, flags):
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert refused(program(BENCHMARKS / f"{name}.py", *flags), flags[0].removeprefix("--"))


@pytest.mark.slow
def test_patches_sees_that_they_save_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = run_alone("patches", "--networks", "small", "--turns", "1")
    assert [row["patch_size"] for row in rows] == [1, 2, 4]
    assert all(row["step_seconds"] > 0 and row["evaluation_seconds"] > 0 for row in rows)
    assert rows[0]["memory_gib"] > rows[1]["memory_gib"] > rows[2]["memory_gib"] > 0
