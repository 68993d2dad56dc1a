"""Metrics against plain loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesian_active_learning import metrics
from bayesian_active_learning.metrics import (
    accuracy,
    brier_score,
    classification_metrics,
    expected_calibration_error,
    mc_log_probs,
    negative_log_likelihood,
)

FUNCTIONS = {
    "accuracy": accuracy,
    "nll": negative_log_likelihood,
    "ece": expected_calibration_error,
    "brier": brier_score,
}
COMPILED = {name: jax.jit(function) for name, function in FUNCTIONS.items()}
each_metric = pytest.mark.parametrize("name", FUNCTIONS)


def example(num_rows: int = 200, num_classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(num_rows + num_classes)
    logits = 2 * generator.normal(size=(num_rows, num_classes))
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return log_probs, generator.integers(num_classes, size=num_rows).astype(np.int32)


def reference(name: str, log_probs: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    probs = np.exp(np.asarray(log_probs, np.float64))
    rows = list(zip(probs, labels, weights, strict=True))
    total = sum(weights)
    if name == "accuracy":
        return sum(w * (list(p).index(max(p)) == y) for p, y, w in rows) / total
    if name == "nll":
        return sum(-w * np.log(p[y]) for p, y, w in rows) / total
    if name == "brier":
        return (
            sum(w * sum((q - (c == y)) ** 2 for c, q in enumerate(p)) for p, y, w in rows) / total
        )
    error = 0.0
    for low in range(15):
        inside = [(p, y, w) for p, y, w in rows if low / 15 < max(p) <= (low + 1) / 15]
        mass = sum(w for _, _, w in inside)
        if mass > 0:
            hits = sum(w * (list(p).index(max(p)) == y) for p, y, w in inside) / mass
            confidence = sum(w * max(p) for p, _, w in inside) / mass
            error += mass / total * abs(hits - confidence)
    return error


def test_by_hand() -> None:
    log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.5, 0.5]]))
    labels = jnp.array([0, 1, 1, 0])
    result = classification_metrics(log_probs, labels)
    np.testing.assert_allclose(result.accuracy, 0.75)  # the tie goes to class 0
    nll = -(np.log(0.9) + np.log(0.1) + np.log(0.6) + np.log(0.5)) / 4
    np.testing.assert_allclose(result.nll, nll, rtol=1e-6)
    np.testing.assert_allclose(result.brier, (0.02 + 1.62 + 0.32 + 0.5) / 4, rtol=1e-6)
    # bins: two at 0.9 (accuracy 1/2), one at 0.6 and one at 0.5 (both right)
    np.testing.assert_allclose(result.ece, (2 * 0.4 + 0.4 + 0.5) / 4, rtol=1e-5)


@each_metric
@pytest.mark.parametrize("num_classes", [2, 100])
@pytest.mark.parametrize("kind", ["all", "weights"])
def test_matches_brute_force(name: str, num_classes: int, kind: str) -> None:
    log_probs, labels = example(num_classes=num_classes)
    generator = np.random.default_rng(0)
    weights: np.ndarray | None = None
    if kind == "weights":  # about half of them 0
        weights = np.maximum(generator.uniform(-1, 1, size=len(labels)), 0)
    filled = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    expected = reference(name, log_probs, labels, filled)
    function = COMPILED[name]
    single = function(jnp.asarray(log_probs, jnp.float32), labels, weights)
    np.testing.assert_allclose(single, expected, atol=2e-6, rtol=1e-5)
    with jax.enable_x64(True):
        double = function(jnp.asarray(log_probs), labels, weights)
        np.testing.assert_allclose(double, expected, atol=1e-12)


@each_metric
def test_masked_rows_count_nothing_not_even_nan(name: str) -> None:
    log_probs, labels = example(6)
    padded = np.concatenate([log_probs, np.full((2, 4), np.nan)]).astype(np.float32)
    mask = np.arange(8) < 6
    got = FUNCTIONS[name](padded, np.append(labels, [-1, 99]), mask)
    np.testing.assert_allclose(
        got, FUNCTIONS[name](log_probs.astype(np.float32), labels), rtol=1e-6
    )


@each_metric
def test_nan_and_labels_that_are_no_class_show(name: str) -> None:
    log_probs, labels = example(6)
    bad = log_probs.copy()
    bad[2, 1] = np.nan
    assert np.isnan(FUNCTIONS[name](bad, labels))
    for label in (-1, 4):
        assert np.isnan(FUNCTIONS[name](log_probs, np.append(labels[:-1], label)))
    assert np.isnan(FUNCTIONS[name](log_probs, labels, np.zeros(6, bool)))


def test_certain_predictions() -> None:
    certain = jnp.log(jnp.eye(3))
    right = classification_metrics(certain, jnp.arange(3))
    np.testing.assert_allclose(right, [1, 0, 0, 0], atol=1e-6)
    wrong = classification_metrics(certain, (jnp.arange(3) + 1) % 3)
    floor = -np.log(np.finfo(np.float32).tiny)  # finite, as documented
    np.testing.assert_allclose(wrong, [0, floor, 1, 2], rtol=1e-6)


def test_calibrated_predictions_have_no_calibration_error() -> None:
    log_probs = np.log(np.tile([0.75, 0.25], (8, 1)))
    labels = np.array([0, 0, 0, 1] * 2)
    np.testing.assert_allclose(expected_calibration_error(log_probs, labels), 0, atol=1e-6)
    one_bin = expected_calibration_error(log_probs, 1 - labels, num_bins=1)
    np.testing.assert_allclose(one_bin, 0.5, rtol=1e-6)


def test_classification_metrics_is_all_of_them_and_compiles_once() -> None:
    traces = []

    @jax.jit
    def counted(*arguments: jax.Array) -> metrics.Metrics:
        traces.append(1)
        return classification_metrics(*arguments)

    for size in (3, 50):
        log_probs, labels = example(100)
        mask = np.arange(100) < size
        result = counted(log_probs.astype(np.float32), labels, mask)
        for name, function in FUNCTIONS.items():
            expected = function(log_probs.astype(np.float32), labels, mask)
            np.testing.assert_allclose(getattr(result, name), expected, atol=1e-6)
    assert len(traces) == 1


def test_mc_log_probs_averages_probabilities() -> None:
    log_probs, _ = example(30)
    stacked = log_probs.reshape(10, 3, 4)
    expected = np.log(np.exp(stacked).mean(axis=1))
    np.testing.assert_allclose(mc_log_probs(stacked.astype(np.float32)), expected, rtol=1e-5)
    np.testing.assert_allclose(np.exp(mc_log_probs(stacked)).sum(axis=-1), np.ones(10), rtol=1e-5)
    one_hot = jnp.log(jnp.eye(2))[None]
    np.testing.assert_allclose(mc_log_probs(one_hot), [[-np.log(2)] * 2], rtol=1e-6)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"shape \[N, K, C\], got \[2, 3\]"):
        mc_log_probs(jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
        expected_calibration_error(jnp.zeros((2, 3)), jnp.zeros(2, int), num_bins=0)
    for shape, labels, mask in [
        ((2, 3, 4), (2,), (2,)),
        ((2, 3), (3,), (3,)),
        ((2, 3), (2,), (3,)),
    ]:
        with pytest.raises(
            ValueError, match=r"\[M, C\], labels \[M\] and mask \[M\].*mc_log_probs"
        ):
            classification_metrics(jnp.zeros(shape), jnp.zeros(labels, int), jnp.zeros(mask))
