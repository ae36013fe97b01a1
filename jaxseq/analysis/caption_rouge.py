"""ROUGE-L of captions with several references."""

from collections.abc import Sequence

import numpy as np

from jaxseq.analysis.caption_cider import CaptionScore
from jaxseq.analysis.caption_tokens import signature, tokenized


def rouge_l(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenizer: str = "ptb", beta: float = 1.2
) -> CaptionScore:
    """ROUGE-L in 0..1: the F score of the longest common subsequence (LCS), the mean over captions.

        P = max over references LCS / |hypothesis|        R = max over references LCS / |reference|
        F = (1 + beta²) P R / (R + beta² P)

    Precision and recall may come from different references, as in pycocoevalcap. A hypothesis without words has 0.

    Lin 2004 (https://aclanthology.org/W04-1013).

    Raises:
        ValueError: captions that cannot be scored (see ``caption_scores``), or ``beta`` that is not positive.
    """
    if not beta > 0:
        raise ValueError(f"beta must be positive, not {beta}")
    texts, wanted = tokenized(hypotheses, references, tokenizer)
    each = np.array([_f_score(text, targets, beta) for text, targets in zip(texts, wanted, strict=True)])
    terms = {"beta": beta, "refs": "max-P-max-R", "scale": "0-1"}
    return CaptionScore(float(each.mean()), each, signature("ROUGE-L", references, tokenizer, **terms))


def _f_score(text: list[str], targets: list[list[str]], beta: float) -> float:
    common = [(_common_length(text, target), len(target)) for target in targets]
    longest = max(length for length, _ in common)
    if not longest:
        return 0.0
    precision = longest / len(text)
    recall = max(length / size for length, size in common if size)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _common_length(a: list[str], b: list[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = row
        row = [0]
        for j, other in enumerate(b):
            row.append(before[j] + 1 if word == other else max(before[j + 1], row[j]))
    return row[-1]
