"""BatchBALD: the batch whose labels together tell the most about the parameters."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bayesian_active_learning.acquisition_functions import joint, joint_greedy
from bayesian_active_learning.acquisition_functions.scores import mutual_information
from bayesian_active_learning.acquisition_functions.selection import needed
from bayesian_active_learning.types import (
    Array,
    ArrayLike,
    Candidates,
    Key,
    Selection,
    Strategy,
)
from bayesian_active_learning.utils import check_positive


def batch_bald(*, max_exact: int = 40_000, num_configs: int = 10_000) -> Strategy:
    """Greedy maximisation of what the labels of a batch tell about the parameters.

    I[y_1..y_B; w] = H[y_1..y_B] - sum_i mean_k H[p_k(y_i)]. Each pick has the highest gain
    I[y; w | y_1..y_i] = BALD(x) - I[y; y_1..y_i]: what is left of its BALD score after what
    the picks before it would tell anyway. The batch is within 1 - 1/e of the best one where
    gains are exact. `Selection.scores` are the gains, which add up to I[y_1..y_B; w].

    I[y; y_1..y_i] is the average, over the configurations of the picks' labels, of the
    divergence of y's distribution given these labels from that given none:

    - exact, over all C^i configurations, while these are at most `max_exact`: the first
      `num_exact(C, max_exact)` picks (5 for C = 10);
    - beyond, over `num_configs` sampled ones (rounded up to a multiple of K), spread
      evenly over the posterior samples: unbiased, with an error of a few thousandths of a
      nat at the default. The draws and their weights are the paper's; the divergence has
      the expectation of its joint entropy less the parts, and less noise where labels
      hardly depend on each other.

    Candidates whose gain was already lower, when it was last looked at, than the best one
    found are passed over, which changes nothing for exact gains (they only fall); for
    sampled ones those within 1/sqrt(num_configs) of the best are looked at as well.

    Time: S K C multiplications and S C logarithms for each candidate that is looked at and
    each pick, S the number of configurations (the first picks are cheap, the last exact one
    and the sampled ones are not). Memory: some S K numbers, and 4 MiB a temporary.

    Kirsch, van Amersfoort & Gal 2019, arXiv:1906.08158, algorithm 1.

    Args:
      max_exact: largest number of configurations that are enumerated.
      num_configs: configurations sampled beyond.

    Returns:
      A strategy that needs "log_probs" `[N, K, C]` of consistent samples: sample k must be
      the same network for all candidates. K = 1 tells nothing: all gains are 0.

    Raises:
      ValueError: an option that is not positive.
    """
    check_positive(max_exact=max_exact, num_configs=num_configs)
    select = functools.partial(_select, max_exact=max_exact, num_configs=num_configs)
    return Strategy(select=select, needs=frozenset({"log_probs"}), min_samples=2)


def joint_information(
    key: Key, log_probs: ArrayLike, *, max_exact: int = 40_000, num_configs: int = 10_000
) -> Array:
    """What each label of a batch adds about the parameters to the labels before it.

    Entry i is I[y_i; w | y_1..y_{i-1}], so the sum is I[y_1..y_B; w], and the first entry is
    BALD. However a batch was chosen, the sum of its BALD scores less this sum is what its
    labels repeat. With K posterior samples no batch can tell more than ln K.

    Exact while the configurations of the labels before are at most `max_exact`, sampled
    beyond, as in `batch_bald`; for the batch that it chooses these are its scores.

    Args:
      key: consumed by the sampled part.
      log_probs: `[B, K, C]` of consistent samples, in the order of the picks.
      max_exact: largest number of configurations that are enumerated.
      num_configs: configurations sampled beyond.

    Returns:
      `[B]` nats.

    Raises:
      ValueError: the shape is not `[B, K, C]`, or an option that is not positive.
    """
    check_positive(max_exact=max_exact, num_configs=num_configs)
    log_probs = joint.checked(log_probs, "log_probs", "[B, K, C]")
    return _information(key, log_probs, max_exact=max_exact, num_configs=num_configs)


@functools.partial(jax.jit, static_argnames=("max_exact", "num_configs"))
def _information(key: Key, log_probs: Array, *, max_exact: int, num_configs: int) -> Array:
    size, num_samples, num_classes = log_probs.shape
    probs = jnp.exp(log_probs)
    keys = jax.random.split(key, size)
    num_exact = min(joint.num_exact(num_classes, max_exact), size)
    reference = joint.prior(num_samples, log_probs.dtype).posteriors

    def known(table: joint.Table, one: Array) -> Array:
        return joint.information(table, reference, one[None])[0]

    def enumerate_one(table: joint.Table, one: Array) -> tuple[joint.Table, Array]:
        return joint.extended(table, one, len(table.weights)), known(table, one)

    def draw_one(table: joint.Table, pick: tuple) -> tuple[joint.Table, Array]:
        return joint.extended_by_draws(pick[0], table, pick[1]), known(table, pick[1])

    table = joint.prior(num_samples, log_probs.dtype, max(num_classes, 2) ** (num_exact - 1))
    table = table._replace(live=jnp.array(1, jnp.int32))
    _, repeated = jax.lax.scan(enumerate_one, table, probs[:num_exact])
    if num_exact < size:
        table = joint.sampled_prior(num_configs, num_samples, log_probs.dtype)
        (table, _) = jax.lax.scan(draw_one, table, (keys[:num_exact], probs[:num_exact]))
        _, rest = jax.lax.scan(draw_one, table, (keys[num_exact:], probs[num_exact:]))
        repeated = jnp.concatenate([repeated, rest])
    return mutual_information(log_probs) - repeated


@functools.partial(jax.jit, static_argnames=("batch_size", "max_exact", "num_configs"))
def _select(
    key: Key, candidates: Candidates, *, batch_size: int, max_exact: int, num_configs: int
) -> Selection:
    log_probs = needed(candidates, "log_probs")
    scores = mutual_information(log_probs)
    prior = joint.prior(log_probs.shape[1], log_probs.dtype)

    def gains(key: Key, table: joint.Table) -> Callable[[Array, Array], Array]:
        return lambda positions, probs: (
            scores[positions] - joint.information(table, prior.posteriors, probs)
        )

    rule = joint_greedy.Rule(
        exact=gains,
        sampled=gains,
        num_exact=joint.num_exact(log_probs.shape[2], max_exact),
        bounds=scores,
        decreasing=True,
    )
    return joint_greedy.greedy_batch(
        key, rule, log_probs, candidates.mask, batch_size=batch_size, num_configs=num_configs
    )
