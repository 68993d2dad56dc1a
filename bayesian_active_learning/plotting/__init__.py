"""Histories as figures: functions from a history to matplotlib axes.

Matplotlib is imported where it is used, and pyplot never: nothing here depends on, or
changes, the figures and settings of whoever calls it.
"""

from bayesian_active_learning.history.summary import caption
from bayesian_active_learning.plotting.curves import (
    BANDS,
    learning_curves,
    learning_curves_figure,
    save_learning_curves,
)
from bayesian_active_learning.plotting.styles import (
    PAPER_LABELS,
    References,
    Style,
    function_label,
    function_styles,
)
from bayesian_active_learning.plotting.thresholds import labels_to_threshold_plot

__all__ = [
    "BANDS",
    "PAPER_LABELS",
    "References",
    "Style",
    "caption",
    "function_label",
    "function_styles",
    "labels_to_threshold_plot",
    "learning_curves",
    "learning_curves_figure",
    "save_learning_curves",
]
