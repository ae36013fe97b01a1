"""What trained models do: scores of translations, by length too, pictures of alignments, comparisons over seeds."""

from jaxseq.analysis.alignment import Alignment, alignment_accuracy, draw_alignment, draw_alignments, draw_heads
from jaxseq.analysis.comparison import (
    Comparison,
    Estimate,
    compare_metrics,
    compare_to_base,
    comparison_table,
    draw_comparisons,
    mean_interval,
    paired_differences,
    t_quantile,
)
from jaxseq.analysis.labels import Labels, labels, missing
from jaxseq.analysis.length_curves import draw_by_length
from jaxseq.analysis.translation_scores import (
    LengthScores,
    TranslationScores,
    scores_by_length,
    translation_scores,
    wilson_interval,
)

__all__ = [
    "Alignment",
    "Comparison",
    "Estimate",
    "Labels",
    "LengthScores",
    "TranslationScores",
    "alignment_accuracy",
    "compare_metrics",
    "compare_to_base",
    "comparison_table",
    "draw_alignment",
    "draw_alignments",
    "draw_by_length",
    "draw_comparisons",
    "draw_heads",
    "labels",
    "mean_interval",
    "missing",
    "paired_differences",
    "scores_by_length",
    "t_quantile",
    "translation_scores",
    "wilson_interval",
]
