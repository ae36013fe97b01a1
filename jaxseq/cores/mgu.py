"""Minimal gated unit."""

from typing import ClassVar

from jaxseq.cores.recurrent import Recurrent
from jaxseq.ops import Cell, cells


class MGU(Recurrent):
    """MGU, one gate that forgets and resets, with its reset after the product (Zhou et al. 2016, arXiv:1603.09420).

    ``f = σ(x_t W_f + b_f + h_{t-1} R_f)``; ``n = tanh(x_t W_n + b_n + f ⊙ (h_{t-1} R_n))``;
    ``h_t = (1 - f) ⊙ h_{t-1} + f ⊙ n``. The paper resets before the product, ``(f ⊙ h_{t-1}) R_n``: that is not
    pointwise in ``h R`` (a plain ``jaxseq.ops.plain_recurrence``). ``forced_gates``, as ``(("f", 0.0),)``, are
    constant: gates f, n (``jaxseq.ops.cells.force_gates``).
    """

    gates: ClassVar[int] = 2

    forced_gates: tuple[tuple[str, float], ...] = ()

    def cell(self) -> Cell:
        """The plain cell."""
        return cells.force_gates(cells.mgu, self.forced_gates)
