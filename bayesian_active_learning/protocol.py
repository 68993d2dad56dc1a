"""The protocol of an experiment: its settings, and what follows from them and a seed."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from bayesian_active_learning import cold_start, posteriors, training
from bayesian_active_learning.data_utils import Dataset, Splits, make_splits, pool_subset
from bayesian_active_learning.models import MODELS, PRECISIONS, WITHOUT_DROPOUT, with_precision
from bayesian_active_learning.types import ArrayLike, Key, Model
from bayesian_active_learning.utils import check_one_of, check_positive

BEFORE_ROUND_0 = 2**32 - 1  # in the place of a round's number


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
    posterior: str = "mc_dropout"  # see posteriors.POSTERIORS
    initial: str = "balanced"  # over classes; or a strategy that looks at the inputs alone
    precision: str = "float32"  # of the network's matrix products, see models.with_precision
    num_initial: int = 0  # rows of a cold start; 0 = as many as num_initial_per_class makes


# Younger than some runs: at their defaults they are left out of the identity, so that
# those runs go on.
_YOUNGER = {
    "posterior": "mc_dropout",
    "initial": "balanced",
    "precision": "float32",
    "num_initial": 0,
}


class Keys(NamedTuple):
    """The keys of one round, for each use one."""

    fit: Key
    evaluate: Key
    score: Key
    select: Key
    provide: Key  # for what is drawn or trained for a strategy's needs
    posterior: Key  # for what is trained for the posterior alone


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
    values = {**config._asdict(), "fit": config.fit._asdict()}
    return {key: value for key, value in values.items() if _YOUNGER.get(key) != value}


def config_of(identity: Mapping[str, Any]) -> tuple[Config, Splits | None]:
    """The config that a run of this identity had, and its splits where it was given some.

    Raises:
      ValueError: an identity that `identity` did not make, for example of `frozen_features.run`.
    """
    facts = {**_YOUNGER, **identity}
    fit = facts.get("fit")
    missing = sorted(set(Config._fields) - set(facts))
    if missing or not isinstance(fit, Mapping) or set(fit) != set(training.FitConfig._fields):
        what = ", ".join(missing) or "fit"
        raise ValueError(f"this is no run of a network: its settings do not say {what}")
    values = {name: facts[name] for name in Config._fields} | {"fit": training.FitConfig(**fit)}
    rows = facts.get("splits")
    splits = rows and Splits(**{name: np.asarray(rows[name], np.int32) for name in Splits._fields})
    return Config(**values), splits


def same_settings(identity: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether a run of this identity was made with these `settings`, whatever the data."""
    return all(
        {**_YOUNGER, **identity}.get(key) == {**_YOUNGER, **settings}.get(key)
        for key in Config._fields
    )


def check_config(config: Config) -> None:
    """Raises ValueError on values that cannot work, before anything is compiled."""
    check_one_of("model", config.model, MODELS)
    check_positive(
        acquisition_size=config.acquisition_size,
        num_samples=config.num_samples,
        num_test_samples=config.num_test_samples,
        learning_rate=config.learning_rate,
    )
    for name in ("num_initial_per_class", "num_initial", "num_validation", "pool_size"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must not be negative, got {getattr(config, name)}")
    check_one_of("precision", config.precision, PRECISIONS)
    training.check_config(config.fit)
    rule = posteriors.make_posterior(config.posterior)
    rule.check(config.fit)
    if rule.dropout and config.model in WITHOUT_DROPOUT:
        raise ValueError(
            f"the model {config.model!r} has no dropout, so all samples of the posterior "
            f"{config.posterior!r} would be equal; use laplace, ensemble or swag"
        )
    if config.warm_start and config.posterior.partition(":")[0] == "ensemble":
        raise ValueError("an ensemble starts fresh every round: it has no warm start")
    check_initial(config.initial, config.num_initial)
    if not math.isfinite(config.learning_rate):
        raise ValueError(f"learning_rate must be finite, got {config.learning_rate}")
    if config.fit.monitor != "none" and not config.num_validation:
        raise ValueError(f"monitor {config.fit.monitor!r} needs num_validation above 0")


def check_initial(initial: str, num_initial: int) -> None:
    """Raises ValueError for an initial set that nothing can choose."""
    if initial != "balanced":
        cold_start.check_initial(initial)
    elif num_initial:
        raise ValueError(
            f"num_initial={num_initial} is for initial sets chosen without labels; a balanced one "
            "has num_initial_per_class rows of each class"
        )


def check_cells(acquisitions: Sequence[str], seeds: Sequence[int]) -> None:
    """Raises ValueError unless there are functions and seeds, each once, no seed negative."""
    if min(seeds, default=0) < 0:
        raise ValueError(f"a seed must not be negative, got {', '.join(map(str, seeds))}")
    if not acquisitions or not seeds:
        raise ValueError("at least one acquisition function and one seed are needed")
    for what, given in (("an acquisition function", acquisitions), ("a seed", seeds)):
        if len(set(given)) < len(given):
            raise ValueError(f"{what} is given twice: {', '.join(map(str, given))}")


def round_keys(seed: int, round: int) -> Keys:
    """Keys by (seed, round) only: the same for every acquisition function.

    The root is folded by round, a round's key only split: folding and splitting one
    key would collide. threefry, since under `vmap` the faster `rbg` uses one key for all.
    """
    return _keys_of_round(jax.random.key(seed, impl="threefry2x32"), np.uint32(round))


@jax.jit
def _keys_of_round(root: Key, round: ArrayLike) -> Keys:
    return Keys(*jax.random.split(jax.random.fold_in(root, round), len(Keys._fields)))


def network(config: Config, dataset: Dataset) -> tuple[Model, optax.GradientTransformation]:
    """Model and optimizer of a config: equal ones for equal settings, so that what
    was compiled for them is found again."""
    model = with_precision(_model(config.model, dataset.num_classes), config.precision)
    return model, _adam(config.learning_rate)


@functools.lru_cache(maxsize=8)
def _model(name: str, num_classes: int) -> Model:
    return MODELS[name](num_classes)


@functools.lru_cache(maxsize=8)
def _adam(learning_rate: float) -> optax.GradientTransformation:
    return optax.adam(learning_rate)


def seed_splits(
    config: Config, dataset: Dataset, seed: int, *, initial: np.ndarray | None = None
) -> Splits:
    """The rows that `run` uses for a seed, the same for every acquisition function.

    With another `initial` than "balanced" there are as many initial rows, or `num_initial`, but
    no label is looked at to choose them; `initial` are then the rows that were chosen already,
    since another version of a clustering library might choose others.
    """
    balanced = config.initial == "balanced"
    splits = make_splits(
        seed,
        dataset.labels,
        dataset.train_rows,
        dataset.test_rows,
        num_classes=dataset.num_classes,
        num_initial_per_class=config.num_initial_per_class if balanced else 0,
        num_validation=config.num_validation,
    )
    if balanced:
        return splits
    count = config.num_initial or config.num_initial_per_class * dataset.num_classes
    if not count:
        return splits
    chosen = initial
    if chosen is None:
        chosen = cold_start.initial_rows(
            round_keys(seed, BEFORE_ROUND_0).select,
            config.initial,
            dataset.images,
            splits.pool,
            count,
            config.pool_size,
        )
    return splits._replace(initial=chosen, pool=np.setdiff1d(splits.pool, chosen))


def random_labelled(splits: Splits, seed: int, count: int) -> np.ndarray:
    """The initial rows and random rows of the pool, `count` in all: for studies that need
    a labelled set and no acquisition function."""
    extra = max(0, count - len(splits.initial))
    drawn = pool_subset(seed, 0, splits.pool, extra) if extra else splits.pool[:0]
    return np.concatenate([splits.initial, drawn])
