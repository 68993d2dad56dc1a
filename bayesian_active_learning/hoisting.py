"""Compute once what does not depend on the posterior sample.

Most of a dropout network, everything before the first mask, gives the same result
for each of the K samples. `map_draws` finds that part for any function by tracing
it once, runs it once, and maps only the rest over the draws, one at a time, so that
memory holds one sample's activations instead of K.

A few draws go together where the rest holds a function with a rule of its own for that
(`jax.custom_batching.custom_vmap`), which is then taken to be the point of it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import lax
from jax.extend import core

from bayesian_active_learning.types import PyTree

# Rules for derivatives, which play no part in running the equation forward.
_DERIVATIVE_RULES = {
    "custom_jvp_call": {"jvp_jaxpr_fun", "jvp_jaxpr_thunk"},
    "custom_vjp_call": {"fwd_jaxpr_thunk", "bwd"},
    "custom_vjp_call_jaxpr": {"fwd_jaxpr_thunk", "bwd"},
}


def _form(value: Any) -> Any:
    """Something hashable that is equal for two programs that compute the same, variable
    names apart; what it does not know is only equal to itself."""
    # From jax 0.12 on the two are one class, whose `jaxpr` is itself.
    if isinstance(value, core.ClosedJaxpr) and value.jaxpr is not value:
        return _form(value.jaxpr), tuple(id(constant) for constant in value.consts)
    if isinstance(value, core.Jaxpr):
        constants = tuple(id(constant) for constant in getattr(value, "consts", ()))
        numbers: dict[Any, int] = {}

        def atom(variable: Any) -> Any:
            if isinstance(variable, core.Literal):
                return str(variable.aval), repr(variable.val)
            return numbers.setdefault(variable, len(numbers)), str(variable.aval)

        inputs = tuple(atom(v) for v in (*value.constvars, *value.invars))
        body = tuple(
            (_form_of_equation(e), tuple(map(atom, e.invars)), tuple(map(atom, e.outvars)))
            for e in value.eqns
        )
        return inputs, body, tuple(map(atom, value.outvars)), constants
    if isinstance(value, tuple | list):
        return tuple(map(_form, value))
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value


def _same(one: Any, other: Any) -> bool:
    """Whether forms are equal; seen at once where JAX has traced a function only once."""
    if one is other:
        return True
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    return _form(one) == _form(other)


def _params(equation: core.JaxprEqn) -> dict[str, Any]:
    """Those that say what is computed."""
    ignored = _DERIVATIVE_RULES.get(equation.primitive.name, set())
    return {name: value for name, value in equation.params.items() if name not in ignored}


def _same_equations(one: core.JaxprEqn, other: core.JaxprEqn) -> bool:
    """Whether they compute the same from the same inputs."""
    mine, theirs = _params(one), _params(other)
    return (
        one.primitive.name == other.primitive.name
        and mine.keys() == theirs.keys()
        and all(_same(value, theirs[name]) for name, value in mine.items())
    )


def _form_of_equation(equation: core.JaxprEqn) -> Any:
    params = sorted(_params(equation).items())
    return equation.primitive.name, tuple((name, _form(value)) for name, value in params)


def _without_repeats(jaxpr: core.Jaxpr) -> core.Jaxpr:
    """The same program, each computation done once. XLA does this too, but not for loops."""
    known: dict[Any, list[core.JaxprEqn]] = {}  # by what is quick to compare
    same: dict[Any, Any] = {}

    def current(variable: Any) -> Any:
        return variable if isinstance(variable, core.Literal) else same.get(variable, variable)

    equations = []
    for equation in jaxpr.eqns:
        inputs = [current(v) for v in equation.invars]
        if not equation.effects:
            atoms = tuple(
                (str(v.aval), repr(v.val)) if isinstance(v, core.Literal) else id(v) for v in inputs
            )
            alike = known.setdefault((equation.primitive.name, atoms), [])
            first = next((other for other in alike if _same_equations(equation, other)), None)
            if first is not None:
                same.update(zip(equation.outvars, first.outvars, strict=True))
                continue
            alike.append(equation)
        equations.append(equation.replace(invars=inputs))
    return jaxpr.replace(eqns=equations, outvars=[current(v) for v in jaxpr.outvars])


def _split(closed: core.ClosedJaxpr, num_mapped: int) -> tuple[core.ClosedJaxpr, core.ClosedJaxpr]:
    """Two programs from one whose first `num_mapped` inputs vary: `common`, from the
    other inputs to what the rest needs, and `rest`, from (varying inputs, that)."""
    jaxpr = _without_repeats(closed.jaxpr)
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


_TOGETHER = 10  # draws at most: more gain nothing
_TOGETHER_BYTES = 2**26  # of the largest array in the rest, for all draws that go together
_OWN_RULE = "custom_vmap_call"
_LOOPS = frozenset({"conv_general_dilated", "scan", "while"})  # slower for several draws at once


def _equations(jaxpr: Any) -> Iterator[core.JaxprEqn]:
    """All equations, those inside calls and branches included, but for what has its own rule."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name == _OWN_RULE:
            continue
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            if hasattr(inner, "eqns"):
                yield from _equations(getattr(inner, "jaxpr", inner))


def _draws_together(rest: core.ClosedJaxpr, num_draws: int) -> int:
    """How many draws go through `rest` at a time."""
    largest, names = 1, set()
    for equation in _equations(rest.jaxpr):
        names.add(equation.primitive.name)
        for variable in equation.outvars:
            aval: Any = variable.aval
            largest = max(largest, aval.size * aval.dtype.itemsize)
    if _OWN_RULE not in names or names & _LOOPS:
        return 1
    most = min(_TOGETHER, max(1, _TOGETHER_BYTES // largest))
    # A last part that is smaller would be a second program.
    even = max(size for size in range(1, most + 1) if num_draws % size == 0)
    return even if 2 * even >= most else min(most, num_draws)


def map_draws(function: Callable[..., PyTree], draws: PyTree, *shared: PyTree) -> PyTree:
    """`function(draw, *shared)` for every draw, stacked along a new leading axis.

    Args:
      function: pure and traceable. Something jitted inside it counts as one computation,
        repeated for every draw if any of it depends on the draw: pass it without `jit`.
      draws: a pytree whose leaves have a leading axis K.
      *shared: pytrees of arrays, the same for all draws.

    Returns:
      what `jax.vmap(function, (0, None, ...))(draws, *shared)` returns, within rounding.
    """
    one_draw = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), draws)
    closed, output = jax.make_jaxpr(function, return_shape=True)(one_draw, *shared)
    leaves = jax.tree.leaves(draws)
    common, rest = _split(closed, len(leaves))
    residuals = core.jaxpr_as_fun(common)(*closed.consts, *jax.tree.leaves(shared))
    run_rest = core.jaxpr_as_fun(rest)
    together = _draws_together(rest, len(leaves[0]))
    stacked = lax.map(
        lambda draw: run_rest(*draw, *residuals),
        leaves,
        batch_size=together if together > 1 else None,
    )
    return jax.tree.unflatten(jax.tree.structure(output), stacked)
