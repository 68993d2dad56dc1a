import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import stateful

from bayesian_active_learning import oracle

NUM_ROWS, NUM_CLASSES = 12, 3
POOL = (2, 3, 5, 7, 8, 9, 11)
INITIAL = (10, 0)
OUTSIDE = (1, 4, 6)  # test and validation


def begin() -> oracle.LabelState:
    return oracle.init(NUM_ROWS, NUM_CLASSES, POOL, INITIAL, (2, 1))


def asked() -> oracle.LabelState:
    return oracle.ask(begin(), [7, 3, 11], [0.5, 0.25, 0.125], round=7)[0]


def pairs(state: oracle.LabelState) -> list[tuple[int, int]]:
    rows, labels = oracle.labelled(state)
    return list(zip(rows.tolist(), labels.tolist()))


def test_init():
    state = begin()
    assert pairs(state) == [(10, 2), (0, 1)]
    assert oracle.pool_rows(state).tolist() == list(POOL)
    assert oracle.pool_rows(state).dtype == np.int32
    assert state.num_queries == 0 and state.pending == ()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, 3, ()), "num_rows and num_classes must be positive, got 0 and 3"),
        ((5, 3, (1, 5)), "pool_rows: unknown row 5, expected 0..4"),
        ((5, 3, (-1,)), "pool_rows: unknown row -1"),
        ((5, 3, (1, 1)), "pool_rows: row 1 is given more than once"),
        ((5, 3, (1, 2), (2,), (0,)), "row 2 is both labelled and in the pool"),
        ((5, 3, (1, 2), (3, 4), (0,)), "2 labelled_rows came with 1 labels"),
        ((5, 3, (1, 2), (3,), (3,)), r"label 3 is out of range 0\.\.2$"),
        ((5, 3, (1, 2), (3,), (-1,)), "label -1 is out of range"),
        ((5, 3, (1.5,)), "pool_rows must be integers, got float64"),
        ((5, 3, ((1, 2),)), "pool_rows must be one-dimensional"),
        ((5, 3, (2**40,)), "pool_rows must fit int32"),
    ],
)
def test_init_refuses(arguments: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        oracle.init(*arguments)


def test_ask_keeps_order_and_leaves_its_argument_alone():
    before = begin()
    state, query = oracle.ask(before, np.array([7, 3]), np.array([0.5, 0.1], np.float32), round=4)
    assert query.id == "r0004" and query.round == 4
    assert query.rows.tolist() == [7, 3] and query.rows.dtype == np.int32
    assert query.scores.tolist() == [0.5, float(np.float32(0.1))]
    assert oracle.pool_rows(state).tolist() == [2, 5, 8, 9, 11]
    assert oracle.pending_rows(state).tolist() == [3, 7]
    assert oracle.states_equal(before, begin())
    again = oracle.ask(before, [7, 3], np.float32([0.5, 0.1]), round=4)[0]
    assert oracle.states_equal(state, again)
    with pytest.raises(ValueError, match="read-only"):
        state.pool[0] = True


def test_query_ids_are_unique():
    state = begin()
    names = []
    for row, round in zip((2, 3, 5, 7, 8), (1, 1, 0, 1, 2)):
        state, query = oracle.ask(state, [row], [0.0], round=round)
        names.append(query.id)
    assert names == ["r0001", "r0001-1", "r0000", "r0001-3", "r0002"]
    assert state.num_queries == 5


@pytest.mark.parametrize(
    "rows, scores, round, message",
    [
        ([7], [0.0], 8, "row 7 cannot be asked: it is pending in r0007, not in the pool"),
        ([10], [0.0], 8, "row 10 cannot be asked: it is labelled"),
        ([4], [0.0], 8, "row 4 cannot be asked: it is a test or validation row"),
        ([2, 2], [0.0, 0.0], 8, "row 2 is given more than once"),
        ([12], [0.0], 8, r"unknown row 12, expected 0\.\.11"),
        ([2, 5], [0.0], 8, r"expected 2 scores, one a row, got shape \(1,\)"),
        ([2, 5], [0.0, np.nan], 8, "row 5 has a score that is not finite"),
        ([2], [0.0], -1, "round must not be negative, got -1"),
        ([], [], 8, "no rows to ask; the pool holds 4"),
    ],
)
def test_ask_refuses(rows: list, scores: list, round: int, message: str):
    with pytest.raises(ValueError, match=message):
        oracle.ask(asked(), rows, scores, round=round)


def test_tell_in_parts_out_of_order_and_again():
    state = asked()
    state = oracle.tell(state, "r0007", [11], [0])
    assert state.pending[0].rows.tolist() == [7, 3]
    assert state.pending[0].scores.tolist() == [0.5, 0.25]
    state = oracle.tell(state, "r0007", [3, 11, 7], [1, 0, 2])
    assert pairs(state) == [(10, 2), (0, 1), (11, 0), (3, 1), (7, 2)]
    assert state.pending == ()
    assert oracle.states_equal(oracle.tell(state, "r0007", [7, 7, 3], [2, 2, 1]), state)


def test_queries_answered_in_another_order():
    state, second = oracle.ask(asked(), [2, 9], [1.0, 0.5], round=8)
    state = oracle.tell(state, second.id, [9, 2], [0, 1])
    assert [query.id for query in state.pending] == ["r0007"]
    state = oracle.tell(state, "r0007", [7, 3, 11], [0, 0, 0])
    assert pairs(state)[2:] == [(9, 0), (2, 1), (7, 0), (3, 0), (11, 0)]


def test_skip_leaves_the_pool_and_is_not_trained_on():
    state = oracle.tell(asked(), "r0007", [3, 7], [oracle.SKIP, 1])
    assert pairs(state) == [*pairs(begin()), (7, 1)]
    assert state.skipped.tolist() == [3]
    assert 3 not in oracle.pool_rows(state)
    assert oracle.states_equal(oracle.tell(state, "r0007", [3], [-1]), state)
    with pytest.raises(ValueError, match="row 3 already has label -1, told 2 now; pass overwrite"):
        oracle.tell(state, "r0007", [3], [2])


def test_overwrite():
    state = oracle.tell(asked(), "r0007", [7, 3, 11], [0, 1, 2])
    state = oracle.tell(state, "r0007", [3], [2], overwrite=True)
    assert pairs(state)[2:] == [(7, 0), (3, 2), (11, 2)]
    state = oracle.tell(state, "r0007", [7], [oracle.SKIP], overwrite=True)
    assert pairs(state)[2:] == [(3, 2), (11, 2)] and state.skipped.tolist() == [7]
    state = oracle.tell(state, "r0007", [7], [1], overwrite=True)
    assert pairs(state)[2:] == [(3, 2), (11, 2), (7, 1)] and state.skipped.tolist() == []


def test_given_labels_need_no_query():
    state = oracle.tell(asked(), "given", [5, 3], [1, 0])
    assert pairs(state)[2:] == [(5, 1), (3, 0)]
    assert state.pending[0].rows.tolist() == [7, 11]
    assert 5 not in oracle.pool_rows(state)


@pytest.mark.parametrize(
    "query, rows, labels, message",
    [
        ("r0007", [7, 12], [0, 0], r"rows: unknown row 12, expected 0\.\.11"),
        ("r0007", [7, 3], [0, 3], r"label 3 is out of range 0\.\.2, or -1 to skip the row"),
        ("r0007", [7, 3], [0, -2], "label -2 is out of range"),
        ("r0007", [7, 3], [0], "2 rows came with 1 labels"),
        ("r0007", [7, 3], [0.0, 1.0], "labels must be integers, got float64"),
        ("r0007", [7, 7], [0, 1], "row 7 is told twice in one call: 0 and 1"),
        ("r0007", [7, 10], [0, 0], "row 10 already has label 2, told 0 now; pass overwrite=True"),
        ("r0007", [7, 2], [0, 0], "row 2 is not open in query r0007; if its label is wanted"),
        ("r0007", [7, 4], [0, 0], "row 4 is neither in the pool nor asked: a test or validation"),
        ("given", [7, 4], [0, 0], "row 4 is neither in the pool nor asked"),
        ("r0009", [7], [0], "unknown query 'r0009'; open ones: r0007; labels that nobody"),
        ("r0008", [7], [0], "row 7 was asked in r0007, not in r0008"),
    ],
)
def test_tell_refuses_and_takes_nothing(query: str, rows: list, labels: list, message: str):
    state = asked()
    if query == "r0008":
        state = oracle.ask(state, [8], [0.0], round=8)[0]
    before = oracle.states_equal(state, state)
    copy = state._replace(pool=state.pool.copy(), labelled_rows=state.labelled_rows.copy())
    with pytest.raises(ValueError, match=message):
        oracle.tell(state, query, rows, labels, overwrite="already" not in message)
    assert before and oracle.states_equal(state, copy)


def test_release():
    state = oracle.tell(asked(), "r0007", [3], [0])
    state = oracle.release(state, [7])
    assert 7 in oracle.pool_rows(state)
    assert oracle.pending_rows(state).tolist() == [11]
    with pytest.raises(ValueError, match="row 7 is not open in query r0007"):
        oracle.tell(state, "r0007", [7], [0])
    state, query = oracle.ask(state, [7], [0.0], round=7)
    assert oracle.tell(state, query.id, [7], [0]).pending[0].rows.tolist() == [11]
    for row, place in ((3, "labelled"), (2, "in the pool"), (4, "a test or validation row")):
        with pytest.raises(ValueError, match=f"row {row} cannot be released: it is {place}"):
            oracle.release(state, [row])


def test_dataset_oracle():
    labels = np.array([3, 1, 4, 1, 5])
    answer = oracle.dataset_oracle(labels)
    labels[:] = 0
    assert answer(np.array([4, 0])).tolist() == [5, 3]
    assert answer(np.array([4])).dtype == np.int32
    with pytest.raises(ValueError, match=r"unknown row 5, expected 0\.\.4"):
        answer(np.array([5]))
    with pytest.raises(ValueError, match="unknown row -1"):
        answer(np.array([-1]))


def test_replay_refuses_another_log():
    event = oracle.query_event(asked().pending[0])
    with pytest.raises(ValueError, match="the log has query 'r0009' where 'r0007' follows"):
        oracle.replay([event | {"id": "r0009"}], begin())


def test_initial_labels_replay_from_either_first_state():
    event = oracle.labels_event(0, "initial", INITIAL, (2, 1))
    assert oracle.states_equal(oracle.replay([event], begin()), begin())
    state = oracle.init(NUM_ROWS, NUM_CLASSES, (*POOL, *INITIAL))
    assert oracle.states_equal(oracle.replay([event], state), begin())


def test_query_event_marks_filler():
    query = asked().pending[0]
    assert oracle.query_event(query, [False, True, False])["filler"] == [False, True, False]
    with pytest.raises(ValueError, match=r"expected 3 filler marks, got shape \(1,\)"):
        oracle.query_event(query, [True])


class Labelling(stateful.RuleBasedStateMachine):
    """Any order of calls, good and bad: no row is ever in two places or lost."""

    def __init__(self) -> None:
        super().__init__()
        self.state = begin()
        self.events: list[dict] = []
        self.round = 0

    @stateful.rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        pool = oracle.pool_rows(self.state).tolist()
        if pool:
            rows = data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3, unique=True))
            scores = data.draw(st.lists(st.floats(-1, 1), min_size=len(rows), max_size=len(rows)))
            self.state, query = oracle.ask(self.state, rows, scores, round=self.round)
            self.events.append(oracle.query_event(query))
            self.round += data.draw(st.integers(0, 1))

    @stateful.rule(data=st.data(), overwrite=st.booleans())
    def tell(self, data: st.DataObject, overwrite: bool) -> None:
        names = ["given", "r0099", *self.state.issued]
        name = data.draw(st.sampled_from(names))
        rows = data.draw(st.lists(st.integers(0, NUM_ROWS), max_size=3))
        size = {"min_size": len(rows), "max_size": len(rows)}
        labels = data.draw(st.lists(st.integers(-2, NUM_CLASSES), **size))
        before = self.state
        try:
            self.state = oracle.tell(before, name, rows, labels, overwrite=overwrite)
        except ValueError:
            assert self.state is before
            return
        event = oracle.labels_event(self.round, name, rows, labels, overwrite=overwrite)
        self.events.append(event)
        told = dict(pairs(self.state)) | dict.fromkeys(self.state.skipped.tolist(), oracle.SKIP)
        assert all(told[row] == label for row, label in zip(rows, labels))

    @stateful.precondition(lambda self: self.state.pending)
    @stateful.rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        query = data.draw(st.sampled_from(self.state.pending))
        rows = data.draw(st.lists(st.sampled_from(query.rows.tolist()), unique=True, min_size=1))
        labels = [data.draw(st.integers(oracle.SKIP, NUM_CLASSES - 1)) for _ in rows]
        self.state = oracle.tell(self.state, query.id, rows, labels)
        self.events.append(oracle.labels_event(self.round, query.id, rows, labels))
        again = oracle.tell(self.state, query.id, rows, labels)
        assert oracle.states_equal(again, self.state)

    @stateful.precondition(lambda self: self.state.pending)
    @stateful.rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        rows = [data.draw(st.sampled_from(oracle.pending_rows(self.state).tolist()))]
        self.state = oracle.release(self.state, rows)
        self.events.append(oracle.released_event(self.round, rows))

    @stateful.invariant()
    def every_row_is_in_one_place(self) -> None:
        places = [
            oracle.labelled(self.state)[0],
            oracle.pool_rows(self.state),
            oracle.pending_rows(self.state),
            self.state.skipped,
        ]
        rows = np.concatenate(places).tolist()
        assert sorted(rows) == sorted((*POOL, *INITIAL))
        assert all(len(query.rows) for query in self.state.pending)
        assert len(set(self.state.issued)) == len(self.state.issued)

    @stateful.invariant()
    def the_log_gives_the_state_back(self) -> None:
        events = json.loads(json.dumps(self.events))
        assert oracle.states_equal(oracle.replay(events, begin()), self.state)


TestLabelling = Labelling.TestCase
TestLabelling.settings = hypothesis.settings(
    max_examples=60, stateful_step_count=25, deadline=None, derandomize=True, database=None
)
