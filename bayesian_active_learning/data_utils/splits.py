"""Disjoint sets of rows: initial, validation, test, pool; drawn, saved, read again."""

import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from bayesian_active_learning.data_utils.dataset import DataError, Dataset
from bayesian_active_learning.data_utils.npz import open_npz
from bayesian_active_learning.utils import atomic_write

_FORMAT = "bayesian_active_learning splits 1"

# Independent streams of one seed.
_INITIAL, _VALIDATION, _POOL = 0, 1, 2


class Splits(NamedTuple):
    """Disjoint sets of rows, each int32 and ascending."""

    initial: np.ndarray  # labelled from the start
    validation: np.ndarray
    test: np.ndarray
    pool: np.ndarray  # unlabelled, to choose from


def make_splits(
    seed: int,
    labels: Any,
    train_rows: Any,
    test_rows: Any,
    *,
    num_classes: int,
    num_initial_per_class: int = 2,
    num_validation: int = 100,
) -> Splits:
    """Draws a balanced initial set and a validation set from `train_rows`; the rest is pool.

    A function of its arguments only: the same for every acquisition function, on every
    platform and with every version of NumPy (it uses raw PCG64 bits, a fixed stream).
    A larger initial set contains the smaller one.

    Args:
      seed: not negative.
      labels: `[N]` integers; read to balance the initial set.
      train_rows: rows to draw from.
      test_rows: taken over as they are.
      num_classes: C; labels lie in 0..C-1.
      num_initial_per_class: 2 gives the paper's 20 rows on MNIST; 0 an empty initial set.
      num_validation: drawn at random from the training rows, after the initial set.

    Raises:
      ValueError: negative sizes, a class with too few rows, more validation rows than
        there are, an empty pool, rows out of range, repeated or in both sets.
    """
    check_seed(seed)
    labels = np.asarray(labels)
    if num_initial_per_class < 0 or num_validation < 0:
        raise ValueError(
            f"num_initial_per_class and num_validation must not be negative, "
            f"got {num_initial_per_class} and {num_validation}"
        )
    train_rows = check_rows("train_rows", train_rows, len(labels))
    test_rows = check_rows("test_rows", test_rows, len(labels))
    _check_disjoint({"train_rows": train_rows, "test_rows": test_rows})
    train_labels = labels[train_rows]
    if train_labels.size and not 0 <= train_labels.min() <= train_labels.max() < num_classes:
        raise ValueError(
            f"labels of train_rows must lie in 0..{num_classes - 1}, "
            f"got {train_labels.min()}..{train_labels.max()}"
        )
    shuffled = _shuffle(train_rows, seed, _INITIAL)
    initial = []
    for label in range(num_classes):
        members = shuffled[labels[shuffled] == label]
        if len(members) < num_initial_per_class:
            raise ValueError(
                f"the initial set cannot be balanced: class {label} has {len(members)} rows in "
                f"train_rows, num_initial_per_class asks for {num_initial_per_class}; "
                "ask for fewer, or 0 for an empty initial set"
            )
        initial.append(members[:num_initial_per_class])
    initial_rows = np.sort(np.concatenate([np.zeros(0, np.int32), *initial]))
    rest = np.setdiff1d(train_rows, initial_rows)
    if num_validation > len(rest):
        raise ValueError(
            f"num_validation asks for {num_validation} rows, but {len(rest)} of "
            f"{len(train_rows)} training rows are left after the initial set of "
            f"{len(initial_rows)}"
        )
    if num_validation == len(rest):
        raise ValueError(
            f"the pool is empty: {len(initial_rows)} initial and {num_validation} validation "
            f"rows use up all {len(train_rows)} training rows; ask for fewer"
        )
    drawn = _shuffle(train_rows, seed, _VALIDATION)
    drawn = drawn[~np.isin(drawn, initial_rows)]
    return Splits(
        initial=initial_rows.astype(np.int32),
        validation=np.sort(drawn[:num_validation]).astype(np.int32),
        test=test_rows,
        pool=np.sort(drawn[num_validation:]).astype(np.int32),
    )


def pool_subset(seed: int, round: int, pool_rows: Any, size: int | None) -> np.ndarray:
    """A random subset of the pool for one round: ascending int32 rows.

    Every row has a random number fixed by (seed, round, row), and the `size` smallest are
    taken: functions whose pools differ by a few rows see subsets that differ by few.
    The whole pool where `size` is None, 0, or not smaller than the pool.

    Raises:
      ValueError: a negative seed, round, size or row, or repeated rows.
    """
    check_seed(seed)
    if round < 0 or (size is not None and size < 0):
        raise ValueError(f"round and size must not be negative, got {round} and {size}")
    rows = check_rows("pool_rows", pool_rows, None)
    if not size or size >= len(rows):
        return rows
    bits = random_bits(int(rows[-1]) + 1, seed, _POOL, round)[rows]
    return np.sort(rows[np.argsort(bits, kind="stable")[:size]])


def save_splits(path: str | os.PathLike, splits: Splits, dataset: Dataset) -> None:
    """Writes `splits` with the name and content hash of `dataset`, as JSON or npz by suffix.

    Raises:
      ValueError: another suffix, or splits that do not fit the dataset.
    """
    path = pathlib.Path(path)
    arrays = _check_splits(splits._asdict(), len(dataset.labels), "splits")
    header = {"format": _FORMAT, "dataset": dataset.name, "content_hash": dataset.content_hash}
    if _suffix(path) == ".json":
        lists = {name: rows.tolist() for name, rows in arrays._asdict().items()}
        with atomic_write(path) as file:
            json.dump({**header, **lists}, file)
            file.write("\n")
    else:
        contents: dict[str, Any] = {**header, **arrays._asdict()}
        with atomic_write(path, "wb") as file:
            np.savez(file, **contents)


def load_splits(path: str | os.PathLike, dataset: Dataset) -> Splits:
    """Reads what `save_splits` wrote, for the same data.

    Raises:
      DataError: the file is missing, damaged, made for other data (by content hash), or its sets
        overlap, repeat rows or leave the range; names the file.
    """
    path = pathlib.Path(path)
    if _suffix(path) == ".json":
        contents = _read_json(path)
    else:
        with open_npz(path) as archive:
            contents = {key: archive[key] for key in archive.files}
    missing = {"content_hash", *Splits._fields} - set(contents)
    if missing:
        raise DataError(f"{path}: lacks {', '.join(sorted(missing))}; not an index-set file?")
    if str(contents["content_hash"]) != dataset.content_hash:
        raise DataError(
            f"{path}: made for {contents.get('dataset', 'a data set')} with content hash "
            f"{contents['content_hash']}, but this is {dataset.name} with {dataset.content_hash}; "
            "rows would mean other examples"
        )
    sets = {name: contents[name] for name in Splits._fields}
    return _check_splits(sets, len(dataset.labels), str(path))


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable index-set file ({error})") from error
    if not isinstance(contents, dict):
        raise DataError(f"{path}: not an index-set file, expected a JSON object")
    return contents


def _check_splits(sets: dict[str, Any], num_rows: int, where: str) -> Splits:
    try:
        checked = {name: check_rows(name, rows, num_rows) for name, rows in sets.items()}
        _check_disjoint(checked)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    return Splits(**checked)


def check_rows(name: str, rows: Any, num_rows: int | None) -> np.ndarray:
    """`rows` ascending as int32; ValueError unless distinct integers in 0..num_rows-1."""
    try:
        array = np.asarray(rows)
    except ValueError as error:  # lists of different lengths
        raise ValueError(f"{name} must be a list of integers ({error})") from error
    if array.size == 0:
        return np.zeros(0, np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be a list of integers, got {array.dtype} of shape {array.shape}"
        )
    limit = np.iinfo(np.int32).max if num_rows is None else num_rows
    if array.min() < 0 or array.max() >= limit:
        wrong = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"{name} must lie in 0..{limit - 1}, got {wrong}")
    array = np.sort(array)
    repeated = array[1:][array[1:] == array[:-1]]
    if repeated.size:
        raise ValueError(f"{name} has row {repeated[0]} more than once")
    return array.astype(np.int32)


def _check_disjoint(sets: dict[str, np.ndarray]) -> None:
    names = list(sets)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            shared = np.intersect1d(sets[first], sets[second])
            if shared.size:
                raise ValueError(f"row {shared[0]} is in both {first} and {second}")


def check_seed(seed: int) -> None:
    """ValueError where it is negative."""
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")


def _suffix(path: pathlib.Path) -> str:
    if path.suffix not in (".json", ".npz"):
        raise ValueError(f"{path}: index sets are kept as .json or .npz, got {path.suffix!r}")
    return path.suffix


def random_bits(count: int, seed: int, *stream: int) -> np.ndarray:
    """`[count]` uint64 of one of the independent streams of a seed, for ever the same."""
    sequence = np.random.SeedSequence(seed, spawn_key=stream)
    return np.random.PCG64(sequence).random_raw(count)


def _shuffle(rows: np.ndarray, seed: int, *stream: int) -> np.ndarray:
    """`rows` in the order of raw 64-bit draws; NumPy keeps these, unlike `permutation`."""
    return rows[np.argsort(random_bits(len(rows), seed, *stream), kind="stable")]
