"""Truncated back-propagation through time: the carry that each chunk of a long sequence starts from.

* ``zero``: the initial carry. Chunks are independent.
* ``carry``: the final carry of the previous chunk, without a gradient through the cut. It was computed by the
  parameters before the update, so it is slightly stale.
* ``recompute``: the carry that the current parameters compute from the sequence so far. After each update the chunks
  since the start of the sequence are run again from the initial carry, so that the work grows with the square of the
  number of chunks in a sequence.

A sequence starts where ``batches.stream_start(step) == step``; there every mode uses the initial carry.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from jaxseq.training.protocols import B, Batches, Loss, StreamBatches
from jaxseq.training.state import TrainState, copy_buffers, shardings_of
from jaxseq.training.step import check_carry, step_key
from jaxseq.training.widening import any_nan
from jaxseq.typing import Array, Carry, Int, Key, PyTree

TruncationMode = Literal["zero", "carry", "recompute"]
TRUNCATION_MODES: tuple[str, ...] = get_args(TruncationMode)


class Truncation:
    """Sets ``state.carry`` for the next step; call :meth:`prepare` before the first step and after each.

    Raises:
        ValueError: an unknown mode, or batches without ``stream_start`` in a mode that needs it.
    """

    def __init__(self, mode: str, loss: Loss[B], batches: Batches[B], initial_carry: Carry):
        if mode not in TRUNCATION_MODES:
            raise ValueError(f"unknown truncation mode {mode!r}; known are {', '.join(TRUNCATION_MODES)}")
        self._stream: StreamBatches | None = None
        if mode != "zero":
            if not isinstance(batches, StreamBatches):
                raise ValueError(
                    f"truncation mode {mode!r} needs batches with stream_start(step); "
                    f"{type(batches).__name__} has none (use mode 'zero')"
                )
            self._stream = batches
        self.mode = mode
        self.keep_carry = mode != "zero"
        self.initial_carry = copy_buffers(initial_carry)
        self._update_carry = jax.jit(make_carry_update(loss), out_shardings=shardings_of(self.initial_carry))

    def compile(self, state: TrainState, batch: Any) -> None:
        """Compile what ``prepare`` runs for batches of this shape, if its mode is ``recompute``."""
        if self.mode == "recompute":
            self._update_carry.lower(state.params, self.initial_carry, batch, state.key, 0).compile()

    def prepare(self, state: TrainState, step: int) -> TrainState:
        """The state with the carry that ``step`` starts from; the steps before it have been made."""
        if self._stream is None:
            return state
        start = self._stream.stream_start(step)
        if start == step:
            return state._replace(carry=copy_buffers(self.initial_carry))
        if self.mode == "recompute":
            carry = self.initial_carry
            for past in range(start, step):
                carry = self._update_carry(state.params, carry, self._stream(past), state.key, past)
            return state._replace(carry=carry)
        return state


def make_carry_update(loss: Loss[B]) -> Callable[[PyTree, Carry, B, Key[Array, ""], int | Int[Array, ""]], Carry]:
    """``update(params, carry, batch, key, step) -> carry``: the forward pass of the loss, for its carry alone.

    A new carry that contains a NaN is replaced by the old one, as in a skipped training step.
    """

    def update(params: PyTree, carry: Carry, batch: B, key: Key[Array, ""], step: int | Int[Array, ""]) -> Carry:
        _, aux = loss(params, carry, batch, step_key(key, step))
        check_carry(carry, aux.carry)
        valid = ~any_nan(aux.carry)
        return jax.tree.map(lambda new, old: jnp.where(valid, new, old), aux.carry, carry)

    return update
