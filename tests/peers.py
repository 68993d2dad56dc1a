"""The peers of test_peers*.py: their modules, random arrays as they take them, our picks."""

import gc
import importlib.util
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning.types import Candidates, Selection


def peer(name: str) -> Any:
    """A peer's module; where the package is not there the test skips."""
    package = name.split(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package.replace('skactiveml', 'scikit-activeml')}: make peers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, when imported
        return importlib.import_module(name)


def baal(name: str = "heuristics") -> Any:
    return peer(f"baal.active.heuristics.{name}")


def redux(name: str = "batchbald") -> Any:
    module = peer(f"batchbald_redux.{name}")
    gc.freeze()  # it collects garbage before each chunk, which takes longer than its work
    return module


def pool() -> Any:
    return peer("skactiveml.pool")


def random_probs(seed: int, *shape: int, scale: float = 2.0) -> np.ndarray:
    """`[N, K, C]`: a mean for each input, and samples that differ more for some inputs."""
    rng = np.random.default_rng(seed)
    spread = rng.uniform(0, scale, (shape[0], 1, 1))
    weights = np.exp(rng.normal(size=(shape[0], 1, shape[2])) + spread * rng.normal(size=shape))
    return weights / weights.sum(axis=-1, keepdims=True)


def redundant_probs(seed: int, *shape: int) -> np.ndarray:
    """`[N, K, C]`: inputs of four kinds, alike within a kind, so that top-k repeats itself."""
    rng = np.random.default_rng(seed)
    kinds = np.array([2.0, 1.7, 1.4, 1.1])[:, None, None] * rng.normal(size=(4, *shape[1:]))
    weights = np.exp(np.resize(kinds, shape) + 0.1 * rng.normal(size=shape))
    return weights / weights.sum(axis=-1, keepdims=True)


def last_axis(probs: np.ndarray) -> np.ndarray:
    """`[N, K, C]` as baal has it, `[N, C, K]`."""
    return np.ascontiguousarray(np.swapaxes(probs, 1, 2))


def first_axis(probs: np.ndarray) -> np.ndarray:
    """`[N, K, C]` as scikit-activeml has it, `[K, N, C]`. A copy: it writes into its input."""
    return np.swapaxes(probs, 0, 1).copy()


def log_tensor(probs: np.ndarray) -> Any:
    """`[N, K, C]` as batchbald_redux has it: the same, in logarithms."""
    return peer("torch").log(peer("torch").from_numpy(probs))


def pick(spec: str, batch_size: int, *, seed: int = 0, **fields: Any) -> Selection:
    """What our strategy selects from all candidates, in NumPy."""
    strategy = af.make_strategy(spec)
    if strategy.score is not None and "log_probs" in fields:
        fields["scores"] = strategy.score(jnp.asarray(fields.pop("log_probs")))
    count = len(next(iter(fields.values())))
    candidates = Candidates(np.arange(count, dtype=np.int32), np.ones(count, bool))
    if "labelled_features" in fields:
        fields["labelled_mask"] = np.ones(len(fields["labelled_features"]), bool)
    candidates = candidates._replace(**fields)
    selection = strategy.select(jax.random.key(seed), candidates, batch_size=batch_size)
    assert np.asarray(selection.valid).all()
    return Selection(*map(np.asarray, selection))


def committee(probs: np.ndarray, features: np.ndarray | None = None) -> Any:
    """A committee for scikit-activeml that predicts `probs [N, K, C]`, and has `features`."""

    class Committee(peer("skactiveml.base").SkactivemlClassifier):
        def fit(self, X, y, sample_weight=None):
            return self

        def predict_proba(self, X):
            mean = probs.mean(axis=1)
            return mean if features is None else (mean, features)

        def sample(self, X):
            return first_axis(probs)

    found = Committee(classes=range(probs.shape[2]))
    found.classes_ = np.arange(probs.shape[2])  # counts as fitted
    return found
