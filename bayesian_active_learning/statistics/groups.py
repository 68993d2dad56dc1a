"""All functions at once, without pairs: Kruskal-Wallis, then Games-Howell."""

from typing import NamedTuple

import numpy as np

from bayesian_active_learning.history.summary import ENOUGH_SEEDS
from bayesian_active_learning.statistics.few_seeds import ALPHA
from bayesian_active_learning.statistics.numbers import Numbers
from bayesian_active_learning.statistics.optional import scipy_stats


class GroupComparison(NamedTuple):
    """F functions in one of `Numbers`, see `kruskal_games_howell`."""

    measure: str
    metric: str
    functions: tuple[str, ...]
    sizes: tuple[int, ...]  # seeds of each
    kruskal_statistic: float
    kruskal_p: float
    differences: np.ndarray  # [F, F]: mean of the row's function minus the column's
    games_howell_p: np.ndarray  # [F, F], 1 on the diagonal
    differing: tuple[tuple[str, str], ...]  # pairs that both tests set apart, the higher one first
    warnings: tuple[str, ...]


def kruskal_games_howell(numbers: Numbers, *, alpha: float = ALPHA) -> GroupComparison:
    """Kruskal-Wallis over all functions, and Games-Howell for each two, as TorchAL reports
    them (Munjal et al. 2022, Towards Robust and Reproducible Active Learning).

    Games-Howell allows for unequal variances and numbers of seeds and already corrects for
    the number of pairs; it counts only where Kruskal-Wallis finds any difference at
    `alpha`. Both take the seeds as independent, so differences that all functions share
    with a seed stay in the noise: with few seeds the paired comparison sees more.

    Raises ValueError for fewer than two functions with at least two seeds; functions with
    one seed are left out, and a warning says so.
    """
    stats = scipy_stats()
    groups = {
        name: np.array(list(by_seed.values()))
        for name, by_seed in numbers.values.items()
        if len(by_seed) > 1
    }
    if len(groups) < 2:
        raise ValueError(
            "comparing groups takes two functions with at least two seeds each, got "
            + ", ".join(f"{name} with {len(each)}" for name, each in numbers.values.items())
        )
    names, samples = tuple(groups), list(groups.values())
    statistic, p = 0.0, 1.0
    if np.ptp(np.concatenate(samples)):  # else SciPy refuses: all numbers are the same
        statistic, p = map(float, stats.kruskal(*samples))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = stats.tukey_hsd(*samples, equal_var=False)
    # Undefined where neither of two functions varies at all.
    equal = found.statistic == 0
    pairwise = np.where(np.isnan(found.pvalue), np.where(equal, 1.0, 0.0), found.pvalue)
    np.fill_diagonal(pairwise, 1.0)
    apart = (pairwise < alpha) & (found.statistic > 0) & (p < alpha)
    return GroupComparison(
        measure=numbers.name,
        metric=numbers.metric,
        functions=names,
        sizes=tuple(map(len, samples)),
        kruskal_statistic=statistic,
        kruskal_p=p,
        differences=found.statistic,
        games_howell_p=pairwise,
        differing=tuple((names[i], names[j]) for i, j in np.argwhere(apart)),
        warnings=_warnings(numbers, [len(each) for each in samples]),
    )


def _warnings(numbers: Numbers, sizes: list[int]) -> tuple[str, ...]:
    found = []
    single = [name for name, by_seed in numbers.values.items() if len(by_seed) < 2]
    if single:
        found.append(f"left out of Kruskal-Wallis, with one seed: {', '.join(single)}")
    if min(sizes) < ENOUGH_SEEDS:
        found.append(
            f"groups of {min(sizes)} seeds are small for Kruskal-Wallis: its p-value, from a "
            "chi-squared distribution, is rough, and Games-Howell is too ready to find differences"
        )
    return tuple(found)
