import itertools
import random
import sys

import numpy as np
import pytest

from jaxseq.analysis import scores_by_length, translation_scores, wilson_interval

REFERENCES = [
    "the agreement was signed in August 1992 .",
    "it should be noted that the sea is blue .",
    "a dog barks",
    "one two three four five six seven",
]
HYPOTHESES = [
    "the agreement was signed in August 1992 .",
    "it must be noted that the sea is very blue .",
    "the dog barks",
    "",
]


def corpus(size=120):
    """Sentences of 1 to 30 words, their lengths, and hypotheses of which some are wrong."""
    chance = random.Random(0)
    lengths = [chance.randint(1, 30) for _ in range(size)]
    references = [" ".join(chance.choices("abcdefgh", k=n)) for n in lengths]
    hypotheses = [text if chance.random() > n / 40 else text[2:] for n, text in zip(lengths, references, strict=True)]
    return lengths, hypotheses, references


def sacrebleu():
    return pytest.importorskip("sacrebleu", reason="the translation extra is not installed")


@pytest.mark.parametrize("tokenize", ["13a", "char", "intl", "none", "zh"])
def test_scores_are_those_of_sacrebleu_itself(tokenize):
    reference = sacrebleu()
    scores = translation_scores(HYPOTHESES, REFERENCES, tokenize=tokenize)
    assert scores.exact_match == 1 / 4
    assert scores.bleu == reference.corpus_bleu(HYPOTHESES, [REFERENCES], tokenize=tokenize).score
    assert scores.chrf == reference.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert f"tok:{tokenize}|" in scores.bleu_signature
    assert reference.__version__ in scores.bleu_signature
    assert reference.__version__ in scores.chrf_signature


def test_a_perfect_translation_has_full_scores():
    sacrebleu()
    scores = translation_scores(REFERENCES, REFERENCES)
    assert scores.exact_match == 1
    assert scores.bleu == pytest.approx(100)
    assert scores.chrf == pytest.approx(100)


def test_what_cannot_be_scored_is_named():
    sacrebleu()
    with pytest.raises(ValueError, match="2 hypotheses for 1 references"):
        translation_scores(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="no sentences"):
        translation_scores([], [])
    with pytest.raises(ValueError, match="unknown tokenizer 'latin'; known: 13a, char"):
        translation_scores(["a"], ["a"], tokenize="latin")
    with pytest.raises(ValueError, match="1 source lengths for 2"):
        scores_by_length([1], ["a", "b"], ["a", "b"])
    with pytest.raises(ValueError, match="length is -1"):
        scores_by_length([-1], ["a"], ["a"])
    with pytest.raises(ValueError, match=r"increase: \[3, 3\]"):
        scores_by_length([1], ["a"], ["a"], edges=[3, 3])
    with pytest.raises(ValueError, match="bins must be at least 1, not 0"):
        scores_by_length([1], ["a"], ["a"], bins=0)


def test_without_sacrebleu_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ImportError, match=r"sacrebleu: pip install 'jaxseq\[translation\]'"):
        translation_scores(["a"], ["a"])


@pytest.mark.parametrize("options", [{}, {"bins": 1}, {"bins": 3}, {"bins": 50}, {"edges": (5, 10, 99)}, {"edges": ()}])
def test_bins_part_the_sentences_and_score_their_own(options):
    reference = sacrebleu()
    lengths, hypotheses, references = corpus()
    rows = scores_by_length(lengths, hypotheses, references, **options)
    assert sum(row.count for row in rows) == len(lengths)
    assert all(a.max_length < b.min_length for a, b in itertools.pairwise(rows))
    for row in rows:
        inside = [i for i, length in enumerate(lengths) if row.min_length <= length <= row.max_length]
        texts, wanted = [hypotheses[i] for i in inside], [references[i] for i in inside]
        assert row.count == len(inside)
        assert row.mean_length == pytest.approx(np.mean([lengths[i] for i in inside]))
        assert row.exact_match == np.mean([a == b for a, b in zip(texts, wanted, strict=True)])
        assert row.low <= row.exact_match <= row.high
        if row.bleu is None:
            assert max(len(text.split()) for text in wanted) < 4
        else:
            assert row.bleu == reference.corpus_bleu(texts, [wanted]).score


def test_edges_are_where_bins_begin():
    sacrebleu()
    rows = scores_by_length([1, 9, 10, 19, 20, 40], list("abcdef"), list("abcdef"), edges=(10, 20, 50))
    assert [(row.min_length, row.max_length, row.count) for row in rows] == [(1, 9, 2), (10, 19, 2), (20, 40, 2)]


def test_few_lengths_are_a_bin_each_and_many_are_spread_evenly():
    sacrebleu()
    few = scores_by_length([3, 7, 3, 5], list("abcd"), list("abcd"), bins=3)
    assert [(row.min_length, row.max_length) for row in few] == [(3, 3), (5, 5), (7, 7)]
    lengths, hypotheses, references = corpus(400)
    counts = [row.count for row in scores_by_length(lengths, hypotheses, references, bins=5)]
    assert len(counts) == 5
    assert max(counts) < 1.5 * min(counts)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize(("successes", "count"), [(0, 1), (1, 1), (0, 40), (3, 7), (40, 40), (613, 1000)])
def test_the_interval_is_wilsons(successes, count, confidence):
    stats = pytest.importorskip("scipy.stats", reason="the dev extra is not installed")
    wanted = stats.binomtest(successes, count).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, count, confidence=confidence) == pytest.approx(tuple(wanted), abs=1e-12)


@pytest.mark.parametrize(("successes", "count"), [(0, 0), (3, 2), (-1, 2)])
def test_no_interval_of_an_impossible_count(successes, count):
    with pytest.raises(ValueError, match=f"{successes} successes of {count}"):
        wilson_interval(successes, count)
