"""Candidates near those labelled examples of which the model is least certain."""

import functools

import jax
import jax.numpy as jnp

from bayesian_active_learning.acquisition_functions import rankings
from bayesian_active_learning.acquisition_functions.distances import METRICS, prepare_points
from bayesian_active_learning.acquisition_functions.k_center import labelled_points
from bayesian_active_learning.acquisition_functions.scores import find_score
from bayesian_active_learning.acquisition_functions.selection import (
    check_batch_size,
    needed,
    padded,
    sortable,
)
from bayesian_active_learning.types import Array, Candidates, Key, Score, Selection, Strategy
from bayesian_active_learning.utils import check_one_of, check_positive


def knearest(
    *,
    neighbours: int = 15,
    metric: str = "euclidean",
    score: str | Score = "least_confidence",
) -> Strategy:
    """The nearest candidates of the labelled examples that are still uncertain.

    Walks the labelled examples from the highest score down (ties: the lower position). Each
    takes its nearest candidates that are not taken yet, nearest first, `neighbours` of them,
    until the batch is full. What the labelled examples leave open is filled at random, as
    by `random`, and marked as filler; all of it when nothing is labelled.

    `Selection.scores` is minus the distance to the labelled example, and for filler the noise.

    The sampler `knearest` of the ActiveLearningComparison toolkit, as it was meant: its code
    orders the labelled examples by index. With score="loss" the criterion `loss` of its
    `KNearestSampler`: the labelled examples that the network fits worst come first.

    Args:
      neighbours: candidates for each labelled example, at least 1.
      metric: "euclidean", "manhattan" or "cosine" (1 - cos).
      score: of the labelled examples: a name in `SCORES`, or a function `[N, K, C] -> [N]`; or
        "loss", -log p(y) of their label y by the prediction without dropout.

    Returns:
      A strategy that needs features, labelled features and labelled scores (for "loss"
      labelled predictions and labels), not scores of the candidates. Time O(B / neighbours
      * N D), memory O(N D). The key is for the filler.

    Raises:
      ValueError: an unknown metric or score, or `neighbours` below 1.
    """
    check_one_of("metric", metric, METRICS)
    check_positive(neighbours=neighbours)
    select = functools.partial(
        _select_knearest, neighbours=int(neighbours), metric=metric, by_loss=score == "loss"
    )
    needs = frozenset({"features", "labelled_features", "labelled_mask"})
    if score == "loss":
        return Strategy(select, needs | {"labelled_predictions", "labelled_labels"})
    return Strategy(select, needs | {"labelled_scores"}, score=find_score(score))


def _select_knearest(
    key: Key,
    candidates: Candidates,
    *,
    batch_size: int,
    neighbours: int,
    metric: str,
    by_loss: bool,
) -> Selection:
    """The `select` of `knearest`; the key is consumed."""
    size = min(check_batch_size(batch_size), len(candidates.rows))
    points = prepare_points(metric, needed(candidates, "features"), candidates.mask)
    labelled, there = labelled_points(metric, candidates)
    scores = _losses(candidates) if by_loss else needed(candidates, "labelled_scores")
    if scores.shape != there.shape:
        raise ValueError(
            f"expected labelled scores of shape {list(there.shape)}, as labelled_mask has it, got "
            f"{list(scores.shape)}"
        )
    mask = jnp.asarray(candidates.mask, bool)
    neighbours = min(neighbours, size)
    visits = min(-(-size // max(neighbours, 1)), len(there))
    # Stable, so that ties stay in order; padding comes last, NaN first.
    order = jnp.argsort(jnp.where(there, -sortable(scores), jnp.inf))[:visits]

    def taken(left: Array, picks: Array, valid: Array) -> Array:
        return left.at[jnp.where(valid, picks, len(left))].set(False, mode="drop")

    def visit(left: Array, example: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        distances = METRICS[metric].to_one(points, labelled[example])
        open_ = left & there[example]
        _, picks = jax.lax.top_k(jnp.where(open_, sortable(-distances), -jnp.inf), neighbours)
        valid = open_[picks]
        # A NaN among the labelled scores would not show otherwise.
        seen = jnp.where(jnp.isnan(scores[example]), jnp.nan, -distances[picks])
        return taken(left, picks, valid), (picks, seen, valid)

    _, found = jax.lax.scan(visit, mask, order)
    # Valid picks come first: a visit is short only when no candidate is left.
    picks, seen, valid = (
        jnp.pad(part.reshape(-1)[:size], (0, max(0, size - visits * neighbours))) for part in found
    )
    left = candidates._replace(mask=taken(mask, picks, valid))
    filler = rankings.random().select(key, left, batch_size=batch_size)
    count = jnp.sum(valid)
    later = jnp.maximum(jnp.arange(size) - count, 0)
    return padded(
        jnp.where(valid, picks, filler.positions[later]),
        jnp.where(valid, seen, filler.scores[later]),
        valid | filler.valid[later],
        batch_size,
        filler=~valid,
    )


def _losses(candidates: Candidates) -> Array:
    """`[L]`, -log p(y) of the labelled examples."""
    log_probs = needed(candidates, "labelled_predictions")
    labels = needed(candidates, "labelled_labels")
    return -jnp.take_along_axis(log_probs, labels[:, None], axis=1, mode="clip")[:, 0]
