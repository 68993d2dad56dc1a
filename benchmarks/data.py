"""Images to work on: MNIST where BAL_DATA_DIR names it, else made-up digits of its shape."""

import functools
import os

import jax
import numpy as np
import optax

from bayesian_active_learning import data_utils, models, training
from bayesian_active_learning.types import Model, Variables

NUM_CLASSES = 10
# Multiplications and additions of the layers of `model`, for one image (the dense ones for one
# posterior sample).
FIRST_CONVOLUTION, SECOND_CONVOLUTION = 2 * 25 * 25 * 32 * 16, 2 * 22 * 22 * 32 * 512
FIRST_DENSE, LAST_DENSE = 2 * 3872 * 128, 2 * 128 * 10
DENSE = FIRST_DENSE + LAST_DENSE


@functools.cache
def dataset(num_train: int, num_test: int) -> data_utils.Dataset:
    """Standardised images `[N, 28, 28, 1]`, the first `num_train` and `num_test` rows of each part.

    More than MNIST has are had by going through it again.
    """
    if os.environ.get("BAL_DATA_DIR"):
        found = data_utils.load_dataset("mnist", notify=lambda text: None)
        found = data_utils.standardise(found, found.train_rows)
        return found._replace(
            train_rows=np.resize(found.train_rows, num_train)
            if num_train > len(found.train_rows)
            else found.train_rows[:num_train],
            test_rows=found.test_rows[:num_test],
        )
    return made_up(num_train, num_test)


def made_up(num_train: int, num_test: int) -> data_utils.Dataset:
    """Ten smooth shapes, moved about and half hidden in noise."""
    rng = np.random.default_rng(0)
    count = num_train + num_test
    labels = rng.integers(0, NUM_CLASSES, count).astype(np.int32)
    coarse = rng.normal(size=(NUM_CLASSES, 7, 7)).astype(np.float32)
    shapes = np.kron(coarse, np.ones((4, 4), np.float32))
    images = shapes[labels]
    for step in range(-3, 4):
        moved = rng.integers(-3, 4, count) == step
        images[moved] = np.roll(images[moved], (step, -step), axis=(1, 2))
    images += 1.2 * rng.standard_normal(images.shape, np.float32)
    rows = np.arange(count, dtype=np.int32)
    return data_utils.Dataset(
        images=images[..., None],
        labels=labels,
        num_classes=NUM_CLASSES,
        name="made_up",
        content_hash=f"made up, {num_train} and {num_test}",
        scaling="as made",
        train_rows=rows[:num_train],
        test_rows=rows[num_train:],
    )


@functools.cache
def model() -> Model:
    """The paper's network."""
    return models.convnet(NUM_CLASSES)


@functools.cache
def trained(steps: int, num_labelled: int = 40) -> Variables:
    """The paper's network after some steps on a few labels: unsure of most images."""
    found = dataset(2_000, 100)
    rows = found.train_rows[:num_labelled]
    return training.fit(
        jax.random.key(0),
        model(),
        optax.adam(1e-3),
        found.images,
        rows,
        found.labels[rows],
        config=training.FitConfig(epochs=0, min_steps=steps),
    ).variables
