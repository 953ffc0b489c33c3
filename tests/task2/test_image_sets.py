"""Which images the FID program measures, its cache of the real ones' features, and statistics in .npz files."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cli import UserError
from conftest import files_in, replace_image
from fid.image_sets import find_images, open_image_set, save_statistics
from fid.measure_fid import measure
from fid_inputs import write_images, write_two_folders
from images import read_image
from oracles import Harmful


class MeanColours:
    """A network of three mean colours that notes which folders it reads."""

    name, dims, device, weights, weights_sha256 = "mean colours", 3, "cpu", Path("weights"), "a"

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
        return measure(*map(open_image_set, folders), self), set(self.folders)


@pytest.fixture
def folders(tmp_path):
    return write_two_folders(tmp_path)


@pytest.fixture
def network(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user's cache"))
    return MeanColours()


def test_the_real_images_are_read_once(folders, network):
    before = [*map(files_in, folders)]
    first, read = network.measure(folders)
    assert read == {"real", "made"}
    os.utime(folders[0] / "1.png", ns=(0, 1))  # dates do not count
    assert network.measure(folders) == (first, {"made"})
    assert [*map(files_in, folders)] == before
    assert len([*(folders[0].parent / ".cache").iterdir()]) == 1


CHANGES = {
    "added": lambda real, _: write_images(real, 6, seed=1),
    "renamed": lambda real, _: (real / "1.png").rename(real / "9.png"),
    "rewritten with the same size and time": lambda real, _: replace_image(real / "1.png"),
    "another width": lambda _, network: setattr(network, "dims", 768),
    "another network": lambda _, network: setattr(network, "name", "another"),
    "other weights": lambda _, network: setattr(network, "weights_sha256", "b"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_cache_notices_a_change(change, folders, network):
    network.measure(folders)
    CHANGES[change](folders[0], network)
    found, read = network.measure(folders)
    assert read == {"real", "made"}
    shutil.rmtree(folders[0].parent / ".cache")
    assert network.measure(folders)[0] == found


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


# Statistics.


@pytest.mark.parametrize("side", [0, 1])
def test_saved_statistics_stand_in_for_a_folder(side, folders, network, tmp_path):
    expected, _ = network.measure(folders)
    (folders[0].parent / "SYNTHETIC.txt").touch()
    save_statistics(tmp_path / "saved.npz", find_images(folders[side]), network)
    paths = [*folders]
    paths[side] = tmp_path / "saved.npz"
    found, read = network.measure(paths)
    assert read <= {("made", "real")[side]}
    assert found["distance"] == pytest.approx(expected["distance"], rel=1e-9)
    for name in ("images", "sizes", "formats"):
        name = f"{('gt', 'gen')[side]}_{name}"
        assert found[name] == expected[name]
    assert found["gt_synthetic"]


def test_a_file_of_mean_and_covariance_is_enough(folders, network, tmp_path):
    features = np.random.default_rng(0).normal(size=(10, 3))
    more = np.array([Harmful(tmp_path / "ran")], dtype=object)  # is not read
    np.savez(tmp_path / "other.npz", mu=features.mean(axis=0), sigma=np.cov(features, rowvar=False), arr_0=more)
    network.name = "pytorch-fid"
    found, read = network.measure([tmp_path / "other.npz", folders[1]])
    assert found["distance"] > 0 and found["gt_images"] is None and read == {"made"}
    assert network.measure([tmp_path / "other.npz"] * 2)[0]["distance"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("attribute", "value", "named"),
    [("name", "lab", "--network"), ("dims", 2048, "--dims"), ("weights_sha256", "b", "saved.npz")],
)
def test_statistics_of_another_network_and_kid_of_statistics_are_refused(
    attribute, value, named, folders, network, tmp_path
):
    save_statistics(tmp_path / "saved.npz", find_images(folders[0]), network)
    with pytest.raises(UserError, match=r"--kid.*saved\.npz"):
        measure(open_image_set(tmp_path / "saved.npz"), find_images(folders[1]), network, kid=True)
    setattr(network, attribute, value)
    with pytest.raises(UserError, match=named):
        network.measure([tmp_path / "saved.npz", folders[1]])


MU, SIGMA = np.zeros(3), np.eye(3)


DAMAGED = {
    "no sigma": {"mu": MU},
    "another width": {"mu": MU, "sigma": np.eye(2)},
    "not finite": {"mu": MU, "sigma": np.full((3, 3), np.nan)},
    "text": {"mu": np.array(["a", "b", "c"]), "sigma": SIGMA},
}


@pytest.mark.parametrize("kind", [*DAMAGED, "empty", "cut", "code"])
def test_other_files_are_refused_and_their_code_does_not_run(kind, tmp_path):
    file, witness = tmp_path / "saved.npz", tmp_path / "ran"
    code = {"mu": np.array([Harmful(witness)], dtype=object), "sigma": SIGMA}
    np.savez(file, **(code if kind == "code" else DAMAGED.get(kind, {"mu": MU, "sigma": SIGMA})))
    if kind in ("empty", "cut"):
        file.write_bytes(file.read_bytes()[: 0 if kind == "empty" else -100])
    with pytest.raises(UserError, match=r"saved\.npz"):
        open_image_set(file)
    assert not witness.exists()
