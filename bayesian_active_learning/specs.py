"""What a command line names: `name` or `name:key=value,key=value`, looked up in a table."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from bayesian_active_learning.utils import check_one_of


def make(spec: str, table: Mapping[str, Any], what: str) -> Any:
    """`table[name].make(**options)`, the same object for equal specs.

    Options are the keyword arguments of `make`; a value is read as the type of that
    argument's default.

    Args:
      spec: for example "power:score=margin,beta=8".
      table: names to records with a field `make`.
      what: what a name stands for, in messages.

    Raises:
      ValueError: an unknown name or option (the known ones are listed), a malformed,
        repeated or missing option, or a value of the wrong type.
    """
    name = spec.partition(":")[0]
    check_one_of(what, name, table)
    maker = table[name].make
    return _make(maker, tuple(options(spec, maker).items()))


def canonical(spec: str, table: Mapping[str, Any], what: str) -> str:
    """The one way to write what `spec` names: options in the order of `make`, none that has
    its default. "power:beta=8.0,score=margin" and "power:score=margin, beta=8" are the same.
    Raises as `make` does."""
    name = spec.partition(":")[0]
    check_one_of(what, name, table)
    usual = defaults(table[name].make)
    given = {k: v for k, v in options(spec, table[name].make).items() if v != usual[k]}
    return name + ":" * bool(given) + ",".join(f"{k}={_written(v)}" for k, v in given.items())


def options(spec: str, maker: Callable[..., Any]) -> dict[str, Any]:
    """All options of `maker`, those that `spec` names with its values. Raises as `make` does."""
    name, colon, text = spec.partition(":")
    found = defaults(maker)
    given: set[str] = set()
    for item in text.split(",") if colon else []:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (key and equals and value):
            raise ValueError(f"cannot read {spec!r}: expected {name} or {name}:key=value,key=value")
        if not found:
            raise ValueError(f"unknown option {key!r} of {name!r}; it has none")
        check_one_of(f"option of {name!r}:", key, found)
        if key in given:
            raise ValueError(f"option {key!r} of {name!r} is given twice in {spec!r}")
        given.add(key)
        found[key] = _read(f"option {key!r} of {name!r}", value, found[key])
    missing = [key for key, value in found.items() if value is inspect.Parameter.empty]
    if missing:
        raise ValueError(f"{name!r} needs {', '.join(f'{key}=...' for key in missing)}")
    return found


def defaults(maker: Callable[..., Any]) -> dict[str, Any]:
    """The options of `maker` with their defaults, `inspect.Parameter.empty` where none."""
    return {key: parameter.default for key, parameter in _parameters(maker).items()}


@functools.cache
def _make(maker: Callable[..., Any], options: tuple[tuple[str, Any], ...]) -> Any:
    return maker(**dict(options))


def _parameters(maker: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments of `maker` that are still open (a partial's positional ones are not)."""
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(maker).parameters
    return {key: value for key, value in parameters.items() if value.kind in by_name}


def _written(value: Any) -> str:
    """As a person would: 8 for 8.0."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return str(int(value)) if whole else str(value)


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
