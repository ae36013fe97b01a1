"""A primitive for linear functions of feature maps that know their transposes, with derivatives of every order.

Under ``vmap`` the mapped axis is merged into the batch axis that the function already has, so that loops over boxes of
dynamic length are not rewritten into loops that run until the longest one ends.
"""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxseq.ops.batched_primitive import mapped_axis_first
from jaxseq.typing import Array


class LinearMap(NamedTuple):
    """``forward(static, fixed, x)``, linear in x, and its transpose ``backward``; all arrays lead with the batch."""

    forward: Callable[[Any, tuple[Array, ...], Array], Array]
    backward: Callable[[Any, tuple[Array, ...], Array], Array]
    static: Hashable

    def __call__(self, fixed: tuple[Array, ...], x: Array) -> Array:
        """``forward`` with derivatives with respect to ``x``; ``fixed`` gets none."""
        return _map_p.bind(*fixed, x, op=self)

    @property
    def transpose(self) -> "LinearMap":
        """The map from cotangents of the result to those of ``x``."""
        return LinearMap(self.backward, self.forward, self.static)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def known_result(op: LinearMap, fixed: tuple[Array, ...], x: Array, value: Array) -> Array:
    """``value``, which is known to be ``op(fixed, x)``, with the derivatives of this."""
    return value


@known_result.defjvp
def _known_result_jvp(op: LinearMap, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return known_result(op, *primals), op(primals[0], tangents[1])


def _run(*arguments: Array, op: LinearMap) -> Array:
    return op.forward(op.static, arguments[:-1], arguments[-1])


def _abstract_eval(*arguments: Any, op: LinearMap) -> Any:
    out = jax.eval_shape(lambda *a: _run(*a, op=op), *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arguments))
    return jax.core.ShapedArray(out.shape, out.dtype)


def _jvp_rule(primals: tuple, tangents: tuple, *, op: LinearMap) -> tuple[Array, Any]:
    out = _map_p.bind(*primals, op=op)
    if type(tangents[-1]) is ad.Zero:
        return out, ad.Zero(jax.typeof(out).to_tangent_aval())
    return out, _map_p.bind(*primals[:-1], tangents[-1], op=op)


def _transpose_rule(cotangent: Any, *arguments: Any, op: LinearMap) -> list:
    none: list = [None] * (len(arguments) - 1)
    if type(cotangent) is ad.Zero:
        return [*none, ad.Zero(arguments[-1].aval)]
    return [*none, _map_p.bind(*arguments[:-1], cotangent, op=op.transpose)]


def _batch_rule(arguments: tuple, axes: tuple, *, op: LinearMap) -> tuple[Array, int]:
    mapped = mapped_axis_first(arguments, axes)
    size = mapped[0].shape[0]
    out = _map_p.bind(*(a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]) for a in mapped), op=op)
    return out.reshape(size, out.shape[0] // size, *out.shape[1:]), 0


_map_p = Primitive("linear_map_of_features")
_map_p.def_impl(jax.jit(_run, static_argnames="op"))
_map_p.def_abstract_eval(_abstract_eval)
mlir.register_lowering(_map_p, mlir.lower_fun(_run, multiple_results=False))
ad.primitive_jvps[_map_p] = _jvp_rule
ad.primitive_transposes[_map_p] = _transpose_rule
batching.primitive_batchers[_map_p] = _batch_rule
