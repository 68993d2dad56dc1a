"""Deep ensembles: networks that differ in initial parameters and order of minibatches."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from bayesian_active_learning import replicas, training
from bayesian_active_learning.types import (
    Array,
    ArrayLike,
    Key,
    Model,
    Outputs,
    Posterior,
    PyTree,
    Source,
    Variables,
)
from bayesian_active_learning.utils import check_positive


class EnsembleFit(NamedTuple):
    """What `fit_ensemble` found: the fields of `training.FitResult`, one entry a member."""

    variables: Variables  # leaves have a leading axis E
    steps: tuple[int, ...]
    best_step: tuple[int, ...]
    train_loss: tuple[float, ...]
    validation: tuple[tuple[tuple[int, float, float], ...], ...]


class _Draw(NamedTuple):
    """One sample: which member, and the key of its dropout masks. What a member weighs
    is looked up when it is its turn, so that K draws are no K copies of parameters."""

    member: Array  # [K] int32
    key: Array  # [K]


def _size(stacked: PyTree) -> int:
    return jax.tree.leaves(stacked)[0].shape[0]


def _turns(key: Key, num_members: int, num_samples: int) -> Array:
    """`[K]` members in order; where K is smaller, a random subset without repeats."""
    if num_samples >= num_members:
        return jnp.arange(num_samples, dtype=jnp.int32) % num_members
    return jnp.sort(jax.random.permutation(key, num_members)[:num_samples])


def _draw_members(shared: PyTree, key: Key, num_samples: int) -> _Draw:
    if num_samples > _size(shared):
        raise ValueError(
            f"an ensemble of {_size(shared)} members has no {num_samples} different samples: "
            f"ask for num_samples={_size(shared)} or fewer, train more members, or use "
            "dropout=True, where every sample has dropout masks of its own"
        )
    return _Draw(_turns(key, _size(shared), num_samples), jax.random.split(key, num_samples))


def _draw_members_with_masks(shared: PyTree, key: Key, num_samples: int) -> _Draw:
    turn_key, mask_key = jax.random.split(key)
    turns = _turns(turn_key, _size(shared), num_samples)
    return _Draw(turns, jax.random.split(mask_key, num_samples))


@functools.lru_cache(maxsize=64)
def _apply(model: Model, mode: str) -> Callable[[PyTree, _Draw, Array], Outputs]:
    def apply(stacked: Variables, draw: _Draw, inputs: Array) -> Outputs:
        member = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, draw.member, 0, False), stacked)
        return model.apply(member, draw.key if mode == "sample" else None, inputs, mode=mode)[0]

    return apply


def ensemble(model: Model, variables: Variables, *, dropout: bool = False) -> Posterior:
    """A deep ensemble: each posterior sample is one of E networks trained apart.

    Lakshminarayanan, Pritzel & Blundell (2017), arXiv:1612.01474; for active learning
    Beluch, Genewein, Nürnberger & Köhler (2018), "The power of ensembles for active
    learning in image classification".

    K = E samples are the members in their order, K < E a random subset drawn by the key.
    K > E is refused: the same network twice is no new sample, and would only cost time.

    Args:
      model: the members' network.
      variables: stacked, leaves `[E, ...]`, from `fit_ensemble` or `stack_variables`.
      dropout: keep dropout on: an ensemble of MC dropout networks. Every sample then has
        masks of its own, any K is allowed, and the members take turns (sample k is of
        member k mod E; members get equally many where K is a multiple of E).

    Raises:
      ValueError: leaves without a common leading axis; more samples than members, when
        samples are drawn.
    """
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(variables)}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        shown = ", ".join(sorted(str(list(size)) for size in sizes)) or "no arrays"
        raise ValueError(
            "expected stacked variables whose leaves have one leading axis [E, ...], got "
            f"leading axes {shown}; see stack_variables"
        )
    if dropout:
        return Posterior(_draw_members_with_masks, _apply(model, "sample"), variables)
    return Posterior(_draw_members, _apply(model, "mean"), variables)


def stack_variables(members: Sequence[Variables]) -> Variables:
    """The members' variables along a new leading axis: leaves `[E, ...]`.

    Raises:
      ValueError: no members, or members of different networks.
    """
    if not members:
        raise ValueError("an ensemble needs at least one member, got none")
    forms = [
        (jax.tree.structure(member), [np.shape(leaf) for leaf in jax.tree.leaves(member)])
        for member in members
    ]
    for number, form in enumerate(forms):
        if form != forms[0]:
            raise ValueError(f"member {number} is another network than member 0")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def fit_ensemble(
    key: Key,
    model: Model,
    optimizer: optax.GradientTransformation,
    source: Source,
    rows: ArrayLike,
    labels: ArrayLike,
    *,
    num_members: int,
    config: training.FitConfig,
    variables: Variables | None = None,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    capacity: int | None = None,
    together: bool | None = None,
) -> EnsembleFit:
    """Trains E members on the same labelled set, with one compilation.

    Members differ in their key only, and with it in initial parameters, minibatches and
    dropout masks; there is no bootstrap, as in Lakshminarayanan et al. (2017). Member i is
    what `training.fit` gives for the i-th of `jax.random.split(key, E)`.

    Args:
      key: consumed.
      num_members: E.
      variables: stacked `[E, ...]`, to go on from (warm), or fresh ones when None.
      model, optimizer, source, rows, labels, config, validation, capacity: see
        `training.fit`.
      together: all in one program, a `vmap` over members, from fresh parameters and without
        early stopping; the same within rounding. One after the other is faster on a CPU.
        None: where an accelerator is the default device, if they start fresh and do not stop
        early.

    Raises:
      ValueError: see `training.fit`; a number of members that is not positive, or another
        one than `variables` has; together, with variables to go on from or a monitor.
      TrainingDiverged: for the first member that does; a note says which.
    """
    check_positive(num_members=num_members)
    if variables is not None and (size := _size(variables)) != num_members:
        raise ValueError(f"variables of {size} members cannot start {num_members}")
    keys = list(jax.random.split(key, num_members))
    if together is None:
        fresh = variables is None and config.monitor == "none"
        together = fresh and num_members > 1 and jax.default_backend() != "cpu"
    if together and variables is not None:
        raise ValueError("members that are trained together start fresh: variables must be None")
    results: list[training.FitResult | training.TrainingDiverged] = []
    if together:
        results = replicas.fit(
            keys,
            model,
            optimizer,
            source,
            [rows] * num_members,
            [labels] * num_members,
            config=config,
            capacity=training._buffer_size(np.size(rows), capacity),
            width=num_members,
        )
    else:
        for number, member_key in enumerate(keys):
            start = jax.tree.map(lambda x, i=number: x[i], variables)  # None stays None
            try:
                result = training.fit(
                    member_key,
                    model,
                    optimizer,
                    source,
                    rows,
                    labels,
                    config=config,
                    variables=start,
                    validation=validation,
                    capacity=capacity,
                )
            except training.TrainingDiverged as error:
                results.append(error)
                break
            results.append(result)
    fitted = []
    for number, found in enumerate(results):
        if isinstance(found, training.TrainingDiverged):
            found.add_note(f"member {number} of {num_members} of the ensemble")
            raise found
        fitted.append(found)
    return EnsembleFit(
        stack_variables([result.variables for result in fitted]),
        tuple(result.steps for result in fitted),
        tuple(result.best_step for result in fitted),
        tuple(result.train_loss for result in fitted),
        tuple(result.validation for result in fitted),
    )
