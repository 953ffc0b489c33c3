"""The download, from a small server on 127.0.0.1, and the ways in which it fails."""

import io
import re
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from dataset import AFHQDataModule, AFHQDataset
from download import download_afhq

COUNTS = {"train": 6, "val": 3}
PNG = io.BytesIO()
Image.effect_noise((32, 32), 50).save(PNG, "png")


def archive(top="afhq/", more=(), compression=zipfile.ZIP_STORED):
    """A data set in the layout of AFHQ, of 6 and 3 images, with the litter that archives have."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as zipped:
        for split, count in COUNTS.items():
            for kind in ("cat", "dog", "wild"):
                for i in range(count // 3):
                    zipped.writestr(f"{top}{split}/{kind}/{kind} {i}.png", PNG.getvalue())
        zipped.writestr(f"{top}train/cat/.DS_Store", "junk")
        zipped.writestr(f"__MACOSX/{top}train/cat/._cat 0.png", "junk")
        for name, text in more:
            zipped.writestr(name, text)
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.content`: the answers end after `server.cuts` bytes, and `server.ranges` is about Range."""

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if server.ranges else 0
        self.send_response(416 if start >= len(server.content) else 206 if server.ranges else 200)
        if start < len(server.content):
            self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        self.wfile.write(server.content[start : start + server.cuts.pop(0) if server.cuts else None])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.requests, server.cuts, server.ranges, server.status = archive(), [], [], True, 200
        server.url = f"http://127.0.0.1:{server.server_port}/afhq.zip?dl=1"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def root(tmp_path):
    (tmp_path / "with blank").mkdir()
    return tmp_path / "with blank" / "afhq"


def is_complete(root):
    train, val = AFHQDataset(root, "train"), AFHQDataset(root, "val")
    assert len([image for split in (train, val) for image, _ in split]) == 9
    assert train.classes == ["cat", "dog", "wild"]
    return sum(path.is_file() for path in root.rglob("*")) == 9


def names_beside(root):
    return sorted(path.name for path in root.parent.iterdir())


@pytest.mark.parametrize("top", ["afhq/", "a folder/around/", "back\\slashes\\"])
def test_a_download_gives_the_data_set_and_nothing_beside_it(server, root, monkeypatch, top):
    server.content = archive(top, compression=zipfile.ZIP_DEFLATED)
    monkeypatch.setattr("dataset.download_afhq", lambda root: download_afhq(root, server.url, COUNTS))
    for place in (root.parent, root):
        assert AFHQDataModule(place).num_classes == 3
    assert is_complete(root) and names_beside(root) == ["afhq"] and len(server.requests) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_continues_where_it_ended_or_starts_over(server, root, ranges):
    server.ranges, server.cuts = ranges, [1000, 1500, 0]
    with pytest.raises(ConnectionError, match="cut off"):  # no more bytes; a later call continues
        download_afhq(root, server.url, COUNTS)
    assert names_beside(root) == ["afhq.zip.part"]
    download_afhq(root, server.url, COUNTS)
    starts = [0, 1000, 2500, 2500] if ranges else [0, 1000, 1500, 0]
    assert server.requests == [f"bytes={start}-" for start in starts] and is_complete(root)


def test_an_archive_of_the_user_is_used_and_stays(server, root):
    by_hand = root.with_name("afhq.zip")
    for content, words in [(b"hello", r"afhq\.zip.* not a zip"), (archive(more=[("train/cat/x.png", "")]), "7 images")]:
        by_hand.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            download_afhq(root, server.url, COUNTS)
        assert names_beside(root) == ["afhq.zip"]
    by_hand.write_bytes(server.content)
    download_afhq(root, server.url, COUNTS)
    assert not server.requests and is_complete(root) and names_beside(root) == ["afhq", "afhq.zip"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\n<!DOCTYPE html><html>please log in</html>", "web page"),
        (archive()[:-200], "zip"),
        (archive().replace(b"IDAT", b"IDAt", 1), "CRC"),
        (archive(more=[("afhq/train/cat/extra.png", "x")]), "7 images in train/"),
    ],
    ids=["html", "cut", "crc", "count"],
)
def test_archives_that_are_damaged_or_another_are_refused(server, root, content, words):
    server.content = content
    with pytest.raises(ValueError, match=words) as refusal:
        download_afhq(root, server.url, COUNTS)
    message = str(refusal.value)
    assert server.url in message and f"save it as {root}.zip" in message and "\n" not in message
    assert names_beside(root) == []


def test_an_archive_that_unpacks_to_too_much_is_refused(server, root, monkeypatch):
    server.content = archive(more=[("afhq/train/cat/large.png", bytes(10**6))])
    monkeypatch.setattr("download.MAX_UNPACKED_BYTES", 10**6)
    with pytest.raises(ValueError, match="unpack to 1,0"):
        download_afhq(root, server.url, COUNTS | {"train": 7})
    assert names_beside(root) == []


def test_nothing_is_unpacked_outside_of_the_data_set(server, root):
    evil = ["../../evil.png", "/etc/evil.png", "C:/evil.png", "train/cat/../../../evil.png", "train/..\\..\\evil.png"]
    link = zipfile.ZipInfo("afhq/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    server.content = archive(more=[(name, "x") for name in (*evil, *(f"afhq/{name}" for name in evil), link)])
    download_afhq(root, server.url, COUNTS)
    assert is_complete(root) and not list(root.parent.parent.rglob("*evil*"))


def test_without_the_file_the_message_says_what_to_do(server, root):
    server.status = 404
    with pytest.raises(ConnectionError) as refusal:
        download_afhq(root, server.url, COUNTS)
    message = str(refusal.value)
    assert all(words in message for words in ("404", server.url, f"{root}.zip", "--synthetic")) and "\n" not in message
