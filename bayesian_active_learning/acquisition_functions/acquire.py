"""From a strategy's positions to rows: the one place where that happens, and is checked.

`top_k` and `argmax` rank NaN first and out-of-range indexing is silent in JAX, so these
checks are eager, on the host.
"""

import jax.numpy as jnp
import numpy as np

from bayesian_active_learning.acquisition_functions.selection import PER_CANDIDATE
from bayesian_active_learning.types import ArrayLike, Candidates, Selection

_LOGARITHMS = (
    "log_probs",
    "predictions",
    "committee_log_probs",
    "labelled_predictions",
    "target_log_probs",
)
_OTHERS = (  # fields of Candidates about something else than candidates
    "labelled_scores",
    "labelled_predictions",
    "labelled_features",
    "labelled_latents",
    "target_log_probs",
)


def acquire(selection: Selection, candidates: Candidates) -> np.ndarray:
    """The rows that `selection` picked: valid ones only, best first.

    Args:
      selection: what a strategy returned, `[B]` each.
      candidates: what it chose from, rows and mask `[N]`, scores `[N]` or None.

    Returns:
      int32 rows, at most B.

    Raises:
      ValueError: NaN or infinite values among what is known of the candidates or the scores
        of the picks (naming the rows), or of labelled or target inputs (naming their
        positions), positions out of range, masked out or picked twice, or shapes that differ.
    """
    rows = np.asarray(candidates.rows)
    mask = np.asarray(candidates.mask, bool)
    if rows.ndim != 1 or mask.shape != rows.shape:
        raise ValueError(
            f"expected candidate rows and mask of one shape [N], got {list(rows.shape)} and "
            f"{list(mask.shape)}"
        )
    if candidates.scores is not None and np.shape(candidates.scores) != rows.shape:
        raise ValueError(
            f"expected one score for each of {len(rows)} candidates, got shape "
            f"{list(np.shape(candidates.scores))}"
        )
    if rows.size:
        for name in PER_CANDIDATE:
            _check(name, candidates, rows, mask)
        for name in _OTHERS:
            _check(name, candidates)

    fields = {name: np.asarray(value) for name, value in selection._asdict().items()}
    shapes = {name: list(value.shape) for name, value in fields.items()}
    if fields["valid"].ndim != 1 or len({tuple(shape) for shape in shapes.values()}) > 1:
        raise ValueError(f"expected a selection with fields of one shape [B], got {shapes}")
    valid = fields["valid"].astype(bool)
    positions = fields["positions"][valid]
    outside = positions[(positions < 0) | (positions >= len(rows))]
    if outside.size:
        raise ValueError(
            f"selected positions {_some(outside)} are outside the {len(rows)} candidates; "
            "a strategy returns positions in the candidate arrays, not rows"
        )
    picked = rows[positions]
    masked = ~mask[positions]
    if masked.any():
        raise ValueError(f"selected rows {_some(picked[masked])} are masked out (padding)")
    values, counts = np.unique(picked, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"rows {_some(values[counts > 1])} were selected more than once")
    scores = fields["scores"][valid]
    _refuse("scores of rows", ~np.isfinite(scores), picked, scores[:, None])
    return picked.astype(np.int32)


def check_log_probs(log_probs: ArrayLike, rows: ArrayLike | None = None) -> None:
    """Eagerly refuses what no score can make sense of, naming the rows.

    Catches the common slips: logits or probabilities instead of log-probabilities, a
    missing sample axis, NaN. -inf is a valid log-probability. Reads all `[N, K, C]`
    values on the host, so use it on what a person hands in, not in a loop.

    Args:
      log_probs: `[N, K, C]`.
      rows: `[N]` names for the messages; positions where None.

    Raises:
      ValueError: not `[N, K, C]`, NaN or +inf, or not normalised to 1 within 1e-3.
    """
    values = np.asarray(log_probs)
    if values.ndim != 3 or 0 in values.shape[1:]:
        raise ValueError(f"expected log_probs of shape [N, K, C], got {list(values.shape)}")
    names = np.arange(len(values)) if rows is None else np.asarray(rows)
    bad = (np.isnan(values) | (values == np.inf)).any(axis=(1, 2))
    if bad.any():
        raise ValueError(f"log_probs are NaN or infinite at rows {_some(names[bad])}")
    with np.errstate(over="ignore"):  # logits may be large: inf is not 1 either
        sums = np.exp(values.astype(np.float64)).sum(axis=-1)
    off = (np.abs(sums - 1) > 1e-3).any(axis=1)
    if off.any():
        raise ValueError(
            f"log_probs are not normalised at rows {_some(names[off])}: exp() must sum to 1 "
            "over the last axis; apply jax.nn.log_softmax to logits, or log to probabilities"
        )


def _check(
    name: str,
    candidates: Candidates,
    rows: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> None:
    """Refuses NaN and infinite values of a field, by row or, where there are none, position."""
    if getattr(candidates, name) is None:
        return
    values = np.asarray(getattr(candidates, name))
    if not values.size or not jnp.issubdtype(values.dtype, jnp.floating):
        return
    values = values.reshape(len(values), -1)
    if name.startswith("labelled_") and candidates.labelled_mask is not None:
        mask = np.asarray(candidates.labelled_mask, bool)
    # A log-probability may be -inf: that is the logarithm of 0.
    fine = np.isfinite(values) | ((values == -np.inf) & (name in _LOGARITHMS))
    bad = ~fine.all(axis=1) & (True if mask is None else mask)
    what = f"{name.replace('_', ' ')} {'at positions' if rows is None else 'of rows'}"
    _refuse(what, bad, np.arange(len(values)) if rows is None else rows, values)


def _refuse(what: str, bad: np.ndarray, rows: np.ndarray, values: np.ndarray) -> None:
    if bad.any():
        first = values[np.argmax(bad)]
        raise ValueError(
            f"the {what} {_some(rows[bad])} are NaN or infinite "
            f"({first[~np.isfinite(first)][0]}); check those inputs and the model's "
            "predictions for them"
        )


def _some(values: np.ndarray, limit: int = 5) -> str:
    """The first few values, and how many more there are."""
    shown = ", ".join(str(value) for value in values[:limit].tolist())
    return shown if len(values) <= limit else f"{shown} and {len(values) - limit} more"
