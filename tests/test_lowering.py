"""Every compiled entry point lowers for GPU and TPU, which needs neither to be there."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_acquisition_strategies import make_candidates

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning import (
    frozen_features,
    inference,
    models,
    posteriors,
    protocol,
    replicas,
    training,
)
from bayesian_active_learning.types import Variables

PLATFORMS = ("cuda", "tpu")
DEVICE_STRATEGIES = [name for name in af.STRATEGIES if not af.make_strategy(name).host]
IMAGES = np.zeros((4, 16, 16, 1), np.float32)


def lowered(function: Any, *arguments: Any) -> str:
    """The program for both platforms. Raises where an operation has no lowering."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), arguments)
    exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)
    assert exported.platforms == PLATFORMS
    return exported.mlir_module()


@pytest.mark.parametrize("name", af.SCORES)
def test_scores(name: str):
    assert "func" in lowered(af.SCORES[name], jnp.zeros((3, 2, 4)))


@pytest.mark.parametrize("name", DEVICE_STRATEGIES)
def test_strategies(name: str):
    strategy = af.make_strategy(name)
    candidates = jax.tree.map(jnp.asarray, make_candidates(strategy))
    select = functools.partial(strategy.select, batch_size=3)
    assert "func" in lowered(select, jax.random.PRNGKey(0), candidates)


@functools.cache
def network(name: str) -> tuple[Any, Variables]:
    model = models.MODELS[name](3)
    return model, model.init(jax.random.PRNGKey(0), IMAGES)


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("kind", ["mc_dropout", "deterministic", "ensemble", "laplace"])
def test_stochastic_passes(name: str, kind: str):
    model, variables = network(name)
    posterior = {
        "mc_dropout": lambda: inference.mc_dropout(model, variables),
        "deterministic": lambda: inference.deterministic(model, variables),
        "ensemble": lambda: posteriors.ensemble(
            model, posteriors.stack_variables([variables, variables])
        ),
        "laplace": lambda: posteriors.laplace(model, variables, IMAGES, np.arange(4)),
    }[kind]()
    samples = 1 if kind == "deterministic" else 2

    def scores(shared: Any, key: Any, images: Any) -> Any:
        draws = posterior.draw(shared, key, samples)
        return inference._chunk((posterior.apply,), (0,), af.bald, (shared,), (draws,), images)

    assert "func" in lowered(scores, posterior.shared, jax.random.PRNGKey(0), IMAGES)


@pytest.mark.parametrize("name", models.MODELS)
def test_single_passes_and_gradients(name: str):
    model, variables = network(name)
    for function in (inference._point_outputs, inference._gradient_sums):
        assert "func" in lowered(functools.partial(function, model), variables, IMAGES)


@pytest.mark.parametrize("name", models.MODELS)
def test_training(name: str, monkeypatch: pytest.MonkeyPatch):
    """The block that `fit` compiles, with the arguments that it is called with."""
    model, _ = network(name)
    programs: list[str] = []
    compiled = training._compiled

    def spied(*settings: Any) -> Any:
        block, check = compiled(*settings)

        def call(*arguments: Any) -> Any:
            programs.append(lowered(block, *jax.tree.map(jnp.asarray, arguments)))
            return block(*arguments)

        return call, check

    monkeypatch.setattr(training, "_compiled", spied)
    config = training.FitConfig(batch_size=4, epochs=0, min_steps=1, check_every=1)
    training.fit(
        jax.random.PRNGKey(0),
        model,
        optax.adam(1e-3),
        IMAGES,
        np.arange(4),
        np.array([0, 1, 2, 0]),
        config=config,
    )
    assert len(programs) == 1 and "func" in programs[0]


@pytest.mark.parametrize("name", ["convnet", "mlp"])
def test_training_of_replicas(name: str, monkeypatch: pytest.MonkeyPatch):
    """The two programs of `replicas.fit`, with the arguments that they are called with."""
    model, _ = network(name)
    programs: list[str] = []
    compiled = replicas._compiled

    def spied(*settings: Any) -> Any:
        start, block = compiled(*settings)

        def started(*arguments: Any) -> Any:
            programs.append(lowered(start, *arguments))
            return start(*arguments)

        def stepped(*arguments: Any) -> Any:
            programs.append(lowered(block, *jax.tree.map(jnp.asarray, arguments)))
            raise InterruptedError  # seen; a CPU takes long to compile it

        return started, stepped

    monkeypatch.setattr(replicas, "_compiled", spied)
    with pytest.raises(InterruptedError):
        replicas.fit(
            list(jax.random.split(jax.random.PRNGKey(0), 2)),
            model,
            optax.adam(1e-3),
            IMAGES,
            [np.arange(4), np.arange(3)],
            [np.array([0, 1, 2, 0]), np.array([0, 1, 2])],
            config=training.FitConfig(batch_size=4, epochs=0, min_steps=1, check_every=1),
            capacity=4,
            width=2,
        )
    assert len(programs) == 2 and all("func" in program for program in programs)


@pytest.mark.parametrize("name", ["convnet", "mlp"])
@pytest.mark.parametrize("kind", ["mc_dropout", "ensemble"])
def test_stochastic_passes_of_replicas(name: str, kind: str):
    model, variables = network(name)
    posterior = {
        "mc_dropout": inference.mc_dropout(model, variables),
        "ensemble": posteriors.ensemble(model, posteriors.stack_variables([variables, variables])),
    }[kind]

    def scores(shared: Any, keys: Any, images: Any) -> Any:
        draws = replicas._draws(posterior.draw, shared, keys, 2)
        return replicas._chunks((posterior.apply,), (0,), af.bald, (shared,), (draws,), images)

    shared = jax.tree.map(lambda x: np.stack([x] * 3), posterior.shared)
    keys = jax.random.split(jax.random.PRNGKey(0), 3)
    assert "func" in lowered(scores, shared, keys, np.stack([IMAGES] * 3))


def test_rounds_on_frozen_features():
    """A whole run, its head and its posterior."""
    config = frozen_features.FrozenConfig(num_samples=2, pool_size=6)
    shape = frozen_features._Shape(config, 3, 6, 1)
    keys = protocol.Keys(*[jnp.stack([jax.random.PRNGKey(i)] * 3) for i in range(6)])
    data = frozen_features._Data(jnp.zeros((12, 5)), jnp.zeros(12, jnp.int32), jnp.arange(9, 12))
    plan = frozen_features._Plan(jnp.arange(9), jnp.arange(0), keys)
    rounds = functools.partial(frozen_features._rounds, af.make_strategy("bald"), shape)
    assert "func" in lowered(rounds, data, plan, jnp.zeros(5, jnp.int32), jnp.int32(3))
