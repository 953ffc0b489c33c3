import io
import itertools
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import (
    AFHQDataModule,
    AFHQDataset,
    get_data_iterator,
    is_synthetic,
    main,
    make_eval_images,
    tensor_to_pil_image,
    to_tensor,
)
from images import read_image, resize
from synthetic_faces import write_synthetic_set

no_such_names = pytest.mark.skipif(sys.platform == "darwin", reason="its file system takes no such names")


def noise(seed=0, size=(64, 64)):
    """An RGB picture [H, W, 3] in which no two pixels are likely to be alike."""
    return np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)


def write(path, seed=0, size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, size)).save(path)
    return path


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Two classes, 5 + 3 training and 2 + 2 validation images, of two sizes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users cache"))
    root = tmp_path / "with blank" / "afhq"
    seed = itertools.count()
    for split, counts in {"train": {"dog": 5, "cat": 3}, "val": {"dog": 2, "cat": 2}}.items():
        for name, count in counts.items():
            for i in range(count):
                write(root / split / name / f"{name}{i}.png", next(seed), size=(64, 64) if i % 2 else (100, 80))
    return root


@pytest.fixture
def module(root):
    def make(**kwargs):
        data = AFHQDataModule(root, **{"batch_size": 2, "image_resolution": 16} | kwargs)
        if "transform" not in kwargs:
            data.train_ds.decode()
            data.val_ds.decode()
        return data

    return make


@pytest.fixture
def decoded(monkeypatch):
    """The files that the cache decodes from here on."""
    files = []

    def spy(path):
        files.append(path.name)
        return read_image(path)

    monkeypatch.setattr("image_cache.read_image", spy)
    return files


# Tensors to pictures.


def test_all_bytes_survive_the_way_to_a_tensor_and_back():
    pixels = np.arange(256 * 3, dtype=np.uint8).reshape(1, 16, 16, 3)
    x = to_tensor(pixels).permute(0, 3, 1, 2)
    assert x.dtype == torch.float32 and x.min() == -1 and x.max() == 1
    (image,) = tensor_to_pil_image(x)
    assert np.array_equal(np.asarray(image), pixels[0])


def test_values_are_rounded_and_cut_off():
    x = torch.tensor([-50.0, -1, 99.6 / 127.5 - 1, 100.4 / 127.5 - 1, 1, torch.inf]).reshape(1, 2, 3)
    image = tensor_to_pil_image(x)
    assert image.mode == "L"
    assert np.asarray(image).tolist() == [[0, 0, 100], [100, 255, 255]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_batches_give_lists_and_single_images_one(dtype):
    x = torch.rand(3, 3, 4, 5, requires_grad=True, dtype=dtype) * 2 - 1
    images = tensor_to_pil_image(x)
    assert [image.size for image in images] == [(5, 4)] * 3
    for single in (
        tensor_to_pil_image(x, single_image=True),
        tensor_to_pil_image(x[:1], True),
        tensor_to_pil_image(x[0]),
    ):
        assert np.array_equal(np.asarray(single), np.asarray(images[0]))
    assert [image.mode for image in tensor_to_pil_image(x[:, :1])] == ["L"] * 3


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(4, 4), r"got shape \[4, 4\]"),
        (torch.zeros(2, 2, 4, 4), r"1 or 3 channels, got shape \[2, 2, 4, 4\]"),
        (torch.full((1, 3, 4, 4), torch.nan), "NaN"),
    ],
)
def test_tensors_that_are_no_images_are_named(x, words):
    with pytest.raises(ValueError, match=words):
        tensor_to_pil_image(x)


def test_iterator_is_endless_and_starts_a_new_pass_each_time():
    passes = itertools.count()

    class Shuffled:
        def __iter__(self):
            k = next(passes)
            return iter([10 * k, 10 * k + 1])

    assert list(itertools.islice(get_data_iterator(Shuffled()), 5)) == [0, 1, 10, 11, 20]


def test_iterator_over_nothing_is_an_error_rather_than_a_hang():
    with pytest.raises(ValueError, match="empty"):
        next(get_data_iterator([]))


# Reading files.


@pytest.mark.parametrize("suffix", ["png", "PNG", "bmp", "ppm", "tiff", "webp"])
def test_lossless_formats_come_through_bit_for_bit(tmp_path, suffix):
    path = tmp_path / f"a b.{suffix}"
    Image.fromarray(noise()).save(path, **({"lossless": True} if suffix == "webp" else {}))
    image = read_image(path)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(resize(image, 64)), noise())


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_jpegs_of_every_mode_come_close(tmp_path, mode):
    smooth = Image.fromarray(noise(size=(3, 3))).resize((64, 64), Image.Resampling.BICUBIC)
    smooth.convert(mode).save(tmp_path / "a.jpg", quality=98)
    difference = np.asarray(read_image(tmp_path / "a.jpg"), float) - np.asarray(
        smooth.convert(mode).convert("RGB"), float
    )
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_modes_without_alpha_keep_their_pixels(tmp_path, mode):
    image = Image.fromarray(noise()).convert(mode)
    image.save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), np.asarray(image.convert("RGB")))


def test_16_bits_of_grey_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 128 * 257], [65535, 65535 - 257, 300 * 100]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    pixels = np.asarray(read_image(tmp_path / "a.png"))
    assert pixels[..., 0].tolist() == [[0, 1, 128], [255, 254, 117]]


def test_transparent_parts_become_white(tmp_path):
    alpha = Image.fromarray(np.repeat(np.array([[0, 128, 255, 255]], dtype=np.uint8), 4, 0))
    colour = Image.new("RGB", (4, 4), (200, 0, 100))
    colour.putalpha(alpha)
    colour.save(tmp_path / "rgba.png")
    grey = Image.new("L", (4, 4), 100)
    grey.putalpha(alpha)
    grey.save(tmp_path / "la.png")
    indexed = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode=None).convert("P")
    indexed.putpalette([10, 20, 30, 40, 50, 60])
    indexed.save(tmp_path / "p.png", transparency=0)
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))

    assert np.asarray(read_image(tmp_path / "rgba.png"))[0].tolist() == [
        [255, 255, 255], [227, 127, 177], [200, 0, 100], [200, 0, 100],
    ]  # fmt: skip
    assert np.asarray(read_image(tmp_path / "la.png"))[0, :, 0].tolist() == [255, 177, 100, 100]
    assert np.asarray(read_image(tmp_path / "p.png"))[0].tolist() == [[255, 255, 255], [40, 50, 60]]
    assert np.unique(np.asarray(read_image(tmp_path / "key.png"))).tolist() == [255]


def test_the_cameras_note_on_which_side_is_up_is_followed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(noise(size=(6, 4))).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), np.rot90(noise(size=(6, 4)), -1))


def test_resize_takes_the_whole_image_and_averages(tmp_path):
    """A fine checkerboard turns grey instead of into stripes, and a marked corner stays in its corner."""
    board = np.indices((500, 700)).sum(0) % 2 * 255
    board = np.repeat(board[..., None], 3, -1).astype(np.uint8)
    board[:100, :100] = [255, 0, 0]
    small = np.asarray(resize(Image.fromarray(board), 16)).astype(int)
    assert small.shape == (16, 16, 3)
    assert np.abs(small[5:, 5:] - 127.5).max() < 4
    assert small[0, 0].tolist() == [255, 0, 0]


def test_resize_is_cubic_convolution_widened_with_the_scale():
    """That of Keys (1981) with a = -1/2, as a product with a matrix; Pillow rounds once for each direction."""

    def weights(size, resolution):
        scale = size / resolution
        centre = (np.arange(resolution)[:, None] + 0.5) * scale
        d = np.abs(np.arange(size) + 0.5 - centre) / max(scale, 1)
        w = np.where(d < 1, 1.5 * d**3 - 2.5 * d**2 + 1, np.where(d < 2, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2, 0))
        return w / w.sum(1, keepdims=True)

    for size in [(50, 37), (16, 100), (9, 5)]:
        pixels = noise(size=size) // 2 + 64  # so that nothing overshoots 0 or 255
        expected = np.einsum("ih,hwc,jw->ijc", weights(size[1], 16), pixels, weights(size[0], 16))
        assert np.abs(np.asarray(resize(Image.fromarray(pixels), 16)) - expected).max() < 2


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_an_animation_is_its_first_frame(tmp_path, suffix):
    first, *others = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime"))
    options = {"lossless": True} if suffix == "webp" else {}
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=others, **options)
    assert Image.open(tmp_path / f"a.{suffix}").n_frames == 3
    assert np.unique(np.asarray(read_image(tmp_path / f"a.{suffix}")).reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]


def test_one_pixel_fills_the_image(tmp_path):
    Image.new("RGB", (1, 1), (10, 200, 30)).save(tmp_path / "a.png")
    pixels = np.asarray(resize(read_image(tmp_path / "a.png"), 16))
    assert pixels.shape == (16, 16, 3)
    assert np.unique(pixels.reshape(-1, 3), axis=0).tolist() == [[10, 200, 30]]


def test_the_content_and_not_the_ending_says_what_an_image_is(tmp_path):
    for kind, ending in [("jpeg", "png"), ("png", "jpg"), ("bmp", "webp")]:
        Image.fromarray(noise()).save(tmp_path / f"right.{kind}")
        wrong = (tmp_path / f"right.{kind}").rename(tmp_path / f"wrong.{ending}")
        with Image.open(io.BytesIO(wrong.read_bytes())) as image:
            assert image.format == kind.upper()
            assert np.array_equal(np.asarray(read_image(wrong)), np.asarray(image))


@no_such_names
def test_names_of_any_bytes_are_taken(root, module):
    names = [os.fsdecode(b"caf\xe9\n.png"), "two\nlines.png", "-rf *.png", "\x1b[31m.png", "%s {} ü.png"]
    for i, name in enumerate(names):
        write(root / "train" / "cat" / name, 80 + i, size=(16, 16))
        write(root / "val" / "cat" / name, 90 + i)
    train = module().train_ds
    for i, name in enumerate(names):
        image, label = train[train.fnames.index(root / "train" / "cat" / name)]
        assert np.array_equal(np.asarray(tensor_to_pil_image(image)), noise(80 + i, (16, 16))) and label == 1
        assert train.fnames.count(root / "train" / "cat" / name) == 1
    assert make_eval_images(root) == (9, 9)
    assert make_eval_images(root) == (9, 0)


def bomb(path):
    """A PNG of some bytes that says that it is 50,000 pixels wide and high."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "not a file"),  # from which reading would wait for ever
        (lambda path: path.symlink_to(path), "symbolic links|No such file"),
        (lambda path: path.symlink_to(path.with_name("nowhere.png")), "No such file"),
        (bomb, "decompression bomb"),
    ],
    ids=["pipe", "link to itself", "link to nothing", "bomb"],
)
def test_what_only_looks_like_an_image_is_named(root, module, make, reason):
    path = root / "train" / "cat" / "strange.png"
    make(path)
    for read in (lambda: read_image(path), module):
        with pytest.raises((OSError, ValueError), match=rf"(?s)(?=.*strange\.png)(?=.*({reason}))") as refusal:
            read()
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"hello", "cut png", "cut jpg", "flipped png"])
def test_a_broken_file_is_named(root, module, content):
    path = root / "train" / "cat" / "cat9.jpg"
    if isinstance(content, str):
        whole = write(root.parent / f"whole.{'jpg' if 'jpg' in content else 'png'}").read_bytes()
        flipped = whole[:60] + bytes([whole[60] ^ 255]) + whole[61:]
        content = flipped if content == "flipped png" else whole[: len(whole) // 2]
    path.write_bytes(content)
    for read in (lambda: read_image(path), lambda: AFHQDataset(root, "train")[3], module):
        with pytest.raises(ValueError, match=r"cat9\.jpg: not an image, or a broken one") as refusal:
            read()
        assert "\n" not in str(refusal.value)
    assert not list((root / ".cache").iterdir())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        read_image(tmp_path / "nowhere.png")


# Folders of images.


def test_classes_come_in_the_order_of_their_names_and_leave_0_free(root):
    train = AFHQDataset(str(root), "train")
    assert train.classes == ["cat", "dog"] and train.num_classes == 2
    assert train.labels == [1] * 3 + [2] * 5
    assert [path.name for path in train.fnames[:4]] == ["cat0.png", "cat1.png", "cat2.png", "dog0.png"]
    assert len(train) == 8
    image, label = train[4]
    assert isinstance(image, Image.Image) and image.mode == "RGB" and label == 2
    assert np.array_equal(np.asarray(image), noise(1))
    assert AFHQDataset(root, "val", label_offset=0).labels == [0, 0, 1, 1]
    assert AFHQDataset(root, "train", transform=lambda image: image.size)[0] == ((100, 80), 1)


def test_the_number_of_images_of_each_class_can_be_limited(root):
    assert AFHQDataset(root, "train", max_num_images_per_cat=4).labels == [1] * 3 + [2] * 4
    first = AFHQDataset(root, "train", max_num_images_per_cat=2).fnames
    assert [path.name for path in first] == ["cat0.png", "cat1.png", "dog0.png", "dog1.png"]
    with pytest.raises(ValueError, match="at least 1, or -1 for all, got 0"):
        AFHQDataset(root, "train", max_num_images_per_cat=0)


def test_nested_folders_belong_to_their_class_and_litter_is_passed_over(root):
    write(root / "train" / "cat" / "more" / "deep" / "a.png")
    for litter in (
        "cat/.DS_Store",
        "cat/._cat0.png",
        "cat/notes.txt",
        "cat/.hidden/a.png",
        ".ipynb_checkpoints/x.png",
        "x.png",
    ):
        path = root / "train" / litter
        path.parent.mkdir(exist_ok=True)
        path.write_text("litter")
    train = AFHQDataset(root, "train")
    assert train.classes == ["cat", "dog"]
    assert [path.name for path in train.fnames if path.parts[-2] != "dog"] == [
        "cat0.png",
        "cat1.png",
        "cat2.png",
        "a.png",
    ]


def test_what_is_missing_is_named(root):
    with pytest.raises(FileNotFoundError, match=r"no split 'test' in .*afhq"):
        AFHQDataset(root, "test")
    (root / "train" / "ape").mkdir()
    with pytest.raises(ValueError, match="ape holds no images"):
        AFHQDataset(root, "train")
    (root / "empty").mkdir()
    with pytest.raises(ValueError, match="empty must hold one folder of images a class"):
        AFHQDataset(root, "empty")


# Loaders.


def test_loaders_give_normalised_batches_of_the_same_resize_as_the_eval_images(root, module):
    data = module(image_resolution=64)
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (2, 3, 64, 64) and images.dtype == torch.float32
    assert labels.tolist() == [1, 1] and labels.dtype == torch.int64
    make_eval_images(root)
    for i, name in enumerate(["cat_cat0", "cat_cat1"]):
        with Image.open(root / "eval" / f"{name}.png") as image:
            assert image.mode == "RGB"
            assert np.array_equal(np.asarray(image), np.asarray(tensor_to_pil_image(images[i])))
    assert np.array_equal(np.asarray(tensor_to_pil_image(images[1])), noise(11))  # 64x64 as it is: untouched


def test_a_training_epoch_gives_full_batches_of_different_images_in_a_new_order_each_time(module):
    data = module(batch_size=3, max_num_images_per_cat=-1)
    loader = data.train_dataloader()
    epochs = [list(loader) for _ in range(3)]
    for batches in epochs:
        assert [len(labels) for _, labels in batches] == [3, 3]
        assert len(torch.cat([images for images, _ in batches]).unique(dim=0)) == 6
    assert not all(torch.equal(epochs[0][0][0], batches[0][0]) for batches in epochs[1:])
    everything = {tuple(x.flatten().tolist()): label for x, label in (data.train_ds[i] for i in range(8))}
    for images, labels in itertools.chain(*epochs):
        assert [everything[tuple(x.flatten().tolist())] for x in images] == labels.tolist()


def test_workers_are_for_transforms_only(module):
    loader = module(num_workers=3).train_dataloader()
    assert loader.num_workers == 0
    assert [images.shape for images, _ in loader] == [(2, 3, 16, 16)] * 4


def test_a_pass_of_training_batches_takes_each_image_at_most_once_and_in_full_batches(module):
    data = module(batch_size=3)
    batches = data.train_batches(seed=5)
    everything = {x.numpy().tobytes(): (i, label) for i, (x, label) in enumerate(data.train_ds[i] for i in range(8))}
    passes = []
    for number in range(4):
        taken = []
        for step in (2 * number, 2 * number + 1):  # two batches of 3; two of the 8 images are left over
            images, labels = batches[step]
            assert images.shape == (3, 3, 16, 16) and images.dtype == torch.float32 and labels.dtype == torch.int64
            found = [everything[x.numpy().tobytes()] for x in images]
            assert [label for _, label in found] == labels.tolist()
            taken += [i for i, _ in found]
        assert len(set(taken)) == 6
        passes.append(tuple(taken))
    assert len(set(passes)) == 4
    assert len(set().union(*passes)) == 8  # another pass leaves out others


def test_a_training_batch_follows_from_seed_and_step_alone(module):
    one, other = (module(batch_size=3).train_batches(seed=5) for _ in range(2))
    in_order = [one[step] for step in range(7)]
    torch.manual_seed(99)
    np.random.seed(99)
    for step in (6, 0, 3, 3, 1, 1000, 2, 5, 4):
        images, labels = other[step]
        if step < 7:
            assert torch.equal(images, in_order[step][0]) and torch.equal(labels, in_order[step][1])
    by_seed = [module(batch_size=3).train_batches(seed) for seed in range(4)]
    passes = [torch.cat([batches[step][0], batches[step + 1][0]]) for batches in by_seed for step in (0, 2, 4, 6)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(passes, 2))
    with pytest.raises(ValueError, match="fewer than one batch of 9"):
        module(batch_size=9).train_batches(0)


def test_cached_images_are_those_of_the_files(module, root):
    data = module()
    plain = AFHQDataset(root, "train", lambda image: to_tensor(np.array(resize(image, 16))).permute(2, 0, 1))
    assert isinstance(data.train_ds, AFHQDataset)
    assert data.train_ds.fnames == plain.fnames
    for (x, label), (y, wanted) in zip(data.train_ds.__getitems__(list(range(8))), plain, strict=True):
        assert torch.equal(x, y) and label == wanted
    x, label = data.train_ds[7]
    assert torch.equal(x, plain[7][0]) and label == 2
    x += 1  # a copy: the file is not written to
    assert torch.equal(data.train_ds[7][0], plain[7][0])


def test_a_transform_of_ones_own_is_used_with_workers(module, root):
    data = module(transform=PixelSum(), num_workers=1)
    sums, labels = next(iter(data.val_dataloader()))
    assert sums.tolist() == [noise(10, (100, 80)).sum(dtype=int), noise(11).sum(dtype=int)]
    assert labels.tolist() == [1, 1]
    assert not (root / ".cache").exists()


class PixelSum:
    def __call__(self, image):
        return torch.tensor(np.asarray(image).sum(dtype=int))


def test_the_root_is_the_data_set_or_the_folder_that_it_lies_in(root, module):
    assert module().root == AFHQDataModule(root.parent, 2, image_resolution=16).root == root
    other = root.rename(root.with_name("pets"))
    assert AFHQDataModule(other, 2, image_resolution=16).num_classes == 2


def test_one_class_is_enough(root, module):
    shutil.rmtree(root / "train" / "dog")
    shutil.rmtree(root / "val" / "dog")
    assert module().num_classes == 1


def test_sets_that_cannot_be_trained_on_are_named(root, module):
    with pytest.raises(ValueError, match="train gives 8 images, fewer than one batch of 9"):
        module(batch_size=9).train_dataloader()
    shutil.rmtree(root / "val" / "cat")
    with pytest.raises(ValueError, match=r"train/ \(cat, dog\) are not those in val/ \(dog\)"):
        module()
    shutil.rmtree(root / "val")
    with pytest.raises(FileNotFoundError, match="no split 'val'"):
        module()


# The cache of decoded images.


def test_nothing_is_decoded_before_it_is_asked_for(root, decoded):
    data = AFHQDataModule(root, batch_size=2, image_resolution=16)
    data.check_batch_size()
    assert len(data.train_ds) == 8 and not decoded and not (root / ".cache").exists()
    data.train_batches(seed=0)
    assert len(decoded) == 8
    next(iter(data.val_dataloader()))
    assert len(decoded) == 12


def test_the_second_time_nothing_is_decoded(module, decoded, root):
    first = module()
    assert len(decoded) == 12
    second = module(batch_size=1)
    assert len(decoded) == 12
    assert np.array_equal(first.train_ds.pixels, second.train_ds.pixels)
    assert isinstance(second.train_ds.pixels, np.memmap) and second.train_ds.pixels.dtype == np.uint8
    assert len(list((root / ".cache").iterdir())) == 2


@pytest.mark.parametrize("change", ["content", "size", "time", "add", "remove", "rename"])
def test_a_change_is_noticed_and_the_old_cache_goes(module, decoded, root, change):
    module()
    path = root / "train" / "cat" / "cat1.png"
    if change == "content":
        write(path, 77, size=(30, 30))
    elif change == "size":  # by a program that keeps the time
        before = path.stat()
        write(path, 77, size=(30, 30))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "time":
        before = path.stat()
        write(path, 77)
        assert path.stat().st_size == before.st_size
        os.utime(path, ns=(0, 1))
    elif change == "add":
        write(path.with_name("cat11.png"), 77)
    elif change == "remove":
        path.unlink()
    else:
        path.rename(path.with_name("zoe.png"))
    decoded.clear()
    data = module()
    assert len(decoded) == len(data.train_ds)
    for i, file in enumerate(data.train_ds.fnames):
        expected = np.asarray(resize(read_image(file), 16)).transpose(2, 0, 1)
        assert np.array_equal(data.train_ds.pixels[i], expected)
    assert len(list((root / ".cache").iterdir())) == 2


def test_other_resolutions_and_limits_have_caches_of_their_own(module, decoded):
    for options in ({}, {"image_resolution": 8}, {"max_num_images_per_cat": 1}, {"max_num_images_per_cat": -1}):
        module(**options)
    decoded.clear()
    assert module(image_resolution=8).train_ds[0][0].shape == (3, 8, 8)
    assert len(module(max_num_images_per_cat=1).train_ds) == 2
    assert len(module(max_num_images_per_cat=-1).train_ds) == 8
    assert not decoded


def test_a_killed_run_is_as_if_it_had_not_been(module, decoded, root):
    module()
    whole = [path for path in (root / ".cache").iterdir() if path.name.startswith("train")]
    content = whole[0].read_bytes()
    whole[0].write_bytes(content[:-100])  # as a disk error would leave it
    (root / ".cache" / "tmpold.tmp").write_bytes(content[:50])
    os.utime(root / ".cache" / "tmpold.tmp", (0, 0))
    (root / ".cache" / "tmpnew.tmp").write_bytes(content[:50])
    decoded.clear()
    module()
    assert len(decoded) == 8
    assert whole[0].read_bytes() == content
    assert [path.name for path in (root / ".cache").glob("*.tmp")] == ["tmpnew.tmp"]


def test_a_full_disk_leaves_nothing(module, root, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("image_cache._decode", full)
    with pytest.raises(OSError, match="No space left"):
        module()
    assert not list((root / ".cache").iterdir())


def test_a_read_only_set_is_cached_in_the_users_folder(module, decoded, root, tmp_path):
    root.chmod(0o555)
    try:
        module()
        module()
        assert len(decoded) == 12
        assert not (root / ".cache").exists()
        assert len(list((tmp_path / "users cache").rglob("*.npy"))) == 2
        with pytest.raises(PermissionError, match=r"afhq is read-only, so eval/ cannot be made"):
            make_eval_images(root)
    finally:
        root.chmod(0o755)


def test_no_place_for_the_cache_is_said(module, root, tmp_path):
    (root / ".cache").write_text("in the way")
    (tmp_path / "users cache").write_text("in the way")
    with pytest.raises(OSError, match=r"no place for the decoded images: cannot write to .*cache or .*users cache"):
        module()


# Evaluation images.


def state(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_eval_holds_every_validation_image_once_and_a_second_run_redoes_nothing(root):
    assert make_eval_images(root) == (4, 4)
    before = state(root / "eval")
    assert sorted(before) == ["cat_cat0.png", "cat_cat1.png", "dog_dog0.png", "dog_dog1.png"]
    assert all(Image.open(root / "eval" / name).size == (64, 64) for name in before)
    assert make_eval_images(root) == (4, 0)
    assert state(root / "eval") == before
    assert not list((root / ".cache").iterdir())


def test_eval_follows_changes(root):
    make_eval_images(root)
    write(root / "val" / "cat" / "cat0.png", 55)
    write(root / "val" / "cat" / "new.png", 56)
    (root / "val" / "dog" / "dog1.png").unlink()
    assert make_eval_images(root) == (4, 2)
    assert sorted(state(root / "eval")) == ["cat_cat0.png", "cat_cat1.png", "cat_new.png", "dog_dog0.png"]
    assert np.array_equal(np.asarray(Image.open(root / "eval" / "cat_cat0.png")), noise(55))


def test_names_in_eval_never_collide(root):
    for i, name in enumerate(["cat/a.png", "cat/a.bmp", "dog/a.png", "cat/x/y.png", "cat/x_y.png", "cat/A.png"]):
        write(root / "val" / name, 60 + i)
    assert make_eval_images(root) == (10, 10)
    pictures = {np.asarray(Image.open(path)).tobytes() for path in (root / "eval").iterdir()}
    assert len(pictures) == 10
    assert len({path.name.lower() for path in (root / "eval").iterdir()}) == 10
    assert make_eval_images(root) == (10, 0)


def test_eval_refuses_what_would_be_measured_and_is_not_its_own(root):
    make_eval_images(root)
    write(root / "eval" / "mine.png")
    with pytest.raises(ValueError, match=r"mine\.png is not a validation image"):
        make_eval_images(root)
    assert (root / "eval" / "mine.png").exists()


# The program.


def test_the_program_draws_and_makes_eval(task_folder, tmp_path):
    command = [sys.executable, str(task_folder / "dataset.py"), "--synthetic", "2", "--seed", "5"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    train, evaluation = Path("data", "afhq", "train"), Path("data", "afhq", "eval")
    assert f"{train}: 6 drawn images of cat, dog, wild" in result.stdout
    assert f"{evaluation}: 3 drawn images of 64x64, 3 made now" in result.stdout
    assert is_synthetic(tmp_path / "data")
    assert len(list((tmp_path / evaluation).iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--synthetic", "0"], "--synthetic: '0' is not a whole number >= 1"),
        (["--data_root", "file"], "file is a file, where a folder is wanted"),
        (["--data_root", "some where/afhq"], "put it at"),
        (["--data_root", "pets", "--synthetic", "2"], "pets already holds other things (train, val)"),
        (["--data_root", "pets"], "broken.png: not an image, or a broken one"),
    ],
)
def test_what_goes_wrong_is_one_line_and_code_2(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dataset.py", *arguments])
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
    (tmp_path / "file").touch()
    write(tmp_path / "pets" / "train" / "cat" / "a.png")
    write(tmp_path / "pets" / "val" / "cat" / "broken.png").write_bytes(b"hello")
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    out, err = capsys.readouterr()
    *bars, message = err.splitlines()
    assert message.startswith("dataset.py: error: ") and words in message
    assert all("image" in bar for bar in bars if bar)
    assert out == ""


def test_evaluation_images_follow_the_wanted_resolution(tmp_path):
    write_synthetic_set(tmp_path / "afhq", 2)
    assert make_eval_images(tmp_path / "afhq") == (3, 3)
    assert make_eval_images(tmp_path / "afhq", resolution=16) == (3, 3)
    assert {Image.open(path).size for path in (tmp_path / "afhq" / "eval").iterdir()} == {(16, 16)}
    assert make_eval_images(tmp_path / "afhq", resolution=16) == (3, 0)
