"""Convolutions by minimal filtering against their definition, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bayesian_active_learning import models
from bayesian_active_learning.models import winograd


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def by_definition(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    images, kernel = images.astype(np.float64), kernel.astype(np.float64)
    height, width = (n - k + 1 for n, k in zip(images.shape[1:3], kernel.shape))
    return sum(
        images[:, i : i + height, j : j + width] @ kernel[i, j]
        for i, j in itertools.product(*map(range, kernel.shape[:2]))
    )


def gradients_by_definition(
    images: np.ndarray, kernel: np.ndarray, cotangent: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    images, kernel, cotangent = (x.astype(np.float64) for x in (images, kernel, cotangent))
    height, width = cotangent.shape[1:3]
    images_bar, kernel_bar = np.zeros_like(images), np.zeros_like(kernel)
    for i, j in itertools.product(*map(range, kernel.shape[:2])):
        seen = np.s_[:, i : i + height, j : j + width]
        images_bar[seen] += cotangent @ kernel[i, j].T
        kernel_bar[i, j] = np.einsum("bhwc,bhwf->cf", images[seen], cotangent)
    return images_bar, kernel_bar


def close(found: jax.Array, expected: np.ndarray) -> None:
    """Within rounding of the largest value: sums of up to 1,000 products."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


SHAPES = {
    "as in the paper's network": ((2, 25, 25, 32), (4, 4, 32, 32)),
    "5x5": ((3, 12, 12, 8), (5, 5, 8, 16)),
    "3x3, odd": ((1, 8, 9, 8), (3, 3, 8, 9)),
    "3x5": ((2, 10, 9, 9), (3, 5, 9, 8)),
    "one output": ((2, 4, 4, 8), (4, 4, 8, 8)),
    "two parts": ((64, 6, 6, 8), (4, 4, 8, 8)),
    "two parts and a rest": ((70, 6, 7, 8), (3, 4, 8, 8)),
}


@pytest.mark.parametrize("case", SHAPES)
def test_convolution_and_gradients(case: str):
    images, kernel = (normal(seed, *shape) for seed, shape in enumerate(SHAPES[case]))
    expected = by_definition(images, kernel)
    cotangent = normal(2, *expected.shape)
    found, pullback = jax.vjp(jax.jit(winograd.convolution), images, kernel)
    assert found.dtype == jnp.float32
    close(found, expected)
    for ours, exact in zip(
        pullback(cotangent), gradients_by_definition(images, kernel, cotangent), strict=True
    ):
        close(ours, exact)


@pytest.mark.parametrize("case", ["as in the paper's network", "3x3, odd", "two parts and a rest"])
def test_pooling_is_the_maximum_of_four(case: str):
    images, kernel = (normal(seed, *shape) for seed, shape in enumerate(SHAPES[case]))

    def reference(images: jax.Array, kernel: jax.Array) -> jax.Array:
        outputs = lax.conv_general_dilated(
            images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return models.max_pool_2x2(outputs)

    expected, their_pullback = jax.vjp(reference, images, kernel)
    found, pullback = jax.vjp(jax.jit(winograd.pooled_convolution), images, kernel)
    close(found, np.asarray(expected))
    cotangent = normal(2, *expected.shape)
    for ours, theirs in zip(pullback(cotangent), their_pullback(cotangent), strict=True):
        close(ours, np.asarray(theirs))


def test_pixels_that_no_output_looks_at_have_no_gradient():
    images, kernel = normal(0, 1, 9, 10, 8), normal(1, 4, 4, 8, 8)
    # 6x7 outputs, pooled to 3x3: the last column of images is looked at by the dropped one only.
    gradient = jax.grad(lambda x: winograd.pooled_convolution(x, kernel).sum())(images)
    assert np.all(gradient[:, :, 9] == 0) and np.any(gradient[:, :, 8] != 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 0.0])
def test_the_loop_takes_one_turn_whatever_the_numbers(value: float):
    """NaN is handed on; a negative, zero or missing first number is no reason to skip work."""
    images, kernel = normal(0, 2, 6, 6, 8), normal(1, 3, 3, 8, 8)
    images[0, 0, 0, 0] = value
    found = np.asarray(winograd.convolution(images, kernel))
    assert np.isfinite(found[0, 0, 0]).all() == np.isfinite(value)
    close(found[1], by_definition(images[1:], kernel)[0])


@pytest.mark.parametrize(
    "size, kernel, way",
    [
        (25, (4, 4, 32, 32), "minimal filtering"),
        (12, (3, 5, 8, 8), "minimal filtering"),
        (11, (3, 5, 8, 8), "native"),  # 9x7 outputs
        (25, (4, 4, 32, 4), "native"),
        (25, (1, 1, 32, 32), "native"),
        (25, (7, 3, 32, 32), "native"),
        (28, (4, 4, 1, 32), "shifted images"),
        (32, (3, 3, 3, 8), "shifted images"),
        (32, (4, 4, 3, 8), "native"),  # 48 products for an output
        (25, (1, 1, 8, 32), "native"),  # 8 channels
    ],
)
def test_what_it_is_used_for(size: int, kernel: tuple, way: str):
    images = (1, size, size, kernel[2])
    assert winograd.suits(images, kernel) == (way == "minimal filtering")
    lowered = jax.jit(models.convolution).lower(jnp.zeros(images), jnp.zeros(kernel)).as_text()
    if jax.default_backend() == "cpu":
        assert ("stablehlo.convolution" in lowered) == (way == "native")
        assert ("stablehlo.dot_general" in lowered) == (way == "minimal filtering")
