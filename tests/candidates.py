"""Candidates of which only a few fields are known."""

from typing import Any

import numpy as np

from bayesian_active_learning.types import Candidates


def pool(n: int, mask: Any = None, **fields: Any) -> Candidates:
    return Candidates(
        rows=np.arange(100, 100 + n, dtype=np.int32),
        mask=np.ones(n, bool) if mask is None else np.asarray(mask, bool),
        **{name: np.asarray(value, np.float32) for name, value in fields.items()},
    )


def scored(scores: Any, mask: Any = None) -> Candidates:
    return pool(len(scores), mask, scores=scores)
