"""Histories: what the events of a run say, as arrays to draw and tables to keep."""

import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bayesian_active_learning.history.directory import LOG, list_cells, read_config
from bayesian_active_learning.history.errors import HistoryError, writing
from bayesian_active_learning.history.log import read_events
from bayesian_active_learning.utils import atomic_write, canonical_json

FORMAT = 1
_PLACE = ("event", "round", "labels")  # keys of a "fitted" event that are no measurements


class RoundRecord(NamedTuple):
    """One evaluated round. rows: what was then asked, in order, empty in the last one."""

    round: int
    labels: int
    test: dict[str, float]
    validation: dict[str, float]
    fitted: dict[str, float]
    rows: np.ndarray  # [B] int32
    scores: np.ndarray  # [B] float64
    filler: np.ndarray  # [B] bool


class Curve(NamedTuple):
    """One function with one seed over R evaluated rounds."""

    labels: np.ndarray  # [R] int64
    test: dict[str, np.ndarray]  # name -> [R] float64
    validation: dict[str, np.ndarray]
    fitted: dict[str, np.ndarray]  # steps, best_step, train_loss, ...
    rows: tuple[np.ndarray, ...]  # R arrays int32: asked after that round, in order
    scores: tuple[np.ndarray, ...]  # R arrays float64, for `rows`
    filler: tuple[np.ndarray, ...]  # R arrays bool: not chosen by the rule itself
    initial_rows: np.ndarray  # int32: labelled before round 0


class History(NamedTuple):
    """A run: its config (identity, identity_hash, environment), and its curves by
    (function, seed)."""

    config: dict[str, Any]
    cells: dict[tuple[str, int], Curve]


def round_records(events: Iterable[Mapping[str, Any]]) -> tuple[RoundRecord, ...]:
    """The evaluated rounds in a cell's events, in order."""
    fitted: dict[int, Mapping[str, Any]] = {}
    evaluated: dict[int, Mapping[str, Any]] = {}
    queries: dict[int, list[Mapping[str, Any]]] = {}
    for event in events:
        kind = event["event"]
        if kind == "fitted":
            fitted[event["round"]] = event
        elif kind == "evaluated":
            evaluated[event["round"]] = event
        elif kind == "query":
            queries.setdefault(event["round"], []).append(event)
    return tuple(
        RoundRecord(
            round=number,
            labels=event["labels"],
            test=dict(event["test"]),
            validation=dict(event.get("validation") or {}),
            fitted=_measured(fitted.get(number, {})),
            rows=_joined(queries.get(number, ()), "rows", np.int32),
            scores=_joined(queries.get(number, ()), "scores", np.float64),
            filler=_joined(queries.get(number, ()), "filler", np.bool_),
        )
        for number, event in evaluated.items()
    )


def curve_from_events(events: Iterable[Mapping[str, Any]]) -> Curve:
    """A cell's events as arrays; R = 0 where no round has been evaluated yet."""
    events = tuple(events)
    records = round_records(events)
    initial = [
        row
        for event in events
        if event["event"] == "labels" and event["query"] == "initial"
        for row in event["rows"]
    ]
    return Curve(
        labels=np.array([record.labels for record in records], np.int64),
        test=_columns([record.test for record in records]),
        validation=_columns([record.validation for record in records]),
        fitted=_columns([record.fitted for record in records]),
        rows=tuple(record.rows for record in records),
        scores=tuple(record.scores for record in records),
        filler=tuple(record.filler for record in records),
        initial_rows=np.array(initial, np.int32),
    )


def read_history(run: str | os.PathLike) -> History:
    """The history of a run directory, which is only read: it may still be running.

    Cells with no evaluated round yet are left out. Raises HistoryError where the
    directory is no run or a log is damaged.
    """
    config = read_config(run)
    cells = {}
    for key, directory in list_cells(run).items():
        if (directory / LOG).exists():
            curve = curve_from_events(read_events(directory / LOG))
            if len(curve.labels):
                cells[key] = curve
    return History(config, cells)


def write_history(
    path: str | os.PathLike, history: History, *, significant_digits: int | None = None
) -> None:
    """One JSON file, a line a cell. `load_history` gives an equal history back,
    unless numbers are rounded to `significant_digits` (smaller, to be committed)."""
    lines = ",\n".join(
        canonical_json(_cell_to_json(function, seed, curve, significant_digits))
        for (function, seed), curve in history.cells.items()
    )
    config = canonical_json(history.config)
    with writing(path), atomic_write(path) as file:
        file.write(f'{{"format":{FORMAT},"config":{config},"cells":[\n{lines}\n]}}\n')


def load_history(path: str | os.PathLike) -> History:
    """What `write_history` wrote. Raises HistoryError where the file is something else."""
    try:
        content = json.loads(pathlib.Path(path).read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, expected {FORMAT}")
        cells = {(cell["function"], cell["seed"]): _cell(cell) for cell in content["cells"]}
        return History(content["config"], cells)
    except OSError as error:
        raise HistoryError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise HistoryError(f"{path} is not a history file: {error!r}") from error


def _measured(event: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: value
        for key, value in event.items()
        if key not in _PLACE and isinstance(value, int | float)
    }


def _joined(queries: Sequence[Mapping[str, Any]], key: str, dtype: Any) -> np.ndarray:
    return np.array([value for query in queries for value in query.get(key, ())], dtype)


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """NaN where a round has no such number."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, math.nan) for row in rows], float) for name in names}


def _cell_to_json(
    function: str, seed: int, curve: Curve, significant_digits: int | None
) -> dict[str, Any]:
    def numbers(values: np.ndarray) -> list[float | None]:
        return [_rounded(value, significant_digits) for value in values.tolist()]

    def table(columns: dict[str, np.ndarray]) -> dict[str, list[float | None]]:
        return {name: numbers(column) for name, column in columns.items()}

    return {
        "function": function,
        "seed": seed,
        "labels": curve.labels.tolist(),
        "test": table(curve.test),
        "validation": table(curve.validation),
        "fitted": table(curve.fitted),
        "rows": [rows.tolist() for rows in curve.rows],
        "scores": [numbers(scores) for scores in curve.scores],
        "filler": [np.flatnonzero(filler).tolist() for filler in curve.filler],
        "initial_rows": curve.initial_rows.tolist(),
    }


def _cell(cell: Mapping[str, Any]) -> Curve:
    def table(columns: Mapping[str, list[float | None]]) -> dict[str, np.ndarray]:
        return {name: np.array(column, float) for name, column in columns.items()}

    rows = tuple(np.array(rows, np.int32) for rows in cell["rows"])
    return Curve(
        labels=np.array(cell["labels"], np.int64),
        test=table(cell["test"]),
        validation=table(cell["validation"]),
        fitted=table(cell["fitted"]),
        rows=rows,
        scores=tuple(np.array(scores, float) for scores in cell["scores"]),
        filler=tuple(
            np.isin(np.arange(len(asked)), filler)
            for asked, filler in zip(rows, cell["filler"], strict=True)
        ),
        initial_rows=np.array(cell["initial_rows"], np.int32),
    )


def _rounded(value: float, significant_digits: int | None) -> float | None:
    if math.isnan(value):
        return None  # JSON has no NaN
    return value if significant_digits is None else float(f"{value:.{significant_digits}g}")
