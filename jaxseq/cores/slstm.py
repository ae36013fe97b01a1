"""Scalar long short-term memory with exponential gating."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp

from jaxseq.cores.recurrent import Recurrent
from jaxseq.ops import cells
from jaxseq.typing import Array, DType


class SLSTM(Recurrent):
    """sLSTM, gates i, f, g, o (Beck et al. 2024, arXiv:2405.04517, eq. 8-17).

    ``i = exp(·)``, ``f, o = σ(·)``, ``g = tanh(·)`` of ``x_t W + b + h_{t-1} R``; ``c_t = f ⊙ c_{t-1} + i ⊙ g``;
    ``n_t = f ⊙ n_{t-1} + i``; ``h_t = o ⊙ c_t / n_t``; c and n are kept times ``exp(-m)``, ``m_t = max(log f + m_{t-1},
    log i)``. The paper allows ``f = exp(·)`` too; σ is taken here. R is block-diagonal over ``num_heads`` (the paper
    has 4). The forget gate's bias begins evenly spaced from 3 to 6 over every head, as the mLSTM's of the same paper.
    """

    gates: ClassVar[int] = 4
    state_type: ClassVar[Any] = cells.SLSTMState

    def bias_init(self, key: Array, shape: tuple[int, ...], dtype: DType) -> Array:
        """Zeros, and 3 to 6 over every head for the forget gate."""
        spread = jnp.linspace(3.0, 6.0, self.features // self.num_heads, dtype=dtype)
        return jnp.zeros(shape, dtype).reshape(4, -1).at[1].set(jnp.tile(spread, self.num_heads)).reshape(shape)

    def cell(self) -> Callable:
        """The plain cell."""
        return cells.slstm
