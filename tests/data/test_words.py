"""A vocabulary of words: the rule that splits them, counts, cuts and round trips."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.data import Vocabulary, Words, split_words, vocabulary_from_json


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's t-shirt, on  a dog .", ["a", "man's", "t-shirt", ",", "on", "a", "dog", "."]),
        ("two\tdogs\nplay!!", ["two", "dogs", "play", "!", "!"]),
        ("'quoted' - x", ["'", "quoted", "'", "-", "x"]),
        ("Ein Käsekuchen für 3,50 €", ["ein", "käsekuchen", "für", "3", ",", "50", "€"]),
        ("Cafe\u0301", ["caf\u00e9"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("می\u200cروم", ["می\u200cروم"]),
        ("一只狗。", ["一只狗", "。"]),
        ("a ❤\ufe0f b", ["a", "❤\ufe0f", "b"]),
        ("an <unk> dog", ["an", "<unk>", "dog"]),
        ("", []),
        (" \n", []),
    ],
)
def test_a_text_is_split_by_the_documented_rule(text, words):
    assert split_words(text) == words


def test_case_and_punctuation_are_options():
    assert split_words("A dog, Rex.", lowercase=False) == ["A", "dog", ",", "Rex", "."]
    assert split_words("A dog, Rex.", punctuation=False) == ["a", "dog", "rex"]


@given(st.text(max_size=60), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_joined_words_split_into_the_same_words(text, lowercase, punctuation):
    options = {"lowercase": lowercase, "punctuation": punctuation}
    words = split_words(text, **options)
    assert split_words(" ".join(words), **options) == words
    if punctuation and not lowercase:
        assert sum(map(len, words)) <= len(text)
    vocabulary = Words.fit([text], **options)
    assert vocabulary_from_json(vocabulary.to_json()) == vocabulary
    assert vocabulary.decode(vocabulary.encode(text)) == " ".join(words)
    assert vocabulary.separator not in vocabulary.encode(text)


def test_rare_words_become_unknown_and_frequent_ones_come_first():
    vocabulary = Words.fit(["b b b a a", "C c c d"], min_count=2)
    assert isinstance(vocabulary, Vocabulary)
    assert vocabulary.words == ("b", "c", "a")
    assert (vocabulary.size, vocabulary.separator, vocabulary.unknown) == (5, 0, 1)
    ids = vocabulary.encode("a d B zebra")
    assert ids.tolist() == [4, 1, 2, 1]
    assert vocabulary.decode(np.array([0, *ids, 0])) == "a <unk> b <unk>"
    assert vocabulary.encode("a <unk> b <unk>").tolist() == ids.tolist()
    assert vocabulary.escape_bits("a d B zebra") == pytest.approx(np.log2(17 * 2**16) * (2 + 6))


def test_a_caption_is_cut_after_the_largest_number_of_words_and_the_rest_is_charged():
    vocabulary = Words.fit(["a b c d e"], max_words=3)
    assert vocabulary.decode(vocabulary.encode("a b c d e")) == "a b c"
    assert vocabulary.escape_bits("a b c d e") == pytest.approx(np.log2(17 * 2**16) * 4)
    assert vocabulary_from_json(vocabulary.to_json()).max_words == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"words": ["a", "a"]}, "'a' is given 2 times"),
        ({"words": ["a b"]}, "not one word of this vocabulary: 'a b'"),
        ({"words": ["A"]}, "not one word"),
        ({"words": [""]}, "not one word"),
        ({"words": ["<unk>"]}, "not one word"),
        ({"words": "ab"}, "a list of strings"),
        ({"words": [1]}, "a list of strings"),
        ({}, "a list of strings"),
        ({"words": [], "max_words": 0}, "at least 1, not 0"),
        ({"words": [], "max_words": "16"}, "a number or null, not '16'"),
        ({"words": [], "max_words": True}, "a number or null, not True"),
        ({"words": [], "lowercase": "false"}, "lowercase must be true or false, not 'false'"),
        ({"words": [], "punctuation": 0}, "punctuation must be true or false, not 0"),
        ({"words": [], "punctuation": None}, "punctuation must be true or false, not None"),
    ],
)
def test_what_is_no_vocabulary_of_words_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        vocabulary_from_json(json.dumps({"kind": "words", **fields}))


def test_json_that_is_no_object_and_ids_that_are_no_integers_are_refused():
    for text in ("[]", "3", "null", '"words"'):
        with pytest.raises(ValueError, match="must be an object, not"):
            Words.from_json(text)
    for tokens in (np.array([1.5]), np.array(["a"]), np.array([True]), np.array([None])):
        with pytest.raises(ValueError, match="token ids must be integers, not"):
            Words(("a",)).decode(tokens)
    assert Words(("a",)).decode([]) == ""


def test_counts_below_one_are_refused():
    with pytest.raises(ValueError, match="min_count must be at least 1, not 0"):
        Words.fit(["a"], min_count=0)
