"""The synthetic faces, and the data set that they make."""

import itertools

import numpy as np
import pytest

from conftest import files_in, read_only, write_image
from data_folder import is_synthetic
from dataset import AFHQDataset
from synthetic_faces import KINDS, synthetic_face, write_synthetic_set


def test_a_face_depends_on_kind_split_index_and_seed_alone():
    values = [*itertools.product(KINDS, ("train", "val"), (0, 1), (0, 1))]
    faces = [synthetic_face(*value) for value in values]
    assert {(face.mode, face.size) for face in faces} == {("RGB", (64, 64))}
    np.random.seed(99)
    assert all(synthetic_face(*values[i]) == faces[i] for i in (17, 5, 0))
    pixels = [np.asarray(face, dtype=float) for face in faces]
    assert min(np.abs(a - b).mean() for a, b in itertools.combinations(pixels, 2)) > 5


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
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    write_synthetic_set(root, 3, seed=3)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_read_only_place_and_other_files_are_left_alone(tmp_path):
    with read_only(tmp_path), pytest.raises(ValueError, match="read-only"):
        write_synthetic_set(tmp_path / "data" / "afhq", 2)
    assert not list(tmp_path.iterdir())
    for i, name in enumerate(["train/cat/mine.jpg", ".git/mine.png"]):
        root = tmp_path / str(i) / "afhq"
        write_image(root / name)
        before = files_in(tmp_path)
        with pytest.raises(ValueError, match="afhq already holds other files"):
            write_synthetic_set(root, 2)
        assert files_in(tmp_path) == before
