"""What was asked for: pictures, classes, and where in feature space it lies."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bayesian_active_learning.history.comparison import FEW_SEEDS, curves_by_function
from bayesian_active_learning.history.records import Curve, History
from bayesian_active_learning.history.summary import dataset_label
from bayesian_active_learning.plotting.styles import (
    GREY,
    SMALL,
    function_label,
    function_styles,
    plain,
)
from bayesian_active_learning.types import ArrayLike, Source
from bayesian_active_learning.utils import check_positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KNOWN, _NEW = "#0072B2", "#D55E00"


def acquired_images(
    axes: "Axes",
    images: Source,
    curve: Curve,
    *,
    labels: ArrayLike | None = None,
    rounds: int = 5,
    columns: int = 10,
) -> None:
    """The images that one function asked for, a row of them for each round, first pick left.

    Args:
      axes: drawn into; without ticks but for the label count of each row.
      images: `[N, H, W]` or `[N, H, W, C]` with C 1 or 3, by row. Each image is shown over
        its own range of values, so that standardised ones are seen too.
      curve: what was asked for.
      labels: `[N]`, written into the corner of each image.
      rounds: so many rounds, spread evenly over those in which something was asked.
      columns: at most so many images of a round.

    Raises:
      ValueError: no images, or nothing was asked for.
    """
    check_positive(rounds=rounds, columns=columns)
    shape = images.shape
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise ValueError(f"expected images [N, H, W] or [N, H, W, 1 or 3], got {list(shape)}")
    asked = [place for place, rows in enumerate(curve.rows) if len(rows)]
    if not asked:
        raise ValueError("nothing was asked for in this curve")
    evenly = np.linspace(0, len(asked) - 1, rounds).round().astype(int)
    shown = [asked[place] for place in np.unique(evenly)]
    height, width = shape[1:3]
    columns = min(columns, max(len(curve.rows[place]) for place in shown))
    gap = max(1, width // 14)
    step = (height + gap, width + gap)
    canvas = np.ones((len(shown) * step[0] - gap, columns * step[1] - gap, 3))
    marks = []
    for line, place in enumerate(shown):
        rows = np.asarray(curve.rows[place])[:columns]
        for column, (row, image) in enumerate(zip(rows, np.asarray(images[rows]), strict=True)):
            top, left = line * step[0], column * step[1]
            canvas[top : top + height, left : left + width] = _in_colours(image)
            if labels is not None:
                marks.append((left, top, str(np.asarray(labels)[row])))
    axes.imshow(canvas, interpolation="nearest", aspect="equal")
    for left, top, text in marks:
        axes.text(
            left + 0.5,
            top + 0.5,
            text,
            fontsize=SMALL - 1,
            va="top",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
        )
    axes.set_xticks([])
    centres = [line * step[0] + height / 2 for line in range(len(shown))]
    axes.set_yticks(centres, [f"{curve.labels[place]:,}" for place in shown], fontsize=SMALL)
    axes.set_ylabel("labels at that time")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def class_histogram(
    axes: "Axes",
    history: History,
    labels: ArrayLike,
    *,
    num_classes: int,
    pool: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """How many labels of each class each function asked for, the initial set left out.

    Bars are means over seeds, whiskers from 3 seeds on the lowest and highest seed; all
    seeds up to the label count that all cells have.

    Args:
      axes: drawn into.
      history: with the rows that were asked for.
      labels: `[N]`, of all rows.
      num_classes: C.
      pool: rows; a line in each class shows what drawing evenly from them would ask for.
      class_names: C words for the axis; the numbers of the classes by default.

    Raises:
      ValueError: an empty history, another number of names, labels outside 0..C-1.
    """
    labels = np.asarray(labels)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels must lie in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}"
        )
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(f"expected {num_classes} class names, got {len(class_names)}")
    found = curves_by_function(history)
    end = min(int(c.labels[-1]) for curves in found.values() for c in curves.values())
    counts = {
        name: np.stack([_classes(c, labels, num_classes, end) for c in curves.values()])
        for name, curves in found.items()
    }
    styles = function_styles(found)
    places = np.arange(num_classes)
    width = 0.8 / len(found)
    for number, (name, values) in enumerate(counts.items()):
        at = places - 0.4 + (number + 0.5) * width
        mean = values.mean(axis=0)
        axes.bar(
            at,
            mean,
            width,
            color=styles[name].colour,
            hatch=("", "//", "..", "xx", "\\\\", "--", "oo")[number % 7],
            edgecolor="white",
            linewidth=0.4,
            label=function_label(name),
        )
        if len(values) >= FEW_SEEDS:
            spread = [mean - values.min(axis=0), values.max(axis=0) - mean]
            axes.errorbar(at, mean, spread, fmt="none", ecolor=GREY, elinewidth=0.8)
    if pool is not None:
        share = np.bincount(labels[np.asarray(pool)], minlength=num_classes) / len(np.asarray(pool))
        total = next(iter(counts.values())).sum(axis=1).mean()
        axes.hlines(
            share * total,
            places - 0.45,
            places + 0.45,
            color="black",
            linewidth=1.2,
            linestyle=(0, (3, 1.5)),
            label="drawn evenly from the pool",
        )
    axes.set_xticks(places, class_names or [str(place) for place in places])
    axes.set_xlabel("class")
    axes.set_ylabel(f"labels asked for, to {end:,} in all")
    axes.set_title(plain(dataset_label(history)), fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        fontsize=SMALL,
        ncols=3,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.08),
        frameon=False,
        title=_seeds_words({name: len(values) for name, values in counts.items()}),
        title_fontsize=SMALL,
    )


def feature_map(
    axes: "Axes",
    points: ArrayLike,
    labels: ArrayLike,
    *,
    known: Sequence[int] | ArrayLike = (),
    new: Sequence[int] | ArrayLike = (),
) -> None:
    """Points in the plane, for example by `tsne`: those without a label small and in grey
    letters of their class, labelled ones as rings, those just asked for as crosses.

    Args:
      axes: drawn into.
      points: `[N, 2]`.
      labels: `[N]` integers, written where the points are.
      known: positions among the points that have labels.
      new: positions that are being asked for.

    Raises:
      ValueError: shapes that differ, positions out of range.
    """
    points, labels = np.asarray(points), np.asarray(labels)
    known, new = (np.asarray(each, np.int64).ravel() for each in (known, new))
    if points.ndim != 2 or points.shape[1] != 2 or labels.shape != points.shape[:1]:
        raise ValueError(
            f"expected points [N, 2] and labels [N], got {list(points.shape)} and "
            f"{list(labels.shape)}"
        )
    for name, each in (("known", known), ("new", new)):
        if len(each) and not 0 <= each.min() <= each.max() < len(points):
            raise ValueError(
                f"{name} must lie in 0..{len(points) - 1}, got {each.min()}..{each.max()}"
            )
    for label in np.unique(labels):
        chosen = labels == label
        axes.scatter(
            points[chosen, 0],
            points[chosen, 1],
            marker=f"${label}$",
            s=20,
            color="#777777",
            linewidths=0,
            zorder=1,
        )
    axes.scatter(
        points[known, 0],
        points[known, 1],
        s=42,
        facecolors="none",
        edgecolors=_KNOWN,
        linewidths=1.1,
        label=f"labelled ({len(known):,})",
        zorder=2,
    )
    axes.scatter(
        points[new, 0],
        points[new, 1],
        s=42,
        marker="x",
        color=_NEW,
        linewidths=1.6,
        label=f"asked for now ({len(new):,})",
        zorder=3,
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("digits in grey: classes of points without a label", fontsize=SMALL)
    axes.legend(fontsize=SMALL, loc="best")


def tsne(features: ArrayLike, *, seed: int = 0, perplexity: float = 30.0) -> np.ndarray:
    """t-SNE of features `[N, D]` in the plane, `[N, 2]`, by scikit-learn.

    Van der Maaten & Hinton 2008, "Visualizing data using t-SNE". Distances between far
    clusters and the sizes of clusters say nothing.

    Raises:
      ValueError: not `[N, D]`, or a perplexity that is not below N.
      ImportError: scikit-learn is missing.
    """
    features = np.asarray(features)
    if features.ndim != 2:
        raise ValueError(f"expected features [N, D], got {list(features.shape)}")
    if not 0 < perplexity < len(features):
        raise ValueError(f"perplexity must lie between 0 and N = {len(features)}, got {perplexity}")
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError(
            "t-SNE needs scikit-learn: pip install 'bayesian_active_learning[experiments]'"
        ) from error
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)


def _in_colours(image: np.ndarray) -> np.ndarray:
    """`[H, W, 3]` in 0..1, over the image's own range; ink dark on light where grey."""
    image = np.asarray(image, float)
    low, high = np.nanmin(image), np.nanmax(image)
    scaled = (image - low) / (high - low) if high > low else np.zeros_like(image)
    if scaled.ndim == 2:
        scaled = scaled[:, :, None]
    return np.repeat(1 - scaled, 3, axis=2) if scaled.shape[2] == 1 else scaled


def _classes(curve: Curve, labels: np.ndarray, num_classes: int, end: int) -> np.ndarray:
    """`[C]`: how often each class was asked for, up to `end` labels."""
    rows = np.concatenate([np.zeros(0, np.int64), *curve.rows])
    rows = rows[: end - len(curve.initial_rows)]
    return np.bincount(labels[rows.astype(np.int64)], minlength=num_classes)


def _seeds_words(sizes: Mapping[str, int]) -> str:
    few, many = min(sizes.values()), max(sizes.values())
    if many == 1:
        return "one seed"
    number = str(few) if few == many else f"{few} to {many}"
    return f"mean{', lowest and highest' if many >= FEW_SEEDS else ''} of {number} seeds"
