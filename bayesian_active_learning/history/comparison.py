"""Curves beside each other: where they can be compared, and how sure that is."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from bayesian_active_learning.history.records import Curve, History

FEW_SEEDS = 3  # below this no interval, and no quartiles, are given

# 0.975 quantiles of Student's t with 1, 2, ..., 30 degrees of freedom.
_STUDENT_T = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


class PairedDifference(NamedTuple):
    """first minus second in test accuracy (fractions), over `seeds` that both have,
    averaged over `labels`: the last label counts that all those curves have."""

    mean: float
    interval: tuple[float, float] | None  # 95 %, Student's t; None below FEW_SEEDS
    seeds: tuple[int, ...]
    labels: tuple[int, ...]


def student_t(degrees: int) -> float:
    """The 0.975 quantile of Student's t, for two-sided 95 % intervals. Above 30
    degrees of freedom it stays at the value for 30, which errs on the wide side."""
    if degrees < 1:
        raise ValueError(f"Student's t needs at least 1 degree of freedom, got {degrees}")
    return _STUDENT_T[min(degrees, len(_STUDENT_T)) - 1]


def curves_by_function(history: History, metric: str = "accuracy") -> dict[str, dict[int, Curve]]:
    """function -> seed -> curve, of the cells with at least one evaluated round.

    Raises ValueError where there is none, or one does not have the test metric.
    """
    found: dict[str, dict[int, Curve]] = {}
    for (function, seed), curve in history.cells.items():
        if not len(curve.labels):
            continue
        if metric not in curve.test:
            raise ValueError(
                f"{function}, seed {seed}, has no test metric {metric!r}; it has "
                f"{', '.join(curve.test) or 'none'}"
            )
        found.setdefault(function, {})[seed] = curve
    if not found:
        raise ValueError("the history is empty: no round has been evaluated yet")
    return {name: dict(sorted(curves.items())) for name, curves in found.items()}


def common_rounds(
    curves: Iterable[Curve], metric: str = "accuracy"
) -> tuple[np.ndarray, np.ndarray]:
    """The label counts `[R]` at which every curve has a finite value, in order, and the
    values `[S, R]`. Where a label count comes twice in a curve, the later value holds."""
    columns = [
        {
            int(count): float(value)
            for count, value in zip(curve.labels, curve.test[metric], strict=True)
            if math.isfinite(value)
        }
        for curve in curves
    ]
    if not columns:
        raise ValueError("no curves to compare")
    counts = sorted(set.intersection(*map(set, columns)))
    values = [[column[count] for count in counts] for column in columns]
    return np.array(counts, np.int64), np.array(values, float)


def paired_difference(
    history: History,
    first: str = "bald",
    second: str = "random",
    *,
    rounds: int = 10,
    metric: str = "accuracy",
) -> PairedDifference | None:
    """How much better `first` is than `second` over the last `rounds` rounds.

    Seeds share splits, initial parameters and keys, so differences are taken seed by
    seed; the interval says how they vary over seeds, with one test set. None where the
    two have no seed, or no label count, in common.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    found = curves_by_function(history, metric)
    for name in (first, second):
        if name not in found:
            raise ValueError(f"no curve of {name!r} in this history; it has {', '.join(found)}")
    seeds = tuple(seed for seed in found[first] if seed in found[second])
    if not seeds:
        return None
    pairs = [found[name][seed] for name in (first, second) for seed in seeds]
    counts, values = common_rounds(pairs, metric)
    if not len(counts):
        return None
    last = values[:, -rounds:].mean(axis=1)  # [2 S]
    differences = last[: len(seeds)] - last[len(seeds) :]
    interval = mean_interval(differences) if len(seeds) >= FEW_SEEDS else None
    used = tuple(counts[-rounds:].tolist())
    return PairedDifference(float(differences.mean()), interval, seeds, used)


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of `values [S]`, S at least 2, by Student's t."""
    half = student_t(len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)
