"""The field ``forced_gates`` of the gated cores."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted

from jaxseq.cores import GRU, LSTM, MGU, SLSTM, LayerNormLSTM
from jaxseq.cores.table import make_core

T, D, F = 4, 3, 4
REMEMBER = (("f", 1.0), ("i", 0.0))
CORES = {
    "lstm": (partial(LSTM, forced_gates=REMEMBER), "c"),
    "peepholes": (partial(LSTM, peepholes=True, forced_gates=REMEMBER), "c"),
    "layer_norm_lstm": (partial(LayerNormLSTM, forced_gates=REMEMBER), "c"),
    "gru": (partial(GRU, forced_gates=(("z", 1.0),)), "h"),
    "mgu": (partial(MGU, forced_gates=(("f", 0.0),)), "h"),
    "slstm": (partial(SLSTM, forced_gates=(("f", 1.0), ("i", 1.0), ("g", 0.0))), "c"),
}


@pytest.mark.parametrize(
    "name", [n if n in ("layer_norm_lstm",) else pytest.param(n, marks=pytest.mark.full) for n in CORES]
)
def test_a_core_that_only_remembers_keeps_its_state(name: str) -> None:
    make: Callable = CORES[name][0]
    core, field = make(F), CORES[name][1]
    rng = np.random.default_rng(0)
    xs = jnp.asarray(rng.normal(size=(T, D)), jnp.float32)
    carry = core.initial_carry(())
    state = type(carry.state)(*(jnp.asarray(rng.random(F), jnp.float32) for _ in carry.state))
    state = state._replace(m=jnp.zeros(F)) if name == "slstm" else state
    carry = carry._replace(state=state, segment_id=jnp.ones((), jnp.int32))
    params = jitted(core.init)(jax.random.key(0), carry, xs)

    @jitted
    def gradient(params, xs):
        def loss(params, xs):
            after, ys = core.apply(params, carry, xs)
            return ys.sum(), getattr(after.state, field)

        return jax.grad(loss, (0, 1), has_aux=True)(params, xs)

    gradients, after = gradient(params, xs)
    tolerance = 3e-7 if field == "h" else 0.0  # those update h by n + z (h - n), which rounds
    np.testing.assert_allclose(after, getattr(state, field), rtol=tolerance, atol=0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_forced_gates_are_given_on_a_command_line_and_checked(untyped: None) -> None:
    core = make_core("lstm", F, ["forced_gates=(('f',1.0),('i',0.0))"])
    assert core.forced_gates == REMEMBER
    wrong = {
        "lstm has no gate 'z'": LSTM(F, forced_gates=(("z", 1.0),)),
        'implementation="cudnn" cannot force gates': LSTM(F, implementation="cudnn", forced_gates=REMEMBER),
        "pairs of a name and a number": make_core("gru", F, ["forced_gates=('z',1.0)"]),
    }
    for message, core in wrong.items():
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(core.init, jax.random.key(0), core.initial_carry((1,)), jnp.zeros((1, T, D)))
