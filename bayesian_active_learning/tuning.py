"""The strength of weight decay, chosen on the validation set, as the paper did."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bayesian_active_learning import experiment, inference, metrics, training
from bayesian_active_learning.data_utils import Dataset, Splits

STRENGTHS = (0.0, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0)


class Trial(NamedTuple):
    """One strength: means over seeds, on the validation set, over posterior samples."""

    strength: float
    nll: float
    accuracy: float


def search_weight_decay(
    config: experiment.Config,
    dataset: Dataset,
    seeds: Sequence[int],
    *,
    splits: Splits | None = None,
    strengths: Sequence[float] = STRENGTHS,
    num_labels: int = 100,
) -> tuple[float, tuple[Trial, ...]]:
    """The strength with the lowest mean validation negative log-likelihood, and all trials.

    Every fit is independent: fresh parameters, the same for all strengths of a seed.

    Args:
      config: everything but the strength.
      dataset: inputs already scaled.
      seeds: each gives a split and initial parameters, those of round 0 of `run`.
      splits: rows for all seeds, instead of drawing them by seed.
      strengths: what to try; the first one wins a tie.
      num_labels: train on the initial set and random pool rows up to this many. The
        pool rows' labels are spent on the search and not counted in any budget.

    Raises:
      ValueError: no validation set, no strengths, or none that trains: one for which
        training diverges counts as infinitely bad.
    """
    if not config.num_validation or not len(strengths) or not len(seeds):
        raise ValueError("a search needs a validation set, strengths to try and seeds")
    model, optimizer = experiment.network(config, dataset)
    labels = np.asarray(dataset.labels)
    found = np.zeros((len(strengths), len(seeds), 2))
    for column, seed in enumerate(seeds):
        parts = experiment.seed_splits(config, dataset, seed) if splits is None else splits
        rows = experiment.random_labelled(parts, seed, num_labels)
        keys = experiment.round_keys(seed, 0)
        for row, strength in enumerate(strengths):
            try:
                result = training.fit(
                    keys.fit,
                    model,
                    optimizer,
                    dataset.images,
                    rows,
                    labels[rows],
                    config=config.fit._replace(weight_decay=float(strength), monitor="none"),
                )
            except training.TrainingDiverged:
                found[row, column] = np.inf, 0.0
                continue
            (log_probs,) = inference.predict(
                keys.evaluate,
                [inference.mc_dropout(model, result.variables)],
                dataset.images,
                parts.validation,
                num_samples=[config.num_test_samples],
            )
            scores = metrics.classification_metrics(log_probs, labels[parts.validation])
            nll = float(scores.nll)
            found[row, column] = nll if np.isfinite(nll) else np.inf, scores.accuracy
    if np.isinf(found[:, :, 0]).any(axis=1).all():
        raise ValueError("training diverged for every strength; try a lower learning rate")
    trials = tuple(
        Trial(float(strength), *means)
        for strength, means in zip(strengths, found.mean(axis=1).tolist(), strict=True)
    )
    return min(trials, key=lambda trial: trial.nll).strength, trials
