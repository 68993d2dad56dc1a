"""The first rows to label, chosen before there is any network: by their inputs alone."""

import jax
import numpy as np

from bayesian_active_learning.acquisition_functions import (
    STRATEGIES,
    acquire,
    make_strategy,
    select_batch,
)
from bayesian_active_learning.providers import draw_rows
from bayesian_active_learning.types import Candidates, Key, Source, Strategy

_USUAL = "balanced, random, kmeans, kmeans_pp, coreset, typiclust, probcover"
_KNOWN_BEFORE = {"features", "labelled_features", "labelled_mask"}


def check_initial(spec: str) -> Strategy:
    """The strategy that `spec` names, if it can choose without a fitted network.

    Raises:
      ValueError: an unknown strategy, or one that needs predictions.
    """
    known = {"balanced", *STRATEGIES}
    if spec.partition(":")[0] not in known:
        raise ValueError(f"unknown initial set {spec!r}; known: {_USUAL}, and strategies")
    strategy = make_strategy(spec)
    missing = strategy.needs - _KNOWN_BEFORE
    if missing:
        raise ValueError(
            f"the initial set cannot be chosen by {spec!r}: it needs "
            f"{', '.join(sorted(missing))}, and there is no fitted network yet; known: {_USUAL}"
        )
    return strategy


def initial_rows(
    key: Key, spec: str, source: Source, pool: np.ndarray, count: int, max_candidates: int = 0
) -> np.ndarray:
    """`count` rows of the pool, chosen by a strategy that looks at the inputs themselves.

    No label is looked at: a class may be missing. Inputs are flattened to `[N, D]`, so this
    is at its best where they are features already (an embedding by a frozen encoder).

    Args:
      key: consumed.
      spec: a strategy, for example "typiclust" or "kmeans"; see `check_initial`.
      source: inputs by row.
      pool: rows to choose from.
      count: at least 1.
      max_candidates: only so many of the pool, drawn at random, are considered; 0 = all.

    Returns:
      Ascending int32 rows.

    Raises:
      ValueError: see `check_initial`; fewer rows than asked for, NaN among the inputs.
    """
    strategy = check_initial(spec)
    if not 0 < count <= len(pool):
        raise ValueError(f"cannot choose {count} initial rows from a pool of {len(pool)}")
    draw_key, select_key = jax.random.split(key)
    rows = np.sort(pool)
    if max_candidates and max_candidates < len(pool):
        rows = np.sort(draw_rows(draw_key, pool, max(count, max_candidates)))
    features = np.asarray(source[rows]).reshape(len(rows), -1)
    known = {
        "features": features,
        "labelled_features": np.zeros((1, features.shape[1]), features.dtype),
        "labelled_mask": np.zeros(1, bool),
    }
    candidates = Candidates(
        rows=rows.astype(np.int32),
        mask=np.ones(len(rows), bool),
        **{name: value for name, value in known.items() if name in strategy.needs},
    )
    picked = select_batch(strategy, select_key, candidates, batch_size=count)
    return np.sort(acquire(picked, candidates))
