"""`python -m experiments.plot RUN...`: all figures of one or several runs.

Reads run directories, or histories saved by `write_history`, and changes nothing in them but
the figures. Heavy imports wait until the options are read.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from experiments import refitted
from experiments.command import add_which, exit_status, read

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bayesian_active_learning.data_utils import Dataset
    from bayesian_active_learning.history import Curve, History

# By the first word of a figure's name, where it is of another size.
_INCHES = {"penalty": (5.5, 4.8), "class": (6.5, 4.4), "acquired": (6.5, 3.8)}
_INCHES |= {"reliability": (4.6, 4.4), "confusion": (5.5, 4.8)}


def parser() -> argparse.ArgumentParser:
    """The options of `python -m experiments.plot`."""
    root = argparse.ArgumentParser(
        prog="python -m experiments.plot",
        description="Learning curves of every metric, labels to thresholds, penalty matrix, "
        "normalised errors, and, where the data is at hand, which classes and images were asked "
        "for. Several runs are joined; they must agree in data and protocol.",
    )
    add_options(root)
    add = root.add_argument
    add("--output", metavar="DIR", help="folder of the figures (default: the first run's)")
    add(
        "--networks",
        type=int,
        metavar="N",
        help="also figures of each function's network at N labels, fitted once more: t-SNE "
        "of its features, reliability and confusion on the test rows",
    )
    return root


def add_options(root: argparse.ArgumentParser) -> None:
    """What a report needs as well: the runs, and how they are drawn."""
    add_which(root)
    add = root.add_argument
    add(
        "--thresholds",
        type=float,
        nargs="+",
        default=[0.9, 0.95],
        metavar="A",
        help="test accuracies to mark, as fractions (default: 0.9 0.95)",
    )
    add("--band", default="quartiles", help="quartiles, ci, range or none (default: quartiles)")
    add("--with-paper", action="store_true", help="draw the paper's numbers beside MNIST")
    add(
        "--data",
        metavar="NAME",
        help="the data of the runs, for pictures of what was asked for (default: by the name "
        "that the runs have; npz:PATH needs its path)",
    )
    add("--data-dir", metavar="DIR", help="folder of the data (default: BAL_DATA_DIR)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws; returns the exit status."""
    options = parser().parse_args(arguments)
    return exit_status(lambda: _plot(options))


def _plot(options: argparse.Namespace) -> int:
    from bayesian_active_learning import history, plotting

    found, folder = read(options.runs, options.acquisition)
    folder = pathlib.Path(options.output) if options.output else folder
    words = history.caption(found)
    dataset = dataset_of(options, found)
    made = figures(options, found, dataset)
    if options.networks is not None:
        if dataset is None:
            raise ValueError("--networks needs the data of the runs, see --data")
        for name, draw_network in refitted.figures(found, dataset, options.networks).items():
            inches = _INCHES.get(name.partition("_")[0], plotting.INCHES)
            made[name] = functools.partial(_figure, draw_network, inches, words)
    for name, draw in made.items():
        path = folder / f"{name}.png"
        plotting.save_png(path, draw, title=name.replace("_", " "), description=words)
        print(f"Written: {path}")
    return 0


def figures(
    options: argparse.Namespace, found: "History", dataset: "Dataset | None"
) -> "dict[str, Callable[[], Figure]]":
    """Name -> what makes the figure. Without a data set none of what was asked for."""
    from bayesian_active_learning import history, plotting, statistics

    words = history.caption(found)
    by_function = history.curves_by_function(found)
    references = plotting.PAPER_LABELS if options.with_paper else None
    made: dict[str, Callable[[], Figure]] = {}

    def add(name: str, draw: Callable[..., object], *arguments: Any, **keywords: Any) -> None:
        inches = _INCHES.get(name.partition("_")[0], plotting.INCHES)

        def drawing(axes: Any) -> None:
            draw(axes, *arguments, **keywords)

        made[name] = functools.partial(_figure, drawing, inches, words)

    curves = list(found.cells.values())
    for metric in curves[0].test:
        if not all(metric in curve.test for curve in curves):
            continue
        accuracy = metric == "accuracy"
        made["learning_curves" if accuracy else f"learning_curves_{metric}"] = functools.partial(
            plotting.learning_curves_figure,
            found,
            metric=metric,
            band=options.band,
            thresholds=options.thresholds,
            references=references if accuracy else None,
        )
    add(
        "labels_to_threshold",
        plotting.labels_to_threshold_plot,
        found,
        options.thresholds,
        references=references,
    )
    if len(by_function) > 1 and min(map(len, by_function.values())) > 1:
        add("penalty_matrix", plotting.penalty_matrix, statistics.penalty_matrix([found]))
    if len(by_function) > 1 and "random" in by_function:
        errors = statistics.normalised_errors([found], against="random")
        add("normalised_errors", plotting.normalised_errors, errors)
    if dataset is None:
        return made
    add(
        "class_histogram",
        plotting.class_histogram,
        found,
        dataset.labels,
        num_classes=dataset.num_classes,
        pool=dataset.train_rows,
    )
    if len(dataset.images.shape) == 4 and dataset.images.shape[3] in (1, 3):
        for name, cells in by_function.items():
            seed, curve = next(iter(cells.items()))
            if any(len(rows) for rows in curve.rows):
                # As the run's own folders are named, so that any options can stand in it.
                place = history.cell_directory(".", name, seed).parent.name
                add(f"acquired_{place}", _images, name, seed, curve, dataset)
    return made


def _figure(draw: Callable[[Any], object], inches: tuple[float, float], words: str) -> "Figure":
    from bayesian_active_learning import plotting

    figure, axes = plotting.new_figure(inches, words)
    draw(axes)
    return figure


def _images(axes: Any, name: str, seed: int, curve: "Curve", dataset: "Dataset") -> None:
    from bayesian_active_learning import plotting

    plotting.acquired_images(axes, dataset.images, curve, labels=dataset.labels)
    axes.set_title(f"{plotting.function_label(name)}, seed {seed}", fontsize=10)


def dataset_of(options: argparse.Namespace, found: "History") -> "Dataset | None":
    """The data of the runs; None, and a word why, where it is not at hand."""
    from bayesian_active_learning import data_utils

    identity = found.config.get("identity", {})
    name = options.data or str(identity.get("dataset", ""))
    if name.startswith("npz:") and options.data is None:
        _say_without(f"the runs are about {name}; say where that is: --data npz:PATH")
        return None
    if options.data is None and "content_hash" not in identity:
        _say_without("the runs do not say which data they are about; say it by --data")
        return None
    try:
        dataset = data_utils.load_dataset(name, options.data_dir, notify=lambda text: None)
    except (ValueError, OSError, ImportError) as error:
        if options.data is not None:
            raise
        _say_without(str(error))
        return None
    if dataset.content_hash != identity.get("content_hash"):
        raise ValueError(
            f"{name} as it is here has content hash {dataset.content_hash}, the runs were about "
            f"data with {identity.get('content_hash')}; rows would mean other examples"
        )
    return dataset


def _say_without(reason: str) -> None:
    print(f"No pictures of what was asked for: {reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
