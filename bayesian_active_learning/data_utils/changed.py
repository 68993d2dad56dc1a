"""Data sets changed on purpose: rare classes, merged classes, wrong labels, fewer rows.

Rows keep their meaning, inputs are not copied, and the changed data has a name and a content
hash of its own, so that no run mistakes it for the data it came from.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bayesian_active_learning.data_utils.dataset import Dataset
from bayesian_active_learning.data_utils.splits import check_rows, check_seed, random_bits

# Independent streams of one seed; 0 to 2 are those of splits.
_THIN, _FLIP, _WRONG = 3, 4, 5


def take_rows(
    dataset: Dataset, *, train_rows: Any = None, test_rows: Any = None, name: str
) -> Dataset:
    """The same data with fewer training or test rows.

    Args:
      dataset: unchanged.
      train_rows: some of `dataset.train_rows`, which initial, validation and pool rows are
        then drawn from; None keeps all.
      test_rows: some of `dataset.test_rows`; None keeps all.
      name: what was done, in words, such as "1,000 test rows"; goes behind the data's name.

    Raises:
      ValueError: rows that are not among the data set's own, repeated, or none.
    """
    found = {}
    for which, rows in (("train_rows", train_rows), ("test_rows", test_rows)):
        known = np.asarray(getattr(dataset, which))
        if rows is None:
            found[which] = known
            continue
        found[which] = check_rows(which, rows, len(dataset.labels))
        if not len(found[which]):
            raise ValueError(f"{which} is empty")
        strange = np.setdiff1d(found[which], known)
        if len(strange):
            raise ValueError(f"row {strange[0]} is not among the {which} of {dataset.name}")
    rows = dataset._replace(train_rows=found["train_rows"], test_rows=found["test_rows"])
    return _changed(rows, name)


def thin_classes(dataset: Dataset, shares: Mapping[int, float], *, seed: int = 0) -> Dataset:
    """The same data with only a share of the training rows of some classes.

    `thin_classes(mnist, {2: 0.25})` removes 75 % of the 2s. Test rows stay. Which rows are
    kept is a function of the seed and the training rows, the same on every platform; a
    larger share keeps the rows of a smaller one.

    Args:
      dataset: unchanged.
      shares: class -> share of its training rows to keep, in [0, 1]; rounded to whole rows.
      seed: not negative; independent of the seeds of `make_splits`.

    Raises:
      ValueError: an unknown class, a share outside [0, 1], or a negative seed.
    """
    check_seed(seed)
    rows = np.sort(np.asarray(dataset.train_rows))
    labels = np.asarray(dataset.labels)[rows]
    bits = random_bits(len(rows), seed, _THIN)
    keep = np.ones(len(rows), bool)
    for label, share in shares.items():
        if not 0 <= label < dataset.num_classes:
            raise ValueError(f"class {label} is not among 0..{dataset.num_classes - 1}")
        _check_share(f"the share of class {label}", share)
        members = np.flatnonzero(labels == label)
        order = members[np.argsort(bits[members], kind="stable")]
        keep[order[round(share * len(members)) :]] = False
    words = " and ".join(f"{100 * share:g} % of class {label}" for label, share in shares.items())
    return take_rows(dataset, train_rows=rows[keep], name=f"{words} (seed {seed})")


def flip_labels(dataset: Dataset, rate: float, *, seed: int = 0) -> Dataset:
    """The same data where a share of the training labels is wrong; test labels stay.

    Symmetric noise: exactly `round(rate * N)` of the N training rows get one of the other
    classes, all with equal probability. A function of seed, labels and training rows, the same
    on every platform; a higher rate has the wrong labels of a lower one.

    Args:
      dataset: unchanged.
      rate: share of wrong labels, in [0, 1].
      seed: not negative; independent of the seeds of `make_splits`.

    Raises:
      ValueError: a rate outside [0, 1], or a negative seed.
    """
    check_seed(seed)
    _check_share("rate", rate)
    rows = np.sort(np.asarray(dataset.train_rows))
    order = np.argsort(random_bits(len(rows), seed, _FLIP), kind="stable")
    wrong = order[: round(rate * len(rows))]
    others = np.uint64(dataset.num_classes - 1)
    steps = 1 + (random_bits(len(rows), seed, _WRONG)[wrong] % others).astype(np.int32)
    labels = np.array(dataset.labels, np.int32)
    labels[rows[wrong]] = (labels[rows[wrong]] + steps) % dataset.num_classes
    changed = dataset._replace(labels=labels)
    return _changed(changed, f"{100 * rate:g} % wrong labels (seed {seed})")


def merge_classes(dataset: Dataset, groups: Sequence[Sequence[int]]) -> Dataset:
    """The same data with classes that are groups of the old ones, in the order of `groups`.

    `merge_classes(mnist, [(1,), (7,), (0, 2, 3, 4, 5, 6, 8, 9)])` asks whether an image is a
    one, a seven or something else.

    Raises:
      ValueError: an old class that is in no group or in two, an empty group, or a single one.
    """
    if len(groups) < 2:
        raise ValueError(f"at least two groups are needed, got {len(groups)}")
    members = [label for group in groups for label in group]
    if sorted(members) != list(range(dataset.num_classes)) or not all(map(len, groups)):
        raise ValueError(
            f"each of the classes 0..{dataset.num_classes - 1} must be in one group, and no "
            f"group empty; got {[list(group) for group in groups]}"
        )
    new = np.zeros(dataset.num_classes, np.int32)
    for number, group in enumerate(groups):
        new[list(group)] = number
    words = " | ".join(" ".join(map(str, group)) for group in groups)
    changed = dataset._replace(labels=new[np.asarray(dataset.labels)], num_classes=len(groups))
    return _changed(changed, f"classes {words}")


def _check_share(what: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{what} must lie in [0, 1], got {share}")


def _changed(dataset: Dataset, words: str) -> Dataset:
    """With a name and a hash that follow from the old ones, labels and rows."""
    digest = hashlib.sha256(f"bayesian_active_learning changed 1 {dataset.content_hash}\n".encode())
    digest.update(f"{dataset.num_classes}\n".encode())
    for array in (dataset.labels, dataset.train_rows, dataset.test_rows):
        digest.update(f"{len(array)}\n".encode())
        digest.update(np.asarray(array).astype("<i4").tobytes())
    return dataset._replace(name=f"{dataset.name}, {words}", content_hash=digest.hexdigest())
