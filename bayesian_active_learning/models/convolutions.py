"""Convolutions whose fast form differs from the textbook one. Same numbers, less time.

XLA:CPU has a fast path for a plain forward convolution (Eigen's). It misses it for both
convolutions of the gradient, which are therefore forward convolutions of rearranged arrays
here, and, since jax 0.10, for all that YNNPACK takes, unless a program says otherwise
(`compilation`). The forward convolution of few channels is a sum of shifted images.
Accelerators get the native ones.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from bayesian_active_learning.compilation import are_convolutions_plain
from bayesian_active_learning.types import Array

_TOGETHER, _SIDE_BY_SIDE = 4, 8
"""Examples in one convolution of a kernel's gradient, and how many of those run at once: more
examples in one leave the cache, and one alone does not keep two cores busy."""
_LAST = "NHWC", "HWIO", "NHWC"  # where channels are
_FEW_CHANNELS, _FEW_PRODUCTS = 7, 32
"""Input channels, and products for an output, that make no matrix product worth it."""


def _native_convolution(
    images: Array, kernel: Array, padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0))
) -> Array:
    return lax.conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=_LAST)


def _by_eigen(images: Array, kernel: Array) -> Array:
    """The VALID convolution, in a form that XLA does not give to YNNPACK: with more rows of
    outputs than of images, of which a few are dropped."""
    height = images.shape[1] - kernel.shape[0] + 1
    above = kernel.shape[0] // 2
    padding = (above, kernel.shape[0] - above), (0, 0)
    return _native_convolution(images, kernel, padding)[:, above : above + height]


def _shifted(images: Array, kernel: Sequence[int]) -> list[Array]:
    """`[B, h, w]` for each of the products that an output is the sum of."""
    height, width = (n - k + 1 for n, k in zip(images.shape[1:3], kernel))
    return [
        images[:, i : i + height, j : j + width, c]
        for i, j, c in itertools.product(*map(range, (*kernel[:2], images.shape[3])))
    ]


def _shifted_sum(images: Array, kernel: Array) -> Array:
    """Shifted images times weights, added up in one loop that a bias and ReLU join."""
    weights = kernel.reshape(-1, kernel.shape[3])
    terms = (x[..., None] * w for x, w in zip(_shifted(images, kernel.shape), weights))
    return functools.reduce(jnp.add, terms)


def _few(images: Array, size: Sequence[int]) -> bool:
    channels = images.shape[3]
    return channels <= _FEW_CHANNELS and math.prod(size) * channels <= _FEW_PRODUCTS


@functools.cache
def _on_cpu(plain: bool) -> Callable[[Array, Array], Array]:
    """The convolution for programs that leave plain ones to Eigen, or for all others."""
    large = _native_convolution if plain else _by_eigen

    @jax.custom_vjp
    def convolve(images: Array, kernel: Array) -> Array:
        few = _few(images, kernel.shape[:2])
        return (_shifted_sum if few else large)(images, kernel)

    def forward(images: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return convolve(images, kernel), (images, kernel)

    def backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
        images, kernel = saved
        height, width = kernel.shape[:2]
        # Of the images: the padded cotangent with the flipped kernel.
        flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
        padding = (height - 1,) * 2, (width - 1,) * 2
        images_bar = _native_convolution(cotangent, flipped, padding)
        return images_bar, _kernel_gradient(images, cotangent, plain)

    convolve.defvjp(forward, backward)
    return convolve


def _kernel_gradient(images: Array, cotangent: Array, plain: bool) -> Array:
    """`[kh, kw, C, F]`, the sum over parts of the batch."""
    size = [i - o + 1 for i, o in zip(images.shape[1:3], cotangent.shape[1:3])]
    if _few(images, size):
        columns = jnp.stack(_shifted(images, size)).reshape(-1, cotangent[..., 0].size)
        found = columns @ cotangent.reshape(-1, cotangent.shape[3])
        return found.reshape(*size, images.shape[3], -1)
    count, at_once = len(images), _TOGETHER * _SIDE_BY_SIDE
    whole = count // at_once * at_once if count > at_once else 0
    sums = []
    if whole:
        blocks = [x[:whole].reshape(-1, at_once, *x.shape[1:]) for x in (images, cotangent)]
        sums.append(
            lax.map(lambda block: _gradient_of_parts(block[0], block[1], plain), blocks).sum(axis=0)
        )
    if whole < count:
        sums.append(_gradient_of_parts(images[whole:], cotangent[whole:], plain))
    return functools.reduce(jnp.add, sums).transpose(1, 2, 0, 3)


def _gradient_of_parts(images: Array, cotangent: Array, plain: bool) -> Array:
    """`[C, kh, kw, F]`, the sum over parts that may run side by side."""
    parts = (slice(i, i + _TOGETHER) for i in range(0, len(images), _TOGETHER))
    found = (_gradient_of_part(images[part], cotangent[part], plain) for part in parts)
    return functools.reduce(jnp.add, found)


def _gradient_of_part(images: Array, cotangent: Array, plain: bool) -> Array:
    """Channels in the place of examples, examples in the place of channels: a convolution of the
    images with the cotangent. Two columns of the kernel come from one, with twice the outputs
    and a stride of 2: Eigen gathers its inputs half as often."""
    width = images.shape[2] - cotangent.shape[2] + 1
    together = min(2, width)
    # Where that is to keep YNNPACK away, longer by zeros than the images are.
    below = 0, 0 if plain else images.shape[1] + 1 - cotangent.shape[1]
    kernel = cotangent.transpose(1, 2, 0, 3)
    shifts = ((below, (j, together - 1 - j), (0, 0), (0, 0)) for j in range(together))
    found = lax.conv_general_dilated(
        images.transpose(3, 1, 2, 0),
        jnp.concatenate([jnp.pad(kernel, shift) for shift in shifts], axis=3),
        (1, together),
        (below, (0, -width % together)),
        dimension_numbers=_LAST,
    )
    return found.reshape(*found.shape[:2], -1, cotangent.shape[3])[:, :, :width]


def convolution(images: Array, kernel: Array) -> Array:
    """VALID convolution with stride 1, in the form that is fast on the platform it runs on.

    Args:
      images: `[B, H, W, C]`. The channel axis is always there: a batch without one
        would be read as a single image.
      kernel: `[kh, kw, C, F]`.

    Returns:
      `[B, H - kh + 1, W - kw + 1, F]`.
    """
    _check_convolution(images, kernel)
    on_cpu = _on_cpu(are_convolutions_plain())
    return lax.platform_dependent(images, kernel, cpu=on_cpu, default=_native_convolution)


def _check_convolution(images: Array, kernel: Array) -> None:
    if images.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            "convolution expects images [B, H, W, C] and a kernel [kh, kw, C, F], got "
            f"{images.shape} and {kernel.shape}; add the channel axis: images[..., None]"
        )


def in_small_batches(function: Callable[..., Array], size: int) -> Callable[..., Array]:
    """`function(images, *parameters)`, on a CPU run on `size` images at a time, whose
    activations stay in the cache; the whole batch at once elsewhere."""

    @functools.cache
    def mapped(plain: bool) -> Callable[..., Array]:
        """One for each form of the convolutions: JAX finds what it has traced by its function."""

        def in_parts(images: Array, *parameters: Array) -> Array:
            count, missing = len(images), -len(images) % size
            # A last part that is smaller would be a second program.
            images = jnp.pad(images, [(0, missing)] + [(0, 0)] * (images.ndim - 1))
            parts = images.reshape(-1, size, *images.shape[1:])
            found = lax.map(lambda part: function(part, *parameters), parts)
            return found.reshape(-1, *found.shape[2:])[:count]

        return in_parts

    def apply(images: Array, *parameters: Array) -> Array:
        if images.shape[0] <= size:
            return function(images, *parameters)
        on_cpu = mapped(are_convolutions_plain())
        return lax.platform_dependent(images, *parameters, cpu=on_cpu, default=function)

    return apply
