"""Strategies that go by a score, however it is had: from log-probabilities `[N, K, C]`, which
are streamed, or from other fields of the candidates."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from bayesian_active_learning.acquisition_functions.epig import epig, target_settings
from bayesian_active_learning.acquisition_functions.scores import SCORES, find_score
from bayesian_active_learning.acquisition_functions.selection import needed
from bayesian_active_learning.types import Array, Candidates, Key, Score, Selection, Strategy
from bayesian_active_learning.utils import check_one_of


class CandidateScore(NamedTuple):
    """A score that is no function of `[N, K, C]` alone.

    score: candidates -> `[N]`, higher = more worth labelling.
    needs: the fields of `Candidates` that it reads.
    settings, min_samples: as in `Strategy`.
    """

    score: Callable[[Candidates], Array]
    needs: frozenset[str]
    settings: tuple[tuple[str, Any], ...] = ()
    min_samples: int = 1


AnyScore = str | Score | CandidateScore
"""A name in `SCORES` or `CANDIDATE_SCORES`, a function `[N, K, C] -> [N]`, or a record."""


def epig_score(*, targets: str = "pool", num_targets: int = 100) -> CandidateScore:
    """`epig` for a strategy that goes by a score: `power(epig_score(targets="test"))`.

    Args:
      targets, num_targets: as in `top_epig`.

    Raises:
      ValueError: an unknown kind of targets, or no target.
    """
    return CandidateScore(
        _epig,
        frozenset({"log_probs", "target_log_probs"}),
        target_settings(targets, num_targets),
        min_samples=2,
    )


def _epig(candidates: Candidates) -> Array:
    return epig(needed(candidates, "log_probs"), needed(candidates, "target_log_probs"))


def _input_gradient(candidates: Candidates) -> Array:
    return needed(candidates, "input_gradients")


CANDIDATE_SCORES: dict[str, CandidateScore] = {
    "epig": epig_score(),
    "input_gradient": CandidateScore(_input_gradient, frozenset({"input_gradients"})),
}
"""More names that a strategy's option `score` takes; none of these scores is ever below 0."""


def by_score(
    select: Callable[..., Selection], score: AnyScore, needs: frozenset[str] = frozenset()
) -> Strategy:
    """The strategy with this `select`, which reads `Candidates.scores`, and this score.

    Args:
      needs: the other fields that `select` reads.

    Raises:
      ValueError: an unknown score (the known ones are listed).
    """
    if isinstance(score, str):
        check_one_of("score", score, SCORES | CANDIDATE_SCORES)
        score = CANDIDATE_SCORES.get(score, score)
    if isinstance(score, CandidateScore):
        return Strategy(
            _with_scores(select, score.score),
            needs | score.needs,
            settings=score.settings,
            min_samples=score.min_samples,
        )
    return Strategy(select, needs | {"scores"}, score=find_score(score))


def from_log_probs(strategy: Strategy) -> Strategy:
    """`strategy` with the scores of the candidates had from their log-probabilities, which it
    then needs instead: its own whatever scores another strategy needs beside it."""
    assert strategy.score is not None
    score = _of_log_probs(strategy.score)
    return strategy._replace(
        select=_with_scores(strategy.select, score),
        needs=strategy.needs - {"scores"} | {"log_probs"},
        score=strategy.score if "labelled_scores" in strategy.needs else None,
    )


# The same functions for the same arguments: what was compiled is found again.
@functools.lru_cache(maxsize=256)
def _with_scores(
    select: Callable[..., Selection], score: Callable[[Candidates], Array]
) -> Callable[..., Selection]:
    return functools.partial(_select_by, select, score)


@functools.lru_cache(maxsize=256)
def _of_log_probs(score: Score) -> Callable[[Candidates], Array]:
    return lambda candidates: score(needed(candidates, "log_probs"))


def _select_by(
    select: Callable[..., Selection],
    score: Callable[[Candidates], Array],
    key: Key,
    candidates: Candidates,
    *,
    batch_size: int,
) -> Selection:
    """The key is consumed."""
    return select(key, candidates._replace(scores=score(candidates)), batch_size=batch_size)
