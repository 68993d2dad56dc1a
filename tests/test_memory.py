"""Streaming takes memory for a chunk, not for the pool: measured in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

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

first = scores(1_000)  # compiles for a chunk of the default size
before = anonymous_megabytes()
with Peak() as peak:
    found = scores(len(file))
assert found[0].shape == (len(file),)
assert np.allclose(found[0][:1_000], first[0], atol=1e-5)
print(json.dumps(peak.megabytes - before))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
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
