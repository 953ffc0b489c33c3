"""The Frechet distance by its closed forms, the program against pytorch-fid, its cache and its refusals."""

import functools
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import tracemalloc
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import pytorch_fid.fid_score
import pytorch_fid.inception
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import linalg

from fid import measure_fid
from fid.measure_fid import (
    feature_statistics,
    features_of_folder,
    fit_gaussian,
    frechet_distance,
    gaussian_distance,
    load_inception,
    main,
    measure,
)
from oracles import Harmful

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"


def random_covariance(rng, width, rank):
    factor = rng.normal(size=(width, rank))
    return factor @ factor.T / rank


def rotation(rng, width):
    return np.linalg.qr(rng.normal(size=(width, width)))[0]


# The distance.


@pytest.mark.parametrize("rank", [1, 5, 20, 100])
def test_the_same_statistics_are_0_apart(rank):
    sigma = random_covariance(np.random.default_rng(0), 20, rank)
    assert frechet_distance(np.ones(20), sigma, np.ones(20), sigma) == pytest.approx(0, abs=1e-12 * np.trace(sigma))


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_equal_covariances_leave_the_squared_distance_of_the_means(rank):
    rng = np.random.default_rng(0)
    sigma, mu1, mu2 = random_covariance(rng, 20, rank), rng.normal(size=20), rng.normal(size=20)
    assert frechet_distance(mu1, sigma, mu2, sigma) == pytest.approx(((mu1 - mu2) ** 2).sum(), rel=1e-12)


def test_covariances_that_commute_compare_deviation_by_deviation():
    rng = np.random.default_rng(0)
    a, b, Q = rng.uniform(0, 9, 20), rng.uniform(0, 9, 20), rotation(rng, 20)
    a[:3] = b[2:6] = 0
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    mu = np.zeros(20)
    assert frechet_distance(mu, np.diag(a), mu, np.diag(b)) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(mu, Q * a @ Q.T, mu, Q * b @ Q.T) == pytest.approx(expected, rel=1e-12)


def test_one_dimension_is_a_formula_by_hand():
    assert frechet_distance([1.0], [[4.0]], [3.0], [[25.0]]) == pytest.approx(2**2 + (2 - 5) ** 2)


def test_covariances_without_a_common_direction_add_up():
    rng = np.random.default_rng(0)
    sigma1, sigma2, Q = np.zeros((20, 20)), np.zeros((20, 20)), rotation(rng, 20)
    sigma1[:8, :8], sigma2[8:, 8:] = random_covariance(rng, 8, 8), random_covariance(rng, 12, 3)
    expected = np.trace(sigma1) + np.trace(sigma2)
    mu = np.zeros(20)
    assert frechet_distance(mu, Q @ sigma1 @ Q.T, mu, Q @ sigma2 @ Q.T) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(mu, sigma1, mu, np.zeros((20, 20))) == pytest.approx(np.trace(sigma1), rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (10, 40), (40, 10), (50, 200), (300, 200)])
def test_fewer_images_than_features_cost_no_digits(n, m):
    """The factors of the covariances can be had from the features, without any eigenvalues."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(100, 100)) * np.geomspace(1, 1e-3, 100)
    X, Y = rng.normal(size=(n, 100)) @ mixing, rng.normal(size=(m, 100)) @ mixing + 0.01
    F1, F2 = (X - X.mean(0)).T / (n - 1) ** 0.5, (Y - Y.mean(0)).T / (m - 1) ** 0.5
    root = np.linalg.svd(F1.T @ F2, compute_uv=False).sum()
    expected = ((X.mean(0) - Y.mean(0)) ** 2).sum() + (F1**2).sum() + (F2**2).sum() - 2 * root
    assert frechet_distance(*feature_statistics(X), *feature_statistics(Y)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("width", [1, 2, 30, 100])
def test_agrees_with_scipys_matrix_root(width):
    rng = np.random.default_rng(width)
    sigma1, sigma2 = random_covariance(rng, width, 3 * width), random_covariance(rng, width, 3 * width)
    mu1, mu2 = rng.normal(size=width), rng.normal(size=width)
    root = np.trace(linalg.sqrtm(sigma1 @ sigma2)).real
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * root
    assert frechet_distance(mu1, sigma1, mu2, sigma2) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 15), st.integers(1, 15), st.floats(0.1, 10))
def test_is_a_squared_distance_that_knows_no_axes_and_no_origin(seed, width, rank1, rank2, scale):
    rng = np.random.default_rng(seed)
    mu1, mu2, sigma1, sigma2 = (
        rng.normal(size=width),
        rng.normal(size=width),
        random_covariance(rng, width, rank1),
        random_covariance(rng, width, rank2),
    )
    distance = frechet_distance(mu1, sigma1, mu2, sigma2)
    assert distance >= ((mu1 - mu2) ** 2).sum() * (1 - 1e-9)
    assert frechet_distance(mu2, sigma2, mu1, sigma1) == pytest.approx(distance, rel=1e-9)
    A, b = scale * rotation(rng, width), rng.normal(size=width)
    moved = frechet_distance(A @ mu1 + b, A @ sigma1 @ A.T, A @ mu2 + b, A @ sigma2 @ A.T)
    assert moved == pytest.approx(scale**2 * distance, rel=1e-9)


@pytest.mark.parametrize(
    ("statistics", "words"),
    [
        ((np.zeros(2), np.eye(2), np.zeros(3), np.eye(3)), "must have the shapes"),
        ((np.zeros(2), np.eye(2), np.zeros(2), np.ones(2)), "must have the shapes"),
        ((np.zeros((1, 2)), np.eye(2), np.zeros(2), np.eye(2)), "must have the shapes"),
        ((np.zeros(2), np.eye(2), np.array([0, np.nan]), np.eye(2)), "not finite"),
        ((np.zeros(2), np.full((2, 2), np.inf), np.zeros(2), np.eye(2)), "not finite"),
    ],
)
def test_bad_statistics_are_refused(statistics, words):
    with pytest.raises(ValueError, match=words):
        frechet_distance(*statistics)


def test_statistics_are_mean_and_unbiased_covariance():
    features = np.random.default_rng(0).normal(size=(7, 3))
    mu, sigma = feature_statistics(features)
    for i in range(3):
        assert mu[i] == pytest.approx(sum(features[:, i]) / 7)
        for j in range(3):
            products = [(row[i] - mu[i]) * (row[j] - mu[j]) for row in features]
            assert sigma[i, j] == pytest.approx(sum(products) / 6)


def test_statistics_are_taken_in_float64():
    """In float32, squares of values near 4096 swallow a deviation of 1/64."""
    features = np.full((1000, 2), 4096, dtype=np.float32)
    features[::2] += np.float32(1 / 32)
    mu, sigma = feature_statistics(features)
    assert mu == pytest.approx([4096 + 1 / 64] * 2, rel=1e-14)
    assert sigma == pytest.approx(np.full((2, 2), 1000 / 999 / 64**2), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (10, 40), (40, 10), (100, 101), (300, 50)])
def test_features_give_the_distance_of_their_covariances(n, m):
    """With the covariance as a factor, however many images there are, or as a matrix of any origin."""
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(n, 100)), rng.normal(size=(m, 100)) * np.geomspace(1, 1e-3, 100) + 0.01
    statistics = []
    for features in (X, Y):
        mu, factor = fit_gaussian(features)
        assert factor.shape == (100, min(len(features), 100))
        covariance = np.cov(features, rowvar=False)
        assert factor @ factor.T == pytest.approx(covariance, rel=1e-9, abs=1e-12)
        statistics += [mu, covariance]
    assert gaussian_distance(fit_gaussian(X), fit_gaussian(Y)) == pytest.approx(frechet_distance(*statistics), rel=1e-9)


def test_few_images_need_no_square_matrix():
    """What makes the distance of wide features cheap: nothing is as large as a covariance."""
    width = 4096
    X = np.random.default_rng(0).normal(size=(20, width))
    tracemalloc.start()
    try:
        gaussian_distance(fit_gaussian(X), fit_gaussian(X[5:] + 1))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert X.nbytes < peak < 8 * width**2 / 20


@pytest.mark.parametrize("features", [np.zeros((1, 4)), np.zeros((0, 4)), np.zeros(4)])
def test_too_few_features_are_refused(features):
    with pytest.raises(ValueError, match="N >= 2"):
        feature_statistics(features)


# Images and a network. The weights are random: what is measured is no FID, but it is the same for everyone.


@pytest.fixture(scope="module")
def inception_home(tmp_path_factory):
    """A TORCH_HOME whose Inception has random weights up to 192 features and NaN in all layers after that."""
    home = tmp_path_factory.mktemp("torch home")
    (home / "hub/checkpoints").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(torchvision.models.Inception3, "load_state_dict", lambda *_: None)
        weights = pytorch_fid.inception.fid_inception_v3().state_dict()
    for name, values in weights.items():
        if not name.startswith(("Conv2d_1a", "Conv2d_2a", "Conv2d_2b", "Conv2d_3b", "Conv2d_4a")):
            fill = torch.nan if values.is_floating_point() else 0
            weights[name] = torch.tensor(fill, dtype=values.dtype).expand(values.shape)  # takes no room in the file
    torch.save(weights, home / "hub/checkpoints" / WEIGHTS)
    return home


@pytest.fixture
def random_inception(inception_home, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(inception_home))
    return inception_home / "hub/checkpoints" / WEIGHTS


def write_images(folder, count, seed, smooth=False):
    """Random RGB images, of noise or of soft colours, whose features lie far from each other."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image = Image.fromarray(rng.integers(0, 256, (3, 4, 3) if smooth else (24, 32, 3), dtype=np.uint8))
        image.resize((32, 24), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def folders(tmp_path):
    """Two folders of images that differ."""
    return write_images(tmp_path / "data/real", 5, seed=1), write_images(tmp_path / "made", 4, seed=2, smooth=True)


def refusal(capsys, *arguments):
    """Run the program, which must refuse with exit code 2, without a result; returns its last word."""
    with pytest.raises(SystemExit) as exit:
        main([*map(str, arguments)])
    out, err = capsys.readouterr()
    assert exit.value.code == 2
    assert out == ""
    assert "Traceback" not in err
    assert err.count("\n") == 1  # progress bars end with carriage returns
    return err.split("\r")[-1]


@pytest.mark.filterwarnings("ignore:Matrix is singular")
@pytest.mark.parametrize("dims", [64, 192])
def test_agrees_with_pytorch_fid(dims, folders, random_inception, monkeypatch):
    sqrtm = linalg.sqrtm
    # pytorch-fid asks for a second return value, which newer releases of SciPy no longer have.
    monkeypatch.setattr(linalg, "sqrtm", lambda A, disp=True: sqrtm(A) if disp else (sqrtm(A), None))
    paths = [str(folder) for folder in folders]
    expected = pytorch_fid.fid_score.calculate_fid_given_paths(paths, 2, "cpu", dims, num_workers=0)
    assert expected > 0
    for batch_size in (3, 50):
        found = measure(*folders, dims, batch_size)
        assert found["distance"] == pytest.approx(expected, rel=1e-4)


def test_features_do_not_depend_on_batches_and_neighbours(tmp_path, random_inception):
    for i, size in enumerate([(32, 24), (32, 24), (17, 40), (299, 299), (350, 310)]):
        image = Image.fromarray(np.random.randint(0, 256, (*size, 3), dtype=np.uint8))
        for folder in (tmp_path / "all", tmp_path / f"{i}"):
            folder.mkdir(exist_ok=True)
            image.save(folder / f"{i}.png")
            if folder.name != "all":
                image.save(folder / "again.png")
    network = load_inception(64)
    together = features_of_folder(tmp_path / "all", network)
    alone = np.concatenate([features_of_folder(tmp_path / f"{i}", network)[:1] for i in range(5)])
    assert together.shape == (5, 64) and together.dtype == np.float64
    assert np.ptp(together, axis=0).max() > 1e-3
    for features in (together, features_of_folder(tmp_path / "all", network, batch_size=2)):
        assert np.abs(features - alone).max() < 1e-5 * np.abs(alone).max()


def test_the_command_as_it_is_given(folders, random_inception, task_folder, tmp_path):
    """Run from inside a copy of the folder that has nothing of the project around it."""
    copy = tmp_path / "a copy"
    shutil.copytree(task_folder, copy, ignore=shutil.ignore_patterns("data", "results", "__pycache__", "samples*"))
    report = tmp_path / "reports/fid.json"
    run = subprocess.run(
        [sys.executable, "fid/measure_fid.py", *folders, "--dims", "64", "--batch_size", "3", "--json", report],
        cwd=copy,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    counts, distance = run.stdout.splitlines()
    assert counts == f"5 real images of 32x24 in {folders[0]}, 4 generated ones of 32x24 in {folders[1]}"
    assert "Warning" not in run.stderr

    found = json.loads(report.read_text())
    assert distance == f"FID-64: {found['distance']:.4f}"
    assert found["distance"] == pytest.approx(measure(*folders, 64)["distance"], rel=1e-6)
    assert (found["dims"], found["gt_images"], found["gen_images"]) == (64, 5, 4)
    assert (found["gt_dir"], found["gen_dir"]) == (str(folders[0]), str(folders[1]))
    assert found["weights_sha256"] == hashlib.sha256(random_inception.read_bytes()).hexdigest()
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert [path.name for path in report.parent.iterdir()] == ["fid.json"]


def test_a_folder_is_0_from_itself(folders, random_inception, capsys):
    main([str(folders[0]), str(folders[0]), "--dims", "64"])
    assert capsys.readouterr().out.splitlines()[-1] == "FID-64: 0.0000"


def test_features_that_are_not_finite_are_no_distance(folders, random_inception, capsys):
    line = refusal(capsys, *folders, "--dims", "768")
    assert str(random_inception) in line
    assert "width 768 are not finite" in line and "64, 192" in line
    assert not (folders[0].parent / ".cache").exists()


def test_a_broken_image_is_named(folders, random_inception, capsys):
    broken = folders[1] / "2.png"
    broken.write_bytes(broken.read_bytes()[:200])
    assert str(broken) in refusal(capsys, *folders, "--dims", "64")


# The weights file.


@pytest.fixture
def empty_home(tmp_path, monkeypatch):
    """A TORCH_HOME without weights, a network without a way out; returns where the weights are wanted."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(measure_fid, "FID_WEIGHTS_URL", f"http://127.0.0.1:9/{WEIGHTS}")
    return tmp_path / "home/hub/checkpoints" / WEIGHTS


def test_without_weights_the_message_says_what_goes_where(folders, empty_home, capsys):
    line = refusal(capsys, *folders, "--dims", "64")
    assert "cannot be downloaded" in line
    assert f"fetch http://127.0.0.1:9/{WEIGHTS} and save it as {empty_home}\n" in line
    assert not list(empty_home.parent.iterdir())


@pytest.fixture
def serve(tmp_path, empty_home, monkeypatch):
    """Offer a file for download under the weights' name, with a checksum in it as the real one has."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    def offer(content, checksum):
        name = f"weights-{checksum[:8]}.pth"
        (tmp_path / "served").mkdir()
        (tmp_path / "served" / name).write_bytes(content)
        for module in (measure_fid, pytorch_fid.inception):
            monkeypatch.setattr(module, "FID_WEIGHTS_URL", f"http://127.0.0.1:{server.server_port}/{name}")
        return empty_home.with_name(name)

    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield offer
        server.shutdown()


def test_weights_are_downloaded_once(serve, inception_home, tmp_path):
    content = (inception_home / "hub/checkpoints" / WEIGHTS).read_bytes()
    path = serve(content, hashlib.sha256(content).hexdigest())
    load_inception(64)
    assert path.read_bytes() == content
    shutil.rmtree(tmp_path / "served")
    assert not load_inception(64).training


def test_a_download_with_another_checksum_is_not_kept(serve):
    path = serve(b"an error page", hashlib.sha256(b"weights").hexdigest())
    with pytest.raises(OSError, match="cannot be downloaded"):
        load_inception(64)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("kind", ["nothing", "text", "code", "pickled code", "cut", "other weights"])
def test_a_weights_file_of_another_kind_is_refused(kind, folders, empty_home, inception_home, tmp_path, capsys):
    empty_home.parent.mkdir(parents=True)
    witness = tmp_path / "ran"
    if kind == "code":
        torch.save({"weights": Harmful(witness)}, empty_home)
    elif kind == "other weights":
        torch.save(torch.nn.Linear(2, 2).state_dict(), empty_home)
    else:
        whole = (inception_home / "hub/checkpoints" / WEIGHTS).read_bytes()
        contents = {
            "nothing": b"",
            "text": b"hello",
            "pickled code": pickle.dumps(Harmful(witness)),
            "cut": whole[:9999],
        }
        empty_home.write_bytes(contents[kind])
    line = refusal(capsys, *folders, "--dims", "64")
    assert f"{empty_home}: not the Inception weights" in line
    assert not witness.exists()


def test_unknown_widths_are_refused():
    with pytest.raises(ValueError, match="must be one of 64, 192, 768, 2048, got 100"):
        load_inception(100)


# Folders and the cache. The network is replaced by three mean colours, and it is noted whom it looked at.


@pytest.fixture
def looked_at(monkeypatch, tmp_path, random_inception):
    seen = []

    def mean_colours(folder, network, batch_size):
        seen.append(folder.name)
        files = measure_fid.images_to_measure(folder)
        return np.stack([np.asarray(Image.open(file).convert("RGB")).mean((0, 1)) for file in files])

    monkeypatch.setattr(measure_fid, "features_of_folder", mean_colours)
    monkeypatch.setattr(measure_fid, "load_inception", lambda dims, device: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user's cache"))
    return seen


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_usual_width_needs_no_number(folders, looked_at, capsys):
    expected = measure(*folders)["distance"]
    main([*map(str, folders)])
    assert capsys.readouterr().out.splitlines()[-1] == f"FID: {expected:.4f}"


def test_every_image_counts_except_hidden_ones(folders, looked_at, capsys):
    real, _ = folders
    shutil.copy(real / "0.png", real / "UPPER.PNG")
    Image.new("RGBA", (9, 9)).save(real / "other.webp")
    Image.new("L", (5, 7)).save(real / "grey.JPeG")
    write_images(real / "sub/folder", 2, seed=3)
    write_images(real / ".hidden", 2, seed=3)
    (real / "._0.png").write_bytes(b"not an image")
    (real / "notes.txt").write_text("not an image")
    main([*map(str, folders)])
    assert capsys.readouterr().out.startswith("10 real images of 5x7, 9x9, 32x24 in ")


def test_the_real_images_are_looked_at_once(folders, looked_at):
    before = [content(folder) for folder in folders]
    first = measure(*folders)
    assert looked_at == ["real", "made"]
    second = measure(*folders)
    assert looked_at == ["real", "made", "made"]
    assert first == second
    assert [content(folder) for folder in folders] == before
    assert [path.name for path in (folders[0].parent / ".cache").iterdir()] == ["real-fid-2048.npz"]


CHANGES = {
    "added": lambda real: write_images(real, 6, seed=1),
    "removed": lambda real: (real / "1.png").unlink(),
    "renamed": lambda real: (real / "1.png").rename(real / "9.png"),
    "rewritten": lambda real: Image.new("RGB", (32, 24), "red").save(real / "1.png"),
    "touched": lambda real: os.utime(real / "1.png", ns=(0, 1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_cache_notices_a_change(change, folders, looked_at):
    measure(*folders)
    CHANGES[change](folders[0])
    found = measure(*folders)
    assert looked_at == ["real", "made", "real", "made"]
    shutil.rmtree(folders[0].parent / ".cache")
    assert measure(*folders) == found
    assert len([*folders[0].parent.iterdir()]) == 2  # no cache but the newest


def test_the_cache_knows_width_and_network(folders, looked_at, monkeypatch, tmp_path):
    measure(*folders)
    measure(*folders, dims=768)
    assert looked_at == ["real", "made"] * 2
    monkeypatch.setattr(measure_fid, "weights_file", lambda: folders[0] / "0.png")
    measure(*folders)
    assert looked_at == ["real", "made"] * 3
    monkeypatch.setattr(measure_fid, "CACHE_FORMAT", "another")
    measure(*folders)
    assert looked_at == ["real", "made"] * 4


def test_a_damaged_cache_is_replaced(folders, looked_at, tmp_path):
    expected = measure(*folders)
    file = folders[0].parent / ".cache/real-fid-2048.npz"
    whole = file.read_bytes()
    witness = tmp_path / "ran"
    with np.load(file) as cached:
        number = whole.index(cached["mu"].tobytes())
    compression = whole.rindex(b"PK\x01\x02") + 10  # in the archive's list of contents
    flipped = [whole[:i] + bytes([whole[i] ^ 255]) + whole[i + 1 :] for i in (number, compression)]
    for damage in (b"", b"hello", whole[:-50], *flipped, pickle.dumps(Harmful(witness))):
        file.write_bytes(damage)
        looked_at.clear()
        assert measure(*folders) == expected
        assert looked_at == ["real", "made"]
        assert file.read_bytes() == whole
    assert not witness.exists()


def test_the_cache_moves_where_it_can_be_written(folders, looked_at, tmp_path):
    (folders[0].parent / ".cache").write_text("in the way")
    first = measure(*folders)
    assert len([*(tmp_path / "user's cache").rglob("real-fid-2048.npz")]) == 1
    assert measure(*folders) == first
    assert looked_at == ["real", "made", "made"]


def test_no_place_for_a_cache_is_no_reason_to_stop(folders, looked_at, tmp_path):
    (folders[0].parent / ".cache").write_text("in the way")
    (tmp_path / "user's cache").write_text("in the way")
    assert measure(*folders) == measure(*folders)
    assert looked_at == ["real", "made"] * 2


def test_nothing_is_added_to_a_folder_that_holds_the_other(folders, looked_at):
    real, _ = folders
    before = content(real.parent)
    measure(real, real.parent)
    assert content(real.parent) == before
    measure(real, real.parent)
    assert looked_at == ["real", "data", "data"]


# The benchmark.


@pytest.mark.parametrize("weights", ["there", "missing"])
def test_the_benchmark_measures_both_programs(weights, inception_home, tmp_path, program, monkeypatch):
    home = inception_home if weights == "there" else tmp_path / "home"
    monkeypatch.setenv("TORCH_HOME", str(home))
    monkeypatch.setattr(sys, "path", [*sys.path])  # the program adds to it
    small = ["--dims", 64, "--real", 90, "--generated", 80, "--pictures", 3, "--rounds", 2, "--json", "fid.json"]
    run = program("../benchmarks/fid.py", *small)
    assert run.returncode == 0, run.stderr
    assert os.environ["TORCH_HOME"] == str(home)
    found = json.loads((tmp_path / "fid.json").read_text())
    assert found["random_weights"] == ("no FID" in run.stdout) == (weights == "missing")
    assert [row["what"].split(",")[0] for row in found["rows"]] == ["distance", "network", "whole", "whole"]
    for row in found["rows"]:
        assert row["what"] in run.stdout
        assert row["relative_difference"] < 1e-4
        for times in (row["pytorch_fid"], row["ours"]):
            assert len(times["seconds"]) == (1 if "whole" in row["what"] else 2)
            assert 0 < times["lowest"] <= times["median"] <= times["highest"]
        assert row["speedup"] == pytest.approx(row["pytorch_fid"]["median"] / row["ours"]["median"])
    assert [path.name for path in tmp_path.iterdir()] == ["fid.json"]


# Refusals before any work.


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "missing: no such folder"),
        ("file.png", "file.png: a file, where a folder of images is wanted"),
        ("empty", "empty: no images in it, at least 2 are wanted"),
        ("single", "single: only one image in it, at least 2 are wanted"),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_bad_folders_end_in_one_line(name, words, place, folders, looked_at, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "single", 1, seed=0)
    shutil.copy(tmp_path / "single/0.png", tmp_path / "file.png")
    paths = [*folders]
    paths[place] = tmp_path / name
    assert refusal(capsys, *paths) == f"{os.path.basename(sys.argv[0])}: error: {tmp_path}/{words}\n"  # noqa: PTH119
    assert looked_at == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dims", "100"], "--dims: invalid choice: 100 (choose from 64, 192, 768, 2048)"),
        (["--dims", "many"], "--dims: invalid int value: 'many'"),
        (["--batch_size", "0"], "--batch_size: '0' is not a whole number >= 1"),
        (["--device", "toaster"], "--device: 'toaster' is not a device of this machine"),
        (["--json", "."], "--json: '.' is in the way: a folder, where a file is wanted"),
        (["--epochs", "3"], "unrecognized arguments: --epochs 3"),
    ],
)
def test_bad_arguments_end_in_one_line(arguments, words, folders, capsys):
    assert words in refusal(capsys, *folders, *arguments)


def test_help_names_the_widths(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    assert "{64,192,768,2048}" in capsys.readouterr().out


def test_a_read_only_folder_is_left_alone_even_by_an_administrator(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    tmp_path.chmod(0o555)
    try:
        (place,) = measure_fid._cache_files(real, 64, tmp_path / "other")
    finally:
        tmp_path.chmod(0o755)
    assert not place.is_relative_to(tmp_path / ".cache")


def test_what_makes_a_distance_mean_less_is_said(folders, looked_at, capsys):
    real, made = folders
    main([str(real), str(made)])
    assert "Note" not in capsys.readouterr().out
    Image.new("RGB", (16, 16)).save(made / "small.png")
    main([str(real), str(made), "--json", str(made.parent / "fid.json")])
    assert "Note: images of different sizes" in capsys.readouterr().out
    result = json.loads((made.parent / "fid.json").read_text())
    assert result["gen_sizes"] == ["16x16", "32x24"] and result["gt_synthetic"] is False
    (real.parent / "SYNTHETIC.txt").write_text("")
    main([str(real), str(made)])
    assert capsys.readouterr().out.startswith("5 drawn images of 32x24 in ")
