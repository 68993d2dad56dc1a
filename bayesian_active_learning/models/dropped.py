"""The last two dense layers, with less work where dropout drops the same for all examples."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from bayesian_active_learning.models.layers import DropoutLinear, with_derivative_of
from bayesian_active_learning.types import Array


def last_layers(
    inputs: Array, hidden: DropoutLinear, output: DropoutLinear, mode: str
) -> tuple[Array, Array]:
    """Two dense layers with ReLU between: outputs of the second, and its inputs before dropout.

    In mode "sample" a mask is the same for all examples. On a CPU hidden units that it drops are
    then not computed, half the work at a rate of 1/2. Under `vmap` over 3 posterior samples and
    more, of inputs that are the same for all, the product of all inputs and weights is computed
    once, and each sample takes away from it the product of the inputs that its mask drops: at a
    rate of 1/4 a quarter of what is left. (At 1/2 and above it adds up what the mask keeps.) These
    are the same numbers, but for rounding, which is that of the largest inputs, dropped ones too.
    On accelerators sizes that depend on the mask would cost more than they save.
    """
    units = hidden.output_size
    if mode != "sample" or not output.rate or units < _LEAST_UNITS:
        features = jax.nn.relu(hidden(inputs, mode))
        return output(features, mode), features
    flat = lax.collapse(inputs, 1)
    size = flat.shape[1]
    weights, bias = hidden.parameters(size)
    mask = hidden.mask(size, flat.dtype) if hidden.rate else jnp.ones(size, flat.dtype)
    last, last_bias = output.parameters(units)
    last = last * output.mask(units, flat.dtype)[:, None]
    features = jax.nn.relu(flat @ (weights * mask[:, None]) + bias)
    columns = jnp.moveaxis(inputs, 0, -1).reshape(size, -1)  # XLA copies `flat.T` twice
    whole = lax.stop_gradient(weights.T @ columns)  # the derivative is that of `_all_units`
    outputs = lax.platform_dependent(
        *(columns, whole, mask, weights, bias, last),
        cpu=_skipping(hidden.rate, output.rate),
        default=_all_units,
    )
    return outputs + last_bias, features


_LEAST_UNITS = 32  # the work for fewer is not worth a choice
_LEAST_SAMPLES = 3  # fewer are not worth the product of all inputs and units
_STEP = 8  # of numbers of inputs and units that are compiled
_SAMPLE_AXES = None, None, 0, None, None, 0  # of the arguments of `_all_units`


def _all_units(
    columns: Array, whole: Array, mask: Array, weights: Array, bias: Array, last: Array
) -> Array:
    """Outputs `[n, C]` of one posterior sample.

    Args:
      columns: inputs `[D, n]`, an example in each column.
      whole: `weights.T @ columns`, `[U, n]`, for the forms below, which do the same.
      mask: of the inputs, `[D]`.
      weights: `[D, U]`.
      bias: `[U]`.
      last: weights of the last layer `[U, C]`; rows of dropped units are zero.
    """
    hidden = jax.nn.relu((weights * mask[:, None]).T @ columns + bias[:, None])
    return (last.T @ hidden).T


@functools.lru_cache(maxsize=32)
def _skipping(input_rate: float, rate: float) -> Callable[..., Array]:
    """`_all_units` without what is dropped, which is about the shares `input_rate` of the inputs
    and `rate` of the units. Where the inputs' mask is not zero, it is `1 / (1 - input_rate)`."""
    one_by_one = jax.vmap(_all_units, _SAMPLE_AXES)

    # With rules for `vmap`, which would compute all branches of a choice.
    @jax.custom_batching.custom_vmap
    def together(*arguments):
        return _of_several(input_rate, rate, *arguments)

    @together.def_vmap
    def _(axis_size, in_batched, *arguments):
        axes = [0 if batched else None for batched in in_batched]
        return jax.vmap(one_by_one, axes, axis_size=axis_size)(*arguments), True

    @jax.custom_batching.custom_vmap
    def skipping(*arguments):
        return _of_one(rate, *arguments)

    @skipping.def_vmap
    def _(axis_size, in_batched, *arguments):
        if any(varies and axis is None for varies, axis in zip(in_batched, _SAMPLE_AXES)):
            axes = [0 if batched else None for batched in in_batched]
            return jax.vmap(_all_units, axes, axis_size=axis_size)(*arguments), True
        stacked = (
            jnp.broadcast_to(x, (axis_size, *x.shape)) if axis == 0 and not batched else x
            for x, batched, axis in zip(arguments, in_batched, _SAMPLE_AXES)
        )
        return together(*stacked), True

    return with_derivative_of(_all_units, skipping)


@functools.partial(jax.jit, static_argnums=0)  # traced once
def _of_one(rate: float, *arguments: Array) -> Array:
    """`_all_units` for units that are kept."""
    columns, _, mask, weights, bias, last = arguments
    order, count = _kept_first(last)

    def only(size: int) -> Callable[[], Array]:
        def apply() -> Array:
            chosen = order[:size]
            hidden = (_rows(weights.T, chosen) * mask) @ columns + _rows(bias, chosen)[:, None]
            return (_rows(last, chosen).T @ jax.nn.relu(hidden)).T

        return apply

    sizes = _usual_sizes(len(bias), 1 - rate)
    branches = [*map(only, sizes), lambda: _all_units(*arguments)]
    return lax.switch(_first_that_holds(sizes, count), branches)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _of_several(input_rate: float, rate: float, *arguments: Array) -> Array:
    """`[S, n, C]` of S posterior samples, with masks `[S, D]` and last layers `[S, U, C]`.

    For each unit that is kept, `whole` less the inputs that are dropped, or where that is less
    work, the sum of those that are kept.
    """
    columns, whole, masks, weights, bias, lasts = arguments
    if len(masks) < _LEAST_SAMPLES:
        return lax.map(
            lambda own: _of_one(rate, columns, whole, own[0], weights, bias, own[1]), (masks, lasts)
        )
    size, units = weights.shape
    subtract = input_rate < 0.5
    listed = masks == 0 if subtract else masks != 0
    share = input_rate if subtract else 1 - input_rate
    numbers_listed = _usual_sizes(size, share, (1, 3)) or [size]
    numbers_kept = _usual_sizes(units, 1 - rate) or [units]
    find = functools.partial(jnp.nonzero, size=numbers_listed[-1], fill_value=size)
    places = jax.vmap(lambda which: find(which)[0].astype(jnp.int32))(listed)
    orders, counts = jax.vmap(_kept_first)(lasts)
    lasts_kept, biases = jax.vmap(_rows)(lasts, orders), _rows(bias, orders)
    weights_and_zero = jnp.pad(weights, ((0, 1), (0, 0)))  # at the place `size`
    scale = jnp.asarray(1 / (1 - input_rate), masks.dtype)

    def only(most_listed: int, most_kept: int) -> Callable[..., Array]:
        def apply(places: Array, order: Array, last_kept: Array, bias: Array, *_: Array) -> Array:
            chosen, found = order[:most_kept], places[:most_listed]
            part = _rows(_rows(weights_and_zero, found).T, chosen) @ _rows(columns, found)
            total = _rows(whole, chosen) - part if subtract else part
            hidden = jax.nn.relu(total * scale + bias[:most_kept, None])
            return last_kept[:most_kept].T @ hidden

        return apply

    def every(*own: Array) -> Array:
        *_, mask, last = own
        return _all_units(columns, whole, mask, weights, bias, last).T

    branches = [only(*most) for most in itertools.product(numbers_listed, numbers_kept)]
    first = _first_that_holds(numbers_listed, jnp.sum(listed, axis=1))
    second = _first_that_holds(numbers_kept, counts)
    holds = (first < len(numbers_listed)) & (second < len(numbers_kept))
    branch = jnp.where(holds, first * len(numbers_kept) + second, len(branches))
    outputs = lax.map(
        lambda own: lax.switch(own[0], [*branches, every], *own[1:]),
        (branch, places, orders, lasts_kept, biases, masks, lasts),
    )
    return outputs.swapaxes(1, 2)


def _rows(values: Array, places: Array) -> Array:
    """`values[places]`, where a place beyond the end is the last: less to trace and to compile."""
    return values.at[places].get(mode="clip", wrap_negative_indices=False)


def _kept_first(last: Array) -> tuple[Array, Array]:
    """Units `[U]` with those first whose rows in `last` are not zero, and how many these are."""
    kept = jnp.any(last != 0, axis=1)
    return jnp.argsort(~kept, stable=True).astype(jnp.int32), jnp.sum(kept)


def _usual_sizes(total: int, share: float, widths: Sequence[int] = (0, 1, 3)) -> list[int]:
    """Numbers, of `total`, that are compiled, where each counts with probability `share`: the
    largest is nearly always enough."""
    mean, deviation = total * share, math.sqrt(total * share * (1 - share))
    steps = {math.ceil((mean + width * deviation) / _STEP) for width in widths}
    return sorted(step * _STEP for step in steps if step * _STEP < total)


def _first_that_holds(sizes: list[int], numbers: Array) -> Array:
    """The place in `sizes` of the first that is large enough; `len(sizes)` if none is."""
    return jnp.searchsorted(jnp.asarray(sizes, jnp.int32), numbers)
