"""Dropout by bytes of random bits: what is kept, how often, and of what else it depends."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesian_active_learning import models
from bayesian_active_learning.models.layers import _FEW_WORDS, _words, relu_dropout

KEYS = jax.random.split(jax.random.key(0), 3)
dropped = jax.jit(models.dropout, static_argnums=1)


@pytest.mark.parametrize("rate", [1 / 256, 0.25, 0.5, 255 / 256])
def test_a_share_is_dropped_and_the_rest_is_scaled(rate: float):
    count = 100_001  # no multiple of the four bytes in a word
    found = np.asarray(dropped(KEYS[0], rate, jnp.full(count, 3.0)))
    kept = found != 0
    np.testing.assert_allclose(found[kept], 3 / (1 - rate), rtol=1e-6)
    five_errors = 5 * np.sqrt(rate * (1 - rate) / count)
    for every in (kept, *(kept[place::4] for place in range(4))):
        assert abs(every.mean() - (1 - rate)) < five_errors * np.sqrt(count / every.size)


@pytest.mark.parametrize("lag", [1, 2, 3, 4])
def test_neighbours_are_independent(lag: int):
    kept = np.asarray(dropped(KEYS[0], 0.5, jnp.ones(100_000))) - 1  # -1 or 1
    assert abs((kept[lag:] * kept[:-lag]).mean()) < 5 / np.sqrt(len(kept) - lag)


def test_the_shape_counts_for_nothing_and_the_key_for_all():
    inputs = np.random.default_rng(0).normal(size=(5, 3, 7)).astype(np.float32)
    found = dropped(KEYS[0], 0.5, inputs)
    assert np.array_equal(found.ravel(), dropped(KEYS[0], 0.5, inputs.ravel()))
    assert not np.array_equal(found, dropped(KEYS[1], 0.5, inputs))
    together = jax.vmap(lambda key: models.dropout(key, 0.5, inputs))(KEYS)
    for key, one in zip(KEYS, together):
        assert np.array_equal(one, dropped(key, 0.5, inputs))


@pytest.mark.parametrize("count", [1, 1001, _FEW_WORDS, 2 * _FEW_WORDS + 1])
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg", "raw"])
def test_random_bits_are_those_of_jax(impl: str, count: int):
    """Of keys of every kind; raw ones are arrays of two numbers."""
    key = jax.random.PRNGKey(7) if impl == "raw" else jax.random.key(7, impl=impl)
    assert np.array_equal(_words(key, count), jax.random.bits(key, (count,), "uint32"))


def test_random_bits_are_those_of_jax_where_its_bits_are_the_older_ones():
    key, count = jax.random.key(7), _FEW_WORDS
    usual = _words(key, count)
    with jax.threefry_partitionable(False):
        assert np.array_equal(_words(key, count), jax.random.bits(key, (count,), "uint32"))
        assert not np.array_equal(_words(key, count), usual)


def test_random_bits_are_those_of_jax_for_several_keys_at_once():
    keys, count = jax.random.split(jax.random.key(1), (2, 3)), _FEW_WORDS + 1
    found = jax.vmap(jax.vmap(lambda key: _words(key, count)))(keys)
    for place in np.ndindex(2, 3):
        assert np.array_equal(found[place], jax.random.bits(keys[place], (count,), "uint32"))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rate", [0.25, 0.1])
def test_dtype_stays(rate: float, dtype: jnp.dtype):
    assert dropped(KEYS[0], rate, jnp.ones(9, dtype)).dtype == dtype


def test_what_is_dropped_has_no_gradient_and_may_be_infinite():
    inputs = jnp.full(64, jnp.inf)
    found = np.asarray(dropped(KEYS[0], 0.5, inputs))
    assert set(found) == {0, np.inf}
    gradient = jax.grad(lambda x: models.dropout(KEYS[0], 0.5, x).sum())(jnp.ones(64))
    assert np.array_equal(gradient, np.where(found == 0, 0, 2))


@pytest.mark.parametrize("rate", [0.25, 0.1, 0.0])
def test_of_relu_in_values_and_gradients(rate: float):
    inputs = np.random.default_rng(1).normal(size=(40, 5)).astype(np.float32)
    inputs[0] = 0, np.inf, -np.inf, 1e30, -0.0
    cotangent = np.random.default_rng(2).normal(size=inputs.shape).astype(np.float32)

    def with_gradient(function, key):
        found, pullback = jax.vjp(function, key, inputs)
        return found, pullback(cotangent)[1]

    def composed(key, inputs):
        return models.dropout(key, rate, jax.nn.relu(inputs))

    for key in KEYS:
        expected = with_gradient(composed, key)
        found = with_gradient(lambda key, x: relu_dropout(key, rate, x), key)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    together = jax.vmap(lambda key: relu_dropout(key, rate, inputs))(KEYS)
    assert np.array_equal(together[1], composed(KEYS[1], inputs))


def test_other_rates_are_exact_too():
    """What a byte cannot say takes Haiku's 32 bits."""
    inputs = jnp.ones(1000)
    assert np.array_equal(dropped(KEYS[0], 0.1, inputs), hk.dropout(KEYS[0], 0.1, inputs))


def test_nothing_is_dropped_at_rate_0():
    assert np.array_equal(dropped(KEYS[0], 0.0, jnp.arange(9.0)), np.arange(9))


@pytest.mark.parametrize("rate", [-0.25, 1.0, 2.0])
def test_rates_that_cannot_be(rate: float):
    with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\), got"):
        models.dropout(KEYS[0], rate, jnp.ones(3))
