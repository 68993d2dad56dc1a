"""The table of strategies by name, and `make_strategy`, which reads a command line's specs."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from bayesian_active_learning.acquisition_functions import rankings
from bayesian_active_learning.acquisition_functions import scores as scores_
from bayesian_active_learning.types import Strategy, StrategySpec
from bayesian_active_learning.utils import check_one_of

_GAL = "Gal, Islam & Ghahramani 2017, arXiv:1703.02910"

STRATEGIES: dict[str, StrategySpec] = {
    "bald": StrategySpec(
        functools.partial(rankings.top_k, scores_.bald),
        "mutual information between label and parameters",
        f"Houlsby et al. 2011, arXiv:1112.5745; {_GAL}",
    ),
    "max_entropy": StrategySpec(
        functools.partial(rankings.top_k, scores_.max_entropy),
        "entropy of the mean predictive",
        f"Shannon 1948; {_GAL}",
    ),
    "variation_ratios": StrategySpec(
        functools.partial(rankings.top_k, scores_.variation_ratios),
        "one minus the largest probability of the mean predictive",
        f"Freeman 1965; {_GAL}",
    ),
    "variation_ratios_mode": StrategySpec(
        functools.partial(rankings.top_k, scores_.variation_ratios_mode),
        "share of samples that do not vote for the most popular class (the author's code)",
        f"Freeman 1965; {_GAL}",
    ),
    "mean_std": StrategySpec(
        functools.partial(rankings.top_k, scores_.mean_std),
        "standard deviation of the class probabilities, averaged over classes",
        f"Kampffmeyer et al. 2016; Kendall et al. 2015, arXiv:1511.02680; {_GAL}",
    ),
    "random": StrategySpec(rankings.random, "uniform without replacement, the baseline", _GAL),
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
