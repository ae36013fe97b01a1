"""Embeddings, feed-forward layers, and the encoder that reads in both directions."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.cores import GRU, LSTM
from jaxseq.encoders import Bidirectional
from jaxseq.layers import Embedding, FeedForward

V, D, B, T, F = 7, 5, 3, 8, 4
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, V, (2, 3, T)))
TABLE = np.random.default_rng(1).normal(size=(V, D)).astype(np.float32)


def close(actual, expected, tolerance: float = 1e-6) -> None:
    """All leaves equal, to ``tolerance``."""
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), actual, expected)


def test_an_embedding_reads_rows_and_read_backwards_multiplies_by_them(key: jax.Array) -> None:
    embedding = Embedding(V, D, table=TABLE)
    variables = embedding.init(key, TOKENS)
    rows = embedding.apply(variables, TOKENS)
    close(rows, TABLE[np.asarray(TOKENS)])
    close(embedding.apply(variables, rows, method="attend"), np.asarray(rows) @ TABLE.T, 1e-5)


def test_a_tied_table_learns_from_both_its_uses_and_a_frozen_one_from_none(key: jax.Array) -> None:
    variables = Embedding(V, D).init(key, TOKENS)
    table = variables["params"]["table"]
    assert 0.5 < float(table.std()) * math.sqrt(D) < 1.5

    def loss(variables, frozen: bool):
        embedding = Embedding(V, D, frozen=frozen)
        out = embedding.apply(variables, embedding.apply(variables, TOKENS), method="attend")
        return out[..., 0].sum()

    def on_paper(table):
        return (table[TOKENS] @ table[0]).sum()

    close(jax.grad(loss)(variables, False)["params"]["table"], jax.grad(on_paper)(table), 1e-4)
    assert not np.asarray(jax.grad(loss)(variables, True)["params"]["table"]).any()


def test_a_table_of_another_shape_is_refused(key: jax.Array) -> None:
    with pytest.raises(ValueError, match=r"a table of shape \(7, 4\) for \(7, 5\)"):
        Embedding(V, D, table=TABLE[:, :4]).init(key, TOKENS)


def test_parts_are_of_the_dtype_they_are_given(key: jax.Array) -> None:
    for part, x in ((Embedding(V, D, dtype=jnp.bfloat16), TOKENS), (FeedForward(D, 6, dtype=jnp.bfloat16), TABLE)):
        variables = part.init(key, jnp.asarray(x))
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
        assert part.apply(variables, jnp.asarray(x)).dtype == jnp.bfloat16


def test_a_feed_forward_layer_is_its_equation(key: jax.Array) -> None:
    layer = FeedForward(D, 6, activation=jnp.tanh)
    variables = jax.tree.map(lambda p: p + 0.1, layer.init(key, jnp.asarray(TABLE)))
    first, second = (jax.tree.map(np.asarray, variables["params"][f"Dense_{i}"]) for i in range(2))
    want = np.tanh(TABLE @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]
    close(layer.apply(variables, jnp.asarray(TABLE)), want, 1e-5)


@pytest.fixture(scope="module")
def encoder():
    """A bidirectional encoder, its parameters, inputs and its compiled ``(parameters, xs, ids) -> ys``."""
    encoder = Bidirectional(forward=GRU(F), backward=LSTM(F))
    xs = jax.random.normal(jax.random.key(2), (B, T, D))
    variables = jax.jit(encoder.init)(jax.random.key(1), xs)
    return encoder, variables, xs, jax.jit(encoder.apply)


def test_both_directions_are_read_by_each_sequences_own_length(encoder) -> None:
    module, variables, xs, run = encoder
    ahead, behind = ({"params": variables["params"][name]} for name in ("forward", "backward"))
    lengths = (T, 5, 0)
    ids = jnp.asarray(np.arange(T) < np.array(lengths)[:, None], jnp.int32)
    ys = np.asarray(run(variables, xs, ids))
    for row, length in enumerate(lengths):
        assert not ys[row, length:].any()
        if not length:
            continue
        alone, turned = xs[row, :length], xs[row, :length][::-1]
        forwards = module.forward.apply(ahead, module.forward.initial_carry(()), alone)[1]
        backwards = module.backward.apply(behind, module.backward.initial_carry(()), turned)[1][::-1]
        close(ys[row, :length], np.concatenate([forwards, backwards], -1), 1e-5)


def test_padding_and_documents_do_not_reach_each_other_in_both_directions(encoder) -> None:
    _, variables, xs, run = encoder
    ids = np.array([[0, 1, 1, 0, 2, 2, 1, 0], [1, 0, 0, 1, 2, 0, 2, 1], [0, 1, 1, 2, 2, 1, 0, 0]])
    real = (ids != 0)[..., None]

    def loss(variables, xs):
        return (run(variables, xs, jnp.asarray(ids)) ** 2 * jnp.asarray(real, jnp.float32)).sum()

    clean, dirty = (jnp.asarray(np.where(real, xs, filler), jnp.float32) for filler in (0, np.nan))
    close(run(variables, dirty, jnp.asarray(ids)), run(variables, clean, jnp.asarray(ids)), 0)
    gradient = jax.jit(jax.grad(loss, (0, 1)))
    close(gradient(variables, dirty), gradient(variables, clean), 0)

    packed = np.asarray(run(variables, clean, jnp.asarray(ids)))[real[..., 0]]
    order = np.argsort(~real[..., 0], axis=1, kind="stable")
    numbers = np.take_along_axis(ids, order, 1)
    compact = np.take_along_axis(np.asarray(clean), order[..., None], 1)
    close(np.asarray(run(variables, jnp.asarray(compact), jnp.asarray(numbers)))[numbers != 0], packed, 1e-5)
    one = np.where(numbers == 2, numbers, 0)
    alone = np.asarray(run(variables, jnp.asarray(compact), jnp.asarray(one)))[one != 0]
    close(alone, np.asarray(run(variables, jnp.asarray(compact), jnp.asarray(numbers)))[one != 0], 1e-5)


def test_an_encoder_has_no_carry() -> None:
    with pytest.raises(TypeError, match="sees the future: it is an encoder of whole sequences and has no carry"):
        Bidirectional(forward=GRU(F), backward=GRU(F)).initial_carry((B,))
