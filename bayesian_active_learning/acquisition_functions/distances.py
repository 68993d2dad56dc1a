"""Distances between feature vectors, in the precision that greedy rules need.

One point to all others goes by direct differences: equal rows are at distance exactly 0,
and near ones keep their digits in float32. Many to many goes by matrix products, around a
common origin and clamped at 0.

What is masked out is zero everywhere, so that padding may hold anything.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bayesian_active_learning.types import Array, ArrayLike

CHUNK_ELEMENTS = 2**25  # of the [chunk, N] distances that `nearest` holds at a time
_CHUNK = 128  # at most: as fast as larger ones on CPU

_Found = tuple[Array, Array]  # least distance [N], and where
_Chunk = tuple[Array, Array, Array]  # position of the first row, rows [chunk, D], mask [chunk]


class Metric(NamedTuple):
    """A distance as functions of prepared points.

    prepare:    features [N, D] -> points [N, D'].
    to_one:     (points [N, D'], one point [D'] or one for each [N, D']) -> distances [N].
    of_squared: squared euclidean distance of points -> distance; None where the metric is
                not a function of it.
    """

    prepare: Callable[[Array], Array]
    to_one: Callable[[Array, Array], Array]
    of_squared: Callable[[Array], Array] | None


def squared_to_one(points: Array, point: Array) -> Array:
    """Squared euclidean distances `[N]` from `points [N, D]` to one point `[D]` (or to one
    for each, `[N, D]`), by direct differences."""
    return jnp.sum(jnp.square(points - point), axis=-1)


def prepare_points(metric: str, features: Array, mask: ArrayLike) -> Array:
    """`features [N, D]` as the points of METRICS[metric], zero where `mask [N]` is False.

    Raises:
      ValueError: the features are not `[N, D]`, or the mask is not `[N]`.
    """
    mask = jnp.asarray(mask, bool)
    if features.ndim != 2 or mask.shape != features.shape[:1]:
        raise ValueError(
            f"expected features [N, D] and a mask [N], got {list(features.shape)} and "
            f"{list(mask.shape)}"
        )
    kept = mask[:, None]
    return jnp.where(kept, METRICS[metric].prepare(jnp.where(kept, features, 0)), 0)


def pairwise(metric: str, points: Array, others: Array) -> Array:
    """Distances `[N, M]` between prepared `points [N, D]` and `others [M, D]`.

    For euclidean and cosine |x|^2 + |y|^2 - 2 x.y, clamped at 0, with the mean of `others`
    as the origin: the error of a squared distance is about 1e-7 times the squared norms
    around that origin. Manhattan takes O(N M D) differences in O(N M) memory.
    """
    of_squared = METRICS[metric].of_squared
    if of_squared is None:
        return jax.lax.map(lambda other: METRICS[metric].to_one(points, other), others).T
    origin = jnp.mean(others, axis=0) if len(others) else 0
    points, others = points - origin, others - origin
    return of_squared(_squared(points, others, squared_norms(points), squared_norms(others)))


def nearest(metric: str, points: Array, others: Array, mask: ArrayLike) -> tuple[Array, Array]:
    """The nearest of `others` for each point: its distance `[N]` and its position `[N]`.

    Found in chunks of `others`, by `pairwise`, and then measured anew by direct
    differences: the distance of a point to its equal is exactly 0, unless another one is
    so close that `pairwise` cannot tell them apart (squared distances within about 1e-7
    times the squared norms), and is taken for the nearest. Memory O(N D + CHUNK_ELEMENTS).
    Chunks that are all padding cost nothing.

    Args:
      metric: name in METRICS.
      points: `[N, D]`, prepared.
      others: `[L, D]`, prepared.
      mask: `[L]`, False = not there. With none there, distances are inf, positions 0.
        NaN anywhere among `others` gives NaN for all points.
    """
    mask = jnp.asarray(mask, bool)
    if not (len(points) and len(others)):
        return jnp.full(len(points), jnp.inf, points.dtype), jnp.zeros(len(points), jnp.int32)
    to_one, of_squared = METRICS[metric].to_one, METRICS[metric].of_squared
    size = min(_CHUNK, len(others), max(8, CHUNK_ELEMENTS // len(points)))
    numbers = jnp.arange(size, dtype=jnp.int32)

    if of_squared is None:
        origin = jnp.zeros(points.shape[1:], points.dtype)
    else:
        total = jnp.sum(jnp.where(mask[:, None], others, 0), axis=0)
        origin = total / jnp.maximum(jnp.sum(mask), 1)
    centred = points - origin
    norms = squared_norms(centred)

    def closer(found: _Found, chunk: _Chunk) -> _Found:
        best, position = found
        start, rows, there = chunk
        if of_squared is None:
            values = pairwise(metric, centred, rows).T
        else:
            values = _squared(rows, centred, squared_norms(rows), norms)
        values = jnp.where(there[:, None], values, jnp.inf)
        # Over the first axis: vectorised on CPU, and argmin alone would be several times slower.
        least = jnp.min(values, axis=0)
        number = jnp.min(jnp.where(values == least, numbers[:, None], size - 1), axis=0)
        position = jnp.where(least < best, start + number, position)
        return jnp.minimum(best, least), position

    def step(found: _Found, chunk: _Chunk) -> tuple[_Found, None]:
        there = jnp.any(chunk[-1])
        return jax.lax.cond(there, closer, lambda found, chunk: found, found, chunk), None

    missing = -len(others) % size
    rows = jnp.pad(others - origin, ((0, missing), (0, 0))).reshape(-1, size, others.shape[1])
    there = jnp.pad(mask, (0, missing)).reshape(-1, size)
    starts = jnp.arange(len(rows), dtype=jnp.int32) * size
    initial = jnp.full(len(points), jnp.inf, points.dtype), jnp.zeros(len(points), jnp.int32)
    (best, position), _ = jax.lax.scan(step, initial, (starts, rows, there))
    # inf where nothing is there, NaN where NaN was: neither may be measured away.
    measured = to_one(points, others[position])
    return jnp.where(best < jnp.inf, measured, best), position


def distance_to_mean(metric: str, points: Array, mask: ArrayLike, *more: Array) -> Array:
    """Distances `[N]` of prepared `points [N, D]` to their mean.

    Args:
      metric: name in METRICS.
      points: `[N, D]`, zero where the mask is False.
      mask: `[N]`.
      more: points `[L, D]` and their mask `[L]`, to be part of the mean.
    """
    total, count = jnp.sum(points, axis=0), jnp.sum(jnp.asarray(mask, bool))
    if more:
        total, count = total + jnp.sum(more[0], axis=0), count + jnp.sum(more[1])
    return METRICS[metric].to_one(points, total / jnp.maximum(count, 1))


def squared_norms(points: Array) -> Array:
    """`[N]` of `points [N, D]`."""
    return jnp.sum(jnp.square(points), axis=-1)


def _squared(points: Array, others: Array, norms: Array, other_norms: Array) -> Array:
    # Accelerators would take fewer bits for the product unless told.
    products = jnp.matmul(points, others.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(norms[:, None] + other_norms - 2 * products, 0)


def _as_is(features: Array) -> Array:
    return features


def _directions(features: Array) -> Array:
    """Unit vectors, with one more coordinate that is 1 for a zero vector and else 0: half the
    squared distance of two such points is 1 - cos, and a zero vector is a direction of its own.
    """
    peak = jnp.max(jnp.abs(features), axis=1, keepdims=True)
    zero = peak == 0
    scaled = features / jnp.where(zero, 1, peak)  # squares neither overflow nor vanish
    norm = jnp.sqrt(squared_norms(scaled))[:, None]
    unit = scaled / jnp.where(zero, 1, norm)
    return jnp.concatenate([unit, zero.astype(unit.dtype)], axis=1)


METRICS: dict[str, Metric] = {
    "euclidean": Metric(
        _as_is, lambda points, point: jnp.sqrt(squared_to_one(points, point)), jnp.sqrt
    ),
    "manhattan": Metric(
        _as_is, lambda points, point: jnp.sum(jnp.abs(points - point), axis=-1), None
    ),
    "cosine": Metric(
        _directions,
        lambda points, point: squared_to_one(points, point) / 2,
        lambda squared: squared / 2,
    ),
}
"""|x - y|_2, |x - y|_1, and 1 - cos(x, y): between 0 and 2, 1 from a zero vector to any other
and 0 between two zero vectors."""
