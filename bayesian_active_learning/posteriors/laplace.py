"""Laplace approximation over the last linear layer.

With features phi [D] and a 1 for the bias, phi~ = (phi, 1), the logits are linear in the
last layer's weights and biases, so for softmax cross-entropy the generalised Gauss-Newton
matrix is the Hessian itself,

    H = sum over labelled rows of (diag(p) - p p^T) (x) phi~ phi~^T,

with p the predicted probabilities: labels do not enter. Samples are made as changes of the
logits, phi~ @ change, so nothing needs to know where a network keeps its last layer.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayesian_active_learning import inference
from bayesian_active_learning.precision import full_precision
from bayesian_active_learning.types import (
    Array,
    Key,
    Model,
    Outputs,
    Posterior,
    PyTree,
    Source,
    Variables,
)
from bayesian_active_learning.utils import check_one_of, check_positive, normal, pad_rows, round_up

STRUCTURES = ("diag", "kron", "full")


class LastLayer(NamedTuple):
    """Changes of the last linear layer from its trained values: one posterior sample."""

    weights: Array  # [D, C]
    bias: Array  # [C]


class _Diagonal(NamedTuple):
    variables: Variables
    deviations: Array  # [D + 1, C]


class _Kronecker(NamedTuple):
    """Covariance (U (x) V) diag(deviations^2) (U (x) V)^T."""

    variables: Variables
    deviations: Array  # [D + 1, C]
    feature_vectors: Array  # [D + 1, D + 1], U
    class_vectors: Array  # [C, C], V


class _Full(NamedTuple):
    """Covariance R R^T, R [C, D + 1, C, D + 1] with the pairs (class, feature) as rows."""

    variables: Variables
    root: Array


def _split(change: Array) -> LastLayer:
    return LastLayer(change[:, :-1], change[:, -1])


def _noise(key: Key, num_samples: int, deviations: Array) -> Array:
    shape = (num_samples, *deviations.shape)
    return deviations * normal(key, shape, deviations.dtype)


def _draw_diagonal(shared: _Diagonal, key: Key, num_samples: int) -> LastLayer:
    return _split(_noise(key, num_samples, shared.deviations))


@full_precision
def _draw_kronecker(shared: _Kronecker, key: Key, num_samples: int) -> LastLayer:
    noise = _noise(key, num_samples, shared.deviations)  # [K, D + 1, C]
    return _split(shared.feature_vectors @ noise @ shared.class_vectors.T)


@full_precision
def _draw_full(shared: _Full, key: Key, num_samples: int) -> LastLayer:
    noise = _noise(key, num_samples, jnp.ones(shared.root.shape[2:], shared.root.dtype))
    return _split(jnp.einsum("aibj,kbj->kia", shared.root, noise))


@functools.lru_cache(maxsize=64)
def _apply(model: Model) -> Callable[[Any, LastLayer, Array], Outputs]:
    def apply(shared: Any, change: LastLayer, inputs: Array) -> Outputs:
        outputs, _ = model.apply(shared.variables, None, inputs, mode="mean")
        change_of_logits = jnp.matmul(outputs.features, change.weights, precision="highest")
        logits = outputs.logits + change_of_logits + change.bias
        return Outputs(logits, outputs.features)

    return apply


def laplace(
    model: Model,
    variables: Variables,
    source: Source,
    rows: Any,
    *,
    structure: str = "kron",
    prior_precision: float = 1.0,
    chunk_size: int = 500,
    max_bytes: int = 2**30,
) -> Posterior:
    """Last-layer Laplace: a Gaussian around the trained last layer, the rest stays fixed.

    Covariance (H + prior_precision I)^-1 over the (D + 1) C weights and biases, with H the
    curvature at `source[rows]` (see the top of this file), dropout off. Kristiadi, Hein &
    Hennig (2020), arXiv:2002.10118; Daxberger et al. (2021), "Laplace redux",
    arXiv:2106.14806.

    The prior is N(0, 1 / prior_precision) on each weight and bias. Training on N labels
    minimises the mean cross-entropy plus c / N times the sum of squares (c is
    `FitConfig.weight_decay`); times N this is the negative log posterior for
    prior_precision = 2 c, whatever N. That holds where the decay covers the last layer
    (coverage "weights" or "all"); the default coverage "first_dense" leaves it free, and
    prior_precision is then a choice of its own: lower is wider.

    Args:
      model: its `features` must be the input of its last linear layer, in mode "mean".
      variables: trained.
      source: inputs by row.
      rows: `[L]` integers, the labelled rows; none gives the prior.
      structure: "full", exact; "kron", H as (sum phi~ phi~^T) (x) (mean of diag(p) - p p^T),
        exact for one row or where all rows have the same p; "diag", the diagonal of H.
        Memory (D + 1)^2 C^2, (D + 1)^2 + C^2 and (D + 1) C.
      prior_precision: above 0.
      chunk_size: rows in flight.
      max_bytes: "full" is refused where its matrix, in float64, is larger. Some three of
        that size are held while it is factorised.

    Raises:
      ValueError: an unknown structure, values that are not positive, rows out of range,
        a network whose outputs are not finite or have other shapes, "full" too large.
    """
    check_one_of("structure", structure, STRUCTURES)
    check_positive(prior_precision=prior_precision, chunk_size=chunk_size, max_bytes=max_bytes)
    if not np.isfinite(prior_precision):
        raise ValueError(f"prior_precision must be finite, got {prior_precision}")
    rows = np.asarray(rows, None if np.size(rows) else np.int32)
    if rows.ndim != 1:
        raise ValueError(f"rows must be a list of integers, got {rows.dtype} {rows.shape}")
    num_features, num_classes, dtype = _sizes(model, variables, source)
    size = (num_features + 1) * num_classes
    if structure == "full" and 8 * size**2 > max_bytes:
        raise ValueError(
            f'structure "full" needs a matrix of {size} x {size}, {8 * size**2:,} bytes, for '
            f"{num_features} features and {num_classes} classes, above max_bytes={max_bytes:,}; "
            'use "kron" or "diag"'
        )
    chunks = _curvature_inputs(model, variables, source, rows, chunk_size)
    precision = float(prior_precision)
    arrays = _FACTORS[structure](chunks, num_features + 1, num_classes, precision)
    kind, draw = _KINDS[structure]
    shared = kind(variables, *(jnp.asarray(array, dtype) for array in arrays))
    return Posterior(draw, _apply(model), shared)


def _sizes(model: Model, variables: Variables, source: Source) -> tuple[int, int, Any]:
    """D, C and the type of the logits."""
    dtype = jax.dtypes.canonicalize_dtype(source.dtype)
    outputs = jax.eval_shape(
        lambda variables, inputs: model.apply(variables, None, inputs, mode="mean")[0],
        variables,
        jax.ShapeDtypeStruct((1, *source.shape[1:]), dtype),
    )
    if len(outputs.features.shape) != 2 or len(outputs.logits.shape) != 2:
        raise ValueError(
            "expected a network with logits [B, C] and features [B, D], got "
            f"{list(outputs.logits.shape)} and {list(outputs.features.shape)}"
        )
    return outputs.features.shape[1], outputs.logits.shape[1], outputs.logits.dtype


_Chunks = Iterator[tuple[np.ndarray, np.ndarray]]


def _curvature_inputs(
    model: Model, variables: Variables, source: Source, rows: np.ndarray, chunk_size: int
) -> _Chunks:
    """Yields (phi~ [n, D + 1], p [n, C]) in float64: sums over many rows lose too much in
    float32 for a prior that is small beside them."""
    # Few different shapes for a labelled set that grows.
    chunk_size = min(chunk_size, round_up(len(rows), 128))
    for start in range(0, len(rows), chunk_size):
        part = rows[start : start + chunk_size]
        padded = pad_rows(part, chunk_size)
        found = inference.outputs(model, variables, source, padded, chunk_size=chunk_size)
        features = np.asarray(found.features[: len(part)], np.float64)
        probs = np.exp(np.asarray(found.log_probs[: len(part)], np.float64))
        if not (np.isfinite(features).all() and np.isfinite(probs).all()):
            raise ValueError("the network's outputs on the labelled rows are NaN or infinite")
        # Exactly normalised, the curvature along (1, ..., 1) over classes is 0, not below it.
        probs /= probs.sum(axis=1, keepdims=True)
        yield np.concatenate([features, np.ones((len(part), 1))], axis=1), probs


def _diagonal(
    chunks: _Chunks, num_inputs: int, num_classes: int, precision: float
) -> tuple[np.ndarray, ...]:
    curvature = np.zeros((num_inputs, num_classes))
    for features, probs in chunks:
        curvature += np.square(features).T @ (probs * (1 - probs))
    return (1 / np.sqrt(curvature + precision),)


def _kronecker(
    chunks: _Chunks, num_inputs: int, num_classes: int, precision: float
) -> tuple[np.ndarray, ...]:
    over_features = np.zeros((num_inputs, num_inputs))
    over_classes = np.zeros((num_classes, num_classes))
    count = 0
    for features, probs in chunks:
        count += len(features)
        over_features += features.T @ features
        over_classes += np.diag(probs.sum(0)) - probs.T @ probs
    # In the basis of both factors' eigenvectors the prior adds to every product exactly.
    feature_values, feature_vectors = np.linalg.eigh(over_features)
    class_values, class_vectors = np.linalg.eigh(over_classes / max(count, 1))
    products = np.outer(np.maximum(feature_values, 0), np.maximum(class_values, 0))
    return 1 / np.sqrt(products + precision), feature_vectors, class_vectors


def _full(
    chunks: _Chunks, num_inputs: int, num_classes: int, precision: float
) -> tuple[np.ndarray, ...]:
    curvature = np.zeros((num_classes, num_inputs, num_classes, num_inputs))
    for features, probs in chunks:
        for a in range(num_classes):
            for b in range(a + 1):  # the lower triangle, all that is factorised below
                weights = probs[:, a] * ((a == b) - probs[:, b])  # [n]
                curvature[a, :, b, :] += features.T @ (weights[:, None] * features)
    matrix = curvature.reshape(num_classes * num_inputs, -1)
    matrix[np.diag_indices_from(matrix)] += precision
    try:
        lower = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"prior_precision {precision} is too small beside the curvature, whose largest "
            f"diagonal entry is {matrix.diagonal().max():.3g}, to be factorised; raise it"
        ) from error
    return (np.linalg.inv(lower).T.reshape(curvature.shape),)


_FACTORS: dict[str, Callable[[_Chunks, int, int, float], tuple[np.ndarray, ...]]] = {
    "diag": _diagonal,
    "kron": _kronecker,
    "full": _full,
}
_KINDS: dict[str, tuple[Callable[..., PyTree], Callable[..., LastLayer]]] = {
    "diag": (_Diagonal, _draw_diagonal),
    "kron": (_Kronecker, _draw_kronecker),
    "full": (_Full, _draw_full),
}
