"""How many labels a given accuracy takes, with runs that never get there."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from bayesian_active_learning.history.records import Curve
from bayesian_active_learning.types import ArrayLike

TOLERANCE = 1e-6
"""A float32 accuracy of 0.9 is 0.89999998; the next possible one on 60,000 test
images is 1.7e-5 away."""


def labels_to_threshold(
    labels: ArrayLike | Sequence[int],
    accuracy: ArrayLike | Sequence[float],
    threshold: float,
    *,
    sustained: int = 1,
) -> int | None:
    """The first of `labels [R]` from which `accuracy [R]` is at least `threshold` in
    `sustained` consecutive rounds; None if that is never so.

    A stretch that the end of the run cuts short does not count.
    """
    counts, values = np.asarray(labels), np.asarray(accuracy, np.float64)
    if counts.shape != values.shape or counts.ndim != 1:
        raise ValueError(
            f"expected labels [R] and accuracy [R], got {counts.shape} and {values.shape}"
        )
    if sustained < 1:
        raise ValueError(f"sustained must be at least 1, got {sustained}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in 0..1, got {threshold}")
    streak = 0
    for position, reached in enumerate(values >= threshold - TOLERANCE):
        streak = streak + 1 if reached else 0
        if streak == sustained:
            return int(counts[position - sustained + 1])
    return None


def quartiles_labels_to_threshold(
    curves: Iterable[Curve], threshold: float, sustained: int = 1, *, metric: str = "accuracy"
) -> tuple[float | None, float | None, float | None]:
    """Lower quartile, median and upper quartile over curves (seeds) of
    `labels_to_threshold`, linearly interpolated. A curve that does not get there
    counts as infinite; None where the quantile is."""
    curves = tuple(curves)
    if not curves:
        raise ValueError("no curves to take quartiles of")
    reached = [
        labels_to_threshold(curve.labels, curve.test[metric], threshold, sustained=sustained)
        for curve in curves
    ]
    ordered = sorted(math.inf if count is None else count for count in reached)
    return _quantile(ordered, 0.25), _quantile(ordered, 0.5), _quantile(ordered, 0.75)


def median_labels_to_threshold(
    curves: Iterable[Curve], threshold: float, sustained: int = 1, *, metric: str = "accuracy"
) -> float | None:
    """The middle one of `quartiles_labels_to_threshold`."""
    return quartiles_labels_to_threshold(curves, threshold, sustained, metric=metric)[1]


def _quantile(ordered: list[float], level: float) -> float | None:
    """numpy.quantile, except that it stays defined (infinite: None) beside infinities."""
    place = level * (len(ordered) - 1)
    low = math.floor(place)
    part = place - low
    value = ordered[low]
    if part:
        upper = ordered[low + 1]
        value = math.inf if math.isinf(upper) else value + part * (upper - value)
    return None if math.isinf(value) else float(value)
