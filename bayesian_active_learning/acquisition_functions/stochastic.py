"""Stochastic batches: scores, their logarithms or their ranks perturbed with Gumbel noise.

The B highest of (f(s) + Gumbel noise of scale 1/beta) are B draws without replacement, one
after another, each with probabilities proportional to exp(beta f(s)) among those left
(Gumbel-top-k: Kool et al. 2019, arXiv:1903.06059). A batch spreads over many good
candidates where the plain ranking takes near-duplicates, at no more cost.

Kirsch et al. 2023, Stochastic Batch Acquisition: A Simple Baseline for Deep Active
Learning, TMLR, arXiv:2106.12059.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp

from bayesian_active_learning.acquisition_functions.by_score import AnyScore, by_score
from bayesian_active_learning.acquisition_functions.selection import (
    highest,
    needed,
    row_gumbel,
    sortable,
)
from bayesian_active_learning.types import Array, Candidates, Key, Selection, Strategy
from bayesian_active_learning.utils import check_positive


def power(score: AnyScore = "bald", *, beta: float = 1.0) -> Strategy:
    """Draws with probabilities proportional to s^beta: PowerBALD, PowerEntropy and so on.

    Scores are taken for nonnegative, as all that have names are; one below 0 by rounding counts
    as 0. A score of 0 has no chance by this rule: such candidates come after all others,
    in random order, and are reported as filler.

    Args:
      score: a name in `SCORES` or `CANDIDATE_SCORES`, or a function `[N, K, C] -> [N]`.
      beta: inverse temperature, above 0; near 0 the draws are uniform over the positive
        scores, at infinity they are the ranking.

    Returns:
      A strategy that needs "scores", or what a score of `CANDIDATE_SCORES` needs.
      `Selection.scores` are the scores themselves.

    Raises:
      ValueError: an unknown score, or `beta` not above 0.
    """
    return _stochastic("power", score, beta)


def softmax(score: AnyScore = "bald", *, beta: float = 1.0) -> Strategy:
    """Draws with probabilities proportional to exp(beta s); any real scores will do.

    beta is per unit of the score: BALD's scores lie within a nat or so of each other, which
    at beta = 1 is not far from uniform.

    Args:
      score: a name in `SCORES` or `CANDIDATE_SCORES`, or a function `[N, K, C] -> [N]`.
      beta: inverse temperature, above 0, per unit of the score.

    Returns:
      A strategy that needs "scores", or what a score of `CANDIDATE_SCORES` needs.
      `Selection.scores` are the scores themselves.

    Raises:
      ValueError: an unknown score, or `beta` not above 0.
    """
    return _stochastic("softmax", score, beta)


def softrank(score: AnyScore = "bald", *, beta: float = 1.0) -> Strategy:
    """Draws with probabilities proportional to rank^-beta, the highest score having rank 1.

    Only the order of the scores matters. Ranks are among the unmasked; equal scores share
    the mean of their ranks, and so have equal chances, whatever their positions.

    Args:
      score: a name in `SCORES` or `CANDIDATE_SCORES`, or a function `[N, K, C] -> [N]`.
      beta: inverse temperature, above 0.

    Returns:
      A strategy that needs "scores", or what a score of `CANDIDATE_SCORES` needs.
      `Selection.scores` are the scores themselves.

    Raises:
      ValueError: an unknown score, or `beta` not above 0.
    """
    return _stochastic("softrank", score, beta)


def _stochastic(rule: str, score: AnyScore, beta: float) -> Strategy:
    check_positive(beta=beta)
    return by_score(_select(rule, float(beta)), score)


@functools.lru_cache(maxsize=256)
def _select(rule: str, beta: float) -> Callable[..., Selection]:
    """One function for all scores under a rule and beta: it compiles once."""
    return functools.partial(_draw, rule, beta)


def _draw(
    rule: str, beta: float, key: Key, candidates: Candidates, *, batch_size: int
) -> Selection:
    """The key is consumed."""
    scores = needed(candidates, "scores")
    noise = row_gumbel(key, candidates.rows)
    logits = _LOGITS[rule](scores, jnp.asarray(candidates.mask, bool))
    # Neither product overflows, at either end of beta.
    perturbed = min(beta, 1.0) * logits + (1 / max(beta, 1.0)) * noise
    # Without mass: below all others, and by noise among themselves, at its full precision.
    ranks = jnp.where(logits == -jnp.inf, -1e30 * jnp.exp(-noise), perturbed)
    selection = highest(sortable(ranks), -jnp.inf, scores, candidates, batch_size)
    if rule == "power":
        selection = selection._replace(filler=selection.valid & (selection.scores <= 0))
    return selection


def _log_scores(scores: Array, mask: Array) -> Array:
    none = scores <= 0  # NaN stays
    return jnp.where(none, -jnp.inf, jnp.log(jnp.where(none, 1.0, scores)))


def _scores(scores: Array, mask: Array) -> Array:
    return scores


def _log_ranks(scores: Array, mask: Array) -> Array:
    """-log of the rank from the top, [1, N]; ties share their mean rank."""
    values = sortable(scores)
    ordered = jnp.sort(jnp.where(mask, values, -jnp.inf))  # what is masked out is below all
    above = len(ordered) - jnp.searchsorted(ordered, values, side="right")
    not_below = len(ordered) - jnp.searchsorted(ordered, values, side="left")
    ranks = (above + not_below + 1).astype(scores.dtype) / 2
    return jnp.where(values == jnp.inf, jnp.inf, -jnp.log(ranks))  # NaN, +inf: to be refused


_LOGITS = {"power": _log_scores, "softmax": _scores, "softrank": _log_ranks}
