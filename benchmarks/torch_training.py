"""Training of the paper's network by a specialist's PyTorch loop, and a whole run with it.

Import only where torch is there.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import torch_network as net

Masks = Callable[[int], tuple[Tensor, Tensor]]
"""Step -> dropout masks of a batch, scaled: `[B, 3872]` and `[B, 128]`."""


class Way(NamedTuple):
    """How a specialist may run a step. Everything here gives the same numbers."""

    channels_last: bool = True
    fused_adam: bool = True
    functional_pool: bool = True  # else reshape and amax


WAYS = {
    "channels last, fused Adam": Way(),
    "channels first, fused Adam": Way(channels_last=False),
    "channels last, Adam over lists": Way(fused_adam=False),
    "channels last, pooling as a maximum": Way(functional_pool=False),
}


def initial_weights(generator: torch.Generator) -> net.Weights:
    """Glorot's uniform weights, as our network starts."""
    found = {}
    for name, shape, fan_in, fan_out in (
        ("conv_1", (32, 1, 4, 4), 16, 512),
        ("conv_2", (32, 32, 4, 4), 512, 512),
        ("dense_1", (3872, 128), 3872, 128),
        ("dense_2", (128, 10), 128, 10),
    ):
        bound = math.sqrt(6 / (fan_in + fan_out))
        uniform = torch.rand(shape, generator=generator)
        found[f"{name}.w"] = (2 * uniform - 1) * bound
        found[f"{name}.b"] = torch.zeros(shape[0] if name.startswith("conv") else shape[1])
    return found


def _logits(
    weights: net.Weights, images: Tensor, way: Way, masks: tuple[Tensor, Tensor] | None
) -> Tensor:
    hidden = functional.conv2d(images, weights["conv_1.w"], weights["conv_1.b"]).relu_()
    hidden = functional.conv2d(hidden, weights["conv_2.w"], weights["conv_2.b"])
    if way.functional_pool:
        hidden = functional.max_pool2d(hidden, 2)
    else:
        count, channels = hidden.shape[:2]
        hidden = hidden.permute(0, 2, 3, 1).reshape(count, 11, 2, 11, 2, channels).amax((2, 4))
        hidden = hidden.permute(0, 3, 1, 2)
    hidden = hidden.relu().permute(0, 2, 3, 1).reshape(len(images), -1)
    hidden = functional.dropout(hidden, net.RATES[0]) if masks is None else hidden * masks[0]
    features = torch.addmm(weights["dense_1.b"], hidden, weights["dense_1.w"]).relu_()
    features = functional.dropout(features, net.RATES[1]) if masks is None else features * masks[1]
    return torch.addmm(weights["dense_2.b"], features, weights["dense_2.w"])


def fit(
    weights: net.Weights,
    images: Tensor,
    labels: Tensor,
    batches: Iterator[np.ndarray],
    *,
    steps: int,
    weight_decay: float,
    learning_rate: float,
    cosine: bool,
    way: Way,
    masks: Masks | None = None,
) -> tuple[net.Weights, list[float]]:
    """Adam on minibatches, as `training.fit`.

    Args:
      weights: to start from; not changed.
      images: `[L, 1, 28, 28]`.
      labels: `[L]`.
      batches: positions in these.
      weight_decay: c in c / L times the squared norm of the first dense layer.
      masks: of dropout; drawn by PyTorch where None.

    Returns:
      The weights, and the loss of each step, penalty included, where masks are given.
    """
    layout = torch.channels_last if way.channels_last else torch.contiguous_format
    images = images.contiguous(memory_format=layout)
    trained: dict[str, Any] = {}
    for name, value in weights.items():
        value = value.detach().clone()
        trained[name] = value.contiguous(memory_format=layout) if value.ndim == 4 else value
        trained[name].requires_grad_()
    options: dict[str, Any] = {"fused": True} if way.fused_adam else {"foreach": True}
    optimizer = torch.optim.Adam(trained.values(), lr=learning_rate, **options)
    first = trained["dense_1.w"]
    decay = weight_decay / len(images)
    losses = []
    for step in range(steps):
        batch = torch.from_numpy(next(batches))
        optimizer.zero_grad(set_to_none=True)
        logits = _logits(trained, images[batch], way, masks and masks(step))
        loss = functional.cross_entropy(logits, labels[batch])
        if masks is not None:
            losses.append(loss.item() + decay * first.detach().square().sum().item())
        loss.backward()
        first.grad.add_(first.detach(), alpha=2 * decay)
        if cosine:
            factor = 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.param_groups[0]["lr"] = learning_rate * factor
        optimizer.step()
    return {name: value.detach() for name, value in trained.items()}, losses
