"""Analysis of models: gradient flow, scores of translations, captions and detections, alignments, comparisons."""

from jaxseq.analysis.alignment import alignment_accuracy
from jaxseq.analysis.attention_share import AttentionShare, attention_share
from jaxseq.analysis.average_precision import AveragePrecision, ClassPrecision, average_precision
from jaxseq.analysis.bptt_terms import TermNorms, bptt_term_norms, bptt_terms
from jaxseq.analysis.caption_bleu import BleuScores, caption_bleu
from jaxseq.analysis.caption_cider import CaptionScore, DocumentFrequencies, cider_d, document_frequencies
from jaxseq.analysis.caption_rouge import rouge_l
from jaxseq.analysis.caption_scores import CaptionScores, caption_scores, exact_matches
from jaxseq.analysis.caption_tokens import ptb_tokens
from jaxseq.analysis.carry_flow import CarryFlow, carry_flow, norm_bound
from jaxseq.analysis.carry_vectors import CoreFunction, carry_vector, with_carry_vector
from jaxseq.analysis.coco_average_precision import CocoScores, coco_average_precision
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
from jaxseq.analysis.detection_outcomes import (
    OperatingPoint,
    Outcomes,
    best_operating_point,
    detection_outcomes,
)
from jaxseq.analysis.detection_pairs import Found, ImageObjects
from jaxseq.analysis.gradient_bias import GradientBias, gradient_bias
from jaxseq.analysis.hand_backward import HandGradients, elman_backward, lstm_backward
from jaxseq.analysis.jacobians import carry_jacobians, carry_jvp, carry_vjp, output_jacobian
from jaxseq.analysis.loss_flow import LossFlow, loss_flow
from jaxseq.analysis.lstm_paths import LSTMPaths, LSTMPathTerms, LSTMStepTerms, lstm_paths, lstm_step_terms
from jaxseq.analysis.lyapunov import LyapunovSpectrum, core_step, lyapunov_exponents
from jaxseq.analysis.path_length import path_length
from jaxseq.analysis.power_laws import crossing_size, fitted_exponent
from jaxseq.analysis.program_costs import ProgramMemory, compiled_memory, program_flops, program_memory
from jaxseq.analysis.proposal_recall import ProposalRecall, proposal_recall
from jaxseq.analysis.receptive_field import ReceptiveField, receptive_field
from jaxseq.analysis.sequential_depth import sequential_depth
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
    "AveragePrecision",
    "BleuScores",
    "CaptionScore",
    "CaptionScores",
    "CarryFlow",
    "ClassPrecision",
    "CocoScores",
    "Comparison",
    "CoreFunction",
    "DocumentFrequencies",
    "Estimate",
    "Found",
    "GradientBias",
    "HandGradients",
    "ImageObjects",
    "LSTMPathTerms",
    "LSTMPaths",
    "LSTMStepTerms",
    "LengthScores",
    "LossFlow",
    "LyapunovSpectrum",
    "OperatingPoint",
    "Outcomes",
    "ProgramMemory",
    "ProposalRecall",
    "ReceptiveField",
    "TermNorms",
    "TranslationScores",
    "alignment_accuracy",
    "attention_share",
    "average_precision",
    "best_operating_point",
    "bptt_term_norms",
    "bptt_terms",
    "caption_bleu",
    "caption_scores",
    "carry_flow",
    "carry_jacobians",
    "carry_jvp",
    "carry_vector",
    "carry_vjp",
    "cider_d",
    "coco_average_precision",
    "compare_metrics",
    "compare_to_base",
    "comparison_table",
    "compiled_memory",
    "core_step",
    "crossing_size",
    "detection_outcomes",
    "document_frequencies",
    "elman_backward",
    "exact_matches",
    "fitted_exponent",
    "gradient_bias",
    "loss_flow",
    "lstm_backward",
    "lstm_paths",
    "lstm_step_terms",
    "lyapunov_exponents",
    "mean_interval",
    "norm_bound",
    "output_jacobian",
    "paired_differences",
    "path_length",
    "program_flops",
    "program_memory",
    "proposal_recall",
    "ptb_tokens",
    "receptive_field",
    "rouge_l",
    "scores_by_length",
    "sequential_depth",
    "slot_accuracy",
    "t_quantile",
    "translation_scores",
    "wilson_interval",
    "with_carry_vector",
]
