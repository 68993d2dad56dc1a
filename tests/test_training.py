import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bayesian_active_learning import data_utils, models, training
from bayesian_active_learning.training import FitConfig, FitResult, TrainingDiverged, fit
from bayesian_active_learning.types import Model, Outputs, Variables

KEY = jax.random.key(0)
MLP, LINEAR = models.mlp(10, hidden_sizes=(64,)), models.mlp(10, hidden_sizes=())
ADAM, SGD = optax.adam(1e-2), optax.sgd(0.1)
SHORT = FitConfig(
    batch_size=8, epochs=0, min_steps=7, check_every=5, weight_decay=0.1, schedule="constant"
)


@functools.cache
def digits() -> data_utils.Dataset:
    return data_utils.load_digits()


def fit_digits(count: int, key: jax.Array = KEY, config: FitConfig = SHORT, **options) -> FitResult:
    data = digits()
    rows = options.pop("rows", data.train_rows[:count])
    labels = options.pop("labels", data.labels[rows])
    model, optimizer = options.pop("model", MLP), options.pop("optimizer", ADAM)
    return fit(key, model, optimizer, data.images, rows, labels, config=config, **options)


def same(first: Any, second: Any) -> bool:
    """Equal bit by bit."""
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), first, second))


# How many steps, on which examples.


@pytest.mark.parametrize(
    "epochs, min_steps, batch_size, num_labelled, expected",
    [
        (50, 400, 32, 20, 400),
        (50, 400, 32, 256, 400),
        (50, 400, 32, 257, 402),
        (50, 400, 32, 1000, 1563),
        (1, 0, 32, 33, 2),
        (0.5, 0, 10, 30, 2),
        (0, 0, 32, 100, 1),
        (0, 7, 32, 100, 7),
    ],
)
def test_num_steps(epochs, min_steps, batch_size, num_labelled, expected):
    config = FitConfig(batch_size=batch_size, epochs=epochs, min_steps=min_steps)
    found = training.num_steps(config, num_labelled)
    assert found == expected and type(found) is int


@pytest.mark.parametrize("num_labelled, batch_size", [(5, 8), (8, 8), (20, 8), (3, 7), (1, 4)])
def test_minibatches_see_every_example_equally_often(num_labelled: int, batch_size: int):
    batches = training.minibatches(KEY, num_labelled, batch_size)
    seen = np.zeros(num_labelled, int)
    for _ in range(3 * num_labelled):
        batch = next(batches)
        assert batch.shape == (batch_size,) and batch.dtype == np.int32
        seen += np.bincount(batch, minlength=num_labelled)
        assert np.ptp(seen) <= 1
    assert (seen == 3 * batch_size).all()


def test_each_epoch_is_a_new_order_that_belongs_to_the_key():
    def order(key: jax.Array, epochs: int) -> list[np.ndarray]:
        batches = training.minibatches(key, 50, 50)
        return [next(batches) for _ in range(epochs)]

    first, second = order(KEY, 2)
    assert sorted(first) == sorted(second) == list(range(50))
    assert not np.array_equal(first, second)
    assert np.array_equal(order(KEY, 1)[0], first)
    assert not np.array_equal(order(jax.random.key(1), 1)[0], first)


# The result depends on the key and the data, and on nothing else.


def test_same_key_same_bits_whatever_the_capacity():
    first = fit_digits(20)
    assert (first.steps, first.best_step, first.validation) == (7, 7, ())
    for capacity in (40, 128):
        assert same(fit_digits(20, capacity=capacity), first)
    other = fit_digits(20, jax.random.key(1))
    assert not same(other.variables, first.variables) and other.train_loss != first.train_loss


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps of each call, as they come."""
    found: list[int] = []
    table = training._table

    def counted(batches, count, *rest):
        found.append(count)
        return table(batches, count, *rest)

    monkeypatch.setattr(training, "_table", counted)
    return found


def test_how_many_steps_go_in_a_call_does_not_count(
    counts: list[int], monkeypatch: pytest.MonkeyPatch, compilations: Callable[[], int]
):
    config, steps = SHORT._replace(min_steps=23), []
    watched = fit_digits(20, config=config, on_block=lambda step, _: steps.append(step))
    assert counts == [5, 5, 5, 5, 3] and steps == [5, 10, 15, 20, 23]
    before = compilations()
    for patience, expected in ((1e9, [5, 18]), (0.0, [5, 5, 5, 5, 3])):
        counts.clear()
        monkeypatch.setattr(training, "_PATIENCE", patience)
        assert same(fit_digits(20, config=config), watched)
        assert counts == expected
    assert compilations() == before


@pytest.mark.parametrize(
    "steps, every, expected",
    [(1_000, 150, [150, 300, 300, 250]), (30, 10, [10, 20]), (3, 10, [3]), (450, 420, [420, 30])],
)
def test_steps_in_a_call(
    steps: int, every: int, expected: list[int], counts: list[int], monkeypatch
):
    monkeypatch.setattr(training, "_PATIENCE", 1e9)
    config = SHORT._replace(min_steps=steps, check_every=every)
    many = fit_digits(20, config=config)
    assert counts == expected
    assert same(fit_digits(20, config=config, on_block=lambda *_: None), many)


def test_steps_in_a_call_take_no_more_than_the_patience(counts: list[int], monkeypatch):
    """By a clock on which each call takes 1 s: a call has 4 times the steps of the one before."""
    clock = itertools.count()
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(clock))
    fit_digits(20, config=SHORT._replace(min_steps=120))
    assert counts == [5, 20, 80, 15]


def test_any_source_serves():
    data = digits()
    values = np.asarray(data.images)
    assert same(
        fit(KEY, MLP, ADAM, values, [3, 1, 2] * 3, [0, 1, 2] * 3, config=SHORT),
        fit(KEY, MLP, ADAM, data.images, np.int64([3, 1, 2] * 3), np.arange(9) % 3, config=SHORT),
    )


def counting(model: Model, traces: list[tuple]) -> Model:
    def apply(variables: Variables, key: Any, inputs: Any, *, mode: str) -> tuple[Outputs, Any]:
        traces.append((mode, inputs.shape))
        return model.apply(variables, key, inputs, mode=mode)

    return Model(model.init, apply)


def test_one_trace_serves_all_rounds_seeds_and_label_counts():
    data, traces = digits(), []
    model = counting(MLP, traces)
    held_out = data.images[data.test_rows[:30]], data.labels[data.test_rows[:30]]
    config = SHORT._replace(monitor="nll", schedule="cosine")
    for number in range(6):
        fit_digits(
            20 + 9 * number,
            jax.random.key(number),
            config._replace(min_steps=5 + number, weight_decay=0.1 * number),
            model=model,
            validation=held_out,
            capacity=128,
        )
        if number == 0:
            first = list(traces)
    assert traces == first
    assert first.count(("mean", (30, 8, 8, 1))) == 1
    assert {shape for mode, shape in first if mode == "train"} == {(8, 8, 8, 1)}
    assert len(first) <= 3  # abstract evaluation of the gradient may trace twice


# Warm starts.


def test_a_warm_start_leaves_the_callers_variables_usable():
    data = digits()
    cold = fit_digits(20)
    before = jax.tree.map(lambda x: np.array(x), cold.variables)
    warm = fit_digits(20, variables=cold.variables)
    assert same(cold.variables, before)  # not donated
    assert not same(warm.variables, cold.variables)
    assert warm.train_loss < cold.train_loss
    assert same(fit_digits(20, variables=before), warm)  # NumPy arrays serve as well
    outputs, _ = MLP.apply(cold.variables, None, data.images[:2], mode="mean")
    assert np.isfinite(outputs.logits).all()


# What is minimised.


def numpy_step(variables: Variables, x: np.ndarray, labels: np.ndarray, decay: float) -> dict:
    """One step of SGD with rate 0.1 on mean cross-entropy + decay * |w|^2, in float64."""
    w, b = (np.asarray(variables.params["head"][name], np.float64) for name in "wb")
    logits = x @ w + b
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    error = (probs - np.eye(10)[labels]) / len(labels)
    return {"w": w - 0.1 * (x.T @ error + 2 * decay * w), "b": b - 0.1 * error.sum(0)}


def test_one_step_is_the_gradient_and_weight_decay_falls_with_the_labels():
    data = digits()
    generator = np.random.default_rng(0)
    head = {"w": generator.normal(size=(64, 10)), "b": generator.normal(size=10)}
    start = Variables({"head": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), head)}, {})
    config = SHORT._replace(min_steps=1)

    def step(count: int, strength: float) -> dict:
        options = {"model": LINEAR, "optimizer": SGD, "variables": start}
        changed = config._replace(weight_decay=strength)
        return fit_digits(count, config=changed, **options).variables.params["head"]

    rows = data.train_rows[:8]  # one batch is all of them
    x = np.asarray(data.images[rows], np.float64).reshape(8, -1)
    for strength in (0.0, 3.0):
        expected = numpy_step(start, x, data.labels[rows], strength / 8)
        found = step(8, strength)
        for name in "wb":
            np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
    # Whatever the batch, the same key draws it again, and the difference is the decay's.
    for count in (8, 32, 100):
        pull = np.asarray(step(count, 3.0)["w"]) - np.asarray(step(count, 0.0)["w"])
        np.testing.assert_allclose(pull, -0.1 * 2 * 3.0 / count * head["w"], atol=1e-5)


def test_the_learning_rate_falls_over_a_cosine():
    """Two steps: factors 1 and 1/2. Without dropout the gradients are the same."""

    def params(schedule: str, steps: int) -> dict:
        config = SHORT._replace(schedule=schedule, min_steps=steps)
        found = fit_digits(20, config=config, model=LINEAR, optimizer=SGD)
        return found.variables.params["head"]

    first, second, found = params("constant", 1), params("constant", 2), params("cosine", 2)
    for name in "wb":
        assert np.abs(second[name] - first[name]).max() > 1e-3
        expected = first[name] + 0.5 * (second[name] - first[name])
        np.testing.assert_allclose(found[name], expected, atol=1e-6)


def test_decay_coverage_is_an_option():
    none, weights = (
        fit_digits(20, config=SHORT._replace(decay_coverage=name, weight_decay=20.0))
        for name in ("none", "weights")
    )
    norms = [sum(float(jnp.square(m["w"]).sum()) for m in r.variables.params.values())
             for r in (none, weights)]  # fmt: skip
    assert norms[1] < norms[0] and weights.train_loss > none.train_loss


def test_learns_digits_from_a_hundred_labels():
    data = digits()
    found = fit_digits(100, config=SHORT._replace(epochs=30))
    assert found.steps == 375
    logits = MLP.apply(found.variables, None, data.images[data.test_rows], mode="mean")[0].logits
    assert np.mean(np.argmax(logits, axis=1) == data.labels[data.test_rows]) > 0.8
    assert found.train_loss < 1.5


# Early stopping.


def held_out(shift: int) -> tuple[np.ndarray, np.ndarray]:
    data = digits()
    rows = data.test_rows[:50]
    return data.images[rows], (data.labels[rows] + shift) % 10


@pytest.mark.parametrize("monitor", ["nll", "accuracy"])
def test_early_stopping_restores_the_best(monitor: str):
    config = SHORT._replace(monitor=monitor, patience=3, min_steps=200)
    found = fit_digits(40, config=config, validation=held_out(shift=1))
    steps, nlls, accuracies = zip(*found.validation)
    values = nlls if monitor == "nll" else [-a for a in accuracies]
    assert steps == tuple(range(5, found.steps + 1, 5))
    assert found.best_step == steps[int(np.argmin(values))]
    assert found.steps == found.best_step + 3 * 5 < 200
    again = fit_digits(40, config=SHORT._replace(min_steps=found.best_step))
    assert same(again.variables, found.variables)


def test_monitoring_reports_what_a_person_would_measure():
    images, labels = held_out(shift=0)
    found = fit_digits(
        40, config=SHORT._replace(monitor="nll", min_steps=12), validation=(images, labels)
    )
    assert [step for step, _, _ in found.validation] == [5, 10, 12]
    assert found.best_step == found.steps == 12  # it is still getting better
    logits = MLP.apply(found.variables, None, images, mode="mean")[0].logits
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    _, nll, accuracy = found.validation[-1]
    np.testing.assert_allclose(nll, -log_probs[np.arange(50), labels].mean(), rtol=1e-5)
    np.testing.assert_allclose(accuracy, (log_probs.argmax(1) == labels).mean(), rtol=1e-6)


# What goes wrong.


def test_divergence_names_the_first_bad_step():
    data = digits()
    huge = np.asarray(data.images[data.train_rows[:20]]) * np.float32(3e38)
    with pytest.raises(TrainingDiverged, match="the loss is (nan|inf) at step 0; a lower") as info:
        fit(KEY, MLP, ADAM, huge, np.arange(20), np.arange(20) % 10, config=SHORT)
    assert info.value.step == 0 and not np.isfinite(info.value.loss)


def test_divergence_counts_steps_over_all_blocks():
    """The update of step 5 explodes; the loss of step 6, in the second call, shows it."""
    schedule = lambda count: jnp.where(count == 5, 1e35, 1e-3)  # noqa: E731
    with pytest.raises(TrainingDiverged) as info:
        fit_digits(20, optimizer=optax.sgd(schedule), config=SHORT._replace(min_steps=12))
    assert info.value.step == 6
    assert isinstance(info.value, ArithmeticError)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: fit_digits(0), "cannot fit without labels: the labelled set is empty"),
        (lambda: fit_digits(20, labels=[1] * 19), r"one label a row, got \(20,\) and \(19,\)"),
        (lambda: fit_digits(20, rows=[[1, 2]], labels=[[1, 2]]), r"one label a row, got \(1, 2\)"),
        (lambda: fit_digits(20, capacity=19), "capacity 19 is smaller than the 20 labelled rows"),
        (
            lambda: fit_digits(20, config=SHORT._replace(monitor="nll")),
            "monitor 'nll' needs a validation set, got None",
        ),
        (
            lambda: fit_digits(20, config=SHORT._replace(monitor="loss")),
            "unknown monitor 'loss'; known: none, nll, accuracy",
        ),
        (
            lambda: fit_digits(20, config=SHORT._replace(schedule="linear")),
            "unknown schedule 'linear'; known: constant, cosine",
        ),
        (
            lambda: fit_digits(20, config=SHORT._replace(decay_coverage="dense")),
            "unknown weight decay coverage 'dense'; known: first_dense, weights, all, none",
        ),
        *(
            (
                lambda name=name: fit_digits(20, config=SHORT._replace(**{name: 0})),
                f"{name} must be positive, got 0",
            )
            for name in ("batch_size", "check_every", "patience")
        ),
        *(
            (
                lambda name=name: fit_digits(20, config=SHORT._replace(**{name: -1})),
                f"{name} must not be negative or infinite, got -1",
            )
            for name in ("epochs", "min_steps", "weight_decay")
        ),
    ],
)
def test_refusals(call: Callable, message: str):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        ([0, -1], [0, 1], r"rows must lie in 0\.\.\d+, got -1\.\.0"),
        ([0, 10**6], [0, 1], r"rows must lie in 0\.\.\d+, got 0\.\.1000000"),
        ([0, 1], [0, -1], "labels must not be negative, got -1"),
        ([0.0, 1.0], [0, 1], "rows must be integers, got float64"),
        ([0, 1], [0.0, 1.0], "labels must be integers, got float64"),
    ],
)
def test_rows_and_labels_that_would_wrap_or_truncate_are_refused(rows, labels, message):
    inputs = np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match=message):
        training.fit(
            jax.random.key(0),
            models.mlp(2),
            optax.adam(1e-3),
            inputs,
            rows,
            labels,
            config=training.FitConfig(),
        )
