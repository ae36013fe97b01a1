"""Sequence to sequence: decoding by step is the full forward for every decoder, padding and batches change nothing."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted
from jax.tree_util import Partial

from jaxseq import decoding
from jaxseq.cores import CORES
from jaxseq.decoders import Bridge, make_decoder
from jaxseq.decoders.bridge import SUMMARIES
from jaxseq.decoding import BeamOptions
from jaxseq.encoders import TextEncoder, make_encoder
from jaxseq.layers import ATTENTIONS, Embedding, capture_weights
from jaxseq.models import EncoderDecoder, alignment

V, W, F, B, S, T = 9, 7, 8, 3, 6, 5
KINDS: dict[str, dict[str, Any]] = {
    "rnn, initial state": {"kind": "rnn", "name": "lstm", "fusion": None},
    "rnn, context at every step": {"kind": "rnn", "name": "gru", "fusion": "add", "initial": False},
    "rnn, both": {"kind": "rnn", "name": "lstm", "fusion": "multiply", "summary": "mean"},
    "additive": {"kind": "attention", "name": "lstm", "fusion": "concat"},
    "general, two layers": {"kind": "attention", "name": "gru", "attention": "general", "layers": 2, "fusion": "add"},
    "scaled dot": {"kind": "attention", "name": "elman", "attention": "scaled_dot", "fusion": "multiply"},
    "transformer": {"kind": "transformer", "name": "transformer", "attention": "multi_head", "layers": 2},
    "post-norm": {"kind": "transformer", "name": "transformer", "attention": "multi_head", "norm": "post"},
    "hybrid": {"kind": "transformer", "name": "mingru", "attention": "additive"},
}


def named(names: Any, *first: str) -> pytest.MarkDecorator:
    """Parametrize by name; all but the first ones are marked ``full``."""
    params = [pytest.param(name, marks=() if name in first else pytest.mark.full) for name in names]
    return pytest.mark.parametrize("name", params)


EVERY = named(KINDS, "transformer")
A_FEW = named(["rnn, both", "additive", "transformer", "hybrid"], "hybrid")


def build(
    kind: Any, name: str, *, summary: str = "first_and_last", initial: bool = True, layers: int = 1, **fields: Any
):
    """A model of one kind, its encoder of the same family."""
    transformer = kind == "transformer"
    heads = {"num_heads": 2, "feed_forward": 12} if transformer else {}
    norm = {"norm": fields["norm"]} if "norm" in fields else {}
    encoder = make_encoder("transformer" if transformer else "gru", F, layers, **heads, **norm)
    decoder = make_decoder(kind, name, F, layers, **heads, **fields)
    bridge = None if transformer else Bridge(summary, initial=initial)
    source = TextEncoder(Embedding(V, F), encoder, dropout=0.3)
    return EncoderDecoder(source, Embedding(W, F), decoder, nn.Dense(W), bridge, dropout=0.3)


def draw(seed: int, length: int, size: int) -> np.ndarray:
    """Random tokens."""
    return np.random.default_rng(seed).integers(0, size, (B, length)).astype(np.int32)


SOURCE, TOKENS = jnp.asarray(draw(0, S, V)), jnp.asarray(draw(1, T, W))
SOURCE_IDS = jnp.asarray([[1] * 6, [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0]], jnp.int32)
IDS = jnp.asarray([[1] * 5, [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], jnp.int32)
REAL_SOURCE, REAL = np.asarray(SOURCE_IDS) != 0, np.asarray(IDS) != 0


@functools.cache
def model_and_variables(name: str) -> tuple[EncoderDecoder, Any]:
    """A model with random, sharper parameters."""
    model = build(**KINDS[name])
    variables = jitted(model.init)(jax.random.key(1), SOURCE, TOKENS, SOURCE_IDS, IDS)
    return model, jax.tree.map(lambda p: 2 * p, variables)


@functools.cache
def functions(name: str) -> tuple:
    """forward, encode, begin, decode: compiled once."""
    model, variables = model_and_variables(name)
    bound = functools.partial(model.apply, variables)
    encode = jitted(functools.partial(bound, method="encode"))
    begin = jitted(functools.partial(bound, method="initial_carry"), static_argnums=(1, 2))
    return jitted(bound), encode, begin, functools.partial(bound, method="decode")


def close(actual: Any, expected: Any, tolerance: float = 2e-5) -> None:
    """Equal to ``tolerance`` times the largest number (1 at least)."""
    scale = max(1.0, np.abs(np.asarray(expected)).max(initial=0.0))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@EVERY
def test_decoding_by_step_is_the_full_forward(name: str) -> None:
    forward, encode, begin, decode = functions(name)
    whole = forward(SOURCE, TOKENS, SOURCE_IDS, None)
    encoded = encode(SOURCE, SOURCE_IDS)
    carry, made = begin(encoded, (B,), T), []
    step = jitted(decode)
    for t in range(T):
        carry, logits = step(carry, TOKENS[:, t : t + 1], None, encoded)
        made.append(logits)
    close(jnp.concatenate(made, 1), whole)
    assert np.abs(np.asarray(whole)).max() > 0.1


@EVERY
def test_padding_changes_nothing_and_a_batch_is_its_rows(name: str) -> None:
    forward, *_ = functions(name)
    whole = np.asarray(forward(SOURCE, TOKENS, SOURCE_IDS, IDS))
    noise = jnp.where(SOURCE_IDS == 0, -100, SOURCE), jnp.where(IDS == 0, 999, TOKENS)  # outside the vocabularies
    close(np.asarray(forward(*noise, SOURCE_IDS, IDS))[REAL], whole[REAL], 1e-6)
    row, kept, written = 2, REAL_SOURCE[2], REAL[2]
    close(np.asarray(forward(SOURCE[row][kept], TOKENS[row][written], None, None)), whole[row][written])


@A_FEW
def test_the_source_is_read_and_gradients_reach_every_parameter(name: str) -> None:
    model, variables = model_and_variables(name)

    def loss(variables: Any) -> Any:
        logits = model.apply(variables, SOURCE, TOKENS, SOURCE_IDS, IDS)
        return (
            logits
            * jnp.asarray(draw(9, T, 5)[..., None] * REAL[..., None], jnp.float32)
            * jnp.arange(1.0, W + 1.0).reshape(1, 1, -1)
        ).sum()

    gradient = jitted(jax.grad(loss))(variables)
    still = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if np.abs(np.asarray(leaf)).max() < 1e-7
    ]
    # A key's bias adds the same to every score, which softmax does not see.
    assert [path for path in still if not path.endswith("['key']['bias']")] == []
    other = (SOURCE + 1) % V
    forward, *_ = functions(name)
    assert np.abs(forward(SOURCE, TOKENS, SOURCE_IDS, IDS) - forward(other, TOKENS, SOURCE_IDS, IDS)).max() > 1e-3


@pytest.mark.full
@A_FEW
def test_it_decodes_greedily_and_with_beams_over_the_memory(name: str) -> None:
    model, _ = model_and_variables(name)
    _, encode, begin, decode = functions(name)
    encoded = encode(SOURCE, SOURCE_IDS)
    traces = 0

    def counted(*args: Any) -> Any:
        nonlocal traces
        traces += 1
        return decode(*args)

    carry, step = begin(encoded, (B,), 4), decoding.step_of(Partial(counted))
    first = np.zeros(B, np.int32)
    common: dict[str, Any] = {"max_length": 4, "end_token": 0, "memory": encoded}
    greedy = decoding.greedy(step, carry, first, **common)
    one = decoding.beam_search(step, carry, first, BeamOptions(num_beams=1), **common)
    np.testing.assert_array_equal(one.tokens[:, 0], greedy.tokens)
    if KINDS[name]["kind"] == "rnn":
        beams = decoding.beam_search(step, carry, first, BeamOptions(num_beams=3, normalization="gnmt"), **common)
        same = decoding.score(step, carry, first, beams.tokens, beams.lengths, memory=encoded)
        close(same, beams.log_probabilities, 1e-4)
        with pytest.raises(ValueError, match="has no attention"):
            model.last_attention_weights(carry)
        return
    for strength in (0.5, 0.25):
        before = traces
        coverage = decoding.Coverage(model.last_attention_weights, strength, SOURCE_IDS != 0)
        covered = decoding.beam_search(step, carry, first, BeamOptions(num_beams=3, coverage=coverage), **common)
        assert (traces > before) == (strength == 0.5)  # compiled once
    same = decoding.score(step, carry, first, covered.tokens, covered.lengths, memory=encoded)
    close(same, covered.log_probabilities, 1e-4)
    assert np.isfinite(np.asarray(covered.scores)).all() and (covered.scores < covered.log_probabilities).any()


@A_FEW
def test_captured_weights_are_those_the_carry_keeps(name: str) -> None:
    model, variables = model_and_variables(name)
    found = jitted(functools.partial(capture_weights, model))(variables, SOURCE, TOKENS, SOURCE_IDS, IDS)
    reads = [
        path for path in found if path == "decoder" or (path.startswith("decoder") and path.endswith("/attention"))
    ]
    if KINDS[name]["kind"] == "rnn":
        assert not reads
        return
    for path in reads:
        assert found[path].shape[:1] + found[path].shape[2:] == (B, T, S)
        sums = np.asarray(found[path].sum(-1)).swapaxes(1, 2)[REAL]
        close(sums, np.ones_like(sums), 1e-5)
        assert not np.asarray(found[path]).swapaxes(1, 3)[~REAL_SOURCE].any()
    _, encode, begin, decode = functions(name)
    encoded = encode(SOURCE, SOURCE_IDS)
    carry, _ = jitted(decode)(begin(encoded, (B,), T), TOKENS, IDS, encoded)
    mean = np.asarray(found[reads[-1]]).mean(1)
    last = np.array([mean[row, REAL[row].sum() - 1] for row in range(B)])
    close(model.last_attention_weights(carry), last, 1e-5)


@pytest.mark.full
def test_a_step_leaves_its_weights_too() -> None:
    for name in ("transformer", "additive"):
        model, variables = model_and_variables(name)
        run = jitted(functools.partial(alignment, model))
        whole, step = (np.asarray(run(variables, SOURCE, TOKENS[:, :n], SOURCE_IDS)) for n in (2, 1))
        assert step.shape == (B, 1, S)
        close(step, whole[:, :1], 1e-5)
    model = build("rnn", "transformer", initial=False)
    shapes = jax.eval_shape(model.init, jax.random.key(0), SOURCE, TOKENS)
    assert jax.eval_shape(functools.partial(alignment, model), shapes, SOURCE, TOKENS) is None


@pytest.mark.full
def test_dropout_falls_only_with_a_key() -> None:
    model, variables = model_and_variables("additive")
    run = jitted(lambda rngs: model.apply(variables, SOURCE, TOKENS, rngs=rngs))
    first, second = (run({"dropout": jax.random.key(seed)}) for seed in (0, 1))
    assert np.abs(first - second).max() > 1e-3
    close(run({}), functions("additive")[0](SOURCE, TOKENS, None, None), 1e-6)


@pytest.mark.full
def test_any_core_with_a_state_attends_and_any_core_at_all_stands_in_a_block() -> None:
    for name in CORES:
        model = build("transformer", name, attention="dot")
        variables = jax.eval_shape(model.init, jax.random.key(0), SOURCE, TOKENS)
        assert jax.eval_shape(model.apply, variables, SOURCE, TOKENS).shape == (B, T, W)
    for name in ("elman", "gru", "lstm", "layer_norm_lstm", "mgu", "slstm", "mingru", "minlstm", "rglru"):
        model = build("attention", name)
        variables = jax.eval_shape(model.init, jax.random.key(0), SOURCE, TOKENS)
        assert jax.eval_shape(model.apply, variables, SOURCE, TOKENS).shape == (B, T, W)


def test_what_does_not_fit_is_named() -> None:
    def shapes(model: EncoderDecoder) -> Any:
        return jax.eval_shape(model.init, jax.random.key(0), SOURCE, TOKENS)

    with pytest.raises(ValueError, match="no hidden state h; DecoderBlock works with any core"):
        shapes(build("attention", "conv", initial=False))
    with pytest.raises(ValueError, match=r"no state h that a summary can set: use Bridge\(initial=False\)"):
        shapes(build("rnn", "conv"))
    text = TextEncoder(Embedding(V, F), make_encoder("gru", F))
    with pytest.raises(ValueError, match="give the model a Bridge"):
        shapes(EncoderDecoder(text, Embedding(W, F), make_decoder("rnn", "gru", F), nn.Dense(W)))
    with pytest.raises(ValueError, match="the decoder has no access to the source"):
        shapes(build("rnn", "gru", fusion=None, initial=False))
    with pytest.raises(ValueError, match="summary='middle'; known: last, first_and_last, mean"):
        shapes(build("rnn", "gru", summary="middle"))
    with pytest.raises(ValueError, match="one width: the decoder puts out 8, the embedding has 6"):
        shapes(EncoderDecoder(text, Embedding(W, 6), make_decoder("rnn", "gru", F), bridge=Bridge()))
    assert set(ATTENTIONS) == {"additive", "dot", "scaled_dot", "general", "multi_head"}


def test_one_embedding_is_source_target_and_head(key: jax.Array) -> None:
    shared = Embedding(V, F, scale=F**0.5)
    heads: dict[str, Any] = {"num_heads": 2, "feed_forward": 12}
    encoder, decoder = make_encoder("transformer", F, **heads), make_decoder("transformer", "transformer", F, **heads)
    model = EncoderDecoder(TextEncoder(shared, encoder), shared, decoder)
    variables = jitted(model.init)(key, SOURCE, TOKENS)
    tables = [path for path, _ in jax.tree.leaves_with_path(variables) if "table" in jax.tree_util.keystr(path)]
    assert [jax.tree_util.keystr(path) for path in tables] == ["['params']['encoder']['embedding']['table']"]

    encoder_params = variables["params"]["encoder"]

    def loss(table: Any, source: Any) -> Any:
        params = variables["params"] | {"encoder": encoder_params | {"embedding": {"table": table}}}
        return model.apply({"params": params}, source, TOKENS)[..., : F - 1].sum()

    gradient = jitted(jax.grad(loss))
    table = encoder_params["embedding"]["table"]
    absent, present = (np.asarray(gradient(table, jnp.full_like(SOURCE, token))) for token in (0, V - 1))
    assert np.abs(absent[V - 1] - present[V - 1]).max() > 1e-4  # the source reads the same table


class PatchEncoder(nn.Module):
    """An image encoder, as a user writes one: every pixel of ``[*B Y X C]`` is a position of the memory."""

    features: int

    @nn.compact
    def __call__(self, images: Any, segment_ids: Any = None) -> Any:
        pixels = images.reshape(*images.shape[:-3], images.shape[-3] * images.shape[-2], images.shape[-1])
        return jnp.tanh(nn.Dense(self.features)(pixels))


@pytest.mark.full
@pytest.mark.parametrize("kind", ["rnn", "attention"])
def test_an_image_encoder_takes_the_place_of_the_text_encoder(kind: Any) -> None:
    images = jnp.asarray(np.random.default_rng(0).normal(size=(B, 2, 4, 3)), jnp.float32)
    decoder, bridge = make_decoder(kind, "gru", F), Bridge("mean")
    model = EncoderDecoder(PatchEncoder(F), Embedding(W, F), decoder, nn.Dense(W), bridge)
    variables = jitted(model.init)(jax.random.key(0), images, TOKENS)

    def loss(variables: Any) -> Any:
        logits = model.apply(variables, images, TOKENS[:, :-1])
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), TOKENS[:, 1:, None], -1).mean()

    value = jitted(jax.value_and_grad(loss))
    before, gradient = value(variables)
    after, _ = value(jax.tree.map(lambda p, g: p - 0.1 * g, variables, gradient))
    assert after < before and np.abs(gradient["params"]["encoder"]["Dense_0"]["kernel"]).max() > 1e-5
    run = functools.partial(model.apply, variables)
    encoded = jitted(functools.partial(run, method="encode"))(images)
    carry = run(encoded, (B,), 4, method="initial_carry")
    step = decoding.step_of(Partial(functools.partial(run, method="decode")))
    made = decoding.greedy(step, carry, np.zeros(B, np.int32), max_length=4, memory=encoded)
    written = jnp.concatenate([jnp.zeros((B, 1), jnp.int32), made.tokens[:, :-1]], 1)
    np.testing.assert_array_equal(jitted(run)(images, written).argmax(-1), made.tokens)


@pytest.mark.parametrize("summary", SUMMARIES)
def test_a_summary_is_its_definition(summary: str, key: jax.Array) -> None:
    ys = np.random.default_rng(3).normal(size=(B, S, F)).astype(np.float32)
    dirty = np.where(REAL_SOURCE[..., None], ys, np.nan)
    found = Bridge(summary).apply({}, jnp.asarray(dirty), SOURCE_IDS)
    for row in range(B):
        real = ys[row][REAL_SOURCE[row]]
        wants = {"last": real[-1], "first_and_last": np.concatenate([real[0], real[-1]])}
        wants |= {"mean": real.mean(0), "max": real.max(0)}
        close(np.asarray(found[row]), wants[summary], 1e-6)
    nothing = Bridge(summary).apply({}, jnp.asarray(ys), jnp.zeros((B, S), jnp.int32))
    assert not np.asarray(nothing).any()
