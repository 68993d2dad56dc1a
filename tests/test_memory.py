"""Streaming takes memory for a chunk, not for the pool: measured in a process of its own. What
the C library keeps of it goes back to the system."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from bayesian_active_learning import inference, utils
from benchmarks.scale import anonymous_megabytes

ROOT = pathlib.Path(__file__).parent.parent

STREAM = """
import json
import jax, numpy as np
from bayesian_active_learning import data_utils, inference, models
from bayesian_active_learning.acquisition_functions import bald, max_entropy
from benchmarks.scale import Peak, anonymous_megabytes

file = np.load({path!r}, mmap_mode="r")
source = data_utils.ScaledSource(file, 255.0)
model = models.mlp(100)
posterior = inference.mc_dropout(model, model.init(jax.random.key(0), jax.numpy.zeros((1, 64))))

def scores(count):
    return inference.score_pool(
        jax.random.key(1), posterior, source, np.arange(count), [bald, max_entropy], num_samples=20
    )

first = scores(2_000)  # compiles for a chunk of the default size
before = anonymous_megabytes()
with Peak() as peak:
    found = scores(len(file))
assert found[0].shape == (len(file),)
assert np.allclose(found[0][:2_000], first[0], atol=1e-5)
print(json.dumps(peak.megabytes - before))
"""


on_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads /proc/self/status"
)


@on_linux
def test_scoring_a_pool_from_disk_takes_memory_for_a_chunk(tmp_path: pathlib.Path):
    count = 120_000
    path = tmp_path / "pool.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (count, 64), np.uint8))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", STREAM.format(path=str(path))],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    megabytes = json.loads(done.stdout)
    dense = count * 20 * 100 * 4 / 1e6  # 960 MB as [N, K, C], and a chunk of it is 8 MB
    assert megabytes < dense / 4, f"{megabytes:.0f} MB; all at once would be {dense:.0f} MB"


@on_linux
@pytest.mark.skipif(utils._malloc_trim() is None, reason="of the GNU C library")
def test_freed_memory_goes_back_to_the_system():
    blocks = [np.ones(12_500, np.float32) for _ in range(2_000)]  # 50 kB each, in the heap
    last = blocks.pop()
    blocks.clear()
    kept = anonymous_megabytes()
    utils.give_back_freed_memory()
    assert anonymous_megabytes() < kept - 50
    assert last.all()


def test_where_the_c_library_has_no_such_function_nothing_happens(monkeypatch):
    monkeypatch.setattr(utils, "_malloc_trim", lambda: None)
    utils.give_back_freed_memory()


def test_long_streams_give_memory_back_and_short_ones_do_not(monkeypatch):
    calls: list[None] = []
    monkeypatch.setattr(inference, "give_back_freed_memory", lambda: calls.append(None))
    source = np.zeros((40, 2), np.float32)
    for count, expected in ((15, 0), (40, 2)):
        calls.clear()
        chunks = inference._inputs(source, np.arange(count), chunk_size=1)
        assert [number for number, _ in chunks] == [1] * count
        assert len(calls) == expected


@pytest.mark.parametrize("most", [1, 7, 8, 100, 2_000])
def test_chunks_are_even_few_and_of_few_sizes(most: int):
    counts = np.arange(1, 40 * most, max(1, most // 9))
    sizes = [utils.even_chunk(int(count), most) for count in counts]
    for count, size in zip(counts, sizes, strict=True):
        assert 1 <= size <= most
        assert -(-count // size) == -(-count // most)  # no more chunks than with the largest
        if count > most:
            filled = size * -(-count // size) - count
            assert filled < -(-count // size) * -(-most // 8)
    assert len({size for count, size in zip(counts, sizes) if count > most}) <= 5
    assert utils.even_chunk(0, most) == 1


def test_chunks_of_a_set_that_stays_are_filled_up_with_little():
    assert utils.even_chunk(10_100, 2_100, step=20) == 2_020
    for count in range(2_101, 30_000, 389):
        size = utils.even_chunk(count, 2_100, step=20)
        assert size % 20 == 0 and size <= 2_100
        assert size * -(-count // size) - count < 20 * -(-count // size)
