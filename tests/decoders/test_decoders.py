"""Every decoder obeys the contract of cores with its memory as a constant (``jaxseq.testing``); its states."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from comparison import close
from compilation import jitted

from jaxseq.cores import GRU, LSTM, Attention, Conv, Stacked, StateCarry, block
from jaxseq.decoders import Bridge, Decoder, DecoderBlock, DecoderStack, RecurrentDecoder, make_decoder
from jaxseq.decoders.bridge import SUMMARIES
from jaxseq.layers import DotAttention
from jaxseq.testing import laws
from jaxseq.testing.contract import decoder_as_core
from jaxseq.testing.subject import IDS, WIDTH, Subject

F = WIDTH


def decoder(kind: Any, name: str, *, layers: int = 1, **fields: Any) -> Callable[..., Decoder]:
    """Made at any precision."""
    return lambda **types: make_decoder(kind, name, F, layers, **fields, **types)


CASES: dict[str, Callable[..., Decoder]] = {
    "rnn": decoder("rnn", "gru", fusion="multiply"),
    "additive": decoder("attention", "lstm"),
    "general": decoder("attention", "elman", attention="general", fusion="add", layers=2),
    "transformer": decoder(
        "transformer", "transformer", attention="multi_head", num_heads=2, feed_forward=12, layers=2
    ),
    "post-norm hybrid": decoder("transformer", "mingru", attention="additive", feed_forward=12, norm="post"),
}
FULL = pytest.mark.full
EVERY = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=FULL if name in ("general", "transformer") else ()) for name in CASES]
)


@functools.cache
def subject(name: str, dtype: str = "float64", param_dtype: str = "float64") -> Subject:
    """One subject, so that all laws share its compilations."""
    return Subject(decoder_as_core(CASES[name]), dtype, param_dtype)


@EVERY
def test_split_is_whole(name: str) -> None:
    laws.check_splitting(subject(name), IDS, 1e-12, 1e-10)


@EVERY
def test_padding_changes_nothing(name: str) -> None:
    laws.check_padding_is_ignored(subject(name))
    laws.check_padding_in_between(subject(name), 1e-12)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=FULL if n in ("general", "transformer") else ()) for n in CASES if n != "rnn"]
)
def test_nan_in_the_memory_at_padding_changes_nothing(name: str) -> None:
    own, encoded = subject(name).carry()
    cotangents = subject(name).cotangents((own, encoded))
    dirty = encoded.copy()
    dirty[:, 2] = np.nan  # the padded position of the source
    clean, found = (subject(name)((own, e), subject(name).xs(1), IDS, *cotangents) for e in (encoded, dirty))
    after = np.where(np.isnan(found.carry[1]), clean.carry[1], found.carry[1])
    close(found._replace(carry=(found.carry[0], after)), clean, 0)


@FULL
@pytest.mark.parametrize("summary", SUMMARIES)
def test_a_summary_ignores_padding_and_is_zero_without_real_positions(summary: str) -> None:
    bridge, ids = Bridge(summary), jnp.asarray([[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1]], jnp.int32)
    ys = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)), jnp.float32)
    run = jax.jit(jax.value_and_grad(lambda ys: ((s := bridge.apply({}, ys, ids)) ** 2).sum() + 0 * s.sum()))
    padded = (ids == 0)[..., None]
    close(run(jnp.where(padded, jnp.nan, ys)), run(jnp.where(padded, 0, ys)), 0)
    first, last, mean = ys[2, 0], ys[2, 3], (ys[2, 0] + ys[2, 1] + ys[2, 3]) / 3
    highest = jnp.maximum(jnp.maximum(ys[2, 0], ys[2, 1]), ys[2, 3])
    wants = {"last": last, "first_and_last": jnp.concatenate([first, last]), "mean": mean, "max": highest}
    want = wants[summary]
    found = bridge.apply({}, ys, ids)
    close(found[1:], jnp.stack([jnp.zeros_like(want), want]), 1e-6)
    close(bridge.apply({}, ys[:, :0], ids[:, :0]), jnp.zeros_like(found), 0)
    assert bridge.apply({}, ys[:0]).shape == (0, found.shape[-1])


@FULL
def test_a_mean_in_float16_exceeds_no_range() -> None:
    ys = jnp.full((1, 70_000, 1), 2, jnp.float16)
    assert Bridge("mean").apply({}, ys).item() == 2


@FULL
@EVERY
def test_empty_batches_inputs_and_memories_give_empty_or_zero_results(name: str) -> None:
    module: Any = CASES[name](dtype=jnp.float32, param_dtype=jnp.float32)
    bridge = Bridge("mean")

    def decode(encoded: Any, ids: Any, xs: Any) -> Any:
        summary = bridge.apply({}, encoded, ids)

        def run(module: Any) -> Any:
            memory = module.prepare_memory(encoded, ids, summary)
            return module(
                module.initial_carry(memory, xs.shape[:-2], 4), xs, jnp.ones(xs.shape[:-1], jnp.int32), memory
            )

        return run

    def inputs(rows: int, steps: int, length: int) -> tuple:
        return jnp.ones((rows, length, 6)), jnp.ones((rows, length), jnp.int32), jnp.ones((rows, steps, F))

    shapes = jax.eval_shape(lambda *args: module.init(jax.random.key(0), method=decode(*args)), *inputs(1, 2, 3))
    params = jax.tree.map(lambda p: jnp.full(p.shape, 0.1, p.dtype), shapes)

    def loss(params: Any, encoded: Any, ids: Any, xs: Any) -> Any:
        carry, ys = module.apply(params, method=decode(encoded, ids, xs))
        return ys.sum(), (carry, ys)

    gradient = jax.grad(loss, (0, 1, 3), has_aux=True)
    for rows, steps in ((0, 3), (2, 0)):
        d_inputs, (_, ys) = jax.eval_shape(gradient, params, *inputs(rows, steps, 4))
        assert ys.shape == (rows, steps, F) and d_inputs[1].shape == (rows, 4, 6)
    by_row = jax.vmap(gradient, (None, 0, 0, 0))
    assert jax.eval_shape(by_row, params, *inputs(0, 3, 4))[1][1].shape == (0, 3, F)
    found = jitted(gradient)(params, *inputs(2, 3, 0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@FULL
@EVERY
def test_vmap_and_two_batch_dims_give_the_batch(name: str) -> None:
    laws.check_vmap(subject(name), 1e-12)
    laws.check_two_batch_dims(subject(name), 1e-12)


@EVERY
def test_documents_in_one_row_are_those_documents_alone(name: str) -> None:
    laws.check_documents(subject(name), 1e-12)


@EVERY
def test_nothing_depends_on_the_future_or_on_another_document(name: str) -> None:
    laws.check_causality(subject(name))


@FULL
@EVERY
def test_bfloat16_stays_near(name: str) -> None:
    laws.check_low_precision(subject(name, "bfloat16", "float32"), subject(name), 0.05, 0.1)


@FULL
@EVERY
def test_an_empty_input_changes_nothing(name: str) -> None:
    laws.check_empty_input(subject(name, "float32", "float32"))


@EVERY
def test_initial_carry_leads_with_the_batch_dims(name: str) -> None:
    laws.check_initial_carry(subject(name))


def doubled(part: StateCarry) -> StateCarry:
    """A state with twice its numbers."""
    return part._replace(state=jax.tree.map(lambda leaf: 2 * leaf, part.state))


@EVERY
def test_states_are_mapped_in_order_and_nothing_else(name: str) -> None:
    module: Decoder = subject(name).core.decoder
    carry = subject(name).carry()[0]
    seen: list[StateCarry] = []
    close(module.map_states(lambda part: seen.append(part) or part, carry), carry, 0)
    states = [type(part.state).__name__ for part in seen]
    assert states == {
        "rnn": ["Hidden"],
        "additive": ["LSTMState"],
        "general": ["Hidden", "Hidden"],
        "transformer": ["PositionCount"],
        "post-norm hybrid": ["Hidden"],
    }.get(name, states)
    twice = module.map_states(doubled, carry)
    changed = {
        jax.tree_util.keystr(path)
        for (path, leaf), old in zip(jax.tree.leaves_with_path(twice), jax.tree.leaves(carry), strict=True)
        if not np.array_equal(leaf, old)
    }
    assert changed == {
        jax.tree_util.keystr(path)
        for path, _ in jax.tree.leaves_with_path(carry)
        if ".state" in jax.tree_util.keystr(path)
    }


@EVERY
def test_the_last_weights_are_in_the_carry_of_the_last_decoder_and_padding_keeps_them(name: str) -> None:
    module: Decoder = subject(name).core.decoder
    before = subject(name).carry()
    with subject(name).precision():
        if name == "rnn":
            with pytest.raises(ValueError, match="RecurrentDecoder has no attention"):
                module.last_attention_weights(before[0])
            return
        xs, ids = subject(name).xs(4), np.ones(IDS.shape, np.int32)
        same, other = (jax.tree.map(jnp.asarray, subject(name)(before, xs, ids * real).carry[0]) for real in (0, 1))
        kept, new = module.last_attention_weights(same), module.last_attention_weights(other)
    assert new is (other[-1] if isinstance(module, DecoderStack) else other).weights
    close(np.asarray(new).sum(-1), np.ones(len(IDS)), 1e-12)
    close(kept, (before[0][-1] if isinstance(module, DecoderStack) else before[0]).weights, 0)
    assert np.abs(np.asarray(new) - np.asarray(kept)).max() > 1e-3


def test_the_hidden_state_of_a_stack_is_the_last_that_there_is() -> None:
    stack = Stacked((LSTM(F), block(GRU(F)), block(Attention(F, num_heads=2), feed_forward=12)))
    carry = stack.initial_carry((3,), 4)
    carry = stack.map_states(lambda part: jax.tree.map(lambda leaf: leaf + 1, part), carry)
    assert stack.hidden(carry) is carry[1].state.h
    with pytest.raises(ValueError, match="Conv has no hidden state h; DecoderBlock works with any core"):
        Conv(F).hidden(Conv(F).initial_carry((3,)))


def test_a_bridge_sets_every_state_by_its_equation(key: jax.Array) -> None:
    attention = DotAttention(F)
    cores = DecoderBlock(LSTM(F), attention), DecoderBlock(Conv(F), attention), RecurrentDecoder(GRU(F))
    stack = DecoderStack(cores)
    summary = jax.random.normal(key, (2, 5))
    encoded = jax.random.normal(key, (2, 3, F))
    memory = tuple(None if part is cores[2] else attention.apply({}, encoded, method="project") for part in cores)
    carry = stack.initial_carry(memory, (2,))
    bridge = Bridge()
    found, variables = bridge.init_with_output(key, stack, carry, summary, method="initialize")
    params = variables["params"]
    assert set(params) == {"h_0", "c_0", "h_1"}
    lines = {name: summary @ dense["kernel"] + dense["bias"][None] for name, dense in params.items()}
    state = found[1].core.state
    close((state.h, state.c, found[3].state.h), (np.tanh(lines["h_0"]), lines["c_0"], np.tanh(lines["h_1"])), 1e-6)
    close(found[2], carry[2], 0)
    assert Bridge(initial=False).apply({}, stack, carry, summary, method="initialize") is carry


@pytest.fixture
def our_own_errors() -> Any:
    """Leaves annotations unchecked: a wrong name reaches our own check."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_what_does_not_fit_is_named(our_own_errors: None) -> None:
    make: Any = make_decoder
    with pytest.raises(ValueError, match=r"kind='cnn'; known: rnn, attention, transformer"):
        make("cnn", "gru", F)
    with pytest.raises(ValueError, match="attention='soft'; known: additive, dot"):
        make("attention", "gru", F, attention="soft")
    with pytest.raises(ValueError, match="fusion=None; kind='attention' needs one: add, multiply, concat"):
        make("attention", "gru", F, fusion=None)
    with pytest.raises(ValueError, match="unknown core 'gruu'"):
        make("rnn", "gruu", F)


def call(decoder: Decoder, carry: Any, xs: Any, ids: Any, memory: Any) -> Any:
    """The shapes of a call."""
    return jax.eval_shape(lambda: decoder.init_with_output(jax.random.key(0), carry, xs, ids, memory)[0])


def test_errors_name_arguments_of_another_shape_or_dtype(our_own_errors: None) -> None:
    """Ids, carries and memories of 1 row for 8, of another dtype, or of another decoder."""
    xs, ids, encoded = jnp.ones((8, 3, F)), jnp.ones((8, 3), jnp.int32), jnp.ones((8, 5, 6))
    types: dict[str, Any] = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    for name, attends in (("additive", "AdditiveAttention"), ("transformer", "MultiHeadAttention")):
        module: Any = CASES[name](**types)
        kind = type(module).__name__

        def prepare(encoded: Any, ids: Any, module: Any = module) -> Any:
            arguments = jax.random.key(0), encoded, ids, None
            make = module.init_with_output
            shapes = jax.eval_shape(lambda: make(*arguments, method=module.prepare_memory)[0])
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        memory, one, short = prepare(encoded, None), prepare(encoded[:1], None), prepare(encoded[:, :4], None)
        carry, single = module.initial_carry(memory, (8,)), module.initial_carry(one, (1,))
        assert call(module, carry, xs, ids, memory)[1].shape == xs.shape
        wrong: list[tuple] = [
            (
                rf"{kind} needs integer segment_ids of shape .* = \(8, 3\) .* not float32",
                carry,
                xs,
                ids.astype(jnp.float32),
                memory,
            ),
            (rf"{kind} needs integer segment_ids .* not int32\(8, 2\)", carry, xs, ids[:, :2], memory),
            (rf"{kind} needs floating-point inputs .* not int32\(8, 3\)", carry, ids, ids, memory),
            (
                rf"{kind} needs a carry .* \(8,\) .*; leaf .* has shape \(1,",
                single,
                xs,
                ids,
                memory,
            ),
            (rf"{kind} needs a memory .* \(8,\) .*; leaf .*keys has shape \(1,", carry, xs, ids, one),
            (r"carry whose leaf \['weights'\] is float32\(8, 5\), not float32\(8, 4\)", carry, xs, ids, short),
            (r" needs a (memory|carry) ", carry[:1], xs, ids, memory[:1]),
        ]
        for message, *arguments in wrong:
            with pytest.raises(ValueError, match=message):
                call(module, *arguments)
        for bad, found in ((jnp.ones((8, 5)), r"float32\(8, 5\)"), (jnp.ones((1, 5), jnp.int32), r"int32\(1, 5\)")):
            with pytest.raises(ValueError, match=rf"{attends}, for a memory, needs integer segment_ids .* not {found}"):
                prepare(encoded, bad)
        with pytest.raises(ValueError, match=r"needs a memory of batch dimensions \(8,\), not \(1,\)"):
            module.initial_carry(one, (8,))


def test_errors_name_a_summary_of_other_rows(our_own_errors: None) -> None:
    module: Any = make_decoder("rnn", "gru", F, fusion="add")
    xs, carry = jnp.ones((8, 3, F)), module.initial_carry(None, (8,))
    for summary, found in ((jnp.ones((8, 5, 6)), r"float32\(8, 5, 6\)"), (None, "None")):
        with pytest.raises(ValueError, match=rf"RecurrentDecoder needs a summary .* \(8,\), not {found}"):
            call(module, carry, xs, None, summary)
    with pytest.raises(ValueError, match=r"RecurrentDecoder needs a summary .* \(8,\), not float32\(1, 6\)"):
        module.prepare_memory(jnp.ones((8, 5, 6)), None, jnp.ones((1, 6)))
    arguments = jax.random.key(0), module, carry, jnp.ones((1, 6))
    with pytest.raises(ValueError, match=r"Bridge needs a summary .* \(8,\) as in the carry, not \(1, 6\)"):
        jax.eval_shape(lambda: Bridge().init(*arguments, method="initialize"))
    with pytest.raises(ValueError, match=r"Bridge needs integer segment_ids .* not float32\(8, 2\)"):
        Bridge().apply({}, xs, jnp.ones((8, 2)))
