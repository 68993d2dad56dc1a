"""The driver: rounds of fit, evaluate, score, acquire, for seeds and functions in pairs.

A loop over pure `ask` and `tell`; the only module that sees everything. Functions
with one seed share splits, initial parameters and training keys, so that they are
compared in pairs. Everything that happened is in an event log, which alone is enough
to go on after an interruption: a round that was cut off is made again from its keys.
"""

import contextlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bayesian_active_learning import history as history_
from bayesian_active_learning import oracle, providers
from bayesian_active_learning.acquisition_functions import check_samples, make_strategy
from bayesian_active_learning.data_utils import Dataset, Splits
from bayesian_active_learning.posteriors import make_posterior
from bayesian_active_learning.protocol import (
    Config,
    Keys,
    check_cells,
    check_config,
    config_of,
    identity,
    network,
    random_labelled,
    round_keys,
    same_settings,
    seed_splits,
    settings,
)
from bayesian_active_learning.rounds import (
    PARAMETERS,
    Context,
    Network,
    RunError,
    Task,
    has_ended,
    initial_in_logs,
    labelled_capacity,
    open_cell,
    pool_capacity,
    run_cells,
)
from bayesian_active_learning.rounds import refit as refit_rounds
from bayesian_active_learning.types import Strategy
from bayesian_active_learning.utils import check_positive

__all__ = [
    "PARAMETERS",
    "Config",
    "Keys",
    "Network",
    "Progress",
    "RunError",
    "check_config",
    "config_of",
    "identity",
    "network",
    "random_labelled",
    "refit",
    "round_keys",
    "run",
    "same_settings",
    "seed_splits",
    "settings",
]


MOST_REPLICAS = 16
"""In one program, where `run` is not told how many: memory in flight grows with them."""


class Progress(NamedTuple):
    """What `on_round` is told after each evaluated round."""

    acquisition: str
    seed: int
    round: int
    labels: int
    budget: int
    test_accuracy: float
    done: int  # rounds behind us, and in all, over all cells of this call
    total: int


def run(
    config: Config,
    dataset: Dataset,
    acquisitions: Sequence[str] = ("bald", "random"),
    seeds: Sequence[int] = (0,),
    *,
    labels: int = 120,
    directory: str | os.PathLike | None = None,
    label_oracle: oracle.Oracle | None = None,
    strategies: Mapping[str, Strategy] | None = None,
    splits: Splits | None = None,
    on_round: Callable[[Progress], object] | None = None,
    fresh: bool = False,
    allow_other_environment: bool = False,
    save_parameters: bool = False,
    replicas: int | None = None,
) -> history_.History:
    """Runs every acquisition function with every seed and returns what happened.

    Args:
      config: see `Config`.
      dataset: see `data_utils.load_dataset`; inputs already scaled (`standardise`).
      acquisitions: names as for `make_strategy`, for example "bald".
      seeds: each is one split, one set of initial parameters, one key tree.
      labels: budget, the labelled rows to end with, initial ones included. What is
        there already counts, so a finished run goes on when this is raised. A budget
        that is not the initial set and whole batches ends with a shorter batch, and a
        run raised from there goes on from that number, not from the one it would have
        had without the stop.
      directory: where the run leaves its files and goes on from; nothing is written
        when None.
      label_oracle: rows -> labels; the dataset's own labels when None.
      strategies: more strategies by name, looked up before the library's own.
      splits: rows to use for every seed instead of drawing them by seed.
      on_round: called after each evaluated round.
      fresh: delete an earlier run in `directory` first.
      allow_other_environment: go on although packages or machine have changed.
      save_parameters: leave the last round's parameters in `directory` as params.npz
        (`parameters.load_variables`); a cell that is finished without them is fitted
        once more.
      replicas: how many cells are trained and scored side by side in one program, whatever
        their functions, seeds and rounds (`replicas`, the module). 1: one cell after another.
        None: as the run in `directory` began on such a platform; for a new one, 1 on a CPU,
        where it is faster, and on accelerators all cells, at most `MOST_REPLICAS`. With more
        cells they take turns; fewer are filled up, at the cost of the full number. Choices
        that need more than samples and networks at hand are made cell by cell, as are
        posteriors beyond MC dropout built; warm starts and early stopping run one cell after
        another whatever is given. Results agree within rounding only, so the number is part
        of the run's environment, as a number of threads is: with the same one they are the
        same bytes, resumed or not, with any other they need `allow_other_environment`.

    Raises:
      ValueError: bad settings, a budget below the initial set (HistoryError, a subclass:
        a directory that holds another run, or cannot be written).
      RunError: training diverged; names function, seed and round.
    """
    check_config(config)
    check_positive(labels=labels, **({} if replicas is None else {"replicas": replicas}))
    check_cells(acquisitions, seeds)
    chosen = {name: (strategies or {}).get(name) or make_strategy(name) for name in acquisitions}
    num_samples = make_posterior(config.posterior).num_samples(config.num_samples)
    for name, strategy in chosen.items():
        providers.check_provided(strategy, name)
        providers.check_fit(name, strategy, config.fit, warm_start=config.warm_start)
        check_samples(name, num_samples, strategy.score)

    context = Context(
        config,
        dataset,
        *network(config, dataset),
        label_oracle or oracle.dataset_oracle(dataset.labels),
        labels,
        save_parameters,
    )
    cells = [(name, seed) for seed in seeds for name in acquisitions]
    logged = {}
    if directory is not None and not fresh and config.initial != "balanced":
        logged = initial_in_logs(directory, seeds)
    sizes = {
        seed: splits or seed_splits(config, dataset, seed, initial=logged.get(seed))
        for seed in seeds
    }
    for seed, found in sizes.items():
        if config.fit.monitor != "none" and not len(found.validation):
            raise ValueError(f"monitor {config.fit.monitor!r} needs validation rows (seed {seed})")
        if not len(found.initial):
            raise ValueError(
                f"the initial set is empty (seed {seed}): the first fit needs labels; "
                "num_initial_per_class must be at least 1"
            )
        if labels < len(found.initial):
            raise ValueError(
                f"the budget of {labels} labels is smaller than the initial set of "
                f"{len(found.initial)} (seed {seed})"
            )
    for name, strategy in chosen.items():
        providers.check_applicable(
            name,
            strategy,
            context.model,
            dataset.images,
            num_classes=dataset.num_classes,
            num_samples=num_samples,
            num_candidates=max(pool_capacity(config, found) for found in sizes.values()),
            capacity=labelled_capacity(labels),
            batch_size=config.acquisition_size,
        )
    rounds = {seed: _num_rounds(config, found, labels) for seed, found in sizes.items()}
    total = sum(rounds[seed] for _, seed in cells)
    width = _width(config, replicas, len(cells), None if fresh else directory)
    if directory is not None:
        history_.open_run(
            directory,
            identity(config, dataset, splits),
            {**history_.environment(), "replicas": width},
            fresh=fresh,
            allow_other_environment=allow_other_environment,
        )
    scores = tuple(dict.fromkeys(each.score for each in chosen.values() if each.score))
    curves, done = {}, dict.fromkeys(cells, 0)
    left = list(cells)
    while left:
        tasks: list[Task] = []
        room = width
        with contextlib.ExitStack() as opened:
            while left and room:
                name, seed = left.pop(0)
                report = on_round and _Report(on_round, name, seed, labels, done, total).tell
                log, clock = opened.enter_context(
                    open_cell(directory, name, seed, trust_log=allow_other_environment)
                )
                tasks.append(Task(name, chosen[name], seed, sizes[seed], log, clock, report))
                if has_ended(context, log):
                    done[name, seed] = rounds[seed]
                else:
                    room -= 1
            run_cells(context, tasks, width=width, scores=scores)
            for task in tasks:
                curves[task.name, task.seed] = history_.curve_from_events(task.log.events)
                done[task.name, task.seed] = rounds[task.seed]
    if directory is not None:
        return history_.read_history(directory)
    return history_.History({"identity": identity(config, dataset, splits)}, curves)


def refit(
    config: Config,
    dataset: Dataset,
    curve: history_.Curve,
    seed: int,
    *,
    labels: int,
    label_oracle: oracle.Oracle | None = None,
    splits: Splits | None = None,
    replicas: int = 1,
) -> Network:
    """The network that a run had at a number of labels, fitted once more from its keys.

    To look into a run of which only the history is left: what the network predicted, what
    it was unsure of, where its features put what was then asked for. The same bytes where a
    run would give the same bytes, see `run`. Nothing is written.

    Args:
      config: of the run.
      dataset: of the run, scaled as there.
      curve: the cell, for example `history.cells["bald", 0]`.
      seed: of the cell.
      labels: one of `curve.labels`.
      label_oracle: as for `run`; asked for the labelled rows again.
      splits: as for `run`.
      replicas: as the run had, which its config.json says; with another number the network is
        the same within rounding.

    Returns:
      `Network`, whose `posterior` goes to `inference` and whose `variables` are parameters.

    Raises:
      ValueError: a label count at which the curve has no round.
      RunError: training diverged.
    """
    check_config(config)
    check_positive(replicas=replicas)
    counts = curve.labels.tolist()
    if labels not in counts:
        raise ValueError(f"no round at {labels} labels; there is {', '.join(map(str, counts))}")
    if splits is None:
        chosen = None if config.initial == "balanced" else curve.initial_rows
        splits = seed_splits(config, dataset, seed, initial=chosen)
    context = Context(
        config,
        dataset,
        *network(config, dataset),
        label_oracle or oracle.dataset_oracle(dataset.labels),
        counts[-1],
        False,
    )
    told = counts[: counts.index(labels) + 1]
    rows = np.concatenate([curve.initial_rows, *curve.rows])[:labels]
    answers = np.asarray(context.oracle(rows), np.int32)
    rounds = [(rows[:count], answers[:count]) for count in told]
    width = _width(config, replicas, 1, None)
    return refit_rounds(context, seed, splits, rounds, width=width)


def _width(
    config: Config, replicas: int | None, num_cells: int, directory: str | os.PathLike | None
) -> int:
    """Replicas in a program, see `run`."""
    if config.warm_start or config.fit.monitor != "none":
        return 1
    if replicas is not None:
        return replicas
    platform = history_.environment()["platform"]
    if directory is not None and (pathlib.Path(directory) / history_.CONFIG).exists():
        began = history_.read_config(directory)["environment"]
        if began.get("platform") == platform:
            return began.get("replicas", 1)
    return 1 if platform == "cpu" else min(num_cells, MOST_REPLICAS)


def _num_rounds(config: Config, splits: Splits, budget: int) -> int:
    missing = min(budget - len(splits.initial), len(splits.pool))
    return 1 + -(-missing // config.acquisition_size)


class _Report(NamedTuple):
    """From what a cell knows to what `on_round` is told."""

    on_round: Callable[[Progress], object]
    acquisition: str
    seed: int
    budget: int
    behind: dict[tuple[str, int], int]  # rounds of each cell
    total: int

    def tell(self, round: int, labels: int, accuracy: float) -> None:
        self.behind[self.acquisition, self.seed] = round + 1
        done = min(sum(self.behind.values()), self.total)
        self.on_round(
            Progress(
                self.acquisition, self.seed, round, labels, self.budget, accuracy, done, self.total
            )
        )
