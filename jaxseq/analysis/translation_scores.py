"""Scores of translations: exact match, BLEU and chrF, over a corpus and against the length of the source.

BLEU and chrF are sacrebleu's (extra `translation`), which is imported when scores are asked for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TranslationScores:
    """Scores of a corpus: ``exact_match`` in 0..1, ``bleu`` and ``chrf`` in 0..100, with sacrebleu's signatures."""

    exact_match: float
    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str


@dataclass(frozen=True)
class LengthScores:
    """Scores of the sentences whose sources are ``shortest`` to ``longest`` long, both included.

    ``low`` and ``high`` are the 95 % Wilson interval of ``exact_match``. ``bleu`` is None where no reference is long
    enough to have a 4-gram: BLEU is 0 there whatever the hypotheses are.
    """

    shortest: int
    longest: int
    mean_length: float
    count: int
    exact_match: float
    low: float
    high: float
    bleu: float | None


def translation_scores(
    hypotheses: Sequence[str], references: Sequence[str], *, tokenize: str = "13a"
) -> TranslationScores:
    """Exact match, and corpus BLEU and chrF2 as sacrebleu reports them, one reference a sentence.

    ``tokenize`` is sacrebleu's tokenizer for BLEU ("13a", "intl", "zh", "char", ...; "ja-mecab" and "ko-mecab" need
    further packages, "spm" and "flores" fetch a model). chrF reads characters. Papineni et al. 2002; Popović 2015;
    Post 2018 (https://arxiv.org/abs/1804.08771).

    Raises:
        ValueError: no sentences, unequal numbers of them, or an unknown tokenizer.
        ImportError: sacrebleu is not installed.
    """
    _check(hypotheses, references)
    bleu, chrf = _bleu(tokenize), _metrics().CHRF()
    bleu_score = bleu.corpus_score(list(hypotheses), [list(references)]).score
    chrf_score = chrf.corpus_score(list(hypotheses), [list(references)]).score
    return TranslationScores(
        exact_match=_matches(hypotheses, references) / len(references),
        bleu=float(bleu_score),
        chrf=float(chrf_score),
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
    )


def scores_by_length(
    lengths: Sequence[int],
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    edges: Sequence[int] | None = None,
    bins: int = 8,
    tokenize: str = "13a",
) -> tuple[LengthScores, ...]:
    """Scores in bins of the source's length, shortest first; every sentence is in one bin, empty bins are left out.

    ``edges`` are the lengths at which a new bin begins: ``(10, 20)`` makes the bins below 10, 10 to 19, and from 20 on.
    Without them each length is a bin of its own where there are at most ``bins`` of them; otherwise the bins are
    quantiles, about as many sentences in each. ``lengths`` may count whatever the reader wants on the axis.

    Raises:
        ValueError: as ``translation_scores``; a negative length, edges that do not increase, or ``bins`` below 1.
        ImportError: sacrebleu is not installed.
    """
    _check(hypotheses, references)
    if len(lengths) != len(references):
        raise ValueError(f"{len(lengths)} source lengths for {len(references)} references")
    measured = np.asarray(lengths, np.int64)
    if measured.min() < 0:
        raise ValueError(f"a source length is {measured.min()}")
    begins = _quantiles(measured, bins) if edges is None else np.asarray(edges, np.int64)
    if np.any(np.diff(begins) <= 0):
        raise ValueError(f"edges must increase: {begins.tolist()}")
    which = np.searchsorted(begins, measured, side="right")
    bleu = _bleu(tokenize)
    return tuple(
        _row(measured[chosen], [hypotheses[i] for i in chosen], [references[i] for i in chosen], bleu)
        for chosen in (np.flatnonzero(which == each).tolist() for each in np.unique(which))
    )


def wilson_interval(successes: int, count: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share: all p with ``|p̂ - p| <= z √(p (1 - p) / n)`` (Wilson 1927).

    Raises:
        ValueError: ``successes`` is not in 0..``count``, or ``count`` is 0.
    """
    if not 0 <= successes <= count or count == 0:
        raise ValueError(f"{successes} successes of {count}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / count
    middle = share + z * z / (2 * count)
    reach = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low, high = ((middle + sign * reach) / (1 + z * z / count) for sign in (-1, 1))
    return (0.0 if successes == 0 else low, 1.0 if successes == count else high)


def _row(lengths: np.ndarray, hypotheses: list[str], references: list[str], bleu: Any) -> LengthScores:
    matches = _matches(hypotheses, references)
    low, high = wilson_interval(matches, len(references))
    has_4_grams = bleu.corpus_score(references, [references]).totals[-1] > 0
    return LengthScores(
        shortest=int(lengths.min()),
        longest=int(lengths.max()),
        mean_length=float(lengths.mean()),
        count=len(references),
        exact_match=matches / len(references),
        low=low,
        high=high,
        bleu=float(bleu.corpus_score(hypotheses, [references]).score) if has_4_grams else None,
    )


def _quantiles(lengths: np.ndarray, bins: int) -> np.ndarray:
    """Where the bins begin: at every length where these are few, otherwise at the quantiles."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    different = np.unique(lengths)
    if len(different) <= bins:
        return different
    return np.unique(np.quantile(lengths, np.arange(1, bins) / bins, method="higher"))


def _matches(hypotheses: Sequence[str], references: Sequence[str]) -> int:
    return sum(hypothesis == reference for hypothesis, reference in zip(hypotheses, references, strict=True))


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references")
    if not references:
        raise ValueError("no sentences to score")


def _bleu(tokenize: str) -> Any:
    BLEU = _metrics().BLEU
    if tokenize not in BLEU.TOKENIZERS:
        raise ValueError(f"unknown tokenizer {tokenize!r}; known: {', '.join(sorted(BLEU.TOKENIZERS))}")
    try:
        return BLEU(tokenize=tokenize)
    except RuntimeError as error:  # a tokenizer that needs a package of its own
        raise ImportError(f"BLEU with the tokenizer {tokenize!r}: {error}") from None


def _metrics() -> Any:
    try:
        import sacrebleu.metrics
    except ImportError:
        raise ImportError("BLEU and chrF need sacrebleu: pip install 'jaxseq[translation]'") from None
    return sacrebleu.metrics
