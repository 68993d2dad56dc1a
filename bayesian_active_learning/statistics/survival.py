"""Labels to an accuracy, and other things that some runs do not live to see."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bayesian_active_learning.history import (
    History,
    curves_by_function,
    labels_to_threshold,
)
from bayesian_active_learning.statistics.numbers import higher_is_better, points
from bayesian_active_learning.statistics.optional import scipy_stats
from bayesian_active_learning.types import ArrayLike

QUARTILES = (0.25, 0.5, 0.75)
_CLOSE = 1e-9  # the estimate is a product of fractions


class Survival(NamedTuple):
    """Share of runs `[T]` still without the event after each of `times [T]` (Kaplan-Meier),
    with its pointwise 95 % band (exponential Greenwood; NaN where undefined)."""

    times: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray


class LabelsToThreshold(NamedTuple):
    """How many labels one function needs for an accuracy kept for `sustained` rounds."""

    function: str
    threshold: float
    sustained: int
    reached: dict[int, int | None]  # seed -> labels; None: not reached
    censored_at: dict[int, int]  # seed that does not get there -> labels up to which it does not
    lower: float | None  # quartiles and median; None: beyond the last label count
    median: float | None
    upper: float | None
    interval: tuple[float | None, float | None]  # 95 % of the median; None: not bounded


def kaplan_meier(times: ArrayLike | Sequence[float], observed: Sequence[bool]) -> Survival:
    """The Kaplan-Meier estimate from `times [S]`: of the event where `observed [S]`, and
    otherwise the last time at which it was known not to have come (right-censored)."""
    stats = scipy_stats()
    values, seen = np.asarray(times, np.float64), np.asarray(observed, np.bool_)
    if values.shape != seen.shape or values.ndim != 1 or not len(values):
        raise ValueError(f"expected times [S] and observed [S], got {values.shape}, {seen.shape}")
    if not np.isfinite(values).all():
        raise ValueError("times must be finite; a run without the event is not `observed`")
    curve = stats.ecdf(stats.CensoredData.right_censored(values, ~seen)).sf
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        # Where all have, or none has, had the event there is no band, which is no news.
        warnings.simplefilter("ignore", RuntimeWarning)
        band = curve.confidence_interval(0.95, method="log-log")
    return Survival(
        curve.quantiles, curve.probabilities, band.low.probabilities, band.high.probabilities
    )


def survival_quantile(survival: Survival, level: float) -> float | None:
    """The first time at which a share `level` has had the event; None if that is not seen.

    Where the estimate stands exactly at that share for a while, the middle of that stretch
    (without censoring and for level 0.5 this is the usual median), or None where it stands
    there to the end.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    below = np.flatnonzero(survival.share <= 1 - level + _CLOSE)
    if not len(below):
        return None
    if survival.share[below[0]] < 1 - level - _CLOSE:
        return float(survival.times[below[0]])
    later = np.flatnonzero(survival.share < 1 - level - _CLOSE)
    return float(survival.times[[below[0], later[0]]].mean()) if len(later) else None


def median_interval(survival: Survival) -> tuple[float | None, float | None]:
    """95 % interval of the median: the times at which the band comes down to one half
    (Brookmeyer & Crowley 1982). None for a side that the data do not bound."""
    ends = [np.flatnonzero(edge <= 0.5 + _CLOSE) for edge in (survival.low, survival.high)]
    low, high = (float(survival.times[end[0]]) if len(end) else None for end in ends)
    return low, high


def labels_to_thresholds(
    history: History,
    thresholds: Sequence[float] = (0.90, 0.95),
    sustained: int = 1,
    *,
    metric: str = "accuracy",
) -> tuple[LabelsToThreshold, ...]:
    """Labels to each threshold, for each function, over its seeds (Kaplan-Meier).

    A seed counts with the first label count from which it stays at or above the threshold
    for `sustained` rounds. A seed that never does is kept, as censored at the last label
    count from which that could have been seen (`sustained - 1` rounds before its end).
    """
    if not higher_is_better(metric):
        raise ValueError(f"thresholds are for metrics of which more is better, not {metric!r}")
    found = []
    for threshold in thresholds:
        for function, by_seed in curves_by_function(history, metric).items():
            reached: dict[int, int | None] = {}
            censored: dict[int, int] = {}
            for seed, curve in by_seed.items():
                counts, values = points(curve, metric)
                labels = labels_to_threshold(counts, values, threshold, sustained=sustained)
                reached[seed] = labels
                if labels is None:
                    seen = len(counts) - sustained
                    censored[seed] = int(counts[seen]) if seen >= 0 else 0
            times = [censored[seed] if at is None else at for seed, at in reached.items()]
            survival = kaplan_meier(times, [at is not None for at in reached.values()])
            lower, median, upper = (survival_quantile(survival, level) for level in QUARTILES)
            found.append(
                LabelsToThreshold(
                    function,
                    threshold,
                    sustained,
                    reached,
                    censored,
                    lower,
                    median,
                    upper,
                    median_interval(survival),
                )
            )
    return tuple(found)
