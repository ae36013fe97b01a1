"""A sum of shifted and weighted rows as a primitive whose transpose is of the same form.

JAX's transpose of a sum of slices is a sum of padded copies, which costs several times as much on a CPU. Forward mode,
higher derivatives and ``vmap`` are supported.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxseq.ops.batch_shards import vary_alike
from jaxseq.ops.batched_primitive import mapped_axis_first
from jaxseq.ops.rows import sum_rows
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Float, Int

_shifted_p = Primitive("shifted_sum")


def shifted_sum(
    rows: Float[Array, "*B S D"],
    kernel: Float[Array, "J D"],
    groups: Int[Array, "*B S"] | None,
    out_groups: Int[Array, "*B T"] | None,
    dilation: int,
) -> Float[Array, "*B T D"]:
    """``Σ_j kernel[j] ⊙ rows[t + j·dilation]`` over rows of the group ``out_groups[t]``; T = S - (J - 1) · dilation."""
    marks = () if groups is None else (groups, out_groups)
    return _shifted_p.bind(*vary_alike((rows, kernel, *marks)), dilation=dilation)


def shift_rows(rows: Array, groups: Array | None, out_groups: Array | None, begin: int, length: int) -> Array:
    """The ``length`` rows from ``begin`` on, with zeros where their group differs from ``out_groups``."""
    part = rows[..., begin : begin + length, :]
    if groups is None or out_groups is None:
        return part
    return jnp.where((groups[..., begin : begin + length] == out_groups)[..., None], part, jnp.zeros_like(part))


def _sum(rows: Array, kernel: Array, *marks: Array, dilation: int) -> Array:
    groups, out_groups = marks or (None, None)
    count, width = kernel.shape
    length = rows.shape[-2] - (count - 1) * dilation
    wide = at_least_float32(rows.dtype)
    weights = kernel.astype(wide).reshape(count, *(1,) * (rows.ndim - 1), width)
    rows = lax.optimization_barrier(rows)
    out = jnp.zeros((*rows.shape[:-2], length, width), wide)
    for j in range(count):
        out = out + weights[j] * shift_rows(rows, groups, out_groups, j * dilation, length).astype(wide)
    return out.astype(rows.dtype)


def _jvp_rule(primals: tuple, tangents: tuple, *, dilation: int) -> tuple[Array, Array]:
    rows, kernel, *marks = primals
    d_rows, d_kernel, *_ = tangents
    parts = []
    if not isinstance(d_rows, ad.Zero):
        parts.append(_shifted_p.bind(d_rows, kernel, *marks, dilation=dilation))
    if not isinstance(d_kernel, ad.Zero):
        parts.append(_shifted_p.bind(rows, d_kernel, *marks, dilation=dilation))
    return _shifted_p.bind(rows, kernel, *marks, dilation=dilation), sum(parts[1:], parts[0])


def _transpose_rule(cotangent: Any, rows: Any, kernel: Any, *marks: Array, dilation: int) -> tuple:
    nothing = (None,) * len(marks)
    groups, out_groups = marks or (None, None)
    length = cotangent.shape[-2]
    if ad.is_undefined_primal(kernel):
        wide = at_least_float32(cotangent.dtype)
        taps = (shift_rows(rows, groups, out_groups, j * dilation, length) for j in range(kernel.aval.shape[0]))
        products = [sum_rows(tap.astype(wide) * cotangent.astype(wide)) for tap in taps]
        return None, jnp.stack(products).astype(kernel.aval.dtype), *nothing
    around = (kernel.shape[0] - 1) * dilation
    padding = [(0, 0)] * (cotangent.ndim - 2) + [(around, around)]
    if marks:
        marks = jnp.pad(marks[1], padding, constant_values=-1), marks[0]
    padded = jnp.pad(cotangent, [*padding, (0, 0)])
    return _shifted_p.bind(padded, kernel[::-1], *marks, dilation=dilation), None, *nothing


def _batch_rule(arguments: tuple, axes: tuple, *, dilation: int) -> tuple[Array, int]:
    rows, kernel, *marks = arguments
    if axes[1] is not None:
        return jax.vmap(lambda *a: _sum(*a, dilation=dilation), in_axes=axes)(*arguments), 0
    rows, *marks = mapped_axis_first((rows, *marks), (axes[0], *axes[2:]))
    return _shifted_p.bind(rows, kernel, *marks, dilation=dilation), 0


_shifted_p.def_impl(jax.jit(_sum, static_argnames="dilation"))
_shifted_p.def_abstract_eval(
    lambda rows, kernel, *marks, dilation: rows.update(
        shape=(*rows.shape[:-2], rows.shape[-2] - (kernel.shape[0] - 1) * dilation, rows.shape[-1])
    )
)
mlir.register_lowering(_shifted_p, mlir.lower_fun(_sum, multiple_results=False))
ad.primitive_jvps[_shifted_p] = _jvp_rule
ad.primitive_transposes[_shifted_p] = _transpose_rule
batching.primitive_batchers[_shifted_p] = _batch_rule
