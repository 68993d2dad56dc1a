"""The specialist's PyTorch code that benchmarks compare with computes what ours does."""

import importlib
from typing import Any

import jax
import numpy as np
import pytest
from peers import peer

from bayesian_active_learning import experiment, inference, models, training
from bayesian_active_learning.acquisition_functions import bald, epig
from benchmarks import data
from benchmarks import training as training_benchmark

pytestmark = pytest.mark.peers

SCORING = [
    *("masked activations", "masked weights", "4 samples side by side", "20 samples side by side"),
    *("kept columns", "kept columns of 4 samples", "kept columns of 10 samples"),
    "less dropped inputs",
]
STEPS = [
    *("channels last, fused Adam", "channels first, fused Adam"),
    *("channels last, Adam over lists", "channels last, pooling as a maximum"),
]


@pytest.fixture(autouse=True)
def needs_torch():
    peer("torch")


def torch_module(name: str) -> Any:
    return importlib.import_module(f"benchmarks.torch_{name}")


def test_all_ways_are_compared():
    assert list(torch_module("network").DENSE | torch_module("network").REDUCED) == SCORING
    assert list(torch_module("training").WAYS) == STEPS


@pytest.mark.parametrize("way", SCORING)
def test_scores(way: str, monkeypatch: pytest.MonkeyPatch):
    """A last chunk, small batch and group of samples that are smaller, too."""
    monkeypatch.setattr(torch_module("network"), "SMALL", 7)
    net, count, num_samples = torch_module("network"), 30, 21
    model, images = models.convnet(10), data.made_up(count, 1).images[:count]
    posterior = inference.mc_dropout(model, model.init(jax.random.key(0), images[:1]))
    key = jax.random.key(1)
    (ours,) = inference.score_pool(
        key, posterior, images, np.arange(count), [bald], num_samples=num_samples
    )
    theirs = net.score_pool(
        net.weights_of(posterior.shared),
        net.images_of(images),
        net.masks_of(key, num_samples, posterior),
        (net.DENSE | net.REDUCED)[way],
        chunk=16,
    )
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", SCORING)
def test_masks_of_ones_are_no_dropout(way: str):
    net = torch_module("network")
    torch = importlib.import_module("torch")
    model, images = models.convnet(10), data.made_up(9, 1).images[:9]
    variables = model.init(jax.random.key(0), images[:1])
    weights = net.weights_of(variables)
    hidden = net.convolutions(weights, net.images_of(images))
    with torch.inference_mode():
        ones = torch.ones((1, 3872)), torch.ones((1, 128))
        (theirs,) = (net.DENSE | net.REDUCED)[way](weights, hidden, *ones)
    ours = model.apply(variables, None, images, mode="mean")[0].logits
    np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-4, atol=1e-5)


def test_steps_of_training():
    """Ours and theirs with the same start, minibatches and masks; within, that they agree."""
    dataset = data.made_up(40, 1)
    found = training_benchmark._agreement(
        dataset.images[:40], dataset.labels[:40], training.FitConfig()
    )
    assert found["largest difference of a weight"] < 1e-3


@pytest.mark.parametrize("way", STEPS[1:])
def test_every_way_takes_the_same_steps(way: str):
    steps, torch = torch_module("training"), peer("torch")
    dataset = data.made_up(40, 1)
    images = torch_module("network").images_of(dataset.images[:40])
    labels = torch.from_numpy(dataset.labels[:40].astype(np.int64))
    start = steps.initial_weights(torch.Generator().manual_seed(0))
    kept = torch_module("loop").masks(32, torch.Generator().manual_seed(1))

    def trained(way: str) -> tuple[Any, list[float]]:
        return steps.fit(
            start,
            images,
            labels,
            training.minibatches(jax.random.key(0), 40, 32),
            steps=5,
            weight_decay=2.5,
            learning_rate=1e-3,
            cosine=True,
            way=steps.WAYS[way],
            masks=lambda step: kept,
        )

    (weights, losses), (expected, expected_losses) = trained(way), trained(STEPS[0])
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    for name in expected:
        np.testing.assert_allclose(weights[name], expected[name], atol=1e-4)
        assert not np.allclose(weights[name], start[name], atol=1e-4)


def test_a_whole_run_learns_as_ours_does():
    """Of other random numbers: the accuracies are alike, not the same."""
    net, loop = torch_module("network"), torch_module("loop")
    dataset = data.made_up(600, 300)
    config = experiment.Config(
        num_samples=8, pool_size=100, fit=training.FitConfig(epochs=0, min_steps=80)
    )
    ours = experiment.run(config, dataset, ["bald"], labels=40).cells["bald", 0].test["accuracy"]

    def run() -> list[float]:
        return loop.run(
            config,
            *loop.tensors(dataset),
            experiment.seed_splits(config, dataset, 0),
            labels=40,
            way=torch_module("training").Way(),
            scoring=net.Scoring(net.DENSE["masked weights"], 64),
            evaluation=net.Scoring(net.DENSE["masked activations"], 128),
        )

    theirs = run()
    assert len(theirs) == len(ours) == 3 and theirs == run()
    np.testing.assert_allclose(theirs, ours, atol=0.15)
    assert min(theirs) > 0.3


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_k_center(layout: str):
    torch, rng = peer("torch"), np.random.default_rng(0)
    selection = torch_module("selection")
    points = rng.normal(size=(60, 5)).astype(np.float32)
    labelled = rng.normal(size=(4, 5)).astype(np.float32)
    tensors = torch.from_numpy(points), torch.from_numpy(labelled)
    theirs = selection.k_center(*tensors, 12, selection.LAYOUTS[layout])
    assert theirs == by_definition(points, labelled, 12)


def by_definition(points: np.ndarray, labelled: np.ndarray, batch_size: int) -> list[int]:
    centres, picks = list(labelled.astype(np.float64)), []
    for _ in range(batch_size):
        distances = [min(((x - c) ** 2).sum() for c in centres) for x in points.astype(np.float64)]
        picks.append(int(np.argmax(distances)))
        centres.append(points[picks[-1]].astype(np.float64))
    return picks


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_badge_draws_from_every_cluster(layout: str):
    """Of gradients (p - y) x z: three places far from each other, ten candidates at each."""
    torch, rng = peer("torch"), np.random.default_rng(0)
    places = np.array([[9.0, 0, 0], [0, 9, 0], [0, 0, 9]])
    features = np.repeat(places, 10, axis=0) + 1e-3 * rng.normal(size=(30, 3))
    probs = np.full((30, 4), 0.25)
    arrays = (torch.from_numpy(x.astype(np.float32)) for x in (probs, features))
    selection = torch_module("selection")
    generator = torch.Generator().manual_seed(0)
    picks = selection.badge(*arrays, 3, generator, selection.LAYOUTS[layout])
    assert sorted(position // 10 for position in picks) == [0, 1, 2]


def test_epig():
    torch, rng = peer("torch"), np.random.default_rng(0)
    candidates, targets = (rng.dirichlet(np.ones(4), (n, 9)).astype(np.float32) for n in (20, 7))
    theirs = torch_module("selection").epig(
        torch.from_numpy(candidates), torch.from_numpy(targets), 8
    )
    np.testing.assert_allclose(theirs, epig(np.log(candidates), np.log(targets)), atol=1e-5)
