"""Histories as tables: one line for each function, seed and round."""

import csv
import io
import math
import os
from collections.abc import Iterator
from typing import Any

from bayesian_active_learning.history.errors import HistoryError, writing
from bayesian_active_learning.history.records import Curve, History
from bayesian_active_learning.utils import atomic_write

_PARTS = ("test", "validation", "fitted")


def export_csv(path: str | os.PathLike, history: History) -> None:
    """Columns: dataset, function, seed, round, labels, `test_*`, `validation_*`,
    `fitted_*`, rows (asked after the round, joined by spaces). Empty where there is no number."""
    with writing(path), atomic_write(path) as file:
        csv.writer(file, lineterminator="\n").writerows(_table(history))


def export_xlsx(path: str | os.PathLike, history: History) -> None:
    """The table of `export_csv` as a spreadsheet. Raises HistoryError, and writes
    nothing, where openpyxl is not installed."""
    try:
        import openpyxl
    except ImportError as error:
        raise HistoryError(
            f"cannot write {path}: XLSX needs openpyxl, which is not installed; install the "
            f"'experiments' extra, or use export_csv"
        ) from error
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "rounds"
    for line in _table(history):
        sheet.append(line)
    content = io.BytesIO()  # openpyxl cannot let go of a file that fails half-way
    book.save(content)
    with writing(path), atomic_write(path, "wb") as file:
        file.write(content.getvalue())


def _table(history: History) -> Iterator[list[Any]]:
    cells = history.cells.items()
    names = [
        (part, name)
        for part in _PARTS
        for name in dict.fromkeys(name for _, curve in cells for name in getattr(curve, part))
    ]
    header = ["dataset", "function", "seed", "round", "labels"]
    yield [*header, *(f"{part}_{name}" for part, name in names), "rows"]
    dataset = str(history.config.get("identity", {}).get("dataset", ""))
    for (function, seed), curve in cells:
        for number, labels in enumerate(curve.labels.tolist()):
            values = [_value(curve, part, name, number) for part, name in names]
            rows = " ".join(map(str, curve.rows[number].tolist()))
            yield [dataset, function, seed, number, labels, *values, rows]


def _value(curve: Curve, part: str, name: str, number: int) -> float | None:
    column = getattr(curve, part).get(name)
    value = math.nan if column is None else float(column[number])
    return None if math.isnan(value) else value
