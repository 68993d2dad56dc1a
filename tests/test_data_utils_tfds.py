"""tensorflow-datasets: the real builder on the real files, and directories that are wrong."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from bayesian_active_learning.data_utils import DataError, idx, load_dataset, load_tfds, tfds
from bayesian_active_learning.data_utils.tfds import find_prepared, prepare_tfds

MNIST_HASH = "ec8553a725665232116387a28cb79aca619ec3ea8f5461b03729fb42dc6c2d6c"


def write_info(folder, **info):
    folder.mkdir(parents=True)
    info = {"name": "mnist", "version": folder.name, "fileFormat": "array_record", **info}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def installed(*modules):
    return all(importlib.util.find_spec(module) for module in modules)


needs_tfds = pytest.mark.skipif(
    not installed("tensorflow_datasets", "array_record", "PIL"),
    reason="needs tensorflow-datasets, array_record and Pillow",
)

# TensorFlow must not be there, whatever is installed.
READ_WITHOUT_TENSORFLOW = """
import importlib.machinery, sys
real = importlib.machinery.PathFinder.find_spec
def find_spec(name, *arguments):
    hidden = name.partition(".")[0] in ("tensorflow", "importlib_resources")
    return None if hidden else real(name, *arguments)
importlib.machinery.PathFinder.find_spec = find_spec
from bayesian_active_learning.data_utils import DataError, load_dataset, prepare_tfds
dataset = load_dataset("mnist", sys.argv[1])
print(dataset.name, dataset.content_hash, dataset.scaling)
try:
    prepare_tfds("mnist", sys.argv[1])
except DataError as error:
    print(error)
"""


@pytest.mark.tfds
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(
    not installed("tensorflow", "importlib_resources", "tensorflow_datasets"),
    reason="preparing needs TensorFlow: pip install 'bayesian_active_learning[tfds]'",
)
def test_real_builder_without_a_network(mnist_dir, tmp_path):
    folder = prepare_tfds("mnist", tmp_path / "tfds", manual_dir=mnist_dir)
    assert folder == find_prepared("mnist", tmp_path / "tfds")
    assert list(folder.glob("*.array_record*"))
    result = subprocess.run(
        [sys.executable, "-c", READ_WITHOUT_TENSORFLOW, str(tmp_path / "tfds")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.strip().splitlines()[-2:]
    assert first == f"mnist {MNIST_HASH} uint8 / 255"
    assert "needs tensorflow, importlib_resources" in second
    assert "pip install 'bayesian_active_learning[tfds]'" in second
    # Damage found while reading names the folder.
    (record,) = folder.glob("mnist-test.array_record*")
    record.write_bytes(record.read_bytes()[:1_000_000])
    with pytest.raises(DataError, match=r"3\.0\.1: TFDS cannot read it \(RuntimeError: Corrupted"):
        load_tfds("mnist", tmp_path / "tfds")


def test_newest_version_is_found(tmp_path):
    write_info(tmp_path / "mnist" / "3.0.1")
    newest = write_info(tmp_path / "mnist" / "3.0.10")
    write_info(tmp_path / "mnist" / "incomplete.ABC_3.0.11")
    write_info(tmp_path / "fashion_mnist" / "9.0.0", name="fashion_mnist")
    for folder in (tmp_path, tmp_path / "mnist", newest):
        assert find_prepared("mnist", folder) == newest
    assert find_prepared("mnist", tmp_path / "fashion_mnist") is None
    assert find_prepared("mnist", tmp_path / "gone") is None


def test_damaged_information_is_not_a_prepared_directory(tmp_path):
    folder = write_info(tmp_path / "mnist" / "3.0.1")
    for text in ("{", "[]", "{}"):
        (folder / "dataset_info.json").write_text(text)
        assert find_prepared("mnist", tmp_path) is None


def test_tfrecord_is_refused(no_data):
    write_info(no_data / "tfds" / "mnist" / "3.0.1", fileFormat="tfrecord")
    with pytest.raises(DataError, match=r"3\.0\.1: prepared as tfrecord, which only TensorFlow"):
        load_dataset("mnist", no_data / "tfds")
    # Nobody named TFDS's own directory, so there it is a reason to go on looking.
    heard = []
    assert load_dataset(notify=heard.append).name == "digits"
    assert "prepared as tfrecord" in " ".join(line.strip("# ") for line in heard[0].splitlines())


@needs_tfds
@pytest.mark.filterwarnings("ignore")
def test_directory_without_records(tmp_path):
    write_info(tmp_path / "mnist" / "3.0.1")
    with pytest.raises(DataError, match=r"3\.0\.1: TFDS cannot read it"):
        load_tfds("mnist", tmp_path)


@pytest.mark.parametrize("missing", ["tensorflow_datasets", "array_record", "PIL"])
def test_missing_packages_are_named(tmp_path, monkeypatch, missing):
    write_info(tmp_path / "mnist" / "3.0.1")
    monkeypatch.setitem(sys.modules, missing, None)
    name = {"PIL": "pillow", "tensorflow_datasets": "tensorflow-datasets"}.get(missing, missing)
    message = rf"reading .* needs .*{name}.*: pip install 'bayesian_active_learning\[tfds\]'"
    with pytest.raises(DataError, match=message):
        load_tfds("mnist", tmp_path)


def test_preparing_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(DataError, match="preparing mnist with tensorflow-datasets needs .*tensorf"):
        load_tfds("mnist", tmp_path)


def test_manual_dir_is_checked_before_the_network_could_be_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "_require", lambda *_: None)
    with pytest.raises(DataError, match="manual_dir holds none of the original mnist files"):
        prepare_tfds("mnist", tmp_path / "tfds", manual_dir=tmp_path)
    (tmp_path / idx.TRAIN_IMAGES).write_text("<html>")
    with pytest.raises(DataError, match=r"train-images.*: an HTML page"):
        prepare_tfds("mnist", tmp_path / "tfds", manual_dir=tmp_path)
    with pytest.raises(ValueError, match="unknown TFDS data set 'cifar10'; known: mnist, fashion"):
        load_tfds("cifar10", tmp_path)
