"""Two last layers that leave out what dropout drops for all examples."""

import functools
import itertools

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesian_active_learning import models
from bayesian_active_learning.hoisting import map_draws
from bayesian_active_learning.models.dropped import _all_units, _skipping
from bayesian_active_learning.types import Model, Outputs, Variables

KEY = jax.random.key(0)
SAMPLES = jax.vmap(_skipping(0.25, 0.5), (None, None, 0, None, None, 0))


def inputs_of(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(4).normal(size=(count, *shape)).astype(np.float32)


def fresh(model: Model, *shape: int) -> Variables:
    """Some variables, without compiling `init`."""
    generator = np.random.default_rng(0)
    like = jax.eval_shape(model.init, KEY, jnp.zeros(shape))
    values = jax.tree.map(lambda x: 0.2 * generator.normal(size=x.shape).astype(x.dtype), like)
    return jax.tree.map(jnp.asarray, values)


def two_layers(units: int, rate: float, inner_rate: float = 0.25) -> Model:
    def forward(inputs: jax.Array, mode: str) -> Outputs:
        hidden = models.DropoutLinear(units, inner_rate, name="hidden")
        output = models.DropoutLinear(3, rate, name="output")
        return Outputs(*models.last_layers(inputs, hidden, output, mode))

    return models.from_haiku(forward)


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.97])
@pytest.mark.parametrize("units", [31, 32, 50])
def test_dropped_units_are_left_out_and_nothing_changes(units: int, rate: float):
    """Masks with few and with many units: no unit at all among them."""
    model, inputs = two_layers(units, rate), inputs_of(4, 5)
    variables = fresh(model, 1, 5)
    params = jax.tree.map(lambda w: w + 0.1, variables.params)  # biases, too
    variables = Variables(params, variables.state)

    def by_hand(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, second = (
            models.dropout(k, r, jnp.ones(n))
            for k, r, n in zip(itertools.islice(hk.PRNGSequence(key), 2), (0.25, rate), (5, units))
        )
        features = jax.nn.relu((inputs * first) @ params["hidden"]["w"] + params["hidden"]["b"])
        return (features * second) @ params["output"]["w"] + params["output"]["b"], features

    keys = jax.random.split(KEY, 40)
    expected = jax.vmap(by_hand)(keys)

    def network(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = model.apply(variables, key, inputs, mode="sample")[0]
        return outputs.logits, outputs.features

    for found in (jax.lax.map(network, keys), jax.vmap(network)(keys)):
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    if rate == 0.97:
        bias_alone = np.all(np.isclose(expected[0], params["output"]["b"]), axis=(1, 2))
        assert bias_alone.any() and not bias_alone.all()


# For 40 inputs at rates of 1/4 and 1/2, and 64 units at 1/2: up to each compiled size, and beyond.
NUMBERS_OF_INPUTS = 0, 10, 16, 17, 24, 25, 40
NUMBERS_OF_UNITS = 0, 32, 33, 40, 41, 48, 64


def some_of(rng: np.random.Generator, count: int, total: int) -> np.ndarray:
    return rng.permutation(total) < count


@pytest.mark.parametrize("input_rate", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("shift", [0, 2, 3])
def test_what_is_dropped_is_taken_away_or_never_added(shift: int, input_rate: float):
    """Masks with usual and unusual numbers of inputs and units; alone, mapped, twice mapped."""
    rng = np.random.default_rng(shift)
    columns, weights, bias = (rng.normal(size=s) for s in ((2, 40, 7), (40, 64), (64,)))
    listed = np.array([[some_of(rng, n, 40) for n in NUMBERS_OF_INPUTS] for _ in range(2)])
    masks = (listed if input_rate >= 0.5 else ~listed) / (1 - input_rate)
    if not input_rate:
        masks = np.ones_like(masks)
    kept = [[some_of(rng, n, 64) for n in np.roll(NUMBERS_OF_UNITS, shift)] for _ in range(2)]
    lasts = rng.normal(size=(2, 7, 64, 3)) * np.array(kept)[..., None]
    hidden = np.maximum(np.einsum("gdn,gsd,du->gsnu", columns, masks, weights) + bias, 0)
    expected = hidden @ lasts

    function = _skipping(input_rate, 0.5)
    samples = jax.vmap(function, (None, None, 0, None, None, 0))
    whole = weights.T @ columns
    columns, whole, masks, weights, bias, lasts = jax.tree.map(
        jnp.float32, (columns, whole, masks, weights, bias, lasts)
    )
    for count in (1, 2, 3, 7):  # few and several
        arguments = columns[0], whole[0], masks[0, :count], weights, bias, lasts[0, :count]
        np.testing.assert_allclose(samples(*arguments), expected[0, :count], atol=1e-4)
    for sample in range(3):
        arguments = columns[0], whole[0], masks[0, sample], weights, bias, lasts[0, sample]
        np.testing.assert_allclose(function(*arguments), expected[0, sample], atol=1e-4)
    found = jax.vmap(samples, (0, 0, 0, None, None, 0))(columns, whole, masks, weights, bias, lasts)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    same_mask = jax.vmap(function, (None, None, None, None, None, 0))
    found = same_mask(columns[0], whole[0], masks[0, 2], weights, bias, lasts[0])
    np.testing.assert_allclose(found[2], expected[0, 2], atol=1e-4)


@pytest.mark.parametrize("input_rate, is_used", [(0.25, True), (0.75, False)])
def test_the_usual_sizes_are_those_that_run(input_rate: float, is_used: bool):
    """A unit that all samples drop is not looked at; the product of all inputs is, if it helps."""
    rng = np.random.default_rng(0)
    columns, weights, bias = (rng.normal(size=s) for s in ((40, 7), (40, 64), (64,)))
    masks = np.array([~some_of(rng, 40 * input_rate, 40) for _ in range(5)]) / (1 - input_rate)
    kept = np.array([np.append(some_of(rng, 32, 63), False) for _ in range(5)])
    lasts = rng.normal(size=(5, 64, 3)) * kept[..., None]
    weights[:, 63] = np.nan
    whole = weights.T @ columns
    arguments = [jnp.float32(x) for x in (columns, whole, masks, weights, bias, lasts)]
    samples = jax.vmap(_skipping(input_rate, 0.5), (None, None, 0, None, None, 0))
    found = samples(*arguments)
    assert np.isfinite(found).all()
    arguments[1] += 1
    assert np.allclose(samples(*arguments), found) != is_used


@pytest.mark.parametrize("num_samples", [1, 7])
def test_gradients_are_those_of_the_formula(num_samples: int):
    model, inputs = two_layers(40, 0.5), inputs_of(4, 5)
    variables = fresh(model, 1, 5)
    keys = jax.random.split(KEY, num_samples)

    def squares(logits: jax.Array) -> jax.Array:
        return jnp.sum(logits**2)

    def loss(params: dict, inputs: jax.Array) -> jax.Array:
        def network(key: jax.Array) -> jax.Array:
            outputs, _ = model.apply(Variables(params, {}), key, inputs, mode="sample")
            return outputs.logits

        return squares(jax.vmap(network)(keys))

    def by_hand(params: dict, inputs: jax.Array) -> jax.Array:
        def network(key: jax.Array) -> jax.Array:
            sequence = hk.PRNGSequence(key)
            first = models.dropout(next(sequence), 0.25, jnp.ones(5))
            second = models.dropout(next(sequence), 0.5, jnp.ones(40))
            hidden = (inputs * first) @ params["hidden"]["w"] + params["hidden"]["b"]
            last = (jax.nn.relu(hidden) * second) @ params["output"]["w"]
            return last + params["output"]["b"]

        return squares(jax.vmap(network)(keys))

    gradients = [jax.grad(each, (0, 1))(variables.params, inputs) for each in (loss, by_hand)]
    chex.assert_trees_all_close(*gradients, rtol=1e-4, atol=1e-4)
    assert np.abs(gradients[0][0]["hidden"]["w"]).max() > 0.1


def some_arguments(num_samples: int, size: int, examples: int = 9) -> tuple[np.ndarray, ...]:
    """Positive columns, as after ReLU, and what a layer of 128 units and rates of 1/4 and 1/2 has;
    in float64, of which the product of all inputs is left out."""
    rng = np.random.default_rng(num_samples)
    columns = np.maximum(rng.normal(size=(size, examples)), 0)
    masks = (rng.random((num_samples, size)) >= 0.25) / 0.75
    weights = rng.normal(size=(size, 128)) / np.sqrt(size)
    lasts = rng.normal(size=(128, 10)) * 2 * (rng.random((num_samples, 128, 1)) >= 0.5)
    return columns, masks, weights, rng.normal(size=128), lasts


def with_product(columns: np.ndarray, *others: np.ndarray) -> tuple[jax.Array, ...]:
    masks, weights, bias, lasts = others
    arguments = columns, weights.T @ columns, masks, weights, bias, lasts
    return jax.tree.map(jnp.float32, arguments)


@pytest.mark.parametrize("largest", [1, 100])
def test_differences_are_as_exact_as_sums(largest: float):
    """At the size of the paper's network, against float64; with one input that is far larger than
    the others, and dropped by some samples, the error is that of its rounding."""
    columns, masks, weights, bias, lasts = arguments = some_arguments(10, 3872)
    columns[7] *= largest
    assert 0 < np.sum(masks[:, 7] == 0) < 10
    hidden = np.einsum("dn,sd,du->snu", columns, masks, weights) + bias
    expected = np.maximum(hidden, 0) @ lasts
    differences = jax.jit(SAMPLES)(*with_product(*arguments))
    direct = jax.vmap(_all_units, (None, None, 0, None, None, 0))
    sums = jax.jit(direct)(*with_product(*arguments))
    error, usual = (np.abs(found - expected).max() for found in (differences, sums))
    assert np.abs(expected).max() > 10
    assert error < 3 * usual < 1e-4


def test_an_example_that_is_not_a_number_leaves_the_others_alone():
    columns, *others = some_arguments(7, 40)
    broken = columns.copy()
    broken[0, 2], broken[39, 5] = np.nan, np.inf
    found, expected = (SAMPLES(*with_product(each, *others)) for each in (broken, columns))
    assert np.isnan(found[:, 2]).all() and not np.isfinite(found[:, 5]).any()
    sound = ~np.isin(np.arange(9), (2, 5))
    np.testing.assert_array_equal(found[:, sound], expected[:, sound])


def test_the_product_of_all_inputs_is_outside_of_the_loop_over_samples():
    model, inputs = two_layers(48, 0.5), inputs_of(4, 24)
    variables = fresh(model, 1, 24)
    keys = jax.random.split(KEY, 6)

    def network(key: jax.Array, variables: Variables, inputs: jax.Array) -> jax.Array:
        return model.apply(variables, key, inputs, mode="sample")[0].logits

    program = jax.make_jaxpr(functools.partial(map_draws, network))(keys, variables, inputs)
    products = [e for e in program.jaxpr.eqns if e.primitive.name == "dot_general"]
    assert [e.outvars[0].aval.shape for e in products] == [(48, 4)]
