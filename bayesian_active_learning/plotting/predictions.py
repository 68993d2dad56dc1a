"""How far predictions can be trusted: reliability, and which classes are confused."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesian_active_learning.metrics import accuracy, expected_calibration_error
from bayesian_active_learning.plotting.styles import GREY, SMALL
from bayesian_active_learning.types import ArrayLike
from bayesian_active_learning.utils import check_positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _ORANGE = "#0072B2", "#E69F00"


def reliability_diagram(
    axes: "Axes", log_probs: ArrayLike, labels: ArrayLike, *, num_bins: int = 15
) -> None:
    """Accuracy against confidence in bins of equal width, and how many fall into each.

    The bins are those of `metrics.expected_calibration_error`, which stands in the title:
    the mean height between bars and diagonal, weighted by the grey shares.
    Guo et al. 2017, arXiv:1706.04599, figure 1.

    Args:
      axes: drawn into.
      log_probs: `[M, C]` normalised log-probabilities.
      labels: `[M]`.
      num_bins: at least 1.

    Raises:
      ValueError: shapes other than these.
    """
    check_positive(num_bins=num_bins)
    error = float(expected_calibration_error(log_probs, labels, num_bins=num_bins))
    probs = np.exp(np.asarray(log_probs, float))
    confidence = probs.max(axis=1)
    correct = probs.argmax(axis=1) == np.asarray(labels)
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    hits = np.bincount(bins, correct, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        heights = hits / counts
    edges = np.arange(num_bins) / num_bins
    options: dict[str, Any] = {"width": 1 / num_bins, "align": "edge", "linewidth": 0.6}
    axes.bar(edges, counts / counts.sum(), color="#DDDDDD", label="share of rows", **options)
    axes.bar(
        edges, heights, color="none", edgecolor=_BLUE, hatch="///", label="accuracy", **options
    )
    axes.plot([0, 1], [0, 1], color=_ORANGE, linewidth=1.5, label="calibrated")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy; share of rows")
    axes.set_title(
        f"ECE {error:.3f} over {num_bins} bins, accuracy {float(accuracy(log_probs, labels)):.1%}, "
        f"{len(confidence):,} rows",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=SMALL, loc="upper left")


def confusion_matrix(
    axes: "Axes",
    log_probs: ArrayLike,
    labels: ArrayLike,
    *,
    class_names: Sequence[str] | None = None,
) -> None:
    """Counts of true class (row) by predicted class (column), shaded by the share of the row.

    Args:
      axes: drawn into.
      log_probs: `[M, C]` normalised log-probabilities.
      labels: `[M]` in 0..C-1.
      class_names: C words; the numbers of the classes by default.

    Raises:
      ValueError: shapes other than these, or another number of names.
    """
    value = float(accuracy(log_probs, labels))
    log_probs, labels = np.asarray(log_probs), np.asarray(labels)
    classes = log_probs.shape[1]
    if class_names is not None and len(class_names) != classes:
        raise ValueError(f"expected {classes} class names, got {len(class_names)}")
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, log_probs.argmax(axis=1)), 1)
    names = list(class_names or map(str, range(classes)))
    heat_map(axes, counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), counts, names, names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"accuracy {value:.1%}, {len(labels):,} rows", fontsize=10)


def heat_map(
    axes: "Axes",
    shades: np.ndarray,
    values: np.ndarray,
    row_names: Sequence[str],
    column_names: Sequence[str],
    decimals: int = 0,
) -> None:
    """A table of `values`, each on a shade in 0..1; zeros are left blank."""
    axes.imshow(shades, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    size = SMALL if max(values.shape) <= 12 else 5
    for (row, column), value in np.ndenumerate(values):
        if value:
            dark = shades[row, column] > 0.55
            axes.text(
                column,
                row,
                f"{value:.{decimals}f}",
                ha="center",
                va="center",
                fontsize=size,
                color="white" if dark else "black",
            )
    slanted: dict[str, Any] = (
        {"rotation": 30, "ha": "right"} if max(map(len, column_names)) > 4 else {}
    )
    axes.set_xticks(range(len(column_names)), column_names, fontsize=SMALL, **slanted)
    axes.set_yticks(range(len(row_names)), row_names, fontsize=SMALL)
    axes.tick_params(length=0)
    axes.spines[:].set_color(GREY)
