"""`python -m experiments.compare RUN...`: acquisition functions against each other.

Reads run directories, or histories saved by `write_history`, and changes nothing in them
but comparison.txt and comparison.json. Heavy imports wait until the options are read.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from experiments.command import add_which, exit_status, read


def parser() -> argparse.ArgumentParser:
    """The options of `python -m experiments.compare`."""
    root = argparse.ArgumentParser(
        prog="python -m experiments.compare",
        description="Labels to an accuracy, areas under the curves, paired differences, "
        "speed-ups, penalty matrix and group tests of the functions in one or several runs. "
        "Several runs are joined; they must agree in data and protocol.",
    )
    add_which(root)
    add = root.add_argument
    add("--against", default="random", metavar="NAME", help="the function to compare with")
    add("--last", type=int, default=10, metavar="R", help="rounds averaged at the end of the curve")
    add(
        "--thresholds",
        type=float,
        nargs="+",
        default=[0.9, 0.95],
        metavar="A",
        help="test accuracies to count labels to, as fractions (default: 0.9 0.95)",
    )
    add(
        "--sustained",
        type=int,
        default=3,
        metavar="R",
        help="rounds for which an accuracy must be kept to count, beside the first touch",
    )
    add(
        "--labels",
        type=int,
        nargs="+",
        metavar="N",
        help="label counts to compare at (default: quarters of the budget)",
    )
    add("--metric", default="accuracy", metavar="NAME", help="test metric, such as nll or ece")
    add("--bootstrap-seed", type=int, default=0, metavar="N", help="of the bootstrap intervals")
    add(
        "--output",
        metavar="DIR",
        help="folder of comparison.txt and comparison.json (default: the first run's)",
    )
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares; returns the exit status."""
    options = parser().parse_args(arguments)
    return exit_status(lambda: _compare(options))


def _compare(options: argparse.Namespace) -> int:
    from bayesian_active_learning import history, statistics
    from bayesian_active_learning.utils import atomic_write

    joined, first = read(options.runs, options.acquisition)
    found = statistics.compare(
        joined,
        against=options.against,
        last=options.last,
        thresholds=options.thresholds,
        sustained=options.sustained,
        labels=options.labels,
        metric=options.metric,
        bootstrap_seed=options.bootstrap_seed,
    )
    text = statistics.describe(found)
    print(text)
    folder = pathlib.Path(options.output) if options.output else first
    record = {
        "runs": options.runs,
        "identity": joined.config.get("identity"),
        "options": {key: value for key, value in vars(options).items() if key != "output"},
        "comparison": statistics.to_plain(found),
    }
    for name, content in (
        ("comparison.txt", text),
        ("comparison.json", json.dumps(record, indent=1, allow_nan=False) + "\n"),
    ):
        with history.writing(folder / name), atomic_write(folder / name) as file:
            file.write(content)
        print(f"Written: {folder / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
