"""Posteriors beside MC dropout: deep ensembles, Laplace over the last layer, SWAG;
and a logistic head fitted exactly.

All are `Posterior` records, taken by `inference.score_pool`, `log_probs` and `predict`
in the place of `inference.mc_dropout`.
"""

from bayesian_active_learning.posteriors.choose import (
    POSTERIORS,
    Fitted,
    PosteriorRule,
    PosteriorSpec,
    make_posterior,
)
from bayesian_active_learning.posteriors.ensemble import (
    EnsembleFit,
    ensemble,
    fit_ensemble,
    stack_variables,
)
from bayesian_active_learning.posteriors.laplace import STRUCTURES, LastLayer, laplace
from bayesian_active_learning.posteriors.logistic import (
    LogisticFit,
    fit_logistic,
    logistic,
    sample_logistic,
)
from bayesian_active_learning.posteriors.swag import (
    SwagMoments,
    fit_swag,
    swag,
    swag_moments,
    update_swag_moments,
)

__all__ = [
    "POSTERIORS",
    "STRUCTURES",
    "EnsembleFit",
    "Fitted",
    "LastLayer",
    "LogisticFit",
    "PosteriorRule",
    "PosteriorSpec",
    "SwagMoments",
    "ensemble",
    "fit_ensemble",
    "fit_logistic",
    "fit_swag",
    "laplace",
    "logistic",
    "make_posterior",
    "sample_logistic",
    "stack_variables",
    "swag",
    "swag_moments",
    "update_swag_moments",
]
