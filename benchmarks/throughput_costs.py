"""What a row of the throughput benchmark must at least do: FLOPs and bytes, counted and not measured.

All formulas are here. B sequences of T tokens, width D, F features, P bytes of parameters, s bytes an element.

**FLOPs** are those of matrix products, 2 m n k each, elementwise work left out. They are counted in the traced program
of one step (``analysis.program_flops``), where an outer product of two arrays (``k vᵀ``, which a state is updated by)
is 2 an element, and taken T times; so a chunkwise form is not credited with what it computes beyond the step. Where
the carry grows with what was seen (attention), a step alone sees itself only, and each further pair of positions costs
4 F: scores and their sum over values. Causal attention has T (T - 1) / 2 such pairs, a window of W has W - 1 a token at
most.

    forward              T · step + 4 F · pairs                     (times B)
    forward+backward     3 × forward: a product has two products as its gradient; nothing computed again is counted
    decode, a token      step + 4 F · (T - 1)

**Bytes** are those that must cross the memory once; whatever an implementation keeps in between is left out.

    forward              P + B T (D + F) s
    forward+backward     2 P + 2 B T (D + F) s: parameters, inputs, outputs' cotangents; and the gradients of each
    decode, a step       P + B (D + F) s + carry: a state is read and written, a cache of T positions is read

Times the ceilings of the same run (``harness.matmul_ceiling`` and ``copy_ceiling``) these are a floor on the time, and
a row's fraction is that floor over its median: the larger of both fractions, "matmul" or "copy" as its ``bound``.
The copy ceiling is that of memory: data that stays in the caches may pass it.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxseq.analysis import program_flops
from jaxseq.cores import Core


@dataclass(frozen=True)
class Cost:
    """The least that must be done: FLOPs of matrix products and bytes moved."""

    flops: float
    bytes: float

    def floor_s(self, matmul: float, copy: float) -> tuple[float, str]:
        """The least time at these ceilings (FLOP/s, bytes/s), and which of them sets it."""
        return max((self.flops / matmul, "matmul"), (self.bytes / copy, "copy"))


def visible_pairs(length: int, window: int | None = None) -> int:
    """Pairs of a position and an earlier one that it sees."""
    reach = length if window is None else min(window, length)
    return reach * (reach - 1) // 2 + (length - reach) * (reach - 1)


def count_cost(core: Core, mode: str, batch: int, length: int, width: int) -> Cost:
    """The cost of B sequences of T tokens; for ``decode``, of one more token for each of the B at position T."""
    dtype = getattr(core, "dtype", jnp.float32)
    xs = jax.ShapeDtypeStruct((1, 1, width), dtype)
    start = jax.eval_shape(lambda: core.initial_carry((1,)))
    variables = jax.eval_shape(core.init, jax.random.key(0), start, xs)
    step = program_flops(core.apply, variables, start, xs)
    pair = 4 * core.features if grows(core) else 0
    window = getattr(core, "window", None)
    parameters = _bytes(variables)
    ends = (width + core.features) * jnp.dtype(dtype).itemsize
    if mode == "decode":
        last = visible_pairs(length, window) - visible_pairs(length - 1, window)
        carry = _bytes(jax.eval_shape(lambda: core.initial_carry((1,), length)))
        moved = parameters + batch * (ends + (carry if grows(core) else 2 * carry))
        return Cost(batch * (step + pair * last), moved)
    flops = batch * (length * step + pair * visible_pairs(length, window))
    moved = parameters + batch * length * ends
    return Cost(flops, moved) if mode == "forward" else Cost(3 * flops, 2 * moved)


def grows(core: Core) -> bool:
    """Whether the carry's size depends on how far back it must look (a key-value cache)."""
    sizes = [_bytes(jax.eval_shape(lambda n=n: core.initial_carry((1,), n))) for n in (1, 2)]
    return sizes[0] != sizes[1]


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
