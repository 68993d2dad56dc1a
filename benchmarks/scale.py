"""How time and memory grow: with the pool, read from disk; with K C; with labelled points.

Each measurement is a process of its own, so that memory is its own. Memory is the largest
anonymous part of the resident set (RssAnon) over that of the same process with the library
imported, the backend started and the file opened, before anything was compiled: pages of the
memory-mapped file, which the system may drop, do not count. Linux only.

    python -m benchmarks.scale --quick
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, NamedTuple

import numpy as np

from benchmarks import measure, peers
from benchmarks.measure import OURS, Timing

WRITTEN = 10_000  # images written at a time
RATIOS = ("microseconds_each", "megabytes", "megabytes_after_warming")


class Sizes(NamedTuple):
    pools: tuple[int, ...]
    num_samples: int
    outputs: tuple[tuple[int, int], ...]  # K, C
    outputs_pool: int
    labelled: tuple[int, ...]
    k_center: tuple[int, int]  # pool N, batch B
    repeats: int


SIZES = {
    "full": Sizes(
        (10_000, 100_000, 1_000_000),
        10,
        ((10, 10), (100, 10), (20, 100), (20, 1_000)),
        5_000,
        (100, 1_000, 10_000, 50_000),
        (10_000, 100),
        2,
    ),
    "quick": Sizes((2_000, 20_000), 10, ((10, 10), (20, 1_000)), 500, (100, 5_000), (2_000, 20), 2),
    "smallest": Sizes((40,), 2, (), 30, (), (30, 3), 1),
}


def run(sizes: Sizes, found: peers.Peers) -> list[dict[str, Any]]:
    results = []
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "pool.npy")
        _write(path, max(sizes.pools))
        results += _pools(path, sizes)
    results += [
        _measured(
            f"{sizes.outputs_pool:,} inputs, K = {k}, C = {c:,}: {k * c:,} outputs each",
            {"kind": "outputs", "count": sizes.outputs_pool, "num_samples": k, "num_classes": c},
            sizes.repeats,
            sizes.outputs_pool,
        )
        for k, c in sizes.outputs
    ]
    count, batch_size = sizes.k_center
    results += [
        _measured(
            f"k-center: pool {count:,}, B = {batch_size}, {labelled:,} labelled",
            {"kind": "k_center", "count": count, "batch_size": batch_size, "labelled": labelled},
            sizes.repeats,
            count,
        )
        for labelled in sizes.labelled
    ]
    return results


def _pools(path: str, sizes: Sizes) -> list[dict[str, Any]]:
    pools = [
        _measured(
            f"pool of {count:,} images from disk, K = {sizes.num_samples}, five scores",
            {"kind": "pool", "path": path, "num_samples": sizes.num_samples, "count": count},
            sizes.repeats,
            count,
        )
        for count in sizes.pools
    ]
    if len(pools) > 1:
        small, large = pools[-2:]
        large["over_the_one_before"] = {
            key: large[key]["median"] / small[key]["median"] for key in RATIOS
        }
        print("largest pool over the one before:", large["over_the_one_before"])
    return pools


def _write(path: str, count: int) -> None:
    """Noise as uint8 images `[N, 28, 28, 1]`, without holding them all."""
    rng = np.random.default_rng(0)
    file = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 28, 28, 1))
    for start in range(0, count, WRITTEN):
        part = file[start : start + WRITTEN]
        part[...] = rng.integers(0, 256, part.shape, np.uint8)
    file.flush()


def _measured(name: str, work: dict[str, Any], repeats: int, count: int) -> dict[str, Any]:
    found = [_child(work) for _ in range(repeats)]
    seconds = tuple(each["seconds"] for each in found)
    megabytes = measure.spread([each["megabytes"] for each in found])
    each = measure.spread([1e6 * value / count for value in seconds])
    return measure.result(
        name,
        {OURS: Timing(found[0]["first"], seconds, tuple(each["cpu"] for each in found))},
        agreement={
            "microseconds each": measure.in_words(each),
            "anonymous MB over baseline": measure.in_words(megabytes),
        },
        microseconds_each=each,
        megabytes=megabytes,
        megabytes_after_warming=measure.spread([one["after_warming"] for one in found]),
        work={key: value for key, value in work.items() if key != "path"},
    )


def _child(work: dict[str, Any]) -> dict[str, float]:
    root = str(pathlib.Path(__file__).resolve().parent.parent)
    # Compiling is part of the memory: no measurement may find programs that another one left.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", "--measure", json.dumps(work)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"a measured process failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


# In the measured process


def anonymous_megabytes() -> float:
    """The anonymous part of this process's resident set."""
    text = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.split("RssAnon:")[1].split()[0]) * 1024 / 1e6


class Peak:
    """The largest anonymous memory while it watches, looked at every 20 ms."""

    def __init__(self) -> None:
        self.megabytes = anonymous_megabytes()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stopped.wait(0.02):
            self.megabytes = max(self.megabytes, anonymous_megabytes())

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self.megabytes = max(self.megabytes, anonymous_megabytes())


def _measure(work: dict[str, Any]) -> dict[str, float]:
    """Warm with the smallest input of the same shapes, then the whole, in seconds and MB."""
    import jax

    jax.devices()
    warm, whole = {"pool": _pool, "outputs": _outputs, "k_center": _k_center}[work["kind"]](work)
    before = anonymous_megabytes()
    with Peak() as peak:
        start = time.perf_counter()
        warm()
        first = time.perf_counter() - start
        warmed = anonymous_megabytes()
        start, cpu = time.perf_counter(), time.process_time()
        whole()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "first": first,
        "seconds": seconds,
        "cpu": cpu,
        "megabytes": peak.megabytes - before,
        "after_warming": peak.megabytes - warmed,
    }


def _one_chunk(count: int) -> np.ndarray:
    """Rows that compile what `count` of them take by default."""
    from bayesian_active_learning import inference, utils

    return np.arange(utils.even_chunk(count, inference._MOST_IN_A_CHUNK))


def _pool(work: dict[str, Any]) -> tuple[Any, Any]:
    import jax

    from bayesian_active_learning import data_utils, inference, models
    from bayesian_active_learning.acquisition_functions import SCORES

    names = ("bald", "max_entropy", "variation_ratios", "mean_std", "margin")
    scores = [SCORES[name] for name in names]
    base = np.load(work["path"], mmap_mode="r")[: work["count"]]
    source = data_utils.ScaledSource(base, 255.0)
    model = models.convnet()
    variables = jax.jit(model.init)(jax.random.key(0), source[:1])
    jax.block_until_ready(variables)
    posterior = inference.mc_dropout(model, variables)

    def over(rows: np.ndarray) -> Any:
        return lambda: inference.score_pool(
            jax.random.key(1), posterior, source, rows, scores, num_samples=work["num_samples"]
        )

    return over(_one_chunk(work["count"])), over(np.arange(work["count"]))


def _outputs(work: dict[str, Any]) -> tuple[Any, Any]:
    import jax

    from bayesian_active_learning import inference, models
    from bayesian_active_learning.acquisition_functions import bald

    inputs = np.random.default_rng(0).normal(size=(work["count"], 64)).astype(np.float32)
    model = models.mlp(work["num_classes"], (128,))
    posterior = inference.mc_dropout(
        model, model.init(jax.random.key(0), jax.numpy.asarray(inputs[:1]))
    )

    def over(rows: np.ndarray) -> Any:
        return lambda: inference.score_pool(
            jax.random.key(1), posterior, inputs, rows, [bald], num_samples=work["num_samples"]
        )

    return over(_one_chunk(len(inputs))), over(np.arange(len(inputs)))


def _k_center(work: dict[str, Any]) -> tuple[Any, Any]:
    import jax

    import bayesian_active_learning.acquisition_functions as af
    from bayesian_active_learning.types import Candidates

    rng = np.random.default_rng(0)
    count, labelled = work["count"], work["labelled"]
    candidates = Candidates(
        np.arange(count, dtype=np.int32),
        np.ones(count, bool),
        features=rng.normal(size=(count, 128)).astype(np.float32),
        labelled_features=rng.normal(size=(labelled, 128)).astype(np.float32),
        labelled_mask=np.ones(labelled, bool),
    )
    strategy = af.make_strategy("coreset")

    def select() -> Any:
        chosen = af.select_batch(
            strategy, jax.random.key(0), candidates, batch_size=work["batch_size"]
        )
        return jax.block_until_ready(chosen)

    return select, select


_command = measure.command("scale", run, SIZES)


def main(arguments: Any = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--measure"]:
        print(json.dumps(_measure(json.loads(given[1]))))
        return 0
    return _command(given)


if __name__ == "__main__":
    raise SystemExit(main())
