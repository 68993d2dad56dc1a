"""Each benchmark runs at its smallest size, without peers, and leaves a record."""

import importlib
import json
import math
import pathlib

import numpy as np
import pytest

from benchmarks import __main__ as everything
from benchmarks import batch_selection, measure, summary


@pytest.fixture(autouse=True)
def made_up_data(monkeypatch: pytest.MonkeyPatch):
    """Reading all of MNIST takes longer than the smallest sizes."""
    monkeypatch.delenv("BAL_DATA_DIR", raising=False)


# Those that compile most: `make test-all`.
SLOW = {"batch_selection", "experiment", "mc_scoring", "replicas", "startup"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in everything.NAMES
    ],
)
def test_record(name: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    module = importlib.import_module(f"benchmarks.{name}")
    assert set(module.SIZES) == {"full", "quick", "smallest"}
    arguments = ["--size", "smallest", "--without-peers", "--output", str(tmp_path)]
    assert module.main(arguments) == 0
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert (record["benchmark"], record["size"]) == (name, "smallest")
    assert set(record["missing"]) == {"torch", "baal", "batchbald_redux", "scikit-activeml"}
    assert record["machine"]["num_cpus"] >= 1 and record["machine"]["jax"]
    assert record["results"]
    printed = capsys.readouterr().out
    for result in record["results"]:
        assert result["case"] in printed
        seconds = result["seconds"]["ours"]
        assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
        assert len(seconds["runs"]) >= 1
        for limit in result["limits"].values():
            assert limit["seconds"]["min"] > 0 and limit["share_reached"]["min"] > 0
    assert record["results"][0]["case"] in summary.markdown(summary.read(tmp_path))


def test_cases_take_turns_and_the_slow_ones_fewer():
    calls: list[str] = []
    now = iter(np.arange(1e6))

    def case(name: str) -> measure.Case:
        return measure.Case(lambda: calls.append(name) or next(now))

    cases = {"a": case("a"), "b": case("b")}
    timings, results = measure.interleaved(cases, repeats=3, patience=60)
    assert [len(timing.there) for timing in timings.values()] == [3, 3]
    assert calls[:2] == ["a", "b"]  # the first calls, apart
    assert sorted(calls[2:4]) == sorted(calls[4:6]) == sorted(calls[6:8]) == ["a", "b"]
    assert set(results.values()) == {6.0, 7.0}  # the last ones
    timings, _ = measure.interleaved(cases, repeats=3, patience=0)
    assert [len(timing.there) for timing in timings.values()] == [1, 1]
    assert math.isnan(timings["a"].runs[2])


def test_ratios_are_of_the_same_turn():
    slow, fast = measure.Timing(9, (4, 20, float("nan"))), measure.Timing(1, (2, 4, 5))
    assert measure.ratios(slow, fast) == {"min": 2, "median": 3.5, "max": 5}


def test_limits_are_shares_of_each_turn(capsys: pytest.CaptureFixture):
    ours = measure.Timing(3.0, (2.0, 4.0))
    found = measure.result("work", {"ours": ours}, limits={"limit": [1.0, 3.0]})
    assert found["limits"]["limit"]["share_reached"] == {"min": 0.5, "median": 0.625, "max": 0.75}
    assert "62.5 (50 to 75) % of it reached" in capsys.readouterr().out


def test_speeds_are_those_of_the_fastest_in_each_turn():
    timings = {
        "product 10x20x30 (XLA)": measure.Timing(1, (1.0, 4.0)),
        "product 10x20x30 (PyTorch)": measure.Timing(1, (2.0, 2.0)),
    }
    flops = 2 * 10 * 20 * 30 * 250_000  # repeated up to 3e9
    assert measure.product_speeds(timings) == [flops, flops / 2]
    assert measure.product_speeds(timings, "PyTorch") == [flops / 2, flops / 2]
    whole = {"ours": measure.Timing(1, (1.0,)), "part of it": measure.Timing(1, (0.5,))}
    assert list(measure.without_speeds(timings | whole)) == ["ours"]
    reads = {"read 256 MiB (XLA)": measure.Timing(1, (0.5,))}
    assert measure.read_speeds(reads) == [2 * 256 * 2**20 / 0.5]


def test_joint_information():
    """A coin known to fall on one side, but not on which: its second throw says nothing new."""
    coin = np.array([[1.0, 0.0], [0.0, 1.0]])  # [K, C]
    fair = np.full((2, 2), 0.5)
    exact = batch_selection.joint_information(np.stack([coin, coin, fair]))
    assert exact["joint entropy"] == pytest.approx(2 * math.log(2))
    assert exact["information"] == pytest.approx(math.log(2))
    drawn = batch_selection.joint_information(np.stack([coin, coin, fair]), draws=4)
    assert drawn["joint entropy"] == pytest.approx(2 * math.log(2))
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(3), (4, 5))
    exact = batch_selection.joint_information(probs, draws=81)
    drawn = batch_selection.joint_information(probs, draws=80)
    many = batch_selection.joint_information(np.concatenate([probs, probs]), draws=3_000)
    assert exact["error"] == 0 < drawn["error"]
    assert abs(drawn["joint entropy"] - exact["joint entropy"]) < 5 * drawn["error"]
    assert exact["joint entropy"] < many["joint entropy"] < 2 * exact["joint entropy"]


def test_radius_and_potential():
    points = np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
    assert batch_selection.radius(points, points[:1], np.array([1])) == pytest.approx(4)
    errors = np.array([[1.0, -1.0], [1.0, -1.0], [1.0, -1.0]])
    expected = math.sqrt((0 + 2 * 9 + 2 * 25) / 3)
    assert batch_selection.potential(errors, points, np.array([0])) == pytest.approx(expected)
