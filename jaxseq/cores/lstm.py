"""Long short-term memory."""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxseq.cores.recurrent import Recurrent
from jaxseq.ops import cells, cudnn_lstm, lstm_implementation, recurrence_with_projection
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, DType, Features, SegmentIds, Sequence

IMPLEMENTATIONS = ("auto", "fused", "reference", "cudnn")


class LSTM(Recurrent):
    """LSTM, gates i, f, g, o (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    ``i, f, o = σ(·)``, ``g = tanh(·)`` of ``x_t W + b + h_{t-1} R``; ``c_t = f ⊙ c_{t-1} + i ⊙ g``;
    ``h_t = o ⊙ tanh(c_t)``. ``forget_bias`` is where the forget gate's bias begins (Jozefowicz et al. 2015 ask for
    1); ``peepholes`` lets the gates see the cell state (Gers & Schmidhuber 2000). ``implementation`` is "fused",
    "reference" (the plain scan), "cudnn" (float32 on a CUDA device, one head, no peepholes, no segment ids; first
    derivatives in reverse mode, no ``vmap``) or "auto": cuDNN where it fits (``lstm_implementation``), else fused.

    Raises:
      ValueError: an unknown implementation, or cuDNN cannot do the call, and why.
    """

    gates: ClassVar[int] = 4
    state_type: ClassVar[Any] = cells.LSTMState

    forget_bias: float = 1.0
    peepholes: bool = False
    implementation: str = "auto"

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
        own = [p.astype(at_least_float32(self.param_dtype)) for p in own]
        return Partial(cells.peephole_lstm, cells.Peepholes(*own))

    def run(
        self, xs: Sequence, kernel: Array, bias: Array, R: Array, state: Any, segment_ids: SegmentIds | None
    ) -> tuple[Any, Features]:
        """The last state and all outputs, by the implementation asked for."""
        chosen = self.implementation
        if chosen not in IMPLEMENTATIONS:
            raise ValueError(f"implementation={chosen!r}; known: {', '.join(IMPLEMENTATIONS)}")
        fits: dict[str, Any] = {"segment_ids": segment_ids, "peepholes": self.peepholes}
        if chosen == "auto":  # cuDNN keeps what it likes
            chosen = lstm_implementation(state, xs, R, **fits) if self.residuals == "activations" else "fused"
        if chosen == "cudnn":
            return cudnn_lstm(state, xs, kernel, bias, R, **fits)
        options: dict[str, Any] = {"residuals": self.residuals, "implementation": chosen}
        return recurrence_with_projection(self.cell(), state, xs, kernel, bias, R, segment_ids=segment_ids, **options)
