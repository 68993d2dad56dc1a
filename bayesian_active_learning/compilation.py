"""`jit` for what runs networks: float32 products, and on a CPU the fast convolutions.

Since jax 0.10, XLA:CPU gives plain convolutions to YNNPACK, which is up to 8 times slower at them
than Eigen. An option of the compiler leaves them to Eigen, for a whole program and from outside
of it. Networks are traced with plain convolutions where it is set, and with convolutions that
YNNPACK does not take elsewhere (`models.convolution`): in a program of somebody else.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import jax
from jax.extend.core import get_opaque_trace_state

from bayesian_active_learning.precision import full_precision

P = ParamSpec("P")
T = TypeVar("T")

# Not `jax.make_user_context`: a new one makes JAX compile again all that a process has compiled.
_plain = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain_convolutions() -> Iterator[None]:
    """What is traced inside is for a program that leaves plain convolutions to Eigen."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def are_convolutions_plain() -> bool:
    """Whether `plain_convolutions` is on. A function that JAX traces once for all, such as a
    branch of `lax.cond`, must be another one for each answer."""
    return _plain.get()


_EIGEN = {
    "xla_cpu_experimental_ynn_fusion_type": (
        "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    )
}
"""What YNNPACK may have: matrix products and sums."""


@functools.cache
def _has_option(backend: str) -> bool:
    """Experimental by name, so it may go."""
    if backend != "cpu":
        return False
    try:
        jax.jit(lambda x: x, compiler_options=_EIGEN).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


with jax.core.eval_context():
    _OUTSIDE = get_opaque_trace_state()  # nothing is traced, even if a trace imports this


def jit(function: Callable[P, T], **arguments: Any) -> Callable[P, T]:
    """`jax.jit`, with `full_precision`, and convolutions by Eigen where the default backend is a
    CPU. Inside of a program that is being traced, that program's options hold, and under `vmap`
    and `grad` none.

    Args:
      function: what `jax.jit` takes.
      arguments: others of `jax.jit`.
    """
    precise = full_precision(function)

    @functools.wraps(function)
    def plainly(*args: P.args, **kwargs: P.kwargs) -> T:
        with plain_convolutions():
            return precise(*args, **kwargs)

    by_eigen = jax.jit(plainly, compiler_options=_EIGEN, **arguments)
    anywhere = jax.jit(precise, **arguments)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        outside = get_opaque_trace_state() == _OUTSIDE
        alone = outside and _has_option(jax.default_backend())
        return (by_eigen if alone else anywhere)(*args, **kwargs)

    return call
