"""Bayesian logistic regression on frozen features: the mode, and a Laplace posterior around it.

With L labelled rows, everything is had from L x L matrices, whatever the number of features:
Rasmussen & Williams 2006, "Gaussian Processes for Machine Learning", algorithms 3.3 and 3.4,
with the linear kernel X X^T / precision. Shapes are fixed by the size of the (masked) buffer of
labelled rows, so one compilation serves a growing labelled set, also inside `scan` and `vmap`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bayesian_active_learning.precision import full_precision
from bayesian_active_learning.types import Array, ArrayLike, Key, Outputs, Posterior, PyTree
from bayesian_active_learning.utils import check_positive, normal

MAX_STEPS = 50
_STEP_SIZES = (1.0, 0.5, 0.25, 0.1, 0.02)  # tried in each Newton step; the best one is taken
_REFINEMENTS = 2  # of each Newton step: with a weak prior, float32 loses digits in the solve
_TOLERANCE = 1e-5  # nats, of the log-posterior: far below what a prediction shows


class LogisticFit(NamedTuple):
    """A fitted head: its mode, and what sampling around it needs.

    weights: `[D, C]`, the mode.
    inputs: `[L, D]`, labelled, masked rows 0.
    probs: `[L, C]` predicted at the mode, masked rows 0.
    blocks: `[C, L, L]`, for each class (diag(1 / probs) + X X^T / precision)^-1.
    root: `[L, L]`, lower Cholesky factor of the sum of the blocks.
    precision: scalar, of the Gaussian prior in the posterior.
    steps: int32, Newton steps taken.
    """

    weights: Array
    inputs: Array
    probs: Array
    blocks: Array
    root: Array
    precision: Array
    steps: Array


def fit_logistic(
    inputs: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike,
    *,
    num_classes: int,
    prior_precision: float | Array,
    posterior_precision: float | Array | None = None,
) -> LogisticFit:
    """Maximises sum_l log p(y_l | x_l, W) - prior_precision / 2 |W|^2, with p = softmax(x W).

    Pure; may be jitted, vmapped and scanned. By Newton's method with exact second
    derivatives, from W = 0; the problem is convex. A bias is had by a constant column in
    `inputs`, whose size sets the width of its prior. Time: per step C Cholesky factors of
    L x L matrices; memory: C L^2.

    Args:
      inputs: `[L, D]`; masked rows may hold anything finite.
      labels: `[L]` integers in 0..C-1 where unmasked.
      mask: `[L]` bool, False = padding.
      num_classes: static.
      prior_precision: of the mode, above 0 (not checked when traced).
      posterior_precision: of the posterior, when it is to be another one. A mode needs a weak
        prior to fit few labels well, and the posterior around it a stronger one than that to
        be of use: tuning it after the fit is usual (Daxberger et al. 2021, arXiv:2106.14806,
        section 3).

    Raises:
      ValueError: shapes that differ, or a precision that is not above 0.
    """
    inputs, labels, mask = jnp.asarray(inputs), jnp.asarray(labels), jnp.asarray(mask, bool)
    if inputs.ndim != 2 or labels.shape != inputs.shape[:1] or mask.shape != labels.shape:
        raise ValueError(
            "expected inputs [L, D], labels [L] and mask [L], got "
            f"{list(inputs.shape)}, {list(labels.shape)} and {list(mask.shape)}"
        )
    check_positive(num_classes=num_classes)
    for name, value in (
        ("prior_precision", prior_precision),
        ("posterior_precision", posterior_precision),
    ):
        if isinstance(value, int | float):
            check_positive(**{name: value})
    precision = prior_precision if posterior_precision is None else posterior_precision
    return _fit(inputs, labels, mask, prior_precision, precision, num_classes)


@functools.partial(jax.jit, static_argnames="num_classes")
@full_precision
def _fit(
    inputs: Array,
    labels: Array,
    mask: Array,
    prior_precision: float | Array,
    precision: float | Array,
    num_classes: int,
) -> LogisticFit:
    weight = mask.astype(inputs.dtype)
    inputs = jnp.where(mask[:, None], inputs, 0)
    targets = jax.nn.one_hot(labels, num_classes, dtype=inputs.dtype) * weight[:, None]
    gram = inputs @ inputs.T

    state = _newton(gram / prior_precision, targets, weight)
    probs = jax.nn.softmax(state.logits) * weight[:, None]
    blocks, root = _factors(gram / precision, probs, weight)
    return LogisticFit(
        weights=inputs.T @ state.dual / prior_precision,
        inputs=inputs,
        probs=probs,
        blocks=blocks,
        root=root,
        precision=jnp.asarray(precision, inputs.dtype),
        steps=state.steps,
    )


@full_precision
def sample_logistic(key: Key, fit: LogisticFit, num_samples: int) -> Array:
    """Exact samples `[K, D, C]` of the Gaussian around the mode.

    Its precision is A = precision I + sum_l (diag(p_l) - p_l p_l^T) (x) x_l x_l^T. A draw of
    N(0, A), which is easy, is solved by A, and then has covariance A^-1.
    """
    prior_key, data_key = jax.random.split(key)
    rows, classes = fit.probs.shape
    dtype = fit.weights.dtype
    spread = jnp.sqrt(fit.precision)
    prior = spread * normal(prior_key, (num_samples, *fit.weights.shape), dtype)
    roots = jnp.sqrt(fit.probs)
    noise = roots * normal(data_key, (num_samples, rows, classes), dtype)
    # roots * noise has covariance diag(p); without its projection, diag(p) - p p^T.
    noise -= fit.probs * jnp.sum(noise, axis=-1, keepdims=True)
    draw = prior + jnp.einsum("ld,klc->kdc", fit.inputs, noise)
    return fit.weights + _solve(fit, draw)


def logistic(fit: LogisticFit) -> Posterior:
    """The K networks of a fitted head, for `inference` and whatever takes a `Posterior`.

    Inputs are features `[B, D]` as they were fitted, and are also the features of `Outputs`.
    """
    return Posterior(_draw, _apply, fit)


def _draw(shared: PyTree, key: Key, num_samples: int) -> Array:
    return sample_logistic(key, shared, num_samples)


@full_precision
def _apply(shared: PyTree, weights: Array, inputs: Array) -> Outputs:
    del shared
    return Outputs(inputs @ weights, inputs)


class _State(NamedTuple):
    dual: Array  # [L, C], weights = X^T dual / precision
    logits: Array  # [L, C]
    value: Array
    gain: Array  # of the last step
    steps: Array


def _newton(kernel: Array, targets: Array, weight: Array) -> _State:
    """The mode in its dual form. Masked rows of kernel and targets are 0."""
    step_sizes = jnp.asarray(_STEP_SIZES, kernel.dtype)

    def value(dual: Array, logits: Array) -> Array:
        likelihood = jnp.sum(targets * logits) - weight @ jax.nn.logsumexp(logits, axis=-1)
        return likelihood - 0.5 * jnp.sum(dual * logits)

    def step(state: _State) -> _State:
        probs = jax.nn.softmax(state.logits) * weight[:, None]
        blocks, root = _factors(kernel, probs, weight)
        right = _hessian(probs, state.logits) + targets - probs  # algorithm 3.3 calls it b
        newton = right - _dual_solve(blocks, root, kernel @ right)
        for _ in range(_REFINEMENTS):
            rest = right - newton - _hessian(probs, kernel @ newton)
            newton += rest - _dual_solve(blocks, root, kernel @ rest)
        duals = state.dual + step_sizes[:, None, None] * (newton - state.dual)
        logits = kernel @ duals
        values = jax.vmap(value)(duals, logits)
        best = jnp.argmax(values)
        gain = values[best] - state.value
        better = gain > 0
        return _State(
            jnp.where(better, duals[best], state.dual),
            jnp.where(better, logits[best], state.logits),
            jnp.where(better, values[best], state.value),
            gain,
            state.steps + 1,
        )

    def unfinished(state: _State) -> Array:
        return (state.steps < MAX_STEPS) & (state.gain > _TOLERANCE)

    zeros = jnp.zeros_like(targets)
    start = _State(
        zeros, zeros, value(zeros, zeros), jnp.asarray(jnp.inf, kernel.dtype), jnp.int32(0)
    )
    return jax.lax.while_loop(unfinished, step, start)


def _hessian(probs: Array, logits: Array) -> Array:
    """W logits for W = diag(p) - p p^T, of each row `[L, C]`."""
    return probs * (logits - jnp.sum(probs * logits, axis=-1, keepdims=True))


def _factors(kernel: Array, probs: Array, weight: Array) -> tuple[Array, Array]:
    """Blocks and root of `LogisticFit`, for this kernel."""
    rows = len(kernel)
    scale = jnp.sqrt(probs).T  # [C, L]
    inner = jnp.eye(rows, dtype=kernel.dtype) + scale[:, :, None] * kernel * scale[:, None, :]
    halves = jax.scipy.linalg.solve_triangular(
        jnp.linalg.cholesky(inner),
        scale[:, :, None] * jnp.eye(rows, dtype=kernel.dtype),
        lower=True,
    )
    blocks = jnp.einsum("cji,cjk->cik", halves, halves)
    # Masked rows are 0 in every block; a 1 there keeps the factor, and changes no result.
    return blocks, jnp.linalg.cholesky(jnp.sum(blocks, axis=0) + jnp.diag(1 - weight))


def _dual_solve(blocks: Array, root: Array, right: Array) -> Array:
    """(W^-1 + I_C (x) kernel)^-1 right for `right [..., L, C]`, W the Hessian in the logits."""
    each = jnp.einsum("cij,...jc->...ic", blocks, right)
    sums = jnp.sum(each, axis=-1)
    flat = sums.reshape(-1, len(root)).T
    shared = jax.scipy.linalg.cho_solve((root, True), flat).T.reshape(sums.shape)
    return each - jnp.einsum("cij,...j->...ic", blocks, shared)


def _solve(fit: LogisticFit, right: Array) -> Array:
    """A^-1 right for `right [K, D, C]`, A as in `sample_logistic`."""
    seen = jnp.einsum("ld,kdc->klc", fit.inputs, right) / fit.precision
    correction = _dual_solve(fit.blocks, fit.root, seen)
    return (right - jnp.einsum("ld,klc->kdc", fit.inputs, correction)) / fit.precision
