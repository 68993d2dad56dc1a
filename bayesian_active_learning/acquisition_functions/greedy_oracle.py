"""An upper bound for comparisons: a rule that looks at the labels it chooses among.

Never among `STRATEGIES`: whoever can run it has no need to ask for labels.
"""

import jax
import jax.numpy as jnp

from bayesian_active_learning.acquisition_functions.selection import highest, needed, sortable
from bayesian_active_learning.types import (
    Array,
    ArrayLike,
    Candidates,
    Key,
    Selection,
    Strategy,
    StrategySpec,
)
from bayesian_active_learning.utils import check_one_of, check_positive


def realised_gain(
    log_probs: ArrayLike,
    labels: ArrayLike,
    target_log_probs: ArrayLike,
    target_labels: ArrayLike,
) -> Array:
    """What a candidate's true label would change in the log-likelihood of the targets' own.

    mean over targets of log sum_k w_k p_k(y* | x*) - log mean_k p_k(y* | x*), where the samples
    are reweighted by the label, w_k proportional to p_k(y | x). Its expectation over both labels,
    drawn from the model, is `epig`; here they are what they are, so it may be negative.

    Args:
      log_probs: `[N, K, C]` normalised log-probabilities of the candidates.
      labels: `[N]`, true.
      target_log_probs: `[M, K, C]` of the targets, sample k the same network as there.
      target_labels: `[M]`, true.

    Returns:
      `[N]` nats.

    Raises:
      ValueError: shapes other than these.
    """
    log_probs, targets = jnp.asarray(log_probs), jnp.asarray(target_log_probs)
    labels, target_labels = jnp.asarray(labels), jnp.asarray(target_labels)
    if (
        log_probs.ndim != 3
        or targets.ndim != 3
        or log_probs.shape[1:] != targets.shape[1:]
        or not len(targets)
        or labels.shape != log_probs.shape[:1]
        or target_labels.shape != targets.shape[:1]
    ):
        shapes = ", ".join(
            str(list(each.shape)) for each in (log_probs, labels, targets, target_labels)
        )
        raise ValueError(f"expected [N, K, C], [N], [M, K, C] and [M] with M > 0, got {shapes}")
    likelihood = _of_labels(log_probs, labels)
    known = _of_labels(targets, target_labels)
    # Relative to the best sample of each target, so that the product below cannot underflow.
    top = jnp.max(known, axis=1, keepdims=True)
    top = jnp.where(jnp.isfinite(top), top, 0)
    relative = jnp.exp(known - top)
    weights = jax.nn.softmax(likelihood, axis=1)
    floor = jnp.finfo(log_probs.dtype).tiny
    likely = jnp.matmul(weights, relative.T, precision="highest")  # gains are small differences
    after = jnp.log(jnp.maximum(likely, floor))
    before = jnp.log(jnp.maximum(jnp.mean(relative, axis=1), floor))
    return jnp.mean(after - before, axis=1)


def greedy_oracle(*, targets: str = "test", num_targets: int = 1000) -> Strategy:
    """The candidates whose true labels help most by `realised_gain`, best first.

    Args:
      targets: whose labels are to become likely: those of "test" or of "pool" rows.
      num_targets: M, drawn anew in every round.
    """
    check_one_of("targets", targets, ("pool", "test"))
    check_positive(num_targets=num_targets)
    return Strategy(
        _select,
        frozenset({"log_probs", "labels", "target_log_probs", "target_labels"}),
        settings=(("targets", targets), ("num_targets", num_targets)),
        min_samples=2,
    )


def _of_labels(log_probs: Array, labels: Array) -> Array:
    """`[N, K]`: the log-probability of each row's label under each sample."""
    return jnp.take_along_axis(log_probs, labels[:, None, None], axis=2)[:, :, 0]


def _select(key: Key, candidates: Candidates, *, batch_size: int) -> Selection:
    del key
    fields = ("log_probs", "labels", "target_log_probs", "target_labels")
    gains = realised_gain(*(needed(candidates, name) for name in fields))
    return highest(sortable(gains), -jnp.inf, gains, candidates, batch_size)


UPPER_BOUNDS: dict[str, StrategySpec] = {
    "greedy_oracle": StrategySpec(
        greedy_oracle,
        "looks at the labels: the one that helps most; an upper bound for comparisons",
        "as EPIG, Bickford Smith et al. 2023, with the labels known",
    )
}
"""Rules that look at labels, by name. The driver refuses them."""
