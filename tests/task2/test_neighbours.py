"""report/neighbours.py: copies of training images are found, and counted."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import neighbours
from common import read_table
from fid_inputs import write_inception
from images import list_images


def test_the_nearest_reference_is_that_of_the_smallest_root_mean_square_difference():
    generator = torch.Generator().manual_seed(0)
    references = torch.randint(256, (700, 3, 4, 4), generator=generator, dtype=torch.uint8)
    queries = torch.randint(256, (5, 3, 4, 4), generator=generator, dtype=torch.uint8)
    distances, indices = neighbours.nearest(queries, references)
    expected = (queries[:, None].double() - references.double()).square().mean(dim=(2, 3, 4)).sqrt()
    assert torch.equal(indices, expected.argmin(dim=1))
    assert distances.tolist() == pytest.approx(expected.amin(dim=1).tolist(), rel=1e-4)

    queries = torch.stack([references[600], references[3].flip(2)])  # a copy and a mirrored copy
    distances, indices = neighbours.nearest_or_mirrored(queries, references)
    assert indices.tolist() == [600, 3] and distances.max() < 1


def test_images_as_new_as_validation_images_have_shares_of_a_half_and_a_twentieth():
    distances = torch.linspace(1, 2, 101)
    row = neighbours.comparison(distances, distances)
    assert float(row["share_below_median"]) == pytest.approx(0.5, abs=0.01)
    assert float(row["share_below_5_percent"]) == pytest.approx(0.05, abs=0.01)


def test_copies_of_training_images_are_found(program, faces, tmp_path, monkeypatch):
    write_inception(tmp_path / "home")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    (tmp_path / "samples").mkdir()
    shutil.copytree(faces / "train", tmp_path / "data/train")
    shutil.copytree(faces / "val", tmp_path / "data/test")  # its name in AFHQ v2
    for i, file in enumerate(list_images(faces / "train")[:4]):
        image = Image.open(file).resize((64, 64))
        (ImageOps.mirror(image) if i == 3 else image).save(tmp_path / f"samples/{i}.png")
    flags = ["--samples", "samples", "--data_root", "data", "--out", "out", "--dims", 64, "--show", 2]
    run = program("../report/neighbours.py", *flags)
    assert run.returncode == 0, run.stderr
    rows = read_table(tmp_path / "out/tables/neighbours.csv")
    assert [(row["distance"], row["samples"]) for row in rows] == [("pixels", "4"), ("features", "4")]
    assert rows[0]["share_below_median"] == rows[0]["share_below_5_percent"] == "1.000"
    assert float(rows[0]["median_of_samples"]) < 1 < float(rows[0]["median_of_validation"])
    figure = np.asarray(Image.open(tmp_path / "out/figures/neighbours.png").convert("RGB")).astype(int)
    sample, by_pixels, by_features = figure.reshape(3, -1, *figure.shape[1:])[:, :, -1000:]
    assert np.abs(sample - by_pixels).max() < 2 and np.abs(sample - by_features).max() < 2
