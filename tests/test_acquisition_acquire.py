"""`acquire`, which turns picks into rows, and `check_log_probs`: what they refuse, and how."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from candidates import scored

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning.types import Candidates, Selection


def selection_of(positions: Any, valid: Any = None, scores: Any = None) -> Selection:
    n = len(positions)
    return Selection(
        positions=np.asarray(positions, np.int32),
        scores=np.zeros(n, np.float32) if scores is None else np.asarray(scores, np.float32),
        valid=np.ones(n, bool) if valid is None else np.asarray(valid),
        filler=np.zeros(n, bool),
    )


def test_acquire_returns_rows_of_valid_picks_in_order() -> None:
    rows = af.acquire(selection_of([2, 0, -1], [True, True, False]), scored([1, 2, 3]))
    assert rows.tolist() == [102, 100]
    assert af.acquire(selection_of([-1], [False]), scored([1])).tolist() == []


CANDIDATES = scored([1, 2, 3, 4], mask=[True, True, True, False])


@pytest.mark.parametrize(
    ("selection", "candidates", "message"),
    [
        (selection_of([0, 4]), CANDIDATES, "positions 4 are outside the 4 candidates"),
        (selection_of([102, -1]), CANDIDATES, "positions 102, -1 are outside .* not rows"),
        (selection_of([3]), CANDIDATES, r"rows 103 are masked out \(padding\)"),
        (selection_of([1, 0, 1]), CANDIDATES, "rows 101 were selected more than once"),
        (
            selection_of([0, 1]),
            CANDIDATES._replace(rows=np.zeros(4, np.int32)),
            "rows 0 were selected more than once",
        ),
        (selection_of([0], scores=[np.nan]), CANDIDATES, r"rows 100 are NaN or infinite \(nan\)"),
        (selection_of([0], scores=[-np.inf]), CANDIDATES, "rows 100 are NaN or infinite"),
        (selection_of([0]), scored([1, np.inf]), r"rows 101 are NaN or infinite \(inf\)"),
        (selection_of([0]), scored([1] + [np.nan] * 9), "rows 101, .* 105 and 4 more are NaN"),
        (
            selection_of([0])._replace(valid=np.ones(2, bool)),
            CANDIDATES,
            r"fields of one shape \[B\], got .*'valid': \[2\]",
        ),
        (
            selection_of([0]),
            CANDIDATES._replace(scores=np.zeros(3)),
            r"one score for each of 4 candidates, got shape \[3\]",
        ),
        (
            selection_of([0]),
            CANDIDATES._replace(mask=np.ones(3, bool)),
            r"rows and mask of one shape \[N\], got \[4\] and \[3\]",
        ),
    ],
)
def test_acquire_refuses(selection: Selection, candidates: Candidates, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        af.acquire(selection, candidates)


def test_acquire_looks_at_half_precision_too() -> None:
    """bfloat16 is no floating type to NumPy, and one NaN can make other candidates' scores NaN."""
    features = jnp.ones((4, 2), jnp.bfloat16).at[2, 0].set(jnp.nan)
    candidates = CANDIDATES._replace(features=features)
    with pytest.raises(ValueError, match="the features of rows 102 are NaN or infinite"):
        af.acquire(selection_of([0]), candidates)


def test_acquire_ignores_bad_scores_of_padding() -> None:
    candidates = scored([1, np.nan], mask=[True, False])
    assert af.acquire(selection_of([0]), candidates).tolist() == [100]


# check_log_probs


def test_check_log_probs_accepts_what_scores_accept() -> None:
    with np.errstate(divide="ignore"):
        af.check_log_probs(np.log(np.eye(3, dtype=np.float32))[None])
    af.check_log_probs(jax.nn.log_softmax(1e4 * jax.random.normal(jax.random.key(0), (2, 3, 1000))))


@pytest.mark.parametrize(
    ("log_probs", "message"),
    [
        (np.zeros((2, 3)), r"expected log_probs of shape \[N, K, C\], got \[2, 3\]"),
        (np.full((2, 3, 4), 0.25), "not normalised at rows 50, 51: .*log_softmax to logits"),
        (np.full((2, 3, 4), 1e4), "not normalised at rows 50, 51"),
        (np.full((2, 3, 4), -np.inf), "not normalised at rows 50, 51"),
        (np.full((2, 3, 4), np.nan), "NaN or infinite at rows 50, 51"),
    ],
)
def test_check_log_probs_refuses(log_probs: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        af.check_log_probs(log_probs, rows=np.array([50, 51]))
