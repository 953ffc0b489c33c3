"""The download against a small server of our own on 127.0.0.1, with every way to go wrong."""

import io
import re
import socket
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from dataset import AFHQDataModule, AFHQDataset
from download import AFHQ_COUNTS, download_afhq

COUNTS = {"train": 6, "val": 3}


def png(seed):
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def archive(top="afhq/", more=(), compression=zipfile.ZIP_STORED):
    """A data set in the layout of AFHQ, of 6 and 3 images, with the litter that archives have."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as zipped:
        for split, count in COUNTS.items():
            for kind in ("cat", "dog", "wild"):
                for i in range(count // 3):
                    zipped.writestr(f"{top}{split}/{kind}/{kind} {i}.png", png(len(zipped.namelist())))
        zipped.writestr(f"{top}train/cat/.DS_Store", "litter")
        zipped.writestr(f"__MACOSX/{top}train/cat/._cat 0.png", "litter")
        for name, text in more:
            zipped.writestr(name, text)
    return file.getvalue()


class Server:
    """Serves one file; `cut_at`: the first answers end after so many bytes, `ranges`: whether it knows Range."""

    def __init__(self):
        self.content, self.cuts, self.ranges, self.status = archive(), [], True, 200
        self.asked = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers.get("Range")
                outer.asked.append(wanted)
                if outer.status != 200:
                    self.send_error(outer.status)
                    return
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and outer.ranges else 0
                total = len(outer.content)
                if start >= total:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{total}")
                    self.end_headers()
                    return
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                self.send_header("Content-Length", str(total - start))
                self.end_headers()
                end = start + outer.cuts.pop(0) if outer.cuts else total
                self.wfile.write(outer.content[start:end])

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/afhq.zip?dl=1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def root(tmp_path):
    return tmp_path / "with blank" / "afhq"


def is_whole(root):
    train, val = AFHQDataset(root, "train"), AFHQDataset(root, "val")
    images = [image for split in (train, val) for image, _ in split]
    return (
        len(images) == 9
        and train.classes == ["cat", "dog", "wild"]
        and sorted(p.name for p in root.iterdir()) == ["train", "val"]
        and sum(p.is_file() for p in root.rglob("*")) == 9
    )


def names_beside(root):
    return sorted(p.name for p in root.parent.iterdir())


@pytest.mark.parametrize("top", ["afhq/", ""])
def test_a_download_gives_the_data_set_and_nothing_beside_it(server, root, top):
    server.content = archive(top, compression=zipfile.ZIP_DEFLATED)
    download_afhq(root, server.url, COUNTS)
    assert is_whole(root)
    assert names_beside(root) == ["afhq"]
    assert server.asked == [None]
    download_afhq(root, server.url, COUNTS)
    assert server.asked == [None]


def test_a_cut_download_goes_on_where_it_ended(server, root):
    server.cuts = [1000, 500]
    download_afhq(root, server.url, COUNTS)
    assert server.asked == [None, "bytes=1000-", "bytes=1500-"]
    assert is_whole(root)


def test_what_an_earlier_run_fetched_is_kept(server, root):
    server.cuts = [1000, 0]
    with pytest.raises(ConnectionError, match="cut off after 1,000 bytes; run again to go on"):
        download_afhq(root, server.url, COUNTS)
    assert names_beside(root) == ["afhq.zip.part"]
    download_afhq(root, server.url, COUNTS)
    assert server.asked == [None, "bytes=1000-", "bytes=1000-"]
    assert is_whole(root)


def test_a_server_without_range_starts_over(server, root):
    server.ranges, server.cuts = False, [1000]
    download_afhq(root, server.url, COUNTS)
    assert server.asked == [None, "bytes=1000-"]
    assert is_whole(root)


def test_a_server_that_always_cuts_is_given_up(server, root):
    server.ranges, server.cuts = False, [1000] * 100
    with pytest.raises(ConnectionError, match="cut off after 1,000 bytes"):
        download_afhq(root, server.url, COUNTS)
    assert len(server.asked) == 2


def test_a_fetched_but_not_unpacked_archive_is_not_fetched_again(server, root):
    root.parent.mkdir(parents=True)
    (root.parent / "afhq.zip.part").write_bytes(server.content)
    (root.parent / "afhq.partial").mkdir()
    (root.parent / "afhq.partial" / "half").write_text("from a killed run")
    download_afhq(root, server.url, COUNTS)
    assert server.asked == [f"bytes={len(server.content)}-"]
    assert is_whole(root)
    assert names_beside(root) == ["afhq"]


def test_a_part_longer_than_the_file_is_fetched_anew(server, root):
    root.parent.mkdir(parents=True)
    (root.parent / "afhq.zip.part").write_bytes(server.content + b"more")
    download_afhq(root, server.url, COUNTS)
    assert is_whole(root)


def test_an_archive_put_there_by_hand_is_used_and_stays(server, root):
    root.parent.mkdir(parents=True)
    (root.parent / "afhq.zip").write_bytes(server.content)
    download_afhq(root, server.url, COUNTS)
    assert server.asked == []
    assert is_whole(root)
    assert names_beside(root) == ["afhq", "afhq.zip"]


def refused(server, root, words):
    with pytest.raises(ValueError, match=words) as refusal:
        download_afhq(root, server.url, COUNTS)
    assert "\n" not in str(refusal.value) and "afhq.zip.part" in str(refusal.value)
    assert names_beside(root) == []


def with_member(**attributes):
    info = zipfile.ZipInfo("afhq/train/cat/more.png")
    for name, value in attributes.items():
        setattr(info, name, value)
    return archive(more=[(info, "../../outside")])


def with_a_flipped_byte():
    content = bytearray(archive())
    content[content.index(b"IDAT") + 100] ^= 1
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<html>please log in</html>", "not a zip archive"),
        (archive()[:-200], "not a zip archive"),
        (with_a_flipped_byte(), "broken one .*CRC"),
        (
            archive(more=[("afhq/../../evil.png", "x")]),
            r"refused: it holds 'afhq/\.\./\.\./evil\.png', which could lead",
        ),
        (archive(more=[("/etc/evil.png", "x")]), "refused: it holds '/etc/evil.png'"),
        (archive(more=[("afhq\\..\\..\\evil.png", "x")]), "refused: it holds .*which could lead out"),
        (archive(more=[("C:/evil.png", "x")]), "refused: it holds 'C:/evil.png'"),
        (with_member(external_attr=(stat.S_IFLNK | 0o777) << 16), "refused: it holds 'afhq/train/cat/more.png'"),
        (archive(more=[("afhq/train/cat/extra.png", "x")]), r"it holds 7 images in train/, and AFHQ v1 has 6"),
        (archive(top="other/"), r"it holds 0 images in train/"),
    ],
    ids=["html", "truncated", "crc", "dotdot", "absolute", "backslash", "drive", "link", "count", "other"],
)
def test_archives_that_are_broken_unsafe_or_another_are_refused(server, root, content, words):
    server.content = content
    refused(server, root, words)
    assert not list(root.parent.parent.rglob("evil*"))


def test_a_zip_bomb_is_refused_before_it_unpacks(server, root, monkeypatch):
    monkeypatch.setattr("download.MAX_UNPACKED_BYTES", 10**6)
    server.content = archive(more=[("afhq/train/cat/bomb.png", bytes(10**6))], compression=zipfile.ZIP_DEFLATED)
    assert len(server.content) < 10**5
    refused(server, root, "refused: it would unpack to 1,0")


def test_a_broken_archive_put_there_by_hand_is_named_and_stays(server, root):
    root.parent.mkdir(parents=True)
    (root.parent / "afhq.zip").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"afhq\.zip is not a zip archive"):
        download_afhq(root, server.url, COUNTS)
    assert names_beside(root) == ["afhq.zip"]


def no_listener():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}/afhq.zip"


def test_without_a_network_the_message_says_what_to_do(server, root):
    url = no_listener()
    with pytest.raises(ConnectionError) as refusal:
        download_afhq(root, url, COUNTS)
    message = str(refusal.value)
    assert all(words in message for words in ("refused", url, str(root) + ".zip", "--synthetic"))
    assert "\n" not in message


def test_an_answer_other_than_the_file_is_said(server, root):
    server.status = 404
    with pytest.raises(ConnectionError, match="HTTP Error 404"):
        download_afhq(root, server.url, COUNTS)


def test_nothing_is_put_among_other_things(server, root):
    (root / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"afhq already holds other things \(train\)"):
        download_afhq(root, server.url, COUNTS)
    assert server.asked == []


def test_the_data_module_downloads_what_is_not_there(server, root, monkeypatch):
    def from_here(root):
        download_afhq(root, server.url, COUNTS)

    monkeypatch.setattr("dataset.download_afhq", from_here)
    module = AFHQDataModule(root.parent, batch_size=2, image_resolution=8)
    assert module.num_classes == 3
    assert (root / "train").is_dir()
    assert len(server.asked) == 1
    AFHQDataModule(root, batch_size=2, image_resolution=8)
    assert len(server.asked) == 1


def test_the_real_counts_are_the_published_ones():
    assert AFHQ_COUNTS == {"train": 5_153 + 4_739 + 4_738, "val": 3 * 500}
