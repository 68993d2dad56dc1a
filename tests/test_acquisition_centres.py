"""Candidates that wait for many centres at once: the same distances as directly, the same picks
as a plain loop, the same probabilities as by the definition of k-means++."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_acquisition_seeding import check_frequencies, d2_probabilities

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning.acquisition_functions import centres, distances, k_center, seeding
from bayesian_active_learning.types import Candidates

N, D, B = 1300, 4, 150  # three chunks, and more blocks than picks can fill


def points_of(kind: str) -> np.ndarray:
    generator = np.random.default_rng(0)
    points = generator.normal(size=(N, D))
    if kind == "clustered":
        points = 0.1 * points + 20 * generator.normal(size=(7, D))[generator.integers(7, size=N)]
    if kind == "ties":
        points = generator.integers(4, size=(N, D))
    if kind == "near":  # no product can tell these apart
        points = 100 + 1e-3 * points + 10 * (np.arange(N) % 3 == 0)[:, None]
    if kind == "equal":
        points = np.full((N, D), 3.7)
    return points.astype(np.float32)


KINDS = ("random", "clustered", "ties", "near", "equal")


@functools.cache
def compiled(name: str, metric: str) -> Any:
    """`with_centres` and one centre after another."""

    def space_of(points: jax.Array) -> centres.Space:
        if metric == "outer":
            return seeding.outer_space(points[:, :2], points[:, 2:])
        points = distances.prepare_points(metric, points, np.ones(N, bool))
        return centres.metric_space(metric, points)

    def at_once(points: jax.Array, old: jax.Array, positions: jax.Array) -> jax.Array:
        return centres.with_centres(space_of(points), old, positions, len(positions) - 3)

    def one_by_one(points: jax.Array, old: jax.Array, positions: jax.Array) -> jax.Array:
        space = space_of(points)
        for position in positions[:-3]:
            to_one = space.to_one(space.points, centres.take(space.points, position))
            old = jnp.minimum(old, to_one)
        return old

    return jax.jit({"at once": at_once, "one by one": one_by_one}[name])


@pytest.mark.parametrize("metric", ["euclidean", "manhattan", "cosine", "outer"])
def test_distances_to_many_centres(metric: str) -> None:
    positions = np.arange(5, 5 + 47 * 23, 47)
    # Terms of "outer" cancel, and each program rounds them in an order of its own.
    tolerance = 1e-4 if metric == "outer" else 1e-5
    for kind in KINDS:
        points, old = points_of(kind), np.full(N, np.inf, np.float32)
        for _ in range(2):  # the second time, few come nearer
            expected = compiled("one by one", metric)(points, old, positions)
            found = np.asarray(compiled("at once", metric)(points, old, positions))
            np.testing.assert_allclose(found, expected, rtol=tolerance, err_msg=kind)
            assert not found[positions[:-3]].any()
            old, positions = found, positions + 3


def test_equals_of_new_centres_are_at_zero() -> None:
    points = np.tile(points_of("near")[: N // 2], (2, 1))
    positions = np.arange(23)
    found = compiled("at once", "euclidean")(points, np.full(N, np.inf, np.float32), positions)
    assert set(np.flatnonzero(np.asarray(found) == 0)) >= {*range(20), *range(N // 2, N // 2 + 20)}


# k-center


@functools.cache
def picks_by(name: str) -> Any:
    def select(points: jax.Array, mask: jax.Array, old: jax.Array, weights: jax.Array) -> Any:
        first = 1e-3 * centres.squared_norms(points)  # no bound for what comes after
        if name == "plain":
            return k_center.farthest_first(
                "euclidean", points, mask, B, distances=old, first=first, weights=weights
            )
        pool = k_center._Pool(points, old, first, weights)
        space = centres.metric_space("euclidean", points)
        return k_center.lazily_farthest(space, pool, mask, B, 60)

    return jax.jit(select)


@pytest.mark.parametrize("kind", KINDS)
def test_picks_are_those_of_the_plain_loop(kind: str) -> None:
    points, generator = points_of(kind), np.random.default_rng(1)
    every, none = np.ones(N, bool), np.full(N, np.inf, np.float32)
    known = np.abs(points - points[7]).max(axis=1)
    weights = generator.integers(3, size=N).astype(np.float32)  # zeros, and ties
    for mask, old, weight in (
        (every, none, every),
        (np.arange(N) % 4 > 0, known, every),
        (generator.random(N) < 0.5, known, weights),
        (np.arange(N) < 70, none, weights),  # fewer than asked for
        (~every, known, every),
    ):
        arguments = points, mask, old, np.float32(weight)
        expected, found = picks_by("plain")(*arguments), picks_by("lazy")(*arguments)
        for ours, theirs in zip(found, expected, strict=True):
            if ours.dtype.kind == "f":
                np.testing.assert_allclose(ours, theirs, rtol=1e-5)
            else:
                np.testing.assert_array_equal(ours, theirs)


# k-means++


def candidates_of(points: np.ndarray, mask: Any = None) -> Candidates:
    mask = np.ones(len(points), bool) if mask is None else mask
    return Candidates(100 + np.arange(len(points), dtype=np.int32), mask, features=points)


@pytest.mark.parametrize(
    ("batch_size", "first", "block_size", "num_arrivals", "pending"),
    [(3, None, 3, 2, 2), (4, 2, 4, 3, 8)],
)
def test_draws_have_the_probabilities_of_kmeans_pp(
    batch_size: int, first: int | None, block_size: int, num_arrivals: int, pending: int
) -> None:
    """Masses that fall by much, so that many arrivals do not count; the fourth is masked out."""
    points = np.float32([[0, 0], [1, 0], [0, 3], [9, 9], [-4, 1], [-4, 2]])
    mask = np.arange(6) != 3
    space = centres.squared_space(jnp.asarray(np.where(mask[:, None], points, 0)))

    def draw(key: jax.Array) -> Any:
        return seeding.lazily_drawn(
            key,
            space,
            candidates_of(points, mask),
            batch_size,
            norms=None if first is None else jnp.float32(jnp.arange(6) == first),
            block_size=block_size,
            num_arrivals=num_arrivals,
            pending=pending,
        )

    selection = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(2), 10_000))
    shown = np.array([0, 1, 2, -1, 3, 4])
    firsts = dict.fromkeys(range(5), 1 / 5) if first is None else {first: 1.0}
    expected = d2_probabilities(points[mask], batch_size, firsts)
    check_frequencies(shown[np.asarray(selection.positions)], expected)
    assert not np.asarray(selection.filler).any()


def test_lazy_draws_beside_the_plain_loop() -> None:
    """Of a pool with blocks of many picks, by the mean distance that is left, and the scores."""
    points = points_of("clustered")[:400]
    space, candidates = centres.squared_space(jnp.asarray(points)), candidates_of(points)
    norms = jnp.asarray(points[:, 0])
    keys = jax.random.split(jax.random.key(3), 200)

    def lazy(key: jax.Array) -> Any:
        return seeding.lazily_drawn(key, space, candidates, 40, norms=norms, block_size=64)

    def plain(key: jax.Array) -> Any:
        return seeding.d2_sampling(key, space, candidates, 40, norms=norms)

    def statistics(draw: Any) -> np.ndarray:
        scores = np.asarray(jax.jit(lambda keys: jax.lax.map(draw, keys))(keys).scores)
        return np.log(scores[:, [1, 2, 5, 20, 39]])

    ours, theirs = statistics(lazy), statistics(plain)
    error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / len(keys))
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 4 * error).all()
    np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.35)


# Strategies on pools large enough.


def large(num_labelled: int = 2, **changes: Any) -> Candidates:
    n, generator = centres.LAZY_POOL, np.random.default_rng(4)
    predictions = generator.normal(size=(n, 3))
    fields = {
        "rows": generator.permutation(2 * n)[:n].astype(np.int32),
        "mask": np.arange(n) % 7 > 0,
        "features": generator.normal(size=(n, 2)).astype(np.float32),
        "predictions": np.asarray(jax.nn.log_softmax(predictions), np.float32),
        "labelled_features": generator.normal(size=(3, 2)).astype(np.float32),
        "labelled_mask": np.arange(3) < num_labelled,
    }
    return Candidates(**fields | changes)


def pick(name: str, candidates: Candidates, seed: int = 0) -> Any:
    strategy, batch_size = af.make_strategy(name), centres.PENDING + 36
    key = jax.random.key(seed)
    return af.select_batch(strategy, key, candidates, batch_size=batch_size)


@pytest.mark.parametrize("name", ["coreset", "kmeans_pp", "badge"])
def test_strategies_on_large_pools(name: str) -> None:
    """Permuting the pool permutes the picks; equals come last; NaN is refused."""
    candidates = large()
    assert centres.is_lazy(len(candidates.rows), centres.PENDING + 36)
    fields = "rows", "mask", "features", "predictions"
    rows = af.acquire(pick(name, candidates), candidates)
    assert len(set(rows.tolist())) == centres.PENDING + 36
    order = np.random.default_rng(5).permutation(len(candidates.rows))
    shuffled = candidates._replace(**{f: getattr(candidates, f)[order] for f in fields})
    np.testing.assert_array_equal(af.acquire(pick(name, shuffled), shuffled), rows)

    few = np.arange(len(order)) % 30
    repeated = candidates._replace(
        **{f: getattr(candidates, f)[few] for f in ("features", "predictions")}
    )
    selection = pick(name, repeated)
    places = few[np.asarray(selection.positions)].tolist()
    assert len(set(places[:30])) == 30 and not np.asarray(selection.scores)[30:].any()
    if name != "coreset":
        assert np.asarray(selection.filler).tolist() == [False] * 30 + [True] * 70

    for bad in (np.nan, np.inf):
        features = candidates.features.copy()
        features[8, 1] = bad
        changed = candidates._replace(features=features)
        with pytest.raises(ValueError, match=f"rows {candidates.rows[8]} are NaN or infinite"):
            af.acquire(pick(name, changed), changed)
        assert not np.isfinite(np.asarray(pick(name, changed).scores)).all()


def test_core_set_of_a_large_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain loop's picks, with and without labelled rows."""
    pools = large(), large(num_labelled=0)
    found = [pick("coreset", candidates) for candidates in pools]
    monkeypatch.setattr(k_center, "is_lazy", lambda *arguments: False)
    select = jax.jit(af.make_strategy("coreset").select, static_argnames="batch_size")
    for ours, candidates in zip(found, pools, strict=True):
        theirs = select(jax.random.key(0), candidates, batch_size=centres.PENDING + 36)
        np.testing.assert_array_equal(ours.positions, theirs.positions)
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-6)
