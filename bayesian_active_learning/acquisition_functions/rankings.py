"""Rankings: one number for each candidate, and the highest ones are picked."""

import jax.numpy as jnp

from bayesian_active_learning.acquisition_functions.selection import (
    highest,
    needed,
    row_bits,
    sortable,
)
from bayesian_active_learning.types import Candidates, Key, Score, Selection, Strategy


def top_k(score: Score) -> Strategy:
    """The candidates with the highest scores, best first; ties to the lower position.

    Args:
      score: `[N, K, C]` log-probabilities -> `[N]`, higher = more worth labelling.

    Returns:
      A strategy that needs "scores". The key is not used.
    """
    return Strategy(select=select_top, needs=frozenset({"scores"}), score=score)


def random() -> Strategy:
    """Candidates drawn uniformly without replacement: the baseline.

    Each row gets noise of its own from the key and its number, and the highest noise
    wins: the same rows are picked, in the same order, whatever order the pool is in.
    `Selection.scores` is that noise, in [0, 1].
    """
    return Strategy(select=_select_random, needs=frozenset())


def select_top(key: Key, candidates: Candidates, *, batch_size: int) -> Selection:
    """The `select` of `top_k`, one function for all scores: it compiles once.

    Args:
      key: not used.
      candidates: with scores `[N]` and mask `[N]`.
      batch_size: static, at least 1; may exceed N.

    Raises:
      ValueError: no scores, shapes that differ, or `batch_size` below 1.
    """
    del key
    scores = needed(candidates, "scores")
    return highest(sortable(scores), -jnp.inf, scores, candidates, batch_size)


def _select_random(key: Key, candidates: Candidates, *, batch_size: int) -> Selection:
    """The `select` of `random`; the key is consumed."""
    bits = row_bits(key, candidates.rows)
    noise = bits.astype(jnp.float32) * 2.0**-32
    return highest(jnp.maximum(bits, 1), 0, noise, candidates, batch_size)
