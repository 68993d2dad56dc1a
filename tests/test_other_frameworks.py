"""The code of docs/other_frameworks.md: Flax and Equinox networks as `Model` records."""

import functools
import pathlib
import re
from typing import Any

import jax
import numpy as np
import pytest

from bayesian_active_learning import inference, losses
from bayesian_active_learning.acquisition_functions import bald
from bayesian_active_learning.types import Model, Variables

TEXT = (pathlib.Path(__file__).parent.parent / "docs" / "other_frameworks.md").read_text()
SECTIONS = {
    section.split("\n", 1)[0]: re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for section in TEXT.split("\n## ")[1:]
}
PACKAGES = {"Flax NNX": "flax", "Equinox": "equinox"}
MODES = ("train", "sample", "mean")
KEY = jax.random.key(5)
each_framework = pytest.mark.parametrize("name", PACKAGES)


@functools.cache
def run(name: str) -> dict[str, Any]:
    """What the section's code and the common example leave behind."""
    pytest.importorskip(PACKAGES[name], reason=f"needs {PACKAGES[name]}: the extra frameworks")
    found: dict[str, Any] = {"__name__": "documentation"}
    for block in [*SECTIONS[name], *SECTIONS["Used like any other"]]:
        exec(compile(block, "docs/other_frameworks.md", "exec"), found)
    return found


def logits(name: str, key: jax.Array | None, inputs: np.ndarray, mode: str) -> np.ndarray:
    model, variables = run(name)["model"], run(name)["fitted"].variables
    return np.asarray(model.apply(variables, key, inputs, mode=mode)[0].logits)


@each_framework
def test_the_record_is_short(name: str):
    """Counted also where the framework is not installed."""
    network, record = SECTIONS[name]
    assert "class Network" in network and "Model(init, apply)" in record
    assert len([line for line in record.splitlines() if line.strip()]) < 15


@each_framework
def test_it_trains_and_scores_where_classes_meet(name: str):
    found = run(name)
    pool, inputs = found["pool"], found["inputs"]
    right = logits(name, None, inputs[pool], "mean").argmax(1) == found["labels"][pool]
    assert right.mean() > 0.9
    # Uncertain is where two centres are about equally near.
    distances = np.sort(np.linalg.norm(inputs[pool][:, None] - found["centres"], axis=2), axis=1)
    margins = distances[:, 1] - distances[:, 0]
    for scores in found["scores"].values():
        assert scores.shape == (len(pool),) and scores.max() > 0.01
        assert np.median(margins[np.argsort(-scores)[:20]]) < 0.7 * np.median(margins)
    first, second = found["scores"].values()
    assert not np.allclose(first, second, atol=1e-3)


@each_framework
def test_a_sample_is_one_network_for_all_inputs(name: str):
    found = run(name)
    twice = np.repeat(found["inputs"][:1], 40, axis=0)
    for mode, different in (("train", True), ("sample", False), ("mean", False)):
        rows = logits(name, None if mode == "mean" else KEY, twice, mode)
        assert (np.ptp(rows, axis=0).max() > 0.1) == different
        if not different:
            np.testing.assert_allclose(rows, rows[:1].repeat(40, axis=0), atol=1e-5)
    pool, inputs = found["pool"][:50], found["inputs"]
    posterior = inference.mc_dropout(found["model"], found["fitted"].variables)
    dense = np.stack(
        [logits(name, key, inputs[pool], "sample") for key in jax.random.split(KEY, 4)], axis=1
    )
    expected = np.asarray(jax.nn.log_softmax(dense))
    assert np.ptp(expected, axis=1).max() > 0.1
    for chunk_size in (50, 7):
        (scores,) = inference.score_pool(
            KEY, posterior, inputs, pool, [bald], num_samples=4, chunk_size=chunk_size
        )
        np.testing.assert_allclose(scores, bald(expected), atol=1e-5)


@each_framework
def test_state_is_carried_in_training_only(name: str):
    found = run(name)
    model: Model = found["model"]
    variables: Variables = found["fitted"].variables
    for mode in MODES:
        _, state = model.apply(variables, KEY, found["inputs"][:20], mode=mode)
        leaves, old = jax.tree.leaves(state), jax.tree.leaves(variables.state)
        assert jax.tree.structure(state) == jax.tree.structure(variables.state)
        unchanged = all(np.array_equal(a, b) for a, b in zip(leaves, old, strict=True))
        assert unchanged == (mode != "train" or name == "Equinox")
    assert len(jax.tree.leaves(variables.state)) == (2 if name == "Flax NNX" else 0)


@each_framework
def test_features_are_the_input_of_the_last_layer_and_decay_finds_its_matrices(name: str):
    found = run(name)
    variables, inputs = found["fitted"].variables, found["inputs"][:20]
    outputs, _ = found["model"].apply(variables, None, inputs, mode="mean")
    weights = [np.asarray(x) for x in jax.tree.leaves(variables.params) if x.ndim == 2]
    matrix = weights[1] if name == "Flax NNX" else weights[1].T
    linear = np.asarray(outputs.features) @ matrix
    offsets = np.asarray(outputs.logits) - linear  # the bias, for every input
    np.testing.assert_allclose(offsets, offsets[:1].repeat(20, axis=0), atol=1e-4)
    for coverage, expected in (("first_dense", weights[:1]), ("weights", weights)):
        squares = sum(float((w.astype(np.float64) ** 2).sum()) for w in expected)
        np.testing.assert_allclose(
            losses.squared_norm(variables.params, coverage), squares, rtol=1e-5
        )
