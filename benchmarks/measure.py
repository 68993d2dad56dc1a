"""Interleaved timing, the machine's own speeds, tables and JSON: what all benchmarks share.

Cases take turns, so that a machine that slows down slows all of them down, and a ratio is
that of two neighbours in time. The first call of each (compilation, caches) is kept apart.
"""

import argparse
import datetime
import gc
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayesian_active_learning import history, utils
from benchmarks import peers

OURS = "ours"
RESULTS = pathlib.Path(__file__).parent / "results"
# What changes speed from outside; recorded.
_VARIABLES = (
    "GLIBC_TUNABLES",
    "MALLOC_ARENA_MAX",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OPENBLAS_NUM_THREADS",
)
PAUSE = 0.03  # seconds between cases: threads of one library spin for a while after their work


class Case(NamedTuple):
    """Something to time.

    run:  what is timed; its result is waited for.
    warm: called once before, and timed apart; `run` itself where None. A slow case that
          compiles nothing may take a smaller one.
    """

    run: Callable[[], Any]
    warm: Callable[[], Any] | None = None


class Timing(NamedTuple):
    """Seconds: of the first call, and of each call after it. NaN where a case had no turn.

    cpu: of the processor, all threads together, for each turn. Far fewer than threads times
    seconds: somebody else was there, or the work waited.
    """

    first: float
    runs: tuple[float, ...]
    cpu: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        return statistics.median(self.there)

    @property
    def there(self) -> list[float]:
        return [seconds for seconds in self.runs if seconds == seconds]


def timed(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds until the result is there, those of the processor, and the result."""
    start, cpu = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, time.process_time() - cpu, result


def interleaved(
    cases: Mapping[str, Case], *, repeats: int, patience: float = 60.0
) -> tuple[dict[str, Timing], dict[str, Any]]:
    """Times the cases in turns, and in another order each time.

    Args:
      cases: by name.
      repeats: turns of each.
      patience: seconds; a case that has used them up has had its last turn (at least one).

    Returns:
      Timings, and the last result of each case.
    """
    first: dict[str, float] = {}
    runs: dict[str, list[float]] = {name: [] for name in cases}
    cpu: dict[str, list[float]] = {name: [] for name in cases}
    results: dict[str, Any] = {}
    gc.collect()
    gc.freeze()  # batchbald_redux collects garbage again and again: let it find its own alone
    try:
        for name, case in cases.items():
            first[name], *_ = timed(case.warm or case.run)
        order = np.random.default_rng(0)
        for _ in range(repeats):
            for name in order.permutation(list(cases)).tolist():
                if runs[name] and sum(x for x in runs[name] if x == x) > patience:
                    runs[name].append(float("nan"))
                    continue
                time.sleep(PAUSE)
                seconds, busy, results[name] = timed(cases[name].run)
                runs[name].append(seconds)
                cpu[name].append(busy)
    finally:
        gc.unfreeze()
    timings = {name: Timing(first[name], tuple(runs[name]), tuple(cpu[name])) for name in cases}
    return timings, results


def spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, median and largest of the values that are there."""
    there = [float(value) for value in values if value == value]
    return {"min": min(there), "median": statistics.median(there), "max": max(there)}


def ratios(timing: Timing, other: Timing) -> dict[str, float]:
    """How many times longer the first took than the second, turn by turn."""
    pairs = [a / b for a, b in zip(timing.runs, other.runs) if a == a and b == b]
    return spread(pairs)


def fastest(variants: Mapping[str, Callable[[], Any]], repeats: int = 2) -> str:
    """The name of the variant with the smallest time: what a specialist would keep."""
    timings, _ = interleaved({name: Case(run) for name, run in variants.items()}, repeats=repeats)
    return min(timings, key=lambda name: min(timings[name].there))


def result(
    case: str,
    timings: Mapping[str, Timing],
    *,
    limits: Mapping[str, Sequence[float]] | None = None,
    limits_of: Mapping[str, str] | None = None,
    agreement: Mapping[str, Any] | None = None,
    **details: Any,
) -> dict[str, Any]:
    """One case of a record, and its table on stdout.

    Args:
      case: what was done, in words.
      timings: by who did it; `OURS` is what the others are compared with.
      limits: by name, the least seconds possible in each turn, from speeds measured in it.
      limits_of: the limits that another than `OURS` is held against, and whom.
      agreement: what was found when the results were compared.
      details: more for the record.
    """
    ours = timings[OURS]

    def held(limit: str) -> Timing:
        return timings[(limits_of or {}).get(limit, OURS)]

    found = {
        "case": case,
        "seconds": {
            name: {
                "first": timing.first,
                "runs": timing.there,
                "cpu": list(timing.cpu),
                **spread(timing.runs),
            }
            for name, timing in timings.items()
        },
        "times_ours": {
            name: ratios(timing, ours) for name, timing in timings.items() if name != OURS
        },
        "limits": {
            name: {
                "seconds": spread(seconds),
                "share_reached": spread(
                    [least / run for least, run in zip(seconds, held(name).runs)]
                ),
            }
            for name, seconds in (limits or {}).items()
        },
        "agreement": dict(agreement or {}),
        **details,
    }
    print(table(found), flush=True)
    return found


def table(found: Mapping[str, Any]) -> str:
    """A result in words: one line for each who did it, then limits and agreement."""
    width = max([len(name) for name in (*found["seconds"], *found["limits"])] + [10])
    head = f"{'':{width}}  {'median':>10} {'min':>10} {'max':>10} {'first':>10} {'cpu':>10}  turns"
    lines = ["", found["case"], f"{head}   times ours: median (min to max)"]
    for name, seconds in found["seconds"].items():
        numbers = (in_seconds(seconds[key]) for key in ("median", "min", "max", "first"))
        line = f"{name:{width}}  " + " ".join(f"{number:>10}" for number in numbers)
        busy = in_seconds(statistics.median(seconds["cpu"])) if seconds["cpu"] else ""
        line += f" {busy:>10}"
        line += f"  {len(seconds['runs']):5}"
        if name in found["times_ours"]:
            line += f"   {in_words(found['times_ours'][name])}"
        lines.append(line)
    for name, limit in found["limits"].items():
        share = {key: 100 * value for key, value in limit["share_reached"].items()}
        least = in_seconds(limit["seconds"]["median"])
        lines.append(f"{name:{width}}  {least:>10}   {in_words(share)} % of it reached")
    lines += [f"  {name}: {_plain(value)}" for name, value in found["agreement"].items()]
    return "\n".join(lines)


def in_words(values: Mapping[str, float]) -> str:
    """median (min to max), three digits each."""
    return f"{values['median']:.3g} ({values['min']:.3g} to {values['max']:.3g})"


def in_seconds(seconds: float) -> str:
    """With a unit that suits the size."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1 or unit == "us":
            return f"{seconds * scale:.3g} {unit}"
    raise AssertionError


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# The machine's own speeds. As cases, they take turns with the work that they are a limit of.


def matrix_products(rows: int, inner: int, columns: int, torch: Any = None) -> dict[str, Case]:
    """float32 products of the shape of some work, and square ones, by XLA and by PyTorch.

    A limit takes the fastest of them: see `product_speeds`.
    """
    cases = {}
    for m, k, n in ((rows, inner, columns), (2048, 2048, 2048)):
        left = np.random.default_rng(0).normal(size=(m, k)).astype(np.float32)
        right = np.random.default_rng(1).normal(size=(k, n)).astype(np.float32)
        times = max(1, round(3e9 / (2 * m * k * n)))  # long enough for the clock
        cases[f"product {m}x{k}x{n} (XLA)"] = Case(_products(jnp.matmul, left, right, times))
        if torch is not None:
            a, b = torch.from_numpy(left), torch.from_numpy(right)
            cases[f"product {m}x{k}x{n} (PyTorch)"] = Case(_products(torch.mm, a, b, times))
    return cases


def _products(product: Callable, left: Any, right: Any, times: int) -> Callable[[], None]:
    if product is jnp.matmul:
        left, right, product = jnp.asarray(left), jnp.asarray(right), jax.jit(jnp.matmul)

    def run() -> None:
        for _ in range(times):
            jax.block_until_ready(product(left, right))

    return run


def product_speeds(timings: Mapping[str, Timing], by: str = "") -> list[float]:
    """FLOP/s of the fastest product in each turn: of all, or by "XLA" or "PyTorch"."""
    speeds = [runs for name, runs in _speeds_of_products(timings).items() if by in name]
    return np.nanmax(np.asarray(speeds), axis=0).tolist()


def product_gflops(timings: Mapping[str, Timing]) -> dict[str, dict[str, float]]:
    """GFLOP/s of each product, by its name."""
    return {
        name: spread([speed / 1e9 for speed in speeds])
        for name, speeds in _speeds_of_products(timings).items()
    }


def _speeds_of_products(timings: Mapping[str, Timing]) -> dict[str, list[float]]:
    speeds = {}
    for name, timing in timings.items():
        if name.startswith("product "):
            m, k, n = (int(size) for size in name.split()[1].split("x"))
            flops = 2.0 * m * k * n * max(1, round(3e9 / (2 * m * k * n)))
            speeds[name.removeprefix("product ")] = [flops / run for run in timing.runs]
    return speeds


def memory_reads(megabytes: Sequence[float], torch: Any = None) -> dict[str, Case]:
    """Sums of float32 arrays, by XLA and by PyTorch: how fast memory of that size is read."""
    cases = {}
    for size in megabytes:
        values = np.ones(int(size * 2**20) // 4, np.float32)
        times = max(1, round(512 / size))
        cases[f"read {size:g} MiB (XLA)"] = Case(_sums(jax.jit(jnp.sum), values, times))
        if torch is not None:
            cases[f"read {size:g} MiB (PyTorch)"] = Case(
                _sums(torch.sum, torch.from_numpy(values), times)
            )
    return cases


def _sums(total: Callable, values: Any, times: int) -> Callable[[], None]:
    values = jnp.asarray(values) if isinstance(values, np.ndarray) else values

    def run() -> None:
        for _ in range(times):
            jax.block_until_ready(total(values))

    return run


def read_speeds(timings: Mapping[str, Timing]) -> list[float]:
    """Bytes/s of the fastest read in each turn."""
    speeds = []
    for name, timing in timings.items():
        if name.startswith("read "):
            size = float(name.split()[1])
            read = int(size * 2**20) * max(1, round(512 / size))
            speeds.append([read / run for run in timing.runs])
    return np.nanmax(np.asarray(speeds), axis=0).tolist()


def without_speeds(timings: Mapping[str, Timing]) -> dict[str, Timing]:
    """The timings of the whole work alone, without its parts either (`part NAME`)."""
    return {
        name: timing
        for name, timing in timings.items()
        if not name.startswith(("product ", "read ", "part "))
    }


def machine() -> dict[str, Any]:
    """Processor, threads, memory, versions, and what else ran."""
    found = history.environment()
    memory = pathlib.Path("/proc/meminfo")
    if memory.exists():
        total = memory.read_text(encoding="utf-8").split("MemTotal:")[1].split()[0]
        found["memory_gib"] = round(int(total) / 2**20, 1)
    pages = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if pages.exists():
        found["transparent_hugepage"] = pages.read_text().split("[")[-1].split("]")[0]
    found["variables"] = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    found["load_average"] = [round(load, 2) for load in os.getloadavg()]
    return found


def command(
    name: str, run: Callable[[Any, Any], list[dict[str, Any]]], sizes: Mapping[str, Any]
) -> Callable[..., int]:
    """The `main` of a benchmark.

    Args:
      name: of the benchmark and of its JSON file.
      run: (sizes, peers) -> results, see `result`; peers as from `peers.find`.
      sizes: by name: "full", "quick", and "smallest", which only shows that it runs.
    """

    def main(arguments: Sequence[str] | None = None) -> int:
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
        parser.add_argument("--quick", action="store_true", help="small sizes: minutes")
        parser.add_argument("--size", choices=list(sizes), help="instead of --quick")
        parser.add_argument("--without-peers", action="store_true", help="time ours alone")
        parser.add_argument("--output", type=pathlib.Path, help="folder for the JSON file")
        options = parser.parse_args(arguments)
        size = options.size or ("quick" if options.quick else "full")
        found = peers.Peers({}) if options.without_peers else peers.find()
        before = machine()
        num_cpus, load = before["num_cpus"], before["load_average"][0]
        print(f"benchmarks.{name}, {size}: {before['cpu_model']}, {num_cpus} CPUs, load {load}")
        for peer in [] if options.without_peers else found.missing:
            print(f"missing, and not compared with: {peer}")
        started = time.perf_counter()
        record = {
            "benchmark": name,
            "size": size,
            "settings": sizes[size]._asdict(),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": {**before, **found.threads()},
            "peers": found.versions,
            "missing": list(peers.NAMES) if options.without_peers else found.missing,
            "results": run(sizes[size], found),
        }
        record["seconds"] = time.perf_counter() - started
        record["machine"]["load_average_after"] = list(os.getloadavg())
        folder = options.output or (RESULTS if size == "full" else RESULTS / size)
        path = folder / f"{name}.json"
        with utils.atomic_write(path) as file:
            json.dump(record, file, indent=1, default=float)
            file.write("\n")
        print(f"\nwritten: {os.path.relpath(path)}", file=sys.stderr)
        return 0

    return main
