"""ProbCover and LCMD, against graphs and loops in float64, and on pools with known answers."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning.acquisition_functions.clustering import kmeans_clusters
from bayesian_active_learning.types import Candidates, Strategy

KEY = jax.random.key(0)


SIZE, BATCH = 64, 5  # one shape for the small pools: what they need compiles once


def pool(features: Any, labelled: Any = (), mask: Any = None, size: int = SIZE) -> Candidates:
    """Candidates and labelled rows, both padded with NaN."""
    features = np.asarray(features, np.float32)
    n, width = features.shape
    labelled = np.asarray(labelled, np.float32).reshape(-1, width)
    mask = np.ones(n, bool) if mask is None else np.asarray(mask)
    features, labelled_features = (
        np.pad(array, ((0, length - len(array)), (0, 0)), constant_values=np.nan)
        for array, length in ((features, size), (labelled, 8))
    )
    return Candidates(
        rows=np.arange(100, 100 + size, dtype=np.int32),
        mask=np.pad(mask, (0, size - n)),
        features=features,
        labelled_features=labelled_features,
        labelled_mask=np.arange(8) < len(labelled),
    )


@functools.cache
def compiled(strategy: Strategy) -> Any:
    if strategy.host:
        return strategy.select
    return jax.jit(strategy.select, static_argnames="batch_size")


def select(spec: str, candidates: Candidates, batch_size: int = BATCH, key: Any = KEY) -> Any:
    selection = compiled(af.make_strategy(spec))(key, candidates, batch_size=batch_size)
    return jax.tree.map(np.asarray, selection)


def far(features: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.sqrt(((features[:, None, :] - others[None, :, :]) ** 2).sum(-1))


# LCMD


def lcmd_by_loops(
    features: np.ndarray, labelled: np.ndarray, mask: np.ndarray, batch_size: int
) -> tuple[list[int], list[float]]:
    features, centres = features.astype(np.float64), list(labelled.astype(np.float64))
    left = [i for i in range(len(features)) if mask[i]]
    picks, scores = [], []
    for _ in range(batch_size):
        if not centres:
            best = max(left, key=lambda i: np.linalg.norm(features[i]))
            scores.append(np.linalg.norm(features[best]))
        else:
            cells: dict[int, list[tuple[float, int]]] = {}
            for i in left:
                distances = [np.linalg.norm(features[i] - centre) for centre in centres]
                cell = int(np.argmin(distances))
                cells.setdefault(cell, []).append((distances[cell], i))
            largest = max(cells.values(), key=lambda cell: sum(d**2 for d, _ in cell))
            distance, best = max(largest)
            scores.append(distance)
        picks.append(best)
        left.remove(best)
        centres.append(features[best])
    return picks, scores


@pytest.mark.parametrize("num_labelled", [0, 1, 5])
def test_lcmd_equals_plain_loops(num_labelled: int) -> None:
    for seed in range(5):
        generator = np.random.default_rng(seed)
        features = generator.normal(size=(40, 2)).astype(np.float32) + 20
        labelled = (generator.normal(size=(5, 2)).astype(np.float32) + 20)[:num_labelled]
        mask = generator.random(40) < 0.8
        picks, scores = lcmd_by_loops(features, labelled, mask, 12)
        selection = select("lcmd", pool(features, labelled, mask), 12)
        assert selection.positions.tolist() == picks
        np.testing.assert_allclose(selection.scores, scores, rtol=1e-5)
        assert selection.valid.all() and not selection.filler.any()


def test_lcmd_leaves_a_lonely_outlier_for_a_large_cluster() -> None:
    generator = np.random.default_rng(0)
    crowd = generator.uniform(-3, 3, size=(50, 2))
    crowd[17] = 4, 4  # the farthest of it
    features = np.concatenate([crowd, [[110, 0]]])  # farther from any centre than all the crowd
    centres = np.array([[0, 0], [100, 0]])
    assert select("lcmd", pool(features, centres)).positions[0] == 17
    assert far(features, centres).min(axis=1).argmax() == 50


def test_lcmd_without_labels_starts_at_the_largest_norm() -> None:
    selection = select("lcmd", pool([[1, 0], [0, -3], [2, 0], [2, 2]]))
    # Then the largest distance from (0, -3), then the farthest in the larger cell.
    assert selection.positions[:3].tolist() == [1, 3, 0]
    np.testing.assert_allclose(selection.scores[:3], [3, np.sqrt(29), np.sqrt(5)], rtol=1e-6)


def test_lcmd_on_copies_of_one_point() -> None:
    selection = select("lcmd", pool(np.ones((4, 2)), labelled=np.ones((2, 2))))
    assert selection.positions.tolist() == [0, 1, 2, 3, -1]
    assert selection.scores[:4].tolist() == [0] * 4


# ProbCover


def check_greedy_cover(candidates: Candidates, selection: Any, delta: float) -> None:
    """Each pick has the largest gain there is, by the full graph."""
    features = np.asarray(candidates.features, np.float64)
    mask = np.asarray(candidates.mask)
    labelled = np.asarray(candidates.labelled_features, np.float64)[candidates.labelled_mask]
    near = far(features, features) < delta
    uncovered = mask & ~(far(features, labelled) < delta).any(axis=1)
    left = mask.copy()
    for position, score, filler in zip(
        selection.positions[selection.valid], selection.scores, selection.filler
    ):
        gains = (near & uncovered).sum(axis=1)
        assert left[position]
        assert score == gains[position] == gains[left].max()
        assert filler == (score == 0)
        uncovered &= ~near[position]
        left[position] = False


@pytest.mark.parametrize("squared_delta", [1, 2])
def test_probcover_where_points_lie_exactly_at_delta(squared_delta: int) -> None:
    """Corners of a cube, with exact integers for reference: balls are open."""
    corners = np.random.default_rng(0).integers(0, 2, size=(SIZE, 6))
    squares = ((corners[:, None] - corners[None]) ** 2).sum(axis=-1)
    near = (squares < squared_delta) | np.eye(SIZE, dtype=bool)
    delta = float(np.sqrt(np.float32(squared_delta)))
    selection = select(f"probcover:delta={delta!r}", pool(corners), batch_size=30)
    uncovered = np.ones(SIZE, bool)
    for position, score in zip(selection.positions, selection.scores, strict=True):
        gains = (near & uncovered).sum(axis=1)
        assert score == gains[position] == gains.max()
        uncovered &= ~near[position]


@pytest.mark.parametrize("num_labelled", [0, 6])
def test_probcover_is_greedy_on_the_full_graph(num_labelled: int) -> None:
    """Several blocks of candidates, and of what one pick covers."""
    for seed in range(2):
        generator = np.random.default_rng(seed)
        features = 1.25 * generator.normal(size=(700, 2)).astype(np.float32) + 5
        labelled = features[:num_labelled] + 0.1
        candidates = pool(features, labelled, mask=generator.random(700) < 0.9, size=700)
        selection = select("probcover:delta=1", candidates, 60)
        if not num_labelled:
            assert selection.scores[0] > 150
        assert 0 < selection.filler.sum() < 55
        assert selection.valid.all()
        check_greedy_cover(candidates, selection, 1.0)


def test_probcover_takes_the_largest_uncovered_ball_first() -> None:
    def blob(centre: float, size: int) -> np.ndarray:  # ends are too far from each other
        return np.stack([centre + np.linspace(-0.9, 0.9, size), np.zeros(size)], axis=1)

    features = np.concatenate([[[50, 0]], blob(0, 9), blob(10, 5), blob(20, 7), [[40, 0]]])
    selection = select("probcover:delta=1", pool(features, labelled=[[0, 0]]))
    middles = [1 + 9 + 5 + 3, 1 + 9 + 2]
    assert selection.positions[:2].tolist() == middles
    assert set(selection.positions[2:4].tolist()) == {0, 22}
    assert selection.scores.tolist() == [7, 5, 1, 1, 0]
    assert selection.filler.tolist() == [False] * 4 + [True]


def test_probcover_may_pick_what_is_covered() -> None:
    features = [[0.9, 0.9], [0.9, 0], [0.9, -0.9], [1.8, 0]]
    selection = select("probcover:delta=1", pool(features, labelled=[[0, 0]]))
    assert selection.positions[0] == 1 and selection.scores.tolist()[:2] == [3, 0]


def test_probcover_balls_are_open_and_hold_their_centre() -> None:
    three = [[0, 0], [1, 0], [100, 0]]
    assert select("probcover:delta=1", pool(three)).scores.tolist()[:3] == [1, 1, 1]
    three[1][0] = 0.999  # type: ignore[call-overload]
    assert select("probcover:delta=1", pool(three)).scores.tolist()[:3] == [2, 1, 0]


def test_probcover_fills_up_at_random() -> None:
    candidates = pool(np.concatenate([np.zeros((30, 2)), np.full((1, 2), 9)]))
    seen = set()
    for seed in range(3):
        selection = select("probcover:delta=1", candidates, key=jax.random.key(seed))
        assert selection.scores.tolist() == [30, 1, 0, 0, 0]
        assert selection.filler.tolist() == [False, False, True, True, True]
        assert selection.positions[1] == 30
        seen.add(tuple(selection.positions[2:].tolist()))
    assert len(seen) == 3


def test_probcover_estimates_its_radius() -> None:
    generator = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10], [10, 10]])
    sizes = [12, 9, 6, 3]
    features = np.repeat(centres, sizes, axis=0) + generator.uniform(-0.5, 0.5, size=(30, 2))
    assert af.make_strategy("probcover").host
    assert not af.make_strategy("probcover:delta=1").host
    selection = select("probcover:num_clusters=4", pool(features, labelled=[centres[1]]))
    # A ball holds its own cluster and no other point.
    assert selection.scores.tolist() == [12, 6, 3, 0, 0]
    delta = af.estimate_delta(KEY, features, num_clusters=4)
    assert 8 < delta < 10


@pytest.mark.parametrize("alpha", [0.5, 0.9, 0.95, 1.0])
def test_estimated_radius_is_the_largest_that_is_pure_enough(alpha: float) -> None:
    features = np.random.default_rng(1).normal(size=(60, 2)).astype(np.float32) + 3
    labels = kmeans_clusters(KEY, features.astype(np.float64), 3)
    distances = far(features.astype(np.float64), features.astype(np.float64))

    def purity(delta: float) -> float:
        return np.mean([len(set(labels[row < delta])) == 1 for row in distances])

    delta = af.estimate_delta(KEY, features, num_clusters=3, alpha=alpha)
    assert purity(delta * (1 - 1e-9)) >= alpha
    assert purity(delta * (1 + 1e-9)) < alpha


def test_one_cluster_leaves_nothing_to_mix() -> None:
    assert af.estimate_delta(KEY, np.ones((5, 2)), num_clusters=3) == np.inf
    assert af.estimate_delta(KEY, np.ones((1, 2)), num_clusters=3) == np.inf
    assert select("probcover", pool(np.ones((5, 2)))).scores.tolist() == [5, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": -1.0}, "delta must be a distance, or 0 for an estimate, got -1.0"),
        ({"delta": float("nan")}, "delta must be a distance"),
        ({"num_clusters": 1}, "num_clusters must be at least 2, got 1"),
        ({"alpha": 0.0}, "alpha must be above 0 and at most 1, got 0.0"),
        ({"alpha": 1.1}, "alpha must be above 0 and at most 1, got 1.1"),
    ],
)
def test_probcover_refuses_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        af.probcover(**options)


def test_estimate_refuses_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match=r"expected finite features \[N, D\], got shape \[3\]"):
        af.estimate_delta(KEY, np.ones(3), num_clusters=2)
    with pytest.raises(ValueError, match="expected finite features"):
        af.estimate_delta(KEY, np.full((3, 2), np.nan), num_clusters=2)


# both


@pytest.mark.parametrize("spec", ["lcmd", "probcover:delta=1"])
def test_a_bad_labelled_row_is_not_hidden(spec: str) -> None:
    candidates = pool(np.eye(2), labelled=[[0, np.nan], [1, 1]])
    candidates = candidates._replace(features=np.nan_to_num(candidates.features))
    selection = select(spec, candidates)
    with pytest.raises(ValueError, match="labelled features at positions 0 are NaN"):
        af.acquire(selection, candidates)
    with pytest.raises(ValueError, match="the scores of rows 100, 101 are NaN or infinite"):
        af.acquire(selection, candidates._replace(labelled_features=None))


def largest_array(jaxpr: Any) -> int:
    """The most elements that any value inside has."""
    most = 0
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            most = max(most, int(np.prod(variable.aval.shape)))
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                most = max(most, largest_array(inner))
    return most


@pytest.mark.parametrize("spec", ["lcmd", "probcover:delta=1.0"])
def test_memory_does_not_grow_with_the_square(spec: str) -> None:
    strategy, n = af.make_strategy(spec), 20_000
    candidates = pool(np.zeros((n, 2)), size=n)
    candidates = candidates._replace(
        labelled_features=np.zeros((3000, 2), np.float32), labelled_mask=np.ones(3000, bool)
    )
    traced = jax.make_jaxpr(lambda key, c: strategy.select(key, c, batch_size=5))(KEY, candidates)
    assert n < largest_array(traced.jaxpr) <= 300 * n
