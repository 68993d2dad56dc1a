"""Semi-supervised learning with harmonic functions, and queries of minimum Bayes risk.

Zhu, Lafferty & Ghahramani 2003, *Combining active learning and semi-supervised learning using
Gaussian fields and harmonic functions*: the method that Gal, Islam & Ghahramani 2017 compare with.
Two classes, labels 0 and 1. All points, labelled or not, are nodes of a graph with weights
exp(-d^2 / width^2). With the Laplacian L = D - W, the probability of class 1 at the unlabelled
nodes is the harmonic function f_u = inv(L_uu) W_ul y_l: each value is the weighted mean of its
neighbours'. One more label y at node k changes it by a rank-one update,

    f + (y - f_k) G_k / G_kk  with  G = inv(L_uu),

so the risk after each possible query and answer is known without solving anything again. In
float64 with NumPy: a graph of N nodes takes O(N^3) once and O(N^2) a query, and N x N numbers.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bayesian_active_learning import history as history_
from bayesian_active_learning import protocol
from bayesian_active_learning.data_utils import Dataset, pool_subset
from bayesian_active_learning.types import ArrayLike
from bayesian_active_learning.utils import check_one_of, check_positive

ACQUISITIONS = ("minimum_bayes_risk", "random")

_CHUNK = 256  # candidates whose answers are looked at together
_MAX_ERROR = 1e-6  # of a mean
_TOO_NARROW = (
    "some points have no connection to a label that float64 can tell from 0: take a larger width"
)


class HarmonicField(NamedTuple):
    """What is known of N nodes. All arrays float64; nodes keep their position for ever."""

    means: np.ndarray  # [N] probability of class 1; 0 or 1 where the label is known
    green: np.ndarray  # [N, N] inv(L_uu), with rows and columns of 0 at labelled nodes
    labelled: np.ndarray  # [N] bool


class FieldConfig(NamedTuple):
    """What the results of `run` depend on, with the data and the seed."""

    num_initial_per_class: int = 2
    num_validation: int = 0  # left out of the pool, so that splits are those of another run
    acquisition_size: int = 1
    pool_size: int = 2000  # nodes beside the initial set: one random subset; 0 = the whole pool
    width: float = 0.0  # of the kernel; 0 = `spanning_tree_width` on the initial labels


def gaussian_weights(
    inputs: ArrayLike, others: ArrayLike | None = None, *, width: float
) -> np.ndarray:
    """exp(-d^2 / width^2) for Euclidean distances d between rows.

    Args:
      inputs: `[N, D]`.
      others: `[M, D]`; `inputs` themselves when None.
      width: in the units of the inputs, above 0.

    Returns:
      `[N, M]` float64.
    """
    check_positive(width=width)
    return np.exp(-squared_distances(inputs, others) / width**2)


def squared_distances(inputs: ArrayLike, others: ArrayLike | None = None) -> np.ndarray:
    """`[N, M]` float64 squared Euclidean distances; exactly symmetric, with a diagonal of 0,
    where `others` is None. Raises ValueError unless both are `[., D]` with the same D."""
    left = _matrix("inputs", inputs)
    right = left if others is None else _matrix("others", others)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"inputs have {left.shape[1]} features, others {right.shape[1]}")
    # Centred, so that little is lost where points are far from 0 and close to each other.
    centre = left.mean(axis=0)
    left, right = left - centre, right - centre
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2 * left @ right.T
    squares = np.maximum(squares, 0.0)
    if others is None:
        squares = (squares + squares.T) / 2
        np.fill_diagonal(squares, 0.0)
    return squares


def spanning_tree_width(inputs: ArrayLike, positions: ArrayLike, labels: ArrayLike) -> float:
    """The authors' rule for the width: a third of the first edge that joins two classes.

    Points are joined from the closest pair on, as in Kruskal's minimum spanning tree; the first
    edge whose two parts hold different labels is taken for the distance between the classes
    (Zhu, Ghahramani & Lafferty 2003, *Semi-supervised learning using Gaussian fields and
    harmonic functions*, section 6). Such an edge then weighs exp(-9).

    Args:
      inputs: `[N, D]`, labelled and unlabelled.
      positions: `[L]` into `inputs`: the labelled ones.
      labels: `[L]`, of two classes at least.

    Raises:
      ValueError: labels of one class, or points of different labels that coincide.
      ImportError: SciPy is missing; it is in the extra `experiments`.
    """
    from scipy.sparse.csgraph import minimum_spanning_tree

    distances = np.sqrt(squared_distances(inputs))
    positions, labels = _labelled(len(distances), positions, labels)
    if len(np.unique(labels)) < 2:
        raise ValueError("the width follows from the distance between classes: give labels of both")
    # The sparse routine takes 0 for "no edge": points that coincide, up to rounding, are joined
    # by the least one.
    least = max(1e-7 * distances.max(), np.finfo(float).tiny)
    tree = minimum_spanning_tree(np.maximum(distances, least)).tocoo()
    known = np.full(len(distances), -1)
    known[positions] = labels
    parent = np.arange(len(distances))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    for edge in np.argsort(tree.data, kind="stable"):
        first, second = root(int(tree.row[edge])), root(int(tree.col[edge]))
        if known[first] >= 0 and known[second] >= 0 and known[first] != known[second]:
            if tree.data[edge] <= least:
                raise ValueError("points with different labels coincide: no width tells them apart")
            return float(tree.data[edge] / 3)
        parent[second] = first
        known[first] = max(known[first], known[second])
    raise AssertionError("a spanning tree joins all labels")


def solve(weights: ArrayLike, positions: ArrayLike, labels: ArrayLike) -> HarmonicField:
    """The harmonic function with these labels.

    Args:
      weights: `[N, N]` symmetric, not negative; the diagonal does not count.
      positions: `[L]` of the labelled nodes, L at least 1.
      labels: `[L]`, 0 or 1.

    Raises:
      ValueError: weights that are no such matrix, labels other than 0 and 1, repeated
        positions; or nodes with no path to a label in float64 (a width far too small), whose
        value nothing determines.
    """
    weights = _matrix("weights", weights)
    if weights.shape[0] != weights.shape[1] or not np.array_equal(weights, weights.T):
        raise ValueError(f"expected symmetric weights [N, N], got {list(weights.shape)}")
    if not (np.isfinite(weights).all() and weights.min() >= 0):
        raise ValueError("weights must be finite and not negative")
    positions, labels = _labelled(len(weights), positions, labels)
    if not len(positions):
        raise ValueError("a harmonic function needs at least one label")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, got {sorted(set(labels.tolist()))}")
    weights = weights.copy()
    np.fill_diagonal(weights, 0.0)
    labelled = np.zeros(len(weights), bool)
    labelled[positions] = True
    free = np.flatnonzero(~labelled)
    means, green = np.zeros(len(weights)), np.zeros_like(weights)
    means[positions] = labels
    if len(free):
        within = np.ix_(free, free)
        laplacian = np.diag(weights[free].sum(axis=1)) - weights[within]
        # Scaled to a diagonal of 1: degrees may differ by many orders of magnitude.
        scale = np.sqrt(np.diag(laplacian))
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = laplacian / scale / scale[:, None]
        try:
            factor = np.linalg.cholesky(scaled)
        except np.linalg.LinAlgError:
            factor = np.full(1, np.nan)
        if not np.isfinite(factor).all():
            raise ValueError(_TOO_NARROW)
        half = np.linalg.inv(factor)
        inverse = half.T @ half / scale / scale[:, None]
        # If all labels were 1, all means would be: how far they are from it is the error.
        to_labels = weights[np.ix_(free, positions)]
        if not np.abs(inverse @ to_labels.sum(axis=1) - 1).max() < _MAX_ERROR:
            raise ValueError(_TOO_NARROW)
        green[within] = (inverse + inverse.T) / 2
        means[free] = np.clip(inverse @ (to_labels @ labels), 0.0, 1.0)
    return HarmonicField(means, green, labelled)


def tell(field: HarmonicField, position: int, label: int) -> HarmonicField:
    """The field with one more label, by the rank-one update; the old one stays as it is.

    Raises ValueError for a node whose label is known, or a label other than 0 and 1.
    """
    if not 0 <= position < len(field.means) or field.labelled[position]:
        raise ValueError(f"node {position} is no unlabelled one of {len(field.means)}")
    if label not in (0, 1):
        raise ValueError(f"labels must be 0 or 1, got {label}")
    column = field.green[position]
    step = column / column[position]
    means = np.clip(field.means + (label - field.means[position]) * step, 0.0, 1.0)
    green = field.green - np.outer(column, step)
    green[position] = green[:, position] = 0.0
    means[position] = label
    labelled = field.labelled.copy()
    labelled[position] = True
    return HarmonicField(means, green, labelled)


def risk(field: HarmonicField) -> float:
    """The number of wrong nodes that the field itself expects: the sum of min(f, 1 - f)."""
    return float(np.minimum(field.means, 1 - field.means).sum())


def expected_risks(field: HarmonicField) -> np.ndarray:
    """`[N]`: `risk` after asking for a node's label, expected over both answers.

    (1 - f_k) risk(f with y_k = 0) + f_k risk(f with y_k = 1). Never above `risk(field)`: f is its
    own expected value after the answer, and min(f, 1 - f) is concave. At labelled nodes the
    risk stays as it is.
    """
    means = field.means
    found = np.full(len(means), risk(field))
    free = np.flatnonzero(~field.labelled)
    for start in range(0, len(free), _CHUNK):
        chunk = free[start : start + _CHUNK]
        steps = field.green[chunk] / field.green[chunk, chunk][:, None]  # [k, N]
        here = means[chunk]
        total = np.zeros(len(chunk))
        for label, probability in ((0.0, 1 - here), (1.0, here)):
            after = np.clip(means + (label - here)[:, None] * steps, 0.0, 1.0)
            total += probability * np.minimum(after, 1 - after).sum(axis=1)
        found[chunk] = total
    return found


def minimum_bayes_risk(field: HarmonicField) -> np.ndarray:
    """`[N]` scores: by how much a node's label is expected to lower the risk, in nodes.

    Higher = more worth labelling; at least 0 up to rounding, and -inf at labelled nodes.
    """
    return np.where(field.labelled, -np.inf, risk(field) - expected_risks(field))


def extend(field: HarmonicField, weights: ArrayLike) -> np.ndarray:
    """`[M]` probability of class 1 at points that are no nodes: weighted means of the nodes'.

    What the harmonic function would be at such a point if it were added, the others held as
    they are (Delalleau, Bengio & Le Roux 2005). 0.5 where all weights vanish.

    Args:
      weights: `[M, N]`, of the points to the nodes.
    """
    weights = _matrix("weights", weights)
    if weights.shape[1] != len(field.means):
        raise ValueError(
            f"expected weights [M, {len(field.means)}], a column for each node, got "
            f"{list(weights.shape)}"
        )
    total = weights.sum(axis=1)
    known = total > 0
    return np.where(known, weights @ field.means / np.where(known, total, 1.0), 0.5)


def class_mass_threshold(field: HarmonicField) -> float:
    """The probability above which a point is taken for class 1, so that classes have their share.

    Class mass normalisation: f is scaled so that the two classes' masses over the unlabelled
    nodes are in the proportion q : 1 - q, with q = (labels of class 1 + 1) / (labels + 2) (Zhu,
    Ghahramani & Lafferty 2003, section 4). Where clusters are not well apart f leans to one
    class as a whole, and 0.5 is a poor threshold.
    """
    known, free = field.means[field.labelled], field.means[~field.labelled]
    share = (known.sum() + 1) / (len(known) + 2)
    ones, zeros = free.sum(), (1 - free).sum()
    if not (ones > 0 and zeros > 0):
        return 0.5
    # q f / ones > (1 - q) (1 - f) / zeros, solved for f.
    weights = share / ones, (1 - share) / zeros
    return float(weights[1] / (weights[0] + weights[1]))


def run(
    config: FieldConfig,
    dataset: Dataset,
    acquisitions: Sequence[str] = ACQUISITIONS,
    seeds: Sequence[int] = (0,),
    *,
    labels: int = 50,
    on_cell: Callable[[int, int], object] | None = None,
) -> history_.History:
    """Active learning with harmonic functions on two classes.

    Initial set and pool are those of `experiment.run` for the same seed and the same
    `num_initial_per_class` and `num_validation`. Nodes are the initial set and one random
    subset of the pool; test rows are no nodes, and judged by `extend`.

    Args:
      config: see `FieldConfig`.
      dataset: of two classes, for example by `data_utils.take_classes`.
      acquisitions: "minimum_bayes_risk" or "random". Of a batch above 1 the best scores are
        taken together.
      seeds: each is one split and one subset of the pool.
      labels: budget, the initial set included.
      on_cell: called with (cells behind us, cells in all).

    Returns:
      Test metrics "accuracy" (fraction; class 1 above a probability of 0.5) and
      "accuracy_class_mass" (above `class_mass_threshold`); measured beside them "risk" (see
      `risk`, in nodes) and "width". What is asked for depends on neither threshold.

    Raises:
      ValueError: another number of classes, bad settings, or a budget that initial set and nodes
        cannot fill.
    """
    protocol.check_cells(acquisitions, seeds)
    for name in acquisitions:
        check_one_of("acquisition", name, ACQUISITIONS)
    if dataset.num_classes != 2:
        raise ValueError(
            f"harmonic functions are for two classes, {dataset.name} has {dataset.num_classes}: "
            "data_utils.take_classes takes two of them"
        )
    check_positive(
        num_initial_per_class=config.num_initial_per_class, acquisition_size=config.acquisition_size
    )
    if not config.width >= 0:
        raise ValueError(f"width must not be negative, got {config.width}")
    cells = {}
    for number, seed in enumerate(seeds):
        graph = _graph(config, dataset, seed, labels)
        for place, name in enumerate(acquisitions):
            events = _events(config, dataset, graph, name, seed, labels)
            cells[name, seed] = history_.curve_from_events(events)
            if on_cell is not None:
                on_cell(number * len(acquisitions) + place + 1, len(seeds) * len(acquisitions))
    facts = {
        "dataset": dataset.name,
        "content_hash": dataset.content_hash,
        "scaling": dataset.scaling,
        "model": "harmonic",
        **config._asdict(),
    }
    return history_.History({"identity": facts}, cells)


class _Graph(NamedTuple):
    """What all functions of a seed have in common."""

    rows: np.ndarray  # [N] int32, the initial set first
    field: HarmonicField  # with the initial labels
    to_test: np.ndarray  # [M, N]
    width: float


def _graph(config: FieldConfig, dataset: Dataset, seed: int, budget: int) -> _Graph:
    splits = protocol.seed_splits(
        protocol.Config(
            num_initial_per_class=config.num_initial_per_class,
            num_validation=config.num_validation,
        ),
        dataset,
        seed,
    )
    initial = splits.initial
    rows = np.concatenate([initial, pool_subset(seed, 0, splits.pool, config.pool_size)])
    if not len(initial) <= budget <= len(rows):
        raise ValueError(
            f"the budget must lie between the initial set of {len(initial)} and the "
            f"{len(rows)} nodes, got {budget}"
        )

    def read(which: np.ndarray) -> np.ndarray:
        return np.asarray(dataset.images[which], np.float64).reshape(len(which), -1)

    nodes, answers = read(rows), np.asarray(dataset.labels)[initial]
    positions = np.arange(len(initial))
    width = config.width or spanning_tree_width(nodes, positions, answers)
    field = solve(gaussian_weights(nodes, width=width), positions, answers)
    # One weight is as good as another where a point is far from all nodes: the nearest gets 1.
    squares = squared_distances(read(splits.test), nodes) / width**2
    to_test = np.exp(squares.min(axis=1, keepdims=True) - squares)
    return _Graph(rows, field, to_test, float(width))


def _events(
    config: FieldConfig, dataset: Dataset, graph: _Graph, name: str, seed: int, budget: int
) -> list[dict]:
    """As a run would log them."""
    truth = np.asarray(dataset.labels)
    test = truth[dataset.test_rows]
    field, count, number = graph.field, int(graph.field.labelled.sum()), 0
    initial = graph.rows[:count].tolist()
    events: list[dict] = [{"event": "labels", "query": "initial", "rows": initial}]
    while True:
        at_test = extend(field, graph.to_test)
        found = {
            metric: float(((at_test > threshold) == (test == 1)).mean())
            for metric, threshold in (
                ("accuracy", 0.5),
                ("accuracy_class_mass", class_mass_threshold(field)),
            )
        }
        events.append(
            {"event": "fitted", "round": number, "risk": risk(field), "width": graph.width}
        )
        events.append(
            {
                "event": "evaluated",
                "round": number,
                "labels": count,
                "test": found,
            }
        )
        wanted = min(config.acquisition_size, budget - count)
        if not wanted:
            return events
        if name == "random":
            generator = np.random.Generator(np.random.PCG64([seed, number]))
            scores = np.where(field.labelled, -np.inf, generator.random(len(field.means)))
        else:
            scores = minimum_bayes_risk(field)
        picked = np.argsort(-scores, kind="stable")[:wanted]
        for position in picked.tolist():
            field = tell(field, position, int(truth[graph.rows[position]]))
        events.append(
            {
                "event": "query",
                "round": number,
                "rows": graph.rows[picked].tolist(),
                "scores": scores[picked].tolist(),
                "filler": [False] * wanted,
            }
        )
        count, number = count + wanted, number + 1


def _matrix(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 2:
        raise ValueError(f"{name} must have two axes, got shape {list(array.shape)}")
    return array


def _labelled(count: int, positions: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    positions, labels = np.asarray(positions, np.int64), np.asarray(labels, np.int64)
    if positions.ndim != 1 or positions.shape != labels.shape:
        raise ValueError(
            f"expected positions [L] and labels [L], got {list(positions.shape)} and "
            f"{list(labels.shape)}"
        )
    if len(positions) and not 0 <= positions.min() <= positions.max() < count:
        raise ValueError(f"positions must lie in 0..{count - 1}")
    if len(np.unique(positions)) < len(positions):
        raise ValueError("a position is given twice")
    return positions, labels
