"""Programs of ours and of others: where convolutions may be plain ones."""

import contextlib
import subprocess
import sys
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesian_active_learning import compilation, models
from bayesian_active_learning.compilation import are_convolutions_plain, jit, plain_convolutions

ON_CPU = jax.default_backend() == "cpu"
on_cpu = pytest.mark.skipif(not ON_CPU, reason="about XLA:CPU")


def form(x: jax.Array) -> jax.Array:
    """1 where it is traced with plain convolutions, 2 elsewhere."""
    return x + (1 if are_convolutions_plain() else 2)


def test_programs_of_ours_are_traced_with_plain_convolutions_on_a_cpu():
    ours = 1 if ON_CPU else 2
    inner = jit(form)
    assert inner(0) == ours and inner(0) == ours
    assert jax.jit(inner)(0) == 2 and jax.jit(form)(0) == 2
    assert jax.vmap(inner)(jnp.zeros(2)).tolist() == [2, 2]
    assert jit(lambda x: inner(x))(0) == ours
    assert inner(0) == ours


def test_constants_inside_of_a_program():
    """Options of the compiler are refused there."""
    inner, x = jit(form), np.zeros(2, np.int32)
    assert jax.jit(lambda y: y + inner(x))(1).tolist() == [3, 3]
    total, _ = jax.lax.scan(lambda sum, _: (sum + inner(x), None), jnp.zeros(2, int), length=2)
    assert total.tolist() == [4, 4]
    assert jax.vmap(lambda y: y + inner(x))(jnp.ones(1, int)).tolist() == [[3, 3]]


def test_threads_have_programs_of_ours_too():
    inner, found = jit(form), []
    thread = threading.Thread(target=lambda: found.append(int(inner(0))))
    thread.start()
    thread.join()
    assert found == [1 if ON_CPU else 2]


def test_imported_inside_of_a_program():
    code = """
import jax
def function(x):
    from bayesian_active_learning import compilation
    return x
jax.jit(function)(1)
from bayesian_active_learning.compilation import are_convolutions_plain, jit
inner = jit(lambda x: x + (1 if are_convolutions_plain() else 2))
assert inner(0) == (1 if jax.default_backend() == "cpu" else 2), inner(0)
assert jax.jit(lambda y: inner(0) + y)(0) == 2
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_arguments_of_jit_are_passed_on(compilations: Any):
    def repeated(x: jax.Array, *, count: int) -> jax.Array:
        return jnp.tile(x, count)

    x = np.arange(3)
    function = jit(repeated, static_argnames="count")
    assert function(x, count=2).tolist() == [0, 1, 2, 0, 1, 2]
    before = compilations()
    assert function(x[::-1].copy(), count=2).shape == (6,)
    assert compilations() == before
    assert function.__name__ == "repeated"


def test_products_are_float32_ones():
    text = jax.jit(jit(lambda x: x @ x)).lower(jnp.ones((3, 3))).as_text()
    assert "HIGHEST" in text


@on_cpu
def test_networks_are_traced_anew_for_the_other_form():
    """Functions that JAX has traced before, such as the branches for platforms, among them."""
    model, images = models.convnet(3), jnp.zeros((30, 10, 10, 1))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def lowered(plain: bool) -> str:
        def apply(variables: Any) -> jax.Array:
            return model.apply(variables, None, images, mode="mean")[0].logits

        with plain_convolutions() if plain else contextlib.nullcontext():
            return jax.jit(apply).lower(variables).as_text()

    texts = [lowered(plain) for plain in (True, False, True)]
    padded = ["pad = [[2, 2], [0, 0]]" in text for text in texts]
    assert padded == [False, True, False]


@on_cpu
def test_an_option_that_the_compiler_does_not_know_is_done_without(
    monkeypatch: pytest.MonkeyPatch,
):
    assert compilation._has_option("cpu") and not compilation._has_option("gpu")
    with monkeypatch.context() as patch:
        patch.setattr(compilation, "_EIGEN", {"xla_cpu_no_such_option": "1"})
        patch.setattr(compilation, "_has_option", compilation._has_option.__wrapped__)
        assert not compilation._has_option("cpu")
        assert jit(form)(0) == 2
    assert jit(form)(0) == 1


@on_cpu
def test_both_forms_of_a_network_agree():
    model = models.convnet(3)
    generator = np.random.default_rng(0)
    images = generator.normal(size=(25, 12, 12, 1)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])

    def loss(variables: Any) -> jax.Array:
        logits = model.apply(variables, jax.random.key(1), images, mode="train")[0].logits
        return -jax.nn.log_softmax(logits)[:, 0].mean()

    found, expected = (j(jax.value_and_grad(loss))(variables) for j in (jit, jax.jit))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6 * max(1, np.abs(theirs).max()))


LATE = """
import haiku  # which has JAX compile again itself, with jax 0.12
import jax
count = [0]
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: count.append(event.endswith("backend_compile_duration"))
)
double = jax.jit(lambda x: 2 * x)
double(1.0)
before = sum(count)
from bayesian_active_learning import inference, models, training
double(2.0)
assert sum(count) == before == 1, (before, count)
"""


def test_what_was_compiled_before_we_were_imported_is_not_compiled_again():
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
