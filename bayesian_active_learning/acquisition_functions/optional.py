"""Packages that some strategies need and the library does not, imported where they are used."""

import importlib
from typing import Any


def imported(module: str, *, by: str) -> Any:
    """The module, for the method `by`.

    Raises:
      ImportError: its package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn", "scipy": "SciPy"}[module.split(".")[0]]
        raise ImportError(
            f"{by} needs {package}: pip install 'bayesian_active_learning[experiments]'"
        ) from error
