"""`python -m experiments.mnist_bald`: watch labels being chosen, get learning curves.

Heavy imports wait until the options are read, so that `--help` is instant.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from experiments.options import PRESETS, changes, parse_seeds, parser

if TYPE_CHECKING:
    from bayesian_active_learning.data_utils import Dataset, Splits
    from bayesian_active_learning.experiment import Config, Progress
    from bayesian_active_learning.history import History

RUNS = "runs"
TRUSTED_SEEDS = 5
TRUSTED_COMMAND = (
    f"python -m experiments.mnist_bald --preset paper --seeds {TRUSTED_SEEDS} --labels 400"
)
INTERRUPTED = 130  # what shells report for Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit status."""
    options = parser().parse_args(arguments)
    say: Callable[[str], object] = (lambda text: None) if options.quiet else print
    try:
        if options.list_acquisitions:
            return _list_acquisitions()
        return _run(options, say)
    except KeyboardInterrupt:
        print(
            "\nStopped. Nothing is lost: every label and every finished round is in the run "
            "directory, and the same command goes on from there.",
            file=sys.stderr,
        )
        return INTERRUPTED
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _list_acquisitions() -> int:
    from bayesian_active_learning.acquisition_functions import STRATEGIES

    width = max(map(len, STRATEGIES))
    for name, spec in STRATEGIES.items():
        print(f"{name:{width}}  {spec.summary} ({spec.paper})")
    return 0


def _run(options: argparse.Namespace, say: Callable[[str], object]) -> int:
    preset = PRESETS[options.preset]
    acquisitions = tuple(options.acquisition or preset.acquisition)
    seeds = parse_seeds(options.seeds) if options.seeds else preset.seeds
    labels = preset.labels if options.labels is None else options.labels
    strength = _weight_decay(options.weight_decay)

    from bayesian_active_learning import data_utils, experiment, history, training
    from bayesian_active_learning.acquisition_functions import make_strategy

    for name in acquisitions:
        make_strategy(name)  # refuses unknown ones before any data is read
    settings, fit = changes(options)
    fit_config = training.FitConfig()._replace(**fit)
    config = experiment.Config()._replace(**settings, fit=fit_config)
    if isinstance(strength, float):
        config = config._replace(fit=fit_config._replace(weight_decay=strength))
    experiment.check_config(config)

    dataset = data_utils.load_dataset(_dataset_name(options), options.data_dir, notify=say)
    dataset = data_utils.standardise(dataset, dataset.train_rows)
    splits = _index_sets(options.index_sets, dataset, config, seeds)
    if strength == "auto":
        config = _searched(config, dataset, splits, seeds, say)
    facts = experiment.identity(config, dataset)
    directory = pathlib.Path(options.output_dir or f"{RUNS}/{history.default_run_name(facts)}")
    say(
        f"Data: {dataset.name}, {len(dataset.train_rows):,} training and "
        f"{len(dataset.test_rows):,} test examples\nRun:  {directory}"
    )
    with _progress_bar(options.quiet) as on_round:
        found = experiment.run(
            config,
            dataset,
            acquisitions,
            seeds,
            labels=labels,
            directory=directory,
            splits=splits,
            on_round=on_round,
            fresh=options.fresh,
            allow_other_environment=options.allow_other_environment,
            save_parameters=options.save_parameters,
        )
    report(directory, found, say, with_paper=options.preset == "paper")
    if len(seeds) < TRUSTED_SEEDS:
        data = f" --data-dir {options.data_dir}" if options.data_dir else ""
        say(f"\nTo conclude something: {TRUSTED_COMMAND}{data}")
    return 0


def report(
    directory: pathlib.Path,
    found: "History",
    say: Callable[[str], object],
    *,
    with_paper: bool = False,
) -> None:
    """Prints the table, draws the curves, writes the exports, names every file.

    with_paper: draw the paper's numbers too, where the data is MNIST.
    """
    from bayesian_active_learning import history, plotting
    from bayesian_active_learning.utils import atomic_write

    text = f"{history.summary_table(found)}\n\n{history.notice(found)}\n"
    files = [directory / name for name in ("history.json", "history.csv", "history.xlsx")]
    history.write_history(files[0], found)
    history.export_csv(files[1], found)
    history.export_xlsx(files[2], found)
    files.append(directory / "learning_curves.png")
    is_mnist = found.config["identity"]["dataset"] == "mnist"
    references = plotting.PAPER_LABELS if with_paper and is_mnist else None
    plotting.save_learning_curves(files[-1], found, references=references)
    files.append(directory / "summary.txt")
    with atomic_write(files[-1]) as file:
        file.write(text)
    say("\n" + text)
    say("Written:\n" + "\n".join(f"  {path}" for path in files))
    say(f"  {directory}/<function>/<seed>/log.jsonl  every label asked for, in order")


def _weight_decay(text: str | None) -> float | str | None:
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f'--weight-decay expects a number or "auto", got {text!r}') from None


def _dataset_name(options: argparse.Namespace) -> str | None:
    """What was asked for; where nothing was, what the run in --output-dir began with."""
    from bayesian_active_learning import history

    place = options.output_dir
    began = place and not options.fresh and os.path.exists(os.path.join(place, history.CONFIG))
    if options.dataset is not None or not began:
        return options.dataset
    name = history.read_config(place)["identity"]["dataset"]
    if name.startswith("npz:"):
        raise ValueError(f"the run in {place} began with {name}; say where: --dataset npz:PATH")
    return name


def _index_sets(
    path: str | None, dataset: "Dataset", config: "Config", seeds: Sequence[int]
) -> "Splits | None":
    from bayesian_active_learning import data_utils

    if path is None:
        return None
    if os.path.exists(path):
        return data_utils.load_splits(path, dataset)
    if len(seeds) > 1:
        raise ValueError(
            f"{path} does not exist, and one file holds one split: write it with one seed first"
        )
    splits = data_utils.make_splits(
        seeds[0],
        dataset.labels,
        dataset.train_rows,
        dataset.test_rows,
        num_classes=dataset.num_classes,
        num_initial_per_class=config.num_initial_per_class,
        num_validation=config.num_validation,
    )
    data_utils.save_splits(path, splits, dataset)
    return splits


def _searched(
    config: "Config",
    dataset: "Dataset",
    splits: "Splits | None",
    seeds: Sequence[int],
    say: Callable[[str], object],
) -> "Config":
    from bayesian_active_learning import tuning

    say(
        "Searching the weight decay: fits on 100 labels, compared on the validation set; "
        "neither is counted in the budget ..."
    )
    best, table = tuning.search_weight_decay(config, dataset, seeds, splits=splits)
    say("  c        validation nll  accuracy")
    for trial in table:
        chosen = "  <- chosen" if trial.strength == best else ""
        say(f"  {trial.strength:<7g}  {trial.nll:<14.4f}  {trial.accuracy:.1%}{chosen}")
    return config._replace(fit=config.fit._replace(weight_decay=best))


class _progress_bar:
    """A bar with round, labels, test accuracy and time left; nothing where there is no
    terminal."""

    def __init__(self, quiet: bool):
        from tqdm import tqdm

        self._bar: Any = tqdm(
            total=1,
            disable=True if quiet else None,
            unit="round",
            bar_format="{desc} |{bar:24}| {n_fmt}/{total_fmt} rounds, {elapsed} < {remaining}",
        )
        self._bar.set_description_str("compiling")

    def __enter__(self) -> "Callable[[Progress], object]":
        return self.on_round

    def on_round(self, progress: "Progress") -> None:
        bar = self._bar
        if bar.disable:
            return
        if bar.total != progress.total:
            # What was there already, on resuming, says nothing about the time left.
            bar.reset(progress.total)
            bar.initial = bar.n = progress.done - 1
        bar.set_description_str(
            f"{progress.acquisition}, seed {progress.seed}: {progress.labels} labels, "
            f"test accuracy {progress.test_accuracy:.1%}",
            refresh=False,
        )
        bar.update(progress.done - bar.n)

    def __exit__(self, *error: object) -> None:
        self._bar.close()


if __name__ == "__main__":
    sys.exit(main())
