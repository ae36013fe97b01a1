"""The linear maps of a causal convolution, as primitives with transposes of their own.

What JAX gives for the transpose of a sum of slices is a sum of padded copies, and for that of a gather a scatter; on a
CPU both cost a multiple of the map itself. Here the one is again a sum of slices, and the other a gather by the
inverse permutation. Forward mode, higher derivatives and ``vmap`` stay open.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Float, Int

_permute_p = Primitive("permute_rows")
_shifted_p = Primitive("shifted_sum")


@jax.jit
def permute_rows(
    rows: Float[Array, "*B T D"], source: Int[Array, "*B T"], to: Int[Array, "*B T"]
) -> Float[Array, "*B T D"]:
    """The row ``source[t]`` at each t; ``to`` is the inverse permutation."""
    return _permute_p.bind(rows, source, to)


def shifted_sum(
    rows: Float[Array, "*B S D"],
    kernel: Float[Array, "J D"],
    groups: Int[Array, "*B S"] | None,
    own: Int[Array, "*B T"] | None,
    dilation: int,
) -> Float[Array, "*B T D"]:
    """``Σ_j kernel[j] ⊙ rows[t + j·dilation]`` over rows whose group is t's own; T = S - (J - 1) · dilation."""
    marks = () if groups is None else (groups, own)
    return _shifted_p.bind(rows, kernel, *marks, dilation=dilation)


def shifted(rows: Array, groups: Array | None, own: Array | None, begin: int, length: int) -> Array:
    """The ``length`` rows from ``begin`` on, zeros where their group is not the own one."""
    part = rows[..., begin : begin + length, :]
    if groups is None or own is None:
        return part
    return jnp.where((groups[..., begin : begin + length] == own)[..., None], part, jnp.zeros_like(part))


def _permuted(rows: Array, source: Array, to: Array) -> Array:
    *batch, length, width = rows.shape
    first = length * jnp.arange(math.prod(batch), dtype=source.dtype).reshape(*batch, 1)
    flat = rows.reshape(math.prod(batch) * length, width)
    return jnp.take(flat, (source + first).reshape(-1), axis=0, mode="clip").reshape(rows.shape)


def _permuted_tangent(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    rows, source, to = primals
    return permute_rows(rows, source, to), permute_rows(tangents[0], source, to)


def _permuted_transpose(cotangent: Any, rows: Any, source: Array, to: Array) -> tuple:
    return permute_rows(cotangent, to, source), None, None


def _permuted_mapped(arguments: tuple, axes: tuple) -> tuple[Array, int]:
    return permute_rows(*_leading(arguments, axes)), 0


def _leading(arguments: tuple, axes: tuple) -> tuple[Array, ...]:
    """All arguments with the mapped axis in front."""
    size = next(a.shape[axis] for a, axis in zip(arguments, axes, strict=True) if axis is not None)
    return tuple(
        jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        for a, axis in zip(arguments, axes, strict=True)
    )


def _sum(rows: Array, kernel: Array, *marks: Array, dilation: int) -> Array:
    groups, own = marks or (None, None)
    count, width = kernel.shape
    length = rows.shape[-2] - (count - 1) * dilation
    wide = at_least_float32(rows.dtype)
    weights = kernel.astype(wide).reshape(count, *(1,) * (rows.ndim - 1), width)
    rows = lax.optimization_barrier(rows)
    out = jnp.zeros((*rows.shape[:-2], length, width), wide)
    for j in range(count):
        out = out + weights[j] * shifted(rows, groups, own, j * dilation, length).astype(wide)
    return out.astype(rows.dtype)


def _sum_tangent(primals: tuple, tangents: tuple, *, dilation: int) -> tuple[Array, Array]:
    rows, kernel, *marks = primals
    d_rows, d_kernel, *_ = tangents
    parts = []
    if not isinstance(d_rows, ad.Zero):
        parts.append(_shifted_p.bind(d_rows, kernel, *marks, dilation=dilation))
    if not isinstance(d_kernel, ad.Zero):
        parts.append(_shifted_p.bind(rows, d_kernel, *marks, dilation=dilation))
    return _shifted_p.bind(rows, kernel, *marks, dilation=dilation), sum(parts[1:], parts[0])


def _sum_transpose(cotangent: Any, rows: Any, kernel: Any, *marks: Array, dilation: int) -> tuple:
    nothing = (None,) * len(marks)
    groups, own = marks or (None, None)
    length = cotangent.shape[-2]
    if ad.is_undefined_primal(kernel):
        wide = at_least_float32(cotangent.dtype)
        axes = tuple(range(cotangent.ndim - 1))
        taps = (shifted(rows, groups, own, j * dilation, length) for j in range(kernel.aval.shape[0]))
        products = [(tap.astype(wide) * cotangent.astype(wide)).sum(axes) for tap in taps]
        return None, jnp.stack(products).astype(kernel.aval.dtype), *nothing
    around = (kernel.shape[0] - 1) * dilation
    padding = [(0, 0)] * (cotangent.ndim - 2) + [(around, around)]
    if marks:
        marks = jnp.pad(marks[1], padding, constant_values=-1), marks[0]
    padded = jnp.pad(cotangent, [*padding, (0, 0)])
    return _shifted_p.bind(padded, kernel[::-1], *marks, dilation=dilation), None, *nothing


def _sum_mapped(arguments: tuple, axes: tuple, *, dilation: int) -> tuple[Array, int]:
    rows, kernel, *marks = arguments
    if axes[1] is not None:
        return jax.vmap(lambda *a: _sum(*a, dilation=dilation), in_axes=axes)(*arguments), 0
    rows, *marks = _leading((rows, *marks), (axes[0], *axes[2:]))
    return _shifted_p.bind(rows, kernel, *marks, dilation=dilation), 0


_permute_p.def_impl(_permuted)
_permute_p.def_abstract_eval(lambda rows, source, to: rows)
mlir.register_lowering(_permute_p, mlir.lower_fun(_permuted, multiple_results=False))
ad.primitive_jvps[_permute_p] = _permuted_tangent
ad.primitive_transposes[_permute_p] = _permuted_transpose
batching.primitive_batchers[_permute_p] = _permuted_mapped

_shifted_p.def_impl(jax.jit(_sum, static_argnames="dilation"))
_shifted_p.def_abstract_eval(
    lambda rows, kernel, *marks, dilation: rows.update(
        shape=(*rows.shape[:-2], rows.shape[-2] - (kernel.shape[0] - 1) * dilation, rows.shape[-1])
    )
)
mlir.register_lowering(_shifted_p, mlir.lower_fun(_sum, multiple_results=False))
ad.primitive_jvps[_shifted_p] = _sum_tangent
ad.primitive_transposes[_shifted_p] = _sum_transpose
batching.primitive_batchers[_shifted_p] = _sum_mapped
