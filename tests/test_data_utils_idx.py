"""The original files: structure and checksums, each damage with its own message."""

import gzip
import hashlib
import shutil
import struct

import numpy as np
import pytest

from bayesian_active_learning.data_utils import DataError, idx, load_idx, parse_idx

RNG = np.random.default_rng(0)
SMALL = {
    idx.TRAIN_IMAGES: RNG.integers(0, 256, (40, 3, 2)).astype(np.uint8),
    idx.TRAIN_LABELS: (np.arange(40) % 10).astype(np.uint8),
    idx.TEST_IMAGES: RNG.integers(0, 256, (20, 3, 2)).astype(np.uint8),
    idx.TEST_LABELS: (np.arange(20) % 10).astype(np.uint8),
}
HTML = b"<!DOCTYPE html>\n<html><body>404</body></html>"


def idx_bytes(array, magic=None, shape=None):
    """A gzipped IDX file, honest unless told otherwise."""
    shape = array.shape if shape is None else shape
    magic = 0x0800 + array.ndim if magic is None else magic
    header = struct.pack(f">{1 + len(shape)}I", magic, *shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


def write_small(folder, **changed):
    """The four small files; `changed` replaces bytes by file name stem, None removes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in SMALL.items():
        raw = changed.get(name.split("-ubyte")[0].replace("-", "_"), idx_bytes(array))
        if raw is not None:
            (folder / name).write_bytes(raw)
    return folder


def test_small_files(tmp_path):
    write_small(tmp_path)
    dataset = load_idx("mnist", tmp_path, verify=False)
    assert dataset.images.shape == (60, 3, 2, 1) and dataset.num_classes == 10
    assert dataset.images.base.dtype == np.uint8
    assert dataset.labels.dtype == np.int32 and dataset.scaling == "uint8 / 255"
    np.testing.assert_array_equal(dataset.train_rows, np.arange(40))
    np.testing.assert_array_equal(dataset.test_rows, np.arange(40, 60))
    pairs = {
        (image.tobytes(), int(label))
        for image, label in zip(dataset.images.base[:40], dataset.labels[:40])
    }
    assert pairs == {
        (image.tobytes(), int(label))
        for image, label in zip(SMALL[idx.TRAIN_IMAGES], SMALL[idx.TRAIN_LABELS])
    }


def test_order_of_the_file_does_not_matter(tmp_path):
    write_small(tmp_path / "a")
    order = RNG.permutation(40)
    write_small(
        tmp_path / "b",
        train_images_idx3=idx_bytes(SMALL[idx.TRAIN_IMAGES][order]),
        train_labels_idx1=idx_bytes(SMALL[idx.TRAIN_LABELS][order]),
    )
    first = load_idx("mnist", tmp_path / "a", verify=False)
    second = load_idx("mnist", tmp_path / "b", verify=False)
    assert first.content_hash == second.content_hash
    np.testing.assert_array_equal(first.labels, second.labels)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_parent_folder(tmp_path, name):
    write_small(tmp_path / name)
    assert load_idx(name, tmp_path, verify=False).name == name


TRAIN_LABELS = SMALL[idx.TRAIN_LABELS]
TRAIN_IMAGES = SMALL[idx.TRAIN_IMAGES]
GOOD = idx_bytes(TRAIN_IMAGES)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"train_images_idx3": None}, r"train-images.*: missing"),
        ({"train_images_idx3": b""}, r"train-images.*: empty file"),
        ({"train_images_idx3": HTML}, r"train-images.*: an HTML page, not a gzip file"),
        ({"t10k_labels_idx1": b"PK\3\4rest"}, r"t10k-labels.*: not a gzip file.* 50 4b 03 04"),
        ({"train_images_idx3": GOOD[:-30]}, r"train-images.*: gzip file is truncated"),
        ({"train_images_idx3": GOOD[:40] + b"\xff" * 40 + GOOD[80:]}, r"train-images.*: bad gzip"),
        ({"train_images_idx3": GOOD[:-8] + b"\0" * 8}, r"train-images.*: bad gzip"),
        (
            {"train_labels_idx1": idx_bytes(TRAIN_LABELS, magic=2051)},
            r"train-labels.*: wrong magic number 2051, expected 2049",
        ),
        ({"train_images_idx3": idx_bytes(TRAIN_LABELS)}, "wrong magic number 2049, expected 2051"),
        ({"train_images_idx3": gzip.compress(b"")}, "wrong magic number 0"),
        ({"train_images_idx3": gzip.compress(struct.pack(">2I", 2051, 40))}, "inside its header"),
        (
            {"train_images_idx3": idx_bytes(TRAIN_IMAGES, shape=(41, 3, 2))},
            r"train-images.*shape \(41, 3, 2\), 246 values, but 240 follow \(wrong count\)",
        ),
        (
            {"train_images_idx3": idx_bytes(TRAIN_IMAGES, shape=(2**32 - 1,) * 3)},
            "wrong count",
        ),
        (
            {"train_labels_idx1": idx_bytes(TRAIN_LABELS[:39])},
            r"train-images.* holds 40 images but .*train-labels.* 39 labels",
        ),
        (
            {"train_labels_idx1": idx_bytes(np.where(np.arange(40) == 7, 255, TRAIN_LABELS))},
            None,
        ),
        (
            {"train_labels_idx1": idx_bytes(np.array([3] * 39 + [255], np.uint8))},
            r"train-labels.*: 1 labels outside 0\.\.9, first 255 at position 39",
        ),
        (
            {"t10k_images_idx3": idx_bytes(SMALL[idx.TEST_IMAGES].reshape(20, 2, 3))},
            r"images of \(3, 2\) but .*t10k-images.* of \(2, 3\)",
        ),
        (
            {
                "t10k_images_idx3": idx_bytes(SMALL[idx.TEST_IMAGES][:0]),
                "t10k_labels_idx1": idx_bytes(SMALL[idx.TEST_LABELS][:0]),
            },
            r"t10k-labels.*: holds no examples",
        ),
    ],
)
def test_damage_is_named(tmp_path, changed, message):
    write_small(tmp_path, **changed)
    with pytest.raises(DataError, match=message) as caught:
        load_idx("mnist", tmp_path, verify=False)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_in_the_place_of_a_file(tmp_path):
    write_small(tmp_path, train_images_idx3=None)
    (tmp_path / idx.TRAIN_IMAGES).mkdir()
    with pytest.raises(DataError, match=r"train-images.*: cannot be read"):
        load_idx("mnist", tmp_path, verify=False)


def test_empty_folder_lists_the_files(tmp_path):
    with pytest.raises(DataError, match=r"none of the original mnist files.*train-images.*t10k"):
        load_idx("mnist", tmp_path)


def test_checksums(tmp_path):
    write_small(tmp_path)
    checks = {
        name: idx.FileCheck(len(raw := idx_bytes(array)), hashlib.sha256(raw).hexdigest())
        for name, array in SMALL.items()
    }
    load_idx("mnist", tmp_path, checks=checks)
    with pytest.raises(DataError, match=r"train-images.* bytes, expected 9912422 \(truncated\?\)"):
        load_idx("mnist", tmp_path)
    flipped = bytearray(idx_bytes(SMALL[idx.TEST_LABELS]))
    flipped[9] ^= 1
    write_small(tmp_path, t10k_labels_idx1=bytes(flipped))
    with pytest.raises(DataError, match=r"t10k-labels.*: sha256 .* the content is damaged"):
        load_idx("mnist", tmp_path, checks=checks)
    write_small(tmp_path, t10k_labels_idx1=bytes(flipped) + b"more")
    with pytest.raises(DataError, match=r"\(another file\?\)"):
        load_idx("mnist", tmp_path, checks=checks)
    write_small(tmp_path, t10k_labels_idx1=HTML)
    with pytest.raises(DataError, match=r"t10k-labels.*: an HTML page"):
        load_idx("mnist", tmp_path, checks=checks)


def test_parse_idx_labels():
    np.testing.assert_array_equal(parse_idx(idx_bytes(TRAIN_LABELS), "x", ndim=1), TRAIN_LABELS)


def test_real_mnist(mnist_dir):
    dataset = load_idx("mnist", mnist_dir)
    assert dataset.images.shape == (70000, 28, 28, 1)
    assert np.bincount(dataset.labels[dataset.train_rows]).tolist() == [
        *(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    ]
    assert len(dataset.test_rows) == 10000
    # Pinned: rows must mean the same examples in every version, whatever the source.
    assert dataset.content_hash == (
        "ec8553a725665232116387a28cb79aca619ec3ea8f5461b03729fb42dc6c2d6c"
    )


def test_mnist_is_not_fashion_mnist(mnist_dir):
    with pytest.raises(DataError, match="this is a file of mnist, in the wrong place"):
        load_idx("fashion_mnist", mnist_dir)


def test_real_mnist_with_a_truncated_file(mnist_dir, tmp_path):
    for name in idx.FILE_NAMES:
        shutil.copyfile(mnist_dir / name, tmp_path / name)
    raw = (mnist_dir / idx.TEST_IMAGES).read_bytes()
    (tmp_path / idx.TEST_IMAGES).write_bytes(raw[:1000000])
    message = r"t10k-images.*: 1000000 bytes, expected 1648877 \(truncated\?\)"
    with pytest.raises(DataError, match=message):
        load_idx("mnist", tmp_path)
