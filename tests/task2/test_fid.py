"""The FID program: its numbers against pytorch-fid and the lab's recipe, its networks, and what it refuses."""

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
import torch
from PIL import Image
from scipy import linalg

import fid.inception
from fid.image_sets import find_images
from fid.inception import LabInception, PytorchFidInception, extract_features
from fid.kid import kernel_distance
from fid.measure_fid import measure
from fid_inputs import WEIGHTS, LabRecipe, write_images, write_inception, write_two_folders
from oracles import Harmful, refused

PROGRAM = "fid/measure_fid.py"


@pytest.fixture(scope="module")
def saved_weights(tmp_path_factory):
    """Random weights for both networks, for pytorch-fid's up to 192 features."""
    lab = tmp_path_factory.mktemp("lab") / "afhq_inception_v3.ckpt"
    torch.save(LabRecipe().state_dict(), lab)
    return {"lab": lab, "pytorch-fid": write_inception(tmp_path_factory.mktemp("torch home"))}


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Where both networks' weights are looked for: they are not there, nor can they be downloaded."""
    lab, home = tmp_path / "lab/afhq_inception_v3.ckpt", tmp_path / "torch home"
    monkeypatch.setattr(fid.inception, "LAB_WEIGHTS", lab)
    monkeypatch.setenv("TORCH_HOME", str(home))
    monkeypatch.setattr(pytorch_fid.inception, "FID_WEIGHTS_URL", f"http://127.0.0.1:9/{WEIGHTS}")
    monkeypatch.setenv("no_proxy", "*")
    weights = {"lab": lab, "pytorch-fid": home / "hub/checkpoints" / WEIGHTS}
    for file in weights.values():
        file.parent.mkdir(parents=True)
    return weights


@pytest.fixture
def pytorch_fid_weights(weights, saved_weights):
    """pytorch-fid's weights are there."""
    weights["pytorch-fid"].symlink_to(saved_weights["pytorch-fid"])


@pytest.fixture
def both_weights(weights, saved_weights, pytorch_fid_weights):
    weights["lab"].symlink_to(saved_weights["lab"])


@pytest.fixture
def folders(tmp_path):
    return write_two_folders(tmp_path)


@pytest.fixture
def fid_json(program):
    """The lines that the program prints, and its JSON."""

    def run(*arguments):
        run = program(PROGRAM, *arguments, "--json", "fid.json")
        assert run.returncode == 0, run.stderr
        return run.stdout.splitlines(), json.loads(Path("fid.json").read_text())

    return run


@pytest.fixture
def pytorch_fids_distance(pytorch_fid_weights, monkeypatch):
    sqrtm = linalg.sqrtm  # of which pytorch-fid wants two values, as older SciPys gave them
    monkeypatch.setattr(linalg, "sqrtm", lambda A, disp=True: sqrtm(A) if disp else (sqrtm(A), None))

    def distance(a, b, dims):
        return pytorch_fid.fid_score.calculate_fid_given_paths([str(a), str(b)], 2, "cpu", dims, num_workers=0)

    return distance


# The numbers.


@pytest.mark.filterwarnings("ignore:Matrix is singular")
@pytest.mark.parametrize("dims", [64, 192])
def test_agrees_with_pytorch_fid(dims, folders, pytorch_fids_distance):
    Image.fromarray(np.random.randint(0, 256, (310, 350, 3), dtype=np.uint8)).save(folders[1] / "large.png")
    expected = pytorch_fids_distance(*folders, dims)
    assert expected > 0
    network = PytorchFidInception(dims)
    for batch_size in (3, 50):
        shutil.rmtree(folders[0].parent / ".cache", ignore_errors=True)
        found = measure(*map(find_images, folders), network, batch_size)
        assert found["distance"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.filterwarnings("ignore:Matrix is singular")
def test_pytorch_fid_reads_our_statistics_and_we_read_its(folders, pytorch_fids_distance, program, fid_json):
    expected = pytorch_fids_distance(*folders, 64)
    run = program(PROGRAM, folders[0], "--save_stats", "ours.npz", "--dims", 64)
    assert run.returncode == 0 and "ours.npz" in run.stdout
    assert pytorch_fids_distance("ours.npz", folders[1], 64) == pytest.approx(expected, rel=1e-4)
    pytorch_fid.fid_score.save_fid_stats([str(folders[0]), "theirs.npz"], 2, "cpu", 64, num_workers=0)
    for file in ("ours.npz", "theirs.npz"):
        lines, found = fid_json(file, folders[1], "--dims", 64)
        assert file in lines[0] and found["distance"] == pytest.approx(expected, rel=1e-4)


def test_the_labs_features_are_those_of_its_recipe(both_weights, tmp_path):
    images = [write_images(tmp_path / "small", 1, seed=0, size=(64, 64)) / "0.png"]
    images += [write_images(tmp_path / "large", 1, seed=1, size=(300, 280), grain=(9, 9), suffix="jpg") / "0.jpg"]
    found, recipe = extract_features(images, LabInception()), LabRecipe()
    expected = np.stack([recipe.features(image).numpy() for image in images])
    assert found.shape == (2, 2048) and np.ptp(expected, axis=0).mean() > 0.05 * expected.mean()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_runs_from_inside_fid_and_writes_down_how_it_measured(
    folders, pytorch_fid_weights, weights, task_folder, tmp_path
):
    """In a copy of the folder that has nothing of the project around it."""
    copy = tmp_path / "a copy"
    shutil.copytree(task_folder, copy, ignore=shutil.ignore_patterns("data", "results", "__pycache__", "samples*"))
    paths = [os.path.relpath(folder, copy / "fid") for folder in folders]
    report = tmp_path / "reports/fid.json"
    flags = ["--dims", "64", "--batch_size", "3", "--kid", "--json", report]
    command = [sys.executable, "measure_fid.py", *paths, *flags]
    run = subprocess.run(command, cwd=copy / "fid", capture_output=True, text=True)
    assert run.returncode == 0 and "Warning" not in run.stderr, run.stderr
    counts, kid, network, distance = run.stdout.splitlines()
    assert counts.startswith("5 real") and paths[0] in counts and paths[1] in counts
    assert "pytorch-fid" in network and str(weights["pytorch-fid"]) in network
    found = json.loads(report.read_text())
    assert distance == f"FID-64: {found['distance']:.4f}"
    features = [extract_features(find_images(folder).files, PytorchFidInception(64)) for folder in folders]
    expected_kid = kernel_distance(*features)._asdict()
    assert found.pop("kid") == pytest.approx(expected_kid, rel=1e-6)
    assert kid.startswith(f"KID: {expected_kid['mean']:.6f}") and f"{expected_kid['std']:.6f}" in kid
    expected = measure(*map(find_images, folders), PytorchFidInception(64))
    expected |= {"gt_dir": paths[0], "gen_dir": paths[1], "distance": pytest.approx(expected["distance"], rel=1e-6)}
    assert found == expected
    assert (found["network"], found["dims"], found["gt_images"], found["gen_images"]) == ("pytorch-fid", 64, 5, 4)
    assert found["weights_sha256"] == hashlib.sha256(weights["pytorch-fid"].read_bytes()).hexdigest()
    assert [path.name for path in report.parent.iterdir()] == ["fid.json"]


def test_different_sizes_and_formats_and_synthetic_images_are_noted(folders, pytorch_fid_weights, fid_json):
    real, made = folders

    def notes():
        lines, found = fid_json(*folders, "--dims", 64)
        return [line for line in lines if line.startswith("Note: ")], found

    assert notes()[0] == []
    Image.new("RGB", (16, 16)).save(made / "small.png")
    (note,), result = notes()
    assert "size" in note and result["gen_sizes"] == ["16x16", "32x24"] and result["gt_synthetic"] is False
    for file in [*made.iterdir()]:
        Image.open(file).resize((32, 24)).save(file.with_suffix(".jpg"))
        file.unlink()
    (real.parent / "SYNTHETIC.txt").write_text("")
    (note,), result = notes()
    assert "format" in note and (result["gt_formats"], result["gen_formats"]) == (["PNG"], ["JPEG"])
    assert result["gt_synthetic"] is True


# Which network is taken.


def test_auto_takes_the_labs_network_where_its_file_is_for_its_width(both_weights, weights, folders, program, fid_json):
    for flags in ([], ["--network", "lab"]):
        (*_, network, distance), found = fid_json(*folders, *flags)
        assert "Network: lab" in network and str(weights["lab"]) in network
        assert distance == f"FID: {found['distance']:.4f}" and (found["network"], found["dims"]) == ("lab", 2048)
        assert found["weights_sha256"] == hashlib.sha256(weights["lab"].read_bytes()).hexdigest()
    for name in ("auto", "pytorch-fid"):
        assert "Network: pytorch-fid" in fid_json(*folders, "--network", name, "--dims", 64)[0][-2]
    assert refused(program(PROGRAM, *folders, "--network", "lab", "--dims", 64), "--dims")
    assert refused(program(PROGRAM, *folders, "--network", "pytorch-fid"), str(weights["pytorch-fid"]))  # NaN at 2048


def test_statistics_decide_which_network_is_taken(both_weights, weights, folders, program, fid_json):
    assert program(PROGRAM, folders[0], "--save_stats", "lab.npz").returncode == 0
    np.savez("unnamed.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    assert "Network: lab" in fid_json("lab.npz", folders[1])[0][-2]
    assert refused(program(PROGRAM, "lab.npz", folders[1], "--network", "pytorch-fid"), "--network")
    assert refused(program(PROGRAM, "unnamed.npz", folders[1], "--network", "lab"), "--network")
    assert refused(program(PROGRAM, "unnamed.npz", folders[1]), str(weights["pytorch-fid"]))  # NaN at 2048
    weights["lab"].unlink()
    assert refused(program(PROGRAM, "lab.npz", folders[1]), str(weights["lab"]))


# The weights files.


def test_without_the_weights_one_line_names_the_file_and_where_it_comes_from(weights, folders, program):
    run = program(PROGRAM, *folders, "--network", "lab")
    assert refused(run, str(weights["lab"])) and "skeleton" in run.stderr
    run = program(PROGRAM, *folders)
    assert refused(run, str(weights["pytorch-fid"])) and f"http://127.0.0.1:9/{WEIGHTS}" in run.stderr
    assert not list(weights["pytorch-fid"].parent.iterdir())


def test_weights_are_downloaded_once_and_kept_only_with_the_checksum_in_their_name(
    weights, saved_weights, tmp_path, monkeypatch
):
    content = saved_weights["pytorch-fid"].read_bytes()
    served = tmp_path / f"weights-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(pytorch_fid.inception, "FID_WEIGHTS_URL", served.as_uri())
    served.write_bytes(b"an error page")
    with pytest.raises(OSError, match=served.name):
        PytorchFidInception(64)
    assert not list(weights["pytorch-fid"].parent.iterdir())
    served.write_bytes(content)
    PytorchFidInception(64)
    assert weights["pytorch-fid"].with_name(served.name).read_bytes() == content
    served.unlink()
    assert not PytorchFidInception(64).network.training


@pytest.mark.parametrize("kind", ["text", "code", "cut", "a layer less", "another shape"])
@pytest.mark.parametrize("network", ["lab", "pytorch-fid"])
def test_a_damaged_or_wrong_file_is_refused_and_its_code_does_not_run(
    network, kind, weights, saved_weights, folders, tmp_path, program
):
    file, witness = weights[network], tmp_path / "ran"
    state = torch.load(saved_weights[network], weights_only=True, mmap=True)
    layer = next(iter(state))
    if kind in ("text", "cut"):
        with saved_weights[network].open("rb") as whole:
            file.write_bytes(b"hello" if kind == "text" else whole.read(9999))
    elif kind == "a layer less":
        torch.save({name: tensor for name, tensor in state.items() if name != layer}, file)
    else:
        torch.save(state | ({"code": Harmful(witness)} if kind == "code" else {layer: torch.zeros(2)}), file)
    assert refused(program(PROGRAM, *folders, "--network", network), str(file))
    assert not witness.exists()


# What the user gave.


@pytest.mark.parametrize("name", ["missing", "file.png", "empty", "single", "broken", "pipe"])
@pytest.mark.parametrize("place", [0, 1])
def test_bad_folders_end_in_one_line(name, place, folders, weights, tmp_path, program):
    """Before the network is looked for, which is not there."""
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "single", 1, seed=0)
    shutil.copy(tmp_path / "single/0.png", tmp_path / "file.png")
    (write_images(tmp_path / "broken", 2, seed=0) / "1.png").write_bytes(b"not an image")
    os.mkfifo(write_images(tmp_path / "pipe", 2, seed=0) / "2.png")
    paths = [*folders]
    paths[place] = tmp_path / name
    assert refused(program(PROGRAM, *paths), str(tmp_path / name))


def test_an_image_that_breaks_off_is_named(folders, pytorch_fid_weights, program):
    broken = folders[1] / "2.png"
    broken.write_bytes(broken.read_bytes()[:200])
    assert refused(program(PROGRAM, *folders, "--dims", 64), str(broken))


BAD = "--dims 100", "--network another", "--batch_size 0", "--device toaster", "--json .", "--save_stats stats"


@pytest.mark.parametrize("flags", BAD)
def test_bad_values_end_in_one_line(flags, folders, program):
    run = program(PROGRAM, *folders, *flags.split())
    assert all(refused(run, word) for word in flags.split())


@pytest.mark.parametrize("flags", ["", "--save_stats stats.npz --kid", "--save_stats stats.npz --json fid.json"])
def test_one_folder_alone_has_no_distance(flags, folders, program):
    assert refused(program(PROGRAM, folders[0], *flags.split()), "GEN_DIR")
