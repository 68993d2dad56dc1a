"""The precision of matrix products and convolutions, stated where a function is traced.

Left alone, JAX takes the fastest one there is: on TPUs one pass in bfloat16, on NVIDIA GPUs
TensorFloat-32, on CPUs float32. Here everything that is compiled asks for float32, whatever
JAX's default and global setting are; networks alone can be had at less, by `with_precision`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax

from bayesian_active_learning.types import Model
from bayesian_active_learning.utils import check_one_of

PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
"""JAX's names for `lax.Precision` HIGHEST, HIGH and DEFAULT. Operands are rounded, sums stay
in float32: "float32" on GPUs as it is, on TPUs in 6 bfloat16 passes; "tensorfloat32" on GPUs
to 11 significant bits, on TPUs in 3 bfloat16 passes; "bfloat16" on TPUs to 8 significant bits,
on NVIDIA GPUs the same as "tensorfloat32". A CPU computes in float32 at each of them."""

P = ParamSpec("P")
T = TypeVar("T")


def full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, whose products are traced as float32 ones where they say nothing themselves.

    For what is compiled: put it inside of `jit`.
    """

    @functools.wraps(function)
    def traced(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.default_matmul_precision("float32"):
            return function(*args, **kwargs)

    return traced


@dataclasses.dataclass(frozen=True)
class _AtPrecision:
    """Equal for equal arguments, so that what was compiled for one is found for the other."""

    function: Callable[..., Any]
    precision: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision(self.precision):
            return self.function(*args, **kwargs)


def with_precision(model: Model, precision: str) -> Model:
    """The model with its products, and those of their derivatives, at this precision.

    Parameters, activations and sums stay as they are. Equal arguments give equal models, for
    which nothing is compiled twice. A model that has a precision from here gets the new one;
    products for which a network itself states a precision keep it. Derivatives that a network
    writes by hand (`jax.custom_vjp`) are float32, unless they state another.

    Args:
      model: any.
      precision: one of `PRECISIONS`. On a CPU all give float32.

    Raises:
      ValueError: an unknown precision.
    """
    check_one_of("precision", precision, PRECISIONS)
    plain = (f.function if isinstance(f, _AtPrecision) else f for f in model)
    return Model(*(_AtPrecision(function, precision) for function in plain))
