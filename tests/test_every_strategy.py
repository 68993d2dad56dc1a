"""Every name of STRATEGIES, POSTERIORS and the cold starts through the whole driver, on digits."""

import pathlib
from collections.abc import Callable

import jax
import numpy as np
import pytest
from driver import CONFIG, digits, go, log_of, logs

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning import cold_start, data_utils, experiment, history, posteriors

BUDGET = 18  # the initial 10, a whole batch, and a short one
QUICK = {
    "vaal": "vaal:max_steps=2",
    "vae_coreset": "vae_coreset:max_steps=2",
    "qbc": "qbc:members=2",
}


@pytest.mark.parametrize("name", af.STRATEGIES)
def test_runs_to_the_end_and_says_what_was_picked(
    name: str, tmp_path: pathlib.Path, compilations: Callable[[], int]
):
    spec = QUICK.get(name, name)
    counts: list[int] = []
    found = go(
        spec, labels=BUDGET, directory=tmp_path, on_round=lambda _: counts.append(compilations())
    )
    assert counts[2] == counts[1]  # the first acquisition is the last to compile anything
    assert found.cells[spec, 0].labels.tolist() == [10, 15, 18]
    events = history.read_events(next(tmp_path.rglob("log.jsonl")))
    queries = [event for event in events if event["event"] == "query"]
    assert [len(query["rows"]) for query in queries] == [5, 3]
    splits = experiment.seed_splits(CONFIG, digits(), 0)
    rows = [row for query in queries for row in query["rows"]]
    assert len(set(rows)) == 8 and set(rows) <= set(splits.pool.tolist())
    for query in queries:
        assert len(query["scores"]) == len(query["rows"])
        assert np.isfinite(query["scores"]).all()


@pytest.mark.parametrize("name", ["epig", "badge", "typiclust", "qbc:members=2"])
def test_same_bytes_again(name: str, tmp_path: pathlib.Path):
    for directory in ("first", "second"):
        go(name, labels=15, directory=tmp_path / directory)
    assert logs(tmp_path / "first") == logs(tmp_path / "second")


def test_names_with_options_have_places_of_their_own(tmp_path: pathlib.Path):
    names = ("power:score=margin,beta=8", "power:score=margin,beta=2")
    found = go(*names, labels=15, directory=tmp_path)
    assert set(found.cells) == {(name, 0) for name in names}
    again = go(*names, labels=15, directory=tmp_path)
    assert set(again.cells) == set(found.cells)


def test_bald_without_samples_is_warned_about():
    with pytest.warns(UserWarning, match=r"bald: with one posterior sample \(K = 1\) bald is"):
        go("bald", labels=15, config=CONFIG._replace(num_samples=1))
    with pytest.warns(UserWarning, match="bald: with one posterior sample"):
        go("bald", labels=15, config=CONFIG._replace(posterior="deterministic"))


def test_what_a_strategy_refuses_comes_before_any_training(tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match="bait:max_bytes=8: .*bytes"):
        go("bait:max_bytes=8", labels=15, directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", [*posteriors.POSTERIORS, "laplace:structure=full", "ensemble:members=2,dropout=true"]
)
def test_posteriors_in_the_driver(name: str, tmp_path: pathlib.Path):
    config = CONFIG._replace(posterior=name)
    found = go("max_entropy", labels=BUDGET, config=config, directory=tmp_path)
    assert found.cells["max_entropy", 0].labels.tolist() == [10, 15, 18]
    whole = logs(tmp_path)
    log = log_of(tmp_path, "max_entropy")
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[: len(lines) // 2]))
    go("max_entropy", labels=BUDGET, config=config, directory=tmp_path)
    assert logs(tmp_path) == whole  # killed and resumed


@pytest.mark.parametrize(
    ("model", "posterior"),
    [("linear", "laplace:prior_precision=100"), ("mlp", "ensemble:members=2")],
)
def test_heads_on_embeddings(model: str, posterior: str):
    """Features [N, D] as data, a head with a posterior, and a cold start."""
    data = data_utils.flatten(digits())
    assert data.images.shape == (len(data.labels), 64)
    fit = CONFIG.fit._replace(min_steps=200)
    config = CONFIG._replace(model=model, posterior=posterior, initial="kmeans", fit=fit)
    cells = go("bald", "typiclust", labels=BUDGET, data=data, config=config).cells
    for cell in cells.values():
        assert cell.labels.tolist() == [10, 15, 18]
    assert cells["bald", 0].rows[0].tolist() != cells["typiclust", 0].rows[0].tolist()
    assert cells["typiclust", 0].test["accuracy"][-1] > 0.35  # a tenth by chance


def test_settings_younger_than_a_run_leave_its_identity_alone():
    identity = experiment.identity(CONFIG, digits())
    assert not {"posterior", "initial"} & set(identity)
    changed = experiment.identity(CONFIG._replace(posterior="laplace"), digits())
    assert changed == identity | {"posterior": "laplace"}


# Cold starts.


@pytest.mark.parametrize(
    "name", ["random", "kmeans", "kmeans_pp", "coreset", "typiclust", "probcover"]
)
def test_cold_starts(name: str):
    config = CONFIG._replace(initial=name)
    first, again = (experiment.seed_splits(config, digits(), 0) for _ in range(2))
    other = experiment.seed_splits(config, digits(), 1)
    assert len(first.initial) == 10 and (np.diff(first.initial) > 0).all()
    np.testing.assert_array_equal(first.initial, again.initial)
    assert set(first.initial.tolist()) != set(other.initial.tolist())
    balanced = experiment.seed_splits(CONFIG, digits(), 0)
    sets = [set(rows.tolist()) for rows in first]
    assert sum(map(len, sets)) == len(set().union(*sets)) == sum(len(rows) for rows in balanced)
    assert go("random", labels=15, config=config).cells["random", 0].labels.tolist() == [10, 15]


def test_functions_added_later_start_from_the_rows_that_are_logged(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """Another version of a clustering library may choose other rows."""
    config = CONFIG._replace(initial="kmeans")
    go("random", labels=15, config=config, directory=tmp_path)
    (first, *_) = history.read_events(log_of(tmp_path, "random"))
    other = experiment.seed_splits(CONFIG._replace(initial="random"), digits(), 0).initial
    assert other.tolist() != first["rows"]
    monkeypatch.setattr(cold_start, "initial_rows", lambda *arguments: other)
    go("random", "bald", labels=20, config=config, directory=tmp_path)
    assert history.read_events(log_of(tmp_path, "bald"))[0]["rows"] == first["rows"]


def test_a_cold_start_looks_at_no_label():
    config = CONFIG._replace(initial="kmeans")
    data = digits()
    shuffled = data._replace(labels=np.random.default_rng(0).permutation(data.labels))
    ours = experiment.seed_splits(config, data, 0).initial
    np.testing.assert_array_equal(ours, experiment.seed_splits(config, shuffled, 0).initial)


def test_a_cold_start_by_clusters_finds_them():
    """30 points in three far groups of which one is large: random would miss one often."""
    generator = np.random.default_rng(0)
    centres = np.repeat([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]], [26, 2, 2], axis=0)
    points = (centres + generator.normal(size=centres.shape)).astype(np.float32)
    for rule in ("kmeans", "kmeans_pp", "coreset"):
        for seed in range(3):
            key = jax.random.key(seed)
            rows = cold_start.initial_rows(key, rule, points, np.arange(30), 3)
            groups = np.argmin(np.linalg.norm(points[rows, None] - centres[[0, 26, 28]], axis=2), 1)
            assert sorted(groups.tolist()) == [0, 1, 2], rule


def test_too_few_rows_for_a_cold_start():
    with pytest.raises(ValueError, match="cannot choose 4 initial rows from a pool of 3"):
        cold_start.initial_rows(jax.random.key(0), "random", np.zeros((3, 2)), np.arange(3), 4)
