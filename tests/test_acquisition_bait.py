"""BAIT against its definition: full matrices, one trace for each possible change."""

import functools
import sys
from typing import Any

import jax
import numpy as np
import pytest

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning.acquisition_functions.bait import _projection
from bayesian_active_learning.types import Candidates, Strategy

KEY = jax.random.key(0)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def pool(
    seed: int,
    n: int = 9,
    num_features: int = 3,
    num_classes: int = 3,
    num_labelled: int = 2,
    scale: float = 3.0,
    sharpness: float = 1.0,
    mask: Any = None,
) -> Candidates:
    generator = np.random.default_rng(seed)

    def features(count: int) -> np.ndarray:
        return (scale * generator.normal(size=(count, num_features))).astype(np.float32)

    def predictions(count: int) -> np.ndarray:
        logits = sharpness * generator.normal(size=(count, num_classes))
        return log_softmax(logits).astype(np.float32)

    return Candidates(
        rows=np.arange(100, 100 + n, dtype=np.int32),
        mask=np.ones(n, bool) if mask is None else np.asarray(mask),
        features=features(n),
        predictions=predictions(n),
        labelled_features=features(4),
        labelled_predictions=predictions(4),
        labelled_mask=np.arange(4) < num_labelled,
    )


@functools.cache
def compiled(strategy: Strategy) -> Any:
    return jax.jit(strategy.select, static_argnames="batch_size")


def select(spec: str, candidates: Candidates, batch_size: int, key: Any = KEY) -> Any:
    selection = compiled(af.make_strategy(spec))(key, candidates, batch_size=batch_size)
    return jax.tree.map(np.asarray, selection)


def fisher(log_probs: np.ndarray, features: np.ndarray, outcomes: int = 99) -> np.ndarray:
    """Covariance of the gradient, over the outcomes of the label that are told apart."""
    probs = np.exp(log_probs.astype(np.float64))
    probs = probs / probs.sum()
    order = np.argsort(-probs)
    groups = [[c] for c in order[: outcomes - 1]] + [list(order[outcomes - 1 :])]
    total = np.zeros((len(probs), len(probs)))
    for group in groups:
        weight = probs[group].sum()
        if group and weight:
            inside = np.zeros(len(probs))
            inside[group] = probs[group] / weight
            total += weight * np.outer(inside - probs, inside - probs)
    features = features.astype(np.float64)
    return np.kron(total, np.outer(features, features))


def by_definition(
    candidates: Candidates,
    batch_size: int,
    ridge: float = 1.0,
    oversample: float = 2.0,
    outcomes: int = 99,
) -> tuple[list[int], list[float]]:
    inside = [i for i in range(len(candidates.rows)) if candidates.mask[i]]
    full = {i: fisher(candidates.predictions[i], candidates.features[i]) for i in inside}
    each = {i: fisher(candidates.predictions[i], candidates.features[i], outcomes) for i in inside}
    aim = sum(full.values()) / len(inside)
    start = ridge * np.eye(len(aim))
    for i in np.flatnonzero(candidates.labelled_mask):
        start = start + fisher(candidates.labelled_predictions[i], candidates.labelled_features[i])

    def trace(chosen: list[int]) -> float:
        return np.trace(np.linalg.inv(start + sum(each[i] for i in chosen)) @ aim)

    picks: list[int] = []
    gains: dict[int, float] = {}
    for _ in range(min(int(np.ceil(oversample * batch_size)), len(inside))):
        traces = {i: trace([*picks, i]) for i in inside if i not in picks}
        best = min(traces, key=lambda i: traces[i])
        gains[best] = trace(picks) - traces[best]
        picks.append(best)
    while len(picks) > min(batch_size, len(inside)):
        traces = {i: trace([j for j in picks if j != i]) for i in picks}
        picks.remove(min(traces, key=lambda i: traces[i]))
    return picks, [gains[i] for i in picks]


@pytest.mark.parametrize("num_labelled", [0, 2])
def test_forward_and_backward_equal_the_definition(num_labelled: int) -> None:
    pruned = 0
    for seed in range(8):
        candidates = pool(seed, num_labelled=num_labelled, mask=np.arange(9) != seed)
        picks, gains = by_definition(candidates, 3)
        selection = select("bait", candidates, 3)
        assert selection.positions.tolist() == picks
        np.testing.assert_allclose(selection.scores, gains, rtol=2e-4)
        assert selection.valid.all() and not selection.filler.any()
        pruned += picks != by_definition(candidates, 3, oversample=1.0)[0]
    assert pruned  # looking back does change the batch


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("oversample=1", {"oversample": 1.0}),
        ("oversample=1.5,ridge=0.1", {"oversample": 1.5, "ridge": 0.1}),
        ("outcomes=3", {"outcomes": 3}),
    ],
)
def test_options_equal_the_definition(spec: str, options: dict[str, Any]) -> None:
    changed = 0
    for seed in range(8):
        candidates = pool(seed, num_classes=5, num_labelled=0)
        picks, gains = by_definition(candidates, 3, **options)
        selection = select(f"bait:{spec}", candidates, 3)
        assert selection.positions.tolist() == picks
        np.testing.assert_allclose(selection.scores, gains, rtol=1e-3)
        changed += picks != by_definition(candidates, 3)[0]
    assert changed


def test_candidates_in_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["bayesian_active_learning.acquisition_functions.bait"]
    monkeypatch.setattr(module, "_CHUNK", 100)
    candidates = pool(5)
    run = jax.jit(af.bait().select, static_argnames="batch_size")
    selection = run(KEY, candidates, batch_size=3)
    picks, gains = by_definition(candidates, 3)
    assert selection.positions.tolist() == picks
    np.testing.assert_allclose(selection.scores, gains, rtol=2e-4)


@pytest.mark.parametrize(("scale", "sharpness"), [(100.0, 1.0), (10.0, 8.0), (0.01, 1.0)])
def test_large_features_and_sure_predictions(scale: float, sharpness: float) -> None:
    for seed in range(3):
        candidates = pool(seed, scale=scale, sharpness=sharpness)
        picks, gains = by_definition(candidates, 3)
        selection = select("bait", candidates, 3)
        assert selection.positions.tolist() == picks
        np.testing.assert_allclose(selection.scores, gains, rtol=5e-3)


def test_float64_is_precise() -> None:
    with jax.enable_x64(True):
        candidates = pool(1)
        candidates = candidates._replace(
            **{
                name: np.asarray(value, np.float64)
                for name, value in candidates._asdict().items()
                if value is not None and value.dtype == np.float32
            }
        )
        picks, gains = by_definition(candidates, 3)
        selection = select("bait", candidates, 3)
    assert selection.positions.tolist() == picks
    np.testing.assert_allclose(selection.scores, gains, rtol=1e-6)


def test_looks_where_the_pool_is_not_where_it_is_least_sure() -> None:
    """Seven of nine candidates lie along one axis, the two least sure along the other."""
    features = np.zeros((9, 3), np.float32)
    features[:7, 0] = 1.0
    features[3, 0] = 1.5
    features[7:, 1] = 1.0
    sure = np.array([0.6, 0.3, 0.1], np.float32)
    predictions = np.log(np.where(np.arange(9)[:, None] < 7, sure, 1 / 3)).astype(np.float32)
    candidates = pool(0, num_labelled=0)._replace(features=features, predictions=predictions)
    assert select("bait", candidates, 3).positions[0] == 3
    entropy = af.max_entropy(predictions[:, None])
    assert set(np.argsort(-np.asarray(entropy))[:2].tolist()) == {7, 8}


def test_what_is_certain_teaches_nothing() -> None:
    certain = np.where(np.eye(3)[np.zeros(9, int)] > 0, 0.0, -np.inf).astype(np.float32)
    candidates = pool(0)._replace(predictions=certain)
    selection = select("bait", candidates, 3)
    assert selection.positions.tolist() == [0, 1, 2]  # ties: the lower position
    assert selection.scores.tolist() == [0, 0, 0]


def test_a_bad_row_is_picked_to_be_refused() -> None:
    for field, bad in (("features", np.nan), ("predictions", np.nan), ("predictions", -np.inf)):
        candidates = pool(0)
        values = getattr(candidates, field).copy()
        values[7] = bad
        selection = select("bait", candidates._replace(**{field: values}), 3)
        with pytest.raises(ValueError, match="the scores of rows 107 are NaN or infinite"):
            af.acquire(selection, candidates)
    spoilt = candidates.labelled_features.copy()
    spoilt[1] = np.inf
    selection = select("bait", candidates._replace(labelled_features=spoilt), 3)
    with pytest.raises(ValueError, match="the scores of rows 100, 101, 102 are NaN"):
        af.acquire(selection, candidates)


# the sketch


def test_a_sketch_is_bait_on_projected_features() -> None:
    candidates = pool(3, num_features=8)
    expected = []
    for seed in (0, 1):
        projection = np.asarray(_projection(jax.random.key(seed), 8, 2, np.dtype(np.float32)))
        narrow = candidates._replace(
            features=candidates.features @ projection,
            labelled_features=candidates.labelled_features @ projection,
        )
        picks, gains = by_definition(narrow, 3)
        selection = select("bait:dimensions=2", candidates, 3, jax.random.key(seed))
        assert selection.positions.tolist() == picks
        np.testing.assert_allclose(selection.scores, gains, rtol=1e-3)
        expected.append(gains)
    assert not np.allclose(*expected, rtol=1e-2)


def test_a_sketch_keeps_squared_lengths_on_average() -> None:
    points = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    keys = jax.random.split(KEY, 500)
    maps = jax.vmap(lambda key: _projection(key, 8, 2, points.dtype))(keys)
    lengths = np.square(points @ np.asarray(maps)).sum(axis=-1).mean(axis=0)
    np.testing.assert_allclose(lengths, np.square(points).sum(axis=1), rtol=0.15)


def test_no_sketch_where_there_are_no_more_dimensions() -> None:
    candidates = pool(2, num_features=2)
    first, second = (
        select("bait:dimensions=2", candidates, 3, jax.random.key(seed)) for seed in (0, 1)
    )
    np.testing.assert_array_equal(first.scores, second.scores)
    assert first.positions.tolist() == by_definition(candidates, 3)[0]


# refusals


def test_refuses_what_does_not_fit() -> None:
    shape = jax.ShapeDtypeStruct
    n, num_labelled, num_features, num_classes = 1000, 20, 512, 100
    candidates = Candidates(
        rows=shape((n,), np.int32),
        mask=shape((n,), bool),
        features=shape((n, num_features), np.float32),
        predictions=shape((n, num_classes), np.float32),
        labelled_features=shape((num_labelled, num_features), np.float32),
        labelled_predictions=shape((num_labelled, num_classes), np.float32),
        labelled_mask=shape((num_labelled,), bool),
    )

    def shapes(spec: str) -> Any:
        run = functools.partial(af.make_strategy(spec).select, batch_size=10)
        return jax.eval_shape(run, KEY, candidates)

    message = (
        "bait on 1000 candidates, 100 classes and 512 features takes about 6.3e.10 bytes, more "
        r"than max_bytes = 2e.09: project the features \(dimensions=...\), take a subset"
    )
    with pytest.raises(ValueError, match=message):
        shapes("bait")
    assert shapes("bait:dimensions=64").positions.shape == (10,)
    assert shapes("bait:max_bytes=1e11").positions.shape == (10,)


def test_refuses_shapes_that_do_not_fit() -> None:
    candidates = pool(0)
    with pytest.raises(
        ValueError, match=r"labelled_mask \[L\], got \[9, 3\], .*\[4, 2\], \[4, 3\]"
    ):
        af.bait().select(
            KEY,
            candidates._replace(labelled_features=candidates.labelled_features[:, :2]),
            batch_size=2,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ridge=0", "ridge must be positive, got 0.0"),
        ("oversample=0.9", "oversample must be at least 1, got 0.9"),
        ("oversample=inf", "oversample must be at least 1, got inf"),
        ("dimensions=-1", "dimensions must be 0 .no projection. or more, got -1"),
        ("outcomes=1", "outcomes must be at least 2, got 1"),
        ("max_bytes=-1", "max_bytes must be positive, got -1.0"),
    ],
)
def test_refuses_bad_options(options: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        af.make_strategy(f"bait:{options}")
