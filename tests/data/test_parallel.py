"""Pairs in two parts: no source on both sides, nothing lost, the same whatever the order."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.data import ParallelCorpus, parallel_corpus, split_pairs

WORDS = st.text("abc", min_size=1, max_size=2)
PAIRS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=60)
MANY = [(f"source {i % 700}", f"target {i % 900}") for i in range(2000)]


@given(PAIRS, st.floats(0.05, 0.95), st.integers(0, 5))
@settings(deadline=None, max_examples=100)
def test_a_split_keeps_every_distinct_pair_once_and_no_source_on_both_sides(pairs, held_out, seed):
    if len({source for source, _ in pairs}) < 2:
        with pytest.raises(ValueError, match=r"at least 2 different sources, not [01]"):
            split_pairs(pairs, description="words", held_out_fraction=held_out, seed=seed)
        return
    corpus = split_pairs(pairs, description="words", held_out_fraction=held_out, seed=seed)
    assert sorted(corpus.train + corpus.held_out) == sorted(set(pairs))
    assert corpus.num_dropped == len(pairs) - len(set(pairs))
    assert corpus.train and corpus.held_out
    assert not {source for source, _ in corpus.train} & {source for source, _ in corpus.held_out}
    first_seen = list(dict.fromkeys(pairs))
    for part in (corpus.train, corpus.held_out):
        assert list(part) == sorted(part, key=first_seen.index)


@pytest.mark.parametrize("held_out", [0.05, 0.1, 0.5])
def test_a_split_holds_out_the_share_that_is_asked_for(held_out):
    corpus = split_pairs(MANY, description="many", held_out_fraction=held_out)
    assert abs(len(corpus.held_out) / len(set(MANY)) - held_out) < 0.01


def test_what_is_held_out_depends_on_the_seed_and_not_on_the_order():
    shuffled = [MANY[i] for i in np.random.default_rng(1).permutation(len(MANY))]
    one, other = (split_pairs(pairs, description="many", seed=3) for pairs in (MANY, shuffled))
    assert set(one.held_out) == set(other.held_out)
    assert set(one.held_out) != set(split_pairs(MANY, description="many", seed=4).held_out)


def test_the_fingerprint_covers_every_text_and_both_parts():
    made = [
        parallel_corpus(train, held_out, description="s").sha256
        for train, held_out in [
            ([("a", "b"), ("c", "d")], [("e", "f")]),
            ([("c", "d"), ("a", "b")], [("e", "f")]),
            ([("a", "b"), ("c", "D")], [("e", "f")]),
            ([("ab", ""), ("c", "d")], [("e", "f")]),
            ([("a", "b")], [("c", "d"), ("e", "f")]),
            ([("a", "b"), ("c", "d")], [("e", "F")]),
        ]
    ]
    assert len(set(made)) == len(made)
    assert parallel_corpus([("a", "b"), ("c", "d")], [("e", "f")], description="other name").sha256 == made[0]


def test_a_held_out_part_that_is_given_stays_whole_and_its_sources_leave_the_training_part():
    held_out = [("a", "1"), ("a", "1"), ("b", "2")]
    corpus = parallel_corpus(
        [("a", "other"), ("c", "3"), ("c", "3"), ("d", "2")], held_out, description="given", num_dropped=5
    )
    assert corpus.held_out == tuple(held_out)
    assert corpus.train == (("c", "3"), ("d", "2"))
    assert corpus.num_dropped == 5 + 2
    assert corpus.target_overlap == pytest.approx(1 / 3)


def test_parts_that_are_empty_or_share_a_source_are_refused():
    for train, held_out in [([], [("a", "1")]), ([("a", "1")], []), ([("a", "1")], [("a", "2")])]:
        with pytest.raises(ValueError, match=r"given: both parts need pairs, not \d to train on .* and \d held out"):
            parallel_corpus(train, held_out, description="given")
    corpus = parallel_corpus([("a", "1")], [("b", "2")], description="given")
    with pytest.raises(ValueError, match="the held-out source 'a' is also in the training part"):
        dataclasses.replace(corpus, held_out=(("a", "3"),))


@pytest.mark.parametrize("held_out", [0.0, 1.0, -0.1, 1.5])
def test_a_share_that_is_none_is_refused(held_out):
    with pytest.raises(ValueError, match=rf"between 0 and 1, not {held_out}"):
        split_pairs(MANY, description="many", held_out_fraction=held_out)


def test_a_description_names_counts_lengths_and_the_first_bad_lines():
    corpus = ParallelCorpus(
        train=(("abc", "d"), ("e", "f")),
        held_out=(("g", "hi"),),
        description="two files",
        sha256="0" * 64,
        num_dropped=4,
        skipped=tuple(f"file.tsv:{i}: why" for i in range(1, 9)),
    )
    text = corpus.summary()
    for said in [
        "pairs: two files",
        "2 to train on, 1 held out, 4 dropped",
        "longest source: 3 characters, longest target: 2",
        "held-out sources in the training part: none; held-out targets: 0.00%",
        "sha256 000",
        "lines skipped: 8",
        "file.tsv:5: why",
        "and 3 more",
    ]:
        assert said in text
    assert "file.tsv:6" not in text
