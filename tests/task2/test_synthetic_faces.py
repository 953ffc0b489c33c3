"""The synthetic faces, and the data set that they make."""

import itertools

import numpy as np
import pytest
from PIL import Image

from data_folder import is_synthetic
from dataset import AFHQDataset
from synthetic_faces import KINDS, draw_face, synthetic_face, write_synthetic_set


def pixels(image):
    return np.asarray(image, dtype=np.float64)


def content(folder):
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*.*")}


def test_a_face_depends_on_kind_split_index_and_seed_alone():
    values = [(kind, split, i, seed) for kind in KINDS for split in ("train", "val") for i in (0, 1) for seed in (0, 1)]
    faces = [pixels(synthetic_face(*value)) for value in values]
    np.random.seed(99)
    assert all(np.array_equal(pixels(synthetic_face(*values[i])), faces[i]) for i in (17, 5, 0))
    assert min(np.abs(a - b).mean() for a, b in itertools.combinations(faces, 2)) > 5


@pytest.mark.parametrize("size", [16, 100])
def test_a_face_is_an_rgb_image_of_the_given_size(size):
    image = draw_face("wild", np.random.default_rng(0), size)
    assert (image.mode, image.size) == ("RGB", (size, size)) and pixels(image).std() > 15
    with pytest.raises(ValueError, match="'horse'"):
        draw_face("horse", np.random.default_rng(0))


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


def test_a_set_has_the_layout_of_afhq_and_is_marked(tmp_path):
    root = tmp_path / "with blank" / "afhq"
    write_synthetic_set(root, 3, seed=3)
    train, val = AFHQDataset(root, "train"), AFHQDataset(root, "val")
    assert train.classes == val.classes == list(KINDS) and (len(train), len(val)) == (9, 3)
    assert np.array_equal(pixels(train[4][0]), pixels(synthetic_face("dog", "train", 1, seed=3)))
    assert {p.name for p in root.iterdir()} == {"train", "val", "SYNTHETIC.txt"}
    assert {p.name for p in root.parent.iterdir()} == {"afhq"}
    assert is_synthetic(root) and is_synthetic(root.parent) and not is_synthetic(tmp_path)


def test_the_same_set_again_is_left_alone_and_another_replaces_it(tmp_path):
    root = tmp_path / "afhq"
    write_synthetic_set(root, 2)
    before = content(root)
    write_synthetic_set(root, 2)
    assert content(root) == before
    write_synthetic_set(root, 1, seed=1)
    assert len(AFHQDataset(root, "train")) == 3
    assert content(root)["train/cat/cat_00000.png"][0] != before["train/cat/cat_00000.png"][0]
    (root / "train" / "dog" / "dog_00000.png").unlink()
    for made in ("eval/a.png", ".eval.partial/a.png", ".cache/train-64px.npz", "train/Thumbs.db"):
        (root / made).parent.mkdir(exist_ok=True)
        (root / made).touch()
    write_synthetic_set(root, 1, seed=1)
    assert len(AFHQDataset(root, "train")) == 3


def test_a_killed_run_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    root = tmp_path / "afhq"

    class Killed(BaseException):
        pass

    def stop(kind, split, i, seed):
        if split == "val":
            raise Killed
        return Image.new("RGB", (64, 64))

    with monkeypatch.context() as patch:
        patch.setattr("synthetic_faces.synthetic_face", stop)
        with pytest.raises(Killed):
            write_synthetic_set(root, 1)
    assert not root.exists()
    write_synthetic_set(root, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["afhq"]
    assert pixels(Image.open(root / "train" / "cat" / "cat_00000.png")).any()


def test_a_read_only_place_is_left_alone(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(PermissionError, match="read-only"):
            write_synthetic_set(tmp_path / "data" / "afhq", 2)
        assert not list(tmp_path.iterdir())
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize("is_there", [True, False])
def test_synthetic_faces_replace_nothing_of_the_user(tmp_path, is_there):
    root = tmp_path / "afhq"
    if is_there:
        write_synthetic_set(root, 1)
    for name in ["train/cat/mine.jpg", "val/mine.png", "train/pets/cat_00000.png", "eval.zip", "train/cat/cat_7.png"]:
        mine = root / name
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.write_text("mine")
        with pytest.raises(ValueError, match="afhq already holds other things"):
            write_synthetic_set(root, 2)
        assert mine.read_text() == "mine" and [p.name for p in tmp_path.iterdir()] == ["afhq"]
        mine.unlink()
