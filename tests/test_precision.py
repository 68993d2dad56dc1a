"""The precision of networks: who states it, what is compiled for it, and that a CPU has but one.

That every compiled function states it is in test_lowering.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from driver import CONFIG, digits, go, log_of

from bayesian_active_learning import experiment, inference, models, training
from bayesian_active_learning.history import HistoryError
from bayesian_active_learning.precision import full_precision
from bayesian_active_learning.types import Model, Outputs, Variables

KEY = jax.random.PRNGKey(0)
INPUTS = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)


def precisions(function, *arguments) -> list[str]:
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    found = [e.params["precision"] for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    return ["unsaid" if each is None else each[0].name for each in found]


@jax.custom_vjp
def by_hand(inputs, weights):
    return jax.lax.dot(inputs, weights)


by_hand.defvjp(
    lambda inputs, weights: (by_hand(inputs, weights), (inputs, weights)),
    lambda saved, bar: (jax.lax.dot(bar, saved[1].T), jax.lax.dot(saved[0].T, bar)),
)


def plain(product=jax.lax.dot) -> Model:
    """One product, as some network of a user has it."""

    def apply(variables, key, inputs, *, mode):
        logits = product(inputs, variables.params)
        return Outputs(logits, inputs), variables.state

    return Model(lambda key, inputs: Variables(jnp.ones((inputs.shape[-1], 3)), ()), apply)


def logits(model):
    variables = model.init(KEY, INPUTS)
    return lambda params: model.apply(Variables(params, ()), None, INPUTS, mode="mean")[0].logits, (
        variables.params
    )


@pytest.mark.parametrize(
    "name, level", [("float32", "HIGHEST"), ("tensorfloat32", "HIGH"), ("bfloat16", "DEFAULT")]
)
def test_products_and_their_derivatives(name, level):
    function, params = logits(models.with_precision(plain(), name))
    assert precisions(function, params) == [level]
    assert precisions(jax.grad(lambda p: function(p).sum()), params) == [level] * 2
    with jax.default_matmul_precision("tensorfloat32"):  # it is no matter what is set outside
        assert precisions(function, params) == [level]
    function, params = logits(plain())
    assert precisions(function, params) == ["unsaid"]
    assert precisions(full_precision(function), params) == ["HIGHEST"]


def test_what_a_network_states_itself_stays():
    model = plain(lambda x, w: jax.lax.dot(x, w, precision="high"))
    assert precisions(*logits(models.with_precision(model, "bfloat16"))) == ["HIGH"]


def test_derivatives_by_hand_are_at_the_precision_of_who_differentiates():
    function, params = logits(models.with_precision(plain(by_hand), "bfloat16"))
    gradient = jax.grad(lambda p: function(p).sum())
    assert set(precisions(full_precision(gradient), params)) == {"HIGHEST"}


def test_the_last_precision_counts():
    model = plain()
    low = models.with_precision(model, "bfloat16")
    full = models.with_precision(low, "float32")
    assert full == models.with_precision(model, "float32") != low
    assert hash(full) == hash(models.with_precision(model, "float32"))
    assert precisions(*logits(full)) == ["HIGHEST"]


def test_equal_models_share_what_is_compiled(compilations):
    model = models.mlp(3)
    variables = model.init(KEY, INPUTS)

    def score(precision):
        at = models.with_precision(model, precision)
        posterior = inference.mc_dropout(at, variables)
        return inference.log_probs(KEY, posterior, INPUTS, np.arange(6), num_samples=2)

    first = score("bfloat16")
    before = compilations()
    assert np.array_equal(score("bfloat16"), first)
    assert compilations() == before
    assert np.array_equal(score("float32"), first)  # on a CPU; but another program
    assert compilations() > before


def test_unknown_precisions_are_refused():
    message = "unknown precision 'float16'; known: float32, tensorfloat32, bfloat16"
    with pytest.raises(ValueError, match=message):
        models.with_precision(plain(), "float16")


def test_runs_on_a_cpu_are_the_same_and_not_one_run(tmp_path):
    """The default is left out of the identity: runs older than it go on."""
    assert "precision" not in experiment.settings(CONFIG)
    low = CONFIG._replace(precision="bfloat16")
    assert experiment.settings(low)["precision"] == "bfloat16"
    assert experiment.config_of(experiment.identity(low, digits()))[0] == low
    assert experiment.config_of(experiment.identity(CONFIG, digits()))[0] == CONFIG

    go(labels=15, directory=tmp_path / "full")
    go(labels=15, directory=tmp_path / "low", config=low)
    if jax.default_backend() == "cpu":
        assert log_of(tmp_path / "full").read_bytes() == log_of(tmp_path / "low").read_bytes()
    with pytest.raises(HistoryError, match="precision"):
        go(labels=20, directory=tmp_path / "full", config=low)


def test_models_of_the_driver():
    model, _ = experiment.network(CONFIG._replace(precision="tensorfloat32"), digits())
    again, _ = experiment.network(CONFIG._replace(precision="tensorfloat32"), digits())
    other, _ = experiment.network(CONFIG, digits())
    assert model == again != other
    key = jax.random.key(1)
    rows, labels = np.arange(4), np.array([0, 1, 2, 3])
    fits = [
        training.fit(key, each, optimizer, digits().images, rows, labels, config=CONFIG.fit)
        for each in (model, other)
        for optimizer in [experiment.network(CONFIG, digits())[1]]
    ]
    if jax.default_backend() == "cpu":
        assert jax.tree.all(jax.tree.map(np.array_equal, *(fit.variables for fit in fits)))
