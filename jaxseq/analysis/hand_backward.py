"""The backward pass of an Elman network and an LSTM through time, written out by hand: docs/backward-by-hand.md.

Plain loops over the positions of one sequence, to be read beside the equations. The fast op, which computes the same
numbers, is ``jaxseq.ops.recurrence_with_projection``.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxseq.ops.recurrence.cells import Hidden, LSTMState, sigmoid
from jaxseq.typing import Array, Float


class HandGradients(NamedTuple):
    """The derivatives of L, in the shapes of what they belong to."""

    kernel: Float[Array, "D GF"]
    bias: Float[Array, " GF"]
    recurrent: Float[Array, "1 F G F"]
    state: Any
    """Of the state before the first position."""
    xs: Float[Array, "T D"]


def elman_backward(
    params: Mapping[str, Array], state: Hidden, xs: Float[Array, "T D"], d_ys: Float[Array, "T F"]
) -> HandGradients:
    """The gradient of L through ``h_t = tanh(x_t W + b + h_{t-1} R)``, ``y_t = h_t``, given ``d_ys[t] = dL/dy_t``.

    Args:
      params: ``kernel`` W, ``bias`` b and ``recurrent`` R ``[1, F, 1, F]`` of ``jaxseq.cores.Elman`` (one head, tanh).
      state: the state before the first position.
      xs: the inputs of one sequence.
      d_ys: the derivative of L by each output, as if no output read another.

    Raises:
      ValueError: a shape that does not fit, or several heads.
    """
    W, b, R = _weights(params, state, xs, d_ys, gates=1)

    # Forward: store every h.
    h = [state.h]
    for x in xs:
        h.append(jnp.tanh(x @ W + b + h[-1] @ R))

    # Backward: dh is the total derivative dL/dh_t, dz that of the sum inside the tanh.
    dW, db, dR, dxs = jnp.zeros_like(W), jnp.zeros_like(b), jnp.zeros_like(R), [xs[0]] * len(xs)
    dh_next = jnp.zeros_like(state.h)  # what h_t receives from position t + 1
    for t in reversed(range(len(xs))):
        h_t, h_before = h[t + 1], h[t]
        dh = d_ys[t] + dh_next
        dz = dh * (1 - h_t * h_t)
        dW = dW + jnp.outer(xs[t], dz)
        db = db + dz
        dR = dR + jnp.outer(h_before, dz)
        dxs[t] = dz @ W.T
        dh_next = dz @ R.T

    return HandGradients(dW, db, dR.reshape(params["recurrent"].shape), Hidden(dh_next), jnp.stack(dxs))


def lstm_backward(
    params: Mapping[str, Array], state: LSTMState, xs: Float[Array, "T D"], d_ys: Float[Array, "T F"]
) -> HandGradients:
    """The gradient of L through an LSTM, ``y_t = h_t``, given ``d_ys[t] = dL/dy_t``.

    ``i, f, o = σ(·)``, ``g = tanh(·)`` of ``x_t W + b + h_{t-1} R``; ``c_t = f ⊙ c_{t-1} + i ⊙ g``;
    ``h_t = o ⊙ tanh(c_t)``.

    Args:
      params: ``kernel`` W, ``bias`` b and ``recurrent`` R ``[1, F, 4, F]`` of ``jaxseq.cores.LSTM`` (one head, no
        peepholes, no projection); gates side by side, i, f, g, o.
      state: the state before the first position.
      xs: the inputs of one sequence.
      d_ys: the derivative of L by each output, as if no output read another.

    Raises:
      ValueError: a shape that does not fit, or several heads.
    """
    W, b, R = _weights(params, state, xs, d_ys, gates=4)

    # Forward: store every h and c, and the gates.
    h, c, gates = [state.h], [state.c], []
    for x in xs:
        z = x @ W + b + h[-1] @ R
        z_i, z_f, z_g, z_o = jnp.split(z, 4)
        i, f, g, o = sigmoid(z_i), sigmoid(z_f), jnp.tanh(z_g), sigmoid(z_o)
        c.append(f * c[-1] + i * g)
        h.append(o * jnp.tanh(c[-1]))
        gates.append((i, f, g, o))

    # Backward: dh and dc are the total derivatives dL/dh_t and dL/dc_t, dz that of the gates' sums.
    dW, db, dR, dxs = jnp.zeros_like(W), jnp.zeros_like(b), jnp.zeros_like(R), [xs[0]] * len(xs)
    dh_next, dc_next = jnp.zeros_like(state.h), jnp.zeros_like(state.c)  # what h_t and c_t receive from t + 1
    for t in reversed(range(len(xs))):
        (i, f, g, o), c_t, c_before, h_before = gates[t], c[t + 1], c[t], h[t]
        dh = d_ys[t] + dh_next
        do = dh * jnp.tanh(c_t)
        dc = dc_next + dh * o * (1 - jnp.tanh(c_t) ** 2)
        di, df, dg = dc * g, dc * c_before, dc * i
        dz = jnp.concatenate([di * i * (1 - i), df * f * (1 - f), dg * (1 - g * g), do * o * (1 - o)])
        dW = dW + jnp.outer(xs[t], dz)
        db = db + dz
        dR = dR + jnp.outer(h_before, dz)
        dxs[t] = dz @ W.T
        dh_next = dz @ R.T
        dc_next = dc * f

    return HandGradients(dW, db, dR.reshape(params["recurrent"].shape), LSTMState(dh_next, dc_next), jnp.stack(dxs))


def _weights(
    params: Mapping[str, Array], state: Any, xs: Array, d_ys: Array, gates: int
) -> tuple[Float[Array, "D GF"], Float[Array, " GF"], Float[Array, "F GF"]]:
    """W, b and R as matrices, gates side by side."""
    if set(params) != {"kernel", "bias", "recurrent"}:
        raise ValueError(f"params must be kernel, bias and recurrent, not {', '.join(sorted(params))}")
    kernel, bias, recurrent = params["kernel"], params["bias"], params["recurrent"]
    features = state.h.shape[-1]
    if recurrent.shape != (1, features, gates, features):
        raise ValueError(
            f"recurrent of shape {recurrent.shape} must be {(1, features, gates, features)}: one dense head"
        )
    if not len(xs) or d_ys.shape != (len(xs), features) or kernel.shape != (xs.shape[-1], gates * features):
        raise ValueError(
            f"xs of shape {xs.shape} ([T, D], T >= 1), d_ys {d_ys.shape} ([T, F]) and kernel {kernel.shape} ([D, G F]) "
            f"do not fit one another"
        )
    return kernel, bias, recurrent.reshape(features, gates * features)
