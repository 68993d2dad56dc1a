"""Strategies that cluster the features first: k-means, TypiClust, Cluster-Margin.

All run on the host, with scikit-learn and SciPy (extra `experiments`): k-means with
restarts and hierarchical clustering are theirs to do well, and the number of points changes
from round to round. What is clustered is put in the order of its rows first, so that the
order of the pool plays no part, and is computed in float64. Among equals the lower row
comes first.
"""

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from bayesian_active_learning.acquisition_functions.by_score import AnyScore, by_score
from bayesian_active_learning.acquisition_functions.optional import imported
from bayesian_active_learning.acquisition_functions.selection import (
    check_batch_size,
    host_selection,
    needed,
    row_bits,
)
from bayesian_active_learning.types import Candidates, Key, Selection, Strategy
from bayesian_active_learning.utils import check_one_of, check_positive


def kmeans() -> Strategy:
    """The candidate nearest to each of B k-means centres, the largest cluster first.

    k-means runs over the candidates' features alone; what is labelled plays no part, which
    makes this a rule for a cold start. A cluster that is empty, because features repeat,
    leaves its place to the candidate farthest from its own centre, marked as filler.

    Lloyd 1982, with the starts of Arthur & Vassilvitskii 2007.

    Returns:
      A strategy on the host that needs "features"; its scores are minus the distance to the
      centre. The key seeds k-means. `select` raises ImportError without scikit-learn.
    """
    return Strategy(
        select=_select_kmeans, needs=frozenset({"features"}), host=True, packages=("sklearn",)
    )


def typiclust(
    *, neighbours: int = 20, max_clusters: int = 500, min_cluster_size: int = 5
) -> Strategy:
    """The most typical candidate of each cluster that holds no label yet.

    k-means splits labelled rows and candidates into min(|L| + B, max_clusters) clusters.
    Picks come from the clusters with the fewest labelled or picked points, larger clusters
    first (counting all their points), and in a cluster the candidate of highest typicality
    goes first,

        typicality(x) = 1 / mean distance to its nearest neighbours in its cluster,

    over min(neighbours, cluster size - 1) neighbours, labelled or not. Clusters smaller than
    `min_cluster_size` hold outliers: their candidates serve only when the other clusters are
    used up, and are marked as filler.

    Distances are Euclidean. The paper clusters self-supervised features scaled to unit
    length: scale them beforehand for the same.

    Hacohen, Dekel & Weinshall 2022, arXiv:2202.02794.

    Args:
      neighbours: at least 1, the paper's K = 20.
      max_clusters: at least 1.
      min_cluster_size: at least 1.

    Returns:
      A strategy on the host; its scores are typicalities, one over the units of the
      features, 0 for the only point of a cluster. The key seeds k-means.

    Raises:
      ValueError: an option below 1, or, when selecting, labelled features that are NaN or
        infinite.
      ImportError: when selecting, scikit-learn is not installed.
    """
    check_positive(
        neighbours=neighbours, max_clusters=max_clusters, min_cluster_size=min_cluster_size
    )
    select = functools.partial(
        _select_typiclust,
        neighbours=neighbours,
        max_clusters=max_clusters,
        min_cluster_size=min_cluster_size,
    )
    needs = frozenset({"features", "labelled_features", "labelled_mask"})
    return Strategy(select=select, needs=needs, host=True, packages=("sklearn",))


def cluster_margin(
    *,
    score: AnyScore = "margin",
    multiplier: float = 10.0,
    cluster_size: float = 10.0,
    epsilon: float = 0.0,
    within: str = "random",
    max_bytes: float = 2e9,
) -> Strategy:
    """The least certain candidates, spread over the clusters of the pool.

    1. All candidates' features are clustered by average linkage (Euclidean), and the tree
       is cut: at distance `epsilon`, or, where that is 0, into at most
       ceil(N / cluster_size) clusters (fewer only where merges tie).
    2. The ceil(multiplier * B) candidates with the highest scores remain, where the score
       is 1 - (p1 - p2): those with the lowest margins.
    3. Their clusters are sorted by how many of them they hold, fewest first (on a tie the
       one with the highest score first), and visited in turn, one candidate a visit, until
       B are picked; a cluster that is used up is passed over.

    Within a cluster the paper draws at random; `within="score"` takes the highest score
    first instead. The paper clusters once, with the network fitted to the initial labels;
    a strategy carries nothing from round to round, so here it is done on the present
    features, which for a frozen encoder comes to the same.

    Average linkage holds N (N - 1) / 2 distances, twice, in float64: 2e9 bytes are 15,800
    candidates.

    Citovsky et al. 2021, arXiv:2107.14263.

    Args:
      score: a name in `SCORES` or `CANDIDATE_SCORES`, or a function `[N, K, C] -> [N]`.
      multiplier: at least 1, the paper's k_m / k_t.
      cluster_size: at least 1, the mean number of candidates in a cluster.
      epsilon: 0, or the distance above which clusters are not merged, in the units of the
        features; `cluster_size` then plays no part.
      within: "random" or "score".
      max_bytes: a larger clustering is refused.

    Returns:
      A strategy on the host; its scores are those of `score`.

    Raises:
      ValueError: bad options, or, when selecting, a clustering above `max_bytes`.
      ImportError: when selecting, SciPy is not installed.
    """
    check_positive(max_bytes=max_bytes)
    for name, value in (("multiplier", multiplier), ("cluster_size", cluster_size)):
        if not value >= 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not epsilon >= 0:
        raise ValueError(f"epsilon must be a distance or 0, got {epsilon}")
    check_one_of("order within a cluster", within, ("random", "score"))
    select = functools.partial(
        _select_cluster_margin,
        multiplier=multiplier,
        cluster_size=cluster_size,
        epsilon=epsilon,
        within=within,
        max_bytes=max_bytes,
    )
    return by_score(select, score, frozenset({"features"}))._replace(
        host=True, max_candidates=_most_candidates(max_bytes), packages=("scipy",)
    )


def in_row_order(candidates: Candidates, *names: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the unmasked candidates by row, and which of them are finite in the
    fields `names`."""
    rows, mask = np.asarray(candidates.rows), np.asarray(candidates.mask, bool)
    positions = np.flatnonzero(mask)
    positions = positions[np.argsort(rows[positions], kind="stable")]
    finite = np.ones(len(positions), bool)
    for name in names:
        values = np.asarray(needed(candidates, name))[positions]
        finite &= np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    return positions, finite


def bad_first(positions: np.ndarray, finite: np.ndarray, batch_size: int) -> Selection:
    """What is NaN or infinite, for `acquire` to refuse, and whatever else fills the batch."""
    order = np.argsort(finite, kind="stable")[:batch_size]
    scores = np.where(finite[order], 0.0, np.nan)
    return host_selection(positions[order], scores, batch_size, filler=finite[order])


def labelled_points(candidates: Candidates) -> np.ndarray:
    """`[labelled, D]` float64 features without the padding.

    Raises:
      ValueError: some are NaN or infinite.
    """
    features = np.asarray(needed(candidates, "labelled_features"))
    mask = np.asarray(needed(candidates, "labelled_mask"), bool)
    features = features[mask].astype(np.float64)
    bad = np.flatnonzero(mask)[~np.isfinite(features).all(axis=1)]
    if bad.size:
        raise ValueError(
            f"labelled_features are NaN or infinite at positions {bad[:5].tolist()} of the "
            "labelled rows; check those inputs"
        )
    return features


def kmeans_clusters(key: Key, points: np.ndarray, num_clusters: int) -> np.ndarray:
    """k-means with k-means++ starts: the cluster of each of `points [n, D]`, n at least
    `num_clusters`.

    The best of 10 starts for up to 50 clusters; beyond, one start, for there the starts
    differ little and the time is long.

    Raises:
      ImportError: scikit-learn is not installed.
    """
    cluster = imported("sklearn.cluster", by="k-means")
    seed = int(jax.random.bits(key, dtype=jnp.uint32))
    model = cluster.KMeans(num_clusters, n_init=10 if num_clusters <= 50 else 1, random_state=seed)
    with warnings.catch_warnings():
        # Fewer distinct points than clusters: some stay empty, which does no harm.
        warnings.filterwarnings("ignore", message="Number of distinct clusters")
        return model.fit_predict(points)


def _select_kmeans(key: Key, candidates: Candidates, *, batch_size: int) -> Selection:
    """The `select` of `kmeans`; the key is consumed."""
    batch_size = check_batch_size(batch_size)
    positions, finite = in_row_order(candidates, "features")
    if not finite.all():
        return bad_first(positions, finite, batch_size)
    count = min(batch_size, len(positions))
    if not count:
        return host_selection([], [], batch_size)
    points = np.asarray(needed(candidates, "features"))[positions].astype(np.float64)
    clusters = kmeans_clusters(key, points, count)
    distances, nearest = np.zeros(len(points)), []
    for cluster in sorted(set(clusters.tolist()), key=lambda c: -np.sum(clusters == c)):
        members = np.flatnonzero(clusters == cluster)
        centre = points[members].mean(axis=0)
        distances[members] = np.linalg.norm(points[members] - centre, axis=1)
        nearest.append(int(members[np.argmin(distances[members])]))
    rest = np.setdiff1d(np.arange(len(points)), nearest)
    rest = rest[np.argsort(-distances[rest], kind="stable")][: count - len(nearest)]
    picks = np.concatenate([np.asarray(nearest, int), rest])
    filler = np.arange(count) >= len(nearest)
    return host_selection(positions[picks], -distances[picks], batch_size, filler=filler)


def _select_typiclust(
    key: Key,
    candidates: Candidates,
    *,
    batch_size: int,
    neighbours: int,
    max_clusters: int,
    min_cluster_size: int,
) -> Selection:
    """The `select` of `typiclust`; the key is consumed."""
    batch_size = check_batch_size(batch_size)
    positions, finite = in_row_order(candidates, "features")
    if not finite.all():
        return bad_first(positions, finite, batch_size)
    count = min(batch_size, len(positions))
    if not count:
        return host_selection([], [], batch_size)
    labelled = labelled_points(candidates)
    features = np.asarray(needed(candidates, "features"))[positions].astype(np.float64)
    points = np.concatenate([labelled, features])
    num_clusters = min(len(labelled) + count, max_clusters)
    clusters = kmeans_clusters(key, points, num_clusters)

    sizes = np.bincount(clusters, minlength=num_clusters)
    taken = np.bincount(clusters[: len(labelled)], minlength=num_clusters)
    queues: dict[int, list[tuple[int, float]]] = {}  # candidates of a cluster, best last
    first = np.full(num_clusters, len(features))  # the lowest row settles ties of clusters
    np.minimum.at(first, clusters[len(labelled) :], np.arange(len(features)))
    left = np.bincount(clusters[len(labelled) :], minlength=num_clusters)
    small = sizes < min_cluster_size
    picks, scores, filler = [], [], []
    for _ in range(count):
        order = np.lexsort((first, -sizes, taken, small, left == 0))
        cluster = int(order[0])
        if cluster not in queues:
            queues[cluster] = _by_typicality(points, clusters == cluster, len(labelled), neighbours)
        index, typicality = queues[cluster].pop()
        picks.append(positions[index])
        scores.append(typicality)
        filler.append(small[cluster])
        taken[cluster] += 1
        left[cluster] -= 1
    return host_selection(picks, scores, batch_size, filler=filler)


def _by_typicality(
    points: np.ndarray, inside: np.ndarray, num_labelled: int, neighbours: int
) -> list[tuple[int, float]]:
    """(index among the candidates, typicality) of the candidates `inside`, best last."""
    members = np.flatnonzero(inside)
    typicality = np.zeros(len(members))
    if len(members) > 1:
        near = imported("sklearn.neighbors", by="typiclust").NearestNeighbors(
            n_neighbors=min(neighbours, len(members) - 1)
        )
        # Without an argument, no point is its own neighbour.
        distances, _ = near.fit(points[members]).kneighbors()
        typicality = 1 / np.maximum(distances.mean(axis=1), 1e-30)  # copies: 1e30, not inf
    members, typicality = members[members >= num_labelled], typicality[members >= num_labelled]
    order = np.lexsort((-members, typicality))
    return [(int(members[i]) - num_labelled, float(typicality[i])) for i in order]


def _select_cluster_margin(
    key: Key,
    candidates: Candidates,
    *,
    batch_size: int,
    multiplier: float,
    cluster_size: float,
    epsilon: float,
    within: str,
    max_bytes: float,
) -> Selection:
    """The `select` of `cluster_margin`; the key is consumed."""
    batch_size = check_batch_size(batch_size)
    positions, finite = in_row_order(candidates, "scores", "features")
    if not finite.all():
        return bad_first(positions, finite, batch_size)
    count = min(batch_size, len(positions))
    if not count:
        return host_selection([], [], batch_size)
    features = np.asarray(needed(candidates, "features"))[positions].astype(np.float64)
    clusters = _average_linkage(features, cluster_size, epsilon, max_bytes)

    scores = np.asarray(needed(candidates, "scores"))[positions]
    best = np.argsort(-scores, kind="stable")[: math.ceil(multiplier * count)]  # [M]
    clusters = clusters[best]
    if within == "random":
        noise = np.asarray(row_bits(key, np.asarray(candidates.rows)[positions[best]]))
    else:
        noise = np.zeros(len(best))
    # Visits: how many of the same cluster come before; then the turn of the cluster.
    order = np.lexsort((np.arange(len(best)), noise))
    visit = np.zeros(len(best), int)
    seen: dict[int, int] = {}
    for index in order:
        visit[index] = seen.get(clusters[index], 0)
        seen[clusters[index]] = visit[index] + 1
    _, leader, inverse, sizes = np.unique(
        clusters, return_index=True, return_inverse=True, return_counts=True
    )
    turn = np.lexsort((leader[inverse], sizes[inverse], visit))[:count]
    picks = best[turn]
    return host_selection(positions[picks], scores[picks], batch_size)


def _most_candidates(max_bytes: float) -> int:
    return math.isqrt(int(max_bytes / 8))


def _average_linkage(
    features: np.ndarray, cluster_size: float, epsilon: float, max_bytes: float
) -> np.ndarray:
    """The cluster of each of `features [n, D]`."""
    n = len(features)
    size = 8 * n * (n - 1)
    if size > max_bytes:
        raise ValueError(
            f"clustering {n} candidates by average linkage takes {size:.2g} bytes, more than "
            f"max_bytes = {max_bytes:.2g}: take a subset of the pool of at most "
            f"{_most_candidates(max_bytes)} candidates, or raise max_bytes"
        )
    if n == 1:
        return np.zeros(1, int)
    hierarchy = imported("scipy.cluster.hierarchy", by="cluster_margin")
    distance = imported("scipy.spatial.distance", by="cluster_margin")
    tree = hierarchy.linkage(distance.pdist(features), "average")
    if epsilon:
        return hierarchy.fcluster(tree, epsilon, "distance")
    return hierarchy.fcluster(tree, math.ceil(n / cluster_size), "maxclust")
