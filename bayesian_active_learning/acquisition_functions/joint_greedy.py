"""The loop of `batch_bald` and `batch_epig`: highest gain first, looking only where it could be."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bayesian_active_learning.acquisition_functions import joint
from bayesian_active_learning.acquisition_functions.joint import Table
from bayesian_active_learning.acquisition_functions.selection import (
    check_batch_size,
    padded,
    sortable,
)
from bayesian_active_learning.types import Array, ArrayLike, Key, Selection

ROUNDING = 1e-5
"""Nats by which float32 gains that are equal, or bound each other, may differ."""

Gains = Callable[[Key, Table], Callable[[Array, Array], Array]]
"""(key, table of the picks so far) -> (positions `[n]`, probs `[n, K, C]`) -> gains `[n]`."""


class Rule(NamedTuple):
    """What tells one batch rule from another, for `greedy_batch`.

    exact, sampled: the gains under a table of all configurations, and of sampled ones.
    num_exact: how many picks have an exact table.
    bounds: `[N]`, upper bounds of the gains of all steps.
    decreasing: True where a gain can only fall as the batch grows.
    """

    exact: Gains
    sampled: Gains
    num_exact: int
    bounds: Array
    decreasing: bool


def greedy_batch(
    key: Key,
    rule: Rule,
    log_probs: Array,
    mask: ArrayLike,
    *,
    batch_size: int,
    num_configs: int,
) -> Selection:
    """One pick after another by highest gain, with exact tables and then sampled ones.

    Args:
      key: consumed; noise belongs to a step and to a configuration, so it is the same
        whatever order the pool is in.
      rule: see `Rule`.
      log_probs: `[N, K, C]`.
      mask: `[N]`.
      batch_size: static, at least 1; may exceed N.
      num_configs: rows of a sampled table, rounded up to a multiple of K.
    """
    batch_size = check_batch_size(batch_size)
    mask = jnp.asarray(mask, bool)
    size, num_samples, num_classes = log_probs.shape
    num_picks = min(batch_size, size)
    if not num_picks:
        nothing = jnp.zeros(0, log_probs.dtype)
        return padded(nothing.astype(jnp.int32), nothing, nothing.astype(bool), batch_size)
    num_exact = min(rule.num_exact, num_picks)

    def probs_at(positions: Array) -> Array:
        """What is masked out may hold anything; past the end is the last."""
        at = jnp.minimum(positions, size - 1)
        unmasked = mask[at].reshape(at.shape + (1, 1))
        return jnp.exp(jnp.where(unmasked, log_probs[at], -math.log(num_classes)))

    def picks(
        gains_under: Gains, extend: Callable, slack: float, state: tuple, keys: Array
    ) -> tuple:
        def pick(state: tuple, keys: Array) -> tuple:
            table, bounds, left = state
            gains_of = gains_under(keys[0], table)
            position, score, gains = highest_gain(
                lambda positions: gains_of(positions, probs_at(positions)),
                bounds,
                left,
                slack=slack,
                chunk=joint.chunk_size(num_classes, size),
            )
            table = extend(keys[1], table, probs_at(position))
            bounds = gains if rule.decreasing else bounds
            return (table, bounds, left.at[position].set(False)), (position, score, left[position])

        return jax.lax.scan(pick, state, keys)

    # Two keys a step: for what candidates are judged by, and for the labels of the pick.
    keys = jax.random.split(key, (num_picks, 2))
    # Exact tables all have the shape of the largest, so that one compilation serves them; the
    # rows that they do not use yet cost nothing.
    table = joint.prior(num_samples, log_probs.dtype, num_classes ** (num_exact - 1))
    (_, bounds, left), found = picks(
        rule.exact,
        lambda key, table, probs: joint.extended(table, probs, len(table.weights)),
        ROUNDING,
        (table._replace(live=jnp.array(1, jnp.int32)), rule.bounds, mask),
        keys[:num_exact],
    )
    if num_exact == num_picks:
        return padded(found[0], found[1], found[2], batch_size)

    table, _ = jax.lax.scan(
        lambda table, pick: (joint.extended_by_draws(pick[0], table, probs_at(pick[1])), None),
        joint.sampled_prior(num_configs, num_samples, log_probs.dtype),
        (keys[:num_exact, 1], found[0]),
    )
    slack = len(table.weights) ** -0.5
    _, rest = picks(
        rule.sampled, joint.extended_by_draws, slack, (table, bounds, left), keys[num_exact:]
    )
    positions, scores, valid = (jnp.concatenate(parts) for parts in zip(found, rest))
    return padded(positions, scores, valid, batch_size)


def highest_gain(
    evaluate: Callable[[Array], Array],
    bounds: Array,
    left: Array,
    *,
    slack: float,
    chunk: int,
) -> tuple[Array, Array, Array]:
    """The candidate of highest gain, looking only at those that could be it.

    Candidates are evaluated in chunks by falling upper bound, until no bound left is above
    the best gain found (the accelerated greedy of Minoux 1978).

    Args:
      evaluate: positions `[chunk]` -> gains `[chunk]`; a position may be past the end.
      bounds: `[N]`, each at least the gain of its candidate, up to `slack`.
      left: `[N]` bool, which candidates there are.
      slack: nats.
      chunk: static.

    Returns:
      Position (ties to the lower one), gain, and `bounds` with the gains in place of the
      bounds of those that were evaluated.
    """
    size = len(bounds)
    ranks = jnp.where(left, sortable(bounds), -jnp.inf)
    order = jnp.argsort(ranks, descending=True, stable=True).astype(jnp.int32)
    ranks = ranks[order]
    order = jnp.pad(order, (0, -size % chunk), constant_values=size)

    def worth_a_look(state: tuple[Array, Array, Array, Array]) -> Array:
        start, _, _, best = state
        bound = ranks[jnp.minimum(start, size - 1)]
        return (start < size) & (bound > -jnp.inf) & (bound >= best - slack)

    def look(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        start, gains, seen, best = state
        positions = jax.lax.dynamic_slice_in_dim(order, start, chunk)
        fresh = evaluate(positions)
        there = left.at[positions].get(mode="fill", fill_value=False)
        best = jnp.maximum(best, jnp.max(jnp.where(there, sortable(fresh), -jnp.inf)))
        gains = gains.at[positions].set(fresh, mode="drop")
        seen = seen.at[positions].set(there, mode="drop")
        return start + chunk, gains, seen, best

    start, lowest = jnp.array(0, jnp.int32), jnp.array(-jnp.inf, bounds.dtype)
    _, gains, seen, _ = jax.lax.while_loop(
        worth_a_look, look, (start, bounds, jnp.zeros(size, bool), lowest)
    )
    # argmax takes the first of equals.
    position = jnp.argmax(jnp.where(seen, sortable(gains), -jnp.inf)).astype(jnp.int32)
    return position, gains[position], jnp.where(left, gains, bounds)
