"""Analysis of trained models: scores of translations and captions, alignments, attention, comparisons over seeds."""

from jaxseq.analysis.alignment import alignment_accuracy
from jaxseq.analysis.attention_share import AttentionShare, attention_share
from jaxseq.analysis.caption_bleu import BleuScores, caption_bleu
from jaxseq.analysis.caption_cider import CaptionScore, DocumentFrequencies, cider_d, document_frequencies
from jaxseq.analysis.caption_rouge import rouge_l
from jaxseq.analysis.caption_scores import CaptionScores, caption_scores, exact_matches
from jaxseq.analysis.caption_tokens import ptb_tokens
from jaxseq.analysis.comparison import (
    INTERVAL_METHOD,
    Comparison,
    Estimate,
    compare_metrics,
    compare_to_base,
    comparison_table,
    mean_interval,
    paired_differences,
    t_quantile,
)
from jaxseq.analysis.proposal_recall import ProposalRecall, proposal_recall
from jaxseq.analysis.slot_accuracy import slot_accuracy
from jaxseq.analysis.translation_scores import (
    LengthScores,
    TranslationScores,
    scores_by_length,
    translation_scores,
    wilson_interval,
)

__all__ = [
    "INTERVAL_METHOD",
    "AttentionShare",
    "BleuScores",
    "CaptionScore",
    "CaptionScores",
    "Comparison",
    "DocumentFrequencies",
    "Estimate",
    "LengthScores",
    "ProposalRecall",
    "TranslationScores",
    "alignment_accuracy",
    "attention_share",
    "caption_bleu",
    "caption_scores",
    "cider_d",
    "compare_metrics",
    "compare_to_base",
    "comparison_table",
    "document_frequencies",
    "exact_matches",
    "mean_interval",
    "paired_differences",
    "proposal_recall",
    "ptb_tokens",
    "rouge_l",
    "scores_by_length",
    "slot_accuracy",
    "t_quantile",
    "translation_scores",
    "wilson_interval",
]
