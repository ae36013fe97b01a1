"""Analysis of a cell: which activations to store, and its derivatives.

The Jacobian of a pointwise cell is one number for each pair of inputs and parts of the new state, and unit. A cell that
mixes the units of a row, as a norm does, is differentiated step by step.

The cell is traced once for a single row. The transcendental functions of a pointwise cell (those whose slope follows
from their value) are returned beside the state, so that nothing is computed twice and each is a loop of its own, which
XLA's CPU backend vectorises; several of slices of one buffer in one loop it does not (75 against 10 us a step,
measured).
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.tree_util import Partial

from jaxseq.ops.batch_shards import outside_mesh
from jaxseq.ops.recurrence.cells import Cell
from jaxseq.ops.rows import sum_rows
from jaxseq.typing import Array

SLOPES: dict[str, Callable] = {
    "tanh": lambda y: 1 - y * y,
    "logistic": lambda y: y * (1 - y),
    "exp": lambda y: y,
}
"""The derivative at a point, from the function's value there."""


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
"""The primitives that a pointwise cell may use."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _linearized(name: str, u: Array, u_0: Array, y: Array) -> Array:
    """``y + slope(y) (u - u_0)`` with ``u = u_0``: the function linearised around ``u_0``."""
    return y


@_linearized.defjvp
def _linearized_jvp(name: str, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    y, (d_u, d_u_0, d_y) = primals[2], tangents
    return y, d_y + (d_u - d_u_0) * SLOPES[name](y)


class JointGates(NamedTuple):
    """Neighbouring gates whose first use is ``tanh(factor · z)``, so that one function serves all of them."""

    first: int
    factors: tuple[float, ...]
    kept: tuple[int, ...]
    """The index of each gate's value among the activations."""


class Step(NamedTuple):
    """A traced cell; its inputs are z (``x + r`` where a gate reads nothing else, else x), the other r, the state."""

    jaxpr: Any
    summed: tuple[bool, ...]
    """For each gate, whether the cell reads only ``x_g + r_g``: then x_g and r_g have the same cotangent."""
    kept: tuple[int, ...]
    """The equations whose values are returned beside the state."""
    reads: tuple[tuple[bool, ...], ...]
    """For each input, whether each part of the new state depends on it."""
    needed: tuple[bool, ...]
    """For each input, whether the Jacobian or the own parameters' gradient needs it once the activations are known."""
    joint: JointGates | None = None
    mixes_units: bool = False
    """Whether the cell is not pointwise: then it has no activations, and all inputs are needed."""

    @property
    def others(self) -> tuple[int, ...]:
        """The gates whose r is an input of its own."""
        return tuple(g for g, s in enumerate(self.summed) if not s)

    def __call__(
        self, parameters: Sequence[Array], inputs: Sequence[Array], known: Any = None
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """The new state and the activations, for inputs ``[*A, F]``.

        ``known`` is the result of ``linearize``; or pairs of None and the value of an activation, and None for the
        activations that are to be computed.
        """

        def row(parameters: tuple, inputs: tuple, known: Any) -> tuple:
            state, found = _interpret(self.jaxpr, (*parameters, *inputs), self.kept, known)
            return state, tuple(y for _, y in found)

        return _map_rows(row, inputs)(tuple(parameters), tuple(inputs), known)

    def linearize(self, parameters: Sequence[Array], inputs: Sequence[Array], activations: Sequence[Array]) -> tuple:
        """The activations as linear functions around these inputs: pairs of argument and value."""

        def row(parameters: tuple, inputs: tuple, activations: tuple) -> tuple:
            known = tuple((None, y) for y in activations)
            return tuple(_interpret(self.jaxpr, (*parameters, *inputs), self.kept, known)[1])

        return _map_rows(row, inputs)(tuple(parameters), tuple(inputs), tuple(activations))

    def derivatives(
        self, parameters: Sequence[Array], inputs: Sequence[Array], activations: Sequence[Array]
    ) -> tuple[Any, ...]:
        """The arguments of ``pull``: the Jacobian of a pointwise cell, else the inputs."""
        return tuple(inputs) if self.mixes_units else self.jacobian(parameters, inputs, activations)

    def pull(self, parameters: Sequence[Array], derivatives: tuple[Any, ...], d_new: Sequence[Array]) -> list[Array]:
        """The cotangents of the inputs of a step, for those of its new state."""
        if self.mixes_units:
            return list(jax.vjp(lambda *inputs: self(parameters, inputs)[0], *derivatives)[1](tuple(d_new)))

        def mixed(row: tuple) -> Array:
            terms = [d * s for d, s in zip(d_new, row, strict=True) if s is not None]
            return functools.reduce(jnp.add, terms) if terms else jnp.zeros_like(d_new[0])

        return [mixed(row) for row in derivatives]

    def pull_parameters(
        self,
        parameters: Sequence[Array],
        inputs: Sequence[Array],
        activations: Sequence[Array],
        d_new: Sequence[Array],
    ) -> tuple[Array, ...]:
        """The cotangents of the cell's own parameters, summed over all rows."""
        known = self.linearize(parameters, inputs, activations)
        vectors = [p.ndim == 1 for p in parameters]

        def with_parameters(some: Sequence[Array], others: Sequence[Array]) -> tuple[Array, ...]:
            found, rest = iter(some), iter(others)
            return tuple(next(found) if is_vector else next(rest) for is_vector in vectors)

        own = [p for p, is_vector in zip(parameters, vectors, strict=True) if is_vector]
        others = [p for p, is_vector in zip(parameters, vectors, strict=True) if not is_vector]

        def row(inputs: tuple, known: tuple, d_new: tuple) -> list[Array]:
            return jax.vjp(lambda p: self(with_parameters(p, others), inputs, known)[0], own)[1](d_new)[0]

        for _ in range(inputs[-1].ndim - 1):
            row = jax.vmap(row)
        # A vector's gradient for each row is no larger than the inputs, and is summed as a product.
        of_own = [sum_rows(d) for d in row(tuple(inputs), known, tuple(d_new))] if own else []
        if not others:
            return with_parameters(of_own, [])
        back = jax.vjp(lambda p: self(with_parameters(own, p), inputs, known)[0], others)[1]
        return with_parameters(of_own, back(tuple(d_new))[0])

    def jacobian(
        self, parameters: Sequence[Array], inputs: Sequence[Array], activations: Sequence[Array]
    ) -> tuple[tuple[Array | None, ...], ...]:
        """For each input, the derivative of each part of the new state; None where there is no dependence."""
        known = self.linearize(parameters, inputs, activations)

        def state(*inputs: Array) -> tuple[Array, ...]:
            return self(parameters, inputs, known)[0]

        rows = []
        for k, (input_k, reads) in enumerate(zip(inputs, self.reads, strict=True)):
            # The other inputs are constants: tangents of zeros would be multiplied and added up, which XLA keeps.
            of_one = lambda a, k=k: state(*inputs[:k], a, *inputs[k + 1 :])  # noqa: E731
            slopes = jax.jvp(of_one, (input_k,), (jnp.ones_like(input_k),))[1]
            rows.append(tuple(s if read else None for s, read in zip(slopes, reads, strict=True)))
        return tuple(rows)


def _map_rows(row: Callable, inputs: Sequence[Array]) -> Callable:
    for _ in range(inputs[-1].ndim - 1):
        row = jax.vmap(row, in_axes=(None, 0, 0))
    return row


class _TracedCell:
    """A cell that was traced for a row; the traced arrays that it reads are its first argument.

    So the cell's own parameters get gradients, whether bound by Partial or closed over.
    """

    def __init__(self, closed: Any, structure: Any) -> None:
        self.jaxpr, self.structure = closed.jaxpr, structure
        self.constants = [None if isinstance(c, jax.core.Tracer) else c for c in closed.consts]

    def __call__(self, parameters: list[Array], *inputs: Any) -> Any:
        rest = iter(parameters)
        constants = [next(rest) if c is None else c for c in self.constants]
        out = jaxpr_as_fun(ClosedJaxpr(self.jaxpr, constants))(*jax.tree.leaves(inputs))
        return jax.tree.unflatten(self.structure, out)


def trace_cell(cell: Cell, state: Any, gates: int) -> tuple[Partial | None, str | None]:
    """The cell for the fused implementation, its parameters bound; or None and the reason why it takes none."""
    row = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[-1:], s.dtype), state)
    gate = (row[0],) * gates
    with outside_mesh():
        closed, out = jax.make_jaxpr(lambda s, x, r: cell(s, x, r), return_shape=True)(row, gate, gate)
    parameters = [c for c in closed.consts if isinstance(c, jax.core.Tracer)]
    reason = None
    if len({s.dtype for s in jax.tree.leaves(state)}) > 1:
        reason = "states of several dtypes"
    if not all(jnp.issubdtype(p.dtype, jnp.inexact) for p in parameters):
        reason = "parameters that are not floating-point"
    if reason is not None:
        return None, reason
    return Partial(_TracedCell(closed, jax.tree.structure(out)), parameters), None


def is_pointwise(traced: Partial) -> bool:
    """Whether a cell as ``trace_cell`` returns it does not mix its units."""
    cell: Any = traced.func
    return first_non_pointwise(cell.jaxpr) is None


def reads_h(cell: Cell, state: Any, gates: int) -> bool:
    """Whether the cell reads h itself, and not only ``h R``."""
    row = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[-1:], s.dtype), state)
    gate = (row[0],) * gates
    jaxpr = jax.make_jaxpr(lambda s, x, r: cell(s, x, r))(row, gate, gate).jaxpr
    return _needed(jaxpr)[0]


def without_h(state: Any) -> Any:
    """The state for a cell that does not read h: its second part replaces h, whose width the cell does not accept."""
    leaves, structure = jax.tree.flatten(state)
    return jax.tree.unflatten(structure, [leaves[1], *leaves[1:]])


def first_non_pointwise(jaxpr: Any) -> str | None:
    """The first primitive that may mix units or has no derivative of its own; None for a pointwise cell."""
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        inner = next((parameters[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in parameters), None)
        if name in POINTWISE or (name == "broadcast_in_dim" and not equation.invars[0].aval.shape):
            continue
        if inner is None or name in ("scan", "while", "cond") or name.startswith("custom_vjp"):
            return name
        found = first_non_pointwise(getattr(inner, "jaxpr", inner))
        if found is not None:
            return found
    return None


def trace_step(rebuild: Callable[[Any], Callable], parameters: Sequence[Any], gates: int, state: Any) -> Step:
    """The step of the cell ``rebuild(parameters)``; ``parameters`` and ``state``, of a row, are shapes."""
    gate, count = (state[0],) * gates, len(parameters)
    raw = jax.make_jaxpr(lambda p, x, r, s: rebuild(p)(s, x, r))(parameters, gate, gate, state).jaxpr
    x_and_r = raw.invars[count : count + 2 * gates]
    summed = tuple(_reads_only_sum(raw, x_and_r[g], x_and_r[gates + g]) for g in range(gates))
    others = gate[: gates - sum(summed)]

    def equation(parameters: Any, z: tuple, r: tuple, s: Any) -> Any:
        rest = iter(r)
        r = tuple(jnp.zeros_like(a) if is_sum else next(rest) for is_sum, a in zip(summed, z, strict=True))
        return rebuild(parameters)(s, z, r)

    closed = jax.make_jaxpr(equation)(parameters, gate, others, state)
    jaxpr = closed.jaxpr
    ends = (*jaxpr.outvars, *jaxpr.invars)
    kept = tuple(
        i
        for i, e in enumerate(jaxpr.eqns)
        if e.primitive.name in SLOPES
        and e.outvars[0].aval.shape == state[0].shape
        and not any(e.invars[0] is end for end in ends)
    )
    reads = tuple(_dependent(jaxpr, v) for v in jaxpr.invars[count:])
    inputs = [*gate, *others, *jax.tree.leaves(state)]
    if first_non_pointwise(raw) is not None:
        return Step(closed, summed, (), reads, (True,) * len(inputs), mixes_units=True)
    joint = _joint_gates(jaxpr, jaxpr.invars[count : count + gates], summed, kept)
    step = Step(closed, summed, kept, reads, (), joint)

    def derivatives(parameters: Any, inputs: Any, activations: Any) -> Any:
        known = step.linearize(parameters, inputs, activations)
        new, back = jax.vjp(lambda parameters: step(parameters, inputs, known)[0], parameters)
        return step.jacobian(parameters, inputs, activations), back(tuple(map(jnp.ones_like, new)))

    read = jax.make_jaxpr(derivatives)(tuple(parameters), inputs, [state[0]] * len(kept))
    return step._replace(needed=_needed(read.jaxpr)[count : count + len(inputs)])


def _interpret(closed: Any, inputs: Sequence[Array], kept: Sequence[int], known: Any) -> tuple[tuple, list]:
    """The results, and argument and value of the equations that are kept."""
    jaxpr = closed.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *inputs], strict=True))
    found: list[tuple[Array, Array]] = []
    for i, equation in enumerate(jaxpr.eqns):
        arguments = [_value(v, values) for v in equation.invars]
        given = known[len(found)] if i in kept and known is not None else None
        if given is not None:
            u_0, y = given
            out = y if u_0 is None else _linearized(equation.primitive.name, arguments[0], u_0, y)
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


def _joint_gates(jaxpr: Any, z: Sequence[Any], summed: Sequence[bool], kept: Sequence[int]) -> JointGates | None:
    """The first neighbouring gates that are joint; None for fewer than two."""
    scaled = {v: (gate, 1.0) for gate, v in enumerate(z) if summed[gate]}
    for e in jaxpr.eqns:
        gates = [scaled[v] for v in e.invars if not _is_literal(v) and v in scaled]
        factors = [float(v.val) for v in e.invars if _is_literal(v)]
        if e.primitive.name == "add" and gates and not factors and any(v in z for v in e.invars):
            scaled[e.outvars[0]] = gates[0]  # the only reader of a summed gate adds the zeros in place of r
        if e.primitive.name == "mul" and gates and factors and gates[0][1] == 1:
            scaled[e.outvars[0]] = gates[0][0], factors[0]
    found: dict[int, tuple[float, int]] = {}
    for position, equation in enumerate(jaxpr.eqns[i] for i in kept):
        gate, factor = scaled.get(equation.invars[0], (None, 1.0))
        if equation.primitive.name == "tanh" and gate is not None:
            found.setdefault(gate, (factor, position))
    first = min(found, default=0)
    run = list(itertools.takewhile(found.__contains__, range(first, len(z))))
    if len(run) < 2:
        return None
    return JointGates(first, tuple(found[g][0] for g in run), tuple(found[g][1] for g in run))


def _reads_only_sum(jaxpr: Any, x: Any, r: Any) -> bool:
    if any(out is x or out is r for out in jaxpr.outvars):
        return False
    by_x, by_r = ([e for e in jaxpr.eqns for v in e.invars if v is one] for one in (x, r))
    return len(by_x) == len(by_r) == 1 and by_x[0] is by_r[0] and by_x[0].primitive.name == "add"


def _dependent(jaxpr: Any, variable: Any) -> tuple[bool, ...]:
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
