"""The four original files over the network: bounded in time, checked, kept in a cache."""

import contextlib
import os
import pathlib
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping

from bayesian_active_learning.data_utils.dataset import DataError
from bayesian_active_learning.data_utils.idx import CHECKS, FILE_NAMES, FileCheck, check_file
from bayesian_active_learning.utils import atomic_write

# The addresses that tensorflow-datasets lists for these data sets.
BASE_URLS = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}


def cache_folder(name: str) -> pathlib.Path:
    """`$XDG_CACHE_HOME/bayesian_active_learning/<name>`, by default under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return pathlib.Path(base).expanduser() / "bayesian_active_learning" / name


def download_idx(
    name: str,
    folder: str | os.PathLike,
    *,
    base_url: str | None = None,
    checks: Mapping[str, FileCheck] | None = None,
    connect_timeout: float = 3.0,
    deadline: float = 20.0,
    notify: Callable[[str], object] = print,
) -> dict[str, bytes]:
    """Fetches the four files of `name` into `folder`; returns their bytes by path.

    Files already there and right are kept; each new one is checked (size, sha256) and
    then renamed into place, so the folder never holds half a file. A folder that
    cannot be written to costs only the next download.

    Args:
      name: "mnist" or "fashion_mnist".
      folder: where the files go.
      base_url: where they come from, by default `BASE_URLS[name]`.
      checks: size and sha256 of each file; by default those of the data set.
      connect_timeout: seconds for each network operation; without a first answer
        within twice this, give up.
      deadline: seconds for everything.
      notify: is told when a file cannot be kept.

    Raises:
      DataError: no answer in time, or an answer that is not the file; names the URL.
    """
    folder = pathlib.Path(folder)
    base_url = (base_url or BASE_URLS[name]).rstrip("/") + "/"
    table = CHECKS[name] if checks is None else checks
    files: dict[str, bytes] = {}
    wanted: dict[str, int] = {}  # URL -> bytes
    for file_name in FILE_NAMES:
        with contextlib.suppress(OSError, DataError):
            path = folder / file_name
            raw = path.read_bytes()
            check_file(raw, table[file_name], str(path))
            files[file_name] = raw
            continue
        wanted[base_url + file_name] = table[file_name].size
    # A daemon thread, because looking up a host name knows no timeout.
    answers: queue.Queue[tuple[str, bytes | Exception | None]] = queue.Queue()
    stop = threading.Event()
    thread = threading.Thread(
        target=_fetch, args=(wanted, connect_timeout, answers, stop), daemon=True
    )
    thread.start()
    started = time.monotonic()
    answered = not wanted
    try:
        while len(files) < len(FILE_NAMES):
            limit = deadline if answered else min(deadline, 2 * connect_timeout)
            try:
                url, answer = answers.get(timeout=max(0.0, started + limit - time.monotonic()))
            except queue.Empty:
                raise DataError(
                    f"{base_url}: no answer in time, gave up after {limit:g} s"
                ) from None
            answered = True
            if isinstance(answer, Exception):
                raise DataError(f"{url}: download failed ({answer})") from answer
            if answer is None:
                continue
            file_name = url.removeprefix(base_url)
            check_file(answer, table[file_name], url)
            files[file_name] = answer
            _keep(folder / file_name, answer, notify)
    finally:
        stop.set()
    return {str(folder / file_name): files[file_name] for file_name in FILE_NAMES}


def _fetch(
    wanted: Mapping[str, int],
    timeout: float,
    answers: "queue.Queue[tuple[str, bytes | Exception | None]]",
    stop: threading.Event,
) -> None:
    """Puts (url, None) when a server answers, then (url, bytes) or (url, exception)."""
    for url, size in wanted.items():
        if stop.is_set():
            return
        try:
            with urllib.request.urlopen(url, timeout=timeout) as response:
                answers.put((url, None))
                body = bytearray()
                while len(body) <= size:  # one byte too many tells a wrong file
                    part = response.read1(1 << 16)
                    if not part or stop.is_set():
                        break
                    body += part
            answers.put((url, bytes(body)))
        except Exception as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            answers.put((url, error))
            return


def _keep(path: pathlib.Path, raw: bytes, notify: Callable[[str], object]) -> None:
    try:
        with atomic_write(path, "wb") as file:
            file.write(raw)
    except OSError as error:
        notify(f"{path}: cannot be kept for the next time ({error.strerror or error})")
