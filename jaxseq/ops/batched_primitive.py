"""One primitive for functions of whole sequences that stay efficient under ``vmap`` and in reverse mode.

Under ``vmap`` the mapped axis is merged into the batch axis that the function already has, so that matrix products stay
two-dimensional and loops are not rewritten. A function that is linear in its last operands may bring its own transpose.
Forward mode and derivatives of any order go through the function itself.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxseq.ops.batch_shards import vary_alike, varying_axes
from jaxseq.typing import Array


class Operands(NamedTuple):
    """Three pytrees of arrays, by the position of their batch axis."""

    shared: Any
    """No batch: weights."""
    rows: Any
    """Batch first: ``[B, T, ...]``; arguments may be ``PerhapsShared``."""
    steps: Any
    """Batch axis -2, after time: ``[..., B, F]``."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PerhapsShared:
    """Arrays among the rows whose axis 0 is the batch, or is 1 if the batch shares them; ``vmap`` keeps the 1."""

    arrays: Any


_PERHAPS_SHARED = "perhaps shared"
"""The batch axis of ``PerhapsShared`` arrays."""


@dataclass(frozen=True)
class _Call:
    """The static parameters: ``function(static, *operands) -> Operands``, its transpose if it has one, the pytree."""

    function: Callable
    transpose: Callable | None
    static: Any
    derivative: Any
    """The static argument with which JAX differentiates the function."""
    structure: Any
    map_linear: bool = False
    """Under ``vmap`` over the linear operands alone, map the function itself and share the fixed operands."""

    def __call__(self, *leaves: Array) -> list[Array]:
        return jax.tree.leaves(self.function(self.static, *jax.tree.unflatten(self.structure, leaves)))

    def axes(self) -> tuple[int | str | None, ...]:
        """The batch axis of each argument."""
        operands = jax.tree.unflatten(self.structure, range(self.structure.num_leaves))
        return tuple(axis for o in operands for axis in _axes(o))


def _axes(operands: Operands) -> list:
    def may_be_shared(part: Any) -> bool:
        return isinstance(part, PerhapsShared)

    def axes(part: Any, axis: int | None) -> list:
        return [_PERHAPS_SHARED if may_be_shared(part) else axis] * len(jax.tree.leaves(part))

    kinds = zip(operands, (None, 0, -2), strict=True)
    return [a for part, axis in kinds for x in jax.tree.leaves(part, is_leaf=may_be_shared) for a in axes(x, axis)]


def batched_call(function: Callable, static: Any, *operands: Operands, derivative: Any = None) -> Operands:
    """``function(static, *operands) -> Operands``, which must have one batch axis and no shared result.

    JAX differentiates ``function(derivative, *operands)`` instead, by default with ``static``. It must be the same
    function, for example without loops of dynamic length, through which reverse mode cannot pass.
    """
    return _bind(function, None, static, derivative, operands)


def batched_linear_call(
    function: Callable,
    transpose: Callable,
    static: Any,
    fixed: Operands,
    linear: Operands,
    *,
    derivative: Any = None,
    map_linear: bool = False,
) -> Operands:
    """``batched_call`` of a function linear in its last operands.

    Its transpose is ``transpose(static, fixed, cotangents) -> Operands``. With ``map_linear``, ``vmap`` over the linear
    operands alone (several tangents of one input) maps the function itself: what depends on the fixed operands is not
    copied and not computed again for each tangent.
    """
    return _bind(function, transpose, static, derivative, (fixed, linear), map_linear)


def mapped_axis_first(arguments: tuple, axes: tuple) -> tuple[Array, ...]:
    """All arguments of a batching rule with the mapped axis first, broadcast where there is none."""
    size = next(a.shape[axis] for a, axis in zip(arguments, axes, strict=True) if axis is not None)
    return tuple(
        jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        for a, axis in zip(arguments, axes, strict=True)
    )


def _bind(
    function: Callable,
    transpose: Callable | None,
    static: Any,
    derivative: Any,
    operands: tuple,
    map_linear: bool = False,
) -> Operands:
    leaves, structure = jax.tree.flatten(vary_alike(operands))
    op = _Call(function, transpose, static, static if derivative is None else derivative, structure, map_linear)
    result = jax.eval_shape(lambda *a: function(static, *jax.tree.unflatten(structure, a)), *_shapes(leaves))
    return jax.tree.unflatten(jax.tree.structure(result), _call_p.bind(*leaves, op=op, results=tuple(_axes(result))))


def _run(*leaves: Array, op: _Call, results: tuple) -> list[Array]:
    return op(*leaves)


def _abstract_eval(*leaves: Any, op: _Call, results: tuple) -> list[Any]:
    return [_like(s, leaves[0]) for s in jax.eval_shape(op, *_shapes(leaves))]


def _shapes(leaves: Any) -> list[jax.ShapeDtypeStruct]:
    """Shapes and dtypes alone, without the mesh axes over which the arrays vary."""
    return [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in leaves]


def _like(shape: Any, leaf: Any) -> Any:
    """An array type of that shape and dtype that varies over the mesh axes over which the type ``leaf`` varies."""
    plain = jax.core.ShapedArray(shape.shape, shape.dtype)
    return plain if not varying_axes(leaf) else leaf.update(shape=shape.shape, dtype=shape.dtype, weak_type=False)


def _jvp_rule(primals: tuple, tangents: tuple, *, op: _Call, results: tuple) -> tuple[list, list]:
    moved = [i for i, t in enumerate(tangents) if type(t) is not ad.Zero]
    op = replace(op, static=op.derivative)

    def function(*changed: Array) -> list[Array]:
        leaves = list(primals)
        for i, leaf in zip(moved, changed, strict=True):
            leaves[i] = leaf
        return op(*leaves)

    return jax.jvp(function, [primals[i] for i in moved], [tangents[i] for i in moved])


def _batch_rule(leaves: tuple, mapped: tuple, *, op: _Call, results: tuple) -> tuple[list, tuple]:
    size = next(a.shape[d] for a, d in zip(leaves, mapped, strict=True) if d is not None)
    if size == 0:
        out = jax.eval_shape(jax.vmap(op, in_axes=mapped, axis_size=0), *leaves)
        return [jnp.zeros(x.shape, x.dtype) for x in out], (0,) * len(out)
    axes = op.axes()
    fixed = len(jax.tree.leaves(jax.tree.unflatten(op.structure, mapped)[0]))  # None is no leaf
    shared = None in results or any(d is not None and axis is None for d, axis in zip(mapped, axes, strict=True))
    if shared or (op.map_linear and not fixed):
        out = jax.vmap(op, in_axes=mapped, axis_size=size)(*leaves)
        return out, (0,) * len(out)

    def merged(a: Array, d: int | None, axis: int | str | None) -> Array:
        if axis is None or (axis is _PERHAPS_SHARED and d is None and a.shape[0] == 1):
            return a
        a = jnp.broadcast_to(a, (size, *a.shape)) if d is None else jnp.moveaxis(a, d, 0)
        at = 0 if isinstance(axis, str) else axis if axis >= 0 else a.ndim - 1 + axis
        a = jnp.moveaxis(a, 0, at)
        return a.reshape(*a.shape[:at], a.shape[at] * a.shape[at + 1], *a.shape[at + 2 :])

    out = _call_p.bind(*map(merged, leaves, mapped, axes), op=op, results=results)
    where = [axis if axis >= 0 else a.ndim + axis for a, axis in zip(out, results, strict=True)]
    # A result may lead with a divisor of the batch, as the gradient of what the batch shares does.
    parts = [
        a.reshape(*a.shape[:d], size, a.shape[d] // size, *a.shape[d + 1 :]) for a, d in zip(out, where, strict=True)
    ]
    return parts, tuple(where)


def _transpose_rule(cotangents: list, *leaves: Any, op: _Call, results: tuple) -> list:
    fixed, linear = jax.tree.unflatten(op.structure, leaves)
    assert op.transpose is not None
    back = op.transpose
    if any(map(varying_axes, jax.tree.leaves(fixed))):
        back = functools.partial(_bound, op.transpose)
    found = jax.tree.leaves(back(op.static, fixed, [ad.instantiate_zeros(c) for c in cotangents]))
    wanted = jax.tree.leaves(linear, is_leaf=ad.is_undefined_primal)
    found = [c if ad.is_undefined_primal(a) else None for a, c in zip(wanted, found, strict=True)]
    return [None] * (len(leaves) - len(found)) + found


def _bound(transpose: Callable, static: Any, fixed: Operands, cotangents: list) -> Operands:
    """The transpose as a primitive: arrays that vary over a mesh meet what it makes, which does not, inside alone."""
    parts = Operands(cotangents, (), ())
    return _bind(
        lambda static, fixed, parts: transpose(static, fixed, parts.shared), None, static, None, (fixed, parts)
    )


def _lower(ctx: Any, *leaves: Any, op: _Call, results: tuple) -> Any:
    """Inside, no array varies over a mesh: one device computes all of it."""
    plain = ctx.replace(avals_in=[jax.core.ShapedArray(a.shape, a.dtype) for a in ctx.avals_in])
    return mlir.lower_fun(_run, multiple_results=True)(plain, *leaves, op=op, results=results)


_call_p = Primitive("batched_call")
_call_p.multiple_results = True
_call_p.def_impl(_run)
_call_p.def_abstract_eval(_abstract_eval)
mlir.register_lowering(_call_p, _lower)
ad.primitive_jvps[_call_p] = _jvp_rule
ad.primitive_transposes[_call_p] = _transpose_rule
batching.primitive_batchers[_call_p] = _batch_rule
