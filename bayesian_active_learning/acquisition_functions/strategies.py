"""Strategies: which candidates to label next, given their scores or predictions.

A `Strategy` holds `select(key, candidates, *, batch_size) -> Selection`. The rules that
all of them keep (the contract suite runs over `STRATEGIES`):

- positions are distinct, masked in, best first; valid picks come before invalid ones,
  and there are min(batch_size, number of candidates) of them. What is not valid has
  position -1, score -inf and filler False;
- ties go to the lower position;
- NaN scores are not hidden: they are picked first, so that `acquire` refuses them;
- the shapes depend on `batch_size` and the shapes of the candidates only.

`needs` names the optional fields of `Candidates`; rows and mask always come.
"""

import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bayesian_active_learning.acquisition_functions import scores as scores_
from bayesian_active_learning.types import (
    Array,
    Candidates,
    Key,
    Score,
    Selection,
    Strategy,
    StrategySpec,
)
from bayesian_active_learning.utils import check_one_of


def top_k(score: Score) -> Strategy:
    """The candidates with the highest scores, best first; ties to the lower position.

    Args:
      score: `[N, K, C]` log-probabilities -> `[N]`, higher = more worth labelling.

    Returns:
      A strategy that needs "scores". The key is not used.
    """
    return Strategy(select=select_top, needs=frozenset({"scores"}), score=score)


def random() -> Strategy:
    """Candidates drawn uniformly without replacement: the baseline.

    Each row gets noise of its own from the key and its number, and the highest noise
    wins: the same rows are picked, in the same order, whatever order the pool is in.
    `Selection.scores` is that noise, in [0, 1].
    """
    return Strategy(select=_select_random, needs=frozenset())


def select_top(key: Key, candidates: Candidates, *, batch_size: int) -> Selection:
    """The `select` of `top_k`, one function for all scores: it compiles once.

    Args:
      key: not used.
      candidates: with scores `[N]` and mask `[N]`.
      batch_size: static, at least 1; may exceed N.

    Raises:
      ValueError: no scores, shapes that differ, or `batch_size` below 1.
    """
    del key
    if candidates.scores is None:
        raise ValueError("this strategy needs Candidates.scores [N], got None")
    scores = jnp.asarray(candidates.scores)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    # Above all that is masked out, whatever the score; NaN first, whatever its sign;
    # and one zero, since top_k ranks 0.0 above -0.0.
    ranks = jnp.maximum(scores, jnp.finfo(scores.dtype).min)
    ranks = jnp.where(jnp.isnan(scores), jnp.inf, jnp.where(scores == 0, 0.0, ranks))
    return _highest(ranks, -jnp.inf, scores, candidates, batch_size)


def _select_random(key: Key, candidates: Candidates, *, batch_size: int) -> Selection:
    """The `select` of `random`; the key is consumed."""
    rows = jnp.asarray(candidates.rows)
    # 32 random bits, not a float's 23: ties, which would go by position, stay rare.
    bits = jax.vmap(lambda row: jax.random.bits(jax.random.fold_in(key, row), dtype=jnp.uint32))(
        rows
    )
    noise = bits.astype(jnp.float32) * 2.0**-32
    return _highest(jnp.maximum(bits, 1), 0, noise, candidates, batch_size)


def _highest(
    ranks: Array, lowest: float, scores: Array, candidates: Candidates, batch_size: int
) -> Selection:
    """The highest `ranks` (all above `lowest`) among the unmasked, padded to `batch_size`."""
    batch_size = operator.index(batch_size)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    mask = jnp.asarray(candidates.mask, bool)
    if mask.ndim != 1 or ranks.shape != mask.shape:
        raise ValueError(
            "expected rows, mask and scores of one shape [N], got mask "
            f"{list(mask.shape)} beside {list(ranks.shape)}"
        )
    size = min(batch_size, len(mask))
    floor = jnp.asarray(lowest, ranks.dtype)
    _, positions = jax.lax.top_k(jnp.where(mask, ranks, floor), size)
    valid = mask[positions]
    padding = (0, batch_size - size)
    return Selection(
        positions=jnp.pad(
            jnp.where(valid, positions, -1).astype(jnp.int32), padding, constant_values=-1
        ),
        scores=jnp.pad(
            jnp.where(valid, scores[positions], -jnp.inf), padding, constant_values=-jnp.inf
        ),
        valid=jnp.pad(valid, padding),
        filler=jnp.zeros(batch_size, bool),
    )


_GAL = "Gal, Islam & Ghahramani 2017, arXiv:1703.02910"

STRATEGIES: dict[str, StrategySpec] = {
    "bald": StrategySpec(
        functools.partial(top_k, scores_.bald),
        "mutual information between label and parameters",
        f"Houlsby et al. 2011, arXiv:1112.5745; {_GAL}",
    ),
    "max_entropy": StrategySpec(
        functools.partial(top_k, scores_.max_entropy),
        "entropy of the mean predictive",
        f"Shannon 1948; {_GAL}",
    ),
    "variation_ratios": StrategySpec(
        functools.partial(top_k, scores_.variation_ratios),
        "one minus the largest probability of the mean predictive",
        f"Freeman 1965; {_GAL}",
    ),
    "variation_ratios_mode": StrategySpec(
        functools.partial(top_k, scores_.variation_ratios_mode),
        "share of samples that do not vote for the most popular class (the author's code)",
        f"Freeman 1965; {_GAL}",
    ),
    "mean_std": StrategySpec(
        functools.partial(top_k, scores_.mean_std),
        "standard deviation of the class probabilities, averaged over classes",
        f"Kampffmeyer et al. 2016; Kendall et al. 2015, arXiv:1511.02680; {_GAL}",
    ),
    "random": StrategySpec(random, "uniform without replacement, the baseline", _GAL),
}


def make_strategy(spec: str, table: Mapping[str, StrategySpec] = STRATEGIES) -> Strategy:
    """The strategy that a command line names: `name` or `name:key=value,key=value`.

    Options are the keyword arguments of the table's `make`; a value is read as the type
    of that argument's default. Equal specs give the same object, so that whatever was
    compiled for it is found again.

    Args:
      spec: for example "bald".
      table: where names are looked up; `{**STRATEGIES, "mine": StrategySpec(...)}` adds one.

    Raises:
      ValueError: an unknown name or option (the known ones are listed), a malformed,
        repeated or missing option, or a value of the wrong type.
    """
    name, colon, text = spec.partition(":")
    check_one_of("acquisition function", name, table)
    make = table[name].make
    options = {key: parameter.default for key, parameter in _parameters(make).items()}
    given: set[str] = set()
    for item in text.split(",") if colon else []:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (key and equals and value):
            raise ValueError(f"cannot read {spec!r}: expected {name} or {name}:key=value,key=value")
        if not options:
            raise ValueError(f"unknown option {key!r} of {name!r}; it has none")
        check_one_of(f"option of {name!r}:", key, options)
        if key in given:
            raise ValueError(f"option {key!r} of {name!r} is given twice in {spec!r}")
        given.add(key)
        options[key] = _read(f"option {key!r} of {name!r}", value, options[key])
    missing = [key for key, value in options.items() if value is inspect.Parameter.empty]
    if missing:
        raise ValueError(f"{name!r} needs {', '.join(f'{key}=...' for key in missing)}")
    return _make(make, tuple(options.items()))


@functools.cache
def _make(make: Callable[..., Strategy], options: tuple[tuple[str, Any], ...]) -> Strategy:
    return make(**dict(options))


def _parameters(make: Callable[..., Strategy]) -> dict[str, inspect.Parameter]:
    """The arguments of `make` that are still open (a partial's positional ones are not)."""
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(make).parameters
    return {key: value for key, value in parameters.items() if value.kind in by_name}


def _read(what: str, text: str, default: Any) -> Any:
    """`text` as the type of `default`; where that says nothing, a number if it is one."""
    truths = {"true": True, "false": False}
    if isinstance(default, bool):
        if text.lower() not in truths:
            raise ValueError(f"{what} must be true or false, got {text!r}")
        return truths[text.lower()]
    if isinstance(default, str):
        return text
    kinds = [type(default)] if isinstance(default, int | float) else [int, float]
    for kind in kinds:
        try:
            return kind(text)
        except ValueError:
            continue
    if len(kinds) == 1:
        raise ValueError(f"{what} must be of type {kinds[0].__name__}, got {text!r}")
    return text
