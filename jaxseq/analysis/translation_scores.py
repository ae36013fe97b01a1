"""Scores of translations: exact match, BLEU and chrF, of a corpus and by the length of the source.

BLEU and chrF are sacrebleu's (extra ``translation``), which is imported when scores are computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
    """Scores of the sentences with source lengths from ``min_length`` to ``max_length``, both included.

    ``low`` and ``high`` are the 95 % Wilson interval of ``exact_match``. ``bleu`` is None if no reference has a
    4-gram: BLEU is then 0 for all hypotheses.
    """

    min_length: int
    max_length: int
    mean_length: float
    count: int
    exact_match: float
    low: float
    high: float
    bleu: float | None


def translation_scores(
    hypotheses: Sequence[str], references: Sequence[str], *, tokenize: str = "13a"
) -> TranslationScores:
    """Exact match, and corpus BLEU and chrF2 as sacrebleu reports them, with one reference per sentence.

    ``tokenize`` is sacrebleu's tokenizer for BLEU ("13a", "intl", "zh", "char", ...; "ja-mecab" and "ko-mecab" need
    further packages, "spm" and "flores" download a model). chrF compares characters.

    Papineni et al. 2002; Popović 2015; Post 2018 (https://arxiv.org/abs/1804.08771).

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
    """Scores in bins of the source length, in increasing order; empty bins are omitted.

    Args:
        lengths: the length of each source, in any unit (tokens, characters).
        hypotheses: the translations.
        references: one reference per translation.
        edges: the lengths at which a new bin begins: ``(10, 20)`` makes the bins below 10, 10 to 19, and from 20 on.
            None makes one bin per length if there are at most ``bins`` different lengths, and ``bins`` quantiles
            otherwise.
        bins: the largest number of bins without ``edges``.
        tokenize: as in ``translation_scores``.

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
    """The Wilson score interval of a proportion (Wilson 1927; ``scipy.stats.binomtest``).

        all p with |p̂ - p| <= z √(p (1 - p) / n)

    Raises:
        ValueError: ``successes`` is not in 0..``count``, or ``count`` is 0.
    """
    if not 0 <= successes <= count or count == 0:
        raise ValueError(f"{successes} successes of {count}")
    from scipy import stats

    found = stats.binomtest(successes, count).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def _row(lengths: np.ndarray, hypotheses: list[str], references: list[str], bleu: Any) -> LengthScores:
    matches = _matches(hypotheses, references)
    low, high = wilson_interval(matches, len(references))
    has_4_grams = bleu.corpus_score(references, [references]).totals[-1] > 0
    return LengthScores(
        min_length=int(lengths.min()),
        max_length=int(lengths.max()),
        mean_length=float(lengths.mean()),
        count=len(references),
        exact_match=matches / len(references),
        low=low,
        high=high,
        bleu=float(bleu.corpus_score(hypotheses, [references]).score) if has_4_grams else None,
    )


def _quantiles(lengths: np.ndarray, bins: int) -> np.ndarray:
    """The beginnings of the bins: every length if there are at most ``bins``, quantiles otherwise."""
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
