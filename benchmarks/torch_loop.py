"""A whole run of active learning by a specialist's PyTorch loop, with our protocol.

Import only where torch is there.
"""

from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor

from bayesian_active_learning import training
from bayesian_active_learning.data_utils import Dataset, Splits, pool_subset
from bayesian_active_learning.protocol import Config
from benchmarks import torch_network as net
from benchmarks import torch_training


def masks(num_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Dropout masks of K posterior samples, scaled."""
    found = []
    for rate, width in zip(net.RATES, (3872, 128)):
        kept = torch.rand((num_samples, width), generator=generator) >= rate
        found.append(kept.float() / (1 - rate))
    return found[0], found[1]


def tensors(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Images and labels by row, as PyTorch takes them."""
    images = net.images_of(dataset.images[np.arange(len(dataset.labels))])
    return images, torch.from_numpy(dataset.labels.astype(np.int64))


def run(
    config: Config,
    images: Tensor,
    classes: Tensor,
    splits: Splits,
    *,
    labels: int,
    way: torch_training.Way,
    scoring: net.Scoring,
    evaluation: net.Scoring,
) -> list[float]:
    """Rounds of fit, evaluate, score, acquire; the test accuracy of each.

    Images and labels are those of `tensors`, made once. Evaluation shares the convolutions
    between the posterior samples and the pass without dropout, as ours does.
    """
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    evaluated = torch.from_numpy(np.concatenate([splits.test, splits.validation]).astype(np.int64))
    labelled, pool = splits.initial, splits.pool
    accuracies: list[float] = []
    while True:
        rows = torch.from_numpy(labelled.astype(np.int64))
        number = len(accuracies)
        weights, _ = torch_training.fit(
            torch_training.initial_weights(generator),
            images[rows],
            classes[rows],
            training.minibatches(jax.random.key(number), len(labelled), config.fit.batch_size),
            steps=training.num_steps(config.fit, len(labelled)),
            weight_decay=config.fit.weight_decay,
            learning_rate=config.learning_rate,
            cosine=config.fit.schedule == "cosine",
            way=way,
        )
        weights = {name: _as_for_scoring(value) for name, value in weights.items()}
        found = _evaluate(weights, images[evaluated], config, generator, evaluation)
        truth = classes[evaluated].numpy()[: len(splits.test)]
        accuracies.append(float((found[0][: len(truth)].argmax(axis=1) == truth).mean()))
        if len(labelled) >= labels:
            return accuracies
        subset = pool_subset(0, number, pool, config.pool_size)
        scores = net.score_pool(
            weights,
            images[torch.from_numpy(subset.astype(np.int64))],
            masks(config.num_samples, generator),
            *scoring,
        )
        wanted = min(config.acquisition_size, labels - len(labelled))
        picked = subset[np.argsort(-scores, kind="stable")[:wanted]]
        labelled, pool = np.concatenate([labelled, picked]), np.setdiff1d(pool, picked)


def _as_for_scoring(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


@torch.inference_mode()
def _evaluate(
    weights: net.Weights,
    images: Tensor,
    config: Config,
    generator: torch.Generator,
    way: net.Scoring,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean predictive log-probabilities with dropout, and those without."""
    drawn = masks(config.num_test_samples, generator)
    ones = torch.ones((1, 3872)), torch.ones((1, 128))
    both: tuple[list[Any], list[Any]] = ([], [])
    for part in images.split(way.chunk):
        hidden = net.convolutions_in_batches(weights, part)
        for found, (first, second) in zip(both, (drawn, ones)):
            log_probs = way.dense(weights, hidden, first, second).log_softmax(dim=-1)
            found.append(log_probs.logsumexp(dim=0) - np.log(len(first)))
    return torch.cat(both[0]).numpy(), torch.cat(both[1]).numpy()
