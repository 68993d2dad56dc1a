"""Harmonic functions against brute force: every solve and every query made again from scratch."""

import numpy as np
import pytest

from bayesian_active_learning import data_utils, experiment, gaussian_fields

RNG = np.random.default_rng(0)


def clouds(count: int = 24, dimensions: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping clouds and which of them each point is from."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    return rng.normal(size=(count, dimensions)) + 1.5 * labels[:, None], labels


def harmonic(weights: np.ndarray, positions: list[int], labels: list[int]) -> np.ndarray:
    """Means of all nodes by the definition: each free one is the weighted mean of the others."""
    count = len(weights)
    weights = weights - np.diag(np.diag(weights))
    system, right = np.eye(count), np.zeros(count)
    for node in range(count):
        if node in positions:
            right[node] = labels[positions.index(node)]
        else:
            system[node] -= weights[node] / weights[node].sum()
    return np.linalg.solve(system, right)


def risk_of(means: np.ndarray) -> float:
    return float(np.minimum(means, 1 - means).sum())


def problem(seed: int = 0) -> tuple[np.ndarray, list[int], list[int]]:
    points, truth = clouds(seed=seed)
    positions = [0, 1, 10]
    return gaussian_fields.gaussian_weights(points, width=1.3), positions, truth[positions].tolist()


def test_a_path_is_linear():
    """Between a 0 and a 1 on a chain of equal weights the harmonic function is a straight line;
    f = 1/3, 2/3, and a label in the middle is worked out by hand."""
    weights = np.zeros((4, 4))
    for node in range(3):
        weights[node, node + 1] = weights[node + 1, node] = 1.0
    field = gaussian_fields.solve(weights, [0, 3], [0, 1])
    np.testing.assert_allclose(field.means, [0, 1 / 3, 2 / 3, 1], atol=1e-15)
    np.testing.assert_allclose(field.green[1:3, 1:3], np.array([[2, 1], [1, 2]]) / 3, atol=1e-15)
    assert gaussian_fields.risk(field) == pytest.approx(2 / 3)
    # Node 1: the answer 0 leaves 1/2 at node 2, the answer 1 leaves 1.
    expected = [2 / 3, 2 / 3 * 0.5, 2 / 3 * 0.5, 2 / 3]
    np.testing.assert_allclose(gaussian_fields.expected_risks(field), expected, atol=1e-15)
    scores = gaussian_fields.minimum_bayes_risk(field)
    np.testing.assert_allclose(scores, [-np.inf, 1 / 3, 1 / 3, -np.inf], atol=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_solve_is_the_definition(seed: int):
    weights, positions, labels = problem(seed)
    field = gaussian_fields.solve(weights, positions, labels)
    np.testing.assert_allclose(field.means, harmonic(weights, positions, labels), atol=1e-12)
    assert field.means.dtype == field.green.dtype == np.float64
    assert np.flatnonzero(field.labelled).tolist() == positions
    free = np.flatnonzero(~field.labelled)
    laplacian = np.diag((weights - np.diag(np.diag(weights))).sum(axis=1)) - (
        weights - np.diag(np.diag(weights))
    )
    product = field.green[np.ix_(free, free)] @ laplacian[np.ix_(free, free)]
    np.testing.assert_allclose(product, np.eye(len(free)), atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_expected_risks_are_those_of_solving_again(seed: int):
    weights, positions, labels = problem(seed)
    field = gaussian_fields.solve(weights, positions, labels)
    found = gaussian_fields.expected_risks(field)
    for node in range(len(weights)):
        if node in positions:
            assert found[node] == gaussian_fields.risk(field)
            continue
        risks = [
            risk_of(harmonic(weights, [*positions, node], [*labels, answer])) for answer in (0, 1)
        ]
        here = field.means[node]
        assert found[node] == pytest.approx((1 - here) * risks[0] + here * risks[1], abs=1e-11)


def test_expected_risks_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch):
    field = gaussian_fields.solve(*problem())
    whole = gaussian_fields.expected_risks(field)
    monkeypatch.setattr(gaussian_fields, "_CHUNK", 5)
    np.testing.assert_allclose(gaussian_fields.expected_risks(field), whole, rtol=1e-14)


def test_tell_is_solving_with_one_label_more():
    weights, positions, labels = problem()
    _, truth = clouds()
    field = gaussian_fields.solve(weights, positions, labels)
    before = field.means.copy()
    for node in (5, 8, 23, 2):
        field = gaussian_fields.tell(field, node, int(truth[node]))
        positions, labels = [*positions, node], [*labels, int(truth[node])]
        again = gaussian_fields.solve(weights, positions, labels)
        np.testing.assert_allclose(field.means, again.means, atol=1e-12)
        np.testing.assert_allclose(field.green, again.green, atol=1e-10)
        assert (field.labelled == again.labelled).all()
    assert (gaussian_fields.solve(*problem()).means == before).all()


def test_a_label_never_raises_the_expected_risk():
    for seed in range(5):
        field = gaussian_fields.solve(*problem(seed))
        scores = gaussian_fields.minimum_bayes_risk(field)
        assert scores[~field.labelled].min() >= -1e-12
        assert (scores[field.labelled] == -np.inf).all()


def test_extend_is_what_an_added_node_would_have():
    """A node whose weights back are negligible does not disturb the others."""
    points, truth = clouds()
    weights, positions, labels = problem()
    field = gaussian_fields.solve(weights, positions, labels)
    new = RNG.normal(size=(4, 3))
    to_nodes = gaussian_fields.gaussian_weights(new, points, width=1.3)
    found = gaussian_fields.extend(field, to_nodes)
    for row in range(4):
        grown = np.zeros((25, 25))
        grown[:24, :24] = weights
        grown[24, :24] = grown[:24, 24] = 1e-9 * to_nodes[row]
        assert found[row] == pytest.approx(harmonic(grown, positions, labels)[24], abs=1e-7)
    assert gaussian_fields.extend(field, np.zeros((1, 24))).tolist() == [0.5]


def test_class_mass_threshold_gives_classes_their_share():
    for seed in range(3):
        field = gaussian_fields.solve(*problem(seed))
        free = field.means[~field.labelled]
        ones = int(field.means[field.labelled].sum())
        share = (ones + 1) / (3 + 2)
        scaled = np.stack([(1 - share) * (1 - free) / (1 - free).sum(), share * free / free.sum()])
        expected = scaled.argmax(axis=0)
        threshold = gaussian_fields.class_mass_threshold(field)
        np.testing.assert_array_equal(free > threshold, expected == 1)
        assert 0 < threshold < 1
    weights = np.ones((3, 3))
    alike = gaussian_fields.solve(weights, [0, 1], [1, 1])  # nothing speaks for class 0
    assert gaussian_fields.class_mass_threshold(alike) == 0.5


def test_weights_are_the_definition():
    points = RNG.normal(size=(6, 4)) + 100
    others = RNG.normal(size=(3, 4)) + 100
    direct = ((points[:, None] - others) ** 2).sum(axis=2)
    found = gaussian_fields.gaussian_weights(points, others, width=2.0)
    np.testing.assert_allclose(found, np.exp(-direct / 4), rtol=1e-10)
    own = gaussian_fields.gaussian_weights(points, width=2.0)
    assert (own == own.T).all() and (np.diag(own) == 1).all()


def test_spanning_tree_width_by_hand():
    """0 . 1 . 2 ..... 7 . 8: the gap of 5 joins the classes; 20 is an outlier that comes later."""
    points = np.array([[0.0], [1.0], [2.0], [7.0], [8.0], [20.0]])
    assert gaussian_fields.spanning_tree_width(points, [0, 4], [0, 1]) == pytest.approx(5 / 3)
    # With a label within the first group, its own edge of length 1 comes first.
    assert gaussian_fields.spanning_tree_width(points, [0, 4, 2], [0, 1, 1]) == pytest.approx(1 / 3)
    doubled = np.vstack([points, points[:1]])  # a copy of a point is joined at once
    assert gaussian_fields.spanning_tree_width(doubled, [6, 4], [0, 1]) == pytest.approx(5 / 3)
    with pytest.raises(ValueError, match="coincide"):
        gaussian_fields.spanning_tree_width(doubled, [0, 6], [0, 1])
    with pytest.raises(ValueError, match="give labels of both"):
        gaussian_fields.spanning_tree_width(points, [0, 1], [1, 1])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: (w[:, :5], [0], [0]), "symmetric"),
        (lambda w: (-w, [0], [0]), "not negative"),
        (lambda w: (w, [0, 0], [0, 1]), "twice"),
        (lambda w: (w, [0, 1], [0, 2]), "0 or 1"),
        (lambda w: (w, [0, 99], [0, 1]), "0..23"),
        (lambda w: (w, [], []), "at least one label"),
        (lambda w: (w[0], [0], [0]), "two axes"),
        (lambda w: (w, [0, 1], [0]), r"positions \[L\]"),
    ],
)
def test_solve_refuses(change, message: str):
    weights, _, _ = problem()
    with pytest.raises(ValueError, match=message):
        gaussian_fields.solve(*change(weights))


@pytest.mark.parametrize("width", [1e-3, 0.05])
def test_a_width_that_cuts_points_off_is_refused(width: float):
    points = np.array([[0.0], [0.01], [5.0], [5.01], [1.0]])
    weights = gaussian_fields.gaussian_weights(points, width=width)
    with pytest.raises(ValueError, match="larger width"):
        gaussian_fields.solve(weights, [0, 1], [0, 1])


def test_other_refusals():
    weights, positions, labels = problem()
    field = gaussian_fields.solve(weights, positions, labels)
    with pytest.raises(ValueError, match="no unlabelled one"):
        gaussian_fields.tell(field, positions[0], 1)
    with pytest.raises(ValueError, match="0 or 1"):
        gaussian_fields.tell(field, 5, 3)
    with pytest.raises(ValueError, match="a column for each node"):
        gaussian_fields.extend(field, np.ones((2, 3)))
    with pytest.raises(ValueError, match="width must be positive"):
        gaussian_fields.gaussian_weights(np.ones((2, 2)), width=0.0)
    with pytest.raises(ValueError, match="inputs have 2 features, others 3"):
        gaussian_fields.squared_distances(np.ones((2, 2)), np.ones((2, 3)))


@pytest.fixture(scope="module")
def two_digits() -> data_utils.Dataset:
    return data_utils.take_classes(data_utils.load_dataset("digits"), (4, 9))


def test_run(two_digits: data_utils.Dataset):
    told = []
    found = gaussian_fields.run(
        gaussian_fields.FieldConfig(acquisition_size=3, num_validation=20, pool_size=150),
        two_digits,
        seeds=(0, 1),
        labels=12,
        on_cell=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert set(found.cells) == {
        (name, seed) for name in gaussian_fields.ACQUISITIONS for seed in (0, 1)
    }
    for (_, seed), curve in found.cells.items():
        assert curve.labels.tolist() == [4, 7, 10, 12]
        splits = experiment.seed_splits(
            experiment.Config(num_initial_per_class=2, num_validation=20), two_digits, seed
        )
        assert np.array_equal(curve.initial_rows, splits.initial)
        asked = np.concatenate(curve.rows)
        assert len(np.unique(asked)) == 8 and np.isin(asked, splits.pool).all()
        assert curve.test["accuracy"][-1] > 0.8
        assert curve.test["accuracy_class_mass"][-1] > 0.8
    mbr, random = found.cells["minimum_bayes_risk", 0], found.cells["random", 0]
    assert mbr.test["accuracy"][0] == random.test["accuracy"][0]  # the same field to begin with
    assert mbr.rows[0].tolist() != random.rows[0].tolist()
    assert (np.diff(mbr.scores[0]) <= 0).all()
    assert mbr.fitted["risk"][-1] < mbr.fitted["risk"][0]


def test_run_asks_for_what_lowers_the_risk_most(two_digits: data_utils.Dataset):
    config = gaussian_fields.FieldConfig(pool_size=60, width=1.5)
    found = gaussian_fields.run(config, two_digits, ["minimum_bayes_risk"], labels=6)
    curve = found.cells["minimum_bayes_risk", 0]
    splits = experiment.seed_splits(experiment.Config(num_validation=0), two_digits, 0)
    rows = np.concatenate([splits.initial, data_utils.pool_subset(0, 0, splits.pool, 60)])
    points = np.asarray(two_digits.images[rows], np.float64).reshape(len(rows), -1)
    weights = gaussian_fields.gaussian_weights(points, width=1.5)
    positions = list(range(4))
    for asked in curve.rows[:2]:
        labels = two_digits.labels[rows[positions]].tolist()
        means = harmonic(weights, positions, labels)
        expected = {}
        for node in sorted(set(range(len(rows))) - set(positions)):
            risks = [
                risk_of(harmonic(weights, [*positions, node], [*labels, answer]))
                for answer in (0, 1)
            ]
            expected[node] = (1 - means[node]) * risks[0] + means[node] * risks[1]
        best = min(expected, key=expected.__getitem__)
        assert rows[best] == asked[0]
        positions.append(best)


@pytest.mark.parametrize(
    "changes, options, message",
    [
        ({}, {"labels": 3}, "budget"),
        ({}, {"labels": 10_000}, "budget"),
        ({}, {"acquisitions": ["bald"]}, "unknown acquisition"),
        ({"acquisition_size": 0}, {}, "acquisition_size"),
        ({"width": -1.0}, {}, "width"),
    ],
)
def test_run_refuses(two_digits, changes: dict, options: dict, message: str):
    config = gaussian_fields.FieldConfig(pool_size=50)._replace(**changes)
    with pytest.raises(ValueError, match=message):
        gaussian_fields.run(config, two_digits, **options)


def test_run_refuses_ten_classes():
    with pytest.raises(ValueError, match="take_classes"):
        gaussian_fields.run(gaussian_fields.FieldConfig(), data_utils.load_dataset("digits"))
