"""The original GRU, whose reset gate is applied before the product: not pointwise in ``h R``, so a plain scan."""

import jax.numpy as jnp

from jaxseq.ops.recurrence.cells import Hidden, sigmoid
from jaxseq.ops.recurrence.reference import plain_recurrence
from jaxseq.typing import Array, Float, SegmentIds


def gru_reset_before(
    state: Hidden,
    x: Float[Array, "*B T 3 F"],
    R: Float[Array, "F 3 F"],
    *,
    segment_ids: SegmentIds | None = None,
) -> tuple[Hidden, Float[Array, "*B T F"]]:
    """``ρ, z = σ(x + h R)``, ``n = tanh(x_n + (ρ ⊙ h) R_n)``, ``h = (1 - z) ⊙ n + z ⊙ h``.

    Cho et al. 2014 (arXiv:1406.1078, version 3). ``x`` is the input's projection with its bias. The gradient is that of
    ``lax.scan``, which is slower than that of ``recurrence``: use ``cells.gru`` unless this form is needed.
    """

    def step(state: Hidden, x_t: Float[Array, "*B 3 F"]) -> Hidden:
        h = state.h
        x_t, kernel = x_t.astype(h.dtype), R.astype(h.dtype)
        reset = sigmoid(x_t[..., 0, :] + h @ kernel[:, 0])
        update = sigmoid(x_t[..., 1, :] + h @ kernel[:, 1])
        candidate = jnp.tanh(x_t[..., 2, :] + (reset * h) @ kernel[:, 2])
        return Hidden(candidate + update * (h - candidate))

    return plain_recurrence(step, state, x, segment_ids=segment_ids)
