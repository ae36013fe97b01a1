"""Scores of captions: exact match, BLEU-1 to 4, ROUGE-L and CIDEr-D, in plain Python."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxseq.analysis.caption_bleu import caption_bleu
from jaxseq.analysis.caption_cider import DocumentFrequencies, cider_d
from jaxseq.analysis.caption_rouge import rouge_l
from jaxseq.analysis.caption_tokens import signature, tokenized


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a corpus on the scales of pycocoevalcap: all in 0..1, but CIDEr-D in 0..10.

    Papers multiply all by 100: a CIDEr-D of 1.1 here is their 110. ``signatures`` states how each score
    (``exact_match``, ``bleu``, ``rouge_l``, ``cider_d``) was computed.
    """

    exact_match: float
    bleu1: float
    bleu2: float
    bleu3: float
    bleu4: float
    rouge_l: float
    cider_d: float
    signatures: dict[str, str]


def caption_scores(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenizer: str = "ptb",
    smoothing: str = "coco",
    frequencies: DocumentFrequencies | None = None,
) -> CaptionScores:
    """Scores of captions against the references of their images.

    ``exact_match`` is the share of ``exact_matches``. The others are ``caption_bleu``, ``rouge_l`` and ``cider_d``. A
    caption without words counts as wrong in all of them.

    Args:
        hypotheses: one caption an image.
        references: the references of each image, one or more.
        tokenizer: ``"ptb"`` (lower case, without punctuation) or ``"words"`` (split at white space).
        smoothing: of BLEU, ``"coco"`` (pycocoevalcap) or ``"exp"`` (sacrebleu).
        frequencies: of n-grams in another corpus, for CIDEr-D; None counts them in ``references``.

    Raises:
        ValueError: no captions, unequal numbers of hypotheses and images, an image without references, one text in
            place of a sequence of references, an unknown tokenizer or smoothing, or frequencies of another tokenizer.
    """
    bleu = caption_bleu(hypotheses, references, tokenizer=tokenizer, smoothing=smoothing)
    rouge = rouge_l(hypotheses, references, tokenizer=tokenizer)
    cider = cider_d(hypotheses, references, tokenizer=tokenizer, frequencies=frequencies)
    matches = exact_matches(hypotheses, references, tokenizer=tokenizer)
    case = "kept" if tokenizer == "words" else "lower"
    return CaptionScores(
        exact_match=sum(matches) / len(matches),
        bleu1=bleu.scores[0],
        bleu2=bleu.scores[1],
        bleu3=bleu.scores[2],
        bleu4=bleu.scores[3],
        rouge_l=rouge.score,
        cider_d=cider.score,
        signatures={
            "exact_match": signature("exact-match", references, tokenizer, case=case, scale="0-1"),
            "bleu": bleu.signature,
            "rouge_l": rouge.signature,
            "cider_d": cider.signature,
        },
    )


def exact_matches(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenizer: str = "ptb"
) -> list[bool]:
    """Whether each caption has the tokens of one of its references; a caption without tokens has not.

    With ``tokenizer="ptb"`` case and punctuation make no difference, with ``"words"`` they do.

    Raises:
        ValueError: no captions, unequal numbers of hypotheses and images, an image without references, one text in
            place of a sequence of references, or an unknown tokenizer.
    """
    texts, wanted = tokenized(hypotheses, references, tokenizer)
    return [bool(text) and text in targets for text, targets in zip(texts, wanted, strict=True)]
