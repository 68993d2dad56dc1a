"""The networks of VAAL: a variational autoencoder, and a discriminator of its latent means.

Sinha, Ebrahimi & Darrell 2019, "Variational adversarial active learning"
(arXiv:1904.00370), in the sizes of two public implementations: one for MNIST, one for
32x32 images, and a small perceptron for feature vectors. Strided and transposed
convolutions are written as stride-1 convolutions of rearranged arrays, so that they and
both their gradients take XLA:CPU's fast path (see `convolution`).

All weights start from Kaiming's normal distribution (He et al. 2015, arXiv:1502.01852;
deviation sqrt(2 / fan in)), all biases from 0.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from bayesian_active_learning.models.convolutions import convolution
from bayesian_active_learning.types import Array, Key, PyTree, Variables
from bayesian_active_learning.utils import check_one_of, check_positive

NETWORKS = ("auto", "small", "large", "mlp")
"""Names of the autoencoders, see `autoencoder`."""


class AutoencoderOutputs(NamedTuple):
    """What an autoencoder makes of a batch."""

    reconstruction: Array  # as the inputs, of one z drawn from N(mean, e^log_variance)
    mean: Array  # [B, Z]
    log_variance: Array  # [B, Z]


class Autoencoder(NamedTuple):
    """A variational autoencoder as pure functions.

    init:   (key, inputs [B, ...]) -> Variables
    apply:  (variables, noise [B, Z], inputs) -> (AutoencoderOutputs, state): for training,
            with the statistics of the batch in BatchNorm; `state` carries its running
            averages. `noise` is standard normal: z = mean + deviation * noise.
    encode: (variables, inputs) -> mean [B, Z], with the running averages: rows do not
            see each other, and nothing changes. Wants a state that `apply` returned.
    """

    init: Callable[[Key, Array], Variables]
    apply: Callable[[Variables, Array, Array], tuple[AutoencoderOutputs, PyTree]]
    encode: Callable[[Variables, Array], Array]


class Discriminator(NamedTuple):
    """init: (key, latents [B, Z]) -> params; apply: (params, latents) -> logits `[B]` of
    "this one is labelled": D = sigmoid(logit)."""

    init: Callable[[Key, Array], PyTree]
    apply: Callable[[PyTree, Array], Array]


def downsample(images: Array, kernel: Array) -> Array:
    """Convolution with stride 2 and padding 1, for kernels 3x3 and 4x4.

    Args:
      images: `[B, H, W, C]`.
      kernel: `[k, k, C, F]`.

    Returns:
      `[B, (H + 2 - k) // 2 + 1, (W + 2 - k) // 2 + 1, F]`.
    """
    size = kernel.shape[0]
    if images.ndim != 4 or kernel.shape[:2] not in ((3, 3), (4, 4)):
        raise ValueError(
            "downsample expects images [B, H, W, C] and a kernel 3x3 or 4x4, got "
            f"{images.shape} and {kernel.shape}"
        )
    batch, height, width, channels = images.shape
    rows, columns = ((length + 2 - size) // 2 + 1 for length in (height, width))
    # Space to depth: with 2x2 blocks as channels, stride 2 becomes stride 1.
    padding = [(0, 0), (1, 2 * rows + 1 - height), (1, 2 * columns + 1 - width), (0, 0)]
    blocks = jnp.pad(images, padding).reshape(batch, rows + 1, 2, columns + 1, 2, channels)
    blocks = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows + 1, columns + 1, -1)
    kernel = jnp.pad(kernel, [(0, 4 - size), (0, 4 - size), (0, 0), (0, 0)])
    kernel = kernel.reshape(2, 2, 2, 2, channels, -1).transpose(0, 2, 1, 3, 4, 5)
    return convolution(blocks, kernel.reshape(2, 2, 4 * channels, -1))


def upsample(images: Array, kernel: Array) -> Array:
    """Transposed convolution with stride 2 and padding 1 for kernels 4x4: twice the size.

    The adjoint of `downsample` when the kernel's last two axes are exchanged: input pixel
    i meets output pixel o through kernel position o + 1 - 2i.

    Args:
      images: `[B, H, W, C]`.
      kernel: `[4, 4, C, F]`.

    Returns:
      `[B, 2H, 2W, F]`.
    """
    if images.ndim != 4 or kernel.shape[:2] != (4, 4):
        raise ValueError(
            "upsample expects images [B, H, W, C] and a kernel 4x4, got "
            f"{images.shape} and {kernel.shape}"
        )
    batch, height, width, channels = images.shape
    # Even output pixels see kernel positions 3 and 1 of two neighbours, odd ones 2 and 0.
    taps = jnp.array([[3, 1], [2, 0]])
    phases = kernel[taps[:, :, None, None], taps]  # [row phase, row tap, column phase, tap, C, F]
    phases = phases.transpose(1, 3, 4, 0, 2, 5).reshape(2, 2, channels, -1)
    padded = jnp.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)])
    found = convolution(padded, phases).reshape(batch, height + 1, width + 1, 2, 2, -1)
    rows = [
        jnp.stack([found[:, a : a + height, b : b + width, a, b] for b in (0, 1)], axis=3)
        for a in (0, 1)
    ]  # [B, H, W, column phase, F] each
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)


def _kernel(name: str, size: int, channels: int, filters: int) -> Array:
    return hk.get_parameter(name, (size, size, channels, filters), init=jnp.zeros)


def _initial(key: Key, like: PyTree) -> PyTree:
    """Parameters of the shapes of `like`: Kaiming's normal weights, biases 0, scales 1.

    One draw for all: a draw for each takes XLA 5 s to compile, this one 0.6 s.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    left = jax.random.normal(key, (sum(leaf.size for _, leaf in leaves),), jnp.float32)
    found = []
    for path, leaf in leaves:
        draw, left = left[: leaf.size].reshape(leaf.shape), left[leaf.size :]
        name = path[-1].key
        fan_in = math.prod(leaf.shape[:-1])
        if name.startswith("up_"):
            fan_in //= 4  # of 4x4 taps, 2x2 meet in one output pixel
        constants = {"b": 0.0, "offset": 0.0, "scale": 1.0}
        if name in constants:
            found.append(jnp.full(leaf.shape, constants[name], leaf.dtype))
        else:
            found.append((draw * math.sqrt(2 / fan_in)).astype(leaf.dtype))
    return jax.tree.unflatten(structure, found)


def _normalised(hidden: Array, training: bool, name: str) -> Array:
    layer = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9, name=name)
    return jax.nn.relu(layer(hidden, is_training=training))


def _linear(size: int, name: str, with_bias: bool = True) -> hk.Linear:
    return hk.Linear(size, with_bias, w_init=jnp.zeros, b_init=jnp.zeros, name=name)


def _encode_images(
    images: Array, training: bool, kernel_size: int, filters: tuple[int, ...]
) -> Array:
    hidden = images
    for number, width in enumerate(filters, 1):
        kernel = _kernel(f"down_{number}", kernel_size, hidden.shape[-1], width)
        hidden = _normalised(downsample(hidden, kernel), training, f"down_{number}_norm")
    return jax.lax.collapse(hidden, 1)


def _decode_images(
    latents: Array, training: bool, start: tuple[int, int, int], filters: tuple[int, ...]
) -> Array:
    hidden = _linear(start[0] * start[1] * start[2], "expand")(latents).reshape(-1, *start)
    for number, width in enumerate(filters, 1):
        kernel = _kernel(f"up_{number}", 4, hidden.shape[-1], width)
        hidden = _normalised(upsample(hidden, kernel), training, f"up_{number}_norm")
    return hidden


def _small(inputs: Array, training: bool) -> tuple[Array, Callable[[Array], Array]]:
    _, height, width, channels = inputs.shape
    start = (-(-height // 4), -(-width // 4), 64)

    def decode(latents: Array) -> Array:
        hidden = _decode_images(latents, training, start, (32,))
        found = upsample(hidden, _kernel("up_2", 4, 32, channels))
        return found[:, :height, :width]

    return _encode_images(inputs, training, 3, (32, 64)), decode


def _large(inputs: Array, training: bool) -> tuple[Array, Callable[[Array], Array]]:
    _, height, width, channels = inputs.shape
    start = (-(-height // 8), -(-width // 8), 1024)

    def decode(latents: Array) -> Array:
        hidden = _decode_images(latents, training, start, (512, 256, 128))
        return _linear(channels, "pixels")(hidden)[:, :height, :width]  # a 1x1 convolution

    return _encode_images(inputs, training, 4, (128, 256, 512, 1024)), decode


def _mlp(inputs: Array, training: bool) -> tuple[Array, Callable[[Array], Array]]:
    def layers(hidden: Array, sizes: tuple[int, ...], name: str) -> Array:
        for number, size in enumerate(sizes, 1):
            hidden = _linear(size, f"{name}_{number}", with_bias=False)(hidden)
            hidden = _normalised(hidden, training, f"{name}_{number}_norm")
        return hidden

    def decode(latents: Array) -> Array:
        hidden = layers(latents, (128, 256), "up")
        return _linear(flat.shape[1], "output")(hidden).reshape(inputs.shape)

    flat = jax.lax.collapse(inputs, 1)
    return layers(flat, (256, 128), "down"), decode


def network_for(shape: tuple[int, ...], network: str = "auto") -> str:
    """The autoencoder for inputs of this shape (without the batch): "auto" becomes "mlp"
    for vectors, "large" for images of 32x32 and more, "small" for smaller ones.

    Raises:
      ValueError: an unknown name, or inputs that the network cannot take.
    """
    check_one_of("network", network, NETWORKS)
    if len(shape) not in (1, 3) or 0 in shape:
        raise ValueError(
            f"VAAL expects images [H, W, C] or vectors [D] by row, got rows of shape {shape}; "
            "give images without a channel axis one: images[..., None]"
        )
    if network == "auto":
        if len(shape) == 1:
            return "mlp"
        return "large" if min(shape[:2]) >= 32 else "small"
    least = {"small": 4, "large": 16, "mlp": 0}[network]
    if network != "mlp" and len(shape) == 1:
        raise ValueError(f'network {network!r} wants images, got vectors {shape}; use "mlp"')
    if len(shape) == 3 and min(shape[:2]) < least:
        raise ValueError(
            f"network {network!r} wants images of {least}x{least} or more, got {shape}"
        )
    return network


@functools.lru_cache(maxsize=32)
def autoencoder(network: str = "small", z_dim: int = 32) -> Autoencoder:
    """A variational autoencoder; equal arguments give the same object.

    "small", for MNIST (356,512 parameters on 28x28x1): convolutions 3x3 stride 2 with 32
    and 64 filters; dense mean and log-variance; back through dense 7x7x64 and transposed
    convolutions 4x4 stride 2 with 32 filters and C.
    "large", for 32x32 (22.8 million parameters on 3 channels): convolutions 4x4 stride 2
    with 128, 256, 512, 1024 filters; back through dense 4x4x1024, transposed convolutions
    4x4 stride 2 with 512, 256, 128 and a 1x1 to C. About 1 GFLOP an image forward: for
    accelerators; on a CPU, "small" takes such images too.
    "mlp", for vectors: dense 256 and 128, and back.

    No bias before BatchNorm (running averages 0.9), ReLU after it. Other sizes of image
    are decoded to the next multiple of 4 or 8, and cropped. The output is linear: the
    inputs are standardised, and the sigmoid of the MNIST original could not reach them.
    """
    check_one_of("network", network, NETWORKS[1:])
    check_positive(z_dim=z_dim)
    body = {"small": _small, "large": _large, "mlp": _mlp}[network]

    def forward(inputs: Array, noise: Array | None) -> AutoencoderOutputs:
        hidden, decode = body(inputs, noise is not None)
        mean = _linear(z_dim, "mean")(hidden)
        log_variance = _linear(z_dim, "log_variance")(hidden)
        if noise is None:
            return AutoencoderOutputs(inputs, mean, log_variance)  # nothing is decoded
        reconstruction = decode(mean + jnp.exp(0.5 * log_variance) * noise)
        return AutoencoderOutputs(reconstruction, mean, log_variance)

    transformed = hk.transform_with_state(forward)

    def init(key: Key, inputs: Array) -> Variables:
        noise = jnp.zeros((inputs.shape[0], z_dim), inputs.dtype)
        params, state = jax.eval_shape(transformed.init, key, inputs, noise)
        # BatchNorm has counted and averaged nothing yet.
        return Variables(
            _initial(key, params), jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
        )

    def apply(
        variables: Variables, noise: Array, inputs: Array
    ) -> tuple[AutoencoderOutputs, PyTree]:
        return transformed.apply(variables.params, variables.state, None, inputs, noise)

    def encode(variables: Variables, inputs: Array) -> Array:
        params, state = variables
        return transformed.apply(params, state, None, inputs, None)[0].mean

    return Autoencoder(init, apply, encode)


@functools.cache
def discriminator() -> Discriminator:
    """Four dense layers of 512 with ReLU and one output, on latent means `[B, Z]`."""

    def forward(latents: Array) -> Array:
        hidden = latents
        for number in range(1, 5):
            hidden = jax.nn.relu(_linear(512, f"dense_{number}")(hidden))
        return _linear(1, "logit")(hidden)[:, 0]

    transformed = hk.transform(forward)

    def init(key: Key, latents: Array) -> PyTree:
        return _initial(key, jax.eval_shape(transformed.init, key, latents))

    def apply(params: PyTree, latents: Array) -> Array:
        return transformed.apply(params, None, latents)

    return Discriminator(init, apply)
