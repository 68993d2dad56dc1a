"""Figures of the networks that a run had at a number of labels, fitted once more for them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayesian_active_learning.data_utils import Dataset, Splits
    from bayesian_active_learning.experiment import Config
    from bayesian_active_learning.history import Curve, History

NUM_UNLABELLED = 1000

Draw = Callable[[Any], None]  # into axes


def figures(found: "History", dataset: "Dataset", labels: int) -> dict[str, Draw]:
    """Name -> what draws into axes, for each function's first seed at a number of labels.

    A log holds no parameters, so the networks are fitted once more from their keys. Drawn are
    t-SNE of their features (the input of the last layer, dropout off) of the labelled points,
    those asked for next, and random others of the pool; and, on the test rows and averaged
    over posterior samples as in the run, reliability and confusion.

    Raises:
      ValueError: runs of no network, data that the runs scaled otherwise, or no round with
        so many labels.
    """
    from bayesian_active_learning import data_utils, experiment, history

    config, splits = experiment.config_of(found.config.get("identity", {}))
    scaled = data_utils.standardise(dataset, dataset.train_rows)
    expected = found.config["identity"]["scaling"]
    if expected not in (scaled.scaling, dataset.scaling):
        raise ValueError(f"the runs scaled their data as {expected!r}, not as {scaled.scaling!r}")
    used = scaled if expected == scaled.scaling else dataset
    made: dict[str, Draw] = {}
    for name, cells in history.curves_by_function(found).items():
        seed, curve = next(iter(cells.items()))
        place = history.cell_directory(".", name, seed).parent.name
        for kind, draw in _of_cell(config, splits, used, name, seed, curve, labels).items():
            made[f"{kind}_{place}"] = draw
    return made


def _of_cell(
    config: "Config",
    splits: "Splits | None",
    dataset: "Dataset",
    name: str,
    seed: int,
    curve: "Curve",
    labels: int,
) -> dict[str, Draw]:
    import numpy as np

    from bayesian_active_learning import data_utils, experiment, inference, plotting, posteriors

    network = experiment.refit(config, dataset, curve, seed, labels=labels, splits=splits)
    model, _ = experiment.network(config, dataset)
    number = curve.labels.tolist().index(labels)
    asked = curve.rows[number]
    seen = np.concatenate([curve.initial_rows, *curve.rows])
    others = np.setdiff1d(dataset.train_rows, seen)
    others = data_utils.pool_subset(seed, 0, others, NUM_UNLABELLED)
    rows = np.concatenate([seen[:labels], asked, others])
    features = inference.outputs(model, network.variables, dataset.images, rows).features
    points = plotting.tsne(features, seed=seed, perplexity=min(30.0, (len(rows) - 1) / 3))
    test = splits.test if splits is not None else dataset.test_rows
    (log_probs,) = inference.predict(
        experiment.round_keys(seed, number).evaluate,
        [network.posterior],
        dataset.images,
        test,
        num_samples=[
            posteriors.make_posterior(config.posterior).num_samples(config.num_test_samples)
        ],
    )
    words = f"{plotting.function_label(name)}, seed {seed}, {labels:,} labels"
    truth = dataset.labels[test]

    def features_of(axes: Any) -> None:
        new = range(labels, labels + len(asked))
        plotting.feature_map(axes, points, dataset.labels[rows], known=range(labels), new=new)
        axes.set_title(f"t-SNE of features: {words}", fontsize=10)

    def reliability(axes: Any) -> None:
        plotting.reliability_diagram(axes, log_probs, truth)
        axes.set_title(f"{words}\n{axes.get_title()}", fontsize=10)

    def confusion(axes: Any) -> None:
        plotting.confusion_matrix(axes, log_probs, truth)
        axes.set_title(f"{words}\n{axes.get_title()}", fontsize=10)

    return {"features": features_of, "reliability": reliability, "confusion": confusion}
