"""The language model obeys the law of its core, and decodes to what it says of the whole text."""

from collections.abc import Callable
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted
from jax.tree_util import Partial
from jax.typing import DTypeLike

from jaxseq.cores import GRU, Attention, Core, Elman, Positions, Stacked, block
from jaxseq.decoding import greedy
from jaxseq.layers import Embedding
from jaxseq.models import LanguageModel

V, F, B, T = 11, 8, 3, 8
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, V, (B, T)), jnp.int32)
IDS = jnp.asarray([[1, 1, 1, 2, 2, 1, 1, 1], [0, 0, 3, 3, 3, 3, 0, 0], [1, 1, 0, 1, 4, 4, 4, 4]], jnp.int32)


def hybrid(**types: DTypeLike) -> Core:
    """Recurrence, attention and positions."""
    mixers = Elman(F, **types), Attention(F, num_heads=2, **types)
    return Stacked((Positions(F, **types), block(mixers[0], **types), block(mixers[1], feed_forward=12, **types)))


CORES: dict[str, Callable[..., Core]] = {
    "recurrent": partial(GRU, F),
    "attention": partial(Attention, F),
    "hybrid": hybrid,
}
EVERY = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.full if n == "hybrid" else ()) for n in CORES]
)


@cache
def model_and_parameters(name: str, dtype: DTypeLike = jnp.float32) -> tuple[LanguageModel, dict]:
    """The recurrent and the hybrid model tied, that of attention with a head of its own; all with dropout."""
    types = {"dtype": dtype, "param_dtype": dtype}
    head = nn.Dense(V, **types) if name == "attention" else None
    model = LanguageModel(Embedding(V, F, **types), CORES[name](**types), head, dropout=0.5, logits_dtype=dtype)
    params = jitted(model.init)(jax.random.key(0), model.initial_carry((B,)), TOKENS)
    sharper = jax.tree.map(lambda p: p * 2, params)
    return model, sharper


def in_pieces(model: LanguageModel, params: dict, ids: jax.Array | None, lengths: tuple[int, ...]) -> tuple:
    """Last carry and all logits, one piece after another."""
    carry, out, begin = model.initial_carry((B,), T), [], 0
    for length in lengths:
        part = slice(begin, begin + length)
        carry, logits = model.apply(params, carry, TOKENS[:, part], None if ids is None else ids[:, part])
        out.append(logits)
        begin += length
    return carry, jnp.concatenate(out, 1)


def close(actual, expected, tolerance: float) -> None:
    """All leaves equal, to ``tolerance``."""
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), actual, expected)


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("attention", IDS),
        *(pytest.param(name, IDS, marks=pytest.mark.full) for name in ("recurrent", "hybrid")),
        *(pytest.param(name, None, marks=pytest.mark.full) for name in ("recurrent", "attention")),
    ],
)
def test_a_text_in_pieces_is_the_whole_text(name: str, ids: jax.Array | None, x64: None) -> None:
    # In float64: logits of these parameters reach 26, and their rounding in float32 exceeds a tolerance of 1e-5.
    model, params = model_and_parameters(name, jnp.float64)
    weights = jnp.sin(jnp.arange(B * T * V, dtype=jnp.float64)).reshape(B, T, V)

    def loss(params: dict, lengths: tuple[int, ...]) -> tuple:
        carry, logits = in_pieces(model, params, ids, lengths)
        return (logits * weights).sum(), (carry, logits)

    def both(params: dict) -> list:
        return [jax.value_and_grad(lambda p, n=n: loss(p, n), has_aux=True)(params) for n in ((T,), (5, 1, 2))]

    ((_, whole), gradient), ((_, pieces), gradient_of_pieces) = jitted(both)(params)
    assert whole[1].dtype == jnp.float64
    close(pieces, whole, 1e-11)
    close(gradient_of_pieces, gradient, 1e-10)


def test_dropout_is_active_exactly_with_a_key() -> None:
    model, params = model_and_parameters("recurrent")
    carry = model.initial_carry((B,))
    run = jitted(lambda rngs: model.apply(params, carry, TOKENS, rngs=rngs)[1])
    silent, one, same, other = (run(r) for r in ({}, *({"dropout": jax.random.key(i)} for i in (1, 1, 2))))
    quiet = model.clone(dropout=0.0)
    close(silent, quiet.apply(params, carry, TOKENS)[1], 1e-6)
    np.testing.assert_array_equal(one, same)
    assert (np.abs(one - silent).max(-1) > 1e-3).all() and np.abs(one - other).max() > 1e-3


@EVERY
def test_greedy_decoding_is_the_argmax_of_the_whole_text(name: str) -> None:
    model, params = model_and_parameters(name)
    lengths, made = np.array([5, 3, 1]), 6
    prompts = jnp.asarray(np.where(np.arange(T - 3) < lengths[:, None], TOKENS[:, : T - 3], -1))

    def step(params: dict, carry, tokens: jax.Array) -> tuple:
        carry, logits = model.apply(params, carry, tokens[:, None])
        return carry, logits[:, 0]

    # All of each prompt but its last token goes into the carry; prompts of different lengths share the batch.
    before = jnp.asarray(np.arange(T - 3) < lengths[:, None] - 1, jnp.int32)
    carry, _ = jitted(model.apply)(params, model.initial_carry((B,), T + made), prompts, before)
    last = jnp.take_along_axis(prompts, jnp.asarray(lengths)[:, None] - 1, 1)[:, 0]
    tokens = np.asarray(greedy(Partial(step, params), carry, last, max_length=made).tokens)

    text = np.full((B, T - 3 + made), -1, np.int32)
    for row, length in enumerate(lengths):
        text[row, : length + made] = np.concatenate([prompts[row, :length], tokens[row]])
    real = jnp.asarray(np.arange(text.shape[1]) < lengths[:, None] + made, jnp.int32)
    _, logits = jitted(model.apply)(params, model.initial_carry((B,)), jnp.asarray(text), real)
    best = np.asarray(logits.argmax(-1))
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(tokens[row], best[row, length - 1 : length + made - 1])
    assert len(np.unique(tokens)) > 2, "a text of one token shows little"


def test_a_tied_head_needs_the_embeddings_width() -> None:
    model = LanguageModel(Embedding(V, F), GRU(F + 1))
    with pytest.raises(ValueError, match="the core puts out 9, the embedding has 8"):
        jax.eval_shape(model.init, jax.random.key(0), model.initial_carry((B,)), TOKENS)


def test_logits_are_wide_whatever_computes_them() -> None:
    low = {"dtype": jnp.bfloat16}
    model = LanguageModel(Embedding(V, F, **low), GRU(F, **low))
    _, params = model_and_parameters("recurrent")
    _, logits = jax.eval_shape(model.apply, params, model.initial_carry((B,)), TOKENS)
    assert logits.dtype == jnp.float32


@pytest.mark.full
def test_padded_tokens_have_no_gradient_and_others_outside_the_vocabulary_are_an_error_or_nan() -> None:
    model, params = model_and_parameters("recurrent")
    carry = model.initial_carry((B,))

    def loss(params: dict, tokens: jax.Array) -> tuple:
        logits = model.apply(params, carry, tokens, IDS)[1]
        return jnp.sin(logits).sum(), logits

    run = jitted(jax.value_and_grad(loss, has_aux=True))
    want = run(params, jnp.where(IDS == 0, 0, TOKENS))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(want))
    for padding in (-1, -100, V, 999):
        close(run(params, jnp.where(IDS == 0, padding, TOKENS)), want, 0)
    wrong = TOKENS.at[0, 3].set(V)
    with pytest.raises(ValueError, match=r"tokens: id 11 at index \(0, 3\) is outside \[0, 11\)"):
        model.apply(params, carry, wrong, IDS)
    logits = run(params, wrong)[0][1]
    assert np.isnan(logits[0, 3:5]).all() and np.isfinite(logits[0, :3]).all() and np.isfinite(logits[1:]).all()


def test_errors_name_tokens_and_ids_that_do_not_fit(untyped: None) -> None:
    model = LanguageModel(Embedding(V, F), GRU(F))
    for tokens, ids, message in (
        (TOKENS.astype(jnp.float32), IDS, r"tokens must be integers, not float32\(3, 8\)"),
        (TOKENS, IDS[:, :3], r"integer segment_ids of shape .* = \(3, 8\) as its tokens, not int32\(3, 3\)"),
        (TOKENS, IDS.astype(jnp.float32), r"integer segment_ids .* not float32\(3, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model.init, jax.random.key(0), model.initial_carry((B,)), tokens, ids)
