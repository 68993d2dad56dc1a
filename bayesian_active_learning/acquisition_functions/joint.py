"""Joint distributions of several labels, which `batch_bald` and `batch_epig` share.

Labels are independent given the parameters, so all that a batch of picks says about the
parameters is a table: for each configuration y of the picks' labels its weight p(y) and its
posterior over the K samples, p(k | y). One more pick multiplies the posteriors by its
probabilities p_k(label): the table is extended, never rebuilt. Two kinds:

- exact: all C^i configurations of i picks, with their probabilities as weights;
- sampled: S configurations, each drawn by taking a posterior sample k (every k for the same
  number of configurations) and then labels from p_k, with weights 1/S. The posteriors are
  those of the drawn labels under all K samples, as in Kirsch, van Amersfoort & Gal 2019,
  arXiv:1906.08158.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import dynamic_slice_in_dim

from bayesian_active_learning.types import Array, ArrayLike, Key
from bayesian_active_learning.utils import round_up

BUDGET = 2**20
"""Numbers in one temporary array (4 MiB in float32), where one candidate does not need more."""

CHUNK = 64
"""Candidates evaluated at a time, at most."""


class Table(NamedTuple):
    """What the labels of some picks say about the parameters, one configuration a row."""

    weights: Array  # [S], p(configuration), or 1/S for sampled ones
    posteriors: Array  # [S, K], p(sample | configuration)
    live: Array | int  # the first `live` rows count; the weights of the others are 0


def num_exact(num_classes: int, max_configs: int) -> int:
    """How many picks of a batch see an exact table of the picks before them.

    The first always does. Pick i + 1 does while the C^i configurations of the labels of
    the first i picks are at most `max_configs`; later picks see sampled configurations.
    A single class, which says nothing, counts as two.

    Args:
      num_classes: C.
      max_configs: largest number of configurations of an exact table.

    Returns:
      At least 1; 5 for 10 classes and 40,000 configurations.
    """
    picks, configs = 1, max(num_classes, 2)
    while configs <= max_configs:
        picks, configs = picks + 1, configs * max(num_classes, 2)
    return picks


def joint_entropy(log_probs: ArrayLike, *, max_exact: int = 40_000) -> Array:
    """Entropy of the joint distribution of B labels, H[y_1, ..., y_B].

    -sum_y p(y) log p(y) with p(y) = mean_k prod_i p_k(y_i), over all C^B configurations.

    Kirsch, van Amersfoort & Gal 2019, arXiv:1906.08158.

    Args:
      log_probs: `[B, K, C]` normalised log-probabilities of the inputs of one batch.
      max_exact: largest number of configurations.

    Returns:
      Nats, between 0 and B ln C.

    Raises:
      ValueError: the shape is not `[B, K, C]`, or more than `max_exact` configurations.
    """
    probs = jnp.exp(checked(log_probs, "log_probs", "[B, K, C]"))
    num_configs = probs.shape[2] ** probs.shape[0]
    if num_configs > max_exact:
        raise ValueError(
            f"{probs.shape[2]}^{probs.shape[0]} = {num_configs} configurations are more than "
            f"max_exact={max_exact}; ask for fewer inputs, or raise it"
        )
    table = prior(probs.shape[1], probs.dtype)
    for one in probs:
        table = extended(table, one)
    never = table.weights == 0
    return -jnp.sum(table.weights * jnp.log(jnp.where(never, 1.0, table.weights)))


def prior(num_samples: int, dtype: jnp.dtype, size: int = 1) -> Table:
    """The table of no picks: one configuration, the empty one, and room for `size`."""
    weights = jnp.zeros(size, dtype).at[0].set(1)
    return Table(weights, jnp.full((size, num_samples), 1 / num_samples, dtype), 1)


def extended(table: Table, probs: Array, size: int | None = None) -> Table:
    """Every configuration with each label of one more input, `probs [K, C]`.

    Row s gives rows s C to s C + C - 1. The new table has `size` rows, all S C of them where
    None; what is beyond is lost.
    """
    num_classes = probs.shape[1]
    most = len(table.weights) * num_classes
    size = most if size is None else size
    parents, labels = jnp.divmod(jnp.arange(size), num_classes)
    joint = table.posteriors[parents] * probs.T[labels]
    chances = jnp.sum(joint, axis=-1)  # [size], p(label | configuration)
    impossible = chances == 0  # NaN is not: it stays to be seen
    posteriors = jnp.where(
        impossible[:, None],
        table.posteriors[parents],
        joint / jnp.where(impossible, 1.0, chances)[:, None],
    )
    weights = table.weights[parents] * chances
    live = table.live * num_classes
    live = min(live, size) if isinstance(live, int) else jnp.minimum(live, size)
    return Table(weights, posteriors, live)


def sampled_prior(num_configs: int, num_samples: int, dtype: jnp.dtype) -> Table:
    """Rows to draw labels for: row j belongs to sample j mod K. S is a multiple of K."""
    size = round_up(num_configs, num_samples)
    posteriors = jnp.full((size, num_samples), 1 / num_samples, dtype)
    return Table(jnp.full(size, 1 / size, dtype), posteriors, size)


def extended_by_draws(key: Key, table: Table, probs: Array) -> Table:
    """Each sampled configuration with one label of one more input, `probs [K, C]`.

    A row's label comes from the sample it belongs to. Over the rows of one sample the
    uniform numbers are spread evenly (one in each of S/K equal intervals, in an order of
    their own for each pick): each label has the right distribution, and the error is
    smaller than that of independent draws.
    """
    num_samples, num_classes = probs.shape
    count = table.weights.size // num_samples
    bits = jax.random.bits(key, (2, count, num_samples), jnp.uint32)
    labels = _labels(probs, (bits[0].argsort(axis=0) + _uniform(bits[1], probs)) / count)
    posteriors = _updated(table.posteriors, probs.T[labels.reshape(-1)])
    return table._replace(posteriors=posteriors)


def with_targets(key: Key, table: Table, targets: Array) -> Table:
    """Sampled configurations, each with the label of one target input, `targets [M, K, C]`.

    The targets take turns in random order, S/M rows each; the label comes from the sample
    that the row belongs to.
    """
    num_targets, num_samples, _ = targets.shape
    size = table.weights.size
    bits = jax.random.bits(key, (3, size), jnp.uint32)
    spread = (bits[0].argsort() + _uniform(bits[1], targets)) / size
    chosen = jnp.minimum((spread * num_targets).astype(jnp.int32), num_targets - 1)
    samples = jnp.arange(size) % num_samples
    labels = _labels(targets[chosen, samples], _uniform(bits[2], targets))
    return table._replace(posteriors=_updated(table.posteriors, targets[chosen, :, labels]))


def information(table: Table, reference: Array, probs: Array) -> Array:
    """What the rows of a table say about the labels of some inputs.

    sum_s w_s KL(p(y | s) || p(y | r)) with p(y | s) = sum_k posterior_sk p_k(y). With the
    average posterior for reference it is the mutual information between y and the
    configuration; never negative.

    Args:
      table: `[S]` and `[S, K]`.
      reference: `[1, K]`, or `[S, K]`, one for each row.
      probs: `[n, K, C]`.

    Returns:
      `[n]` nats.
    """
    size, num_samples, num_classes = probs.shape
    columns = jnp.moveaxis(probs, 1, 0).reshape(num_samples, size * num_classes)
    rows = min(len(table.weights), max(1, BUDGET // columns.shape[1]))

    def add(block: ArrayLike, total: Array) -> Array:
        first = block * rows
        # The last block may overlap the one before: it ends where the table does.
        start = jnp.minimum(first, len(table.weights) - rows)

        def cut(values: Array) -> Array:
            return values if len(values) == 1 else dynamic_slice_in_dim(values, start, rows)

        # A GPU would round the factors to 10 bits otherwise.
        ours = jnp.matmul(cut(table.posteriors), columns, precision="highest")
        theirs = jnp.matmul(cut(reference), columns, precision="highest")
        weights = jnp.where(start + jnp.arange(rows) < first, 0.0, cut(table.weights))
        return total + jnp.sum(weights[:, None] * _divergence(ours, theirs), axis=0)

    none = jnp.zeros(columns.shape[1], columns.dtype)
    by_column = jax.lax.fori_loop(0, -(-table.live // rows), add, none)
    return jnp.sum(by_column.reshape(size, num_classes), axis=-1)


def chunk_size(num_classes: int, largest: int) -> int:
    """How many candidates to evaluate at once: their columns beside 256 rows keep to the budget."""
    return max(1, min(largest, CHUNK, BUDGET // (256 * num_classes)))


def checked(log_probs: ArrayLike, name: str, shape: str = "[N, K, C]") -> Array:
    """`log_probs` as an array of at least float32. Raises ValueError where it is no `shape`."""
    log_probs = jnp.asarray(log_probs)
    if log_probs.ndim != 3 or 0 in log_probs.shape[1:]:
        raise ValueError(
            f"expected {name} of shape {shape} with at least one sample and one class, "
            f"got {list(log_probs.shape)}"
        )
    if not jnp.issubdtype(log_probs.dtype, jnp.floating):
        raise ValueError(f"expected floating-point {name}, got {log_probs.dtype}")
    return log_probs.astype(jnp.promote_types(log_probs.dtype, jnp.float32))


def _divergence(ours: Array, theirs: Array) -> Array:
    """Terms a log(a/b) - a + b, with 0 log 0 = 0: they add up to a divergence (the last two
    cancel), and each is non-negative and of second order in a - b.

    Near a = b by their series, so that small divergences keep their digits.
    """
    difference = ours - theirs
    change = difference / jnp.where(theirs == 0, 1.0, theirs)
    near = jnp.abs(change) < 1 / 16
    x = jnp.where(near, change, 0.0)
    series = theirs * x * x * (1 / 2 - x * (1 / 6 - x * (1 / 12 - x * (1 / 20 - x / 30))))
    ratio = 1 + change
    ratio = jnp.where(near | (ratio == 0), 1.0, ratio)
    return jnp.where(near, series, ours * jnp.log(ratio) - difference)


def _uniform(bits: Array, like: Array) -> Array:
    """Numbers from 0 to 1 from 32 random bits each."""
    return bits.astype(like.dtype) * 2.0**-32


def _labels(probs: Array, uniform: Array) -> Array:
    """Labels with probabilities `[..., C]` from uniform numbers."""
    cumulative = jnp.cumsum(probs, axis=-1)
    below = cumulative <= (uniform * cumulative[..., -1])[..., None]
    # A number may be the very end: the last class that can be.
    last = probs.shape[-1] - 1 - jnp.argmax(probs[..., ::-1] > 0, axis=-1)
    return jnp.minimum(jnp.sum(below, axis=-1), last)


def _updated(posteriors: Array, likelihoods: Array) -> Array:
    """Bayes' rule by row, `[S, K]` each."""
    joint = posteriors * likelihoods
    return joint / jnp.sum(joint, axis=-1, keepdims=True)
