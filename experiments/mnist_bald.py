"""`python -m experiments.mnist_bald`: watch labels being chosen, get learning curves.

Heavy imports wait until the options are read, so that `--help` is instant.
"""

import argparse
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from experiments.command import exit_status, print_table
from experiments.options import PRESETS, changes, given_settings, parse_seeds, parser
from experiments.output import report

if TYPE_CHECKING:
    from bayesian_active_learning.data_utils import Dataset, Splits
    from bayesian_active_learning.experiment import Config, Progress

RUNS = "runs"
TRUSTED_SEEDS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment; returns the exit status."""
    options = parser().parse_args(arguments)
    say: Callable[[str], object] = (lambda text: None) if options.quiet else print
    same = "the same command without --fresh" if options.fresh else "the same command"
    return exit_status(
        lambda: (
            _list(options)
            if options.list_acquisitions or options.list_posteriors
            else _run(options, say)
        ),
        when_stopped="Stopped. No label and no finished round that the run directory holds is "
        f"lost; {same} goes on from there.",
    )


def _list(options: argparse.Namespace) -> int:
    from bayesian_active_learning.acquisition_functions import STRATEGIES
    from bayesian_active_learning.posteriors import POSTERIORS

    print_table(STRATEGIES if options.list_acquisitions else POSTERIORS)
    return 0


def _run(options: argparse.Namespace, say: Callable[[str], object]) -> int:
    preset = PRESETS[options.preset]
    seeds = parse_seeds(options.seeds) if options.seeds else preset.seeds
    labels = preset.labels if options.labels is None else options.labels
    strength = _weight_decay(options.weight_decay)

    from bayesian_active_learning import data_utils, experiment, history, training
    from bayesian_active_learning.acquisition_functions import canonical, make_strategy

    # One cell however it is spelt; unknown ones are refused before any data is read.
    acquisitions = tuple(map(canonical, options.acquisition or preset.acquisition))
    for function in acquisitions:
        make_strategy(function)
    settings, fit = changes(options)
    fit_config = training.FitConfig()._replace(**fit)
    config = experiment.Config()._replace(**settings, fit=fit_config)
    if isinstance(strength, float):
        config = config._replace(fit=fit_config._replace(weight_decay=strength))
    experiment.check_config(config)
    if strength == "auto" and config.posterior != experiment.Config().posterior:
        raise ValueError(
            "--weight-decay auto judges networks by MC dropout; with --posterior "
            f"{config.posterior} give a number"
        )

    name = _dataset_name(options, experiment.settings(config), say)
    dataset = data_utils.load_dataset(name, options.data_dir, notify=_tell(options.quiet))
    dataset = data_utils.standardise(dataset, dataset.train_rows)
    splits = _index_sets(options.index_sets, dataset, config, seeds)
    if strength == "auto":
        config = _searched(config, dataset, splits, say)
    facts = experiment.identity(config, dataset, splits)
    directory = pathlib.Path(options.output_dir or f"{RUNS}/{history.default_run_name(facts)}")
    say(
        f"Data: {dataset.name}, {len(dataset.train_rows):,} training and "
        f"{len(dataset.test_rows):,} test examples\nRun:  {directory}"
    )
    with _ProgressBar(options.quiet) as on_round:
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
            replicas=options.replicas,
        )
    report(directory, found, say, with_paper=options.preset == "paper")
    by_function = history.curves_by_function(found)
    if min(len(by_function[name]) for name in acquisitions) < TRUSTED_SEEDS:
        say(f"\nTo conclude something (hours on a CPU): {_trusted_command(options, acquisitions)}")
    return 0


def _trusted_command(options: argparse.Namespace, acquisitions: Sequence[str]) -> str:
    """The protocol of a paper with enough seeds, for the same functions and data, and with
    the other settings that were given."""
    own = os.path.join(".venv", "bin", "python")
    same = []
    for name, value in given_settings(options).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            same.append(flag if value else f"--no-{name.replace('_', '-')}")
        else:
            same += [flag, str(value)]
    preset = "paper" if options.preset == "quick" else options.preset
    labels = 400 if preset == "paper" else PRESETS[preset].labels
    words = ["-m", "experiments.mnist_bald", "--preset", preset]
    words += ["--seeds", str(TRUSTED_SEEDS), "--labels", str(labels)]
    python = own if os.path.exists(own) else "python"
    return shlex.join([python, *words, "--acquisition", *acquisitions, *same])


def _weight_decay(text: str | None) -> float | str | None:
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f'--weight-decay expects a number or "auto", got {text!r}') from None


def _tell(quiet: bool) -> Callable[[str], object]:
    """What data was taken in place of MNIST is said even when quiet."""
    return (lambda text: print(text, file=sys.stderr)) if quiet else print


def _dataset_name(
    options: argparse.Namespace, settings: dict[str, Any], say: Callable[[str], object]
) -> str | None:
    """What was asked for; where nothing was, what the run that this goes on with began with.

    That is the run in --output-dir, or without one the last run among the default
    directories that has these settings: MNIST that has come or gone since then does not
    change what a run is about.
    """
    from bayesian_active_learning import experiment, history

    named = options.data_dir or os.environ.get("BAL_DATA_DIR")
    if options.dataset is not None or options.fresh:
        return options.dataset
    if options.output_dir:
        places = [pathlib.Path(options.output_dir)]
    else:
        places = [] if named else list(pathlib.Path(RUNS).glob("*"))
    places = [place for place in places if (place / history.CONFIG).exists()]
    for place in sorted(places, key=lambda p: (p / history.CONFIG).stat().st_mtime, reverse=True):
        try:
            began = history.read_config(place)["identity"]
        except history.HistoryError:
            if options.output_dir:
                raise
            continue  # a damaged run among others is not this one's trouble
        if not options.output_dir and not experiment.same_settings(began, settings):
            continue
        name = began["dataset"]
        if name.startswith("npz:"):
            if not options.output_dir:
                continue
            raise ValueError(f"the run in {place} began with {name}; say where: --dataset npz:PATH")
        say(f"Going on with {name}, as {place} began (--dataset takes another).")
        return name
    return None


def _index_sets(
    path: str | None, dataset: "Dataset", config: "Config", seeds: Sequence[int]
) -> "Splits | None":
    from bayesian_active_learning import data_utils, experiment

    if path is None:
        return None
    if os.path.exists(path):
        return data_utils.load_splits(path, dataset)
    if len(seeds) > 1:
        raise ValueError(
            f"{path} does not exist, and one file holds one split: write it with one seed first"
        )
    splits = experiment.seed_splits(config, dataset, seeds[0])
    data_utils.save_splits(path, splits, dataset)
    return splits


def _searched(
    config: "Config",
    dataset: "Dataset",
    splits: "Splits | None",
    say: Callable[[str], object],
) -> "Config":
    """The config with the weight decay that the search finds: always on the same seeds, and
    once; its table stays in a file beside the runs."""
    from bayesian_active_learning import experiment, tuning
    from bayesian_active_learning.utils import atomic_write, short_hash

    facts = experiment.identity(config, dataset, splits)
    facts["fit"] = {key: value for key, value in facts["fit"].items() if key != "weight_decay"}
    path = pathlib.Path(RUNS) / f"weight-decay-{short_hash(facts)}.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        best, table = found["chosen"], [tuning.Trial(*trial) for trial in found["trials"]]
    else:
        say(
            "Searching the weight decay: fits on 100 labels for each of 5 seeds, compared on the "
            "validation sets; none of these labels is counted in the budget ..."
        )
        best, trials = tuning.search_weight_decay(config, dataset, range(5), splits=splits)
        table = list(trials)
        with atomic_write(path) as file:
            json.dump({"chosen": best, "trials": [list(trial) for trial in table]}, file)
    say(f"Weight decay, from {path}:\n  c        validation nll  accuracy")
    for trial in table:
        chosen = "  <- chosen" if trial.strength == best else ""
        say(f"  {trial.strength:<7g}  {trial.nll:<14.4f}  {trial.accuracy:.1%}{chosen}")
    return config._replace(fit=config.fit._replace(weight_decay=best))


class _ProgressBar:
    """A bar with round, labels, test accuracy and time left; nothing where there is no
    terminal."""

    def __init__(self, quiet: bool, file: Any = None):
        from tqdm import tqdm

        self._bar: Any = tqdm(
            total=0,
            file=file,
            disable=True if quiet else None,
            # Time left by the mean over this call, so that rounds that were there already,
            # which `initial` counts, say nothing about it.
            smoothing=0,
            bar_format="{desc} |{bar:24}| {n_fmt}/{total_fmt} rounds, {elapsed} < {remaining}",
        )
        self._bar.set_description_str("starting")

    def __enter__(self) -> "Callable[[Progress], object]":
        return self.on_round

    def on_round(self, progress: "Progress") -> None:
        bar = self._bar
        if bar.disable:
            return
        bar.total = progress.total
        bar.initial += max(0, progress.done - 1 - bar.n)
        bar.n = progress.done
        bar.set_description_str(
            f"{progress.acquisition}, seed {progress.seed}: {progress.labels} labels, "
            f"test accuracy {progress.test_accuracy:.1%}"
        )

    def __exit__(self, *error: object) -> None:
        if not self._bar.disable:
            self._bar.leave = bool(self._bar.n)
        self._bar.close()


if __name__ == "__main__":
    sys.exit(main())
