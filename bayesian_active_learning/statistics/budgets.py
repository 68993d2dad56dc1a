"""Functions over many settings and label budgets, as Ash et al. 2020 compare them.

Ash, Zhang, Krishnamurthy, Langford & Agarwal, "Deep Batch Active Learning by Diverse,
Uncertain Gradient Lower Bounds" (BADGE), arXiv:1906.03671. A setting is a history: one
data set, network and acquisition size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bayesian_active_learning.history import History, common_rounds, curves_by_function
from bayesian_active_learning.statistics.few_seeds import ALPHA, seed_warnings
from bayesian_active_learning.statistics.numbers import higher_is_better
from bayesian_active_learning.statistics.paired import DECIMALS, t_test

ORIENTATION = (
    "entry [row, column]: how often the row's function beats the column's; "
    "column means: how often a function is beaten, lower is better"
)


class Penalties(NamedTuple):
    """How often each of F functions beats each other one, see `penalty_matrix`."""

    functions: tuple[str, ...]
    matrix: np.ndarray  # [F, F]: sum over settings of the share of budgets where row beats column
    settings: np.ndarray  # [F, F] int: settings in which both stand, the most an entry can be
    column_means: np.ndarray  # [F], over all rows, the function's own (0) included
    budgets: tuple[tuple[int, ...], ...]  # label counts, for each setting
    alpha: float
    orientation: str
    warnings: tuple[str, ...]


class NormalisedErrors(NamedTuple):
    """Errors in units of the error of `against`, over settings and budgets. Step function:
    a share `cdf[f][i]` of the budgets has a ratio of at most `ratios[f][i]`; the further
    up and left, the better."""

    against: str
    ratios: dict[str, np.ndarray]  # function -> ascending
    cdf: dict[str, np.ndarray]  # function -> cumulative weight, up to 1
    budgets: tuple[tuple[int, ...], ...]


def doubling_budgets(labels: Sequence[int] | np.ndarray) -> tuple[int, ...]:
    """Of ascending label counts those with 1, 2, 4, 8, ... acquisitions: neighbouring
    budgets say nearly the same, so Ash et al. take these. The initial set, where no
    function has chosen anything yet, is left out."""
    counts = np.asarray(labels)
    places = 2 ** np.arange(max(1, len(counts)).bit_length())
    return tuple(int(counts[place]) for place in places if place < len(counts))


def penalty_matrix(
    histories: Sequence[History],
    *,
    functions: Sequence[str] | None = None,
    budgets: str = "doubling",
    alpha: float = ALPHA,
    metric: str = "accuracy",
) -> Penalties:
    """Ash et al.'s matrix of pairwise penalties.

    In each setting with L label budgets, function i beats j at a budget if the paired
    two-sided t-test over the seeds that both have gives p < alpha and i is better on
    average; entry [i, j] then grows by 1/L. So with several settings an entry is at most
    their number, and with one it is the share of budgets. (The released code counts the
    other way round and draws the transpose: the same picture.) As there, nothing is
    corrected for the number of tests: without any difference an entry is expected to be
    alpha/2 for each setting.

    functions: rows and columns, in that order; by default all, as they come.
    budgets: "doubling" (`doubling_budgets`) or "all" label counts after the first, of
    those that all curves of the setting have. The paper also stops where random comes
    within 1 % of its final accuracy; here nothing is cut off.
    """
    found = [_chosen(history, functions, metric) for history in histories]
    names = tuple(functions or dict.fromkeys(name for each in found for name in each))
    if len(names) < 2:
        raise ValueError(f"a penalty matrix needs two functions, got {', '.join(names) or 'none'}")
    matrix = np.zeros((len(names), len(names)))
    settings = np.zeros((len(names), len(names)), np.int64)
    used, fewest = [], None
    for each in found:
        counts, values = _at_budgets(each, budgets, metric)
        used.append(counts)
        for i, first in enumerate(names):
            for j, second in enumerate(names):
                seeds = _shared(values, first, second) if i != j else []
                if len(seeds) < 2:
                    continue
                gains = np.stack([values[first][s] - values[second][s] for s in seeds])  # [S, L]
                gains = np.round(gains if higher_is_better(metric) else -gains, DECIMALS)
                _, p = t_test(gains)
                matrix[i, j] += ((p < alpha) & (gains.mean(axis=0) > 0)).mean()
                settings[i, j] += 1
                fewest = len(seeds) if fewest is None else min(fewest, len(seeds))
    return Penalties(
        names,
        matrix,
        settings,
        matrix.mean(axis=0),
        tuple(used),
        alpha,
        ORIENTATION,
        seed_warnings(fewest or 0, alpha=alpha),
    )


def normalised_errors(
    histories: Sequence[History],
    against: str = "random",
    *,
    budgets: str = "doubling",
    metric: str = "accuracy",
) -> NormalisedErrors:
    """Ash et al.'s distribution of normalised errors.

    At each budget (as for `penalty_matrix`) of each setting: the mean error, 1 - metric,
    of a function over the seeds that it shares with `against`, divided by the mean error
    of `against` on these seeds. Each of the L budgets of a setting weighs 1/L. Where
    `against` makes no error the ratio is 1 if the function makes none either, else
    infinite.
    """
    if not metric.startswith("accuracy"):
        raise ValueError(f"an error is 1 - accuracy; {metric!r} is none")
    weighted: dict[str, list[tuple[float, float]]] = {}
    used = []
    for history in histories:
        counts, values = _at_budgets(_chosen(history, None, metric), budgets, metric)
        used.append(counts)
        if against not in values:
            raise ValueError(f"no curve of {against!r} in a history; it has {', '.join(values)}")
        for name in values:
            seeds = _shared(values, name, against)
            if not seeds:
                continue
            mine, theirs = (
                np.mean([1 - values[function][s] for s in seeds], axis=0)
                for function in (name, against)
            )
            for own, base in zip(mine.tolist(), theirs.tolist(), strict=True):
                ratio = own / base if base else 1.0 if not own else np.inf
                weighted.setdefault(name, []).append((ratio, 1 / len(counts)))
    ratios, cdf = {}, {}
    for name, pairs in weighted.items():
        values_, weights = np.array(sorted(pairs)).T
        ratios[name], cdf[name] = values_, np.cumsum(weights) / weights.sum()
    return NormalisedErrors(against, ratios, cdf, tuple(used))


_Curves = dict[str, dict[int, np.ndarray]]  # function -> seed -> values [L]


def _chosen(history: History, functions: Sequence[str] | None, metric: str) -> dict:
    found = curves_by_function(history, metric)
    return {name: found[name] for name in functions or found if name in found}


def _at_budgets(found: dict, budgets: str, metric: str) -> tuple[tuple[int, ...], _Curves]:
    """The budgets of a setting, and every curve at them."""
    if budgets not in ("doubling", "all"):
        raise ValueError(f'budgets must be "doubling" or "all", got {budgets!r}')
    cells = [(name, seed) for name, by_seed in found.items() for seed in by_seed]
    counts, values = common_rounds([found[name][seed] for name, seed in cells], metric)
    if len(counts) < 2:
        raise ValueError("the curves have no two label counts in common: no budget to compare at")
    used = doubling_budgets(counts) if budgets == "doubling" else tuple(counts[1:].tolist())
    places = np.searchsorted(counts, used)
    table: _Curves = {name: {} for name in found}
    for (name, seed), row in zip(cells, values, strict=True):
        table[name][seed] = row[places]
    return used, table


def _shared(values: _Curves, first: str, second: str) -> list[int]:
    return sorted(values.get(first, {}).keys() & values.get(second, {}).keys())
