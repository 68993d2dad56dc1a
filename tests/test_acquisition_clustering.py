"""TypiClust and Cluster-Margin on pools with known answers, and against plain loops."""

import sys
from typing import Any

import jax
import numpy as np
import pytest

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning.types import Candidates

KEY = jax.random.key(0)


def select(spec: str, candidates: Candidates, batch_size: int, seed: int = 0) -> Any:
    strategy = af.make_strategy(spec)
    return strategy.select(jax.random.key(seed), candidates, batch_size=batch_size)


# TypiClust


def pool(features: Any, labelled: Any = ()) -> Candidates:
    features = np.asarray(features, np.float32)
    labelled = np.asarray(labelled, np.float32).reshape(-1, features.shape[1])
    padding = np.full((2, features.shape[1]), np.nan, np.float32)
    return Candidates(
        rows=np.arange(100, 100 + len(features), dtype=np.int32),
        mask=np.ones(len(features), bool),
        features=features,
        labelled_features=np.concatenate([labelled, padding]),
        labelled_mask=np.arange(len(labelled) + 2) < len(labelled),
    )


def flower(centre: tuple[float, float], size: int) -> np.ndarray:
    """A point in the middle of a ring: the most typical one, but neither first nor last."""
    angles = 2 * np.pi * np.arange(size - 1) / (size - 1)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.insert(ring, 2, 0, axis=0) + centre


CENTRES = [(0.0, 0.0), (40.0, 0.0), (0.0, 40.0), (40.0, 40.0), (90.0, 90.0)]
SIZES = [10, 7, 9, 8, 3]
FLOWERS = np.concatenate([flower(centre, size) for centre, size in zip(CENTRES, SIZES)])
MIDDLES = np.cumsum([0, *SIZES[:-1]]) + 2


def test_typiclust_takes_the_middle_of_clusters_without_a_label() -> None:
    # With the labelled one there are four clusters wanted, and four flowers.
    candidates = pool(FLOWERS[:34], labelled=[(0.5, 0.5)])
    for seed in range(3):
        selection = select("typiclust", candidates, 3, seed)
        assert selection.positions.tolist() == MIDDLES[[2, 3, 1]].tolist()  # the largest first
        assert not selection.filler.any()


def test_typiclust_takes_no_outliers_before_the_rest_is_used_up() -> None:
    candidates = pool(FLOWERS, labelled=[(0.5, 0.5)])
    selection = select("typiclust", candidates, 4)
    assert selection.positions[:3].tolist() == MIDDLES[[2, 3, 1]].tolist()
    # All of one label each: the largest cluster again, not the three outliers.
    assert selection.positions[3] == MIDDLES[0]
    assert not selection.filler.any()
    selection = select("typiclust:min_cluster_size=3", candidates, 4)
    assert selection.positions[3] in range(34, 37)
    everything = select("typiclust:max_clusters=5", candidates, 40)
    assert set(everything.positions[34:37].tolist()) == {34, 35, 36}
    assert everything.filler.tolist() == [False] * 34 + [True] * 3 + [False] * 3


def test_typiclust_with_fewer_clusters_than_picks_takes_turns() -> None:
    candidates = pool(FLOWERS[:17])
    selection = select("typiclust:max_clusters=2", candidates, 5)
    assert [int(p >= 10) for p in selection.positions] == [0, 1, 0, 1, 0]
    assert selection.positions[:2].tolist() == MIDDLES[:2].tolist()


@pytest.mark.parametrize("neighbours", [1, 3, 20])
def test_typicality_equals_plain_loops(neighbours: int) -> None:
    generator = np.random.default_rng(neighbours)
    features = generator.normal(size=(12, 3)).astype(np.float32)
    labelled = generator.normal(size=(2, 3)).astype(np.float32)
    everyone = np.concatenate([labelled, features]).astype(np.float64)
    typicality = []
    for i, point in enumerate(everyone):
        distances = [np.linalg.norm(point - other) for j, other in enumerate(everyone) if j != i]
        nearest = sorted(distances)[:neighbours]
        typicality.append(len(nearest) / sum(nearest))
    # One cluster: then the picks are a ranking.
    spec = f"typiclust:max_clusters=1,neighbours={neighbours}"
    selection = select(spec, pool(features, labelled), 12)
    expected = sorted(range(12), key=lambda i: -typicality[2 + i])
    assert selection.positions.tolist() == expected
    np.testing.assert_allclose(selection.scores, sorted(typicality[2:])[::-1], rtol=1e-5)


def test_typiclust_scores_stay_finite_on_copies() -> None:
    candidates = pool(np.repeat([[0.0, 0.0], [1.0, 0.0]], 6, axis=0))
    selection = select("typiclust", candidates, 8)  # eight clusters wanted, two there are
    assert len(af.acquire(selection, candidates)) == 8
    assert [int(p >= 6) for p in selection.positions[:4]] == [0, 1, 0, 1]


def test_typiclust_refuses_bad_labelled_rows() -> None:
    candidates = pool(FLOWERS, labelled=[(0, 0), (np.inf, 0)])
    with pytest.raises(ValueError, match=r"labelled_features are NaN or infinite at positions \[1"):
        select("typiclust", candidates, 2)


@pytest.mark.parametrize("option", ["neighbours", "max_clusters", "min_cluster_size"])
def test_typiclust_refuses_bad_options(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be positive, got 0"):
        af.make_strategy(f"typiclust:{option}=0")


# Cluster-Margin


def scored(features: Any, scores: Any) -> Candidates:
    features = np.asarray(features, np.float32)
    return Candidates(
        rows=np.arange(100, 100 + len(features), dtype=np.int32),
        mask=np.ones(len(features), bool),
        features=features.reshape(len(features), -1),
        scores=np.asarray(scores, np.float32),
    )


def average_linkage(features: np.ndarray, num_clusters: int, epsilon: float) -> list[list[int]]:
    clusters = [[i] for i in range(len(features))]
    while len(clusters) > max(num_clusters, 1):
        pairs = [(a, b) for a in range(len(clusters)) for b in range(a)]
        means = [
            np.mean(
                [
                    np.linalg.norm(features[i] - features[j])
                    for i in clusters[a]
                    for j in clusters[b]
                ]
            )
            for a, b in pairs
        ]
        if epsilon and min(means) > epsilon:
            break
        a, b = pairs[int(np.argmin(means))]
        clusters[b] += clusters.pop(a)
    return clusters


@pytest.mark.parametrize(
    ("spec", "num_clusters", "epsilon"),
    [("cluster_size=4", 4, 0.0), ("cluster_size=1.5", 10, 0.0), ("epsilon=1.3", 0, 1.3)],
)
def test_cluster_margin_equals_plain_loops(spec: str, num_clusters: int, epsilon: float) -> None:
    for seed in range(3):
        generator = np.random.default_rng(seed)
        features, scores = generator.normal(size=(15, 2)), generator.permutation(15)
        candidates = scored(features, scores)
        clusters = average_linkage(features.astype(np.float32), num_clusters, epsilon)
        assert len(clusters) == num_clusters or epsilon and 1 < len(clusters) < 15
        best = set(np.argsort(-scores)[:12].tolist())
        queues = [sorted((i for i in c if i in best), key=lambda i: -scores[i]) for c in clusters]
        queues = sorted((q for q in queues if q), key=lambda q: (len(q), -scores[q[0]]))
        expected: list[int] = []
        while len(expected) < 6:
            expected += [queue.pop(0) for queue in queues if queue]
        selection = select(f"cluster_margin:{spec},multiplier=2,within=score", candidates, 6)
        assert selection.positions.tolist() == expected[:6]
        assert selection.scores.tolist() == scores[expected[:6]].tolist()
        assert not selection.filler.any()


def test_cluster_margin_spreads_what_top_k_takes_from_one_place() -> None:
    features = np.repeat([0.0, 10.0, 20.0], [6, 3, 2]) + 0.01 * np.arange(11)
    scores = np.array([0.9, 0.91, 0.92, 0.93, 0.94, 0.95, 0.5, 0.51, 0.52, 0.3, 0.31])
    candidates = scored(features, scores)
    spec = "cluster_margin:cluster_size=4,within=score"
    assert select(spec, candidates, 5).positions.tolist() == [10, 8, 5, 9, 7]
    # Without the two of the third place, whose margins are too large.
    narrow = select(spec + ",multiplier=1.8", candidates, 5)
    assert narrow.positions.tolist() == [8, 5, 7, 4, 6]
    assert af.select_top(KEY, candidates, batch_size=5).positions.tolist() == [5, 4, 3, 2, 1]


def test_cluster_margin_draws_uniformly_within_a_cluster() -> None:
    candidates = scored([0.0, 0.1, 0.2, 0.3, 9.0], [5, 4, 3, 2, 1])
    counts = np.zeros(5)
    for seed in range(400):
        selection = select("cluster_margin:cluster_size=2.5", candidates, 2, seed)
        assert selection.positions[0] == 4  # alone in its cluster
        counts[selection.positions[1]] += 1
    assert counts[4] == 0
    assert np.sum((counts[:4] - 100) ** 2 / 100) < 16.3  # 3 degrees of freedom, one in a thousand


def test_cluster_margin_ranks_by_the_margin_unless_told() -> None:
    assert af.make_strategy("cluster_margin").score is af.margin
    assert af.make_strategy("cluster_margin:score=bald").score is af.bald


def test_cluster_margin_refuses_what_does_not_fit() -> None:
    n = 20_000
    candidates = scored(np.zeros((n, 1)), np.zeros(n))
    with pytest.raises(
        ValueError,
        match=r"clustering 20000 candidates by average linkage takes 3.2e\+09 bytes, more than "
        r"max_bytes = 2e\+09: take a subset of the pool of at most 15811 candidates, or raise",
    ):
        select("cluster_margin", candidates, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("multiplier=0.5", "multiplier must be at least 1, got 0.5"),
        ("cluster_size=0", "cluster_size must be at least 1, got 0.0"),
        ("epsilon=-1", "epsilon must be a distance or 0, got -1.0"),
        ("within=margin", "unknown order within a cluster 'margin'; known: random, score"),
        ("score=best", "unknown score 'best'; known: "),
        ("max_bytes=0", "max_bytes must be positive, got 0.0"),
    ],
)
def test_cluster_margin_refuses_bad_options(options: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        af.make_strategy(f"cluster_margin:{options}")


# both


@pytest.mark.parametrize("spec", ["typiclust", "cluster_margin", "probcover"])
def test_equal_picks_from_float64_and_any_dtype_of_rows(spec: str) -> None:
    strategy = af.make_strategy(spec)
    candidates = pool(FLOWERS, labelled=[(0.5, 0.5)])._replace(scores=np.arange(37.0))
    expected = strategy.select(KEY, candidates, batch_size=6).positions
    changed = candidates._replace(
        rows=candidates.rows.astype(np.int64), features=candidates.features.astype(np.float64)
    )
    np.testing.assert_array_equal(strategy.select(KEY, changed, batch_size=6).positions, expected)


@pytest.mark.parametrize(
    ("spec", "module", "message"),
    [
        ("typiclust", "sklearn.cluster", "k-means needs scikit-learn: pip install"),
        ("probcover", "sklearn.cluster", "k-means needs scikit-learn: pip install"),
        ("cluster_margin", "scipy.cluster.hierarchy", "cluster_margin needs SciPy: pip install"),
    ],
)
def test_says_what_to_install(
    spec: str, module: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    candidates = pool(FLOWERS)._replace(scores=np.zeros(37))
    with pytest.raises(ImportError, match=message):
        select(spec, candidates, 2)


# k-means.


def test_kmeans_picks_the_middle_of_each_cluster() -> None:
    """Five clusters of 7 in a line: the point at each middle, larger clusters first."""
    offsets = np.array([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0])
    sizes = [7, 7, 7, 5, 3]
    features, middles = [], []
    for number, size in enumerate(sizes):
        inside = offsets[(7 - size) // 2 : 7 - (7 - size) // 2]
        middles.append(sum(map(len, features)) + size // 2)
        features.append(100.0 * number + inside)
    points = np.concatenate(features)[:, None].astype(np.float32)
    candidates = Candidates(
        rows=np.arange(50, 50 + len(points), dtype=np.int32),
        mask=np.ones(len(points), bool),
        features=points,
    )
    selection = af.make_strategy("kmeans").select(jax.random.key(0), candidates, batch_size=5)
    assert set(selection.positions.tolist()) == set(middles)
    assert selection.positions.tolist()[3:] == middles[3:]  # the smaller clusters last
    np.testing.assert_allclose(selection.scores, 0, atol=1e-6)
    assert not selection.filler.any()


def test_kmeans_fills_up_where_points_repeat() -> None:
    points = np.repeat([[0.0], [5.0]], [3, 1], axis=0).astype(np.float32)
    candidates = Candidates(rows=np.arange(4), mask=np.ones(4, bool), features=points)
    selection = af.make_strategy("kmeans").select(jax.random.key(0), candidates, batch_size=3)
    assert set(selection.positions.tolist()[:2]) == {0, 3}
    assert selection.filler.tolist() == [False, False, True]
