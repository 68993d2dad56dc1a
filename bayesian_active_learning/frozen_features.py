"""Active learning on frozen features: whole runs in one compiled program.

Where an encoder is given and stays as it is, only a logistic head is left to fit: exactly,
by Newton's method, with its Laplace posterior (`posteriors.logistic`). A round then costs
milliseconds, and many paired seeds fit on a laptop. Splits, keys, strategies and files are those
of `experiment.run`, which trains networks.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayesian_active_learning import history as history_
from bayesian_active_learning import metrics, oracle, protocol, providers
from bayesian_active_learning.acquisition_functions import (
    STRATEGIES,
    UPPER_BOUNDS,
    check_samples,
    make_strategy,
)
from bayesian_active_learning.data_utils import Dataset, Splits
from bayesian_active_learning.models import linear
from bayesian_active_learning.posteriors.logistic import (
    LogisticFit,
    fit_logistic,
    sample_logistic,
)
from bayesian_active_learning.precision import full_precision
from bayesian_active_learning.rounds import RunError
from bayesian_active_learning.types import Array, Candidates, Key, Selection, Strategy
from bayesian_active_learning.utils import check_positive, seven_digits

MAX_BYTES = 2**31


class FrozenConfig(NamedTuple):
    """What the results depend on, with the data and the seed.

    The two precisions and `bias` were chosen on training rows of MNIST's SimCLR features that no
    run may ask for; they hold for features of mean squared norm 1 (`data_utils.unit_norm`).
    """

    num_initial_per_class: int = 2  # times classes: rows in the initial set
    initial: str = "typiclust"  # by the features alone; or "balanced", which looks at labels
    initial_pool_size: int = 2000  # random rows that the initial set is chosen from, 0 = all
    acquisition_size: int = 1
    pool_size: int = 1000  # rows scored each round, 0 = the whole pool
    num_samples: int = 64  # K for scoring
    num_test_samples: int = 0  # K for test rows; 0 = the head at its mode
    prior_precision: float = 0.03  # of the head's weights, for their mode
    posterior_precision: float = 1.0  # and for the posterior around it
    bias: float = 0.1  # the constant feature: the smaller, the narrower the prior of the bias
    num_initial: int = 0  # rows of a cold start; 0 = as many as num_initial_per_class makes


PROVIDED = frozenset(
    {
        "scores",
        "log_probs",
        "predictions",
        "features",
        "input_gradients",
        "labels",
        "labelled_mask",
        "labelled_labels",
        "labelled_scores",
        "labelled_predictions",
        "labelled_features",
        "target_log_probs",
        "target_labels",
    }
)
"""Fields of `Candidates` that strategies may need here. Labels are for upper bounds alone."""


def run(
    config: FrozenConfig,
    dataset: Dataset,
    acquisitions: Sequence[str] = ("margin", "random"),
    seeds: Sequence[int] = (0,),
    *,
    labels: int = 80,
    directory: str | os.PathLike | None = None,
    strategies: Mapping[str, Strategy] | None = None,
    on_cell: Callable[[int, int], object] | None = None,
    fresh: bool = False,
    allow_other_environment: bool = False,
) -> history_.History:
    """Runs every acquisition function with every seed, in pairs, and returns what happened.

    Each round scores the next `pool_size` rows of one random order of the pool. Test metrics are
    those of the head at its mode; or, with `num_test_samples`, of the mean prediction of so
    many posterior samples, and then those at the mode have the suffix "_mean".

    Args:
      config: see `FrozenConfig`.
      dataset: features `[N, D]`, best of mean squared norm 1 (`data_utils.unit_norm`).
      acquisitions: names as for `make_strategy`, and "greedy_oracle".
      seeds: each is one split, one initial set, one key tree.
      labels: budget, the initial set included.
      directory: where event logs are left. Finished cells are not made again; a cell that
        ends below `labels` is made anew as a whole.
      strategies: more strategies by name, looked up before the library's own.
      on_cell: called with (cells behind us, cells in all).
      fresh: delete an earlier run in `directory` first.
      allow_other_environment: go on although packages or machine have changed.

    Raises:
      ValueError: bad settings, inputs that are no features, strategies that cannot run here
        (HistoryError, a subclass: `directory` holds another run, or cannot be written).
      RunError: a strategy picks NaN; names function, seed and round.
    """
    _check(config, dataset, labels)
    protocol.check_cells(acquisitions, seeds)
    table = {**STRATEGIES, **UPPER_BOUNDS}
    chosen = {
        name: (strategies or {}).get(name) or make_strategy(name, table) for name in acquisitions
    }
    for name, strategy in chosen.items():
        providers.check_provided(
            strategy,
            name,
            provided=PROVIDED,
            otherwise="which frozen features with a logistic head do not give; "
            "experiments.mnist_bald takes them too (--dataset npz:PATH)",
        )
        check_samples(name, config.num_samples, strategy.score)
    splits = {seed: _splits(config, dataset, seed) for seed in seeds}
    for found in splits.values():
        _check_sizes(config, found, labels)
    for name, strategy in chosen.items():
        providers.check_applicable(
            name,
            strategy,
            linear(dataset.num_classes),
            dataset.images,
            num_classes=dataset.num_classes,
            num_samples=config.num_samples,
            num_candidates=max(_num_candidates(config, found) for found in splits.values()),
            capacity=labels,
            batch_size=config.acquisition_size,
        )
    facts = identity(config, dataset)
    if directory is not None:
        history_.open_run(
            directory,
            facts,
            history_.environment(),
            fresh=fresh,
            allow_other_environment=allow_other_environment,
        )
    data = _arrays(config, dataset)
    cells = [(name, seed) for seed in seeds for name in acquisitions]
    curves = {}
    for done, (name, seed) in enumerate(cells, start=1):
        curves[name, seed] = _cell(
            name,
            seed,
            chosen[name],
            splits[seed],
            config=config,
            dataset=dataset,
            data=data,
            budget=labels,
            directory=directory,
        )
        if on_cell is not None:
            on_cell(done, len(cells))
    if directory is not None:
        return history_.read_history(directory)
    return history_.History({"identity": facts}, curves)


def identity(config: FrozenConfig, dataset: Dataset) -> dict[str, Any]:
    """What a run directory is named by and refuses to change: plain JSON values."""
    settings = config._asdict()
    if not config.num_initial:  # younger than some runs, which go on
        del settings["num_initial"]
    return {
        "dataset": dataset.name,
        "content_hash": dataset.content_hash,
        "scaling": dataset.scaling,
        "model": "logistic",
        "posterior": "laplace",
        "num_validation": 0,
        **settings,
    }


class _Data(NamedTuple):
    """On the device, the same for all cells."""

    inputs: Array  # [T, D + 1], all rows, with the constant feature
    labels: Array  # [T]
    test: Array  # rows


class _Plan(NamedTuple):
    """What a seed fixes: orders of rows, and keys for all rounds."""

    pool: Array  # in random order
    targets: Array  # pool and test, each in random order, or whatever is not needed empty
    keys: protocol.Keys  # each [R + 1]


class _Record(NamedTuple):
    """What a round leaves; of all rounds together, with a leading axis."""

    selection: Selection
    test: dict[str, Array]
    steps: Array


def _check(config: FrozenConfig, dataset: Dataset, labels: int) -> None:
    check_positive(
        labels=labels,
        num_initial_per_class=config.num_initial_per_class,
        acquisition_size=config.acquisition_size,
        num_samples=config.num_samples,
        prior_precision=config.prior_precision,
        posterior_precision=config.posterior_precision,
    )
    for name in ("num_initial", "pool_size", "initial_pool_size", "num_test_samples", "bias"):
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name} must not be negative, got {getattr(config, name)}")
    protocol.check_initial(config.initial, config.num_initial)
    if len(dataset.images.shape) != 2:
        raise ValueError(
            f"expected features [N, D], got inputs {list(dataset.images.shape)}; images are for "
            "experiments.mnist_bald, or first for an encoder"
        )
    needed = 4 * 6 * dataset.num_classes * labels**2
    if needed > MAX_BYTES:
        raise ValueError(
            f"{labels:,} labels of {dataset.num_classes} classes need about {needed:,} bytes for "
            f"matrices of labelled by labelled rows, above {MAX_BYTES:,}"
        )


def _check_sizes(config: FrozenConfig, splits: Splits, labels: int) -> None:
    if labels < len(splits.initial):
        raise ValueError(
            f"the budget of {labels} labels is smaller than the initial set of "
            f"{len(splits.initial)}"
        )
    wanted = labels - len(splits.initial)
    if wanted > len(splits.pool):
        raise ValueError(f"the budget asks for {wanted} more labels, the pool has no such number")
    # Rows that are scored may have been labelled before; the rest must fill a batch.
    if 0 < config.pool_size < min(wanted, len(splits.pool)):
        raise ValueError(
            f"pool_size must be at least {wanted}, the labels asked for in all, or 0 for the "
            f"whole pool; got {config.pool_size}"
        )


def _splits(config: FrozenConfig, dataset: Dataset, seed: int) -> Splits:
    """As `experiment.run` would make them."""
    settings = protocol.Config(
        num_initial_per_class=config.num_initial_per_class,
        num_validation=0,
        pool_size=config.initial_pool_size,
        initial=config.initial,
        num_initial=config.num_initial,
    )
    return protocol.seed_splits(settings, dataset, seed)


def _num_candidates(config: FrozenConfig, splits: Splits) -> int:
    return min(config.pool_size or len(splits.pool), len(splits.pool))


def _arrays(config: FrozenConfig, dataset: Dataset) -> _Data:
    features = np.asarray(dataset.images[:], np.float32)
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise ValueError(f"features must be finite; row {row} is not")
    inputs = np.column_stack([features, np.full(len(features), config.bias, np.float32)])
    return _Data(jnp.asarray(inputs), jnp.asarray(dataset.labels), jnp.asarray(dataset.test_rows))


def _plan(
    config: FrozenConfig, strategy: Strategy, splits: Splits, seed: int, num_rounds: int
) -> _Plan:
    before = protocol.round_keys(seed, protocol.BEFORE_ROUND_0)
    order = providers.draw_rows(before.score, splits.pool, len(splits.pool))
    targets = splits.pool[:0]
    if strategy.needs & {"target_log_probs", "target_labels"}:
        rows = splits.pool if providers.setting(strategy, "targets") == "pool" else splits.test
        targets = providers.draw_rows(before.provide, rows, len(rows))
    keys = [protocol.round_keys(seed, number) for number in range(num_rounds + 1)]
    return _Plan(
        jnp.asarray(order, jnp.int32),
        jnp.asarray(targets, jnp.int32),
        jax.tree.map(lambda *each: jnp.stack(each), *keys),
    )


def _cell(
    name: str,
    seed: int,
    strategy: Strategy,
    splits: Splits,
    *,
    config: FrozenConfig,
    dataset: Dataset,
    data: _Data,
    budget: int,
    directory: str | os.PathLike | None,
) -> history_.Curve:
    path = None
    if directory is not None:
        path = pathlib.Path(history_.cell_directory(directory, name, seed)) / history_.LOG
        if path.exists():
            curve = history_.curve_from_events(history_.read_events(path))
            if len(curve.labels) and curve.labels[-1] >= budget:
                return curve
    count = len(splits.initial)
    num_rounds = -(-(budget - count) // config.acquisition_size)
    plan = _plan(config, strategy, splits, seed, num_rounds)
    shape = _Shape(
        config,
        dataset.num_classes,
        _num_candidates(config, splits),
        min(providers.setting(strategy, "num_targets"), len(plan.targets)),
    )
    rows = np.zeros(budget, np.int32)
    rows[:count] = splits.initial
    if strategy.host:
        record = _rounds_on_host(strategy, shape, data, plan, rows, count)
    else:
        record = _rounds(strategy, shape, data, plan, jnp.asarray(rows), jnp.int32(count))
    record = jax.tree.map(np.asarray, record)
    events = _events(record, dataset, splits.initial, budget, f"{name}, seed {seed}")
    if path is not None:
        with history_.cell_lock(path.parent):
            history_.write_events(path, events)
    return history_.curve_from_events(events)


class _Shape(NamedTuple):
    """Static under `jit`."""

    config: FrozenConfig
    num_classes: int
    num_candidates: int
    num_targets: int


def _prepare(
    strategy: Strategy,
    shape: _Shape,
    data: _Data,
    plan: _Plan,
    rows: Array,
    count: Array,
    step: Array,
) -> tuple[dict[str, Array], Array, Candidates]:
    """Fits the head on `rows[:count]`; its test metrics, Newton steps and the candidates."""
    config = shape.config
    keys = jax.tree.map(lambda each: each[step], plan.keys)
    mask = jnp.arange(len(rows)) < count
    fit = fit_logistic(
        data.inputs[rows],
        data.labels[rows],
        mask,
        num_classes=shape.num_classes,
        prior_precision=config.prior_precision,
        posterior_precision=config.posterior_precision,
    )
    test = _evaluate(keys.evaluate, fit, data, config.num_test_samples)

    order = (step * shape.num_candidates + jnp.arange(shape.num_candidates)) % len(plan.pool)
    candidates = plan.pool[order]
    left = ~jnp.any((candidates[:, None] == rows) & mask, axis=1)
    samples = sample_logistic(keys.score, fit, config.num_samples)
    place = (step * shape.num_targets + jnp.arange(shape.num_targets)) % max(1, len(plan.targets))

    def log_probs(of: Array) -> Array:
        logits = jnp.einsum("nd,kdc->nkc", data.inputs[of], samples)
        return jax.nn.log_softmax(logits)

    def predictions(of: Array) -> Array:
        return jax.nn.log_softmax(data.inputs[of] @ fit.weights)

    def score(of: Array) -> Array:
        assert strategy.score is not None
        return strategy.score(log_probs(of))

    def input_gradients() -> Array:
        probs = jnp.exp(predictions(candidates))
        error = probs - jax.nn.one_hot(jnp.argmax(probs, axis=1), shape.num_classes)
        return jnp.sum(jnp.abs(error @ fit.weights[:-1].T), axis=1)

    provide: dict[str, Callable[[], Array]] = {
        "scores": lambda: score(candidates),
        "log_probs": lambda: log_probs(candidates),
        "predictions": lambda: predictions(candidates),
        "features": lambda: data.inputs[candidates, :-1],
        "input_gradients": input_gradients,
        "labels": lambda: data.labels[candidates],
        "labelled_mask": lambda: mask,
        "labelled_labels": lambda: jnp.where(mask, data.labels[rows], 0),
        "labelled_scores": lambda: score(rows),
        "labelled_predictions": lambda: predictions(rows),
        "labelled_features": lambda: data.inputs[rows, :-1],
        "target_log_probs": lambda: log_probs(plan.targets[place]),
        "target_labels": lambda: data.labels[plan.targets[place]],
    }
    given = {need: provide[need]() for need in sorted(strategy.needs)}
    return test, fit.steps, Candidates(rows=candidates, mask=left, **given)


def _evaluate(key: Key, fit: LogisticFit, data: _Data, num_samples: int) -> dict[str, Array]:
    inputs, labels = data.inputs[data.test], data.labels[data.test]
    at_mode = metrics.classification_metrics(jax.nn.log_softmax(inputs @ fit.weights), labels)
    if not num_samples:
        return at_mode._asdict()
    samples = sample_logistic(key, fit, num_samples)
    log_probs = jax.nn.log_softmax(jnp.einsum("nd,kdc->nkc", inputs, samples))
    found = metrics.classification_metrics(metrics.mc_log_probs(log_probs), labels)
    mode = {f"{name}_mean": value for name, value in at_mode._asdict().items()}
    return found._asdict() | mode


def _advance(rows: Array, count: Array, picked: Array) -> tuple[Array, Array]:
    """The labelled rows with those just picked; what is beyond the budget is dropped."""
    places = count + jnp.arange(len(picked))
    rows = rows.at[places].set(picked, mode="drop")
    return rows, jnp.minimum(count + len(picked), len(rows))


@functools.partial(jax.jit, static_argnums=(0, 1))
@full_precision
def _rounds(
    strategy: Strategy, shape: _Shape, data: _Data, plan: _Plan, rows: Array, count: Array
) -> _Record:
    size = shape.config.acquisition_size

    def round_(carry: tuple[Array, Array], step: Array) -> tuple[tuple[Array, Array], _Record]:
        test, steps, candidates = _prepare(strategy, shape, data, plan, *carry, step)
        selection = strategy.select(plan.keys.select[step], candidates, batch_size=size)
        picked = jnp.asarray(candidates.rows)[selection.positions]
        found = selection._replace(positions=picked)
        return _advance(*carry, picked), _Record(found, test, steps)

    _, record = jax.lax.scan(round_, (rows, count), jnp.arange(len(plan.keys.select)))
    return record


_prepare_jitted = jax.jit(full_precision(_prepare), static_argnums=(0, 1))


def _rounds_on_host(
    strategy: Strategy, shape: _Shape, data: _Data, plan: _Plan, rows: np.ndarray, count: int
) -> _Record:
    """`_rounds` for strategies that cannot be compiled: a solver, a clustering library."""
    size = shape.config.acquisition_size
    known, number = jnp.asarray(rows), jnp.int32(count)
    records = []
    for step in range(len(plan.keys.select)):
        test, steps, candidates = _prepare_jitted(
            strategy, shape, data, plan, known, number, jnp.int32(step)
        )
        candidates = jax.tree.map(np.asarray, candidates)
        selection = strategy.select(plan.keys.select[step], candidates, batch_size=size)
        picked = np.asarray(candidates.rows)[np.asarray(selection.positions)]
        known, number = _advance(known, number, jnp.asarray(picked))
        records.append(_Record(selection._replace(positions=picked), test, steps))
    return jax.tree.map(lambda *each: np.stack([np.asarray(one) for one in each]), *records)


def _events(
    record: _Record, dataset: Dataset, initial: np.ndarray, budget: int, where: str
) -> list[dict[str, Any]]:
    """The log of a cell, as `experiment.run` writes it. Positions of the record are rows."""
    everything = np.asarray(dataset.labels)
    state = oracle.init(len(everything), dataset.num_classes, dataset.train_rows)
    state = oracle.tell(state, oracle.INITIAL, initial, everything[initial])
    events = [oracle.labels_event(0, oracle.INITIAL, initial, everything[initial])]
    count = len(initial)
    for number, steps in enumerate(record.steps):
        measured = {name: seven_digits(values[number]) for name, values in record.test.items()}
        if not np.isfinite(list(measured.values())).all():
            raise RunError(f"{where}, round {number}, {count} labels: metrics are not finite")
        place = {"round": number, "labels": count}
        events.append({"event": "fitted", **place, "steps": int(steps)})
        events.append({"event": "evaluated", **place, "test": measured, "validation": {}})
        if count == budget:
            break
        rows, scores, valid, filler = (field[number] for field in record.selection)
        wanted = min(len(rows), budget - count)
        if not valid[:wanted].all():
            raise RunError(f"{where}, round {number}, {count} labels: nothing is left to choose")
        bad = ~np.isfinite(scores[:wanted])
        if bad.any():
            raise RunError(
                f"{where}, round {number}, {count} labels: the scores of rows "
                f"{', '.join(map(str, rows[:wanted][bad].tolist()))} are NaN or infinite"
            )
        rows = rows[:wanted]
        state, query = oracle.ask(
            state, rows, [seven_digits(score) for score in scores[:wanted]], round=number
        )
        answers = everything[query.rows]
        state = oracle.tell(state, query.id, query.rows, answers)
        events.append(oracle.query_event(query, filler[:wanted]))
        events.append(oracle.labels_event(number, query.id, query.rows, answers))
        count += wanted
    return events
