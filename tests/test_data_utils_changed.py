"""Rare classes, wrong labels, merged classes: what changes, and that it is known for other data."""

import numpy as np
import pytest
from driver import CONFIG, go

from bayesian_active_learning import data_utils, history
from bayesian_active_learning.data_utils import (
    flip_labels,
    from_arrays,
    make_splits,
    merge_classes,
    take_rows,
    thin_classes,
)

LABELS = np.random.default_rng(0).permutation(np.arange(1000) % 5).astype(np.int32)
DATA = from_arrays(np.arange(2000).reshape(1000, 2), LABELS, name="mine")
TRAIN = LABELS[DATA.train_rows]


def counts(dataset):
    return np.bincount(dataset.labels[dataset.train_rows], minlength=dataset.num_classes).tolist()


def test_thinning_keeps_a_share_of_some_classes_and_all_else():
    thin = thin_classes(DATA, {2: 0.25, 4: 0.0})
    assert counts(DATA) == [160] * 5
    assert counts(thin) == [160, 160, 40, 160, 0]
    assert set(thin.train_rows) < set(DATA.train_rows)
    assert np.isin(DATA.train_rows[~np.isin(TRAIN, [2, 4])], thin.train_rows).all()
    np.testing.assert_array_equal(thin.test_rows, DATA.test_rows)
    assert thin.images is DATA.images and thin.labels is DATA.labels
    assert thin.train_rows.dtype == np.int32 and (np.diff(thin.train_rows) > 0).all()


def test_thinning_is_fixed_by_the_seed_and_nested_in_the_share():
    first, second = thin_classes(DATA, {2: 0.25}), thin_classes(DATA, {2: 0.25})
    np.testing.assert_array_equal(first.train_rows, second.train_rows)
    assert first.content_hash == second.content_hash
    other = thin_classes(DATA, {2: 0.25}, seed=1)
    assert set(other.train_rows) != set(first.train_rows)
    assert set(first.train_rows) < set(thin_classes(DATA, {2: 0.5}).train_rows)
    reversed_rows = DATA._replace(train_rows=DATA.train_rows[::-1])
    np.testing.assert_array_equal(
        thin_classes(reversed_rows, {2: 0.25}).train_rows, first.train_rows
    )


def test_pinned_rows():
    """A change here would change every run on such data: seeds must keep their meaning."""
    kept = thin_classes(DATA, {2: 0.03}).train_rows
    assert kept[LABELS[kept] == 2].tolist() == PINNED_KEPT
    wrong = flip_labels(DATA, 0.005).labels
    changed = np.flatnonzero(wrong != LABELS)
    assert dict(zip(changed.tolist(), wrong[changed].tolist())) == PINNED_WRONG


PINNED_KEPT = [304, 594, 710, 789, 982]
PINNED_WRONG = {518: 1, 559: 1, 789: 0, 997: 4}


def test_flipping_makes_exactly_a_share_of_training_labels_wrong():
    for rate, number in ((0.0, 0), (0.1, 80), (1.0, 800)):
        noisy = flip_labels(DATA, rate)
        wrong = np.flatnonzero(noisy.labels != LABELS)
        assert len(wrong) == number and np.isin(wrong, DATA.train_rows).all()
        assert noisy.labels.min() >= 0 and noisy.labels.max() < 5
        assert noisy.labels.dtype == np.int32
    assert (LABELS == DATA.labels).all()  # the data set given is left alone
    # All four other classes, none of them far more often: chi-squared with 3 degrees of freedom.
    steps = np.bincount((noisy.labels - LABELS)[DATA.train_rows] % 5, minlength=5)
    assert steps[0] == 0 and np.sum((steps[1:] - 200) ** 2 / 200) < 16.3  # p = 0.001


def test_flips_are_fixed_by_the_seed_and_nested_in_the_rate():
    low, high = flip_labels(DATA, 0.1).labels, flip_labels(DATA, 0.3).labels
    np.testing.assert_array_equal(low, flip_labels(DATA, 0.1).labels)
    wrong = low != LABELS
    np.testing.assert_array_equal(low[wrong], high[wrong])
    assert (flip_labels(DATA, 0.1, seed=1).labels != low).any()


def test_flips_are_independent_of_thinning_and_splits():
    """One stream for two purposes would remove, or validate on, just the wrong labels."""
    wrong = flip_labels(DATA, 0.25).labels != LABELS
    thin = thin_classes(DATA, dict.fromkeys(range(5), 0.25))
    splits = make_splits(
        0, LABELS, DATA.train_rows, DATA.test_rows, num_classes=5, num_validation=200
    )
    for rows in (thin.train_rows, splits.validation):
        assert 25 < wrong[rows].sum() < 75  # 50 of 200 expected, deviation about 5


def test_merged_classes():
    merged = merge_classes(DATA, [(3,), (1, 0), (4, 2)])
    assert merged.num_classes == 3
    np.testing.assert_array_equal(merged.labels, np.array([1, 1, 2, 0, 2])[LABELS])
    np.testing.assert_array_equal(merged.train_rows, DATA.train_rows)
    assert merged.name == "mine, classes 3 | 1 0 | 4 2"


def test_rows_taken():
    few = take_rows(DATA, train_rows=DATA.train_rows[:10][::-1], name="10 rows")
    np.testing.assert_array_equal(few.train_rows, DATA.train_rows[:10])
    np.testing.assert_array_equal(few.test_rows, DATA.test_rows)
    some = take_rows(few, test_rows=DATA.test_rows[5:9], name="4 test rows")
    np.testing.assert_array_equal(some.test_rows, DATA.test_rows[5:9])
    assert some.name == "mine, 10 rows, 4 test rows"


def test_every_change_is_other_data():
    changed = [
        DATA,
        thin_classes(DATA, {2: 0.25}),
        thin_classes(DATA, {2: 0.5}),
        thin_classes(DATA, {2: 0.25}, seed=1),
        flip_labels(DATA, 0.1),
        flip_labels(DATA, 0.1, seed=1),
        flip_labels(thin_classes(DATA, {2: 0.25}), 0.1),
        merge_classes(DATA, [(0,), (1,), (2, 3, 4)]),
        merge_classes(DATA, [(0,), (2, 3, 4), (1,)]),
        take_rows(DATA, test_rows=DATA.test_rows[:10], name="10 test rows"),
    ]
    assert len({data.content_hash for data in changed}) == len(changed)
    assert len({data.name for data in changed}) == len(changed)
    assert all(len(data.content_hash) == 64 for data in changed)


def test_a_run_goes_on_with_its_own_data_only(tmp_path):
    digits = data_utils.load_digits()
    thin = thin_classes(digits, {2: 0.1})
    found = go(data=thin, labels=15, directory=tmp_path)
    twos = np.flatnonzero(digits.labels == 2)
    asked = np.concatenate(found.cells["bald", 0].rows)
    assert np.isin(np.intersect1d(asked, twos), thin.train_rows).all()
    with pytest.raises(history.HistoryError, match="content_hash"):
        go(data=digits, labels=20, directory=tmp_path)
    label = history.dataset_label(found)
    assert label == "digits (8x8), NOT MNIST, 10 % of class 2 (seed 0)"
    assert "NOT MNIST: nothing here says anything" in history.notice(found)
    assert CONFIG.num_validation == 10  # drawn from what is left of the training rows


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda: thin_classes(DATA, {5: 0.5}), "class 5 is not among 0..4"),
        (lambda: thin_classes(DATA, {2: 25}), r"share of class 2 must lie in \[0, 1\], got 25"),
        (lambda: thin_classes(DATA, {2: 0.5}, seed=-1), "seed must not be negative, got -1"),
        (lambda: flip_labels(DATA, 10), r"rate must lie in \[0, 1\], got 10"),
        (lambda: flip_labels(DATA, float("nan")), r"rate must lie in \[0, 1\], got nan"),
        (lambda: merge_classes(DATA, [(0, 1), (2, 3)]), "each of the classes 0..4"),
        (lambda: merge_classes(DATA, [(0, 1), (1, 2, 3, 4)]), "each of the classes 0..4"),
        (lambda: merge_classes(DATA, [(0, 1, 2, 3, 4), ()]), "no group empty"),
        (lambda: merge_classes(DATA, [(0, 1, 2, 3, 4)]), "at least two groups are needed, got 1"),
        (lambda: take_rows(DATA, train_rows=[], name="none"), "train_rows is empty"),
        (
            lambda: take_rows(DATA, train_rows=DATA.test_rows[:1], name="other"),
            "is not among the train_rows of mine",
        ),
        (lambda: take_rows(DATA, test_rows=[0.5], name="half"), "test_rows must be a list of int"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        change()
