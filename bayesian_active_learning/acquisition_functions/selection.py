"""What all strategies share: the rules they keep, and the loops that keep them.

A `Strategy` holds `select(key, candidates, *, batch_size) -> Selection`. The rules (the
contract suite runs over `STRATEGIES`):

- positions are distinct, masked in, in the order of picking; valid picks come before
  invalid ones, and there are min(batch_size, number of candidates) of them. What is not
  valid has position -1, score -inf and filler False;
- ties go to the lower position;
- noise belongs to a row, not to its position, so that permuting the pool permutes the picks;
- NaN is not hidden: it is picked first, so that `acquire` refuses it;
- the shapes depend on `batch_size` and the shapes of the candidates only.

`needs` names the optional fields of `Candidates`; rows and mask always come.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from bayesian_active_learning.precision import full_precision
from bayesian_active_learning.types import Array, ArrayLike, Candidates, Key, Selection, Strategy

State = TypeVar("State")


def needed(candidates: Candidates, name: str) -> Array:
    """The field `name` of the candidates as a JAX array, in at least float32 but for labels
    and masks.

    Raises:
      ValueError: it is None, or its first axis is not that of the mask (fields `[N, ...]`).
    """
    value = getattr(candidates, name)
    if value is None:
        raise ValueError(f"this strategy needs Candidates.{name}, got None")
    value = jnp.asarray(value)
    if name in PER_CANDIDATE and value.shape[:1] != jnp.shape(candidates.mask):
        raise ValueError(
            f"expected Candidates.{name} with the first axis of mask "
            f"{list(jnp.shape(candidates.mask))}, got {list(value.shape)}"
        )
    if name not in _NOT_NUMBERS:  # squares of small integers would wrap around
        value = value.astype(jnp.promote_types(value.dtype, jnp.float32))
    return value


_NOT_NUMBERS = ("labels", "target_labels", "labelled_labels", "labelled_mask")

PER_CANDIDATE = (
    "scores",
    "log_probs",
    "features",
    "predictions",
    "input_gradients",
    "committee_log_probs",
    "unlabelled_log_odds",
    "latents",
    "labels",
)
"""Fields of `Candidates` whose first axis is N."""


def select_batch(
    strategy: Strategy, key: Key, candidates: Candidates, *, batch_size: int
) -> Selection:
    """`strategy.select`, compiled once for a strategy and the shapes, with products in
    float32 on every device; as it is where it runs on the host. The key is consumed."""
    select = strategy.select if strategy.host else _compiled(strategy.select)
    return select(key, candidates, batch_size=batch_size)


@functools.lru_cache(maxsize=64)
def _compiled(select: Callable[..., Selection]) -> Callable[..., Selection]:
    return jax.jit(full_precision(select), static_argnames="batch_size")


def check_batch_size(batch_size: int) -> int:
    """`batch_size` as an int. Raises ValueError below 1."""
    batch_size = operator.index(batch_size)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size


def sortable(scores: Array) -> Array:
    """Scores as ranks: NaN above all, -inf as the lowest finite value, and one zero
    (`top_k` would rank 0.0 above -0.0)."""
    ranks = jnp.maximum(scores, jnp.finfo(scores.dtype).min)
    return jnp.where(jnp.isnan(scores), jnp.inf, jnp.where(scores == 0, 0.0, ranks))


def highest(
    ranks: Array, lowest: float, scores: Array, candidates: Candidates, batch_size: int
) -> Selection:
    """The highest `ranks` among the unmasked, padded to `batch_size`.

    Args:
      ranks: `[N]`, all above `lowest` (for floats, see `sortable`).
      lowest: what the masked ones are given.
      scores: `[N]`, what the selection reports.
      candidates: for the mask.
      batch_size: static, at least 1; may exceed N.
    """
    batch_size = check_batch_size(batch_size)
    mask = jnp.asarray(candidates.mask, bool)
    if mask.ndim != 1 or ranks.shape != mask.shape:
        raise ValueError(
            "expected rows, mask and scores of one shape [N], got mask "
            f"{list(mask.shape)} beside {list(ranks.shape)}"
        )
    size = min(batch_size, len(mask))
    floor = jnp.asarray(lowest, ranks.dtype)
    _, positions = jax.lax.top_k(jnp.where(mask, ranks, floor), size)
    valid = mask[positions]
    return padded(positions, scores[positions], valid, batch_size)


def greedy(
    evaluate: Callable[[State, Array], tuple[Array, Array]],
    update: Callable[[State, Array], State],
    state: State,
    mask: ArrayLike,
    batch_size: int,
) -> Selection:
    """One pick after another, each the highest rank among those left.

    Args:
      evaluate: (state, number of picks so far) -> (ranks `[N]`, scores `[N]`): what is
        compared, and what the selection reports. Often one array twice.
      update: (state, position just picked) -> state.
      state: before the first pick; its shapes and dtypes stay.
      mask: `[N]`.
      batch_size: static, at least 1; may exceed N.
    """
    batch_size = check_batch_size(batch_size)
    mask = jnp.asarray(mask, bool)
    size = min(batch_size, len(mask))
    if not size:
        empty = jnp.zeros(0)
        return padded(empty.astype(jnp.int32), empty, empty.astype(bool), batch_size)

    def pick(carry, step):
        state, left = carry
        ranks, scores = evaluate(state, step)
        # argmax takes the first of equals.
        position = jnp.argmax(jnp.where(left, sortable(ranks), -jnp.inf)).astype(jnp.int32)
        valid = left[position]
        return (update(state, position), left.at[position].set(False)), (
            position,
            scores[position],
            valid,
        )

    _, (positions, scores, valid) = jax.lax.scan(pick, (state, mask), jnp.arange(size))
    return padded(positions, scores, valid, batch_size)


def padded(
    positions: Array, scores: Array, valid: Array, batch_size: int, filler: Array | None = None
) -> Selection:
    """A selection of `batch_size` from at most as many picks, valid ones first."""
    padding = (0, batch_size - len(positions))
    filler = jnp.zeros(len(positions), bool) if filler is None else filler & valid
    return Selection(
        positions=jnp.pad(
            jnp.where(valid, positions, -1).astype(jnp.int32), padding, constant_values=-1
        ),
        scores=jnp.pad(jnp.where(valid, scores, -jnp.inf), padding, constant_values=-jnp.inf),
        valid=jnp.pad(valid, padding),
        filler=jnp.pad(filler, padding),
    )


def host_selection(positions: Any, scores: Any, batch_size: int, filler: Any = None) -> Selection:
    """A selection from NumPy picks, all of them valid: what strategies on the host return."""
    batch_size = check_batch_size(batch_size)
    missing = batch_size - len(positions)
    filler = np.zeros(len(positions), bool) if filler is None else np.asarray(filler, bool)
    return Selection(
        positions=np.pad(np.asarray(positions, np.int32), (0, missing), constant_values=-1),
        scores=np.pad(
            np.asarray(scores, np.float32), (0, missing), constant_values=-np.float32(np.inf)
        ),
        valid=np.arange(batch_size) < len(positions),
        filler=np.pad(filler, (0, missing)),
    )


def row_bits(key: Key, rows: ArrayLike) -> Array:
    """`[N]` uint32 random bits, each row's its own whatever its position."""
    # 32 random bits, not a float's 23: ties, which would go by position, stay rare.
    return jax.vmap(lambda row: jax.random.bits(jax.random.fold_in(key, row), dtype=jnp.uint32))(
        jnp.asarray(rows)
    )


def row_gumbel(key: Key, rows: ArrayLike) -> Array:
    """`[N]` independent standard Gumbel noise, each row's its own whatever its position.

    The highest of (log w + noise) is a draw with probabilities proportional to w, and the
    k highest are k draws without replacement (Gumbel-top-k: Kool et al. 2019,
    arXiv:1903.06059).
    """
    return -jnp.log(exponential(row_bits(key, rows)))


def exponential(bits: Array) -> Array:
    """Standard exponential noise from uint32 bits."""
    # Precise where it is small: the lowest noise decides.
    return -jnp.log1p(-uniform(bits))


def uniform(bits: Array) -> Array:
    """Noise above 0 and below 1 from uint32 bits."""
    return jnp.minimum((bits.astype(jnp.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
