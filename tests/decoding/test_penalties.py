"""Logits processors and n-gram blocking: against plain Python, in every way of decoding."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from toy_models import every_sequence, table_step

from jaxseq.decoding import (
    BeamOptions,
    Forbid,
    FrequencyPenalty,
    MinLength,
    NoRepeatedNgrams,
    Prefix,
    RepetitionPenalty,
    SequenceBias,
    Stop,
    beam_search,
    greedy,
    sample,
)
from jaxseq.decoding.constraints import apply_constraints, next_states

V, L, END = 6, 5, 1
PROMPTS, LENGTHS = np.array([[3, 0, 3, 2], [4, 5, -7, 99]]), np.array([4, 2])  # tokens after a length are ignored
BIASES = {(3, 4): -2.0, (0,): 1.5, (2, 3, 4): 4.0, (4, 4): -np.inf}


def repetition(before, logits, penalty=1.7):
    changed = [x / penalty if x > 0 else x * penalty for x in logits]
    return [new if token in before else old for token, (new, old) in enumerate(zip(changed, logits, strict=True))]


def frequency(before, logits):
    count = Counter(before)
    return [x - 0.6 * count[token] - (0.3 if count[token] else 0) for token, x in enumerate(logits)]


def bias(before, logits):
    found = list(logits)
    for words, value in BIASES.items():
        if before[len(before) - len(words) + 1 :] == words[:-1] and len(before) >= len(words) - 1:
            found[words[-1]] += value
    return found


def no_ngrams(size):
    def allowed(before, logits):
        ngrams = [before[i : i + size] for i in range(len(before) - size + 1)]
        tail = before[len(before) - size + 1 :] if len(before) >= size - 1 else None
        return [-np.inf if tail is not None and (*tail, t) in ngrams else x for t, x in enumerate(logits)]

    return allowed


PROMPT = {"prompt": PROMPTS, "prompt_lengths": LENGTHS}
RULES = {
    "repetition": (RepetitionPenalty(1.7), repetition, False),
    "repetition, prompt": (RepetitionPenalty(1.7, **PROMPT), repetition, True),
    "frequency": (FrequencyPenalty(0.6, 0.3), frequency, False),
    "frequency, prompt": (FrequencyPenalty(0.6, 0.3, **PROMPT), frequency, True),
    "bias": (SequenceBias(BIASES), bias, False),
    "bias, prompt": (SequenceBias(BIASES, **PROMPT), bias, True),
    "bigrams, prompt": (NoRepeatedNgrams(2, **PROMPT), no_ngrams(2), True),
    "trigrams, prompt": (NoRepeatedNgrams(3, **PROMPT), no_ngrams(3), True),
    "unigrams": (NoRepeatedNgrams(1), no_ngrams(1), False),
}


@jax.jit
def changed_along(rules, rows, logits):
    """The logits after each prefix of the rows."""
    states = tuple(rule.initial_state(rows.shape[:-1], L) for rule in rules)
    found = []
    for i in range(L):
        found.append(apply_constraints(rules, states, logits[i], jnp.asarray(i), jnp.asarray(L - i)))
        states = next_states(rules, states, rows[:, i])
    return jnp.stack(found)


def test_each_rule_changes_logits_as_its_definition_does() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        rows, logits = rng.integers(0, V, (2, L)), rng.normal(size=(L, 2, V))
        for name, (rule, reference, with_prompt) in RULES.items():
            found = changed_along((rule,), jnp.asarray(rows, jnp.int32), jnp.asarray(logits, jnp.float32))
            for row, i in np.ndindex(2, L):
                prompt = tuple(PROMPTS[row, : LENGTHS[row]].tolist()) if with_prompt else ()
                want = reference((*prompt, *rows[row, :i].tolist()), logits[i, row].tolist())
                np.testing.assert_allclose(found[i, row], want, rtol=1e-5, err_msg=name)


@pytest.mark.full
def test_a_prompt_for_all_rows_is_that_prompt_for_each() -> None:
    rows, logits = jnp.zeros((2, L), jnp.int32), jnp.ones((L, 2, V))
    for make in (lambda p: RepetitionPenalty(2.0, prompt=p), lambda p: NoRepeatedNgrams(2, prompt=p)):
        one, each = (changed_along((make(p),), rows, logits) for p in ([3, 0, 0], np.array([[3, 0, 0]] * 2)))
        assert jnp.array_equal(one, each)


SOFT = [RepetitionPenalty(1.7), FrequencyPenalty(0.6, 0.3), SequenceBias({(0,): 2.0, (2, 0): -1.0})]


def soft(before, logits):
    found = frequency(before, repetition(before, logits))
    return [x + 2.0 * (t == 0) - (t == 0 and before[-1:] == (2,)) for t, x in enumerate(found)]


def log_softmax(logits):
    shifted = np.asarray(logits, np.float64) - np.max(logits)
    return shifted - np.log(np.exp(shifted).sum())


def test_beam_search_compares_by_the_changed_distribution_and_log_probabilities_are_the_models() -> None:
    """Enumeration: the total sums the log softmax of the changed logits, a constraint does not renormalise it."""
    size, length = 3, 4
    table = 2.0 * jax.random.normal(jax.random.key(7), (length, size, size))
    arguments = (Partial(table_step, table), jnp.zeros((), jnp.int32), jnp.asarray(0))
    limits = {"max_length": length, "end_token": END, "constraints": [*SOFT, MinLength(2, END)]}
    found = beam_search(*arguments, BeamOptions(size**length, normalization="mean"), **limits)
    logits, want = np.asarray(table, np.float64), []
    for s in every_sequence(size, length, END):
        if END not in s[:2]:
            places = list(zip(range(length), (0, *s[:-1]), s, strict=False))
            own = sum(log_softmax(logits[t, a])[b] for t, a, b in places)
            total = sum(log_softmax(soft(s[:t], logits[t, a].tolist()))[b] for t, a, b in places)
            want.append((total / len(s), own, s))
    want.sort(reverse=True)
    got = [tuple(t[:n]) for t, n in zip(found.tokens.tolist(), found.lengths.tolist(), strict=True) if n]
    assert got == [s for _, _, s in want]
    np.testing.assert_allclose(found.scores[: len(want)], [score for score, _, _ in want], atol=1e-5)
    np.testing.assert_allclose(found.log_probabilities[: len(want)], [own for _, own, _ in want], atol=1e-5)


@pytest.mark.full
def test_one_beam_is_greedy_under_penalties_and_draws_have_the_changed_probability(key: jax.Array) -> None:
    table = 2.0 * jax.random.normal(jax.random.key(8), (V, V))
    arguments = (Partial(table_step, table), jnp.zeros(V, jnp.int32), jnp.arange(V, dtype=jnp.int32))
    limits = {"max_length": 8, "end_token": END, "constraints": SOFT}
    best = greedy(*arguments, **limits)
    one = beam_search(*arguments, BeamOptions(1, normalization="mean"), **limits)
    assert jnp.array_equal(one.tokens[:, 0], best.tokens) and jnp.array_equal(one.lengths[:, 0], best.lengths)
    np.testing.assert_allclose(one.log_probabilities[:, 0], best.log_probabilities, atol=1e-5)
    drawn = sample(*arguments, key=key, num_samples=2, **limits)
    logits = np.asarray(table, np.float64)
    for first, j in np.ndindex(V, 2):
        row, n = drawn.tokens[first, j].tolist(), int(drawn.lengths[first, j])
        places = list(zip(range(n), (first, *row[: n - 1]), row[:n], strict=True))
        own = sum(log_softmax(logits[a])[b] for _, a, b in places)
        total = sum(log_softmax(soft(tuple(row[:t]), logits[a].tolist()))[b] for t, a, b in places)
        np.testing.assert_allclose(drawn.log_probabilities[first, j], own, atol=1e-4)
        np.testing.assert_allclose(drawn.sampling_log_probabilities[first, j], total, atol=1e-4)


@pytest.mark.full
def test_ids_outside_the_vocabulary_give_nan_under_jit() -> None:
    """Outside ``jit`` they are refused; a traced one is neither wrapped nor clipped."""
    step, first = Partial(table_step, jnp.zeros((V, V))), jnp.zeros(2, jnp.int32)

    @jax.jit
    def run(ids):
        rules = [Prefix(ids), RepetitionPenalty(2.0, prompt=ids), NoRepeatedNgrams(5, prompt=ids)]
        limits = {"max_length": 3, "end_token": None}
        made = [greedy(step, jnp.zeros(2, jnp.int32), first, constraints=[rule], **limits) for rule in rules]
        found = [beam_search(step, jnp.zeros(2, jnp.int32), first, constraints=[rule], **limits) for rule in rules]
        forbidden = greedy(step, jnp.zeros(2, jnp.int32), first, constraints=[Forbid(ids[1])], **limits)
        rows = [x.log_probabilities for x in made] + [x.log_probabilities[:, 0] for x in found]
        return jnp.stack(rows), forbidden.log_probabilities

    for wrong in (-1, V):
        rows, forbidden = run(jnp.array([[0, 2], [3, wrong]]))
        assert jnp.all(jnp.isfinite(rows[:, 0])) and jnp.all(jnp.isnan(rows[:, 1])) and jnp.all(jnp.isnan(forbidden))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RepetitionPenalty(0.0), "penalty must be above 0 and finite, not 0.0"),
        (lambda: FrequencyPenalty(float("nan")), "frequency must be finite, not nan"),
        (lambda: SequenceBias({(): 1.0}), r"empty sequence.*\[\]: 1.0"),
        (lambda: SequenceBias({(2,): float("inf")}), r"\[2\]: inf"),
        (lambda: SequenceBias({(2, 6): 1.0}), r"SequenceBias: \(2, 6\): id 6 at index \(1,\) is outside \[0, 6\)"),
        (lambda: RepetitionPenalty(2.0, prompt=[0, -1]), r"RepetitionPenalty: prompt: id -1 at index \(1,\)"),
        (lambda: FrequencyPenalty(prompt_lengths=[2]), r"prompt_lengths=\[2\] without a prompt"),
        (lambda: NoRepeatedNgrams(2, PROMPTS, np.array([4, 5])), r"prompt_lengths: id 5 at index \(1,\)"),
        (lambda: NoRepeatedNgrams(2, PROMPTS, np.array([4])), r"prompt_lengths of shape \(1,\)"),
        (lambda: Stop.at_sequences([[6]], vocab_size=V), "Stop: 6 is none of the 6 tokens"),
        (lambda: Stop.at_sequences([[]], vocab_size=V), r"Stop: sequence \[\] is empty"),
        (lambda: Stop.at_strings([], ["a"]), "at least one string or sequence"),
        (lambda: Stop.at_strings(["a"], ["a"] * 5), "Stop: the vocabulary has 5 tokens, the logits 6"),
        (lambda: MinLength(2, None), "MinLength needs an end token"),
    ],
)
def test_wrong_values_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().check(V, 4)
