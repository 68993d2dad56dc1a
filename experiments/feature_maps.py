"""t-SNE of what a run's networks saw: which points they knew, and which they asked for."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from bayesian_active_learning.data_utils import Dataset
    from bayesian_active_learning.history import Curve, History

NUM_UNLABELLED = 1000

Draw = Callable[[Any], None]  # into axes


def feature_maps(found: "History", dataset: "Dataset", labels: int) -> dict[str, Draw]:
    """Name -> what draws into axes, for each function's first seed at a number of labels.

    A log holds no parameters, so the networks are fitted once more from their keys; then
    t-SNE of their features (the input of the last layer, dropout off) of the labelled
    points, those asked for next, and random others of the pool.

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
        made[f"features_{place}"] = _one(config, splits, used, name, seed, curve, labels)
    return made


def _one(
    config: Any,
    splits: Any,
    dataset: "Dataset",
    name: str,
    seed: int,
    curve: "Curve",
    labels: int,
) -> Draw:
    import numpy as np

    from bayesian_active_learning import data_utils, experiment, inference, plotting

    network = experiment.refit(config, dataset, curve, seed, labels=labels, splits=splits)
    asked = curve.rows[curve.labels.tolist().index(labels)]
    seen = np.concatenate([curve.initial_rows, *curve.rows])
    known = seen[:labels]
    others = np.setdiff1d(dataset.train_rows, seen)
    others = data_utils.pool_subset(seed, 0, others, NUM_UNLABELLED)
    rows = np.concatenate([known, asked, others])
    model, _ = experiment.network(config, dataset)
    features = inference.outputs(model, network.variables, dataset.images, rows).features
    points = plotting.tsne(features, seed=seed, perplexity=min(30.0, (len(rows) - 1) / 3))
    words = f"{plotting.function_label(name)}, seed {seed}, {labels:,} labels"
    return _drawing(points, dataset.labels[rows], len(known), len(asked), words)


def _drawing(
    points: "np.ndarray", labels: "np.ndarray", num_known: int, num_new: int, words: str
) -> Draw:
    from bayesian_active_learning import plotting

    def draw(axes: Any) -> None:
        plotting.feature_map(
            axes, points, labels, known=range(num_known), new=range(num_known, num_known + num_new)
        )
        axes.set_title(f"t-SNE of features: {words}", fontsize=10)

    return draw
