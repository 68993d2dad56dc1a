"""Several cells of an experiment in one program: training and stochastic passes, side by side.

An accelerator is hardly busy with one small network; `vmap` over replicas gives it several
at once. Each replica has keys, labelled rows, numbers of steps and parameters of its own,
all of them data: what is compiled depends on the number of replicas alone, the `width`.
Fewer replicas than that are filled up by repeating the first, so that a replica that has
ended, or one that is behind, is no new program. Results are those of one after another
within rounding, and do not depend on which replicas are beside a replica.

Memory in flight is `width` times that of one replica: O(width * chunk_size).
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bayesian_active_learning import inference, training
from bayesian_active_learning.compilation import jit
from bayesian_active_learning.precision import full_precision
from bayesian_active_learning.types import (
    Array,
    ArrayLike,
    Key,
    Model,
    Outputs,
    Posterior,
    PyTree,
    Score,
    Source,
    Variables,
)
from bayesian_active_learning.utils import check_positive, pad_rows

_stack = jax.jit(lambda *trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees))


@functools.partial(jax.jit, static_argnums=1)
def _unstack(stacked: PyTree, width: int) -> tuple[PyTree, ...]:
    return tuple(jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(width))


def _filled(values: Sequence[Any], width: int) -> list[Any]:
    """`values`, and the first one again until there are `width`."""
    return [*values, *[values[0]] * (width - len(values))]


def _check_width(width: int, **values: Sequence[Any]) -> None:
    check_positive(width=width)
    sizes = {name: len(each) for name, each in values.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"expected one of each a replica, got {sizes}")
    if not 0 < next(iter(sizes.values())) <= width:
        raise ValueError(f"a width of {width} takes 1 to {width} replicas, got {sizes}")


@functools.lru_cache(maxsize=32)
def _compiled(
    model: Model, optimizer: optax.GradientTransformation, coverage: str, schedule: str
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(start, block) over a leading axis of replicas, see `training`."""

    def start(key: Key, inputs: Array) -> training._Progress:
        variables = model.init(key, inputs[:1])
        return training._Progress(
            variables.params, variables.state, optimizer.init(variables.params)
        )

    # The step that a block begins with and the strength of the penalty are the same for all.
    # With a number of steps each, the loop runs until the last one is done, and what has
    # ended stays as it is.
    axes = (0, 0, None, 0, 0, 0, 0, 0, None, 0)
    block = jax.vmap(training._steps(model, optimizer, coverage, schedule), axes)
    return jit(jax.vmap(start)), jit(block, donate_argnums=0)


def fit(
    keys: Sequence[Key],
    model: Model,
    optimizer: optax.GradientTransformation,
    source: Source,
    rows: Sequence[ArrayLike],
    labels: Sequence[ArrayLike],
    *,
    config: training.FitConfig,
    capacity: int,
    width: int,
) -> list[training.FitResult | training.TrainingDiverged]:
    """`training.fit` for several replicas in one program, from fresh parameters.

    Args:
      keys: R of them, one a replica; consumed.
      model, optimizer, source, config: as there, the same for all; no early stopping.
      rows, labels: `[L_r]` integers each; L may differ.
      capacity: size of the padded buffers, at least the largest L.
      width: replicas in the program, at least R.

    Returns:
      What each replica has found, or the error that it ended with: one that diverges does
      not stop the others.

    Raises:
      ValueError: see `training.fit`; a monitor; more replicas than `width`.
    """
    training.check_config(config)
    if config.monitor != "none":
        raise ValueError(
            f"replicas do not stop early: monitor must be 'none', not {config.monitor}"
        )
    _check_width(width, keys=keys, rows=rows, labels=labels)
    sets = [(np.asarray(own), np.asarray(told)) for own, told in zip(rows, labels, strict=True)]
    for own, told in sets:
        training._check_labelled(source, own, told, capacity)

    count = len(keys)
    totals = np.array([training.num_steps(config, len(own)) for own, _ in sets], np.int32)
    buffers = [training._buffers(source, own, told, capacity) for own, told in sets]
    inputs, padded = (
        jax.device_put(np.stack(_filled(part, width))) for part in zip(*buffers, strict=True)
    )
    sizes = jnp.asarray(_filled([len(own) for own, _ in sets], width), jnp.float32)
    init_keys, batch_keys, mask_keys = zip(*(jax.random.split(key, 3) for key in keys), strict=True)
    batches = [
        training.minibatches(key, len(own), config.batch_size)
        for key, (own, _) in zip(batch_keys, sets, strict=True)
    ]
    start, block = _compiled(model, optimizer, config.decay_coverage, config.schedule)
    progress = start(jnp.stack(_filled(init_keys, width)), inputs)
    masks = jnp.stack(_filled(mask_keys, width))

    strength = jnp.float32(config.weight_decay)
    diverged: dict[int, training.TrainingDiverged] = {}
    means = np.full(count, np.nan)
    for step in range(0, int(totals.max()), config.check_every):
        counts = np.clip(totals - step, 0, config.check_every)
        counts[list(diverged)] = 0
        if not counts.any():
            break
        tables = [
            training._table(each, steps, config.check_every, config)
            for each, steps in zip(batches, counts.tolist(), strict=True)
        ]
        progress, history = block(
            progress,
            masks,
            step,
            np.pad(counts, (0, width - count)),  # what only fills up takes no step
            np.asarray(_filled(totals.tolist(), width), np.int32),
            np.stack(_filled(tables, width)),
            inputs,
            padded,
            strength,
            sizes,
        )
        losses = np.asarray(history)
        for place in np.flatnonzero(counts).tolist():
            block_losses = losses[place, : counts[place]]
            means[place] = block_losses.mean()
            finite = np.isfinite(block_losses)
            if not finite.all():
                first = int(np.argmin(finite))
                diverged[place] = training.TrainingDiverged(
                    step + first, float(block_losses[first])
                )
    fitted = _unstack(Variables(progress.params, progress.state), width)
    return [
        diverged.get(place)
        or training.FitResult(fitted[place], total, total, float(means[place]), ())
        for place, total in enumerate(totals.tolist())
    ]


@functools.partial(jit, static_argnums=(0, 1, 2))
def _chunks(
    applies: tuple[Callable[..., Outputs], ...],
    places: tuple[int, ...],
    reduce: Callable[..., PyTree],
    shared: tuple[PyTree, ...],
    draws: tuple[PyTree, ...],
    inputs: Array,
) -> PyTree:
    """`inference._chunk` over a leading axis of replicas, inputs `[R, n, ...]`."""
    return jax.vmap(functools.partial(inference._chunk, applies, places, reduce))(
        shared, draws, inputs
    )


@functools.partial(jax.jit, static_argnums=(0, 3))
@full_precision
def _draws(draw: Callable[..., PyTree], shared: PyTree, keys: Array, num_samples: int) -> PyTree:
    return jax.vmap(lambda shared, key: draw(shared, key, num_samples))(shared, keys)


def _inputs(
    source: Source, rows: Sequence[Any], chunk_size: int, width: int
) -> Iterator[tuple[int, Array]]:
    """Chunks of each replica's rows, side by side: (number of rows, inputs `[R, n, ...]`)."""
    checked = [np.asarray(each) for each in rows]
    if any(not each.size for each in checked):
        raise ValueError("no rows were given: there is nothing to pass through the network")
    length = max(map(len, checked))
    streams = [inference._inputs(source, pad_rows(each, length), chunk_size) for each in checked]
    for parts in zip(*streams, strict=True):
        inputs = [inputs for _, inputs in parts]
        yield parts[0][0], jnp.stack(_filled(inputs, width))


def _together(
    keys: Sequence[Key],
    posteriors: Sequence[Sequence[Posterior]],
    num_samples: Sequence[int],
    source: Source,
    rows: Sequence[Any],
    reduce: Callable[..., PyTree],
    chunk_size: int,
    width: int,
) -> list[PyTree]:
    """What `reduce` gives for the rows of each replica, under its own posteriors."""
    _check_width(width, keys=keys, posteriors=posteriors, rows=rows)
    inference._check_samples(num_samples)
    first = posteriors[0]
    # As in `inference`: arrays that several posteriors have in common go in once.
    distinct = list({id(each.shared): None for each in first})
    places = tuple(distinct.index(id(each.shared)) for each in first)
    functions = [(each.draw, each.apply) for each in first]
    if any([(each.draw, each.apply) for each in own] != functions for own in posteriors):
        raise ValueError("replicas need posteriors of one kind, over one model")
    stacked = tuple(
        _stack(*_filled([own[places.index(place)].shared for own in posteriors], width))
        for place in range(len(distinct))
    )
    stacked_keys = jnp.stack(_filled(keys, width))
    draws = tuple(
        _draws(draw, stacked[place], stacked_keys, samples)
        for (draw, _), place, samples in zip(functions, places, num_samples, strict=True)
    )
    applies = tuple(apply for _, apply in functions)
    parts = (
        (n, _chunks(applies, places, reduce, stacked, draws, inputs))
        for n, inputs in _inputs(source, rows, chunk_size, width)
    )
    whole = inference._collect(parts, max(map(np.size, rows)), axis=1)
    return [
        jax.tree.map(lambda x, i=i, own=own: x[i, : len(own)], whole) for i, own in enumerate(rows)
    ]


def score_pool(
    keys: Sequence[Key],
    posteriors: Sequence[Posterior],
    source: Source,
    rows: Sequence[Any],
    scores: Sequence[Score],
    *,
    num_samples: int,
    width: int,
    chunk_size: int = 500,
) -> list[tuple[np.ndarray, ...]]:
    """`inference.score_pool` for several replicas in one program.

    Args:
      keys: R of them, one a replica; consumed.
      posteriors: one a replica, of one kind and over one model.
      rows: `[N_r]` integers each; all scores are computed for all of them.
      width: replicas in the program, at least R.
      chunk_size: inputs in flight for each replica.
      source, scores, num_samples: as there, the same for all.

    Returns:
      For each replica a tuple with one `[N_r]` array for each score.

    Raises:
      ValueError: see `inference.score_pool`; posteriors that differ in kind; more replicas
        than `width`.
    """
    reduce = inference._all_scores(tuple(scores))
    return _together(
        keys, [(p,) for p in posteriors], [num_samples], source, rows, reduce, chunk_size, width
    )


def log_probs(
    keys: Sequence[Key],
    posteriors: Sequence[Posterior],
    source: Source,
    rows: Sequence[Any],
    *,
    num_samples: int,
    width: int,
    chunk_size: int = 500,
) -> list[np.ndarray]:
    """`inference.log_probs`, dense `[N_r, K, C]`, for several replicas; see `score_pool`."""
    reduce = inference._identity
    return _together(
        keys, [(p,) for p in posteriors], [num_samples], source, rows, reduce, chunk_size, width
    )


def predict(
    keys: Sequence[Key],
    posteriors: Sequence[Sequence[Posterior]],
    source: Source,
    rows: Sequence[Any],
    *,
    num_samples: Sequence[int],
    width: int,
    chunk_size: int = 500,
) -> list[tuple[np.ndarray, ...]]:
    """`inference.predict` for several replicas, each under its own posteriors: a tuple of mean
    predictive log-probabilities `[N_r, C]` for each; see `score_pool`."""
    reduce = inference._mean_predictives
    return _together(keys, posteriors, num_samples, source, rows, reduce, chunk_size, width)
