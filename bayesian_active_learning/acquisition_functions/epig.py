"""EPIG: the labels that tell the most about the labels of inputs like those to be predicted."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bayesian_active_learning.acquisition_functions import joint, joint_greedy
from bayesian_active_learning.acquisition_functions.scores import mutual_information
from bayesian_active_learning.acquisition_functions.selection import highest, needed, sortable
from bayesian_active_learning.types import (
    Array,
    ArrayLike,
    Candidates,
    Key,
    Selection,
    Strategy,
)
from bayesian_active_learning.utils import check_one_of, check_positive

_NEEDS = frozenset({"log_probs", "target_log_probs"})


def epig(log_probs: ArrayLike, target_log_probs: ArrayLike) -> Array:
    """Expected predictive information gain: what a label tells about those of the targets.

    E_x* I[y; y* | x, x*] = H[p] + E_x* H[p*] - E_x* H[joint], with
    joint(y, y*) = mean_k p_k(y) p_k(y*), p and p* its marginals, and E_x* the mean over the
    targets. Computed as the mean over targets and their labels of the divergence of
    p(y | y*) from p(y): the same number, without cancellation, never negative. Exactly 0 at
    K = 1; at most `bald`, since y tells about y* only through the parameters.

    In chunks of candidates and of target labels. Memory: some M K C numbers, as many as the
    targets themselves, and 4 MiB a temporary; time: N M C^2 times K multiplications and a
    logarithm.

    Bickford Smith, Kirsch, Farquhar, Gal, Foster & Rainforth 2023, arXiv:2304.08151.

    Args:
      log_probs: `[N, K, C]` normalised log-probabilities of the candidates.
      target_log_probs: `[M, K, C]` of the targets, sample k the same network as there.

    Returns:
      `[N]` nats.

    Raises:
      ValueError: shapes other than these, no target, or another K.
    """
    log_probs, targets = _checked(log_probs, target_log_probs)
    return _epig(log_probs, targets)


@jax.jit  # or a call outside of jit would compile its loop each time
def _epig(log_probs: Array, targets: Array) -> Array:
    size, num_samples, num_classes = log_probs.shape
    if not size:
        return jnp.zeros(0, log_probs.dtype)
    prior = joint.prior(num_samples, log_probs.dtype)
    informed = _informed(prior, targets)
    chunk = joint.chunk_size(num_classes, size)

    def scores(start: Array) -> Array:
        at = jnp.minimum(start + jnp.arange(chunk), size - 1)
        return joint.information(informed, prior.posteriors, jnp.exp(log_probs[at]))

    return jax.lax.map(scores, jnp.arange(0, size, chunk)).reshape(-1)[:size]


def top_epig(*, targets: str = "pool", num_targets: int = 100) -> Strategy:
    """The candidates with the highest `epig`, best first; ties to the lower position.

    Args:
      targets: whose inputs are to be predicted well, for whoever provides
        "target_log_probs": "pool" or "test" (inputs only, never labels).
      num_targets: M, for the same.

    Returns:
      A strategy that needs "log_probs" and "target_log_probs". The key is not used.

    Raises:
      ValueError: an unknown kind of targets, or fewer than one.
    """
    return Strategy(
        select=_select_top,
        needs=_NEEDS,
        settings=target_settings(targets, num_targets),
        min_samples=2,
    )


def batch_epig(
    *,
    max_exact: int = 10_000,
    num_configs: int = 10_000,
    targets: str = "pool",
    num_targets: int = 100,
) -> Strategy:
    """Greedy maximisation of what the labels of a batch tell about those of the targets.

    E_x* I[y_1..y_B; y* | x_1..x_B, x*], E_x* the mean over the targets, one at a time. Each
    pick has the highest gain E_x* I[y; y* | y_1..y_i], the average over the configurations
    of the picks' labels, the targets and their labels of the divergence of y's distribution
    given all of these from that given the picks' labels alone. `Selection.scores` are the
    gains, which add up to the information of the batch; the first is `epig`. Gains may
    rise as the batch grows: one label can make another one useful, so greedy has no
    guarantee here.

    - exact, over all C^i configurations of the picks with all M C target labels, while
      C^i M C is at most `max_exact`, and always for the first pick: the first
      `num_exact(C, max_exact // (M * C))` picks (2 for C = 10 and M = 100);
    - beyond, over `num_configs` draws (rounded up to a multiple of K) of a posterior sample,
      the picks' labels under it, a target and its label under it; the targets take turns.
      Unbiased, never negative; its error falls with 1/sqrt(num_configs).

    Candidates whose BALD score is below the best gain found are passed over: y tells about
    y* only through the parameters (for sampled gains those within 1/sqrt(num_configs) are
    looked at as well).

    Time: for each candidate that is looked at and each pick up to 2 S K C multiplications
    and S C logarithms, S the number of configurations or draws. Memory: some S (K + C) and
    M K C numbers, and 4 MiB a temporary.

    The score is that of Bickford Smith et al. 2023, arXiv:2304.08151; its batch form is the
    chain rule's, estimated as in Kirsch, van Amersfoort & Gal 2019, arXiv:1906.08158.

    Args:
      max_exact: largest number of configurations, target labels included, that are
        enumerated.
      num_configs: configurations sampled beyond.
      targets: as in `top_epig`.
      num_targets: as in `top_epig`.

    Returns:
      A strategy that needs "log_probs" `[N, K, C]` and "target_log_probs" `[M, K, C]` of
      consistent samples: sample k must be the same network everywhere.

    Raises:
      ValueError: an unknown kind of targets, or a number that is not positive.
    """
    check_positive(max_exact=max_exact, num_configs=num_configs)
    return Strategy(
        select=functools.partial(_select_batch, max_exact=max_exact, num_configs=num_configs),
        needs=_NEEDS,
        settings=target_settings(targets, num_targets),
        min_samples=2,
    )


def target_settings(targets: str, num_targets: int) -> tuple[tuple[str, Any], ...]:
    """What whoever provides the targets is told. Raises ValueError for what it cannot be."""
    check_one_of("targets", targets, ("pool", "test"))
    check_positive(num_targets=num_targets)
    return (("targets", targets), ("num_targets", num_targets))


def _select_top(key: Key, candidates: Candidates, *, batch_size: int) -> Selection:
    del key
    scores = epig(needed(candidates, "log_probs"), needed(candidates, "target_log_probs"))
    return highest(sortable(scores), -jnp.inf, scores, candidates, batch_size)


@functools.partial(jax.jit, static_argnames=("batch_size", "max_exact", "num_configs"))
def _select_batch(
    key: Key, candidates: Candidates, *, batch_size: int, max_exact: int, num_configs: int
) -> Selection:
    log_probs, targets = _checked(
        needed(candidates, "log_probs"), needed(candidates, "target_log_probs")
    )
    num_targets, _, num_labels = targets.shape

    def exact(key: Key, table: joint.Table) -> Callable[[Array, Array], Array]:
        def gains(positions: Array, probs: Array) -> Array:
            def add(row: Array, total: Array) -> Array:
                weights, posteriors = (
                    jax.lax.dynamic_slice_in_dim(values, row, 1) for values in table[:2]
                )
                informed = _informed(joint.Table(weights, posteriors, 1), targets)
                return total + joint.information(informed, posteriors, probs)

            return jax.lax.fori_loop(0, table.live, add, jnp.zeros(len(probs), probs.dtype))

        return gains

    def sampled(key: Key, table: joint.Table) -> Callable[[Array, Array], Array]:
        informed = joint.with_targets(key, table, jnp.exp(targets))
        return lambda positions, probs: joint.information(informed, table.posteriors, probs)

    rule = joint_greedy.Rule(
        exact=exact,
        sampled=sampled,
        num_exact=joint.num_exact(log_probs.shape[2], max_exact // (num_targets * num_labels)),
        bounds=mutual_information(log_probs),
        decreasing=False,
    )
    return joint_greedy.greedy_batch(
        key, rule, log_probs, candidates.mask, batch_size=batch_size, num_configs=num_configs
    )


def _informed(belief: joint.Table, targets: Array) -> joint.Table:
    """One row, with the label of each of the targets `[M, K, C]`, one of them at a time: a
    table of M C rows."""
    num_targets, num_samples, _ = targets.shape
    labels = jnp.moveaxis(jnp.exp(targets), 1, 0).reshape(num_samples, -1)
    table = joint.extended(belief, labels)
    return table._replace(weights=table.weights / num_targets)


def _checked(log_probs: ArrayLike, target_log_probs: ArrayLike) -> tuple[Array, Array]:
    log_probs = joint.checked(log_probs, "log_probs")
    targets = joint.checked(target_log_probs, "target_log_probs", "[M, K, C]")
    if not len(targets) or targets.shape[1] != log_probs.shape[1]:
        raise ValueError(
            "expected target_log_probs of at least one target with the samples of log_probs "
            f"{list(log_probs.shape)}, got {list(targets.shape)}"
        )
    return log_probs, targets
