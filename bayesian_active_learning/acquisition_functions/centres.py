"""Distances to the nearest of a growing set of centres, many new centres at once.

Greedy rules add one centre after another. Distances only fall by that, so old ones are upper
bounds, and most candidates can wait for many centres before theirs is brought up to date
(`with_centres`): one matrix product then finds the nearest of them for each, in the time that a
few direct passes take.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayesian_active_learning.acquisition_functions.distances import (
    METRICS,
    squared_norms,
    squared_to_one,
)
from bayesian_active_learning.types import Array

LAZY_POOL = 4_096  # candidates from which on it pays to let most of them wait
LAZY_BATCH = 16
PENDING = 64  # centres at once: products of fewer are slow, and distances would be old with more
_FEW = 6  # about so many direct passes take as long as a product with PENDING centres
_ROWS = 512  # a chunk's distances to PENDING centres stay in cache
_AT_ONCE = 8  # neighbours in a chunk that are measured from all new centres


class Expansion(NamedTuple):
    """Squared distances as |x|^2 + |y|^2 - 2 x.y.

    norms:      `[N]`, |x|^2 of the points.
    products:   (points [P, ...], points [R, ...]) -> x.y `[P, R]`.
    width:      how many numbers are summed in one x.y, for the bound of its error.
    of_squared: squared distance -> distance, ascending.
    """

    norms: Array
    products: Callable[[Any, Any], Array]
    width: int
    of_squared: Callable[[Array], Array]


class Space(NamedTuple):
    """Points with a distance.

    points:    a tree of arrays `[N, ...]`.
    to_one:    (points [R, ...], one point [...] or one for each [R, ...]) -> distances `[R]`, by
               direct differences: exactly 0 to an equal one.
    expansion: None where there is no such form.
    """

    points: Any
    to_one: Callable[[Any, Any], Array]
    expansion: Expansion | None


def take(points: Any, positions: Array) -> Any:
    """The points at these positions (or the one at this one)."""
    return jax.tree.map(lambda p: p[positions], points)


def metric_space(metric: str, points: Array) -> Space:
    """Prepared `points [N, D]` under a name in METRICS."""
    to_one, of_squared = METRICS[metric].to_one, METRICS[metric].of_squared
    return Space(points, to_one, of_squared and _expansion(points, of_squared))


def squared_space(points: Array) -> Space:
    """`points [N, D]` under their squared euclidean distance."""
    return Space(points, squared_to_one, _expansion(points, lambda found: found))


def _expansion(points: Array, of_squared: Callable[[Array], Array]) -> Expansion:
    # Around the mean, the products are smaller, and so is what they lose.
    origin = jnp.mean(points, axis=0) if len(points) else jnp.zeros(points.shape[1:], points.dtype)

    def products(points: Array, others: Array) -> Array:
        return matmul(points - origin, others - origin)

    return Expansion(squared_norms(points - origin), products, points.shape[1], of_squared)


def matmul(points: Array, others: Array) -> Array:
    """x.y `[P, R]` of `[P, D]` and `[R, D]`."""
    # Accelerators would take fewer bits unless told.
    return jnp.matmul(points, others.T, precision=jax.lax.Precision.HIGHEST)


def part(points: Any, start: Array, size: int) -> Any:
    """So many of the points from `start` on."""
    return jax.tree.map(lambda p: jax.lax.dynamic_slice_in_dim(p, start, size), points)


def written(values: Array, new: Array, start: Array) -> Array:
    """`values` with `new`, one or many, from `start` on."""
    return jax.lax.dynamic_update_slice_in_dim(values, jnp.atleast_1d(new), start, 0)


class Picks(NamedTuple):
    """What was picked so far; the last of them, `new`, are not among the centres yet."""

    left: Array  # [N], can still be picked
    positions: Array  # [B + P]
    scores: Array  # [B + P]
    num_picked: Array  # []
    new: Array  # [P] positions
    num_new: Array  # []


def no_picks(left: Array, size: int, pending: int, dtype: Any) -> Picks:
    """Room for `size` picks, at most `pending` at a time."""
    places = jnp.zeros(size + pending, jnp.int32)
    none = places[0]
    return Picks(left, places, places.astype(dtype), none, places[:pending], none)


def with_picks(picks: Picks, new: Array, scores: Array, count: Array) -> Picks:
    """The first `count` of the candidates `new [P]` are picked, with these `scores [P]`."""
    counts = jnp.arange(len(new)) < count
    return Picks(
        left=picks.left.at[jnp.where(counts, new, len(picks.left))].set(False, mode="drop"),
        # What does not count is written over.
        positions=written(picks.positions, new, picks.num_picked),
        scores=written(picks.scores, scores, picks.num_picked),
        num_picked=picks.num_picked + count,
        new=new,
        num_new=count,
    )


def is_lazy(num_candidates: int, batch_size: int) -> bool:
    """Whether it pays to let candidates wait."""
    return num_candidates >= LAZY_POOL and batch_size >= LAZY_BATCH


def with_centres(space: Space, distances: Array, positions: Array, count: Array) -> Array:
    """The `distances [N]` to the nearest centre, with more candidates as centres.

    The same values as by one direct pass over all points for each new centre: products only
    tell which centre is the nearest, and the distance to that one is measured by direct
    differences. Where two are so close that rounding could hide which one is nearer, all are
    measured.

    Args:
      space: N points.
      distances: `[N]`, inf where there is no centre.
      positions: `[P]` of the new centres.
      count: `[]`, how many of them count.
    """

    def directly(distances: Array) -> Array:
        def add(i: Array, distances: Array) -> Array:
            return jnp.minimum(distances, space.to_one(space.points, centre(i)))

        def centre(i: Array) -> Any:
            return take(space.points, positions[i])

        return jax.lax.fori_loop(0, count, add, distances)

    if space.expansion is None:
        return directly(distances)
    by_products = _by_products(space, space.expansion, positions, count)
    return jax.lax.cond(count <= _FEW, directly, by_products, distances)


def _by_products(
    space: Space, expansion: Expansion, positions: Array, count: Array
) -> Callable[[Array], Array]:
    norms, products, width, of_squared = expansion
    size, few = min(_ROWS, len(norms)), min(_AT_ONCE, len(norms))
    columns = jnp.arange(len(positions), dtype=jnp.int32)[:, None]
    there = columns < count
    # A sum of `width` products in any order is wrong by at most width units of half an eps of
    # |x| |y|, which is at most half of |x|^2 + |y|^2; and so are the norms. The 8: the origin
    # that was subtracted, and the few sums that follow.
    share = (width + 8) * jnp.finfo(norms.dtype).eps

    def run(distances: Array) -> Array:
        centres = take(space.points, positions)
        centre_norms = jnp.where(there[:, 0], norms[positions], jnp.inf)
        largest = jnp.max(jnp.where(there[:, 0], norms[positions], 0))

        def all_centres(points: Any) -> Array:
            """`[K]`, of few points."""
            found = jax.vmap(lambda centre: space.to_one(points, centre))(centres)
            return jnp.min(jnp.where(there, found, jnp.inf), axis=0)

        def chunk(i: Array, distances: Array) -> Array:
            start = jnp.minimum(i * size, len(norms) - size)  # the last one overlaps
            rows, sizes, old = part((space.points, norms, distances), start, size)
            squared = (centre_norms[:, None] + sizes) - 2 * products(centres, rows)
            least = jnp.min(squared, axis=0)
            error = share * (sizes + largest)
            # argmin alone is several times slower on CPU than these two reductions.
            column = jnp.min(jnp.where(squared == least, columns, len(columns) - 1), axis=0)
            new = jnp.minimum(old, space.to_one(rows, take(centres, column)))
            # Points that keep their old centre in any case need not know.
            nearer = ~(of_squared(jnp.maximum(least - error, 0)) > old) & (old > 0)
            hidden = nearer & (jnp.sum(squared <= least + 2 * error, axis=0) > 1)

            def measure(state: tuple[Array, Array]) -> tuple[Array, Array]:
                new, hidden = state
                i = jnp.minimum(jnp.argmax(hidden), size - few)
                found = jnp.minimum(part(new, i, few), all_centres(part(rows, i, few)))
                return written(new, found, i), written(hidden, jnp.zeros(few, bool), i)

            new, _ = jax.lax.while_loop(lambda state: jnp.any(state[1]), measure, (new, hidden))
            return written(distances, new, start)

        return jax.lax.fori_loop(0, -(-len(norms) // size), chunk, distances)

    return run
