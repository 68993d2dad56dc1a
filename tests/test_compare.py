"""Runs joined, everything about them in one comparison, and the command that writes it."""

import json
import math
import pathlib

import numpy as np
import pytest
from histories import curve, history, rising
from small_runs import ENVIRONMENT, REPOSITORY, small_run

from bayesian_active_learning import history as history_
from bayesian_active_learning import statistics as st
from bayesian_active_learning.history import HistoryError
from experiments import compare as command

# Several runs as one.


def test_joined_runs():
    one = rising(("bald",), num_seeds=2, num_rounds=4)
    two = rising(("random", "bald"), num_seeds=2, num_rounds=4)
    two.cells["bald", 0], two.cells["bald", 1] = one.cells["bald", 0], one.cells["bald", 1]
    found = history_.join_histories({"A": one, "B": two})
    assert set(found.cells) == {("bald", 0), ("bald", 1), ("random", 0), ("random", 1)}
    assert found.config == one.config and len(one.cells) == 2
    here = one._replace(config=one.config | {"environment": {"jax": "1"}})
    there = two._replace(config=two.config | {"environment": {"jax": "2"}})
    both = history_.join_histories({"A": here, "B": there, "C": here})
    assert both.config["also_run_in"] == [{"jax": "2"}]
    text = " ".join(st.compare(both, bootstrap_seed=0).warnings)
    assert (
        'several environments, so equal seeds share less than they could: jax: "1" -> "2"' in text
    )


def test_joining_refuses():
    one = rising(("bald",), num_seeds=1, num_rounds=4)
    other = rising(("random",), num_seeds=1, num_rounds=4, acquisition_size=1)
    message = r"A and B differ in data or protocol.*\(A -> B\): acquisition_size: 10 -> 1"
    with pytest.raises(HistoryError, match=message):
        history_.join_histories({"A": one, "B": other})
    again = history({("bald", 0): [0.1, 0.2, 0.3, 0.4]})
    with pytest.raises(HistoryError, match="A and B both have bald, seed 0, with other results"):
        history_.join_histories({"A": one, "B": again})
    moved = curve([0.1, 0.2])._replace(initial_rows=np.arange(1, 21, dtype=np.int32))
    apart = one._replace(cells={("random", 0): moved})
    with pytest.raises(HistoryError, match=r"seed 0 began with other rows for bald \(in A\)"):
        history_.join_histories({"A": one, "B": apart})
    with pytest.raises(ValueError, match="no histories to join"):
        history_.join_histories({})


# The whole, and the command.


def test_compare_real_curves():
    told = history_.read_history(REPOSITORY / "experiments" / "results" / "mnist-paper")
    found = st.compare(told, bootstrap_seed=0)
    summary = history_.paired_difference(told)
    (last,) = [
        pair
        for pair in found.pairs
        if pair.first == "bald" and pair.measure.startswith("last 10 rounds")
    ]
    assert summary is not None and last.test is not None and last.seeds == summary.seeds
    assert last.test.mean == pytest.approx(summary.mean)
    assert last.test.t_interval == pytest.approx(summary.interval, rel=1e-4)
    medians = {
        (each.function, each.threshold, each.sustained): each.median for each in found.thresholds
    }
    assert medians["bald", 0.95, 3] == 290 and medians["variation_ratios", 0.9, 1] == 130
    assert medians["random", 0.95, 1] is None
    assert found.numbers[0].values.keys() == {
        "bald",
        "variation_ratios",
        "max_entropy",
        "mean_std",
        "random",
    }
    text = st.describe(found)
    assert "not reached" in text and "+2.88" in text and "better" in text
    assert "signed-rank test never gives less than p = 0.25 after Holm's correction over 4" in text
    assert st.to_plain(found) == st.to_plain(st.compare(told, bootstrap_seed=0))


def test_compare_says_what_is_uneven():
    cells = {("random", seed): [0.1, 0.2, 0.3, 0.4] for seed in range(3)}
    cells |= {("a", 0): [0.1, 0.3, 0.5], ("a", 1): [0.1, 0.3, 0.5, 0.6]}
    cells |= {("b", seed): [0.1, 0.2, 0.2, 0.2] for seed in range(3)}
    found = st.compare(history(cells, dataset="digits"), labels=[30], bootstrap_seed=0)
    assert found.labels == (20, 40)
    text = st.describe_warnings(found.warnings)
    assert "NOT MNIST" in text
    assert "not all curves end together: a, seed 0, ends at 40 labels, others go on to 50" in text
    assert "a and random are paired over the seeds that both have (0, 1); not used" in text
    assert "in pairs: 2" in text
    assert "- a with random: 2 pairs" in text and "- b with random: 3 pairs" in text
    with pytest.raises(ValueError, match="a, seed 0, goes from 20 to 40"):
        st.compare(history(cells), labels=[50], bootstrap_seed=0)


def test_compare_of_other_metrics_and_lonely_functions():
    told = rising(("bald", "random"), num_seeds=3, num_rounds=8)
    found = st.compare(told, metric="nll", bootstrap_seed=0)
    assert found.thresholds == found.speed_ups == () and found.normalised_errors is None
    assert found.pairs[0].verdict == "better" and "Test nll" in st.describe(found)
    alone = st.compare(rising(("random",), num_seeds=1, num_rounds=8), bootstrap_seed=0)
    assert alone.pairs == () and alone.penalties is None and alone.groups is None
    assert "there is only random" in alone.warnings[0]
    assert "there is only random" in st.describe(alone)
    with pytest.raises(ValueError, match="no curve of 'random' to compare with; there are bald"):
        st.compare(rising(("bald",), num_seeds=1, num_rounds=8), bootstrap_seed=0)


def test_plain_values_are_json():
    record = st.to_plain({"a": (np.float64(1.5), math.inf, None), 2: np.array([1, 2])})
    assert record == {"a": [1.5, None, None], "2": [1, 2]}
    plain = st.to_plain(st.labels_to_thresholds(history({("a", 0): [0.9, 0.9]}), [0.9]))
    assert json.loads(json.dumps(plain))[0]["reached"] == {"0": 20}


@pytest.fixture
def runs(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    paths = tmp_path / "one" / "history.json", tmp_path / "two" / "history.json"
    for path, name in zip(paths, ("bald", "random"), strict=True):
        path.parent.mkdir()
        history_.write_history(path, rising((name,), num_seeds=3, num_rounds=20))
    return paths


def test_command_joins_runs_and_writes(runs, tmp_path, capsys):
    arguments = [*map(str, runs), "--last", "5", "--thresholds", "0.8"]
    assert command.main(arguments) == 0
    text = capsys.readouterr().out
    written = (runs[0].parent / "comparison.txt").read_text()
    assert text.startswith(written) and "last 5 rounds" in text and "80 %, for 3 rounds" in text
    record = json.loads((runs[0].parent / "comparison.json").read_text())
    assert record["runs"] == [*map(str, runs)] and record["identity"]["dataset"] == "mnist"
    assert record["comparison"]["pairs"][0]["seeds"] == [0, 1, 2]
    assert not (runs[1].parent / "comparison.txt").exists()
    assert command.main([*arguments, "--output", str(tmp_path / "out" / "here")]) == 0
    assert (tmp_path / "out" / "here" / "comparison.txt").read_text() == written


def test_command_refuses(runs, tmp_path, capsys):
    other = tmp_path / "other.json"
    history_.write_history(other, rising(("random",), num_seeds=3, num_rounds=20, pool_size=0))
    assert command.main([str(runs[0]), str(other)]) == 2
    assert "pool_size: 2000 -> 0" in capsys.readouterr().err
    assert command.main([str(runs[0])]) == 2
    assert "no curve of 'random' to compare with; there are bald" in capsys.readouterr().err
    assert command.main([str(tmp_path / "nothing")]) == 2
    assert "is not a run" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("comparison.*")) == []


def test_old_scipy_is_refused(runs, monkeypatch, capsys):
    monkeypatch.setattr("scipy.__version__", "1.15.3")
    assert command.main([*map(str, runs)]) == 1
    message = "statistics need SciPy 1.16 or later, this is 1.15.3; install the 'experiments' extra"
    assert message in capsys.readouterr().err


def test_a_fresh_run_takes_its_comparison_away(tmp_path):
    identity = history_.read_config(small_run(tmp_path))["identity"]
    (tmp_path / "comparison.txt").write_text("old")
    run = history_.open_run(tmp_path, identity, ENVIRONMENT, fresh=True)
    assert "comparison.txt" in run.removed and not (tmp_path / "comparison.txt").exists()
