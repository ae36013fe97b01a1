"""The LSTM of cuDNN through ``jax.experimental.rnn``, and the check that it can compute a call.

One dense head, float32, whole sequences, no peepholes. It has one reverse-mode gradient: JAX refuses forward mode,
second derivatives and ``vmap`` of it. Its first use runs a tiny sequence, values and gradients, against ``recurrence``.
"""

import functools
import math
import warnings
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.ops.implementations import Choice, choose_implementation, implementation_scope, unavailable
from jaxseq.ops.recurrence.api import recurrence_with_projection
from jaxseq.ops.recurrence.cells import LSTMState, lstm
from jaxseq.typing import Array, Float, SegmentIds

LSTMImplementation = Literal["auto", "fused", "reference", "cudnn"]


def lstm_implementation(
    state: LSTMState,
    xs: Float[Array, "*B T D"],
    R: Float[Array, "N H G H"] | Float[Array, "1 P G F"],
    *,
    segment_ids: SegmentIds | None = None,
    peepholes: bool = False,
    projected: bool = False,
    implementation: LSTMImplementation = "auto",
) -> str:
    """The implementation of an LSTM that this call runs on the default device: "cudnn", "fused" or "reference".

    "auto" takes cuDNN where ``cudnn_lstm`` can compute the call, else "fused". If cuDNN's trial run fails or differs
    from ``recurrence``, a warning says so, once. A single sequence takes "fused": it is most likely under ``vmap``, for
    which cuDNN's call has no rule.

    Raises:
      ValueError: an unknown implementation.
    """

    def auto() -> Choice:
        reason = why_not_cudnn(state, xs, R, segment_ids=segment_ids, peepholes=peepholes, projected=projected)
        if xs.ndim < 3:
            reason = "there is no batch dimension"
        reason = reason or _trial_failed()
        return Choice("cudnn", "cuDNN can do this call") if reason is None else Choice("fused", f"not cuDNN: {reason}")

    return choose_implementation("lstm", implementation, LSTMImplementation, auto)


def cudnn_lstm(
    state: LSTMState,
    xs: Float[Array, "*B T D"],
    kernel: Float[Array, "D GF"],
    bias: Float[Array, " GF"],
    R: Float[Array, "N H G H"] | Float[Array, "1 P G F"],
    *,
    segment_ids: SegmentIds | None = None,
    peepholes: bool = False,
    projected: bool = False,
) -> tuple[LSTMState, Float[Array, "*B T F"]]:
    """``recurrence_with_projection(lstm, state, xs, kernel, bias, R)`` by cuDNN.

    Raises:
      ValueError: cuDNN cannot do this call, and why.
    """
    reason = (
        why_not_cudnn(state, xs, R, segment_ids=segment_ids, peepholes=peepholes, projected=projected)
        or _trial_failed()
    )
    if reason is not None:
        raise unavailable("lstm", "cudnn", reason)
    with implementation_scope("recurrence", "cudnn"):
        return _run(state, xs, kernel, bias, R)


def why_not_cudnn(
    state: LSTMState,
    xs: Float[Array, "*B T D"],
    R: Float[Array, "N H G H"] | Float[Array, "1 P G F"],
    *,
    segment_ids: SegmentIds | None = None,
    peepholes: bool = False,
    projected: bool = False,
) -> str | None:
    """None if cuDNN's LSTM can compute this call on the default device, else the reason."""
    device = jax.devices()[0]
    if device.platform not in ("gpu", "cuda") or "rocm" in device.client.platform_version.lower():
        return f"the default device is no CUDA device but {device.platform}"
    if any(a.dtype != jnp.float32 for a in (xs, R, *state)):
        return f"it takes float32, not inputs {xs.dtype}, weights {R.dtype}, state {state.h.dtype}"
    if projected:
        return "its output is the cell's own: cell_size is given"
    if R.shape[0] != 1:
        return f"its recurrent matrix is dense: num_heads={R.shape[0]}"
    if peepholes:
        return "its gates do not see the cell state: peepholes=True"
    if segment_ids is not None:
        return "it has no segment_ids"
    if 0 in xs.shape:
        return f"it needs at least one step of one sequence, not xs of shape {xs.shape}"
    return None


def packed_weights(
    kernel: Float[Array, "D GF"], bias: Float[Array, " GF"], R: Float[Array, "1 F G F"]
) -> Float[Array, " P"]:
    """All weights as cuDNN reads them: gates i, f, g, o; input matrix, recurrent matrix, two biases (ours, zeros)."""
    recurrent = R.reshape(R.shape[1], -1)
    return jnp.concatenate([kernel.T.reshape(-1), recurrent.T.reshape(-1), bias, jnp.zeros_like(bias)])


def _run(state: LSTMState, xs: Array, kernel: Array, bias: Array, R: Array) -> tuple[LSTMState, Array]:
    from jax.experimental import rnn

    batch, (steps, width), features = xs.shape[:-2], xs.shape[-2:], R.shape[1]
    size = math.prod(batch)
    h, c = (s.reshape(1, size, features) for s in state)
    ys, h, c = rnn.lstm(
        xs.reshape(size, steps, width),
        h,
        c,
        packed_weights(kernel, bias, R),
        jnp.full((size,), steps, jnp.int32),
        width,
        features,
        1,
        0.0,
        False,
    )
    last = LSTMState(h.reshape(*batch, features), c.reshape(*batch, features))
    return last, ys.reshape(*batch, steps, features)


@functools.cache
def _trial_failed() -> str | None:
    """None if a tiny run agrees with ``recurrence``; else the failure, with a warning."""
    try:
        with jax.ensure_compile_time_eval(), jax.default_matmul_precision("highest"):
            found, wanted = (_trial(run) for run in (_run, functools.partial(recurrence_with_projection, lstm)))
        worst = np.max([np.max(np.abs(a - b)) for a, b in zip(found, wanted, strict=True)])
        failure = None if worst < 1e-3 else f"its trial run differs from recurrence by {worst:.2g}"
    except Exception as error:  # a driver, a library or another jax version may raise any exception
        failure = f"its trial run failed with {type(error).__name__}: {error}"
    if failure is not None:
        warnings.warn(f"cuDNN's LSTM is not used: {failure}", RuntimeWarning, stacklevel=3)
    return failure


def _trial(run: Any) -> list[np.ndarray]:
    """Values and gradients of a small random sequence."""
    rng = np.random.default_rng(0)
    batch, steps, width, features = 2, 5, 4, 8
    shapes = (batch, steps, width), (width, 4 * features), (4 * features,), (1, features, 4, features)
    arrays = [jnp.asarray(0.5 * rng.normal(size=s), jnp.float32) for s in (*shapes, *((batch, features),) * 2)]

    def total(*arrays: Array) -> tuple[Array, Any]:
        state, ys = run(LSTMState(*arrays[4:]), *arrays[:4])
        return jnp.sin(ys).sum() + (state.h * state.c).sum(), (state, ys)

    run_both = jax.jit(jax.value_and_grad(total, tuple(range(len(arrays))), has_aux=True))
    (_, values), gradients = run_both(*arrays)
    return [np.asarray(a) for a in jax.tree.leaves((values, gradients))]
