"""What goes wrong in a run, and what is refused before it starts."""

import pathlib
import sys
from typing import Any

import numpy as np
import pytest
from driver import BUDGET, CONFIG, METRICS, digits, go, log_of, logs, tree

from bayesian_active_learning import experiment, history, training
from bayesian_active_learning.experiment import Config, RunError, run
from bayesian_active_learning.history import HistoryError
from bayesian_active_learning.types import Strategy


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """bald and random with seeds 0 and 1, to 25 labels. Not to be changed."""
    directory = tmp_path_factory.mktemp("finished")
    go("bald", "random", seeds=(0, 1), directory=directory)
    return directory


# What goes wrong.


class Spoilt:
    """Images of which some rows are too large for any network."""

    def __init__(self, rows: np.ndarray, factor: float):
        self.images = np.asarray(digits().images).copy()
        self.images[rows] *= np.float32(factor)
        self.shape, self.dtype = self.images.shape, self.images.dtype

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.images[rows]


def test_training_that_diverges_names_function_round_seed_and_step(tmp_path: pathlib.Path):
    splits = experiment.seed_splits(CONFIG, digits(), 3)
    data = digits()._replace(images=Spoilt(splits.pool, 3e38))
    message = r"random, seed 3, round 1, 15 labels: training diverged: the loss is \w+ at step \d"
    with pytest.raises(RunError, match=message) as info:
        go("random", seeds=(3,), data=data, directory=tmp_path)
    assert isinstance(info.value.__cause__, training.TrainingDiverged)
    events = history.read_events(log_of(tmp_path, "random", 3))
    assert [e["event"] for e in events] == ["labels", "fitted", "evaluated", "query", "labels"]
    before = logs(tmp_path)
    with pytest.raises(RunError, match=message):  # again, and no label is lost
        go("random", seeds=(3,), data=data, directory=tmp_path)
    assert logs(tmp_path) == before
    assert len(history.read_history(tmp_path).cells["random", 3].labels) == 1


def test_parameters_that_the_last_step_spoilt_are_found_out(tmp_path: pathlib.Path):
    config = CONFIG._replace(learning_rate=1e38, fit=CONFIG.fit._replace(min_steps=1))
    for directory in (tmp_path, None):
        with pytest.raises(RunError, match="bald, seed 0, round 0"):
            go(config=config, directory=directory)
    kinds = [event["event"] for event in history.read_events(log_of(tmp_path))]
    assert kinds in (["labels"], ["labels", "fitted"])


def test_scores_that_are_not_finite_are_not_acquired(tmp_path: pathlib.Path):
    splits = experiment.seed_splits(CONFIG, digits(), 0)
    data = digits()._replace(images=Spoilt(splits.pool, 3e38))
    with pytest.raises(
        RunError, match="seed 0, round 0, 10 labels: the scores of rows .* are NaN or infin"
    ):
        go(data=data, directory=tmp_path)
    assert history.read_events(log_of(tmp_path))[-1]["event"] == "evaluated"


def test_an_oracle_that_answers_nonsense_is_refused(tmp_path: pathlib.Path):
    for labels, message in (
        (np.full(10, 10), "label 10 is out of range"),
        (np.zeros(9, int), "10 rows came with 9 labels"),
        (np.full(10, 0.5), "labels must be integers, got float64"),
    ):
        with pytest.raises(ValueError, match=message):
            go(label_oracle=lambda rows, labels=labels: labels, directory=tmp_path)
        assert history.read_events(log_of(tmp_path)) == ()
    assert go(directory=tmp_path).cells["bald", 0].labels[-1] == BUDGET


def test_another_runs_directory_shows_the_difference(finished: pathlib.Path):
    before = tree(finished)
    fit = CONFIG.fit._replace(min_steps=6)
    config = CONFIG._replace(acquisition_size=6, fit=fit)
    with pytest.raises(HistoryError) as info:
        go(config=config, directory=finished)
    for difference in ("acquisition_size: 5 -> 6", "fit.min_steps: 5 -> 6"):
        assert difference in str(info.value)
    with pytest.raises(HistoryError, match="content_hash: .*"):
        go(data=digits()._replace(content_hash="other"), directory=finished)
    with pytest.raises(HistoryError, match="splits: absent -> "):
        go(splits=experiment.seed_splits(CONFIG, digits(), 0), directory=finished)
    assert tree(finished) == before


def test_a_directory_that_cannot_be_written(tmp_path: pathlib.Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HistoryError, match="cannot write .*file"):
        go(directory=tmp_path / "file" / "run")


NEEDY = Strategy(lambda key, candidates, *, batch_size: None, frozenset({"labels"}))

REFUSALS: list[tuple[dict[str, Any], str]] = [
    (
        {"functions": ("bold",)},
        "unknown acquisition function 'bold'; known: bald, max_entropy, variation_ratios, "
        "variation_ratios_mode, mean_std, ",
    ),
    ({"functions": ()}, "at least one acquisition function and one seed are needed"),
    ({"seeds": ()}, "at least one acquisition function and one seed are needed"),
    ({"functions": ("bald", "bald")}, "an acquisition function is given twice: bald, bald"),
    ({"seeds": (0, 1, 0)}, "seed is given twice: 0, 1, 0"),
    ({"seeds": (-1,)}, "seed must not be negative, got -1"),
    ({"labels": 0}, "labels must be positive, got 0"),
    ({"labels": 9}, "budget of 9 labels is smaller than the initial set of 10"),
    ({"strategies": {"bald": NEEDY}}, "bald needs labels, which is not provided"),
    (
        {"strategies": {"bald": NEEDY._replace(needs=frozenset({"scores"}))}},
        "bald needs scores, but has no score function",
    ),
    ({"model": "resnet"}, "unknown model 'resnet'; known: batchbald_convnet, convnet, linear, mlp"),
    (
        {"precision": "float16"},
        "unknown precision 'float16'; known: float32, tensorfloat32, bfloat",
    ),
    ({"posterior": "vogue"}, "unknown posterior 'vogue'; known: mc_dropout, deterministic, "),
    ({"posterior": "ensemble:members=1"}, "an ensemble needs at least 2 members, got 1"),
    ({"initial": "bald"}, "the initial set cannot be chosen by 'bald': it needs scores"),
    ({"initial": "oldest"}, "unknown initial set 'oldest'; known: balanced, random, kmeans, "),
    ({"model": "linear"}, "the model 'linear' has no dropout, so all samples of the posterior"),
    (
        {"model": "linear", "posterior": "ensemble:dropout=true"},
        "all samples of the posterior 'ensemble:dropout=true' would be equal",
    ),
    ({"posterior": "swag:rank=1"}, "the rank of SWAG must be 0 or at least 2, got 1"),
    (
        {"posterior": "laplace", "fit": CONFIG.fit._replace(weight_decay=0.0)},
        "laplace needs a prior precision above 0: with weight_decay 0",
    ),
    ({"posterior": "laplace:prior_precision=inf"}, "prior_precision must be .* finite, got inf"),
    ({"posterior": "ensemble", "warm_start": True}, "an ensemble starts fresh every round"),
    (
        {"posterior": "ensemble", "fit": CONFIG.fit._replace(monitor="nll")},
        "an ensemble does not stop early: monitor must be 'none', got 'nll'",
    ),
    (
        {"functions": ("qbc",), "fit": CONFIG.fit._replace(monitor="nll")},
        "qbc trains a committee, which does not stop early: monitor must be 'none', got 'nll'",
    ),
    (
        {"functions": ("qbc:members=2",), "warm_start": True},
        "qbc:members=2 trains a committee, which starts fresh every round: it has no warm start",
    ),
    ({"functions": ("vaal:network=nonsense",)}, "unknown network 'nonsense'; known: auto, small"),
    (
        {"functions": ("vae_coreset:network=large",)},
        "vae_coreset:network=large: network 'large' wants images of 16x16 or more, got \\(8, 8, 1",
    ),
    ({"functions": ("vaal:z_dim=0",)}, "z_dim must be positive, got 0"),
    ({"functions": ("vaal:discriminator_rate=-1",)}, "discriminator_rate must not be neg"),
    ({"functions": ("vaal:adversary=-1",)}, "adversary must not be negative, got -1"),
    ({"functions": ("vae_coreset:beta=-1",)}, "beta must not be negative, got -1"),
    ({"functions": ("vae_coreset:metric=l3",)}, "unknown metric 'l3'; known: euclidean"),
    ({"functions": ("bait:max_bytes=8",)}, "bait:max_bytes=8: .*bytes"),
    (
        {"functions": ("batch_bald",), "num_samples": 1},
        "batch_bald needs at least 2 posterior samples that differ, and here there is 1",
    ),
    ({"functions": ("epig",), "posterior": "deterministic"}, "epig needs at least 2 posterior"),
    ({"functions": ("power:score=epig",), "num_samples": 1}, "power:score=epig needs at least 2"),
    (
        {"functions": ("cluster_margin:max_bytes=800",)},
        "cluster_margin:max_bytes=800 takes at most 10 candidates .* here are 40",
    ),
    ({"acquisition_size": 0}, "acquisition_size must be positive, got 0"),
    ({"acquisition_size": -5}, "acquisition_size must be positive, got -5"),
    ({"num_samples": 0}, "num_samples must be positive, got 0"),
    ({"num_test_samples": 0}, "num_test_samples must be positive, got 0"),
    ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
    ({"learning_rate": float("nan")}, "learning_rate must be positive, got nan"),
    ({"num_initial_per_class": -1}, "num_initial_per_class must not be negative, got -1"),
    ({"num_initial_per_class": 0}, r"initial set is empty \(seed 0\): the first fit needs labels"),
    ({"num_initial_per_class": 100}, "the initial set cannot be balanced: class 0 has"),
    ({"num_initial": -1}, "num_initial must not be negative, got -1"),
    ({"num_initial": 3}, "num_initial=3 is for initial sets chosen without labels; a balanced one"),
    (
        {"initial": "random", "num_initial": 1000},
        "cannot choose 1000 initial rows from a pool of",
    ),
    ({"num_validation": -1}, "num_validation must not be negative, got -1"),
    ({"num_validation": 1000}, "num_validation asks for 1000 rows, but 140 of 150"),
    ({"num_validation": 140}, "the pool is empty"),
    ({"pool_size": -1}, "pool_size must not be negative, got -1"),
    (
        {"num_validation": 0, "fit": CONFIG.fit._replace(monitor="nll")},
        "monitor 'nll' needs num_validation above 0",
    ),
    ({"fit": CONFIG.fit._replace(batch_size=0)}, "batch_size must be positive, got 0"),
    ({"fit": CONFIG.fit._replace(check_every=0)}, "check_every must be positive, got 0"),
    ({"fit": CONFIG.fit._replace(epochs=-1)}, "epochs must not be negative or infinite, got -1"),
    ({"fit": CONFIG.fit._replace(monitor="loss")}, "unknown monitor 'loss'; known: none, nll"),
    ({"fit": CONFIG.fit._replace(decay_coverage="x")}, "unknown weight decay coverage 'x'"),
]


@pytest.mark.parametrize("changes, message", REFUSALS)
def test_refusals_come_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: pathlib.Path
):
    settings = {name: value for name, value in changes.items() if name in Config._fields}
    options = {name: value for name, value in changes.items() if name not in Config._fields}
    functions = options.pop("functions", ("bald",))
    directory = tmp_path / "run"
    arguments = {"labels": BUDGET, "directory": directory} | options
    with pytest.raises(ValueError, match=message):
        run(CONFIG._replace(**settings), digits(), functions, **arguments)
    assert not directory.exists()


def test_no_validation_set_is_fine():
    found = go("random", config=CONFIG._replace(num_validation=0), labels=15).cells["random", 0]
    assert found.validation == {} and set(found.test) == METRICS


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("typiclust", "sklearn"),
        ("probcover", "sklearn"),
        ("kmeans", "sklearn"),
        ("cluster_margin", "scipy"),
        ("coreset_robust", "scipy"),
        ("mixture:first=kmeans", "sklearn"),
    ],
)
def test_packages_that_are_missing_are_named_before_training(
    name: str, package: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = digits()  # themselves from scikit-learn
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"{name} needs {package}, which is not installed \(.*\[experiments\]\)"
    with pytest.raises(ImportError, match=message):
        go("random", name, data=data, directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()
