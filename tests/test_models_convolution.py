"""Convolutions and their gradients against their definition, in float64."""

import contextlib
import itertools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bayesian_active_learning import compilation, models
from bayesian_active_learning.models import convolutions
from bayesian_active_learning.models.convolutions import in_small_batches, two_convolutions

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA:CPU")
# Convolutions have another form in programs of ours on a CPU than in somebody else's.
programs = pytest.mark.parametrize("jit", [compilation.jit, jax.jit], ids=["ours", "another's"])


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


def with_gradients(images: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> tuple:
    found, pullback = jax.vjp(models.convolution, images, kernel)
    return found, *pullback(cotangent)


def close(found: jax.Array, expected: np.ndarray) -> None:
    """Within rounding of the largest value: sums of up to 1,000 products."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


SHAPES = {
    "as in the paper's network": ((2, 25, 25, 32), (4, 4, 32, 32)),
    "its first layer": ((3, 28, 28, 1), (4, 4, 1, 32)),
    "one product": ((2, 5, 5, 1), (1, 1, 1, 4)),
    "5x5": ((3, 12, 12, 8), (5, 5, 8, 16)),
    "3x3, odd": ((1, 8, 9, 8), (3, 3, 8, 9)),
    "3x5, three channels": ((2, 10, 9, 3), (3, 5, 3, 8)),
    "1x1": ((2, 6, 5, 20), (1, 1, 20, 4)),
    "one output": ((2, 4, 4, 8), (4, 4, 8, 8)),
    "parts": ((20, 6, 6, 8), (4, 4, 8, 8)),
    "two blocks": ((64, 6, 6, 8), (4, 4, 8, 8)),
    "three blocks and a rest": ((109, 6, 7, 20), (3, 4, 20, 8)),
}


@programs
@pytest.mark.parametrize("case", SHAPES)
def test_convolution_and_gradients(case: str, jit: Callable):
    images, kernel = (normal(seed, *shape) for seed, shape in enumerate(SHAPES[case]))
    expected = by_definition(images, kernel)
    cotangent = normal(2, *expected.shape)
    found, *gradients = jit(with_gradients)(images, kernel, cotangent)
    assert found.dtype == jnp.float32
    close(found, expected)
    for ours, exact in zip(
        gradients, gradients_by_definition(images, kernel, cotangent), strict=True
    ):
        close(ours, exact)


@programs
@pytest.mark.parametrize("processor, columns", [("AMD EPYC", 1), ("Intel(R) Xeon(R)", 2)])
@pytest.mark.parametrize("case", ["its first layer", "5x5", "3x5, three channels", "one output"])
def test_kernel_gradient_has_a_form_for_each_processor(
    monkeypatch: pytest.MonkeyPatch, processor: str, columns: int, case: str, jit: Callable
):
    monkeypatch.setattr(convolutions, "cpu_model", lambda: processor)
    images, kernel = (normal(seed, *shape) for seed, shape in enumerate(SHAPES[case]))
    cotangent = normal(2, *by_definition(images, kernel).shape)

    def gradient(images: jax.Array, cotangent: jax.Array) -> jax.Array:
        plain = compilation.are_convolutions_plain()
        return convolutions._kernel_gradient(images, convolutions._channels_first, cotangent, plain)

    lowered = jax.jit(gradient).lower(images, cotangent).as_text()
    assert f"stride = [1, {columns}]" in lowered
    close(jit(gradient)(images, cotangent), gradients_by_definition(images, kernel, cotangent)[1])


BESIDE_NATIVE = [
    ((2, 9, 7, 3), (4, 3, 3, 5)),
    ((1, 4, 4, 1), (4, 4, 1, 2)),
    ((3, 5, 6, 2), (1, 1, 2, 4)),
    ((64, 5, 4, 8), (3, 2, 8, 3)),  # in parts
    ((70, 5, 4, 8), (3, 2, 8, 3)),  # and a rest
    ((70, 5, 4, 2), (3, 2, 2, 3)),  # few channels
]


def native(x: jax.Array, kernel: jax.Array) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers)


@pytest.mark.parametrize("x_shape, kernel_shape", BESIDE_NATIVE)
def test_convolution_in_value_and_both_gradients(x_shape: tuple, kernel_shape: tuple):
    generator = np.random.default_rng(0)
    x, kernel = (generator.normal(size=s).astype(np.float32) for s in (x_shape, kernel_shape))
    out_shape = jax.eval_shape(native, x, kernel).shape
    cotangent = generator.normal(size=out_shape).astype(np.float32)

    def value_and_gradients(function: Callable) -> tuple:
        value, pullback = jax.vjp(function, x, kernel)
        return value, *pullback(cotangent)

    found = jax.jit(value_and_gradients, static_argnums=0)(models.convolution)
    expected = jax.jit(value_and_gradients, static_argnums=0)(native)
    by_hand = by_definition(x, kernel), *gradients_by_definition(x, kernel, cotangent)
    for ours, theirs, exact in zip(found, expected, by_hand, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(ours, exact, rtol=1e-4, atol=1e-4)


def test_convolution_gradients_on_a_cpu_are_forward_convolutions():
    def loss(x, kernel):
        return models.convolution(x, kernel).sum()

    x, kernel = jnp.ones((2, 6, 6, 1)), jnp.ones((3, 3, 1, 2))
    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, kernel).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    if jax.default_backend() == "cpu":
        assert lines and all("dim_numbers = [b, 0, 1, f]x[0, 1, i, o]" in line for line in lines)


@pytest.mark.parametrize("count", [1, 4, 5, 8, 11])
def test_small_batches_change_nothing(count: int):
    def function(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        return (models.convolution(x, kernel) + bias).reshape(len(x), -1)

    x, kernel = normal(0, count, 5, 5, 2), normal(1, 3, 3, 2, 4)
    bias = np.arange(4, dtype=np.float32)
    found = jax.jit(in_small_batches(function, 4))(x, kernel, bias)
    assert found.shape == (count, 36)
    np.testing.assert_allclose(found, function(x, kernel, bias), atol=1e-5)


@on_cpu
def test_small_batches_are_traced_once_for_each_form():
    """For inputs of all sizes, and never with the form of another program."""
    forms = []

    def function(x: jax.Array, kernel: jax.Array) -> jax.Array:
        if len(x) == 2:  # not what is traced for accelerators
            forms.append(compilation.are_convolutions_plain())
        return models.convolution(x, kernel)

    batched = in_small_batches(function, 2)
    kernel = jnp.ones((2, 2, 1, 3))
    for plainly in (contextlib.nullcontext, compilation.plain_convolutions):
        for count in (4, 6):
            with plainly():
                jax.eval_shape(lambda x: batched(x, kernel), jnp.ones((count, 3, 3, 1)))
    assert forms == [False, True]


@programs
def test_of_several_kernels_at_once(jit: Callable):
    """As replicas are trained: one kernel and one batch each."""
    images, kernels = normal(0, 3, 4, 8, 8, 2), normal(1, 3, 4, 4, 2, 20)
    cotangents = normal(2, 3, 4, 5, 5, 20)

    together = jit(jax.vmap(with_gradients))(images, kernels, cotangents)
    for index, parts in enumerate(zip(*together)):
        expected = by_definition(images[index], kernels[index])
        exact = gradients_by_definition(images[index], kernels[index], cotangents[index])
        for ours, theirs in zip(parts, (expected, *exact), strict=True):
            close(ours, theirs)


TWO = {
    "as in the paper's network": ((3, 28, 28, 1), (4, 4, 1, 32), (4, 4, 32, 32)),
    "two channels, odd": ((5, 11, 10, 2), (3, 2, 2, 8), (2, 3, 8, 9)),
    "a block and a rest": ((45, 9, 8, 1), (4, 3, 1, 8), (3, 4, 8, 4)),
    "three blocks and a rest": ((97, 7, 8, 1), (3, 3, 1, 8), (3, 4, 8, 4)),
    "many channels": ((3, 9, 9, 8), (3, 3, 8, 8), (3, 3, 8, 4)),
    "few channels between": ((2, 9, 9, 1), (3, 3, 1, 3), (3, 3, 3, 4)),
}


@programs
@pytest.mark.parametrize("case", TWO)
def test_two_convolutions_and_gradients(case: str, jit: Callable):
    shapes = TWO[case]
    images, kernel_1, kernel_2 = (normal(seed, *shape) for seed, shape in enumerate(shapes))
    bias = normal(3, kernel_1.shape[3])
    before = by_definition(images, kernel_1) + bias
    hidden = np.maximum(before, 0)
    expected = by_definition(hidden, kernel_2)
    cotangent = normal(4, *expected.shape)

    def with_gradients(*inputs: jax.Array) -> tuple:
        found, pullback = jax.vjp(two_convolutions, *inputs)
        return found, *pullback(cotangent)

    hidden_bar, kernel_2_bar = gradients_by_definition(hidden, kernel_2, cotangent)
    hidden_bar = np.where(before > 0, hidden_bar, 0)
    exact = (
        expected,
        *gradients_by_definition(images, kernel_1, hidden_bar),
        hidden_bar.sum(axis=(0, 1, 2)),
        kernel_2_bar,
    )
    found = jit(with_gradients)(images, kernel_1, bias, kernel_2)
    for ours, theirs in zip(found, exact, strict=True):
        close(ours, theirs)


@programs
def test_gradients_of_no_images_are_zeros(jit: Callable):
    shapes = (0, 9, 9, 1), (3, 3, 1, 8), (8,), (3, 3, 8, 4), (2, 2, 4, 4)
    inputs = [normal(seed, *shape) for seed, shape in enumerate(shapes)]

    def loss(*inputs: jax.Array) -> jax.Array:
        return models.convolution(two_convolutions(*inputs[:4]), inputs[4]).sum()

    gradients = jit(jax.grad(loss, range(5)))(*inputs)
    for gradient, x in zip(gradients, inputs, strict=True):
        assert np.array_equal(gradient, np.zeros_like(x))


def test_two_convolutions_refuse_a_second_kernel_that_does_not_fit():
    images, kernel_1, bias = normal(0, 2, 6, 6, 1), normal(1, 3, 3, 1, 8), normal(2, 8)
    with pytest.raises(ValueError, match=r"have 8 channels, a kernel \(3, 3, 4, 2\) takes 4"):
        two_convolutions(images, kernel_1, bias, normal(3, 3, 3, 4, 2))
    with pytest.raises(ValueError, match=r"larger than images \(2, 4, 4, 8\)"):
        two_convolutions(images, kernel_1, bias, normal(3, 5, 5, 8, 2))


@programs
def test_two_convolutions_of_several_kernels_at_once(jit: Callable):
    shapes = (2, 5, 9, 9, 1), (2, 3, 3, 1, 8), (2, 8), (2, 3, 3, 8, 4)
    inputs = [normal(seed, *shape) for seed, shape in enumerate(shapes)]

    def loss(*inputs: jax.Array) -> jax.Array:
        return (two_convolutions(*inputs) ** 2).sum()

    gradient = jax.grad(loss, argnums=(0, 1, 2, 3))
    together = jit(jax.vmap(gradient))(*inputs)
    for index in range(2):
        alone = jit(gradient)(*(x[index] for x in inputs))
        for one, other in zip(together, alone, strict=True):
            close(one[index], np.asarray(other))


SMALL_TWO = [
    normal(seed, *shape)
    for seed, shape in enumerate([(2, 9, 9, 1), (3, 3, 1, 8), (8,), (3, 3, 8, 4)])
]


def compiled_gradient(argnums: tuple[int, ...]) -> str:
    def loss(*inputs: jax.Array) -> jax.Array:
        return (two_convolutions(*inputs) ** 2).sum()

    return jax.jit(jax.grad(loss, argnums)).lower(*SMALL_TWO).compile().as_text()


@on_cpu
@pytest.mark.parametrize(
    ("argnums", "count"), [((0,), 3), ((1, 2), 2), ((3,), 2), ((0, 1, 2, 3), 4)]
)
def test_no_gradient_is_computed_that_nobody_asks_for(argnums: tuple[int, ...], count: int):
    """Nor waited for: the second layer forward, what its inputs need, its kernel's, the images'."""
    assert compiled_gradient(argnums).count(" convolution(") == count


@on_cpu
def test_one_gradient_waits_for_the_other():
    """What keeps the order must outlive the compiler: with the wrong one a core is idle."""

    def above_infinity(argnums: tuple[int, ...]) -> bool:
        return re.search(r"constant\(.*\binf\b", compiled_gradient(argnums)) is not None

    assert above_infinity((1, 3)) and not above_infinity((1,))


def test_pixels_that_no_output_looks_at_have_no_gradient():
    images, kernel = normal(0, 1, 9, 10, 8), normal(1, 4, 4, 8, 8)

    def pooled(images: jax.Array) -> jax.Array:
        return models.max_pool_2x2(models.convolution(images, kernel)).sum()

    # 6x7 outputs, pooled to 3x3: the last column of images is looked at by the dropped one only.
    gradient = jax.grad(pooled)(images)
    assert np.all(gradient[:, :, 9] == 0) and np.any(gradient[:, :, 8] != 0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_with_its_image(value: float):
    images, kernel = normal(0, 2, 6, 6, 8), normal(1, 3, 3, 8, 8)
    images[0, 0, 0, 0] = value
    found = np.asarray(models.convolution(images, kernel))
    assert not np.isfinite(found[0, 0, 0]).any() and np.isfinite(found[0, 1]).all()
    close(found[1], by_definition(images[1:], kernel)[0])


@on_cpu
@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("batch_size", [8, 64])
def test_no_convolution_of_a_step_goes_to_the_slow_library(batch_size: int, ours: bool):
    """YNNPACK's convolutions take up to eight times as long as Eigen's."""
    images, kernel = normal(0, batch_size, 12, 12, 32), normal(1, 4, 4, 32, 32)

    def loss(images, kernel):
        return (models.convolution(images, kernel) ** 2).sum()

    with compilation.plain_convolutions() if ours else contextlib.nullcontext():
        lowered = jax.jit(jax.grad(loss, (0, 1))).lower(images, kernel)
    compiled = lowered.compile(compilation._EIGEN if ours else None).as_text()
    taken = [x for x in compiled.splitlines() if "ynn_fusion" in x and "conv_general_dilated" in x]
    assert "convolution(" in compiled and not taken


@on_cpu
def test_few_channels_are_a_sum_of_shifted_images():
    def lowered(size: int, kernel: tuple[int, ...]) -> str:
        images = jnp.zeros((1, size, size, kernel[2]))
        return jax.jit(models.convolution).lower(images, jnp.zeros(kernel)).as_text()

    assert "stablehlo.convolution" not in lowered(28, (4, 4, 1, 32))
    assert "stablehlo.convolution" not in lowered(32, (3, 3, 3, 8))
    assert "stablehlo.convolution" in lowered(32, (4, 4, 3, 8))  # 48 products for an output
    assert "stablehlo.convolution" in lowered(25, (1, 1, 8, 32))  # 8 channels
