"""Labels to a test accuracy, beside the numbers of others."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bayesian_active_learning.history.comparison import FEW_SEEDS, curves_by_function
from bayesian_active_learning.history.records import Curve, History
from bayesian_active_learning.history.summary import dataset_label
from bayesian_active_learning.history.thresholds import (
    labels_to_threshold,
    quartiles_labels_to_threshold,
)
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
    plain,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def labels_to_threshold_plot(
    axes: "Axes",
    history: History,
    thresholds: Sequence[float] = (0.90, 0.95),
    *,
    sustained: int = 1,
    metric: str = "accuracy",
    references: References | None = None,
    references_name: str = PAPER,
    references_dataset: str = "mnist",
) -> None:
    """Labels to each threshold, a row per function: median over seeds, quartiles from 3
    seeds on, and a hollow star for the reference below it. Seeds that do not get there
    count as infinite. Arguments and errors as for `learning_curves`.
    """
    found = curves_by_function(history, metric)
    if not thresholds:
        raise ValueError("no thresholds to draw labels to")
    if references is not None:
        check_references(history, references_name, references_dataset)
    styles = function_styles(found)
    ends = {
        name: max(int(curve.labels[-1]) for curve in by_seed.values())
        for name, by_seed in found.items()
    }
    rows: list[str] = []
    given: list[float] = []
    for threshold in thresholds:
        for name, by_seed in found.items():
            height, curves = len(rows), list(by_seed.values())
            reached = [
                labels_to_threshold(
                    curve.labels, curve.test[metric], threshold, sustained=sustained
                )
                for curve in curves
            ]
            quartiles = quartiles_labels_to_threshold(curves, threshold, sustained, metric=metric)
            shift = 0.0 if references is None else 0.2
            _draw_reached(axes, height - shift, reached, quartiles, styles[name], ends[name])
            value = (references or {}).get(name, {}).get(threshold)
            if value is not None:
                given.append(value)
                axes.plot(value, height + shift, **hollow("*"), markersize=7)
                _annotate(axes, f"{value:g}", value, height + shift, color=GREY)
            rows.append(f"{function_label(name)}, {100 * threshold:g} %")
    for height in range(len(found), len(rows), len(found)):
        axes.axhline(height - 0.5, color="#DDDDDD", linewidth=0.8)
    axes.set_yticks(range(len(rows)), rows, fontsize=SMALL)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * max([*ends.values(), *given]))  # room for the numbers
    axes.set_xlabel(labels_words(history))
    kept = f", kept for {sustained} rounds" if sustained > 1 else ""
    title = f"{dataset_label(history)}: labels to a test accuracy{kept}"
    axes.set_title(plain(title), fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    entries = [(axes.plot([], [], "o-", color="black", linewidth=1)[0], _median_words(found))]
    if given:
        theirs = axes.plot([], [], **hollow("*"), markersize=7)[0]
        entries.append((theirs, plain(references_name)))
    axes.legend(
        *zip(*entries, strict=True),
        loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
        ncols=2,
        frameon=False,
        fontsize=SMALL,
    )


def _draw_reached(
    axes: "Axes",
    height: float,
    reached: Sequence[int | None],
    quartiles: tuple[float | None, float | None, float | None],
    style: Style,
    end: int,
) -> None:
    """One row of `labels_to_threshold_plot`: dot, whisker and number."""
    low, median, high = quartiles
    number = sum(count is not None for count in reached)
    some = f"{number} of {len(reached)} seeds" if 0 < number < len(reached) else ""
    if median is None:
        words = f"only {some} by {end:,} labels" if some else f"not reached by {end:,} labels"
        _annotate(axes, words, 0, height, color=GREY)
        return
    right = median
    if len(reached) >= FEW_SEEDS and low is not None:
        right = end if high is None else high
        axes.plot([low, right], [height, height], color=style.colour, linewidth=1)
        if high is None:
            axes.plot(right, height, color=style.colour, marker=">", markersize=4)
    axes.plot(median, height, color=style.colour, marker=style.marker, markersize=5)
    _annotate(axes, f"{median:g}" + (f" ({some})" if some else ""), right, height)


def _annotate(axes: "Axes", words: str, x: float, y: float, color: str = "black") -> None:
    axes.annotate(
        words,
        (x, y),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=SMALL - 1,
        color=color,
    )


def _median_words(found: Mapping[str, Mapping[int, Curve]]) -> str:
    sizes = sorted({len(by_seed) for by_seed in found.values()})
    if sizes == [1]:
        return "1 seed"
    many = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return f"median{' and quartiles' if sizes[-1] >= FEW_SEEDS else ''} of {many} seeds"
