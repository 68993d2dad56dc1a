"""MNIST and Fashion-MNIST from the four original IDX `.gz` files."""

import gzip
import hashlib
import math
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bayesian_active_learning.data_utils.dataset import DataError, Dataset, from_two_parts

TRAIN_IMAGES = "train-images-idx3-ubyte.gz"
TRAIN_LABELS = "train-labels-idx1-ubyte.gz"
TEST_IMAGES = "t10k-images-idx3-ubyte.gz"
TEST_LABELS = "t10k-labels-idx1-ubyte.gz"
FILE_NAMES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
NUM_CLASSES = 10
SCALING = "uint8 / 255"


class FileCheck(NamedTuple):
    size: int  # bytes
    sha256: str  # hex


# The same values as in the checksum lists of tensorflow-datasets.
CHECKS: dict[str, dict[str, FileCheck]] = {
    "mnist": {
        TRAIN_IMAGES: FileCheck(
            9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
        ),
        TRAIN_LABELS: FileCheck(
            28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
        ),
        TEST_IMAGES: FileCheck(
            1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        TEST_LABELS: FileCheck(
            4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
        ),
    },
    "fashion_mnist": {
        TRAIN_IMAGES: FileCheck(
            26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
        ),
        TRAIN_LABELS: FileCheck(
            29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
        ),
        TEST_IMAGES: FileCheck(
            4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
        ),
        TEST_LABELS: FileCheck(
            5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
        ),
    },
}


def find_idx_folder(name: str, data_dir: str | os.PathLike) -> pathlib.Path | None:
    """The folder that holds any of the four files: `data_dir/<name>` or `data_dir`."""
    for folder in (pathlib.Path(data_dir) / name, pathlib.Path(data_dir)):
        if any(os.path.exists(folder / file_name) for file_name in FILE_NAMES):
            return folder
    return None


def load_idx(
    name: str,
    data_dir: str | os.PathLike,
    *,
    checks: Mapping[str, FileCheck] | None = None,
    verify: bool = True,
) -> Dataset:
    """Reads the four original files of `name` from `data_dir` or its subfolder `name`.

    Args:
      name: "mnist" or "fashion_mnist" (any name when `verify` is False).
      data_dir: the folder of the files, or its parent.
      checks: size and sha256 of each file; by default those of the data set.
      verify: False checks the structure only, for files of one's own making.

    Raises:
      DataError: a file is missing, damaged or of another data set; names the file.
    """
    folder = find_idx_folder(name, data_dir)
    if folder is None:
        raise DataError(
            f"{data_dir}: none of the original {name} files here or in its subfolder {name!r}; "
            f"expected {', '.join(FILE_NAMES)}"
        )
    files = {}
    for file_name in FILE_NAMES:
        path = folder / file_name
        try:
            files[str(path)] = path.read_bytes()
        except FileNotFoundError:
            raise DataError(
                f"{path}: missing; {name} is the four files {', '.join(FILE_NAMES)}"
            ) from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if verify:
        table = CHECKS[name] if checks is None else checks
        for path_name, raw in files.items():
            check_file(raw, table[os.path.basename(path_name)], path_name)
    return assemble(name, files)


def assemble(name: str, files: Mapping[str, bytes]) -> Dataset:
    """A `Dataset` from the four files' bytes, train images, train labels, test images,
    test labels, each under its path; structure checked, canonical order."""
    train_images, train_labels, test_images, test_labels = [
        (path, parse_idx(raw, path, ndim=1 if "labels" in os.path.basename(path) else 3))
        for path, raw in files.items()
    ]
    for (image_path, images), (label_path, labels) in (
        (train_images, train_labels),
        (test_images, test_labels),
    ):
        if len(images) != len(labels):
            raise DataError(
                f"{image_path} holds {len(images)} images but {label_path} {len(labels)} labels"
            )
        if len(labels) == 0:
            raise DataError(f"{label_path}: holds no examples")
        wrong = np.flatnonzero(labels >= NUM_CLASSES)
        if wrong.size:
            raise DataError(
                f"{label_path}: {wrong.size} labels outside 0..{NUM_CLASSES - 1}, "
                f"first {labels[wrong[0]]} at position {wrong[0]}"
            )
    if train_images[1].shape[1:] != test_images[1].shape[1:]:
        raise DataError(
            f"{train_images[0]} holds images of {train_images[1].shape[1:]} "
            f"but {test_images[0]} of {test_images[1].shape[1:]}"
        )
    return from_two_parts(
        name,
        (train_images[1][..., None], train_labels[1]),
        (test_images[1][..., None], test_labels[1]),
        num_classes=NUM_CLASSES,
        divisor=255.0,
        scaling=SCALING,
        sort=True,
    )


def check_gzip(raw: bytes, where: str) -> None:
    """Raises DataError unless `raw` starts as a gzip file; recognises web pages."""
    if not raw:
        raise DataError(f"{where}: empty file, expected gzip")
    if raw[:2] == b"\x1f\x8b":
        return
    start = raw[:512].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise DataError(
            f"{where}: an HTML page, not a gzip file (an error page saved by a download?)"
        )
    raise DataError(f"{where}: not a gzip file, starts with bytes {raw[:4].hex(' ')}")


def check_file(raw: bytes, check: FileCheck, where: str) -> None:
    """Raises DataError unless `raw` is gzip of the expected size and sha256."""
    check_gzip(raw, where)
    digest = hashlib.sha256(raw).hexdigest()
    if digest == check.sha256:
        return
    for other, table in CHECKS.items():
        if digest in {known.sha256 for known in table.values()}:
            raise DataError(f"{where}: this is a file of {other}, in the wrong place")
    if len(raw) != check.size:
        kind = "truncated" if len(raw) < check.size else "another file"
        raise DataError(f"{where}: {len(raw)} bytes, expected {check.size} ({kind}?)")
    raise DataError(f"{where}: sha256 {digest}, expected {check.sha256}; the content is damaged")


def parse_idx(raw: bytes, where: str, *, ndim: int) -> np.ndarray:
    """The uint8 array in the bytes of a gzipped IDX file with `ndim` axes.

    Raises:
      DataError: bad gzip, wrong magic number, or a count that does not fit; begins
        with `where`, the path of the file.
    """
    check_gzip(raw, where)
    try:
        data = gzip.decompress(raw)
    except EOFError as error:
        raise DataError(f"{where}: gzip file is truncated") from error
    except (OSError, zlib.error) as error:
        raise DataError(f"{where}: bad gzip data ({error})") from error
    header = 4 + 4 * ndim
    expected_magic = 0x0800 + ndim  # unsigned bytes, ndim axes
    magic = int.from_bytes(data[:4], "big")
    if len(data) < 4 or magic != expected_magic:
        raise DataError(
            f"{where}: wrong magic number {magic}, expected {expected_magic} "
            f"(IDX file of unsigned bytes with {ndim} axes)"
        )
    if len(data) < header:
        raise DataError(f"{where}: ends inside its header, {len(data)} of {header} bytes")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", count=ndim, offset=4))
    if math.prod(shape) != len(data) - header:
        raise DataError(
            f"{where}: header promises shape {shape}, {math.prod(shape)} values, "
            f"but {len(data) - header} follow (wrong count)"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
