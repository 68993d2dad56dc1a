"""Core-set selection: cover the pool by few centres, the farthest point first."""

import functools

import jax.numpy as jnp

from bayesian_active_learning.acquisition_functions.distances import (
    METRICS,
    distance_to_mean,
    nearest,
    prepare_points,
)
from bayesian_active_learning.acquisition_functions.scores import find_score
from bayesian_active_learning.acquisition_functions.selection import (
    greedy,
    highest,
    needed,
    sortable,
)
from bayesian_active_learning.types import (
    Array,
    ArrayLike,
    Candidates,
    Key,
    Score,
    Selection,
    Strategy,
)
from bayesian_active_learning.utils import check_one_of

_NEEDS = frozenset({"features", "labelled_features", "labelled_mask"})


def coreset(*, metric: str = "euclidean", score: str | Score = "none") -> Strategy:
    """Greedy k-center: each pick is the candidate farthest from its nearest centre.

    The centres are all labelled points, and then also the picks: the pick at each step is
    argmax_i min_{j in centres} d(z_i, z_j). The radius max_i min_j d(z_i, z_j) so reached is
    at most twice the smallest possible one (where d is a metric; 1 - cos is not).

    With nothing labelled the first pick is the candidate farthest from the candidates' mean
    (of unit vectors for cosine). `Selection.scores` is the distance when picked, times the
    score where there is one.

    Gonzalez 1985, Theor. Comput. Sci. 38; Sener & Savarese 2018, arXiv:1708.00489,
    algorithm 1.

    Args:
      metric: "euclidean", "manhattan" or "cosine" (1 - cos).
      score: a name in `SCORES`, or a function `[N, K, C] -> [N]` with values of at least 0,
        that multiplies the distances; "none" for distances alone.

    Returns:
      A strategy that needs features and labelled features, and "scores" if weighted. Time
      O((L + B) N D), memory O(N D). The key is not used.

    Raises:
      ValueError: an unknown metric or score.
    """
    check_one_of("metric", metric, METRICS)
    select = functools.partial(_select_coreset, metric=metric, weighted=score != "none")
    if score == "none":
        return Strategy(select=select, needs=_NEEDS)
    return Strategy(select=select, needs=_NEEDS | {"scores"}, score=find_score(score))


def cog(*, metric: str = "euclidean") -> Strategy:
    """The candidates farthest from the centre of gravity, farthest first.

    d(z_i, m), with m the mean of all points there are, labelled ones and candidates alike. A
    ranking: picks do not know of each other. `Selection.scores` is the distance.

    The rule `centre_of_gravity` of the TorchAL toolkit.

    Args:
      metric: "euclidean", "manhattan" or "cosine" (then m is the mean of unit vectors).

    Returns:
      A strategy that needs features and labelled features. The key is not used.

    Raises:
      ValueError: an unknown metric.
    """
    check_one_of("metric", metric, METRICS)
    return Strategy(select=functools.partial(_select_cog, metric=metric), needs=_NEEDS)


def farthest_first(
    metric: str,
    points: Array,
    mask: ArrayLike,
    batch_size: int,
    *,
    distances: Array,
    first: Array,
    weights: Array | float = 1.0,
) -> Selection:
    """Greedy k-center on prepared points.

    Args:
      metric: name in METRICS.
      points: `[N, D]`.
      mask: `[N]`.
      batch_size: static, at least 1; may exceed N.
      distances: `[N]` to the nearest centre that is there already; inf where there is none.
      first: `[N]`, ranks of the first pick where there is no centre yet.
      weights: `[N]` or one, multiply distances and `first`.
    """
    to_one = METRICS[metric].to_one

    def evaluate(distances: Array, step: Array) -> tuple[Array, Array]:
        ranks = jnp.where(distances == jnp.inf, first, distances) * weights
        return ranks, ranks

    def update(distances: Array, position: Array) -> Array:
        return jnp.minimum(distances, to_one(points, points[position]))

    return greedy(evaluate, update, distances, mask, batch_size)


def labelled_points(
    metric: str, candidates: Candidates, features: Array | None = None
) -> tuple[Array, Array]:
    """The labelled features `[L, D]` as prepared points, and their mask `[L]`.

    Args:
      metric: name in METRICS.
      candidates: for the mask, and the features where None are given.
      features: `[L, D]`, in place of the labelled ones.

    Raises:
      ValueError: a field is None, L differs, or D is not that of the candidates' features.
    """
    features = needed(candidates, "labelled_features") if features is None else features
    mask = jnp.asarray(needed(candidates, "labelled_mask"), bool)
    width = needed(candidates, "features").shape[1:]
    if features.shape != (*mask.shape, *width):
        raise ValueError(
            f"expected labelled features of shape {[*mask.shape, *width]}, as labelled_mask and "
            f"features have it, got {list(features.shape)}"
        )
    return prepare_points(metric, features, mask), mask


def _select_coreset(
    key: Key, candidates: Candidates, *, batch_size: int, metric: str, weighted: bool
) -> Selection:
    """The `select` of `coreset`."""
    del key
    points = prepare_points(metric, needed(candidates, "features"), candidates.mask)
    labelled, labelled_mask = labelled_points(metric, candidates)
    mask = jnp.asarray(candidates.mask, bool)
    return farthest_first(
        metric,
        points,
        mask,
        batch_size,
        distances=nearest(metric, points, labelled, labelled_mask)[0],
        first=distance_to_mean(metric, points, mask),
        weights=jnp.where(mask, needed(candidates, "scores"), 0) if weighted else 1.0,
    )


def _select_cog(key: Key, candidates: Candidates, *, batch_size: int, metric: str) -> Selection:
    """The `select` of `cog`."""
    del key
    points = prepare_points(metric, needed(candidates, "features"), candidates.mask)
    labelled = labelled_points(metric, candidates)
    distances = distance_to_mean(metric, points, candidates.mask, *labelled)
    return highest(sortable(distances), -jnp.inf, distances, candidates, batch_size)
