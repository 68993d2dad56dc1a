"""The networks, as Haiku functions `(inputs, mode) -> Outputs`."""

from collections.abc import Callable

import haiku as hk
import jax

from bayesian_active_learning.models.convolutions import (
    convolution,
    in_small_batches,
    two_convolutions,
)
from bayesian_active_learning.models.dropped import last_layers
from bayesian_active_learning.models.layers import (
    MODES,
    ConvolutionParameters,
    DropoutLinear,
    channel_mask,
    max_pool_2x2,
)
from bayesian_active_learning.types import Array, Model, Outputs, Variables
from bayesian_active_learning.utils import check_one_of, check_positive

_SMALL = 20  # images at a time through the convolutions; divides most chunks


def from_haiku(forward: Callable[[Array, str], Outputs]) -> Model:
    """A `Model` from a Haiku function `forward(inputs, mode) -> Outputs`.

    `forward` may use parameters, state and `hk.next_rng_key()`. Modes "sample" and
    "mean" return the state they were given, whatever `forward` does to it.
    """
    transformed = hk.transform_with_state(forward)

    def init(key, inputs):
        return Variables(*transformed.init(key, inputs, "mean"))

    def apply(variables, key, inputs, *, mode):
        check_one_of("mode", mode, MODES)
        outputs, state = transformed.apply(variables.params, variables.state, key, inputs, mode)
        return outputs, state if mode == "train" else variables.state

    return Model(init, apply)


def _pooled(images: Array, kernel_1: Array, bias_1: Array, kernel_2: Array, bias_2: Array) -> Array:
    return max_pool_2x2(two_convolutions(images, kernel_1, bias_1, kernel_2)) + bias_2


def _convolutions(*inputs: Array) -> Array:
    return jax.nn.relu(_pooled(*inputs))


# Made once: JAX finds what it has traced by the function that it was.
_convolutions_in_batches = in_small_batches(_convolutions, _SMALL)


def convnet(num_classes: int = 10) -> Model:
    """The network of Gal, Islam & Ghahramani (2017), section 5.

    conv 32 4x4 VALID - ReLU - conv 32 4x4 VALID - ReLU - max-pool 2x2 - dropout 0.25 -
    dense 128 - ReLU - dropout 0.5 - dense C. On 28x28x1 images with ten classes it has
    513,994 parameters. Takes images `[B, H, W, C]` of at least 8x8.
    """
    check_positive(num_classes=num_classes)

    def forward(images: Array, mode: str) -> Outputs:
        if images.ndim != 4 or min(images.shape[1:3]) < 8:
            raise ValueError(
                f"convnet expects images [B, H, W, C] of at least 8x8, got {images.shape}; "
                "for feature vectors [B, D] use mlp"
            )
        parameters = (
            *ConvolutionParameters(32, 4, name="conv_1")(images.shape[-1]),
            *ConvolutionParameters(32, 4, name="conv_2")(32),
        )
        dense = DropoutLinear(128, 0.25, name="dense_1")
        head = DropoutLinear(num_classes, 0.5, name="dense_2")
        if mode == "train":
            features = jax.nn.relu(dense.after_relu(_pooled(images, *parameters), mode))
            return Outputs(head(features, mode), features)
        hidden = _convolutions_in_batches(images, *parameters)
        return Outputs(*last_layers(hidden, dense, head, mode))

    return from_haiku(forward)


def _block(images: Array, kernel: Array, bias: Array) -> Array:
    return jax.nn.relu(max_pool_2x2(convolution(images, kernel)) + bias)


_block_in_batches = in_small_batches(_block, _SMALL)


def batchbald_convnet(num_classes: int = 10) -> Model:
    """The network of Kirsch, van Amersfoort & Gal, "BatchBALD" (2019), section 4.1.

    conv 32 5x5 VALID - channel dropout 0.5 - max-pool 2x2 - ReLU - conv 64 5x5 VALID - channel
    dropout 0.5 - max-pool 2x2 - ReLU - dense 128 - ReLU - dropout 0.5 - dense C. On 28x28x1
    images with ten classes it has 184,586 parameters. Takes images `[B, H, W, C]` of at least
    16x16. Its weights begin as those of the other networks here do, by Glorot & Bengio.
    """
    check_positive(num_classes=num_classes)

    def forward(images: Array, mode: str) -> Outputs:
        if images.ndim != 4 or min(images.shape[1:3]) < 16:
            raise ValueError(
                f"batchbald_convnet expects images [B, H, W, C] of at least 16x16, got "
                f"{images.shape}"
            )
        block = _block if mode == "train" else _block_in_batches
        # A mask is never negative, so it may as well come after ReLU and pooling: what is
        # before it is then the same for all samples.
        hidden = block(images, *ConvolutionParameters(32, 5, name="conv_1")(images.shape[-1]))
        hidden = hidden * channel_mask(0.5, hidden, mode)
        hidden = block(hidden, *ConvolutionParameters(64, 5, name="conv_2")(32))
        hidden = hidden * channel_mask(0.5, hidden, mode)
        dense = DropoutLinear(128, 0.0, name="dense_1")
        head = DropoutLinear(num_classes, 0.5, name="dense_2")
        return Outputs(*last_layers(hidden, dense, head, mode))

    return from_haiku(forward)


def mlp(num_classes: int = 10, hidden_sizes: tuple[int, ...] = (128,), rate: float = 0.5) -> Model:
    """Dense layers with ReLU and dropout `rate` before all but the first, on flattened inputs."""
    check_positive(num_classes=num_classes)
    if not 0 <= rate < 1:
        raise ValueError(f"rate must lie in [0, 1), got {rate}")

    def forward(inputs: Array, mode: str) -> Outputs:
        features = jax.lax.collapse(inputs, 1)
        layers = [
            DropoutLinear(size, rate if index else 0.0, name=f"dense_{index + 1}")
            for index, size in enumerate(hidden_sizes)
        ]
        head = DropoutLinear(num_classes, rate if hidden_sizes else 0.0, name="head")
        for layer in layers[:-1]:
            features = jax.nn.relu(layer(features, mode))
        if len(layers) > 1:
            return Outputs(*last_layers(features, layers[-1], head, mode))
        if layers:  # without dropout, the same for all samples
            features = jax.nn.relu(layers[0](features, mode))
        return Outputs(head(features, mode), features)

    return from_haiku(forward)


def linear(num_classes: int = 10) -> Model:
    """Logistic regression on flattened inputs: for embeddings by a frozen encoder, with a
    Laplace or ensemble posterior, since there is no dropout."""
    return mlp(num_classes, hidden_sizes=(), rate=0.0)


MODELS: dict[str, Callable[[int], Model]] = {
    "batchbald_convnet": batchbald_convnet,
    "convnet": convnet,
    "linear": linear,
    "mlp": mlp,
}
"""Networks by the name they have on the command line; each takes the number of classes."""

WITHOUT_DROPOUT = frozenset({"linear"})
"""Those of them whose posterior samples by dropout would all be equal."""
