"""Data sets, one loader per source, the sets of rows they are split into, and changes to them."""

from bayesian_active_learning.data_utils.changed import (
    flip_labels,
    merge_classes,
    take_rows,
    thin_classes,
)
from bayesian_active_learning.data_utils.dataset import (
    DataError,
    Dataset,
    ScaledSource,
    canonical_order,
    content_hash,
    flatten,
    standardise,
    take_classes,
    unit_norm,
)
from bayesian_active_learning.data_utils.digits import load_digits
from bayesian_active_learning.data_utils.download import download_idx
from bayesian_active_learning.data_utils.idx import load_idx, parse_idx
from bayesian_active_learning.data_utils.load import DATASETS, load_dataset
from bayesian_active_learning.data_utils.npz import from_arrays, load_npz
from bayesian_active_learning.data_utils.pools import (
    POOLS,
    NoisyCopies,
    curated,
    redundant,
    repeated,
    unbalanced,
)
from bayesian_active_learning.data_utils.splits import (
    Splits,
    load_splits,
    make_splits,
    pool_subset,
    save_splits,
)
from bayesian_active_learning.data_utils.tfds import load_tfds, prepare_tfds

__all__ = [
    "DATASETS",
    "POOLS",
    "DataError",
    "Dataset",
    "NoisyCopies",
    "ScaledSource",
    "Splits",
    "canonical_order",
    "curated",
    "redundant",
    "repeated",
    "unbalanced",
    "content_hash",
    "download_idx",
    "flatten",
    "flip_labels",
    "from_arrays",
    "load_dataset",
    "load_digits",
    "load_idx",
    "load_npz",
    "load_splits",
    "load_tfds",
    "make_splits",
    "merge_classes",
    "parse_idx",
    "pool_subset",
    "prepare_tfds",
    "save_splits",
    "standardise",
    "take_classes",
    "take_rows",
    "thin_classes",
    "unit_norm",
]
