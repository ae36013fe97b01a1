"""Encoders: padding and documents, both directions, self-attention, text."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close
from compilation import jitted

from jaxseq.cores import GRU, LSTM, Conv, Positions
from jaxseq.encoders import (
    Bidirectional,
    CoreEncoder,
    Encoder,
    EncoderBlock,
    EncoderStack,
    SelfAttention,
    TextEncoder,
    make_encoder,
)
from jaxseq.layers import (
    ATTENTIONS,
    DotAttention,
    Embedding,
    FeedForward,
    MemoryAttention,
    MultiHeadAttention,
    RelativeBuckets,
    capture_weights,
)
from jaxseq.ops.attention.positions import alibi_slopes, relative_buckets, rotary

S, D = 7, 6
IDS = np.array([1, 1, 0, 1, 2, 2, 0], np.int32)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    """Random numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def variables_of(module: nn.Module, *args: Any) -> Any:
    """Random parameters, without compiling their initializers."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)
    return jax.tree.map(lambda p: jnp.asarray(0.5 * drawn(*p.shape, seed=p.size)), shapes)


def transformer(width: int, layers: int, norm: str = "post") -> EncoderStack:
    """Blocks of self-attention."""
    blocks = (
        EncoderBlock(SelfAttention(MultiHeadAttention(width, num_heads=2)), FeedForward(width, 8), norm=norm)
        for _ in range(layers)
    )
    return EncoderStack(tuple(blocks), norm=norm == "pre")


ENCODERS: dict[str, Encoder] = {
    "core": CoreEncoder(GRU(D)),
    "self-attention": SelfAttention(MultiHeadAttention(D, num_heads=2)),
    "self-attention rotary": SelfAttention(MultiHeadAttention(D, num_heads=1), "rotary"),
    "self-attention relative": SelfAttention(MultiHeadAttention(D, num_heads=2), RelativeBuckets(8, 4)),
    "both directions": Bidirectional(GRU(D), LSTM(D - 1)),
    "convolution": Bidirectional(Conv(D // 2, kernel_size=3), Conv(D // 2, kernel_size=3)),
    "pre-norm": EncoderStack((CoreEncoder(Positions(D)), transformer(D, 2, "pre"))),
    "post-norm": transformer(D, 1),
    "around recurrence": EncoderBlock(Bidirectional(GRU(D // 2), GRU(D // 2)), FeedForward(D, 8)),
}
FURTHER = ("self-attention rotary", "self-attention relative")
EVERY = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full) if name in FURTHER else name for name in ENCODERS]
)


@functools.cache
def functions(name: str) -> tuple[Any, Any]:
    """Parameters, and the compiled ``(variables, xs, ids) -> ys, gradients of a random function of them``."""
    encoder: Any = ENCODERS[name]
    variables = variables_of(encoder, drawn(S, D))

    def loss(variables: Any, xs: Any, ids: Any) -> Any:
        ys = encoder.apply(variables, xs, ids)
        real = jnp.asarray(ids != 0, ys.dtype)[:, None]
        return (ys * drawn(*ys.shape, seed=4) * real).sum(), ys

    run = jitted(jax.value_and_grad(loss, (0, 1), has_aux=True))

    def encode(xs: Any, ids: Any) -> Any:
        (_, ys), gradients = run(variables, jnp.asarray(xs), jnp.asarray(ids))
        return np.asarray(ys), gradients

    return variables, encode


@EVERY
def test_padding_changes_nothing_and_comes_out_as_zeros(name: str) -> None:
    assert isinstance(ENCODERS[name], Encoder)
    _, encode = functions(name)
    xs, padded = drawn(S, D, seed=3), (IDS == 0)[:, None]
    clean, dirty = (encode(np.where(padded, filler, xs).astype(np.float32), IDS) for filler in (0, np.nan))
    close(dirty, clean, 0)
    assert not clean[0][IDS == 0].any()


@EVERY
def test_documents_do_not_reach_each_other(name: str) -> None:
    """Each is encoded as alone in its row, padding behind it; an id used again is another document."""
    _, encode = functions(name)
    xs = drawn(S, D, seed=3)
    for ids in (IDS, np.array([1, 0, 2, 2, 1, 1, 1], np.int32)):
        packed, _ = encode(xs, ids)
        documents = np.cumsum(np.diff(ids[ids != 0], prepend=ids[0]) != 0)
        for document in np.unique(documents):
            places = np.flatnonzero(ids != 0)[documents == document]
            alone = np.zeros_like(xs)
            alone[: len(places)] = xs[places]
            ys, _ = encode(alone, (np.arange(S) < len(places)).astype(np.int32))
            close(packed[places], ys[: len(places)], 1e-5)


def test_both_directions_are_read_by_each_documents_own_length() -> None:
    variables, encode = functions("both directions")
    encoder: Any = ENCODERS["both directions"]
    xs, ids = drawn(S, D, seed=5), np.array([1, 1, 1, 1, 0, 0, 0], np.int32)
    ys, _ = encode(xs, ids)

    @jitted
    def directions(xs: Any) -> Any:
        ahead, behind = ({"params": variables["params"][name]} for name in ("forward", "backward"))
        forwards = encoder.forward.apply(ahead, encoder.forward.initial_carry(()), xs)[1]
        backwards = encoder.backward.apply(behind, encoder.backward.initial_carry(()), xs[::-1])[1][::-1]
        return jnp.concatenate([forwards, backwards], -1)

    close(ys[:4], directions(xs[:4]), 1e-5)


def test_an_encoder_has_no_carry() -> None:
    with pytest.raises(TypeError, match="looks ahead, so it has no carry"):
        Bidirectional(forward=GRU(D), backward=GRU(D)).initial_carry((3,))


def test_order_is_unknown_without_positions_and_known_with_them() -> None:
    xs, order = jnp.asarray(drawn(S, D)), np.random.default_rng(1).permutation(S)
    plain = transformer(D, 2)
    placed = EncoderStack((CoreEncoder(Positions(D)), plain))
    beside = EncoderStack((CoreEncoder(Positions(D + 2, join="concat")), transformer(D + 2, 2)))
    for encoder, equivariant in ((plain, True), (placed, False), (beside, False)):
        run = functools.partial(jitted(encoder.apply), variables_of(encoder, xs))
        assert (np.abs(run(xs[order]) - run(xs)[order]).max() < 1e-5) == equivariant


@pytest.mark.full
@pytest.mark.parametrize("positions", ["rotary", "alibi", "relative"])
@pytest.mark.parametrize("attention", [MultiHeadAttention(D, num_heads=1), ATTENTIONS["additive"](D)])
def test_positions_in_the_attention_are_their_equation(positions: str, attention: MemoryAttention) -> None:
    """The weights of a document that padding interrupts, from its projected queries and keys."""
    encoder, xs = SelfAttention(attention, positions), jnp.asarray(drawn(S, D))
    ids = jnp.asarray([0, 1, 1, 0, 1, 1, 1], jnp.int32)
    variables = variables_of(encoder, xs)
    params, real, count = variables["params"], np.flatnonzero(ids), jnp.arange(5)
    found = capture_weights(encoder, variables, xs, ids)["attention"][..., real, :][..., real]

    def dense(name: str) -> Any:
        layer = params["attention"][name]
        return xs[real] @ layer["kernel"] + jnp.broadcast_to(layer.get("bias", jnp.zeros(D)), (5, D))

    q, k = dense("query"), dense("key")
    if positions == "rotary":
        q, k = (rotary(x[:, None], count)[:, 0] for x in (q, k))
    if "score" in params["attention"]:
        scores = jnp.tanh(q[:, None] + k[None]) @ params["attention"]["score"]
    else:
        scores = q @ k.T / np.float32(np.sqrt(D))
    distance = count[None] - count[:, None]
    if positions == "alibi":
        scores -= alibi_slopes(1)[0] * jnp.abs(distance).astype(jnp.float32)
    if positions == "relative":
        scores += params["relative_bias"][0][relative_buckets(distance, 32, 128, bidirectional=True)]
    close(found[0], jax.nn.softmax(scores, -1), 1e-5)


def test_positions_join_as_asked() -> None:
    xs = jnp.asarray(drawn(S, D))
    added, beside = Positions(D), Positions(D + 4, join="concat")
    _, ys = beside.apply({}, beside.initial_carry(()), xs)
    close(ys[:, :D], xs, 0)
    assert np.abs(ys[0, D:] - ys[3, D:]).max() > 0.1
    _, sums = added.apply({}, added.initial_carry(()), xs)
    assert sums.shape == xs.shape
    for wrong in (Positions(D, join="concat"), Positions(D + 2), Positions(D, join="beside")):
        with pytest.raises(ValueError, match=r"join="):
            wrong.apply({}, wrong.initial_carry(()), xs)


@pytest.mark.full
def test_a_text_encoder_encodes_the_embedded_tokens_and_drops_out_with_a_key() -> None:
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 9, (2, S)))
    ids = jnp.asarray(np.stack([IDS, np.ones(S, np.int32)]))
    inner = CoreEncoder(GRU(D))
    encoder = TextEncoder(Embedding(9, D, scale=2.0), inner, dropout=0.5)
    variables = variables_of(encoder, tokens)
    params = variables["params"]
    assert set(params) == {"embedding", "encoder"} and isinstance(encoder, Encoder)
    run = jitted(lambda rngs: encoder.apply(variables, tokens, ids, rngs=rngs))
    want = inner.apply({"params": params["encoder"]}, 2 * params["embedding"]["table"][tokens], ids)
    close(run({}), want, 1e-6)
    first, same, other = (run({"dropout": jax.random.key(seed)}) for seed in (0, 0, 1))
    close(first, same, 0)
    assert np.abs(first - want).max() > 1e-3 and np.abs(first - other).max() > 1e-3


def test_an_encoder_by_name_is_as_asked() -> None:
    def kinds(*args: Any, **options: Any) -> list[str]:
        encoder = make_encoder(*args, **options)
        assert jax.eval_shape(encoder.init_with_output, jax.random.key(0), drawn(S, 4))[0].shape == (S, 8)
        return [type(part).__name__ for part in encoder.encoders] + ["norm"] * encoder.norm

    assert kinds("gru", 8) == ["Bidirectional"]
    assert kinds("lstm", 8, 2, bidirectional=False) == ["CoreEncoder", "EncoderBlock", "norm"]
    assert kinds("transformer", 8, 2, positions="concat", norm="post") == [
        "CoreEncoder",
        "EncoderBlock",
        "EncoderBlock",
    ]
    with pytest.raises(ValueError, match="features=7 must be even for bidirectional=True"):
        make_encoder("gru", 7)
    with pytest.raises(ValueError, match="norm='mid'; known: pre, post"):
        jax.eval_shape(EncoderBlock(CoreEncoder(GRU(D)), norm="mid").init, jax.random.key(0), drawn(S, D))
    with pytest.raises(ValueError, match="residual needs equal widths: 6 in, 5 out"):
        jax.eval_shape(EncoderBlock(CoreEncoder(GRU(5))).init, jax.random.key(0), drawn(S, D))


@pytest.mark.full
def test_both_directions_start_from_given_states_and_return_the_final_ones() -> None:
    """The reference runs each core alone over the real positions, in its own order."""
    encoder = Bidirectional(GRU(D), LSTM(D - 1))
    xs, lengths = jnp.asarray(drawn(3, S, D, seed=6)), (S, 4, 0)
    ids = jnp.asarray(np.arange(S) < np.asarray(lengths)[:, None], jnp.int32)
    variables = functions("both directions")[0]
    given: Any = jax.tree.map(
        lambda leaf: jnp.asarray(drawn(*leaf.shape, seed=8)) if leaf.dtype == jnp.float32 else leaf,
        encoder.initial_carries((3,)),
    )

    def alone(name: str, row: int, step: int) -> Any:
        core: Any = getattr(encoder, name)
        start = jax.tree.map(lambda leaf: leaf[row], getattr(given, name))
        after, ys = core.apply({"params": variables["params"][name]}, start, xs[row, : lengths[row]][::step])
        return after.state, ys[::step]

    @jitted
    def everything() -> Any:
        parts = [[alone("forward", row, 1), alone("backward", row, -1)] for row in range(2)]
        return encoder.apply(variables, given, xs, ids, method="with_states"), parts

    (found, ys), parts = everything()
    for row, (ahead, behind) in enumerate(parts):
        close(ys[row, : lengths[row]], jnp.concatenate([ahead[1], behind[1]], -1), 1e-5)
        states = jax.tree.map(lambda leaf, row=row: leaf[row], (found.forward.state, found.backward.state))
        close(states, (ahead[0], behind[0]), 1e-5)
    close(*(jax.tree.map(lambda leaf: leaf[2], carries) for carries in (found, given)), 0)


@pytest.mark.full
def test_documents_may_be_more_than_the_dtype_of_ids_counts() -> None:
    """600 documents of one position, of ids in one byte: each sees itself alone."""
    xs, ids = jnp.asarray(np.random.default_rng(0).normal(size=(1, 600, 4)), jnp.float32), np.tile([1, 2], 300)[None]
    encoder = SelfAttention(DotAttention(4))
    np.testing.assert_allclose(encoder.apply({}, xs, jnp.asarray(ids, jnp.int8)), xs, rtol=1e-6)


XS3, IDS3 = jnp.zeros((2, S, D)), jnp.ones((2, S), jnp.int32)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "self-attention"])
def test_errors_name_an_input_that_does_not_fit(name: str, untyped: None) -> None:
    encoder: Any = ENCODERS[name]
    for xs, ids, message in (
        (XS3, IDS3[:, :2], r"needs integer segment_ids of shape \[\*B, T\] = \(2, 7\) .* not int32\(2, 2\)"),
        (XS3, IDS3[0], r"needs integer segment_ids .* not int32\(7,\)"),
        (XS3, IDS3.astype(jnp.float32), r"needs integer segment_ids .* not float32\(2, 7\)"),
        (IDS3[..., None], None, r"needs floating-point inputs of shape \[\*B, T, D\], not int32\(2, 7, 1\)"),
        (XS3[0, 0], None, r"needs floating-point inputs of shape \[\*B, T, D\], not float32\(6,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(encoder.init, jax.random.key(0), xs, ids)


@pytest.mark.full
def test_padded_tokens_may_be_any_number_and_others_must_be_in_the_table() -> None:
    """Outside jit an error, within it NaN, which reaches no other document."""
    encoder = TextEncoder(Embedding(9, D), CoreEncoder(GRU(D)))
    tokens = np.random.default_rng(0).integers(0, 9, (2, S)).astype(np.int32)
    ids = jnp.asarray(np.stack([IDS, IDS]))
    variables = variables_of(encoder, tokens)

    def loss(variables: Any, tokens: Any) -> Any:
        ys = encoder.apply(variables, tokens, ids)
        return jnp.sin(ys).sum(), ys

    run = jitted(jax.value_and_grad(loss, has_aux=True))
    want = run(variables, jnp.asarray(tokens))
    for padding in (-1, -100, 9):
        dirty = jnp.where(ids == 0, padding, tokens)
        close(run(variables, dirty), want, 0)
    encoder.apply(variables, dirty, ids)
    for wrong in (9, 999, -1, -5):
        changed = tokens.copy()
        changed[1, 4] = wrong
        with pytest.raises(ValueError, match=rf"tokens: id {wrong} at index \(1, 4\) is outside \[0, 9\)"):
            encoder.apply(variables, jnp.asarray(changed), ids)
        (_, ys), _ = run(variables, jnp.asarray(changed))
        assert np.isnan(ys[1, 4:6]).all()
        close((ys[0], ys[1, :4]), (want[0][1][0], want[0][1][1, :4]), 0)
