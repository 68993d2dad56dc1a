"""Reading with scaling, canonical order, content hash, standardisation, digits."""

import hashlib
import sys

import numpy as np
import pytest

from bayesian_active_learning import data_utils
from bayesian_active_learning.data_utils import ScaledSource, canonical_order, content_hash

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 4, 5, 2)).astype(np.uint8)
LABELS = (np.arange(30) % 3).astype(np.int32)


def _dataset(inputs=IMAGES):
    return data_utils.from_arrays(inputs, LABELS)


def test_source_is_scaled_where_it_is_read():
    source = ScaledSource(IMAGES, 255.0)
    assert source.shape == (30, 4, 5, 2) and source.dtype == np.float32 and len(source) == 30
    assert source.base.dtype == np.uint8
    reference = IMAGES.astype(np.float64) / 255
    for rows in ([3, 1, 1], np.array([29, 0]), slice(2, 5), 7, np.int32(7), LABELS == 1):
        got = source[rows]
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, reference[rows], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(source), reference, rtol=1e-6)
    assert source[np.zeros(0, np.int32)].shape == (0, 4, 5, 2)
    with pytest.raises(IndexError):
        source[[30]]


def test_source_reads_what_jax_calls_rows():
    import jax.numpy as jnp

    np.testing.assert_array_equal(ScaledSource(IMAGES)[jnp.array([4, 2])], IMAGES[[4, 2]])


def test_source_never_hands_out_its_base():
    base = np.ones((3, 2), np.float32)
    ScaledSource(base)[:][:] = 5
    ScaledSource(base)[[0, 1]][:] = 5
    assert (base == 1).all()


def test_source_over_a_memory_map(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    dataset = _dataset(mapped)
    assert isinstance(dataset.images.base, np.memmap)
    assert dataset.content_hash == _dataset().content_hash
    np.testing.assert_array_equal(dataset.images[[5, 3]], _dataset().images[[5, 3]])
    assert not isinstance(dataset.images[[5, 3]], np.memmap)


def test_canonical_order_does_not_depend_on_the_order_given():
    order = canonical_order(IMAGES, LABELS)
    shuffled = np.random.default_rng(1).permutation(30)
    again = canonical_order(IMAGES[shuffled], LABELS[shuffled])
    np.testing.assert_array_equal(IMAGES[order], IMAGES[shuffled][again])
    np.testing.assert_array_equal(LABELS[order], LABELS[shuffled][again])
    np.testing.assert_array_equal(np.sort(order), np.arange(30))


def test_canonical_order_is_by_digest_of_image_and_label():
    digests = [
        hashlib.blake2b(image.tobytes() + int(label).to_bytes(4, "little"), digest_size=16).digest()
        for image, label in zip(IMAGES, LABELS)
    ]
    expected = sorted(range(30), key=lambda row: digests[row])
    assert canonical_order(IMAGES, LABELS).tolist() == expected


def test_content_hash_sees_values_labels_parts_and_dtype_but_not_layout():
    train, test = np.arange(20), np.arange(20, 30)
    base = content_hash(IMAGES, LABELS, train, test)
    assert base == content_hash(IMAGES.copy(order="F"), LABELS.astype(np.int64), train, test)
    changed = IMAGES.copy()
    changed[29, 0, 0, 0] ^= 1
    others = [
        content_hash(changed, LABELS, train, test),
        content_hash(IMAGES, LABELS[::-1], train, test),
        content_hash(IMAGES, LABELS, train[1:], test),
        content_hash(IMAGES.astype(np.float32), LABELS, train, test),
        content_hash(IMAGES.reshape(30, 40), LABELS, train, test),
    ]
    assert len({base, *others}) == 6
    floats = IMAGES.astype("<f4")
    assert content_hash(floats, LABELS, train, test) == content_hash(
        floats.astype(">f4"), LABELS, train, test
    )


def test_standardise_uses_the_given_rows_only():
    rows = [1, 4, 6]
    dataset = data_utils.standardise(_dataset(), rows)
    reference = IMAGES.astype(np.float64) / 255
    mean, std = reference[rows].mean(axis=(0, 1, 2)), reference[rows].std(axis=(0, 1, 2))
    np.testing.assert_allclose(dataset.images[:], (reference - mean) / std, rtol=1e-5, atol=1e-6)
    assert dataset.scaling == "uint8 / 255; then (x - mean) / std of 3 rows (2 channels)"
    assert dataset.content_hash == _dataset().content_hash
    assert dataset.images.base is IMAGES


def test_standardise_again_replaces_and_row_order_does_not_matter():
    once = data_utils.standardise(_dataset(), [7, 2])
    twice = data_utils.standardise(data_utils.standardise(_dataset(), [0, 1, 2]), [2, 7, 7])
    np.testing.assert_array_equal(once.images[:], twice.images[:])
    assert once.scaling == twice.scaling


def test_standardise_grey_images_says_numbers_and_survives_constants():
    dataset = data_utils.standardise(_dataset(np.full((30, 2, 2), 51, np.uint8)), [0, 1])
    assert dataset.scaling.endswith("of 2 rows (mean 0.2, std 1)")
    np.testing.assert_allclose(dataset.images[:], 0, atol=1e-7)


def test_standardise_features_one_by_one():
    features = np.random.default_rng(2).normal(3, [1, 10, 100], (30, 3))
    dataset = data_utils.standardise(_dataset(features), np.arange(30))
    np.testing.assert_allclose(dataset.images[:].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(dataset.images[:].std(axis=0), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "at least one row"),
        ([-1], r"must lie in 0\.\.29, got -1"),
        ([3, 30], r"must lie in 0\.\.29, got 3\.\.30"),
        ([0.5], "must be integers"),
    ],
)
def test_standardise_refuses(rows, message):
    with pytest.raises(ValueError, match=message):
        data_utils.standardise(_dataset(), rows)


def test_standardise_refuses_other_sources():
    with pytest.raises(ValueError, match=r"ScaledSource\(array\)"):
        data_utils.standardise(_dataset()._replace(images=IMAGES), [0])


def test_digits():
    dataset = data_utils.load_digits()
    assert dataset.images.shape == (1797, 8, 8, 1) and dataset.num_classes == 10
    assert dataset.name == "digits" and dataset.scaling == "0..16 / 16"
    assert dataset.images[:].min() == 0 and dataset.images[:].max() == 1
    assert dataset.labels.dtype == np.int32
    assert (len(dataset.train_rows), len(dataset.test_rows)) == (1258, 539)
    rows = np.concatenate([dataset.train_rows, dataset.test_rows])
    np.testing.assert_array_equal(rows, np.arange(1797))
    for rows, count in ((dataset.train_rows, 121), (dataset.test_rows, 52)):
        assert np.bincount(dataset.labels[rows]).min() >= count
    # Pinned: rows must mean the same examples in every version.
    assert dataset.content_hash == (
        "a5667aaf9d506a7d471045f5a7a7f98ea5fd66db2e8c27f03b0f1df74e82c968"
    )


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(data_utils.DataError, match="pip install scikit-learn"):
        data_utils.load_digits()


def test_flatten_keeps_the_values_and_the_identity():
    dataset = _dataset()
    flat = data_utils.flatten(dataset)
    assert flat.images.shape == (30, 40)
    np.testing.assert_array_equal(flat.images[:], dataset.images[:].reshape(30, -1))
    assert flat.content_hash == dataset.content_hash and "flattened" in flat.scaling
    assert data_utils.flatten(flat) is flat


def test_take_classes_renumbers_and_keeps_the_rest():
    whole = _dataset()
    taken = data_utils.take_classes(whole, (2, 0))
    kept = np.flatnonzero(whole.labels != 1)
    assert taken.num_classes == 2 and taken.name.endswith(", classes 2, 0")
    np.testing.assert_array_equal(taken.labels, np.where(whole.labels[kept] == 2, 0, 1))
    np.testing.assert_array_equal(taken.images[:], whole.images[kept])
    assert taken.images.base.dtype == np.uint8 and taken.scaling == whole.scaling
    for part in ("train_rows", "test_rows"):
        rows, theirs = getattr(taken, part), getattr(whole, part)
        assert rows.dtype == np.int32
        np.testing.assert_array_equal(kept[rows], theirs[whole.labels[theirs] != 1])
    assert taken.content_hash not in (
        whole.content_hash,
        data_utils.take_classes(whole, (0, 2)).content_hash,
    )
    scaled = data_utils.standardise(taken, taken.train_rows)
    np.testing.assert_allclose(scaled.images[taken.train_rows].mean(), 0, atol=1e-5)


def test_take_classes_of_another_source():
    source = _dataset()
    plain = source._replace(images=np.asarray(source.images[:]))
    taken = data_utils.take_classes(plain, (0, 1))
    np.testing.assert_array_equal(taken.images[:], plain.images[source.labels != 2])


@pytest.mark.parametrize(
    "classes, message", [((1,), "two classes"), ((1, 1), "each once"), ((0, 7), "of class 7")]
)
def test_take_classes_refusals(classes, message: str):
    with pytest.raises(ValueError, match=message):
        data_utils.take_classes(_dataset(), classes)


def test_unit_norm_leaves_angles():
    features = np.random.default_rng(0).normal(2, 3, (30, 4)).astype(np.float32)
    dataset = _dataset(features)
    rows = np.arange(20)
    found = data_utils.unit_norm(dataset, rows)
    directions = features.astype(float) / np.linalg.norm(features, axis=1, keepdims=True)
    centred = directions - directions[rows].mean(axis=0)
    expected = centred / np.sqrt((centred[rows] ** 2).sum(axis=1).mean())
    np.testing.assert_allclose(found.images[:], expected, atol=1e-5)
    longer = data_utils.unit_norm(_dataset(features * np.arange(1, 31)[:, None]), rows)
    np.testing.assert_allclose(longer.images[:], found.images[:], atol=1e-5)
    assert found.content_hash == dataset.content_hash
    assert found.scaling.startswith("as given; then x / |x|; then (x - mean) / ")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (IMAGES, r"unit_norm expects features \[N, D\], got \[30, 4, 5, 2\]"),
        (np.where(np.arange(30)[:, None] == 4, 0.0, np.ones((30, 2))), "row 4 has length 0"),
        (np.arange(1.0, 31)[:, None] * np.ones(2), "all 30 rows point the same way"),
    ],
)
def test_unit_norm_refusals(features, message: str):
    with pytest.raises(ValueError, match=message):
        data_utils.unit_norm(_dataset(features), np.arange(30))
