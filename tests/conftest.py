"""Fixtures: the real MNIST where it is at hand, a place without any data, memory."""

import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

_COMPILED = "/jax/core/compile/backend_compile_duration"
_FILE = "train-images-idx3-ubyte.gz"


@pytest.fixture(scope="session")
def mnist_dir() -> pathlib.Path:
    """The folder of the four original MNIST files; skips where there is none."""
    repository = pathlib.Path(__file__).resolve().parent.parent
    roots = [repository.parent / "shared" / "data"]
    if os.environ.get("BAL_DATA_DIR"):
        roots.insert(0, pathlib.Path(os.environ["BAL_DATA_DIR"]))
    for root in roots:
        for folder in (root, root / "mnist"):
            if (folder / _FILE).exists():
                return folder
    pytest.skip("needs the original MNIST files: set BAL_DATA_DIR to their folder")


@pytest.fixture
def no_data(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """No MNIST anywhere, and no network asked: empty TFDS folder and cache, both in the
    returned folder."""
    monkeypatch.delenv("BAL_DATA_DIR", raising=False)
    monkeypatch.setenv("BAL_OFFLINE", "1")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_go_with_their_module() -> Iterator[None]:
    """Thousands of small programs are gigabytes; what is needed again comes from disk."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture
def compilations() -> Iterator[Callable[[], int]]:
    """How many programs were compiled (or fetched from a cache on disk) so far."""
    import jax

    count = [0]

    def listen(event: str, duration: float, **_: Any) -> None:
        count[0] += event == _COMPILED

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield lambda: count[0]
    jax.monitoring.unregister_event_duration_listener(listen)
