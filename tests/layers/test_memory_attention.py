"""Attention over a memory against its equation, in values and gradients; encoders; what capturing gives."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted

from jaxseq.cores import GRU, Attention, Conv, Positions
from jaxseq.encoders import Bidirectional, CoreEncoder, EncoderBlock, EncoderStack, SelfAttention
from jaxseq.layers import ATTENTIONS, FeedForward, Fusion, MemoryAttention, MultiHeadAttention, capture_weights

B, T, S, D, F = 3, 4, 7, 6, 6
IDS = np.array([[1] * 7, [1, 1, 0, 1, 0, 0, 0], [0] * 7], np.int32)
CASES: dict[str, dict[str, Any]] = {name: {} for name in ATTENTIONS}
CASES["multi_head"] = {"num_heads": 2}
SIZED = {name: fields | {"value_features": 10} for name, fields in CASES.items()}
SIZED["multi_head"] |= {"key_features": 8}
ALL = [
    pytest.param(n, f, id=f"{n}{' sized' * bool(f.get('value_features'))}")
    for c in (CASES, SIZED)
    for n, f in c.items()
]
EVERY = pytest.mark.parametrize(("name", "fields"), ALL)


class Attended(nn.Module):
    """Project, then attend."""

    attention: MemoryAttention

    def __call__(self, query: Any, memory: Any, ids: Any = None) -> Any:
        return self.attention(query, self.attention.project(memory, ids))


def transformer(width: int, layers: int, norm: str = "post") -> EncoderStack:
    """Blocks of self-attention."""
    blocks = (
        EncoderBlock(SelfAttention(MultiHeadAttention(width, num_heads=2)), FeedForward(width, 8), norm=norm)
        for _ in range(layers)
    )
    return EncoderStack(tuple(blocks), norm=norm == "pre")


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    """Random numbers."""
    return np.random.default_rng(seed).normal(size=shape)


def close(actual: Any, expected: Any, tolerance: float) -> None:
    """All leaves equal, to ``tolerance``."""
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), actual, expected)


def on_paper(name: str, fields: dict, params: dict, query: Any, memory: Any, ids: np.ndarray) -> Any:
    """The equation, a row and a head at a time."""

    def dense(part: str, x: Any) -> Any:
        y = x @ params[part]["kernel"]
        return y + jnp.broadcast_to(params[part].get("bias", 0.0), y.shape)

    rows = []
    for row in range(query.shape[0]):
        q, real = query[row], np.flatnonzero(ids[row])
        k = v = memory[row][real]
        heads = fields.get("num_heads", 1)
        if name == "additive":
            hidden = jnp.tanh(dense("query", q)[:, None] + dense("key", k)[None])
            scores = [hidden @ params["score"]]
        elif name == "multi_head":
            split = [jnp.split(dense(part, x), heads, -1) for part, x in (("query", q), ("key", k))]
            scores = [a @ b.T / np.sqrt(a.shape[-1]) for a, b in zip(*split, strict=True)]
        else:
            keys = dense("key", k) if name == "general" else k
            scores = [q @ keys.T / (np.sqrt(q.shape[-1]) if name == "scaled_dot" else 1.0)]
        values = dense("value", v) if "value" in params else v
        if not len(real):
            mixed = [jnp.zeros((q.shape[0], part.shape[-1])) for part in jnp.split(values, heads, -1)]
        else:
            mixed = [jax.nn.softmax(s, -1) @ w for s, w in zip(scores, jnp.split(values, heads, -1), strict=True)]
        out = jnp.concatenate(mixed, -1)
        rows.append(dense("out", out) if "out" in params else out)
    return jnp.stack(rows)


@EVERY
def test_every_kind_is_its_equation_in_values_and_gradients(name: str, fields: dict, x64: None) -> None:
    types = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    layer = Attended(ATTENTIONS[name](F, **fields, **types))
    query, memory = jnp.asarray(drawn(B, T, D)), jnp.asarray(drawn(B, S, D, seed=1))
    params = layer.init(jax.random.key(0), query, memory).get("params", {"attention": {}})
    params = jax.tree.map(lambda p: p + 0.1 * drawn(*p.shape, seed=2), params)

    def loss(of: Callable) -> Callable:
        def value(params: Any, query: Any, memory: Any) -> Any:
            out = of(params, query, memory)
            return (out * drawn(*out.shape, seed=5)).sum(), out

        return jitted(jax.value_and_grad(value, (0, 1, 2), has_aux=True))

    ours = loss(lambda p, q, m: layer.apply({"params": p}, q, m, jnp.asarray(IDS)))
    paper = loss(lambda p, q, m: on_paper(name, fields, p["attention"], q, m, IDS))
    (_, out), gradients = ours(params, query, jnp.asarray(np.where(IDS[..., None] == 0, np.nan, memory)))
    (_, want), expected = paper(params, query, memory)
    close(out, want, 1e-10)
    close(gradients, expected, 1e-10)


@EVERY
def test_weights_on_request_are_those_the_context_is_mixed_by(name: str, fields: dict) -> None:
    layer = Attended(ATTENTIONS[name](F, **fields))
    query, memory = (jnp.asarray(drawn(B, n, D, seed=n), jnp.float32) for n in (T, S))
    ids = jnp.asarray(IDS)
    variables = layer.init(jax.random.key(0), query, memory, ids)
    assert set(variables) <= {"params"}
    weights = capture_weights(layer, variables, query, memory, ids)["attention"]
    assert weights.shape == (B, fields.get("num_heads", 1), T, S)
    sums = np.asarray(weights.sum(-1))
    close(sums, np.broadcast_to((IDS.any(-1))[:, None, None], sums.shape).astype(np.float32), 1e-6)
    assert not np.asarray(weights).swapaxes(1, 3)[IDS == 0].any()

    def mixed(module: Attended) -> Any:
        return module.attention.mix(weights, module.attention.project(memory, ids))

    close(nn.apply(mixed, layer)(variables), layer.apply(variables, query, memory, ids), 1e-5)


@EVERY
def test_packed_documents_see_their_own_memory(name: str, fields: dict) -> None:
    layer = ATTENTIONS[name](F, **fields)
    memory, query = (jnp.asarray(drawn(S, D, seed=n), jnp.float32) for n in range(2))
    ids, own = jnp.asarray([1, 1, 1, 0, 2, 2, 2]), jnp.asarray([1, 1, 0, 2, 2, 3, 1])

    def run(module: MemoryAttention, memory: Any, ids: Any, query: Any, own: Any) -> Any:
        return module(query, module.project(memory, ids), own)

    variables = nn.init(run, layer)(jax.random.key(1), memory, ids, query, own)
    packed = nn.apply(run, layer)(variables, memory, ids, query, own)
    for document in (1, 2):
        part, mine = np.asarray(ids) == document, np.asarray(own) == document
        alone = nn.apply(run, layer)(variables, memory[part], None, query[mine], None)
        close(packed[mine], alone, 1e-5)


def test_what_does_not_fit_is_named(key: jax.Array) -> None:
    query, memory = jnp.ones((T, D)), jnp.ones((S, D + 1))
    with pytest.raises(ValueError, match="one width: the query has 6, the keys 7"):
        Attended(ATTENTIONS["dot"](F)).init(key, query, memory)
    with pytest.raises(ValueError, match="num_heads=4 does not divide the widths of keys, 6, and values, 6"):
        Attended(ATTENTIONS["multi_head"](F, num_heads=4)).init(key, query, memory)
    with pytest.raises(ValueError, match="fusion='join'; known: add, multiply, concat"):
        Fusion("join").init(key, query, query)
    with pytest.raises(ValueError, match="norm='mid'; known: pre, post"):
        EncoderBlock(CoreEncoder(GRU(D)), norm="mid").init(key, query)
    with pytest.raises(ValueError, match="residual needs equal widths: 6 in, 5 out"):
        EncoderBlock(CoreEncoder(GRU(5))).init(key, query)


def test_a_fusion_is_its_equation(key: jax.Array) -> None:
    x, context = (jnp.asarray(drawn(T, n), jnp.float32) for n in (D, 3))
    for kind in ("add", "multiply", "concat"):
        layer = Fusion(kind)
        variables = jax.tree.map(lambda p: p + 0.2, layer.init(key, x, context))
        dense = variables.get("params", {}).get("context", {"kernel": jnp.zeros((3, D)), "bias": jnp.zeros(D)})
        projected = context @ dense["kernel"] + dense["bias"][None]
        want = {"add": x + projected, "multiply": x * projected, "concat": jnp.concatenate([x, context], -1)}[kind]
        close(layer.apply(variables, x, context), want, 1e-6)


def encoders() -> dict[str, nn.Module]:
    """One of every kind."""
    attends = SelfAttention(MultiHeadAttention(D, num_heads=2))
    return {
        "one way": CoreEncoder(GRU(D)),
        "self-attention": attends,
        "convolution": Bidirectional(Conv(D // 2, kernel_size=3), Conv(D // 2, kernel_size=3)),
        "pre-norm": EncoderStack((CoreEncoder(Positions(D)), transformer(D, 2, "pre"))),
        "post-norm": EncoderBlock(attends, FeedForward(D, 8), norm="post"),
        "around recurrence": EncoderBlock(Bidirectional(GRU(D // 2), GRU(D // 2)), FeedForward(D, 8)),
    }


@pytest.mark.parametrize("name", encoders())
def test_padding_and_documents_of_an_encoder_do_not_reach_each_other(name: str) -> None:
    encoder = encoders()[name]
    xs = jnp.asarray(drawn(S, D, seed=3), jnp.float32)
    ids = np.array([1, 1, 0, 1, 2, 2, 0], np.int32)
    variables = jax.tree.map(lambda p: 2 * p, jitted(encoder.init)(jax.random.key(0), xs))
    real = (ids != 0)[:, None]

    def loss(variables: Any, xs: Any) -> Any:
        ys = encoder.apply(variables, xs, jnp.asarray(ids))
        return (ys * jnp.asarray(drawn(*ys.shape, seed=4) * real, jnp.float32)).sum(), ys

    run = jitted(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, clean), gradient = run(variables, jnp.where(real, xs, 0))
    (_, dirty), same = run(variables, jnp.where(real, xs, jnp.nan))
    close((dirty, same), (clean, gradient), 0)
    assert not np.asarray(clean)[ids == 0].any()
    for document in (1, 2):
        alone = encoder.apply(variables, xs[ids == document])
        close(clean[ids == document], alone, 1e-5)


def test_an_id_used_again_is_another_document_to_self_attention(key: jax.Array) -> None:
    encoder = SelfAttention(MultiHeadAttention(D, num_heads=2))
    xs, ids = jnp.asarray(drawn(S, D), jnp.float32), jnp.asarray([1, 1, 0, 2, 1, 1, 2])
    variables = encoder.init(key, xs)
    changed = encoder.apply(variables, xs.at[0].add(1.0), ids) - encoder.apply(variables, xs, ids)
    np.testing.assert_array_equal(np.abs(changed).max(-1) > 1e-4, [True, True, *[False] * 5])


class Sowing(nn.Module):
    """A layer that leaves something of its own, beside attention."""

    attends: nn.Module

    @nn.compact
    def __call__(self, xs: Any) -> Any:
        self.sow("intermediates", "own", xs)
        return self.attends(xs)


def test_what_else_a_layer_leaves_is_left_alone(key: jax.Array) -> None:
    xs = jnp.asarray(drawn(S, D), jnp.float32)
    layer = Sowing(transformer(D, 11))
    variables = layer.init(key, xs)
    found = capture_weights(layer, {"params": variables["params"]}, xs)
    numbers = [int(path.split("/")[1].split("_")[1]) for path in found]
    assert numbers == list(range(11))  # in their order, not 0, 1, 10, 2, ...


def test_order_is_unknown_without_positions_and_known_with_them(key: jax.Array) -> None:
    xs, order = jnp.asarray(drawn(S, D), jnp.float32), np.random.default_rng(1).permutation(S)
    plain = transformer(D, 2)
    placed = EncoderStack((CoreEncoder(Positions(D)), plain))
    beside = EncoderStack((CoreEncoder(Positions(D + 2, join="concat")), transformer(D + 2, 2)))
    for encoder, equivariant in ((plain, True), (placed, False), (beside, False)):
        variables = encoder.init(key, xs)
        turned, straight = encoder.apply(variables, xs[order]), encoder.apply(variables, xs)[order]
        assert (np.abs(turned - straight).max() < 1e-5) == equivariant


def test_self_attention_of_the_core_is_captured_too(key: jax.Array) -> None:
    core = Attention(8, num_heads=2, num_kv_heads=1, positions="alibi", window=3)
    xs = jnp.asarray(drawn(B, S, 8), jnp.float32)
    carry = core.initial_carry((B,))
    variables = core.init(key, carry, xs)
    weights = capture_weights(core, variables, carry, xs)[""]
    seen = np.tril(np.ones((S, S))) - np.tril(np.ones((S, S)), -3)
    assert weights.shape == (B, 2, S, S) and not np.asarray(weights)[..., seen == 0].any()
    close(weights.sum(-1), np.ones((B, 2, S), np.float32), 1e-6)


def test_positions_join_as_asked(key: jax.Array) -> None:
    xs = jnp.asarray(drawn(S, D), jnp.float32)
    added, beside = Positions(D), Positions(D + 4, join="concat")
    _, ys = beside.apply({}, beside.initial_carry(()), xs)
    close(ys[:, :D], xs, 0)
    assert np.abs(ys[0, D:] - ys[3, D:]).max() > 0.1
    _, sums = added.apply({}, added.initial_carry(()), xs)
    assert sums.shape == xs.shape
    for wrong in (Positions(D, join="concat"), Positions(D + 2), Positions(D, join="beside")):
        with pytest.raises(ValueError, match=r"join="):
            wrong.apply({}, wrong.initial_carry(()), xs)
