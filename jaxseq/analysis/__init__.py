"""Analysis of trained models: scores of translations, alignment accuracy, comparisons over seeds."""

from jaxseq.analysis.alignment import alignment_accuracy
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
from jaxseq.analysis.translation_scores import (
    LengthScores,
    TranslationScores,
    scores_by_length,
    translation_scores,
    wilson_interval,
)

__all__ = [
    "INTERVAL_METHOD",
    "Comparison",
    "Estimate",
    "LengthScores",
    "TranslationScores",
    "alignment_accuracy",
    "compare_metrics",
    "compare_to_base",
    "comparison_table",
    "mean_interval",
    "paired_differences",
    "scores_by_length",
    "t_quantile",
    "translation_scores",
    "wilson_interval",
]
