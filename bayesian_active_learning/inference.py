"""Stochastic forward passes, streamed over a pool in chunks of one fixed shape.

One posterior sample is one network: the K draws are made once a call and used for
every input, so results do not depend on the chunk size or on the order of the pool.
Memory is O(chunk_size * K * C), never O(N * K * C), unless `log_probs` is asked for.
Products are float32 ones on every device, unless a model says less (`models.with_precision`).
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayesian_active_learning.compilation import jit
from bayesian_active_learning.hoisting import map_draws
from bayesian_active_learning.precision import full_precision
from bayesian_active_learning.types import (
    Array,
    Key,
    Model,
    Outputs,
    Posterior,
    PyTree,
    Score,
    Source,
    Variables,
)
from bayesian_active_learning.utils import (
    check_positive,
    even_chunk,
    give_back_freed_memory,
    log_mean_exp,
    pad_rows,
)

_MOST_IN_A_CHUNK = 2_000
_MOST_PREDICTED, _PREDICTED_STEP = 2_100, 20
"""In a chunk of a set that stays as it is, so that only one of many sizes is compiled: the 10,000
images of MNIST's test set and 100 of a validation set are five full chunks. The step is the small
batch of `models`' convolutions."""
_CHUNKS_KEPT = 16
"""After so many, freed memory goes back to the system: what the C library keeps of it for each
thread grows with the length of the pool."""


def _split_keys(shared: PyTree, key: Key, num_samples: int) -> Array:
    return jax.random.split(key, num_samples)


@functools.lru_cache(maxsize=64)
def _network(model: Model, mode: str) -> Callable[[PyTree, Array, Array], Outputs]:
    def apply(variables: Variables, key: Array, inputs: Array) -> Outputs:
        return model.apply(variables, key if mode == "sample" else None, inputs, mode=mode)[0]

    return apply


def mc_dropout(model: Model, variables: Variables) -> Posterior:
    """Monte Carlo dropout: a draw is a key, a key is one set of dropout masks.

    Gal & Ghahramani (2016), "Dropout as a Bayesian approximation".
    """
    return Posterior(_split_keys, _network(model, "sample"), variables)


def deterministic(model: Model, variables: Variables) -> Posterior:
    """One network without dropout; every draw is the same, so ask for one sample."""
    return Posterior(_split_keys, _network(model, "mean"), variables)


@functools.partial(jit, static_argnames=("applies", "places", "reduce"))
def _chunk(
    applies: tuple[Callable[..., Outputs], ...],
    places: tuple[int, ...],  # of each posterior's arrays in `shared`
    reduce: Callable[..., PyTree],
    shared: tuple[PyTree, ...],
    draws: tuple[PyTree, ...],
    inputs: Array,
) -> PyTree:
    sizes = [jax.tree.leaves(draw)[0].shape[0] for draw in draws]
    # A single draw is no axis: its network rides along with the others, and shares with
    # them what they have in common.
    mapped = tuple(draw for draw, size in zip(draws, sizes, strict=True) if size > 1)
    single = tuple(jax.tree.map(lambda x: x[0], d) for d, n in zip(draws, sizes) if n == 1)

    def networks(many, one, common, batch):
        left = {True: iter(many), False: iter(one)}
        return tuple(
            jax.nn.log_softmax(apply(common[place], next(left[size > 1]), batch).logits)
            for apply, place, size in zip(applies, places, sizes, strict=True)
        )

    if mapped:
        outputs = map_draws(networks, mapped, single, shared, inputs)
    else:
        outputs = jax.tree.map(lambda x: x[None], networks((), single, shared, inputs))
    log_probs = (x[:size].swapaxes(0, 1) for x, size in zip(outputs, sizes, strict=True))
    return reduce(*log_probs)  # [n, K, C] each


@functools.partial(jax.jit, static_argnums=(0, 3))
@full_precision
def _draw(draw: Callable[..., PyTree], shared: PyTree, key: Key, num_samples: int) -> PyTree:
    return draw(shared, key, num_samples)


def _check_samples(num_samples: Sequence[int]) -> None:
    for samples in num_samples:
        check_positive(num_samples=samples)
    if len({samples for samples in num_samples if samples > 1}) > 1:
        raise ValueError(f"numbers of samples above 1 must agree, got {list(num_samples)}")


def _stream(
    key: Key,
    posteriors: Sequence[Posterior],
    num_samples: Sequence[int],
    source: Source,
    rows: np.ndarray,
    reduce: Callable[..., PyTree],
    chunk_size: int | None,
) -> Iterator[tuple[int, PyTree]]:
    """Yields (number of rows, `reduce` of their log-probabilities) chunk by chunk."""
    _check_samples(num_samples)
    draws = tuple(
        _draw(posterior.draw, posterior.shared, key, samples)
        for posterior, samples in zip(posteriors, num_samples, strict=True)
    )
    applies = tuple(posterior.apply for posterior in posteriors)
    # Arrays that several posteriors have in common go in once: what is computed from them
    # can then be recognised as the same.
    distinct = {id(posterior.shared): posterior.shared for posterior in posteriors}
    places = tuple(list(distinct).index(id(posterior.shared)) for posterior in posteriors)
    shared = tuple(distinct.values())
    if chunk_size is None:
        chunk_size = even_chunk(np.size(rows), _MOST_IN_A_CHUNK)
    for count, inputs in _inputs(source, rows, chunk_size):
        yield count, _chunk(applies, places, reduce, shared, draws, inputs)


def _inputs(source: Source, rows: Any, chunk_size: int) -> Iterator[tuple[int, Array]]:
    """Yields (number of rows, their inputs) in chunks of one shape; checks first."""
    check_positive(chunk_size=chunk_size)
    rows = np.asarray(rows)
    if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"rows must be a list of integers, got {rows.dtype} {rows.shape}")
    if rows.size and not (0 <= rows.min() and rows.max() < source.shape[0]):
        raise ValueError(
            f"rows must lie in 0..{source.shape[0] - 1}, got {rows.min()}..{rows.max()}"
        )
    chunk_size = min(chunk_size, max(1, rows.size))
    for number, start in enumerate(range(0, rows.size, chunk_size), 1):
        part = rows[start : start + chunk_size]
        yield len(part), jnp.asarray(source[pad_rows(part, chunk_size)])
        if number % _CHUNKS_KEPT == 0:
            give_back_freed_memory()


def _collect(pieces: Iterator[tuple[int, PyTree]], total: int, *, axis: int = 0) -> PyTree:
    """The results for `total` rows, which lie along an axis. In arrays made at once: small ones
    that are kept, between the large ones of each chunk, would keep the system from taking these
    back."""
    found: PyTree = None
    done = 0
    before = (slice(None),) * axis
    for count, value in pieces:
        if found is None:
            found = jax.tree.map(
                lambda x: np.empty((*x.shape[:axis], total, *x.shape[axis + 1 :]), x.dtype), value
            )
        for whole, part in zip(jax.tree.leaves(found), jax.tree.leaves(value), strict=True):
            whole[(*before, slice(done, done + count))] = np.asarray(part)[(*before, slice(count))]
        done += count
    if found is None:
        raise ValueError("no rows were given: there is nothing to pass through the network")
    return found


@functools.lru_cache(maxsize=64)
def _all_scores(scores: tuple[Score, ...]) -> Callable[[Array], tuple[Array, ...]]:
    return lambda log_probs: tuple(score(log_probs) for score in scores)


def score_pool(
    key: Key,
    posterior: Posterior,
    source: Source,
    rows: Any,
    scores: Sequence[Score],
    *,
    num_samples: int,
    chunk_size: int | None = None,
) -> tuple[np.ndarray, ...]:
    """Scores of the inputs `source[rows]`, one `[N]` array for each score.

    Args:
      key: consumed.
      posterior: K networks, see `mc_dropout`.
      source: inputs by row.
      rows: `[N]` integers.
      scores: functions `[n, K, C] -> [n]`, each looking at one input at a time.
      num_samples: K.
      chunk_size: inputs in flight; any value gives the same scores within rounding. None: at
        most 2,000, so that the last chunk is filled up with little; of few sizes, since each is
        compiled. Up to seven arrays `[chunk_size, K, C]` of float32 are in memory at once, 1 GB
        at 2,000 x 20 x 1,000: with so many classes give fewer.

    Raises:
      ValueError: rows out of range or empty, sizes that are not positive.
    """
    reduce = _all_scores(tuple(scores))
    chunks = _stream(key, [posterior], [num_samples], source, rows, reduce, chunk_size)
    return _collect(chunks, np.size(rows))


def _identity(log_probs: Array) -> Array:
    return log_probs


def log_probs(
    key: Key,
    posterior: Posterior,
    source: Source,
    rows: Any,
    *,
    num_samples: int,
    chunk_size: int | None = None,
) -> np.ndarray:
    """Dense `[N, K, C]` log-probabilities, for rules that look at several inputs at once."""
    chunks = _stream(key, [posterior], [num_samples], source, rows, _identity, chunk_size)
    return _collect(chunks, np.size(rows))


def _mean_predictives(*log_probs: Array) -> tuple[Array, ...]:
    return tuple(log_mean_exp(each, axis=1) for each in log_probs)


def predict(
    key: Key,
    posteriors: Sequence[Posterior],
    source: Source,
    rows: Any,
    *,
    num_samples: Sequence[int],
    chunk_size: int | None = None,
) -> tuple[np.ndarray, ...]:
    """Mean predictive log-probabilities `[N, C]` under each posterior.

    Posteriors over the same variables share the work they have in common, such as
    the convolutions of a network seen with and without dropout. Their numbers of
    samples are equal or 1. Without a `chunk_size`, at most 2,100, so that the last chunk is
    nearly full: each number of rows may then be a program of its own. Give one for a set
    that changes its size.
    """
    if chunk_size is None:
        chunk_size = even_chunk(np.size(rows), _MOST_PREDICTED, step=_PREDICTED_STEP)
    chunks = _stream(key, posteriors, num_samples, source, rows, _mean_predictives, chunk_size)
    return _collect(chunks, np.size(rows))


class PointOutputs(NamedTuple):
    """What a network says with dropout off."""

    log_probs: np.ndarray  # [N, C]
    features: np.ndarray  # [N, D]


@functools.partial(jit, static_argnums=0)
def _point_outputs(model: Model, variables: Variables, inputs: Array) -> tuple[Array, Array]:
    outputs, _ = model.apply(variables, None, inputs, mode="mean")
    return jax.nn.log_softmax(outputs.logits), outputs.features


def outputs(
    model: Model, variables: Variables, source: Source, rows: Any, *, chunk_size: int = 500
) -> PointOutputs:
    """Log-probabilities `[N, C]` and features `[N, D]` of `source[rows]`, dropout off.

    Raises:
      ValueError: rows out of range or empty, sizes that are not positive.
    """
    chunks = _inputs(source, rows, chunk_size)
    found = ((n, _point_outputs(model, variables, x)) for n, x in chunks)
    return PointOutputs(*_collect(found, np.size(rows)))


@functools.partial(jit, static_argnums=0)
def _gradient_sums(model: Model, variables: Variables, inputs: Array) -> Array:
    def loss(inputs: Array) -> Array:
        logits = model.apply(variables, None, inputs, mode="mean")[0].logits
        # Examples do not touch one another with dropout off, so one backward pass of the
        # sum gives each its own gradient.
        return -jnp.sum(jnp.max(jax.nn.log_softmax(logits), axis=-1))

    gradients = jax.grad(loss)(inputs)
    return jnp.sum(jnp.abs(gradients.reshape(len(inputs), -1)), axis=-1)


def input_gradients(
    model: Model, variables: Variables, source: Source, rows: Any, *, chunk_size: int = 500
) -> np.ndarray:
    """Sum over the input of |d CE(f(x), argmax f(x)) / dx|, `[N]`, dropout off.

    How fast the loss of the predicted class grows when the input moves: the "gradients" rule
    of the ActiveLearningComparison toolkit, for each input by itself.

    Raises:
      ValueError: rows out of range or empty, sizes that are not positive.
    """
    chunks = _inputs(source, rows, chunk_size)
    return _collect(((n, _gradient_sums(model, variables, x)) for n, x in chunks), np.size(rows))
