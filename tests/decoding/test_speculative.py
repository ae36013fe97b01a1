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

from jaxseq.decoding import filtered, greedy, score, speculative_sample

V, END = 4, 3
TARGET, DRAFT = (1.5 * jax.random.normal(jax.random.key(seed), (V, V)) for seed in (1, 2))
FIRST = jnp.array([0, 2, 4], jnp.int32)


def counts(*shape: int) -> jax.Array:
    return jnp.zeros(shape, jnp.int32)


@pytest.mark.parametrize(
    ("num_drafted", "filters"),
    [(1, {}), (3, {}), (2, {"temperature": 0.7, "top_k": 3}), (4, {"top_p": 0.8})],
)
def test_frequencies_are_those_of_the_large_model(num_drafted: int, filters: dict) -> None:
    rows, length = 20_000, 3
    made = speculative_sample(
        Partial(table_forward, DRAFT),
        Partial(table_forward, TARGET),
        counts(rows),
        counts(rows),
        counts(rows),
        key=jax.random.key(11),
        max_length=length,
        num_drafted=num_drafted,
        end_token=END,
        **filters,
    )
    chances = np.asarray(jax.nn.softmax(filtered(TARGET, **filters)), np.float64)
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
    assert 0 < int(made.accepted.sum()) < int(made.drafted.sum())


@pytest.mark.parametrize(("draft", "target"), [("state", "cache"), ("last inputs", "hybrid")])
def test_without_a_key_it_is_greedy_and_in_fewer_rounds(draft: str, target: str) -> None:
    small, large = model(draft, 5), model(target, 5, seed=1)
    length = 12
    want = greedy(large.step, large.carry(3), FIRST, max_length=length, end_token=END)
    for num_drafted in (1, 3):
        made = speculative_sample(
            small.forward,
            large.forward,
            small.carry(3),
            large.carry(3),
            FIRST,
            key=None,
            max_length=length,
            num_drafted=num_drafted,
            end_token=END,
        )
        assert np.array_equal(made.tokens, want.tokens)
        assert np.array_equal(made.lengths, want.lengths)
        np.testing.assert_allclose(made.log_probabilities, want.log_probabilities, atol=1e-5)


def test_a_draft_that_is_the_model_is_always_kept(key: jax.Array) -> None:
    m: Model = model("cache", 5, seed=1)
    length = 15
    made = speculative_sample(
        m.forward, m.forward, m.carry(2), m.carry(2), FIRST[:2], key=key, max_length=length, num_drafted=4
    )
    assert int(made.rounds) == 3  # five tokens a round
    assert np.array_equal(made.accepted, made.drafted)
    calls: list[int] = []

    def counted(params, carry, tokens, ids):
        jax.debug.callback(lambda: calls.append(1))
        return table_forward(params, carry, tokens, ids)

    chain = jnp.zeros((3, 3)).at[0, 1].set(9.0).at[1, 2].set(9.0).at[2, 2].set(9.0)  # row 0 ends at once
    draft = Partial(table_forward, chain)
    first = jnp.array([1, 0], jnp.int32)
    jax.block_until_ready(
        speculative_sample(
            draft, Partial(counted, chain), counts(2), counts(2), first, key=None, max_length=12, end_token=2
        )
    )
    jax.effects_barrier()
    assert len(calls) == 1  # a row that has ended costs no second forward
    again = score(m.step, m.carry(2), FIRST[:2], made.tokens)
    np.testing.assert_allclose(made.log_probabilities, again, atol=1e-4)


def test_log_probabilities_are_the_models_own_and_rows_are_alone(key: jax.Array) -> None:
    options = {"max_length": 8, "end_token": END, "temperature": 1.3, "num_drafted": 3}
    draft, target = Partial(table_forward, DRAFT), Partial(table_forward, TARGET)
    first = jnp.array([0, 1, 2, 0], jnp.int32)
    made = speculative_sample(draft, target, counts(4), counts(4), first, key=key, **options)
    again = score(Partial(table_step, TARGET), counts(4), first, made.tokens, made.lengths)
    np.testing.assert_allclose(made.log_probabilities, again, atol=1e-5)
    for row in range(4):
        its_key = jax.random.fold_in(key, row)
        alone = speculative_sample(draft, target, counts(), counts(), first[row], key=its_key, **options)
        assert np.array_equal(alone.tokens, made.tokens[row])
        assert (alone.lengths, alone.accepted) == (made.lengths[row], made.accepted[row])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_drafted": 0}, "num_drafted must be at least 1, not 0"),
        ({"key": None, "top_p": 0.5}, "ask for a key"),
        ({"top_k": V + 1}, rf"\[1, {V}\].*not {V + 1}"),
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
