"""The one record for data: inputs by row, labels, canonical order, content hash."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bayesian_active_learning.types import Source

_CHUNK = 4096  # rows looked at together, so that memory maps are never read whole
_VALUES = 2**18  # of float64 looked at together: more leave the cache


class DataError(ValueError):
    """Data that is missing, damaged or not what it claims to be; names the file."""


@dataclasses.dataclass(frozen=True, eq=False)
class ScaledSource:
    """Inputs kept as they came (uint8, a memory map), scaled where they are read.

    `source[rows]` is float32: `(base[rows] / divisor - mean) / std`. `rows` is anything
    that NumPy indexes the first axis with. `mean` and `std` have one entry per channel
    (last axis) or are None.
    """

    base: Any  # [N, H, W, C] or [N, D]
    divisor: float = 1.0
    mean: np.ndarray | None = None  # [C] float32
    std: np.ndarray | None = None  # [C] float32

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.base.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        if not isinstance(rows, slice | int):
            rows = np.asarray(rows)
        values = np.array(self.base[rows], dtype=np.float32)  # a copy, never a view of the base
        if self.divisor != 1.0:
            values /= np.float32(self.divisor)
        if self.mean is not None:
            values -= self.mean
        if self.std is not None:
            values /= self.std
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a ScaledSource is computed when read; it cannot avoid the copy")
        return self[:].astype(dtype or self.dtype, copy=False)


class Dataset(NamedTuple):
    """A data set in its one canonical order; a row means the same example for ever.

    Labels are here for oracles and for evaluation; training gets them from an oracle.
    """

    images: Source  # float32 [N, H, W, C] (or [N, D] features) on images[rows]
    labels: np.ndarray  # [N] int32
    num_classes: int
    name: str
    content_hash: str  # sha256 of the decoded arrays, see `content_hash`
    scaling: str  # what was done to the inputs, in words
    train_rows: np.ndarray  # int32, the pool, initial and validation rows come from here
    test_rows: np.ndarray  # int32


def row_digests(inputs: Any, labels: np.ndarray) -> np.ndarray:
    """`[N, 2]` uint64: the first 16 bytes of blake2b over each example's bytes and label.

    Depends on values and dtype only, not on where or in which order they were stored.
    """
    digests = bytearray()
    little_labels = np.asarray(labels).astype("<i4").reshape(-1, 1).view(np.uint8)
    for start in range(0, len(little_labels), _CHUNK):
        part = slice(start, start + _CHUNK)
        chunk = np.concatenate([_bytes_of_rows(inputs[part]), little_labels[part]], axis=1)
        together, size = memoryview(chunk.tobytes()), chunk.shape[1]
        for place in range(0, len(together), size):
            digests += hashlib.blake2b(together[place : place + size], digest_size=16).digest()
    return np.frombuffer(bytes(digests), ">u8").reshape(-1, 2).astype(np.uint64)


def canonical_order(inputs: Any, labels: np.ndarray) -> np.ndarray:
    """The permutation `[N]` that puts examples into canonical order.

    Canonical order is ascending order of `row_digests`: the original files and
    tensorflow-datasets store MNIST in different orders, and both end up in this one.
    Arrays kept in the order of the original files, such as precomputed features, are
    brought in line by `features[canonical_order(images, labels)]`, part by part.
    """
    digests = row_digests(inputs, labels)
    return np.lexsort((digests[:, 1], digests[:, 0]))


def content_hash(
    inputs: Any, labels: np.ndarray, train_rows: np.ndarray, test_rows: np.ndarray
) -> str:
    """sha256 (hex) of inputs as stored, labels, and which rows are for training and test.

    Decoded arrays are hashed, never files: compression and record layout do not count.
    """
    digest = hashlib.sha256()
    dtype = np.dtype(inputs.dtype).newbyteorder("<")
    digest.update(f"bayesian_active_learning data 1 {dtype.str} {tuple(inputs.shape)}\n".encode())
    for start in range(0, inputs.shape[0], _CHUNK):
        digest.update(_bytes_of_rows(inputs[start : start + _CHUNK]).tobytes())
    for array in (labels, train_rows, test_rows):
        digest.update(f"{len(array)}\n".encode())
        digest.update(np.asarray(array).astype("<i4").tobytes())
    return digest.hexdigest()


def _bytes_of_rows(chunk: Any) -> np.ndarray:
    """`[n, bytes per row]` uint8, little-endian."""
    array = np.asarray(chunk)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return array.reshape(len(array), -1).view(np.uint8)


def from_two_parts(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    num_classes: int,
    divisor: float,
    scaling: str,
    sort: bool,
) -> Dataset:
    """A `Dataset` from `(inputs, labels)` of training and test: train rows come first.

    `sort` puts each part into `canonical_order`; otherwise the given order is kept.
    """
    parts = []
    for inputs, labels in (train, test):
        if sort:
            order = canonical_order(inputs, labels)
            inputs, labels = inputs[order], labels[order]
        parts.append((inputs, np.asarray(labels, np.int32)))
    inputs = np.concatenate([parts[0][0], parts[1][0]])
    labels = np.concatenate([parts[0][1], parts[1][1]])
    train_rows = np.arange(len(parts[0][1]), dtype=np.int32)
    test_rows = np.arange(len(train_rows), len(labels), dtype=np.int32)
    return Dataset(
        images=ScaledSource(inputs, divisor),
        labels=labels,
        num_classes=num_classes,
        name=name,
        content_hash=content_hash(inputs, labels, train_rows, test_rows),
        scaling=scaling,
        train_rows=train_rows,
        test_rows=test_rows,
    )


def stratified_test(labels: np.ndarray, digests: np.ndarray, fraction: float) -> np.ndarray:
    """`[N]` bool, True = test: of each class the last `round(fraction * n)` by digest.

    Fixed by the content alone; no seed, no dependence on the order of the rows.
    """
    test = np.zeros(len(labels), bool)
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        count = round(fraction * len(members))
        test[members[len(members) - count :]] = True
    return test


def standardise(dataset: Dataset, rows: Any) -> Dataset:
    """The same data with inputs shifted and scaled to mean 0, deviation 1 over `rows`.

    One mean and deviation per channel (last axis), over the pixels of these rows and
    no others; of [N, D] features one per feature. Constant channels keep deviation 1.
    An earlier standardisation is replaced, and the content hash stays: it is of the
    inputs before scaling.

    Raises:
      ValueError: no rows, rows out of range, or inputs that are not a `ScaledSource`.
    """
    source = dataset.images
    if not isinstance(source, ScaledSource):
        raise ValueError(
            f"standardise needs a dataset whose images are a ScaledSource, "
            f"got {type(source).__name__}; wrap the array: ScaledSource(array)"
        )
    rows = np.unique(np.asarray(rows))
    if rows.size == 0:
        raise ValueError("standardise needs at least one row to take the mean and deviation from")
    if rows.dtype.kind not in "iu":
        raise ValueError(f"rows must be integers, got {rows.dtype}")
    if rows[0] < 0 or rows[-1] >= len(source):
        raise ValueError(
            f"rows must lie in 0..{len(source) - 1}, got {int(rows[0])}..{int(rows[-1])}"
        )
    plain = ScaledSource(source.base, source.divisor)
    mean, variance = moments(plain, rows)
    std = np.sqrt(variance)
    std[std == 0] = 1.0
    scaled = dataclasses.replace(plain, mean=mean.astype(np.float32), std=std.astype(np.float32))
    first = dataset.scaling.split("; then (x - mean) / std")[0]
    words = f"mean {mean[0]:.6g}, std {std[0]:.6g}" if mean.size == 1 else f"{mean.size} channels"
    scaling = f"{first}; then (x - mean) / std of {len(rows)} rows ({words})"
    return dataset._replace(images=scaled, scaling=scaling)


def take_classes(dataset: Dataset, classes: Sequence[int]) -> Dataset:
    """The rows of some classes as a data set of its own, its labels 0, 1, ... in the order of
    `classes`; rows keep their order among themselves. Scale afterwards, with its own rows.

    The name says which classes, and the content hash is that of what was taken.

    Raises:
      ValueError: fewer than two classes, one twice, or one that has no training or no test row.
    """
    wanted = [int(each) for each in classes]
    if len(wanted) < 2 or len(set(wanted)) < len(wanted):
        raise ValueError(f"expected two classes or more, each once, got {wanted}")
    labels = np.asarray(dataset.labels)
    for part, rows in (("training", dataset.train_rows), ("test", dataset.test_rows)):
        missing = sorted(set(wanted) - set(labels[rows].tolist()))
        if missing:
            raise ValueError(f"{dataset.name} has no {part} row of class {missing[0]}")
    used = np.union1d(dataset.train_rows, dataset.test_rows)
    kept = used[np.isin(labels[used], wanted)]
    source = dataset.images
    if isinstance(source, ScaledSource):
        inputs = np.asarray(source.base[kept])
        images = dataclasses.replace(source, base=inputs)
    else:
        inputs = np.asarray(source[kept])
        images = ScaledSource(inputs)
    number = np.zeros(max(wanted) + 1, np.int32)
    number[wanted] = np.arange(len(wanted))
    labels = number[labels[kept]]
    train_rows = np.flatnonzero(np.isin(kept, dataset.train_rows)).astype(np.int32)
    test_rows = np.flatnonzero(np.isin(kept, dataset.test_rows)).astype(np.int32)
    return dataset._replace(
        images=images,
        labels=labels,
        num_classes=len(wanted),
        name=f"{dataset.name}, classes {', '.join(map(str, wanted))}",
        content_hash=content_hash(inputs, labels, train_rows, test_rows),
        train_rows=train_rows,
        test_rows=test_rows,
    )


def flatten(dataset: Dataset) -> Dataset:
    """The same data with inputs `[N, D]`; what is so already stays as it is."""
    if len(dataset.images.shape) == 2:
        return dataset
    features = np.asarray(dataset.images[:]).reshape(dataset.images.shape[0], -1)
    return dataset._replace(
        images=ScaledSource(features), scaling=f"{dataset.scaling}; then flattened"
    )


def unit_norm(dataset: Dataset, rows: Any) -> Dataset:
    """The same data with features `[N, D]` of length 1, then centred, then of mean squared
    length 1 over `rows`: angles count and not lengths, as encoders are trained.

    The content hash stays: it is of the inputs before scaling.

    Raises:
      ValueError: inputs that are not `[N, D]`, a feature vector that is 0 or not finite, no
        rows, or rows out of range.
    """
    if len(dataset.images.shape) != 2:
        raise ValueError(f"unit_norm expects features [N, D], got {list(dataset.images.shape)}")
    features = np.asarray(dataset.images[:], np.float64)
    lengths = np.linalg.norm(features, axis=1)
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(bad):
        raise ValueError(f"row {bad[0]} has length {lengths[bad[0]]:g}, which cannot become 1")
    directions = (features / lengths[:, None]).astype(np.float32)
    centred = standardise(dataset._replace(images=ScaledSource(directions)), rows)
    source = centred.images
    assert isinstance(source, ScaledSource) and source.std is not None
    # The mean squared length of the centred directions is the sum of their variances.
    length = np.sqrt(
        np.sum(np.square(directions[rows] - source.mean, dtype=np.float64)) / len(rows)
    )
    if not length > 0:
        raise ValueError(
            f"all {len(rows)} rows point the same way, so their spread cannot become 1"
        )
    std = np.full_like(source.std, length)
    first = dataset.scaling.split("; then (x - mean) / std")[0]
    scaling = f"{first}; then x / |x|; then (x - mean) / {length:.6g}, mean of {len(rows)} rows"
    return dataset._replace(images=dataclasses.replace(source, std=std), scaling=scaling)


def moments(source: ScaledSource, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance `[C]` over all axes but the last, in float64, in two passes."""
    channels = source.shape[-1]
    size = max(1, _VALUES // max(1, int(np.prod(source.shape[1:]))))
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]

    def read(chunk: np.ndarray) -> np.ndarray:
        return source[chunk].astype(np.float64).reshape(-1, channels)

    count = len(rows) * int(np.prod(source.shape[1:-1]))
    mean = np.sum([read(chunk).sum(axis=0) for chunk in chunks], axis=0) / count
    squares = [((read(chunk) - mean) ** 2).sum(axis=0) for chunk in chunks]
    return mean, np.sum(squares, axis=0) / count
