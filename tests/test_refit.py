"""The network of a round, made again from a history."""

import pathlib

import jax
import numpy as np
import pytest
from driver import CONFIG, digits, go

from bayesian_active_learning import data_utils, experiment, history, inference, parameters
from bayesian_active_learning.metrics import classification_metrics
from bayesian_active_learning.utils import seven_digits


def same(first, second) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, first, second))


def shapes(config, data):
    model, _ = experiment.network(config, data)
    return jax.eval_shape(model.init, jax.random.key(0), data.images[:1])


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        CONFIG._replace(warm_start=True),
        CONFIG._replace(initial="random", fit=CONFIG.fit._replace(monitor="nll")),
    ],
    ids=["fresh", "warm", "monitored"],
)
def test_gives_the_parameters_of_the_run(config, tmp_path: pathlib.Path):
    data = data_utils.flip_labels(digits(), 0.2)
    found = go(data=data, config=config, seeds=(3,), directory=tmp_path, save_parameters=True)
    again = experiment.refit(config, data, found.cells["bald", 3], 3, labels=25)
    path = history.cell_directory(tmp_path, "bald", 3) / experiment.PARAMETERS
    kept = parameters.load_variables(path, shapes(config, data))
    assert same(again.variables, kept)
    assert again.best_step == found.cells["bald", 3].fitted["best_step"][-1]


def test_any_round_predicts_what_was_evaluated():
    found = go("random", labels=25)
    curve = found.cells["random", 0]
    splits = experiment.seed_splits(CONFIG, digits(), 0)
    for number, labels in enumerate(curve.labels.tolist()):
        network = experiment.refit(CONFIG, digits(), curve, 0, labels=labels)
        (log_probs,) = inference.predict(
            experiment.round_keys(0, number).evaluate,
            [network.posterior],
            digits().images,
            np.concatenate([splits.test, splits.validation]),
            num_samples=[CONFIG.num_test_samples],
        )
        metrics = classification_metrics(
            log_probs[: len(splits.test)], digits().labels[splits.test]
        )
        for name, value in metrics._asdict().items():
            # The run evaluates two posteriors in one program, so the last bits may differ.
            assert seven_digits(value) == pytest.approx(curve.test[name][number], rel=1e-5)


def test_rows_and_labels_of_a_run_that_were_given():
    splits = experiment.seed_splits(CONFIG, digits(), 0)
    splits = splits._replace(initial=splits.initial[:8], pool=splits.pool[:60])
    wrong = (digits().labels + 1) % 10
    options = {"splits": splits, "label_oracle": lambda rows: wrong[rows]}
    curve = go("random", labels=18, **options).cells["random", 0]
    again = experiment.refit(CONFIG, digits(), curve, 0, labels=18, **options)
    other = experiment.refit(CONFIG, digits(), curve, 0, labels=18, splits=splits)
    assert again.best_step == curve.fitted["best_step"][-1]
    assert not same(again.variables, other.variables)


def test_a_label_count_without_a_round_is_refused():
    curve = go("random", labels=15).cells["random", 0]
    with pytest.raises(ValueError, match="no round at 12 labels; there is 10, 15"):
        experiment.refit(CONFIG, digits(), curve, 0, labels=12)
