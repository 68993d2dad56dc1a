"""The rounds of cells (one acquisition function, one seed each): fit, evaluate, acquire.

A cell's rounds are a generator that stops wherever the network has work to do and is given
what came of it: done for each cell by itself, or for several in one program (`replicas`).
What happened is in the event log, which alone is enough to go on after an interruption.
"""

import contextlib
import os
import pathlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from bayesian_active_learning import (
    history,
    inference,
    metrics,
    oracle,
    parameters,
    posteriors,
    providers,
    replicas,
    training,
)
from bayesian_active_learning.acquisition_functions import acquire, make_strategy, select_batch
from bayesian_active_learning.data_utils import Dataset, Splits, pool_subset
from bayesian_active_learning.protocol import Config, Keys, round_keys
from bayesian_active_learning.types import (
    Candidates,
    Model,
    Posterior,
    Score,
    Selection,
    Strategy,
    Variables,
)
from bayesian_active_learning.utils import pad_rows, round_up, seven_digits

PARAMETERS = "params.npz"  # in a cell's directory, on request
CAPACITY_STEP = 128  # the labelled set's buffer grows by this much


class RunError(RuntimeError):
    """A run that cannot go on, with its function, seed and round. Its log is intact."""


class Context(NamedTuple):
    """What all cells of a run have in common."""

    config: Config
    dataset: Dataset
    model: Model
    optimizer: optax.GradientTransformation
    oracle: oracle.Oracle
    budget: int
    save_parameters: bool


class _Cell(NamedTuple):
    """What all rounds of a cell have in common."""

    context: Context
    name: str
    strategy: Strategy
    seed: int
    splits: Splits
    validation: tuple[np.ndarray, np.ndarray]  # inputs and labels
    pool_capacity: int  # candidates in a round, padding included

    def capacity(self, num_labelled: int) -> int:
        """The size of the labelled buffer: one for all rounds up to the budget."""
        return labelled_capacity(max(self.context.budget, num_labelled))


class _Now(NamedTuple):
    """One round of a cell, before its fit."""

    number: int
    keys: Keys
    rows: np.ndarray  # labelled
    labels: np.ndarray
    where: str  # for messages


class Network(NamedTuple):
    """What a round has fitted: the parameters, and the posterior made from them."""

    variables: Variables
    posterior: Any
    best_step: int


class _Work(NamedTuple):
    """What a cell waits for: "fit" -> training.FitResult, "predict" -> mean predictive
    log-probabilities, "sample" -> what is then known of the candidates."""

    kind: str
    cell: _Cell
    now: _Now
    start: Variables | None = None  # of a fit
    network: Network | None = None  # of the others
    situation: providers.Situation | None = None  # of a sample


@contextlib.contextmanager
def open_cell(
    directory: Any, name: str, seed: int, *, trust_log: bool
) -> Iterator[tuple[Any, history.Clock]]:
    """The log and the clock of a cell, locked; in memory without a directory."""
    if directory is None:
        yield history.MemoryLog(), history.Clock(None)
        return
    place = history.cell_directory(directory, name, seed)
    with (
        history.cell_lock(place),
        history.EventLog(place / history.LOG, trust_log=trust_log) as log,
    ):
        yield log, history.Clock(place / history.CLOCK)


class Task(NamedTuple):
    """A cell to be run. report: called with (round, labels, test accuracy) after each
    evaluation."""

    name: str
    strategy: Strategy
    seed: int
    splits: Splits
    log: Any
    clock: history.Clock
    report: Callable[[int, int, float], object] | None = None


def run_cells(
    context: Context, tasks: Sequence[Task], *, width: int = 1, scores: Sequence[Score] = ()
) -> None:
    """Makes the rounds that the logs do not have yet, up to the budget.

    Args:
      width: 1 for one cell after another; else the replicas in a program, at least as many as
        there are unfinished cells. Each then makes a round in turn, whichever round that is.
      scores: the score functions of all strategies of the run.

    Raises:
      RunError: training diverged, or the strategy's picks are refused. Cells at work together
        have noted down what they have by then.
    """
    if width == 1:
        for task in tasks:
            _drive(context, [task], lambda works: [_alone(work) for work in works])
    else:
        _drive(context, tasks, lambda works: _together(context, works, width, scores))


def _drive(
    context: Context, tasks: Sequence[Task], work_off: Callable[[list[_Work]], list[Any]]
) -> None:
    """Lets the cells go on side by side: all fit, all predict, all sample."""
    cells = [_rounds(context, task) for task in tasks]
    answers: dict[int, Any] = dict.fromkeys(range(len(cells)))  # None starts a generator
    while answers:
        works: dict[int, _Work] = {}
        failed: Exception | None = None
        for place, answer in answers.items():
            tasks[place].clock.cells = len(answers)
            try:
                if isinstance(answer, RunError):
                    raise answer
                works[place] = cells[place].send(answer)
            except StopIteration:
                pass
            except RunError as error:  # of one cell: the others take down what they have
                failed = failed or error
        if failed is not None:
            raise failed
        found = work_off(list(works.values())) if works else []
        answers = dict(zip(works, found, strict=True))


def has_ended(context: Context, log: Any) -> bool:
    """Whether there is nothing left to do for a cell with this log."""
    place = _parameters_of(log)
    return _is_finished(log.events, context.budget) and (
        place is None or place.exists() or not context.save_parameters
    )


def _parameters_of(log: Any) -> pathlib.Path | None:
    return None if isinstance(log, history.MemoryLog) else log.path.parent / PARAMETERS


def _rounds(context: Context, task: Task) -> Generator[_Work, Any, None]:
    """The rounds of one cell; yields what the network is needed for."""
    config, log, clock = context.config, task.log, task.clock
    if has_ended(context, log):
        return
    place = _parameters_of(log)
    if place is not None and not _is_finished(log.events, context.budget):
        place.unlink(missing_ok=True)  # of a round that will not be the last one
    cell = _cell(context, task.name, task.strategy, task.seed, task.splits)
    number, count = history.resume_point(log.events)
    state = _resumed(cell, log, count)
    variables: Variables | None = None
    if config.warm_start and number:
        # Parameters are no part of the log; the rounds behind us are fitted again.
        variables = _warmed(cell, _logged(cell, log.events[:count], number))
    while True:
        now = _now(cell, state, number)
        network = _fitted(cell, now, (yield _Work("fit", cell, now, variables)), log)
        variables = network.variables if config.warm_start else None
        clock.lap(number, "fit")
        predictions = yield _Work("predict", cell, now, network=network)
        accuracy = _evaluate_round(cell, now, network, predictions, log)
        clock.lap(number, "evaluate")
        if task.report is not None:
            task.report(number, len(now.rows), accuracy)
        wanted = _wanted(cell, state, now, log)
        if wanted <= 0:
            if context.save_parameters and place is not None:
                with history.writing(place):
                    parameters.save_variables(place, network.variables)
            return
        situation = _situation(cell, now, network, oracle.pool_rows(state))
        known = yield _Work("sample", cell, now, network=network, situation=situation)
        candidates = _collected(cell, now, situation, known)
        clock.lap(number, "provide")
        state, query = _ask(cell, now, candidates, state, wanted, log)
        clock.lap(number, "acquire")
        answers = np.asarray(context.oracle(query.rows))
        state = oracle.tell(state, query.id, query.rows, answers)
        log.record(oracle.labels_event(number, query.id, query.rows, answers))
        number += 1


def _alone(work: _Work) -> Any:
    """One cell's work, by itself."""
    if work.kind == "fit":
        return _fit(work.cell, work.now, work.start)
    if work.kind == "predict":
        return inference.predict(
            work.now.keys.evaluate,
            _posteriors(work),
            work.cell.context.dataset.images,
            _evaluated_rows(work.cell),
            num_samples=_num_test_samples(work.cell.context),
        )
    return {}  # `collect` finds everything


def _together(
    context: Context, works: Sequence[_Work], width: int, scores: Sequence[Score]
) -> list[Any]:
    """The work of several cells, all of one kind, in one program."""
    (kind,) = {work.kind for work in works}
    cells, nows = [work.cell for work in works], [work.now for work in works]
    images = context.dataset.images
    if kind == "fit":
        found = replicas.fit(
            [now.keys.fit for now in nows],
            context.model,
            context.optimizer,
            images,
            [now.rows for now in nows],
            [now.labels for now in nows],
            config=context.config.fit,
            capacity=max(c.capacity(len(now.rows)) for c, now in zip(cells, nows, strict=True)),
            width=width,
        )
        return [
            RunError(f"{now.where}: {each}") if isinstance(each, ArithmeticError) else each
            for now, each in zip(nows, found, strict=True)
        ]
    if kind == "predict":
        return replicas.predict(
            [now.keys.evaluate for now in nows],
            [_posteriors(work) for work in works],
            images,
            [_evaluated_rows(cell) for cell in cells],
            num_samples=_num_test_samples(context),
            width=width,
        )
    return providers.sample_replicas(
        [now.keys.score for now in nows],
        [now.keys.provide for now in nows],
        [work.situation for work in works if work.situation is not None],
        [cell.strategy for cell in cells],
        scores=scores,
        width=width,
    )


def refit(
    context: Context,
    seed: int,
    splits: Splits,
    rounds: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    width: int = 1,
) -> Network:
    """The network of the last of `rounds` as its run fitted it, from the seed's keys.

    Args:
      rounds: (rows, labels) of each round from 0 on, in the order told; none but the last
        is fitted unless the run has warm starts.
      width: as the run's, see `run_cells`.

    Raises:
      RunError: training diverged.
    """
    cell = _cell(context, "refit", make_strategy("random"), seed, splits)  # nothing is chosen
    *before, last = (
        _Now(
            number,
            round_keys(seed, number),
            rows,
            labels,
            f"seed {seed}, round {number}, {len(rows)} labels (made again)",
        )
        for number, (rows, labels) in enumerate(rounds)
    )
    variables = _warmed(cell, before) if context.config.warm_start else None
    work = _Work("fit", cell, last, variables)
    result = _alone(work) if width == 1 else _together(context, [work], width, ())[0]
    if isinstance(result, RunError):
        raise result
    return _fitted(cell, last, result, history.MemoryLog())


def _cell(context: Context, name: str, strategy: Strategy, seed: int, splits: Splits) -> _Cell:
    dataset, rows = context.dataset, splits.validation
    validation = np.asarray(dataset.images[rows]), np.asarray(dataset.labels)[rows]
    capacity = pool_capacity(context.config, splits)
    return _Cell(context, name, strategy, seed, splits, validation, capacity)


def pool_capacity(config: Config, splits: Splits) -> int:
    """Candidates in a round, padding included."""
    return min(config.pool_size or len(splits.pool), len(splits.pool))


def labelled_capacity(num_labelled: int) -> int:
    """The size of a buffer that holds so many labelled rows."""
    return round_up(num_labelled, CAPACITY_STEP)


def initial_in_logs(directory: str | os.PathLike, seeds: Sequence[int]) -> dict[int, np.ndarray]:
    """seed -> the initial rows that a cell of an earlier call has logged."""
    found: dict[int, np.ndarray] = {}
    for seed in seeds:
        for path in sorted(pathlib.Path(directory).glob(f"*/{seed}/{history.LOG}")):
            events = history.read_events(path)
            if events and events[0].get("query") == oracle.INITIAL:
                found[seed] = np.sort(np.asarray(events[0]["rows"], np.int32))
                break
    return found


def _is_finished(events: Sequence[Mapping[str, Any]], budget: int) -> bool:
    """Whether some round was evaluated with enough labels, be it under a larger budget."""
    return any(event["event"] == "evaluated" and event["labels"] >= budget for event in events)


def _resumed(cell: _Cell, log: Any, count: int) -> oracle.LabelState:
    """What is known of labels after the first `count` events, or with the initial set."""
    dataset, splits = cell.context.dataset, cell.splits
    everything = np.concatenate([splits.initial, splits.pool])
    state = oracle.init(len(dataset.labels), dataset.num_classes, everything)
    if count:
        state = oracle.replay(log.events[:count], state)
        log.skip(count)
        return state
    answers = np.asarray(cell.context.oracle(splits.initial))
    state = oracle.tell(state, oracle.INITIAL, splits.initial, answers)  # checks them first
    log.record(oracle.labels_event(0, oracle.INITIAL, splits.initial, answers))
    return state


def _now(cell: _Cell, state: oracle.LabelState, number: int) -> _Now:
    rows, labels = oracle.labelled(state)
    where = f"{cell.name}, seed {cell.seed}, round {number}, {len(rows)} labels"
    return _Now(number, round_keys(cell.seed, number), rows, labels, where)


def _fit(cell: _Cell, now: _Now, variables: Variables | None) -> training.FitResult:
    config = cell.context.config.fit
    try:
        return training.fit(
            now.keys.fit,
            cell.context.model,
            cell.context.optimizer,
            cell.context.dataset.images,
            now.rows,
            now.labels,
            config=config,
            variables=variables,
            validation=cell.validation if config.monitor != "none" else None,
            capacity=cell.capacity(len(now.rows)),
        )
    except training.TrainingDiverged as error:
        raise RunError(f"{now.where}: {error}") from error


def _fitted(cell: _Cell, now: _Now, result: training.FitResult, log: Any) -> Network:
    """Records what a fit has found, and makes the posterior."""
    context = cell.context
    log.record(
        {
            "event": "fitted",
            "round": now.number,
            "labels": len(now.rows),
            "steps": result.steps,
            "best_step": result.best_step,
            "train_loss": seven_digits(result.train_loss),
        }
    )
    fitted = posteriors.Fitted(
        context.model,
        result.variables,
        context.optimizer,
        context.dataset.images,
        now.rows,
        now.labels,
        context.config.fit,
        cell.capacity(len(now.rows)),
    )
    rule = posteriors.make_posterior(context.config.posterior)
    try:
        posterior = rule.build(now.keys.posterior, fitted)
    except (ValueError, training.TrainingDiverged) as error:
        raise RunError(f"{now.where}: {error}") from error
    return Network(result.variables, posterior, result.best_step)


def _warmed(cell: _Cell, rounds: Iterable[_Now]) -> Variables | None:
    """The parameters after these rounds, from 0 on, each going on from those before it."""
    variables = None
    for now in rounds:
        variables = _fit(cell, now, variables).variables
    return variables


def _logged(cell: _Cell, events: Sequence[Mapping[str, Any]], first: int) -> Iterator[_Now]:
    """The rounds before `first`, to be fitted again."""
    dataset = cell.context.dataset
    state = oracle.init(len(dataset.labels), dataset.num_classes, np.arange(len(dataset.labels)))
    rounds: dict[int, list[Mapping[str, Any]]] = {}
    for event in events:
        key = -1 if event.get("query") == oracle.INITIAL else event["round"]
        rounds.setdefault(key, []).append(event)
    for number in range(first):
        state = oracle.replay(rounds.get(number - 1, []), state)
        now = _now(cell, state, number)
        yield now._replace(where=f"{now.where} (made again for a warm start)")


def _posteriors(work: _Work) -> list[Posterior]:
    """Of an evaluation: the samples, and the network with dropout off."""
    network, model = work.network, work.cell.context.model
    assert network is not None
    return [network.posterior, inference.deterministic(model, network.variables)]


def _num_test_samples(context: Context) -> list[int]:
    rule = posteriors.make_posterior(context.config.posterior)
    return [rule.num_samples(context.config.num_test_samples), 1]


def _evaluated_rows(cell: _Cell) -> np.ndarray:
    return np.concatenate([cell.splits.test, cell.splits.validation])


def _evaluate_round(
    cell: _Cell, now: _Now, network: Network, predictions: Sequence[np.ndarray], log: Any
) -> float:
    """Records the metrics on test and validation rows; returns the test accuracy."""
    test, validation = _metrics(cell, predictions)
    if not np.isfinite([*test.values(), *validation.values()]).all():
        raise RunError(
            f"{now.where}: predictions are NaN or infinite after step {network.best_step}; a "
            "lower learning rate or inputs of ordinary size (standardised) usually help"
        )
    log.record(
        {
            "event": "evaluated",
            "round": now.number,
            "labels": len(now.rows),
            "test": test,
            "validation": validation,
        }
    )
    return test["accuracy"]


def _metrics(
    cell: _Cell, predictions: Sequence[np.ndarray]
) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics on test and validation rows, averaged over posterior samples and, with
    the suffix "_mean", with dropout off."""
    context, splits = cell.context, cell.splits
    found: tuple[dict[str, float], dict[str, float]] = ({}, {})
    end = len(splits.test)
    test_labels = np.asarray(context.dataset.labels)[splits.test]
    parts = (slice(0, end), test_labels), (slice(end, None), cell.validation[1])
    for suffix, log_probs in zip(("", "_mean"), predictions, strict=True):
        for result, (part, labels) in zip(found, parts, strict=True):
            if len(labels):
                values = metrics.classification_metrics(log_probs[part], labels)._asdict()
                result.update(
                    {name + suffix: seven_digits(value) for name, value in values.items()}
                )
    return found


def _wanted(cell: _Cell, state: oracle.LabelState, now: _Now, log: Any) -> int:
    """How many labels to ask for in this round."""
    if log.upcoming and log.upcoming[0]["event"] == "query":
        # Asked under another budget, and not yet answered: it counts as it stands.
        return len(log.upcoming[0]["rows"])
    left = cell.context.budget - len(now.rows)
    return min(cell.context.config.acquisition_size, left, len(oracle.pool_rows(state)))


@contextlib.contextmanager
def _choosing(now: _Now) -> Iterator[None]:
    """Whatever the choice fails of is said with its place."""
    try:
        yield
    except (ValueError, ArithmeticError, ImportError) as error:
        raise RunError(f"{now.where}: {error}") from error


def _collected(
    cell: _Cell, now: _Now, situation: providers.Situation, known: Mapping[str, Any]
) -> Candidates:
    with _choosing(now):
        found = providers.collect(now.keys.score, now.keys.provide, situation, cell.strategy, known)
        return jax.block_until_ready(found)  # or the choice would be charged for it


def _ask(
    cell: _Cell, now: _Now, candidates: Candidates, state: oracle.LabelState, wanted: int, log: Any
) -> tuple[oracle.LabelState, oracle.Query]:
    """Chooses `wanted` rows and records the query."""
    size = cell.context.config.acquisition_size
    with _choosing(now):
        selection = select_batch(cell.strategy, now.keys.select, candidates, batch_size=size)
        selection = Selection(*(np.asarray(field)[:wanted] for field in selection))
        picked = acquire(selection, candidates)
    scores = [seven_digits(x) for x in selection.scores[selection.valid]]
    asked, query = oracle.ask(state, picked, scores, round=now.number)
    logged = log.record(oracle.query_event(query, selection.filler[selection.valid]))
    if logged["rows"] != query.rows.tolist():
        # Logged in another environment, whose last bits differed: that query counts.
        asked, query = oracle.ask(state, logged["rows"], logged["scores"], round=now.number)
    return asked, query


def _situation(cell: _Cell, now: _Now, network: Network, pool: np.ndarray) -> providers.Situation:
    context = cell.context
    subset = pool_subset(cell.seed, now.number, pool, context.config.pool_size)
    rule = posteriors.make_posterior(context.config.posterior)
    return providers.Situation(
        model=context.model,
        variables=network.variables,
        posterior=network.posterior,
        source=context.dataset.images,
        num_samples=rule.num_samples(context.config.num_samples),
        # Padded before scoring: a pool that shrinks is no new shape.
        rows=pad_rows(subset, cell.pool_capacity),
        mask=np.arange(cell.pool_capacity) < len(subset),
        pool=pool,
        test=cell.splits.test,
        labelled_rows=now.rows,
        labels=now.labels,
        capacity=cell.capacity(len(now.rows)),
        optimizer=context.optimizer,
        fit=context.config.fit,
    )
