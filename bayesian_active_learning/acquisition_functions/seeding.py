"""Diverse batches by k-means++ seeding: of features, or of BADGE's gradient embeddings."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bayesian_active_learning.acquisition_functions.distances import (
    prepare_points,
    squared_norms,
    squared_to_one,
)
from bayesian_active_learning.acquisition_functions.selection import (
    check_batch_size,
    greedy,
    needed,
    row_gumbel,
)
from bayesian_active_learning.types import Array, Candidates, Key, Selection, Strategy
from bayesian_active_learning.utils import check_one_of

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
      A strategy that needs features. Time O(B N D), memory O(N D). The noise is each row's own.

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
      A strategy that needs predictions and features. Time O(B N (C + D)), memory O(N (C + D)).
      The noise is each row's own.
    """
    return Strategy(select=_select_badge, needs=frozenset({"predictions", "features"}))


def d2_sampling(
    key: Key,
    squared: Callable[[Array], Array],
    candidates: Candidates,
    batch_size: int,
    *,
    norms: Array | None,
) -> Selection:
    """k-means++ seeding in any space with squared distances.

    Args:
      key: consumed.
      squared: position `[]` -> squared distances `[N]` to that candidate, exactly 0 to itself.
      candidates: for rows and mask.
      batch_size: static, at least 1; may exceed N.
      norms: `[N]`, the highest of which is the first pick; None for one at random.
    """
    size = min(check_batch_size(batch_size), len(candidates.rows))
    mask = jnp.asarray(candidates.mask, bool)
    keys = jax.random.split(key, max(size, 1))

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
    selection = greedy(evaluate, update, mass, mask, batch_size)
    massless = (jnp.arange(batch_size) > 0) & (jnp.asarray(selection.scores) == 0)
    return selection._replace(filler=massless)


def squared_outer_to_one(
    squared: Array, other_squared: Array, norms: Array, other_norms: Array, position: Array
) -> Array:
    """Squared distances `[N]` of outer products a_i (x) z_i to that of one position j.

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
      position: `[]`, j.
    """
    a, z = norms[position], other_norms[position]
    sizes, other_sizes = (norms + a) / 2, (other_norms + z) / 2
    cross = (norms - a) * (other_norms - z) / 2
    whole = squared * (other_sizes - other_squared / 4)
    whole += other_squared * (sizes - squared / 4) + cross
    return jnp.maximum(whole, 0)


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
        lambda position: squared_to_one(points, points[position]),
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
    norms, other_norms = squared_norms(errors), squared_norms(points)

    def squared(position: Array) -> Array:
        return squared_outer_to_one(
            squared_to_one(errors, errors[position]),
            squared_to_one(points, points[position]),
            norms,
            other_norms,
            position,
        )

    first = jnp.sqrt(norms * other_norms)
    return d2_sampling(key, squared, candidates, batch_size, norms=first)
