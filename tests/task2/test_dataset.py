"""Tensors and images, data sets, batches, and the cache of decoded images."""

import itertools
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import read_only, replace_image, write_image
from dataset import AFHQDataModule, AFHQDataset, get_data_iterator, tensor_to_pil_image, to_tensor
from eval_images import make_eval_images
from images import read_image, resize


@pytest.fixture
def root(pets, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users cache"))
    return pets


@pytest.fixture
def module(root):
    def make(**options):
        return AFHQDataModule(root, **{"batch_size": 2, "image_resolution": 16} | options)

    return make


@pytest.fixture
def decoded(monkeypatch):
    """The files that were decoded."""
    files = []

    def spy(path):
        files.append(path.name)
        return read_image(path)

    monkeypatch.setattr("images.read_image", spy)
    return files


# Tensors and images.


def test_all_bytes_survive_the_way_to_a_tensor_and_back():
    values = np.arange(256 * 3, dtype=np.uint8).reshape(1, 16, 16, 3)
    x = to_tensor(values).permute(0, 3, 1, 2)
    assert x.dtype == torch.float32 and x.min() == -1 and x.max() == 1
    (image,) = tensor_to_pil_image(x)
    assert np.array_equal(image, values[0])


def test_values_are_rounded_and_clipped_and_one_channel_is_grey():
    x = torch.tensor([-50.0, -1, 99.6 / 127.5 - 1, 100.4 / 127.5 - 1, 1, torch.inf]).reshape(1, 2, 3)
    image = tensor_to_pil_image(x)
    assert image.mode == "L" and np.asarray(image).tolist() == [[0, 0, 100], [100, 255, 255]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_batches_give_lists_and_single_images_one(dtype):
    x = torch.rand(3, 3, 4, 5, requires_grad=True, dtype=dtype) * 2 - 1
    images = tensor_to_pil_image(x)
    assert [image.size for image in images] == [(5, 4)] * 3
    for single in (tensor_to_pil_image(x, single_image=True), tensor_to_pil_image(x[0])):
        assert np.array_equal(single, images[0])


NO_IMAGES = {
    "two axes": torch.zeros(4, 4),
    "two channels": torch.zeros(2, 2, 4, 4),
    "nan": torch.full((1, 3, 4, 4), torch.nan),
    "bytes": torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_tensors_that_are_no_images_are_refused(kind):
    with pytest.raises(ValueError):
        tensor_to_pil_image(NO_IMAGES[kind])


def test_iterator_starts_each_pass_anew_and_never_hangs():
    numbers = itertools.count()
    loader = type("Loader", (), {"__iter__": lambda _: iter([next(numbers)])})()
    assert list(itertools.islice(get_data_iterator(loader), 3)) == [0, 1, 2]
    with pytest.raises(ValueError, match="empty"):
        next(get_data_iterator([]))


# Data sets.


def test_classes_are_sorted_leave_label_0_free_and_can_be_limited(root):
    train = AFHQDataset(str(root), "train")
    assert train.classes == ["cat", "dog"] and train.num_classes == 2 and len(train) == 8
    assert train.labels == [1] * 3 + [2] * 5
    assert [path.name for path in train.fnames[:4]] == ["cat0.png", "cat1.png", "cat2.png", "dog0.png"]
    image, label = train[4]
    assert label == 2 and np.array_equal(image, Image.open(root / "train" / "dog" / "dog1.png"))
    assert AFHQDataset(root, "val", label_offset=0).labels == [0, 0, 1, 1]
    assert AFHQDataset(root, "train", transform=lambda image: image.size)[0] == ((100, 80), 1)
    limited = AFHQDataset(root, "train", max_num_images_per_cat=2)
    assert [path.name for path in limited.fnames] == ["cat0.png", "cat1.png", "dog0.png", "dog1.png"]
    with pytest.raises(ValueError, match="got 0"):
        AFHQDataset(root, "train", max_num_images_per_cat=0)


# Batches.


def test_batches_hold_the_same_pixels_as_the_eval_images(root, module):
    images, labels = next(iter(module(image_resolution=64).val_dataloader()))
    assert images.shape == (2, 3, 64, 64) and images.dtype == torch.float32
    assert labels.tolist() == [1, 1] and labels.dtype == torch.int64
    make_eval_images(root)
    for i, image in enumerate(tensor_to_pil_image(images)):
        assert np.array_equal(image, Image.open(root / "eval" / f"cat_cat{i}.png"))
    assert np.array_equal(image, Image.open(root / "val" / "cat" / "cat1.png"))  # 64x64 as it is: untouched


def test_an_epoch_gives_full_batches_of_different_images_in_a_new_order_each_time(module):
    data = module(batch_size=3)
    loader, batches = data.train_dataloader(), data.train_batches(seed=5)
    by_step = ([batches[2 * epoch], batches[2 * epoch + 1]] for epoch in range(3))
    everything = {x.numpy().tobytes(): label for x, label in (data.train_ds[i] for i in range(8))}
    assert len(everything) == 8
    for epochs in [[list(loader) for _ in range(3)], list(by_step)]:
        orders = set()
        for epoch in epochs:  # two batches of 3; two of the 8 images are left over
            assert all(x.shape == (3, 3, 16, 16) and x.dtype == torch.float32 for x, _ in epoch) and len(epoch) == 2
            found = [x.numpy().tobytes() for images, _ in epoch for x in images]
            assert [everything[x] for x in found] == torch.cat([labels for _, labels in epoch]).tolist()
            assert len(set(found)) == 6
            orders.add(tuple(found))
        assert len(orders) == 3 and len(set().union(*orders)) == 8


def test_a_training_batch_follows_from_seed_and_step_alone_and_is_shared_by_processes(module):
    one, other, *parts = (
        module().train_batches(5, share=slice(i, None, n)) for i, n in [(0, 1)] * 2 + [(0, 2), (1, 2)]
    )
    in_order = [one[step] for step in range(9)]
    np.random.seed(99)
    for step in (6, 0, 3, 3, 1, 1000, 2, 8, 4):
        images, labels = other[step]
        if step < 9:
            assert torch.equal(images, in_order[step][0]) and torch.equal(labels, in_order[step][1])
        assert torch.equal(images, torch.cat([part[step][0] for part in parts]))
    first = [module(batch_size=3).train_batches(seed)[0][0] for seed in range(4)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(first, 2))


@pytest.mark.parametrize("crop", [False, True])
def test_cached_images_are_those_of_the_files(module, root, crop):
    data = module(crop=crop)
    plain = AFHQDataset(root, "train", lambda image: to_tensor(np.array(resize(image, 16, crop))).permute(2, 0, 1))
    assert isinstance(data.train_ds, AFHQDataset) and data.train_ds.fnames == plain.fnames
    for (x, label), (y, wanted) in zip(data.train_ds, plain, strict=True):
        assert torch.equal(x, y) and label == wanted
    x, label = data.train_ds[7]
    x += 1  # a copy: the cached image stays
    assert torch.equal(data.train_ds[7][0], plain[7][0]) and label == 2


def pixel_sum(image):
    return torch.tensor(np.asarray(image).sum(dtype=int))


def test_a_transform_is_run_by_workers_and_not_cached(module, root):
    sums, labels = next(iter(module(transform=pixel_sum, num_workers=1).val_dataloader()))
    assert sums.tolist() == [pixel_sum(Image.open(root / "val" / "cat" / f"cat{i}.png")) for i in range(2)]
    assert labels.tolist() == [1, 1]
    assert not (root / ".cache").exists()
    assert module(num_workers=3).train_dataloader().num_workers == 0


# The cache of decoded images.


def test_images_are_decoded_once_and_not_before_they_are_needed(module, root, decoded):
    data = module()
    data.check_batch_size()
    assert not decoded and not (root / ".cache").exists()
    first = data.train_batches(seed=0)[3]
    assert len(decoded) == 8
    next(iter(data.val_dataloader()))
    assert len(decoded) == 12
    again = module()
    assert torch.equal(again.train_batches(seed=0)[3][0], first[0])
    next(iter(again.val_dataloader()))
    assert len(decoded) == 12


CHANGES = {
    "rewritten with the same size and time": lambda cats: replace_image(cats / "cat1.png"),
    "added": lambda cats: write_image(cats / "cat11.png", 77),
    "removed": lambda cats: (cats / "cat1.png").unlink(),
    "renamed": lambda cats: (cats / "cat1.png").rename(cats / "zoe.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_cache_notices_a_change(module, decoded, root, change):
    before = module().train_ds
    before.decode()
    CHANGES[change](root / "train" / "cat")
    decoded.clear()
    changed = module().train_ds
    for i, file in enumerate(changed.fnames):
        assert torch.equal(changed[i][0], to_tensor(np.array(resize(read_image(file), 16)).transpose(2, 0, 1)))
    assert len(decoded) == len(changed) and changed.fingerprint != before.fingerprint


def test_a_copy_has_the_same_cache_and_each_setting_its_own(module, decoded, root):
    settings = [{}, {"image_resolution": 8}, {"max_num_images_per_cat": 1}, {"max_num_images_per_cat": -1}]
    for options in settings:
        module(**options).train_ds.decode()
    decoded.clear()
    assert [module(**options).train_ds[0][0].shape[1] for options in settings] == [16, 8, 16, 16]
    copy = shutil.copytree(root, root.with_name("copy"), copy_function=shutil.copyfile)
    AFHQDataModule(copy, image_resolution=16).train_ds.decode()
    assert not decoded


def test_a_damaged_cache_is_made_anew(module, decoded, root):
    module().train_ds.decode()
    (path,) = (root / ".cache").iterdir()
    content = path.read_bytes()
    abandoned = path.with_name(f".{path.name}.123.partial")  # by a killed program
    for damaged in (content[:-100], content[:3000] + b"?" + content[3001:], b""):
        path.write_bytes(damaged)
        abandoned.write_bytes(content[:50])
        os.utime(abandoned, (0, 0))
        decoded.clear()
        module().train_ds.decode()
        assert len(decoded) == 8 and path.read_bytes() == content and not abandoned.exists()


def test_a_read_only_set_is_cached_in_the_users_folder_or_not_at_all(module, decoded, root, tmp_path):
    with read_only(root):
        for _ in range(2):
            module().train_ds.decode()
        assert len(decoded) == 8 and not (root / ".cache").exists()
        shutil.rmtree(tmp_path / "users cache")
        (tmp_path / "users cache").write_text("in the way")
        assert module().train_batches(0)[0][0].shape == (2, 3, 16, 16)
