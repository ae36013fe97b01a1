"""Greedy decoding, sampling and streaming: against plain loops, over any carry, row by row."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxseq.decoding import (
    NoRepeatedNgrams,
    Prefix,
    SamplingOptions,
    filter_logits,
    greedy,
    prefill,
    sample,
    score,
    speculative_sample,
    step_of,
    stream,
)
from jaxseq.ops.keys import threefry_keys

V, B, L, END = 7, 5, 12, 3


class Memory(NamedTuple):
    hidden: jax.Array
    count: jax.Array


CARRIES = {
    "array": (lambda h, n: h, lambda c: (c, 0)),
    "tuple": (lambda h, n: (h, n), lambda c: c),
    "named": (lambda h, n: Memory(h, n), lambda c: (c.hidden, c.count)),
    "dict": (lambda h, n: {"h": [h], "n": n}, lambda c: (c["h"][0], c["n"])),
}


def recurrent(params, carry, tokens):
    """A small recurrent model without matrix products, so that a row alone is exactly the same."""
    hidden = jnp.tanh(0.5 * carry["h"] + params["in"][tokens])
    logits = 3.0 * jnp.sum(hidden[..., None] * params["out"].reshape((1,) * tokens.ndim + (4, V)), axis=-2)
    return {"h": hidden, "n": carry["n"] + 1}, logits


def start(batch_shape=(B,), dtype=jnp.float32):
    return {"h": jnp.zeros((*batch_shape, 4), dtype), "n": jnp.zeros(batch_shape, jnp.int32)}


def params_of(seed: int, dtype=jnp.float32):
    a, b = jax.random.split(jax.random.key(seed))
    return {"in": jax.random.normal(a, (V, 4), dtype), "out": jax.random.normal(b, (4, V), dtype)}


PARAMS = params_of(0)
STEP = jax.tree_util.Partial(recurrent, PARAMS)
FIRST = jnp.arange(B, dtype=jnp.int32)
step_jit = jax.jit(recurrent)


def single(carry, tokens):
    """The same for one row without batch dimensions."""
    carry, logits = recurrent(PARAMS, jax.tree.map(lambda x: x[None], carry), tokens[None])
    return jax.tree.map(lambda x: x[0], (carry, logits))


def loop(choose, *, max_length=L, end_token=END, first=FIRST):
    """Decoding as one would write it by hand; choose(logits [B V], position) -> tokens."""
    carry, tokens = start(), first
    rows = [[] for _ in range(B)]
    totals, done = np.zeros(B), np.zeros(B, bool)
    for position in range(max_length):
        carry, logits = step_jit(PARAMS, carry, tokens)
        scores = np.asarray(jax.nn.log_softmax(logits))
        chosen = np.asarray(choose(logits, position)).copy()
        for row in range(B):
            if done[row]:
                chosen[row] = end_token
                continue
            rows[row].append(int(chosen[row]))
            totals[row] += scores[row, chosen[row]]
            done[row] = end_token is not None and chosen[row] == end_token
        tokens = jnp.asarray(chosen, jnp.int32)
    fill = 0 if end_token is None else end_token
    padded = [row + [fill] * (max_length - len(row)) for row in rows]
    return np.array(padded), np.array([len(row) for row in rows]), totals


def same(generation, expected):
    tokens, lengths, totals = expected
    assert np.array_equal(generation.tokens, tokens)
    assert np.array_equal(generation.lengths, lengths)
    np.testing.assert_allclose(generation.log_probabilities, totals, rtol=1e-5)


@pytest.mark.parametrize("end_token", [END, None])
def test_greedy_is_the_plain_loop(end_token):
    expected = loop(lambda logits, _: jnp.argmax(logits, axis=-1), end_token=end_token)
    generation = greedy(STEP, start(), FIRST, max_length=L, end_token=end_token)
    same(generation, expected)
    assert generation.tokens.dtype == FIRST.dtype
    if end_token is None:
        assert generation.lengths.tolist() == [L] * B


def test_sampling_is_the_plain_loop(key):
    options = SamplingOptions(temperature=1.3, top_k=5, top_p=0.9)

    @jax.jit
    def choose_row(logits, row, position):
        few, ids = jax.lax.top_k(filter_logits(logits, options), options.top_k)
        return ids[jax.random.categorical(jax.random.fold_in(jax.random.fold_in(key, row), position), few)]

    def choose(logits, position):
        return [int(choose_row(logits[row], row, position)) for row in range(B)]

    generation = sample(STEP, start(), FIRST, options, key=key, max_length=L, end_token=END)
    same(generation, loop(choose))
    assert len(set(generation.lengths.tolist())) > 1  # rows end at different times


def test_behind_the_end_stand_end_tokens_only_and_count_for_nothing(key):
    made = sample(STEP, start(), FIRST, SamplingOptions(2.0), key=key, max_length=L, end_token=END)
    for tokens, length in zip(made.tokens.tolist(), made.lengths.tolist(), strict=True):
        assert END not in tokens[: length - 1]
        assert set(tokens[length:]) <= {END}
        assert length == L or tokens[length - 1] == END
    assert int(made.lengths.min()) < L


def test_log_probabilities_are_those_of_scoring_what_was_returned(key, x64):
    params = params_of(1, jnp.float64)
    step = jax.tree_util.Partial(recurrent, params)
    options = SamplingOptions(top_k=4)
    made = sample(step, start(dtype=jnp.float64), FIRST, options, key=key, max_length=L, end_token=END)
    assert made.log_probabilities.dtype == jnp.float64
    carry, tokens, total = start(dtype=jnp.float64), FIRST, np.zeros(B)
    for position in range(L):
        carry, logits = step_jit(params, carry, tokens)
        tokens = made.tokens[:, position]
        scores = np.asarray(jax.nn.log_softmax(logits))[np.arange(B), np.asarray(tokens)]
        total += np.where(position < np.asarray(made.lengths), scores, 0)
    np.testing.assert_allclose(made.log_probabilities, total, rtol=1e-12)


def test_a_step_in_half_precision_is_scored_in_float32(key):
    def step(carry, tokens):
        return carry, jnp.zeros((*tokens.shape, V), jnp.bfloat16)

    made = sample(step, (), FIRST, key=key, max_length=3)
    assert made.log_probabilities.dtype == jnp.float32
    np.testing.assert_allclose(made.log_probabilities, -3 * np.log(V), rtol=1e-6)


def test_a_batch_gives_what_each_row_gives_alone(key):
    options = SamplingOptions(temperature=1.5, top_p=0.95)
    batch = sample(STEP, start(), FIRST, options, key=key, max_length=L, end_token=END)
    for row in range(B):
        its_key = jax.random.fold_in(key, row)
        alone = sample(single, start(()), FIRST[row], options, key=its_key, max_length=L, end_token=END)
        assert alone.tokens.shape == (L,)
        assert np.array_equal(alone.tokens, batch.tokens[row])
        assert alone.lengths == batch.lengths[row]
        np.testing.assert_allclose(alone.log_probabilities, batch.log_probabilities[row], rtol=1e-5)


def test_a_key_for_each_row_is_used_as_it_is(key):
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(B))
    one = sample(STEP, start(), FIRST, key=key, max_length=L)
    each = sample(STEP, start(), FIRST, key=keys, max_length=L)
    assert np.array_equal(one.tokens, each.tokens)
    turned = sample(STEP, start(), FIRST[::-1], key=keys[::-1], max_length=L)
    assert np.array_equal(turned.tokens[::-1], one.tokens)


def test_any_leading_dimensions_are_rows(key):
    first = jnp.arange(6, dtype=jnp.int32)
    flat = sample(STEP, start((6,)), first, key=key, max_length=L, end_token=END)
    grid = sample(STEP, start((2, 3)), first.reshape(2, 3), key=key, max_length=L, end_token=END)
    for a, b in zip(jax.tree.leaves(flat), jax.tree.leaves(grid), strict=True):
        np.testing.assert_allclose(a, b.reshape(a.shape), rtol=1e-5)
    best = greedy(STEP, start((2, 3)), first.reshape(2, 3), max_length=4)
    assert best.tokens.shape == (2, 3, 4)


def test_a_longer_generation_goes_on_where_a_shorter_one_ended(key):
    short = sample(STEP, start(), FIRST, key=key, max_length=5)
    long = sample(STEP, start(), FIRST, key=key, max_length=L)
    assert np.array_equal(short.tokens, long.tokens[:, :5])


@pytest.mark.parametrize("name", ["rbg", pytest.param("unsafe_rbg", marks=pytest.mark.full)])
def test_rows_draw_by_their_own_keys_of_any_implementation(name):
    """Under ``vmap`` all rbg keys draw as the first one does, so that every row would depend on the first key."""
    key = jax.random.key(0, impl=name)
    keys = jax.random.split(key, B)
    flat = jax.tree_util.Partial(lambda carry, tokens: (carry, jnp.zeros((*tokens.shape, V))))
    draw = functools.partial(sample, flat, (), max_length=L)
    made = draw(FIRST, key=keys)
    other = draw(FIRST, key=jax.random.split(jax.random.key(1, impl=name), B).at[0].set(keys[0]))
    assert np.array_equal(made.tokens[0], other.tokens[0])
    assert not any(np.array_equal(a, b) for a, b in zip(made.tokens[1:], other.tokens[1:], strict=True))
    assert np.array_equal(made.tokens[::-1], draw(FIRST, key=keys[::-1]).tokens)
    folded = draw(FIRST, key=jnp.stack([jax.random.fold_in(key, i) for i in range(B)]))
    assert np.array_equal(draw(FIRST, key=key).tokens, folded.tokens)
    several = draw(FIRST[:1], key=keys[:1], num_samples=B)
    row_key = threefry_keys(keys[:1])[0]
    each = draw(FIRST, key=jnp.stack([jax.random.fold_in(row_key, i) for i in range(B)]))
    assert np.array_equal(several.tokens[0], each.tokens)


@pytest.mark.parametrize("kind", list(CARRIES))
def test_any_carry_will_do(kind):
    make, take = CARRIES[kind]

    def step(carry, tokens):
        hidden, count = take(carry)
        after, logits = recurrent(PARAMS, {"h": hidden, "n": jnp.zeros(B, jnp.int32) + count}, tokens)
        return make(after["h"], after["n"]), logits

    carry = start()
    made = greedy(step, make(carry["h"], carry["n"]), FIRST, max_length=6)
    assert np.array_equal(made.tokens, greedy(STEP, carry, FIRST, max_length=6).tokens)


def test_the_loop_stops_when_every_row_has_ended():
    calls: list[int] = []

    def step(carry, tokens):
        jax.debug.callback(lambda: calls.append(1))
        count = carry + 1
        ends = count >= jnp.arange(2, 2 + B)
        return count, jnp.where(ends[:, None] == (jnp.arange(V) == END)[None], 5.0, 0.0)

    made = greedy(step, jnp.zeros(B, jnp.int32), FIRST, max_length=500, end_token=END)
    jax.effects_barrier()
    assert made.lengths.tolist() == list(range(2, 2 + B))
    assert len(calls) == 1 + B
    assert made.tokens.shape == (B, 500)


def test_new_parameters_and_temperatures_need_no_new_compilation(key):
    traces: list[int] = []

    def step(params, carry, tokens):
        traces.append(1)
        return recurrent(params, carry, tokens)

    def both(seed, temperature, top_p):
        bound = jax.tree_util.Partial(step, params_of(seed))
        a = greedy(bound, start(), FIRST, max_length=4)
        options = SamplingOptions(temperature, top_k=3, top_p=top_p)
        b = sample(bound, start(), FIRST, options, key=key, max_length=4)
        return a.tokens, b.tokens

    first = both(0, 0.8, 0.9)
    before = len(traces)
    assert before > 0
    second = both(1, 1.7, 0.5)
    assert len(traces) == before
    assert not all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "options", [SamplingOptions(0.5, top_k=3), pytest.param(SamplingOptions(), marks=pytest.mark.full)]
)
def test_sampled_frequencies_are_those_of_a_known_markov_chain(options):
    table = jax.random.dirichlet(jax.random.key(5), jnp.ones(4), (4,))
    rows, length = 400, 25

    def step(carry, tokens):
        return carry, jnp.log(table)[tokens]

    first = jnp.zeros(rows, jnp.int32)
    law = np.asarray(jax.nn.softmax(filter_logits(jnp.log(table), options)), np.float64)
    made = sample(step, (), first, options, key=jax.random.key(1), max_length=length)
    chain = np.concatenate([np.zeros((rows, 1), int), np.asarray(made.tokens)], axis=1)
    counts = np.zeros((4, 4))
    np.add.at(counts, (chain[:, :-1].ravel(), chain[:, 1:].ravel()), 1)
    for seen, probabilities in zip(counts, law, strict=True):
        possible = probabilities > 0
        assert seen[~possible].sum() == 0
        expected = seen.sum() * probabilities[possible] / probabilities[possible].sum()
        assert scipy.stats.chisquare(seen[possible], expected).pvalue > 1e-3


def test_a_low_temperature_is_greedy(key):
    cold = sample(STEP, start(), FIRST, SamplingOptions(1e-4), key=key, max_length=L)
    assert np.array_equal(cold.tokens, greedy(STEP, start(), FIRST, max_length=L).tokens)
    one = sample(STEP, start(), FIRST, SamplingOptions(top_k=1), key=key, max_length=L)
    assert np.array_equal(cold.tokens, one.tokens)


@pytest.mark.parametrize("block_length", [1, 5, 64])
@pytest.mark.parametrize("sampled", [True, False])
def test_a_stream_gives_the_tokens_of_the_whole(key, block_length, sampled):
    extra = {"key": key, "options": SamplingOptions(temperature=1.4, top_p=0.9)} if sampled else {}
    whole = (sample if sampled else greedy)(STEP, start(), FIRST, max_length=L, end_token=END, **extra)
    pieces = list(stream(STEP, start(), FIRST, max_length=L, end_token=END, block_length=block_length, **extra))
    assert len(pieces) == int(whole.lengths.max())
    assert np.array_equal(np.stack(pieces, axis=-1), whole.tokens[:, : len(pieces)])


def test_a_stream_of_one_row_gives_single_tokens(key):
    made = list(stream(single, start(()), FIRST[2], max_length=6, key=key))
    assert [piece.shape for piece in made] == [()] * 6
    assert made == sample(single, start(()), FIRST[2], max_length=6, key=key).tokens.tolist()


@pytest.mark.full
def test_a_row_ends_at_the_first_of_several_end_tokens(key):
    ends = np.array([END, 0])
    for end_token in (ends, tuple(ends.tolist()), jnp.asarray(ends)):
        made = sample(STEP, start(), FIRST, SamplingOptions(3.0), key=key, max_length=L, end_token=end_token)
        whole = sample(STEP, start(), FIRST, SamplingOptions(3.0), key=key, max_length=L)
        for row, tokens in zip(whole.tokens.tolist(), made.tokens.tolist(), strict=True):
            length = min([i + 1 for i, token in enumerate(row) if token in ends] + [L])
            assert tokens == row[:length] + [END] * (L - length)
    one = greedy(STEP, start(), FIRST, max_length=jnp.int32(L), end_token=jnp.int32(END))
    assert np.array_equal(one.tokens, greedy(STEP, start(), FIRST, max_length=L, end_token=END).tokens)


@pytest.mark.full
def test_a_batch_without_rows_gives_results_without_rows(key):
    none = start((0,)), FIRST[:0]
    forward = jax.tree_util.Partial(lambda carry, tokens, ids: (carry, jnp.zeros((*tokens.shape, V))))
    step, rules = step_of(forward), [Prefix([1]), NoRepeatedNgrams(2)]
    common = {"max_length": 4, "end_token": END, "constraints": rules}
    made = [
        greedy(step, *none, **common),
        sample(step, *none, SamplingOptions(0.5, top_p=0.9), key=key, **common),
        sample(step, *none, key=jax.random.key(0, impl="rbg"), num_samples=2, **common),
        speculative_sample(forward, forward, none[0], *none, key=key, **common),
    ]
    assert [x.tokens.shape for x in made] == [(0, 4), (0, 4), (0, 2, 4), (0, 4)]
    assert list(stream(step, *none, **common)) == []
    carry, first = prefill(forward, none[0], np.zeros((0, 3), np.int32), np.zeros(0, np.int32), max_length=2)
    assert first.shape == (0,) and carry["h"].shape == (0, 4)
    assert score(step, *none, np.zeros((0, 3), np.int32)).shape == (0,)
    assert score(step, start(), FIRST, np.zeros((B, 0), np.int32)).tolist() == [0.0] * B


def test_a_carry_or_memory_of_other_rows_is_named(key):
    forward = jax.tree_util.Partial(lambda carry, tokens, ids, memory: (carry, jnp.zeros((*tokens.shape, V))))
    step, common = step_of(forward), {"max_length": 4}
    tokens = np.zeros((B, 2), np.int32)
    good = {"carry": start(), "memory": {"x": jnp.zeros((B, 2))}}
    for bad, message in [
        ({"carry": start((3,))}, r"carry\['h'\] has shape \(3, 4\).*\(5,\)"),
        ({"memory": {"x": jnp.zeros((3, 2))}}, r"memory\['x'\] has shape \(3, 2\).*\(5,\)"),
    ]:
        carry, memory = (good | bad).values()
        for run in (
            lambda carry, memory: greedy(step, carry, FIRST, memory=memory, **common),
            lambda carry, memory: sample(step, carry, FIRST, memory=memory, key=key, **common),
            lambda carry, memory: sample(step, carry, FIRST, memory=memory, key=key, num_samples=2, **common),
            lambda carry, memory: stream(step, carry, FIRST, memory=memory, **common),
            lambda carry, memory: score(step, carry, FIRST, tokens, memory=memory),
            lambda carry, memory: prefill(forward, carry, tokens, memory=memory, **common),
            lambda carry, memory: speculative_sample(
                forward, forward, start(), carry, FIRST, key=key, memory=memory, draft_memory=good["memory"], **common
            ),
        ):
            with pytest.raises(ValueError, match=message):
                run(carry, memory)
    with pytest.raises(ValueError, match=r"draft_carry\['h'\] has shape \(3, 4\)"):
        speculative_sample(forward, forward, start((3,)), start(), FIRST, key=key, **common)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_length": 0}, "max_length must be at least 1, not 0"),
        ({"end_token": V}, rf"end_token {V} outside the vocabulary of {V}"),
        ({"end_token": -1}, "end_token -1 outside"),
        ({"temperature": 0.0}, "temperature.*use greedy"),
        ({"temperature": -1.0}, "temperature must be above 0.*not -1"),
        ({"temperature": float("nan")}, "temperature must be above 0.*not nan"),
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"top_k": V + 1}, rf"top_k must be in \[1, {V}\].*not {V + 1}"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], not 0"),
        ({"top_p": jnp.float32(1.5)}, r"top_p must be in \(0, 1\], not 1.5"),
        ({"min_p": -0.5}, r"min_p must be in \(0, 1\], not -0.5"),
        ({"key": jax.random.split(jax.random.key(0), B + 1)}, r"one for each row, \(5,\), not \(6,\)"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(key, wrong, message):
    fields = {name: value for name, value in wrong.items() if name in ("temperature", "top_k", "top_p", "min_p")}
    arguments = {"max_length": 4, "end_token": END, "key": key} | {k: v for k, v in wrong.items() if k not in fields}
    for run in (sample, stream):
        with pytest.raises(ValueError, match=message):
            run(STEP, start(), FIRST, SamplingOptions(**fields), **arguments)
    if not set(wrong) - {"max_length", "end_token"}:
        with pytest.raises(ValueError, match=message):
            greedy(STEP, start(), FIRST, **{k: v for k, v in arguments.items() if k != "key"})


def test_a_stream_without_a_key_takes_no_options():
    with pytest.raises(ValueError, match=r"needs a key.*top_k=3"):
        stream(STEP, start(), FIRST, SamplingOptions(top_k=3), max_length=4)
    with pytest.raises(ValueError, match="block_length must be at least 1"):
        stream(STEP, start(), FIRST, max_length=4, block_length=0)


def test_a_step_that_changes_its_carry_is_named():
    def grows(carry, tokens):
        return {"h": jnp.zeros((B, 9)), "n": carry["n"]}, jnp.zeros((B, V))

    def loses(carry, tokens):
        return {"h": carry["h"]}, jnp.zeros((B, V))

    def flat(carry, tokens):
        return carry, jnp.zeros(V)

    for step, message in [
        (grows, r"\['h'\].*\(5, 4\).*\(5, 9\)"),
        (loses, "structure"),
        (flat, "logits of shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            greedy(step, start(), FIRST, max_length=3)
