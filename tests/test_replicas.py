"""Cells side by side in one program: the same as one after another, within rounding."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
from driver import CONFIG, digits, go, log_of, logs
from test_hoisting import equations, names

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning import (
    experiment,
    history,
    inference,
    models,
    oracle,
    parameters,
    posteriors,
    providers,
    replicas,
    training,
)
from bayesian_active_learning.experiment import RunError
from bayesian_active_learning.history import HistoryError

MODEL = models.MODELS["convnet"](10)
OPTIMIZER = optax.adam(1e-3)
WIDTH = 4
KEYS = list(jax.random.split(jax.random.key(0), 3))
SIZES = (10, 14, 23)  # labelled rows of each replica
FIT = training.FitConfig(batch_size=4, epochs=1, min_steps=3, check_every=4, weight_decay=0.1)


def labelled() -> tuple[list[np.ndarray], list[np.ndarray]]:
    rows = [np.arange(3 * i, 3 * i + size) for i, size in enumerate(SIZES)]
    return rows, [digits().labels[each] for each in rows]


def close(first: Any, second: Any) -> bool:
    return jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, 0, 1e-5), first, second))


@pytest.fixture(scope="module")
def fitted() -> list[training.FitResult]:
    """Three replicas with numbers of labels and of steps of their own, in a program for four."""
    rows, labels = labelled()
    found = replicas.fit(
        KEYS, MODEL, OPTIMIZER, digits().images, rows, labels, config=FIT, capacity=32, width=WIDTH
    )
    assert len({each.steps for each in found}) == 3
    return found


# One round from equal states.


def test_fits_are_those_of_one_after_another(fitted: list[training.FitResult]):
    for key, rows, labels, found in zip(KEYS, *labelled(), fitted, strict=True):
        alone = training.fit(
            key, MODEL, OPTIMIZER, digits().images, rows, labels, config=FIT, capacity=32
        )
        assert found[1:3] == alone[1:3] and found.validation == ()
        assert found.train_loss == pytest.approx(alone.train_loss, abs=1e-5)
        assert close(found.variables, alone.variables)


def test_scores_and_predictions_are_those_of_one_after_another(fitted: list[training.FitResult]):
    source = digits().images
    rows = [np.arange(40, 60), np.arange(50, 67), np.arange(70, 90)]
    both = [
        [inference.mc_dropout(MODEL, x.variables), inference.deterministic(MODEL, x.variables)]
        for x in fitted
    ]
    first = [each[0] for each in both]
    options: dict[str, Any] = {"num_samples": 3, "chunk_size": 8}
    found = replicas.score_pool(
        KEYS, first, source, rows, [af.bald, af.max_entropy], width=WIDTH, **options
    )
    dense = replicas.log_probs(KEYS, first, source, rows, width=WIDTH, **options)
    means = replicas.predict(
        KEYS, both, source, rows, num_samples=[3, 1], chunk_size=8, width=WIDTH
    )
    for i, key in enumerate(KEYS):
        alone = inference.score_pool(
            key, first[i], source, rows[i], [af.bald, af.max_entropy], **options
        )
        assert [x.shape for x in found[i]] == [(len(rows[i]),)] * 2
        assert close(found[i], alone)
        assert close(dense[i], inference.log_probs(key, first[i], source, rows[i], **options))
        alone = inference.predict(key, both[i], source, rows[i], num_samples=[3, 1], chunk_size=8)
        assert close(means[i], alone)


def test_a_replica_does_not_depend_on_its_neighbours(fitted: list[training.FitResult]):
    """To the bit, or a run that goes on when some cells have ended would be another one."""
    rows, labels = labelled()
    for order in ([2, 0, 1], [1], [2, 1]):
        again = replicas.fit(
            [KEYS[i] for i in order],
            MODEL,
            OPTIMIZER,
            digits().images,
            [rows[i] for i in order],
            [labels[i] for i in order],
            config=FIT,
            capacity=32,
            width=WIDTH,
        )
        for i, found in zip(order, again, strict=True):
            assert found.train_loss == fitted[i].train_loss
            same = jax.tree.map(np.array_equal, found.variables, fitted[i].variables)
            assert jax.tree.all(same)


@pytest.mark.parametrize("kind", ["ensemble", "laplace", "swag"])
def test_other_posteriors(kind: str):
    model = models.MODELS["mlp"](10)
    source, key = digits().images, jax.random.key(1)
    rule = posteriors.make_posterior({"swag": "swag:snapshots=2,every=1"}.get(kind, kind))
    built = []
    for seed in range(2):
        variables = model.init(jax.random.key(seed), source[:1])
        rows = np.arange(8 * seed, 8 * seed + 8)
        built.append(
            rule.build(
                key,
                posteriors.Fitted(
                    model, variables, OPTIMIZER, source, rows, digits().labels[rows], FIT, 8
                ),
            )
        )
    rows = [np.arange(20, 30)] * 2
    found = replicas.score_pool(KEYS[:2], built, source, rows, [af.bald], num_samples=3, width=2)
    for i, posterior in enumerate(built):
        alone = inference.score_pool(KEYS[i], posterior, source, rows[i], [af.bald], num_samples=3)
        assert close(found[i], alone)


def test_what_no_mask_touches_is_computed_once(fitted: list[training.FitResult]):
    """The convolutions before the first dropout stand outside the loop over samples."""
    posterior = inference.mc_dropout(MODEL, fitted[0].variables)
    shared = jax.tree.map(lambda x: np.stack([x] * 2), posterior.shared)
    draws = jax.random.split(jax.random.key(0), (2, 5))
    inputs = np.zeros((2, 3, *digits().images.shape[1:]), np.float32)
    jaxpr = jax.make_jaxpr(replicas._chunks, static_argnums=(0, 1, 2))(
        (posterior.apply,), (0,), af.bald, (shared,), (draws,), inputs
    )
    (loop,) = [
        equation
        for equation in equations(jaxpr.jaxpr)
        if equation.primitive.name == "scan"
        and "random_bits" in names(equation.params["jaxpr"].jaxpr)
    ]
    inside = names(loop.params["jaxpr"].jaxpr)
    assert "conv_general_dilated" in names(jaxpr.jaxpr) - inside
    assert "dot_general" in inside


def test_sampled_needs_are_those_that_are_provided():
    """EPIG's targets, scores of labelled rows, and several functions in one program."""
    model = models.MODELS["mlp"](10)
    names = ["epig", "bald", "batch_bald", "max_entropy"]
    strategies = [af.make_strategy(name) for name in names]
    situations, others = [], []
    for seed in range(len(names)):
        variables = model.init(jax.random.key(seed), digits().images[:1])
        others.append(jax.random.key(100 + seed))
        situations.append(
            providers.Situation(
                model=model,
                variables=variables,
                posterior=inference.mc_dropout(model, variables),
                source=digits().images,
                num_samples=3,
                rows=np.arange(20 + seed, 40 + seed),
                mask=np.ones(20, bool),
                pool=np.arange(20, 140),
                test=np.arange(140, 150),
                labelled_rows=np.arange(10),
                labels=digits().labels[:10],
                capacity=16,
                optimizer=OPTIMIZER,
                fit=FIT,
            )
        )
    keys = list(jax.random.split(jax.random.key(3), len(names)))
    found = providers.sample_replicas(
        keys,
        others,
        situations,
        strategies,
        scores=[each.score for each in strategies if each.score],
        width=4,
    )
    assert [set(each) for each in found][1:] == [{"scores"}, {"log_probs"}, {"scores"}]
    for known, key, other, situation, strategy in zip(
        found, keys, others, situations, strategies, strict=True
    ):
        together = providers.collect(key, other, situation, strategy, known)
        alone = providers.collect(key, other, situation, strategy)
        for name in strategy.needs:
            assert close(getattr(together, name), getattr(alone, name)), name


# Refusals.


def test_refusals(fitted: list[training.FitResult]):
    rows, labels = labelled()
    arguments = (KEYS, MODEL, OPTIMIZER, digits().images, rows, labels)
    with pytest.raises(ValueError, match="a width of 2 takes 1 to 2 replicas"):
        replicas.fit(*arguments, config=FIT, capacity=32, width=2)
    with pytest.raises(ValueError, match="monitor must be 'none'"):
        replicas.fit(*arguments, config=FIT._replace(monitor="nll"), capacity=32, width=3)
    with pytest.raises(ValueError, match="one of each a replica"):
        replicas.fit(KEYS[:2], *arguments[1:], config=FIT, capacity=32, width=3)
    kinds = [
        inference.mc_dropout(MODEL, fitted[0].variables),
        inference.deterministic(MODEL, fitted[1].variables),
    ]
    with pytest.raises(ValueError, match="posteriors of one kind"):
        replicas.log_probs(KEYS[:2], kinds, digits().images, rows[:2], num_samples=2, width=2)
    with pytest.raises(ValueError, match="replicas must be positive"):
        go(replicas=0)


def test_one_that_diverges_does_not_stop_the_others(fitted: list[training.FitResult]):
    rows, labels = labelled()
    images = digits().images
    broken = np.concatenate([images, np.full_like(images[rows[1]], np.inf)])
    rows[1] = np.arange(len(images), len(broken))
    found = replicas.fit(
        KEYS, MODEL, OPTIMIZER, broken, rows, labels, config=FIT, capacity=32, width=WIDTH
    )
    assert isinstance(found[1], training.TrainingDiverged)
    for place in (0, 2):
        assert found[place].train_loss == fitted[place].train_loss
        assert np.isfinite(jax.tree.leaves(found[place].variables)[0]).all()


# Whole runs.

FUNCTIONS, SEEDS = ("bald", "random"), (0, 1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Four cells side by side, to 25 labels. Not to be changed."""
    directory = tmp_path_factory.mktemp("replicas")
    go(*FUNCTIONS, seeds=SEEDS, directory=directory, replicas=4)
    return directory


def near(found: Any, expected: Any) -> bool:
    """Equal, but for numbers with a point, which agree within 1e-5."""
    if isinstance(expected, dict):
        return set(found) == set(expected) and all(near(found[k], expected[k]) for k in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(near, found, expected))
    return found == (pytest.approx(expected, abs=1e-5) if type(expected) is float else expected)


def test_a_run_is_that_of_one_after_another(finished: pathlib.Path, tmp_path: pathlib.Path):
    go(*FUNCTIONS, seeds=SEEDS, directory=tmp_path)
    for name in FUNCTIONS:
        for seed in SEEDS:
            found = history.read_events(log_of(finished, name, seed))
            assert near(list(found), list(history.read_events(log_of(tmp_path, name, seed))))


def test_a_cpu_runs_one_cell_after_another(finished: pathlib.Path, tmp_path: pathlib.Path,
                                           monkeypatch: pytest.MonkeyPatch):  # fmt: skip
    def recorded() -> int:
        return history.read_config(tmp_path)["environment"]["replicas"]

    go("random", labels=10, directory=tmp_path)
    assert recorded() == 1 and history.read_config(finished)["environment"]["replicas"] == 4

    def width(platform: str, directory: Any = None, config: Any = CONFIG, asked: Any = None) -> int:
        monkeypatch.setattr(history, "environment", lambda: {"platform": platform})
        return experiment._width(config, asked, 10, directory)

    assert width("cpu") == 1
    assert width("gpu") == width("tpu") == 10
    assert width("cpu", finished) == 4  # as it began
    assert width("gpu", finished) == 10  # elsewhere
    assert width("gpu", tmp_path / "nothing yet") == 10
    assert width("cpu", finished, asked=3) == 3
    early = CONFIG._replace(fit=CONFIG.fit._replace(monitor="nll"))
    for alone in (CONFIG._replace(warm_start=True), early):
        assert width("gpu", config=alone, asked=3) == 1


def test_another_number_of_replicas_is_another_environment(
    finished: pathlib.Path, tmp_path: pathlib.Path
):
    copy(finished, tmp_path)
    with pytest.raises(HistoryError, match=r"last bits \(there -> now\): replicas: 4 -> 1"):
        go(*FUNCTIONS, seeds=SEEDS, directory=tmp_path, replicas=1)
    go("random", labels=30, directory=tmp_path, replicas=1, allow_other_environment=True)
    # A run of before there were any had one after another.
    old = json.loads((tmp_path / "config.json").read_text())
    del old["environment"]["replicas"], old["also_run_in"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    go("random", labels=30, directory=tmp_path)
    with pytest.raises(HistoryError, match="replicas: 1 -> 2"):
        go("random", labels=30, directory=tmp_path, replicas=2)


def copy(directory: pathlib.Path, to: pathlib.Path) -> None:
    for name, content in logs(directory).items():
        (to / name).parent.mkdir(parents=True)
        (to / name).write_bytes(content)
    (to / "config.json").write_bytes((directory / "config.json").read_bytes())


def test_cut_off_at_different_rounds_it_ends_in_the_same_bytes(
    finished: pathlib.Path, tmp_path: pathlib.Path
):
    whole = logs(finished)
    copy(finished, tmp_path)
    # One has ended, one is to begin; one was cut off inside a line, one between two rounds.
    kept = {"bald/0": 100, "random/0": 0, "bald/1": 6, "random/1": 9}
    for cell, count in kept.items():
        lines = whole[f"{cell}/log.jsonl"].splitlines(keepends=True)
        half = lines[count][:20] if cell == "bald/1" else b""
        (tmp_path / cell / "log.jsonl").write_bytes(b"".join(lines[:count]) + half)
    go(*FUNCTIONS, seeds=SEEDS, directory=tmp_path)  # as it began: four in a program
    assert logs(tmp_path) == whole


def test_more_seeds_join_and_budgets_grow(finished: pathlib.Path, tmp_path: pathlib.Path):
    """In other companies, the same bytes."""
    go("bald", directory=tmp_path, labels=15, replicas=4)
    go("random", "bald", seeds=SEEDS, directory=tmp_path, labels=20)
    go(*FUNCTIONS, seeds=SEEDS, directory=tmp_path)
    assert logs(tmp_path) == logs(finished)


def test_more_cells_than_replicas_take_turns(finished: pathlib.Path, tmp_path: pathlib.Path):
    reports: list[experiment.Progress] = []
    go(*FUNCTIONS, seeds=SEEDS, directory=tmp_path, replicas=3, on_round=reports.append,
       save_parameters=True)  # fmt: skip
    assert [(p.done, p.total) for p in reports] == [(n, 16) for n in range(1, 17)]
    first = {(p.acquisition, p.seed) for p in reports[:12]}
    assert first == {("bald", 0), ("random", 0), ("bald", 1)}
    assert len(list(tmp_path.rglob("params.npz"))) == 4
    curve = history.read_history(tmp_path).cells["random", 1]
    network = experiment.refit(CONFIG, digits(), curve, 1, labels=25, replicas=3)
    path = history.cell_directory(tmp_path, "random", 1) / experiment.PARAMETERS
    kept = parameters.load_variables(path, network.variables)
    assert jax.tree.all(jax.tree.map(np.array_equal, network.variables, kept))
    for name, seed in [("bald", 0), ("random", 1)]:
        found = history.read_events(log_of(tmp_path, name, seed))
        assert near(list(found), list(history.read_events(log_of(finished, name, seed))))


def test_stopped_anywhere_it_goes_on(finished: pathlib.Path, tmp_path: pathlib.Path):
    calls = [0]

    def person(rows: np.ndarray) -> np.ndarray:
        calls[0] += 1
        if calls[0] % 6 == 0:
            raise KeyboardInterrupt
        return digits().labels[rows]

    stops = 0
    for _ in range(10):
        try:
            go(*FUNCTIONS, seeds=SEEDS, directory=tmp_path, label_oracle=person, replicas=4)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 2 and logs(tmp_path) == logs(finished)


def test_an_oracle_that_skips_lets_cells_grow_apart(tmp_path: pathlib.Path):
    data = digits()

    def person(rows: np.ndarray) -> np.ndarray:
        initial = len(rows) == 10
        return data.labels[rows] if initial else np.where(rows % 3, data.labels[rows], oracle.SKIP)

    fit = CONFIG.fit._replace(epochs=3)  # steps go by labels
    config = CONFIG._replace(fit=fit)
    together = go(seeds=(0, 1, 2), label_oracle=person, replicas=3, config=config).cells
    alone = go(seeds=(0, 1, 2), label_oracle=person, config=config).cells
    labels = [curve.labels.tolist() for curve in together.values()]
    assert labels == [curve.labels.tolist() for curve in alone.values()]
    assert len(set(map(tuple, labels))) > 1
    for cell, curve in together.items():
        assert [x.tolist() for x in curve.rows] == [x.tolist() for x in alone[cell].rows]


def test_training_that_diverges_names_its_seed(tmp_path: pathlib.Path):
    data = digits()
    splits = [experiment.seed_splits(CONFIG, data, seed) for seed in SEEDS]
    (only, *_) = set(splits[1].initial.tolist()) - set(splits[0].initial.tolist())
    images = np.array(data.images[np.arange(len(data.labels))])
    images[only] = np.nan
    broken = data._replace(images=images)
    with pytest.raises(RunError, match="^random, seed 1, round 0, 10 labels: training diverged"):
        go("random", seeds=SEEDS, data=broken, directory=tmp_path, replicas=2)
    kinds = [e["event"] for e in history.read_events(log_of(tmp_path, "random", 0))]
    assert kinds == ["labels", "fitted"]
    kinds = [e["event"] for e in history.read_events(log_of(tmp_path, "random", 1))]
    assert kinds == ["labels"]


def test_nothing_is_compiled_after_the_first_rounds(compilations: Callable[[], int]):
    """Three cells, and then one, in programs for three."""
    counts: list[int] = []
    # Sizes of no other test, whose programs would be there already.
    config = CONFIG._replace(num_samples=7, num_test_samples=5, pool_size=31)
    before = compilations()
    go("bald", "random", seeds=SEEDS, labels=30, replicas=3, config=config,
       on_round=lambda progress: counts.append(compilations()))  # fmt: skip
    assert len(counts) == 4 * 5
    # Of the first three cells all have made a round, and begun with the next.
    assert before < counts[0] < counts[3] == counts[-1] == compilations()
