"""Data of one's own, in arrays or a file."""

import numpy as np
import pytest

from bayesian_active_learning.data_utils import DataError, from_arrays, load_dataset, load_npz

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (50, 4, 3)).astype(np.uint8)
LABELS = np.arange(50) % 5


def save(folder, **arrays):
    np.savez_compressed(folder / "own.npz", **arrays)
    return folder / "own.npz"


def test_images_keep_the_order_of_the_file(tmp_path):
    path = save(tmp_path, images=IMAGES, labels=LABELS)
    dataset = load_dataset(f"npz:{path}")
    assert dataset.name == "npz:own.npz" and dataset.num_classes == 5
    assert dataset.images.shape == (50, 4, 3, 1) and dataset.scaling == "uint8 / 255"
    np.testing.assert_array_equal(dataset.images.base[..., 0], IMAGES)
    np.testing.assert_array_equal(dataset.labels, LABELS)
    assert dataset.labels.dtype == np.int32


def test_test_part_is_fixed_by_content(tmp_path):
    dataset = load_npz(save(tmp_path, images=IMAGES, labels=LABELS))
    assert np.bincount(dataset.labels[dataset.test_rows]).tolist() == [2] * 5
    both = np.concatenate([dataset.train_rows, dataset.test_rows])
    np.testing.assert_array_equal(np.sort(both), np.arange(50))
    order = RNG.permutation(50)
    shuffled = load_npz(save(tmp_path, images=IMAGES[order], labels=LABELS[order]))
    np.testing.assert_array_equal(np.sort(order[shuffled.test_rows]), dataset.test_rows)


@pytest.mark.parametrize(
    "keys",
    [
        ("images", "labels", "test_images", "test_labels"),
        ("features", "labels", "test_features", "test_labels"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("features_train", "labels_train", "features_test", "labels_test"),
        ("x_train", "y_train", "x_test", "y_test"),
    ],
)
def test_given_test_part_comes_after_training(tmp_path, keys):
    arrays = (IMAGES[:30], LABELS[:30], IMAGES[30:], LABELS[30:])
    dataset = load_npz(save(tmp_path, **dict(zip(keys, arrays)), note=np.zeros(3)))
    np.testing.assert_array_equal(dataset.train_rows, np.arange(30))
    np.testing.assert_array_equal(dataset.test_rows, np.arange(30, 50))
    np.testing.assert_array_equal(dataset.images.base[..., 0], IMAGES)


def test_float_features_stay_as_small_as_they_came():
    features = RNG.normal(size=(50, 7)).astype(np.float16)
    dataset = from_arrays(features, LABELS)
    assert dataset.images.base.dtype == np.float16 and dataset.images.dtype == np.float32
    assert dataset.images.shape == (50, 7) and dataset.scaling == "as given"
    np.testing.assert_array_equal(dataset.images[[3]], features[[3]].astype(np.float32))


def test_lists_and_colour_images():
    dataset = from_arrays(IMAGES.reshape(50, 2, 2, 3).tolist(), LABELS.tolist(), name="mine")
    assert dataset.images.shape == (50, 2, 2, 3) and dataset.name == "mine"


NAN = np.where(np.arange(50)[:, None] == 9, np.nan, np.ones((50, 2)))


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"images": IMAGES, "label": LABELS}, r"keys labels, .*; found images, label$"),
        ({}, "found none"),
        ({"images": IMAGES, "features": IMAGES, "labels": LABELS}, "both 'images' and 'features'"),
        ({"images": IMAGES, "labels": LABELS[:9]}, r"shape \(9,\), expected \(50,\)"),
        ({"images": IMAGES, "labels": LABELS + 0.0}, "must be integers 0..C-1, got dtype float64"),
        ({"images": IMAGES, "labels": LABELS - 1}, "must be integers 0..C-1, got -1"),
        ({"images": IMAGES, "labels": LABELS + 1}, "largest is 5 .* 5 classes, and 0 is not among"),
        ({"images": IMAGES, "labels": LABELS * 2}, "largest is 8 .* 5 classes, and 1 is not among"),
        ({"images": IMAGES, "labels": LABELS * 0}, "at least two classes"),
        ({"images": IMAGES[:5], "labels": LABELS[:5]}, "5 rows are too few"),
        ({"images": IMAGES[:, 0, 0], "labels": LABELS}, r"got shape \(50,\)"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "not empty"),
        ({"images": IMAGES + 0j, "labels": LABELS}, "must be numbers, got dtype complex128"),
        ({"features": NAN, "labels": LABELS}, "NaN or infinite values, first in row 9"),
        ({"features": NAN * 0 + 1e39, "labels": LABELS}, "infinite values, first in row 0"),
        ({"images": IMAGES, "labels": LABELS, "test_images": IMAGES}, "one is missing"),
        (
            {
                "images": IMAGES,
                "labels": LABELS,
                "test_images": IMAGES[:, :2],
                "test_labels": LABELS,
            },
            r"test inputs are uint8 \(2, 3, 1\) per example, training inputs uint8 \(4, 3, 1\)",
        ),
        (
            {
                "images": IMAGES,
                "labels": LABELS,
                "test_images": IMAGES,
                "test_labels": LABELS + 1,
            },
            "test label 5 never occurs in training",
        ),
    ],
)
def test_refusals_name_the_file(tmp_path, arrays, message):
    path = save(tmp_path, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load_npz(path)
    assert str(path) in str(caught.value)


def test_files_that_are_not_npz(tmp_path):
    path = tmp_path / "own.npz"
    with pytest.raises(DataError, match="no such file"):
        load_npz(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="not a readable .npz file"):
        load_npz(path)
    path.write_text("<html>")
    with pytest.raises(DataError, match="not a readable .npz file"):
        load_npz(path)
    raw = save(tmp_path, images=IMAGES, labels=LABELS).read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match="not a readable .npz file"):
        load_npz(path)
    path.write_bytes(raw[:100] + bytes(50) + raw[150:])
    with pytest.raises(DataError, match="not a readable .npz file"):
        load_npz(path)
    with path.open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(DataError, match="a single array"):
        load_npz(path)


def test_pickled_objects_are_not_read(tmp_path):
    path = save(tmp_path, images=np.array([{}, []], dtype=object), labels=LABELS)
    with pytest.raises(DataError, match="arrays of Python objects are not read"):
        load_npz(path)
