"""Several runs as one history, where they are about the same thing."""

from collections.abc import Mapping

import numpy as np

from bayesian_active_learning.history.errors import HistoryError, differences
from bayesian_active_learning.history.records import Curve, History


def join_histories(histories: Mapping[str, History]) -> History:
    """One history with the cells of all `histories` (name, for messages -> history).

    They must agree in data and protocol, and a seed must begin with the same labelled
    rows wherever it comes: only then are equal seeds pairs. A cell that several have
    with equal results is taken once. The config is the first one's; other environments
    are added to its `also_run_in`.

    Raises HistoryError with the differences where they do not agree.
    """
    if not histories:
        raise ValueError("no histories to join")
    first, *others = histories
    joined = dict(histories[first].cells)
    owner = dict.fromkeys(joined, first)
    config = dict(histories[first].config)
    for name in others:
        _check_same_protocol(first, name, histories)
        for key, curve in histories[name].cells.items():
            if key in joined and not _same(joined[key], curve):
                function, seed = key
                raise HistoryError(
                    f"{owner[key]} and {name} both have {function}, seed {seed}, with other "
                    "results; leave one of the two out"
                )
            joined.setdefault(key, curve)
            owner.setdefault(key, name)
        config = _with_environments(config, histories[name].config)
    _check_pairs(joined, owner)
    return History(config, joined)


def _check_same_protocol(first: str, name: str, histories: Mapping[str, History]) -> None:
    ours, theirs = (histories[each].config.get("identity", {}) for each in (first, name))
    lines = differences(ours, theirs)
    if lines:
        raise HistoryError(
            f"{first} and {name} differ in data or protocol, so their curves are not compared "
            f"({first} -> {name}): {'; '.join(lines)}"
        )


def _check_pairs(cells: Mapping[tuple[str, int], Curve], owner: Mapping) -> None:
    began: dict[int, tuple[str, int]] = {}
    for function, seed in cells:
        key = began.setdefault(seed, (function, seed))
        ours, theirs = cells[key].initial_rows, cells[function, seed].initial_rows
        if not np.array_equal(np.sort(ours), np.sort(theirs)):
            raise HistoryError(
                f"seed {seed} began with other rows for {key[0]} (in {owner[key]}) than for "
                f"{function} (in {owner[function, seed]}), so the two are no pair; were they "
                "made by different versions?"
            )


def _same(first: Curve, second: Curve) -> bool:
    """Equal in what was asked for and what came of it; NaN equals NaN."""
    return (
        np.array_equal(first.labels, second.labels)
        and first.test.keys() == second.test.keys()
        and all(
            np.array_equal(values, second.test[name], equal_nan=True)
            for name, values in first.test.items()
        )
        and len(first.rows) == len(second.rows)
        and all(map(np.array_equal, first.rows, second.rows))
    )


def _with_environments(config: dict, other: Mapping) -> dict:
    known = [config.get("environment"), *config.get("also_run_in", [])]
    found = [other.get("environment"), *other.get("also_run_in", [])]
    new = [each for each in found if each is not None and each not in known]
    return {**config, "also_run_in": [*known[1:], *new]} if new else config
