"""Deep Bayesian active learning in JAX and Haiku.

Nothing is imported until it is used: ``import bayesian_active_learning`` touches
no device, and the scores alone need neither data sets nor plotting.
"""

import importlib as _importlib
from typing import Any as _Any

__version__ = "0.7.0"

_SUBMODULES = (
    "acquisition_functions",
    "cold_start",
    "compilation",
    "data_utils",
    "experiment",
    "frozen_features",
    "gaussian_fields",
    "history",
    "hoisting",
    "inference",
    "losses",
    "metrics",
    "models",
    "oracle",
    "parameters",
    "plotting",
    "posteriors",
    "protocol",
    "providers",
    "replicas",
    "rounds",
    "specs",
    "statistics",
    "training",
    "tuning",
    "types",
    "utils",
    "vaal",
)

__all__ = ["__version__", *_SUBMODULES]


def __getattr__(name: str) -> _Any:
    if name in _SUBMODULES:
        return _importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
