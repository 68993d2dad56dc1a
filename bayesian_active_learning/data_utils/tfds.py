"""MNIST and Fashion-MNIST through tensorflow-datasets, as array_record.

Reading a prepared directory needs tensorflow-datasets, array_record and Pillow;
preparing one also needs TensorFlow. TFDS shuffles, so rows are put into canonical
order: the content hash is that of the original files.
"""

import importlib.util
import json
import os
import pathlib
from typing import Any

import numpy as np

from bayesian_active_learning.data_utils.dataset import DataError, Dataset, from_two_parts
from bayesian_active_learning.data_utils.idx import (
    CHECKS,
    FILE_NAMES,
    NUM_CLASSES,
    SCALING,
    check_file,
    find_idx_folder,
)
from bayesian_active_learning.utils import check_one_of

_TO_READ = ("tensorflow_datasets", "array_record", "PIL")
_TO_PREPARE = (*_TO_READ, "tensorflow", "importlib_resources")
_PIP_NAMES = {"PIL": "pillow", "tensorflow_datasets": "tensorflow-datasets"}
_CHUNK = 1000


def default_tfds_dir() -> pathlib.Path:
    """Where TFDS keeps data unless told otherwise: TFDS_DATA_DIR or ~/tensorflow_datasets."""
    return pathlib.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find_prepared(name: str, data_dir: str | os.PathLike) -> pathlib.Path | None:
    """The newest prepared version of `name`: in `data_dir/<name>/<version>`, or with
    `data_dir` being the folder of the data set or of the version itself."""
    data_dir = pathlib.Path(data_dir)
    for folders in (data_dir.glob(f"{name}/*"), data_dir.glob("*"), [data_dir]):
        versions = {
            tuple(int(part) for part in version.split(".")): folder
            for folder in folders
            if (version := _version_of(name, folder)) is not None
        }
        if versions:
            return versions[max(versions)]
    return None


def _version_of(name: str, folder: pathlib.Path) -> str | None:
    try:
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(info, dict) or info.get("name") != name:
        return None
    version = str(info.get("version", ""))
    return version if version and all(part.isdigit() for part in version.split(".")) else None


def load_tfds(
    name: str,
    data_dir: str | os.PathLike | None = None,
    *,
    manual_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Reads `name` from a TFDS directory, which is prepared first if need be.

    Args:
      name: "mnist" or "fashion_mnist".
      data_dir: TFDS's data directory (or the prepared folder); by default TFDS's own.
      manual_dir: a folder of the four original files to prepare from; without it,
        TFDS downloads them.

    Raises:
      DataError: a package is missing, the directory is damaged, or was prepared as
        TFRecord; names the directory.
    """
    check_one_of("TFDS data set", name, CHECKS)
    data_dir = default_tfds_dir() if data_dir is None else pathlib.Path(data_dir)
    folder = find_prepared(name, data_dir)
    if folder is None:
        folder = prepare_tfds(name, data_dir, manual_dir=manual_dir)
    return read_prepared(name, folder)


def prepare_tfds(
    name: str,
    data_dir: str | os.PathLike,
    *,
    manual_dir: str | os.PathLike | None = None,
) -> pathlib.Path:
    """Runs TFDS's own builder of `name` into `data_dir`; returns the prepared folder.

    With `manual_dir` no request is made: the files there are checked beforehand, for
    TFDS would go to the network for any that does not fit.

    Raises:
      DataError: TensorFlow or another package is missing, a file of `manual_dir` is
        wrong (names it), or the builder failed.
    """
    check_one_of("TFDS data set", name, CHECKS)
    _require(_TO_PREPARE, f"preparing {name} with tensorflow-datasets")
    if manual_dir is not None:
        manual_dir = _checked_folder(name, manual_dir)
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=os.fspath(data_dir), file_format="array_record")
        manual = None if manual_dir is None else os.fspath(manual_dir)
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=manual)
        )
        return pathlib.Path(os.fspath(builder.data_path))
    except Exception as error:
        raise DataError(f"{data_dir}: TFDS could not prepare {name} ({_brief(error)})") from error


def read_prepared(name: str, folder: pathlib.Path) -> Dataset:
    """Reads a prepared folder `.../<name>/<version>`; no TensorFlow needed."""
    try:
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no readable dataset_info.json ({error})") from error
    found = info.get("fileFormat", "tfrecord")
    if found != "array_record":
        raise DataError(
            f"{folder}: prepared as {found}, which only TensorFlow reads; prepare it again "
            f"into another directory as array_record: prepare_tfds({name!r}, DIR)"
        )
    _require(_TO_READ, f"reading {folder}")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(os.fspath(folder))
        parts = {split: _read_split(builder, split) for split in ("train", "test")}
    except Exception as error:
        raise DataError(f"{folder}: TFDS cannot read it ({_brief(error)})") from error
    for split, (images, labels) in parts.items():
        if images.dtype != np.uint8 or images.ndim != 4:
            raise DataError(
                f"{folder}: {split} images are {images.dtype} {images.shape}, "
                "expected uint8 [N, H, W, C]"
            )
        if labels.min() < 0 or labels.max() >= NUM_CLASSES:
            raise DataError(f"{folder}: {split} labels lie outside 0..{NUM_CLASSES - 1}")
    return from_two_parts(
        name,
        parts["train"],
        parts["test"],
        num_classes=NUM_CLASSES,
        divisor=255.0,
        scaling=SCALING,
        sort=True,
    )


def _read_split(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    source = builder.as_data_source(split=split)
    images, labels = [], []
    for start in range(0, len(source), _CHUNK):
        records = source.__getitems__(list(range(start, min(start + _CHUNK, len(source)))))
        images.append(np.stack([record["image"] for record in records]))
        labels.append(np.asarray([record["label"] for record in records]))
    return np.concatenate(images), np.concatenate(labels)


def _checked_folder(name: str, manual_dir: str | os.PathLike) -> pathlib.Path:
    folder = find_idx_folder(name, manual_dir)
    if folder is None:
        raise DataError(
            f"{manual_dir}: manual_dir holds none of the original {name} files; "
            f"expected {', '.join(FILE_NAMES)}"
        )
    for file_name in FILE_NAMES:
        path = folder / file_name
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
        check_file(raw, CHECKS[name][file_name], str(path))
    return folder


def _require(modules: tuple[str, ...], purpose: str) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        packages = ", ".join(_PIP_NAMES.get(module, module) for module in missing)
        raise DataError(
            f"{purpose} needs {packages}, not installed here: "
            "pip install 'bayesian_active_learning[tfds]'"
        )


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
