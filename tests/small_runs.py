"""Small runs on disk, for the tests of logs, directories and histories."""

import pathlib

from bayesian_active_learning import history
from bayesian_active_learning.history import EventLog

IDENTITY = {"dataset": "digits", "model": {"dropout": (0.25, 0.5)}, "acquisition_size": 10}
ENVIRONMENT = {"jax": "0.10.2", "num_cpus": 2}
REPOSITORY = pathlib.Path(__file__).parent.parent


def evaluated(round: int, labels: int, accuracy: float) -> dict:
    metrics = {"accuracy": accuracy, "nll": 1 - accuracy}
    return {
        "event": "evaluated",
        "round": round,
        "labels": labels,
        "test": metrics,
        "validation": {"accuracy": accuracy / 2},
    }


def cell_events(accuracies: tuple = (0.5, 0.75, 0.875)) -> list[dict]:
    """Rounds of two labels; the last one ends after "evaluated"."""
    events = [{"event": "labels", "round": 0, "query": "initial", "rows": [4, 2], "labels": [0, 1]}]
    for number, accuracy in enumerate(accuracies):
        count, name, rows = 2 + 2 * number, f"r{number:04d}", [10 * number + 5, 10 * number + 3]
        events += [
            {"event": "fitted", "round": number, "labels": count, "steps": 400, "train_loss": 0.1},
            evaluated(number, count, accuracy),
        ]
        if number + 1 < len(accuracies):
            scores = {"scores": [0.25, 0.125], "filler": [False, True]}
            events += [
                {"event": "query", "round": number, "id": name, "rows": rows, **scores},
                {"event": "labels", "round": number, "query": name, "rows": rows, "labels": [1, 0]},
            ]
    return events


def write_log(path: pathlib.Path, events: list[dict]) -> pathlib.Path:
    with EventLog(path) as log:
        for event in events:
            log.record(event)
    return path


def small_run(path: pathlib.Path) -> pathlib.Path:
    history.open_run(path, IDENTITY, ENVIRONMENT)
    for function, seed, accuracies in (
        ("bald", 0, (0.5, 0.75, 0.875)),
        ("bald", 10, (0.5, 0.875)),
        ("bald", 2, (0.5,)),
        ("power:score=margin,beta=8", 0, (0.25, 0.5)),
    ):
        cell = history.cell_directory(path, function, seed)
        write_log(cell / history.LOG, cell_events(accuracies))
    return path


def tree(path: pathlib.Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}
