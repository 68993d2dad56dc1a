"""BAIT: the batch after which the last layer's parameters are best known for the pool.

Notation: V_x `[C D, R]` with V_x V_x' = F_x; M the regularised information of everything
labelled or picked, P = M^-1, F the mean information of the candidates, Q = P F P. All that
a pick needs to know of a candidate is the pair V_x' P V_x and V_x' Q V_x, R x R each.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg as linalg

from bayesian_active_learning.acquisition_functions.selection import (
    check_batch_size,
    needed,
    padded,
    sortable,
)
from bayesian_active_learning.types import Array, Candidates, Key, Selection, Strategy
from bayesian_active_learning.utils import check_positive

_CHUNK = 2**22  # numbers held at a time where candidates are gone through in chunks
_HIGHEST = jax.lax.Precision.HIGHEST
_NEEDS = frozenset(
    {
        "features",
        "predictions",
        "labelled_features",
        "labelled_predictions",
        "labelled_mask",
    }
)


def bait(
    *,
    ridge: float = 1.0,
    oversample: float = 2.0,
    dimensions: int = 0,
    outcomes: int = 32,
    max_bytes: float = 2e9,
) -> Strategy:
    """Picks that make the last layer's error on the candidates small.

    The Fisher information of a point in the weights of the last linear layer, with
    features z `[D]` and predictive p `[C]`, is F_x = (diag p - p p') kron z z', C D x C D.
    Greedily minimises

        trace(M^-1 F),   M = ridge * I + sum over labelled and picked F_x,
                         F = mean over candidates F_x,

    first forward to oversample * B picks, each the one that lowers the trace most, then
    backward: the pick whose removal raises it least is dropped until B remain. The order is
    that of the forward picks.

    Costs O(N C^2 D^2 + (C D)^3) once and O(N (C D R + R^3) + (C D)^3 / 3) for each pick, and
    about 6 (C D)^2 + 6 N R^2 + 4 N C numbers of memory, where R = min(C, outcomes). What is
    paid once is paid again whenever the gains have fallen so far that rounding would show. In
    float32 they hold to within 1 % up to a |z|^2 / ridge of about 3e4: scale features down, or
    raise the ridge, beyond that.

    Ash, Goel, Krishnamurthy & Kakade 2021, arXiv:2106.09675. The authors' code weighs
    otherwise: it divides the labelled information by |L| + B, gives each pick B times the
    weight of a labelled point, and takes F over pool and labelled points together. Its
    lambda is ridge = lambda (|L| + B) here.

    Args:
      ridge: above 0, the prior precision of the weights.
      oversample: at least 1; 1 leaves out the backward pass.
      dimensions: 0, or to how many the features are projected first, on a random subspace
        drawn from the key (scaled so that squared lengths stay on average): a sketch.
      outcomes: at least 2. With more classes than that, a pick counts as if its label told
        apart only its outcomes - 1 most probable classes, and "another one": a little less
        information than it has. Labelled rows and F always count in full.
      max_bytes: a larger problem is refused.

    Returns:
      A strategy whose scores are by how much each pick lowered the trace when it was
      picked. The key is used for the projection only.

    Raises:
      ValueError: bad options, or, when selecting, shapes that do not fit together or a
        problem above `max_bytes`.
    """
    check_positive(ridge=ridge, max_bytes=max_bytes)
    if not 1 <= oversample < math.inf:
        raise ValueError(f"oversample must be at least 1, got {oversample}")
    if dimensions < 0:
        raise ValueError(f"dimensions must be 0 (no projection) or more, got {dimensions}")
    if outcomes < 2:
        raise ValueError(f"outcomes must be at least 2, got {outcomes}")
    select = functools.partial(
        _select_bait,
        ridge=ridge,
        oversample=oversample,
        dimensions=dimensions,
        outcomes=outcomes,
        max_bytes=max_bytes,
    )
    return Strategy(select=select, needs=_NEEDS)


class _Factors(NamedTuple):
    """V_x in pieces; all 0 where there is no point.

    An outcome o of the label has probability w_o and, given it, the class distribution
    E_o: one class, or what the classes without an outcome of their own share. Then
    p = sum_o w_o E_o and V_x = A kron z with A's columns sqrt(w_o) (E_o - p).
    """

    features: Array  # [N, D]
    probs: Array  # [N, C]
    others: Array  # [N, C], 1 - p without cancellation
    weights: Array  # [N, R], w
    classes: Array  # [N, R - 1] of the outcomes but the last, or [N, 0]: all classes, R = C
    rest: Array  # [N, C], E of the last, or [N, 0]


class _State(NamedTuple):
    information: Array  # [CD, CD], M
    known: Array  # [N, R, R], V' P V
    gain: Array  # [N, R, R], V' Q V
    noise: Array  # [], about the rounding errors that updates leave in `gain`


def _select_bait(
    key: Key,
    candidates: Candidates,
    *,
    batch_size: int,
    ridge: float,
    oversample: float,
    dimensions: int,
    outcomes: int,
    max_bytes: float,
) -> Selection:
    """The `select` of `bait`; the key is consumed."""
    batch_size = check_batch_size(batch_size)
    features, predictions = needed(candidates, "features"), needed(candidates, "predictions")
    labelled_features = needed(candidates, "labelled_features")
    labelled_predictions = needed(candidates, "labelled_predictions")
    labelled_mask = needed(candidates, "labelled_mask").astype(bool)
    given = [array.shape for array in (features, predictions)]
    given += [array.shape for array in (labelled_features, labelled_predictions, labelled_mask)]
    if [len(shape) for shape in given] != [2, 2, 2, 2, 1] or given[2:] != [
        (given[4][0], given[0][1]),
        (given[4][0], given[1][1]),
        given[4],
    ]:
        raise ValueError(
            "expected features [N, D], predictions [N, C], labelled_features [L, D], "
            "labelled_predictions [L, C] and labelled_mask [L], got "
            f"{', '.join(str(list(shape)) for shape in given)}"
        )
    (n, num_features), num_classes = features.shape, predictions.shape[1]
    if 0 < dimensions < num_features:
        projection = _projection(key, num_features, dimensions, features.dtype)
        num_features = dimensions
    else:
        projection = None
    weights = num_classes * num_features
    _check_bytes(
        f"{n} candidates, {num_classes} classes and {num_features} features",
        6 * weights**2 + 6 * n * min(num_classes, outcomes) ** 2 + 4 * n * num_classes,
        features.dtype.itemsize,
        max_bytes,
    )
    size = min(batch_size, n)
    if not size:
        empty = jnp.zeros(0, features.dtype)
        return padded(empty.astype(jnp.int32), empty, empty.astype(bool), batch_size)

    mask = jnp.asarray(candidates.mask, bool)
    points, finite = _factors(features, predictions, mask, projection, outcomes)
    labelled, labelled_finite = _factors(
        labelled_features, labelled_predictions, labelled_mask, projection, outcomes
    )
    bad = mask & ~(finite & jnp.all(labelled_finite))
    information = _information(labelled) + ridge * jnp.eye(weights, dtype=features.dtype)
    aim = _information(points) / jnp.maximum(jnp.sum(mask), 1)
    state = _start(information, aim, points)

    def same(state: _State, gains: Array) -> tuple[_State, Array]:
        return state, gains

    def afresh(state: _State, _: Array) -> tuple[_State, Array]:
        state = _start(state.information, aim, points)
        return state, jnp.maximum(_trace(state.known, state.gain, 1.0), 0.0)

    def pick(carry: tuple[_State, Array], _: None) -> tuple[tuple[_State, Array], tuple]:
        state, left = carry
        gains = jnp.maximum(_trace(state.known, state.gain, 1.0), 0.0)
        # Gains fall by orders of magnitude, and updates keep the errors of the largest.
        clear = jnp.max(jnp.where(left, gains, 0.0)) >= 1e3 * state.noise  # False for NaN too
        state, gains = jax.lax.cond(clear, same, afresh, state, gains)
        gains = jnp.where(bad, jnp.nan, gains)
        position = jnp.argmax(jnp.where(left, sortable(gains), -jnp.inf)).astype(jnp.int32)
        valid = left[position]
        state = _changed(state, aim, points, position, jnp.where(valid, 1.0, 0.0), 1.0)
        return (state, left.at[position].set(False)), (position, gains[position], valid)

    forward = min(math.ceil(oversample * batch_size), n)
    (state, _), (positions, scores, valid) = jax.lax.scan(pick, (state, mask), None, length=forward)
    picked = jax.tree.map(lambda leaf: leaf[positions], points)
    surplus = jnp.sum(valid) - size

    def drop(carry: tuple[_State, Array], step: Array) -> tuple[tuple[_State, Array], None]:
        state, kept = carry
        losses = _trace(state.known, state.gain, -1.0)
        # What cannot be computed is a point that says nearly everything in its directions.
        losses = jnp.where(jnp.isnan(losses) | bad[positions], jnp.inf, losses)
        losses = jnp.where(kept, losses, jnp.nan)
        last = forward - 1 - jnp.nanargmin(losses[::-1])  # of equals, the later pick goes
        drops = step < surplus
        changed = _changed(state, aim, picked, last, 1.0, -1.0)
        state = jax.tree.map(lambda new, old: jnp.where(drops, new, old), changed, state)
        return (state, kept.at[last].set(kept[last] & ~drops)), None

    if forward > size:
        state = _start(state.information, aim, picked)
        (_, kept), _ = jax.lax.scan(drop, (state, valid), jnp.arange(forward - size))
        order = jnp.argsort(~kept, stable=True)[:size]
        positions, scores, valid = positions[order], scores[order], kept[order]
    return padded(positions, scores, valid, batch_size)


def _check_bytes(what: str, numbers: int, itemsize: int, max_bytes: float) -> None:
    if numbers * itemsize > max_bytes:
        raise ValueError(
            f"bait on {what} takes about {numbers * itemsize:.2g} bytes, more than max_bytes = "
            f"{max_bytes:.2g}: project the features (dimensions=...), take a subset of the pool, "
            "tell fewer outcomes apart (outcomes=...), or raise max_bytes"
        )


def _projection(key: Key, num_features: int, dimensions: int, dtype: jnp.dtype) -> Array:
    """`[D, dimensions]`: an orthonormal basis of a random subspace, scaled."""
    basis, _ = jnp.linalg.qr(jax.random.normal(key, (num_features, dimensions), dtype))
    return basis * math.sqrt(num_features / dimensions)


def _factors(
    features: Array, log_probs: Array, mask: Array, projection: Array | None, outcomes: int
) -> tuple[_Factors, Array]:
    """The factors, 0 where masked out or not finite, and `[N]` whether there was no NaN."""
    finite = jnp.all(jnp.isfinite(features), axis=1)
    # Nor NaN; -inf is the logarithm of 0, but not for all classes.
    finite &= jnp.all(log_probs < jnp.inf, axis=1) & jnp.any(log_probs > -jnp.inf, axis=1)
    usable = (mask & finite)[:, None]
    features = jnp.where(usable, features, 0.0)
    if projection is not None:
        features = _product(features, projection)
    log_probs = jnp.where(usable, log_probs, -jnp.inf)
    probs, others = jnp.exp(log_probs), -jnp.expm1(log_probs)
    if outcomes >= probs.shape[1]:
        none = jnp.zeros((len(probs), 0), probs.dtype)
        pieces = _Factors(features, probs, others, probs, none.astype(jnp.int32), none)
    else:
        largest, classes = jax.lax.top_k(probs, outcomes - 1)
        rest = probs.at[jnp.arange(len(probs))[:, None], classes].set(0.0)
        mass = jnp.sum(rest, axis=1, keepdims=True)
        rest = rest / jnp.where(mass > 0, mass, 1.0)
        weights = jnp.concatenate([largest, mass], axis=1)
        pieces = _Factors(features, probs, others, weights, classes.astype(jnp.int32), rest)
    return pieces, finite | ~mask


def _information(points: _Factors) -> Array:
    """`[CD, CD]`, the sum of F_x: -p_c p_c' z z' off the diagonal blocks, p_c (1 - p_c) z z'
    on them, which keeps its digits for sure predictions."""
    (n, num_features), num_classes = points.features.shape, points.probs.shape[1]
    weights = num_classes * num_features
    blocks = jnp.arange(num_classes)

    def add(total: Array, chunk: _Factors) -> tuple[Array, None]:
        features, probs, others = chunk.features, chunk.probs, chunk.others
        embedded = (probs[:, :, None] * features[:, None, :]).reshape(-1, weights)
        outer = -_product(embedded.T, embedded)
        outer = outer.reshape(num_classes, num_features, num_classes, num_features)
        weighted = jnp.sqrt(probs * others).T[:, :, None] * features  # [C, n, D]
        own = jnp.einsum("cnd,cne->cde", weighted, weighted, precision=_HIGHEST)
        return total + outer.at[blocks, :, blocks, :].set(own).reshape(weights, weights), None

    block = max(1, min(n, _CHUNK // max(weights, 1)))
    total = jnp.zeros((weights, weights), points.features.dtype)
    return _symmetric(jax.lax.scan(add, total, _chunks(points, block))[0]) if n else total


def _start(information: Array, aim: Array, points: _Factors) -> _State:
    """The state from M and F."""
    factor = linalg.cho_factor(information)
    n, rank, weights = *points.weights.shape, len(aim)
    if n * rank <= 2 * weights:  # solving for their columns is less than inverting M
        columns = jax.vmap(lambda index: _column(points, index), out_axes=1)(jnp.arange(n))
        moved = linalg.cho_solve(factor, columns.reshape(weights, n * rank))
        aimed = _product(aim, moved).reshape(columns.shape)
        moved = moved.reshape(columns.shape)  # [CD, N, R]
        known = jnp.einsum("wnr,wns->nrs", columns, moved, precision=_HIGHEST)
        gain = jnp.einsum("wnr,wns->nrs", moved, aimed, precision=_HIGHEST)
        known, gain = _symmetric(known), _symmetric(gain)
    else:
        inverse = _symmetric(linalg.cho_solve(factor, jnp.eye(weights, dtype=aim.dtype)))
        spread = _symmetric(_product(_product(inverse, aim), inverse))
        known, gain = _quadratic(points, inverse), _quadratic(points, spread)
    noise = jnp.finfo(gain.dtype).eps * jnp.max(jnp.trace(gain, axis1=1, axis2=2))
    return _State(information, known, gain, noise)


def _quadratic(points: _Factors, matrix: Array) -> Array:
    """`[N, R, R]`: V_x' matrix V_x, a few candidates at a time."""
    num_features, num_classes = points.features.shape[1], points.probs.shape[1]
    matrix = matrix.reshape(num_classes, num_features, num_classes * num_features)

    def some(chunk: _Factors) -> Array:
        features = chunk.features
        half = jnp.einsum("nd,cdw->ncw", features, matrix, precision=_HIGHEST)
        half = half.reshape(-1, num_classes, num_classes, num_features)
        full = jnp.einsum("nced,nd->nce", half, features, precision=_HIGHEST)
        return _symmetric(_times_class_factor(chunk, _times_class_factor(chunk, full).mT))

    return _in_chunks(some, points, matrix.size // num_features)


def _seen(points: _Factors, matrix: Array) -> Array:
    """`[N, R, R']`: V_x' times `matrix [CD, R']`."""
    num_features, num_classes = points.features.shape[1], points.probs.shape[1]
    matrix = matrix.reshape(num_classes, num_features, -1)

    def some(chunk: _Factors) -> Array:
        values = jnp.einsum("nd,cdr->ncr", chunk.features, matrix, precision=_HIGHEST)
        return _times_class_factor(chunk, values)

    return _in_chunks(some, points, matrix.size // num_features)


def _in_chunks(function: Callable[[_Factors], Array], points: _Factors, size: int) -> Array:
    """`function(points)`, which holds `size` numbers for each point, some points at a time."""
    n = len(points.features)
    found = jax.lax.map(function, _chunks(points, max(1, min(n, _CHUNK // size))))
    return found.reshape(-1, *found.shape[2:])[:n]


def _chunks(points: _Factors, block: int) -> _Factors:
    """`[number, block, ...]`, filled up with 0."""

    def split(leaf: Array) -> Array:
        number = -(-len(leaf) // block)
        leaf = jnp.pad(leaf, ((0, number * block - len(leaf)), (0, 0)))
        return leaf.reshape(number, block, leaf.shape[1])

    return jax.tree.map(split, points)


def _times_class_factor(points: _Factors, values: Array) -> Array:
    """A_x' times `values [N, C, K]`: `[N, R, K]`."""
    if points.rest.shape[1]:
        rest = jnp.einsum("nc,nck->nk", points.rest, values, precision=_HIGHEST)
        own = jnp.take_along_axis(values, points.classes[:, :, None], axis=1)
        values = jnp.concatenate([own, rest[:, None]], axis=1)
    # A' is blind to what all outcomes share: without the likely one's value the mean under
    # a sure prediction cancels nothing.
    likely = jnp.argmax(points.weights, axis=1)[:, None, None]
    values = values - jnp.take_along_axis(values, likely, axis=1)
    mean = jnp.einsum("nr,nrk->nk", points.weights, values, precision=_HIGHEST)
    return jnp.sqrt(points.weights)[:, :, None] * (values - mean[:, None, :])


def _column(points: _Factors, position: Array) -> Array:
    """`[CD, R]`: V of one point."""
    features, probs, others, weights, classes, rest = (leaf[position] for leaf in points)
    numbers = jnp.arange(len(probs))
    if len(rest):
        own = numbers[:, None] == classes
        differences = jnp.where(own, others[:, None], -probs[:, None])  # [C, R - 1], E - p
        last = jnp.where(jnp.any(own, axis=1), -probs, rest * jnp.sum(weights[:-1]))
        differences = jnp.concatenate([differences, last[:, None]], axis=1)
    else:
        differences = jnp.where(numbers[:, None] == numbers, others[:, None], -probs[:, None])
    factor = differences * jnp.sqrt(weights)  # [C, R]
    return (factor[:, None, :] * features[None, :, None]).reshape(-1, len(weights))


def _trace(known: Array, gain: Array, sign: float) -> Array:
    """`[N]`: trace((I + sign V' P V)^-1 V' Q V), by which the trace falls when a point is
    added (sign 1) and rises when it is removed (-1)."""
    factor = _cholesky(known, sign)
    eye = jnp.broadcast_to(jnp.eye(known.shape[-1], dtype=known.dtype), known.shape)
    root = linalg.solve_triangular(factor, eye, lower=True)  # its product is the inverse
    return jnp.sum(_product(root, gain) * root, axis=(-2, -1))


def _cholesky(known: Array, sign: float) -> Array:
    """Of I + sign V' P V. Removing, its lowest eigenvalue 1 / (1 + information) may drown in
    rounding errors: a few of them are added."""
    margin = 16 * float(jnp.finfo(known.dtype).eps) if sign < 0 else 0.0
    eye = jnp.eye(known.shape[-1], dtype=known.dtype)
    return jnp.linalg.cholesky((1 + margin) * eye + sign * known, symmetrize_input=False)


def _changed(
    state: _State,
    aim: Array,
    points: _Factors,
    position: Array,
    weight: Array | float,
    sign: float,
) -> _State:
    """The state after a point is added (sign 1) or removed (-1); nothing changes with
    weight 0.

    By Woodbury P' = P - sign U U' with U = P V L^-T and L L' = I + sign V' P V, and so
    Q' = Q - sign (U T' + T U') + U (L^-1 V' Q V L^-T) U' with T = Q V L^-T. Neither P nor Q
    is kept, for such differences lose their digits: P V and Q V are solved for anew.
    """
    column = _column(points, position) * weight
    factor = linalg.cho_factor(state.information)
    moved = linalg.cho_solve(factor, column)
    aimed = _product(aim, moved)
    small = _cholesky(_symmetric(_product(column.T, moved)), sign)

    def whitened(matrix: Array) -> Array:
        return linalg.solve_triangular(small, matrix.mT, lower=True).mT

    core = whitened(whitened(_symmetric(_product(moved.T, aimed))).mT)  # [R, R]
    moved = _seen(points, whitened(moved))  # [N, R, R]
    tilted = _seen(points, whitened(linalg.cho_solve(factor, aimed)))
    cross = _product(moved, tilted.mT)
    double = _product(_product(moved, core), moved.mT)
    return _State(
        information=state.information + sign * _product(column, column.T),
        known=state.known - sign * _product(moved, moved.mT),
        gain=state.gain + double - sign * (cross + cross.mT),
        noise=state.noise,
    )


def _product(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision=_HIGHEST)


def _symmetric(matrix: Array) -> Array:
    return (matrix + matrix.mT) / 2
