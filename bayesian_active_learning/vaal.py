"""VAAL: which inputs does a discriminator tell from the labelled ones?

Variational adversarial active learning (Sinha, Ebrahimi & Darrell 2019,
arXiv:1904.00370), the task-agnostic part, trained anew each round: an autoencoder
embeds labelled and unlabelled inputs and tries to make them look alike, a
discriminator D of the latent means mu(x) tries to tell them apart, and the inputs
that it takes for unlabelled with the most confidence are the ones to label. No label
is read.

Minibatches are drawn and read on the host, a block of steps at a time, and every
block has the same shape: one compilation serves all rounds, however many rows are
labelled, and a source that does not fit in memory is never read whole. No minibatch
has padding, so none gets into the statistics of BatchNorm.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from bayesian_active_learning import training
from bayesian_active_learning.compilation import jit
from bayesian_active_learning.models import vae
from bayesian_active_learning.types import Array, ArrayLike, Key, PyTree, Source, Variables
from bayesian_active_learning.utils import check_one_of, check_positive, pad_rows


class VaalConfig(NamedTuple):
    """How to train. Steps are epochs * ((|L| + |U|) // batch_size), at least 1 and at most
    `max_steps`; each takes `batch_size` labelled and as many unlabelled inputs."""

    z_dim: int = 32
    batch_size: int = 64
    epochs: int = 15
    learning_rate: float = 5e-4  # of Adam, for the autoencoder and for the discriminator
    discriminator_rate: float | None = None  # for the discriminator, where it is another
    beta: float = 1.0  # weight of the divergence from the prior, see `autoencoder_loss`
    adversary: float = 1.0  # weight of the game against the discriminator
    max_steps: int | None = 1000  # None: all that the epochs have, 10 times as many on MNIST
    network: str = "auto"  # by the shape of the inputs, or one of `vae.NETWORKS`
    block_size: int = 25  # steps in one call: sets the memory, 2 * block_size * batch_size inputs


class VaalState(NamedTuple):
    """What `fit_vaal` found, and all that `unlabelled_log_odds` needs."""

    config: VaalConfig  # `network` is the one that was used
    variables: Variables  # of the autoencoder
    discriminator: PyTree
    steps: int
    autoencoder_loss: float  # means over the last block; the game is part of the first
    discriminator_loss: float


def autoencoder_loss(inputs: Array, outputs: vae.AutoencoderOutputs, beta: ArrayLike) -> Array:
    """mean (x - x')^2 - beta / 2 * sum (1 + log s^2 - mu^2 - s^2), a scalar.

    The mean is over examples and pixels, the sum over examples and latents, as in both
    public implementations: at beta = 1 the divergence outweighs the reconstruction by far
    and the latent means stay close to 0 (0.16 in root mean square after 150 steps on MNIST;
    1.0 at beta = 1e-3).
    """
    mean, log_variance = outputs.mean, outputs.log_variance
    error = jnp.mean(jnp.square(outputs.reconstruction - inputs))
    divergence = -0.5 * jnp.sum(1 + log_variance - jnp.square(mean) - jnp.exp(log_variance))
    return error + beta * divergence


def adversary_loss(labelled_logits: Array, unlabelled_logits: Array) -> Array:
    """BCE(D(mu_L), 1) + BCE(D(mu_U), 1), each a mean, for D = sigmoid(logits): what the
    autoencoder minimises, so that all its inputs pass for labelled."""
    return jnp.mean(jax.nn.softplus(-labelled_logits)) + jnp.mean(
        jax.nn.softplus(-unlabelled_logits)
    )


def discriminator_loss(labelled_logits: Array, unlabelled_logits: Array) -> Array:
    """BCE(D(mu_L), 1) + BCE(D(mu_U), 0), each a mean, for D = sigmoid(logits)."""
    return jnp.mean(jax.nn.softplus(-labelled_logits)) + jnp.mean(
        jax.nn.softplus(unlabelled_logits)
    )


class _Weights(NamedTuple):
    """The numbers of the config that need no compilation of their own."""

    learning_rate: Array
    beta: Array
    adversary: Array
    discriminator_rate: Array


class _Progress(NamedTuple):
    """What one block hands to the next; donated."""

    variables: Variables
    optimizer: PyTree
    discriminator: PyTree
    discriminator_optimizer: PyTree


_ADAM = optax.scale_by_adam()  # the learning rate comes as data


def _updated(grads: PyTree, optimizer: PyTree, params: PyTree, rate: Array) -> tuple[PyTree, ...]:
    updates, optimizer = _ADAM.update(grads, optimizer)
    return jax.tree.map(lambda p, u: p - rate * u, params, updates), optimizer


def _autoencoder_step(
    coder: vae.Autoencoder,
    progress: _Progress,
    noises: Array,  # [2, B, Z] standard normal, for the two batches
    labelled: Array,
    unlabelled: Array,
    weights: _Weights,
) -> tuple[_Progress, Array]:
    """The discriminator stays as it is."""
    judge = functools.partial(vae.discriminator().apply, progress.discriminator)

    def loss_of(params: PyTree) -> tuple[Array, PyTree]:
        losses, logits, state = [], [], progress.variables.state
        # One after the other: each half has its own batch statistics.
        for inputs, noise in zip((labelled, unlabelled), noises):
            outputs, state = coder.apply(Variables(params, state), noise, inputs)
            losses.append(autoencoder_loss(inputs, outputs, weights.beta))
            logits.append(judge(outputs.mean))
        return sum(losses) + weights.adversary * adversary_loss(*logits), state

    params = progress.variables.params
    (loss, state), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    params, optimizer = _updated(grads, progress.optimizer, params, weights.learning_rate)
    return progress._replace(variables=Variables(params, state), optimizer=optimizer), loss


def _discriminator_step(
    coder: vae.Autoencoder,
    progress: _Progress,
    labelled: Array,
    unlabelled: Array,
    weights: _Weights,
) -> tuple[_Progress, Array]:
    """The autoencoder stays as it is, running averages included; latent means are those
    that the scores will be made of."""
    means = coder.encode(progress.variables, jnp.concatenate([labelled, unlabelled]))

    def loss_of(params: PyTree) -> Array:
        logits = vae.discriminator().apply(params, means)
        return discriminator_loss(logits[: len(labelled)], logits[len(labelled) :])

    params = progress.discriminator
    loss, grads = jax.value_and_grad(loss_of)(params)
    params, optimizer = _updated(
        grads, progress.discriminator_optimizer, params, weights.discriminator_rate
    )
    return progress._replace(discriminator=params, discriminator_optimizer=optimizer), loss


@functools.lru_cache(maxsize=32)
def _compiled(network: str, z_dim: int) -> tuple[Callable[..., Any], ...]:
    coder = vae.autoencoder(network, z_dim)

    @jit
    def start(key, inputs):
        coder_key, judge_key = jax.random.split(key)
        variables = coder.init(coder_key, inputs)
        params = vae.discriminator().init(judge_key, jnp.zeros((1, z_dim), jnp.float32))
        return _Progress(variables, _ADAM.init(variables.params), params, _ADAM.init(params))

    @functools.partial(jit, donate_argnums=0)
    def block(progress, key, first, count, labelled, unlabelled, weights):
        def step(i, carry):
            progress, history = carry
            batches = labelled[i], unlabelled[i]
            shape = (2, labelled.shape[1], z_dim)
            noises = jax.random.normal(jax.random.fold_in(key, first + i), shape, jnp.float32)
            progress, loss = _autoencoder_step(coder, progress, noises, *batches, weights)
            progress, judged = _discriminator_step(coder, progress, *batches, weights)
            return progress, history.at[i].set(jnp.stack([loss, judged]).astype(jnp.float32))

        history = jnp.zeros((len(labelled), 2), jnp.float32)
        return lax.fori_loop(0, count, step, (progress, history))

    @jit
    def log_odds(variables, params, inputs):
        return -vae.discriminator().apply(params, coder.encode(variables, inputs))

    return start, block, log_odds


@functools.lru_cache(maxsize=32)
def _encoder(network: str, z_dim: int) -> Callable[..., Array]:
    return jit(vae.autoencoder(network, z_dim).encode)


def num_steps(config: VaalConfig, num_labelled: int, num_unlabelled: int) -> int:
    """Alternating steps that `fit_vaal` takes."""
    steps = max(1, config.epochs * ((num_labelled + num_unlabelled) // config.batch_size))
    return steps if config.max_steps is None else min(steps, config.max_steps)


def check_config(config: VaalConfig) -> None:
    """Raises ValueError on values that cannot work."""
    check_one_of("network", config.network, vae.NETWORKS)
    for name in ("z_dim", "batch_size", "epochs", "max_steps", "block_size"):
        value = getattr(config, name)
        if name == "max_steps" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ValueError(f"{name} must be an integer, got {value!r}")
        check_positive(**{name: int(value)})
    if config.batch_size < 2:
        raise ValueError("batch_size must be at least 2: one example has no batch statistics")
    for name in ("learning_rate", "discriminator_rate", "beta", "adversary"):
        value = getattr(config, name)
        if name == "discriminator_rate" and value is None:
            continue
        rate = name.endswith("rate")
        if not 0 <= value < np.inf or (rate and value == 0):
            least = "positive" if rate else "at least 0"
            raise ValueError(f"{name} must be {least} and finite, got {value}")


def _checked_rows(name: str, rows: ArrayLike, source: Source) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
        raise ValueError(f"{name} must be a list of integers, got {rows.dtype} {rows.shape}")
    if rows.size and not 0 <= rows.min() <= rows.max() < source.shape[0]:
        raise ValueError(
            f"{name} must lie in 0..{source.shape[0] - 1}, got {rows.min()}..{rows.max()}"
        )
    return rows.astype(np.int64)


def _checked_sets(
    source: Source, labelled_rows: ArrayLike, unlabelled_rows: ArrayLike
) -> list[np.ndarray]:
    """Both sets in ascending order: what is learnt does not depend on how they came."""
    found = []
    named = {"labelled_rows": labelled_rows, "unlabelled_rows": unlabelled_rows}
    for name, rows in named.items():
        rows = np.sort(_checked_rows(name, rows, source))
        if not rows.size:
            raise ValueError(
                f"VAAL learns the difference between labelled and unlabelled inputs: {name} "
                "is empty; label a first set by another strategy, such as random"
            )
        twice = rows[1:][rows[1:] == rows[:-1]]
        if twice.size:
            raise ValueError(f"{name} has row {twice[0]} more than once")
        found.append(rows)
    both = np.intersect1d(found[0], found[1], assume_unique=True)
    if both.size:
        raise ValueError(f"labelled and unlabelled rows must be disjoint, row {both[0]} is in both")
    return found


def _read(source: Source, rows: np.ndarray) -> np.ndarray:
    """float32 inputs of `rows`, of any shape; each row is read once, in ascending order."""
    distinct, places = np.unique(rows, return_inverse=True)
    values = np.asarray(source[distinct], np.float32)
    finite = np.isfinite(values).reshape(len(distinct), -1).all(axis=1)
    if not finite.all():
        raise ValueError(f"the input of row {distinct[np.argmin(finite)]} is NaN or infinite")
    return values[places.reshape(rows.shape)]


def fit_vaal(
    key: Key,
    source: Source,
    labelled_rows: ArrayLike,
    unlabelled_rows: ArrayLike,
    *,
    config: VaalConfig = VaalConfig(),  # noqa: B008 (immutable)
) -> VaalState:
    """Trains the autoencoder and the discriminator from fresh parameters.

    A step updates the autoencoder on autoencoder_loss(labelled) + autoencoder_loss(unlabelled)
    + adversary * adversary_loss, then the discriminator on discriminator_loss of the new
    autoencoder's latent means. Both sets are gone through in epochs of their own, the
    smaller one more often.

    Args:
      key: consumed; gives initial parameters, minibatches and latent noise.
      source: inputs by row, images `[N, H, W, C]` or vectors `[N, D]`, standardised.
      labelled_rows: `[L]` distinct integers.
      unlabelled_rows: `[U]` distinct integers, none of them labelled; may be a part of the pool.
      config: see `VaalConfig`.

    Returns:
      A `VaalState`; the same for the same key, data and sets, in whatever order they come.

    Raises:
      ValueError: an empty set, rows out of range, twice or in both sets, inputs of other
        ranks, NaN or infinite inputs (the row is named), a config that cannot work.
      training.TrainingDiverged: a loss became NaN or infinite; says at which step.
    """
    check_config(config)
    labelled, unlabelled = _checked_sets(source, labelled_rows, unlabelled_rows)
    config = config._replace(network=vae.network_for(tuple(source.shape[1:]), config.network))
    start, block, _ = _compiled(config.network, config.z_dim)

    init_key, labelled_key, unlabelled_key, noise_key = jax.random.split(key, 4)
    streams = [
        (rows, training.minibatches(batch_key, len(rows), config.batch_size))
        for rows, batch_key in ((labelled, labelled_key), (unlabelled, unlabelled_key))
    ]
    rate = config.discriminator_rate
    given = config._replace(discriminator_rate=config.learning_rate if rate is None else rate)
    weights = _Weights(*(jnp.float32(getattr(given, name)) for name in _Weights._fields))
    progress = start(init_key, np.zeros((2, *source.shape[1:]), np.float32))
    total = num_steps(config, len(labelled), len(unlabelled))
    step, means = 0, np.full(2, np.nan)
    while step < total:
        count = min(config.block_size, total - step)
        inputs = []
        for rows, batches in streams:
            drawn = rows[np.stack([next(batches) for _ in range(count)])]
            # Steps beyond `count` are not taken: any rows serve.
            fill = np.full((config.block_size - count, config.batch_size), rows[0])
            inputs.append(_read(source, np.concatenate([drawn, fill])))
        progress, history = block(progress, noise_key, step, count, *inputs, weights)
        losses = np.asarray(history)[:count]
        finite = np.isfinite(losses).all(axis=1)
        if not finite.all():
            first = int(np.argmin(finite))
            bad = losses[first][~np.isfinite(losses[first])]
            raise training.TrainingDiverged(step + first, float(bad[0]))
        means = losses.mean(axis=0)
        step += count
    return VaalState(
        config, progress.variables, progress.discriminator, step, float(means[0]), float(means[1])
    )


def latent_means(
    state: VaalState, source: Source, rows: ArrayLike, *, chunk_size: int = 500
) -> np.ndarray:
    """mu(x), `[N, Z]` float32: where the autoencoder puts inputs. With a state that was fitted
    with `adversary=0` this is a plain VAE, on which the discriminator had no influence.

    Arguments and errors as for `unlabelled_log_odds`.
    """
    encode = _encoder(state.config.network, state.config.z_dim)
    found = _in_chunks(lambda x: encode(state.variables, x), source, rows, chunk_size, "latents")
    return np.concatenate([np.zeros((0, state.config.z_dim), np.float32), *found])


def unlabelled_log_odds(
    state: VaalState, source: Source, rows: ArrayLike, *, chunk_size: int = 500
) -> np.ndarray:
    """log((1 - D(mu(x))) / D(mu(x))) in nats, `[N]` float32: how surely an input is unlabelled.

    The order of `unlabelled_probability`, and still different where that one has reached 1.

    Args:
      state: what `fit_vaal` returned.
      source: inputs by row, shaped as those it was fitted on.
      rows: `[N]` integers.
      chunk_size: inputs in flight; any value gives the same within rounding.

    Raises:
      ValueError: rows out of range, inputs of another shape, NaN or infinite ones (the row
        is named).
      ArithmeticError: networks so far off that the log odds are not finite.
    """
    _, _, log_odds = _compiled(state.config.network, state.config.z_dim)
    found = _in_chunks(
        lambda inputs: log_odds(state.variables, state.discriminator, inputs),
        source,
        rows,
        chunk_size,
        "log odds",
    )
    return np.concatenate([np.zeros(0, np.float32), *found])


def _in_chunks(
    evaluate: Callable[[Any], Array],
    source: Source,
    rows: ArrayLike,
    chunk_size: int,
    what: str,
) -> Iterator[np.ndarray]:
    """What `evaluate` makes of the inputs of `rows`, a chunk at a time, all of one shape."""
    check_positive(chunk_size=chunk_size)
    rows = _checked_rows("rows", rows, source)
    chunk_size = min(chunk_size, max(1, len(rows)))
    for begin in range(0, len(rows), chunk_size):
        part = rows[begin : begin + chunk_size]
        values = np.asarray(evaluate(_read(source, pad_rows(part, chunk_size))))[: len(part)]
        finite = np.isfinite(values).reshape(len(part), -1).all(axis=1)
        if not finite.all():
            raise ArithmeticError(
                f"the {what} of row {part[np.argmin(finite)]} are not finite: VAAL's training "
                "diverged in its last steps; a lower learning rate usually helps"
            )
        yield values


def unlabelled_probability(
    state: VaalState, source: Source, rows: ArrayLike, *, chunk_size: int = 500
) -> np.ndarray:
    """1 - D(mu(x)), `[N]` float32 in 0..1: VAAL labels the highest ones first.

    Computed from the log odds, so that it is exact close to 0; above 16.6 nats it is 1 in
    float32, and such rows tie (`unlabelled_log_odds` tells them apart). Arguments and
    errors as there.
    """
    log_odds = unlabelled_log_odds(state, source, rows, chunk_size=chunk_size)
    small = np.exp(-np.abs(log_odds))
    return (np.where(log_odds < 0, small, 1) / (1 + small)).astype(np.float32)
