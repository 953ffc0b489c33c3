"""The two Inception networks: the lab's features against its recipe, which network is taken, and the weights files."""

import functools
import hashlib
import json
import pickle
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import pytorch_fid.inception
import torch

import fid.inception
from fid.inception import LabInception, PytorchFidInception, extract_features
from fid_inputs import WEIGHTS, LabRecipe, write_images, write_inception, write_two_folders
from oracles import Harmful, refused

PROGRAM = "fid/measure_fid.py"


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    """Random weights for both networks, for pytorch-fid's up to 192 features."""
    lab = tmp_path_factory.mktemp("lab") / "afhq_inception_v3.ckpt"
    torch.save(LabRecipe().state_dict(), lab)
    return {"lab": lab, "pytorch-fid": write_inception(tmp_path_factory.mktemp("torch home"))}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Where both networks' weights are looked for: they are not there, nor is there a network to download them from."""
    lab, home = tmp_path / "lab/afhq_inception_v3.ckpt", tmp_path / "torch home"
    monkeypatch.setattr(fid.inception, "LAB_WEIGHTS", lab)
    monkeypatch.setenv("TORCH_HOME", str(home))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(pytorch_fid.inception, "FID_WEIGHTS_URL", f"http://127.0.0.1:9/{WEIGHTS}")
    files = {"lab": lab, "pytorch-fid": home / "hub/checkpoints" / WEIGHTS}
    for file in files.values():
        file.parent.mkdir(parents=True)
    return files


@pytest.fixture
def folders(tmp_path):
    return write_two_folders(tmp_path)


# The lab's network.


def test_the_labs_features_are_those_of_its_recipe(files, whole_files, tmp_path):
    images = [write_images(tmp_path / "small", 1, seed=0, size=(64, 64)) / "0.png"]
    images += [write_images(tmp_path / "large", 1, seed=1, size=(300, 280), grain=(9, 9), suffix="jpg") / "0.jpg"]
    files["lab"].symlink_to(whole_files["lab"])
    found = extract_features(images, LabInception())
    recipe = LabRecipe()
    expected = np.stack([recipe.features(image).numpy() for image in images])
    assert found.shape == (2, 2048) and np.ptp(expected, axis=0).mean() > 0.05 * expected.mean()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("network", ["auto", "lab"])
def test_the_labs_network_is_taken_and_named_where_its_file_is(network, files, whole_files, folders, program):
    files["lab"].symlink_to(whole_files["lab"])
    run = program(PROGRAM, *folders, "--network", network, "--json", "fid.json")
    assert run.returncode == 0, run.stderr
    *_, named, distance = run.stdout.splitlines()
    found = json.loads(Path("fid.json").read_text())
    assert "Network: lab" in named and str(files["lab"]) in named
    assert distance == f"FID: {found['distance']:.4f}"
    assert (found["network"], found["dims"]) == ("lab", 2048)
    assert found["weights_sha256"] == hashlib.sha256(files["lab"].read_bytes()).hexdigest()


def test_pytorch_fids_network_is_taken_where_it_is_named_and_for_its_own_widths(files, whole_files, folders, program):
    for network, file in files.items():
        file.symlink_to(whole_files[network])
    for network in ("auto", "pytorch-fid"):
        run = program(PROGRAM, *folders, "--network", network, "--dims", 64)
        assert "Network: pytorch-fid" in run.stdout.splitlines()[-2]
    assert refused(program(PROGRAM, *folders, "--network", "lab", "--dims", 64), "--dims")
    assert refused(program(PROGRAM, *folders, "--network", "pytorch-fid"), str(files["pytorch-fid"]))  # NaN at 2048


def test_statistics_decide_which_network_is_taken(files, whole_files, folders, program):
    for network, file in files.items():
        file.symlink_to(whole_files[network])
    assert program(PROGRAM, folders[0], "--save_stats", "lab.npz").returncode == 0
    np.savez("unnamed.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    assert "Network: lab" in program(PROGRAM, "lab.npz", folders[1]).stdout.splitlines()[-2]
    assert refused(program(PROGRAM, "lab.npz", folders[1], "--network", "pytorch-fid"), "--network")
    assert refused(program(PROGRAM, "unnamed.npz", folders[1], "--network", "lab"), "--network")
    assert refused(program(PROGRAM, "unnamed.npz", folders[1]), str(files["pytorch-fid"]))  # NaN at 2048
    files["lab"].unlink()
    assert refused(program(PROGRAM, "lab.npz", folders[1]), str(files["lab"]))


# The weights files.


def test_without_the_labs_file_one_line_names_it_and_where_it_comes_from(files, folders, program):
    run = program(PROGRAM, *folders, "--network", "lab")
    assert refused(run, str(files["lab"])) and "skeleton" in run.stderr


def test_without_pytorch_fids_file_one_line_names_it_and_where_it_comes_from(files, folders, program):
    run = program(PROGRAM, *folders, "--dims", 64)
    assert refused(run, str(files["pytorch-fid"])) and f"http://127.0.0.1:9/{WEIGHTS}" in run.stderr
    assert not list(files["pytorch-fid"].parent.iterdir())


@pytest.mark.parametrize("kind", ["nothing", "text", "code", "cut", "a layer less", "another shape", "no tensors"])
@pytest.mark.parametrize("network", ["lab", "pytorch-fid"])
def test_a_damaged_or_wrong_file_is_refused_and_its_code_does_not_run(
    network, kind, files, whole_files, folders, tmp_path, program
):
    file, witness = files[network], tmp_path / "ran"
    state = torch.load(whole_files[network], weights_only=True, mmap=True)
    layer = next(iter(state))
    if kind in ("nothing", "text", "cut"):
        with whole_files[network].open("rb") as whole:
            file.write_bytes({"nothing": b"", "text": b"hello", "cut": whole.read(9999)}[kind])
    elif kind == "code":
        file.write_bytes(pickle.dumps(Harmful(witness)))
        assert refused(program(PROGRAM, *folders, "--network", network), str(file))
        torch.save(state | {"code": Harmful(witness)}, file)
    else:
        state[layer] = {"another shape": torch.zeros(2), "no tensors": "hello"}.get(kind)
        if kind == "a layer less":
            del state[layer]
        torch.save(state, file)
    assert refused(program(PROGRAM, *folders, "--network", network), str(file))
    assert not witness.exists()


@pytest.fixture
def serve(tmp_path, files, monkeypatch):
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
        return files["pytorch-fid"].with_name(name)

    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield offer
        server.shutdown()


def test_weights_are_downloaded_once(serve, whole_files, tmp_path):
    content = whole_files["pytorch-fid"].read_bytes()
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
