"""Prompts of different lengths, scores of given sequences, several samples a prompt, and the cost of a step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from toy_models import EVERY_KIND, model, table_forward, table_step

from jaxseq.decoding import (
    BeamOptions,
    Forbid,
    SamplingOptions,
    StatelessConstraint,
    beam_search,
    filter_logits,
    greedy,
    pad_prompts,
    prefill,
    sample,
    score,
    score_tokens,
    speculative_sample,
    step_of,
    stream,
)
from jaxseq.decoding.step import as_token_ids

PROMPTS = [[3], [1, 2, 0, 4, 4, 1], [2, 2, 3]]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_prompts_of_different_lengths_give_what_each_gives_alone(kind: str) -> None:
    m = model(kind, 5, seed=2)
    tokens, lengths = pad_prompts(PROMPTS)
    carry, first = prefill(m.forward, m.carry(3), tokens, lengths, max_length=6)
    together = greedy(m.step, carry, first, max_length=6)
    one_step = jax.jit(lambda carry, tokens: m.step(carry, tokens))
    for row, prompt in enumerate(PROMPTS):
        carry = m.carry(1)
        for token in prompt[:-1]:  # a token at a time, as no prefill would
            carry, _ = one_step(carry, jnp.array([token], jnp.int32))
        alone = greedy(m.step, carry, jnp.array(prompt[-1:], jnp.int32), max_length=6)
        assert np.array_equal(together.tokens[row], alone.tokens[0])
        np.testing.assert_allclose(together.log_probabilities[row], alone.log_probabilities[0], atol=1e-5)


def test_what_stands_behind_a_prompt_changes_nothing() -> None:
    m = model("cache", 5)
    tokens, lengths = pad_prompts(PROMPTS)
    spoilt = np.where(np.arange(tokens.shape[1]) < lengths[:, None], tokens, 4)
    for a, b in zip(
        jax.tree.leaves(prefill(m.forward, m.carry(3), tokens, lengths, max_length=1)),
        jax.tree.leaves(prefill(m.forward, m.carry(3), spoilt, lengths, max_length=1)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    m = model("cache", 5)
    tokens, lengths = pad_prompts([[0] * 8, [1] * 11])
    with pytest.raises(ValueError, match=r"a prompt of 11 tokens looks 10 positions back, but the carry keeps 8"):
        prefill(m.forward, m.carry(2, context=8), tokens, lengths, max_length=1)
    with pytest.raises(ValueError, match=r"11 tokens and max_length=5 looks 14 positions back.*context=14"):
        prefill(m.forward, m.carry(2, context=12), tokens, lengths, max_length=5)
    prefill(m.forward, m.carry(2, context=14), tokens, lengths, max_length=5)
    sliding = model("hybrid", 5)  # its window is all that it ever needs
    prefill(sliding.forward, sliding.carry(2, context=8), tokens, lengths, max_length=500)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [([0, 1], r"\[1, 4\], not 0"), ([1, 5], r"\[1, 4\], not 5"), ([1], r"lengths have shape \(1,\)")],
)
def test_lengths_that_do_not_fit_are_refused(lengths: list[int], message: str) -> None:
    m = model("cache", 5)
    with pytest.raises(ValueError, match=message):
        prefill(m.forward, m.carry(2), np.zeros((2, 4), np.int32), np.array(lengths), max_length=1)


@pytest.mark.parametrize(("prompts", "message"), [([], "there are none"), ([[1], []], "prompt 1 is empty")])
def test_no_prompt_and_an_empty_one_are_refused(prompts: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pad_prompts(prompts)


@pytest.mark.full
def test_a_score_is_the_sum_over_the_tokens_up_to_the_length_and_has_a_gradient(x64: None) -> None:
    table = jax.random.normal(jax.random.key(0), (5, 5), jnp.float64)
    tokens, lengths = jnp.array([[1, 2, 0, 3], [4, 4, 1, 0]]), jnp.array([2, 4])
    first = jnp.array([3, 0])

    def by_hand(table):
        scores = jax.nn.log_softmax(table)
        before = jnp.concatenate([first[:, None], tokens[:, :-1]], axis=1)
        return jnp.where(jnp.arange(4)[None] < lengths[:, None], scores[before, tokens], 0.0)

    def by_score(table):
        return score_tokens(Partial(table_step, table), jnp.zeros(2, jnp.int32), first, tokens, lengths)

    np.testing.assert_allclose(by_score(table), by_hand(table), rtol=1e-12)
    gradients = [jax.grad(lambda t, f=f: jnp.sum(jnp.sin(f(t))))(table) for f in (by_score, by_hand)]
    np.testing.assert_allclose(*gradients, rtol=1e-12)
    total = score(Partial(table_step, table), jnp.zeros(2, jnp.int32), first, tokens, lengths)
    np.testing.assert_allclose(total, by_hand(table).sum(-1), rtol=1e-12)


def test_a_score_without_shapes_that_fit_is_refused() -> None:
    step, carry = Partial(table_step, jnp.zeros((5, 5))), jnp.zeros(2, jnp.int32)
    first = jnp.zeros(2, jnp.int32)
    with pytest.raises(ValueError, match=r"tokens \(3, 4\) do not fit rows \(2,\)"):
        score(step, carry, first, jnp.zeros((3, 4), jnp.int32))
    with pytest.raises(ValueError, match=r"lengths \(3,\) do not fit tokens \(2, 4\)"):
        score(step, carry, first, jnp.zeros((2, 4), jnp.int32), jnp.zeros(3, jnp.int32))


@pytest.mark.full
def test_several_samples_a_prompt_are_samples_by_keys_of_their_own(key: jax.Array) -> None:
    step = Partial(table_step, jax.random.normal(jax.random.key(1), (5, 5)))
    first = jnp.array([0, 3], jnp.int32)
    options = {"options": SamplingOptions(temperature=0.9, min_p=0.05), "max_length": 6, "end_token": 2}
    several = sample(step, jnp.zeros(2, jnp.int32), first, key=key, num_samples=4, **options)
    assert several.tokens.shape == (2, 4, 6) and several.lengths.shape == (2, 4)
    for j in range(4):
        keys = jax.vmap(lambda i, j=j: jax.random.fold_in(jax.random.fold_in(key, i), j))(jnp.arange(2))
        one = sample(step, jnp.zeros(2, jnp.int32), first, key=keys, **options)
        for a, b in zip(several, one, strict=True):
            np.testing.assert_array_equal(a[:, j], b)
    alone = sample(step, jnp.zeros((), jnp.int32), first[1], key=jax.random.fold_in(key, 1), num_samples=4, **options)
    np.testing.assert_array_equal(alone.tokens, several.tokens[1])
    with pytest.raises(ValueError, match="num_samples must be at least 1, not 0"):
        sample(step, jnp.zeros(2, jnp.int32), first, key=key, num_samples=0, **options)


@pytest.mark.full
def test_sampling_log_probabilities_are_those_of_the_distribution_drawn_from(key: jax.Array) -> None:
    table = jax.random.normal(jax.random.key(2), (6, 6))
    first = jnp.arange(6, dtype=jnp.int32)
    options = SamplingOptions(temperature=0.7, top_k=4, top_p=0.9)
    made = sample(
        Partial(table_step, table),
        jnp.zeros(6, jnp.int32),
        first,
        options,
        key=key,
        max_length=5,
        constraints=[Forbid([1])],
    )
    law = jax.nn.log_softmax(filter_logits(table.at[:, 1].set(-jnp.inf), options))
    before = jnp.concatenate([first[:, None], made.tokens[:, :-1]], axis=1)
    np.testing.assert_allclose(made.sampling_log_probabilities, law[before, made.tokens].sum(-1), atol=1e-5)
    np.testing.assert_allclose(
        made.log_probabilities, jax.nn.log_softmax(table)[before, made.tokens].sum(-1), atol=1e-5
    )
    best = greedy(Partial(table_step, table), jnp.zeros(6, jnp.int32), first, max_length=5)
    assert np.all(best.sampling_log_probabilities == 0)


def test_a_row_that_constraints_leave_no_token_ends_there() -> None:
    """Two constraints may run into a dead end together: what was made stands, and says how improbable it is."""
    step, carry = Partial(table_step, jnp.zeros((3, 3))), jnp.zeros((), jnp.int32)
    nothing = [Forbid([0, 1]), Forbid([1, 2])]
    made = greedy(step, carry, jnp.asarray(0), max_length=4, end_token=2, constraints=nothing)
    assert int(made.lengths) == 0
    assert np.isneginf(made.log_probabilities) and np.isneginf(made.sampling_log_probabilities)
    assert made.tokens.tolist() == [2] * 4
    found = beam_search(step, carry, jnp.asarray(0), BeamOptions(2), max_length=4, end_token=2, constraints=nothing)
    assert found.lengths.tolist() == [0, 0] and np.all(np.isneginf(found.scores))


@pytest.mark.full
def test_tokens_of_any_whole_dtype_and_plain_numbers_as_a_carry_will_do() -> None:
    """A byte cannot hold id 299: ids are int32 inside and in what is returned."""
    table = jnp.zeros((300, 300)).at[:, 299].set(5.0)

    def step(carry, tokens):
        return {"n": carry["n"] + 1, "x": carry["x"]}, table[tokens]

    carry = {"n": np.zeros(2, np.int64), "x": np.zeros((2, 3))}
    first = np.array([1, 2], np.uint8)
    made = greedy(step, carry, first, max_length=3)
    assert made.tokens.tolist() == [[299] * 3] * 2
    found = beam_search(step, carry, first, BeamOptions(2), max_length=3, end_token=None)
    assert found.tokens[:, 0].tolist() == [[299] * 3] * 2
    np.testing.assert_allclose(score(step, carry, first, made.tokens, [3, 3]), made.log_probabilities, atol=1e-5)
    alone = greedy(lambda carry, token: (carry + 1, table[token]), 0, jnp.array(1), max_length=2)
    assert alone.tokens.tolist() == [299, 299]
    with pytest.raises(TypeError, match="tokens must be integers, not float32"):
        as_token_ids(np.zeros(2, np.float32))


def test_a_field_called_context_is_no_bound_and_scoring_asks_for_room() -> None:
    class Attending(NamedTuple):
        hidden: jax.Array
        context: jax.Array

    step = Partial(lambda carry, tokens: (carry, jnp.zeros((2, 3))))
    greedy(step, Attending(jnp.zeros((2, 4)), jnp.ones((2, 4))), jnp.zeros(2, jnp.int32), max_length=9)
    m = model("cache", 5)
    with pytest.raises(ValueError, match="a sequence of 8 tokens looks 7 positions back, but the carry keeps 2"):
        score(m.step, m.carry(2, context=2), jnp.zeros(2, jnp.int32), jnp.zeros((2, 8), jnp.int32))


def test_constraints_may_come_in_any_iterable_and_are_pytrees() -> None:
    step, carry = Partial(table_step, jnp.zeros((3, 3))), jnp.zeros(2, jnp.int32)
    first = jnp.zeros(2, jnp.int32)
    made = greedy(step, carry, first, max_length=3, constraints=(Forbid([0]),))
    assert not np.any(made.tokens == 0)

    class Mine(StatelessConstraint):
        """Not registered."""

        def check(self, vocab_size, max_length):
            pass

        def allowed(self, state, vocab_size, num_generated, num_remaining):
            return jnp.ones(vocab_size, bool)

    with pytest.raises(TypeError, match="Mine must be a pytree"):
        greedy(step, carry, first, max_length=3, constraints=[Mine()])


def test_a_donated_carry_is_gone_and_another_stays(key: jax.Array) -> None:
    step = Partial(table_step, jnp.zeros((3, 3)))
    first, kept, given = jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.int32)
    greedy(step, kept, first, max_length=3)
    sample(step, kept, first, key=key, max_length=3)
    list(stream(step, kept, first, max_length=3))
    beam_search(step, kept, first, BeamOptions(2), max_length=3, end_token=None)
    assert not kept.is_deleted()
    greedy(step, given, first, max_length=3, donate_carry=True)
    assert given.is_deleted()
    shared = jnp.zeros(2, jnp.int32)  # as parts of a fresh carry may be one array
    both = Partial(lambda carry, tokens: ((carry[0] + 1, carry[1]), jnp.zeros((2, 3))))
    greedy(both, (shared, shared), first, max_length=3, donate_carry=True)


def test_a_step_reads_one_token_whatever_was_made() -> None:
    """No step recomputes the prefix: the model is traced for single tokens alone, and the loop holds no other."""
    lengths = []

    def forward(table, carry, tokens, ids=None):
        lengths.append(tokens.shape[-1])
        return carry, table[tokens]

    step = step_of(Partial(forward, jnp.zeros((4, 4))))
    first = jnp.zeros(2, jnp.int32)
    greedy(step, jnp.zeros(2), first, max_length=50)
    beam_search(step, jnp.zeros(2), first, BeamOptions(2), max_length=50, end_token=0)
    assert set(lengths) == {1}


@pytest.mark.full
def test_ids_out_of_range_are_errors_outside_jit_and_nan_under_it(key: jax.Array) -> None:
    """First tokens, prompts and scored tokens; tokens after a length are ignored, in a gradient too."""
    chain = jax.random.normal(jax.random.key(0), (5, 5))
    forward = Partial(table_forward, chain)
    step, carry, tokens = step_of(forward), jnp.zeros(3, jnp.int32), np.array([[1, 2, 3], [4, 5, 0], [0, -1, 9]])
    first, lengths = np.array([0, 1, 2]), np.array([3, 3, 1])
    for bad in (5, -1, 2**40):
        wrong, shown = np.array([0, bad, 1]), min(bad, 2**31 - 1)
        for run in (
            lambda wrong: greedy(step, carry, wrong, max_length=2),
            lambda wrong: sample(step, carry, wrong, key=key, max_length=2, num_samples=2),
            lambda wrong: stream(step, carry, wrong, max_length=2),
            lambda wrong: score(step, carry, wrong, np.zeros((3, 2), int)),
            lambda wrong: speculative_sample(forward, forward, carry, carry, wrong, key=None, max_length=2),
        ):
            with pytest.raises(ValueError, match=rf"first_tokens: id {shown} at index \(1,\) is outside \[0, 5\)"):
                run(wrong)
    with pytest.raises(ValueError, match=r"tokens: id 5 at index \(1, 1\)"):
        score_tokens(step, carry, first, tokens, lengths)
    with pytest.raises(ValueError, match=r"prompts: id 5 at index \(1, 1\)"):
        prefill(forward, carry, tokens, lengths, max_length=1)

    @jax.jit
    def traced(chain, first, tokens, lengths):
        forward = Partial(table_forward, chain)
        step = step_of(forward)
        made = greedy(step, carry, first, max_length=2)
        drafted = speculative_sample(forward, forward, carry, carry, first, key=None, max_length=2)
        read = prefill(forward, carry, tokens, lengths, max_length=1)
        after = greedy(step, *read, max_length=2)
        scores = score_tokens(step, carry, first, tokens, lengths)
        return made.log_probabilities, drafted.log_probabilities, after.log_probabilities, scores

    made, drafted, after, scores = traced(chain, jnp.array([0, 5, -1]), tokens, lengths)
    for sums, unknown in ((made, [0, 1, 1]), (drafted, [0, 1, 1]), (after, [0, 1, 0])):
        assert np.isnan(sums).tolist() == [bool(x) for x in unknown]
    assert np.isnan(scores).tolist() == [[False] * 3, [True] * 3, [True, False, False]]
    scores = traced(chain, first, tokens, lengths)[3]
    assert np.isnan(scores).tolist() == [[False] * 3, [False, True, True], [False] * 3]
    clean = np.where(np.arange(3) < lengths[:, None], tokens, 0)[::2]
    rows = carry[:2], first[::2], clean, lengths[::2]
    np.testing.assert_array_equal(scores[::2], score_tokens(step, *rows))
    assert np.all(np.isnan(traced(chain, first, clean[[0, 0, 1]], np.array([3, 4, 1]))[3][1]))

    def loss(chain, tokens):
        nan_outside = jnp.concatenate([chain, jnp.full((1, 5), jnp.nan)])
        lookup = Partial(lambda table, carry, tokens: (carry, table[jnp.where(tokens < 5, tokens, 5)]), nan_outside)
        return jnp.sum(score(lookup, carry[:2], first[::2], tokens, lengths[::2]))

    spoilt = np.where(np.arange(3) < lengths[::2, None], tokens[::2], 9)
    np.testing.assert_array_equal(jax.grad(loss)(chain, spoilt), jax.grad(loss)(chain, clean))


def test_lengths_of_scores_and_prompts_are_integers_in_their_range() -> None:
    forward, carry = Partial(table_forward, jnp.zeros((5, 5))), jnp.zeros(2, jnp.int32)
    first, tokens = np.zeros(2, int), np.zeros((2, 3), int)
    with pytest.raises(ValueError, match=r"lengths: id 4 at index \(1,\) is outside \[0, 4\)"):
        score(step_of(forward), carry, first, tokens, [3, 4])
    with pytest.raises(TypeError, match=r"lengths must be integers, not float64\(2,\)"):
        as_token_ids(np.ones(2), "lengths")
