"""What training minimises: cross-entropy, and a weight decay that falls as 1/N."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bayesian_active_learning.types import Array, ArrayLike, PyTree
from bayesian_active_learning.utils import check_one_of

COVERAGES = ("first_dense", "weights", "all", "none")
"""Names for which parameters weight decay covers; see `squared_norm`."""

_NOT_WEIGHTS = ("b", "bias", "scale", "offset")


def cross_entropy(logits: Array, labels: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Mean negative log-likelihood of `labels` under softmax(logits), in nats.

    Args:
      logits: `[B, C]`.
      labels: `[B]` integers in 0..C-1. Anything else (a row without a label) where the
        weight is not 0 makes the loss NaN: it is never taken for some class.
      weights: `[B]`, at least 0, or None for all ones. The mean is
        sum(w * nll) / sum(w); where a weight is 0, nothing of that example counts, not
        even NaN, in the value or in the gradient. 0 where all weights are 0.

    Returns:
      A scalar.

    Raises:
      ValueError: shapes other than `[B, C]`, `[B]`, `[B]`.
    """
    labels = jnp.asarray(labels)
    weights = jnp.ones(labels.shape, logits.dtype) if weights is None else jnp.asarray(weights)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or weights.shape != labels.shape:
        raise ValueError(
            "expected logits [B, C], labels [B] and weights [B], got "
            f"{list(logits.shape)}, {list(labels.shape)} and {list(weights.shape)}"
        )
    weights = weights.astype(logits.dtype)
    used = weights > 0
    log_probs = jax.nn.log_softmax(jnp.where(used[:, None], logits, 0.0))
    is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)  # [B, C], else no True
    nll = -jnp.sum(jnp.where(is_label, log_probs, 0.0), axis=1)
    nll = jnp.where(jnp.any(is_label, axis=1), nll, jnp.nan)
    total = jnp.sum(weights)
    weighted = jnp.sum(weights * jnp.where(used, nll, 0.0))
    return weighted / jnp.where(total > 0, total, 1.0)


def squared_norm(
    params: PyTree, coverage: str | Callable[[str, Array], bool] = "first_dense"
) -> Array:
    """Sum of squares of the parameters that `coverage` names.

    Args:
      params: any pytree of arrays, for example Haiku's {module: {"w": .., "b": ..}}.
      coverage: one of

        - "first_dense": the first 2-D weight, as in the code of Gal, Islam & Ghahramani
          2017, where only the first dense layer was decayed. "First" is in the order of
          `jax.tree.leaves`: sorted by name within dictionaries, the only order that
          survives `jit`. Haiku's own names (linear, linear_1) are in the right order;
        - "weights": all leaves with two axes or more (dense and convolution weights);
        - "all": everything, biases and scales included;
        - "none": nothing, 0;
        - or a predicate (path, leaf) -> bool with path as written by `jax.tree_util.keystr`.

        Leaves called b, bias, scale or offset are no weights, however many axes they
        have (Haiku's BatchNorm keeps them as [1, 1, 1, C]).

    Returns:
      A scalar.

    Raises:
      ValueError: an unknown coverage, or "first_dense" without a 2-D weight.
    """
    if not callable(coverage):
        check_one_of("weight decay coverage", coverage, COVERAGES)
    named = jax.tree_util.tree_flatten_with_path(params)[0]
    weights = [leaf for path, leaf in named if jnp.ndim(leaf) >= 2 and _is_weight(path)]
    if callable(coverage):
        chosen = [leaf for path, leaf in named if coverage(jax.tree_util.keystr(path), leaf)]
    elif coverage == "first_dense":
        chosen = [leaf for leaf in weights if jnp.ndim(leaf) == 2][:1]
        if not chosen:
            raise ValueError(
                'coverage "first_dense" found no 2-D weight; use "weights", "all" or "none"'
            )
    else:
        chosen = {"weights": weights, "all": [leaf for _, leaf in named], "none": []}[coverage]
    squares = [jnp.sum(jnp.square(leaf)) for leaf in chosen]
    return sum(squares, start=jnp.zeros(()))


def weight_decay_penalty(
    params: PyTree,
    strength: ArrayLike | float,
    num_labelled: ArrayLike | int,
    coverage: str | Callable[[str, Array], bool] = "first_dense",
) -> Array:
    """strength / num_labelled * squared_norm, to be added to the mean cross-entropy.

    A Gaussian prior with length-scale l on the weights under dropout probability p, and
    model precision tau, gives a decay of (1 - p) l^2 / (2 N tau) per squared weight when
    the likelihood is averaged over the N labelled examples (Gal & Ghahramani 2016,
    arXiv:1506.02142, whose p is the probability to *keep* a unit, 1 - p here; for
    classification tau = 1). So strength = (1 - p) l^2 / (2 tau), and the pull of the prior
    falls as labels come in.
    The code of Gal, Islam & Ghahramani 2017 uses c/N with c = 2.5 in Keras's L2, which is
    c/N * sum(w^2): strength = 2.5 here, with coverage "first_dense".

    Args:
      params: any pytree of arrays.
      strength: at least 0; may be traced.
      num_labelled: N, at least 1; may be traced, so that growth does not recompile.
      coverage: see `squared_norm`.

    Returns:
      A scalar.

    Raises:
      ValueError: see `squared_norm`.
    """
    return jnp.asarray(strength / num_labelled * squared_norm(params, coverage))


def _is_weight(path: tuple[Any, ...]) -> bool:
    """False where the last step of `path` has the name of a bias or a scale."""
    last = path[-1] if path else None
    name = getattr(last, "key", getattr(last, "name", None))
    return name not in _NOT_WEIGHTS
