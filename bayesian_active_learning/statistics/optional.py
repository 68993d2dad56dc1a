"""SciPy, imported where it is used: `scipy.stats` takes longer than the rest of a command."""

from typing import Any

SCIPY = (1, 16)  # the first whose `tukey_hsd` has Games-Howell


def scipy_stats() -> Any:
    """`scipy.stats`. Raises ImportError where SciPy is missing or too old."""
    try:
        import scipy
        from scipy import stats
    except ImportError as error:
        raise ImportError(_message("which is not installed")) from error
    if tuple(map(int, scipy.__version__.split(".")[:2])) < SCIPY:
        raise ImportError(_message(f"this is {scipy.__version__}"))
    return stats


def _message(found: str) -> str:
    wanted = ".".join(map(str, SCIPY))
    return f"statistics need SciPy {wanted} or later, {found}; install the 'experiments' extra"
