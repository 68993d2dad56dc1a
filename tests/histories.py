"""Histories made by hand, for the tests of what is drawn and said about them."""

from collections.abc import Mapping, Sequence

import numpy as np

from bayesian_active_learning.history import Curve, History

IDENTITY = {
    "dataset": "mnist",
    "acquisition_size": 10,
    "num_samples": 100,
    "pool_size": 2000,
    "num_validation": 100,
}
FIVE = ("bald", "variation_ratios", "max_entropy", "mean_std", "random")


def curve(accuracy: Sequence[float], *, first: int = 20, step: int = 10) -> Curve:
    values = np.asarray(accuracy, float)
    asked = tuple(np.array([], np.int32) for _ in values)
    return Curve(
        labels=first + step * np.arange(len(values)),
        test={"accuracy": values, "nll": 1.0 - values},
        validation={},
        fitted={},
        rows=asked,
        scores=asked,
        filler=asked,
        initial_rows=np.arange(first, dtype=np.int32),
    )


def history(cells: Mapping[tuple[str, int], Sequence[float]], **identity: object) -> History:
    """(function, seed) -> accuracies in rounds of 10 labels from 20 on."""
    curves = {key: curve(values) for key, values in cells.items()}
    return History({"identity": {**IDENTITY, **identity}}, curves)


def rising(
    functions: Sequence[str] = FIVE, num_seeds: int = 5, num_rounds: int = 99, **identity: object
) -> History:
    """Curves as on MNIST: from 48 % to 98 %, each function slower than the one before."""
    cells = {}
    labels = 10.0 * np.arange(num_rounds)
    for place, name in enumerate(functions):
        for seed in range(num_seeds):
            scale = (60 + 20 * place) * (1 + 0.1 * np.sin(7 * seed + place))
            cells[name, seed] = 0.98 - 0.5 * np.exp(-((labels / scale) ** 0.75))
    return history(cells, **identity)
