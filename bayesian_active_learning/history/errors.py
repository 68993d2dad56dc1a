"""The error of this package, and the words for what differs."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from bayesian_active_learning.utils import canonical_json

_SHOWN = 80  # characters of a value in a message


class HistoryError(ValueError):
    """A run's files cannot be read, written or continued; the message names the file."""


@contextlib.contextmanager
def writing(path: str | os.PathLike, advice: str = "") -> Iterator[None]:
    """Turns an OSError inside into a HistoryError that names `path`."""
    try:
        yield
    except OSError as error:
        raise HistoryError(f"cannot write {path}: {error.strerror or error}{advice}") from error


def to_json(value: Any) -> Any:
    """`value` as JSON gives it back: arrays and tuples become lists, keys strings.

    Raises ValueError on what JSON cannot hold, NaN and infinities included.
    """
    return json.loads(canonical_json(_unpacked(value)))


def _unpacked(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _unpacked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_unpacked(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """One line "field: old -> new" for each place where two JSON values differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for key in sorted({*old, *new}):
            inner = f"{name}.{key}" if name else str(key)
            if key not in old:
                lines.append(f"{inner}: absent -> {_short(new[key])}")
            elif key not in new:
                lines.append(f"{inner}: {_short(old[key])} -> absent")
            else:
                lines += differences(old[key], new[key], inner)
        return lines
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        inner_lines = [differences(*pair, f"{name}[{place}]") for place, pair in pairs]
        return [line for lines in inner_lines for line in lines]
    if old == new and type(old) is type(new):
        return []
    return [f"{name or 'value'}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = canonical_json(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
