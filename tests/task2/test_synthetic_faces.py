"""The synthetic faces, and the data set that they make."""

import itertools
import signal

import numpy as np
import pytest

from conftest import read_only, write_image
from data_folder import is_synthetic
from dataset import AFHQDataset
from synthetic_faces import KINDS, synthetic_face, write_synthetic_set


def pixels(image):
    return np.asarray(image, dtype=np.float64)


def content(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_a_face_depends_on_kind_split_index_and_seed_alone():
    values = [*itertools.product(KINDS, ("train", "val"), (0, 1), (0, 1))]
    faces = [synthetic_face(*value) for value in values]
    assert {(face.mode, face.size) for face in faces} == {("RGB", (64, 64))}
    np.random.seed(99)
    assert all(synthetic_face(*values[i]) == faces[i] for i in (17, 5, 0))
    assert min(np.abs(pixels(a) - pixels(b)).mean() for a, b in itertools.combinations(faces, 2)) > 5


def test_each_kind_varies_and_the_three_can_be_told_apart():
    """The nearest other face, by plain pixels, is of the same kind far more often than by chance (1/3)."""
    n = 25
    faces = [synthetic_face(kind, "train", i).resize((16, 16)) for kind in KINDS for i in range(n)]
    points = np.stack([pixels(face).ravel() for face in faces])
    assert points.std(0).mean() > 25
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    kind = np.arange(len(KINDS)).repeat(n)
    assert (kind[distances.argmin(1)] == kind).mean() > 0.5


def test_a_set_has_the_layout_of_afhq_and_is_marked_and_drawn_once(tmp_path):
    root = tmp_path / "with blank" / "afhq"
    (root / ".cache").mkdir(parents=True)
    write_synthetic_set(root, 3, seed=3)
    train, val = AFHQDataset(root, "train"), AFHQDataset(root, "val")
    assert train.classes == val.classes == list(KINDS) and (len(train), len(val)) == (9, 3)
    assert train[4][0] == synthetic_face("dog", "train", 1, seed=3)
    assert {p.name for p in root.iterdir()} == {"train", "val", "SYNTHETIC.txt"}
    assert {p.name for p in root.parent.iterdir()} == {"afhq"}
    assert is_synthetic(root) and is_synthetic(root.parent) and not is_synthetic(tmp_path)
    before = content(root)
    write_synthetic_set(root, 3, seed=3)
    assert content(root) == before


def test_a_stopped_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("synthetic_faces.synthetic_face", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        write_synthetic_set(tmp_path / "data" / "afhq", 1)
    assert not list((tmp_path / "data").iterdir())


def test_a_read_only_place_is_left_alone(tmp_path):
    with read_only(tmp_path), pytest.raises(ValueError, match="read-only"):
        write_synthetic_set(tmp_path / "data" / "afhq", 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mine", ["train/cat/mine.jpg", ".git/mine.png"])
def test_nothing_is_replaced(tmp_path, mine):
    write_image(tmp_path / "afhq" / mine)
    before = content(tmp_path)
    with pytest.raises(ValueError, match="afhq already holds other files"):
        write_synthetic_set(tmp_path / "afhq", 2)
    assert content(tmp_path) == before
