"""The elementwise linear recurrence as a JAX primitive, over any solver.

The primitive is linear in ``b`` and in the first state: its tangent is the same recurrence of ``da_t ⊙ h_{t-1} +
db_t``, its transpose the same recurrence in reverse. So a solver is one plain function of arrays; forward mode, reverse
mode, second derivatives and ``vmap`` (one more batch dimension) follow from the rules here.
"""

import functools
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxseq.ops.batch_shards import by_batch_shard, vary_alike
from jaxseq.ops.batched_primitive import mapped_axis_first
from jaxseq.typing import Array, Inexact


class Solution(NamedTuple):
    """All states, and the final state."""

    states: Inexact[Array, "*B T F"]
    last: Inexact[Array, "*B F"]


@runtime_checkable
class Solver(Protocol):
    """Forwards, ``h_t = a_t h_{t-1} + b_t`` from ``h_{-1} = h``; the final state is ``h_{T-1}``.

    In reverse (its transpose), ``g_t = b_t + v_t`` and ``v_{t-1} = a_t g_t`` from ``v_{T-1} = h``; the final
    state is ``v_{-1}``.
    """

    def __call__(self, a: Array, b: Array, h: Array, *, reverse: bool) -> Solution: ...


def decay(a: Array, h: Array) -> Array:
    """``a ⊙ h``, with 0 wherever a is 0, even for an infinite or NaN h."""
    return jnp.where(a == 0, jnp.zeros_like(h), a * h)


@functools.partial(jax.jit, static_argnames=("reverse", "solver"))
def solve(a: Array, b: Array, h: Array, *, reverse: bool, solver: Solver) -> Solution:
    """``solver(a, b, h, reverse=reverse)`` with every derivative and ``vmap``."""

    def run(_: None, rows: tuple[Array, Array, Array]) -> Solution:
        return Solution(*_solve_p.bind(*vary_alike(rows), reverse=reverse, solver=solver))

    if getattr(solver, "across_devices", False):  # of global arrays: it shards them itself
        return run(None, (a, b, h))
    return by_batch_shard(run, None, (a, b, h), batch=h.shape[:-1])


def _run(a: Array, b: Array, h: Array, *, reverse: bool, solver: Solver) -> Solution:
    return solver(a, b, h, reverse=reverse)


def _jvp(primals: tuple, tangents: tuple, **options: Any) -> tuple[Solution, Solution]:
    """A tangent of ``a`` adds a product with the states themselves: nothing else is stored for the reverse pass."""
    a, b, h = primals
    d_a, d_b, d_h = tangents[0], *map(ad.instantiate_zeros, tangents[1:])
    out = solve(a, b, h, **options)
    if type(d_a) is ad.Zero:
        return out, solve(a, d_b, d_h, **options)
    if options["reverse"]:  # da_t g_t joins v_{t-1}
        d_v = d_a * out.states
        d_out = solve(a, d_b + _shift(d_v, -1), d_h, **options)
        return out, d_out._replace(last=d_out.last + d_v[..., 0, :])
    first = d_a[..., :1, :] * h[..., None, :]
    later = _shift(_shift(d_a, -1) * out.states, 1)
    return out, solve(a, later.at[..., :1, :].add(first) + d_b, d_h, **options)


def _shift(x: Inexact[Array, "*B T F"], by: int) -> Inexact[Array, "*B T F"]:
    """``x_{t - by}``, with zeros where nothing is shifted in."""
    none = (0, 0, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), [*[none] * (x.ndim - 2), (by, -by, 0), none])


def _transpose(cotangents: Any, a: Array, b: Any, h: Any, *, reverse: bool, solver: Solver) -> list:
    states, last = map(ad.instantiate_zeros, cotangents)
    back = solve(a, states, last, reverse=not reverse, solver=solver)
    return [None, *(g if ad.is_undefined_primal(x) else None for g, x in zip(back, (b, h), strict=True))]


def _batch_rule(arguments: tuple, axes: tuple, **options: Any) -> tuple[Solution, tuple[int, int]]:
    return solve(*mapped_axis_first(arguments, axes), **options), (0, 0)


def _abstract_eval(a: Any, b: Any, h: Any, **options: Any) -> tuple[Any, Any]:
    return b, h


_solve_p = Primitive("linear_recurrence")
_solve_p.multiple_results = True
_solve_p.def_impl(_run)
_solve_p.def_abstract_eval(_abstract_eval)
mlir.register_lowering(_solve_p, mlir.lower_fun(_run, multiple_results=True))
ad.primitive_jvps[_solve_p] = _jvp
ad.primitive_transposes[_solve_p] = _transpose
batching.primitive_batchers[_solve_p] = _batch_rule
