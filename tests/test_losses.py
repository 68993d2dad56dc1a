"""Cross-entropy and weight decay against plain NumPy in float64."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from bayesian_active_learning.losses import cross_entropy, squared_norm, weight_decay_penalty


def test_cross_entropy_by_hand() -> None:
    logits = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
    labels = jnp.array([0, 0])
    np.testing.assert_allclose(
        cross_entropy(logits, labels), (np.log(2) + np.log(4)) / 2, rtol=1e-6
    )
    weighted = cross_entropy(logits, labels, jnp.array([3.0, 1.0]))
    np.testing.assert_allclose(weighted, (3 * np.log(2) + np.log(4)) / 4, rtol=1e-6)


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_cross_entropy_matches_brute_force(num_classes: int) -> None:
    generator = np.random.default_rng(num_classes)
    logits = 5 * generator.normal(size=(7, num_classes))
    labels, weights = generator.integers(num_classes, size=7), generator.uniform(size=7)
    nll = [
        np.log(np.sum(np.exp(row))) - row[label] for row, label in zip(logits, labels, strict=True)
    ]
    expected = np.sum(weights * nll) / np.sum(weights)
    single = cross_entropy(jnp.asarray(logits, jnp.float32), labels, weights)
    np.testing.assert_allclose(single, expected, rtol=1e-5)
    np.testing.assert_allclose(
        jax.jit(cross_entropy)(jnp.asarray(logits, jnp.float32), labels, weights), single, rtol=1e-6
    )
    with jax.enable_x64(True):
        double = cross_entropy(jnp.asarray(logits), labels, weights)
        np.testing.assert_allclose(double, expected, rtol=1e-12)


def test_cross_entropy_gradient() -> None:
    labels, weights = jnp.array([0, 2, 1]), jnp.array([1.0, 0.0, 2.0])
    with jax.enable_x64(True):
        logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)))
        check_grads(jax.jit(lambda x: cross_entropy(x, labels, weights)), (logits,), order=1)


def test_padding_counts_nothing_not_even_nan() -> None:
    logits = jnp.array([[1.0, 2.0], [jnp.nan, jnp.inf], [3.0, 1.0]])
    labels, weights = jnp.array([0, -1, 99]), jnp.array([1.0, 0.0, 0.0])
    value, gradient = jax.value_and_grad(cross_entropy)(logits, labels, weights)
    np.testing.assert_allclose(value, cross_entropy(logits[:1], labels[:1]), rtol=1e-6)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[1:], np.zeros((2, 2)))
    empty, gradient = jax.value_and_grad(cross_entropy)(logits, labels, jnp.zeros(3))
    assert empty == 0
    np.testing.assert_array_equal(gradient, np.zeros((3, 2)))


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_is_no_class_is_not_taken_for_one(label: int) -> None:
    assert np.isnan(cross_entropy(jnp.zeros((2, 2)), jnp.array([0, label])))


def test_extreme_logits_stay_finite() -> None:
    value, gradient = jax.value_and_grad(cross_entropy)(jnp.array([[1e4, -1e4]]), jnp.array([1]))
    np.testing.assert_allclose(value, 2e4)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("logits", "labels", "weights"),
    [((2,), (2,), (2,)), ((2, 3), (3,), (3,)), ((2, 3), (2,), (3,)), ((2, 3), (2, 1), (2, 1))],
)
def test_cross_entropy_refuses_shapes(logits: tuple, labels: tuple, weights: tuple) -> None:
    with pytest.raises(ValueError, match=r"expected logits \[B, C\], labels \[B\] and weights"):
        cross_entropy(jnp.zeros(logits), jnp.zeros(labels, int), jnp.zeros(weights))


@functools.cache
def haiku_params() -> dict:
    """Two convolutions with BatchNorm, and two dense layers."""

    def network(images: jax.Array) -> jax.Array:
        hidden = hk.Conv2D(2, 2)(images)
        hidden = hk.BatchNorm(True, True, 0.9)(hidden, is_training=True)
        hidden = jax.nn.relu(hk.Conv2D(3, 2)(hidden))
        hidden = jax.nn.relu(hk.Linear(4)(hk.Flatten()(hidden)))
        hidden = hk.BatchNorm(True, True, 0.9)(hidden, is_training=True)
        return hk.Linear(2)(hidden)

    transformed = hk.transform_with_state(network)
    params, _ = jax.jit(transformed.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    return jax.tree.map(lambda leaf: leaf + 0.5, params)  # biases and offsets are not 0


def brute_force(params: dict, names: list[tuple[str, str]]) -> float:
    return float(sum(np.sum(np.asarray(params[m][w], np.float64) ** 2) for m, w in names))


def test_coverage_of_a_haiku_network() -> None:
    params = haiku_params()
    every = [(module, name) for module in params for name in params[module]]
    dense, convolutions = ["linear", "linear_1"], ["conv2_d", "conv2_d_1"]
    expected = {
        "first_dense": [("linear", "w")],
        "weights": [(module, "w") for module in convolutions + dense],
        "all": every,
        "none": [],
    }
    assert params["batch_norm_1"]["scale"].ndim == 2  # and yet no dense weight
    for coverage, names in expected.items():
        compiled = jax.jit(jax.value_and_grad(squared_norm), static_argnums=1)
        value, gradient = compiled(params, coverage)
        np.testing.assert_allclose(value, brute_force(params, names), rtol=1e-6)
        for module, name in every:
            wanted = 2 * params[module][name] if (module, name) in names else 0.0
            np.testing.assert_allclose(gradient[module][name], wanted + 0 * params[module][name])


def test_coverage_by_predicate() -> None:
    params = haiku_params()
    value = squared_norm(params, lambda path, leaf: "linear_1" in path and leaf.ndim == 1)
    np.testing.assert_allclose(value, brute_force(params, [("linear_1", "b")]), rtol=1e-6)


def test_any_pytree_will_do() -> None:
    params = (jnp.full((2, 2, 1, 1), 2.0), [jnp.full((2, 2), 3.0), jnp.ones(2)], jnp.ones((2, 1)))
    assert squared_norm(params, "first_dense") == 36
    assert squared_norm(params, "weights") == 16 + 36 + 2
    assert squared_norm(params, "all") == 16 + 36 + 2 + 2
    assert squared_norm(jnp.ones((2, 2)), "weights") == 4
    assert squared_norm({}, "all") == 0


def test_weight_decay_falls_as_labels_come_in_without_recompiling() -> None:
    params = haiku_params()
    traces = []

    @jax.jit
    def penalty(strength: float, num_labelled: int) -> jax.Array:
        traces.append(1)
        return weight_decay_penalty(params, strength, num_labelled, "first_dense")

    for num_labelled in (20, 30, 1000):
        expected = 2.5 / num_labelled * brute_force(params, [("linear", "w")])
        np.testing.assert_allclose(penalty(2.5, num_labelled), expected, rtol=1e-6)
    assert len(traces) == 1


def test_refusals() -> None:
    with pytest.raises(ValueError, match="unknown weight decay coverage 'dense'; known: first_"):
        squared_norm({}, "dense")
    with pytest.raises(ValueError, match='"first_dense" found no 2-D weight; use "weights"'):
        weight_decay_penalty({"conv": {"w": jnp.ones((2, 2, 1, 1))}}, 1.0, 20)
