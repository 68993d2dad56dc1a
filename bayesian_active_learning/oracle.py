"""Who is asked for which label: pure functions over one record, on the host.

Rows are positions in the dataset's canonical order, never in the pool, and every row
of a run is in exactly one place: pool, pending (asked, not yet answered), labelled
or skipped. Test and validation rows are in none of them and are refused. An oracle is
any function from rows to labels (a dataset, a person, a labelling tool); labels come
in through `tell` only.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bayesian_active_learning.types import ArrayLike

SKIP = -1
"""Told instead of a label; the row leaves the pool and is not trained on."""

GIVEN = "given"
"""Query id for labels that nobody was asked for."""

INITIAL = "initial"
"""Query id of the first labels of a run."""

Oracle = Callable[[np.ndarray], np.ndarray]
"""rows int32 [k] -> labels int32 [k], `SKIP` where there is no answer to be had."""

Rows = ArrayLike | Sequence[int]


class Query(NamedTuple):
    """Rows to be labelled, best first. In `LabelState.pending` only those still open."""

    id: str
    round: int
    rows: np.ndarray  # [k] int32
    scores: np.ndarray  # [k] float64, as seen when picked


class LabelState(NamedTuple):
    """What is known about labels. Arrays are read-only: `ask`, `tell` and `release`
    return new states."""

    num_rows: int
    num_classes: int
    pool: np.ndarray  # [num_rows] bool: may still be asked, is not pending
    labelled_rows: np.ndarray  # [L] int32, in the order told
    labelled_labels: np.ndarray  # [L] int32
    skipped: np.ndarray  # int32, in the order told
    pending: tuple[Query, ...] = ()
    issued: tuple[str, ...] = ()  # ids of all queries so far

    @property
    def num_queries(self) -> int:
        """How many queries have been asked, answered or not."""
        return len(self.issued)


def init(
    num_rows: int,
    num_classes: int,
    pool_rows: Rows,
    labelled_rows: Rows = (),
    labels: Rows = (),
) -> LabelState:
    """The state before the first query.

    `num_rows` is the size of the dataset; rows that are neither in `pool_rows` nor in
    `labelled_rows` (test, validation) can never be asked or told. Raises ValueError on
    rows out of range, twice, or in both sets, and on labels outside 0..num_classes-1.
    """
    if num_rows < 1 or num_classes < 1:
        raise ValueError(
            f"num_rows and num_classes must be positive, got {num_rows} and {num_classes}"
        )
    pool_rows = _distinct(_rows("pool_rows", pool_rows, num_rows), "pool_rows")
    known = _distinct(_rows("labelled_rows", labelled_rows, num_rows), "labelled_rows")
    values = _integers("labels", labels)
    if len(values) != len(known):
        raise ValueError(f"{len(known)} labelled_rows came with {len(values)} labels")
    _check_labels(values, num_classes, lowest=0)
    pool = np.zeros(num_rows, bool)
    pool[pool_rows] = True
    if pool[known].any():
        raise ValueError(f"row {known[pool[known]][0]} is both labelled and in the pool")
    return LabelState(
        num_rows, num_classes, _frozen(pool), _frozen(known), _frozen(values), _frozen(values[:0])
    )


def ask(
    state: LabelState, rows: Rows, scores: ArrayLike | Sequence[float], *, round: int
) -> tuple[LabelState, Query]:
    """Marks `rows [k]` (dataset rows, as `acquire` returns them) as pending.

    The same state and rows give the same query. Ids are "r0007" for the first query of
    round 7, "r0007-9" if it is asked again (9: the queries before it). Raises
    ValueError on no rows, on rows that are not in the pool or given twice, and on
    scores `[k]` that are not finite.
    """
    asked = _distinct(_rows("rows", rows, state.num_rows), "rows")
    values = np.array(scores, np.float64)
    if values.shape != asked.shape:
        raise ValueError(f"expected {len(asked)} scores, one a row, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"row {asked[~np.isfinite(values)][0]} has a score that is not finite")
    if round < 0:
        raise ValueError(f"round must not be negative, got {round}")
    if not len(asked):
        raise ValueError(f"no rows to ask; the pool holds {int(state.pool.sum())}")
    outside = asked[~state.pool[asked]]
    if len(outside):
        row = int(outside[0])
        raise ValueError(f"row {row} cannot be asked: it is {_place(state, row)}, not in the pool")
    name = f"r{round:04d}"
    if name in state.issued:
        name = f"{name}-{state.num_queries}"
    query = Query(name, round, _frozen(asked), _frozen(values))
    pool = state.pool.copy()
    pool[asked] = False
    return state._replace(
        pool=_frozen(pool), pending=(*state.pending, query), issued=(*state.issued, name)
    ), query


def tell(
    state: LabelState, query_id: str, rows: Rows, labels: Rows, *, overwrite: bool = False
) -> LabelState:
    """The state with `labels [k]` for `rows [k]`: 0..num_classes-1, or `SKIP`.

    A query may be answered in parts, in any order, and more than once with the same
    labels (nothing changes). Rows in the pool that nobody asked for are told with
    `query_id="given"`. Another label for a row that has one is refused unless
    `overwrite`, which keeps the row's place in the order told. On any ValueError
    (unknown query, row or label, a test or validation row, a conflict) the state is
    as it was: nothing of the call is taken.
    """
    told = _rows("rows", rows, state.num_rows)
    values = _integers("labels", labels)
    if len(told) != len(values):
        raise ValueError(f"{len(told)} rows came with {len(values)} labels")
    _check_labels(values, state.num_classes, lowest=SKIP)
    unasked = query_id in (GIVEN, INITIAL)
    if not unasked and query_id not in state.issued:
        raise ValueError(
            f"unknown query {query_id!r}; open ones: {_names(state.pending)}; labels that "
            f"nobody asked for are told with query_id={GIVEN!r}"
        )
    holders = {row: query.id for query in state.pending for row in query.rows.tolist()}
    known = dict(zip(state.labelled_rows.tolist(), state.labelled_labels.tolist(), strict=True))
    skipped = dict.fromkeys(state.skipped.tolist(), SKIP)
    before = known | skipped
    answers: dict[int, int] = {}
    for row, label in zip(told.tolist(), values.tolist(), strict=True):
        if answers.setdefault(row, label) != label:
            raise ValueError(f"row {row} is told twice in one call: {answers[row]} and {label}")
        if row in before:
            if before[row] != label and not overwrite:
                raise ValueError(
                    f"row {row} already has label {before[row]}, told {label} now; "
                    f"pass overwrite=True to change it"
                )
        elif row in holders:
            if not unasked and holders[row] != query_id:
                raise ValueError(f"row {row} was asked in {holders[row]}, not in {query_id}")
        elif not state.pool[row]:
            raise ValueError(
                f"row {row} is neither in the pool nor asked: a test or validation row, "
                f"whose label must not reach training"
            )
        elif not unasked:
            raise ValueError(
                f"row {row} is not open in query {query_id}; if its label is wanted all the "
                f"same, tell it with query_id={GIVEN!r}"
            )
    for row, label in answers.items():
        if label == SKIP:
            known.pop(row, None)
            skipped[row] = SKIP
        else:
            skipped.pop(row, None)
            known[row] = label
    pool = state.pool.copy()
    pool[list(answers)] = False
    return state._replace(
        pool=_frozen(pool),
        labelled_rows=_frozen(np.array(list(known), np.int32)),
        labelled_labels=_frozen(np.array(list(known.values()), np.int32)),
        skipped=_frozen(np.array(list(skipped), np.int32)),
        pending=_without(state.pending, answers),
    )


def release(state: LabelState, rows: Rows) -> LabelState:
    """Puts pending `rows` back into the pool, to be asked again or never.

    Raises ValueError if one of them is not pending."""
    freed = _rows("rows", rows, state.num_rows)
    open_rows = {row for query in state.pending for row in query.rows.tolist()}
    for row in freed.tolist():
        if row not in open_rows:
            raise ValueError(f"row {row} cannot be released: it is {_place(state, row)}")
    pool = state.pool.copy()
    pool[freed] = True
    pending = _without(state.pending, set(freed.tolist()))
    return state._replace(pool=_frozen(pool), pending=pending)


def labelled(state: LabelState) -> tuple[np.ndarray, np.ndarray]:
    """(rows, labels), int32 `[L]` each, in the order told."""
    return state.labelled_rows, state.labelled_labels


def pool_rows(state: LabelState) -> np.ndarray:
    """The rows that may still be asked, sorted, int32."""
    return np.flatnonzero(state.pool).astype(np.int32)


def pending_rows(state: LabelState) -> np.ndarray:
    """The rows asked and not yet answered, sorted, int32."""
    parts = [query.rows for query in state.pending]
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int32)


def states_equal(first: LabelState, second: LabelState) -> bool:
    """Whether two states hold the same values (`==` does not work on arrays)."""
    return _plain(first) == _plain(second)


def dataset_oracle(labels: Rows) -> Oracle:
    """Answers from an array of labels `[N]`: one kind of oracle, for experiments on
    data that is labelled already. Raises ValueError on rows outside it."""
    known = _frozen(_integers("labels", labels))

    def answer(rows: np.ndarray) -> np.ndarray:
        return known[_rows("rows", rows, len(known))]

    return answer


def query_event(query: Query, filler: ArrayLike | Sequence[bool] | None = None) -> dict[str, Any]:
    """The log's line for a query. `filler [k]`: True = not chosen by the rule itself."""
    marks = np.zeros(len(query.rows), bool) if filler is None else np.asarray(filler, bool)
    if marks.shape != query.rows.shape:
        raise ValueError(f"expected {len(query.rows)} filler marks, got shape {marks.shape}")
    return {
        "event": "query",
        "round": query.round,
        "id": query.id,
        "rows": query.rows.tolist(),
        "scores": query.scores.tolist(),
        "filler": marks.tolist(),
    }


def labels_event(
    round: int, query_id: str, rows: Rows, labels: Rows, *, overwrite: bool = False
) -> dict[str, Any]:
    """The log's line for a `tell` with the same arguments."""
    event: dict[str, Any] = {
        "event": "labels",
        "round": round,
        "query": query_id,
        "rows": _integers("rows", rows).tolist(),
        "labels": _integers("labels", labels).tolist(),
    }
    return event | {"overwrite": True} if overwrite else event


def released_event(round: int, rows: Rows) -> dict[str, Any]:
    """The log's line for a `release`."""
    return {"event": "released", "round": round, "rows": _integers("rows", rows).tolist()}


def replay(events: Iterable[Mapping[str, Any]], state: LabelState) -> LabelState:
    """`state` after the query, labels and released events of a log; others are ignored.

    From the run's first state this gives the live run's state, value for value.
    Raises ValueError where an event does not fit.
    """
    for event in events:
        kind = event["event"]
        if kind == "query":
            state, query = ask(state, event["rows"], event["scores"], round=event["round"])
            if query.id != event["id"]:
                raise ValueError(f"the log has query {event['id']!r} where {query.id!r} follows")
        elif kind == "labels":
            overwrite = event.get("overwrite", False)
            state = tell(state, event["query"], event["rows"], event["labels"], overwrite=overwrite)
        elif kind == "released":
            state = release(state, event["rows"])
    return state


def _frozen(values: np.ndarray) -> np.ndarray:
    values.flags.writeable = False
    return values


def _integers(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {array.shape}")
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be integers, got {array.dtype}")
    limits = np.iinfo(np.int32)
    if array.size and not limits.min <= int(array.min()) <= int(array.max()) <= limits.max:
        raise ValueError(f"{name} must fit int32, got {array.min()}..{array.max()}")
    return array.astype(np.int32)


def _rows(name: str, values: Any, num_rows: int) -> np.ndarray:
    rows = _integers(name, values)
    outside = rows[(rows < 0) | (rows >= num_rows)]
    if len(outside):
        raise ValueError(f"{name}: unknown row {outside[0]}, expected 0..{num_rows - 1}")
    return rows


def _distinct(rows: np.ndarray, name: str) -> np.ndarray:
    values, counts = np.unique(rows, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"{name}: row {values[counts > 1][0]} is given more than once")
    return rows


def _check_labels(labels: np.ndarray, num_classes: int, lowest: int) -> None:
    outside = labels[(labels < lowest) | (labels >= num_classes)]
    if len(outside):
        skip = f", or {SKIP} to skip the row" if lowest == SKIP else ""
        raise ValueError(f"label {outside[0]} is out of range 0..{num_classes - 1}{skip}")


def _place(state: LabelState, row: int) -> str:
    if row in state.labelled_rows:
        return "labelled"
    if row in state.skipped:
        return "skipped"
    for query in state.pending:
        if row in query.rows:
            return f"pending in {query.id}"
    return "in the pool" if state.pool[row] else "a test or validation row"


def _without(pending: tuple[Query, ...], rows: Collection[int]) -> tuple[Query, ...]:
    left = []
    for query in pending:
        keep = np.array([row not in rows for row in query.rows.tolist()])
        if keep.all():
            left.append(query)
        elif keep.any():
            rest = _frozen(query.rows[keep]), _frozen(query.scores[keep])
            left.append(query._replace(rows=rest[0], scores=rest[1]))
    return tuple(left)


def _names(queries: tuple[Query, ...]) -> str:
    return ", ".join(query.id for query in queries) or "none"


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
