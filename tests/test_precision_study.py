"""The study's rounding of products, and its bookkeeping, on digits and with small networks."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bayesian_active_learning import data_utils, experiment, inference, models, training
from bayesian_active_learning.types import Model, Outputs, Variables
from experiments import precision_study
from experiments.precision_study import emulated

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(size=(70, 16, 16, 1)).astype(np.float32)


def test_operands_are_rounded_wherever_products_are_nested():
    """In a loop, a branch and a function with a derivative of its own."""

    @jax.custom_jvp
    def product(x, w):
        return x @ w

    product.defjvps(None, None)

    def network(product: Any) -> Model:
        def apply(variables, key, inputs, *, mode):
            w = variables.params
            hidden = lax.map(lambda x: jax.nn.relu(product(x, w)), inputs)
            hidden = lax.cond(jnp.sum(hidden) > -1, lambda h: product(h, w), lambda h: h, hidden)
            return Outputs(hidden, hidden), variables.state

        return Model(lambda key, inputs: Variables(w, ()), apply)

    def rounded(x, w):
        return lax.reduce_precision(x, 8, 7) @ lax.reduce_precision(w, 8, 7)

    w = jax.random.normal(KEY, (16, 16))
    inputs = IMAGES[:, :, 0, 0]
    found, expected, exact = (
        jax.jit(lambda m=model: m.apply(Variables(w, ()), None, inputs, mode="mean")[0].logits)()
        for model in (emulated(network(product), "bfloat16"), network(rounded), network(product))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.abs(found - exact).max() > 1e-3


@pytest.mark.parametrize("name", [pytest.param("convnet", marks=pytest.mark.slow), "mlp"])
def test_networks(name, monkeypatch):
    model = models.MODELS[name](3)
    variables = model.init(KEY, IMAGES[:1])

    def log_probs(model):
        posterior = inference.mc_dropout(model, variables)
        return inference.log_probs(KEY, posterior, IMAGES, np.arange(70), num_samples=2)

    exact = log_probs(model)
    errors = [np.abs(log_probs(emulated(model, p)) - exact).max() for p in precision_study.MANTISSA]
    assert 1e-5 < errors[0] < errors[1] / 3 < 0.1
    monkeypatch.setitem(precision_study.MANTISSA, "all bits", 23)
    assert np.array_equal(log_probs(emulated(model, "all bits")), exact)


@pytest.mark.slow
def test_trials_and_table():
    fit = training.FitConfig(min_steps=5, epochs=0)
    config = experiment.Config(
        model="mlp", num_samples=4, pool_size=60, acquisition_size=5, fit=fit
    )
    raw = data_utils.load_digits()
    for native in (False, True):
        found = precision_study.trials(config, raw, 0, 20, native=native)
        assert len(found) == len(precision_study.VARIANTS) * len(precision_study.FUNCTIONS)
        json.dumps(found, allow_nan=False)
        for trial in found:
            assert 0 <= trial["overlap"] <= 1
            assert trial["overlap"] < 1 or trial["kept"] == pytest.approx(1, abs=1e-5)
            if native and trial["variant"] in precision_study.MANTISSA:  # on a CPU
                assert trial["overlap"] == 1 and not trial["difference"]
    lines = precision_study.table(found).splitlines()
    assert len(lines) == 4 + len(found)
    assert lines[4].startswith("| bald | float32, other chunks | 100.0% | 100.0% |")
