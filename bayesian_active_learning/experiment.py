"""The driver: rounds of fit, evaluate, score, acquire, for seeds and functions in pairs.

A loop over pure `ask` and `tell`; the only module that sees everything. Functions
with one seed share splits, initial parameters and training keys, so that they are
compared in pairs. Everything that happened is in an event log, which alone is enough
to go on after an interruption: a round that was cut off is made again from its keys.
"""

import contextlib
import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from bayesian_active_learning import history as history_
from bayesian_active_learning import inference, metrics, oracle, parameters, training
from bayesian_active_learning.acquisition_functions import acquire, make_strategy
from bayesian_active_learning.data_utils import Dataset, Splits, make_splits, pool_subset
from bayesian_active_learning.models import MODELS
from bayesian_active_learning.types import Candidates, Key, Model, Selection, Strategy, Variables
from bayesian_active_learning.utils import check_one_of, check_positive, pad_rows, round_up

PARAMETERS = "params.npz"  # in a cell's directory, on request
CAPACITY_STEP = 128  # the labelled set's buffer grows by this much


class Config(NamedTuple):
    """The identity of a run: with the data and the seed, what its results depend on.

    The label budget, the seeds and the functions are no part of it: they can be
    extended later.
    """

    model: str = "convnet"
    num_initial_per_class: int = 2
    num_validation: int = 100
    acquisition_size: int = 10
    num_samples: int = 100  # K for scoring the pool
    num_test_samples: int = 20  # K for test and validation
    pool_size: int = 2000  # random subset of the pool scored each round, 0 = all of it
    learning_rate: float = 2e-3  # of Adam, at the first step
    warm_start: bool = False  # go on from the last round's parameters instead of fresh ones
    fit: training.FitConfig = training.FitConfig()


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


class RunError(RuntimeError):
    """A run that cannot go on, with its function, seed and round. Its log is intact."""


class Keys(NamedTuple):
    """The keys of one round, for each use one."""

    fit: Key
    evaluate: Key
    score: Key
    select: Key


class _Context(NamedTuple):
    """What all cells of a run have in common."""

    config: Config
    dataset: Dataset
    model: Model
    optimizer: optax.GradientTransformation
    oracle: oracle.Oracle
    budget: int
    save_parameters: bool


def round_keys(seed: int, round: int) -> Keys:
    """Keys by (seed, round) only: the same for every acquisition function.

    The root is folded by round, a round's key only split: folding and splitting one
    key would collide. threefry, since under `vmap` the faster `rbg` uses one key for all.
    """
    root = jax.random.key(seed, impl="threefry2x32")
    return Keys(*jax.random.split(jax.random.fold_in(root, round), len(Keys._fields)))


def identity(config: Config, dataset: Dataset, splits: Splits | None = None) -> dict[str, Any]:
    """What a run directory is named by and refuses to change: plain JSON values."""
    facts = {
        "dataset": dataset.name,
        "content_hash": dataset.content_hash,
        "scaling": dataset.scaling,
        **settings(config),
    }
    if splits is not None:
        facts["splits"] = {name: rows.tolist() for name, rows in splits._asdict().items()}
    return facts


def settings(config: Config) -> dict[str, Any]:
    """The part of the identity that does not come from the data."""
    return {**config._asdict(), "fit": config.fit._asdict()}


@functools.lru_cache(maxsize=8)
def _model(name: str, num_classes: int) -> Model:
    return MODELS[name](num_classes)


@functools.lru_cache(maxsize=8)
def _adam(learning_rate: float) -> optax.GradientTransformation:
    return optax.adam(learning_rate)


@functools.lru_cache(maxsize=64)
def _jitted(select: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(select, static_argnames="batch_size")


def check_config(config: Config) -> None:
    """Raises ValueError on values that cannot work, before anything is compiled."""
    check_one_of("model", config.model, MODELS)
    check_positive(
        acquisition_size=config.acquisition_size,
        num_samples=config.num_samples,
        num_test_samples=config.num_test_samples,
        learning_rate=config.learning_rate,
    )
    for name in ("num_initial_per_class", "num_validation", "pool_size"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must not be negative, got {getattr(config, name)}")
    training.check_config(config.fit)
    if not math.isfinite(config.learning_rate):
        raise ValueError(f"learning_rate must be finite, got {config.learning_rate}")
    if config.fit.monitor != "none" and not config.num_validation:
        raise ValueError(f"monitor {config.fit.monitor!r} needs num_validation above 0")


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

    Raises:
      ValueError: bad settings, a budget below the initial set (HistoryError, a subclass:
        a directory that holds another run, or cannot be written).
      RunError: training diverged; names function, seed and round.
    """
    check_config(config)
    check_positive(labels=labels)
    if min(seeds, default=0) < 0:
        raise ValueError(f"a seed must not be negative, got {', '.join(map(str, seeds))}")
    if not acquisitions or not seeds:
        raise ValueError("at least one acquisition function and one seed are needed")
    for what, given in (("an acquisition function", acquisitions), ("a seed", seeds)):
        if len(set(given)) < len(given):
            raise ValueError(f"{what} is given twice: {', '.join(map(str, given))}")
    chosen = {name: (strategies or {}).get(name) or make_strategy(name) for name in acquisitions}
    for name, strategy in chosen.items():
        missing = strategy.needs - {"scores", "log_probs"}
        if missing:
            raise ValueError(f"{name} needs {', '.join(sorted(missing))}, which is not provided")
        if "scores" in strategy.needs and strategy.score is None:
            raise ValueError(f"{name} needs scores, but has no score function to give them")

    context = _Context(
        config,
        dataset,
        *network(config, dataset),
        label_oracle or oracle.dataset_oracle(dataset.labels),
        labels,
        save_parameters,
    )
    cells = [(name, seed) for seed in seeds for name in acquisitions]
    sizes = {seed: splits or seed_splits(config, dataset, seed) for seed in seeds}
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
    rounds = {seed: _num_rounds(config, found, labels) for seed, found in sizes.items()}
    total, done = sum(rounds[seed] for _, seed in cells), 0
    if directory is not None:
        history_.open_run(
            directory,
            identity(config, dataset, splits),
            history_.environment(),
            fresh=fresh,
            allow_other_environment=allow_other_environment,
        )
    curves = {}
    for name, seed in cells:
        report = None if on_round is None else _Report(on_round, name, seed, labels, done, total)
        with _cell(directory, name, seed, allow_other_environment) as (log, clock):
            _run_cell(context, name, chosen[name], seed, sizes[seed], log, clock, report)
            curves[name, seed] = history_.curve_from_events(log.events)
        done += rounds[seed]
    if directory is not None:
        return history_.read_history(directory)
    return history_.History({"identity": identity(config, dataset, splits)}, curves)


def network(config: Config, dataset: Dataset) -> tuple[Model, optax.GradientTransformation]:
    """Model and optimizer of a config: the same objects for equal settings, so that what
    was compiled for them is found again."""
    return _model(config.model, dataset.num_classes), _adam(config.learning_rate)


def random_labelled(splits: Splits, seed: int, count: int) -> np.ndarray:
    """The initial rows and random rows of the pool, `count` in all: for studies that need
    a labelled set and no acquisition function."""
    extra = max(0, count - len(splits.initial))
    drawn = pool_subset(seed, 0, splits.pool, extra) if extra else splits.pool[:0]
    return np.concatenate([splits.initial, drawn])


def seed_splits(config: Config, dataset: Dataset, seed: int) -> Splits:
    """The rows that `run` uses for a seed, the same for every acquisition function."""
    return make_splits(
        seed,
        dataset.labels,
        dataset.train_rows,
        dataset.test_rows,
        num_classes=dataset.num_classes,
        num_initial_per_class=config.num_initial_per_class,
        num_validation=config.num_validation,
    )


def _num_rounds(config: Config, splits: Splits, budget: int) -> int:
    missing = min(budget - len(splits.initial), len(splits.pool))
    return 1 + -(-missing // config.acquisition_size)


class _Report(NamedTuple):
    """From what a cell knows to what `on_round` is told."""

    on_round: Callable[[Progress], object]
    acquisition: str
    seed: int
    budget: int
    before: int  # rounds of the cells before this one
    total: int

    def __call__(self, round: int, labels: int, accuracy: float) -> None:
        done = min(self.before + round + 1, self.total)
        self.on_round(
            Progress(
                self.acquisition, self.seed, round, labels, self.budget, accuracy, done, self.total
            )
        )


class _MemoryLog:
    """`EventLog` without a file."""

    def __init__(self) -> None:
        self.events: tuple[Mapping[str, Any], ...] = ()
        self.upcoming: tuple[Mapping[str, Any], ...] = ()

    def record(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        self.events = (*self.events, event)
        return event


class _Clock:
    """Seconds by round and phase, in a file of their own: results must not differ by them."""

    def __init__(self, path: str | os.PathLike | None):
        self._path, self._started = path, time.perf_counter()

    def lap(self, round: int, phase: str) -> None:
        now = time.perf_counter()
        line = json.dumps({"round": round, "phase": phase, "seconds": now - self._started})
        self._started = now
        if self._path is not None:
            with contextlib.suppress(OSError), open(self._path, "a", encoding="utf-8") as file:
                file.write(line + "\n")


@contextlib.contextmanager
def _cell(directory: Any, name: str, seed: int, trust_log: bool) -> Iterator[tuple[Any, _Clock]]:
    if directory is None:
        yield _MemoryLog(), _Clock(None)
        return
    place = history_.cell_directory(directory, name, seed)
    with (
        history_.cell_lock(place),
        history_.EventLog(place / history_.LOG, trust_log=trust_log) as log,
    ):
        yield log, _Clock(place / history_.CLOCK)


def _run_cell(
    context: _Context,
    name: str,
    strategy: Strategy,
    seed: int,
    splits: Splits,
    log: Any,
    clock: _Clock,
    report: _Report | None,
) -> None:
    config, dataset = context.config, context.dataset
    place = None if isinstance(log, _MemoryLog) else log.path.parent / PARAMETERS
    if _is_finished(log.events, context.budget):
        if place is None or place.exists() or not context.save_parameters:
            return
    elif place is not None:
        place.unlink(missing_ok=True)  # of a round that will not be the last one
    everything = np.concatenate([splits.initial, splits.pool])
    state = oracle.init(len(dataset.labels), dataset.num_classes, everything)
    first, count = history_.resume_point(log.events)
    if count:
        state = oracle.replay(log.events[:count], state)
        log.skip(count)
    else:
        answers = np.asarray(context.oracle(splits.initial))
        state = oracle.tell(state, oracle.INITIAL, splits.initial, answers)
        log.record(oracle.labels_event(0, oracle.INITIAL, splits.initial, answers))

    # Shapes that stay the same from round to round.
    pool_capacity = min(config.pool_size or len(splits.pool), len(splits.pool))
    capacity = round_up(context.budget, CAPACITY_STEP)
    held_out = _HeldOut.read(dataset, splits)
    variables: Variables | None = None
    if config.warm_start and first:
        # Parameters are no part of the log; the rounds behind us are fitted again.
        variables = _refit(context, seed, log.events[:count], first, held_out, capacity)
    number = first
    while True:
        keys = round_keys(seed, number)
        rows, labels = oracle.labelled(state)
        where = f"{name}, seed {seed}, round {number}"
        result = _fit(context, keys.fit, rows, labels, variables, held_out, capacity, where)
        variables = result.variables if config.warm_start else None
        fitted = {"steps": result.steps, "best_step": result.best_step}
        log.record(
            {"event": "fitted", "round": number, "labels": len(rows), **fitted}
            | {"train_loss": _short(result.train_loss)}
        )
        clock.lap(number, "fit")
        test, validation = _evaluate(context, keys.evaluate, result.variables, splits, held_out)
        if not np.isfinite([*test.values(), *validation.values()]).all():
            raise RunError(
                f"{where}, {len(rows)} labels: predictions are NaN or infinite after step "
                f"{result.best_step}; a lower learning rate or inputs of ordinary size "
                "(standardised) usually help"
            )
        evaluated = {"event": "evaluated", "round": number, "labels": len(rows)}
        log.record(evaluated | {"test": test, "validation": validation})
        clock.lap(number, "evaluate")
        if report is not None:
            report(number, len(rows), test["accuracy"])
        pool = oracle.pool_rows(state)
        wanted = min(config.acquisition_size, context.budget - len(rows), len(pool))
        if log.upcoming and log.upcoming[0]["event"] == "query":
            # Asked under another budget, and not yet answered: it counts as it stands.
            wanted = len(log.upcoming[0]["rows"])
        if wanted <= 0:
            if context.save_parameters and place is not None:
                with history_.writing(place):
                    parameters.save_variables(place, result.variables)
            return
        candidates = _candidates(
            context, keys.score, strategy, result.variables, seed, number, pool, pool_capacity
        )
        select = strategy.select if strategy.host else _jitted(strategy.select)
        selection = select(keys.select, candidates, batch_size=config.acquisition_size)
        selection = Selection(*(np.asarray(field)[:wanted] for field in selection))
        try:
            picked = acquire(selection, candidates)
        except ValueError as error:
            raise RunError(f"{where}: {error}") from error
        scores = [_short(x) for x in selection.scores[selection.valid]]
        asked, query = oracle.ask(state, picked, scores, round=number)
        logged = log.record(oracle.query_event(query, selection.filler[selection.valid]))
        if logged["rows"] != query.rows.tolist():
            # Logged in another environment, whose last bits differed: that query counts.
            asked, query = oracle.ask(state, logged["rows"], logged["scores"], round=number)
        state = asked
        clock.lap(number, "acquire")
        answers = np.asarray(context.oracle(query.rows))
        state = oracle.tell(state, query.id, query.rows, answers)
        log.record(oracle.labels_event(number, query.id, query.rows, answers))
        number += 1


def _is_finished(events: Sequence[Mapping[str, Any]], budget: int) -> bool:
    """Whether some round was evaluated with enough labels, be it under a larger budget."""
    return any(event["event"] == "evaluated" and event["labels"] >= budget for event in events)


class _HeldOut(NamedTuple):
    """Validation inputs and labels, and the labels to evaluate with."""

    inputs: np.ndarray  # [V, ...]
    labels: np.ndarray  # [V]
    test_labels: np.ndarray  # [M]

    @classmethod
    def read(cls, dataset: Dataset, splits: Splits) -> "_HeldOut":
        validation = np.asarray(dataset.images[splits.validation])
        labels = np.asarray(dataset.labels)
        return cls(validation, labels[splits.validation], labels[splits.test])


def _fit(
    context: _Context,
    key: Key,
    rows: np.ndarray,
    labels: np.ndarray,
    variables: Variables | None,
    held_out: _HeldOut,
    capacity: int,
    where: str,
) -> training.FitResult:
    monitored = context.config.fit.monitor != "none"
    try:
        return training.fit(
            key,
            context.model,
            context.optimizer,
            context.dataset.images,
            rows,
            labels,
            config=context.config.fit,
            variables=variables,
            validation=(held_out.inputs, held_out.labels) if monitored else None,
            capacity=max(capacity, round_up(len(rows), CAPACITY_STEP)),
        )
    except training.TrainingDiverged as error:
        raise RunError(f"{where}, {len(rows)} labels: {error}") from error


def _refit(
    context: _Context,
    seed: int,
    events: Sequence[Mapping[str, Any]],
    first: int,
    held_out: _HeldOut,
    capacity: int,
) -> Variables | None:
    """The parameters that a warm-started run had before round `first`."""
    variables = None
    state = oracle.init(
        len(context.dataset.labels),
        context.dataset.num_classes,
        np.arange(len(context.dataset.labels)),
    )
    rounds: dict[int, list[Mapping[str, Any]]] = {}
    for event in events:
        key = -1 if event.get("query") == oracle.INITIAL else event["round"]
        rounds.setdefault(key, []).append(event)
    for number in range(first):
        state = oracle.replay(rounds.get(number - 1, []), state)
        rows, labels = oracle.labelled(state)
        key = round_keys(seed, number).fit
        where = f"seed {seed}, round {number} (made again for a warm start)"
        variables = _fit(context, key, rows, labels, variables, held_out, capacity, where).variables
    return variables


def _evaluate(
    context: _Context, key: Key, variables: Variables, splits: Splits, held_out: _HeldOut
) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics on test and validation rows, averaged over posterior samples and, with
    the suffix "_mean", with dropout off."""
    posteriors = [
        inference.mc_dropout(context.model, variables),
        inference.deterministic(context.model, variables),
    ]
    rows = np.concatenate([splits.test, splits.validation])
    num_samples = [context.config.num_test_samples, 1]
    predictions = inference.predict(
        key, posteriors, context.dataset.images, rows, num_samples=num_samples
    )
    found: tuple[dict[str, float], dict[str, float]] = ({}, {})
    end = len(splits.test)
    parts = (slice(0, end), held_out.test_labels), (slice(end, None), held_out.labels)
    for suffix, log_probs in zip(("", "_mean"), predictions, strict=True):
        for result, (part, labels) in zip(found, parts, strict=True):
            if len(labels):
                values = metrics.classification_metrics(log_probs[part], labels)._asdict()
                result.update({name + suffix: _short(value) for name, value in values.items()})
    return found


def _candidates(
    context: _Context,
    key: Key,
    strategy: Strategy,
    variables: Variables,
    seed: int,
    number: int,
    pool: np.ndarray,
    capacity: int,
) -> Candidates:
    """The rows to choose from and what `strategy` needs to know of them, padded."""
    config, source = context.config, context.dataset.images
    rows = pool_subset(seed, number, pool, config.pool_size)
    mask = np.arange(capacity) < len(rows)
    rows = pad_rows(rows, capacity)  # before scoring: a pool that shrinks is no new shape
    posterior = inference.mc_dropout(context.model, variables)
    found: dict[str, np.ndarray] = {}
    if "scores" in strategy.needs:
        assert strategy.score is not None
        (found["scores"],) = inference.score_pool(
            key, posterior, source, rows, [strategy.score], num_samples=config.num_samples
        )
    if "log_probs" in strategy.needs:
        found["log_probs"] = inference.log_probs(
            key, posterior, source, rows, num_samples=config.num_samples
        )
    return Candidates(rows=rows, mask=mask, **found)


def _short(value: Any) -> float:
    """Seven significant digits: all that float32 has, and 0.9 instead of 0.89999998."""
    return float(f"{float(value):.7g}")
