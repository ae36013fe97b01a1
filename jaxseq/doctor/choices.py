"""Which implementation each op takes on this machine for typical shapes, and why."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxseq import ops
from jaxseq.doctor.check import Finding

BATCH, LENGTH, HEADS, SIZE = 8, 256, 4, 64


def check_choices() -> Iterator[Finding]:
    """One finding an op: what ``implementation="auto"`` takes, and the reason that the choice itself gives."""
    for op, calls in typical_calls().items():
        parts = []
        for words, function, arguments in calls:
            choices = ops.explain_implementations(function, *arguments)[op]
            parts += [f"{words}: {choice.implementation} ({choice.reason})" for choice in choices]
        yield Finding("ok", op, "; ".join(parts))


def typical_calls() -> dict[str, list[tuple[str, Any, tuple]]]:
    """For each op with implementations some calls: what they are, the function and the shapes of its arguments."""
    width, causal = HEADS * SIZE, ops.masks.causal()
    array: Any = jax.ShapeDtypeStruct
    vectors = array((BATCH, LENGTH, HEADS, SIZE), jnp.float32)
    half, one = array(vectors.shape, jnp.bfloat16), array((BATCH, 1, HEADS, SIZE), jnp.float32)
    sequence, state = array((BATCH, LENGTH, width), jnp.float32), array((BATCH, width), jnp.float32)
    decays, step = array((BATCH, LENGTH, HEADS), jnp.float32), array((BATCH, 1, HEADS), jnp.float32)
    memory = array((BATCH, HEADS, SIZE, SIZE), jnp.float32)
    lstm, R = ops.cells.LSTMState(state, state), array((1, width, 4, width), jnp.float32)
    training, decoding = f"training on {LENGTH} positions", "decoding"
    attention = partial(ops.attention, mask=causal)
    matrix = ops.MLSTMState(memory, array(memory.shape[:-1], jnp.float32), array(memory.shape[:-2], jnp.float32))
    gates, last = array((BATCH, LENGTH, 4, width), jnp.float32), array((BATCH, 3, width), jnp.float32)
    boxes = array((BATCH, 16, 4), jnp.float32)
    images = array((BATCH, 32, 32, 64), jnp.float32)
    return {
        "recurrence": [
            (training, partial(ops.recurrence, ops.cells.lstm), (lstm, gates, R)),
        ],
        "lstm": [("float32", ops.lstm_implementation, (lstm, sequence, R))],
        "attention": [
            (f"{training}, float32", attention, (vectors,) * 3),
            ("bfloat16", attention, (half,) * 3),
            (decoding, attention, (one, vectors, vectors)),
        ],
        "linear_recurrence": [(training, ops.linear_recurrence, (state, sequence, sequence))],
        "linear_attention": [
            (training, ops.linear_attention, (memory, vectors, vectors, vectors, decays)),
            (decoding, ops.linear_attention, (memory, one, one, one, step)),
        ],
        "delta_rule": [(training, ops.delta_rule, (memory, vectors, vectors, vectors, decays, decays))],
        "mlstm": [(training, ops.mlstm, (matrix, vectors, vectors, vectors, decays, decays))],
        "causal_convolution": [
            (training, ops.causal_convolution, (last, sequence, array((4, width), jnp.float32))),
        ],
        "depthwise_2d": [("images", ops.depthwise_2d, (images, array((3, 3, 64), jnp.float32)))],
        "roi_align": [("7 x 7 bins", partial(ops.regions.roi_align, size=(7, 7), scale=1 / 16), (images, boxes))],
    }
