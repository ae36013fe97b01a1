"""Scores of captions: cases worked out by hand, published figures, other programs, and plain references."""

import math
import random
from collections import Counter

import numpy as np
import pytest

from jaxseq.analysis import caption_bleu, caption_scores, cider_d, document_frequencies, exact_matches, rouge_l

# The example of the README of aac-metrics, with the figures it prints (after Stanford's tokenizer).
PUBLISHED = (
    ["a man is speaking", "rain falls"],
    [
        ["a man speaks.", "someone speaks.", "a man is speaking while a bird is chirping in the background"],
        ["rain is falling hard on a surface"],
    ],
)


def corpus(seed, images=8, longest=12):
    """Hypotheses, of which some equal a reference, and 1 to 4 references each, in few words."""
    chance = random.Random(seed)
    vocabulary = ["a", "red", "blue", "three", "seven", "above", "below", "small", "the", "of"]

    def text():
        return " ".join(chance.choices(vocabulary, k=chance.randint(1, longest)))

    references = [[text() for _ in range(chance.randint(1, 4))] for _ in range(images)]
    return [chance.choice(texts) if chance.random() < 0.4 else text() for texts in references], references


def test_published_figures_are_reproduced():
    scores = caption_scores(*PUBLISHED)
    assert scores.bleu1 == pytest.approx(0.4278, abs=5e-5)
    assert scores.cider_d == pytest.approx(0.9614, abs=5e-5)
    assert cider_d(*PUBLISHED).each == pytest.approx([1.3641, 0.5587], abs=5e-5)


def test_bleu_worked_out_by_hand():
    hypotheses, references = ["the the cat sat", "a dog"], [["the cat sat down", "the cat"], ["a dog runs fast"]]
    # Words: "the" counts once of twice, cat, sat; a, dog: 5 of 6. Bigrams: the-cat, cat-sat of 3; a-dog of 1: 3 of 4.
    # Trigrams: the-cat-sat of 2; none of 0. 4-grams: none of 1. Lengths: 6 against 4 (equal) + 4.
    penalty = math.exp(1 - 8 / 6)
    wanted = [penalty * 5 / 6, penalty * (5 / 6 * 3 / 4) ** (1 / 2), penalty * (5 / 6 * 3 / 4 * 1 / 2) ** (1 / 3)]
    assert caption_bleu(hypotheses, references).scores[:3] == pytest.approx(wanted, rel=1e-8)
    # The first order without a match: 1 / (2 * 1) by "exp", 1e-15 / 1 by "coco".
    product = 5 / 6 * 3 / 4 * 1 / 2
    assert caption_bleu(hypotheses, references, smoothing="exp").scores[3] == pytest.approx(
        penalty * (product / 2) ** 0.25
    )
    assert caption_bleu(hypotheses, references).scores[3] == pytest.approx(
        penalty * (product * 1e-15) ** 0.25, rel=1e-6
    )
    # Of two equally close lengths (2 and 4 for 3 words) the shorter counts: no penalty.
    assert caption_bleu(["a b c"], [["a b c d", "a b"]]).scores[0] == pytest.approx(1)


def test_rouge_l_worked_out_by_hand():
    # LCS of "a b c d" with "a x c" is 2, with "b c d e f g h h" is 3: P = 3/4 of the second, R = 2/3 of the first.
    precision, recall = 3 / 4, 2 / 3
    wanted = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    found = rouge_l(["a b c d", "q"], [["a x c", "b c d e f g h h"], ["r"]], tokenizer="words")
    assert found.each == pytest.approx([wanted, 0])
    assert found.score == pytest.approx(wanted / 2)
    assert rouge_l(["a b"], [["a b"]], beta=3.0).score == pytest.approx(1)


def test_cider_d_worked_out_by_hand():
    # Two images. "a" occurs in both: weight log(2/2) = 0. "b", "c", "a b", "a c" occur in one: weight log 2.
    # Image 1: "a b" against "a b": unigrams (b) and bigrams (a b) have cosine 1, there are no trigrams: 10 * 2/4.
    # Image 2: "a c c" against "a c": clipped counts of c: min(2, 1) 1 / (2 * 1) = 1/2. Bigrams: a-c log 2, c-c unseen
    # (frequency at least 1) log 2: 1 / (√2 * 1). The lengths differ by one bigram: e^(-1/72).
    wanted = [5, 10 * math.exp(-1 / 72) * (1 / 2 + 1 / math.sqrt(2)) / 4]
    found = cider_d(["a b", "a c c"], [["a b"], ["a c"]], tokenizer="words")
    assert found.each == pytest.approx(wanted)
    assert found.score == pytest.approx(sum(wanted) / 2)


def plain_cider(hypotheses, references, frequency, images):
    """CIDEr-D as its definition reads, with vectors over all n-grams that occur."""

    def counts(text, n):
        words = text.split()
        return Counter(zip(*(words[i:] for i in range(n)), strict=False))

    total = []
    for hypothesis, texts in zip(hypotheses, references, strict=True):
        score = 0.0
        for text in texts:
            for n in (1, 2, 3, 4):
                space = sorted(set(counts(hypothesis, n)) | set(counts(text, n)))
                idf = np.array([math.log(images / max(1, frequency(ngram))) for ngram in space])
                g, r = (idf * [counts(each, n)[ngram] for ngram in space] for each in (hypothesis, text))
                length = sum(counts(hypothesis, 2).values()) - sum(counts(text, 2).values())
                norms = np.linalg.norm(g) * np.linalg.norm(r)
                if norms > 0:
                    score += 10 / 4 / len(texts) * math.exp(-(length**2) / 72) * np.minimum(g, r) @ r / norms
        total.append(score)
    return total


def contains(text, ngram):
    return f" {' '.join(ngram)} " in f" {text} "


@pytest.mark.parametrize("seed", range(4))
def test_cider_d_is_its_definition(seed):
    hypotheses, references = corpus(seed)

    def frequency(ngram):
        return sum(any(contains(text, ngram) for text in texts) for texts in references)

    wanted = plain_cider(hypotheses, references, frequency, len(references))
    assert cider_d(hypotheses, references, tokenizer="words").each == pytest.approx(wanted)


def test_document_frequencies_may_come_from_another_corpus():
    hypotheses, references = corpus(0)
    _, others = corpus(1, images=20)

    def frequency(ngram):
        return sum(any(contains(text, ngram) for text in texts) for texts in others)

    given = document_frequencies(others, name="train", tokenizer="words")
    found = cider_d(hypotheses, references, tokenizer="words", frequencies=given)
    assert found.each == pytest.approx(plain_cider(hypotheses, references, frequency, 20))
    assert "|idf:train|images:20|" in found.signature
    one = cider_d(hypotheses[:1], references[:1], tokenizer="words", frequencies=given)
    assert one.each == pytest.approx(found.each[:1])
    own = document_frequencies(references, name="references", tokenizer="words")
    assert cider_d(hypotheses, references, tokenizer="words", frequencies=own).score == pytest.approx(
        cider_d(hypotheses, references, tokenizer="words").score
    )
    with pytest.raises(ValueError, match="frequencies of tokens 'words' for captions of 'ptb'"):
        cider_d(hypotheses, references, frequencies=given)


def plain_common_length(a, b):
    """Brute force over all subsequences."""
    subsequences = [[word for i, word in enumerate(a) if mask >> i & 1] for mask in range(2 ** len(a))]

    def inside(words):
        rest = iter(b)
        return all(word in rest for word in words)

    return max(len(words) for words in subsequences if inside(words))


def test_rouge_l_is_its_definition():
    hypotheses, references = corpus(2, images=12, longest=8)
    found = rouge_l(hypotheses, references, tokenizer="words").each
    for score, hypothesis, texts in zip(found, hypotheses, references, strict=True):
        lengths = [plain_common_length(hypothesis.split(), text.split()) for text in texts]
        precision = max(length / len(hypothesis.split()) for length in lengths)
        recall = max(length / len(text.split()) for length, text in zip(lengths, texts, strict=True))
        wanted = 2.44 * precision * recall / (recall + 1.44 * precision) if max(lengths) else 0
        assert score == pytest.approx(wanted)


@pytest.mark.parametrize("longest", [2, 5, 12])
def test_bleu_with_exponential_smoothing_is_that_of_sacrebleu(longest):
    metrics = pytest.importorskip("sacrebleu.metrics", reason="the translation extra is not installed")
    for seed in range(5):
        hypotheses, references = corpus(seed, longest=longest)
        hypotheses[0] = "" if seed == 0 else hypotheses[0]
        # sacrebleu takes references in columns; a column may lack the reference of an image
        columns = [[texts[i] if i < len(texts) else None for texts in references] for i in range(4)]
        found = caption_bleu(hypotheses, references, tokenizer="words", smoothing="exp").scores
        for n, score in enumerate(found, 1):
            theirs = metrics.BLEU(max_ngram_order=n, tokenize="none", smooth_method="exp")
            assert 100 * score == pytest.approx(theirs.corpus_score(hypotheses, columns).score)


def test_scores_are_those_of_pycocoevalcap():
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    for seed in range(5):
        hypotheses, references = corpus(seed)
        wanted, given = dict(enumerate(references)), {i: [text] for i, text in enumerate(hypotheses)}
        scores = caption_scores(hypotheses, references, tokenizer="words")
        bleu = Bleu(4).compute_score(wanted, given, verbose=0)[0]
        assert [scores.bleu1, scores.bleu2, scores.bleu3, scores.bleu4] == pytest.approx(bleu)
        assert scores.rouge_l == pytest.approx(Rouge().compute_score(wanted, given)[0])
        assert scores.cider_d == pytest.approx(Cider().compute_score(wanted, given)[0])


def test_perfect_captions_have_full_scores():
    references = [
        ["a red three above a blue seven"],
        ["two small digits stand here now"],
        ["one more caption of words"],
    ]
    scores = caption_scores([texts[0] for texts in references], references)
    assert scores.exact_match == 1
    assert [scores.bleu1, scores.bleu4, scores.rouge_l] == pytest.approx([1, 1, 1])
    assert scores.cider_d == pytest.approx(10)


def test_a_caption_matches_if_it_equals_any_of_its_references():
    scores = caption_scores(
        ["a dog ", "A dog", "a cat", ""],
        [["no", "a dog"], ["a dog"], ["a dog", "the cat"], ["", "x"]],
        tokenizer="words",
    )
    assert scores.exact_match == 1 / 4


@pytest.mark.parametrize("smoothing", ["coco", "exp"])
@pytest.mark.parametrize("empty", ["", " ", "... !"])
def test_captions_without_words_have_no_score(empty, smoothing):
    for wanted in (["a dog runs here"], [empty], [empty, "a dog"]):
        scores = caption_scores([empty, empty], [wanted, wanted], smoothing=smoothing)
        found = [scores.exact_match, scores.bleu1, scores.bleu4, scores.rouge_l, scores.cider_d]
        assert found == pytest.approx([0] * len(found), abs=1e-5)
    half = caption_scores(["a dog runs here", empty], [["a dog runs here"], ["one two three four"]])
    assert half.rouge_l == pytest.approx(0.5)
    assert half.cider_d == pytest.approx(5)
    assert half.bleu1 == pytest.approx(math.exp(1 - 8 / 4))


def test_one_image_has_no_cider_d_and_the_signature_says_so():
    found = cider_d(["a dog runs here"], [["a dog runs here"]])
    assert found.score == 0
    assert "idf:references(one-image:always-0)" in found.signature
    assert "always-0" not in cider_d(*PUBLISHED).signature


def test_signatures_tell_how_each_score_was_computed():
    signatures = caption_scores(*PUBLISHED, tokenizer="words", smoothing="exp").signatures
    version = "version:caption-scores.1"
    assert signatures == {
        "exact_match": f"exact-match|nrefs:var|tok:words|case:kept|scale:0-1|{version}",
        "bleu": f"BLEU|nrefs:var|tok:words|order:4|length:closest|smooth:exp|scale:0-1|{version}",
        "rouge_l": f"ROUGE-L|nrefs:var|tok:words|beta:1.2|refs:max-P-max-R|scale:0-1|{version}",
        "cider_d": f"CIDEr-D|nrefs:var|tok:words|orders:1-4|idf:references|images:2|sigma:6.0|scale:0-10|{version}",
    }
    assert "|nrefs:1|tok:ptb|" in caption_bleu(["a"], [["a"]]).signature


def test_what_cannot_be_scored_is_named():
    for score in (caption_scores, caption_bleu, rouge_l, cider_d):
        with pytest.raises(ValueError, match="2 hypotheses, but references of 1 images"):
            score(["a", "b"], [["a"]])
        with pytest.raises(ValueError, match="no captions"):
            score([], [])
        with pytest.raises(ValueError, match="image 1 has no references"):
            score(["a", "b"], [["a"], []])
        with pytest.raises(ValueError, match="image 0 are a text, 'a b', not a sequence"):
            score(["a"], ["a b"])
        with pytest.raises(ValueError, match="unknown tokenizer '13a'; known: ptb, words"):
            score(["a"], [["a"]], tokenizer="13a")
    with pytest.raises(ValueError, match="smoothing 'floor'"):
        caption_scores(["a"], [["a"]], smoothing="floor")
    with pytest.raises(ValueError, match="max_order must be at least 1, not 0"):
        caption_bleu(["a"], [["a"]], max_order=0)
    with pytest.raises(ValueError, match="beta must be positive, not 0"):
        rouge_l(["a"], [["a"]], beta=0.0)


def test_exact_matches_ignore_case_and_punctuation_of_captions_of_files_alone():
    found, references = ["a dog runs", "a dog", ""], [["A dog runs."], ["a cat", "A dog!"], ["..."]]
    assert exact_matches(found, references) == [True, True, False]
    assert exact_matches(found, references, tokenizer="words") == [False, False, False]
    assert exact_matches(["a  b "], [["x", "a b"]], tokenizer="words") == [True]
    assert caption_scores(found[:2], references[:2]).exact_match == 1
    with pytest.raises(ValueError, match="3 hypotheses, but references of 2 images"):
        exact_matches(found, references[:2])
