"""How much faster than random: the fraction of its labels that do as well."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bayesian_active_learning.history import History, curves_by_function
from bayesian_active_learning.statistics.numbers import higher_is_better, points
from bayesian_active_learning.statistics.survival import (
    QUARTILES,
    kaplan_meier,
    survival_quantile,
)
from bayesian_active_learning.types import ArrayLike

_CLOSE = 1e-9
_Points = dict[int, tuple[np.ndarray, np.ndarray]]  # seed -> label counts and values


class SpeedUp(NamedTuple):
    """How many labels `function` needs for what `against` has at `labels`, as a fraction
    of the labels that `against` needs for it. Below 1 is faster."""

    function: str
    against: str
    labels: int
    targets: dict[int, float]  # shared seed -> value of `against` at `labels`
    fractions: dict[int, float | None]  # shared seed -> fraction; None: never matched
    more_than: dict[int, float]  # seed that never matches -> a bound of the fraction
    unpaired: tuple[int, ...]  # seeds that only one of the two has; not used
    lower: float | None  # quartiles and median; None: not matched so far
    median: float | None
    upper: float | None


def labels_to_value(labels: ArrayLike, values: ArrayLike, target: float) -> float | None:
    """Where the curve `values [R]` over ascending `labels [R]` first comes up to `target`,
    on the straight line between two rounds; None if it never does.

    A curve that begins at or above the target has it at its first label count.
    """
    counts, heights = np.asarray(labels, np.float64), np.asarray(values, np.float64)
    if counts.shape != heights.shape or counts.ndim != 1:
        raise ValueError(
            f"expected labels [R] and values [R], got {counts.shape} and {heights.shape}"
        )
    above = np.flatnonzero(heights >= target - _CLOSE)
    if not len(above):
        return None
    place = int(above[0])
    if not place:
        return float(counts[0])
    low, high = heights[place - 1], heights[place]
    part = min(1.0, (target - low) / (high - low))
    return float(counts[place - 1] + part * (counts[place] - counts[place - 1]))


def speed_ups(
    history: History,
    labels: Sequence[int],
    against: str = "random",
    *,
    metric: str = "accuracy",
) -> tuple[SpeedUp, ...]:
    """The fraction of `against`'s labels with which each other function matches it.

    For each seed that both have: the target is what `against` has at that label count
    (linearly interpolated between rounds); both are timed by `labels_to_value`, the first
    time each comes up to it, and the fraction is the ratio. Timing both in the same way
    makes a noisy curve exactly as fast as itself. A seed that never matches is kept, as
    censored at its last label count. Quartiles over seeds by Kaplan-Meier. The speed-up
    factor is 1 / fraction.

    Raises ValueError where a curve of `against` says nothing about a label count.
    """
    if not higher_is_better(metric):
        raise ValueError(f"speed-ups are for metrics of which more is better, not {metric!r}")
    found = curves_by_function(history, metric)
    if against not in found:
        raise ValueError(f"no curve of {against!r} in this history; it has {', '.join(found)}")
    base = {seed: points(curve, metric) for seed, curve in found[against].items()}
    for seed, (counts, _) in base.items():
        for count in labels:
            if not len(counts) or not counts[0] <= count <= counts[-1]:
                raise ValueError(f"{against}, seed {seed}, says nothing about {count} labels")
    return tuple(
        _speed_up(
            name, {s: points(c, metric) for s, c in found[name].items()}, against, base, count
        )
        for name in found
        if name != against
        for count in labels
    )


def _speed_up(name: str, mine: _Points, against: str, base: _Points, count: int) -> SpeedUp:
    targets: dict[int, float] = {}
    fractions: dict[int, float | None] = {}
    more_than: dict[int, float] = {}
    for seed in sorted(mine.keys() & base.keys()):
        targets[seed] = float(np.interp(count, *base[seed]))
        theirs = labels_to_value(*base[seed], targets[seed])
        if not theirs:
            raise ValueError(
                f"{against}, seed {seed}, needs no labels for what it has at {count}: no fraction"
            )
        ours = labels_to_value(*mine[seed], targets[seed])
        fractions[seed] = None if ours is None else ours / theirs
        if ours is None:
            more_than[seed] = float(mine[seed][0][-1]) / theirs
    quartiles: list[float | None] = [None, None, None]
    if fractions:
        times = [more_than[s] if value is None else value for s, value in fractions.items()]
        survival = kaplan_meier(times, [value is not None for value in fractions.values()])
        quartiles = [survival_quantile(survival, level) for level in QUARTILES]
    unpaired = tuple(sorted(mine.keys() ^ base.keys()))
    return SpeedUp(name, against, count, targets, fractions, more_than, unpaired, *quartiles)


def factor(fraction: float | None) -> float | None:
    """The speed-up that belongs to a fraction of labels; None where never matched."""
    return None if fraction is None else math.inf if not fraction else 1 / fraction
