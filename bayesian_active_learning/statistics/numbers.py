"""One number for each function and seed: what comparisons over seeds are made of."""

from typing import NamedTuple

import numpy as np

from bayesian_active_learning.history import Curve, History, common_rounds, curves_by_function
from bayesian_active_learning.types import ArrayLike

LOWER_IS_BETTER = frozenset({"nll", "ece", "brier"})


class Numbers(NamedTuple):
    """function -> seed -> number, made from the test metric `metric`. Accuracies are fractions."""

    name: str
    metric: str
    values: dict[str, dict[int, float]]
    rule: str = ""  # how it is made, in a sentence


def higher_is_better(metric: str) -> bool:
    """Whether more of a test metric is better; true of what this library does not know."""
    return metric.removesuffix("_mean") not in LOWER_IS_BETTER


def points(curve: Curve, metric: str = "accuracy") -> tuple[np.ndarray, np.ndarray]:
    """The label counts `[R]` at which a curve has a finite value, ascending, and the
    values `[R]`. Where a count comes twice, the later value holds."""
    counts, values = common_rounds([curve], metric)
    return counts, values[0]


def common_range(history: History, metric: str = "accuracy") -> tuple[int, int]:
    """The label counts from which and up to which every curve goes.

    Raises ValueError where there is no such range, naming the curves.
    """
    starts: dict[str, int] = {}
    ends: dict[str, int] = {}
    for function, by_seed in curves_by_function(history, metric).items():
        for seed, curve in by_seed.items():
            name, (counts, _) = f"{function}, seed {seed}", points(curve, metric)
            if not len(counts):
                raise ValueError(f"{name}, has no finite {metric}")
            starts[name], ends[name] = int(counts[0]), int(counts[-1])
    late, early = max(starts, key=starts.__getitem__), min(ends, key=ends.__getitem__)
    if starts[late] >= ends[early]:
        raise ValueError(
            f"the curves have no range of label counts in common: {early}, ends at "
            f"{ends[early]}, {late}, begins at {starts[late]}"
        )
    return starts[late], ends[early]


def area_under_budget_curve(
    labels: ArrayLike,
    values: ArrayLike,
    start: float | None = None,
    end: float | None = None,
) -> float:
    """Area under `values [R]` over `labels [R]` from `start` to `end` (by default all of
    it), by the trapezoidal rule, with the budget scaled to 0..1: the mean height of the
    curve, in the unit of `values`.

    Where `start` or `end` lies between two rounds, the curve is interpolated linearly.
    Known as AUBC (Zhan et al. 2021, A Comparative Survey: Benchmarking for Pool-based
    Active Learning).

    Raises ValueError where labels do not ascend or do not cover the range.
    """
    counts, heights = _checked(labels, values)
    first = float(counts[0]) if start is None else float(start)
    last = float(counts[-1]) if end is None else float(end)
    if not first < last:
        raise ValueError(f"the range of labels must not be empty, got {first:g} to {last:g}")
    if first < counts[0] or last > counts[-1]:
        raise ValueError(
            f"the curve goes from {counts[0]:g} to {counts[-1]:g} labels, which does not cover "
            f"{first:g} to {last:g}"
        )
    inner = counts[(counts > first) & (counts < last)]
    places = np.concatenate([[first], inner, [last]])
    curve = np.interp(places, counts, heights)
    return float(np.trapezoid(curve, (places - first) / (last - first)))


def area(
    history: History,
    *,
    start: int | None = None,
    end: int | None = None,
    metric: str = "accuracy",
) -> Numbers:
    """`area_under_budget_curve` of every cell, by default over `common_range`."""
    low, high = common_range(history, metric) if None in (start, end) else (0, 0)
    first = low if start is None else start
    last = high if end is None else end
    found = {
        function: {
            seed: area_under_budget_curve(*points(curve, metric), first, last)
            for seed, curve in by_seed.items()
        }
        for function, by_seed in curves_by_function(history, metric).items()
    }
    name = f"area under the curve ({first:,} to {last:,} labels)"
    rule = (
        "Trapezoidal over labels, the budget scaled to 0..1: the mean height of the curve "
        "(Zhan et al. 2021)."
    )
    return Numbers(name, metric, found, rule)


def value_at(history: History, labels: float, *, metric: str = "accuracy") -> Numbers:
    """The metric at a label count, linearly interpolated between rounds.

    Raises ValueError where a curve does not reach that far: none is left out.
    """
    found: dict[str, dict[int, float]] = {}
    for function, by_seed in curves_by_function(history, metric).items():
        found[function] = {}
        for seed, curve in by_seed.items():
            counts, values = points(curve, metric)
            if not len(counts) or not counts[0] <= labels <= counts[-1]:
                span = f"goes from {counts[0]} to {counts[-1]}" if len(counts) else "is empty"
                raise ValueError(
                    f"the curve of {function}, seed {seed}, {span}: it says nothing about "
                    f"{labels:g} labels"
                )
            found[function][seed] = float(np.interp(labels, counts, values))
    rule = "Linearly interpolated between rounds."
    return Numbers(f"at {labels:,g} labels", metric, found, rule)


def mean_of_last(history: History, rounds: int = 10, *, metric: str = "accuracy") -> Numbers:
    """The mean of the metric over the last `rounds` label counts that all curves have."""
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    found = curves_by_function(history, metric)
    cells = [(name, seed) for name, by_seed in found.items() for seed in by_seed]
    counts, values = common_rounds([found[name][seed] for name, seed in cells], metric)
    if not len(counts):
        raise ValueError("the curves have no label count in common")
    used = counts[-rounds:]
    means = values[:, -rounds:].mean(axis=1)
    numbers: dict[str, dict[int, float]] = {name: {} for name in found}
    for (name, seed), mean in zip(cells, means, strict=True):
        numbers[name][seed] = float(mean)
    where = f"{used[0]:,} to {used[-1]:,}" if len(used) > 1 else f"{used[0]:,}"
    name = f"last {len(used)} round{'s' if len(used) > 1 else ''} ({where} labels)"
    return Numbers(name, metric, numbers, "Mean over the label counts that all curves have.")


def _checked(labels: ArrayLike, values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    counts, heights = np.asarray(labels, np.float64), np.asarray(values, np.float64)
    if counts.shape != heights.shape or counts.ndim != 1 or len(counts) < 2:
        raise ValueError(
            f"expected labels [R] and values [R] with R at least 2, got {counts.shape} and "
            f"{heights.shape}"
        )
    if not (np.diff(counts) > 0).all():
        raise ValueError("labels must ascend strictly")
    if not np.isfinite(heights).all():
        raise ValueError("values must be finite")
    return counts, heights
