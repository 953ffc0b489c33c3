"""Which images the FID program measures, and its cache of the real ones' features."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fid.measure_fid import find_images, measure
from fid_inputs import write_images, write_two_folders
from images import read_image
from oracles import Harmful


class MeanColours:
    """A network of three mean colours that notes which folders it reads."""

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
def folders(tmp_path):
    return write_two_folders(tmp_path)


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
