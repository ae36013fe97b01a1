"""CIDEr-D of captions with several references."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxseq.analysis.caption_tokens import Ngram, ngrams, signature, tokenized, tokenized_references
from jaxseq.typing import Float

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0


class CaptionScore(NamedTuple):
    """A score of a corpus, ``score``: the mean of ``each``, one number a caption."""

    score: float
    each: Float[np.ndarray, "B"]
    signature: str


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many of ``images`` images an n-gram of 1 to 4 words occurs in a reference; absent ones count as 1.

    ``tokenizer`` made the n-grams. ``name`` is the corpus, for signatures.
    """

    images: int
    counts: Mapping[Ngram, int]
    tokenizer: str
    name: str


def document_frequencies(
    references: Sequence[Sequence[str]], *, name: str, tokenizer: str = "ptb"
) -> DocumentFrequencies:
    """The document frequencies of a corpus, given the references of each of its images.

    Raises:
        ValueError: no references, or an unknown tokenizer.
    """
    return _frequencies(tokenized_references(references, tokenizer), tokenizer, name)


def cider_d(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenizer: str = "ptb",
    frequencies: DocumentFrequencies | None = None,
) -> CaptionScore:
    """CIDEr-D in 0..10: weighted cosine similarities of n-grams (n = 1 to 4), the mean over captions.

        g(w) = count(w) log(images / max(1, frequency(w)))
        CIDEr-D_n(h, r) = 10 e^(-(l_h - l_r)² / (2 · 6²)) Σ_w min(g_h(w), g_r(w)) g_r(w) / (|g_h| |g_r|)

    averaged over n and over the references r of the image. As in pycocoevalcap, which prints it as "CIDEr", the length
    l is the number of bigrams: one less than the number of words, and 0 for a caption without words. A hypothesis
    without words has 0.

    The weights depend on the corpus: scores of different sets of images are not comparable without common
    ``frequencies``. By default frequencies are counted in ``references``. With one image every weight, and the score,
    is 0 then; the signature says so.

    Vedantam et al. 2015 (https://arxiv.org/abs/1411.5726).

    Args:
        hypotheses: one caption an image.
        references: the references of each image.
        tokenizer: ``"ptb"`` or ``"words"``.
        frequencies: document frequencies of another corpus.

    Raises:
        ValueError: captions that cannot be scored (see ``caption_scores``), or frequencies of another tokenizer.
    """
    texts, wanted = tokenized(hypotheses, references, tokenizer)
    idf = frequencies.name if frequencies else "references" if len(texts) > 1 else "references(one-image:always-0)"
    frequencies = frequencies or _frequencies(wanted, tokenizer, "references")
    if frequencies.tokenizer != tokenizer:
        raise ValueError(f"frequencies of tokens {frequencies.tokenizer!r} for captions of {tokenizer!r}")
    each = []
    for text, targets in zip(texts, wanted, strict=True):
        found = [_vector(text, order, frequencies) for order in ORDERS]
        similarities = [
            _penalty(text, target) * _similarity(vector, _vector(target, order, frequencies))
            for target in targets
            for order, vector in zip(ORDERS, found, strict=True)
        ]
        each.append(10 * sum(similarities) / len(similarities))
    terms = {"orders": "1-4", "idf": idf, "images": frequencies.images, "sigma": SIGMA, "scale": "0-10"}
    return CaptionScore(float(np.mean(each)), np.array(each), signature("CIDEr-D", references, tokenizer, **terms))


def _frequencies(references: list[list[list[str]]], tokenizer: str, name: str) -> DocumentFrequencies:
    counts: Counter[Ngram] = Counter()
    for texts in references:
        counts.update({ngram for text in texts for order in ORDERS for ngram in ngrams(text, order)})
    return DocumentFrequencies(len(references), counts, tokenizer, name)


def _vector(text: list[str], order: int, frequencies: DocumentFrequencies) -> dict[Ngram, float]:
    images, counts = math.log(frequencies.images), frequencies.counts
    return {w: n * (images - math.log(max(1, counts.get(w, 0)))) for w, n in ngrams(text, order).items()}


def _similarity(found: Mapping[Ngram, float], wanted: Mapping[Ngram, float]) -> float:
    norms = math.hypot(*found.values()) * math.hypot(*wanted.values())
    product = sum(min(weight, wanted[w]) * wanted[w] for w, weight in found.items() if w in wanted)
    return product / norms if norms else 0.0


def _penalty(text: list[str], target: list[str]) -> float:
    difference = max(len(text) - 1, 0) - max(len(target) - 1, 0)
    return math.exp(-(difference**2) / (2 * SIGMA**2))
