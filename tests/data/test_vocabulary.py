"""Vocabularies: round trips, one honest unit, and a JSON that makes them again."""

import sys
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.data import BPE, VOCABULARIES, Bytes, Characters, Words, fit_vocabulary, vocabulary_from_json

TEXT = "the cat sat on the mat; the hat, the bat and the rat\n\n\tœuvre, straße, 日本 🙂" * 20


@cache
def small_bpe() -> BPE:
    return BPE.fit([TEXT], vocab_size=300)


@pytest.fixture(scope="module", params=list(VOCABULARIES))
def vocabulary(request):
    if request.param == "bpe":
        pytest.importorskip("tokenizers")
    return fit_vocabulary(request.param, [TEXT])


@given(st.text(max_size=200))
@settings(deadline=None, max_examples=200)
def test_characters_give_back_every_text_they_were_made_from(text):
    vocabulary = Characters.fit([text])
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.size == 2 + len(set(text))
    assert vocabulary.escape_bits(text) == 0


@given(st.text(max_size=200))
@settings(deadline=None, max_examples=200)
def test_bytes_give_back_every_text(text):
    assert Bytes().decode(Bytes().encode(text)) == text


@given(st.text(max_size=100))
@settings(deadline=None, max_examples=200)
def test_bpe_gives_back_texts_it_has_never_seen(text):
    pytest.importorskip("tokenizers")
    vocabulary = small_bpe()
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_known_text_round_trips_and_never_holds_the_separator(vocabulary):
    ids = vocabulary.encode(TEXT)
    assert ids.dtype == np.int32
    assert vocabulary.decode(ids) == (" ".join(vocabulary.split(TEXT)) if isinstance(vocabulary, Words) else TEXT)
    assert ids.min() >= 0
    assert ids.max() < vocabulary.size
    assert 0 <= vocabulary.separator < vocabulary.size
    assert vocabulary.separator not in ids
    assert len(vocabulary.encode("")) == 0


def test_the_separator_decodes_to_nothing(vocabulary):
    ids = vocabulary.encode("cat")
    mark = np.array([vocabulary.separator])
    assert vocabulary.decode(np.concatenate([mark, ids, mark])) == "cat"


def test_a_vocabulary_survives_json(vocabulary):
    again = vocabulary_from_json(vocabulary.to_json())
    assert again == vocabulary
    assert (again.size, again.separator) == (vocabulary.size, vocabulary.separator)
    assert np.array_equal(again.encode(TEXT + "ÿ"), vocabulary.encode(TEXT + "ÿ"))
    assert again.to_json() == vocabulary.to_json()


def test_an_id_outside_the_vocabulary_is_refused(vocabulary):
    for wrong in (-1, vocabulary.size):
        with pytest.raises(ValueError, match=str(wrong)):
            vocabulary.decode([wrong])


def test_fitting_twice_gives_the_same_vocabulary(vocabulary):
    name = next(name for name, kind in VOCABULARIES.items() if isinstance(vocabulary, kind))
    assert fit_vocabulary(name, [TEXT]) == vocabulary


def test_an_unknown_character_becomes_the_replacement_and_is_charged_for():
    vocabulary = Characters.fit(["abc", "cd"])
    assert vocabulary.encode("abxdé").tolist() == [2, 3, 1, 5, 1]
    assert vocabulary.decode(vocabulary.encode("abxdé")) == "ab\ufffdd\ufffd"
    assert vocabulary.escape_bits("abxdé") == pytest.approx(2 * np.log2(17 * 2**16))
    assert Characters("").encode("ab").tolist() == [1, 1]
    for other in ("bytes", "bpe"):
        if other == "bpe":
            pytest.importorskip("tokenizers")
        assert fit_vocabulary(other, ["abc"]).escape_bits("abxdé") == 0


def test_bpe_merges_what_is_frequent():
    pytest.importorskip("tokenizers")
    small, large = BPE.fit([TEXT], vocab_size=257), BPE.fit([TEXT], vocab_size=290)
    assert (small.size, large.size) == (257, 290)
    assert len(small.encode(TEXT)) == len(TEXT.encode())
    assert len(large.encode(TEXT)) < 0.5 * len(TEXT.encode())
    with pytest.raises(ValueError, match="256"):
        BPE.fit([TEXT], vocab_size=256)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="unknown vocabulary 'word'; known: characters, bytes, bpe, words"):
        fit_vocabulary("word", ["a"])


def test_an_option_of_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="min_count=2 is an option of 'words', not of 'bpe'"):
        fit_vocabulary("bpe", ["a"], min_count=2)
    assert fit_vocabulary("words", ["a b a"], min_count=2).size == 3


def test_only_bpe_has_a_vocab_size():
    with pytest.raises(ValueError, match="vocab_size=300 is an option of 'bpe', not of 'bytes'"):
        fit_vocabulary("bytes", ["a"], vocab_size=300)
    pytest.importorskip("tokenizers")
    assert fit_vocabulary("bpe", [TEXT], vocab_size=258).size == 258


@pytest.mark.parametrize("wrong", ["", "[]", "{}", '{"kind": "word"}', "nonsense"])
def test_what_is_no_vocabulary_is_refused(wrong):
    with pytest.raises(ValueError, match="vocabulary"):
        vocabulary_from_json(wrong)


def test_a_vocabulary_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="'bytes', not 'characters'"):
        Characters.from_json(Bytes().to_json())


def test_characters_must_be_distinct_and_sorted():
    for wrong in ("ba", "aa"):
        with pytest.raises(ValueError, match="distinct"):
            Characters(wrong)


def test_without_tokenizers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"jaxseq\[text\]"):
        fit_vocabulary("bpe", ["a"])
