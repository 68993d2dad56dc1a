"""Picks from features against those of scikit-activeml, on the same random points.

See test_peers.py. scikit-activeml takes all points at once, with NaN for a label where there
is none. Where it is wrong, or means something else, a test in the last section shows it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import committee, pick, pool, random_probs

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning.acquisition_functions import distances, seeding

pytestmark = pytest.mark.peers
FEATURES = np.random.default_rng(11).normal(size=(60, 5)) * [3, 2, 1, 1, 0.5]
NUM_LABELLED = 7  # the first ones


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def ask(strategy: Any, features: np.ndarray, num_labelled: int, size: int, **more: Any) -> Any:
    """Its picks as positions among the candidates, the utility of each, and all utilities."""
    row = np.arange(len(features))
    labels = np.where(row < num_labelled, row % 3, np.nan)
    picks, utilities = strategy.query(
        features, labels, batch_size=size, return_utilities=True, **more
    )
    return np.asarray(picks) - num_labelled, utilities[np.arange(size), picks], utilities


@pytest.mark.parametrize("name", ["CoreSet", "GreedySamplingX"])
@pytest.mark.parametrize("metric", ["euclidean", "manhattan", "cosine"])
def test_coreset(name: str, metric: str):
    theirs = getattr(pool(), name)(metric=metric, random_state=0)
    picks, distance, _ = ask(theirs, FEATURES, NUM_LABELLED, 10)
    ours = pick(
        f"coreset:metric={metric}",
        10,
        features=FEATURES[NUM_LABELLED:],
        labelled_features=FEATURES[:NUM_LABELLED],
    )
    assert ours.positions.tolist() == picks.tolist()
    np.testing.assert_allclose(ours.scores, distance, rtol=0, atol=1e-7)


def test_coreset_after_the_first_pick_where_nothing_is_labelled():
    """The first pick: any at random (CoreSet), the nearest to all (GreedySamplingX), the
    farthest from the mean (ours). The others follow from it in the same way."""
    for strategy in (pool().CoreSet(random_state=0), pool().GreedySamplingX(random_state=0)):
        picks, _, _ = ask(strategy, FEATURES, 0, 6)
        rest = np.delete(np.arange(len(FEATURES)), picks[0])
        ours = pick("coreset", 5, features=FEATURES[rest], labelled_features=FEATURES[picks[:1]])
        assert rest[ours.positions].tolist() == picks[1:].tolist()


def ask_badge(probs: np.ndarray, features: np.ndarray, size: int) -> Any:
    """Badge, where a network predicts `probs [N, C]` from `features [N, D]`."""
    network = committee(probs[:, None], features)
    return ask(pool().Badge(random_state=0), features, 0, size, clf=network, fit_clf=False)


def test_badge_distances():
    """Theirs are of explicit embeddings [N, C D]. Their chances of being next, D^2 / sum D^2,
    count the origin as a pick, see below: with that, our factorised distances give the same."""
    probs, size = random_probs(12, 60, 1, 4)[:, 0], 6
    picks, _, utilities = ask_badge(probs, FEATURES, size)
    ours = pick("badge", 1, predictions=np.log(probs), features=FEATURES)
    assert picks[0] == ours.positions[0]

    errors, points = seeding.residuals(jnp.log(probs)), jnp.asarray(FEATURES)
    norms, other_norms = distances.squared_norms(errors), distances.squared_norms(points)
    squared = norms * other_norms  # to the origin
    for chances, position in zip(utilities, picks):
        expected = np.where(np.isnan(chances), np.nan, squared / jnp.sum(squared))
        np.testing.assert_allclose(chances, expected, rtol=0, atol=1e-12)
        to_pick = seeding.squared_outer_to_one(
            distances.squared_to_one(errors, errors[position]),
            distances.squared_to_one(points, points[position]),
            norms,
            other_norms,
            norms[position],
            other_norms[position],
        )
        squared = jnp.minimum(squared, to_pick)


def blobs(sizes: list[int], seed: int = 13) -> np.ndarray:
    """Clusters far apart, so that every k-means finds them; the points in random order."""
    rng = np.random.default_rng(seed)
    centres = 20 * np.eye(len(sizes))
    points = [rng.normal(centre, 1.0, (size, len(sizes))) for centre, size in zip(centres, sizes)]
    return rng.permutation(np.concatenate(points))


def kmeans_options(seed: int) -> dict[str, Any]:
    """What our k-means is started with for `jax.random.key(seed)`."""
    bits = jax.random.bits(jax.random.key(seed), dtype="uint32")
    return {"n_init": 10, "random_state": int(bits)}


def test_typiclust():
    """With k neighbours in both, and small clusters not held back in ours."""
    points = blobs([13, 11, 9, 7, 6])
    theirs = pool().TypiClust(k=4, cluster_algo_dict=kmeans_options(0), random_state=0)
    picks, typicality, _ = ask(theirs, points, 2, 3)
    ours = pick(
        "typiclust:neighbours=4,min_cluster_size=1",
        3,
        features=points[2:],
        labelled_features=points[:2],
    )
    assert ours.positions.tolist() == picks.tolist()
    np.testing.assert_allclose(ours.scores, typicality, rtol=1e-6)  # they add 1e-7 to distances


def test_kmeans_is_clue_with_one_uncertainty_for_all():
    """CLUE weighs k-means by uncertainty; theirs takes the centres in k-means's own order."""
    points = blobs([13, 11, 9, 7, 6])
    theirs = pool().Clue(cluster_algo_dict=kmeans_options(0), random_state=0)
    picks, negative, _ = ask(
        theirs, points, 0, 5, estimator=committee(np.full((46, 1, 2), 0.5)), fit_estimator=False
    )
    ours = pick("kmeans", 5, features=points)
    assert set(ours.positions) == set(picks)
    np.testing.assert_allclose(np.sort(ours.scores), np.sort(negative), rtol=1e-6)


def test_probcover():
    """Ties are broken at random in both: here there are none."""
    points = np.random.default_rng(60).normal(size=(150, 2))
    theirs = pool().ProbCover(deltas=[0.6], random_state=0)
    with pytest.warns(UserWarning, match="maximum purity was -1"):  # not asked of one radius
        picks, covered, utilities = ask(theirs, points, 3, 5)
    assert (covered > np.sort(np.nan_to_num(utilities), axis=1)[:, -2]).all()
    ours = pick("probcover:delta=0.6", 5, features=points[3:], labelled_features=points[:3])
    assert ours.positions.tolist() == picks.tolist()
    assert ours.scores.tolist() == covered.tolist() == [30, 21, 15, 10, 9]


def test_probcover_radius():
    """Theirs is the largest of a grid with purity alpha; ours the exact bound, within a step."""
    points = blobs([20, 18, 16]) / 10
    grid = np.arange(1, 100) / 40
    theirs = pool().ProbCover(n_classes=3, deltas=grid, cluster_algo_dict={"n_init": 10})
    ask(theirs, points, 0, 1)
    ours = af.estimate_delta(jax.random.key(0), points, num_clusters=3)
    assert 0 < theirs.delta_max_ < grid[-1]
    assert theirs.delta_max_ < ours <= theirs.delta_max_ + 1 / 40


# Where they differ: by definition, or by a mistake that is not to be repeated


def test_scikit_activeml_takes_the_origin_for_a_picked_embedding():
    """Badge starts its distances from the norms that chose the first pick, and takes minima
    from there: what lies near the origin, far from all picks, is hardly ever drawn."""
    probs = np.array([[0.5, 0.5], [0.5, 0.5], [0.9, 0.1]])
    features = np.array([[10.0, 0.0], [0.0, 8.0], [0.0, 0.1]])
    _, _, utilities = ask_badge(probs, features, 2)
    embeddings = np.einsum("nc,nd->ncd", probs - np.eye(2)[[0, 0, 0]], features).reshape(3, -1)
    squared = np.square(embeddings - embeddings[0]).sum(axis=1)
    to_origin = np.square(embeddings).sum(axis=1)
    theirs = np.minimum(squared, to_origin)
    np.testing.assert_allclose(utilities[1, 1:], theirs[1:] / theirs.sum(), atol=1e-12)
    assert (theirs / theirs.sum())[2] < 1e-4 < 0.3 < (squared / squared.sum())[2]
    ours = pick("badge", 3, predictions=np.log(probs), features=features)
    after = np.minimum(squared, np.square(embeddings - embeddings[ours.positions[1]]).sum(axis=1))
    expected = np.sqrt([to_origin[0], squared[ours.positions[1]], after[ours.positions[2]]])
    np.testing.assert_allclose(ours.scores, expected, rtol=1e-12)


def test_scikit_activeml_gives_a_point_alone_typicality_one():
    """In a cluster of one; in ours it is 0, and an outlier serves last, as filler."""
    points = np.concatenate([blobs([12, 10])[:, :2], [[500.0, 500.0]]])
    theirs = pool().TypiClust(cluster_algo_dict=kmeans_options(0), random_state=0)
    picks, typicality, _ = ask(theirs, points, 0, 3)
    assert picks[2] == 22 and typicality[2] == 1
    ours = pick("typiclust", 3, features=points, labelled_features=np.zeros((0, 2)))
    assert 22 not in ours.positions and not ours.filler.any()
