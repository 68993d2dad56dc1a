"""k-means++ seeding, BADGE and uncertainty-weighted embeddings, against explicit embeddings,
analytic pick probabilities and plain loops in float64."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning.acquisition_functions.distances import squared_to_one
from bayesian_active_learning.acquisition_functions.seeding import (
    residuals,
    squared_outer_to_one,
)
from bayesian_active_learning.types import Candidates, Selection


def pool(features: Any, predictions: Any = None, mask: Any = None, **fields: Any) -> Candidates:
    """Candidates from features and class probabilities, one-dimensional features too."""
    features = np.asarray(features, np.float32)
    return Candidates(
        rows=np.arange(100, 100 + len(features), dtype=np.int32),
        mask=np.ones(len(features), bool) if mask is None else np.asarray(mask),
        features=features.reshape(len(features), -1),
        predictions=None if predictions is None else log(predictions),
        **fields,
    )


def log(probs: Any) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(probs, np.float32))


def random_probs(generator: np.random.Generator, n: int, num_classes: int) -> np.ndarray:
    logits = 2 * generator.normal(size=(n, num_classes))
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def explicit_embeddings(candidates: Candidates) -> np.ndarray:
    """`[N, C * D]` in float64: one block for each class, predicted or not."""
    rows = []
    for log_probs, z in zip(candidates.predictions, candidates.features, strict=True):
        p = np.exp(np.asarray(log_probs, np.float64))
        predicted = p.tolist().index(max(p))
        blocks = [(p[c] - (c == predicted)) * np.asarray(z, np.float64) for c in range(len(p))]
        rows.append(np.concatenate(blocks))
    return np.array(rows)


@functools.cache
def compiled(spec: str) -> Any:
    return jax.jit(af.make_strategy(spec).select, static_argnames="batch_size")


def run(
    spec: str, candidates: Candidates, batch_size: int, seed: int = 0
) -> tuple[list[int], np.ndarray, Selection]:
    """Positions and scores of the valid picks, and the whole selection."""
    selection = compiled(spec)(jax.random.key(seed), candidates, batch_size=batch_size)
    af.acquire(selection, candidates)
    valid = np.asarray(selection.valid)
    return (
        np.asarray(selection.positions)[valid].tolist(),
        np.asarray(selection.scores)[valid],
        selection,
    )


def many(spec: str, candidates: Candidates, batch_size: int, draws: int) -> Selection:
    """`[draws, B]` selections, each with a key of its own."""
    select = af.make_strategy(spec).select
    keys = jax.random.split(jax.random.key(1), draws)
    return jax.jit(jax.vmap(lambda key: select(key, candidates, batch_size=batch_size)))(keys)


def check_frequencies(positions: Any, probabilities: dict[tuple[int, ...], float]) -> None:
    """Chi-square of ordered picks against their probabilities, one in a thousand."""
    draws = [tuple(row) for row in np.asarray(positions).tolist()]
    assert set(draws) <= set(probabilities)
    assert sum(probabilities.values()) == pytest.approx(1)
    observed = [draws.count(picks) for picks in probabilities]
    expected = [len(draws) * probability for probability in probabilities.values()]
    assert min(expected) >= 5
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def d2_probabilities(
    points: Any, batch_size: int, first: dict[int, float]
) -> dict[tuple[int, ...], float]:
    """Of every ordered set of picks that can be, by the definition of k-means++."""
    points = np.asarray(points, np.float64).reshape(len(points), -1)
    found = {(i,): probability for i, probability in first.items()}
    for _ in range(batch_size - 1):
        longer = {}
        for picks, probability in found.items():
            mass = [min(sum((x - points[j]) ** 2) for j in picks) for x in points]
            for i in np.flatnonzero(mass):
                longer[*picks, int(i)] = probability * mass[i] / sum(mass)
        found = longer
    return found


# kmeans_pp


def test_kmeans_pp_pick_probabilities() -> None:
    """The fourth is masked out, and its features must not count."""
    features = [[0, 0], [2, 0], [0, 3], [np.nan, 9], [-2, -2]]
    mask = np.array([True, True, True, False, True])
    selection = many("kmeans_pp", pool(features, mask=mask), 3, 6000)
    shown = {0: 0, 1: 1, 2: 2, 4: 3}
    picks = [[shown[i] for i in row] for row in np.asarray(selection.positions).tolist()]
    points = np.asarray(features)[mask]
    check_frequencies(picks, d2_probabilities(points, 3, dict.fromkeys(range(4), 1 / 4)))
    assert not np.asarray(selection.filler).any()


def test_kmeans_pp_from_the_longest() -> None:
    features = [[0, 0], [2, 0], [0, 3], [1, 1]]
    selection = many("kmeans_pp:first=max_norm", pool(features), 2, 2000)
    check_frequencies(selection.positions, d2_probabilities(features, 2, {2: 1.0}))
    np.testing.assert_allclose(np.asarray(selection.scores)[:, 0], 3)


def test_kmeans_pp_reports_distances() -> None:
    features = np.random.default_rng(0).normal(size=(8, 3)) + 100
    positions, scores, _ = run("kmeans_pp", pool(features), 8)
    points = np.float32(features)[positions]
    expected = [
        min(math.dist(points[i].tolist(), points[j].tolist()) for j in range(i))
        for i in range(1, 8)
    ]
    np.testing.assert_allclose(scores, [0, *expected], rtol=1e-5)


def test_kmeans_pp_takes_equals_last_and_at_random() -> None:
    """Two places, four candidates each: top-k by any score may take one place only."""
    features = np.repeat([[1000.1, 3.3], [-5.7, 0.1]], 4, axis=0)
    selection = many("kmeans_pp", pool(features), 4, 200)
    positions = np.asarray(selection.positions)
    assert ((positions[:, 0] < 4) != (positions[:, 1] < 4)).all()
    assert (np.asarray(selection.filler) == [False, False, True, True]).all()
    assert set(positions[:, 2].tolist()) == set(range(8))


# badge


def test_badge_by_hand() -> None:
    """Two uncertain places and a certain candidate far away: a batch of two takes both places,
    where the ranking by uncertainty takes one of them twice and k-means++ of features the far
    one."""
    features = np.repeat([[0, 8], [0, -7.5], [90, 90]], [20, 20, 1], axis=0)
    probs = np.repeat([[0.49, 0.51, 0], [0.48, 0.52, 0], [1, 0, 0]], [20, 20, 1], axis=0)
    candidates = pool(features, probs)
    for seed in range(5):
        positions, scores, _ = run("badge", candidates, 2, seed)
        assert positions[0] == 0 and positions[1] in range(20, 40)
        expected = [8 * 0.49 * math.sqrt(2), (8 * 0.49 + 7.5 * 0.48) * math.sqrt(2)]
        np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert run("kmeans_pp:first=max_norm", candidates, 2)[0][0] == 40


def test_outer_distances_against_explicit_ones() -> None:
    generator = np.random.default_rng(1)
    with jax.enable_x64(True):
        a, z = generator.normal(size=(9, 4)), generator.normal(size=(9, 5))
        a[3], z[3] = a[7], z[7]
        a[4], z[4] = 2 * a[8], z[8] / 2  # another factorisation of the same product
        norms, other_norms = (a**2).sum(axis=1), (z**2).sum(axis=1)
        embeddings = np.einsum("nc,nd->ncd", a, z).reshape(9, 20)
        for j in range(9):
            found = squared_outer_to_one(
                squared_to_one(jnp.asarray(a), a[j]),
                squared_to_one(jnp.asarray(z), z[j]),
                jnp.asarray(norms),
                jnp.asarray(other_norms),
                jnp.asarray(norms[j]),
                jnp.asarray(other_norms[j]),
            )
            assert found.dtype == jnp.float64
            expected = ((embeddings - embeddings[j]) ** 2).sum(axis=1)
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
            assert found[j] == 0
            assert j not in (3, 7) or found[3] == found[7] == 0


def test_outer_distances_keep_their_digits_in_float32() -> None:
    """Pairs a thousandth apart; the expanded square has no correct digit there."""
    generator = np.random.default_rng(2)
    a, z = (
        (row + 1e-3 * generator.normal(size=(6, len(row)))).astype(np.float32)
        for row in generator.normal(size=(2, 16))
    )
    norms, other_norms = (np.sum(x * x, axis=1) for x in (a, z))
    found = squared_outer_to_one(
        squared_to_one(jnp.asarray(a), a[0]),
        squared_to_one(jnp.asarray(z), z[0]),
        jnp.asarray(norms),
        jnp.asarray(other_norms),
        jnp.asarray(norms[0]),
        jnp.asarray(other_norms[0]),
    )
    embeddings = np.einsum("nc,nd->ncd", np.float64(a), np.float64(z)).reshape(6, -1)
    expected = ((embeddings - embeddings[0]) ** 2).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=5e-3)


def test_residuals() -> None:
    probs = [[0.25, 0.25, 0.5], [0.5, 0.5, 0], [1, 0, 0]]
    expected = [[0.25, 0.25, -0.5], [-0.5, 0.5, 0], [0, 0, 0]]
    np.testing.assert_allclose(residuals(jnp.asarray(log(probs))), expected, atol=1e-7)
    nearly = residuals(jnp.array([[-1e-12, math.log(1e-12)]]))
    np.testing.assert_allclose(nearly, [[-1e-12, 1e-12]], rtol=1e-5)


def test_badge_is_kmeans_pp_of_explicit_embeddings() -> None:
    """With classes that are never predicted: they keep their blocks all the same."""
    for seed in range(3):
        generator = np.random.default_rng(seed)
        probs = random_probs(generator, 20, 7) * [1, 1, 1, 1, 1, 0.02, 0.02]
        probs /= probs.sum(axis=1, keepdims=True)
        assert len(set(probs.argmax(axis=1))) < 7
        mask = np.arange(20) % 5 != 0
        candidates = pool(generator.normal(size=(20, 3)), probs, mask)
        explicit = pool(explicit_embeddings(candidates), mask=mask)
        positions, scores, _ = run("badge", candidates, 8, seed)
        expected, distances, _ = run("kmeans_pp:first=max_norm", explicit, 8, seed)
        assert positions == expected
        np.testing.assert_allclose(scores, distances, rtol=1e-4)


def test_badge_pick_probabilities() -> None:
    generator = np.random.default_rng(3)
    candidates = pool(generator.normal(size=(4, 2)), random_probs(generator, 4, 3))
    embeddings = explicit_embeddings(candidates)
    longest = int(np.argmax((embeddings**2).sum(axis=1)))
    probabilities = d2_probabilities(embeddings, 2, {longest: 1.0})
    check_frequencies(many("badge", candidates, 2, 3000).positions, probabilities)


def test_badge_never_makes_the_embeddings() -> None:
    n, num_classes, width = 64, 100, 100
    size = jax.ShapeDtypeStruct
    candidates = Candidates(
        rows=size((n,), jnp.int32),
        mask=size((n,), bool),
        predictions=size((n, num_classes), jnp.float32),
        features=size((n, width), jnp.float32),
    )
    select = jax.jit(af.make_strategy("badge").select, static_argnames="batch_size")
    compiled = select.lower(jax.random.key(0), candidates, batch_size=10).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < n * num_classes * width * 4 / 8


def test_certain_predictions_are_filler() -> None:
    """Their gradients are 0, all of them equal."""
    candidates = pool([[1, 2], [3, 4], [5, 6]], [[1, 0], [0.5, 0.5], [0, 1]])
    positions, _, selection = run("badge", candidates, 3)
    assert positions[0] == 1
    assert np.asarray(selection.filler).tolist() == [False, False, True]


# uwe


def reference_uncertainty(name: str, probs: Any) -> float:
    ordered = sorted((float(p) for p in probs), reverse=True)
    if name == "max_entropy":
        return -sum(p * math.log(p) for p in ordered if p > 0)
    return {
        "margin_ratio": ordered[1] / ordered[0],
        "margin": 1 - (ordered[0] - ordered[1]),
        "least_confidence": 1 - ordered[0],
    }[name]


def reference_embeddings(name: str, probs: Any, features: Any, pool_probs: Any) -> np.ndarray:
    values = [reference_uncertainty(name, p) for p in pool_probs]
    low, high = min(values), max(values)
    scaled = [(reference_uncertainty(name, p) - low) / (high - low) for p in probs]
    return np.array([u * np.asarray(z, np.float64) for u, z in zip(scaled, features, strict=True)])


def reference_k_center(points: Any, centres: Any, batch_size: int) -> tuple[list[int], list[float]]:
    picks: list[int] = []
    scores: list[float] = []
    for _ in range(batch_size):
        known = [*centres, *(points[i] for i in picks)]
        value = {
            i: min(math.dist(x, c) for c in known) if known else math.hypot(*x)
            for i, x in enumerate(points)
            if i not in picks
        }
        picks.append(max(value, key=lambda i: value[i]))
        scores.append(value[picks[-1]])
    return picks, scores


def test_uwe_by_hand() -> None:
    """What is certain shrinks to the origin, wherever it is; one of each uncertain place."""
    candidates = pool([9, 8.9, -7, -6.9, 50], [[0.5, 0.5]] * 2 + [[0.45, 0.55]] * 2 + [[1, 0]])
    positions, scores, _ = run("uwe:uncertainty=least_confidence", candidates, 3)
    assert positions == [0, 2, 4]
    np.testing.assert_allclose(scores, [9, 9 + 6.3, 6.3], rtol=1e-6)


@pytest.mark.parametrize("name", ["max_entropy", "margin_ratio", "least_confidence", "margin"])
def test_uwe_against_loops(name: str) -> None:
    for seed in range(2):
        generator = np.random.default_rng(seed)
        features, probs = generator.normal(size=(12, 3)), random_probs(generator, 12, 4)
        mask = np.arange(12) < 10
        candidates = pool(features, np.where(mask[:, None], probs, np.nan), mask)
        points = reference_embeddings(name, probs[:10], features[:10], probs[:10])
        expected = reference_k_center(points, [], 6)
        positions, scores, _ = run(f"uwe:uncertainty={name}", candidates, 6)
        assert positions == expected[0]
        np.testing.assert_allclose(scores, expected[1], rtol=1e-4)


@pytest.mark.parametrize("num_labelled", [0, 3])
def test_uwe_with_labelled_centres(num_labelled: int) -> None:
    generator = np.random.default_rng(4)
    features, probs = generator.normal(size=(10, 3)), random_probs(generator, 10, 4)
    labelled, labelled_probs = generator.normal(size=(4, 3)), random_probs(generator, 4, 4)
    labelled_probs[0] = [0.999, 0.001, 0, 0]  # more certain than any candidate: below 0
    there = np.arange(4) < num_labelled
    candidates = pool(
        features,
        probs,
        labelled_features=np.where(there[:, None], labelled, np.nan).astype(np.float32),
        labelled_predictions=np.where(there[:, None], log(labelled_probs), np.nan),
        labelled_mask=there,
    )
    points, centres = (
        reference_embeddings("max_entropy", *each, probs)
        for each in ((probs, features), (labelled_probs[there], labelled[there]))
    )
    expected = reference_k_center(points, centres, 5)
    positions, scores, _ = run("uwe:selection=k_center_greedy", candidates, 5)
    assert positions == expected[0]
    np.testing.assert_allclose(scores, expected[1], rtol=1e-4)


def test_uwe_by_kmeans_pp() -> None:
    generator = np.random.default_rng(5)
    features, probs = generator.normal(size=(10, 3)), random_probs(generator, 10, 4)
    points = reference_embeddings("max_entropy", probs, features, probs)
    for seed in range(3):
        positions, _, _ = run("uwe:selection=kmeans_pp", pool(features, probs), 5, seed)
        assert positions == run("kmeans_pp:first=max_norm", pool(points), 5, seed)[0]


def test_uwe_of_equal_uncertainties_goes_by_features() -> None:
    positions, scores, _ = run("uwe", pool([3, -2, 1, 2.5], [[0.7, 0.3]] * 4), 3)
    assert positions == [0, 1, 2]
    np.testing.assert_allclose(scores, [3, 5, 2])


def test_uwe_needs_what_its_selection_needs() -> None:
    assert af.make_strategy("uwe").needs == {"predictions", "features"}
    assert af.make_strategy("uwe:selection=k_center_greedy").needs == {
        "predictions",
        "features",
        "labelled_predictions",
        "labelled_features",
        "labelled_mask",
    }


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("uwe:uncertainty=bald", "unknown uncertainty 'bald'; known: max_entropy, margin_ratio"),
        ("uwe:selection=none", "unknown selection 'none'; known: k_center_greedy_unlb"),
        ("kmeans_pp:first=mean", "unknown first 'mean'; known: uniform, max_norm"),
        ("badge:first=uniform", "unknown option 'first' of 'badge'; it has none"),
    ],
)
def test_refused_options(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        af.make_strategy(spec)


@pytest.mark.parametrize(
    "spec", ["uwe:selection=k_center_greedy", "uwe:selection=kmeans_pp", "kmeans_pp:first=max_norm"]
)
def test_options_keep_the_contract(spec: str) -> None:
    """The contract suite runs the defaults only."""
    generator = np.random.default_rng(6)
    probs = random_probs(generator, 9, 3)
    mask = np.arange(9) % 4 != 0
    candidates = pool(
        generator.normal(size=(9, 2)),
        probs,
        mask,
        labelled_features=generator.normal(size=(3, 2)),
        labelled_predictions=log(probs[:3]),
        labelled_mask=np.arange(3) < 2,
    )
    order = generator.permutation(9)
    fields = ("rows", "mask", "features", "predictions")
    shuffled = candidates._replace(
        **{field: np.asarray(getattr(candidates, field))[order] for field in fields}
    )
    found = []
    for each in (candidates, shuffled):
        positions, _, _ = run(spec, each, 20)
        assert len(positions) == 6 and np.asarray(each.mask)[positions].all()
        found.append(np.asarray(each.rows)[positions].tolist())
    assert found[0] == found[1]
