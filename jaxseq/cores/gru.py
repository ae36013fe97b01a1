"""Gated recurrent unit."""

from typing import ClassVar

import flax.linen as nn
from jax.tree_util import Partial

from jaxseq.cores.recurrent import Recurrent
from jaxseq.ops import Cell, cells
from jaxseq.precision import at_least_float32


class GRU(Recurrent):
    """GRU with its reset after the product, as cuDNN and torch have it (Cho et al. 2014, arXiv:1406.1078v1).

    ``ρ, z = σ(x_t W + b + h_{t-1} R)``; ``n = tanh(x_t W_n + b_n + ρ ⊙ (h_{t-1} R_n + b'))``;
    ``h_t = (1 - z) ⊙ n + z ⊙ h_{t-1}``. The reset before the product is ``jaxseq.ops.gru_reset_before``.
    ``forced_gates``, as ``(("z", 0.0),)``, are constant: gates r (here ρ), z, n (``jaxseq.ops.cells.force_gates``).
    """

    gates: ClassVar[int] = 3

    forced_gates: tuple[tuple[str, float], ...] = ()

    def cell(self) -> Cell:
        """The cell with its bias b' bound by ``Partial``."""
        bias = self.param("recurrent_bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        cell = Partial(cells.gru, bias.astype(at_least_float32(self.param_dtype)))
        return cells.force_gates(cell, self.forced_gates)
