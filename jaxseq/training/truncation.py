"""Truncated back-propagation: what state a chunk of a long stream begins with.

* ``zero``: the initial carry. Each chunk stands alone.
* ``carry``: what the chunk before left behind. The state goes over the cut, the gradient does not; the
  state was made by the parameters before the update, so it is a little stale.
* ``recompute``: what the present parameters make of the stream so far. After each update the prefix of the
  present pass is run again from the initial carry; work grows with the square of the number of chunks in a
  pass.

A stream begins where ``data.stream_start(step) == step``; there every mode starts from the initial carry.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxseq.training.state import TrainState, own_buffers
from jaxseq.training.step import Loss, step_key

TruncationMode = Literal["zero", "carry", "recompute"]
TRUNCATION_MODES = ("zero", "carry", "recompute")


class Truncation:
    """Keeps ``state.carry`` right for the next step; call it before the first step and after each.

    Raises ValueError for an unknown mode, and for data without ``stream_start`` in the modes that need it.
    """

    def __init__(self, mode: str, loss: Loss, data: Callable[[int], Any], initial_carry: Any):
        if mode not in TRUNCATION_MODES:
            raise ValueError(f"unknown truncation mode {mode!r}; known are {', '.join(TRUNCATION_MODES)}")
        if mode != "zero" and not hasattr(data, "stream_start"):
            raise ValueError(
                f"truncation mode {mode!r} needs a stream, data with stream_start(step); "
                f"{type(data).__name__} has none (use mode 'zero')"
            )
        self.mode = mode
        self.keep_carry = mode != "zero"
        self.initial_carry = own_buffers(initial_carry)
        self._data = data
        self._advance = jax.jit(make_advance(loss))

    def ready(self, state: TrainState, step: int) -> TrainState:
        """The state with the carry that ``step`` shall begin with, once the steps before it are made."""
        if self.mode == "zero":
            return state
        start = self._data.stream_start(step)  # type: ignore[attr-defined]
        if start == step:
            return state._replace(carry=own_buffers(self.initial_carry))
        if self.mode == "recompute":
            carry = self.initial_carry
            for past in range(start, step):
                carry = self._advance(state.params, carry, self._data(past), state.key, past)
            return state._replace(carry=carry)
        return state


def make_advance(loss: Loss) -> Callable[[Any, Any, Any, Any, Any], Any]:
    """``advance(params, carry, batch, key, step) -> carry``: the loss's forward pass, for its carry alone.

    Where the new carry holds a NaN the old one is kept, as a skipped step keeps it.
    """

    def advance(params: Any, carry: Any, batch: Any, key: Any, step: Any) -> Any:
        _, aux = loss(params, carry, batch, step_key(key, step))
        floats = [x for x in jax.tree.leaves(aux.carry) if jnp.issubdtype(x.dtype, jnp.inexact)]
        sound = ~jnp.any(jnp.stack([jnp.any(jnp.isnan(x)) for x in floats])) if floats else jnp.ones((), bool)
        return jax.tree.map(lambda new, old: jnp.where(sound, new, old), aux.carry, carry)

    return advance
