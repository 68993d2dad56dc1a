"""Diverse batches by k-means++ seeding: of features, or of BADGE's gradient embeddings."""

import functools
import itertools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bayesian_active_learning.acquisition_functions.centres import (
    PENDING,
    Expansion,
    Picks,
    Space,
    is_lazy,
    matmul,
    no_picks,
    squared_space,
    take,
    with_centres,
    with_picks,
    written,
)
from bayesian_active_learning.acquisition_functions.distances import (
    prepare_points,
    squared_norms,
    squared_to_one,
)
from bayesian_active_learning.acquisition_functions.selection import (
    check_batch_size,
    exponential,
    greedy,
    needed,
    padded,
    row_bits,
    row_gumbel,
    sortable,
    uniform,
)
from bayesian_active_learning.types import Array, Candidates, Key, Selection, Strategy
from bayesian_active_learning.utils import check_one_of

BLOCK = 256  # candidates gone through at once
ARRIVALS = 4  # of each; the fourth of one that is left, before PENDING picks, is rare
_FIRST = ("uniform", "max_norm")


def kmeans_pp(*, first: str = "uniform") -> Strategy:
    """k-means++ seeding of the features, as a batch.

    Each pick is drawn with probability D_i^2 / sum_j D_j^2, where D_i is the euclidean
    distance of candidate i to the nearest pick so far. Labelled examples take no part.
    Equals of a pick have no mass: they come only when nothing else is left, at random, and
    marked as filler. `Selection.scores` is D when picked; for the first pick its norm under
    "max_norm", and 0 under "uniform".

    Arthur & Vassilvitskii 2007, k-means++: the advantages of careful seeding, section 2.2.

    Args:
      first: how the first pick is made: "uniform" at random, or "max_norm", the largest norm.

    Returns:
      A strategy that needs features. Time O(B N D), in large pools as matrix products for many
      picks at once; memory O(N D). The noise is each row's own.

    Raises:
      ValueError: an unknown `first`.
    """
    check_one_of("first", first, _FIRST)
    return Strategy(
        select=functools.partial(_select_kmeans_pp, first=first), needs=frozenset({"features"})
    )


def badge() -> Strategy:
    """k-means++ seeding of hallucinated gradients: batches both uncertain and diverse.

    The embedding of a candidate is the gradient of its cross-entropy by the last layer's
    weights, with the predicted class y for a label: (p - onehot(y)) outer z, of C * D
    numbers, for predictions p [C] and features z [D]. It is long where the prediction is
    uncertain. The first pick is the longest; the others as in `kmeans_pp`.

    The embeddings are never made: squared distances come from those of p - onehot(y) and of
    z, see `squared_outer_to_one`. All C classes count, predicted or not.

    `Selection.scores` is the distance of embeddings to the nearest pick so far, and the norm
    for the first pick.

    Ash et al. 2020, arXiv:1906.03671, algorithm 1.

    Returns:
      A strategy that needs predictions and features. Time O(B N (C + D)), in large pools as
      matrix products for many picks at once; memory O(N (C + D)). The noise is each row's own.
    """
    return Strategy(select=_select_badge, needs=frozenset({"predictions", "features"}))


def d2_sampling(
    key: Key, space: Space, candidates: Candidates, batch_size: int, *, norms: Array | None
) -> Selection:
    """k-means++ seeding in any space with squared distances.

    Args:
      key: consumed.
      space: squared distances of the N candidates.
      candidates: for rows and mask.
      batch_size: static, at least 1; may exceed N.
      norms: `[N]`, the highest of which is the first pick; None for one at random.
    """
    size = min(check_batch_size(batch_size), len(candidates.rows))
    if is_lazy(len(candidates.rows), batch_size):
        return lazily_drawn(key, space, candidates, batch_size, norms=norms)
    mask = jnp.asarray(candidates.mask, bool)
    keys = jax.random.split(key, max(size, 1))

    def squared(position: Array) -> Array:
        return space.to_one(space.points, take(space.points, position))

    def evaluate(mass: Array, step: Array) -> tuple[Array, Array]:
        noise = row_gumbel(keys[step], candidates.rows).astype(mass.dtype)
        # The highest log-mass + noise is a draw in proportion to mass.
        drawn = jnp.where(jnp.any(mask & (mass > 0)), jnp.log(mass), 0) + noise
        ranks = jnp.where(step == 0, noise if norms is None else norms, drawn)
        return ranks, jnp.where(step == 0, 0 if norms is None else norms, jnp.sqrt(mass))

    def update(mass: Array, position: Array) -> Array:
        return jnp.minimum(mass, squared(position))

    dtype = jax.eval_shape(squared, jnp.zeros((), jnp.int32)).dtype if size else jnp.float32
    mass = jnp.full(len(mask), jnp.inf, dtype)
    return _with_filler(greedy(evaluate, update, mass, mask, batch_size))


def _with_filler(selection: Selection) -> Selection:
    massless = jnp.asarray(selection.scores) == 0
    return selection._replace(filler=massless & (jnp.arange(len(massless)) > 0))


class _Drawn(NamedTuple):
    """What was drawn from a block of candidates."""

    mass: Array  # [M], true to all that was drawn
    left: Array  # [M], can still be drawn
    picks: Array  # [P], places in the block
    scores: Array  # [P]
    num_picks: Array  # []
    step: Array  # [], arrivals seen
    unknown: Array  # [], somebody's next arrival is not known


class _Lazy(NamedTuple):
    """Between blocks."""

    mass: Array  # [N], but for the new picks
    picks: Picks
    block: Array  # [], how many there were
    noise: Array  # [N], of the last one
    some_mass: Array  # []


def lazily_drawn(
    key: Key,
    space: Space,
    candidates: Candidates,
    batch_size: int,
    *,
    norms: Array | None,
    block_size: int = BLOCK,
    num_arrivals: int = ARRIVALS,
    pending: int = PENDING,
) -> Selection:
    """k-means++ seeding, with most candidates brought up to date for many picks at once.

    Masses only fall. Each candidate arrives at random times, at the rate of its old mass, and
    an arrival counts with probability mass / old mass: then those that count come at the rates
    of the masses, which is to say that the next one is a draw in proportion to them
    (thinning: Lewis & Shedler 1979, Nav. Res. Logist. Q. 26). The first arrivals of all are
    found at once; those of a block, the earliest, are gone through in the order of time up to
    the first one of the last of the block. What comes after a time so chosen does not depend
    on what came before, so that the next block begins afresh, with masses up to date.

    Args:
      key: consumed.
      space, candidates, batch_size, norms: as in `d2_sampling`; batch_size is an int.
      block_size: static, candidates in a block.
      num_arrivals: static, for each of the block.
      pending: static, at most so many picks from a block.
    """
    rows, left = jnp.asarray(candidates.rows), jnp.asarray(candidates.mask, bool)
    size, width = min(batch_size, len(rows)), min(block_size, len(rows))
    first_key, block_key = jax.random.split(key)

    def from_block(mass: Array, left: Array, key: Key, most: Array) -> tuple[Array, Array, _Drawn]:
        """The noise `[N]`, the positions of the block `[M]`, and at most so many picks."""
        bad = ~jnp.isfinite(mass) & left  # at once
        old = jnp.where(left, mass, 0)
        largest = jnp.max(jnp.where(bad, 0, old))
        rates = jnp.where(bad, jnp.inf, old / jnp.where(largest > 0, largest, 1))
        time_key, more_key = jax.random.split(key)
        noise = exponential(row_bits(time_key, rows)).astype(mass.dtype)
        times = noise / rates
        # No slices of the two, or XLA:CPU sorts all.
        earliest, block = jax.lax.top_k(-times, width)
        end = jnp.max(-earliest)

        keys = jax.random.split(more_key, 2 * num_arrivals - 1)
        bits = jax.vmap(row_bits, in_axes=(0, None), out_axes=1)(keys, rows[block])
        more = exponential(bits[:, num_arrivals:]) / rates[block][:, None]
        gaps = [-earliest, *more.T]
        arrivals = jnp.stack(list(itertools.accumulate(gaps, operator.add)), axis=1).ravel()
        chances = uniform(bits[:, :num_arrivals]).ravel()
        order = jnp.argsort(arrivals).astype(jnp.int32)
        num_arrived = jnp.sum((arrivals <= end) & (arrivals < jnp.inf))
        points, old, bad = take((space.points, old, bad), block)

        def arrive(drawn: _Drawn) -> _Drawn:
            arrival = order[drawn.step]
            i = arrival // num_arrivals
            mass = drawn.mass[i]
            counts = drawn.left[i] & (bad[i] | (chances[arrival] * old[i] < mass))
            masses = jax.lax.cond(
                counts,
                lambda: jnp.minimum(drawn.mass, space.to_one(points, take(points, i))),
                lambda: drawn.mass,
            )
            left = drawn.left & ~(counts & (jnp.arange(width) == i))
            last = arrival % num_arrivals == num_arrivals - 1
            return _Drawn(
                mass=masses,
                left=left,
                # Written again unless it counts.
                picks=written(drawn.picks, i, drawn.num_picks),
                scores=written(drawn.scores, jnp.sqrt(mass), drawn.num_picks),
                num_picks=drawn.num_picks + counts,
                step=drawn.step + 1,
                unknown=last & left[i] & (masses[i] > 0),
            )

        none = jnp.zeros(pending, jnp.int32)
        drawn = _Drawn(
            mass=mass[block],
            left=left[block],
            picks=none,
            scores=none.astype(mass.dtype),
            num_picks=none[0],
            step=none[0],
            unknown=jnp.zeros((), bool),
        )
        drawn = jax.lax.while_loop(
            lambda drawn: (drawn.num_picks < most) & (drawn.step < num_arrived) & ~drawn.unknown,
            arrive,
            drawn,
        )
        return noise, block.astype(jnp.int32), drawn

    def some_picks(state: _Lazy) -> _Lazy:
        picks = state.picks
        mass = with_centres(space, state.mass, picks.new, picks.num_new)
        most = jnp.minimum(pending, size - picks.num_picked)
        block_keys = jax.random.fold_in(block_key, state.block)
        noise, block, drawn = from_block(mass, picks.left, block_keys, most)
        return _Lazy(
            mass=mass,
            picks=with_picks(picks, block[drawn.picks], drawn.scores, drawn.num_picks),
            block=state.block + 1,
            noise=noise,
            some_mass=jnp.any(picks.left & ~(mass <= 0)),
        )

    ranks = row_gumbel(first_key, rows) if norms is None else norms
    first = jnp.argmax(jnp.where(left, sortable(ranks), -jnp.inf)).astype(jnp.int32)
    any_left = left[first]
    dtype = jax.eval_shape(space.to_one, space.points, take(space.points, first)).dtype
    score = jnp.asarray(0 if norms is None else norms[first], dtype)
    none, one = jnp.zeros((), jnp.int32), jnp.ones((), jnp.int32)
    picks = no_picks(left, size, pending, dtype)
    state = _Lazy(
        mass=jnp.full(len(rows), jnp.inf, dtype),
        picks=with_picks(picks, jnp.full(pending, first), jnp.full(pending, score), one),
        block=none,
        noise=jnp.zeros(len(rows), dtype),
        some_mass=any_left,
    )
    state = jax.lax.while_loop(
        lambda state: (state.picks.num_picked < size) & state.some_mass, some_picks, state
    )
    picks = state.picks
    # Equals of picks, at random: by noise that drew nothing, for want of mass.
    _, others = jax.lax.top_k(jnp.where(picks.left, -state.noise, -jnp.inf), size)
    place = jnp.arange(size)
    drawn, other = place < picks.num_picked, others[jnp.maximum(place - picks.num_picked, 0)]
    selection = padded(
        jnp.where(drawn, picks.positions[:size], other),
        jnp.where(drawn, picks.scores[:size], 0),
        jnp.where(drawn, any_left, picks.left[other]),
        batch_size,
    )
    return _with_filler(selection)


def squared_outer_to_one(
    squared: Array,
    other_squared: Array,
    norms: Array,
    other_norms: Array,
    norm: Array,
    other_norm: Array,
) -> Array:
    """Squared distances `[N]` of outer products a_i (x) z_i to one, a_j (x) z_j.

    With s = |a_i - a_j|^2, t = |z_i - z_j|^2, and A, Z the squared norms:

        |a_i (x) z_i - a_j (x) z_j|^2 = s ((Z_i + Z_j)/2 - t/4) + t ((A_i + A_j)/2 - s/4)
                                       + (A_i - A_j) (Z_i - Z_j) / 2

    the same as A_i Z_i + A_j Z_j - 2 (a_i . a_j)(z_i . z_j), without its cancellation: exactly
    0 for equal pairs.

    Args:
      squared: `[N]`, s.
      other_squared: `[N]`, t.
      norms: `[N]`, A.
      other_norms: `[N]`, Z.
      norm: `[]` or one for each `[N]`, A_j.
      other_norm: `[]` or one for each `[N]`, Z_j.
    """
    sizes, other_sizes = (norms + norm) / 2, (other_norms + other_norm) / 2
    cross = (norms - norm) * (other_norms - other_norm) / 2
    own, other = other_sizes - other_squared / 4, sizes - squared / 4
    whole = squared * own + other_squared * other + cross
    return jnp.maximum(whole, 0)


class _Outer(NamedTuple):
    """Outer products a (x) z, never made."""

    a: Array  # [N, C]
    z: Array  # [N, D]
    norms: Array  # [N], |a|^2
    other_norms: Array  # [N], |z|^2


def outer_space(a: Array, z: Array) -> Space:
    """Outer products of `a [N, C]` and `z [N, D]` under their squared distance."""

    def to_one(points: _Outer, one: _Outer) -> Array:
        s, t = squared_to_one(points.a, one.a), squared_to_one(points.z, one.z)
        return squared_outer_to_one(s, t, *points[2:], *one[2:])

    def products(points: _Outer, others: _Outer) -> Array:
        return matmul(points.a, others.a) * matmul(points.z, others.z)

    points = _Outer(a, z, squared_norms(a), squared_norms(z))
    norms, width = points.norms * points.other_norms, a.shape[1] + z.shape[1]
    return Space(points, to_one, Expansion(norms, products, width, lambda found: found))


def residuals(log_probs: Array) -> Array:
    """p - onehot(argmax p), `[N, C]` of log-probabilities `[N, C]`: a tie has its lower class.

    Precise where the prediction is nearly certain.
    """
    predicted = jax.nn.one_hot(jnp.argmax(log_probs, axis=-1), log_probs.shape[-1], dtype=bool)
    return jnp.where(predicted, jnp.expm1(log_probs), jnp.exp(log_probs))


def _select_kmeans_pp(
    key: Key, candidates: Candidates, *, batch_size: int, first: str
) -> Selection:
    """The `select` of `kmeans_pp`; the key is consumed."""
    points = prepare_points("euclidean", needed(candidates, "features"), candidates.mask)
    return d2_sampling(
        key,
        squared_space(points),
        candidates,
        batch_size,
        norms=jnp.sqrt(squared_norms(points)) if first == "max_norm" else None,
    )


def _select_badge(key: Key, candidates: Candidates, *, batch_size: int) -> Selection:
    """The `select` of `badge`; the key is consumed."""
    points = prepare_points("euclidean", needed(candidates, "features"), candidates.mask)
    mask = jnp.asarray(candidates.mask, bool)[:, None]
    log_probs = jnp.where(mask, needed(candidates, "predictions"), 0)
    errors = jnp.where(mask, residuals(log_probs), 0)
    space = outer_space(errors, points)
    first = jnp.sqrt(space.points.norms * space.points.other_norms)
    return d2_sampling(key, space, candidates, batch_size, norms=first)
