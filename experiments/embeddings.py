"""`python -m experiments.embeddings`: which labels to ask for, on features of a frozen encoder.

Many paired seeds in a minute or two: only a Bayesian logistic head is fitted, exactly. Heavy
imports wait until the options are read, so that `--help` is instant.
"""

import argparse
import concurrent.futures
import functools
import multiprocessing
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from experiments.command import add_run_options, exit_status, print_table
from experiments.options import SEEDS_HELP, parse_seeds
from experiments.output import report

if TYPE_CHECKING:
    from bayesian_active_learning.data_utils import Dataset

RUNS = "runs"
THRESHOLDS = (0.90, 0.95, 0.97)
_POLL = 0.3  # seconds between two looks at what is finished

# option -> (default, help). The defaults stand here too, since `--help` imports nothing heavy;
# a test compares them with `frozen_features.FrozenConfig`.
SETTINGS: dict[str, tuple[Any, str]] = {
    "num_initial_per_class": (2, "times classes: rows in the initial set"),
    "num_initial": (0, "or rows in it, for those that look at no label; 0 = as above"),
    "initial": (
        "typiclust",
        "the initial set, by the features alone: typiclust, kmeans, probcover, coreset, "
        "kmeans_pp or random; or balanced, which looks at labels",
    ),
    "initial_pool_size": (2000, "random rows that the initial set is chosen from; 0 = all"),
    "acquisition_size": (1, "labels asked for in each round"),
    "pool_size": (1000, "rows scored each round; 0 = the whole pool"),
    "num_samples": (64, "posterior samples K when scoring"),
    "num_test_samples": (0, "posterior samples when evaluating; 0 = the head at its mode"),
    "prior_precision": (0.03, "of the head's weights, for their mode"),
    "posterior_precision": (1.0, "and for the Laplace posterior around it"),
    "bias": (0.1, "the constant feature: the smaller, the narrower the prior of the bias"),
}
SCALINGS = ("unit_norm", "standardise", "none")


def parser() -> argparse.ArgumentParser:
    """The options of `python -m experiments.embeddings`."""
    root = argparse.ArgumentParser(
        prog="python -m experiments.embeddings",
        description="Active learning on embeddings [N, D] of a frozen encoder, with a Bayesian "
        "logistic head: acquisition functions against each other over many paired seeds. The "
        "same command goes on where it was stopped.",
    )
    add = root.add_argument_group("what to compare").add_argument
    add(
        "--data",
        metavar="NAME",
        help="npz:PATH with features and labels (see data_utils.load_npz), or any other data set, "
        "whose inputs are flattened",
    )
    add(
        "--acquisition",
        nargs="+",
        metavar="NAME",
        default=["margin", "bald", "epig", "random", "greedy_oracle"],
        help="acquisition functions, name or name:key=value (see --list-acquisitions); "
        "greedy_oracle looks at the labels and is an upper bound (default: %(default)s)",
    )
    add("--list-acquisitions", action="store_true", help="list those that run here, and exit")
    add("--seeds", nargs="+", metavar="N", default=["20"], help=f"{SEEDS_HELP} (default: 20)")
    add("--labels", type=int, default=80, metavar="N", help="label budget (default: 80)")

    add = root.add_argument_group("protocol").add_argument
    for name, (default, text) in SETTINGS.items():
        flag = "--" + name.replace("_", "-")
        add(flag, type=type(default), default=default, metavar="X", help=f"{text} ({default})")
    add(
        "--scaling",
        choices=SCALINGS,
        default="unit_norm",
        help="of the features (default: unit_norm, see data_utils.unit_norm)",
    )

    output = root.add_argument_group("output")
    add = output.add_argument
    add("--data-dir", metavar="DIR", help="folder of the data, for names other than npz:PATH")
    add(
        "--processes",
        type=int,
        metavar="N",
        help="seeds are shared among so many processes (default: one a core)",
    )
    add_run_options(output)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit status."""
    options = parser().parse_args(arguments)
    say: Callable[[str], object] = (lambda text: None) if options.quiet else print
    return exit_status(
        lambda: _list() if options.list_acquisitions else _run(options, say),
        when_stopped="Stopped. The same command goes on from the finished seeds.",
    )


def _list() -> int:
    from bayesian_active_learning.acquisition_functions import (
        STRATEGIES,
        UPPER_BOUNDS,
        make_strategy,
    )
    from bayesian_active_learning.frozen_features import PROVIDED

    table = {**STRATEGIES, **UPPER_BOUNDS}
    print_table(
        {name: spec for name, spec in table.items() if make_strategy(name, table).needs <= PROVIDED}
    )
    return 0


def _run(options: argparse.Namespace, say: Callable[[str], object]) -> int:
    if options.data is None:
        raise ValueError("--data is needed: npz:PATH with features and labels, or a data set")
    seeds = parse_seeds(options.seeds)
    if options.processes is not None and options.processes < 1:
        raise ValueError(f"--processes must be at least 1, got {options.processes}")

    from bayesian_active_learning import frozen_features, history
    from bayesian_active_learning.acquisition_functions import STRATEGIES, UPPER_BOUNDS, canonical

    table = {**STRATEGIES, **UPPER_BOUNDS}
    options.acquisition = [canonical(spec, table) for spec in options.acquisition]
    dataset = _dataset(options.data, options.data_dir, options.scaling)
    facts = frozen_features.identity(_config(options), dataset)
    if options.output_dir is None:
        options.output_dir = f"{RUNS}/{history.default_run_name(facts)}"
    directory = pathlib.Path(options.output_dir)
    say(
        f"Data: {dataset.name}, {len(dataset.train_rows):,} training and "
        f"{len(dataset.test_rows):,} test examples of {dataset.images.shape[1]} features\n"
        f"Run:  {directory}"
    )
    if options.fresh and directory.exists():
        history.open_run(directory, facts, history.environment(), fresh=True)
    count = min(options.processes or os.cpu_count() or 1, len(seeds))
    with _Bar(directory, len(seeds) * len(options.acquisition), options.quiet) as look:
        if count == 1:
            _part(options, seeds, look)
        else:
            # XLA has no thread to spare for a second program on a CPU: processes, not threads.
            context = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(
                count, context, initializer=_one_thread
            ) as pool:
                waiting = {
                    pool.submit(_part, options, seeds[start::count]) for start in range(count)
                }
                while waiting:
                    done, waiting = concurrent.futures.wait(waiting, _POLL)
                    look()
                    for future in done:
                        future.result()
    found = history.read_history(directory)
    report(directory, found, say, thresholds=THRESHOLDS)
    return 0


def _one_thread() -> None:
    """A thread for each of the processes; with more, those of OpenBLAS and OpenMP spend their
    time waiting for each other (6 times longer in all). Before NumPy is imported."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def _part(
    options: argparse.Namespace, seeds: Sequence[int], look: Callable[[], object] | None = None
) -> None:
    """All functions with these seeds, left in the run directory."""
    from bayesian_active_learning import frozen_features

    frozen_features.run(
        _config(options),
        _dataset(options.data, options.data_dir, options.scaling),
        options.acquisition,
        seeds,
        labels=options.labels,
        directory=options.output_dir,
        on_cell=(lambda done, total: look()) if look else None,
        allow_other_environment=options.allow_other_environment,
    )


def _config(options: argparse.Namespace) -> Any:
    from bayesian_active_learning import frozen_features

    return frozen_features.FrozenConfig(**{name: getattr(options, name) for name in SETTINGS})


@functools.lru_cache(maxsize=1)
def _dataset(name: str, data_dir: str | None, scaling: str) -> "Dataset":
    from bayesian_active_learning import data_utils

    dataset = data_utils.load_dataset(name, data_dir)
    dataset = data_utils.flatten(dataset)
    if scaling == "none":
        return dataset
    return getattr(data_utils, scaling)(dataset, dataset.train_rows)


class _Bar:
    """How many cells are finished, and the time left; nothing where there is no terminal."""

    def __init__(self, directory: pathlib.Path, total: int, quiet: bool):
        from tqdm import tqdm

        self._directory = directory
        self._bar: Any = tqdm(
            total=total,
            disable=True if quiet else None,
            smoothing=0,
            bar_format="|{bar:24}| {n_fmt}/{total_fmt} curves, {elapsed} < {remaining}",
        )

    def __enter__(self) -> Callable[[], object]:
        return self.look

    def look(self) -> None:
        if not self._bar.disable:
            done = sum(1 for _ in self._directory.glob("*/*/log.jsonl"))
            self._bar.n = min(done, self._bar.total)
            self._bar.refresh()

    def __exit__(self, *error: object) -> None:
        self._bar.close()


if __name__ == "__main__":
    sys.exit(main())
