"""`load_dataset`: where it looks, what it refuses, the download, the loud notice."""

import contextlib
import functools
import hashlib
import http.server
import shutil
import socket
import threading
import time
import urllib.request

import pytest
from test_data_utils_idx import HTML, SMALL, idx_bytes, write_small

from bayesian_active_learning.data_utils import (
    DataError,
    download,
    download_idx,
    idx,
    load_dataset,
)

MNIST_HASH = "ec8553a725665232116387a28cb79aca619ec3ea8f5461b03729fb42dc6c2d6c"
CHECKS = {
    name: idx.FileCheck(len(raw := idx_bytes(array)), hashlib.sha256(raw).hexdigest())
    for name, array in SMALL.items()
}


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        del arguments


class HtmlHandler(QuietHandler):
    """Answers everything with a web page, as a login portal does."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(HTML)


class DrippingHandler(QuietHandler):
    """Sends a byte now and then, without an end."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"\x1f")
                self.wfile.flush()
                time.sleep(0.02)


@contextlib.contextmanager
def serving(handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/data"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def files_of(folder):
    return functools.partial(QuietHandler, directory=str(folder))


def fetch(url, folder, **options):
    options = {"checks": CHECKS, "connect_timeout": 5.0, **options}
    return download_idx("mnist", folder, base_url=url, **options)


def test_download(tmp_path):
    write_small(tmp_path / "site" / "data")
    with serving(files_of(tmp_path / "site")) as url:
        files = fetch(url, tmp_path / "cache")
    assert list(files) == [str(tmp_path / "cache" / name) for name in idx.FILE_NAMES]
    for name, array in SMALL.items():
        assert (tmp_path / "cache" / name).read_bytes() == idx_bytes(array)
    assert len(list((tmp_path / "cache").iterdir())) == 4
    assert len(idx.assemble("mnist", files).labels) == 60
    # Now they are there, and no server is needed.
    assert fetch(url, tmp_path / "cache") == files


def test_download_replaces_damaged_files_of_the_cache(tmp_path):
    write_small(tmp_path / "site" / "data")
    write_small(tmp_path / "cache", train_images_idx3=HTML, t10k_labels_idx1=None)
    with serving(files_of(tmp_path / "site")) as url:
        fetch(url, tmp_path / "cache")
    for name, array in SMALL.items():
        assert (tmp_path / "cache" / name).read_bytes() == idx_bytes(array)


def test_download_without_a_place_to_keep_it(tmp_path):
    write_small(tmp_path / "site" / "data")
    (tmp_path / "cache").write_text("a file where a folder should be")
    heard = []
    with serving(files_of(tmp_path / "site")) as url:
        files = fetch(url, tmp_path / "cache", notify=heard.append)
    assert len(files) == 4
    assert len(heard) == 4 and "cannot be kept for the next time" in heard[0]


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"train_images_idx3": None}, r"http.*train-images.*: download failed \(HTTP Error 404"),
        ({"train_labels_idx1": HTML}, r"http.*train-labels.*: an HTML page, not a gzip file"),
        (
            {"t10k_images_idx3": idx_bytes(SMALL[idx.TEST_IMAGES])[:-9]},
            r"http.*t10k-images.* \(truncated\?\)",
        ),
        (
            {"t10k_images_idx3": idx_bytes(SMALL[idx.TEST_IMAGES]) + b"more"},
            r"http.*t10k-images.* \(another file\?\)",
        ),
    ],
)
def test_wrong_answers_name_the_address_and_leave_nothing_half(tmp_path, changed, message):
    write_small(tmp_path / "site" / "data", **changed)
    with (
        serving(files_of(tmp_path / "site")) as url,
        pytest.raises(DataError, match=message),
    ):
        fetch(url, tmp_path / "cache")
    cache = tmp_path / "cache"
    for file in cache.iterdir() if cache.exists() else ():
        assert file.read_bytes() == idx_bytes(SMALL[file.name])


def test_html_for_everything(tmp_path):
    with serving(HtmlHandler) as url, pytest.raises(DataError, match="an HTML page"):
        fetch(url, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_nobody_listens(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(DataError, match=r"download failed \(.*refused"):
            fetch(url, tmp_path)


def test_server_that_hangs(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(DataError, match=r"download failed \(timed out\)"):
            fetch(url, tmp_path, connect_timeout=0.2)


def test_server_that_drips(tmp_path):
    with (
        serving(DrippingHandler) as url,
        pytest.raises(DataError, match=r"no answer in time, gave up after 0\.3 s"),
    ):
        fetch(url, tmp_path, deadline=0.3)


def test_name_lookup_that_hangs(tmp_path, monkeypatch):
    forever = threading.Event()
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: forever.wait(60))
    with pytest.raises(DataError, match=r"gave up after 0\.2 s"):
        fetch("http://example.invalid", tmp_path, connect_timeout=0.1)
    forever.set()


@pytest.mark.parametrize("name", ["cifar", "MNIST", "", "npz"])
def test_unknown_names(name):
    with pytest.raises(ValueError, match="known: mnist, fashion_mnist, digits, npz:PATH"):
        load_dataset(name)


def test_digits_are_used_with_a_notice_no_one_can_miss(no_data):
    heard = []
    dataset = load_dataset(notify=heard.append)
    assert dataset.name == "digits"
    (notice,) = heard
    assert "MNIST WAS NOT FOUND. THIS RUN USES DIGITS INSTEAD." in notice
    lines = notice.strip().splitlines()
    assert len(lines) > 8 and len({len(line) for line in lines}) == 1
    assert set(lines[0]) == set(lines[-1]) == {"#"}
    for words in ("BAL_DATA_DIR", "--data-dir", "BAL_OFFLINE is set", "nothing in the cache"):
        assert words in " ".join(line.strip("# ") for line in lines)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_asked_for_but_not_to_be_had(no_data, name):
    with pytest.raises(DataError, match=f"{name} cannot be had here") as caught:
        load_dataset(name)
    for words in (
        *("BAL_DATA_DIR", "--data-dir", "array_record", "--dataset digits", "network connection"),
        *idx.FILE_NAMES,
        str(no_data / "cache" / "bayesian_active_learning" / name),
        str(no_data / "tfds"),
    ):
        assert words in str(caught.value)


def test_nothing_at_all(no_data, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(DataError, match="neither mnist nor digits can be had here"):
        load_dataset()


@pytest.mark.parametrize("name", [None, "mnist"])
@pytest.mark.parametrize("by_environment", [False, True])
def test_named_folders_are_taken_at_their_word(no_data, monkeypatch, name, by_environment):
    def load(folder):
        if not by_environment:
            return load_dataset(name, folder)
        monkeypatch.setenv("BAL_DATA_DIR", str(folder))
        return load_dataset(name)

    with pytest.raises(DataError, match="gone: no such folder"):
        load(no_data / "gone")
    with pytest.raises(DataError, match="holds neither the original mnist files"):
        load(no_data)
    write_small(no_data)
    with pytest.raises(DataError, match=r"train-images.*expected 9912422"):
        load(no_data)


def test_argument_goes_before_the_environment(no_data, monkeypatch, mnist_dir):
    monkeypatch.setenv("BAL_DATA_DIR", str(no_data / "gone"))
    assert load_dataset("mnist", mnist_dir).content_hash == MNIST_HASH


def test_parent_of_the_folder_in_the_environment(no_data, monkeypatch, mnist_dir):
    (no_data / "all").mkdir()
    (no_data / "all" / "mnist").symlink_to(mnist_dir)
    monkeypatch.setenv("BAL_DATA_DIR", str(no_data / "all"))
    dataset = load_dataset(notify=pytest.fail)
    assert (dataset.name, dataset.content_hash) == ("mnist", MNIST_HASH)


def test_unused_folder_is_mentioned(tmp_path):
    heard = []
    load_dataset("digits", tmp_path, notify=heard.append)
    assert "is not used: digits does not come from a folder" in heard[0]


def test_mnist_from_a_server_then_from_the_cache(no_data, monkeypatch, mnist_dir):
    (no_data / "site").mkdir()
    (no_data / "site" / "data").symlink_to(mnist_dir)
    cache = download.cache_folder("mnist")
    assert no_data in cache.parents
    write_small(cache)  # a cache gone bad is no obstacle
    monkeypatch.delenv("BAL_OFFLINE")
    heard = []
    with serving(files_of(no_data / "site")) as url:
        dataset = load_dataset(base_url=url, notify=heard.append)
    assert (dataset.name, dataset.content_hash) == ("mnist", MNIST_HASH)
    assert len(heard) == 1 and heard[0].startswith("mnist: downloading 12 MB from http://127")
    monkeypatch.setenv("BAL_OFFLINE", "1")
    assert load_dataset(notify=pytest.fail).content_hash == MNIST_HASH
    shutil.rmtree(cache)
    assert load_dataset(notify=heard.append).name == "digits"


def test_download_that_fails_falls_back(no_data, monkeypatch):
    monkeypatch.delenv("BAL_OFFLINE")
    heard = []
    with serving(HtmlHandler) as url:
        assert load_dataset(base_url=url, notify=heard.append).name == "digits"
        with pytest.raises(DataError, match="an HTML page, not a gzip file"):
            load_dataset("mnist", base_url=url, notify=heard.append)
    assert "an HTML page" in heard[1]
