"""The study's bookkeeping, on digits and with a tiny network."""

import json

import pytest

from bayesian_active_learning import data_utils, experiment, training
from experiments import protocol_study


@pytest.fixture
def small(monkeypatch):
    """Two variants and one size, cheap to fit."""
    fit = training.FitConfig(min_steps=5, epochs=0)
    config = experiment.Config(model="mlp", num_test_samples=3, fit=fit)
    monkeypatch.setattr(experiment, "Config", lambda **changes: config._replace(**changes))
    monkeypatch.setattr(training, "FitConfig", lambda: fit)
    monkeypatch.setattr(protocol_study, "LABELS", (30,))
    variants = {"protocol": {}, "5 more steps": {"min_steps": 10}}
    monkeypatch.setattr(protocol_study, "TRAINING", variants)
    return data_utils.load_digits()


def test_trials_are_made_once_and_tabled(small, tmp_path):
    path = tmp_path / "training.jsonl"
    trials = protocol_study._trials(path, small, small, (0, 1, 2))
    assert [(t["variant"], t["seed"], t["steps"]) for t in trials] == [
        (variant, seed, steps)
        for seed in (0, 1, 2)
        for variant, steps in (("protocol", 5), ("5 more steps", 10))
    ]
    before = path.read_bytes()
    assert protocol_study._trials(path, small, small, (0, 1, 2)) == trials
    assert path.read_bytes() == before
    stored = [json.loads(line) for line in before.splitlines()]
    assert [{"variant": t["variant"], **s} for t, s in zip(trials, stored, strict=True)] == trials

    path.write_bytes(before + b'{"settings": "cut of')
    assert protocol_study._trials(path, small, small, (0, 1, 2)) == trials

    table = protocol_study.training_table(trials, (0, 1, 2)).splitlines()
    assert table[-2].startswith("| protocol | 30 |")
    other = [t["test_accuracy"] for t in trials if t["variant"] != "protocol"]
    own = [t["test_accuracy"] for t in trials if t["variant"] == "protocol"]
    mean = 100 * (sum(other) - sum(own)) / 3
    assert f"| {mean:+.2f} (" in table[-1]


def test_acquisition_table_ends_at_the_budget(small, tmp_path, monkeypatch):
    variants = {"protocol": ("bald", {}), "random": ("random", {}), "K = 2": ("bald", {})}
    monkeypatch.setattr(protocol_study, "ACQUISITION", variants)
    config = experiment.Config()
    experiment.run(config, small, ["bald"], (0, 1), labels=50, directory=tmp_path / "protocol")
    table = protocol_study._acquisition_table(tmp_path, small, (0, 1), 40).splitlines()
    assert "; 40 labels" in table[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[4:]]
    assert [row[0] for row in rows] == list(variants)
    # The same settings give the same curve, though one of them was run further.
    assert rows[0][1:3] == rows[2][1:3] and rows[2][3] == "+0.00"
    found = experiment.run(config, small, ["random"], (0, 1), labels=40)
    mean = sum(cell.test["accuracy"][-10:].mean() for cell in found.cells.values()) / 2
    assert rows[1][2] == f"{mean:.2%}"
