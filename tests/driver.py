"""Small runs of the driver, for its tests."""

import functools
import pathlib
from typing import Any

from bayesian_active_learning import data_utils, training
from bayesian_active_learning.experiment import Config, run

CONFIG = Config(
    model="mlp",
    num_initial_per_class=1,
    num_validation=10,
    acquisition_size=5,
    num_samples=3,
    num_test_samples=3,
    pool_size=40,
    learning_rate=1e-2,
    fit=training.FitConfig(batch_size=8, epochs=0, min_steps=5, check_every=5, weight_decay=0.1),
)
BUDGET = 25
METRICS = {
    name + suffix for name in ("accuracy", "nll", "ece", "brier") for suffix in ("", "_mean")
}


@functools.cache
def digits(num_train: int = 150, num_test: int = 40) -> data_utils.Dataset:
    """10 initial and 10 validation rows, and a pool of `num_train` - 20."""
    data = data_utils.load_digits()
    return data._replace(
        train_rows=data.train_rows[:num_train], test_rows=data.test_rows[:num_test]
    )


def go(*functions: str, labels: int = BUDGET, data: Any = None, config=CONFIG, **options: Any):
    return run(config, data or digits(), functions or ("bald",), labels=labels, **options)


def log_of(directory: pathlib.Path, function: str = "bald", seed: int = 0) -> pathlib.Path:
    return directory / function / str(seed) / "log.jsonl"


def logs(directory: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("log.jsonl")}


def tree(directory: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}
