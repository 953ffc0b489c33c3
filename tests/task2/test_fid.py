"""The FID program: its numbers against pytorch-fid, its cache, the weights file, and what it refuses."""

import functools
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import pytorch_fid.fid_score
import pytorch_fid.inception
import torch
import torchvision
from PIL import Image
from scipy import linalg

from fid.inception import PytorchFidInception, extract_features
from fid.measure_fid import find_images, measure
from images import read_image
from oracles import Harmful, refused

PROGRAM = "fid/measure_fid.py"
WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"


@pytest.fixture(scope="module")
def inception_home(tmp_path_factory):
    """A TORCH_HOME whose Inception has random weights up to 192 features, and NaN in all layers after that."""
    home = tmp_path_factory.mktemp("torch home")
    (home / "hub/checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    network = torchvision.models.inception_v3(weights=None, init_weights=False, num_classes=1008, aux_logits=False)
    weights = network.state_dict()
    for name, values in weights.items():
        if not name.startswith(("Conv2d_1a", "Conv2d_2a", "Conv2d_2b", "Conv2d_3b", "Conv2d_4a")):
            fill = torch.nan if values.is_floating_point() else 0
            weights[name] = torch.tensor(fill, dtype=values.dtype).expand(values.shape)  # takes no room in the file
    torch.save(weights, home / "hub/checkpoints" / WEIGHTS)
    return home


@pytest.fixture
def random_inception(inception_home, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(inception_home))
    return inception_home / "hub/checkpoints" / WEIGHTS


@pytest.fixture
def empty_home(tmp_path, monkeypatch):
    """A TORCH_HOME without weights, and nowhere to download them from; gives where they are wanted."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(pytorch_fid.inception, "FID_WEIGHTS_URL", f"http://127.0.0.1:9/{WEIGHTS}")
    return tmp_path / "home/hub/checkpoints" / WEIGHTS


def write_images(folder, count, seed, size=(32, 24), grain=(32, 24)):
    """Random RGB images, enlarged from `grain`, so that features of different grain lie far from each other."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image = Image.fromarray(rng.integers(0, 256, (*grain[::-1], 3), dtype=np.uint8))
        image.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def folders(tmp_path):
    """Two folders of images that differ."""
    return write_images(tmp_path / "data/real", 5, seed=1), write_images(tmp_path / "made", 4, seed=2, grain=(4, 3))


# The numbers.


@pytest.mark.filterwarnings("ignore:Matrix is singular")
@pytest.mark.parametrize("dims", [64, 192])
def test_agrees_with_pytorch_fid(dims, folders, random_inception, monkeypatch):
    sqrtm = linalg.sqrtm  # of which pytorch-fid wants two values, as older SciPys gave them
    monkeypatch.setattr(linalg, "sqrtm", lambda A, disp=True: sqrtm(A) if disp else (sqrtm(A), None))
    paths = [str(folder) for folder in folders]
    expected = pytorch_fid.fid_score.calculate_fid_given_paths(paths, 2, "cpu", dims, num_workers=0)
    assert expected > 0
    network = PytorchFidInception(dims)
    for batch_size in (3, 50):
        shutil.rmtree(folders[0].parent / ".cache", ignore_errors=True)
        found = measure(*map(find_images, folders), network, batch_size)
        assert found["distance"] == pytest.approx(expected, rel=1e-4)


def test_features_do_not_depend_on_batches_and_neighbours(tmp_path, random_inception):
    for i, size in enumerate([(32, 24), (32, 24), (17, 40), (299, 299), (350, 310)]):
        Image.fromarray(np.random.randint(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    files, network = sorted(tmp_path.glob("*.png")), PytorchFidInception(64)
    alone = np.concatenate([extract_features([file], network) for file in files])
    assert alone.shape == (5, 64) and np.ptp(alone, axis=0).max() > 1e-3
    for batch_size in (2, 50):
        together = extract_features(files, network, batch_size)
        assert np.abs(together - alone).max() < 1e-5 * np.abs(alone).max()


@pytest.mark.parametrize("place", [".", "fid"])
def test_runs_from_the_task_folder_and_from_inside_fid(place, folders, random_inception, task_folder, tmp_path):
    """In a copy of the folder that has nothing of the project around it."""
    copy = tmp_path / "a copy"
    shutil.copytree(task_folder, copy, ignore=shutil.ignore_patterns("data", "results", "__pycache__", "samples*"))
    report = tmp_path / "reports/fid.json"
    script = os.path.relpath(copy / PROGRAM, copy / place)
    run = subprocess.run(
        [sys.executable, script, *folders, "--dims", "64", "--batch_size", "3", "--json", report],
        cwd=copy / place,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr
    counts, distance = run.stdout.splitlines()
    assert counts.startswith("5 real") and str(folders[0]) in counts and str(folders[1]) in counts
    found = json.loads(report.read_text())
    assert distance == f"FID-64: {found['distance']:.4f}"
    expected = measure(*map(find_images, folders), PytorchFidInception(64))
    assert found["distance"] == pytest.approx(expected["distance"], rel=1e-6)
    assert {**found, "distance": 0} == {**expected, "distance": 0}
    assert (found["dims"], found["gt_images"], found["gen_images"]) == (64, 5, 4)
    assert (found["gt_dir"], found["gen_dir"]) == (str(folders[0]), str(folders[1]))
    assert found["weights_sha256"] == hashlib.sha256(random_inception.read_bytes()).hexdigest()
    assert [path.name for path in report.parent.iterdir()] == ["fid.json"]


def test_a_folder_is_0_from_itself(folders, random_inception, program):
    assert program(PROGRAM, folders[0], folders[0], "--dims", 64).stdout.splitlines()[-1] == "FID-64: 0.0000"


# Folders and the cache, with a network of three mean colours that notes which folders it reads.


class MeanColours:
    name, dims, device, weights, weights_sha256 = "mean colours", 2048, "cpu", Path("weights"), "a"

    def __init__(self):
        self.folders = []

    def read(self, file):
        self.folders.append(file.parent.name)
        return torch.from_numpy(np.asarray(read_image(file)).mean((0, 1)))

    def __call__(self, images):
        return torch.stack(images)

    def measure(self, folders):
        """The result, and which folders were read for it."""
        self.folders.clear()
        return measure(*map(find_images, folders), self), set(self.folders)


@pytest.fixture
def network(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user's cache"))
    return MeanColours()


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_standard_width_needs_no_number(folders, network):
    assert network.measure(folders)[0]["name"] == "FID"
    network.dims = 768
    assert network.measure(folders)[0]["name"] == "FID-768"


def test_every_image_counts_except_hidden_ones(tmp_path):
    real = write_images(tmp_path / "real", 5, seed=1)
    shutil.copy(real / "0.png", real / "UPPER.PNG")
    Image.new("RGBA", (9, 9)).save(real / "other.webp")
    Image.new("L", (5, 7)).save(real / "grey.JPeG")
    write_images(real / "sub/folder", 2, seed=3)
    write_images(real / ".hidden", 2, seed=3)
    (real / "._0.png").write_bytes(b"not an image")
    (real / "notes.txt").write_text("not an image")
    found = find_images(real)
    assert len(found.files) == 10 and found.sizes == ["5x7", "9x9", "32x24"]


def test_what_else_adds_to_the_distance_is_said(folders, random_inception, program):
    real, made = folders
    assert "Note" not in program(PROGRAM, real, made, "--dims", 64).stdout
    Image.new("RGB", (16, 16)).save(made / "small.png")
    assert "\nNote: " in program(PROGRAM, real, made, "--dims", 64, "--json", "fid.json").stdout
    result = json.loads(Path("fid.json").read_text())
    assert result["gen_sizes"] == ["16x16", "32x24"] and result["gt_synthetic"] is False
    (real.parent / "SYNTHETIC.txt").write_text("")
    assert program(PROGRAM, real, made, "--dims", 64).stdout.startswith("5 synthetic ")


def test_the_real_images_are_read_once(folders, network):
    before = [content(folder) for folder in folders]
    first, read = network.measure(folders)
    assert read == {"real", "made"}
    assert network.measure(folders) == (first, {"made"})
    assert [content(folder) for folder in folders] == before
    assert len([*(folders[0].parent / ".cache").iterdir()]) == 1


CHANGES = {
    "added": lambda real: write_images(real, 6, seed=1),
    "removed": lambda real: (real / "1.png").unlink(),
    "renamed": lambda real: (real / "1.png").rename(real / "9.png"),
    "rewritten": lambda real: Image.new("RGB", (32, 24), "red").save(real / "1.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_cache_notices_a_change(change, folders, network):
    network.measure(folders)
    CHANGES[change](folders[0])
    found, read = network.measure(folders)
    assert read == {"real", "made"}
    shutil.rmtree(folders[0].parent / ".cache")
    assert network.measure(folders)[0] == found
    assert len([*folders[0].parent.iterdir()]) == 2  # no cache but the newest


@pytest.mark.parametrize(("attribute", "value"), [("dims", 768), ("name", "another"), ("weights_sha256", "b")])
def test_the_cache_depends_on_width_and_network(attribute, value, folders, network):
    network.measure(folders)
    setattr(network, attribute, value)
    assert network.measure(folders)[1] == {"real", "made"}


def test_a_damaged_cache_is_replaced(folders, network, tmp_path):
    expected, _ = network.measure(folders)
    (file,) = (folders[0].parent / ".cache").iterdir()
    whole, witness = file.read_bytes(), tmp_path / "ran"
    flipped = [whole[:i] + bytes([whole[i] ^ 255]) + whole[i + 1 :] for i in (len(whole) // 2, len(whole) - 70)]
    for damage in (b"", b"hello", whole[:-50], *flipped, pickle.dumps(Harmful(witness))):
        file.write_bytes(damage)
        assert network.measure(folders) == (expected, {"real", "made"})
        assert file.read_bytes() == whole
    assert not witness.exists()


def test_the_cache_goes_where_it_can_be_written(folders, network, tmp_path):
    (folders[0].parent / ".cache").write_text("in the way")
    first, _ = network.measure(folders)
    assert network.measure(folders) == (first, {"made"})
    shutil.rmtree(tmp_path / "user's cache")
    (tmp_path / "user's cache").write_text("in the way")
    assert network.measure(folders) == (first, {"real", "made"})


def test_a_read_only_folder_is_left_alone_even_by_an_administrator(folders, network):
    folders[0].parent.chmod(0o555)
    try:
        network.measure(folders)
    finally:
        folders[0].parent.chmod(0o755)
    assert [path.name for path in folders[0].parent.iterdir()] == ["real"]


# The weights file.


@pytest.fixture
def serve(tmp_path, empty_home, monkeypatch):
    """Offer a file for download under the weights' name, with a checksum in it as the real one has."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    def offer(content, checksum):
        name = f"weights-{checksum[:8]}.pth"
        (tmp_path / "served").mkdir()
        (tmp_path / "served" / name).write_bytes(content)
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        monkeypatch.setattr(pytorch_fid.inception, "FID_WEIGHTS_URL", url)
        return empty_home.with_name(name)

    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield offer
        server.shutdown()


def test_weights_are_downloaded_once(serve, inception_home, tmp_path):
    content = (inception_home / "hub/checkpoints" / WEIGHTS).read_bytes()
    path = serve(content, hashlib.sha256(content).hexdigest())
    PytorchFidInception(64)
    assert path.read_bytes() == content
    shutil.rmtree(tmp_path / "served")
    assert not PytorchFidInception(64).network.training


def test_a_download_with_another_checksum_is_not_kept(serve):
    path = serve(b"an error page", hashlib.sha256(b"weights").hexdigest())
    with pytest.raises(OSError, match=path.name):
        PytorchFidInception(64)
    assert not list(path.parent.iterdir())


def test_without_weights_one_line_names_the_address_and_the_file(folders, empty_home, program):
    run = program(PROGRAM, *folders, "--dims", 64)
    assert refused(run, f"http://127.0.0.1:9/{WEIGHTS}") and str(empty_home) in run.stderr
    assert not list(empty_home.parent.iterdir())


@pytest.mark.parametrize("kind", ["nothing", "text", "code", "pickled code", "cut", "other weights"])
def test_a_weights_file_of_another_kind_is_refused(kind, folders, empty_home, inception_home, tmp_path, program):
    empty_home.parent.mkdir(parents=True)
    witness = tmp_path / "ran"
    if kind == "code":
        torch.save({"weights": Harmful(witness)}, empty_home)
    elif kind == "other weights":
        torch.save(torch.nn.Linear(2, 2).state_dict(), empty_home)
    else:
        cut = (inception_home / "hub/checkpoints" / WEIGHTS).read_bytes()[:9999]
        contents = {"nothing": b"", "text": b"hello", "pickled code": pickle.dumps(Harmful(witness)), "cut": cut}
        empty_home.write_bytes(contents[kind])
    assert refused(program(PROGRAM, *folders, "--dims", 64), str(empty_home))
    assert not witness.exists()


def test_features_that_are_not_finite_are_no_distance(folders, random_inception, program):
    run = program(PROGRAM, *folders, "--dims", 768)
    assert refused(run, str(random_inception)) and "--dims 768" in run.stderr
    assert not (folders[0].parent / ".cache").exists()


# What the user gave.


@pytest.mark.parametrize("name", ["missing", "file.png", "empty", "single", "broken"])
@pytest.mark.parametrize("place", [0, 1])
def test_bad_folders_end_in_one_line(name, place, folders, empty_home, tmp_path, program):
    """Before the network is looked for, which is not there."""
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "single", 1, seed=0)
    shutil.copy(tmp_path / "single/0.png", tmp_path / "file.png")
    (write_images(tmp_path / "broken", 2, seed=0) / "1.png").write_bytes(b"not an image")
    paths = [*folders]
    paths[place] = tmp_path / name
    assert refused(program(PROGRAM, *paths), str(tmp_path / name))


def test_an_image_that_breaks_off_is_named(folders, random_inception, program):
    broken = folders[1] / "2.png"
    broken.write_bytes(broken.read_bytes()[:200])
    assert refused(program(PROGRAM, *folders, "--dims", 64), str(broken))


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--dims", "100"), ("--dims", "many"), ("--batch_size", "0"), ("--device", "toaster"), ("--json", ".")],
)
def test_bad_values_end_in_one_line(flag, value, folders, program):
    run = program(PROGRAM, *folders, flag, value)
    assert refused(run, flag) and value in run.stderr


# The benchmark.


def test_the_benchmark_measures_both_programs(empty_home, tmp_path, program, monkeypatch):
    """With random weights where there are none."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # the program adds to it
    small = ["--dims", 64, "--real", 90, "--generated", 80, "--pictures", 3, "--rounds", 2, "--json", "fid.json"]
    run = program("../benchmarks/fid.py", *small)
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "fid.json").read_text())
    assert found["random_weights"]
    assert [row["what"].split(",")[0] for row in found["rows"]] == ["distance", "network", "whole", "whole"]
    for row in found["rows"]:
        assert row["what"] in run.stdout
        assert row["relative_difference"] < 1e-4
        for times in (row["pytorch_fid"], row["ours"]):
            assert 0 < times["lowest"] <= times["median"] <= times["highest"]
        assert row["speedup"] == pytest.approx(row["pytorch_fid"]["median"] / row["ours"]["median"])
    assert [path.name for path in tmp_path.iterdir()] == ["fid.json"]
