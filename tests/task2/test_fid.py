"""The FID program: its numbers against pytorch-fid, what it says, and what it refuses."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_fid.fid_score
from PIL import Image
from scipy import linalg

from fid.image_sets import find_images
from fid.inception import PytorchFidInception, extract_features
from fid.kid import kernel_distance
from fid.measure_fid import measure
from fid_inputs import write_images, write_inception, write_two_folders
from oracles import refused

PROGRAM = "fid/measure_fid.py"


@pytest.fixture(scope="module")
def inception_home(tmp_path_factory):
    return write_inception(tmp_path_factory.mktemp("torch home")).parents[2]


@pytest.fixture
def random_inception(inception_home, monkeypatch):
    """Random weights up to 192 features for pytorch-fid's network; gives their file."""
    monkeypatch.setenv("TORCH_HOME", str(inception_home))
    return next(inception_home.glob("hub/checkpoints/*"))


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    """No weights, and nowhere to download them from."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(pytorch_fid.inception, "FID_WEIGHTS_URL", "http://127.0.0.1:9/weights.pth")
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def folders(tmp_path):
    return write_two_folders(tmp_path)


@pytest.fixture
def pytorch_fids_distance(random_inception, monkeypatch):
    sqrtm = linalg.sqrtm  # of which pytorch-fid wants two values, as older SciPys gave them
    monkeypatch.setattr(linalg, "sqrtm", lambda A, disp=True: sqrtm(A) if disp else (sqrtm(A), None))

    def distance(a, b, dims):
        return pytorch_fid.fid_score.calculate_fid_given_paths([str(a), str(b)], 2, "cpu", dims, num_workers=0)

    return distance


# The numbers.


@pytest.mark.filterwarnings("ignore:Matrix is singular")
@pytest.mark.parametrize("dims", [64, 192])
def test_agrees_with_pytorch_fid(dims, folders, pytorch_fids_distance):
    expected = pytorch_fids_distance(*folders, dims)
    assert expected > 0
    network = PytorchFidInception(dims)
    for batch_size in (3, 50):
        shutil.rmtree(folders[0].parent / ".cache", ignore_errors=True)
        found = measure(*map(find_images, folders), network, batch_size)
        assert found["distance"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.filterwarnings("ignore:Matrix is singular")
def test_pytorch_fid_reads_our_statistics_and_we_read_its(folders, pytorch_fids_distance, program):
    expected = pytorch_fids_distance(*folders, 64)
    run = program(PROGRAM, folders[0], "--save_stats", "ours.npz", "--dims", 64)
    assert run.returncode == 0 and "ours.npz" in run.stdout
    assert pytorch_fids_distance("ours.npz", folders[1], 64) == pytest.approx(expected, rel=1e-4)
    pytorch_fid.fid_score.save_fid_stats([str(folders[0]), "theirs.npz"], 2, "cpu", 64, num_workers=0)
    for file in ("ours.npz", "theirs.npz"):
        run = program(PROGRAM, file, folders[1], "--dims", 64, "--json", "fid.json")
        assert run.returncode == 0 and file in run.stdout
        assert json.loads(Path("fid.json").read_text())["distance"] == pytest.approx(expected, rel=1e-4)


def test_features_do_not_depend_on_batches_and_neighbours(tmp_path, random_inception):
    for i, size in enumerate([(32, 24), (32, 24), (17, 40), (299, 299), (350, 310)]):
        Image.fromarray(np.random.randint(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    files, network = sorted(tmp_path.glob("*.png")), PytorchFidInception(64)
    alone = np.concatenate([extract_features([file], network) for file in files])
    assert alone.shape == (5, 64) and np.ptp(alone, axis=0).max() > 1e-3
    for batch_size in (2, 50):
        together = extract_features(files, network, batch_size)
        assert np.abs(together - alone).max() < 1e-5 * np.abs(alone).max()


def test_runs_from_inside_fid_and_writes_down_how_it_measured(folders, random_inception, task_folder, tmp_path):
    """In a copy of the folder that has nothing of the project around it."""
    copy = tmp_path / "a copy"
    shutil.copytree(task_folder, copy, ignore=shutil.ignore_patterns("data", "results", "__pycache__", "samples*"))
    paths = [os.path.relpath(folder, copy / "fid") for folder in folders]
    report = tmp_path / "reports/fid.json"
    run = subprocess.run(
        [sys.executable, "measure_fid.py", *paths, "--dims", "64", "--batch_size", "3", "--json", report],
        cwd=copy / "fid",
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr
    counts, network, distance = run.stdout.splitlines()
    assert counts.startswith("5 real") and paths[0] in counts and paths[1] in counts
    assert "pytorch-fid" in network and str(random_inception) in network
    found = json.loads(report.read_text())
    assert distance == f"FID-64: {found['distance']:.4f}"
    expected = measure(*map(find_images, folders), PytorchFidInception(64))
    assert found.pop("distance") == pytest.approx(expected.pop("distance"), rel=1e-6)
    assert (found.pop("gt_dir"), found.pop("gen_dir")) == (*paths,)
    assert found == {name: value for name, value in expected.items() if name not in ("gt_dir", "gen_dir")}
    assert (found["network"], found["dims"], found["gt_images"], found["gen_images"]) == ("pytorch-fid", 64, 5, 4)
    assert found["weights_sha256"] == hashlib.sha256(random_inception.read_bytes()).hexdigest()
    assert [path.name for path in report.parent.iterdir()] == ["fid.json"]


def test_a_folder_is_0_from_itself(folders, random_inception, program):
    assert program(PROGRAM, folders[0], folders[0], "--dims", 64).stdout.splitlines()[-1] == "FID-64: 0.0000"


def test_what_else_adds_to_the_distance_is_said(folders, random_inception, program):
    real, made = folders

    def notes():
        lines = program(PROGRAM, real, made, "--dims", 64, "--json", "fid.json").stdout.splitlines()
        return [line for line in lines if line.startswith("Note: ")], json.loads(Path("fid.json").read_text())

    said, result = notes()
    assert said == [] and result["gt_synthetic"] is False
    Image.new("RGB", (16, 16)).save(made / "small.png")
    (said,), result = notes()
    assert "size" in said and result["gen_sizes"] == ["16x16", "32x24"]
    (made / "small.png").unlink()
    for file in made.iterdir():
        Image.open(file).save(file.with_suffix(".jpg"))
    (said,), result = notes()  # mixed
    assert "format" in said and result["gen_formats"] == ["JPEG", "PNG"]
    for file in made.glob("*.png"):
        file.unlink()
    (said,), result = notes()  # PNG against JPEG
    assert "format" in said and result["gt_formats"] == ["PNG"] and result["gen_formats"] == ["JPEG"]
    (real.parent / "SYNTHETIC.txt").write_text("")
    assert notes()[1]["gt_synthetic"] is True


def test_kid_comes_with_the_distance(folders, random_inception, program):
    run = program(PROGRAM, *folders, "--dims", 64, "--kid", "--json", "fid.json")
    *_, kid, network, distance = run.stdout.splitlines()
    found = json.loads(Path("fid.json").read_text())
    features = [extract_features(find_images(folder).files, PytorchFidInception(64)) for folder in folders]
    expected = kernel_distance(*features)._asdict()
    assert found["kid"] == pytest.approx(expected, rel=1e-6)
    assert kid.startswith(f"KID: {expected['mean']:.6f}") and f"{expected['std']:.6f}" in kid
    assert "pytorch-fid" in network and distance == f"FID-64: {found['distance']:.4f}"


# What the user gave.


@pytest.mark.parametrize("name", ["missing", "file.png", "empty", "single", "broken", "pipe"])
@pytest.mark.parametrize("place", [0, 1])
def test_bad_folders_end_in_one_line(name, place, folders, no_weights, tmp_path, program):
    """Before the network is looked for, which is not there."""
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "single", 1, seed=0)
    shutil.copy(tmp_path / "single/0.png", tmp_path / "file.png")
    (write_images(tmp_path / "broken", 2, seed=0) / "1.png").write_bytes(b"not an image")
    os.mkfifo(write_images(tmp_path / "pipe", 2, seed=0) / "2.png")
    paths = [*folders]
    paths[place] = tmp_path / name
    assert refused(program(PROGRAM, *paths), str(tmp_path / name))


def test_an_image_that_breaks_off_is_named(folders, random_inception, program):
    broken = folders[1] / "2.png"
    broken.write_bytes(broken.read_bytes()[:200])
    assert refused(program(PROGRAM, *folders, "--dims", 64), str(broken))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--dims", "100"),
        ("--dims", "many"),
        ("--network", "another"),
        ("--batch_size", "0"),
        ("--device", "toaster"),
        ("--json", "."),
        ("--save_stats", "stats"),
    ],
)
def test_bad_values_end_in_one_line(flag, value, folders, program):
    run = program(PROGRAM, *folders, flag, value)
    assert refused(run, flag) and value in run.stderr


def test_one_folder_alone_has_no_distance(folders, program):
    assert refused(program(PROGRAM, folders[0]), "GEN_DIR")
