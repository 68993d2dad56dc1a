"""Layers whose fast form differs from the textbook one. Same numbers, less time.

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

import haiku as hk
import jax
import jax.numpy as jnp
from jax import lax

from bayesian_active_learning.compilation import are_convolutions_plain
from bayesian_active_learning.types import Array, Key

MODES = ("train", "sample", "mean")
_GLOROT = hk.initializers.VarianceScaling(1.0, "fan_avg", "uniform")  # Keras' default
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


class ConvolutionParameters(hk.Module):
    """Kernel and bias of a convolution layer, as parameters `w` and `b`."""

    def __init__(self, filters: int, kernel_size: int, name: str | None = None):
        super().__init__(name)
        self.filters, self.kernel_size = filters, kernel_size

    def __call__(self, channels: int) -> tuple[Array, Array]:
        shape = (self.kernel_size, self.kernel_size, channels, self.filters)
        kernel = hk.get_parameter("w", shape, init=_GLOROT)
        return kernel, hk.get_parameter("b", (self.filters,), init=jnp.zeros)


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


def dropout(key: Key, rate: float, inputs: Array) -> Array:
    """Zero with probability `rate`, else `inputs / (1 - rate)`.

    A rate that is a whole number of 256ths takes a byte of random bits for each input, in the
    place of the four that `haiku.dropout` takes: most of a mask's time is their making.

    Raises:
      ValueError: a rate outside of [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate must lie in [0, 1), got {rate}")
    threshold = 256 * rate
    if threshold % 1:
        return hk.dropout(key, rate, inputs)
    words = jax.random.bits(key, (-(-inputs.size // 4),), "uint32")
    found = lax.bitcast_convert_type(words, jnp.uint8).ravel()[: inputs.size]
    return jnp.where(found.reshape(inputs.shape) >= int(threshold), inputs / (1 - rate), 0)


def channel_mask(rate: float, inputs: Array, mode: str) -> Array:
    """Dropout of whole channels: what to multiply `[B, H, W, C]` by, `[B, 1, 1, C]` in mode
    "train" and `[1, 1, 1, C]`, one mask for all examples, in mode "sample".

    Tompson et al. (2015), "Efficient object localization using convolutional networks".
    """
    if mode == "mean" or not rate:
        return jnp.ones((1, 1, 1, inputs.shape[-1]), inputs.dtype)
    examples = inputs.shape[0] if mode == "train" else 1
    ones = jnp.ones((examples, 1, 1, inputs.shape[-1]), inputs.dtype)
    return dropout(hk.next_rng_key(), rate, ones)


class DropoutLinear(hk.Module):
    """Dropout on the inputs `[B, ...]` of a dense layer, then the layer: parameters `w` and `b`.

    In mode "sample" the mask is shared by all examples, so dropping inputs and
    dropping rows of the weights are the same thing; the weights are the smaller.
    """

    def __init__(self, output_size: int, rate: float, name: str | None = None):
        super().__init__(name)
        self.output_size, self.rate = output_size, rate

    def parameters(self, input_size: int) -> tuple[Array, Array]:
        """`[D, output_size]` and `[output_size]`."""
        weights = hk.get_parameter("w", (input_size, self.output_size), init=_GLOROT)
        return weights, hk.get_parameter("b", (self.output_size,), init=jnp.zeros)

    def mask(self, input_size: int, dtype: Any) -> Array:
        """Of one posterior sample: what to multiply the inputs by, `[D]`."""
        return dropout(hk.next_rng_key(), self.rate, jnp.ones(input_size, dtype))

    def __call__(self, inputs: Array, mode: str) -> Array:
        size = math.prod(inputs.shape[1:])
        weights, bias = self.parameters(size)
        if mode == "train" and self.rate:
            # Before it is flattened: XLA:CPU makes slow loops of a flat mask on what a
            # convolution left.
            inputs = dropout(hk.next_rng_key(), self.rate, inputs)
        elif mode == "sample" and self.rate:
            weights = weights * self.mask(size, inputs.dtype)[:, None]
        return inputs.reshape(len(inputs), -1) @ weights + bias


def last_layers(
    inputs: Array, hidden: DropoutLinear, output: DropoutLinear, mode: str
) -> tuple[Array, Array]:
    """Two dense layers with ReLU between: outputs of the second, and its inputs before dropout.

    In mode "sample" hidden units that the mask drops for all examples need not be computed: on a
    CPU they are left out, the same numbers for half the work at a rate of 1/2. Under `vmap` over
    posterior samples, what is left of several of them is one matrix product. Elsewhere sizes
    that depend on the mask cost more than they save.

    For inputs that are the same for all samples, and a hidden layer without dropout, two plain
    layers are faster: the first of them is then computed once (`hoisting`).
    """
    units = hidden.output_size
    if mode != "sample" or not output.rate or units < _FEW_UNITS:
        features = jax.nn.relu(hidden(inputs, mode))
        return output(features, mode), features
    flat = inputs.reshape(len(inputs), -1)
    weights, bias = hidden.parameters(flat.shape[1])
    mask = hidden.mask(flat.shape[1], flat.dtype) if hidden.rate else jnp.ones_like(flat[0])
    last, last_bias = output.parameters(units)
    last = last * output.mask(units, flat.dtype)[:, None]
    features = jax.nn.relu(flat @ (weights * mask[:, None]) + bias)
    outputs = lax.platform_dependent(
        *(flat, mask, weights, bias, last), cpu=_skipping(output.rate), default=_all_units
    )
    return outputs + last_bias, features


_FEW_UNITS = 32  # the work is not worth a choice
_STEP = 8  # of numbers of units that are compiled


def _all_units(flat: Array, mask: Array, weights: Array, bias: Array, last: Array) -> Array:
    """`[n, C]` of inputs `[n, D]`, their mask `[D]`, `[D, U]`, `[U]` and masked rows `[U, C]`."""
    return jax.nn.relu(flat @ (weights * mask[:, None]) + bias) @ last


@functools.lru_cache(maxsize=32)
def _skipping(rate: float) -> Callable[..., Array]:
    """`_all_units` without those whose row in `last` is all zeros, of which `rate` is the share."""
    one_by_one = jax.vmap(_all_units, (None, 0, None, None, 0))

    @jax.custom_batching.custom_vmap
    def together(flat, masks, weights, bias, lasts):
        """`[S, n, C]` of S samples, `masks [S, D]` and `lasts [S, U, C]`."""
        num_samples, units, num_classes = lasts.shape
        kept = jnp.any(lasts != 0, axis=2).ravel()
        order = jnp.argsort(~kept, stable=True).astype(jnp.int32)  # the kept ones first

        def only(size: int) -> Callable[[], Array]:
            def apply() -> Array:
                samples, chosen = lax.div(order[:size], units), lax.rem(order[:size], units)
                # Row by row of the transpose, where they lie in one piece: XLA:CPU gathers many at
                # once number by number.
                units_first = weights.T
                rows = lax.map(lambda of: units_first[of[1]] * masks[of[0]], (samples, chosen))
                hidden = jax.nn.relu(flat @ rows.T + bias[chosen])
                own = samples[:, None] == jnp.arange(num_samples)
                blocks = jnp.where(own[:, :, None], lasts[samples, chosen][:, None], 0)
                outputs = hidden @ blocks.reshape(size, -1)
                return outputs.reshape(-1, num_samples, num_classes).swapaxes(0, 1)

            return apply

        def every() -> Array:
            return lax.map(lambda own: _all_units(flat, own[0], weights, bias, own[1]), all_own)

        all_own = masks, lasts
        sizes = _usual_sizes(kept.size, 1 - rate)
        branch = jnp.searchsorted(jnp.asarray(sizes, jnp.int32), jnp.sum(kept))
        return lax.switch(branch, [*map(only, sizes), every])

    @together.def_vmap
    def _(axis_size, in_batched, *arguments):
        axes = [0 if batched else None for batched in in_batched]
        return jax.vmap(one_by_one, axes, axis_size=axis_size)(*arguments), True

    @jax.custom_batching.custom_vmap
    def skipping(flat, mask, weights, bias, last):
        return together(flat, mask[None], weights, bias, last[None])[0]

    @skipping.def_vmap
    def _(axis_size, in_batched, *arguments):
        if any(in_batched[i] for i in (0, 2, 3)):
            axes = [0 if batched else None for batched in in_batched]
            return jax.vmap(_all_units, axes, axis_size=axis_size)(*arguments), True
        flat, mask, weights, bias, last = arguments
        masks, lasts = (
            x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
            for x, batched in ((mask, in_batched[1]), (last, in_batched[4]))
        )
        return together(flat, masks, weights, bias, lasts), True

    # A function with a rule for vmap has no derivative of its own.
    with_gradient = jax.custom_vjp(lambda *arguments: skipping(*arguments))
    with_gradient.defvjp(
        lambda *arguments: (skipping(*arguments), arguments),
        lambda arguments, cotangent: jax.vjp(_all_units, *arguments)[1](cotangent),
    )
    return with_gradient


def _usual_sizes(total: int, share: float) -> list[int]:
    """Numbers of kept units, of `total`, that are compiled: one is nearly always enough."""
    mean, deviation = total * share, math.sqrt(total * share * (1 - share))
    steps = {math.ceil((mean + widths * deviation) / _STEP) for widths in (0, 1, 3)}
    return sorted(step * _STEP for step in steps if step * _STEP < total)


@jax.custom_vjp
def max_pool_2x2(images: Array) -> Array:
    """2x2 max-pooling with stride 2, `[B, H, W, C] -> [B, H // 2, W // 2, C]`; an odd
    last row or column is dropped. Of two neighbours the larger takes the gradient whole, equal
    ones half each."""
    return _pooled(images)[-1]


def _pooled(images: Array) -> tuple[Array, Array, Array, Array]:
    """Pairs of rows `[B, h, 2, 2 w, C]`, their maxima `[B, h, 2 w, C]`, pairs of those, in
    columns, `[B, h, w, 2, C]`, and their maxima `[B, h, w, C]`.

    One axis after the other: XLA:CPU makes slow loops of a maximum over two axes."""
    batch, height, width, channels = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    rows = even.reshape(batch, height // 2, 2, width // 2 * 2, channels)
    larger = jnp.maximum(rows[:, :, 0], rows[:, :, 1])
    columns = larger.reshape(batch, height // 2, width // 2, 2, channels)
    return rows, larger, columns, jnp.maximum(columns[:, :, :, 0], columns[:, :, :, 1])


def _shares(pairs: Array, larger: Array, axis: int) -> Array:
    """Of the gradient, for each of `pairs`, which lie along an axis of length 2."""
    one, other = jnp.split(pairs, 2, axis)
    tie = jnp.where(one == other, 0.5, 1.0).astype(pairs.dtype)
    return jnp.where(pairs == jnp.expand_dims(larger, axis), tie, 0)


def _unpool(images: Array, cotangent: Array) -> tuple[Array]:
    """In one loop, where a derivative of slices would be sums of padded arrays, and without
    select-and-scatter, which accelerators cannot run deterministically."""
    rows, larger, columns, largest = _pooled(images)
    spread = cotangent[:, :, :, None] * _shares(columns, largest, 3)
    spread = spread.reshape(larger.shape)[:, :, None] * _shares(rows, larger, 2)
    even = spread.reshape(len(images), 2 * rows.shape[1], *rows.shape[3:])
    missing = [(0, whole - done) for whole, done in zip(images.shape, even.shape)]
    return (jnp.pad(even, missing),)


max_pool_2x2.defvjp(lambda images: (max_pool_2x2(images), images), _unpool)
