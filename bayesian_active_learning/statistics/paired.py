"""Functions against each other in pairs: equal seeds share splits, initial labels and keys."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bayesian_active_learning.history.comparison import FEW_SEEDS
from bayesian_active_learning.statistics.few_seeds import ALPHA, seed_warnings
from bayesian_active_learning.statistics.numbers import Numbers, higher_is_better
from bayesian_active_learning.statistics.optional import scipy_stats
from bayesian_active_learning.types import ArrayLike
from bayesian_active_learning.utils import check_one_of

NUM_RESAMPLES = 9999
DECIMALS = 12  # differences are rounded to these, so that equal ones tie

Interval = tuple[float, float]


class PairedTest(NamedTuple):
    """first minus second over S pairs. Tests are two-sided, intervals are for 95 %."""

    differences: np.ndarray  # [S]
    mean: float
    t_interval: Interval | None  # Student's; None below 3 pairs, as the next one
    bootstrap_interval: Interval | None  # of the mean
    t_statistic: float | None  # None for one pair
    t_p: float | None
    signed_rank_statistic: float | None
    signed_rank_p: float | None


class PairedComparison(NamedTuple):
    """`first` against `second` in one of `Numbers`."""

    measure: str
    metric: str
    first: str
    second: str
    seeds: tuple[int, ...]  # that both have: the pairs
    unpaired: tuple[int, ...]  # that only one of the two has; not used
    test: PairedTest | None  # None without pairs
    wins: int  # pairs in which `first` is better
    losses: int
    t_p_holm: float | None  # over all comparisons with `second` in this measure
    signed_rank_p_holm: float | None
    verdict: str  # of the corrected t-test
    warnings: tuple[str, ...]


def paired_test(
    first: ArrayLike | Sequence[float],
    second: ArrayLike | Sequence[float],
    *,
    bootstrap_seed: int,
    bootstrap: str = "BCa",
) -> PairedTest:
    """Paired t-test, Wilcoxon's signed-rank test and a bootstrap interval of the mean of
    `first [S]` minus `second [S]`.

    The signed-rank test drops pairs without a difference and is exact up to 50 pairs (13
    where some are equal). Where all differences are zero both p-values are 1; where they
    are all equal and not zero, t is infinite and the intervals have no width.

    bootstrap_seed: of the 9,999 resamplings. bootstrap: "BCa" (bias-corrected and
    accelerated) or "percentile".
    Raises ValueError where the two do not have the same length, or hold NaN.
    """
    check_one_of("bootstrap", bootstrap, ("BCa", "percentile"))
    one, two = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.shape != two.shape or one.ndim != 1 or not len(one):
        raise ValueError(f"expected two arrays [S] of pairs, got {one.shape} and {two.shape}")
    differences = np.round(one - two, DECIMALS)
    if not np.isfinite(differences).all():
        raise ValueError("pairs must be finite numbers")
    mean, count = float(differences.mean()), len(differences)
    if count == 1:
        return PairedTest(differences, mean, None, None, None, None, None, None)
    statistic, p = t_test(differences)
    rank_statistic, rank_p = _signed_rank(differences)
    wide = count >= FEW_SEEDS
    return PairedTest(
        differences=differences,
        mean=mean,
        t_interval=t_interval(differences) if wide else None,
        bootstrap_interval=_bootstrap(differences, bootstrap_seed, bootstrap) if wide else None,
        t_statistic=float(statistic),
        t_p=float(p),
        signed_rank_statistic=rank_statistic,
        signed_rank_p=rank_p,
    )


def compare_with(
    numbers: Numbers,
    against: str = "random",
    *,
    bootstrap_seed: int,
    alpha: float = ALPHA,
) -> tuple[PairedComparison, ...]:
    """Every other function against `against`, over the seeds that both have.

    The p-values of the family are corrected by Holm. The verdict ("better", "worse",
    "not shown to differ", "too few seeds") is of the corrected t-test at `alpha`.
    """
    if against not in numbers.values:
        raise ValueError(f"no curve of {against!r} here; there are {', '.join(numbers.values)}")
    theirs = numbers.values[against]
    family = []
    for name, mine in numbers.values.items():
        if name != against:
            seeds = tuple(sorted(mine.keys() & theirs.keys()))
            values = [[one[seed] for seed in seeds] for one in (mine, theirs)]
            test = (
                paired_test(values[0], values[1], bootstrap_seed=bootstrap_seed) if seeds else None
            )
            family.append((name, seeds, tuple(sorted(mine.keys() ^ theirs.keys())), test))
    t_ps = _corrected([test and test.t_p for *_, test in family])
    rank_ps = _corrected([test and test.signed_rank_p for *_, test in family])
    tested = sum(p is not None for p in t_ps)
    found = []
    for (name, seeds, unpaired, test), t_p, rank_p in zip(family, t_ps, rank_ps, strict=True):
        sign = 1 if higher_is_better(numbers.metric) else -1
        gains = np.zeros(0) if test is None else sign * test.differences
        verdict = "too few seeds"
        if t_p is not None and len(seeds) >= FEW_SEEDS:
            verdict = "better" if gains.mean() > 0 else "worse"
            verdict = verdict if t_p < alpha else "not shown to differ"
        found.append(
            PairedComparison(
                measure=numbers.name,
                metric=numbers.metric,
                first=name,
                second=against,
                seeds=seeds,
                unpaired=unpaired,
                test=test,
                wins=int((gains > 0).sum()),
                losses=int((gains < 0).sum()),
                t_p_holm=t_p,
                signed_rank_p_holm=rank_p,
                verdict=verdict,
                warnings=seed_warnings(len(seeds), comparisons=max(1, tested), alpha=alpha),
            )
        )
    return tuple(found)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's corrected p-values `[M]` of a family of M comparisons.

    p_(k) of the ascending order becomes the maximum over j <= k of (M - j + 1) p_(j), at
    most 1 (Holm 1979). What stays below alpha is significant with the chance of any false
    finding in the family below alpha, however the comparisons hang together.
    """
    values = np.asarray(p_values, np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"expected p-values [M] in 0..1, got {values.tolist()}")
    order = np.argsort(values, kind="stable")
    stepped = values[order] * (len(values) - np.arange(len(values)))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(1, np.maximum.accumulate(stepped))
    return corrected


def t_test(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Student's t and its two-sided p for mean 0 of `differences [S, ...]` over S >= 2.

    As scipy.stats.ttest_1samp, but where there is no spread: 0 and 1 if all are zero, else
    infinite and 0.
    """
    stats = scipy_stats()
    count = len(differences)
    mean, spread = differences.mean(axis=0), differences.std(axis=0, ddof=1)
    same = (differences == differences[:1]).all(axis=0)
    statistic = mean * np.sqrt(count) / np.where(same, 1.0, spread)
    statistic = np.where(same & (mean != 0), np.copysign(np.inf, mean), statistic)
    return statistic, 2 * stats.t.sf(np.abs(statistic), count - 1)


def t_interval(values: ArrayLike | Sequence[float]) -> Interval:
    """Student's 95 % interval of the mean of `values [S]`, S at least 2."""
    stats = scipy_stats()
    numbers = np.asarray(values, np.float64)
    count = len(numbers)
    half = stats.t.ppf(0.975, count - 1) * numbers.std(ddof=1) / np.sqrt(count)
    return float(numbers.mean() - half), float(numbers.mean() + half)


def _corrected(p_values: Sequence[float | None]) -> list[float | None]:
    """`holm` of those that are there."""
    corrected = iter(holm([p for p in p_values if p is not None]).tolist())
    return [None if p is None else next(corrected) for p in p_values]


def _signed_rank(differences: np.ndarray) -> tuple[float, float]:
    stats = scipy_stats()
    if not differences.any():
        return 0.0, 1.0
    found = stats.wilcoxon(differences)
    return float(found.statistic), float(found.pvalue)


def _bootstrap(differences: np.ndarray, seed: int, method: str) -> Interval:
    stats = scipy_stats()
    if (differences == differences[0]).all():
        return float(differences[0]), float(differences[0])
    found = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        method=method,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
