"""Which examples to label next: scores, strategies that pick a batch, and `acquire`.

Arrays in, arrays out: nothing here ever sees a model. Scores map log-probabilities
`[N, K, C]` to `[N]`, higher = more worth labelling; strategies pick positions from
`Candidates`; `acquire` turns positions into rows.
"""

from bayesian_active_learning.acquisition_functions.acquire import acquire, check_log_probs
from bayesian_active_learning.acquisition_functions.rankings import random, select_top, top_k
from bayesian_active_learning.acquisition_functions.scores import (
    bald,
    max_entropy,
    mean_std,
    variation_ratios,
    variation_ratios_mode,
)
from bayesian_active_learning.acquisition_functions.strategies import (
    STRATEGIES,
    make_strategy,
)

__all__ = [
    "STRATEGIES",
    "acquire",
    "bald",
    "check_log_probs",
    "make_strategy",
    "max_entropy",
    "mean_std",
    "random",
    "select_top",
    "top_k",
    "variation_ratios",
    "variation_ratios_mode",
]
