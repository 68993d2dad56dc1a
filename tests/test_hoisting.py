import collections
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesian_active_learning import models
from bayesian_active_learning.hoisting import map_draws
from bayesian_active_learning.utils import log_mean_exp

K = 5
DRAWS = np.random.default_rng(0).normal(size=(K, 3)).astype(np.float32)
SHARED = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
CONSTANT = np.arange(3, dtype=np.float32)


def nested_jit(draw: jax.Array, x: jax.Array) -> jax.Array:
    inner = jax.jit(lambda a, b: jnp.tanh(a @ a.T) + b.sum())
    return inner(x, draw) * jax.jit(jnp.sin)(x).sum()


def pytrees(draw: dict, shared: tuple) -> dict:
    weights, bias = shared
    return {"sum": draw["a"] + weights, "both": (draw["b"] * bias["x"], weights)}


def control_flow(draw: jax.Array, x: jax.Array) -> jax.Array:
    total = jax.lax.scan(lambda c, row: (c + row, None), jnp.zeros(3), x)[0]  # shared
    total = jax.lax.cond(draw[0] > 0, lambda: total, lambda: -total)
    return jax.lax.fori_loop(0, 3, lambda i, c: c + draw, total)


FUNCTIONS: dict[str, tuple[Callable, Any, tuple]] = {
    "plain": (lambda draw, x: jnp.tanh(x @ x.T) @ (x @ draw), DRAWS, (SHARED,)),
    "no shared part": (lambda draw: jnp.exp(draw).sum(), DRAWS, ()),
    "shared input unused": (lambda draw, x: draw * 2, DRAWS, (SHARED,)),
    "draw unused": (lambda draw, x: jnp.cos(x), DRAWS, (SHARED,)),
    "draw returned": (lambda draw, x: (draw, x, draw), DRAWS, (SHARED,)),
    "a constant": (lambda draw, x: jnp.zeros(2), DRAWS, (SHARED,)),
    "a literal": (lambda draw, x: 1.5, DRAWS, (SHARED,)),
    "closed over": (
        lambda draw, x: draw * CONSTANT + jnp.asarray(CONSTANT).sum(),
        DRAWS,
        (SHARED,),
    ),  # fmt: skip
    "several shared": (lambda draw, x, y: draw @ (x.T @ y), DRAWS, (SHARED, SHARED[::-1])),
    "nested jit": (nested_jit, DRAWS, (SHARED,)),
    "jitted itself": (jax.jit(nested_jit), DRAWS, (SHARED,)),
    "control flow": (control_flow, DRAWS, (SHARED,)),
    "pytrees": (
        pytrees,
        {"a": DRAWS[:, 0], "b": DRAWS},
        ((SHARED, {"x": CONSTANT}),),
    ),
    "keys": (
        lambda key, x: x * jax.random.bernoulli(key, 0.5, (4, 1)),
        jax.random.split(jax.random.key(0), K),
        (SHARED,),
    ),
    "old keys": (
        lambda key, x: x + jax.random.normal(key, (3,)),
        jax.random.split(jax.random.PRNGKey(0), K),
        (SHARED,),
    ),
    "integers": (lambda i, x: jnp.asarray(x)[i], np.arange(K, dtype=np.int32) % 4, (SHARED,)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("jit", [False, True], ids=["plain", "jit"])
def test_equals_vmap(name: str, jit: bool):
    function, draws, shared = FUNCTIONS[name]

    def mapped(draws, *shared):
        return map_draws(function, draws, *shared)

    expected = jax.vmap(function, (0, *(None for _ in shared)), axis_size=K)(draws, *shared)
    found = (jax.jit(mapped) if jit else mapped)(draws, *shared)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_gradients_pass_through():
    function = FUNCTIONS["plain"][0]

    def loss(mapped: Callable, x: jax.Array) -> jax.Array:
        return jnp.square(mapped(function, x)).sum()

    ours = jax.grad(lambda x: loss(lambda f, x: map_draws(f, DRAWS, x), x))(SHARED)
    theirs = jax.grad(lambda x: loss(lambda f, x: jax.vmap(f, (0, None))(DRAWS, x), x))(SHARED)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


# What is shared really runs once.


def count_runs(counts: collections.Counter, name: str, x: jax.Array) -> jax.Array:
    def count(value):
        counts[name] += 1
        return value

    return jax.pure_callback(count, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@pytest.mark.parametrize("num_draws", [1, 50])
def test_the_shared_part_is_executed_once(num_draws: int):
    counts: collections.Counter = collections.Counter()

    def function(draw: jax.Array, x: jax.Array) -> jax.Array:
        shared = count_runs(counts, "shared", jnp.sin(x))
        return count_runs(counts, "each", shared * draw)

    draws = jnp.arange(1.0, num_draws + 1)
    found = jax.jit(lambda d, x: map_draws(function, d, x))(draws, SHARED).block_until_ready()
    assert counts == {"shared": 1, "each": num_draws}
    np.testing.assert_allclose(found, draws[:, None, None] * np.sin(SHARED), rtol=1e-5)


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a program, those inside loops and calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            if hasattr(inner, "eqns"):
                yield from equations(getattr(inner, "jaxpr", inner))


def names(jaxpr: Any) -> set[str]:
    return {equation.primitive.name for equation in equations(jaxpr)}


@pytest.mark.parametrize("batch", [3, 70])
def test_the_loop_over_samples_holds_no_convolution(batch: int):
    model = models.convnet(10)
    x = jnp.zeros((batch, 8, 8, 1))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    keys = jax.random.split(jax.random.key(0), 50)

    def network(key, variables, x):
        return model.apply(variables, key, x, mode="sample")[0].logits

    program = jax.make_jaxpr(lambda k, v, x: map_draws(network, k, v, x))(keys, variables, x)
    assert "conv_general_dilated" in names(program.jaxpr)
    (loop,) = (
        equation
        for equation in program.jaxpr.eqns
        if equation.primitive.name == "scan"
        and "random_bits" in names(equation.params["jaxpr"].jaxpr)
    )
    assert loop.params["length"] == 5  # ten samples at a time
    inside = names(loop.params["jaxpr"].jaxpr)
    assert "dot_general" in inside and "random_bits" in inside
    assert "conv_general_dilated" not in inside and "reduce_max" not in inside
    dense = [
        equation.outvars[0].aval.shape
        for equation in equations(loop.params["jaxpr"].jaxpr)
        if equation.primitive.name == "dot_general"
    ]
    # The dense layers: what a sample keeps of its 128 units, for three numbers of them, and all.
    widths = {size for shape in dense if len(shape) == 2 for size in shape} - {batch}
    assert widths == {64, 72, 88, 128, 10}


@jax.custom_batching.custom_vmap
def several(draw: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.sin(draw) * x


@several.def_vmap
def _(axis_size: int, in_batched: list, draws: jax.Array, x: jax.Array) -> tuple:
    assert in_batched == [True, False]
    seen.append(axis_size)
    return jnp.sin(draws)[:, None] * x, True


seen: list[int] = []


@pytest.mark.parametrize(
    "num_draws, at_a_time", [(1, {1}), (7, {7}), (10, {10}), (45, {9}), (100, {10}), (23, {10, 3})]
)
def test_draws_go_together_where_there_is_a_rule_for_it(num_draws: int, at_a_time: set):
    draws, x = jnp.arange(1.0, num_draws + 1), jnp.arange(3.0)
    seen.clear()
    found = map_draws(lambda draw, x: several(draw, x) + draw, draws, x)
    assert {*seen} == at_a_time - {1}
    np.testing.assert_allclose(found, jnp.sin(draws)[:, None] * x + draws[:, None], rtol=1e-6)


@pytest.mark.parametrize("why", ["loop", "convolution", "memory"])
def test_draws_go_one_by_one_or_few_at_a_time_where_several_are_slower(why: str):
    def function(draw: jax.Array, x: jax.Array) -> jax.Array:
        found = several(draw, x)
        if why == "loop":
            return jax.lax.fori_loop(0, jnp.int32(draw), lambda _, total: total + draw, found)
        if why == "convolution":
            return found + jnp.convolve(x * draw, jnp.ones(1), mode="same")
        return found + jnp.sum(jnp.broadcast_to(draw, (2**21,)))  # 8 MiB a draw: 8 draws

    seen.clear()
    jax.eval_shape(lambda d, x: map_draws(function, d, x), jnp.ones(32), jnp.ones(3))
    assert seen == ([8] if why == "memory" else [])


def test_the_loop_over_samples_holds_one_of_two_convolutions_when_channels_drop():
    model = models.batchbald_convnet(10)
    x = jnp.zeros((70, 16, 16, 1))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    keys = jax.random.split(jax.random.key(0), 50)

    def network(key, variables, x):
        return model.apply(variables, key, x, mode="sample")[0].logits

    program = jax.make_jaxpr(lambda k, v, x: map_draws(network, k, v, x))(keys, variables, x)
    (loop,) = (
        equation
        for equation in program.jaxpr.eqns
        if equation.primitive.name == "scan" and equation.params["length"] == 50
    )
    shapes = {
        equation.invars[1].aval.shape
        for equation in equations(loop.params["jaxpr"].jaxpr)
        if equation.primitive.name == "conv_general_dilated"
    }
    assert shapes == {(5, 5, 32, 64)}


def test_memory_holds_the_activations_of_one_sample():
    def function(draw: jax.Array, x: jax.Array) -> jax.Array:
        return log_mean_exp(jnp.sin(x * draw), axis=0)

    def temporaries(num_draws: int) -> int:
        draws, x = jnp.ones(num_draws), jnp.ones((4096, 8))
        compiled = jax.jit(lambda d, x: map_draws(function, d, x)).lower(draws, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(64) < 2 * temporaries(2) + 64 * 8 * 4
