"""States and gates at every position: those of the splitting law and of the cells' equations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.cores import CORES, Stacked, block
from jaxseq.decoders import make_decoder
from jaxseq.encoders import TextEncoder, make_encoder
from jaxseq.layers import Dense, Embedding, capture_states, capture_weights
from jaxseq.models import EncoderDecoder, LanguageModel
from tests.compilation import jitted

B, T, D, F = 2, 6, 3, 4
IDS = jnp.asarray([[1, 1, 2, 2, 0, 2], [1, 0, 1, 1, 3, 3]])
FEW = ("gru", "lstm", "delta")
MORE = [pytest.param(name, marks=pytest.mark.full) for name in CORES if name not in (*FEW, "attention")]


def captured(core):
    carry, xs = core.initial_carry((B,)), jax.random.normal(jax.random.key(0), (B, T, D))
    variables = jitted(core.init)(jax.random.key(1), carry, xs)
    assert set(variables) == {"params"}
    return variables, carry, xs, jitted(partial(capture_states, core))(variables, carry, xs, IDS)[""]


@pytest.mark.parametrize("name", [*FEW, *MORE])
def test_states_are_the_carries_after_each_position(name):
    core = CORES[name](features=F)
    variables, carry, xs, steps = captured(core)
    run = jitted(core.apply)
    for t in range(T):
        carry, _ = run(variables, carry, xs[:, t : t + 1], IDS[:, t : t + 1])
        same = jax.tree.map(lambda all_, one, t=t: np.allclose(all_[:, t], one, atol=1e-6), steps.state, carry.state)
        assert all(jax.tree.leaves(same)), (name, t)


def before(states):
    """The state before each position of rows that start from zeros and have neither padding nor documents."""
    return jax.tree.map(lambda s: jnp.concatenate([jnp.zeros_like(s[:, :1]), s[:, :-1]], 1), states)


def whole(name, **fields):
    core = CORES[name](features=F, **fields)
    carry, xs = core.initial_carry((B,)), jax.random.normal(jax.random.key(0), (B, T, D))
    params = jitted(core.init)(jax.random.key(1), carry, xs)
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    steps = jitted(partial(capture_states, core))(params, carry, xs)[""]
    return before(steps.state), steps.gates, steps.state


@pytest.mark.parametrize("fields", [{}, {"peepholes": True}, {"num_heads": 2}], ids=str)
def test_the_gates_of_an_lstm_compose_its_states(fields):
    old, gates, new = whole("lstm", **fields)
    assert sorted(gates) == ["f", "g", "i", "o"]
    np.testing.assert_allclose(gates["f"] * old.c + gates["i"] * gates["g"], new.c, atol=1e-6)
    np.testing.assert_allclose(gates["o"] * jnp.tanh(new.c), new.h, atol=1e-6)


def test_the_gates_of_other_cells_compose_their_states():
    old, gates, new = whole("gru")
    np.testing.assert_allclose((1 - gates["z"]) * gates["n"] + gates["z"] * old.h, new.h, atol=1e-6)
    old, gates, new = whole("mgu")
    np.testing.assert_allclose((1 - gates["f"]) * old.h + gates["f"] * gates["n"], new.h, atol=1e-6)
    old, gates, new = whole("layer_norm_lstm")
    np.testing.assert_allclose(gates["f"] * old.c + gates["i"] * gates["g"], new.c, atol=1e-6)
    old, gates, new = whole("slstm")
    exact = gates["f"] * old.n * jnp.exp(old.m) + gates["i"]
    np.testing.assert_allclose(exact, new.n * jnp.exp(new.m), rtol=1e-4)


def test_forced_gates_are_captured_as_they_are_forced():
    _, gates, _ = whole("lstm", forced_gates=(("f", 1.0), ("i", 0.25)))
    assert (gates["f"] == 1).all() and np.allclose(gates["i"], 0.25)


def test_cores_within_a_model_have_the_paths_of_their_parameters():
    core = Stacked((CORES["lstm"](F), block(CORES["attention"](F)), block(CORES["gru"](F))))
    model, tokens = LanguageModel(Embedding(7, F), core), jnp.ones((B, T), jnp.int32)
    carry = model.initial_carry((B,))
    variables = jitted(model.init)(jax.random.key(0), carry, tokens)
    assert set(variables) == {"params"}
    found = jitted(partial(capture_states, model))(variables, carry, tokens)
    assert list(found) == ["core/cores_0", "core/cores_2/core"]
    assert found["core/cores_0"].state.c.shape == found["core/cores_2/core"].gates["z"].shape == (B, T, F)
    assert list(capture_weights(model, variables, carry, tokens)) == ["core/cores_1/core"]


def test_a_decoder_that_attends_at_every_step_gives_the_states_of_its_core():
    encoder, decoder = TextEncoder(Embedding(7, F), make_encoder("gru", F)), make_decoder("attention", "lstm", F)
    model = EncoderDecoder(encoder, Embedding(9, F), decoder, Dense(9))
    source, target = jnp.ones((B, 3), jnp.int32), jnp.ones((B, T), jnp.int32)
    variables = jitted(model.init)(jax.random.key(0), source, target)
    found = jitted(partial(capture_states, model))(variables, source, target)
    (path,) = [path for path in found if path.startswith("decoder")]
    assert path == "decoder/core/cores_0"
    encoded = model.apply(variables, source, method="encode")
    carry = model.apply(variables, encoded, (B,), method="initial_carry")
    for length in (1, T):
        after = model.apply(variables, carry, target[:, :length], None, encoded, method="decode")[0]
        np.testing.assert_allclose(found[path].state.h[:, length - 1], decoder.core.hidden(after.core), atol=1e-6)
    assert {path.split("/")[0] for path in found} == {"encoder", "decoder"}
