"""Automata over tokens: what they allow, against all sequences of a small vocabulary."""

import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxseq.decoding.transitions
from jaxseq.decoding.automaton import Automaton

V, END, L, Q = 5, 2, 5, 128
ORDINARY = [v for v in range(V) if v != END]
SEQUENCES = [words for length in range(L) for words in itertools.product(ORDINARY, repeat=length)]
ROWS = np.array([[*words, *[END] * (L - 1 - len(words))] for words in SEQUENCES], np.int32)
LENGTHS = np.array([len(words) for words in SEQUENCES], np.int32)
WORDS = st.lists(st.lists(st.sampled_from(ORDINARY), min_size=1, max_size=3), max_size=3)
ATOMS = st.sampled_from(["a", "b", "ab", "[^a]", ".", r"\d", "a?", "(a|0b)"])
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "{2}", "{,3}"])).map(lambda pair: f"({pair[0]}){pair[1]}"),
    ),
    max_leaves=5,
)
laws = settings(deadline=None, max_examples=60)


@jax.jit
def masks(automaton, rows, lengths):
    """The allowed next tokens after each sequence; the end token is the last of L and leaves the state unchanged."""

    def of_one(row, length):
        state = automaton.initial_state((), L)
        for i in range(L - 1):
            state = automaton.next_state(state, row[i])
        return automaton.allowed(state, V, length, L - length)

    return jax.vmap(of_one)(rows, lengths)


def padded(automaton):
    """The same with states and classes that nothing leads to, so that one compilation does for all."""
    num_states, num_classes = automaton.table.shape
    table = np.insert(automaton.table, [num_classes - 1] * (V - num_classes), -1, axis=1)
    more = Q - num_states
    return Automaton(
        np.where(np.arange(V) == END, np.int32(V - 1), automaton.classes),
        np.pad(table, ((0, more), (0, 0)), constant_values=-1),
        np.pad(automaton.accepting, (0, more)),
        np.pad(automaton.distance, (0, more)),
        automaton.end_token,
    )


def obeys(automaton, holds):
    """Allowed is exactly what can still become a sequence that holds and ends within L; and so say check, accepts."""
    good = {words for words in SEQUENCES if holds(words)}
    begun = {words[:n] for words in good for n in range(len(words) + 1)}
    for row, words in enumerate(SEQUENCES):
        assert automaton.accepts([*words, *[END] * (row % 3)]) == (words in good)
    if not good:
        with pytest.raises(ValueError, match=r"no path|needs"):
            automaton.check(V, L)
        return
    shortest = 1 + min(map(len, good))
    automaton.check(V, shortest)
    with pytest.raises(ValueError, match=f"{shortest} tokens.*max_length={shortest - 1}"):
        automaton.check(V, shortest - 1)
    allowed = np.asarray(masks(padded(automaton), ROWS, LENGTHS))
    for row, words in enumerate(SEQUENCES):
        if words in begun:
            expected = [words in good if v == END else (*words, v) in begun for v in range(V)]
            assert allowed[row].tolist() == expected, words


def occurs(word, words):
    return any(tuple(words[i : i + len(word)]) == tuple(word) for i in range(len(words) - len(word) + 1))


def requiring(sequences):
    made = Automaton.requiring(sequences, vocab_size=V, end_token=END)
    return made, lambda words: all(occurs(sequence, words) for sequence in sequences)


def avoiding(sequences):
    made = Automaton.avoiding(sequences, vocab_size=V, end_token=END)
    return made, lambda words: not any(occurs(sequence, words) for sequence in sequences)


def by_hand(table, accepting, as_mapping):
    table = np.insert(np.array(table), END, -1, axis=1)
    moves = {(q, v): int(table[q, v]) for q, v in np.argwhere(table >= 0).tolist()}
    made = Automaton.from_transitions(moves if as_mapping else table, accepting, vocab_size=V, end_token=END)

    def holds(words):
        state = 0
        for token in words:
            state = moves.get((state, token), -1)
        return state in accepting

    return made, holds


def by_regex(pattern, texts):
    made = Automaton.from_regex(pattern, texts, end_token=END)

    def holds(words):
        return all(texts[v] for v in words) and re.fullmatch(pattern, "".join(texts[v] for v in words)) is not None

    return made, holds


def a_table(num_states):
    row = st.lists(st.integers(-1, num_states - 1), min_size=V - 1, max_size=V - 1)
    table = st.lists(row, min_size=num_states, max_size=num_states)
    return st.tuples(st.just(by_hand), table, st.sets(st.integers(0, num_states - 1)), st.booleans())


TEXTS = st.lists(st.none() | st.text("ab0", max_size=3), min_size=V, max_size=V)
A_REGEX = st.tuples(st.just(by_regex), PATTERNS, TEXTS)
ANY = st.one_of(a_table(3), A_REGEX, st.tuples(st.sampled_from([requiring, avoiding]), WORDS))


def build(description):
    """The automaton, and which sequences it stands for."""
    return description[0](*description[1:])


@given(a_table(4))
@laws
def test_transitions_allow_what_can_still_end_in_time(description):
    obeys(*build(description))


@given(A_REGEX)
@laws
def test_a_regex_allows_the_tokens_that_spell_a_match(description):
    obeys(*build(description))


@given(WORDS)
@laws
def test_what_is_required_occurs(sequences):
    obeys(*requiring(sequences))


@given(WORDS)
@laws
def test_what_is_avoided_does_not_occur(sequences):
    obeys(*avoiding(sequences))


def test_any_number_of_sequences_is_avoided():
    obeys(*avoiding([pair for pair in itertools.product(ORDINARY, repeat=2) if pair not in [(0, 1), (1, 3)]]))


@given(ANY, ANY)
@laws
def test_of_two_automata_both_hold(first, second):
    (a, a_holds), (b, b_holds) = build(first), build(second)
    obeys(a & b, lambda words: a_holds(words) and b_holds(words))


@given(a_table(3))
@laws
def test_as_many_states_as_there_are_different_futures(description):
    automaton, holds = build(description)
    short = [words for words in SEQUENCES if len(words) <= 2]
    futures = {frozenset(words for words in short if holds((*begun, *words))) for begun in short}
    assert automaton.num_states == max(1, len(futures - {frozenset()}))


@given(ANY)
@laws
def test_as_many_classes_as_tokens_that_differ(description):
    automaton, _ = build(description)
    table, classes = automaton.table, automaton.classes
    assert len({column.tobytes() for column in table[:, :-1].T}) == table.shape[1] - 1
    assert sorted(set(classes.tolist())) == list(range(table.shape[1]))
    assert np.flatnonzero(classes == table.shape[1] - 1).tolist() == [END]


@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 3)])
def test_rows_that_take_any_allowed_token_are_complete_in_time(batch_shape):
    texts = ["a", "b", "<end>", "ab", "c"]
    automaton = Automaton.from_regex("(ab)+c(a|b){2,}", texts, end_token=END)
    automaton &= Automaton.avoiding([[0, 1, 0], [4, 4]], vocab_size=V, end_token=END)
    allows = jax.jit(lambda state, made: automaton.allowed(state, V, made, 7 - made))
    follow, rng = jax.jit(automaton.next_state), np.random.default_rng(0)
    state, made = automaton.initial_state(batch_shape, 7), []
    for i in range(7):
        allowed = np.asarray(allows(state, i))
        assert allowed.shape == (*batch_shape, V)
        ended = made[-1] == END if made else np.zeros(batch_shape, bool)
        assert np.all(allowed.any(axis=-1) | ended)
        made.append(np.where(ended, END, np.argmax(allowed * rng.uniform(0.1, 1.0, allowed.shape), axis=-1)))
        state = follow(state, jnp.asarray(made[-1], jnp.int32))
    for row in np.stack(made, axis=-1).reshape(-1, 7):
        assert automaton.accepts(row) and END in row
        assert re.fullmatch("(ab)+c(a|b){2,}", "".join(texts[v] for v in row if v != END))


def test_another_automaton_of_the_same_size_needs_no_compilation():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(automaton, state, tokens):
        automaton.check(V, L)
        return automaton.next_state(state, tokens), automaton.allowed(state, V, jnp.asarray(0), jnp.asarray(L))

    state, tokens = jnp.zeros(3, jnp.int32), jnp.array([0, 1, END])
    results = []
    for word in ([0, 1], [1, 3]):
        automaton = Automaton.requiring([word], vocab_size=V, end_token=END)
        for form in (automaton, jax.tree.map(jnp.asarray, automaton)):
            results.append(step(form, state, tokens)[0].tolist())
    assert results[0] == results[1] != results[2] == results[3]


def test_in_double_precision_counts_may_be_longer(x64):
    automaton = Automaton.avoiding([[1]], vocab_size=V, end_token=END)
    allowed = jax.jit(automaton.allowed, static_argnums=1)(jnp.zeros(2, jnp.int32), V, jnp.asarray(0), jnp.asarray(9))
    assert allowed.tolist() == [[True, False, True, True, True]] * 2


def test_a_large_vocabulary_has_few_classes():
    syllables = [a + b for a in "bcdfghklmnprstvwz" for b in "aeiou"]
    texts = ["<end>", *map(chr, range(32, 127)), *map("".join, itertools.product(syllables, syllables)), None]
    texts += [f" {number}" for number in range(50_000 - len(texts))]
    automaton = Automaton.from_regex(r"([A-Z]?[a-z]+ \d{2,4},? ?)+\.", texts, end_token=0)
    assert len(automaton.classes) == 50_000
    assert automaton.table.shape[0] < 20 and automaton.table.shape[1] < 40
    tokens = [texts.index(text) for text in ("B", "bobo", " 123", ",", " ", "zuzu", " 77", ".")]
    assert automaton.accepts(tokens) and not automaton.accepts(tokens[:-1])
    assert (automaton & Automaton.avoiding([tokens[2:4]], vocab_size=50_000, end_token=0)).accepts(tokens) is False


def test_what_cannot_be_is_refused_by_check():
    required = Automaton.requiring([[0, 1, 3]], vocab_size=V, end_token=END)
    with pytest.raises(ValueError, match="5 tokens, the logits 6"):
        required.check(6, 9)
    with pytest.raises(ValueError, match="no path to its end"):
        (required & Automaton.avoiding([[1]], vocab_size=V, end_token=END)).check(V, 99)
    with pytest.raises(ValueError, match="no path to its end"):
        Automaton.from_regex("x+", ["a", "b", None, "", "ax"], end_token=END).check(V, 99)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Automaton.requiring([[0], []], vocab_size=V, end_token=END), r"\[\] is empty"),
        (lambda: Automaton.avoiding([[0, END]], vocab_size=V, end_token=END), r"\[0, 2\] .* end token 2"),
        (lambda: Automaton.avoiding([[0, 5]], vocab_size=V, end_token=END), "5 is none of the 5 tokens"),
        (lambda: Automaton.requiring([[-1]], vocab_size=V, end_token=END), "-1 is none of the 5 tokens"),
        (lambda: Automaton.requiring([], vocab_size=V, end_token=7), "7 is none of the 5 tokens"),
        (lambda: Automaton.requiring([[i] for i in range(13)], vocab_size=20, end_token=19), "13 sequences.* 12"),
        (lambda: Automaton.from_regex("a(?=b)", ["a", "b"], end_token=0), "lookahead"),
        (lambda: Automaton.from_regex("a", ["a", "b"], end_token=2), "2 is none of the 2 tokens"),
        (
            lambda: Automaton.from_transitions({(0, 5): 0}, [0], vocab_size=V, end_token=END),
            "5 is none of the 5 tokens",
        ),
        (lambda: Automaton.from_transitions({(0, END): 0}, [0], vocab_size=V, end_token=END), "by the end token 2"),
        (
            lambda: Automaton.from_transitions({(-1, 0): 0}, [0], vocab_size=V, end_token=END),
            "-1 is none of the 1 state",
        ),
        (
            lambda: Automaton.from_transitions({(0, 1): -2}, [0], vocab_size=V, end_token=END),
            "-2 is none of the 1 state",
        ),
        (
            lambda: Automaton.from_transitions(np.zeros((2, 4), int), [0], vocab_size=V, end_token=END),
            r"\[Q 5\], not \(2, 4\)",
        ),
        (
            lambda: Automaton.from_transitions(np.full((2, V), 2), [0], vocab_size=V, end_token=END),
            "2 is none of the 2 states",
        ),
        (
            lambda: Automaton.from_transitions(np.full((2, V), -1), [3], vocab_size=V, end_token=END),
            "3 is none of the 2 states",
        ),
        (
            lambda: Automaton.from_transitions(np.full((2, V), 0), [1], vocab_size=V, end_token=END),
            "by the end token 2",
        ),
        (lambda: requiring([])[0] & Automaton.requiring([], vocab_size=6, end_token=END), r"\(5, 2\) and \(6, 2\)"),
        (lambda: requiring([])[0] & Automaton.requiring([], vocab_size=V, end_token=0), r"\(5, 2\) and \(5, 0\)"),
        (lambda: requiring([])[0].accepts([0, 5]), "5 is none of the 5 tokens"),
    ],
)
def test_bad_input_is_refused_by_name(make, what):
    with pytest.raises(ValueError, match=what):
        make()


def test_what_is_too_large_is_refused_by_its_size(monkeypatch):
    monkeypatch.setattr(jaxseq.decoding.transitions, "MAX_STATES", 100)
    words = [[0, 1, 3], [1, 1, 4], [3, 0], [4, 1], [0, 0, 4]]
    with pytest.raises(ValueError, match=r"requiring: \d+ states by 5 classes; at most 100,"):
        requiring(words)
    some, others = requiring(words[:3])[0], requiring(words[3:])[0]
    with pytest.raises(ValueError, match="product of two automata"):
        some & others
    monkeypatch.setattr(jaxseq.decoding.transitions, "MAX_ENTRIES", 30)
    with pytest.raises(ValueError, match="avoiding: 13 states by 5 classes"):
        avoiding(words)
    with pytest.raises(ValueError, match="regular expression over these tokens: 5 states"):
        Automaton.from_regex("abcd", ["a", "b", "", "c", "d", "ab", "cd"], end_token=END)


def test_states_may_be_given_as_a_mask():
    table = np.full((2, V), -1)
    table[0, 3] = 1
    for accepting in ([1], {1}, np.array([False, True])):
        made = Automaton.from_transitions(table, accepting, vocab_size=V, end_token=END)
        assert made.accepts([3]) and not made.accepts([]) and not made.accepts([3, END, 3])


def test_nothing_but_an_automaton_is_intersected():
    with pytest.raises(TypeError):
        requiring([])[0] & 3
