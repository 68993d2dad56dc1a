"""Scores: how much would a label of each candidate teach us?

Every function here maps `log_probs [N, K, C]` (natural logarithms, normalised over
the C classes, one set for each of K posterior samples) to scores `[N]`, higher = more
worth labelling. All are pure and work inside anyone's `jit`, `vmap` and `grad`.

0 * log 0 is 0 by construction, in values and in gradients, so log-probabilities of
-inf are fine; NaN or +inf in a row makes that row's score NaN or infinite, which
`acquire` refuses by name. Half precision is raised to float32 first.
"""

import jax
import jax.numpy as jnp

from bayesian_active_learning.types import Array, ArrayLike
from bayesian_active_learning.utils import exp_times, log_mean_exp


def bald(log_probs: ArrayLike) -> Array:
    """Mutual information between a candidate's label and the parameters.

    I[y; w | x] = H[mean_k p_k] - mean_k H[p_k], computed as the mean over samples of the
    divergence of p_k from the mean predictive q, with terms p log(p/q) - p + q: the last
    two cancel in the mean and make every term non-negative and of second order in the
    disagreement, so small scores keep their digits. Exactly 0 at K = 1, where it cannot
    tell candidates apart; at most min(ln C, ln K).

    Houlsby et al. 2011, arXiv:1112.5745, eq. 2; Gal, Islam & Ghahramani 2017,
    arXiv:1703.02910, section 4, item 2.

    Args:
      log_probs: `[N, K, C]` normalised log-probabilities.

    Returns:
      `[N]` nats.

    Raises:
      ValueError: the shape is not `[N, K, C]` or the dtype not floating point.
    """
    log_probs = _checked(log_probs)
    log_mean = log_mean_exp(log_probs, axis=1)[:, None, :]  # [N, 1, C]
    # A class that no sample gives any mass must not become -inf - -inf.
    log_ratio = log_probs - jnp.where(log_mean == -jnp.inf, 0.0, log_mean)  # [N, K, C]
    terms = exp_times(log_probs, log_ratio) - jnp.exp(log_mean) * jnp.expm1(log_ratio)
    return jnp.mean(jnp.sum(terms, axis=-1), axis=-1)


def max_entropy(log_probs: ArrayLike) -> Array:
    """Entropy of the mean predictive, H[mean_k p_k] = -sum_c pbar_c log pbar_c.

    Shannon 1948; Gal, Islam & Ghahramani 2017, arXiv:1703.02910, section 4, item 1.

    Args:
      log_probs: `[N, K, C]` normalised log-probabilities.

    Returns:
      `[N]` nats, between 0 and ln C.

    Raises:
      ValueError: the shape is not `[N, K, C]` or the dtype not floating point.
    """
    log_mean = log_mean_exp(_checked(log_probs), axis=1)  # [N, C]
    return -jnp.sum(exp_times(log_mean, log_mean), axis=-1)


def variation_ratios(log_probs: ArrayLike) -> Array:
    """One minus the largest class probability of the mean predictive.

    1 - max_c mean_k p_kc. The author's code counts votes instead: see
    `variation_ratios_mode`.

    Freeman 1965, Elementary Applied Statistics; Gal, Islam & Ghahramani 2017,
    arXiv:1703.02910, section 4, item 3.

    Args:
      log_probs: `[N, K, C]` normalised log-probabilities.

    Returns:
      `[N]`, a probability between 0 and 1 - 1/C.

    Raises:
      ValueError: the shape is not `[N, K, C]` or the dtype not floating point.
    """
    log_mean = log_mean_exp(_checked(log_probs), axis=1)  # [N, C]
    return -jnp.expm1(jnp.max(log_mean, axis=-1))  # never below 0, as 1 - exp() can be


def variation_ratios_mode(log_probs: ArrayLike) -> Array:
    """Share of the samples that do not vote for the most popular class, 1 - f_mode / K.

    Each sample votes for its most probable class (the lowest such class on a tie). This
    is the form in the code of Gal, Islam & Ghahramani 2017; it takes only K values, so
    ties between candidates are common, and it is 0 at K = 1. Its gradient is 0.

    Freeman 1965, Elementary Applied Statistics; Gal & Ghahramani 2016,
    arXiv:1506.02142; Gal 2016, Uncertainty in Deep Learning, section 3.3.1.

    Args:
      log_probs: `[N, K, C]` normalised log-probabilities.

    Returns:
      `[N]`, a share between 0 and 1 - 1/min(K, C).

    Raises:
      ValueError: the shape is not `[N, K, C]` or the dtype not floating point.
    """
    log_probs = _checked(log_probs)
    num_samples, num_classes = log_probs.shape[1:]
    votes = jax.nn.one_hot(jnp.argmax(log_probs, axis=-1), num_classes, dtype=bool)
    counts = jnp.sum(votes, axis=1)  # [N, C]
    # Other samples' votes, so that no rounding of 1 - f/K shows.
    others = num_samples - jnp.max(counts, axis=-1)
    share = others.astype(log_probs.dtype) / num_samples
    # argmax takes NaN and +inf for a vote; the score must not hide them.
    bad = jnp.any(jnp.isnan(log_probs) | (log_probs == jnp.inf), axis=(1, 2))
    return jnp.where(bad, jnp.nan, share)


def mean_std(log_probs: ArrayLike) -> Array:
    """Standard deviation of the class probabilities over samples, averaged over classes.

    (1/C) sum_c sqrt(E_k[p_kc^2] - E_k[p_kc]^2), computed from centred probabilities
    (the same number, without cancellation). Where a class does not vary its gradient,
    which does not exist, is taken to be 0.

    Kampffmeyer, Salberg & Jenssen 2016; Kendall, Badrinarayanan & Cipolla 2015,
    arXiv:1511.02680; Gal, Islam & Ghahramani 2017, arXiv:1703.02910, section 4, item 4.

    Args:
      log_probs: `[N, K, C]` normalised log-probabilities.

    Returns:
      `[N]`, in units of probability, between 0 and 1/2.

    Raises:
      ValueError: the shape is not `[N, K, C]` or the dtype not floating point.
    """
    probs = jnp.exp(_checked(log_probs))
    centred = probs - jnp.mean(probs, axis=1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=1)  # [N, C]
    constant = variance == 0  # sqrt has no gradient at 0
    std = jnp.where(constant, 0.0, jnp.sqrt(jnp.where(constant, 1.0, variance)))
    return jnp.mean(std, axis=-1)


def _checked(log_probs: ArrayLike) -> Array:
    """`log_probs` as an array of at least float32, or ValueError."""
    log_probs = jnp.asarray(log_probs)
    shape = log_probs.shape
    if log_probs.ndim != 3:
        hint = " (one posterior sample is [N, 1, C])" if log_probs.ndim == 2 else ""
        raise ValueError(f"expected log_probs of shape [N, K, C], got {list(shape)}{hint}")
    if 0 in shape[1:]:
        raise ValueError(
            "expected log_probs of shape [N, K, C] with at least one sample and one class, "
            f"got {list(shape)}"
        )
    if not jnp.issubdtype(log_probs.dtype, jnp.floating):
        raise ValueError(
            f"expected floating-point log_probs of shape [N, K, C], got {log_probs.dtype}; "
            "pass normalised log-probabilities, for example jax.nn.log_softmax(logits)"
        )
    return log_probs.astype(jnp.promote_types(log_probs.dtype, jnp.float32))
