"""Candidates of which only the scores are known."""

from typing import Any

import numpy as np

from bayesian_active_learning.types import Candidates


def scored(scores: Any, mask: Any = None) -> Candidates:
    n = len(scores)
    return Candidates(
        rows=np.arange(100, 100 + n, dtype=np.int32),
        mask=np.ones(n, bool) if mask is None else np.asarray(mask),
        scores=np.asarray(scores, np.float32),
    )
