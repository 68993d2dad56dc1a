"""Every compiled entry point lowers for GPU and TPU, which needs neither to be there, and states
the precision of every matrix product: left alone, both would take fewer bits than a CPU."""

import functools
import re
from collections.abc import Callable, Sequence
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
    precision,
    protocol,
    replicas,
    training,
    vaal,
)
from bayesian_active_learning.acquisition_functions import centres
from bayesian_active_learning.hoisting import map_draws
from bayesian_active_learning.types import Model, Posterior, Variables

PLATFORMS = ("cuda", "tpu")
DEVICE_STRATEGIES = [name for name in af.STRATEGIES if not af.make_strategy(name).host]
LEVELS = {"float32": "HIGHEST", "tensorfloat32": "HIGH", "bfloat16": "DEFAULT"}
IMAGES = np.zeros((4, 16, 16, 1), np.float32)
KEY = jax.random.PRNGKey(0)


def lowered(function: Callable[..., Any], *arguments: Any) -> set[str]:
    """The precisions of the matrix products and convolutions in the program for both platforms.
    Raises where an operation has no lowering."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), arguments)
    exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)
    assert exported.platforms == PLATFORMS
    found = set()
    for line in exported.mlir_module().splitlines():
        if re.search(r'= "?stablehlo\.(dot|dot_general|convolution)\b', line):
            # What says nothing takes the default.
            found |= set(re.findall(r"\b(HIGHEST|HIGH)\b", line)) or {"DEFAULT"}
    return found


def spied(compiled: Callable[..., Any], found: list[set[str]]) -> Callable[..., Any]:
    """Notes how `compiled` lowers for the arguments of each call, and gives zeros: a CPU takes
    long to compile it, and what it finds is tested elsewhere."""

    def call(*arguments: Any) -> Any:
        arguments = jax.tree.map(jnp.asarray, arguments)
        found.append(lowered(compiled, *arguments))
        return jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compiled, *arguments)
        )

    return call


def test_precisions_are_told_apart():
    for name, level in LEVELS.items():
        model = models.with_precision(models.linear(), name)
        variables = model.init(KEY, IMAGES)
        assert lowered(functools.partial(model.apply, mode="mean"), variables, None, IMAGES) == {
            level
        }
    square = np.zeros((4, 4), np.float32)
    assert lowered(jnp.matmul, square, square) == {"DEFAULT"}
    assert lowered(precision.full_precision(jnp.matmul), square, square) == {"HIGHEST"}
    assert lowered(jnp.add, square, square) == set()


# Functions of arrays, in anybody's `jit`: only what they say themselves counts.


@pytest.mark.parametrize("name", af.SCORES)
def test_scores(name: str):
    assert lowered(af.SCORES[name], jnp.zeros((3, 2, 4))) <= {"HIGHEST"}


@pytest.mark.parametrize("name", [*DEVICE_STRATEGIES, "greedy_oracle", "probcover:delta=0.5"])
def test_strategies(name: str):
    strategy = af.UPPER_BOUNDS[name].make() if name in af.UPPER_BOUNDS else af.make_strategy(name)
    candidates = make_candidates(strategy._replace(needs=strategy.needs - {"target_labels"}))
    candidates = jax.tree.map(jnp.asarray, candidates._replace(target_labels=np.zeros(2, int)))
    select = functools.partial(strategy.select, batch_size=3)
    assert lowered(select, KEY, candidates) <= {"HIGHEST"}


@pytest.mark.parametrize("name", ["coreset", "kmeans_pp", "badge"])
def test_strategies_on_large_pools(name: str):
    strategy = af.make_strategy(name)
    candidates = jax.tree.map(jnp.asarray, make_candidates(strategy, n=centres.LAZY_POOL))
    assert lowered(functools.partial(strategy.select, batch_size=100), KEY, candidates) == {
        "HIGHEST"
    }


def test_joint_quantities():
    log_probs = jnp.zeros((4, 3, 2))
    for max_exact in (100, 2):
        information = functools.partial(af.joint_information, max_exact=max_exact, num_configs=8)
        assert lowered(information, KEY, log_probs) == {"HIGHEST"}
    assert lowered(af.epig, log_probs, log_probs) == {"HIGHEST"}


def test_the_logistic_head():
    labels, mask = jnp.zeros(4, jnp.int32), jnp.ones(4, bool)
    inputs = jnp.ones((4, 5))
    fit = functools.partial(posteriors.fit_logistic, num_classes=3, prior_precision=1.0)
    assert lowered(fit, inputs, labels, mask) == {"HIGHEST"}
    found = jax.eval_shape(fit, inputs, labels, mask)
    sample = functools.partial(posteriors.sample_logistic, num_samples=2)
    assert lowered(sample, KEY, found) == {"HIGHEST"}
    head = posteriors.logistic(found)
    assert passes([head]) == {"HIGHEST"}


# What the library compiles for networks.


@functools.cache
def network(name: str, at: str = "float32") -> tuple[Model, Variables]:
    model = models.with_precision(models.MODELS[name](3), at)
    return model, model.init(KEY, IMAGES)


def passes(given: Sequence[Posterior], num_samples: Sequence[int] = (2,)) -> set[str]:
    """Drawing networks and passing a chunk through them, as `inference` does."""

    def run(shared: Any, key: Any, inputs: Any) -> Any:
        draws = tuple(
            inference._draw(posterior.draw, part, key, samples)
            for posterior, part, samples in zip(given, shared, num_samples, strict=True)
        )
        applies = tuple(posterior.apply for posterior in given)
        places = tuple(range(len(given)))
        reduce = inference._mean_predictives
        return inference._chunk(applies, places, reduce, shared, draws, inputs)

    inputs = IMAGES
    if isinstance(given[0].shared, posteriors.LogisticFit):
        inputs = np.zeros((4, 5), np.float32)
    return lowered(run, tuple(posterior.shared for posterior in given), KEY, inputs)


@pytest.mark.parametrize("at", LEVELS)
@pytest.mark.parametrize("name", models.MODELS)
def test_networks(name: str, at: str):
    model, variables = network(name, at)
    both = [inference.mc_dropout(model, variables), inference.deterministic(model, variables)]
    assert passes(both[:1]) == {LEVELS[at]}
    assert passes(both, (2, 1)) == {LEVELS[at]}
    for function in (inference._point_outputs, inference._gradient_sums):
        assert lowered(functools.partial(function, model), variables, IMAGES) == {LEVELS[at]}


def test_a_model_that_says_nothing_is_passed_in_float32():
    model, _ = network("convnet")
    bare = models.convnet(3)
    variables = model.init(KEY, IMAGES)
    assert passes([inference.mc_dropout(bare, variables)]) == {"HIGHEST"}
    assert fitted(bare) == [set(), {"HIGHEST"}, {"HIGHEST"}]


def swag_of(model: Model, variables: Variables) -> Posterior:
    moments = posteriors.swag_moments(variables, rank=2)
    for _ in range(2):
        lowered(posteriors.update_swag_moments, moments, variables)
        moments = posteriors.update_swag_moments(moments, variables)
    return posteriors.swag(model, moments)


def ensemble_of(model: Model, variables: Variables, dropout: bool = False) -> Posterior:
    stacked = posteriors.stack_variables([variables, variables])
    return posteriors.ensemble(model, stacked, dropout=dropout)


def laplace_of(model: Model, variables: Variables, structure: str) -> Posterior:
    return posteriors.laplace(model, variables, IMAGES, np.arange(4), structure=structure)


POSTERIORS: dict[str, Callable[[Model, Variables], Posterior]] = {
    "ensemble": ensemble_of,
    "ensemble with dropout": functools.partial(ensemble_of, dropout=True),
    "swag": swag_of,
    **{
        f"laplace {structure}": functools.partial(laplace_of, structure=structure)
        for structure in posteriors.STRUCTURES
    },
}


@pytest.mark.parametrize("kind", POSTERIORS)
def test_posteriors(kind: str):
    assert passes([POSTERIORS[kind](*network("convnet"))]) == {"HIGHEST"}
    # What a posterior does around the network stays as it is.
    found = passes([POSTERIORS[kind](*network("mlp", "bfloat16"))])
    assert found == ({"DEFAULT"} if "ensemble" in kind else {"DEFAULT", "HIGHEST"})


def fitted(model: Model) -> list[set[str]]:
    """Lowers what `fit` compiles, with the arguments that it is called with: initial
    parameters, a block of steps, a check."""
    found: list[set[str]] = []
    compiled, initial = training._compiled, training.initial
    config = training.FitConfig(batch_size=4, epochs=0, min_steps=1, check_every=1, monitor="nll")
    labels = np.array([0, 1, 2, 0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            training,
            "initial",
            lambda *a: spied(functools.partial(initial, a[0]), found)(*a[1:]),
        )
        patch.setattr(
            training, "_compiled", lambda *settings: [spied(f, found) for f in compiled(*settings)]
        )
        training.fit(
            KEY,
            model,
            optax.adam(1e-3),
            IMAGES,
            np.arange(4),
            labels,
            config=config,
            validation=(IMAGES, labels),
        )
    return found


@pytest.mark.parametrize("at", LEVELS)
@pytest.mark.parametrize("name", models.MODELS)
def test_training(name: str, at: str):
    # Initial parameters need no product: the passes of `init` are dead code.
    assert fitted(network(name, at)[0]) == [set(), {LEVELS[at]}, {LEVELS[at]}]


@pytest.mark.parametrize("kind", ["small", "large", "mlp"])
def test_vaal(kind: str):
    start, block, log_odds = vaal._compiled(kind, 4)
    inputs = jnp.zeros((2, 3, 5)) if kind == "mlp" else jnp.zeros((2, 3, 16, 16, 1))
    batch = inputs[0]
    begun = jax.eval_shape(start, KEY, batch)
    assert lowered(start, KEY, batch) <= {"HIGHEST"}
    weights = vaal._Weights(*[jnp.float32(1)] * len(vaal._Weights._fields))
    count = jnp.int32(1)
    steps = lowered(block, begun, KEY, count, count, inputs, inputs, weights)
    assert steps == {"HIGHEST"}
    assert lowered(log_odds, begun.variables, begun.discriminator, batch) == {"HIGHEST"}
    assert lowered(vaal._encoder(kind, 4), begun.variables, batch) == {"HIGHEST"}


@pytest.mark.parametrize("name", ["convnet", "mlp"])
def test_training_of_replicas(name: str, monkeypatch: pytest.MonkeyPatch):
    """The two programs of `replicas.fit`, with the arguments that they are called with."""
    model, _ = network(name)
    programs: list[set[str]] = []
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
            list(jax.random.split(KEY, 2)),
            model,
            optax.adam(1e-3),
            IMAGES,
            [np.arange(4), np.arange(3)],
            [np.array([0, 1, 2, 0]), np.array([0, 1, 2])],
            config=training.FitConfig(batch_size=4, epochs=0, min_steps=1, check_every=1),
            capacity=4,
            width=2,
        )
    assert programs == [set(), {"HIGHEST"}]


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
    keys = jax.random.split(KEY, 3)
    assert lowered(scores, shared, keys, np.stack([IMAGES] * 3)) == {"HIGHEST"}


@pytest.mark.parametrize("name", ["bald", "batch_bald", "kmeans"])
def test_rounds_on_frozen_features(name: str):
    """A whole run, its head and its posterior; a round of it where the strategy is a host's."""
    config = frozen_features.FrozenConfig(num_samples=2, pool_size=6)
    shape = frozen_features._Shape(config, 3, 6, 1)
    keys = protocol.Keys(*[jnp.stack([jax.random.PRNGKey(i)] * 3) for i in range(6)])
    data = frozen_features._Data(jnp.zeros((12, 5)), jnp.zeros(12, jnp.int32), jnp.arange(9, 12))
    plan = frozen_features._Plan(jnp.arange(9), jnp.arange(0), keys)
    strategy = af.make_strategy(name)
    arguments = data, plan, jnp.zeros(5, jnp.int32), jnp.int32(3)
    if strategy.host:
        prepare = functools.partial(frozen_features._prepare_jitted, strategy, shape)
        assert lowered(prepare, *arguments, jnp.int32(0)) == {"HIGHEST"}
    else:
        rounds = functools.partial(frozen_features._rounds, strategy, shape)
        assert lowered(rounds, *arguments) == {"HIGHEST"}


def test_hoisting():
    """Both parts keep the precision that they were traced with."""

    @precision.full_precision
    def run(draws: Any, shared: Any) -> Any:
        return map_draws(lambda draw, shared: (shared @ shared) @ draw, draws, shared)

    assert lowered(run, jnp.zeros((3, 4, 4)), jnp.zeros((4, 4))) == {"HIGHEST"}
