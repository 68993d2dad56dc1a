"""Mixtures: batches that are only in part the top of a score.

Part of a batch at random, both ends of the score, all of its range, or part by one strategy
and part by another. The random part is what the rule asks for, so none of these picks is
filler; `Selection.scores` is the score of each pick, also where chance picked it (in
`mixture` that of the strategy which picked it).
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from bayesian_active_learning.acquisition_functions.by_score import (
    AnyScore,
    by_score,
    from_log_probs,
)
from bayesian_active_learning.acquisition_functions.selection import (
    check_batch_size,
    highest,
    needed,
    padded,
    row_bits,
    select_batch,
    sortable,
)
from bayesian_active_learning.types import Array, Candidates, Key, Selection, Strategy
from bayesian_active_learning.utils import check_one_of


def random_mix(
    score: AnyScore = "least_confidence", *, mix: float = 0.2, order: str = "top_first"
) -> Strategy:
    """A share `mix` of the batch at random, the rest by the top of a score.

    top_first: the floor(B (1 - mix)) highest scores, then random ones among those left
      (`diversity="random"` with `diversity_mix` in the ActiveLearningComparison toolkit).
    random_first: floor(B mix) random ones, then the highest scores among those left (its
      `passive_learning`). The two differ in what is rounded down, and in that random
      picks may come from the top.

    mix = 0 is the ranking, mix = 1 the strategy `random`: the same picks for the same key.

    Args:
      score: a name in `SCORES` or `CANDIDATE_SCORES`, or a function `[N, K, C] -> [N]`.
      mix: the random share, in [0, 1].
      order: "top_first" or "random_first".

    Returns:
      A strategy that needs "scores", or what a score of `CANDIDATE_SCORES` needs.

    Raises:
      ValueError: an unknown score or order, or `mix` outside [0, 1].
    """
    check_one_of("order", order, ("top_first", "random_first"))
    if not 0 <= mix <= 1:
        raise ValueError(f"mix must be between 0 and 1, got {mix}")
    return by_score(_random_mix(float(mix), order), score)


def uncertainty_mix(score: AnyScore = "least_confidence") -> Strategy:
    """Half of the batch from the top of a score, half from its bottom.

    First the ceil(B/2) highest scores, best first, then the floor(B/2) lowest, lowest first
    (TorchAL, which says "half" and leaves an odd B open: the odd one goes to the top
    here). In both halves ties go to the lower position. The key is not used.

    The certain half is what self-training would label by itself; as a way to choose
    labels it serves as a control.

    Munjal et al. 2022, arXiv:2002.09564 (the toolkit).

    Args:
      score: a name in `SCORES` or `CANDIDATE_SCORES`, or a function `[N, K, C] -> [N]`.

    Returns:
      A strategy that needs "scores", or what a score of `CANDIDATE_SCORES` needs.

    Raises:
      ValueError: an unknown score.
    """
    return by_score(_select_both_ends, score)


def uncertainty_uniform(
    score: AnyScore = "least_confidence", *, bins: int = 500, by: str = "score"
) -> Strategy:
    """Picks spread uniformly over the range of a score, cut into bins.

    The bins take turns. In each turn every bin that still has candidates gives one of them,
    chosen at random; the bins come in random order, so where a batch ends within a turn
    it is chance which of them give one more. No two bins that still have candidates differ
    by more than one pick.

    by="score": bins of equal width between the lowest and the highest score of the
      candidates; bin b holds lo + b w <= s < lo + (b+1) w, the last one also the highest.
      Rare scores are picked as often as common ones.
    by="rank": bins of equal numbers of candidates by rank, the lowest ones first and one
      larger where the numbers do not divide; equal scores are ranked at random. This is
      close to plain random sampling, with less variance.

    TorchAL (`uncertainty_uniform_discretize`) speaks of bins at uniform intervals, does not
    say of what, and its code cuts ranks. It walks the bins from the most certain one,
    ceil(B / bins) from each, until the batch is full; with B < bins it never reaches the
    uncertain ones. Turns in random order repair that.

    Munjal et al. 2022, arXiv:2002.09564 (the toolkit).

    Args:
      score: a name in `SCORES` or `CANDIDATE_SCORES`, or a function `[N, K, C] -> [N]`.
      bins: how many, 1 to 2^24; 1 is random sampling.
      by: "score" or "rank".

    Returns:
      A strategy that needs "scores", or what a score of `CANDIDATE_SCORES` needs.

    Raises:
      ValueError: an unknown score or kind of bin, or `bins` out of range.
    """
    check_one_of("kind of bin", by, ("score", "rank"))
    if not 1 <= bins <= 2**24:
        raise ValueError(f"bins must be between 1 and {2**24}, got {bins}")
    return by_score(_uniform(bins, by), score)


def mixture(first: Strategy, second: Strategy, *, weight: float = 0.5) -> Strategy:
    """A share `weight` of the batch by one strategy, the rest by another among those left.

    floor(B weight) picks of `first`, then the picks of `second`, which does not know of them
    but that they are gone. `Selection.scores` and `filler` are those of whoever picked.

    `MixtureSampler` of the ActiveLearningComparison toolkit.

    Args:
      first, second: any two strategies. Where they go by different scores, those of `first`
        are had from the log-probabilities `[N, K, C]`, which are then needed, too.
      weight: share of `first`, in [0, 1].

    Returns:
      A strategy that needs what both need, and runs on the host where one of them does. The
      key is split between them. By name: `mixture:first=coreset,second=margin,weight=0.3`, both
      with their default options.

    Raises:
      ValueError: `weight` outside [0, 1], two strategies with different scores of labelled
        examples, or with settings for what provides their needs that differ.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be between 0 and 1, got {weight}")
    if first.score is not None and second.score not in (None, first.score):
        if "labelled_scores" in first.needs:
            second = from_log_probs(second)
        else:
            first = from_log_probs(first)
    scores = {each.score for each in (first, second)} - {None}
    if len(scores) > 1:
        raise ValueError(
            "both strategies of a mixture need scores of the labelled examples, and of different "
            "functions; there is one array of them"
        )
    settings = dict(first.settings) | dict(second.settings)
    if settings != dict(second.settings) | dict(first.settings):
        raise ValueError(
            f"the strategies of a mixture have different settings: {dict(first.settings)} and "
            f"{dict(second.settings)}"
        )
    limits = [each.max_candidates for each in (first, second) if each.max_candidates is not None]
    return Strategy(
        _mixture(first, second, float(weight)),
        first.needs | second.needs,
        score=next(iter(scores), None),
        host=first.host or second.host,
        settings=tuple(settings.items()),
        min_samples=max(first.min_samples, second.min_samples),
        max_candidates=min(limits, default=None),
        packages=tuple(dict.fromkeys(first.packages + second.packages)),
    )


@functools.lru_cache(maxsize=256)
def _mixture(first: Strategy, second: Strategy, weight: float) -> Callable[..., Selection]:
    return functools.partial(_select_mixture, first, second, weight)


@functools.lru_cache(maxsize=256)
def _random_mix(mix: float, order: str) -> Callable[..., Selection]:
    return functools.partial(_select_mixed, mix, order)


@functools.lru_cache(maxsize=256)
def _uniform(bins: int, by: str) -> Callable[..., Selection]:
    return functools.partial(_select_uniform, bins, by)


def _select_mixed(
    mix: float, order: str, key: Key, candidates: Candidates, *, batch_size: int
) -> Selection:
    """The key is consumed."""
    batch_size = check_batch_size(batch_size)
    scores = needed(candidates, "scores")
    # As `random` ranks; NaN is not left to chance.
    bits = jnp.maximum(row_bits(key, candidates.rows), 1)
    chance = jnp.where(jnp.isnan(scores), jnp.uint32(2**32 - 1), bits)
    top = sortable(scores)
    if order == "top_first":
        size = _floor(batch_size * (1 - mix))
        stages = [(top, -jnp.inf, size), (chance, 0, batch_size - size)]
    else:
        size = _floor(batch_size * mix)
        stages = [(chance, 0, size), (top, -jnp.inf, batch_size - size)]
    return _in_turn(stages, scores, candidates)


def _select_mixture(
    first: Strategy,
    second: Strategy,
    weight: float,
    key: Key,
    candidates: Candidates,
    *,
    batch_size: int,
) -> Selection:
    """The key is consumed."""
    batch_size = check_batch_size(batch_size)
    left, parts = jnp.asarray(candidates.mask, bool), []
    size = _floor(batch_size * weight)
    stages = zip((first, second), jax.random.split(key), (size, batch_size - size), strict=True)
    for strategy, own_key, count in stages:
        if count:
            part = select_batch(strategy, own_key, candidates._replace(mask=left), batch_size=count)
            taken = jnp.where(part.valid, part.positions, len(left))
            left = left.at[taken].set(False, mode="drop")
            parts.append(part)
    return Selection(*(jnp.concatenate(fields) for fields in zip(*parts, strict=True)))


def _select_both_ends(key: Key, candidates: Candidates, *, batch_size: int) -> Selection:
    del key
    batch_size = check_batch_size(batch_size)
    scores = needed(candidates, "scores")
    stages = [
        (sortable(scores), -jnp.inf, batch_size - batch_size // 2),
        (sortable(-scores), -jnp.inf, batch_size // 2),
    ]
    return _in_turn(stages, scores, candidates)


def _in_turn(
    stages: Sequence[tuple[Array, float, int]], scores: Array, candidates: Candidates
) -> Selection:
    """For each (ranks, what is below them all, size): the highest among those left."""
    left, parts = jnp.asarray(candidates.mask, bool), []
    for ranks, lowest, size in stages:
        if size:
            part = highest(ranks, lowest, scores, candidates._replace(mask=left), size)
            if len(left):
                left = left.at[part.positions].set(False)  # -1 only where nothing is left
            parts.append(part)
    return Selection(*(jnp.concatenate(fields) for fields in zip(*parts, strict=True)))


def _floor(value: float) -> int:
    """The integer part, forgiving products such as 5 * (1 - 0.8) = 0.9999999999999998."""
    return math.floor(value + 1e-9)


def _select_uniform(
    bins: int, by: str, key: Key, candidates: Candidates, *, batch_size: int
) -> Selection:
    """The key is consumed."""
    batch_size = check_batch_size(batch_size)
    scores = needed(candidates, "scores")
    mask = jnp.asarray(candidates.mask, bool)
    rank_key, in_bin_key, order_key = jax.random.split(key, 3)
    usable = mask & jnp.isfinite(scores)
    if by == "score":
        places = _equal_widths(scores, usable, bins)
    else:
        places = _equal_numbers(scores, usable, bins, row_bits(rank_key, candidates.rows))

    # Each candidate's turn: how many of its bin come before it.
    count = jnp.arange(len(mask), dtype=jnp.int32)
    by_bin = jnp.lexsort((row_bits(in_bin_key, candidates.rows), places))
    sorted_places = places[by_bin]
    starts = jnp.searchsorted(sorted_places, sorted_places).astype(jnp.int32)
    turns = jnp.zeros_like(count).at[by_bin].set(count - starts)
    # Not finite: first, for `acquire` to refuse.
    turns = jnp.where(usable, turns, jnp.where(mask, -1, len(mask)))
    order = jnp.lexsort((row_bits(order_key, candidates.rows), turns))[:batch_size]
    return padded(order, scores[order], mask[order], batch_size)


def _equal_widths(scores: Array, usable: Array, bins: int) -> Array:
    """`[N]` bin of each score; `bins` for what is not usable."""
    scores = scores / 16  # then no range overflows, nor is its reciprocal subnormal
    low = jnp.min(scores, where=usable, initial=jnp.inf)
    width = jnp.max(scores, where=usable, initial=-jnp.inf) - low
    share = (scores - low) / jnp.where(width > 0, width, 1.0)
    index = jnp.floor(jnp.where(usable, share, 0.0) * bins).astype(jnp.int32)
    return jnp.where(usable, jnp.clip(index, 0, bins - 1), bins)


def _equal_numbers(scores: Array, usable: Array, bins: int, noise: Array) -> Array:
    """`[N]` bin of each rank, ties by noise; `bins` for what is not usable."""
    ordered = jnp.lexsort((noise, jnp.where(usable, scores, jnp.inf)))
    count = jnp.arange(len(scores), dtype=jnp.int32)
    ranks = jnp.zeros_like(count).at[ordered].set(count)
    size, larger = jnp.divmod(jnp.sum(usable, dtype=jnp.int32), bins)
    inside = ranks - larger * (size + 1)  # rank beyond the bins that hold one more
    index = jnp.where(inside < 0, ranks // (size + 1), larger + inside // jnp.maximum(size, 1))
    return jnp.where(usable, index, bins).astype(jnp.int32)
