"""Which examples to label next: scores, strategies that pick a batch, and `acquire`.

Arrays in, arrays out: nothing here ever sees a model. Scores map log-probabilities
`[N, K, C]` to `[N]`, higher = more worth labelling; strategies pick positions from
`Candidates`; `acquire` turns positions into rows.
"""

from bayesian_active_learning.acquisition_functions.acquire import acquire, check_log_probs
from bayesian_active_learning.acquisition_functions.bait import bait
from bayesian_active_learning.acquisition_functions.batch_bald import batch_bald, joint_information
from bayesian_active_learning.acquisition_functions.by_score import (
    CANDIDATE_SCORES,
    CandidateScore,
    epig_score,
)
from bayesian_active_learning.acquisition_functions.clustering import (
    cluster_margin,
    kmeans,
    typiclust,
)
from bayesian_active_learning.acquisition_functions.committee import (
    consensus_kl,
    input_gradient,
    qbc,
    vaal,
    vae_coreset,
    variation_ratio,
    vote_entropy,
)
from bayesian_active_learning.acquisition_functions.coverage import estimate_delta, lcmd, probcover
from bayesian_active_learning.acquisition_functions.epig import batch_epig, epig, top_epig
from bayesian_active_learning.acquisition_functions.greedy_oracle import (
    UPPER_BOUNDS,
    greedy_oracle,
    realised_gain,
)
from bayesian_active_learning.acquisition_functions.joint import joint_entropy, num_exact
from bayesian_active_learning.acquisition_functions.k_center import cog, coreset
from bayesian_active_learning.acquisition_functions.k_center_robust import coreset_robust
from bayesian_active_learning.acquisition_functions.mixtures import (
    mixture,
    random_mix,
    uncertainty_mix,
    uncertainty_uniform,
)
from bayesian_active_learning.acquisition_functions.neighbours import knearest
from bayesian_active_learning.acquisition_functions.rankings import random, select_top, top_k
from bayesian_active_learning.acquisition_functions.scores import (
    SCORES,
    Uncertainty,
    aleatoric_uncertainty,
    bald,
    check_samples,
    decompose,
    epistemic_uncertainty,
    expected_entropy,
    find_score,
    least_confidence,
    margin,
    margin_ratio,
    max_entropy,
    mean_std,
    total_uncertainty,
    variation_ratios,
    variation_ratios_mode,
)
from bayesian_active_learning.acquisition_functions.seeding import badge, kmeans_pp
from bayesian_active_learning.acquisition_functions.selection import select_batch
from bayesian_active_learning.acquisition_functions.stochastic import power, softmax, softrank
from bayesian_active_learning.acquisition_functions.strategies import (
    STRATEGIES,
    canonical,
    make_strategy,
)
from bayesian_active_learning.acquisition_functions.uncertainty_weighted import uwe

__all__ = [
    "CANDIDATE_SCORES",
    "SCORES",
    "STRATEGIES",
    "UPPER_BOUNDS",
    "CandidateScore",
    "Uncertainty",
    "acquire",
    "aleatoric_uncertainty",
    "badge",
    "bait",
    "bald",
    "batch_bald",
    "batch_epig",
    "canonical",
    "check_log_probs",
    "check_samples",
    "cluster_margin",
    "cog",
    "consensus_kl",
    "coreset",
    "coreset_robust",
    "decompose",
    "epig",
    "epig_score",
    "epistemic_uncertainty",
    "estimate_delta",
    "expected_entropy",
    "find_score",
    "greedy_oracle",
    "input_gradient",
    "joint_entropy",
    "joint_information",
    "kmeans",
    "kmeans_pp",
    "knearest",
    "lcmd",
    "least_confidence",
    "make_strategy",
    "margin",
    "margin_ratio",
    "max_entropy",
    "mean_std",
    "mixture",
    "num_exact",
    "power",
    "probcover",
    "qbc",
    "random",
    "random_mix",
    "realised_gain",
    "select_batch",
    "select_top",
    "softmax",
    "softrank",
    "top_epig",
    "top_k",
    "total_uncertainty",
    "typiclust",
    "uncertainty_mix",
    "uncertainty_uniform",
    "uwe",
    "vaal",
    "vae_coreset",
    "variation_ratio",
    "variation_ratios",
    "variation_ratios_mode",
    "vote_entropy",
]
