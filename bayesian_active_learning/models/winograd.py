"""Convolutions by minimal filtering: fewer multiplications, the same numbers within rounding.

A tile of 4x4 outputs of a 4x4 kernel takes 49 products of transformed inputs with a
transformed kernel in the place of 256: Winograd (1980), "Arithmetic complexity of
computations"; Lavin & Gray (2016), "Fast algorithms for convolutional neural networks". Both
gradients are of the same kind: a convolution with the flipped kernel, and the transpose in
the kernel.

Images and outputs are handled as their phases, the pixels whose row and column leave the same
rest when divided by the size of a tile: what is combined then lies in arrays without gaps, of
which XLA:CPU makes fast loops, and of strided slices it does not.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bayesian_active_learning.types import Array

TILES = {3: 2, 4: 2, 5: 2}
"""Kernel size -> outputs of a tile along one axis. Larger tiles save more products and lose more
digits; with these, outputs of unit size are off by some 1e-6."""
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0, -0.5)  # small values of both signs keep rounding small
_WHOLE = 32
"""Examples that are done at once, ..."""
_TOGETHER = 16
"""... and at a time where there are more: their transformed tiles stay in the cache."""

Phases = tuple[tuple[Array, ...], ...]
"""[i][j]: `[B, h, w, C]`, the pixels of rows m a + i and columns m b + j, for tiles of m."""
Tiles = tuple[int, int]
"""How many tiles of outputs there are along rows and columns."""


@functools.lru_cache(maxsize=len(TILES))
def _matrices(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, G, B with y = A ((G k) (B x)): outputs `[m]` of a kernel `[size]` and inputs `[n]`,
    n = m + size - 1. Cook and Toom: a product of polynomials by its values at n points, transposed.
    """
    outputs = TILES[size]
    number = outputs + size - 1
    values = np.vander(_POINTS[: number - 1], number, increasing=True)

    def evaluate(length: int) -> np.ndarray:
        # The last point is infinity, where the value is the highest coefficient.
        return np.concatenate([values[:, :length], np.eye(length)[-1:]])

    return evaluate(outputs).T, evaluate(size), np.linalg.inv(evaluate(number)).T


def _combine(coefficients: np.ndarray, arrays: Sequence[Array]) -> Array:
    """The sum of `arrays` times `coefficients`, zeros left out."""
    total = None
    for coefficient, array in zip(coefficients.round(12).tolist(), arrays, strict=True):
        if coefficient:
            term = array if coefficient == 1 else coefficient * array
            total = term if total is None else total + term
    assert total is not None  # no row of the matrices is all zeros
    return total


def _phases(images: Array, tile: Sequence[int], extents: Sequence[int]) -> Phases:
    """Of size `[B, *extents, C]` each; zeros where the images end before."""
    used = images[:, : tile[0] * extents[0], : tile[1] * extents[1]]
    count, height, width, channels = used.shape
    missing = tile[0] * extents[0] - height, tile[1] * extents[1] - width
    padded = jnp.pad(used, [(0, 0), (0, missing[0]), (0, missing[1]), (0, 0)])
    split = padded.reshape(count, extents[0], tile[0], extents[1], tile[1], channels)
    return tuple(tuple(split[:, :, i, :, j] for j in range(tile[1])) for i in range(tile[0]))


def _joined(phases: Phases, height: int, width: int) -> Array:
    """Images `[B, height, width, C]` of their phases; zeros where those end before."""
    found = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
    count, rows, down, columns, right, channels = found.shape
    found = found.reshape(count, rows * down, columns * right, channels)[:, :height, :width]
    missing = height - found.shape[1], width - found.shape[2]
    return jnp.pad(found, [(0, 0), (0, missing[0]), (0, missing[1]), (0, 0)])


def _tile(size: Sequence[int]) -> tuple[int, int]:
    """Outputs of a tile along rows and columns, for a kernel of this size."""
    return TILES[size[0]], TILES[size[1]]


def _extents(tiles: Tiles, size: Sequence[int]) -> tuple[int, int]:
    """Pixels of a phase that so many tiles of outputs look at."""
    rows, columns = (n + (m + k - 2) // m for n, k, m in zip(tiles, size, _tile(size)))
    return rows, columns


def _inputs(phases: Phases, tiles: Tiles, size: Sequence[int]) -> list[Array]:
    """Transformed tiles: for each of the products `[B h w, C]`."""
    (down, right), (height, width) = _tile(size), tiles
    by_row, by_column = _matrices(size[0])[2], _matrices(size[1])[2]
    found = []
    for row in by_row:
        parts = [
            _combine(
                row,
                [phases[i % down][j][:, i // down : i // down + height] for i in range(len(row))],
            )
            for j in range(right)
        ]
        for column in by_column:
            shifted = [
                parts[j % right][:, :, j // right : j // right + width] for j in range(len(column))
            ]
            found.append(_combine(column, shifted).reshape(-1, parts[0].shape[-1]))
    return found


def _transformed(kernel: Array) -> Array:
    """One matrix for each of the products, `[products, C, F]`."""
    rows, columns = (jnp.asarray(_matrices(n)[1], kernel.dtype) for n in kernel.shape[:2])
    found = jnp.einsum("ti,sj,ijcf->tscf", rows, columns, kernel, precision="highest")
    return found.reshape(-1, *kernel.shape[2:])


def _kernel_of(products: Array, size: Sequence[int]) -> Array:
    """The transpose of `_transformed`."""
    rows, columns = (jnp.asarray(_matrices(n)[1], products.dtype) for n in size)
    products = products.reshape(len(rows), len(columns), *products.shape[1:])
    return jnp.einsum("ti,sj,tscf->ijcf", rows, columns, products, precision="highest")


def _correlate(phases: Phases, kernel: Array, tiles: Tiles) -> Phases:
    """`tiles` of outputs of the VALID convolution, as phases."""
    size = kernel.shape[:2]
    inputs = _inputs(phases, tiles, size)
    products = [each @ matrix for each, matrix in zip(inputs, _transformed(kernel), strict=True)]
    by_row, by_column = _matrices(size[0])[0], _matrices(size[1])[0]
    number = by_column.shape[1]
    found = []
    for row in by_row:
        columns = [_combine(row, products[j::number]) for j in range(number)]
        outputs = (_combine(column, columns) for column in by_column)
        found.append(tuple(each.reshape(-1, *tiles, kernel.shape[3]) for each in outputs))
    return tuple(found)


def _of_products(cotangent: Phases, size: Sequence[int]) -> list[Array]:
    """Cotangents of the products `[B h w, F]`, from those of the outputs."""
    by_row, by_column = _matrices(size[0])[0], _matrices(size[1])[0]
    found = []
    for row in by_row.T:
        columns = [_combine(row, each) for each in zip(*cotangent, strict=True)]
        for column in by_column.T:
            found.append(_combine(column, columns).reshape(-1, columns[0].shape[-1]))
    return found


def _of_phases(inputs: Sequence[Array], tiles: Tiles, size: Sequence[int]) -> Phases:
    """The transpose of `_inputs`."""
    (down, right), (height, width) = _tile(size), tiles
    by_row, by_column = _matrices(size[0])[2], _matrices(size[1])[2]
    number = len(by_column)
    arrays = [each.reshape(-1, height, width, each.shape[-1]) for each in inputs]

    def phase(
        matrix: np.ndarray, parts: Sequence[Array], first: int, step: int, axis: int
    ) -> Array:
        """Pixels `first`, `first + step`, ... of the tiles, which overlap, along an axis."""
        most = (len(matrix) - 1) // step
        terms = []
        for shift, pixel in enumerate(range(first, len(matrix), step)):
            padding = [(0, 0)] * 4
            padding[axis] = (shift, most - shift)
            terms.append(jnp.pad(_combine(matrix[:, pixel], parts), padding))
        return functools.reduce(jnp.add, terms)

    rows = [arrays[start : start + number] for start in range(0, len(arrays), number)]
    columns = [[phase(by_column, row, j, right, axis=2) for row in rows] for j in range(right)]
    return tuple(
        tuple(phase(by_row, column, i, down, axis=1) for column in columns) for i in range(down)
    )


def apart(function: Callable[..., Any], *arrays: Any) -> Any:
    """`function(*arrays)`, not merged with what makes its arguments or is done to its results.

    XLA:CPU drops barriers before it merges, and a dropout mask merged with the last of 25
    products takes twice as long as both apart. It does not look into a loop whose number of
    turns it cannot know: here one, always.
    """
    function = jax.jit(function, inline=True)  # traced once for its shapes and for the loop
    number = jax.tree.leaves(arrays)[0].ravel()[0].astype(jnp.float32)
    sign = lax.shift_right_logical(lax.bitcast_convert_type(number, jnp.uint32), jnp.uint32(31))
    turns = jnp.maximum(sign, 1).astype(jnp.int32)
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *arrays))
    return lax.fori_loop(0, turns, lambda _, __: function(*arrays), empty)


def _in_parts(function: Callable[..., Any], *arrays: Any) -> list[Any]:
    """Results of `function` for parts of the examples, stacked for parts of equal size."""
    count = jax.tree.leaves(arrays)[0].shape[0]
    whole = count // _TOGETHER * _TOGETHER if count > _WHOLE else 0
    found = []
    if whole:
        parts = jax.tree.map(lambda x: x[:whole].reshape(-1, _TOGETHER, *x.shape[1:]), arrays)
        # What takes a part out of the whole would make the loops that read it slow.
        found.append(lax.map(lambda part: apart(function, *part), parts))
    if whole < count:
        rest = jax.tree.map(lambda x: x[whole:], arrays)
        found.append(jax.tree.map(lambda x: x[None], apart(function, *rest)))
    return found


def _examples(*parts: Array) -> Array:
    """One array of examples from stacked parts."""
    flat = [part.reshape(-1, *part.shape[2:]) for part in parts]
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat)


def _of_images(images: Array, kernel: Array, tiles: Tiles) -> Phases:
    size = kernel.shape[:2]
    return _correlate(_phases(images, _tile(size), _extents(tiles, size)), kernel, tiles)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolution(images: Array, kernel: Array, tiles: Tiles) -> Phases:
    if len(images) <= _WHOLE:
        return _of_images(images, kernel, tiles)
    return _forward(images, kernel, tiles)[0]


def _forward(images: Array, kernel: Array, tiles: Tiles) -> tuple[Phases, Any]:
    # Apart also where there is one part: a dropout mask merged with the last of the products
    # takes twice as long as both.
    parts = _in_parts(lambda part: _of_images(part, kernel, tiles), images)
    return jax.tree.map(_examples, *parts), (images, kernel)


def _backward(tiles: Tiles, saved: Any, cotangent: Phases) -> tuple[Array, Array]:
    images, kernel = saved
    size, tile = kernel.shape[:2], _tile(kernel.shape)
    matrices = _transformed(kernel).transpose(0, 2, 1)

    def part(images: Array, cotangent: Phases) -> tuple[Phases, Array]:
        inputs = _inputs(_phases(images, tile, _extents(tiles, size)), tiles, size)
        outputs = _of_products(cotangent, size)
        products = jnp.stack([a.T @ b for a, b in zip(inputs, outputs, strict=True)])
        inputs_bar = [each @ matrix for each, matrix in zip(outputs, matrices, strict=True)]
        return _of_phases(inputs_bar, tiles, size), products

    found = _in_parts(part, images, cotangent)
    phases = jax.tree.map(_examples, *(phases for phases, _ in found))
    images_bar = _joined(phases, *images.shape[1:3])
    products = sum(products.sum(axis=0) for _, products in found)
    return images_bar, _kernel_of(products, size)


_convolution.defvjp(_forward, _backward)


def suits(images: Sequence[int], kernel: Sequence[int]) -> bool:
    """Whether it is worth it for images `[B, H, W, C]` and a kernel `[kh, kw, C, F]`: one channel
    makes no matrix product, and few outputs do not repay a longer compilation."""
    outputs = [n - size + 1 for n, size in zip(images[1:3], kernel)]
    return {*kernel[:2]} <= {*TILES} and min(kernel[2:]) >= 8 and min(outputs) >= 8


def _tiles(lengths: Sequence[int], size: Sequence[int]) -> Tiles:
    rows, columns = (-(-length // m) for length, m in zip(lengths, _tile(size)))
    return rows, columns


def convolution(images: Array, kernel: Array) -> Array:
    """VALID convolution with stride 1: `[B, H, W, C]` and `[kh, kw, C, F]`, see `suits`, to
    `[B, H - kh + 1, W - kw + 1, F]`."""
    height, width = (n - size + 1 for n, size in zip(images.shape[1:3], kernel.shape))
    phases = _convolution(images, kernel, _tiles((height, width), kernel.shape))
    return _joined(phases, height, width)


def pooled_convolution(images: Array, kernel: Array) -> Array:
    """2x2 max-pooling with stride 2 of `convolution`; an odd last row or column is dropped."""
    height, width = ((n - size + 1) // 2 for n, size in zip(images.shape[1:3], kernel.shape))
    phases = _convolution(images, kernel, _tiles((2 * height, 2 * width), kernel.shape))
    rows = [tuple(map(jnp.maximum, *pair)) for pair in zip(phases[::2], phases[1::2])]
    pooled = tuple(tuple(map(jnp.maximum, row[::2], row[1::2])) for row in rows)
    return _joined(pooled, height, width)
