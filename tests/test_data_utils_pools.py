"""Repeated, curated, unbalanced and redundant pools."""

import numpy as np
import pytest
import scipy.stats

from bayesian_active_learning import data_utils, experiment, history
from bayesian_active_learning.data_utils import POOLS, ScaledSource, load_dataset
from bayesian_active_learning.history import summary


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def counts(dataset):
    labels = dataset.labels[dataset.train_rows]
    return np.bincount(labels, minlength=dataset.num_classes).tolist()


def test_repeated_rows_are_copies_with_noise_of_their_own(digits):
    found = data_utils.repeated(digits, copies=3, noise=0.1)
    train = digits.train_rows
    assert len(found.train_rows) == 3 * len(train)
    assert found.images.shape == (len(digits.labels) + 2 * len(train), 8, 8, 1)
    np.testing.assert_array_equal(found.test_rows, digits.test_rows)
    clean = digits.images[train]
    spread = clean.std(dtype=np.float64)
    noises = []
    for part in range(3):
        rows = found.train_rows[part * len(train) : (part + 1) * len(train)]
        np.testing.assert_array_equal(found.labels[rows], digits.labels[train])
        noises.append((found.images[rows] - clean) / (0.1 * spread))
    noise = np.stack(noises).reshape(3, -1)
    assert scipy.stats.kstest(noise.ravel()[::7], "norm").pvalue > 0.001
    assert np.abs(np.corrcoef(noise) - np.eye(3)).max() < 0.02
    # Neighbouring rows, and the halves of a row, which come from the same bits.
    assert abs(np.corrcoef(noise[0, :-64], noise[0, 64:])[0, 1]) < 0.02
    halves = noise.reshape(-1, 2, 32)
    assert abs(np.corrcoef(halves[:, 0].ravel(), halves[:, 1].ravel())[0, 1]) < 0.02


def test_few_rows_of_each_class_repeated(digits):
    """Every row of a small pool has its copies in it, and they are those of the curated rows."""
    found = data_utils.repeated(digits, copies=3, noise=0.0, per_class=20)
    assert counts(found) == [60] * 10
    originals = data_utils.curated(digits, per_class=20).train_rows
    parts = found.train_rows.reshape(3, 200)
    np.testing.assert_array_equal(parts[0], originals)
    for part in parts:
        np.testing.assert_array_equal(found.images[part], digits.images[originals])
    np.testing.assert_array_equal(found.test_rows, digits.test_rows)
    by_name = load_dataset("repeated_digits:per_class=20,noise=0")
    assert by_name.content_hash == found.content_hash
    assert found.content_hash != data_utils.repeated(digits, noise=0.0).content_hash


def test_test_rows_stay_clean(digits):
    found = data_utils.repeated(digits, noise=5.0)
    np.testing.assert_array_equal(found.images[digits.test_rows], digits.images[digits.test_rows])


def test_noise_belongs_to_the_row_however_it_is_read(digits):
    images = data_utils.repeated(digits, copies=2).images
    whole = images[:]
    rows = np.array([5, len(whole) - 1, 5, 700, -3])
    np.testing.assert_array_equal(images[rows], whole[rows])
    np.testing.assert_array_equal(images[3:30:4], whole[3:30:4])
    for row in (5, -1, int(digits.test_rows[0]), int(digits.train_rows[0])):
        np.testing.assert_array_equal(images[row], whole[row])
    with pytest.raises(IndexError):
        images[len(whole)]


def test_repeated_inputs_are_standardised_as_others(digits):
    found = data_utils.repeated(digits)
    scaled = data_utils.standardise(found, found.train_rows)
    values = scaled.images[found.train_rows].astype(np.float64)
    assert abs(values.mean()) < 1e-5 and abs(values.std() - 1) < 1e-5
    with pytest.raises(ValueError, match="repeat a data set first and standardise it then"):
        data_utils.repeated(data_utils.standardise(digits, digits.train_rows))


def test_features_are_repeated_too():
    features = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32) * [1, 2, 3, 4, 5]
    labels = np.arange(40) % 2
    dataset = data_utils.from_arrays(features, labels)
    found = data_utils.repeated(dataset, copies=2, noise=0.0)
    train = dataset.train_rows
    np.testing.assert_array_equal(found.images[found.train_rows[len(train) :]],
                                  dataset.images[train])  # fmt: skip
    noisy = data_utils.repeated(dataset, copies=200, noise=1.0)
    added = noisy.images[noisy.train_rows] - np.tile(dataset.images[train], (200, 1))
    np.testing.assert_allclose(added.std(0), dataset.images[train].std(0), rtol=0.05)


def test_curated_and_unbalanced_count_their_classes(digits):
    curated = data_utils.curated(digits, per_class=50)
    assert counts(curated) == [50] * 10
    assert counts(data_utils.curated(digits)) == [min(counts(digits))] * 10
    found = data_utils.unbalanced(digits, per_class=50, num_rare=3, keep=0.1)
    assert counts(found) == [5] * 3 + [50] * 7
    assert set(found.train_rows) < set(curated.train_rows) < set(digits.train_rows)
    np.testing.assert_array_equal(found.test_rows, digits.test_rows)
    other = data_utils.curated(digits, per_class=50, seed=1)
    assert set(other.train_rows) != set(curated.train_rows)


def test_redundant_asks_about_two_classes(digits):
    found = data_utils.redundant(digits, first=1, second=7, per_class=100)
    assert counts(found) == [100, 100, 800] and found.num_classes == 3
    for name, label in (("first", 1), ("second", 7)):
        new = {"first": 0, "second": 1}[name]
        np.testing.assert_array_equal(found.labels == new, digits.labels == label)
    assert set(found.labels[found.test_rows]) == {0, 1}
    assert len(found.test_rows) == np.isin(digits.labels[digits.test_rows], (1, 7)).sum()


@pytest.mark.parametrize("pool", POOLS)
def test_by_name_with_options(digits, pool):
    named = load_dataset(f"{pool}_digits:seed=3")
    plain = POOLS[pool](digits, seed=3)
    np.testing.assert_array_equal(named.train_rows, plain.train_rows)
    assert named.content_hash == plain.content_hash
    assert named.name == f"{pool}_digits:seed=3" and plain.name == f"{pool}_digits"
    hashes = {load_dataset(f"{pool}_digits").content_hash, named.content_hash, digits.content_hash}
    assert len(hashes) == 3


@pytest.mark.parametrize("pool", POOLS)
def test_the_content_is_what_the_hash_was_taken_of(pool):
    """The hash comes from names and numbers; the rows and inputs must follow from them alone."""
    first, second = (load_dataset(f"{pool}_digits") for _ in range(2))
    for field in ("labels", "train_rows", "test_rows"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))
    rows = first.train_rows[::13]
    np.testing.assert_array_equal(first.images[rows], second.images[rows])


def test_noise_is_the_same_for_ever():
    """By Box & Muller's formula from NumPy's raw bits of (seed, row)."""
    features = np.random.default_rng(1).normal(size=(40, 2)).astype(np.float32)
    dataset = data_utils.from_arrays(features, np.arange(40) % 2)
    found = data_utils.repeated(dataset, noise=1.0, seed=7)
    noise = found.images[found.train_rows[:1]] - dataset.images[dataset.train_rows[:1]]
    bits = np.random.Philox(key=7, counter=[0, 0, int(found.train_rows[0]), 0]).random_raw(1)[0]
    uniform = ((int(bits) >> 32) + 1) / 2**32
    angle = 2 * np.pi * (int(bits) & 0xFFFFFFFF) / 2**32
    normals = np.sqrt(-2 * np.log(uniform)) * np.array([np.cos(angle), np.sin(angle)])
    spread = dataset.images[dataset.train_rows].std(0)
    np.testing.assert_allclose(noise[0], normals * spread, rtol=1e-5)


@pytest.mark.parametrize(
    ("pool", "options", "message"),
    [
        ("repeated", {"copies": 0}, "copies must be at least 1, got 0"),
        ("repeated", {"noise": -1.0}, "noise must be 0 or above and finite, got -1.0"),
        ("repeated", {"noise": np.inf}, "noise must be 0 or above and finite, got inf"),
        ("repeated", {"seed": -1}, "seed must not be negative, got -1"),
        ("repeated", {"per_class": -1}, "per_class must be at least 1, got -1"),
        ("curated", {"per_class": 0}, "per_class must be at least 1, got 0"),
        ("curated", {"seed": -1}, "seed must not be negative, got -1"),
        ("unbalanced", {"num_rare": 11}, r"num_rare must lie in 0..10, got 11"),
        ("unbalanced", {"keep": 1.5}, r"keep must lie in \[0, 1\], got 1.5"),
        ("redundant", {"second": 1}, r"two of the classes 0..9, got 1 and 1"),
        ("redundant", {"first": 12}, r"two of the classes 0..9, got 12 and 7"),
    ],
)
def test_refusals(digits, pool, options, message):
    with pytest.raises(ValueError, match=message):
        POOLS[pool](digits, **options)


def test_repeated_needs_inputs_that_can_be_scaled(digits):
    with pytest.raises(ValueError, match=r"wrap the array: ScaledSource\(array\)"):
        data_utils.repeated(digits._replace(images=digits.images[:]))
    assert isinstance(data_utils.repeated(digits).images, ScaledSource)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("repeated_nothing", "unknown dataset 'nothing'; known: mnist"),
        ("repeated_digits:speed=3", "unknown option of 'repeated_digits': 'speed'"),
        ("changed_digits", "unknown dataset 'changed_digits'"),
        ("curated_digits:per_class=x", "option 'per_class' .* must be of type int, got 'x'"),
    ],
)
def test_names_that_are_not_known(name, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(name)


def test_a_run_on_repeated_digits_asks_for_copies_and_goes_on(tmp_path):
    """The pool holds copies of what is labelled, by rows of their own; files name the data."""
    dataset = load_dataset("repeated_digits:copies=2")
    dataset = data_utils.standardise(dataset, dataset.train_rows)
    config = experiment.Config(
        model="linear", num_samples=1, num_test_samples=1, num_validation=0, pool_size=0,
        posterior="deterministic", fit=experiment.Config().fit._replace(min_steps=20, epochs=0.0),
    )  # fmt: skip
    found = experiment.run(config, dataset, ["margin"], [0], labels=60, directory=tmp_path)
    curve = found.cells["margin", 0]
    rows = np.concatenate([curve.initial_rows, *curve.rows])
    assert len(set(rows.tolist())) == len(rows) == 60
    assert (rows >= len(load_dataset("digits").labels)).any()  # copies are asked for too
    assert found.config["identity"]["dataset"] == "repeated_digits:copies=2"
    again = experiment.run(config, dataset, ["margin"], [0], labels=70, directory=tmp_path)
    assert again.cells["margin", 0].labels[-1] == 70


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("repeated_mnist", "Repeated MNIST"),
        ("unbalanced_fashion_mnist:keep=0.05", "Unbalanced Fashion-MNIST (keep=0.05)"),
        ("redundant_digits", "Redundant digits (8x8), NOT MNIST"),
        ("mnist", "MNIST"),
        ("fashion_mnist", "Fashion-MNIST"),
        ("npz:my_mnist", "npz:my_mnist"),
        ("my_mnist", "my_mnist"),
    ],
)
def test_labels_of_figures(name, label):
    assert set(summary.POOLS) == set(POOLS)
    assert history.dataset_label(history.History({"identity": {"dataset": name}}, {})) == label
