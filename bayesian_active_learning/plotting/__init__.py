"""Histories as figures: functions from a history to matplotlib axes.

Matplotlib is imported where it is used, and pyplot never: nothing here depends on, or
changes, the figures and settings of whoever calls it.
"""

from bayesian_active_learning.history.summary import caption
from bayesian_active_learning.plotting.acquired import (
    acquired_images,
    class_histogram,
    feature_map,
    tsne,
)
from bayesian_active_learning.plotting.comparisons import normalised_errors, penalty_matrix
from bayesian_active_learning.plotting.curves import (
    BANDS,
    learning_curves,
    learning_curves_figure,
    save_learning_curves,
)
from bayesian_active_learning.plotting.files import INCHES, new_figure, png, save_png
from bayesian_active_learning.plotting.predictions import confusion_matrix, reliability_diagram
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
    "INCHES",
    "PAPER_LABELS",
    "References",
    "Style",
    "acquired_images",
    "caption",
    "class_histogram",
    "confusion_matrix",
    "feature_map",
    "function_label",
    "function_styles",
    "labels_to_threshold_plot",
    "learning_curves",
    "learning_curves_figure",
    "new_figure",
    "normalised_errors",
    "penalty_matrix",
    "png",
    "reliability_diagram",
    "save_learning_curves",
    "save_png",
    "tsne",
]
