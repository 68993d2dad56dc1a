"""Pools that are not as tidy as a benchmark's: repeated, unbalanced, redundant.

Each takes a data set and gives one whose rows mean the same examples, so that labelled
rows, pictures and index sets can be compared; only copies are added, at the end.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bayesian_active_learning.data_utils.changed import merge_classes, take_rows, thin_classes
from bayesian_active_learning.data_utils.dataset import Dataset, ScaledSource, moments
from bayesian_active_learning.data_utils.splits import check_seed
from bayesian_active_learning.types import Source


@dataclasses.dataclass(frozen=True, eq=False)
class NoisyCopies:
    """Inputs with Gaussian noise of their own for each row, drawn where they are read.

    `source[rows]` is float32: `base[original[rows]] + amount[rows] * noise`, where `noise` is
    standard normal and a function of (seed, row) alone: no copy takes memory.
    """

    base: Source  # [M, H, W, C] or [M, D]
    original: np.ndarray  # [N], rows of base
    amount: np.ndarray  # [N] float32, in units of base; 0 leaves a row as it is
    seed: int
    spread: np.ndarray  # [C] float32, the noise of a channel is amount * spread

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.original), *self.base.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        rows = np.arange(len(self.original))[rows]  # negative ones and slices, as NumPy has them
        if not rows.ndim:
            return self[rows[None]][0]
        values = np.array(self.base[self.original[rows]], dtype=np.float32)
        noisy = np.flatnonzero(self.amount[rows])
        chosen = rows[noisy]
        drawn = _normals(self.seed, chosen, int(np.prod(self.shape[1:])))
        drawn = drawn.reshape(len(chosen), *self.shape[1:]) * self.spread
        values[noisy] += self.amount[chosen].reshape(-1, *[1] * (len(self.shape) - 1)) * drawn
        return values


def repeated(
    dataset: Dataset,
    /,
    *,
    copies: int = 3,
    noise: float = 0.1,
    per_class: int = 0,
    seed: int = 0,
) -> Dataset:
    """Each training row `copies` times, each copy with noise of its own: Repeated MNIST.

    Kirsch, van Amersfoort & Gal, "BatchBALD" (2019), section 4.2: a batch of the highest
    scores is a batch of copies. Their noise is 0.1 after inputs were normalised; so is this
    one, before: in deviations of each channel over the training rows. Test rows stay clean.

    With `per_class`, copies of so many rows of each class alone (`curated`), for pools that are
    scored whole: in a random part of many thousand rows there is hardly a copy of another.

    Rows 0..N-1 are the examples that they were; the copies follow, N + (c - 1) T + i the c-th
    copy of the i-th of T training rows.

    Raises:
      ValueError: fewer than one copy, negative or infinite noise, a negative number of rows or
        seed, or inputs that are not a `ScaledSource`.
    """
    if copies < 1:
        raise ValueError(f"copies must be at least 1, got {copies}")
    if not 0 <= noise < np.inf:
        raise ValueError(f"noise must be 0 or above and finite, got {noise}")
    check_seed(seed)
    source = dataset.images
    if not isinstance(source, ScaledSource):
        raise ValueError(
            f"repeated needs a dataset whose images are a ScaledSource, got "
            f"{type(source).__name__}; wrap the array: ScaledSource(array)"
        )
    if source.mean is not None:
        raise ValueError("repeat a data set first and standardise it then")
    settings = {"copies": copies, "noise": noise, "per_class": per_class, "seed": seed}
    chosen = _curated(dataset, per_class, {}, seed)[1] if per_class else dataset
    train = chosen.train_rows
    count = len(dataset.labels)
    original = np.concatenate([np.arange(count), *[train] * (copies - 1)])
    amount = np.full(len(original), noise, np.float32)
    amount[:count] = 0
    amount[train] = noise
    _, variance = moments(ScaledSource(source.base), train)
    base = NoisyCopies(source.base, original, amount, seed, np.sqrt(variance).astype(np.float32))
    added = np.arange(count, len(original), dtype=np.int32)
    return _named(
        chosen,
        dataset,
        "repeated",
        settings,
        images=dataclasses.replace(source, base=base),
        labels=dataset.labels[original],
        train_rows=np.concatenate([train, added]),
    )


def curated(dataset: Dataset, /, *, per_class: int = 4000, seed: int = 0) -> Dataset:
    """The same number of training rows of every class: `per_class`, or as many as the rarest
    has. Bickford Smith et al., "Prediction-oriented Bayesian active learning" (2023), sec. 6."""
    per_class, found = _curated(dataset, per_class, {}, seed)
    return _named(found, dataset, "curated", {"per_class": per_class, "seed": seed})


def unbalanced(
    dataset: Dataset,
    /,
    *,
    per_class: int = 4000,
    num_rare: int = 5,
    keep: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """A curated pool with only the fraction `keep` of the first `num_rare` classes, while
    test rows stay as they are: Unbalanced MNIST of Bickford Smith et al. (2023), section 6,
    with 400 rows of classes 0 to 4 and 4,000 of the others.

    Raises:
      ValueError: `num_rare` not within 0..num_classes, or `keep` not within [0, 1].
    """
    if not 0 <= num_rare <= dataset.num_classes:
        raise ValueError(f"num_rare must lie in 0..{dataset.num_classes}, got {num_rare}")
    if not 0 <= keep <= 1:
        raise ValueError(f"keep must lie in [0, 1], got {keep}")
    per_class, found = _curated(dataset, per_class, dict.fromkeys(range(num_rare), keep), seed)
    settings = {"per_class": per_class, "num_rare": num_rare, "keep": keep, "seed": seed}
    return _named(found, dataset, "unbalanced", settings)


def redundant(
    dataset: Dataset,
    /,
    *,
    first: int = 1,
    second: int = 7,
    per_class: int = 4000,
    seed: int = 0,
) -> Dataset:
    """Two classes to be told apart, in a pool of which the rest does not matter: Redundant
    MNIST of Bickford Smith et al. (2023), section 6.

    Class `first` becomes 0, `second` 1, and all others together 2; the pool is curated before.
    Test rows are those of the two classes alone.

    Raises:
      ValueError: the two classes are the same or do not exist.
    """
    if first == second or not {first, second} <= set(range(dataset.num_classes)):
        raise ValueError(
            f"first and second must be two of the classes 0..{dataset.num_classes - 1}, "
            f"got {first} and {second}"
        )
    per_class, found = _curated(dataset, per_class, {}, seed)
    kept = np.isin(dataset.labels[dataset.test_rows], (first, second))
    found = take_rows(found, test_rows=dataset.test_rows[kept], name="two classes of the test")
    others = [k for k in range(dataset.num_classes) if k not in (first, second)]
    found = merge_classes(found, [(first,), (second,), others])
    settings = {"first": first, "second": second, "per_class": per_class, "seed": seed}
    return _named(found, dataset, "redundant", settings)


POOLS: dict[str, Callable[..., Dataset]] = {
    "repeated": repeated,
    "curated": curated,
    "unbalanced": unbalanced,
    "redundant": redundant,
}
"""By the first word of a data set's name, as in repeated_mnist; all options have defaults."""


def _named(
    found: Dataset, original: Dataset, pool: str, settings: Mapping[str, Any], **fields: Any
) -> Dataset:
    """`found` with a name that says what it is, and a hash of where it comes from."""
    words = f"{pool}({', '.join(f'{key}={value}' for key, value in settings.items())})"
    digest = hashlib.sha256(f"{found.content_hash} {words}".encode()).hexdigest()
    return found._replace(
        **fields,
        name=f"{pool}_{original.name}",
        content_hash=digest,
        scaling=f"{words} of {original.scaling}",
    )


def _curated(
    dataset: Dataset, per_class: int, keep: Mapping[int, float], seed: int
) -> tuple[int, Dataset]:
    """How many rows each class has, and the data with so many, or the fraction in `keep`."""
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    counts = np.bincount(dataset.labels[dataset.train_rows], minlength=dataset.num_classes)
    per_class = min(per_class, int(counts.min()))
    shares = {k: keep.get(k, 1.0) * per_class / count for k, count in enumerate(counts.tolist())}
    return per_class, thin_classes(dataset, shares, seed=seed)


def _normals(seed: int, rows: np.ndarray, size: int) -> np.ndarray:
    """`[len(rows), size]` float32 standard normals of (seed, row), by Box & Muller (1958) from
    raw bits, which NumPy keeps where its own normals may change."""
    half = -(-size // 2)
    bits = np.empty((len(rows), half), np.uint64)
    for bit_row, row in zip(bits, rows):
        bit_row[:] = np.random.Philox(key=seed, counter=[0, 0, int(row), 0]).random_raw(half)
    # 0 < uniform <= 1, from the upper 32 bits; the angle from the lower ones.
    uniform = ((bits >> np.uint64(32)).astype(np.float64) + 1) * 2.0**-32
    length = np.sqrt(-2 * np.log(uniform)).astype(np.float32)
    angle = ((bits & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2 * np.pi * 2.0**-32)).astype(
        np.float32
    )
    return np.concatenate([length * np.cos(angle), length * np.sin(angle)], axis=1)[:, :size]
