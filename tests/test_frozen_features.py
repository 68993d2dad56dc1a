"""Whole runs on frozen features: against the pieces they are made of, one round at a time."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from driver import digits

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning import data_utils, frozen_features, history, metrics, protocol
from bayesian_active_learning.frozen_features import PROVIDED, FrozenConfig
from bayesian_active_learning.history import HistoryError
from bayesian_active_learning.posteriors import fit_logistic, sample_logistic
from bayesian_active_learning.rounds import RunError
from bayesian_active_learning.types import Strategy

CONFIG = FrozenConfig(
    num_initial_per_class=1, initial="random", pool_size=60, num_samples=8, acquisition_size=3
)
BUDGET = 20  # 10 at first, three whole batches, and a short one


@pytest.fixture(scope="module")
def data() -> data_utils.Dataset:
    flat = data_utils.flatten(digits())
    return data_utils.unit_norm(flat, flat.train_rows)


def go(data, *names: str, config: FrozenConfig = CONFIG, **options) -> history.History:
    return frozen_features.run(config, data, names, labels=options.pop("labels", BUDGET), **options)


def test_a_run_is_the_rounds_one_by_one(data, tmp_path: pathlib.Path):
    """BALD again in plain NumPy around the fit, from the same keys and orders."""
    curve = go(data, "bald", directory=tmp_path).cells["bald", 0]
    assert curve.labels.tolist() == [10, 13, 16, 19, 20]
    assert [len(rows) for rows in curve.rows] == [3, 3, 3, 1, 0]
    inputs = np.column_stack([data.images[:], np.full(len(data.labels), CONFIG.bias)])
    labels = np.asarray(data.labels)
    known = curve.initial_rows.tolist()
    seen = []
    for number, rows in enumerate(curve.rows):
        padded = np.resize(known, BUDGET)
        head = fit_logistic(
            inputs[padded].astype(np.float32),
            labels[padded],
            np.arange(BUDGET) < len(known),
            num_classes=10,
            prior_precision=CONFIG.prior_precision,
            posterior_precision=CONFIG.posterior_precision,
        )
        test = jax.nn.log_softmax(inputs[data.test_rows] @ np.asarray(head.weights))
        expected = metrics.classification_metrics(test, labels[data.test_rows])
        assert abs(curve.test["nll"][number] - expected.nll) < 2e-3
        assert abs(curve.test["accuracy"][number] - expected.accuracy) < 5e-3
        assert set(rows.tolist()).isdisjoint(known)
        seen.append(rows)
        known += rows.tolist()
    assert set(known) <= set(data.train_rows.tolist()) and len(set(known)) == BUDGET


def test_scores_are_those_of_the_samples(data):
    """The first batch, by hand: the head, its samples under the round's key, BALD of them."""
    curve = go(data, "bald").cells["bald", 0]
    splits = frozen_features._splits(CONFIG, data, 0)
    plan = frozen_features._plan(CONFIG, af.make_strategy("bald"), splits, 0, 4)
    rows = np.zeros(BUDGET, np.int32)
    rows[:10] = splits.initial
    inputs = np.column_stack([data.images[:], np.full(len(data.labels), CONFIG.bias, np.float32)])
    head = fit_logistic(
        inputs[rows],
        np.asarray(data.labels)[rows],
        np.arange(BUDGET) < 10,
        num_classes=10,
        prior_precision=CONFIG.prior_precision,
        posterior_precision=CONFIG.posterior_precision,
    )
    samples = sample_logistic(protocol.round_keys(0, 0).score, head, CONFIG.num_samples)
    candidates = np.asarray(plan.pool[: CONFIG.pool_size])
    log_probs = jax.nn.log_softmax(jnp.einsum("nd,kdc->nkc", inputs[candidates], samples))
    scores = np.asarray(af.bald(log_probs))
    best = np.sort(scores)[::-1][:3]
    np.testing.assert_allclose(curve.scores[0], best, atol=1e-4)
    np.testing.assert_allclose(
        scores[[candidates.tolist().index(row) for row in curve.rows[0]]], best, atol=1e-4
    )


def test_what_strategies_are_given_is_what_it_is_called(data):
    """Every field of the third round, from the head and its samples, and by `grad`."""
    number, count = 2, 16
    everything = Strategy(lambda *_: None, frozenset(PROVIDED), af.margin)
    splits = frozen_features._splits(CONFIG, data, 0)
    plan = frozen_features._plan(CONFIG, everything, splits, 0, 4)
    shape = frozen_features._Shape(CONFIG, 10, 60, 7)
    rows = np.zeros(BUDGET, np.int32)
    rows[:count] = [*splits.initial, *np.asarray(plan.pool[122:128])]
    arrays = frozen_features._arrays(CONFIG, data)
    _, _, given = frozen_features._prepare_jitted(
        everything, shape, arrays, plan, jnp.asarray(rows), jnp.int32(count), jnp.int32(number)
    )
    images, labels = np.asarray(data.images[:]), np.asarray(data.labels)
    inputs = np.column_stack([images, np.full(len(images), CONFIG.bias, np.float32)])
    head = fit_logistic(
        inputs[rows],
        labels[rows],
        np.arange(BUDGET) < count,
        num_classes=10,
        prior_precision=CONFIG.prior_precision,
        posterior_precision=CONFIG.posterior_precision,
    )
    samples = sample_logistic(protocol.round_keys(0, number).score, head, CONFIG.num_samples)
    at = np.asarray(given.rows)
    np.testing.assert_array_equal(at, np.take(plan.pool, np.arange(120, 180), mode="wrap"))
    assert np.flatnonzero(~np.asarray(given.mask)).tolist() == [2, 3, 4, 5, 6, 7]

    def log_probs(of):
        return jax.nn.log_softmax(jnp.einsum("nd,kdc->nkc", inputs[of], samples))

    def loss(x):
        logits = jnp.append(x, CONFIG.bias) @ head.weights
        return -jax.nn.log_softmax(logits)[jnp.argmax(logits)]

    targets = np.asarray(plan.targets)[14:21]
    assert set(targets) <= set(splits.pool.tolist())
    mode = np.asarray(jax.nn.log_softmax(inputs @ np.asarray(head.weights)))
    for name, expected in {
        "scores": af.margin(log_probs(at)),
        "log_probs": log_probs(at),
        "predictions": mode[at],
        "features": images[at],
        "input_gradients": jnp.abs(jax.vmap(jax.grad(loss))(images[at])).sum(axis=1),
        "labels": labels[at],
        "labelled_mask": np.arange(BUDGET) < count,
        "labelled_labels": np.where(np.arange(BUDGET) < count, labels[rows], 0),
        "labelled_scores": af.margin(log_probs(rows)),
        "labelled_predictions": mode[rows],
        "labelled_features": images[rows],
        "target_log_probs": log_probs(targets),
        "target_labels": labels[targets],
    }.items():
        np.testing.assert_allclose(getattr(given, name), expected, rtol=1e-3, atol=1e-3)
        assert np.std(np.asarray(expected, float)) > 0
    known = {name for name in given._fields if getattr(given, name) is not None}
    assert known == {*PROVIDED, "rows", "mask"}


TABLE = {**af.STRATEGIES, **af.UPPER_BOUNDS}
# One of each kind of needs, and of what runs on the host: `make test-all` takes every name.
KINDS = ("badge", "batch_bald", "coreset", "epig", "greedy_oracle", "input_gradient", "kmeans")


def test_all_but_what_trains_networks_of_its_own_can_run():
    refused = {name for name in TABLE if not af.make_strategy(name, TABLE).needs <= PROVIDED}
    assert refused == {"qbc", "vaal", "vae_coreset"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in KINDS else pytest.mark.slow)
        for name in sorted(set(TABLE) - {"qbc", "vaal", "vae_coreset"})
    ],
)
def test_strategies_run_to_the_end(name: str, data):
    curve = go(data, name).cells[name, 0]
    assert curve.labels.tolist() == [10, 13, 16, 19, 20]
    rows = np.concatenate([curve.initial_rows, *curve.rows])
    assert len(set(rows.tolist())) == BUDGET
    assert set(rows.tolist()) <= set(data.train_rows.tolist())
    assert curve.test["accuracy"][-1] > 0.3


def test_functions_of_a_seed_are_pairs(data):
    found = go(data, "margin", "random", seeds=(3,))
    margin, random = (found.cells[name, 3] for name in ("margin", "random"))
    np.testing.assert_array_equal(margin.initial_rows, random.initial_rows)
    assert margin.test["nll"][0] == random.test["nll"][0]
    assert margin.test["nll"][-1] != random.test["nll"][-1]


def test_a_cold_start_of_any_size(data):
    """Fewer rows than classes; the identity of a run without it stays what it was."""
    curve = go(data, "margin", config=CONFIG._replace(num_initial=4), labels=10).cells["margin", 0]
    assert len(curve.initial_rows) == 4 and curve.labels.tolist() == [4, 7, 10]
    assert "num_initial" not in frozen_features.identity(CONFIG, data)
    assert frozen_features.identity(CONFIG._replace(num_initial=4), data)["num_initial"] == 4


def test_posterior_metrics_come_beside_those_at_the_mode(data):
    curve = go(data, "random", config=CONFIG._replace(num_test_samples=4)).cells["random", 0]
    alone = go(data, "random").cells["random", 0]
    np.testing.assert_array_equal(curve.test["nll_mean"], alone.test["nll"])
    assert (curve.test["nll"] != curve.test["nll_mean"]).all()


def test_logs_are_those_of_any_run(data, tmp_path: pathlib.Path):
    first = go(data, "margin", "random", seeds=(0, 1), directory=tmp_path)
    again = history.read_history(tmp_path)
    assert set(again.cells) == {(name, seed) for name in ("margin", "random") for seed in (0, 1)}
    for key, curve in first.cells.items():
        np.testing.assert_array_equal(curve.rows[0], again.cells[key].rows[0])
    assert history.caption(again).startswith("digits (8x8), NOT MNIST, seeds 0, 1")


def test_finished_cells_are_not_made_again(data, tmp_path: pathlib.Path):
    go(data, "random", directory=tmp_path)
    log = tmp_path / "random" / "0" / "log.jsonl"
    before = log.stat().st_mtime_ns, log.read_bytes()
    done = []
    go(data, "random", "margin", directory=tmp_path, on_cell=lambda *each: done.append(each))
    assert (log.stat().st_mtime_ns, log.read_bytes()) == before
    assert done == [(1, 2), (2, 2)]
    go(data, "random", directory=tmp_path, labels=25)
    assert history.read_history(tmp_path).cells["random", 0].labels[-1] == 25
    go(data, "random", directory=tmp_path)  # a smaller budget takes nothing away
    assert history.read_history(tmp_path).cells["random", 0].labels[-1] == 25
    with pytest.raises(HistoryError, match="holds another run"):
        go(data, "random", directory=tmp_path, config=CONFIG._replace(num_samples=9))


def test_one_compilation_for_all_seeds(data):
    go(data, "bald", seeds=(0,))
    before = frozen_features._rounds._cache_size()
    go(data, "bald", seeds=(1, 2))
    assert frozen_features._rounds._cache_size() == before


def test_the_oracle_is_an_upper_bound_on_the_test_rows(data):
    config = CONFIG._replace(num_initial_per_class=2, acquisition_size=1, num_samples=64)
    found = go(data, "greedy_oracle", "random", seeds=(0, 1, 2), labels=40, config=config)
    last = {
        name: np.mean([found.cells[name, seed].test["nll"][-1] for seed in (0, 1, 2)])
        for name in ("greedy_oracle", "random")
    }
    assert last["greedy_oracle"] < last["random"] - 0.1


def test_nan_is_not_asked_for(data):
    broken = af.top_k(lambda log_probs: jnp.full(len(log_probs), jnp.nan))
    message = r"broken, seed 0, round 0, 10 labels: the scores of rows \d+, \d+, \d+ are NaN or"
    with pytest.raises(RunError, match=message):
        go(data, "broken", strategies={"broken": broken})


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"num_samples": 0}, {}, "num_samples must be"),
        ({"prior_precision": 0.0}, {}, "prior_precision must be"),
        ({"bias": -1.0}, {}, "bias must not be negative, got -1.0"),
        ({"pool_size": 5}, {}, "pool_size must be at least 10, the labels asked for in all"),
        ({"initial": "bald"}, {}, "the initial set cannot be chosen by 'bald'"),
        ({"num_initial": -1}, {}, "num_initial must not be negative, got -1"),
        ({"initial": "balanced", "num_initial": 3}, {}, "num_initial=3 is for initial sets chosen"),
        ({}, {"labels": 5}, "budget of 5 labels is smaller than the initial set of 10"),
        ({}, {"labels": 5000}, "matrices of labelled by labelled rows, above"),
        ({}, {"labels": 1900}, "the budget asks for"),
        ({}, {"seeds": (1, 1)}, "a seed is given twice: 1, 1"),
        ({}, {"seeds": (-1,)}, "a seed must not be negative"),
        ({}, {"seeds": ()}, "at least one acquisition function and one seed"),
    ],
)
def test_refusals(data, change: dict, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        go(data, "random", config=CONFIG._replace(**change), **options)


def test_refuses_what_it_cannot_give(data):
    with pytest.raises(ValueError, match="qbc needs committee_log_probs, which frozen features"):
        go(data, "qbc")
    with pytest.raises(ValueError, match=r"expected features \[N, D\], got inputs \[1797, 8, 8"):
        go(digits(), "random")
    with pytest.raises(ValueError, match="needs scores, but has no score function"):
        go(data, "odd", strategies={"odd": Strategy(af.select_top, frozenset({"scores"}))})
    images = np.array(data.images[:])
    images[7, 3] = np.nan
    damaged = data._replace(images=data_utils.ScaledSource(images))
    with pytest.raises(ValueError, match="features must be finite; row 7 is not"):
        go(damaged, "random", config=CONFIG._replace(initial="balanced"))
