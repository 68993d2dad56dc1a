"""How good predictions are: accuracy, likelihood, calibration. Pure and jit-able.

All take `log_probs [M, C]`, already averaged over posterior samples (`mc_log_probs`
does that), labels `[M]`, and an optional mask or weights `[M]`. Where the weight is 0
nothing of a row counts. A row with NaN, or with a label that is no class, makes every
metric NaN, and so does having no rows at all.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bayesian_active_learning.types import Array, ArrayLike
from bayesian_active_learning.utils import log_mean_exp


class Metrics(NamedTuple):
    """Scalars; see the functions of the same names. `nll` in nats."""

    accuracy: Array
    nll: Array
    ece: Array
    brier: Array


def mc_log_probs(log_probs: ArrayLike) -> Array:
    """The mean predictive: log of the mean of the probabilities over K posterior samples.

    Args:
      log_probs: `[N, K, C]` normalised log-probabilities.

    Returns:
      `[N, C]` normalised log-probabilities.

    Raises:
      ValueError: the shape is not `[N, K, C]`.
    """
    log_probs = jnp.asarray(log_probs)
    if log_probs.ndim != 3 or log_probs.shape[1] == 0:
        raise ValueError(f"expected log_probs of shape [N, K, C], got {list(log_probs.shape)}")
    return log_mean_exp(_at_least_float32(log_probs), axis=1)


def accuracy(log_probs: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Share of rows whose most probable class (the lowest on a tie) is the label.

    Raises:
      ValueError: shapes other than `[M, C]`, `[M]`, `[M]`.
    """
    log_probs, is_label, weights = _checked(log_probs, labels, mask)
    return _mean(_correct(log_probs, is_label), weights)


def negative_log_likelihood(
    log_probs: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None
) -> Array:
    """Mean of -log p(label), in nats.

    A label of probability 0 counts as one of the smallest normal number of the dtype
    (87.3 nats in float32, 708.4 in float64), so that one row cannot make it infinite.

    Raises:
      ValueError: shapes other than `[M, C]`, `[M]`, `[M]`.
    """
    log_probs, is_label, weights = _checked(log_probs, labels, mask)
    floor = jnp.log(jnp.finfo(log_probs.dtype).tiny)
    nll = -jnp.sum(jnp.where(is_label, jnp.maximum(log_probs, floor), 0.0), axis=1)
    return _mean(_or_nan(nll, log_probs, is_label), weights)


def expected_calibration_error(
    log_probs: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    num_bins: int = 15,
) -> Array:
    """Mean distance between confidence and accuracy, over bins of equal width.

    sum_b (M_b / M) |accuracy_b - confidence_b|: top-label, L1, bins (i/n, (i+1)/n].
    Guo et al. 2017, arXiv:1706.04599, eq. 3.

    Args:
      log_probs: `[M, C]` normalised log-probabilities.
      labels: `[M]` integers in 0..C-1.
      mask: `[M]` bool or weights, or None.
      num_bins: static.

    Raises:
      ValueError: shapes other than `[M, C]`, `[M]`, `[M]`, or `num_bins` below 1.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    log_probs, is_label, weights = _checked(log_probs, labels, mask)
    confidence = jnp.exp(jnp.max(log_probs, axis=1))
    bins = jnp.clip(jnp.ceil(confidence * num_bins).astype(jnp.int32) - 1, 0, num_bins - 1)
    gaps = jnp.where(weights > 0, _correct(log_probs, is_label) - confidence, 0.0) * weights
    in_bin = jax.nn.one_hot(bins, num_bins, dtype=bool)  # [M, bins]
    by_bin = jnp.sum(jnp.where(in_bin, gaps[:, None], 0.0), axis=0)
    return jnp.sum(jnp.abs(by_bin)) / jnp.sum(weights)


def brier_score(log_probs: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Mean squared distance to the one-hot label, summed over classes: 0 (best) to 2.

    Brier 1950, Verification of forecasts expressed in terms of probability.

    Raises:
      ValueError: shapes other than `[M, C]`, `[M]`, `[M]`.
    """
    log_probs, is_label, weights = _checked(log_probs, labels, mask)
    brier = jnp.sum(jnp.square(jnp.exp(log_probs) - is_label), axis=1)
    return _mean(_or_nan(brier, log_probs, is_label), weights)


@jax.jit  # one program in the place of some eighty for single operations
def classification_metrics(
    log_probs: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None
) -> Metrics:
    """All of the above at once, ECE with 15 bins.

    Args:
      log_probs: `[M, C]` normalised log-probabilities.
      labels: `[M]` integers in 0..C-1.
      mask: `[M]` bool (False = padding) or weights at least 0; None for all rows.

    Returns:
      `Metrics` of scalars.

    Raises:
      ValueError: shapes other than `[M, C]`, `[M]`, `[M]`.
    """
    return Metrics(
        accuracy=accuracy(log_probs, labels, mask),
        nll=negative_log_likelihood(log_probs, labels, mask),
        ece=expected_calibration_error(log_probs, labels, mask),
        brier=brier_score(log_probs, labels, mask),
    )


def _checked(
    log_probs: ArrayLike, labels: ArrayLike, mask: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """Log-probabilities `[M, C]`, which entry is the label `[M, C]`, weights `[M]`."""
    log_probs, labels = _at_least_float32(jnp.asarray(log_probs)), jnp.asarray(labels)
    weights = jnp.ones(labels.shape) if mask is None else jnp.asarray(mask)
    if log_probs.ndim != 2 or labels.shape != log_probs.shape[:1] or weights.shape != labels.shape:
        raise ValueError(
            "expected log_probs [M, C], labels [M] and mask [M], got "
            f"{list(log_probs.shape)}, {list(labels.shape)} and {list(weights.shape)}; "
            "average over posterior samples with mc_log_probs first"
        )
    is_label = jax.nn.one_hot(labels, log_probs.shape[1], dtype=bool)  # no True: no class
    return log_probs, is_label, weights.astype(log_probs.dtype)


def _correct(log_probs: Array, is_label: Array) -> Array:
    """1 where the top class is the label, else 0; `[M]`."""
    top = jnp.argmax(log_probs, axis=1)[:, None]
    correct = jnp.take_along_axis(is_label, top, axis=1)[:, 0].astype(log_probs.dtype)
    return _or_nan(correct, log_probs, is_label)


def _or_nan(values: Array, log_probs: Array, is_label: Array) -> Array:
    """`values [M]`, NaN where a row has NaN (argmax would hide it) or no such label."""
    good = jnp.any(is_label, axis=1) & ~jnp.any(jnp.isnan(log_probs), axis=1)
    return jnp.where(good, values, jnp.nan)


def _mean(values: Array, weights: Array) -> Array:
    return jnp.sum(jnp.where(weights > 0, values, 0.0) * weights) / jnp.sum(weights)


def _at_least_float32(values: Array) -> Array:
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))
