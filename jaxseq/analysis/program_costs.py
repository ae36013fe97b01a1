"""What a program costs: FLOPs counted in its jaxpr, and memory as XLA plans it.

FLOPs are counted on the traced program, loops times their length, because XLA's own counter (``cost_analysis`` of a
compiled program) counts the body of a loop once: its "flops" of a recurrence over 1 and over 50 steps are equal.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# fmt: off
ELEMENTWISE = frozenset((
    "abs", "acos", "acosh", "add", "add_any", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "cos", "cosh",
    "div", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "integer_pow", "lgamma", "log", "log1p", "logistic",
    "max", "min", "mul", "neg", "pow", "rem", "rsqrt", "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh",
))
# fmt: on
"""Primitives with one operation for each element of the result."""

REDUCTIONS = frozenset(["reduce_max", "reduce_min", "reduce_prod", "reduce_sum", "scatter-add", "scatter_add"])
"""Primitives with one operation for each element that is reduced or added."""

CUMULATIVE = frozenset(["cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"])
"""Primitives that combine all earlier elements along an axis."""


class ProgramMemory(NamedTuple):
    """Bytes of a compiled program, as XLA planned them."""

    temporary: int
    """Buffers beside arguments and outputs."""
    peak: int | None
    """The largest sum of live buffers, arguments and outputs included; None where XLA does not report it."""
    arguments: int
    outputs: int


def program_flops(function: Callable, *args: Any, elementwise: bool = False) -> float:
    """FLOPs of ``function(*args)``, which is traced and not executed.

    A product of ``[m, k]`` and ``[k, n]`` takes ``2 m n k``, a convolution two for each tap, input channel and output
    element, an outer product written with broadcasting two an element. Loops (``lax.scan``) count times their length;
    a primitive of jaxseq counts as the implementation that it runs on the default device.

    ``lax.while_loop``, whose length is unknown, counts once: of attention by tiles, which skips tiles by such loops,
    only a lower bound is counted; count ``implementation="reference"`` instead. Of a ``lax.cond`` the most expensive
    branch counts.

    Args:
        function: any traceable function.
        args: arrays or ``jax.ShapeDtypeStruct``.
        elementwise: count floating-point elementwise operations and reductions too, one an element each.

    Example::

        program_flops(jnp.dot, jnp.ones((3, 4)), jnp.ones((4, 5)))  # 2 * 3 * 4 * 5
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return _count(jaxpr, arithmetic_flops if elementwise else product_flops)


def _count(jaxpr: Any, flops: Callable[[Any], float]) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        total += flops(eqn)
        inner = [_count(sub, flops) for sub in inner_jaxprs(eqn)]
        if eqn.primitive.name == "cond":
            total += max(inner)
        else:
            total += sum(inner) * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)
    return total


def product_flops(eqn: Any) -> float:
    """FLOPs of an equation of a jaxpr if it is a product of arrays, else 0; without those of jaxprs inside it."""
    if not eqn.outvars:
        return 0.0
    out, operands = eqn.outvars[0].aval, [x.aval for x in eqn.invars]
    match eqn.primitive.name:
        case "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            return 2.0 * out.size * math.prod(operands[0].shape[i] for i in contracted)
        case "conv_general_dilated":
            return 2.0 * out.size * operands[1].size / operands[1].shape[eqn.params["dimension_numbers"].rhs_spec[0]]
        case "mul" if jnp.issubdtype(out.dtype, jnp.inexact) and all(1 < x.size < out.size for x in operands):
            return 2.0 * out.size
    return 0.0


def arithmetic_flops(eqn: Any) -> float:
    """``product_flops``, or the elements of a floating-point elementwise operation or reduction."""
    flops, name = product_flops(eqn), eqn.primitive.name
    if flops or name not in ELEMENTWISE | REDUCTIONS | CUMULATIVE:
        return flops
    out = eqn.outvars[0].aval
    if not jnp.issubdtype(out.dtype, jnp.inexact):
        return 0.0
    if name.startswith("scatter"):
        return float(eqn.invars[2].aval.size)
    return float(out.size if name in ELEMENTWISE else eqn.invars[0].aval.size)


def inner_jaxprs(eqn: Any) -> list[Any]:
    """The jaxprs that an equation runs, and what a primitive of jaxseq's own stands for."""
    if eqn.primitive.name.startswith("scatter"):  # its jaxpr adds two elements, and is counted by the equation
        return []
    own = eqn.primitive.impl
    if getattr(own, "__module__", "").startswith("jaxseq."):
        shapes = [jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype) for x in eqn.invars]
        return [jax.make_jaxpr(lambda *arrays: own(*arrays, **eqn.params))(*shapes).jaxpr]
    values = [v for value in eqn.params.values() for v in (value if isinstance(value, tuple | list) else [value])]
    return [getattr(v, "jaxpr", v) for v in values if hasattr(getattr(v, "jaxpr", v), "eqns")]


def program_memory(function: Callable, *args: Any) -> ProgramMemory:
    """The memory of ``function(*args)``, which is compiled and not executed.

    Args:
        function: a traceable function, or a jitted one.
        args: arrays or ``jax.ShapeDtypeStruct``.

    Raises:
        ValueError: the backend reports no memory.
    """
    return compiled_memory(jax.jit(function).lower(*args).compile())


def compiled_memory(compiled: Any) -> ProgramMemory:
    """The memory of a program that is compiled already (``jax.jit(function).lower(*args).compile()``).

    Raises:
        ValueError: the backend reports no memory.
    """
    found = compiled.memory_analysis()
    if found is None:
        raise ValueError(f"the backend {jax.default_backend()!r} reports no memory of compiled programs")
    peak = getattr(found, "peak_memory_in_bytes", None)
    sizes = found.argument_size_in_bytes, found.output_size_in_bytes
    return ProgramMemory(found.temp_size_in_bytes, peak, *sizes)
