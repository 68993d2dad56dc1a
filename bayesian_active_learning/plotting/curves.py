"""Learning curves: a test metric against labels, over seeds."""

import functools
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bayesian_active_learning.history.comparison import (
    FEW_SEEDS,
    common_rounds,
    curves_by_function,
    mean_interval,
)
from bayesian_active_learning.history.records import Curve, History
from bayesian_active_learning.history.summary import caption, dataset_label
from bayesian_active_learning.plotting.files import INCHES, new_figure, save_png
from bayesian_active_learning.plotting.styles import (
    GREY,
    PAPER,
    SMALL,
    References,
    Style,
    check_references,
    function_label,
    function_styles,
    hollow,
    labels_words,
    metric_words,
    plain,
)
from bayesian_active_learning.utils import check_one_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BANDS = {
    "quartiles": "median and quartiles over seeds",
    "ci": "mean and its 95 % t-interval over seeds",
    "range": "median, lowest and highest seed",
    "none": "median over seeds",
}

_FAINT: dict[str, Any] = {"linewidth": 0.6, "alpha": 0.45, "zorder": 2}


def learning_curves(
    axes: "Axes",
    history: History,
    *,
    metric: str = "accuracy",
    band: str = "quartiles",
    thresholds: Sequence[float] = (0.90, 0.95),
    references: References | None = None,
    references_name: str = PAPER,
    references_dataset: str = "mnist",
    styles: Mapping[str, Style] | None = None,
) -> None:
    """Test metric against labels, a line per function over its seeds.

    The line covers the label counts that all seeds of the function have; single seeds
    are drawn faintly where they are few or do not end together.

    Args:
      axes: drawn into; gets title (the data), axis labels and legend.
      history: see `read_history`; accuracies are fractions there, percent here.
      metric: a test metric of the history, for example "accuracy", "nll_mean".
      band: one of BANDS. Quartiles and intervals need 3 seeds, a range 2.
      thresholds: accuracies (fractions) to mark by horizontal lines.
      references: somebody's labels to reach accuracies, as hollow markers. Those beyond
        the last label count drawn are left out; the legend says how many.
      references_name: whose.
      references_dataset: of which data; refused beside any other.
      styles: function -> how it is drawn, before `function_styles`; for curves of a name of
        their own, such as one function under several settings.

    Raises:
      ValueError: an empty history, an unknown metric or band, thresholds that are no
        fractions, references to other data or beside another metric.
    """
    from matplotlib.ticker import MaxNLocator

    check_one_of("band", band, BANDS)
    if not all(0 <= threshold <= 1 for threshold in thresholds):
        raise ValueError(f"thresholds are fractions such as 0.9, got {list(thresholds)}")
    found = curves_by_function(history, metric)
    is_accuracy = metric in ("accuracy", "accuracy_mean")
    if references is not None:
        check_references(history, references_name, references_dataset)
        if not is_accuracy:
            raise ValueError(f"references are labels to an accuracy, the metric is {metric!r}")
    given = styles or {}
    ours = function_styles(name for name in found if name not in given)
    styles = {name: given[name] if name in given else ours[name] for name in found}
    drawn = [
        _draw_function(axes, name, list(by_seed.values()), metric, band, styles[name])
        for name, by_seed in found.items()
    ]
    entries = [(line.handle, line.words) for line in drawn]
    for number, line in enumerate(drawn):
        # Apart from each other, so that curves which coincide show both markers.
        step = max(1, line.length // 8)
        line.handle.set_markevery((number * step // len(drawn), step))
    if is_accuracy:
        _mark_thresholds(axes, thresholds)
        lowest = min([line.lowest for line in drawn] + [100 * value for value in thresholds])
        bottom = 10 * math.floor((lowest - 1) / 10) if math.isfinite(lowest) else 0
        axes.set_ylim(max(-1, bottom), 101)
    if references is not None:
        end = max(int(curve.labels[-1]) for curves in found.values() for curve in curves.values())
        entries += _mark_references(axes, references, styles, end, references_name)
    axes.set_title(plain(dataset_label(history)), fontsize=11)
    axes.set_xlabel(labels_words(history))
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.set_ylabel(metric_words(metric))
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.5, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        *zip(*entries, strict=True),
        title=_band_words(band, [len(by_seed) for by_seed in found.values()]),
        fontsize=SMALL,
        title_fontsize=SMALL,
        loc="best",
        handlelength=3.5,
        framealpha=0.9,
    )


def learning_curves_figure(
    history: History,
    *,
    words: str | None = None,
    inches: tuple[float, float] = INCHES,
    **options: Any,
) -> "Figure":
    """`learning_curves` (its options) on a figure of its own, with a caption below: `words`, or
    what `caption` says of the history."""
    figure, axes = new_figure(inches, caption(history) if words is None else words)
    learning_curves(axes, history, **options)
    _uncover(figure, axes)
    return figure


def _uncover(figure: "Figure", axes: "Axes") -> None:
    """Puts the legend beside the axes if no place in them is free of curves."""
    figure.draw_without_rendering()
    legend = axes.get_legend()
    assert legend is not None
    box = legend.get_window_extent()
    for line in axes.lines:
        to_pixels = line.get_transform()
        is_curve = all(to_pixels.contains_branch_seperately(axes.transData))
        if is_curve and to_pixels.transform_path(line.get_path()).intersects_bbox(box, False):
            legend.set_loc("upper left")
            legend.set_bbox_to_anchor((1.1, 1.0))  # right of the thresholds' names
            return


def save_learning_curves(path: str | os.PathLike, history: History, **options: Any) -> None:
    """`learning_curves` (its options) as a PNG of 975 x 630 pixels, see `save_png`.

    Raises ValueError as `learning_curves` does, and what `save_png` raises.
    """
    draw = functools.partial(learning_curves_figure, history, **options)
    save_png(path, draw, title="learning curves", description=caption(history))


class _Line(NamedTuple):
    handle: Any  # matplotlib's line, for the legend
    words: str
    lowest: float  # of all that is drawn
    length: int


def _draw_function(
    axes: "Axes", name: str, curves: Sequence[Curve], metric: str, band: str, style: Style
) -> _Line:
    """The line, band and faint single seeds of one function."""
    scale, limit = _scale(metric)
    counts, values = common_rounds(curves, metric)
    values = scale * values
    uneven = len(curves) > 1 and any(len(curve.labels) != len(counts) for curve in curves)
    shown = [scale * curve.test[metric] for curve in curves]
    if uneven or 1 < len(curves) <= FEW_SEEDS:
        for curve, one in zip(curves, shown, strict=True):
            axes.plot(curve.labels, one, color=style.colour, **_FAINT)
    words = f"{function_label(name)}, {len(curves)} seed{'' if len(curves) == 1 else 's'}"
    if not len(counts):
        (handle,) = axes.plot([], [], color=style.colour, **_FAINT)
        return _Line(handle, f"{words},\nno label count in common", _lowest(shown), 0)
    centre, edges = _band(values, band, limit)
    if edges is not None:
        axes.fill_between(counts, *edges, color=style.colour, alpha=0.15, linewidth=0, zorder=1)
        shown.append(edges[0])
    (handle,) = axes.plot(
        counts,
        centre,
        color=style.colour,
        linestyle=style.dash,
        marker=style.marker,
        markersize=4,
        linewidth=1.5,
        zorder=3,
    )
    if uneven:
        words += f",\nall of them to {counts[-1]:,} labels"
    return _Line(handle, words, _lowest(shown), len(counts))


def _scale(metric: str) -> tuple[float, float]:
    """What values are multiplied by, and the most they can be then."""
    return (100.0, 100.0) if metric in ("accuracy", "accuracy_mean") else (1.0, math.inf)


def _lowest(values: Sequence[np.ndarray]) -> float:
    joined = np.concatenate(values)
    return float(np.min(joined[np.isfinite(joined)], initial=math.inf))


def _band(
    values: np.ndarray, band: str, limit: float
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """Centre and band of `values [S, R]` over S; no band where S is too small for it."""
    centre = values.mean(axis=0) if band == "ci" else np.median(values, axis=0)
    if not _has_band(band, len(values)):
        return centre, None
    if band == "range":
        low, high = values.min(axis=0), values.max(axis=0)
    elif band == "quartiles":
        low, high = np.quantile(values, [0.25, 0.75], axis=0)
    else:
        low, high = np.transpose([mean_interval(column) for column in values.T])
    return centre, (np.clip(low, 0, limit), np.clip(high, 0, limit))


def _has_band(band: str, count: int) -> bool:
    return band != "none" and count >= (2 if band == "range" else FEW_SEEDS)


def _band_words(band: str, counts: Sequence[int]) -> str:
    if max(counts) == 1:
        return "one seed: no band"
    if any(_has_band(band, count) for count in counts):
        return BANDS[band]
    return f"{'mean' if band == 'ci' else 'median'} over seeds"


def _mark_thresholds(axes: "Axes", thresholds: Sequence[float]) -> None:
    for threshold in thresholds:
        axes.axhline(100 * threshold, color=GREY, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        axes.text(
            1.01,
            100 * threshold,
            f"{100 * threshold:g} %",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=SMALL - 1,
            color=GREY,
        )


def _mark_references(
    axes: "Axes", references: References, styles: Mapping[str, Style], end: int, whose: str
) -> list[tuple[Any, str]]:
    """Hollow markers at (labels, accuracy), and their entry in the legend if any."""
    points = [
        (labels, accuracy, style)
        for name, style in styles.items()
        for accuracy, labels in references.get(name, {}).items()
    ]
    if not points:
        return []
    beyond = 0
    for labels, accuracy, style in points:
        if labels > end:
            beyond += 1
            continue
        axes.plot(
            labels, 100 * accuracy, **hollow(style.marker, style.colour), markersize=7.5, zorder=5
        )
    (entry,) = axes.plot([], [], **hollow("o"), markersize=7.5)
    left_out = f",\n{beyond} of {len(points)} beyond {end:,} labels" if beyond else ""
    return [(entry, plain(f"hollow: {whose}{left_out}"))]
