"""SWAG: a Gaussian from the parameters that training passes through.

Moments are pytrees like the parameters, updated by a pure function from snapshot to
snapshot; `fit_swag` takes one every `check_every` steps of `training.fit`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bayesian_active_learning import training
from bayesian_active_learning.precision import full_precision
from bayesian_active_learning.types import (
    Array,
    ArrayLike,
    Key,
    Model,
    Outputs,
    Posterior,
    PyTree,
    Source,
    Variables,
)
from bayesian_active_learning.utils import normal


class SwagMoments(NamedTuple):
    """Moments of the snapshots so far, in the shapes of the parameters."""

    num_snapshots: Array  # int32
    mean: PyTree
    squares: PyTree  # sums of squared deviations from the mean
    deviations: PyTree  # [rank, ...]: of the last snapshots from the mean at their time
    state: PyTree  # of the last snapshot


def swag_moments(variables: Variables, rank: int = 20) -> SwagMoments:
    """Moments of no snapshot yet, for parameters like these.

    Args:
      rank: columns of the low-rank part, at least 2; or 0 for its diagonal alone.

    Raises:
      ValueError: another rank.
    """
    if rank < 0 or rank == 1:
        raise ValueError(f"rank must be 0 (diagonal only) or at least 2, got {rank}")
    zeros = jax.tree.map(jnp.zeros_like, variables.params)
    deviations = jax.tree.map(lambda x: jnp.zeros((rank, *x.shape), x.dtype), zeros)
    return SwagMoments(jnp.int32(0), zeros, zeros, deviations, variables.state)


def update_swag_moments(moments: SwagMoments, variables: Variables) -> SwagMoments:
    """The moments with one more snapshot. Pure; may be jitted.

    Sums of squared deviations are carried (Welford), as the mean of squares minus the
    squared mean leaves nothing of a small variance in float32.
    """
    count = moments.num_snapshots + 1

    def mean(old: Array, new: Array) -> Array:
        return old + (new - old) / count.astype(old.dtype)

    def squares(total: Array, old: Array, new: Array) -> Array:
        share = moments.num_snapshots.astype(old.dtype) / count.astype(old.dtype)
        return total + share * jnp.square(new - old)

    def deviations(columns: Array, new: Array, average: Array) -> Array:
        if not columns.shape[0]:
            return columns
        return columns.at[moments.num_snapshots % columns.shape[0]].set(new - average)

    means = jax.tree.map(mean, moments.mean, variables.params)
    return SwagMoments(
        count,
        means,
        jax.tree.map(squares, moments.squares, moments.mean, variables.params),
        jax.tree.map(deviations, moments.deviations, variables.params, means),
        # Copied: as a part of the result it must outlive the caller's buffers.
        jax.tree.map(jnp.copy, variables.state),
    )


_update = jax.jit(update_swag_moments)


@full_precision
def _draw_parameters(shared: SwagMoments, key: Key, num_samples: int) -> PyTree:
    rank_key, noise_key = jax.random.split(key)
    rank = jax.tree.leaves(shared.deviations)[0].shape[0]
    keys = iter(jax.random.split(noise_key, len(jax.tree.leaves(shared.mean))))

    def draw(mean: Array, squares: Array, columns: Array) -> Array:
        count = shared.num_snapshots.astype(mean.dtype)
        noise = normal(next(keys), (num_samples, *mean.shape), mean.dtype)
        diagonal = noise * jnp.sqrt(squares / count)
        if not rank:
            return mean + diagonal
        # One mixture of the columns for all leaves: that is what correlates them.
        mixture = jax.random.normal(rank_key, (num_samples, rank), mean.dtype)
        filled = jnp.minimum(count, rank)
        low_rank = jnp.tensordot(mixture, columns, 1) / jnp.sqrt(filled - 1)
        return mean + jnp.sqrt(0.5).astype(mean.dtype) * (diagonal + low_rank)

    return jax.tree.map(draw, shared.mean, shared.squares, shared.deviations)


@functools.lru_cache(maxsize=64)
def _apply(model: Model) -> Callable[[SwagMoments, PyTree, Array], Outputs]:
    def apply(shared: SwagMoments, params: PyTree, inputs: Array) -> Outputs:
        return model.apply(Variables(params, shared.state), None, inputs, mode="mean")[0]

    return apply


def swag(model: Model, moments: SwagMoments) -> Posterior:
    """SWAG: parameters drawn from a Gaussian over the snapshots of training, dropout off.

    theta = mean + sqrt(1/2) (Sigma^(1/2) z1 + D z2 / sqrt(r - 1)), with Sigma the diagonal
    variance of all snapshots, D the deviations of the last r of them, each from the mean at
    its time, z1 and z2 standard normal. With rank 0, theta = mean + Sigma^(1/2) z1
    (SWAG-diagonal). Maddox, Garipov, Izmailov, Vetrov & Wilson (2019), arXiv:1902.02476.

    K samples hold K sets of parameters in memory. Averages that a network carries
    (BatchNorm) are those of the last snapshot; the paper computes them anew for each sample.
    The mean alone (SWA) is `inference.deterministic(model, Variables(moments.mean,
    moments.state))`.

    Raises:
      ValueError: fewer than 2 snapshots.
    """
    if int(moments.num_snapshots) < 2:
        raise ValueError(f"SWAG needs at least 2 snapshots, got {int(moments.num_snapshots)}")
    return Posterior(_draw_parameters, _apply(model), moments)


def fit_swag(
    key: Key,
    model: Model,
    optimizer: optax.GradientTransformation,
    source: Source,
    rows: ArrayLike,
    labels: ArrayLike,
    *,
    variables: Variables,
    config: training.FitConfig,
    rank: int = 20,
    capacity: int | None = None,
) -> SwagMoments:
    """Goes on from trained `variables` and collects a snapshot every `config.check_every` steps.

    Two calls make the whole: `training.fit` with any schedule, then this one at a constant
    learning rate, which should be large enough to move about in the region of good
    parameters (`optax.sgd(0.01)`, say). A last block that is cut short gives no snapshot;
    the starting point is none either, as in the authors' code.

    Args:
      key: consumed.
      variables: where to start, from `training.fit`; they stay usable.
      config: of this phase alone; schedule "constant" and no monitor.
      rank: see `swag_moments`.
      model, optimizer, source, rows, labels, capacity: see `training.fit`.

    Raises:
      ValueError: see `training.fit`; another schedule, a monitor, a rank of 1 or below 0, or
        fewer than 2 snapshots.
      TrainingDiverged: see `training.fit`.
    """
    training.check_config(config)
    if config.schedule != "constant":
        raise ValueError(
            "SWAG collects at a constant learning rate: config.schedule must be 'constant', "
            f"got {config.schedule!r}"
        )
    if config.monitor != "none":
        raise ValueError(
            "SWAG averages over all of its steps and does not stop early: config.monitor must "
            f"be 'none', got {config.monitor!r}"
        )
    steps = training.num_steps(config, len(rows))
    if steps // config.check_every < 2:
        raise ValueError(
            f"SWAG needs at least 2 snapshots: {steps} steps give {steps // config.check_every} "
            f"with check_every={config.check_every}; raise min_steps or lower check_every"
        )
    moments = swag_moments(variables, rank)

    def collect(step: int, variables: Variables) -> None:
        nonlocal moments
        if step % config.check_every == 0:
            moments = _update(moments, variables)

    training.fit(
        key,
        model,
        optimizer,
        source,
        rows,
        labels,
        config=config,
        variables=variables,
        capacity=capacity,
        on_block=collect,
    )
    return moments
