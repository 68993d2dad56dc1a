"""What the documentation says, held against the code."""

import pathlib
import re

import jax
import numpy as np
import pytest
from driver import go

import bayesian_active_learning.acquisition_functions as af

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
PAGE = (DOCS / "acquisition_functions.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| `")]
NEEDS = {  # words of the page -> fields of Candidates
    "scores": {"scores"},
    "log-probs": {"log_probs"},
    "target log-probs": {"target_log_probs"},
    "features": {"features"},
    "predictions": {"predictions"},
    "labelled": {"labelled_mask"},
    "input gradients": {"input_gradients"},
    "committee": {"committee_log_probs"},
    "VAE": {"unlabelled_log_odds"},
    "nothing": set(),
}


def test_every_name_stands_in_the_table_once():
    named = [name for line in ROWS for name in re.findall("`([a-z_]+)`", line.split("|")[1])]
    assert sorted(named) == sorted(af.STRATEGIES)


@pytest.mark.parametrize("line", ROWS, ids=lambda line: line.split("`")[1])
def test_needs_are_as_stated(line: str):
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    stated = set().union(*(NEEDS[word.strip()] for word in cells[2].split(",")))
    for name in re.findall("`([a-z_]+)`", cells[0]):
        needs = af.make_strategy(name).needs
        implied = (
            {"labelled_mask"} if any(need.startswith("labelled_") for need in needs) else set()
        )
        shown = {need for need in needs if not need.startswith("labelled_")}
        assert stated == shown | implied, name
        assert cells[5] == af.STRATEGIES[name].paper
    assert len(cells) == 6 and all(cells)


def test_the_example_of_ones_own_runs():
    (code,) = re.findall("```python\n(.*?)```", PAGE, re.DOTALL)
    place: dict = {}
    exec(code, place)  # the page's own words
    found = go("second_moment", "bald", labels=15, strategies=place["strategies"])
    assert set(found.cells) == {("second_moment", 0), ("bald", 0)}
    log_probs = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (4, 3, 5)))
    expected = np.exp(log_probs).var(axis=1).sum(axis=-1)
    np.testing.assert_allclose(place["second_moment"](log_probs), expected, rtol=1e-5)
