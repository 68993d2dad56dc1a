"""Scores: how much would a label of each candidate teach us?

Every function here maps `log_probs [N, K, C]` (natural logarithms, normalised over
the C classes, one set for each of K posterior samples) to scores `[N]`, higher = more
worth labelling. All are pure and work inside anyone's `jit`, `vmap` and `grad`.

0 * log 0 is 0 by construction, in values and in gradients, so log-probabilities of
-inf are fine; NaN or +inf in a row makes that row's score NaN or infinite, which
`acquire` refuses by name. Half precision is raised to float32 first.
"""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bayesian_active_learning.types import Array, ArrayLike, Score
from bayesian_active_learning.utils import check_one_of, check_positive, exp_times, log_mean_exp


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

    Warns:
      UserWarning: K = 1 (under `jit` when traced).

    Raises:
      ValueError: the shape is not `[N, K, C]` or the dtype not floating point.
    """
    if _checked(log_probs).shape[1] == 1:
        warnings.warn(_one_sample("bald", "bald"), UserWarning, stacklevel=2)
    return mutual_information(log_probs)


def mutual_information(log_probs: ArrayLike) -> Array:
    """`bald`, for those who do not rank by it: no warning at K = 1."""
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
    counts = vote_counts(log_probs)
    num_samples = jnp.shape(log_probs)[1]
    # Other samples' votes, so that no rounding of 1 - f/K shows.
    return (num_samples - jnp.max(counts, axis=-1)) / num_samples


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


def least_confidence(log_probs: ArrayLike, *, normalised: bool = False) -> Array:
    """One minus the confidence in the most probable class of the mean predictive.

    1 - p1 with p1 = max_c mean_k p_kc: the same number as `variation_ratios`, under the
    name that it has for a single network. `normalised` multiplies it by C/(C-1), so that
    a uniform prediction scores 1 for any number of classes; the ranking stays.

    Lewis & Gale 1994; Culotta & McCallum 2005.

    Args:
      log_probs: `[N, K, C]` normalised log-probabilities.
      normalised: to [0, 1] instead of [0, 1 - 1/C].

    Returns:
      `[N]`, a probability, or a share of the largest one possible. 0 at C = 1.

    Raises:
      ValueError: the shape is not `[N, K, C]` or the dtype not floating point.
    """
    scores = variation_ratios(log_probs)
    num_classes = jnp.shape(log_probs)[-1]
    return scores * (num_classes / max(num_classes - 1, 1)) if normalised else scores


def margin(log_probs: ArrayLike) -> Array:
    """One minus the lead of the best class over the second best, 1 - (p1 - p2).

    p1 and p2 are the two largest probabilities of the mean predictive (best versus second
    best, BvSB). Computed as p2 plus all but p1, so that small scores keep their digits.
    With one class there is no second best, and p2 is 0.

    Scheffer, Decomain & Wrobel 2001; Joshi, Porikli & Papanikolopoulos 2009.

    Args:
      log_probs: `[N, K, C]` normalised log-probabilities.

    Returns:
      `[N]`, between 0 (certain) and 1 (a tie).

    Raises:
      ValueError: the shape is not `[N, K, C]` or the dtype not floating point.
    """
    log_best, log_others = _best_and_others(log_mean_exp(_checked(log_probs), axis=1))
    scores = jnp.sum(jnp.exp(log_others), axis=-1) + jnp.exp(jnp.max(log_others, axis=-1))
    return jnp.where(log_best < jnp.inf, scores, jnp.nan)


def margin_ratio(log_probs: ArrayLike) -> Array:
    """Probability of the second best class over that of the best, p2 / p1.

    p1 and p2 as in `margin`, which ranks differently from C = 3 on; the quotient is taken
    in log space. With one class p2, and the ratio, are 0.

    The difference: Joshi, Porikli & Papanikolopoulos 2009. The ratio of confidence: Monarch
    2021, Human-in-the-Loop Machine Learning, chapter 3.

    Args:
      log_probs: `[N, K, C]` normalised log-probabilities.

    Returns:
      `[N]`, between 0 (certain) and 1 (a tie).

    Raises:
      ValueError: the shape is not `[N, K, C]` or the dtype not floating point.
    """
    log_best, log_others = _best_and_others(log_mean_exp(_checked(log_probs), axis=1))
    ratios = jnp.exp(jnp.max(log_others, axis=-1) - log_best)
    return jnp.where(log_best < jnp.inf, ratios, jnp.nan)


def expected_entropy(log_probs: ArrayLike) -> Array:
    """Entropy that the label would keep if the parameters were known, mean_k H[p_k].

    The aleatoric part of `max_entropy`: noise that no amount of labels removes. The rest
    is `bald`; see `decompose`. As a criterion it prefers what is ambiguous in itself.

    Kendall & Gal 2017, arXiv:1703.04977; Depeweg et al. 2018, arXiv:1710.07283.

    Args:
      log_probs: `[N, K, C]` normalised log-probabilities.

    Returns:
      `[N]` nats, between 0 and ln C.

    Raises:
      ValueError: the shape is not `[N, K, C]` or the dtype not floating point.
    """
    log_probs = _checked(log_probs)
    return -jnp.mean(jnp.sum(exp_times(log_probs, log_probs), axis=-1), axis=-1)


SCORES: dict[str, Score] = {
    "bald": bald,
    "max_entropy": max_entropy,
    "variation_ratios": variation_ratios,
    "variation_ratios_mode": variation_ratios_mode,
    "mean_std": mean_std,
    "least_confidence": least_confidence,
    "margin": margin,
    "margin_ratio": margin_ratio,
    "expected_entropy": expected_entropy,
}
"""Scores by the name that a strategy's option `score` takes."""

total_uncertainty = max_entropy
"""Another name of `max_entropy`, as a part of `Uncertainty`."""

aleatoric_uncertainty = expected_entropy
"""Another name of `expected_entropy`, as a part of `Uncertainty`."""

epistemic_uncertainty = bald
"""Another name of `bald`, as a part of `Uncertainty`."""


class Uncertainty(NamedTuple):
    """`total = aleatoric + epistemic`, `[N]` nats each.

    total:     entropy of the mean predictive, `max_entropy`
    aleatoric: expected entropy of one sample's prediction, `expected_entropy`
    epistemic: mutual information of label and parameters, `bald`
    """

    total: Array
    aleatoric: Array
    epistemic: Array


def decompose(log_probs: ArrayLike) -> Uncertainty:
    """The uncertainty about each label, split into noise and ignorance.

    H[mean_k p_k] = mean_k H[p_k] + I[y; w | x]. Each part is computed by its own score, so
    that a small epistemic part is not lost in the difference of two large ones; the sum
    holds to rounding.

    Depeweg et al. 2018, arXiv:1710.07283; Smith & Gal 2018, arXiv:1803.08533.

    Args:
      log_probs: `[N, K, C]` normalised log-probabilities.

    Raises:
      ValueError: the shape is not `[N, K, C]` or the dtype not floating point.
    """
    return Uncertainty(
        max_entropy(log_probs), expected_entropy(log_probs), mutual_information(log_probs)
    )


def find_score(score: str | Score) -> Score:
    """The score of that name in `SCORES`; a function is returned as it is.

    Raises:
      ValueError: an unknown name (the known ones are listed).
    """
    if callable(score):
        return score
    check_one_of("score", score, SCORES)
    return SCORES[score]


_DISAGREEMENT = {"bald": bald, "mean_std": mean_std, "variation_ratios_mode": variation_ratios_mode}


def check_samples(name: str, num_samples: int, score: Score | None = None) -> None:
    """Warns, eagerly, where a score cannot tell candidates apart for want of samples.

    BALD, mean STD and the share of dissenting votes measure how samples disagree. With one
    posterior sample (a deterministic network) they are 0 for every candidate, and a
    ranking by them goes by position alone.

    Args:
      name: what the person asked for; it opens the message.
      num_samples: K.
      score: the strategy's score function, where `name` is not a score's own name.

    Warns:
      UserWarning: K = 1 and such a score.

    Raises:
      ValueError: K below 1.
    """
    check_positive(num_samples=num_samples)
    for zero, function in _DISAGREEMENT.items():
        if num_samples == 1 and (score is function or (score is None and name == zero)):
            warnings.warn(_one_sample(name, zero), UserWarning, stacklevel=2)


def _one_sample(name: str, zero: str) -> str:
    return (
        f"{name}: with one posterior sample (K = 1) {zero} is identically 0, for it measures how "
        "samples disagree, so the candidates are not ranked at all; use more samples, or "
        "max_entropy, margin or least_confidence"
    )


def vote_counts(log_probs: ArrayLike) -> Array:
    """How many of the K samples vote for each class: for their best, the lowest on a tie.

    Args:
      log_probs: `[N, K, C]` normalised log-probabilities.

    Returns:
      `[N, C]` whole numbers in floating point, NaN in rows with NaN or +inf, which argmax
      would take for a vote.

    Raises:
      ValueError: the shape is not `[N, K, C]` or the dtype not floating point.
    """
    log_probs = _checked(log_probs)
    votes = jax.nn.one_hot(jnp.argmax(log_probs, axis=-1), log_probs.shape[-1], dtype=bool)
    bad = jnp.any(jnp.isnan(log_probs) | (log_probs == jnp.inf), axis=(1, 2))
    return jnp.where(bad[:, None], jnp.nan, jnp.sum(votes, axis=1).astype(log_probs.dtype))


def _best_and_others(log_mean: Array) -> tuple[Array, Array]:
    """The largest value `[N]` of each row of `[N, C]`, NaN and +inf being the largest of
    all, and the rows without it, -inf in its place."""
    best = jnp.argmax(log_mean, axis=-1, keepdims=True)
    others = jnp.where(jnp.arange(log_mean.shape[-1])[None] == best, -jnp.inf, log_mean)
    return jnp.max(log_mean, axis=-1), others


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
