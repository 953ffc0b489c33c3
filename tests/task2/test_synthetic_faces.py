import itertools

import numpy as np
import pytest
from PIL import Image

from dataset import AFHQDataset, is_synthetic
from synthetic_faces import KINDS, draw_face, drawing_of, write_synthetic_set


def pixels(image):
    return np.asarray(image, dtype=np.float64)


def content(folder):
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    }


def test_a_drawing_depends_on_seed_split_kind_and_index_only():
    values = [(kind, split, i, seed) for kind in KINDS for split in ("train", "val") for i in (0, 1) for seed in (0, 1)]
    drawings = [pixels(drawing_of(*value)) for value in values]
    np.random.seed(99)
    for value, drawing in zip(reversed(values), reversed(drawings), strict=True):
        assert np.array_equal(pixels(drawing_of(*value)), drawing)
    for a, b in itertools.combinations(drawings, 2):
        assert np.abs(a - b).mean() > 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [16, 64, 100])
def test_a_drawing_is_an_rgb_picture_of_the_asked_size(kind, size):
    image = draw_face(kind, np.random.default_rng(0), size)
    assert (image.mode, image.size) == ("RGB", (size, size))
    assert pixels(image).std() > 15


def test_each_kind_varies_and_the_three_can_be_told_apart():
    """The nearest other drawing, by plain pixels, is of the same kind far more often than by chance (1/3)."""
    n = 40
    points = np.stack(
        [pixels(drawing_of(kind, "train", i).resize((16, 16))).ravel() for kind in KINDS for i in range(n)]
    )
    assert points.std(0).mean() > 25
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    kind = np.arange(len(KINDS)).repeat(n)
    assert (kind[distances.argmin(1)] == kind).mean() > 0.5


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="'horse': choose one of cat, dog, wild"):
        draw_face("horse", np.random.default_rng(0))


def test_a_set_has_the_layout_of_afhq_and_is_marked(tmp_path):
    root = tmp_path / "with blank" / "afhq"
    write_synthetic_set(root, 12, seed=3)
    train, val = AFHQDataset(root, "train"), AFHQDataset(root, "val")
    assert train.classes == val.classes == list(KINDS)
    assert (len(train), len(val)) == (36, 3)
    assert np.array_equal(pixels(train[13][0]), pixels(drawing_of("dog", "train", 1, seed=3)))
    assert {p.name for p in root.iterdir()} == {"train", "val", "SYNTHETIC.txt"}
    assert {p.name for p in root.parent.iterdir()} == {"afhq"}
    assert is_synthetic(root) and is_synthetic(root.parent)
    assert not is_synthetic(tmp_path)
    assert "drew them from seed 3" in (root / "SYNTHETIC.txt").read_text()


def test_the_same_set_again_is_left_alone_and_another_replaces_it(tmp_path):
    root = tmp_path / "afhq"
    write_synthetic_set(root, 2)
    before = content(root)
    write_synthetic_set(root, 2)
    assert content(root) == before

    write_synthetic_set(root, 3)
    assert len(AFHQDataset(root, "train")) == 9
    assert content(root)["train/cat/cat_00000.png"][0] == before["train/cat/cat_00000.png"][0]
    write_synthetic_set(root, 2, seed=1)
    assert len(AFHQDataset(root, "train")) == 6
    assert content(root)["train/cat/cat_00000.png"][0] != before["train/cat/cat_00000.png"][0]

    (root / "train" / "dog" / "dog_00001.png").unlink()
    write_synthetic_set(root, 2, seed=1)
    assert len(AFHQDataset(root, "train")) == 6


def test_a_killed_run_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    root = tmp_path / "afhq"

    class Killed(BaseException):
        pass

    def stop(kind, split, i, seed):
        if (split, kind) == ("val", "dog"):
            raise Killed
        return Image.new("RGB", (64, 64))

    with monkeypatch.context() as patch:
        patch.setattr("synthetic_faces.drawing_of", stop)
        with pytest.raises(Killed):
            write_synthetic_set(root, 2)
    assert not root.exists()
    write_synthetic_set(root, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["afhq"]
    assert pixels(Image.open(root / "train" / "cat" / "cat_00000.png")).any()


@pytest.mark.parametrize("present", ["train/cat/photo.jpg", "notes.txt"])
def test_drawings_do_not_mix_with_anything_else(tmp_path, present):
    file = tmp_path / "afhq" / present
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(ValueError, match=r"afhq already holds other things \((train|notes\.txt)\)"):
        write_synthetic_set(tmp_path / "afhq", 2)
    assert file.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["afhq"]


def test_a_read_only_place_is_left_alone(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(PermissionError, match="is read-only: choose another place"):
            write_synthetic_set(tmp_path / "data" / "afhq", 2)
        assert not list(tmp_path.iterdir())
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize(
    "name", ["train/cat/mine.jpg", "val/mine.png", "train/pets", "eval.zip", "train/cat/cat_7.png"]
)
def test_what_a_user_put_among_drawn_faces_is_not_drawn_over(tmp_path, name):
    root = tmp_path / "afhq"
    write_synthetic_set(root, 1)
    mine = root / name
    mine.mkdir() if not mine.suffix else mine.write_text("mine")
    with pytest.raises(ValueError, match=f"afhq already holds other things \\({name}\\)"):
        write_synthetic_set(root, 2)
    assert mine.exists() and len(list(root.glob("train/cat/cat_000*.png"))) == 1
