"""Stopping criteria: rows end at the first token that completes a string or a sequence, in every way of decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from toy_models import every_sequence, table_step

from jaxseq.decoding import BeamOptions, Stop, beam_search, greedy, sample, stream

END = 1
TEXTS, STRINGS = ["a", "", "bc", "b"], ["ca", "bb"]
STOPS = Stop.at_strings(STRINGS, TEXTS)


def first_stop(tokens, texts, strings) -> int | None:
    """The number of tokens after which the text contains one of the strings."""
    for n in range(1, len(tokens) + 1):
        if any(string in "".join(texts[token] for token in tokens[:n]) for string in strings):
            return n
    return None


def test_rows_end_at_the_first_token_that_completes_a_string_over_any_vocabulary() -> None:
    rng = np.random.default_rng(1)

    def texts(count, least, longest):
        return ["".join(rng.choice(list("abé"), rng.integers(least, longest))) for _ in range(count)]

    for case in range(40):
        spellings, strings = texts(6, 0, 4), texts(2, 1, 4)
        rule = Stop.at_strings(strings, [s.encode() for s in spellings] if case % 2 else [s or None for s in spellings])
        for tokens in rng.integers(0, 6, (20, 8)).tolist():
            state, found = 0, None
            for n, token in enumerate(tokens, start=1):
                state = int(rule.table[state, rule.classes[token]])
                found = n if found is None and rule.found[state] else found
            assert found == first_stop(tokens, spellings, strings), (spellings, strings, tokens)


def test_a_character_may_be_spelled_by_several_tokens() -> None:
    rule = Stop.at_strings(["é"], [b"\xc3", b"\xa9", b"", b"\xc3\xa9"])
    for tokens, want in [((0, 1), 2), ((0, 2, 1), 3), ((1, 0), None), ((3,), 1)]:
        states = [0]
        for token in tokens:
            states.append(int(rule.table[states[-1], rule.classes[token]]))
        assert [i for i, state in enumerate(states) if rule.found[state]][:1] == ([want] if want else [])


SEQUENCES = [(0, 3), (2, 0), (0, 2, 3)]


def first_sequence(tokens) -> int | None:
    """The number of tokens after which the row first ends with one of the sequences."""
    ends = [n for n in range(1, len(tokens) + 1) for s in SEQUENCES if tuple(tokens[max(0, n - len(s)) : n]) == s]
    return min(ends, default=None)


@pytest.mark.parametrize("kind", ["strings", pytest.param("sequences", marks=pytest.mark.full)])
def test_beams_that_stop_are_finished(kind: str) -> None:
    """Enumeration: the hypotheses are the sequences cut at their first stop."""
    size, length = 4, 4
    rule = STOPS if kind == "strings" else Stop.at_sequences(SEQUENCES, vocab_size=size)
    table = jax.random.normal(jax.random.key(7), (length, size, size))
    arguments = (Partial(table_step, table), jnp.zeros((), jnp.int32), jnp.asarray(0), BeamOptions(size**length))
    found = beam_search(*arguments, max_length=length, end_token=END, constraints=[rule])
    stop = (lambda s: first_stop(s, TEXTS, STRINGS)) if kind == "strings" else first_sequence
    want = {s[: stop(s)] for s in every_sequence(size, length, END)}
    chances = np.asarray(jax.nn.log_softmax(table), np.float64)
    totals = {s: sum(chances[p] for p in zip(range(length), (0, *s[:-1]), s, strict=False)) for s in want}
    got = [tuple(t[:n]) for t, n in zip(found.tokens.tolist(), found.lengths.tolist(), strict=True) if n]
    assert got == sorted(want, key=lambda s: -totals[s])
    np.testing.assert_allclose(found.log_probabilities[: len(got)], [totals[s] for s in got], atol=1e-5)


@pytest.mark.full
def test_greedy_samples_and_streams_end_at_a_stop(key: jax.Array) -> None:
    table = jax.random.normal(jax.random.key(9), (4, 4)).at[:, END].add(-2.0)
    arguments = (Partial(table_step, table), jnp.zeros(4, jnp.int32), jnp.arange(4, dtype=jnp.int32))
    limits = {"max_length": 9, "end_token": END}
    free = sample(*arguments, key=key, **limits)
    made = sample(*arguments, key=key, constraints=[STOPS], **limits)
    cut = 0
    for row, n, whole, count in zip(*(x.tolist() for x in (*made[:2], *free[:2])), strict=True):
        until = first_stop(whole[:count], TEXTS, STRINGS) or count
        assert n == until and row == [*whole[:until], *[END] * (9 - until)]
        cut += until < count
    assert cut
    streamed = np.stack(list(stream(*arguments, key=key, constraints=[STOPS], **limits)), axis=-1)
    assert np.array_equal(streamed, made.tokens[:, : streamed.shape[1]]) and streamed.shape[1] == max(made.lengths)
    taken = greedy(*arguments, constraints=[STOPS], **limits)
    best = beam_search(*arguments, BeamOptions(1), constraints=[STOPS], **limits)
    assert jnp.array_equal(best.tokens[:, 0], taken.tokens) and jnp.array_equal(best.lengths[:, 0], taken.lengths)
