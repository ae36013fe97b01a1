"""A cell's one step, taken apart: which activations to keep, and its Jacobian, which is one number a unit and pair.

The cell is traced once for a single row. Its transcendental functions (of those whose slope follows from their value)
are put out beside the state, so that nothing is computed twice and each is a loop of its own, which XLA's CPU backend
vectorises; several of slices of one buffer in one loop it does not (75 against 10 us a step, measured).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxseq.typing import Array

SLOPES: dict[str, Callable] = {
    "tanh": lambda y: 1 - y * y,
    "logistic": lambda y: y * (1 - y),
    "exp": lambda y: y,
}
"""The slope at a point from the function's value there."""


# fmt: off
POINTWISE = {
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil",
    "clamp", "convert_element_type", "copy", "cos", "cosh", "div", "eq", "erf", "erf_inv", "erfc", "exp",
    "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p",
    "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or", "pow", "reduce_precision",
    "rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "sub", "tan",
    "tanh", "xor",
}
# fmt: on
"""What may stand in a pointwise cell."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _known(name: str, u: Array, u_0: Array, y: Array) -> Array:
    """``y + slope(y) (u - u_0)`` with ``u = u_0``: what is known of the function around a point."""
    return y


@_known.defjvp
def _known_jvp(name: str, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    y, (d_u, d_u_0, d_y) = primals[2], tangents
    return y, d_y + (d_u - d_u_0) * SLOPES[name](y)


class Step(NamedTuple):
    """A traced cell; its inputs are z (``x + r`` where a gate reads nothing else, else x), the other r, the state."""

    jaxpr: Any
    summed: tuple[bool, ...]
    """For each gate: does the cell read ``x_g + r_g`` and neither of them otherwise? Then their cotangent is one."""
    kept: tuple[int, ...]
    """Which equations' values are put out beside the state."""
    reads: tuple[tuple[bool, ...], ...]
    """For each input, whether each part of the new state depends on it."""
    needed: tuple[bool, ...]
    """For each input, whether the Jacobian or the own parameters' gradient needs it once the activations are known."""

    @property
    def others(self) -> tuple[int, ...]:
        """The gates whose r is an input of its own."""
        return tuple(g for g, s in enumerate(self.summed) if not s)

    def __call__(
        self, own: Sequence[Array], inputs: Sequence[Array], known: Any = None
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """The new state and the activations, for inputs ``[*A, F]``; ``known`` is what ``around`` gives."""

        def row(own: tuple, inputs: tuple, known: Any) -> tuple:
            state, found = _interpret(self.jaxpr, (*own, *inputs), self.kept, known)
            return state, tuple(y for _, y in found)

        return _rows(row, inputs)(tuple(own), tuple(inputs), known)

    def around(self, own: Sequence[Array], inputs: Sequence[Array], activations: Sequence[Array]) -> tuple:
        """The activations as known functions near these inputs: pairs of argument and value."""

        def row(own: tuple, inputs: tuple, activations: tuple) -> tuple:
            known = tuple((None, y) for y in activations)
            return tuple(_interpret(self.jaxpr, (*own, *inputs), self.kept, known)[1])

        return _rows(row, inputs)(tuple(own), tuple(inputs), tuple(activations))

    def jacobian(
        self, own: Sequence[Array], inputs: Sequence[Array], activations: Sequence[Array]
    ) -> tuple[tuple[Array | None, ...], ...]:
        """For each input, the derivative of each part of the new state; None where there is no dependence."""
        known = self.around(own, inputs, activations)

        def state(*inputs: Array) -> tuple[Array, ...]:
            return self(own, inputs, known)[0]

        rows = []
        for k, reads in enumerate(self.reads):
            unit = [jnp.ones_like(a) if i == k else jnp.zeros_like(a) for i, a in enumerate(inputs)]
            slopes = jax.jvp(state, tuple(inputs), tuple(unit))[1]
            rows.append(tuple(s if read else None for s, read in zip(slopes, reads, strict=True)))
        return tuple(rows)


def _rows(row: Callable, inputs: Sequence[Array]) -> Callable:
    for _ in range(inputs[-1].ndim - 1):
        row = jax.vmap(row, in_axes=(None, 0, 0))
    return row


def not_pointwise(jaxpr: Any) -> str | None:
    """The first primitive of a cell by which units might see one another, or which has no derivative of its own."""
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        inner = next((parameters[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in parameters), None)
        if name in POINTWISE or (name == "broadcast_in_dim" and not equation.invars[0].aval.shape):
            continue
        if inner is None or name in ("scan", "while", "cond") or name.startswith("custom_vjp"):
            return name
        found = not_pointwise(getattr(inner, "jaxpr", inner))
        if found is not None:
            return found
    return None


def traced(rebuild: Callable[[Any], Callable], own: Sequence[Array], gates: int, state: Any) -> Step:
    """The step of the cell ``rebuild(own)``; ``state`` holds a row's shapes."""
    gate = (state[0],) * gates
    raw = jax.make_jaxpr(lambda x, r, s: rebuild(own)(s, x, r))(gate, gate, state).jaxpr
    summed = tuple(_one_sum(raw, raw.invars[g], raw.invars[gates + g]) for g in range(gates))
    others = gate[: gates - sum(summed)]

    def equation(own: Any, z: tuple, r: tuple, s: Any) -> Any:
        rest = iter(r)
        r = tuple(jnp.zeros_like(a) if is_sum else next(rest) for is_sum, a in zip(summed, z, strict=True))
        return rebuild(own)(s, z, r)

    closed = jax.make_jaxpr(equation)(own, gate, others, state)
    jaxpr, count = closed.jaxpr, len(own)
    ends = (*jaxpr.outvars, *jaxpr.invars)
    kept = tuple(
        i
        for i, e in enumerate(jaxpr.eqns)
        if e.primitive.name in SLOPES
        and e.outvars[0].aval.shape == state[0].shape
        and not any(e.invars[0] is end for end in ends)
    )
    step = Step(closed, summed, kept, tuple(_depend(jaxpr, v) for v in jaxpr.invars[count:]), ())
    inputs = [*gate, *others, *jax.tree.leaves(state)]

    def derivatives(own: Any, inputs: Any, activations: Any) -> Any:
        known = step.around(own, inputs, activations)
        new, back = jax.vjp(lambda own: step(own, inputs, known)[0], own)
        return step.jacobian(own, inputs, activations), back(tuple(map(jnp.ones_like, new)))

    read = jax.make_jaxpr(derivatives)(tuple(own), inputs, [state[0]] * len(kept))
    return step._replace(needed=_needed(read.jaxpr)[count : count + len(inputs)])


def _interpret(closed: Any, inputs: Sequence[Array], kept: Sequence[int], known: Any) -> tuple[tuple, list]:
    """The results, and argument and value of the equations that are kept."""
    jaxpr = closed.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *inputs], strict=True))
    found: list[tuple[Array, Array]] = []
    for i, equation in enumerate(jaxpr.eqns):
        arguments = [_value(v, values) for v in equation.invars]
        if i in kept and known is not None:
            u_0, y = known[len(found)]
            out = y if u_0 is None else _known(equation.primitive.name, arguments[0], u_0, y)
        else:
            out = equation.primitive.bind(*arguments, **equation.primitive.get_bind_params(equation.params))
        outs = out if equation.primitive.multiple_results else [out]
        values |= dict(zip(equation.outvars, outs, strict=True))
        if i in kept:
            found.append((arguments[0], out))
    return tuple(_value(v, values) for v in jaxpr.outvars), found


def _value(variable: Any, values: dict) -> Any:
    return variable.val if _is_literal(variable) else values[variable]


def _is_literal(variable: Any) -> bool:
    return hasattr(variable, "val")


def _one_sum(jaxpr: Any, x: Any, r: Any) -> bool:
    if any(out is x or out is r for out in jaxpr.outvars):
        return False
    by_x, by_r = ([e for e in jaxpr.eqns for v in e.invars if v is one] for one in (x, r))
    return len(by_x) == len(by_r) == 1 and by_x[0] is by_r[0] and by_x[0].primitive.name == "add"


def _depend(jaxpr: Any, variable: Any) -> tuple[bool, ...]:
    """Which results depend on the variable."""
    touched = {variable}
    for equation in jaxpr.eqns:
        if any(v in touched for v in equation.invars if not _is_literal(v)):
            touched |= set(equation.outvars)
    return tuple(not _is_literal(v) and v in touched for v in jaxpr.outvars)


def _needed(jaxpr: Any) -> tuple[bool, ...]:
    """Which arguments the results depend on."""
    live = {v for v in jaxpr.outvars if not _is_literal(v)}
    for equation in reversed(jaxpr.eqns):
        if any(v in live for v in equation.outvars):
            live |= {v for v in equation.invars if not _is_literal(v)}
    return tuple(v in live for v in jaxpr.invars)
