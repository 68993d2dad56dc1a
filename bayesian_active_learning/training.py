"""`fit`: minimise cross-entropy and weight decay over a labelled set that grows.

The labelled set lives in a padded buffer, minibatches are rows of a table of
indices made on the host, and a block of steps runs in one call over donated
buffers with the number of steps as data. One compilation therefore serves every
round, seed and acquisition function that share a model, an optimizer and sizes.
Products are float32 ones on every device, unless a model says less
(`models.with_precision`).
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from bayesian_active_learning import losses, metrics
from bayesian_active_learning.compilation import jit
from bayesian_active_learning.precision import full_precision
from bayesian_active_learning.types import (
    Array,
    ArrayLike,
    Key,
    Model,
    PyTree,
    Source,
    Variables,
)
from bayesian_active_learning.utils import check_one_of, check_positive, round_up, split_key

_MOST_STEPS = 400
_PATIENCE = 4.0
"""Steps, and seconds, of one call where nobody looks in between. Python is slow after a long call
(40 ms from one to the next, measured in a virtual machine); but an interrupt waits for its end."""

MONITORS = ("none", "nll", "accuracy")
SCHEDULES = ("constant", "cosine")


class FitConfig(NamedTuple):
    """How to train. Steps are max(min_steps, epochs * N / batch_size), rounded up.

    A minibatch always has `batch_size` examples: each epoch is a new order of the
    labelled set, and the epochs follow one another without a gap, so every example
    is seen equally often, also when there are fewer of them than `batch_size`.
    """

    batch_size: int = 32
    epochs: float = 50
    min_steps: int = 400
    weight_decay: float = 2.5  # c in c / N, see losses.weight_decay_penalty
    decay_coverage: str = "first_dense"
    monitor: str = "none"  # "nll" or "accuracy": early stopping on the validation set
    patience: int = 5  # checks without a better value before stopping
    check_every: int = 50  # steps between two checks, and two calls of `on_block`
    schedule: str = "cosine"  # of the learning rate: falls to 0 at the last step, or "constant"


class FitResult(NamedTuple):
    """What `fit` found. best_step is where `variables` were taken: the last step, or
    the best one on the validation set when that is monitored."""

    variables: Variables
    steps: int
    best_step: int
    train_loss: float  # of the last check_every steps or what is left of them, with penalty
    validation: tuple[tuple[int, float, float], ...]  # (step, nll, accuracy) of each check


class TrainingDiverged(ArithmeticError):
    """The loss became NaN or infinite. `step` counts from 0."""

    def __init__(self, step: int, loss: float):
        super().__init__(
            f"training diverged: the loss is {loss} at step {step}; a lower learning rate "
            "or inputs of ordinary size (standardised) usually help"
        )
        self.step, self.loss = step, loss


class _Progress(NamedTuple):
    """What one block hands to the next; donated."""

    params: PyTree
    state: PyTree
    optimizer: PyTree


def _steps(
    model: Model, optimizer: optax.GradientTransformation, coverage: str, schedule: str
) -> Callable[..., Any]:
    """A block of steps, as a plain function."""

    def loss_of(params, state, key, inputs, labels, strength, num_labelled):
        outputs, state = model.apply(Variables(params, state), key, inputs, mode="train")
        loss = losses.cross_entropy(outputs.logits, labels)
        penalty = losses.weight_decay_penalty(params, strength, num_labelled, coverage)
        return loss + penalty, state

    def block(progress, key, first, count, total, table, inputs, labels, strength, num_labelled):
        def step(i, carry):
            progress, history = carry
            batch = table[i]
            gradient = jax.value_and_grad(loss_of, has_aux=True)
            (loss, state), grads = gradient(
                progress.params,
                progress.state,
                jax.random.fold_in(key, first + i),
                inputs[batch],
                labels[batch],
                strength,
                num_labelled,
            )
            updates, opt_state = optimizer.update(grads, progress.optimizer, progress.params)
            if schedule == "cosine":
                factor = 0.5 * (1 + jnp.cos(jnp.pi * (first + i) / total))
                updates = jax.tree.map(lambda update: factor * update, updates)
            params = optax.apply_updates(progress.params, updates)
            return _Progress(params, state, opt_state), history.at[i].set(loss)

        history = jnp.zeros(table.shape[0], jnp.float32)
        return lax.fori_loop(0, count, step, (progress, history))

    return block


@functools.lru_cache(maxsize=32)
def _compiled(
    model: Model, optimizer: optax.GradientTransformation, coverage: str, schedule: str
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    block = _steps(model, optimizer, coverage, schedule)

    @jit
    def check(params, state, inputs, labels):
        outputs, _ = model.apply(Variables(params, state), None, inputs, mode="mean")
        found = metrics.classification_metrics(jax.nn.log_softmax(outputs.logits), labels)
        return found.nll, found.accuracy

    return jit(block, donate_argnums=0), check


@functools.partial(jax.jit, static_argnums=0)
@full_precision
def initial(model: Model, key: Key, inputs: Array) -> Variables:
    """Fresh parameters for inputs `[1, ...]`, whose values do not count."""
    return model.init(key, inputs)


_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


@jax.jit
def _four_numbers(key: Key) -> Array:
    return jax.random.bits(key, (4,), "uint32")


def minibatches(key: Key, num_labelled: int, batch_size: int) -> Iterator[np.ndarray]:
    """Minibatches of positions in the labelled set, without end."""
    seed = np.asarray(_four_numbers(key))
    generator = np.random.Generator(np.random.PCG64(seed.tolist()))
    left = np.zeros(0, np.int64)
    while True:
        while len(left) < batch_size:
            left = np.concatenate([left, generator.permutation(num_labelled)])
        yield left[:batch_size].astype(np.int32)
        left = left[batch_size:]


def num_steps(config: FitConfig, num_labelled: int) -> int:
    """Gradient steps that `fit` takes for this many labels if it is not stopped early."""
    by_epochs = -(-config.epochs * num_labelled // config.batch_size)
    return max(1, int(config.min_steps), int(by_epochs))


def check_config(config: FitConfig) -> None:
    """Raises ValueError on values that cannot work."""
    check_positive(
        batch_size=config.batch_size, check_every=config.check_every, patience=config.patience
    )
    check_one_of("monitor", config.monitor, MONITORS)
    check_one_of("schedule", config.schedule, SCHEDULES)
    check_one_of("weight decay coverage", config.decay_coverage, losses.COVERAGES)
    for name in ("epochs", "min_steps", "weight_decay"):
        if not 0 <= getattr(config, name) < np.inf:
            raise ValueError(
                f"{name} must not be negative or infinite, got {getattr(config, name)}"
            )


def _check_labelled(
    source: Source, rows: np.ndarray, labels: np.ndarray, capacity: int | None
) -> None:
    for name, values in (("rows", rows), ("labels", labels)):
        if values.size and not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name} must be integers, got {values.dtype}")
    if rows.ndim != 1 or rows.shape != labels.shape:
        raise ValueError(f"expected one label a row, got {rows.shape} and {labels.shape}")
    if not rows.size:
        raise ValueError("cannot fit without labels: the labelled set is empty")
    if not 0 <= rows.min() <= rows.max() < source.shape[0]:
        raise ValueError(
            f"rows must lie in 0..{source.shape[0] - 1}, got {rows.min()}..{rows.max()}"
        )
    if labels.min() < 0:
        raise ValueError(f"labels must not be negative, got {labels.min()}")
    if capacity is not None and capacity < rows.size:
        raise ValueError(f"capacity {capacity} is smaller than the {rows.size} labelled rows")


def _buffer_size(num_rows: int, capacity: int | None) -> int:
    return round_up(num_rows, 128) if capacity is None else capacity


def _buffers(
    source: Source, rows: np.ndarray, labels: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels, padded to `size` with zeros."""
    values = np.asarray(source[rows])
    inputs = np.zeros((size, *values.shape[1:]), values.dtype)
    inputs[: len(rows)] = values
    padded = np.zeros(size, np.int32)
    padded[: len(rows)] = labels
    return inputs, padded


def _table(batches: Iterator[np.ndarray], count: int, most: int, config: FitConfig) -> np.ndarray:
    """The next `count` minibatches, padded to the `most` that a block has room for."""
    table = np.zeros((most, config.batch_size), np.int32)
    if count:
        table[:count] = [next(batches) for _ in range(count)]
    return table


def fit(
    key: Key,
    model: Model,
    optimizer: optax.GradientTransformation,
    source: Source,
    rows: ArrayLike,
    labels: ArrayLike,
    *,
    config: FitConfig,
    variables: Variables | None = None,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    capacity: int | None = None,
    on_block: Callable[[int, Variables], object] | None = None,
) -> FitResult:
    """Trains on `source[rows]` and `labels`.

    Args:
      key: consumed; gives initial parameters, minibatches and dropout masks.
      model, optimizer: reuse the same objects from call to call, since what was
        compiled is found by them.
      source: inputs by row.
      rows, labels: `[L]` integers each.
      config: see `FitConfig`.
      variables: start from these (warm), or from fresh ones when None.
      validation: (inputs `[V, ...]`, labels `[V]`), needed when `config.monitor` is
        not "none".
      capacity: size of the padded buffer; runs that agree on it share a compilation.
        It does not change the result.
      on_block: called with the number of steps taken and the parameters after each block
        of `config.check_every` steps (the last may be shorter). The next block takes their
        memory: copy, or reduce, what is to be kept. It does not change the result.

    Raises:
      ValueError: sizes that do not fit, no labels, a monitor without validation.
      TrainingDiverged: the loss became NaN or infinite; says at which step.
    """
    rows, labels = np.asarray(rows), np.asarray(labels)
    check_config(config)
    _check_labelled(source, rows, labels, capacity)
    if config.monitor != "none" and validation is None:
        raise ValueError(f"monitor {config.monitor!r} needs a validation set, got None")

    size = _buffer_size(len(rows), capacity)
    buffers = _buffers(source, rows, labels, size)
    inputs, padded_labels = jax.device_put(buffers)

    init_key, batch_key, mask_key = split_key(key, 3)
    if variables is None:
        variables = initial(model, init_key, buffers[0][:1])
    else:
        variables = _copy(variables)  # the buffers are donated below; the caller keeps his
    block, check = _compiled(model, optimizer, config.decay_coverage, config.schedule)
    progress = _Progress(
        variables.params, variables.state, jax.jit(optimizer.init)(variables.params)
    )
    held_out: tuple[Array, ...] = ()
    if validation is not None:
        held_out = jax.device_put(tuple(np.asarray(part) for part in validation))

    batches = minibatches(batch_key, len(rows), config.batch_size)
    total, every = num_steps(config, len(rows)), config.check_every
    watched = on_block is not None or config.monitor != "none"
    most = every * max(1, _MOST_STEPS // every)  # one number, so that one program serves all
    size = every
    strength, count_labelled = np.float32(config.weight_decay), np.float32(len(rows))
    checks: list[tuple[int, float, float]] = []
    best, best_step, best_value = variables, 0, np.inf
    step, mean_loss = 0, np.nan
    while step < total:
        count = min(size, total - step)
        began = time.perf_counter()
        progress, history = block(
            progress,
            mask_key,
            step,
            count,
            total,
            _table(batches, count, most, config),
            inputs,
            padded_labels,
            strength,
            count_labelled,
        )
        block_losses = np.asarray(history)[:count]
        finite = np.isfinite(block_losses)
        if not finite.all():
            first = int(np.argmin(finite))
            raise TrainingDiverged(step + first, float(block_losses[first]))
        mean_loss = float(block_losses[(count - 1) // every * every :].mean())
        step += count
        if not watched:
            seconds = max(time.perf_counter() - began, 1e-6) / count * every
            size = every * int(np.clip(_PATIENCE / seconds, 1, most // every))
        if on_block is not None:
            on_block(step, Variables(progress.params, progress.state))
        if config.monitor != "none":
            nll, accuracy = (float(x) for x in check(progress.params, progress.state, *held_out))
            checks.append((step, nll, accuracy))
            value = nll if config.monitor == "nll" else -accuracy
            if value < best_value:
                best = _copy(Variables(progress.params, progress.state))
                best_step, best_value = step, value
            elif step - best_step >= config.patience * every:
                break
    if config.monitor == "none" or not best_step:
        best, best_step = Variables(progress.params, progress.state), step
    return FitResult(best, step, best_step, mean_loss, tuple(checks))
