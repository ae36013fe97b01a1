"""Long short-term memory."""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxseq.cores.recurrent import Recurrent
from jaxseq.ops import cells
from jaxseq.typing import Array, DType


class LSTM(Recurrent):
    """LSTM, gates i, f, g, o (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    ``i, f, o = σ(·)``, ``g = tanh(·)`` of ``x_t W + b + h_{t-1} R``; ``c_t = f ⊙ c_{t-1} + i ⊙ g``;
    ``h_t = o ⊙ tanh(c_t)``. ``forget_bias`` is where the forget gate's bias begins (Jozefowicz et al. 2015 ask for
    1); ``peepholes`` lets the gates see the cell state (Gers & Schmidhuber 2000).
    """

    gates: ClassVar[int] = 4
    state_type: ClassVar[Any] = cells.LSTMState

    forget_bias: float = 1.0
    peepholes: bool = False

    def bias_init(self, key: Array, shape: tuple[int, ...], dtype: DType) -> Array:
        """Zeros, and ``forget_bias`` for the forget gate."""
        return jnp.zeros(shape, dtype).reshape(4, -1).at[1].set(self.forget_bias).reshape(shape)

    def cell(self) -> Callable:
        """The plain cell, or the one with peepholes bound to it."""
        if not self.peepholes:
            return cells.lstm
        names = cells.Peepholes._fields
        zeros = nn.initializers.zeros
        own = [self.param(f"peephole_{n}", zeros, (self.features,), self.param_dtype) for n in names]
        return Partial(cells.peephole_lstm, cells.Peepholes(*own))
