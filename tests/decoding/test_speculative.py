"""Speculative decoding: the large model's own distribution, whatever the draft; and nothing lost on the way."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.tree_util import Partial
from toy_models import Model, model, table_forward, table_step

from jaxseq.decoding import (
    Forbid,
    MinLength,
    NoRepeatedNgrams,
    Prefix,
    RepetitionPenalty,
    SamplingOptions,
    Stop,
    filter_logits,
    greedy,
    sample,
    score,
    speculative_sample,
)

V, END = 4, 3
TARGET, DRAFT = (1.5 * jax.random.normal(jax.random.key(seed), (V, V)) for seed in (1, 2))
FIRST = jnp.array([0, 2, 4], jnp.int32)


def counts(*shape: int) -> jax.Array:
    return jnp.zeros(shape, jnp.int32)


@pytest.mark.parametrize(
    ("draft_length", "options"),
    [
        pytest.param(1, SamplingOptions(), marks=pytest.mark.full),
        (3, SamplingOptions()),
        (2, SamplingOptions(temperature=0.7, top_k=3)),
        pytest.param(4, SamplingOptions(top_p=0.8), marks=pytest.mark.full),
    ],
)
def test_frequencies_are_those_of_the_large_model(draft_length: int, options: SamplingOptions) -> None:
    rows, length = 20_000, 3
    made = speculative_sample(
        Partial(table_forward, DRAFT),
        Partial(table_forward, TARGET),
        counts(rows),
        counts(rows),
        counts(rows),
        options,
        key=jax.random.key(11),
        max_length=length,
        end_token=END,
        draft_length=draft_length,
    )
    chances = np.asarray(jax.nn.softmax(filter_logits(TARGET, options)), np.float64)
    seen = collections.Counter(map(tuple, made.tokens.tolist()))
    expected = {}
    for sequence in itertools.product(range(V), repeat=length):
        ended = sequence.index(END) if END in sequence else length
        if set(sequence[ended:]) <= {END}:
            places = list(zip((0, *sequence), sequence, strict=False))[: ended + 1]
            expected[sequence] = rows * np.prod([chances[place] for place in places])
    assert set(seen) <= {s for s, e in expected.items() if e > 0}
    common = [s for s, e in expected.items() if e >= 5]
    observed = np.array([seen[s] for s in common] + [rows - sum(seen[s] for s in common)], np.float64)
    wanted = np.array([expected[s] for s in common] + [rows - sum(expected[s] for s in common)])
    kept = wanted > 1e-6
    assert scipy.stats.chisquare(observed[kept], wanted[kept] * observed.sum() / wanted[kept].sum()).pvalue > 1e-3
    assert 0 < int(made.num_accepted.sum()) < int(made.num_drafted.sum())


@pytest.mark.parametrize(
    ("draft", "target", "draft_length"),
    [
        pytest.param("state", "hybrid", 3, marks=pytest.mark.full),
        pytest.param("state", "cache", 1, marks=pytest.mark.full),
        pytest.param("last inputs", "cache", 3, marks=pytest.mark.full),
        pytest.param("last inputs", "hybrid", 1, marks=pytest.mark.full),
    ],
)
def test_without_a_key_it_is_greedy(draft: str, target: str, draft_length: int) -> None:
    small, large = model(draft, 5), model(target, 5, seed=1)
    length = 12
    want = greedy(large.step, large.carry(3), FIRST, max_length=length, end_token=END)
    made = speculative_sample(
        small.forward,
        large.forward,
        small.carry(3),
        large.carry(3),
        FIRST,
        key=None,
        max_length=length,
        draft_length=draft_length,
        end_token=END,
    )
    assert np.array_equal(made.tokens, want.tokens)
    assert np.array_equal(made.lengths, want.lengths)
    np.testing.assert_allclose(made.log_probabilities, want.log_probabilities, atol=1e-5)


@pytest.mark.full
def test_a_draft_that_is_the_model_is_always_kept(key: jax.Array) -> None:
    m: Model = model("cache", 5, seed=1)
    length = 15
    made = speculative_sample(
        m.forward, m.forward, m.carry(2), m.carry(2), FIRST[:2], key=key, max_length=length, draft_length=4
    )
    assert int(made.num_rounds) == 3  # five tokens a round
    assert np.array_equal(made.num_accepted, made.num_drafted)
    calls: list[int] = []

    def counted(params, carry, tokens, ids):
        jax.debug.callback(lambda: calls.append(1))
        return table_forward(params, carry, tokens, ids)

    chain = jnp.zeros((3, 3)).at[0, 0].set(9.0).at[1, 2].set(9.0)  # row 0 ends at once, row 1 never
    draft = Partial(table_forward, chain)
    first = jnp.array([1, 0], jnp.int32)
    ended = speculative_sample(
        draft, Partial(counted, chain), counts(2), counts(2), first, key=None, max_length=15, end_token=2
    )
    jax.effects_barrier()
    assert int(ended.num_rounds) == 3 and ended.carry.tolist() == [1, 15] == ended.draft_carry.tolist()
    assert len(calls) == 4  # one forward a round, and one more in the round in which a row ends, for its carry
    again = score(m.step, m.carry(2), FIRST[:2], made.tokens)
    np.testing.assert_allclose(made.log_probabilities, again, atol=1e-4)


def test_log_probabilities_are_the_models_own_and_rows_are_alone(key: jax.Array) -> None:
    options = {"options": SamplingOptions(1.3), "max_length": 8, "end_token": END, "draft_length": 3}
    draft, target = Partial(table_forward, DRAFT), Partial(table_forward, TARGET)
    first = jnp.array([0, 1, 2, 0], jnp.int32)
    made = speculative_sample(draft, target, counts(4), counts(4), first, key=key, **options)
    again = score(Partial(table_step, TARGET), counts(4), first, made.tokens, made.lengths)
    np.testing.assert_allclose(made.log_probabilities, again, atol=1e-5)
    for row in range(4):
        its_key = jax.random.fold_in(key, row)
        alone = speculative_sample(draft, target, counts(), counts(), first[row], key=its_key, **options)
        assert np.array_equal(alone.tokens, made.tokens[row])
        assert (alone.lengths, alone.num_accepted) == (made.lengths[row], made.num_accepted[row])


STOP = Stop.at_sequences([(0, 2, 2)], vocab_size=V)
RULES = (
    NoRepeatedNgrams(2),
    MinLength(2, (END, 1)),
    STOP,
    RepetitionPenalty(1.3),
    Prefix(np.array([[2, 0], [0, 2], [2, 2], [0, 0]])),
    Forbid([1]),
)


@pytest.mark.full
@pytest.mark.parametrize("sampled", [False, True])
def test_constraints_and_several_end_tokens_act_as_in_greedy_and_in_sampling(key: jax.Array, sampled: bool) -> None:
    """Rows are at different positions in a round. Filters that leave one token make sampling greedy."""
    table = jax.random.normal(jax.random.key(4), (V, V))
    first, common = jnp.array([0, 1, 2, 0]), {"max_length": 7, "end_token": (END, 1), "constraints": RULES}
    want = greedy(Partial(table_step, table), counts(4), first, **common)
    draft, target = Partial(table_forward, DRAFT), Partial(table_forward, table)
    extra = {"key": key, "options": SamplingOptions(top_k=1)} if sampled else {"key": None}
    for n in (1, 3):
        made = speculative_sample(draft, target, counts(4), counts(4), first, draft_length=n, **common, **extra)
        for name in ("tokens", "lengths", "last_tokens", "carry"):
            assert np.array_equal(getattr(made, name), getattr(want, name))
        np.testing.assert_allclose(made.log_probabilities, want.log_probabilities, rtol=1e-5)
        assert np.array_equal(made.draft_carry, made.carry)


@pytest.mark.full
def test_a_row_without_an_allowed_token_ends_as_in_greedy() -> None:
    chain, first = jnp.zeros((3, 3)).at[0, 1].set(9.0), jnp.zeros(2, jnp.int32)
    rules = [Prefix(np.array([[0, 1], [0, 0]])), Forbid([1])]  # the first row has no second token
    common = {"max_length": 3, "end_token": 2, "constraints": rules}
    want = greedy(Partial(table_step, chain), counts(2), first, **common)
    forward = Partial(table_forward, chain)
    made = speculative_sample(forward, forward, counts(2), counts(2), first, key=None, **common)
    assert made.tokens.tolist() == want.tokens.tolist() and made.lengths.tolist() == want.lengths.tolist() == [1, 3]
    np.testing.assert_allclose(made.log_probabilities, want.log_probabilities, rtol=1e-5)
    assert np.isneginf(made.log_probabilities[0]) and made.carry.tolist() == [1, 3]


@pytest.mark.full
def test_frequencies_under_constraints_are_those_of_sampling() -> None:
    rows, length = 20_000, 3
    common = {"max_length": length, "end_token": END, "constraints": [NoRepeatedNgrams(1), MinLength(1, END)]}
    options, none = SamplingOptions(temperature=jnp.full(rows, 1.5)), counts(rows)
    draft, target = Partial(table_forward, DRAFT), Partial(table_forward, TARGET)
    made = speculative_sample(draft, target, none, none, none, options, key=jax.random.key(3), draft_length=2, **common)
    drawn = sample(Partial(table_step, TARGET), none, none, options, key=jax.random.key(4), **common)
    tables = [collections.Counter(map(tuple, x.tokens.tolist())) for x in (made, drawn)]
    cells = sorted({*tables[0], *tables[1]})
    counted = np.array([[table[cell] for cell in cells] for table in tables])
    assert scipy.stats.chi2_contingency(counted[:, counted.sum(0) >= 10]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"draft_length": 0}, "draft_length must be at least 1, not 0"),
        ({"key": None, "options": SamplingOptions(top_p=0.5)}, "needs a key"),
        ({"options": SamplingOptions(top_k=V + 1)}, rf"\[1, {V}\].*not {V + 1}"),
        ({"end_token": V}, f"end_token {V} outside the vocabulary of {V}"),
        ({"max_length": 0}, "max_length must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(key: jax.Array, wrong: dict, message: str) -> None:
    forward = Partial(table_forward, TARGET)
    with pytest.raises(ValueError, match=message):
        speculative_sample(forward, forward, counts(2), counts(2), counts(2), **({"key": key, "max_length": 4} | wrong))


def test_two_vocabularies_are_refused(key: jax.Array) -> None:
    draft, target = (Partial(table_forward, jnp.zeros((n, n))) for n in (3, 4))
    with pytest.raises(ValueError, match="share a vocabulary: 3 and 4 tokens"):
        speculative_sample(draft, target, counts(2), counts(2), counts(2), key=key, max_length=4)
