"""Import time, and the time from a cold process to the first acquired labels.

Each is measured in processes of its own, without a compilation cache and with one that is
filled. The same round once more in the same process is the work itself.

    python -m benchmarks.startup --quick
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import numpy as np

from benchmarks import measure, peers
from benchmarks.measure import OURS, Timing

NONE, FILLED = "no compilation cache", "compilation cache, filled"
IMPORTS = {
    OURS: "bayesian_active_learning.acquisition_functions",
    "all of ours": "bayesian_active_learning.experiment",
    "jax": "jax.numpy",
    "torch": "torch",
    "baal": "baal.active.heuristics, baal.modelwrapper",
    "batchbald_redux": "batchbald_redux.batchbald",
    "scikit-activeml": "skactiveml.pool",
}

# Says when the interpreter was up, when the modules were there, and when labels were asked for.
ROUND = """
import json, sys, time
started = {started!r}
marks = {{"interpreter": time.time() - started}}
from benchmarks import data
from bayesian_active_learning import experiment, training
marks["imports"] = time.time() - started
dataset = data.dataset({num_train}, {num_test})
marks["data"] = time.time() - started
config = experiment.Config(
    model={model!r}, num_samples={num_samples}, pool_size={pool_size},
    fit=training.FitConfig(epochs=0, min_steps={steps}),
)

class Asked(Exception):
    pass

def first_labels():
    calls = []
    def oracle(rows):
        calls.append(rows)
        if len(calls) > 1:  # the initial set was the first
            raise Asked
        return dataset.labels[rows]
    try:
        experiment.run(config, dataset, ["bald"], labels=30, label_oracle=oracle)
    except Asked:
        return time.time()

marks["first labels"] = first_labels() - started
begun = time.time()
marks["the same round again"] = first_labels() - begun
print(json.dumps(marks))
"""


class Sizes(NamedTuple):
    model: str
    num_train: int
    num_test: int
    steps: int
    num_samples: int
    pool_size: int
    imports: tuple[str, ...]
    caches: tuple[str, ...]
    repeats: int


SIZES = {
    "full": Sizes("convnet", 60_000, 10_000, 400, 100, 2_000, tuple(IMPORTS), (NONE, FILLED), 5),
    "quick": Sizes("convnet", 5_000, 1_000, 50, 20, 500, tuple(IMPORTS), (NONE, FILLED), 3),
    "smallest": Sizes("mlp", 200, 20, 2, 2, 30, (OURS,), (FILLED,), 1),
}


def run(sizes: Sizes, found: peers.Peers) -> list[dict[str, Any]]:
    return [_imports(sizes, found), *_first_labels(sizes)]


def _child(code: str, cache: str | None = None) -> str:
    """What a fresh interpreter prints. XLA's cache of programs on disk is off without `cache`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    environment["PYTHONPATH"] = path
    if cache is not None:
        # Everything is kept, the many small programs, too.
        environment["JAX_COMPILATION_CACHE_DIR"] = cache
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        environment["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"a measured process failed:\n{done.stderr}")
    return done.stdout


def _imports(sizes: Sizes, found: peers.Peers) -> dict[str, Any]:
    """Seconds of the import statement alone, the interpreter's own start left out."""
    names = [name for name in sizes.imports if name not in found.missing]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(sizes.repeats + 1):
        for name in names:
            code = (
                "import time; start = time.perf_counter(); "
                f"import {IMPORTS[name]}; print(time.perf_counter() - start)"
            )
            seconds[name].append(float(_child(code).split()[-1]))
    timings = {name: Timing(each[0], tuple(each[1:])) for name, each in seconds.items()}
    return measure.result("import (first: files perhaps not yet in memory)", timings)


def _first_labels(sizes: Sizes) -> list[dict[str, Any]]:
    fields = sizes._asdict()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in sizes.caches:
            cache = folder if name == FILLED else None
            marks = []
            if cache:
                _child(ROUND.format(started=time.time(), **fields), cache)
            for _ in range(sizes.repeats):
                code = ROUND.format(started=time.time(), **fields)
                marks.append(json.loads(_child(code, cache).splitlines()[-1]))
            cold, warm = (
                [mark[key] for mark in marks] for key in ("first labels", "the same round again")
            )
            over = [a - b for a, b in zip(cold, warm)]
            results.append(
                measure.result(
                    f"cold process to first acquired labels: {name}",
                    {OURS: Timing(cold[0], tuple(cold))},
                    agreement={
                        "seconds until": {
                            key: float(np.median([mark[key] for mark in marks])) for key in marks[0]
                        },
                        "seconds over the same round warm": measure.in_words(measure.spread(over)),
                    },
                    marks=marks,
                    over_warm=measure.spread(over),
                )
            )
        size = sum(entry.stat().st_size for entry in os.scandir(folder))
        results[-1]["cache_megabytes"] = size / 1e6
    return results


main = measure.command("startup", run, SIZES)

if __name__ == "__main__":
    raise SystemExit(main())
