"""Compute once what does not depend on the posterior sample.

Most of a dropout network, everything before the first mask, gives the same result
for each of the K samples. `map_draws` finds that part for any function by tracing
it once, runs it once, and maps only the rest over the draws, one at a time, so that
memory holds one sample's activations instead of K.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend import core

from bayesian_active_learning.types import PyTree


def _split(closed: core.ClosedJaxpr, num_mapped: int) -> tuple[core.ClosedJaxpr, core.ClosedJaxpr]:
    """Two programs from one whose first `num_mapped` inputs vary: `common`, from the
    other inputs to what the rest needs, and `rest`, from (varying inputs, that)."""
    jaxpr = closed.jaxpr
    varying = set(jaxpr.invars[:num_mapped])
    common_equations, rest_equations = [], []
    for equation in jaxpr.eqns:
        inputs = [v for v in equation.invars if not isinstance(v, core.Literal)]
        if equation.effects or any(v in varying for v in inputs):
            rest_equations.append(equation)
            varying.update(equation.outvars)
        else:
            common_equations.append(equation)

    # dict: an ordered set
    needed: dict[Any, None] = {}
    for equation in rest_equations:
        needed.update((v, None) for v in equation.invars if not isinstance(v, core.Literal))
    needed.update((v, None) for v in jaxpr.outvars if not isinstance(v, core.Literal))
    inside = set(jaxpr.invars[:num_mapped])
    for equation in rest_equations:
        inside.update(equation.outvars)
    residuals = [v for v in needed if v not in inside]

    shared_inputs = list(jaxpr.constvars) + list(jaxpr.invars[num_mapped:])
    common = jaxpr.replace(
        constvars=[],
        invars=shared_inputs,
        outvars=residuals,
        eqns=common_equations,
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    rest = jaxpr.replace(
        constvars=[],
        invars=list(jaxpr.invars[:num_mapped]) + residuals,
        eqns=rest_equations,
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    return core.ClosedJaxpr(common, []), core.ClosedJaxpr(rest, [])


def map_draws(function: Callable[..., PyTree], draws: PyTree, *shared: PyTree) -> PyTree:
    """`function(draw, *shared)` for every draw, stacked along a new leading axis.

    Args:
      function: pure and traceable.
      draws: a pytree whose leaves have a leading axis K.
      *shared: pytrees of arrays, the same for all draws.

    Returns:
      what `jax.vmap(function, (0, None, ...))(draws, *shared)` returns, within rounding.
    """
    one_draw = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), draws)
    closed, output = jax.make_jaxpr(function, return_shape=True)(one_draw, *shared)
    leaves, structure = jax.tree.flatten(draws)
    common, rest = _split(closed, len(leaves))
    residuals = core.jaxpr_as_fun(common)(*closed.consts, *jax.tree.leaves(shared))
    run_rest = core.jaxpr_as_fun(rest)
    stacked = lax.map(lambda draw: run_rest(*draw, *residuals), leaves)
    return jax.tree.unflatten(jax.tree.structure(output), stacked)
