"""Data of one's own: arrays in memory, or in a NumPy `.npz` file."""

import contextlib
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from bayesian_active_learning.data_utils.dataset import (
    DataError,
    Dataset,
    ScaledSource,
    content_hash,
    from_two_parts,
    row_digests,
    stratified_test,
)

TEST_FRACTION = 0.2

_TRAIN_INPUTS = (
    "images",
    "features",
    *("train_images", "train_features", "images_train", "features_train", "x_train"),
)
_TRAIN_LABELS = ("labels", "train_labels", "labels_train", "y_train")
_TEST_INPUTS = ("test_images", "test_features", "images_test", "features_test", "x_test")
_TEST_LABELS = ("test_labels", "labels_test", "y_test")


def from_arrays(
    inputs: Any,
    labels: Any,
    test_inputs: Any = None,
    test_labels: Any = None,
    *,
    name: str = "arrays",
    where: str = "",
) -> Dataset:
    """A `Dataset` from arrays, rows in the order given, test rows after train rows.

    Inputs are images [N, H, W, C], grey images [N, H, W] (a channel axis is added) or
    features [N, D]; uint8 is divided by 255, everything else is taken as it is. Labels
    are integers 0..C-1, and every class occurs in training. Without a test part, of
    each class the last 20 % by digest of their content become test rows: fixed by the
    content, not by a seed. Inputs may be a memory map, which stays one unless a test
    part is given as well.

    Raises:
      DataError: arrays that do not fit; begins with `where`, such as a path.
    """
    prefix = f"{where}: " if where else ""
    if (test_inputs is None) != (test_labels is None):
        raise DataError(f"{prefix}test inputs and test labels belong together; one is missing")
    inputs = _check_inputs(inputs, f"{prefix}inputs")
    labels = _check_labels(labels, len(inputs), f"{prefix}labels")
    num_classes = int(labels.max()) + 1
    present = np.unique(labels)
    if len(present) != num_classes:
        absent = int(np.argmax(present != np.arange(len(present))))
        raise DataError(
            f"{prefix}labels must be integers 0..C-1, every class in training; the largest is "
            f"{num_classes - 1} but there are {len(present)} classes, and {absent} is not "
            "among them"
        )
    if num_classes < 2:
        raise DataError(f"{prefix}labels are all 0; at least two classes are needed")
    divisor, scaling = (255.0, "uint8 / 255") if inputs.dtype == np.uint8 else (1.0, "as given")
    if test_inputs is not None:
        test_inputs = _check_inputs(test_inputs, f"{prefix}test inputs")
        test_labels = _check_labels(test_labels, len(test_inputs), f"{prefix}test labels")
        if test_inputs.shape[1:] != inputs.shape[1:] or test_inputs.dtype != inputs.dtype:
            raise DataError(
                f"{prefix}test inputs are {test_inputs.dtype} {test_inputs.shape[1:]} per "
                f"example, training inputs {inputs.dtype} {inputs.shape[1:]}"
            )
        if test_labels.max() >= num_classes:
            raise DataError(
                f"{prefix}test label {test_labels.max()} never occurs in training, "
                f"which has classes 0..{num_classes - 1}"
            )
        return from_two_parts(
            name,
            (inputs, labels),
            (test_inputs, test_labels),
            num_classes=num_classes,
            divisor=divisor,
            scaling=scaling,
            sort=False,
        )
    test = stratified_test(labels, row_digests(inputs, labels), TEST_FRACTION)
    if not test.any():
        raise DataError(
            f"{prefix}{len(labels)} rows are too few to set 20 % of each class aside for the "
            "test; give test inputs and labels"
        )
    train_rows = np.flatnonzero(~test).astype(np.int32)
    test_rows = np.flatnonzero(test).astype(np.int32)
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


def load_npz(path: str | os.PathLike) -> Dataset:
    """Reads a `.npz` file; see `from_arrays` for what the arrays may be.

    Keys: `images` or `features`, `labels`, and optionally `test_images` or
    `test_features`, `test_labels`; also with `train_` in front or `_train`, `_test`
    behind. The data set is called `npz:` and the file's name without its folder.

    Raises:
      DataError: the file is missing, damaged, pickled, or lacks a key.
    """
    path = pathlib.Path(path).expanduser()
    with open_npz(path) as archive:
        keys = {
            role: _one_key(archive.files, known, path, required=required)
            for role, known, required in (
                ("inputs", _TRAIN_INPUTS, True),
                ("labels", _TRAIN_LABELS, True),
                ("test_inputs", _TEST_INPUTS, False),
                ("test_labels", _TEST_LABELS, False),
            )
        }
        arrays = {role: archive[key] for role, key in keys.items() if key is not None}
    return from_arrays(**arrays, name=f"npz:{path.name}", where=str(path))


@contextlib.contextmanager
def open_npz(path: pathlib.Path) -> Iterator[Any]:
    """The archive at `path`, never unpickled; damage found on the way is a DataError."""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: a single array, expected a .npz archive")
            with archive:
                yield archive
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except DataError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        hint = "; arrays of Python objects are not read" if "allow_pickle" in str(error) else ""
        raise DataError(f"{path}: not a readable .npz file ({error}){hint}") from error


def _one_key(
    found: list[str], known: tuple[str, ...], path: pathlib.Path, *, required: bool
) -> str | None:
    matches = [key for key in known if key in found]
    if len(matches) > 1:
        raise DataError(f"{path}: both {matches[0]!r} and {matches[1]!r} are there; keep one")
    if not matches and required:
        raise DataError(
            f"{path}: expected one of the keys {', '.join(known)}; "
            f"found {', '.join(sorted(found)) or 'none'}"
        )
    return matches[0] if matches else None


def _check_inputs(inputs: Any, what: str) -> Any:
    inputs = inputs if isinstance(inputs, np.ndarray) else np.asarray(inputs)
    if inputs.dtype.kind not in "buif":
        raise DataError(f"{what} must be numbers, got dtype {inputs.dtype}")
    if inputs.ndim not in (2, 3, 4) or 0 in inputs.shape:
        raise DataError(
            f"{what} must be [N, H, W, C], [N, H, W] or [N, D] and not empty, "
            f"got shape {inputs.shape}"
        )
    if inputs.dtype.kind == "f":
        for start in range(0, len(inputs), 4096):
            with np.errstate(over="ignore"):
                finite = np.isfinite(inputs[start : start + 4096].astype(np.float32))
            if not finite.all():
                row = start + int(np.argmin(finite.reshape(len(finite), -1).all(axis=1)))
                raise DataError(f"{what} hold NaN or infinite values, first in row {row}")
    return inputs[..., None] if inputs.ndim == 3 else inputs


def _check_labels(labels: Any, count: int, what: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise DataError(f"{what} must be integers 0..C-1, got dtype {labels.dtype}")
    if labels.shape != (count,):
        raise DataError(
            f"{what} have shape {labels.shape}, expected ({count},): one for each input"
        )
    if labels.min() < 0 or labels.max() >= 2**31 - 1:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"{what} must be integers 0..C-1, got {wrong}")
    return labels.astype(np.int32)
