"""Layers against their equations: embeddings, feed-forward layers, LayerNorm, sublayers, fusions."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close
from compilation import jitted

from jaxseq.layers import Embedding, FeedForward, Fusion, LayerNorm, Sublayer

V, D, T = 7, 5, 8
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, V, (2, 3, T)))
TABLE = np.random.default_rng(1).normal(size=(V, D)).astype(np.float32)


def test_an_embedding_reads_rows_and_read_backwards_multiplies_by_them(key: jax.Array) -> None:
    embedding = Embedding(V, D, table=TABLE, scale=3.0)
    variables = embedding.init(key, TOKENS)
    rows = embedding.apply(variables, TOKENS)
    close(rows, 3 * TABLE[np.asarray(TOKENS)], 1e-6)
    close(embedding.apply(variables, rows, method="attend"), np.asarray(rows) @ TABLE.T, 1e-5)


def test_a_token_outside_the_table_is_an_error_or_nan_and_has_no_gradient(key: jax.Array) -> None:
    embedding = Embedding(11, D)
    variables = embedding.init(key, TOKENS)
    tokens = jnp.asarray([999, -5, 11, -1, 10, 0])
    for token in (999, -5, 11, -1):
        with pytest.raises(ValueError, match=rf"tokens: id {token} at index \(1,\) is outside \[0, 11\)"):
            embedding.apply(variables, jnp.asarray([0, token]))

    def loss(variables, tokens):
        rows = embedding.apply(variables, tokens)
        return jnp.where(jnp.isnan(rows), 0, rows).sum(), rows

    gradient, rows = jitted(jax.grad(loss, has_aux=True))(variables, tokens)
    table = variables["params"]["table"]
    np.testing.assert_array_equal(rows, jnp.concatenate([jnp.full((4, D), jnp.nan), table[10:], table[:1]]))
    np.testing.assert_array_equal(gradient["params"]["table"].sum(-1), D * np.isin(np.arange(11), (0, 10)))
    ids = jnp.asarray([0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(embedding.apply(variables, tokens, ids)[:4], 0)


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

    def gradients(variables):
        return jax.grad(loss)(variables, False), jax.grad(loss)(variables, True), jax.grad(on_paper)(table)

    learned, frozen, want = jitted(gradients)(variables)
    close(learned["params"]["table"], want, 1e-4)
    assert not np.asarray(frozen["params"]["table"]).any()


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
    variables = jax.tree.map(lambda p: p + 0.1, jitted(layer.init)(key, jnp.asarray(TABLE)))
    first, second = (jax.tree.map(np.asarray, variables["params"][f"Dense_{i}"]) for i in range(2))
    want = np.tanh(TABLE @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]
    close(layer.apply(variables, jnp.asarray(TABLE)), want, 1e-5)


def test_a_layer_norm_is_its_equation_computed_wide(key: jax.Array) -> None:
    for dtype, tolerance in ((jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)):
        layer = LayerNorm(dtype=dtype)
        x = jnp.asarray(TABLE, dtype)
        variables = layer.init(key, x)
        assert set(variables["params"]) == {"scale", "bias"}
        ys = layer.apply(jax.tree.map(lambda p: p + 0.5, variables), x)
        wide = np.asarray(x, np.float64)
        want = 1.5 * (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6) + 0.5
        assert ys.dtype == dtype
        close(np.asarray(ys, np.float64), want, 20 * tolerance)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_sublayer_is_its_equation(norm: str, key: jax.Array) -> None:
    layer, xs = Sublayer(norm), jnp.asarray(TABLE)
    ids = jnp.asarray([1, 1, 0, 2, 2, 0, 1])
    dirty = jnp.where(ids[:, None] == 0, jnp.nan, xs)
    variables = layer.init(key, jnp.tanh, xs)
    normalize = functools.partial(LayerNorm().apply, {"params": variables["params"]["layer_norm"]})
    want = xs + jnp.tanh(normalize(xs)) if norm == "pre" else normalize(xs + jnp.tanh(xs))
    close(layer.apply(variables, jnp.tanh, dirty, ids), jnp.where(ids[:, None] == 0, 0, want), 1e-5)


def test_a_fusion_is_its_equation(key: jax.Array) -> None:
    x, context = (jax.random.normal(jax.random.key(n), (T, n)) for n in (D, 3))
    for kind in ("add", "multiply", "concat"):
        layer = Fusion(kind)
        variables = jax.tree.map(lambda p: p + 0.2, layer.init(key, x, context))
        dense = variables.get("params", {}).get("context", {"kernel": jnp.zeros((3, D)), "bias": jnp.zeros(D)})
        projected = context @ dense["kernel"] + dense["bias"][None]
        want = {"add": x + projected, "multiply": x * projected, "concat": jnp.concatenate([x, context], -1)}[kind]
        close(layer.apply(variables, x, context), want, 1e-6)


def test_errors_name_the_argument_that_does_not_fit(key: jax.Array, untyped: None) -> None:
    xs = jnp.ones((T, D))
    for shape in ((2, D), (1, T, D)):
        with pytest.raises(ValueError, match=r"a context of shape .* does not fit x of shape \(8, 5\)"):
            Fusion().init(key, xs, jnp.ones(shape))
    for ids in (jnp.ones(T - 1, jnp.int32), jnp.ones(T)):
        with pytest.raises(ValueError, match=r"Sublayer needs integer segment_ids .* \(8,\) as its inputs, not"):
            Sublayer().init(key, jnp.tanh, xs, ids)
    with pytest.raises(ValueError, match="fusion='join'; known: add, multiply, concat"):
        Fusion("join").init(key, xs, xs)
    with pytest.raises(ValueError, match="norm='mid'; known: pre, post"):
        Sublayer("mid").init(key, jnp.tanh, xs)
    with pytest.raises(ValueError, match="residual needs equal widths: 5 in, 4 out"):
        Sublayer().init(key, lambda x: x[:, 1:], xs)
