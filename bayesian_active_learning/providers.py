"""What strategies may ask for, and how it is had: one provider for each need.

The one place between the networks and the acquisition functions, which only ever see
arrays. Every array has the same shape in every round: candidates are padded to a fixed
number, labelled rows to the capacity of their buffer.

Posterior samples are drawn from one key, so that `scores`, `log_probs`, `labelled_scores`
and `target_log_probs` speak of the same K networks, as joint quantities need.
"""

import functools
import importlib.util
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from bayesian_active_learning import inference, posteriors, replicas, training, vaal
from bayesian_active_learning.models import vae
from bayesian_active_learning.types import (
    Candidates,
    Key,
    Model,
    Posterior,
    Score,
    Source,
    Strategy,
    Variables,
)
from bayesian_active_learning.utils import check_one_of, pad_rows, split_key


class Situation(NamedTuple):
    """What is known in one round, before anything is asked of the network."""

    model: Model
    variables: Variables
    posterior: Posterior
    source: Source
    num_samples: int  # K
    rows: np.ndarray  # [N] candidates, padded
    mask: np.ndarray  # [N]
    pool: np.ndarray  # all rows without a label, of which the candidates may be a subset
    test: np.ndarray  # rows whose inputs, never labels, may serve as targets
    labelled_rows: np.ndarray  # not padded
    labels: np.ndarray  # of the labelled rows
    capacity: int  # of the labelled buffer, L
    optimizer: optax.GradientTransformation  # for what is trained for the choice alone
    fit: training.FitConfig


class Provider(NamedTuple):
    """One way to have some fields of `Candidates`.

    provide: (score key, other key, situation, strategy) -> those fields.
    cost: in words, for documentation.
    """

    provide: Callable[[Key, Key, Situation, Strategy], Mapping[str, Any]]
    cost: str


def collect(
    score_key: Key,
    other_key: Key,
    situation: Situation,
    strategy: Strategy,
    known: Mapping[str, Any] | None = None,
) -> Candidates:
    """The candidates with everything that `strategy` needs.

    Args:
      score_key: for the posterior samples; consumed.
      other_key: for everything else that is drawn or trained; consumed.
      known: fields that are there already, from `sample_replicas` with the same keys.

    Raises:
      ValueError: the strategy needs what has no provider.
    """
    check_provided(strategy)
    found = dict(known or {})
    for need, key in _keys_by_need(other_key).items():
        if need in strategy.needs and need not in found:
            found.update(PROVIDERS[need].provide(score_key, key, situation, strategy))
    wanted = {name: found[name] for name in strategy.needs}
    return Candidates(rows=situation.rows, mask=situation.mask, **wanted)


def _keys_by_need(key: Key) -> dict[str, Key]:
    """In the table's order, not in that of a strategy's set of needs."""
    return dict(zip(PROVIDERS, split_key(key, len(PROVIDERS)), strict=True))


def sample_replicas(
    score_keys: Sequence[Key],
    other_keys: Sequence[Key],
    situations: Sequence[Situation],
    strategies: Sequence[Strategy],
    *,
    scores: Sequence[Score],
    width: int,
) -> list[dict[str, Any]]:
    """What takes K posterior samples, for several cells of one run in one program; the rest
    is for `collect`. See `replicas`.

    Args:
      score_keys, other_keys, situations, strategies: one a cell. The keys are not consumed:
        `collect` gets the same ones.
      scores: the score functions of all strategies of the run. Each is computed for every
        cell that needs one (what costs is the samples), so that the program does not depend
        on which functions are still at work.
      width: replicas in the program, at least as many as cells.

    Returns:
      For each cell the fields that its strategy needs, by name.
    """
    found: list[dict[str, Any]] = [{} for _ in situations]
    others = [_keys_by_need(key) for key in other_keys]
    for need, rows_of in _SAMPLED.items():
        cells = [i for i, strategy in enumerate(strategies) if need in strategy.needs]
        if not cells:
            continue
        first = situations[cells[0]]
        keys = [score_keys[i] for i in cells]
        networks = [situations[i].posterior for i in cells]
        rows = [rows_of(others[i][need], situations[i], strategies[i]) for i in cells]
        num_samples = first.num_samples
        values: Sequence[Any]
        if need.endswith("log_probs"):
            values = replicas.log_probs(
                keys, networks, first.source, rows, num_samples=num_samples, width=width
            )
        else:
            everything = replicas.score_pool(
                keys, networks, first.source, rows, scores, num_samples=num_samples, width=width
            )
            places: dict[Any, int] = {score: place for place, score in enumerate(scores)}
            own = [places[strategies[i].score] for i in cells]
            values = [each[place] for each, place in zip(everything, own, strict=True)]
        for i, value in zip(cells, values, strict=True):
            found[i][need] = value
    return found


def check_provided(
    strategy: Strategy,
    name: str = "the strategy",
    *,
    provided: Collection[str] | None = None,
    otherwise: str = "which is not provided",
) -> None:
    """Raises ValueError when `strategy` needs what no provider has, or contradicts itself.

    Args:
      provided: what may be needed; that of `PROVIDERS` when None.
      otherwise: the end of the message about anything else.
    """
    missing = strategy.needs - set(PROVIDERS if provided is None else provided)
    if missing:
        raise ValueError(f"{name} needs {', '.join(sorted(missing))}, {otherwise}")
    if strategy.needs & {"scores", "labelled_scores"} and strategy.score is None:
        raise ValueError(f"{name} needs scores, but has no score function to give them")
    unknown = set(dict(strategy.settings)) - set(SETTINGS)
    if unknown:
        raise ValueError(f"{name} has unknown settings {', '.join(sorted(unknown))}")
    check_one_of("targets", setting(strategy, "targets"), ("pool", "test"))
    vaal.check_config(_vaal_config(strategy))


def check_fit(
    name: str, strategy: Strategy, fit: training.FitConfig, *, warm_start: bool = False
) -> None:
    """Raises ValueError where the networks that `strategy` has trained for its choice could not
    be trained as the run's own are: the rule that an ensemble as a posterior has, too."""
    if "committee_log_probs" not in strategy.needs:
        return
    if fit.monitor != "none":
        raise ValueError(
            f"{name} trains a committee, which does not stop early: monitor must be 'none', got "
            f"{fit.monitor!r}"
        )
    if warm_start:
        raise ValueError(
            f"{name} trains a committee, which starts fresh every round: it has no warm start"
        )


def check_applicable(
    name: str,
    strategy: Strategy,
    model: Model,
    source: Source,
    *,
    num_classes: int,
    num_samples: int,
    num_candidates: int,
    capacity: int,
    batch_size: int,
) -> None:
    """Refuses, before anything is trained, what could not choose a batch here.

    Traces the strategy on arrays of the shapes that it will be given, without computing.

    Raises:
      ValueError: too few posterior samples, too many candidates, or what the strategy itself
        refuses.
      ImportError: a package that it needs is not installed.
    """
    absent = [each for each in strategy.packages if importlib.util.find_spec(each) is None]
    if absent:
        raise ImportError(
            f"{name} needs {', '.join(absent)}, which is not installed (scipy and scikit-learn "
            "come with the extra bayesian_active_learning[experiments])"
        )
    if num_samples < strategy.min_samples:
        raise ValueError(
            f"{name} needs at least {strategy.min_samples} posterior samples that differ, and "
            f"here there is {num_samples}: with one network, labels say nothing about each other"
        )
    if strategy.max_candidates is not None and num_candidates > strategy.max_candidates:
        raise ValueError(
            f"{name} takes at most {strategy.max_candidates:,} candidates for the memory it "
            f"needs, and here are {num_candidates:,}: score a random subset (pool_size)"
        )
    if strategy.needs & {"unlabelled_log_odds", "latents"}:
        try:
            vae.network_for(tuple(source.shape[1:]), _vaal_config(strategy).network)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    if strategy.host:
        return

    def shaped(*shape: int, dtype: Any = np.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    key = jax.eval_shape(lambda: jax.random.key(0))
    inputs = shaped(1, *source.shape[1:])
    # The first fit finds this trace of the network again.
    variables = training.initial.eval_shape(model, key, inputs)
    width, members = 0, setting(strategy, "members")
    if strategy.needs & {"features", "labelled_features"}:
        outputs, _ = jax.eval_shape(
            lambda variables, inputs: model.apply(variables, None, inputs, mode="mean"),
            variables,
            inputs,
        )
        width = outputs.features.shape[-1]
    shapes = {
        "scores": shaped(num_candidates),
        "log_probs": shaped(num_candidates, num_samples, num_classes),
        "target_log_probs": shaped(_num_targets(strategy), num_samples, num_classes),
        "predictions": shaped(num_candidates, num_classes),
        "features": shaped(num_candidates, width),
        "labelled_mask": shaped(capacity, dtype=bool),
        "labelled_labels": shaped(capacity, dtype=np.int32),
        "labelled_scores": shaped(capacity),
        "labelled_predictions": shaped(capacity, num_classes),
        "labelled_features": shaped(capacity, width),
        "input_gradients": shaped(num_candidates),
        "committee_log_probs": shaped(num_candidates, members, num_classes),
        "unlabelled_log_odds": shaped(num_candidates),
        "latents": shaped(num_candidates, _vaal_config(strategy).z_dim),
        "labelled_latents": shaped(capacity, _vaal_config(strategy).z_dim),
        "labels": shaped(num_candidates, dtype=np.int32),
        "target_labels": shaped(_num_targets(strategy), dtype=np.int32),
    }
    candidates = Candidates(
        rows=shaped(num_candidates, dtype=np.int32),
        mask=shaped(num_candidates, dtype=bool),
        **{need: shapes[need] for need in strategy.needs},
    )
    try:
        select = functools.partial(strategy.select, batch_size=batch_size)
        jax.eval_shape(select, key, candidates)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def setting(strategy: Strategy, name: str) -> Any:
    """A value that a strategy hands to its providers, see `SETTINGS`."""
    return dict(strategy.settings).get(name, SETTINGS[name])


SETTINGS: dict[str, Any] = {
    "targets": "pool",  # whose inputs EPIG is to predict well: "pool" or "test"
    "num_targets": 100,
    "members": 5,  # networks in a committee
    "vaal": (),  # fields of vaal.VaalConfig, with their values
}
"""What `Strategy.settings` may hold, with the values where it says nothing."""


def _scores(key: Key, other: Key, now: Situation, strategy: Strategy) -> Mapping[str, Any]:
    assert strategy.score is not None
    (scores,) = inference.score_pool(
        key, now.posterior, now.source, now.rows, [strategy.score], num_samples=now.num_samples
    )
    return {"scores": scores}


def _labelled_scores(key: Key, other: Key, now: Situation, strategy: Strategy) -> Mapping[str, Any]:
    candidates = now._replace(rows=_labelled_rows(now))
    return {"labelled_scores": _scores(key, other, candidates, strategy)["scores"]}


def _log_probs(key: Key, other: Key, now: Situation, strategy: Strategy) -> Mapping[str, Any]:
    found = inference.log_probs(
        key, now.posterior, now.source, now.rows, num_samples=now.num_samples
    )
    return {"log_probs": found}


def _target_log_probs(
    key: Key, other: Key, now: Situation, strategy: Strategy
) -> Mapping[str, Any]:
    targets = now._replace(rows=_target_rows(other, now, strategy))
    return {"target_log_probs": _log_probs(key, other, targets, strategy)["log_probs"]}


def _target_rows(key: Key, now: Situation, strategy: Strategy) -> np.ndarray:
    where = setting(strategy, "targets")
    rows = draw_rows(key, now.pool if where == "pool" else now.test, _num_targets(strategy))
    # A pool that has become small repeats its rows, in their random order: the same shape.
    return np.resize(rows, _num_targets(strategy))


def _num_targets(strategy: Strategy) -> int:
    return setting(strategy, "num_targets")


def _outputs(key: Key, other: Key, now: Situation, strategy: Strategy) -> Mapping[str, Any]:
    found = inference.outputs(now.model, now.variables, now.source, now.rows)
    return {"predictions": found.log_probs, "features": found.features}


def _labelled_outputs(
    key: Key, other: Key, now: Situation, strategy: Strategy
) -> Mapping[str, Any]:
    found = inference.outputs(now.model, now.variables, now.source, _labelled_rows(now))
    return {"labelled_predictions": found.log_probs, "labelled_features": found.features}


def _labelled(key: Key, other: Key, now: Situation, strategy: Strategy) -> Mapping[str, Any]:
    padding = (0, now.capacity - len(now.labels))
    return {
        "labelled_mask": np.arange(now.capacity) < len(now.labelled_rows),
        "labelled_labels": np.pad(np.asarray(now.labels, np.int32), padding),
    }


def _labelled_rows(now: Situation) -> np.ndarray:
    return pad_rows(now.labelled_rows, now.capacity)


def _input_gradients(key: Key, other: Key, now: Situation, strategy: Strategy) -> Mapping[str, Any]:
    found = inference.input_gradients(now.model, now.variables, now.source, now.rows)
    return {"input_gradients": found}


def _committee(key: Key, other: Key, now: Situation, strategy: Strategy) -> Mapping[str, Any]:
    # The network at hand is no member: its initial parameters would not be the committee's own.
    members = setting(strategy, "members")
    fit_key, key = jax.random.split(other)
    networks = posteriors.fit_ensemble(
        fit_key,
        now.model,
        now.optimizer,
        now.source,
        now.labelled_rows,
        now.labels,
        num_members=members,
        config=now.fit,
        capacity=now.capacity,
    )
    found = inference.log_probs(
        key,
        posteriors.ensemble(now.model, networks.variables),
        now.source,
        now.rows,
        num_samples=members,
    )
    return {"committee_log_probs": found}


def _unlabelled_log_odds(
    key: Key, other: Key, now: Situation, strategy: Strategy
) -> Mapping[str, Any]:
    config = _vaal_config(strategy)
    state = vaal.fit_vaal(other, now.source, now.labelled_rows, now.pool, config=config)
    return {"unlabelled_log_odds": vaal.unlabelled_log_odds(state, now.source, now.rows)}


def _latents(key: Key, other: Key, now: Situation, strategy: Strategy) -> Mapping[str, Any]:
    config = _vaal_config(strategy)
    state = vaal.fit_vaal(other, now.source, now.labelled_rows, now.pool, config=config)
    # Candidates and labelled rows in one call: chunks of one shape, one compilation.
    rows = np.concatenate([now.rows, _labelled_rows(now)])
    found = vaal.latent_means(state, now.source, rows)
    return {"latents": found[: len(now.rows)], "labelled_latents": found[len(now.rows) :]}


def _vaal_config(strategy: Strategy) -> vaal.VaalConfig:
    return vaal.VaalConfig()._replace(**dict(setting(strategy, "vaal")))


def draw_rows(key: Key, rows: np.ndarray, count: int) -> np.ndarray:
    """`count` of the rows (or all of them), drawn without replacement, in random order.

    Each row's number is fixed by the key and the row: the same rows are drawn from a pool
    in another order, and few others from a pool that is short of a few.
    """
    entropy = np.asarray(jax.random.key_data(key)).ravel().tolist()
    bits = np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(int(np.max(rows)) + 1)
    return rows[np.argsort(bits[rows], kind="stable")[:count]]


PROVIDERS: dict[str, Provider] = {
    "scores": Provider(_scores, "K posterior samples of each candidate, never held together"),
    "log_probs": Provider(_log_probs, "K posterior samples of each candidate, N K C numbers held"),
    "target_log_probs": Provider(_target_log_probs, "K posterior samples of each target"),
    "predictions": Provider(_outputs, "one pass of each candidate, dropout off"),
    "features": Provider(_outputs, "one pass of each candidate, dropout off"),
    "labelled_mask": Provider(_labelled, "nothing"),
    "labelled_labels": Provider(_labelled, "nothing"),
    "labelled_scores": Provider(_labelled_scores, "K posterior samples of each labelled row"),
    "labelled_predictions": Provider(_labelled_outputs, "one pass of each labelled row"),
    "labelled_features": Provider(_labelled_outputs, "one pass of each labelled row"),
    "input_gradients": Provider(_input_gradients, "one pass and one gradient of each candidate"),
    "committee_log_probs": Provider(_committee, "training of each member, and its passes"),
    "unlabelled_log_odds": Provider(_unlabelled_log_odds, "training of a VAE"),
    "latents": Provider(_latents, "training of a VAE"),
    "labelled_latents": Provider(_latents, "training of a VAE"),
}

# Needs that take K posterior samples of some rows, and of which.
_SAMPLED: dict[str, Callable[[Key, Situation, Strategy], np.ndarray]] = {
    "scores": lambda key, now, strategy: now.rows,
    "log_probs": lambda key, now, strategy: now.rows,
    "target_log_probs": _target_rows,
    "labelled_scores": lambda key, now, strategy: _labelled_rows(now),
}
