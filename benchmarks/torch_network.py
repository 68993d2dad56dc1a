"""The paper's network in PyTorch, with our parameters: as peers take it, and as a specialist
would write it for a CPU.

Import only where torch is there.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bayesian_active_learning import models
from bayesian_active_learning.types import Posterior, Variables
from benchmarks import measure

Weights = dict[str, Tensor]
RATES = (0.25, 0.5)  # of dropout before the two dense layers
HIDDEN = (11, 11, 32)  # after the pooling: height, width, channels


def weights_of(variables: Variables) -> Weights:
    """Our parameters as a specialist has them: dense weights `[in, out]`, in the order of
    channels last; kernels `[out, in, kh, kw]`, in the memory format of channels last."""
    found = {}
    for layer, values in variables.params.items():
        name = layer.split("/")[-1]
        weight = torch.from_numpy(np.array(values["w"]))
        if name.startswith("conv"):
            weight = weight.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
        found[f"{name}.w"] = weight
        found[f"{name}.b"] = torch.from_numpy(np.array(values["b"]))
    return found


def images_of(images: Any) -> Tensor:
    """`[N, H, W, C]` as `[N, C, H, W]` without moving a number: that is channels last."""
    return torch.from_numpy(np.ascontiguousarray(images, np.float32)).permute(0, 3, 1, 2)


def plain_module(variables: Variables, dropout: Callable[[float], nn.Module]) -> Any:
    """The textbook module that peers are given, with our parameters."""
    module: Any = nn.Sequential(
        nn.Conv2d(1, 32, 4),
        nn.ReLU(),
        nn.Conv2d(32, 32, 4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        dropout(RATES[0]),
        nn.Flatten(),
        nn.Linear(3872, 128),
        nn.ReLU(),
        dropout(RATES[1]),
        nn.Linear(128, 10),
    )
    weights = weights_of(variables)
    first = weights["dense_1.w"].reshape(*HIDDEN, 128).permute(2, 0, 1, 3).reshape(3872, 128)
    with torch.no_grad():
        for layer, weight, bias in (
            (0, weights["conv_1.w"], weights["conv_1.b"]),
            (2, weights["conv_2.w"], weights["conv_2.b"]),
            (7, first.T, weights["dense_1.b"]),
            (10, weights["dense_2.w"].T, weights["dense_2.b"]),
        ):
            module[layer].weight.copy_(weight)
            module[layer].bias.copy_(bias)
    return module.eval()


def masks_of(key: jax.Array, num_samples: int, posterior: Posterior) -> tuple[Tensor, Tensor]:
    """The dropout masks of our K posterior samples, scaled: `[K, 3872]` and `[K, 128]`.

    The network asks Haiku for one key a dropout layer, in order.
    """
    keys = posterior.draw(posterior.shared, key, num_samples)

    def both(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        sequence = hk.PRNGSequence(key)
        first = models.dropout(next(sequence), RATES[0], jnp.ones(3872))
        return first, models.dropout(next(sequence), RATES[1], jnp.ones(128))

    found = jax.vmap(both)(keys)
    return torch.from_numpy(np.array(found[0])), torch.from_numpy(np.array(found[1]))


def convolutions(weights: Weights, images: Tensor) -> Tensor:
    """All before the first dropout: `[n, 3872]`."""
    hidden = functional.conv2d(images, weights["conv_1.w"], weights["conv_1.b"]).relu_()
    hidden = functional.conv2d(hidden, weights["conv_2.w"], weights["conv_2.b"])
    hidden = functional.max_pool2d(hidden, 2).relu_()  # in this order a quarter of the ReLU
    return hidden.permute(0, 2, 3, 1).reshape(len(images), -1)  # a view in channels last


SMALL = 125
"""Images at a time through the convolutions: 500 and 2,000 leave the cache and take 1.2 and 1.7
times as long, 20 take 1.1 times (2 cores of an Intel Xeon)."""


def convolutions_in_batches(weights: Weights, images: Tensor) -> Tensor:
    found = images.new_empty(len(images), weights["dense_1.w"].shape[0])
    for part, room in zip(images.split(SMALL), found.split(SMALL)):
        room.copy_(convolutions(weights, part))
    return found


# One posterior sample of the dense layers for all images of a chunk, `[K, n, 10]` in all. Masks
# shared by all images are masks of the weights' rows.

Dense = Callable[[Weights, Tensor, Tensor, Tensor], Tensor]


def masked_activations(weights: Weights, hidden: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Masks on activations: one product for each sample."""
    found = hidden.new_empty(len(first), len(hidden), 10)
    room = torch.empty_like(hidden)
    for sample in range(len(first)):
        torch.mul(hidden, first[sample], out=room)
        features = torch.addmm(weights["dense_1.b"], room, weights["dense_1.w"]).relu_()
        features *= second[sample]
        torch.addmm(weights["dense_2.b"], features, weights["dense_2.w"], out=found[sample])
    return found


def masked_weights(weights: Weights, hidden: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Masks on weights: one product for each sample."""
    found = hidden.new_empty(len(first), len(hidden), 10)
    for sample in range(len(first)):
        inner = weights["dense_1.w"] * first[sample][:, None]
        features = torch.addmm(weights["dense_1.b"], hidden, inner).relu_()
        outer = weights["dense_2.w"] * second[sample][:, None]
        torch.addmm(weights["dense_2.b"], features, outer, out=found[sample])
    return found


def _side_by_side(together: int) -> Dense:
    def dense(weights: Weights, hidden: Tensor, first: Tensor, second: Tensor) -> Tensor:
        found = hidden.new_empty(len(first), len(hidden), 10)
        bias = weights["dense_1.b"].repeat(together)
        outer = weights["dense_2.w"] * second[:, :, None]
        for start in range(0, len(first), together):
            part = first[start : start + together]
            inner = (weights["dense_1.w"][:, None] * part.T[:, :, None]).reshape(len(hidden.T), -1)
            features = torch.addmm(bias[: inner.shape[1]], hidden, inner).relu_()
            features = features.reshape(len(hidden), len(part), 128).transpose(0, 1)
            torch.baddbmm(
                weights["dense_2.b"],
                features,
                outer[start : start + together],
                out=found[start : start + together],
            )
        return found

    return dense


def _kept_columns(together: int) -> Dense:
    """Hidden units that the second mask drops are not computed: exact, and half the work."""

    def dense(weights: Weights, hidden: Tensor, first: Tensor, second: Tensor) -> Tensor:
        found = hidden.new_empty(len(first), len(hidden), 10)
        for start in range(0, len(first), together):
            samples = range(start, min(start + together, len(first)))
            kept = [second[sample].nonzero()[:, 0] for sample in samples]
            masked = [
                weights["dense_1.w"][:, columns] * first[sample][:, None]
                for sample, columns in zip(samples, kept)
            ]
            inner, bias = torch.cat(masked, dim=1), weights["dense_1.b"][torch.cat(kept)]
            features = torch.addmm(bias, hidden, inner).relu_()
            parts = features.split([len(columns) for columns in kept], dim=1)
            for sample, columns, part in zip(samples, kept, parts):
                outer = weights["dense_2.w"][columns] * second[sample][columns, None]
                torch.addmm(weights["dense_2.b"], part, outer, out=found[sample])
        return found

    return dense


def dropped_inputs(weights: Weights, hidden: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Of units that are kept: the product of all inputs, once, less that of the dropped ones."""
    found = hidden.new_empty(len(first), len(hidden), 10)
    inputs_first, units_first = hidden.T.contiguous(), weights["dense_1.w"].T.contiguous()
    scale = float(first.max())
    bias = weights["dense_1.b"][:, None]
    whole = torch.addmm(bias, units_first, inputs_first, alpha=scale)
    rows = torch.empty_like(inputs_first)
    for sample in range(len(first)):
        gone = (first[sample] == 0).nonzero()[:, 0]
        kept = second[sample].nonzero()[:, 0]
        part = torch.index_select(inputs_first, 0, gone, out=rows[: len(gone)])
        inner = units_first[kept][:, gone]
        features = whole[kept].addmm_(inner, part, alpha=-scale).relu_()
        outer = weights["dense_2.w"][kept] * second[sample][kept, None]
        torch.addmm(weights["dense_2.b"], features.T, outer, out=found[sample])
    return found


DENSE: dict[str, Dense] = {
    "masked activations": masked_activations,
    "masked weights": masked_weights,
    "4 samples side by side": _side_by_side(4),
    "20 samples side by side": _side_by_side(20),
}
"""Ways to do the same work; a specialist keeps the fastest."""

REDUCED: dict[str, Dense] = {
    "kept columns": _kept_columns(1),
    "kept columns of 4 samples": _kept_columns(4),
    "kept columns of 10 samples": _kept_columns(10),
    "less dropped inputs": dropped_inputs,
}
"""Ways to do less."""

CHUNKS = 250, 1000, 2000
"""Images at a time."""


class Scoring(NamedTuple):
    """How a specialist may compute the posterior samples."""

    dense: Dense
    chunk: int


def fastest_scoring(
    ways: dict[str, Dense], weights: Weights, images: Tensor, masks: tuple[Tensor, Tensor]
) -> tuple[str, Scoring]:
    """Of these ways and of the chunks that are no larger than these images."""
    chunks = sorted({min(chunk, len(images)) for chunk in CHUNKS})
    made = {
        f"{name}, {chunk} images at a time": Scoring(dense, chunk)
        for name, dense in ways.items()
        for chunk in chunks
    }
    name = measure.fastest(
        {
            name: functools.partial(score_pool, weights, images, masks, *scoring)
            for name, scoring in made.items()
        }
    )
    return name, made[name]


def bald(log_probs: Tensor) -> Tensor:
    """BALD of `[K, n, C]` log-probabilities."""
    mean = log_probs.logsumexp(dim=0) - np.log(len(log_probs))
    entropy = -(mean.exp() * mean).sum(dim=-1)
    return entropy + (log_probs.exp() * log_probs).sum(dim=-1).mean(dim=0)


@torch.inference_mode()
def log_probs(
    weights: Weights, images: Tensor, masks: tuple[Tensor, Tensor], dense: Dense, chunk: int
) -> Iterator[Tensor]:
    """`[K, n, C]` of one chunk of images after another."""
    for part in images.split(chunk):
        hidden = convolutions_in_batches(weights, part)
        yield functional.log_softmax(dense(weights, hidden, *masks), dim=-1)


def score_pool(
    weights: Weights, images: Tensor, masks: tuple[Tensor, Tensor], dense: Dense, chunk: int
) -> np.ndarray:
    """BALD of `images` under the posterior samples with these masks, `[N]`."""
    found = [bald(each) for each in log_probs(weights, images, masks, dense, chunk)]
    return torch.cat(found).numpy()


@torch.inference_mode()
def full_passes(module: nn.Module, images: Tensor, num_samples: int, chunk: int) -> np.ndarray:
    """BALD the way most published code has it: the whole network for every sample."""
    scores = []
    for part in images.split(chunk):
        passes = [functional.log_softmax(module(part), dim=-1) for _ in range(num_samples)]
        scores.append(bald(torch.stack(passes)))
    return torch.cat(scores).numpy()


class AlwaysDropout(nn.Dropout):
    """Dropout that is on in `eval`, too."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.dropout(input, self.p, True)
