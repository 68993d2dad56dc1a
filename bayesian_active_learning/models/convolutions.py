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
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bayesian_active_learning.compilation import are_convolutions_plain
from bayesian_active_learning.types import Array
from bayesian_active_learning.utils import cpu_model, num_cpus

_BLOCK = 32  # examples of a gradient at a time: more leave the cache
_FEW_EXAMPLES = 4  # a kernel's gradient is not cut into smaller parts
_LAST = "NHWC", "HWIO", "NHWC"  # where channels are
_FEW_CHANNELS, _FEW_PRODUCTS = 7, 32
"""Input channels, and products for an output, that make no matrix product worth it."""


def native_convolution(
    images: Array, kernel: Array, padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0))
) -> Array:
    return lax.conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=_LAST)


def _by_eigen(images: Array, kernel: Array) -> Array:
    """The VALID convolution, in a form that XLA does not give to YNNPACK: with more rows of
    outputs than of images, of which a few are dropped."""
    height = images.shape[1] - kernel.shape[0] + 1
    above = kernel.shape[0] // 2
    padding = (above, kernel.shape[0] - above), (0, 0)
    return native_convolution(images, kernel, padding)[:, above : above + height]


def _shifted(images: Array, kernel: Sequence[int]) -> list[Array]:
    """`[B, h, w]` for each of the products that an output is the sum of."""
    height, width = (n - k + 1 for n, k in zip(images.shape[1:3], kernel))
    return [
        images[:, i : i + height, j : j + width, c]
        for i, j, c in itertools.product(*map(range, (*kernel[:2], images.shape[3])))
    ]


@jax.jit  # traced once for a step forward and backward
def _shifted_sum(images: Array, kernel: Array) -> Array:
    """Shifted images times weights, added up in one loop that a bias and ReLU join."""
    weights = kernel.reshape(-1, kernel.shape[3])
    return _sum([x[..., None] * w for x, w in zip(_shifted(images, kernel.shape), weights)])


def _sum(terms: Sequence[Array]) -> Array:
    """In two halves: each addition waits for the one before it, and a core has room for few that
    wait."""
    halves = (terms[start::2] for start in range(min(2, len(terms))))
    return functools.reduce(jnp.add, (functools.reduce(jnp.add, half) for half in halves))


def _few(images: Array, size: Sequence[int]) -> bool:
    channels = images.shape[3]
    return channels <= _FEW_CHANNELS and math.prod(size) * channels <= _FEW_PRODUCTS


@functools.cache
def _on_cpu(plain: bool) -> Callable[[Array, Array], Array]:
    """The convolution for programs that leave plain ones to Eigen, or for all others."""
    large = native_convolution if plain else _by_eigen

    @jax.custom_vjp
    def convolve(images: Array, kernel: Array) -> Array:
        few = _few(images, kernel.shape[:2])
        return (_shifted_sum if few else large)(images, kernel)

    def forward(images: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return convolve(images, kernel), (images, kernel)

    def backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
        images, kernel = saved

        def of_block(images: Array, cotangent: Array) -> tuple[Array, Array]:
            if _few(images, kernel.shape[:2]):
                kernel_bar = _few_gradient(images, kernel.shape, cotangent)
            else:
                kernel_bar = _kernel_gradient(images, _channels_first, cotangent, plain)
            return _images_gradient(kernel, cotangent), kernel_bar

        return _in_blocks(of_block, images, cotangent)

    convolve.defvjp(forward, backward)
    return convolve


@functools.cache
def _two_on_cpu(plain: bool) -> Callable[[Array, Array, Array, Array], Array]:
    """`two_convolutions` where the first has few products."""
    second = _on_cpu(plain)

    def hidden_of(images: Array, kernel: Array, bias: Array) -> Array:
        return jax.nn.relu(_shifted_sum(images, kernel) + bias)

    @jax.custom_vjp
    def convolve(images: Array, kernel_1: Array, bias: Array, kernel_2: Array) -> Array:
        return second(hidden_of(images, kernel_1, bias), kernel_2)

    def forward(*arguments: Any) -> tuple[Array, tuple[Any, ...]]:
        inputs = [argument.value for argument in arguments]
        # Of the images and of kernel_2: what is saved are arrays, so None says no.
        wanted = [() if arguments[i].perturbed else None for i in (0, 3)]
        return convolve(*inputs), (inputs, wanted)

    def backward(saved: tuple[Any, ...], cotangent: Array) -> tuple[Array | None, ...]:
        (images, kernel_1, bias, kernel_2), (images_wanted, kernel_wanted) = saved

        def of_block(images: Array, cotangent: Array) -> tuple[Any, ...]:
            kernel, images_late, kernel_bar = kernel_2, images, None
            if kernel_wanted is not None:
                # XLA would run the images' gradient first, at which all cores can work, and then
                # this, of which a part keeps one core busy, with a core idle at the end. What
                # this computes again would be in the way at the start of the step.
                kernel_late = _after(cotangent, kernel_1)

                def hidden_again(part: Array) -> Array:
                    return _channels_first_sum(part, kernel_late, bias)

                kernel_bar = _kernel_gradient(images, hidden_again, cotangent, plain)
                kernel, images_late = (_after(kernel_bar, x) for x in (kernel_2, images))
            # Another sum costs less than to keep the first.
            positive = hidden_of(images, kernel_1, bias) > 0
            hidden_bar = jnp.where(positive, _images_gradient(kernel, cotangent), 0)
            return (
                None if images_wanted is None else _images_gradient(kernel_1, hidden_bar),
                _few_gradient(images_late, kernel_1.shape, hidden_bar),
                hidden_bar.sum(axis=(0, 1, 2)),
                kernel_bar,
            )

        return _in_blocks(of_block, images, cotangent)

    convolve.defvjp(forward, backward, symbolic_zeros=True)
    return convolve


def _after(first: Array, then: Array) -> Array:
    """`then`, for which a program has to wait until it has `first`: nothing is above infinity,
    which XLA does not make use of. Small arrays wait at no cost."""
    return jnp.where(first.ravel()[0] > jnp.inf, 0, then)


def _in_blocks(function: Callable[..., tuple[Any, ...]], *arrays: Array) -> tuple[Any, ...]:
    """`function(*arrays)` a block of examples at a time, which stays in the cache: the first of
    what it returns is of each example, the others are sums over them."""
    count = len(arrays[0])
    if not count:
        each, *sums = function(*(jnp.zeros((1, *x.shape[1:]), x.dtype) for x in arrays))
        return jax.tree.map(lambda x: x[:0], each), *sums
    whole = count // _BLOCK * _BLOCK if count > _BLOCK else 0
    found = []
    if whole:
        blocks = [x[:whole].reshape(-1, _BLOCK, *x.shape[1:]) for x in arrays]
        # Two at a time: one of them fills what the other leaves a core idle for.
        _, (each, *sums) = lax.scan(lambda _, block: ((), function(*block)), (), blocks, unroll=2)
        each = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), each)
        found.append((each, *jax.tree.map(lambda x: x.sum(axis=0), sums)))
    if whole < count:
        found.append(function(*(x[whole:] for x in arrays)))
    if len(found) == 1:
        return found[0]
    (each, *sums), (each_of_rest, *sums_of_rest) = found
    together = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), each, each_of_rest)
    return together, *jax.tree.map(jnp.add, sums, sums_of_rest)


def _images_gradient(kernel: Array, cotangent: Array) -> Array:
    """Each row of the padded cotangent with the flipped columns of the kernel, all at once. What
    comes of them is added up one step to the right of each other: fewer zeros are multiplied
    than if all of the cotangent were padded."""
    height, width, channels, filters = kernel.shape
    columns = kernel[::-1].transpose(0, 3, 1, 2).reshape(height, 1, filters, width * channels)
    found = native_convolution(cotangent, columns, ((height - 1,) * 2, (0, 0)))
    found = found.reshape(*found.shape[:3], width, channels)
    rest = (0, 0)
    terms = (
        jnp.pad(found[:, :, :, j], (rest, rest, (j, width - 1 - j), rest)) for j in range(width)
    )
    return functools.reduce(jnp.add, terms)


def _few_gradient(images: Array, shape: Sequence[int], cotangent: Array) -> Array:
    """Of a kernel of this shape with few products: one product of their columns."""
    height, width = cotangent.shape[1:3]
    columns = jnp.concatenate([images[:, :, j : j + width] for j in range(shape[1])], axis=3)
    columns = jnp.concatenate([columns[:, i : i + height] for i in range(shape[0])], axis=3)
    found = columns.reshape(-1, math.prod(shape[:3])).T @ cotangent.reshape(-1, shape[3])
    return found.reshape(shape)


def _channels_first(images: Array) -> Array:
    """`[C, H, W, B]`."""
    return images.transpose(3, 1, 2, 0)


@jax.jit  # traced once for all parts
def _channels_first_sum(images: Array, kernel: Array, bias: Array) -> Array:
    """`_channels_first` of the sum of shifted images with bias and ReLU: less time than turning
    around what lies there already. Columns and examples are one axis to shift along."""
    count, height, width = (n - k + 1 for n, k in zip(images.shape, (1, *kernel.shape[:2])))
    rows = _channels_first(images).reshape(images.shape[3], images.shape[1], -1)
    terms = []
    for i, j, c in itertools.product(*map(range, kernel.shape[:3])):
        shifted = rows[c, i : i + height, j * count : (j + width) * count]
        terms.append(shifted * kernel[i, j, c][:, None, None])
    total = _sum(terms) + bias[:, None, None]
    return jax.nn.relu(total).reshape(-1, height, width, count)


def _kernel_gradient(
    inputs: Array, images_of: Callable[[Array], Array], cotangent: Array, plain: bool
) -> Array:
    """`[kh, kw, C, F]`, the sum over parts of a block, of which `images_of(part of the inputs)`
    are what the kernel sees, `[C, H, W, b]`.

    They run side by side: Eigen keeps one core busy with one of them. The fewer they are, the
    less it gathers."""
    size = max(_FEW_EXAMPLES, -(-len(inputs) // num_cpus()))
    parts = (slice(i, i + size) for i in range(0, len(inputs), size))
    found = (_gradient_of_part(images_of(inputs[part]), cotangent[part], plain) for part in parts)
    return functools.reduce(jnp.add, found).transpose(1, 2, 0, 3)


def _gradient_of_part(images: Array, cotangent: Array, plain: bool) -> Array:
    """Channels in the place of examples, examples in the place of channels: a convolution of the
    images `[C, H, W, b]` with the cotangent. Two columns of the kernel come from one, with twice
    the outputs and a stride of 2: Eigen gathers its inputs half as often. An AMD EPYC takes
    less time for one column after all."""
    width = images.shape[2] - cotangent.shape[2] + 1
    together = 1 if cpu_model().startswith("AMD ") else min(2, width)
    # Where that is to keep YNNPACK away, longer by zeros than the images are.
    below = 0, 0 if plain else images.shape[1] + 1 - cotangent.shape[1]
    kernel = cotangent.transpose(1, 2, 0, 3)
    shifts = ((below, (j, together - 1 - j), (0, 0), (0, 0)) for j in range(together))
    found = lax.conv_general_dilated(
        images,
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
      `[B, H - kh + 1, W - kw + 1, F]`. It has gradients, and these have gradients again; it has
      no derivatives forward (`jax.jvp`, `jax.hessian`).

    Raises:
      ValueError: shapes that do not fit each other.
    """
    _check_convolution(images.shape, kernel.shape)
    on_cpu = _on_cpu(are_convolutions_plain())
    return lax.platform_dependent(images, kernel, cpu=on_cpu, default=native_convolution)


def two_convolutions(images: Array, kernel_1: Array, bias: Array, kernel_2: Array) -> Array:
    """`convolution(relu(convolution(images, kernel_1) + bias), kernel_2)`.

    Where the first has few products, its outputs are cheaper to compute again than to turn
    around for the gradient of the second kernel.

    Args:
      images: `[B, H, W, C]`.
      kernel_1, bias: `[kh, kw, C, F]` and `[F]`.
      kernel_2: `[kh, kw, F, G]`.

    Raises:
      ValueError: shapes that do not fit each other.
    """
    between = _check_convolution(images.shape, kernel_1.shape)
    _check_convolution(between, kernel_2.shape)
    if not _few(images, kernel_1.shape[:2]):
        return convolution(jax.nn.relu(convolution(images, kernel_1) + bias), kernel_2)
    on_cpu = _two_on_cpu(are_convolutions_plain())
    inputs = images, kernel_1, bias, kernel_2
    return lax.platform_dependent(*inputs, cpu=on_cpu, default=_two_native)


def _two_native(images: Array, kernel_1: Array, bias: Array, kernel_2: Array) -> Array:
    hidden = jax.nn.relu(native_convolution(images, kernel_1) + bias)
    return native_convolution(hidden, kernel_2)


def _check_convolution(images: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
    """The shape of what comes of these shapes."""
    if len(images) != 4 or len(kernel) != 4:
        raise ValueError(
            "convolution expects images [B, H, W, C] and a kernel [kh, kw, C, F], got "
            f"{images} and {kernel}; add the channel axis: images[..., None]"
        )
    if images[3] != kernel[2]:
        raise ValueError(
            f"images {images} have {images[3]} channels, a kernel {kernel} takes {kernel[2]}"
        )
    height, width = (n - k + 1 for n, k in zip(images[1:3], kernel))
    if height < 1 or width < 1:
        raise ValueError(f"a kernel of {tuple(kernel[:2])} pixels is larger than images {images}")
    return images[0], height, width, kernel[3]


def in_small_batches(function: Callable[..., Array], size: int) -> Callable[..., Array]:
    """`function(images, *parameters)`, on a CPU run on `size` images at a time, whose
    activations stay in the cache; the whole batch at once elsewhere."""

    @functools.cache
    def mapped(plain: bool) -> Callable[..., Array]:
        """One for each form of the convolutions: JAX finds what it has traced by its function."""

        @jax.jit  # traced once for batches of all sizes
        def of_part(images: Array, *parameters: Array) -> Array:
            return function(images, *parameters)

        def in_parts(images: Array, *parameters: Array) -> Array:
            count, missing = len(images), -len(images) % size
            # A last part that is smaller would be a second program.
            images = jnp.pad(images, [(0, missing)] + [(0, 0)] * (images.ndim - 1))
            parts = images.reshape(-1, size, *images.shape[1:])
            found = lax.map(lambda part: of_part(part, *parameters), parts)
            return found.reshape(-1, *found.shape[2:])[:count]

        return in_parts

    def apply(images: Array, *parameters: Array) -> Array:
        if images.shape[0] <= size:
            return function(images, *parameters)
        on_cpu = mapped(are_convolutions_plain())
        return lax.platform_dependent(images, *parameters, cpu=on_cpu, default=function)

    return apply
