"""`fit` of the paper's network at several numbers of labels, and the time of a step.

Against a specialist's PyTorch loop: the fastest of several ways to run the same step. The limit:
all multiplications of a step at the speed of this machine's fastest product.

    python -m benchmarks.training --quick
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bayesian_active_learning import models, training
from bayesian_active_learning.training import FitConfig
from benchmarks import data, measure, peers
from benchmarks.measure import OURS, Case

OPTIMIZER = optax.adam(2e-3)
LEARNING_RATE = 2e-3
STEPS_COMPARED = 5
# Multiplications and additions of one example. Each layer is computed once forward and twice
# backward, but the images need no gradient.
STEP = 2 * data.FIRST_CONVOLUTION + 3 * (data.SECOND_CONVOLUTION + data.DENSE)
PRODUCT = (32 * 22 * 22, 512, 32)  # what the second convolution of 32 images is


class Sizes(NamedTuple):
    num_labelled: tuple[int, ...]  # a whole fit, by the default settings
    batch_sizes: tuple[int, ...]  # steps alone
    steps: int
    repeats: int
    patience: float


SIZES = {
    "full": Sizes((20, 100, 300, 1_000), (32, 128), 100, 15, 60.0),
    "quick": Sizes((20,), (32, 128), 50, 3, 60.0),
    "smallest": Sizes((), (4,), 2, 2, 1.0),
}


def run(sizes: Sizes, found: peers.Peers) -> list[dict[str, Any]]:
    results = [
        _steps(batch_size, sizes.steps, sizes, found, ratio_of="a step")
        for batch_size in sizes.batch_sizes
    ]
    for count in sizes.num_labelled:
        results.append(_fit(count, sizes, found))
    return results


def _steps(
    batch_size: int, steps: int, sizes: Sizes, found: peers.Peers, ratio_of: str
) -> dict[str, Any]:
    config = FitConfig(batch_size=batch_size, epochs=0, min_steps=steps)
    return _compare(
        f"{steps} steps, batch {batch_size}, 128 labels", 128, config, sizes, found, steps
    )


def _fit(count: int, sizes: Sizes, found: peers.Peers) -> dict[str, Any]:
    config = FitConfig()
    steps = training.num_steps(config, count)
    name = f"fit, {count:,} labels: {steps} steps, batch {config.batch_size}"
    return _compare(name, count, config, sizes, found, steps)


def _compare(
    name: str, count: int, config: FitConfig, sizes: Sizes, found: peers.Peers, steps: int
) -> dict[str, Any]:
    dataset = data.dataset(2_000, 100)
    rows = dataset.train_rows[:count]
    images, labels = dataset.images[rows], dataset.labels[rows]
    key = jax.random.key(0)

    def ours() -> Any:
        return training.fit(
            key, data.model(), OPTIMIZER, images, np.arange(count), labels, config=config
        ).variables

    cases, agreement, chosen = {OURS: Case(ours)}, {}, {}
    if "torch" in found:
        agreement = _agreement(images, labels, config)
        way, theirs = _specialist(images, labels, config, steps)
        cases["specialist"], chosen["specialist"] = Case(theirs(steps), theirs(2)), way
    cases |= measure.matrix_products(*PRODUCT, found.torch)
    timings, _ = measure.interleaved(cases, repeats=sizes.repeats, patience=sizes.patience)
    own, speeds = measure.without_speeds(timings), measure.product_speeds(timings)
    least = [steps * config.batch_size * STEP / speed for speed in speeds]
    limits, limits_of = {"roofline": least}, {}
    if "specialist" in own:
        limits["roofline, by the specialist"] = least
        limits_of["roofline, by the specialist"] = "specialist"
    return measure.result(
        name,
        own,
        limits=limits,
        limits_of=limits_of,
        agreement=agreement,
        milliseconds_a_step=measure.spread([1e3 * x / steps for x in own[OURS].there]),
        variants=chosen,
        data=dataset.name,
        gflops_of_products=measure.product_gflops(timings),
    )


def _specialist(
    images: np.ndarray, labels: np.ndarray, config: FitConfig, steps: int
) -> tuple[str, Callable[[int], Callable[[], Any]]]:
    from benchmarks import torch_network as net
    from benchmarks import torch_training

    torch = peers.module("torch")
    start = torch_training.initial_weights(torch.Generator().manual_seed(0))
    tensor, classes = net.images_of(images), torch.from_numpy(labels.astype(np.int64))

    def make(way: Any, steps: int) -> Callable[[], Any]:
        def run() -> Any:
            return torch_training.fit(
                start,
                tensor,
                classes,
                training.minibatches(jax.random.key(0), len(labels), config.batch_size),
                steps=steps,
                weight_decay=config.weight_decay,
                learning_rate=LEARNING_RATE,
                cosine=config.schedule == "cosine",
                way=way,
            )[0]

        return run

    few = min(steps, 20)
    ways = torch_training.WAYS
    best = measure.fastest({name: make(way, few) for name, way in ways.items()}, repeats=3)
    return best, lambda steps: make(ways[best], steps)


def _agreement(images: np.ndarray, labels: np.ndarray, config: FitConfig) -> dict[str, Any]:
    """A few steps from our start, with our minibatches and dropout masks, in both."""
    from benchmarks import torch_network as net
    from benchmarks import torch_training

    torch = peers.module("torch")
    key, steps = jax.random.key(3), STEPS_COMPARED
    short = config._replace(epochs=0, min_steps=steps, check_every=steps)
    ours = training.fit(
        key, data.model(), OPTIMIZER, images, np.arange(len(labels)), labels, config=short
    )
    init_key, batch_key, mask_key = jax.random.split(key, 3)
    start = data.model().init(init_key, jnp.asarray(images[:1]))

    def masks(step: int) -> tuple[Any, Any]:
        # Haiku gives one key to each dropout layer, in order.
        sequence = hk.PRNGSequence(jax.random.fold_in(mask_key, step))
        shapes = (config.batch_size, 3872), (config.batch_size, 128)
        found = [
            models.dropout(next(sequence), rate, jnp.ones(shape))
            for rate, shape in zip(net.RATES, shapes)
        ]
        return torch.from_numpy(np.array(found[0])), torch.from_numpy(np.array(found[1]))

    weights, losses = torch_training.fit(
        net.weights_of(start),
        net.images_of(images),
        torch.from_numpy(labels.astype(np.int64)),
        training.minibatches(batch_key, len(labels), config.batch_size),
        steps=steps,
        weight_decay=config.weight_decay,
        learning_rate=LEARNING_RATE,
        cosine=config.schedule == "cosine",
        way=torch_training.Way(),
        masks=masks,
    )
    difference = abs(float(np.mean(losses)) - ours.train_loss)
    if not difference < 1e-3:
        raise AssertionError(f"the losses of {steps} steps differ by {difference}")
    expected = net.weights_of(ours.variables)
    moved = max(float((weights[name] - expected[name]).abs().max()) for name in weights)
    return {
        "mean loss of the first steps": ours.train_loss,
        "difference": difference,
        "largest difference of a weight": moved,
    }


main = measure.command("training", run, SIZES)

if __name__ == "__main__":
    raise SystemExit(main())
