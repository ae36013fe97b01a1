"""Pairs made by a rule: the rule holds for each of them, and none is on both sides."""

import sys

import pytest

from jaxseq.data import number_pairs, random_strings, reversal_pairs


def sources(pairs) -> set[str]:
    return {source for source, _ in pairs}


def test_a_reversal_is_the_reverse_and_no_source_is_on_both_sides():
    corpus = reversal_pairs(shortest=2, longest=9, number=3000, held_out=0.2)
    pairs = corpus.train + corpus.held_out
    assert all(target == source[::-1] for source, target in pairs)
    assert {len(source) for source, _ in pairs} == set(range(2, 10))
    assert len(pairs) + corpus.dropped == 3000
    assert len(sources(pairs)) == len(pairs)
    assert abs(len(corpus.held_out) / len(pairs) - 0.2) < 0.01
    assert corpus == reversal_pairs(shortest=2, longest=9, number=3000, held_out=0.2)
    assert corpus.sha256 != reversal_pairs(shortest=2, longest=9, number=3000, held_out=0.2, seed=1).sha256


def test_random_strings_have_their_length_and_are_new():
    corpus = reversal_pairs(alphabet="ab", longest=8, number=200)
    known = sources(corpus.train)
    for length in (1, 4, 8, 16):
        texts = random_strings(length=length, number=50, alphabet="ab", without=known)
        assert all(len(text) == length and set(text) <= set("ab") for text in texts)
        assert not known & set(texts)
        assert len(set(texts)) == len(texts)
    assert len(texts) == 50  # of 16 letters there are enough
    assert random_strings(length=1, number=5, alphabet="ab", without=["a", "b"]) == ()
    assert random_strings(length=7, number=9, seed=1) == random_strings(length=7, number=9, seed=1)
    assert random_strings(length=7, number=9, seed=1) != random_strings(length=7, number=9, seed=2)


def test_strings_that_cannot_be_are_refused():
    for alphabet in ("", "aba"):
        with pytest.raises(ValueError, match=rf"each once, not '{alphabet}'"):
            reversal_pairs(alphabet=alphabet)
        with pytest.raises(ValueError, match=rf"each once, not '{alphabet}'"):
            random_strings(length=1, number=1, alphabet=alphabet)
    for sizes in (dict(shortest=0), dict(shortest=5, longest=4), dict(number=1)):
        with pytest.raises(ValueError, match=rf"shortest <= longest.* not .*{next(iter(sizes.values()))}"):
            reversal_pairs(**sizes)
    for length, number in [(0, 1), (1, 0)]:
        with pytest.raises(ValueError, match=rf"at least 1, not {length} and {number}"):
            random_strings(length=length, number=number)


def test_numbers_in_words_and_digits_are_each_others_inverse():
    pytest.importorskip("num2words", reason="the extra 'translation' is not installed")
    sizes = dict(number=300, held_out_number=40)
    made = [number_pairs("de", direction=direction, **sizes) for direction in ("digits", "words")]
    for part in ("train", "held_out"):
        to_digits, to_words = (getattr(corpus, part) for corpus in made)
        assert to_digits == tuple((words, digits) for digits, words in to_words)
    digits = [int(digits) for digits, _ in made[1].train + made[1].held_out]
    assert len(set(digits)) == 340
    assert 0 <= min(digits) < 50_000 and 950_000 < max(digits) <= 999_999
    fewer = number_pairs("de", direction="words", number=10, held_out_number=40)
    assert fewer.held_out == made[1].held_out
    every = number_pairs(direction="words", largest=9, number=9, held_out_number=1)
    assert sources(every.train + every.held_out) == set("0123456789")


def test_numbers_that_cannot_be_are_refused():
    pytest.importorskip("num2words", reason="the extra 'translation' is not installed")
    for language in ("xx", "english", "de_XX"):
        with pytest.raises(ValueError, match=rf"unknown language '{language}'.*known: am, .*, vi"):
            number_pairs(language)
    with pytest.raises(ValueError, match="unknown direction 'up'; known: digits, words"):
        number_pairs(direction="up")
    with pytest.raises(ValueError, match="8 \\+ 3 different numbers from 0 to 9"):
        number_pairs(largest=9, number=8, held_out_number=3)
    with pytest.raises(ValueError, match="at least 1, not 0 and 1000"):
        number_pairs(number=0)
    with pytest.raises(ValueError, match=r"no words for \d+ in 'am': TypeError"):
        number_pairs("am", number=50)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxseq\[translation\]'"):
        number_pairs()
