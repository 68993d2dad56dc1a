"""Strategies that cover the features, with balls (ProbCover) or with cells (LCMD).

Distances are Euclidean. Memory is O(N D): distances are taken from one point to all, or in
blocks of a few points against all, and no graph is stored.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayesian_active_learning.acquisition_functions import k_center
from bayesian_active_learning.acquisition_functions.clustering import (
    bad_first,
    in_row_order,
    kmeans_clusters,
    labelled_points,
)
from bayesian_active_learning.acquisition_functions.distances import (
    nearest,
    prepare_points,
    squared_to_one,
)
from bayesian_active_learning.acquisition_functions.selection import (
    check_batch_size,
    greedy,
    needed,
    row_bits,
)
from bayesian_active_learning.precision import full_precision
from bayesian_active_learning.types import Array, ArrayLike, Candidates, Key, Selection, Strategy

_NEEDS = frozenset({"features", "labelled_features", "labelled_mask"})


def probcover(*, delta: float = 0.0, num_clusters: int = 10, alpha: float = 0.95) -> Strategy:
    """Greedy maximum coverage of the candidates by balls of radius `delta`.

    A labelled or picked point covers what is closer to it than delta, and itself. Each
    pick is the candidate whose ball holds the most candidates not covered yet; it may be
    covered itself. Equal numbers are common: the highest of the rows' own noise decides.
    Once all are covered the rule is silent, and the remaining picks, drawn uniformly, are
    marked as filler.

    With delta = 0 it is estimated in each round from the labelled and candidate features,
    see `estimate_delta`; the strategy then runs on the host. On features that do not
    change it is better estimated once, outside, and given.

    Ball sizes are counted once, in blocks, and what a pick covers is then subtracted: the
    time is O(N^2 D) over all picks together, not each.

    Yehuda et al. 2022, arXiv:2205.11320.

    Args:
      delta: the radius in the units of the features (the paper's are of unit length), or 0.
      num_clusters: for the estimate, at least 2: the number of classes.
      alpha: for the estimate, the purity asked for, above 0 and at most 1.

    Returns:
      A strategy whose scores count the candidates that a pick newly covers, 0 for filler.

    Raises:
      ValueError: bad options.
      ImportError: when selecting with delta = 0, scikit-learn is not installed.
    """
    if not 0 <= delta < math.inf:
        raise ValueError(f"delta must be a distance, or 0 for an estimate, got {delta}")
    _check_estimate(num_clusters, alpha)
    if delta:
        return Strategy(select=functools.partial(_select_probcover, delta=delta), needs=_NEEDS)
    select = functools.partial(_select_estimated, num_clusters=num_clusters, alpha=alpha)
    return Strategy(select=select, needs=_NEEDS, host=True, packages=("sklearn",))


def estimate_delta(
    key: Key, features: ArrayLike, *, num_clusters: int, alpha: float = 0.95
) -> float:
    """The largest radius at which balls around at least a share `alpha` of the points are pure.

    k-means gives each point a pseudo-label; a ball is pure when all points closer to its
    centre than the radius have the centre's pseudo-label. The paper tries radii on a grid;
    here the largest one is found exactly, from the distances to the nearest point of
    another cluster. Takes O(N^2 D) time and O(N D) memory, on the host.

    Yehuda et al. 2022, arXiv:2205.11320.

    Args:
      key: seeds k-means; consumed.
      features: `[N, D]`, finite. The order of the points plays a part in k-means.
      num_clusters: at least 2: the number of classes.
      alpha: above 0 and at most 1.

    Returns:
      The radius in the units of the features; infinity where there is but one cluster
      (fewer than two different points).

    Raises:
      ValueError: bad options, or features that are not `[N, D]` or not finite.
      ImportError: scikit-learn is not installed.
    """
    _check_estimate(num_clusters, alpha)
    points = np.asarray(features).astype(np.float64)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise ValueError(f"expected finite features [N, D], got shape {list(points.shape)}")
    n = len(points)
    if n < 2:
        return math.inf
    clusters = kmeans_clusters(key, points, min(num_clusters, n))
    points = points - points.mean(axis=0)  # what products of large numbers would lose
    squares = np.square(points).sum(axis=1)
    nearest = np.empty(n)
    for block in np.array_split(np.arange(n), math.ceil(n * n / 2**23)):
        distances = squares - 2 * points[block] @ points.T  # but for the block's squares
        distances[clusters[block, None] == clusters] = np.inf
        other = distances.argmin(axis=1)
        exact = np.sqrt(np.square(points[block] - points[other]).sum(axis=1))
        nearest[block] = np.where(clusters[block] == clusters[other], np.inf, exact)
    pure = max(1, math.ceil(alpha * n - 1e-9))  # alpha * n may come out a little high
    return float(np.sort(nearest)[n - pure])


def lcmd() -> Strategy:
    """The farthest point of the largest cluster, again and again.

    Each candidate belongs to its nearest centre, labelled or picked. The next pick is from
    the cluster with the largest sum of squared distances to its centre, the candidate
    farthest from it, and becomes a centre. Without any labelled row the first pick is the
    candidate of largest norm.

    LCMD-TP ("largest cluster maximum distance", training points as centres) of Holzmueller
    et al. 2023, arXiv:2203.09410.

    Returns:
      A strategy whose scores are the distances to the nearest centre (for a first pick
      without labels, the norm). The key is not used.
    """
    return Strategy(select=_select_lcmd, needs=_NEEDS)


def _check_estimate(num_clusters: int, alpha: float) -> None:
    if num_clusters < 2:
        raise ValueError(f"num_clusters must be at least 2, got {num_clusters}")
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be above 0 and at most 1, got {alpha}")


class _Points(NamedTuple):
    """Features, and what the labelled rows say of them."""

    features: Array  # [N, D], 0 where masked out, NaN or infinite
    usable: Array  # [N], unmasked and finite
    bad: Array  # [N], unmasked and not finite (all, where a labelled row is not)
    distances: Array  # [N] to the nearest labelled row, inf where there is none
    nearest: Array  # [N] int32, that row's position
    labelled_mask: Array  # [L]


def _points(candidates: Candidates) -> _Points:
    features = needed(candidates, "features")
    mask = jnp.asarray(candidates.mask, bool)
    finite = jnp.all(jnp.isfinite(features), axis=1)
    usable = mask & finite
    features = prepare_points("euclidean", features, usable)
    labelled, labelled_mask = k_center.labelled_points("euclidean", candidates)
    distances, position = nearest("euclidean", features, labelled, labelled_mask)
    bad = mask & (~finite | jnp.isnan(distances))
    return _Points(features, usable, bad, distances, position, labelled_mask)


def _near(points: Array, index: Array, delta: ArrayLike | float) -> Array:
    """`[N]`: which of `points [N, D]` are closer than delta to the point at `index`, itself
    among them.

    By direct differences, and the one predicate for what is counted and what is covered: a
    pair at exactly delta must not count as near here and as far there.
    """
    distances = jnp.sqrt(squared_to_one(points, points[index]))
    return (distances < delta) | (jnp.arange(len(points)) == index)


def _count_near(counted: Array, points: Array, delta: ArrayLike | float) -> Array:
    """`[N]`: how many of the `counted [N]` are near each of `points [N, D]`. Takes the time
    of the counted ones only."""
    n = len(points)
    if not n:
        return jnp.zeros(0, jnp.int32)
    indices = jnp.nonzero(counted, size=n, fill_value=0)[0]
    count = jnp.sum(counted, dtype=jnp.int32)
    return jax.lax.fori_loop(
        0,
        count,
        lambda i, total: total + _near(points, indices[i], delta),
        jnp.zeros(n, jnp.int32),
    )


class _Balls(NamedTuple):
    uncovered: Array  # [N]
    degrees: Array  # [N] int32: how many uncovered candidates are near
    left: Array  # [N], can still be picked


def _select_probcover(
    key: Key, candidates: Candidates, *, batch_size: int, delta: ArrayLike | float
) -> Selection:
    """The `select` of `probcover`; the key is consumed, `delta` may be traced."""
    points = _points(candidates)
    features = points.features
    noise = row_bits(key, candidates.rows).astype(features.dtype) * 2.0**-32

    def evaluate(state: _Balls, step: Array) -> tuple[Array, Array]:
        gains = jnp.where(jnp.any(state.uncovered), state.degrees, 0).astype(features.dtype)
        most = jnp.max(jnp.where(state.left, gains, -1))
        ranks = jnp.where(gains == most, noise, -1)
        return jnp.where(points.bad, jnp.nan, ranks), jnp.where(points.bad, jnp.nan, gains)

    def update(state: _Balls, position: Array) -> _Balls:
        near = _near(features, position, delta) & points.usable[position]
        newly = state.uncovered & near
        return _Balls(
            uncovered=state.uncovered & ~newly,
            degrees=state.degrees - _count_near(newly, features, delta),
            left=state.left.at[position].set(False),
        )

    uncovered = points.usable & ~(points.distances < delta)
    state = _Balls(uncovered, _count_near(uncovered, features, delta), points.usable)
    selection = greedy(evaluate, update, state, candidates.mask, batch_size)
    return selection._replace(filler=selection.valid & (selection.scores == 0))


_compiled_probcover = jax.jit(full_precision(_select_probcover), static_argnames="batch_size")


def _select_estimated(
    key: Key, candidates: Candidates, *, batch_size: int, num_clusters: int, alpha: float
) -> Selection:
    """The `select` of `probcover` without a delta; the key is consumed."""
    batch_size = check_batch_size(batch_size)
    positions, finite = in_row_order(candidates, "features")
    if not finite.all():
        return bad_first(positions, finite, batch_size)
    features = np.asarray(needed(candidates, "features"))[positions]
    points = np.concatenate([labelled_points(candidates), features])
    delta_key, key = jax.random.split(key)
    delta = estimate_delta(delta_key, points, num_clusters=num_clusters, alpha=alpha)
    dtype = needed(candidates, "features").dtype
    return _compiled_probcover(
        key, candidates, batch_size=batch_size, delta=jnp.asarray(delta, dtype)
    )


class _Cells(NamedTuple):
    """Which centre is nearest to each candidate."""

    cell: Array  # [N] int32: labelled rows first, then picks
    squared: Array  # [N] distance to its centre
    left: Array  # [N], can still be picked
    any_centre: Array  # []
    next_cell: Array  # [] int32


def _select_lcmd(key: Key, candidates: Candidates, *, batch_size: int) -> Selection:
    """The `select` of `lcmd`; the key is not used."""
    del key
    batch_size = check_batch_size(batch_size)
    points = _points(candidates)
    features, num_labelled = points.features, len(points.labelled_mask)
    num_cells = num_labelled + min(batch_size, len(features))

    def evaluate(state: _Cells, step: Array) -> tuple[Array, Array]:
        squared = jnp.where(state.left, state.squared, 0.0)
        sums = jax.ops.segment_sum(squared, state.cell, num_segments=num_cells)[state.cell]
        # Cells without anyone left do not compete.
        largest = jnp.max(jnp.where(state.left, sums, -1.0))
        ranks = jnp.where(sums == largest, state.squared, -1.0)
        scores = jnp.sqrt(state.squared)
        return jnp.where(points.bad, jnp.nan, ranks), jnp.where(points.bad, jnp.nan, scores)

    def update(state: _Cells, position: Array) -> _Cells:
        usable = points.usable[position]
        squared = squared_to_one(features, features[position])
        nearer = ((squared < state.squared) | ~state.any_centre) & usable
        return _Cells(
            cell=jnp.where(nearer, state.next_cell, state.cell),
            squared=jnp.where(nearer, squared, state.squared),
            left=state.left.at[position].set(False),
            any_centre=state.any_centre | usable,
            next_cell=state.next_cell + 1,
        )

    any_centre = jnp.any(points.labelled_mask)
    norms = squared_to_one(features, jnp.zeros(features.shape[1], features.dtype))
    state = _Cells(
        cell=points.nearest,
        squared=jnp.where(any_centre, jnp.square(points.distances), norms),
        left=points.usable,
        any_centre=any_centre,
        next_cell=jnp.asarray(num_labelled, jnp.int32),
    )
    return greedy(evaluate, update, state, candidates.mask, batch_size)
