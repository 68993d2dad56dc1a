"""Sets of rows: balance, determinism, files, refusals."""

import json

import numpy as np
import pytest

from bayesian_active_learning.data_utils import (
    DataError,
    Splits,
    from_arrays,
    load_splits,
    make_splits,
    pool_subset,
    save_splits,
)

LABELS = np.random.default_rng(0).permutation(np.arange(200) % 4).astype(np.int32)
TRAIN, TEST = np.arange(150, dtype=np.int32), np.arange(150, 200, dtype=np.int32)
DATASET = from_arrays(np.arange(400).reshape(200, 2), LABELS)


def make(seed=0, **changed):
    options = {"num_classes": 4, "num_initial_per_class": 3, "num_validation": 20, **changed}
    return make_splits(seed, LABELS, TRAIN, TEST, **options)


def test_sets_are_balanced_disjoint_ascending_and_complete():
    splits = make()
    assert np.bincount(LABELS[splits.initial]).tolist() == [3] * 4
    assert len(splits.validation) == 20
    np.testing.assert_array_equal(splits.test, TEST)
    np.testing.assert_array_equal(np.sort(np.concatenate(splits)), np.arange(200))
    for rows in splits:
        assert rows.dtype == np.int32 and (np.diff(rows) > 0).all()


def test_depends_on_the_seed_only():
    for first, second in zip(make(1), make(1)):
        np.testing.assert_array_equal(first, second)
    shuffled = make_splits(1, LABELS, TRAIN[::-1], TEST[::-1], num_classes=4, num_validation=20)
    plain = make_splits(1, LABELS, TRAIN, TEST, num_classes=4, num_validation=20)
    for first, second in zip(shuffled, plain):
        np.testing.assert_array_equal(first, second)
    assert make(1).initial.tolist() != make(2).initial.tolist()
    assert make(1).validation.tolist() != make(2).validation.tolist()


def test_pinned_rows():
    """A change here would change every run: seeds must keep their meaning."""
    splits = make(0, num_initial_per_class=1, num_validation=4)
    assert (splits.initial.tolist(), splits.validation.tolist()) == PINNED
    assert pool_subset(0, 3, splits.pool, 5).tolist() == PINNED_SUBSET


PINNED = ([17, 46, 60, 101], [34, 113, 116, 134])
PINNED_SUBSET = [2, 58, 108, 118, 121]


def test_larger_sets_contain_smaller_ones():
    small, large = make(num_initial_per_class=2), make(num_initial_per_class=5)
    assert set(small.initial) < set(large.initial)
    assert set(make(num_validation=10).validation) < set(make(num_validation=30).validation)
    np.testing.assert_array_equal(make(num_validation=0).initial, make().initial)


def test_empty_initial_and_validation_sets():
    splits = make(num_initial_per_class=0, num_validation=0)
    assert splits.initial.shape == splits.validation.shape == (0,)
    assert splits.initial.dtype == np.int32
    np.testing.assert_array_equal(splits.pool, TRAIN)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"num_initial_per_class": -1}, "must not be negative, got -1 and 20"),
        ({"num_validation": -5}, "must not be negative, got 3 and -5"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        (
            {"num_initial_per_class": 60},
            r"cannot be balanced: class 0 has \d+ rows .* asks for 60; ask for fewer",
        ),
        ({"num_classes": 5}, "class 4 has 0 rows"),
        ({"num_classes": 3}, r"labels of train_rows must lie in 0\.\.2, got 0\.\.3"),
        ({"num_validation": 139}, "asks for 139 rows, but 138 of 150 training rows are left"),
        ({"num_validation": 138}, "the pool is empty: 12 initial and 138 validation"),
    ],
)
def test_refusals(changed, message):
    with pytest.raises(ValueError, match=message):
        make(**changed)


@pytest.mark.parametrize(
    "train, test, message",
    [
        ([0, 1, 1], [5], "train_rows has row 1 more than once"),
        ([0, 1, 5], [5], "row 5 is in both train_rows and test_rows"),
        ([0, 200], [5], r"train_rows must lie in 0\.\.199, got 200"),
        ([0], [-1], r"test_rows must lie in 0\.\.199, got -1"),
        ([0.0, 1.0], [5], "train_rows must be a list of integers, got float64"),
        ([], [5], "the pool is empty"),
    ],
)
def test_bad_rows_are_refused(train, test, message):
    with pytest.raises(ValueError, match=message):
        make_splits(
            0, LABELS, train, test, num_classes=4, num_initial_per_class=0, num_validation=0
        )


def test_pool_subset():
    pool = make().pool
    subset = pool_subset(0, 1, pool, 30)
    assert subset.dtype == np.int32 and (np.diff(subset) > 0).all() and len(subset) == 30
    assert set(subset) < set(pool)
    np.testing.assert_array_equal(subset, pool_subset(0, 1, pool[::-1], 30))
    assert subset.tolist() != pool_subset(0, 2, pool, 30).tolist()
    assert subset.tolist() != pool_subset(1, 1, pool, 30).tolist()
    for size in (None, 0, len(pool), 10**6):
        np.testing.assert_array_equal(pool_subset(0, 1, pool, size), pool)
    assert pool_subset(0, 1, [], 5).shape == (0,)


def test_pool_subset_is_shared_by_functions_whose_pools_differ_little():
    pool = make().pool
    first, second = pool_subset(0, 1, pool, 60), pool_subset(0, 1, pool[2:], 60)
    assert len(set(first) - set(second)) <= 2


def test_pool_subset_is_uniform():
    counts = np.zeros(40)
    for round_number in range(400):
        counts[pool_subset(7, round_number, np.arange(40), 10)] += 1
    # 400 draws with probability 1/4: deviation 8.7
    assert np.abs(counts - 100).max() < 40


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((-1, 0, TRAIN, 5), "seed must not be negative"),
        ((0, -1, TRAIN, 5), "round and size must not be negative, got -1 and 5"),
        ((0, 0, TRAIN, -5), "round and size must not be negative, got 0 and -5"),
        ((0, 0, [3, 3], 1), "pool_rows has row 3 more than once"),
        ((0, 0, [-3], 1), "pool_rows must lie in"),
    ],
)
def test_pool_subset_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        pool_subset(*arguments)


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_saved_splits_come_back_and_equal_splits_give_equal_bytes(tmp_path, suffix):
    splits = make(num_initial_per_class=0)
    path, again = tmp_path / f"splits{suffix}", tmp_path / f"again{suffix}"
    save_splits(path, splits, DATASET)
    save_splits(again, splits, DATASET)
    assert path.read_bytes() == again.read_bytes()
    for first, second in zip(load_splits(path, DATASET), splits):
        assert first.dtype == np.int32
        np.testing.assert_array_equal(first, second)
    assert sorted(file.name for file in tmp_path.iterdir()) == [again.name, path.name]


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_splits_of_other_data_are_refused(tmp_path, suffix):
    path = tmp_path / f"splits{suffix}"
    save_splits(path, make(), DATASET)
    other = DATASET._replace(content_hash="f" * 64)
    with pytest.raises(DataError, match=r"splits\..*made for arrays .* rows would mean other"):
        load_splits(path, other)


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"kept as \.json or \.npz, got '\.csv'"):
        save_splits(tmp_path / "splits.csv", make(), DATASET)
    with pytest.raises(ValueError, match=r"kept as \.json or \.npz, got ''"):
        load_splits(tmp_path / "splits", DATASET)


def test_save_refuses_sets_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="row 1 is in both validation and pool"):
        save_splits(tmp_path / "s.json", Splits([0], [1], [2], [1, 3]), DATASET)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"pool": [0, 200]}, r"pool must lie in 0\.\.199, got 200"),
        ({"pool": [-1]}, r"pool must lie in 0\.\.199, got -1"),
        ({"pool": [150]}, "row 150 is in both test and pool"),
        ({"initial": [4, 4]}, "initial has row 4 more than once"),
        ({"initial": [0.5]}, "initial must be a list of integers"),
        ({"initial": [True]}, "initial must be a list of integers"),
        ({"initial": [[1]]}, "initial must be a list of integers"),
        ({"initial": [[1], []]}, "initial must be a list of integers"),
        ({"initial": "abc"}, "initial must be a list of integers"),
        ({"pool": None}, "lacks pool; not an index-set file"),
    ],
)
def test_bad_files_are_named(tmp_path, changed, message):
    path = tmp_path / "splits.json"
    save_splits(path, make(), DATASET)
    contents = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps({k: v for k, v in contents.items() if v is not None}))
    with pytest.raises(DataError, match=message) as caught:
        load_splits(path, DATASET)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_unreadable_files(tmp_path, suffix):
    path = tmp_path / f"splits{suffix}"
    with pytest.raises(DataError, match="no such file"):
        load_splits(path, DATASET)
    save_splits(path, make(), DATASET)
    raw = path.read_bytes()
    for damaged in (raw[: len(raw) // 2], b"", b"\xff\xfe", raw[:99] + bytes(99) + raw[198:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="not a readable"):
            load_splits(path, DATASET)
    path.write_text("[]")
    with pytest.raises(DataError, match=r"not an index-set file|not a readable \.npz"):
        load_splits(path, DATASET)


def test_a_single_array_is_not_an_index_set(tmp_path):
    with (tmp_path / "splits.npz").open("wb") as file:
        np.save(file, TRAIN)
    with pytest.raises(DataError, match="a single array"):
        load_splits(tmp_path / "splits.npz", DATASET)
