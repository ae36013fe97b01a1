"""The longest chain of dependent operations in a program, found in its jaxpr.

The length of the longest chain from each input to each output is a matrix over the max-plus semiring, in which a sum is
a maximum and a product a sum. The matrix of a sequence of equations is a product of theirs, and that of T steps of a
loop is a power: a scan over 4096 steps takes 12 products of small matrices.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import numpy as np
from jax.extend.core import Literal as Constant

from jaxseq.analysis.program_costs import CUMULATIVE, arithmetic_flops, inner_jaxprs, product_flops

Operations = Literal["products", "arithmetic"]
NEVER = -np.inf
"""The length of a chain between two values that do not depend on one another."""


def sequential_depth(function: Callable, *args: Any, counted: Operations = "products") -> int:
    """The number of operations in the longest chain of dependent ones in ``function(*args)``.

    It is the least number of steps in time however many processors there are: the "sequential operations" of Vaswani
    et al. 2017 ("Attention is all you need", arXiv:1706.03762, table 1). The function is traced and not executed.

    A value depends on whole arrays, not on their elements. Steps of a ``lax.scan`` follow one another only through the
    carry: a product of ``xs`` in the body that does not read the carry is 1, not T, and T steps of ``h @ R`` are T.
    ``lax.associative_scan`` is a tree in the jaxpr, with a chain of about 2 log2 T; cumulative sums and maxima count
    log2 T. A product and a sum over an axis count 1, whatever their size. A primitive of jaxseq counts as the
    implementation that it runs on the default device: ``ops.linear_recurrence`` is a loop on a CPU and an associative
    scan on an accelerator; give ``implementation=`` to count one of them. Moving, comparing and converting data counts
    nothing. The results of ``lax.cond`` and ``lax.while_loop`` follow their predicates; their bodies run beside these.

    Args:
        function: any traceable function.
        args: arrays or ``jax.ShapeDtypeStruct``.
        counted: ``"products"``: products of arrays, convolutions among them; ``"arithmetic"``: these, floating-point
            elementwise operations and reductions.

    Raises:
        ValueError: ``counted`` is unknown, or each iteration of a ``lax.while_loop``, whose length is unknown, adds to
            the chain (attention by tiles does so in arithmetic, not in products).

    Example::

        step = lambda h, x: (jnp.tanh(h @ R + x @ W), None)
        sequential_depth(lambda h, xs: jax.lax.scan(step, h, xs), h, xs)  # T + 0: x @ W runs beside h @ R
    """
    if counted not in get_args(Operations):
        raise ValueError(f"counted={counted!r}; known: {', '.join(get_args(Operations))}")
    flops = product_flops if counted == "products" else arithmetic_flops

    def weight(eqn: Any) -> int:
        if not flops(eqn):
            return 0
        if eqn.primitive.name in CUMULATIVE:
            return math.ceil(math.log2(max(eqn.invars[0].aval.shape[eqn.params["axis"]], 2)))
        return 1

    return int(_chains(jax.make_jaxpr(function)(*args).jaxpr, weight).max(initial=0))


Weight = Callable[[Any], int]
"""The operations that an equation adds to a chain, without what is inside it."""


def _chains(jaxpr: Any, weight: Weight) -> np.ndarray:
    """The longest chains ``[1 + inputs, outputs]``; row 0 starts at constants."""
    size = 1 + len(jaxpr.invars)
    start = _unit(size, 0)
    known = {var: _unit(size, 1 + i) for i, var in enumerate(jaxpr.invars)}

    def chain(var: Any) -> np.ndarray:
        return start if isinstance(var, Constant) else known.get(var, start)

    for eqn in jaxpr.eqns:
        sources = np.stack([start, *map(chain, eqn.invars)], axis=1)
        results = _compose(sources, _equation(eqn, weight))
        known |= {var: results[:, i] for i, var in enumerate(eqn.outvars)}
    return np.stack([chain(var) for var in jaxpr.outvars], axis=1) if jaxpr.outvars else np.zeros((size, 0))


def _equation(eqn: Any, weight: Weight) -> np.ndarray:
    """The longest chains of one equation, ``[1 + inputs, outputs]``."""
    inputs, outputs = len(eqn.invars), len(eqn.outvars)
    inner = inner_jaxprs(eqn)
    match eqn.primitive.name:
        case "scan":
            return _scan(eqn, inner[0], _chains(inner[0], weight))
        case "while":
            return _while(eqn, weight)
        case "cond":
            branches = np.max([_chains(branch, weight) for branch in inner], axis=0)
            predicate = np.full((1, outputs), 0.0)
            return np.concatenate([branches[:1], predicate, branches[1:]])
    if len(inner) == 1 and (len(inner[0].invars), len(inner[0].outvars)) == (inputs, outputs):
        return _chains(inner[0], weight)
    inside = sum(_chains(sub, weight).max(initial=0) for sub in inner)  # parts in an unknown order: one after another
    return np.full((1 + inputs, outputs), float(weight(eqn) + inside))


def _scan(eqn: Any, jaxpr: Any, body: np.ndarray) -> np.ndarray:
    """T steps of a body: chains from constants, carry and xs to the last carry and ys."""
    # xs and ys have a dimension more outside the body; the names of the counts among the parameters vary by version.
    xs = sum(outer.aval.ndim != inner.aval.ndim for outer, inner in zip(eqn.invars, jaxpr.invars, strict=True))
    count = sum(outer.aval.ndim == inner.aval.ndim for outer, inner in zip(eqn.outvars, jaxpr.outvars, strict=True))
    consts, length = len(eqn.invars) - count - xs, eqn.params["length"]
    carry = slice(1 + consts, 1 + consts + count)
    step = _identity(len(body))
    if length == 0:
        ys = np.tile(step[:, :1], body.shape[1] - count)
        return np.concatenate([step[:, carry], ys], axis=1)
    step[:, carry] = body[:, :count]
    any_step = np.maximum(step, _identity(len(body)))
    ys = _compose(_power(any_step, length - 1), body[:, count:])
    return np.concatenate([_power(step, length)[:, carry], ys], axis=1)


def _while(eqn: Any, weight: Weight) -> np.ndarray:
    """Any number of steps of a body, if no chain grows with it."""
    of_cond, of_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    predicate = _chains(eqn.params["cond_jaxpr"].jaxpr, weight)
    body = _chains(eqn.params["body_jaxpr"].jaxpr, weight)
    size = 1 + len(eqn.invars)
    first = 1 + of_cond + of_body
    decided, moved = np.full((size, 1), NEVER), np.full((size, body.shape[1]), NEVER)
    decided[: 1 + of_cond], decided[first:] = predicate[: 1 + of_cond], predicate[1 + of_cond :]
    moved[0], moved[1 + of_cond :] = body[0], body[1:]
    step = _identity(size)
    step[:, first:] = np.maximum(moved, decided)
    step = np.maximum(step, _identity(size))
    reached = _power(step, size)
    if not np.array_equal(reached, _compose(reached, step)):
        raise ValueError("the chain of dependent operations grows with the steps of a while loop of unknown length")
    return np.maximum(reached[:, first:], _compose(reached, decided))


def _unit(size: int, at: int) -> np.ndarray:
    """A chain of length 0 from one source."""
    chain = np.full(size, NEVER)
    chain[at] = 0
    return chain


def _identity(size: int) -> np.ndarray:
    return np.where(np.eye(size, dtype=bool), 0.0, NEVER)


def _compose(first: np.ndarray, then: np.ndarray) -> np.ndarray:
    """The max-plus matrix product: the longest chains through both."""
    return np.max(first[:, :, None] + then[None], axis=1)


def _power(matrix: np.ndarray, exponent: int) -> np.ndarray:
    """The max-plus matrix power, by squaring."""
    result = _identity(len(matrix))
    while exponent:
        if exponent & 1:
            result = _compose(result, matrix)
        matrix, exponent = _compose(matrix, matrix), exponent >> 1
    return result
