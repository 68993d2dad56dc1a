"""Everything that one history says about its functions, in one record."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bayesian_active_learning.history import History, caption, curves_by_function, differences
from bayesian_active_learning.history.comparison import FEW_SEEDS
from bayesian_active_learning.history.summary import DATASETS, dataset_label
from bayesian_active_learning.statistics.budgets import (
    NormalisedErrors,
    Penalties,
    normalised_errors,
    penalty_matrix,
)
from bayesian_active_learning.statistics.few_seeds import ALPHA
from bayesian_active_learning.statistics.groups import GroupComparison, kruskal_games_howell
from bayesian_active_learning.statistics.numbers import (
    Numbers,
    area,
    common_range,
    higher_is_better,
    mean_of_last,
    points,
    value_at,
)
from bayesian_active_learning.statistics.paired import PairedComparison, compare_with
from bayesian_active_learning.statistics.speed_up import SpeedUp, speed_ups
from bayesian_active_learning.statistics.survival import LabelsToThreshold, labels_to_thresholds


class Comparison(NamedTuple):
    """What `compare` found. The parts that need a metric of which more is better, or two
    seeds, or a second function, are empty or None without."""

    caption: str
    against: str
    metric: str
    labels: tuple[int, int]  # from where to where all curves go
    seeds: dict[str, tuple[int, ...]]
    thresholds: tuple[LabelsToThreshold, ...]
    numbers: tuple[Numbers, ...]  # per seed: the area first
    pairs: tuple[PairedComparison, ...]
    speed_ups: tuple[SpeedUp, ...]
    penalties: Penalties | None
    groups: GroupComparison | None  # in the area
    normalised_errors: NormalisedErrors | None
    warnings: tuple[str, ...]  # what must not be concluded, and why


def compare(
    history: History,
    *,
    against: str = "random",
    last: int = 10,
    thresholds: Sequence[float] = (0.90, 0.95),
    sustained: int = 3,
    labels: Sequence[int] | None = None,
    metric: str = "accuracy",
    bootstrap_seed: int,
    alpha: float = ALPHA,
) -> Comparison:
    """All comparisons of this package, of every function of a history with `against`.

    Paired are the area under the budget curve, the mean of the last `last` rounds, and the
    metric at each of `labels` (by default at quarters of the range that all curves have);
    each of these is a family of its own for Holm's correction. bootstrap_seed: of the
    bootstrap intervals.
    """
    found = curves_by_function(history, metric)
    if against not in found:
        raise ValueError(f"no curve of {against!r} to compare with; there are {', '.join(found)}")
    span = common_range(history, metric)
    counts = quarters(history, metric) if labels is None else tuple(labels)
    up, several = higher_is_better(metric), len(found) > 1
    numbers = (
        area(history, metric=metric),
        mean_of_last(history, last, metric=metric),
        *(value_at(history, count, metric=metric) for count in counts),
    )
    pairs = [
        pair
        for each in numbers
        for pair in compare_with(each, against, bootstrap_seed=bootstrap_seed, alpha=alpha)
    ]
    reached = [
        each
        for length in dict.fromkeys((1, sustained))
        if up
        for each in labels_to_thresholds(history, thresholds, length, metric=metric)
    ]
    groups = None
    if sum(len(by_seed) > 1 for by_seed in found.values()) > 1:
        groups = kruskal_games_howell(numbers[0], alpha=alpha)
    is_accuracy = metric.startswith("accuracy")
    whole = Comparison(
        caption=caption(history),
        against=against,
        metric=metric,
        labels=span,
        seeds={name: tuple(by_seed) for name, by_seed in found.items()},
        thresholds=tuple(reached),
        numbers=numbers,
        pairs=tuple(pairs),
        speed_ups=speed_ups(history, counts, against, metric=metric) if up else (),
        penalties=penalty_matrix([history], alpha=alpha, metric=metric) if several else None,
        groups=groups,
        normalised_errors=(
            normalised_errors([history], against, metric=metric)
            if several and is_accuracy
            else None
        ),
        warnings=(),
    )
    return whole._replace(warnings=_warnings(history, whole))


def quarters(history: History, metric: str = "accuracy") -> tuple[int, ...]:
    """The label counts of the first curve nearest to 1/4, 1/2, 3/4 and the whole of the
    range that all curves have."""
    start, end = common_range(history, metric)
    by_seed = next(iter(curves_by_function(history, metric).values()))
    counts, _ = points(next(iter(by_seed.values())), metric)
    counts = counts[(counts > start) & (counts <= end)]
    wanted = [start + part * (end - start) / 4 for part in (1, 2, 3)]
    nearest = {int(counts[np.abs(counts - place).argmin()]) for place in wanted if len(counts)}
    return tuple(sorted(nearest | {end}))


def to_plain(value: Any) -> Any:
    """Records, arrays and numbers as JSON has them; None for what is not finite."""
    if hasattr(value, "_asdict"):
        return {key: to_plain(item) for key, item in value._asdict().items()}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return to_plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _warnings(history: History, whole: Comparison) -> tuple[str, ...]:
    found = []
    if DATASETS["digits"] in dataset_label(history):
        found.append(
            "this is digits (8x8), NOT MNIST: nothing here says anything about MNIST or the paper"
        )
    known = history.config.get("environment")
    for other in history.config.get("also_run_in", []):
        found.append(
            "the cells were run in several environments, so equal seeds share less than they "
            f"could: {'; '.join(differences(known, other))}"
        )
    if len(whole.seeds) < 2:
        found.append(f"there is only {whole.against}: nothing to compare it with")
    ends = {
        f"{function}, seed {seed}": int(points(curve, whole.metric)[0][-1])
        for function, by_seed in curves_by_function(history, whole.metric).items()
        for seed, curve in by_seed.items()
    }
    first = min(ends, key=ends.__getitem__)
    if len(set(ends.values())) > 1:
        found.append(
            f"not all curves end together: {first}, ends at {ends[first]:,} labels, others go on "
            f"to {max(ends.values()):,}; areas, last rounds, budgets and group tests stop there, "
            "and 'not reached' may mean 'not yet'"
        )
    about: dict[str, dict[str, None]] = {}  # warning -> the functions that it is about
    for pair in whole.pairs:
        if pair.unpaired:
            text = (
                f"{pair.first} and {pair.second} are paired over the seeds that both have "
                f"({_listed(pair.seeds)}); not used in pairs: {_listed(pair.unpaired)}"
            )
            about.setdefault(text, {})
        for text in pair.warnings:
            about.setdefault(text, {})[pair.first] = None
    for text, names in about.items():
        some = 0 < len(names) < len(whole.seeds) - 1
        found.append(f"{', '.join(names)} with {whole.against}: {text}" if some else text)
    if whole.groups is not None:
        found += whole.groups.warnings
    if any(len(seeds) >= FEW_SEEDS for seeds in whole.seeds.values()):
        found.append(
            "intervals and p-values say how results vary over seeds, with one test set and this "
            "protocol; they say nothing about other data"
        )
    return tuple(found)


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or "none"
