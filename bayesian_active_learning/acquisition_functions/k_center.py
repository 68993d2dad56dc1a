"""Core-set selection: cover the pool by few centres, the farthest point first."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bayesian_active_learning.acquisition_functions.by_score import AnyScore, by_score
from bayesian_active_learning.acquisition_functions.centres import (
    PENDING,
    Picks,
    Space,
    is_lazy,
    metric_space,
    no_picks,
    take,
    with_centres,
    with_picks,
    written,
)
from bayesian_active_learning.acquisition_functions.distances import (
    METRICS,
    distance_to_mean,
    nearest,
    prepare_points,
)
from bayesian_active_learning.acquisition_functions.selection import (
    check_batch_size,
    greedy,
    highest,
    needed,
    padded,
    sortable,
)
from bayesian_active_learning.types import (
    Array,
    ArrayLike,
    Candidates,
    Key,
    Selection,
    Strategy,
)
from bayesian_active_learning.utils import check_one_of

_NEEDS = frozenset({"features", "labelled_features", "labelled_mask"})
BLOCK = 512  # candidates kept up to date


def coreset(*, metric: str = "euclidean", score: AnyScore = "none") -> Strategy:
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
      score: a name in `SCORES` or `CANDIDATE_SCORES`, or a function `[N, K, C] -> [N]` with
        values of at least 0, that multiplies the distances; "none" for distances alone.

    Returns:
      A strategy that needs features and labelled features, and what the score needs. Time
      O((L + B) N D), in large pools as matrix products for many picks at once (but for
      manhattan); memory O(N D). The key is not used.

    Raises:
      ValueError: an unknown metric or score.
    """
    check_one_of("metric", metric, METRICS)
    select = functools.partial(_select_coreset, metric=metric, weighted=score != "none")
    if score == "none":
        return Strategy(select=select, needs=_NEEDS)
    return by_score(select, score, _NEEDS)


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
      weights: `[N]` or one, at least 0, multiply distances and `first`.
    """
    space = metric_space(metric, points)
    pool = _Pool(points, distances, first, jnp.broadcast_to(weights, distances.shape))
    if is_lazy(len(points), check_batch_size(batch_size)):
        return lazily_farthest(space, pool, mask, batch_size, BLOCK)

    def evaluate(distances: Array, step: Array) -> tuple[Array, Array]:
        ranks = _ranks(pool._replace(distances=distances))
        return ranks, ranks

    def update(distances: Array, position: Array) -> Array:
        return jnp.minimum(distances, space.to_one(points, points[position]))

    return greedy(evaluate, update, distances, mask, batch_size)


class _Pool(NamedTuple):
    """What ranks candidates."""

    points: Array  # [N, D]
    distances: Array  # [N] to the nearest centre
    first: Array  # [N]
    weights: Array  # [N]


def _ranks(pool: _Pool) -> Array:
    return jnp.where(pool.distances == jnp.inf, pool.first, pool.distances) * pool.weights


class _Block(NamedTuple):
    """The candidates that are kept up to date, and what was picked of them."""

    distances: Array  # [M]
    left: Array  # [M], can still be picked
    picks: Array  # [P], places in the block
    scores: Array  # [P]
    num_picks: Array  # []
    surely: Array  # [], the last one was the highest of all


def lazily_farthest(
    space: Space, pool: _Pool, mask: ArrayLike, batch_size: int, block_size: int
) -> Selection:
    """The picks of `greedy`, with most candidates brought up to date for many picks at once.

    Ranks only fall, so an old one is an upper bound. A block of the highest is kept up to date:
    as long as its best is above all old ranks outside, it is the best of all.
    """
    size, width = min(batch_size, len(pool.distances)), min(block_size, len(pool.distances))

    def from_block(pool: _Pool, left: Array, most: Array) -> tuple[Array, _Block]:
        """At most so many picks, and the positions of the block `[M]`."""
        # No slices of the two, or XLA:CPU sorts all.
        highest, rows = jax.lax.top_k(_sortable(pool, left), width)
        outside = jnp.min(highest)  # none of them is higher
        # Ties go to the lower position: those outside come after what has their rank here.
        last = jnp.max(jnp.where(highest == outside, rows, -1))
        within = take(pool, rows)

        def pick(block: _Block) -> _Block:
            now = within._replace(distances=block.distances)
            ranks = _sortable(now, block.left)
            best = jnp.max(ranks)
            position = jnp.min(jnp.where(ranks == best, rows, len(pool.distances)))
            i = jnp.argmax(rows == position).astype(jnp.int32)
            to_pick = space.to_one(within.points, within.points[i])
            surely = (best > outside) | ((best == outside) & (position <= last))
            return _Block(
                distances=jnp.minimum(block.distances, to_pick),
                left=block.left & (rows != position),
                # Written again unless it counts.
                picks=written(block.picks, i, block.num_picks),
                scores=written(block.scores, _ranks(now)[i], block.num_picks),
                num_picks=block.num_picks + surely,
                surely=surely,
            )

        none = jnp.zeros(PENDING, jnp.int32)
        block = _Block(
            distances=within.distances,
            left=left[rows],
            picks=none,
            scores=jnp.zeros(PENDING, _ranks(within).dtype),
            num_picks=none[0],
            surely=jnp.ones((), bool),
        )
        found = jax.lax.while_loop(
            lambda block: block.surely & (block.num_picks < most), pick, block
        )
        return rows, found

    def some_picks(state: tuple[Array, Picks]) -> tuple[Array, Picks]:
        distances, picks = state
        distances = with_centres(space, distances, picks.new, picks.num_new)
        # The first pick may be ranked by something that is no bound for the others.
        most = jnp.where(picks.num_picked == 0, 1, jnp.minimum(PENDING, total - picks.num_picked))
        rows, block = from_block(pool._replace(distances=distances), picks.left, most)
        return distances, with_picks(picks, rows[block.picks], block.scores, block.num_picks)

    left = jnp.asarray(mask, bool)
    total = jnp.minimum(size, jnp.sum(left))
    state = pool.distances, no_picks(left, size, PENDING, _ranks(pool).dtype)
    _, picks = jax.lax.while_loop(lambda state: state[1].num_picked < total, some_picks, state)
    valid = jnp.arange(size) < total
    return padded(picks.positions[:size], picks.scores[:size], valid, batch_size)


def _sortable(pool: _Pool, left: Array) -> Array:
    return jnp.where(left, sortable(_ranks(pool)), -jnp.inf)


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
