"""Figures of what was asked for, of predictions and of comparisons: what stands in them."""

import numpy as np
import pytest
from histories import history, rising
from matplotlib.figure import Figure
from matplotlib.text import Text

from bayesian_active_learning import metrics, plotting, statistics
from bayesian_active_learning.history import Curve, History

IMAGES = np.random.default_rng(0).normal(size=(60, 6, 5, 1))
LABELS = np.arange(60) % 3


def axes_of(draw, *arguments, **options):
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    draw(axes, *arguments, **options)
    figure.canvas.draw()
    return axes


def texts(axes) -> list[str]:
    found = axes.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible())
    return [text.get_text() for text in found if text.get_text()]


def asking(*batches: list[int], first: int = 2) -> Curve:
    """Two rows at first, then these batches, then nothing more."""
    (curve,) = history({("bald", 0): np.linspace(0.5, 0.9, len(batches) + 1)}).cells.values()
    rows = tuple(np.array(batch, np.int32) for batch in (*batches, []))
    sizes = np.cumsum([first, *map(len, batches)])
    return curve._replace(labels=sizes, rows=rows, initial_rows=np.arange(first, dtype=np.int32))


# Acquired images.


def test_images_stand_in_the_order_of_picking():
    axes = axes_of(plotting.acquired_images, IMAGES, asking([7, 3], [9, 8]), labels=LABELS)
    (canvas,) = [image.get_array() for image in axes.images]
    assert canvas.shape == (2 * 7 - 1, 2 * 6 - 1, 3)
    for row, (top, left) in {7: (0, 0), 3: (0, 6), 9: (7, 0), 8: (7, 6)}.items():
        image = IMAGES[row, :, :, 0]
        dark = 1 - (image - image.min()) / (image.max() - image.min())
        np.testing.assert_allclose(canvas[top : top + 6, left : left + 5, 0], dark, atol=1e-6)
    written = texts(axes)
    assert [text for text in written if text in "012"][:4] == ["1", "0", "0", "2"]
    assert {"2", "4"} <= {label.get_text() for label in axes.get_yticklabels()}


def test_rounds_are_spread_over_the_run():
    curve = asking(*[[row] for row in range(10, 30)])
    axes = axes_of(plotting.acquired_images, IMAGES, curve, rounds=3)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["2", "12", "21"]


def test_a_flat_image_and_colours_are_drawn():
    colours = np.zeros((30, 4, 4, 3))
    axes_of(plotting.acquired_images, colours, asking([5]))
    axes_of(plotting.acquired_images, np.zeros((30, 4, 4)), asking([5]))


@pytest.mark.parametrize(
    ("images", "curve", "message"),
    [
        (np.zeros((9, 4)), asking([3]), r"expected images \[N, H, W\] or .*, got \[9, 4\]"),
        (np.zeros((9, 4, 4, 2)), asking([3]), "expected images"),
        (IMAGES, asking(), "nothing was asked for"),
    ],
)
def test_image_refusals(images, curve, message: str):
    with pytest.raises(ValueError, match=message):
        plotting.acquired_images(None, images, curve)


# Classes.


def two_functions() -> History:
    cells = {
        ("bald", seed): asking([3, 6, 9 + 3 * seed], [1, 4]) for seed in (0, 1, 2)
    }  # 0 0 0 1 1
    cells |= {("random", seed): asking([5, 8, 11], [2, 14 + seed]) for seed in (0, 1, 2)}
    return History(rising().config, cells)


def test_classes_are_counted_without_the_initial_set():
    axes = axes_of(
        plotting.class_histogram,
        two_functions(),
        LABELS,
        num_classes=3,
        pool=np.arange(60),
        class_names=("zero", "one", "two"),
    )
    bald, random = ([bar.get_height() for bar in group] for group in axes.containers[:4:2])
    assert bald == [3, 2, 0]
    np.testing.assert_allclose(random, [1 / 3, 1 / 3, 5 - 2 / 3])
    (even,) = [c for c in axes.collections if "evenly" in str(c.get_label())]
    np.testing.assert_allclose([segment[0][1] for segment in even.get_segments()], 5 / 3)
    assert "mean, lowest and highest of 3 seeds" in texts(axes)
    assert "labels asked for, to 7 in all" in texts(axes)
    assert {"zero", "one", "two"} <= set(texts(axes))


def test_classes_end_where_all_cells_do():
    cells = two_functions().cells | {("random", 0): asking([5, 8, 11])}
    what = two_functions()._replace(cells=cells)
    axes = axes_of(plotting.class_histogram, what, LABELS, num_classes=3)
    assert [bar.get_height() for bar in axes.containers[0]] == [3, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 2}, r"labels must lie in 0\.\.1, got 0\.\.2"),
        ({"num_classes": 3, "class_names": "ab"}, "expected 3 class names, got 2"),
    ],
)
def test_class_refusals(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        plotting.class_histogram(None, two_functions(), LABELS, **options)


# Maps.


def test_map_tells_known_and_new_points():
    points = np.random.default_rng(0).normal(size=(60, 2))
    axes = axes_of(plotting.feature_map, points, LABELS, known=[1, 2], new=np.array([5]))
    found = {c.get_label(): np.asarray(c.get_offsets()) for c in axes.collections}
    np.testing.assert_array_equal(found["labelled (2)"], points[[1, 2]])
    np.testing.assert_array_equal(found["asked for now (1)"], points[[5]])
    axes_of(plotting.feature_map, points, LABELS)  # neither known nor new


def test_tsne_keeps_neighbours_together():
    pytest.importorskip("sklearn")
    generator = np.random.default_rng(0)
    features = 20 * np.eye(3)[LABELS] + generator.normal(size=(60, 3))
    points = plotting.tsne(features, perplexity=10)
    assert points.shape == (60, 2)
    np.testing.assert_array_equal(points, plotting.tsne(features, perplexity=10))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(60)
    assert (LABELS[distances.argmin(axis=1)] == LABELS).mean() > 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plotting.feature_map(None, np.zeros((3, 3)), [0, 0, 0]), r"points \[N, 2\]"),
        (
            lambda: plotting.feature_map(None, np.zeros((3, 2)), [0, 0, 0], new=[3]),
            r"new must lie in 0\.\.2, got 3\.\.3",
        ),
        (lambda: plotting.tsne(np.zeros(4)), r"expected features \[N, D\], got \[4\]"),
        (lambda: plotting.tsne(np.zeros((4, 2))), "perplexity must lie between 0 and N = 4"),
    ],
)
def test_map_refusals(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()


# Predictions.


def predictions(rows: int = 500) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    labels = generator.integers(4, size=rows)
    logits = generator.normal(size=(rows, 4)) + 2 * np.eye(4)[labels]
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits.astype(np.float32), labels


def test_reliability_bars_give_the_error_of_the_title():
    log_probs, labels = predictions()
    axes = axes_of(plotting.reliability_diagram, log_probs, labels, num_bins=10)
    shares, heights = ([bar.get_height() for bar in group] for group in axes.containers)
    assert abs(sum(shares) - 1) < 1e-6
    confidence = np.exp(log_probs).max(axis=1)
    error = 0.0
    for number, (share, height) in enumerate(zip(shares, heights, strict=True)):
        inside = (confidence > number / 10) & (confidence <= (number + 1) / 10)
        if share:
            error += share * abs(height - confidence[inside].mean())
    expected = float(metrics.expected_calibration_error(log_probs, labels, num_bins=10))
    assert abs(error - expected) < 1e-4
    assert axes.get_title().startswith(f"ECE {expected:.3f} over 10 bins")


def test_confusion_counts():
    log_probs, labels = predictions()
    axes = axes_of(plotting.confusion_matrix, log_probs, labels, class_names="abcd")
    predicted = log_probs.argmax(axis=1)
    counted = {
        (round(text.get_position()[1]), round(text.get_position()[0])): int(text.get_text())
        for text in axes.texts
    }
    for (row, column), count in counted.items():
        assert count == ((labels == row) & (predicted == column)).sum()
    assert sum(counted.values()) == len(labels)
    with pytest.raises(ValueError, match="expected 4 class names, got 2"):
        plotting.confusion_matrix(axes, log_probs, labels, class_names="ab")


# Comparisons.


def test_penalties_stand_in_the_matrix():
    penalties = statistics.penalty_matrix([rising(("bald", "random"))])
    axes = axes_of(plotting.penalty_matrix, penalties)
    cells = {
        (round(text.get_position()[1]), round(text.get_position()[0])): float(text.get_text())
        for text in axes.texts
    }
    expected = np.vstack([penalties.matrix, penalties.column_means])
    assert cells == {
        place: round(float(value), 2) for place, value in np.ndenumerate(expected) if value
    }
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["BALD", "random", "column mean"]
    assert "pairwise penalties over one setting, p < 0.05" in axes.get_title()


def test_normalised_errors_are_steps_up_to_one():
    errors = statistics.normalised_errors([rising(("bald", "random"))], against="random")
    axes = axes_of(plotting.normalised_errors, errors)
    lines = {line.get_label(): line.get_data() for line in axes.lines}
    ratios, shares = lines["BALD"]
    np.testing.assert_array_equal(ratios[1:], errors.ratios["bald"])
    assert shares[0] == 0 and abs(shares[-1] - 1) < 1e-9
    assert axes.get_xlabel() == "error, in units of that of random"
