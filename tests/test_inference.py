import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesian_active_learning import acquisition_functions as af
from bayesian_active_learning import inference, models
from bayesian_active_learning.types import Model, Outputs, Posterior, Variables
from bayesian_active_learning.utils import log_mean_exp

KEY = jax.random.key(3)
N, K, C = 110, 4, 3
SOURCE = np.random.default_rng(0).normal(size=(200, 8, 8, 1)).astype(np.float32)
ROWS = np.random.default_rng(1).permutation(200)[:N]
SCORES = (af.bald, af.max_entropy, af.variation_ratios, af.mean_std)


@functools.cache
def setup(name: str) -> tuple[Model, Variables]:
    model = models.MODELS[name](C)
    like = jax.eval_shape(model.init, KEY, jnp.zeros((1, 8, 8, 1)))
    generator = np.random.default_rng(2)
    values = jax.tree.map(lambda x: 0.2 * generator.normal(size=x.shape).astype(x.dtype), like)
    return model, jax.tree.map(jnp.asarray, values)


def posterior(name: str = "mlp") -> Posterior:
    return inference.mc_dropout(*setup(name))


@functools.cache
def dense(name: str = "mlp") -> np.ndarray:
    """`[N, K, C]` by an explicit loop over the keys, all rows at once."""
    model, variables = setup(name)
    network = jax.jit(
        lambda key: model.apply(variables, key, SOURCE[ROWS], mode="sample")[0].logits
    )
    logits = np.stack([network(key) for key in jax.random.split(KEY, K)], 1).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def score(rows: Any = ROWS, chunk_size: int = 100, name: str = "mlp", **changes) -> tuple:
    arguments = {"scores": SCORES, "num_samples": K, "chunk_size": chunk_size} | changes
    return inference.score_pool(KEY, posterior(name), SOURCE, rows, **arguments)


def test_log_probs_are_those_of_an_explicit_loop_over_keys():
    found = inference.log_probs(KEY, posterior(), SOURCE, ROWS, num_samples=K, chunk_size=100)
    assert found.shape == (N, K, C) and found.dtype == np.float32
    np.testing.assert_allclose(found, dense(), atol=1e-5)
    assert np.abs(np.diff(found, axis=1)).max() > 1e-2


@pytest.mark.parametrize(
    "name, chunk_size", [("mlp", 1), ("mlp", 7), ("mlp", 100), ("mlp", N), ("mlp", 1000)]
    + [("convnet", 7), ("convnet", 100)],
)  # fmt: skip
def test_chunks_change_nothing(name: str, chunk_size: int):
    found = score(chunk_size=chunk_size, name=name)
    assert len(found) == len(SCORES)
    for ours, function in zip(found, SCORES):
        expected = np.asarray(function(dense(name)))
        assert ours.shape == (N,)
        np.testing.assert_allclose(ours, expected, atol=1e-5)
        assert np.array_equal(np.argsort(-ours)[:10], np.argsort(-expected)[:10])


def test_a_pool_in_another_order_gives_its_scores_in_that_order():
    order = np.random.default_rng(4).permutation(N)
    for ours, theirs in zip(score(ROWS[order]), score()):
        np.testing.assert_allclose(ours, theirs[order], atol=1e-5)
    for ours, theirs in zip(score(np.repeat(ROWS[:2], 60)), score()):
        np.testing.assert_allclose(ours, np.repeat(theirs[:2], 60), atol=1e-5)


def test_draws_belong_to_the_key():
    same, other = score(), inference.score_pool(
        jax.random.key(4), posterior(), SOURCE, ROWS, SCORES, num_samples=K, chunk_size=100
    )  # fmt: skip
    assert all(np.array_equal(a, b) for a, b in zip(same, score()))
    assert not any(np.allclose(a, b, atol=1e-4) for a, b in zip(same, other))


def test_predict_averages_probabilities_for_each_posterior():
    model, variables = setup("convnet")
    posteriors = [inference.mc_dropout(model, variables), inference.deterministic(model, variables)]
    found = inference.predict(KEY, posteriors, SOURCE, ROWS, num_samples=[K, 1], chunk_size=100)
    mean = jax.jit(lambda x: model.apply(variables, None, x, mode="mean")[0].logits)(SOURCE[ROWS])
    expected = log_mean_exp(dense("convnet"), axis=1), jax.nn.log_softmax(mean)
    for ours, theirs in zip(found, expected):
        assert ours.shape == (N, C)
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(np.exp(ours).sum(axis=1), 1, atol=1e-5)


def test_predict_takes_posteriors_of_one_size_and_of_one_sample():
    model, variables = setup("mlp")

    def predict(*num_samples: int) -> tuple[np.ndarray, ...]:
        posteriors = [posterior(), inference.mc_dropout(model, variables)]
        return inference.predict(
            KEY, posteriors, SOURCE, ROWS, num_samples=num_samples, chunk_size=100
        )

    (key,) = jax.random.split(KEY, 1)
    one = jax.jit(lambda x: model.apply(variables, key, x, mode="sample")[0].logits)(SOURCE[ROWS])
    for found in predict(K, K):
        np.testing.assert_allclose(found, log_mean_exp(dense(), axis=1), atol=1e-5, rtol=1e-5)
    for found in predict(1, 1):
        np.testing.assert_allclose(found, jax.nn.log_softmax(one), atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads the program for a CPU")
def test_posteriors_over_the_same_variables_share_the_convolutions(
    monkeypatch: pytest.MonkeyPatch,
):
    compiled: list[str] = []
    chunk = inference._chunk

    def spy(*arguments: Any) -> Any:
        whole = jax.jit(chunk, static_argnums=(0, 1, 2))
        compiled.append(whole.lower(*arguments).compile().as_text())
        return chunk(*arguments)

    monkeypatch.setattr(inference, "_chunk", spy)
    model, variables = setup("convnet")
    posteriors = [inference.mc_dropout(model, variables), inference.deterministic(model, variables)]
    for some in (posteriors, posteriors[:1]):
        inference.predict(KEY, some, SOURCE, ROWS, num_samples=[K, 1][: len(some)], chunk_size=N)
    both, one = (len(re.findall(r" convolution\(|\$conv", text)) for text in compiled)
    assert both == one > 0


def test_other_kinds_of_posterior():
    """An ensemble: draws are stacked variables, and nothing is shared."""
    model, _ = setup("mlp")
    generator = np.random.default_rng(5)
    stacked = jax.tree.map(
        lambda x: jnp.asarray(generator.normal(size=(K, *x.shape)), x.dtype), setup("mlp")[1]
    )
    ensemble = Posterior(
        draw=lambda shared, key, count: jax.tree.map(lambda x: x[:count], stacked),
        apply=lambda shared, draw, x: model.apply(draw, None, x, mode="mean")[0],
        shared=(),
    )
    found = inference.log_probs(KEY, ensemble, SOURCE, ROWS[:9], num_samples=K, chunk_size=5)
    for k in range(K):
        member = jax.tree.map(lambda x, k=k: x[k], stacked)
        logits = model.apply(member, None, SOURCE[ROWS[:9]], mode="mean")[0].logits
        np.testing.assert_allclose(found[:, k], jax.nn.log_softmax(logits), atol=1e-3, rtol=1e-4)


class Rows:
    """A source that only has what `Source` promises, and says what was read at once."""

    shape, dtype = SOURCE.shape, SOURCE.dtype

    def __init__(self) -> None:
        self.read: list[int] = []

    def __getitem__(self, rows: Any) -> np.ndarray:
        self.read.append(len(rows))
        return SOURCE[rows]


def counting(model: Model, counts: list[int]) -> Model:
    def apply(variables: Variables, key: Any, inputs: Any, *, mode: str) -> tuple[Outputs, Any]:
        counts.append(inputs.shape[0])
        return model.apply(variables, key, inputs, mode=mode)

    return Model(model.init, apply)


def test_one_compilation_serves_all_rounds_in_chunks_of_one_size():
    model, variables = setup("mlp")
    traces: list[int] = []
    shapes: list[tuple] = []
    counted = counting(model, traces)

    def entropy(log_probs: jax.Array) -> jax.Array:
        shapes.append(log_probs.shape)
        return af.max_entropy(log_probs)

    found = []
    for number, rows in enumerate((ROWS, ROWS[:80], ROWS[30:])):
        source = Rows()
        new = jax.tree.map(lambda x, n=number: x * (1 + n / 10), variables)
        found += inference.score_pool(
            jax.random.fold_in(KEY, number), inference.mc_dropout(counted, new), source, rows,
            [entropy], num_samples=K, chunk_size=50,
        )  # fmt: skip
        assert source.read == [50] * len(source.read) and len(source.read) == -(-len(rows) // 50)
    assert traces == [50]
    assert shapes == [(50, K, C)]  # never [N, K, C]
    assert [len(scores) for scores in found] == [110, 80, 80]
    assert not np.allclose(found[0][:80], found[1], atol=1e-3)  # the new variables count


def test_chunks_of_no_given_size_are_even(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inference, "_MOST_IN_A_CHUNK", 50)
    posterior = inference.mc_dropout(*setup("mlp"))
    for rows, sizes in ((ROWS, [42] * 3), (ROWS[:50], [50]), (ROWS[:51], [28] * 2)):
        source = Rows()
        inference.log_probs(KEY, posterior, source, rows, num_samples=2)
        assert source.read == sizes


REFUSALS: list[tuple[Callable, str]] = [
    (lambda: score(rows=[0, 200]), r"rows must lie in 0\.\.199, got 0\.\.200"),
    (lambda: score(rows=[5, -1]), r"rows must lie in 0\.\.199, got -1\.\.5"),
    (lambda: score(rows=np.zeros(0, np.int32)), "no rows were given"),
    (lambda: score(rows=[0.0, 1.0]), r"rows must be a list of integers, got float64 \(2,\)"),
    (lambda: score(rows=np.ones(200, bool)), r"rows must be a list of integers, got bool \(200,\)"),
    (lambda: score(rows=[[0, 1]]), r"rows must be a list of integers, got int64 \(1, 2\)"),
    (lambda: score(num_samples=0), "num_samples must be positive, got 0"),
    (lambda: score(num_samples=-3), "num_samples must be positive, got -3"),
    (lambda: score(chunk_size=0), "chunk_size must be positive, got 0"),
    (
        lambda: inference.log_probs(KEY, posterior(), SOURCE, [200], num_samples=K),
        r"rows must lie in 0\.\.199, got 200\.\.200",
    ),
    (
        lambda: inference.predict(KEY, [posterior()] * 2, SOURCE, ROWS, num_samples=[K, 0]),
        "num_samples must be positive, got 0",
    ),
    (
        lambda: inference.predict(KEY, [posterior()] * 2, SOURCE, ROWS, num_samples=[K, 3]),
        r"numbers of samples above 1 must agree, got \[4, 3\]",
    ),
]


@pytest.mark.parametrize("call, message", REFUSALS)
def test_refusals(call: Callable, message: str):
    with pytest.raises(ValueError, match=message):
        call()
