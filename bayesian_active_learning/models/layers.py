"""Dropout, dense layers and max-pooling, in forms that XLA:CPU is fast at."""

import functools
import math
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from jax import lax

from bayesian_active_learning.compilation import are_convolutions_plain
from bayesian_active_learning.models.convolutions import native_convolution
from bayesian_active_learning.types import Array, Key

MODES = ("train", "sample", "mean")
_GLOROT = hk.initializers.VarianceScaling(1.0, "fan_avg", "uniform")  # Keras' default


class ConvolutionParameters(hk.Module):
    """Kernel and bias of a convolution layer, as parameters `w` and `b`."""

    def __init__(self, filters: int, kernel_size: int, name: str | None = None):
        super().__init__(name)
        self.filters, self.kernel_size = filters, kernel_size

    def __call__(self, channels: int) -> tuple[Array, Array]:
        shape = (self.kernel_size, self.kernel_size, channels, self.filters)
        kernel = hk.get_parameter("w", shape, init=_GLOROT)
        return kernel, hk.get_parameter("b", (self.filters,), init=jnp.zeros)


_FEW_WORDS = 2**13
"""Fewer are not worth it. Such is a mask that all examples share, of up to 32,768 units. Made in a
loop of ours, `hoisting.map_draws` would take posterior samples one at a time."""
_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)


def _words(key: Key, count: int) -> Array:
    """`jax.random.bits(key, (count,), "uint32")`, the same bits.

    JAX's threefry is a loop of passes over memory on a CPU. Its 20 rounds written out are one
    pass, four to seven times as fast.
    """
    partitionable = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    usual = partitionable and jax.random.key_impl(key) == "threefry2x32"
    if count < _FEW_WORDS or not usual:
        return jax.random.bits(key, (count,), "uint32")

    def on_cpu(data: Array) -> Array:
        half = -(-count // 2)
        # In two pieces: XLA makes one anew for each byte that is taken of it.
        pieces = lax.map(lambda i: _threefry(data, i * half, half), jnp.arange(2, dtype=jnp.uint32))
        return pieces.ravel()[:count]

    def elsewhere(data: Array) -> Array:
        key = jax.random.wrap_key_data(data, impl="threefry2x32")
        return jax.random.bits(key, (count,), "uint32")

    return lax.platform_dependent(jax.random.key_data(key), cpu=on_cpu, default=elsewhere)


def _threefry(key: Array, start: Array, count: int) -> Array:
    """Words `start` to `start + count - 1` of a key `[2]`.

    Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3". Numbers of 64 bits are
    counted, and JAX takes the exclusive or of both halves of what comes of one.
    """
    keys = *key, key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA)
    high = jnp.full(count, key[0])  # of the counter all zeros, plus the key
    low = start + jnp.arange(count, dtype=jnp.uint32) + key[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            high = high + low
            low = high ^ (low << rotation | low >> 32 - rotation)
        high = high + keys[(group + 1) % 3]
        low = low + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return high ^ low


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
    words = _words(key, -(-inputs.size // 4))
    found = lax.bitcast_convert_type(words, jnp.uint8).ravel()[: inputs.size]
    return jnp.where(found.reshape(inputs.shape) >= int(threshold), inputs / (1 - rate), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def relu_dropout(key: Key, rate: float, inputs: Array) -> Array:
    """`dropout(key, rate, relu(inputs))`.

    Its derivative takes the outputs, which are positive where it is not zero, in the place of
    the inputs and of the random bits once more.
    """
    return dropout(key, rate, jax.nn.relu(inputs))


def _relu_dropout_forward(key: Key, rate: float, inputs: Array) -> tuple[Array, Array]:
    outputs = relu_dropout(key, rate, inputs)
    return outputs, outputs


def _relu_dropout_backward(rate: float, outputs: Array, cotangent: Array) -> tuple[None, Array]:
    return None, jnp.where(outputs > 0, cotangent / (1 - rate), 0)


relu_dropout.defvjp(_relu_dropout_forward, _relu_dropout_backward)


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


def _flat_product(inputs: Array, weights: Array) -> Array:
    """Of inputs made flat, `[B, D] @ weights`.

    In programs of ours on a CPU a convolution as large as the images: XLA makes a slow loop of
    what leaves flat images, and runs it again for the derivative.
    """
    float32 = inputs.dtype == weights.dtype == jnp.float32
    if inputs.ndim != 4 or not float32 or not are_convolutions_plain():
        return _flattened(inputs, weights)
    return lax.platform_dependent(inputs, weights, cpu=_product_by_convolution, default=_flattened)


def _flattened(inputs: Array, weights: Array) -> Array:
    return lax.collapse(inputs, 1) @ weights


@jax.custom_batching.custom_vmap
def _as_convolution(images: Array, weights: Array) -> Array:
    found = native_convolution(images, weights.reshape(*images.shape[1:], -1))
    return lax.collapse(found, 1)


@_as_convolution.def_vmap
def _(axis_size, in_batched, *arguments):
    axes = [0 if batched else None for batched in in_batched]
    return jax.vmap(_flattened, axes, axis_size=axis_size)(*arguments), True


def with_derivative_of(
    plain: Callable[..., Array], function: Callable[..., Array]
) -> Callable[..., Array]:
    """`function`, which has the values of `plain` and a rule for `vmap`: such a function has no
    derivative of its own."""
    found = jax.custom_vjp(lambda *arguments: function(*arguments))
    found.defvjp(
        lambda *arguments: (found(*arguments), arguments),
        lambda arguments, cotangent: jax.vjp(plain, *arguments)[1](cotangent),
    )
    return found


_product_by_convolution = with_derivative_of(_flattened, _as_convolution)


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
        if mode == "train":
            if self.rate:
                inputs = dropout(hk.next_rng_key(), self.rate, inputs)
            return _flat_product(inputs, weights) + bias
        if mode == "sample" and self.rate:
            weights = weights * self.mask(size, inputs.dtype)[:, None]
        return _flattened(inputs, weights) + bias

    def after_relu(self, inputs: Array, mode: str) -> Array:
        """`self(relu(inputs), mode)`, for images in mode "train" with a faster derivative."""
        if mode != "train" or not self.rate or inputs.ndim != 4:
            return self(jax.nn.relu(inputs), mode)
        weights, bias = self.parameters(math.prod(inputs.shape[1:]))
        dropped = relu_dropout(hk.next_rng_key(), self.rate, inputs)
        return _flat_product(dropped, weights) + bias


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
