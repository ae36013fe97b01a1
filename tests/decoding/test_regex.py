"""Regular expressions as automata: against ``re.fullmatch``, on patterns of every construct and on noise."""

import functools
import re
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxseq.decoding.regex
from jaxseq.decoding.regex import LAST_CODE_POINT, CharacterAutomaton, compile_regex

ATOMS = ["a", "b", "ab", ".", "[ab]", "[^a]", "[a-c0]", r"\d", r"\W", r"[\s\-]", r"[^\w.]", r"\.", "()", "[]x]", "[b-]"]
REPEATS = ["*", "+", "?", "{2}", "{1,}", "{,2}", "{0,2}", "{,}", "*?", "+?", "??", "{1,2}?"]
TEXTS = st.text("aabbbcx01.-] _é٣\n", max_size=6)
NOISE = st.lists(
    st.sampled_from(
        [*"ab0-^$[](){}|*+?.,\\:1\nd", r"\d", r"\W", "a{", "{1,2}", "[^", "(?:", "(?", r"\x4", r"\x41", r"\0"]
    ),
    min_size=1,
    max_size=9,
).map("".join)


def extended(patterns):
    return st.one_of(
        st.tuples(patterns, patterns).map("".join),
        st.tuples(patterns, patterns).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(patterns, st.sampled_from(REPEATS)).map(lambda pair: f"({pair[0]}){pair[1]}"),
    )


PATTERNS = st.recursive(st.sampled_from(ATOMS), extended, max_leaves=6)


@functools.cache
def every_character() -> str:
    return "".join(map(chr, range(LAST_CODE_POINT + 1)))


def compiled_by_re(pattern: str) -> re.Pattern | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return re.compile(pattern)
    except (re.error, OverflowError):
        return None


@given(PATTERNS, st.lists(TEXTS, min_size=8, max_size=8))
@settings(deadline=None, max_examples=200)
def test_a_pattern_matches_what_re_fullmatch_does(pattern, texts):
    automaton, expected = compile_regex(pattern), re.compile(pattern)
    for text in texts:
        assert automaton.fullmatch(text) == (expected.fullmatch(text) is not None), (pattern, text)


@given(PATTERNS, st.data())
@settings(deadline=None, max_examples=100)
def test_texts_made_from_a_pattern_match_it(pattern, data):
    text = data.draw(st.from_regex(re.compile(pattern), fullmatch=True))
    assert compile_regex(pattern).fullmatch(text)


@given(NOISE, st.lists(TEXTS, min_size=8, max_size=8))
@settings(deadline=None, max_examples=400)
def test_noise_is_refused_or_means_what_it_means_to_re(pattern, texts):
    expected = compiled_by_re(pattern)
    try:
        automaton = compile_regex(pattern)
    except ValueError as error:
        assert repr(pattern) in str(error)
        return
    assert expected is not None, f"re refuses {pattern!r}"
    for text in texts:
        assert automaton.fullmatch(text) == (expected.fullmatch(text) is not None), (pattern, text)


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"\d", r"\w", r"\s", r"[^\Wa-f\d]"),
        *(pytest.param(p, marks=pytest.mark.full) for p in (r"\D", r"\W", r"\S", ".", r"[\x80-\uffffé]", "a")),
    ],
)
def test_a_set_holds_the_code_points_that_it_holds_for_re(pattern):
    everything = every_character()
    automaton = compile_regex(pattern)
    after = automaton.table[0, automaton.classes_of(everything)]
    expected = np.zeros(len(everything), bool)
    expected[[found.start() for found in re.finditer(pattern, everything)]] = True
    assert np.array_equal((after >= 0) & automaton.accepting[after], expected)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("", ""),
        ("^$", ""),
        ("^a|b$", "b"),
        (r"\t\n\r\f\v\a", "\t\n\r\f\v\a"),
        (r"\x41é\u0416\U0001F600", "AéЖ😀"),
        (r"\0\07\101[\101\1\b]", "\0\x07A\x08"),
        (r"\[\]\(\)\{\}\*\+\?\.\|\^\$\\\-\/\ ", "[](){}*+?.|^$\\-/ "),
        ("a{}b{x}{,c}]", "a{}b{x}{,c}]"),
        ("[[a^-]+", "^a-["),
        ("(a|b|)*?c", "abbac"),
        ("\ud800.", "\ud800\udfff"),
        ("a{3}b{0}c{2,}d{,1}e{,}", "aaaccceee"),
    ],
)
def test_escapes_and_oddities_mean_what_they_mean_to_re(pattern, text):
    expected = compiled_by_re(pattern)
    for trial in (text, text[:-1], text + "a", text[1:], "a" + text):
        assert compile_regex(pattern).fullmatch(trial) == (expected.fullmatch(trial) is not None)
    assert compile_regex(pattern).fullmatch(text)


@pytest.mark.parametrize(
    ("pattern", "what", "position"),
    [
        (r"(a)\1", r"backreference \\1", 3),
        (r"(a)(?P=x)", "backreference", 3),
        ("a(?=b)", "lookahead", 1),
        ("a(?!b)", "lookahead", 1),
        ("(?<=b)a", "lookbehind", 0),
        ("(?<!b)a", "lookbehind", 0),
        (r"a\b", r"word boundary \\b", 1),
        (r"a\B", r"word boundary \\B", 1),
        (r"\Aa", r"anchor \\A", 0),
        ("(?i)a", "flag", 0),
        ("a(?s:.)", "flag", 1),
        ("(?P<x>a)", "named group", 0),
        ("(?>a)", "atomic group", 0),
        ("(a)?(?(1)b)", "conditional group", 4),
        ("a(?#b)", "comment", 1),
        ("ba*+", "possessive", 2),
        ("ba{2}+", "possessive", 2),
        ("a^b", "anchor ^", 1),
        ("(a$)", "anchor $", 2),
        ("a**", "repeat of a repeat", 2),
        ("a|*b", "of nothing", 2),
        ("(?:{2}a)", "of nothing", 3),
        ("a{3,2}", "{3,2}", 1),
        ("a)b", "unbalanced", 1),
        ("b(a", "group that is not closed", 1),
        ("b[a", "set that is not closed", 1),
        ("[]", "set that is not closed", 0),
        ("[z-a]", "range z-a", 1),
        (r"[a-\d]", r"range a-\\d", 1),
        (r"a\q", r"escape \\q", 1),
        (r"\N{BULLET}", r"escape \\N", 0),
        (r"\x4g", r"escape \\x", 0),
        (r"[\400]", "code point", 1),
        (r"\U00110000", "code point", 0),
        ("a\\", "escape", 1),
        ("(" * 60 + ")" * 60, "nested", 50),
    ],
)
def test_what_is_no_automaton_or_no_pattern_is_refused_by_name_and_position(pattern, what, position):
    with pytest.raises(ValueError) as refused:
        compile_regex(pattern)
    assert what.replace("\\\\", "\\") in str(refused.value)
    assert f"at position {position} of" in str(refused.value)


@pytest.mark.parametrize("pattern", ["(a{99}){99}", "(){999999999}", "[ab]*a[ab]{20}", "(a?){99}"])
def test_a_pattern_that_is_too_large_is_refused(pattern, monkeypatch):
    for limit, value in {"MAX_POSITIONS": 2000, "MAX_STATES": 200, "MAX_WORK": 5000}.items():
        monkeypatch.setattr(jaxseq.decoding.regex, limit, value)
    with pytest.raises(ValueError, match="too large"):
        compile_regex(pattern)


def test_an_automaton_knows_only_as_many_classes_as_the_pattern_tells_apart():
    automaton = compile_regex(r"(\w[a-f]+\s)*")
    assert isinstance(automaton, CharacterAutomaton)
    assert automaton.classes.max() + 1 == automaton.table.shape[1] == 4
    assert np.all(np.diff(automaton.starts) > 0)
