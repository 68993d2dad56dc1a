"""What a run does, leaves, and goes on from."""

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from driver import BUDGET, CONFIG, METRICS, digits, go, log_of, logs, tree

from bayesian_active_learning import acquisition_functions as af
from bayesian_active_learning import data_utils, experiment, history, oracle
from bayesian_active_learning.experiment import Progress
from bayesian_active_learning.history import HistoryError
from bayesian_active_learning.types import Candidates, Selection, Strategy


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """bald and random with seeds 0 and 1, to 25 labels. Not to be changed."""
    directory = tmp_path_factory.mktemp("finished")
    go("bald", "random", seeds=(0, 1), directory=directory)
    return directory


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """bald with seed 0, to 35 labels in one go. Not to be changed."""
    directory = tmp_path_factory.mktemp("larger")
    go(labels=35, directory=directory)
    return directory


def same_curves(first: history.Curve, second: history.Curve) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, first, second))


# What a run does.


def test_functions_are_compared_in_pairs():
    found = go("bald", "random", seeds=(0, 1)).cells
    assert list(found) == [("bald", 0), ("random", 0), ("bald", 1), ("random", 1)]
    for seed in (0, 1):
        ours, theirs = found["bald", seed], found["random", seed]
        assert np.array_equal(ours.initial_rows, theirs.initial_rows)
        for name in METRICS:
            assert ours.test[name][0] == theirs.test[name][0]
            assert ours.validation[name][0] == theirs.validation[name][0]
        assert ours.fitted["train_loss"][0] == theirs.fitted["train_loss"][0]
        assert not np.array_equal(ours.rows[0], theirs.rows[0])
    assert not np.array_equal(found["bald", 0].initial_rows, found["bald", 1].initial_rows)
    assert found["bald", 0].test["nll"][0] != found["bald", 1].test["nll"][0]


def test_labels_grow_as_asked_and_rows_stay_in_their_sets():
    data = digits()
    curve = go("bald").cells["bald", 0]
    assert curve.labels.tolist() == [10, 15, 20, 25]
    assert sorted(data.labels[curve.initial_rows]) == list(range(10))
    splits = experiment.seed_splits(CONFIG, data, 0)
    asked = np.concatenate(curve.rows)
    assert [len(rows) for rows in curve.rows] == [5, 5, 5, 0]
    assert len(set(asked)) == 15 and set(asked) <= set(splits.pool.tolist())
    for number, rows in enumerate(curve.rows[:3]):  # out of the round's subset of the pool
        left = np.setdiff1d(splits.pool, np.concatenate([[], *curve.rows[:number]]))
        subset = data_utils.pool_subset(0, number, left.astype(np.int32), CONFIG.pool_size)
        assert len(subset) == 40 and set(rows.tolist()) <= set(subset.tolist())
    for scores in curve.scores[:3]:
        assert (np.diff(scores) <= 0).all() and (scores > 0).all()


@pytest.mark.parametrize(
    "budget, num_train, expected",
    [
        (10, 150, [10]),
        (12, 150, [10, 12]),
        (23, 150, [10, 15, 20, 23]),
        (100, 33, [10, 15, 20, 23]),  # the pool holds 13
        (23, 33, [10, 15, 20, 23]),
        (15, 33, [10, 15]),
    ],
)
def test_budgets(budget: int, num_train: int, expected: list[int]):
    """A last, short batch; a budget of the initial set; one beyond the pool."""
    for function in ("bald", "random"):
        curve = go(function, labels=budget, data=digits(num_train)).cells[function, 0]
        assert curve.labels.tolist() == expected
        assert sum(map(len, curve.rows)) == expected[-1] - 10 and len(curve.rows[-1]) == 0


def test_the_whole_pool_is_scored_when_pool_size_is_zero():
    seen: list[tuple[int, int]] = []

    def select(key: jax.Array, candidates: Candidates, *, batch_size: int) -> Selection:
        seen.append((len(candidates.rows), int(np.sum(candidates.mask))))
        return af.select_top(key, candidates, batch_size=batch_size)

    mine = Strategy(select, frozenset({"scores"}), af.bald, host=True)
    go("mine", config=CONFIG._replace(pool_size=0), strategies={"mine": mine})
    assert seen == [(130, 130), (130, 125), (130, 120)]


def test_strategies_of_ones_own_by_name():
    def select(key: jax.Array, candidates: Candidates, *, batch_size: int) -> Selection:
        assert candidates.log_probs is not None and candidates.scores is None
        assert candidates.log_probs.shape == (40, 3, 10)
        margin = candidates.log_probs[:, 0, 0]
        return af.select_top(key, candidates._replace(scores=margin), batch_size=batch_size)

    mine = Strategy(select, frozenset({"log_probs"}))
    found = go("random", "mine", strategies={"mine": mine})
    assert found.cells["mine", 0].labels.tolist() == [10, 15, 20, 25]
    hidden = go("random", strategies={"random": mine})  # before the library's own
    assert same_curves(hidden.cells["random", 0], found.cells["mine", 0])


def test_an_oracle_that_skips_rows():
    data, asked = digits(), []

    def person(rows: np.ndarray) -> np.ndarray:
        asked.append(rows.tolist())
        return np.where((rows % 3 == 0) & (len(asked) > 1), oracle.SKIP, data.labels[rows])

    curve = go(label_oracle=person).cells["bald", 0]
    everything = sum(asked[1:], [])
    assert len(set(everything)) == len(everything)  # nobody is asked twice
    answered = [sum(row % 3 != 0 for row in rows) for rows in asked[1:]]
    assert curve.labels.tolist() == [10, *(10 + np.cumsum(answered))]
    assert curve.labels[-1] == BUDGET and len(asked) > 4


def test_a_pool_of_skipped_rows_ends_the_run():
    def stubborn(rows: np.ndarray) -> np.ndarray:
        labels = digits().labels[rows]
        return labels if len(rows) == 10 else np.full(len(rows), oracle.SKIP)

    curve = go("random", data=digits(33), label_oracle=stubborn).cells["random", 0]
    assert curve.labels.tolist() == [10, 10, 10, 10]


def test_a_cold_start_of_any_size():
    """Fewer rows than classes; the identity of a run without it stays what it was."""
    config = CONFIG._replace(initial="random", num_initial=4)
    curve = go("random", config=config, labels=9).cells["random", 0]
    assert len(curve.initial_rows) == 4 and curve.labels.tolist() == [4, 9]
    assert "num_initial" not in experiment.settings(CONFIG)
    assert experiment.settings(config)["num_initial"] == 4


def test_splits_of_ones_own_serve_every_seed():
    splits = experiment.seed_splits(CONFIG, digits(), 7)
    found = go("random", seeds=(0, 1), splits=splits).cells
    for seed in (0, 1):
        assert np.array_equal(found["random", seed].initial_rows, splits.initial)
    assert not np.array_equal(found["random", 0].rows[0], found["random", 1].rows[0])


def test_progress_counts_all_rounds_of_all_cells():
    reports: list[Progress] = []
    found = go("bald", "random", on_round=reports.append)
    assert [(p.acquisition, p.round, p.labels) for p in reports] == [
        (name, number, 10 + 5 * number) for name in ("bald", "random") for number in range(4)
    ]
    assert [(p.done, p.total) for p in reports] == [(n, 8) for n in range(1, 9)]
    assert {(p.seed, p.budget) for p in reports} == {(0, BUDGET)}
    assert [p.test_accuracy for p in reports[:4]] == found.cells["bald", 0].test[
        "accuracy"
    ].tolist()


def test_keys_differ_between_uses_rounds_and_seeds():
    keys = [key for seed in range(3) for r in range(4) for key in experiment.round_keys(seed, r)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 3 * 4 * len(
        experiment.Keys._fields
    )


def test_early_stopping_and_warm_starts_run():
    fit = CONFIG.fit._replace(monitor="nll", min_steps=30, patience=2)
    found = go(config=CONFIG._replace(fit=fit, warm_start=True), labels=20).cells["bald", 0]
    assert (found.fitted["best_step"] <= found.fitted["steps"]).all()
    cold = go(labels=20).cells["bald", 0]
    warm = go(config=CONFIG._replace(warm_start=True), labels=20).cells["bald", 0]
    assert warm.test["nll"][0] == cold.test["nll"][0]
    assert warm.fitted["train_loss"][1] < cold.fitted["train_loss"][1]


# What a run leaves.


def test_the_log_says_what_happened_in_order(finished: pathlib.Path):
    events = history.read_events(log_of(finished))
    labels = digits().labels
    expected = [("labels", 0)]
    for number in range(4):
        expected += [("fitted", number), ("evaluated", number)]
        expected += [("query", number), ("labels", number)] if number < 3 else []
    assert [(event["event"], event["round"]) for event in events] == expected
    assert events[0]["query"] == "initial" and len(events[0]["rows"]) == 10
    counts = [event["labels"] for event in events if event["event"] == "evaluated"]
    assert counts == [10, 15, 20, 25]
    for event in events:
        kind = event["event"]
        if kind == "labels":
            assert set(event) == {"event", "round", "query", "rows", "labels"}
            assert event["labels"] == labels[event["rows"]].tolist()
        elif kind == "fitted":
            assert {"labels", "steps", "best_step", "train_loss"} <= set(event)
            assert event["steps"] == event["best_step"] == 5
        elif kind == "evaluated":
            assert set(event["test"]) == set(event["validation"]) == METRICS
            assert 0 <= event["test"]["accuracy"] <= 1
        elif kind == "query":
            assert set(event) == {"event", "round", "id", "rows", "scores", "filler"}
            assert event["id"] == f"r{event['round']:04d}"
            assert len(event["rows"]) == len(event["scores"]) == len(event["filler"]) == 5
            assert not any(event["filler"])
    assert "seconds" not in log_of(finished).read_text()
    clock = [
        json.loads(line) for line in (finished / "bald/0/clock.jsonl").read_text().splitlines()
    ]
    assert {line["phase"] for line in clock} == {"fit", "evaluate", "provide", "acquire"}


def test_a_directory_holds_what_a_run_in_memory_returns(finished: pathlib.Path):
    in_memory = go("bald", "random", seeds=(0, 1))
    on_disk = history.read_history(finished)
    assert set(on_disk.cells) == set(in_memory.cells)
    for cell, curve in in_memory.cells.items():
        assert same_curves(on_disk.cells[cell], curve)
    assert on_disk.config["identity"] == json.loads(
        json.dumps(experiment.identity(CONFIG, digits()))
    )
    assert {p.name for p in finished.rglob("*") if p.is_file()} == {
        "config.json",
        "log.jsonl",
        "clock.jsonl",
    }


# Going on.


def copy(directory: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    for name, content in logs(directory).items():
        (to / name).parent.mkdir(parents=True)
        (to / name).write_bytes(content)
    (to / "config.json").write_bytes((directory / "config.json").read_bytes())
    return to


def test_a_finished_run_is_left_alone(finished: pathlib.Path):
    before, reports = tree(finished), []
    found = go("bald", "random", seeds=(0, 1), directory=finished, on_round=reports.append)
    assert tree(finished) == before and not reports
    assert found.cells["bald", 0].labels.tolist() == [10, 15, 20, 25]
    go(directory=finished, labels=18)  # fewer than are there
    assert tree(finished) == before


def test_a_run_that_emptied_its_pool_is_left_alone(tmp_path: pathlib.Path):
    go(labels=100, data=digits(33), directory=tmp_path)
    before = logs(tmp_path)
    go(labels=100, data=digits(33), directory=tmp_path)
    assert logs(tmp_path) == before


def test_resumed_from_any_byte_it_ends_in_the_same_bytes(
    finished: pathlib.Path, tmp_path: pathlib.Path
):
    whole = log_of(finished).read_bytes()
    ends = [0, *(match.end() for match in re.finditer(b"\n", whole))]
    assert len(ends) == 1 + 1 + 4 * 2 + 3 * 2
    inside = [(a + b) // 2 for a, b in zip(ends, ends[1:])]
    almost = [end - 1 for end in ends[1:]]
    copy(finished, tmp_path)
    for size in (*ends, *inside, almost[0], almost[7], almost[-1]):
        log_of(tmp_path).write_bytes(whole[:size])
        go(directory=tmp_path)
        assert log_of(tmp_path).read_bytes() == whole, f"cut off after {size} bytes"


def test_a_resumed_run_asks_nobody_twice(finished: pathlib.Path, tmp_path: pathlib.Path):
    whole = log_of(finished).read_bytes()
    lines = whole.splitlines(keepends=True)
    copy(finished, tmp_path)
    asked: list[list[int]] = []

    def person(rows: np.ndarray) -> np.ndarray:
        asked.append(rows.tolist())
        return digits().labels[rows]

    log_of(tmp_path).write_bytes(b"".join(lines[:9]))  # labels of round 1 are there
    go(directory=tmp_path, label_oracle=person)
    events = history.read_events(log_of(finished))
    assert asked == [e["rows"] for e in events if e["event"] == "query" and e["round"] == 2]


def test_a_raised_budget_is_a_larger_run(
    finished: pathlib.Path, larger: pathlib.Path, tmp_path: pathlib.Path
):
    copy(finished, tmp_path)
    curve = go(labels=35, directory=tmp_path).cells["bald", 0]
    assert curve.labels.tolist() == [10, 15, 20, 25, 30, 35]
    assert log_of(tmp_path).read_bytes() == log_of(larger).read_bytes()
    assert log_of(tmp_path, "random").read_bytes() == log_of(finished, "random").read_bytes()


def test_a_query_asked_under_another_budget_is_answered_as_it_stands(tmp_path: pathlib.Path):
    go(labels=13, directory=tmp_path)
    path = log_of(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    kinds = [json.loads(line)["event"] for line in lines]
    until = kinds.index("query") + 1
    path.write_bytes(b"".join(lines[:until]))  # killed before the three answers came
    asked = json.loads(lines[until - 1])["rows"]
    curve = go(labels=BUDGET, directory=tmp_path).cells["bald", 0]
    assert curve.labels.tolist() == [10, 13, 18, 23, 25]
    assert curve.rows[0].tolist() == asked


def test_a_budget_raised_beyond_the_buffer_changes_nothing(tmp_path: pathlib.Path):
    config = CONFIG._replace(acquisition_size=60, pool_size=0)
    data = digits(200)
    one, two = tmp_path / "one", tmp_path / "two"
    for budget in (70, 130):
        go("random", labels=budget, data=data, config=config, directory=one)
    go("random", labels=130, data=data, config=config, directory=two)
    assert logs(one) == logs(two)


def test_more_seeds_and_functions_join_a_run(finished: pathlib.Path, tmp_path: pathlib.Path):
    go(directory=tmp_path)
    go("random", seeds=(1,), directory=tmp_path)
    found = go("bald", "random", seeds=(0, 1), directory=tmp_path)
    assert logs(tmp_path) == logs(finished)
    assert len(found.cells) == 4


def test_a_warm_started_run_resumes_to_the_same_bytes(tmp_path: pathlib.Path):
    config = CONFIG._replace(warm_start=True)
    go(config=config, directory=tmp_path)
    whole = log_of(tmp_path).read_bytes()
    lines = whole.splitlines(keepends=True)
    for count in range(len(lines)):
        log_of(tmp_path).write_bytes(b"".join(lines[:count]))
        go(config=config, directory=tmp_path)
        assert log_of(tmp_path).read_bytes() == whole, f"{count} lines kept"


def test_interrupted_anywhere_a_run_goes_on(larger: pathlib.Path, tmp_path: pathlib.Path):
    """Ctrl-C from the oracle, or from whoever watches."""
    calls = [0]

    def interrupt(value: Any) -> Any:
        calls[0] += 1
        if calls[0] % 3 == 0:
            raise KeyboardInterrupt
        return value

    def person(rows: np.ndarray) -> np.ndarray:
        return interrupt(digits().labels[rows])

    interruptions = 0
    for _ in range(20):
        try:
            go(labels=35, directory=tmp_path, label_oracle=person, on_round=interrupt)
            break
        except KeyboardInterrupt:
            interruptions += 1
            history.read_events(log_of(tmp_path))
            assert log_of(larger).read_bytes().startswith(log_of(tmp_path).read_bytes())
    assert interruptions >= 3
    assert log_of(tmp_path).read_bytes() == log_of(larger).read_bytes()


def test_another_environments_query_is_the_one_that_is_answered(
    finished: pathlib.Path, tmp_path: pathlib.Path
):
    """Elsewhere the last bits differ, so other rows may be picked: the logged ones count."""
    copy(finished, tmp_path)
    log_of(tmp_path).unlink()
    events = history.read_events(log_of(finished))
    pool = experiment.seed_splits(CONFIG, digits(), 0).pool
    other = [row for row in pool.tolist() if row not in events[3]["rows"]][:5]
    with history.EventLog(log_of(tmp_path)) as log:
        for event in events[:3]:
            log.record(event)
        log.record(events[3] | {"rows": other})
    with pytest.raises(HistoryError, match="does not repeat the logged one"):
        go(directory=tmp_path)
    go(directory=tmp_path, allow_other_environment=True)
    found = history.read_events(log_of(tmp_path))
    assert found[3]["rows"] == found[4]["rows"] == other
    assert found[4]["labels"] == digits().labels[other].tolist()
    go(directory=tmp_path, labels=30)  # and it can still be read and gone on with


def test_fresh_starts_anew(tmp_path: pathlib.Path):
    go("random", directory=tmp_path, labels=15)
    go("random", directory=tmp_path, labels=15, config=CONFIG._replace(num_samples=4), fresh=True)
    assert history.read_config(tmp_path)["identity"]["num_samples"] == 4


def test_a_config_comes_back_from_its_identity():
    config = CONFIG._replace(posterior="laplace", warm_start=True)
    splits = experiment.seed_splits(CONFIG, digits(), 3)
    for each, rows in ((CONFIG, None), (config, splits)):
        facts = json.loads(json.dumps(experiment.identity(each, digits(), rows)))
        found, found_splits = experiment.config_of(facts)
        assert found == each
        assert (found_splits is None) == (rows is None)
        if rows is not None:
            assert all(np.array_equal(a, b) for a, b in zip(found_splits, rows))
    with pytest.raises(ValueError, match="its settings do not say acquisition_size, .*fit"):
        experiment.config_of({"dataset": "mnist"})


# Compilations.


@pytest.mark.parametrize(
    "num_train, pool_size, budget",
    [(150, 40, 40), (45, 0, 100)],
    ids=["a subset of the pool", "until the pool is empty"],
)
def test_nothing_is_compiled_after_the_first_rounds(
    compilations: Callable[[], int], num_train: int, pool_size: int, budget: int
):
    config = CONFIG._replace(num_samples=2, pool_size=pool_size)
    counts: list[tuple[str, int, int, int]] = []

    def report(progress: Progress) -> None:
        counts.append((progress.acquisition, progress.seed, progress.round, compilations()))

    functions = ("bald", "random", "max_entropy")
    go(*functions, seeds=(0, 1), labels=budget, data=digits(num_train), config=config,
       on_round=report)  # fmt: skip
    assert len(counts) >= 6 * 6 and compilations() == counts[-1][-1]
    # Between two reports lie an acquisition and the next fit. A function's own score and rule
    # are compiled on first use; nothing else ever is.
    new = {after[:3]: after[3] - before[3] for before, after in zip(counts, counts[1:])}
    first_use = {(name, 0, 1) for name in functions}
    assert sum(new[place] for place in first_use) > 0  # the listener works
    assert {place: n for place, n in new.items() if n and place not in first_use} == {}
