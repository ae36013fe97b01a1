"""Corpus BLEU of captions with several references."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxseq.analysis.caption_tokens import Ngram, ngrams, signature, tokenized

SMOOTHINGS = ("coco", "exp")


class BleuScores(NamedTuple):
    """``scores[n - 1]`` is BLEU-n of the corpus, in 0..1."""

    scores: tuple[float, ...]
    signature: str


def caption_bleu(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenizer: str = "ptb",
    max_order: int = 4,
    smoothing: str = "coco",
) -> BleuScores:
    """Corpus BLEU-1 to BLEU-``max_order``, in 0..1.

        BLEU-n = min(1, e^(1 - r/c)) (p_1 p_2 ... p_n)^(1/n)

    ``c`` is the number of words in all hypotheses and ``r`` the sum of the reference lengths closest to each (of two
    equally close the shorter). ``p_n`` is the number of n-grams of the hypotheses found in a reference, each at most as
    often as in one reference, over their number.

    ``"coco"`` smooths as pycocoevalcap: ``p_n = (matches + 1e-15) / (number + 1e-9)``, and 1e-15 and 1e-9 are added to
    ``c`` and ``r``. ``"exp"`` smooths as sacrebleu: the k-th ``p_n`` without matches is ``1 / (2^k number)``; the score
    is 0 without any match, and if no hypothesis has n words. BLEU-n of ``"exp"`` is sacrebleu's with
    ``max_ngram_order=n``, divided by 100.

    Papineni et al. 2002 (https://aclanthology.org/P02-1040).

    Raises:
        ValueError: captions that cannot be scored (see ``caption_scores``), an unknown smoothing, or ``max_order``
            below 1.
    """
    if smoothing not in SMOOTHINGS:
        raise ValueError(f"unknown smoothing {smoothing!r}; known: {', '.join(SMOOTHINGS)}")
    if max_order < 1:
        raise ValueError(f"max_order must be at least 1, not {max_order}")
    texts, wanted = tokenized(hypotheses, references, tokenizer)
    matches, numbers = np.zeros(max_order, np.int64), np.zeros(max_order, np.int64)
    for order in range(max_order):
        for text, targets in zip(texts, wanted, strict=True):
            found, most = ngrams(text, order + 1), Counter[Ngram]()
            for target in targets:
                most |= ngrams(target, order + 1)
            matches[order] += (found & most).total()
            numbers[order] += found.total()
    length = sum(map(len, texts))
    reference_length = sum(
        min((abs(len(target) - len(text)), len(target)) for target in targets)[1]
        for text, targets in zip(texts, wanted, strict=True)
    )
    score = _coco if smoothing == "coco" else _exp
    scores = tuple(
        score(matches[: n + 1].tolist(), numbers[: n + 1].tolist(), length, reference_length) for n in range(max_order)
    )
    terms = {"order": max_order, "length": "closest", "smooth": smoothing, "scale": "0-1"}
    return BleuScores(scores, signature("BLEU", references, tokenizer, **terms))


def _coco(matches: list[int], numbers: list[int], length: int, reference_length: int) -> float:
    product = math.prod((match + 1e-15) / (number + 1e-9) for match, number in zip(matches, numbers, strict=True))
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    return product ** (1 / len(matches)) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


def _exp(matches: list[int], numbers: list[int], length: int, reference_length: int) -> float:
    if not any(matches) or not all(numbers):
        return 0.0
    logarithm, halvings = 0.0, 0
    for match, number in zip(matches, numbers, strict=True):
        halvings += match == 0
        logarithm += math.log(match / number if match else 1 / (2**halvings * number))
    return math.exp(logarithm / len(matches) + min(0.0, 1 - reference_length / length))
