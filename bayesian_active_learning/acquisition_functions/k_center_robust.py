"""Core-set selection by a solver: the smallest radius that covers all but a few candidates."""

import functools
import math

import jax.numpy as jnp
import numpy as np

from bayesian_active_learning.acquisition_functions.distances import METRICS
from bayesian_active_learning.acquisition_functions.k_center import labelled_points
from bayesian_active_learning.acquisition_functions.optional import imported
from bayesian_active_learning.acquisition_functions.selection import (
    check_batch_size,
    host_selection,
    needed,
)
from bayesian_active_learning.types import Candidates, Key, Selection, Strategy
from bayesian_active_learning.utils import check_one_of, check_positive

MAX_BYTES = 2**31
_PAIR_BYTES = 32  # a distance in float64, and entries of the solver's sparse matrices
MAX_CANDIDATES = int((MAX_BYTES / _PAIR_BYTES) ** 0.5)
_SCIPY_NAMES = {"euclidean": "euclidean", "manhattan": "cityblock", "cosine": "sqeuclidean"}


def coreset_robust(
    *,
    metric: str = "euclidean",
    outliers: float = 1e-4,
    time_limit: float = 60.0,
    tolerance: float = 1e-3,
) -> Strategy:
    """Robust k-center: B centres that leave at most a few outliers uncovered, by a solver.

    Greedy k-center gives a first radius. A binary search over the distances below it asks the
    mixed-integer solver HiGHS (scipy.optimize.milp) whether B candidates exist that, with the
    labelled points, are within the radius of all but Xi of the N candidates:

        sum_j y_j <= B,  sum_i xi_i <= Xi,  xi_i + sum_{j: d_ij <= radius} y_j >= 1

    with binary y_j (j is a centre) and an allowance xi_i for each i that no labelled point
    covers. Xi is outliers * N, rounded up, since 1e-4 of N would be none in any pool that fits.

    The picks are the centres of the smallest radius found, in the order of greedy k-center
    among them, then, where fewer than B centres suffice, more candidates in that order, covered
    ones before outliers: those are marked as filler. `Selection.scores` is the distance to the
    nearest centre when picked; for the first pick with nothing labelled, to the candidates' mean.

    When the solver runs out of time with a solution, that counts; without one the radius
    counts as too small, and the search goes on above it. So there is always a feasible answer,
    at worst that of greedy k-center, but then it depends on the speed of the machine.

    Sener & Savarese 2018, arXiv:1708.00489, algorithm 2 (with N the candidates; and with one
    constraint for each candidate in place of an assignment for each pair).

    Args:
      metric: "euclidean", "manhattan" or "cosine" (1 - cos).
      outliers: share of the candidates that may stay uncovered, at least 0 and below 1; 0 for
        none of them.
      time_limit: seconds for each radius that is tried.
      tolerance: relative gap at which the search over the radius ends; 0 for the optimum.

    Returns:
      A strategy on the host that needs features and labelled features. Memory O(N^2): more
      than 2 GiB, beyond 8,192 candidates, is refused when selecting. Time grows
      steeply with N and B. Does not depend on the order of the pool; the key is not used.

    Raises:
      ValueError: an unknown metric, or options out of range.
    """
    check_one_of("metric", metric, METRICS)
    check_positive(time_limit=time_limit)
    if not 0 <= outliers < 1:
        raise ValueError(f"outliers must be at least 0 and below 1, got {outliers}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance}")
    select = functools.partial(
        _select_robust,
        metric=metric,
        outliers=float(outliers),
        time_limit=float(time_limit),
        tolerance=float(tolerance),
    )
    needs = frozenset({"features", "labelled_features", "labelled_mask"})
    return Strategy(
        select=select,
        needs=needs,
        host=True,
        max_candidates=MAX_CANDIDATES,
        packages=("scipy",),
    )


def _select_robust(
    key: Key,
    candidates: Candidates,
    *,
    batch_size: int,
    metric: str,
    outliers: float,
    time_limit: float,
    tolerance: float,
) -> Selection:
    """The `select` of `coreset_robust`."""
    del key
    batch_size = check_batch_size(batch_size)
    rows, mask = np.asarray(candidates.rows), np.asarray(candidates.mask, bool)
    # By row: the solver's choice among equals must not depend on the order of the pool.
    positions = np.flatnonzero(mask)[np.argsort(rows[mask], kind="stable")]
    features = np.asarray(needed(candidates, "features"))[positions]
    labelled, labelled_mask = (np.asarray(part) for part in labelled_points(metric, candidates))
    size = min(batch_size, len(positions))
    if not size:
        return host_selection([], [], batch_size)
    points, centres = _points(metric, features), labelled[labelled_mask].astype(np.float64)
    if not (np.isfinite(points).all() and np.isfinite(centres).all()):
        # Nothing to solve; first what is bad, for `acquire` to refuse.
        bad = np.argsort(np.isfinite(points).all(axis=1), kind="stable")[:size]
        return host_selection(positions[bad], np.full(size, np.nan), batch_size)
    _check_bytes(len(points))

    pairs = _distances(metric, points, points)
    nearest = np.full(len(points), np.inf)
    for start in range(0, len(centres), 256):
        block = _distances(metric, points, centres[start : start + 256])
        nearest = np.minimum(nearest, block.min(axis=1))
    first = _distances(metric, points, points.mean(axis=0, keepdims=True))[:, 0]
    # Not one more for a product that should have been whole.
    allowed = min(math.ceil(outliers * len(points) - 1e-9), len(points) - 1)

    everyone = np.ones(len(points), bool)
    chosen, _ = _farthest_first(pairs, nearest, first, everyone, size)
    if size < len(points):
        chosen = _search(pairs, nearest, chosen, allowed, time_limit, tolerance)
    among = np.zeros(len(points), bool)
    among[chosen] = True
    picks, scores = _farthest_first(pairs, nearest, first, among, size)
    num_centres = len(picks)
    # Spare picks go to what is covered, lest they take the outliers after all.
    now = _nearest(pairs, nearest, picks)
    covered = now <= _radius(now, allowed)
    for group in (covered & ~among, ~covered & ~among):
        more, distances = _farthest_first(pairs, now, first, group, size - len(picks))
        picks, scores = np.append(picks, more), np.append(scores, distances)
        now = _nearest(pairs, now, more)
    filler = np.arange(size) >= num_centres
    return host_selection(positions[picks], scores, batch_size, filler)


def _points(metric: str, features: np.ndarray) -> np.ndarray:
    """Prepared, in float64."""
    return np.asarray(METRICS[metric].prepare(jnp.asarray(features)), np.float64)


def _distances(metric: str, points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """`[N, M]`, by direct differences."""
    distance = imported("scipy.spatial.distance", by="coreset_robust").cdist(
        points, others, _SCIPY_NAMES[metric]
    )
    return distance / 2 if metric == "cosine" else distance


def _nearest(pairs: np.ndarray, nearest: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """`nearest` with these centres too."""
    return np.minimum(nearest, pairs[centres].min(axis=0, initial=np.inf))


def _radius(nearest: np.ndarray, allowed: int) -> float:
    """The smallest radius within which all but `allowed` are."""
    return float(np.sort(nearest)[-1 - allowed])


def _farthest_first(
    pairs: np.ndarray, nearest: np.ndarray, first: np.ndarray, among: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy k-center over the candidates `among`: at most `size` picks, and their distances."""
    left, picks, scores = among.copy(), [], []
    for _ in range(min(size, int(among.sum()))):
        values = np.where(np.isinf(nearest), first, nearest)
        pick = int(np.argmax(np.where(left, values, -1.0)))
        picks.append(pick)
        scores.append(values[pick])
        left[pick] = False
        nearest = np.minimum(nearest, pairs[pick])
    return np.array(picks, np.int64), np.array(scores)


def _search(
    pairs: np.ndarray,
    nearest: np.ndarray,
    chosen: np.ndarray,
    allowed: int,
    time_limit: float,
    tolerance: float,
) -> np.ndarray:
    """The centres of the smallest radius found, starting from those `chosen` greedily."""

    def radius_of(centres: np.ndarray) -> float:
        return _radius(_nearest(pairs, nearest, centres), allowed)

    size, best = len(chosen), radius_of(chosen)
    # A smallest radius is one of these.
    radii = np.unique(np.concatenate([pairs[pairs <= best], nearest[nearest <= best]]))
    too_small, met = -1, len(radii) - 1
    while met - too_small > 1:
        bottom, top = (radii[too_small] if too_small >= 0 else 0.0), radii[met]
        if top - bottom <= tolerance * top:
            break
        middle = np.searchsorted(radii, (bottom + top) / 2)
        middle = int(np.clip(middle, too_small + 1, met - 1))
        centres = _cover(pairs, nearest, radii[middle], size, allowed, time_limit)
        # Measured, since the solver keeps its constraints within a tolerance only.
        if centres is not None and radius_of(centres) <= radii[middle]:
            chosen, met = centres, int(np.searchsorted(radii, radius_of(centres)))
        else:
            too_small = middle
    return chosen


def _cover(
    pairs: np.ndarray,
    nearest: np.ndarray,
    radius: float,
    size: int,
    allowed: int,
    time_limit: float,
) -> np.ndarray | None:
    """At most `size` centres that leave at most `allowed` uncovered; None if none were found."""
    optimize = imported("scipy.optimize", by="coreset_robust")
    sparse = imported("scipy.sparse", by="coreset_robust")
    open_ = np.flatnonzero(nearest > radius)
    if len(open_) <= allowed:
        return np.zeros(0, np.int64)
    n, m = len(pairs), len(open_)
    covers = sparse.csr_array((pairs <= radius)[open_], dtype=np.float64)
    counts = np.zeros((2, n + m))  # of centres, and of what they leave open
    counts[0, :n] = counts[1, n:] = 1
    matrix = [sparse.hstack([covers, sparse.identity(m)]), sparse.csr_array(counts)]
    result = optimize.milp(
        c=np.zeros(n + m),
        constraints=optimize.LinearConstraint(
            sparse.csr_array(sparse.vstack(matrix)),
            lb=np.repeat([1, -np.inf], [m, 2]),
            ub=np.concatenate([np.full(m, np.inf), [size, allowed]]),
        ),
        bounds=optimize.Bounds(0, 1),
        integrality=np.repeat([1, 0], [n, m]),
        options={"time_limit": time_limit},
    )
    if result.x is None:
        return None
    centres = np.flatnonzero(result.x[:n] > 0.5)
    return centres if len(centres) <= size else None


def _check_bytes(n: int) -> None:
    if n > MAX_CANDIDATES:
        raise ValueError(
            f"coreset_robust compares all pairs of its {n} candidates: about {_PAIR_BYTES * n**2} "
            f"bytes, above its budget of {MAX_BYTES}; give it a pool subset of at most "
            f"{MAX_CANDIDATES} candidates, or use coreset"
        )
