"""Strategies that cover the feature space: distances, k-center and its robust form, the centre
of gravity, nearest neighbours. References are plain loops in float64."""

import functools
import itertools
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning.acquisition_functions import distances, k_center_robust
from bayesian_active_learning.types import Candidates, Selection

METRICS = ("euclidean", "manhattan", "cosine")
each_metric = pytest.mark.parametrize("metric", METRICS)


def distance(metric: str, x: Any, y: Any) -> float:
    """One number at a time."""
    pairs = [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
    if metric == "euclidean":
        return math.sqrt(sum((a - b) ** 2 for a, b in pairs))
    if metric == "manhattan":
        return sum(abs(a - b) for a, b in pairs)
    lengths = [math.sqrt(sum(pair[side] ** 2 for pair in pairs)) for side in (0, 1)]
    if 0 in lengths:
        return float(lengths != [0, 0])
    return 1 - sum(a * b for a, b in pairs) / (lengths[0] * lengths[1])


def mean_point(metric: str, points: Any) -> list[float]:
    """The mean of all points, of unit vectors for cosine."""
    rows = [[float(value) for value in point] for point in points]
    if metric == "cosine":
        rows = [[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in rows]
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def distance_to_mean(metric: str, point: Any, mean: Any) -> float:
    if metric != "cosine":
        return distance(metric, point, mean)
    length = math.sqrt(sum(float(v) ** 2 for v in point))
    return sum((float(v) / length - m) ** 2 for v, m in zip(point, mean, strict=True)) / 2


def pool(
    features: Any, labelled: Any = (), mask: Any = None, num_padding: int = 2, **fields: Any
) -> Candidates:
    """Candidates and labelled features, one-dimensional ones too, with NaN for padding."""
    features = np.asarray(features, np.float32)
    features = features.reshape(len(features), -1)
    labelled = np.asarray(labelled, np.float32).reshape(-1, features.shape[1])
    padding = np.full((num_padding, features.shape[1]), np.nan, np.float32)
    return Candidates(
        rows=np.arange(100, 100 + len(features), dtype=np.int32),
        mask=np.ones(len(features), bool) if mask is None else np.asarray(mask),
        features=features,
        labelled_features=np.concatenate([labelled, padding]),
        labelled_mask=np.arange(len(labelled) + num_padding) < len(labelled),
        **fields,
    )


@functools.cache
def compiled(spec: str) -> Any:
    strategy = af.make_strategy(spec)
    if strategy.host:
        return strategy.select
    return jax.jit(strategy.select, static_argnames="batch_size")


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


def radius(features: Any, centres: Any, allowed: int = 0) -> float:
    """The euclidean radius that leaves `allowed` of the features uncovered."""
    nearest = sorted(min(distance("euclidean", x, c) for c in centres) for x in features)
    return nearest[len(nearest) - 1 - allowed]


def smallest_radius(features: Any, labelled: Any, batch_size: int, allowed: int = 0) -> float:
    return min(
        radius(features, [*labelled, *centres], allowed)
        for centres in itertools.combinations(features, batch_size)
    )


# distances


@each_metric
def test_distances_against_loops(metric: str) -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(7, 3)).astype(np.float32)
    features[2] = features[5] = 0
    mask = np.array([True] * 6 + [False])
    features[6] = np.nan
    points = distances.prepare_points(metric, jnp.asarray(features), mask)
    expected = [[distance(metric, x, y) for y in features[:6]] for x in features[:6]]
    np.testing.assert_allclose(
        distances.pairwise(metric, points, points)[:6, :6], expected, atol=1e-3
    )
    one_to_all = [distances.METRICS[metric].to_one(points, point)[:6] for point in points[:6]]
    np.testing.assert_allclose(one_to_all, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.diag(one_to_all), 0)
    assert not np.asarray(points[6]).any()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_cosine_is_a_distance_of_directions(scale: float) -> None:
    features = np.array([[1, 0], [3, 0], [1, 1], [0, 2], [-5, 0]]) * scale
    points = distances.prepare_points(
        "cosine", jnp.asarray(features, jnp.float32), np.ones(5, bool)
    )
    found = distances.METRICS["cosine"].to_one(points, points[0])
    np.testing.assert_allclose(found, [0, 0, 1 - math.sqrt(0.5), 1, 2], atol=1e-6)


@each_metric
def test_nearest_against_loops(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "_CHUNK", 4)  # several, of which the last are padding
    generator = np.random.default_rng(1)
    features, others = (generator.normal(size=(n, 3)).astype(np.float32) for n in (9, 21))
    features[3] = others[8]
    mask = (np.arange(21) < 13) & (np.arange(21) != 5)
    others[~mask] = np.nan
    points = distances.prepare_points(metric, jnp.asarray(features), np.ones(9, bool))
    centres = distances.prepare_points(metric, jnp.asarray(others), mask)
    nearest = jax.jit(functools.partial(distances.nearest, metric))
    found, position = nearest(points, centres, mask)
    expected = [
        min((distance(metric, x, others[j]), j) for j in np.flatnonzero(mask)) for x in features
    ]
    np.testing.assert_array_equal(position, [j for _, j in expected])
    np.testing.assert_allclose(found, [value for value, _ in expected], rtol=1e-5, atol=1e-6)
    assert found[3] == 0

    none, _ = nearest(points, centres, np.zeros(21, bool))
    assert (np.asarray(none) == np.inf).all()
    bad, _ = nearest(points, centres.at[2].set(jnp.nan), mask)
    assert np.isnan(bad).all()


@each_metric
def test_distances_far_from_the_origin_keep_their_digits(metric: str) -> None:
    """Neighbours 1/64 apart among features around 1,000: 7 digits are all there are."""
    generator = np.random.default_rng(2)
    features = (1000 + generator.integers(-640, 640, size=(6, 4)) / 64).astype(np.float32)
    others = features[::-1] + np.float32([1 / 64, 0, 0, 0])
    points, centres = (
        distances.prepare_points(metric, jnp.asarray(each), np.ones(6, bool))
        for each in (features, others)
    )
    nearest = jax.jit(functools.partial(distances.nearest, metric))
    found, position = nearest(points, centres, np.ones(6, bool))
    expected = [distance(metric, x, y) for x, y in zip(features, others[::-1], strict=True)]
    if metric != "cosine":  # their directions differ by less than float32 can say
        np.testing.assert_array_equal(position, np.arange(6)[::-1])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_memory_does_not_hold_all_pairs() -> None:
    n, size = 4000, jax.ShapeDtypeStruct
    rows, mask, features = size((n,), jnp.int32), size((n,), bool), size((n, 8), jnp.float32)
    candidates = Candidates(
        rows, mask, features=features, labelled_features=features, labelled_mask=mask
    )
    select = jax.jit(af.make_strategy("coreset").select, static_argnames="batch_size")
    compiled = select.lower(jax.random.key(0), candidates, batch_size=10).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < n * n * 4 / 8


# coreset


def reference_coreset(
    metric: str, features: Any, labelled: Any, batch_size: int, weights: Any = None
) -> tuple[list[int], list[float]]:
    weights = [1.0] * len(features) if weights is None else weights
    mean = mean_point(metric, features)
    picks: list[int] = []
    scores: list[float] = []
    for _ in range(batch_size):
        centres = [*labelled, *(features[i] for i in picks)]
        value = {
            i: float(weights[i])
            * (
                min(distance(metric, x, c) for c in centres)
                if centres
                else distance_to_mean(metric, x, mean)
            )
            for i, x in enumerate(features)
            if i not in picks
        }
        picks.append(max(value, key=lambda i: value[i]))
        scores.append(value[picks[-1]])
    return picks, scores


def test_coreset_by_hand() -> None:
    """The two farthest are neighbours: one label serves both."""
    candidates = pool([1, 10, 10.5, 6], labelled=[0])
    positions, scores, selection = run("coreset", candidates, 6)
    assert positions == [2, 3, 0, 1]
    np.testing.assert_allclose(scores, [10.5, 4.5, 1, 0.5])
    assert not np.asarray(selection.filler).any()


def test_coreset_starts_far_from_the_mean() -> None:
    positions, scores, _ = run("coreset", pool([5, 4, 6, 3, 12]), 2)
    assert positions == [4, 3]
    np.testing.assert_allclose(scores, [6, 9])


def test_equals_of_labelled_examples_come_last() -> None:
    features = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32) + 50
    positions, scores, _ = run("coreset", pool(features, labelled=features[:3]), 6)
    assert set(positions[:3]) == {3, 4, 5}
    np.testing.assert_array_equal(scores[3:], 0)


@each_metric
@pytest.mark.parametrize("num_labelled", [0, 3])
def test_coreset_against_loops(metric: str, num_labelled: int) -> None:
    for seed in range(3):
        generator = np.random.default_rng(seed)
        features = generator.normal(size=(14, 3)).astype(np.float32)
        labelled = generator.normal(size=(num_labelled, 3)).astype(np.float32)
        scores = generator.uniform(size=14).astype(np.float32)
        mask = np.arange(14) < 12
        candidates = pool(features, labelled, mask, 5 - num_labelled, scores=scores)
        for spec, weights in ((f"coreset:metric={metric}", None), ("weighted", scores)):
            spec = spec.replace("weighted", f"coreset:metric={metric},score=margin")
            expected = reference_coreset(metric, features[:12], labelled, 6, weights)
            positions, found, _ = run(spec, candidates, 6)
            assert positions == expected[0]
            np.testing.assert_allclose(found, expected[1], rtol=1e-4)


def test_coreset_is_within_twice_the_smallest_radius() -> None:
    ratios = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        features, labelled = generator.normal(size=(9, 2)), generator.normal(size=(1, 2))
        positions, _, _ = run("coreset", pool(features, labelled), 3)
        reached = radius(features, [*labelled, *features[positions]])
        ratios.append(reached / smallest_radius(features, labelled, 3))
    assert 1 - 1e-6 <= min(ratios) and max(ratios) <= 2
    assert max(ratios) > 1.01  # greedy it is, not the optimum


def test_coreset_weighted_by_a_score() -> None:
    strategy = af.make_strategy("coreset:score=max_entropy")
    assert strategy.score is af.max_entropy and "scores" in strategy.needs
    candidates = pool([10, 7, 1], labelled=[0], scores=np.float32([0.1, 1, 1]))
    positions, scores, _ = run("coreset:score=max_entropy", candidates, 2)
    assert positions == [1, 2]
    np.testing.assert_allclose(scores, [7, 1])
    assert run("coreset", candidates, 2)[0] == [0, 1]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("coreset:metric=chebyshev", "unknown metric 'chebyshev'; known: euclidean, manhattan"),
        ("coreset:score=bold", "unknown score 'bold'; known: bald"),
        ("cog:metric=l2", "unknown metric 'l2'"),
        ("coreset_robust:metric=l2", "unknown metric 'l2'"),
        ("coreset_robust:outliers=1", "outliers must be at least 0 and below 1, got 1.0"),
        ("coreset_robust:outliers=-0.1", "outliers must be at least 0 and below 1, got -0.1"),
        ("coreset_robust:tolerance=-1", "tolerance must be at least 0, got -1.0"),
        ("coreset_robust:tolerance=nan", "tolerance must be at least 0, got nan"),
        ("coreset_robust:time_limit=0", "time_limit must be positive, got 0.0"),
        ("knearest:neighbours=0", "neighbours must be positive, got 0"),
        ("knearest:metric=l2", "unknown metric 'l2'"),
        ("knearest:score=bold", "unknown score 'bold'"),
    ],
)
def test_refused_options(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        af.make_strategy(spec)


@pytest.mark.parametrize("name", ["coreset", "coreset_robust", "cog", "knearest"])
def test_refused_shapes(name: str) -> None:
    candidates = pool([1, 2], labelled=[0], labelled_scores=np.zeros(3))
    select = af.make_strategy(name).select
    for field, value, message in (
        (
            "labelled_features",
            np.zeros((3, 2)),
            r"labelled features of shape \[3, 1\], .* \[3, 2\]",
        ),
        ("labelled_mask", np.ones(2, bool), r"labelled features of shape \[2, 1\], .* \[3, 1\]"),
        ("features", np.zeros(2), r"(features \[N, D\] and a mask \[N\], got \[2\]|shape \[3\])"),
        ("labelled_features", None, "needs Candidates.labelled_features, got None"),
    ):
        with pytest.raises(ValueError, match=message):
            select(jax.random.key(0), candidates._replace(**{field: value}), batch_size=1)


# coreset_robust


def robust(outliers: float, tolerance: float = 0.0) -> str:
    return f"coreset_robust:outliers={outliers},tolerance={tolerance}"


def test_robust_leaves_the_outlier() -> None:
    candidates = pool([-1, 0, 1, 1000, 9, 10, 11.5])
    positions, scores, selection = run(robust(1 / 7), candidates, 2)
    assert positions == [1, 5]  # the first by its distance to the mean
    np.testing.assert_allclose(scores, [1030.5 / 7, 10], rtol=1e-6)
    assert not np.asarray(selection.filler).any()
    assert run("coreset", candidates, 2)[0][0] == 3
    assert 3 in run(robust(0), candidates, 2)[0]
    assert run("coreset_robust", candidates, 2)[0] == positions  # one at least
    masked = candidates._replace(mask=np.arange(7) != 3)
    assert sorted(run(robust(0), masked, 2)[0]) == [1, 5]


@pytest.mark.parametrize("num_labelled", [0, 2])
@pytest.mark.parametrize("allowed", [0, 2])
def test_robust_radius_is_the_smallest(num_labelled: int, allowed: int) -> None:
    for seed in range(3):
        generator = np.random.default_rng(seed)
        features = generator.normal(size=(9, 2)).astype(np.float32)
        labelled = generator.normal(size=(num_labelled, 2)).astype(np.float32)
        positions, _, _ = run(robust(allowed / 9), pool(features, labelled), 3)
        assert len(positions) == 3
        reached = radius(features, [*labelled, *features[positions]], allowed)
        assert reached <= smallest_radius(features, labelled, 3, allowed) + 1e-6


@each_metric
def test_robust_reports_greedy_distances(metric: str) -> None:
    generator = np.random.default_rng(4)
    features, labelled = generator.normal(size=(10, 3)), generator.normal(size=(2, 3))
    candidates = pool(features, labelled)
    positions, scores, selection = run(f"coreset_robust:metric={metric}", candidates, 4)
    order, expected = reference_coreset(metric, features[positions], labelled, 4)
    if not np.asarray(selection.filler).any():
        assert order == [0, 1, 2, 3]
        np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_robust_without_an_answer_is_greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a solver that runs out of time each time leaves."""
    features = np.random.default_rng(5).normal(size=(12, 2))
    candidates = pool(features, features[:1] + 3)
    exact = run(robust(0), candidates, 3)
    monkeypatch.setattr(k_center_robust, "_cover", lambda *arguments: None)
    positions, scores, _ = run(robust(0), candidates, 3)
    greedy, distances_, _ = run("coreset", candidates, 3)
    assert positions == greedy != exact[0]
    np.testing.assert_allclose(scores, distances_, rtol=1e-5)


def test_time_limit_of_the_solver() -> None:
    features = np.random.default_rng(6).normal(size=(60, 2))
    positions, _, selection = run("coreset_robust:time_limit=1e-9", pool(features), 8)
    assert len(positions) == 8 and np.asarray(selection.valid).all()


def test_spare_picks_are_filler_and_avoid_outliers(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = pool([-1, 0, 1, 1000, 9, 10, 11.5])
    monkeypatch.setattr(k_center_robust, "_cover", lambda *arguments: np.array([1, 5]))
    positions, scores, selection = run(robust(1 / 7), candidates, 3)
    assert positions == [1, 5, 6]
    np.testing.assert_allclose(scores[1:], [10, 1.5])
    assert np.asarray(selection.filler).tolist() == [False, False, True]
    everything, _, selection = run(robust(1 / 7), candidates, 9)
    assert sorted(everything) == list(range(7))
    assert not np.asarray(selection.filler).any()


def test_robust_refuses_pools_beyond_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k_center_robust, "MAX_BYTES", 32 * 15**2)
    monkeypatch.setattr(k_center_robust, "MAX_CANDIDATES", 15)
    candidates = pool(np.arange(16))
    with pytest.raises(ValueError, match="all pairs of its 16 .* 8192 bytes, .* at most 15 cand"):
        run("coreset_robust", candidates, 3)
    assert len(run("coreset_robust", candidates._replace(mask=np.arange(16) > 0), 3)[0]) == 3


def test_robust_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.spatial.distance", None)
    with pytest.raises(
        ImportError, match=r"coreset_robust needs SciPy: .*bayesian_active_learning\[experiments\]"
    ):
        run("coreset_robust", pool([1, 2]), 1)


# cog


def test_cog_by_hand() -> None:
    """The labelled examples belong to the mean; without them 3 would be the farthest."""
    candidates = pool([0, 1, 2, 10], labelled=[40, 40])
    positions, scores, _ = run("cog", candidates, 3)
    assert positions == [0, 1, 2]
    np.testing.assert_allclose(scores, [15.5, 14.5, 13.5])
    assert run("cog", pool([0, 1, 2, 10]), 1)[0] == [3]


@each_metric
def test_cog_against_loops(metric: str) -> None:
    generator = np.random.default_rng(7)
    features, labelled = generator.normal(size=(9, 3)), generator.normal(size=(4, 3))
    mean = mean_point(metric, [*features[:8], *labelled])
    expected = np.array([distance_to_mean(metric, x, mean) for x in features[:8]])
    candidates = pool(features, labelled, mask=np.arange(9) < 8)
    positions, scores, _ = run(f"cog:metric={metric}", candidates, 5)
    assert positions == np.argsort(-expected)[:5].tolist()
    np.testing.assert_allclose(scores, np.sort(expected)[::-1][:5], rtol=1e-5)


# knearest


def reference_knearest(
    metric: str, features: Any, labelled: Any, scores: Any, neighbours: int, batch_size: int
) -> tuple[list[int], list[float]]:
    picks: list[int] = []
    found: list[float] = []
    for j in sorted(range(len(labelled)), key=lambda j: (-scores[j], j)):
        near = sorted((distance(metric, x, labelled[j]), i) for i, x in enumerate(features))
        for value, i in [pair for pair in near if pair[1] not in picks][:neighbours]:
            picks.append(i)
            found.append(-value)
    return picks[:batch_size], found[:batch_size]


def test_knearest_by_hand() -> None:
    candidates = pool(
        [0.1, 9.9, 20.4, 0.3, 0.2, 19.5, 10.2],
        labelled=[0, 10, 20],
        labelled_scores=np.float32([0.9, 0.1, 0.5, np.nan, np.nan]),
    )
    positions, scores, selection = run("knearest:neighbours=2", candidates, 5)
    assert positions == [0, 4, 2, 5, 1]
    np.testing.assert_allclose(scores, [-0.1, -0.2, -0.4, -0.5, -0.1], atol=1e-6)
    assert not np.asarray(selection.filler).any()


def test_knearest_of_the_labelled_that_are_fitted_worst() -> None:
    """The third is predicted with confidence, and wrongly: no score of uncertainty starts there."""
    probs = np.array([[0.55, 0.45], [0.1, 0.9], [0.95, 0.05], [0.5, 0.5], [0.5, 0.5]])
    candidates = pool(
        [0.1, 9.9, 20.4, 0.3, 0.2, 19.5, 10.2],
        labelled=[0, 10, 20],
        labelled_predictions=np.log(probs).astype(np.float32),
        labelled_labels=np.int32([0, 1, 1, 0, 0]),
    )
    positions, scores, _ = run("knearest:neighbours=2,score=loss", candidates, 5)
    assert positions == [2, 5, 0, 4, 1]
    np.testing.assert_allclose(scores, [-0.4, -0.5, -0.1, -0.2, -0.1], atol=1e-6)
    strategy = af.make_strategy("knearest:score=loss")
    assert strategy.score is None and "labelled_scores" not in strategy.needs
    certain = candidates.labelled_predictions.copy()
    certain[2] = [0, -np.inf]  # an infinite loss is the first of all, not an error
    assert run("knearest:score=loss", candidates._replace(labelled_predictions=certain), 2)[0] == [
        2,
        5,
    ]


@each_metric
def test_knearest_against_loops(metric: str) -> None:
    for seed in range(3):
        generator = np.random.default_rng(seed)
        features, labelled = (generator.normal(size=(n, 3)).astype(np.float32) for n in (14, 4))
        scores = generator.integers(3, size=4).astype(np.float32)  # with ties
        candidates = pool(
            features,
            labelled,
            mask=np.arange(14) < 12,
            labelled_scores=np.append(scores, [9, np.nan]),
        )
        expected = reference_knearest(metric, features[:12], labelled, scores, 3, 10)
        positions, found, _ = run(f"knearest:metric={metric},neighbours=3", candidates, 10)
        assert positions == expected[0]
        np.testing.assert_allclose(found, expected[1], rtol=1e-4, atol=1e-6)


def test_knearest_fills_at_random() -> None:
    features = np.arange(40)
    candidates = pool(features, labelled=[3.1, 30], labelled_scores=np.float32([1, 2, 3, 4]))
    fillers = set()
    for seed in range(3):
        positions, scores, selection = run("knearest:neighbours=2", candidates, 7, seed)
        assert positions[:4] == [30, 29, 3, 4]
        assert np.asarray(selection.filler).tolist() == [False] * 4 + [True] * 3
        assert len(set(positions)) == 7
        assert (np.diff(scores[4:]) <= 0).all() and (scores[4:] >= 0).all()
        fillers.add(tuple(positions[4:]))
    assert len(fillers) == 3
    nothing = candidates._replace(labelled_mask=np.zeros(4, bool))
    random = run("random", nothing, 7)[0]
    positions, _, selection = run("knearest", nothing, 7)
    assert positions == random and np.asarray(selection.filler).all()


def test_knearest_does_not_hide_a_bad_score() -> None:
    candidates = pool([1, 2, 3], labelled=[0], labelled_scores=np.float32([np.nan, 0, 0]))
    with pytest.raises(ValueError, match="labelled scores at positions 0 are NaN"):
        run("knearest", candidates, 3)
    selection = compiled("knearest")(jax.random.key(0), candidates, batch_size=3)
    assert np.isnan(selection.scores).all()
