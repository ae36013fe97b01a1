"""Pairs made by a rule: the rule holds for each of them, and none is on both sides."""

import sys

import pytest

from jaxseq.data import number_pairs, random_strings, reversal_pairs


def sources(pairs) -> set[str]:
    return {source for source, _ in pairs}


def test_a_reversal_is_the_reverse_and_no_source_is_on_both_sides():
    options = dict(min_string_length=2, max_string_length=9, num_pairs=3000, held_out_fraction=0.2)
    corpus = reversal_pairs(**options)
    pairs = corpus.train + corpus.held_out
    assert all(target == source[::-1] for source, target in pairs)
    assert {len(source) for source, _ in pairs} == set(range(2, 10))
    assert len(pairs) + corpus.num_dropped == 3000
    assert len(sources(pairs)) == len(pairs)
    assert abs(len(corpus.held_out) / len(pairs) - 0.2) < 0.01
    assert corpus == reversal_pairs(**options)
    assert corpus.sha256 != reversal_pairs(**options, seed=1).sha256


def test_random_strings_have_their_length_and_are_new():
    corpus = reversal_pairs(alphabet="ab", max_string_length=8, num_pairs=200)
    known = sources(corpus.train)
    for length in (1, 4, 8, 16):
        texts = random_strings(length=length, num_strings=50, alphabet="ab", exclude=known)
        assert all(len(text) == length and set(text) <= set("ab") for text in texts)
        assert not known & set(texts)
        assert len(set(texts)) == len(texts)
    assert len(texts) == 50  # of 16 letters there are enough
    assert random_strings(length=1, num_strings=5, alphabet="ab", exclude=["a", "b"]) == ()
    assert random_strings(length=7, num_strings=9, seed=1) == random_strings(length=7, num_strings=9, seed=1)
    assert random_strings(length=7, num_strings=9, seed=1) != random_strings(length=7, num_strings=9, seed=2)


def test_strings_that_cannot_be_are_refused():
    for alphabet in ("", "aba"):
        with pytest.raises(ValueError, match=rf"each once, not '{alphabet}'"):
            reversal_pairs(alphabet=alphabet)
        with pytest.raises(ValueError, match=rf"each once, not '{alphabet}'"):
            random_strings(length=1, num_strings=1, alphabet=alphabet)
    for low, high in ((0, 3), (5, 4)):
        with pytest.raises(ValueError, match=rf"min_string_length <= max_string_length .* not {low} and {high}"):
            reversal_pairs(min_string_length=low, max_string_length=high)
    with pytest.raises(ValueError, match="num_pairs must be at least 2, not 1"):
        reversal_pairs(num_pairs=1)
    for length, number in [(0, 1), (1, 0)]:
        with pytest.raises(ValueError, match=rf"at least 1, not {length} and {number}"):
            random_strings(length=length, num_strings=number)


def test_numbers_in_words_and_digits_are_each_others_inverse():
    pytest.importorskip("num2words", reason="the extra 'translation' is not installed")
    sizes = dict(num_pairs=300, num_held_out_pairs=40)
    made = [number_pairs("de", direction=direction, **sizes) for direction in ("digits", "words")]
    for part in ("train", "held_out"):
        to_digits, to_words = (getattr(corpus, part) for corpus in made)
        assert to_digits == tuple((words, digits) for digits, words in to_words)
    digits = [int(digits) for digits, _ in made[1].train + made[1].held_out]
    assert len(set(digits)) == 340
    assert 0 <= min(digits) < 50_000 and 950_000 < max(digits) <= 999_999
    fewer = number_pairs("de", direction="words", num_pairs=10, num_held_out_pairs=40)
    assert fewer.held_out == made[1].held_out
    every = number_pairs(direction="words", max_number=9, num_pairs=9, num_held_out_pairs=1)
    assert sources(every.train + every.held_out) == set("0123456789")


def test_numbers_that_cannot_be_are_refused():
    pytest.importorskip("num2words", reason="the extra 'translation' is not installed")
    for language in ("xx", "english", "de_XX"):
        with pytest.raises(ValueError, match=rf"unknown language '{language}'.*known: am, .*, vi"):
            number_pairs(language)
    with pytest.raises(ValueError, match="unknown direction 'up'; known: digits, words"):
        number_pairs(direction="up")
    with pytest.raises(ValueError, match=r"8 \+ 3 pairs: more than there are integers from 0 to 9"):
        number_pairs(max_number=9, num_pairs=8, num_held_out_pairs=3)
    with pytest.raises(ValueError, match="at least 1, not 0 and 1000"):
        number_pairs(num_pairs=0)
    with pytest.raises(ValueError, match=r"no words for \d+ in 'am': TypeError"):
        number_pairs("am", num_pairs=50)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxseq\[translation\]'"):
        number_pairs()
