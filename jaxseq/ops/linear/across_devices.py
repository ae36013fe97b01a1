"""The elementwise linear recurrence with its positions sharded over devices.

A rank's segment maps the state before it, h, to ``A ⊙ h + B``, A the product of its decays and B its last state from
zeros. The ranks exchange (A, B), two numbers a feature whatever the length, by an exclusive scan; then each runs its
segment once more from the right state, which costs as much as a correction of all states and reads nothing else.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import lax

from jaxseq.ops.linear.elementwise import Solution, Solver, decay
from jaxseq.ops.linear.loop import loop
from jaxseq.ops.sequence_axis import SEQUENCE, SequenceAxis, exclusive_scan, from_last_rank, spec
from jaxseq.typing import Array, Inexact


@dataclass(frozen=True)
class AcrossDevices:
    """A ``Solver`` of global arrays: its transpose is the same exchange from the last rank to the first."""

    axis: SequenceAxis
    local: Solver
    """The solver of a segment."""
    across_devices: ClassVar[bool] = True

    def __call__(self, a: Array, b: Array, h: Array, *, reverse: bool) -> Solution:
        """The solution, states sharded as ``a`` and ``b``, the final state on all ranks."""
        size = self.axis.size

        def segment(a: Array, b: Array, h: Array) -> Solution:
            own = self._totals(a, b, reverse)
            incoming = exclusive_scan(_after, (jnp.zeros_like(h), h), own, size, reverse)[1]
            states, last = self.local(a, b, incoming, reverse=reverse)
            return Solution(states, from_last_rank(last, size, reverse))

        rows, features = self.axis.rows(a.shape[:-2]), self.axis.heads(a.shape[-1])
        along, state = spec(*rows, SEQUENCE, features), spec(*rows, features)
        split = self.axis.map(lambda *arrays: tuple(segment(*arrays)), (along, along, state), (along, state))
        return Solution(*split(a, b, h))

    def _totals(
        self, a: Inexact[Array, "*B T F"], b: Inexact[Array, "*B T F"], reverse: bool
    ) -> tuple[Inexact[Array, "*B F"], Inexact[Array, "*B F"]]:
        """The product of all decays, and the final state from zeros."""
        steps, at = a.shape[-2], a.ndim - 2
        if self.local is not loop:
            last = self.local(a, b, jnp.zeros_like(a[..., 0, :]), reverse=reverse).last
            return lax.reduce_prod(a, (at,)), last

        def step(i: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            t = steps - 1 - i if reverse else i
            a_t, b_t = (lax.dynamic_index_in_dim(x, t, at, keepdims=False) for x in (a, b))
            product, h = carry
            h = decay(a_t, h + b_t) if reverse else decay(a_t, h) + b_t
            return product * a_t, h

        zeros = jnp.zeros_like(a[..., 0, :])
        return lax.fori_loop(0, steps, step, (jnp.ones_like(zeros), zeros))


def _after(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
    return earlier[0] * later[0], decay(later[0], earlier[1]) + later[1]
