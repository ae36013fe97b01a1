"""Decoding over a step ``(carry, tokens) -> (carry, logits)``: greedy, sampling, beam search, streaming, scoring."""

from jaxseq.decoding.automaton import Automaton
from jaxseq.decoding.beam import beam_search
from jaxseq.decoding.beam_results import Hypotheses
from jaxseq.decoding.constraints import (
    Constraint,
    Forbid,
    LogitsProcessor,
    MaxLength,
    MinLength,
    Prefix,
    Rule,
    StatelessConstraint,
    StoppingCriterion,
)
from jaxseq.decoding.end_tokens import EndToken
from jaxseq.decoding.filters import (
    apply_temperature,
    filter_logits,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical_p,
)
from jaxseq.decoding.generation import Generation, greedy, sample, stream
from jaxseq.decoding.ngrams import NoRepeatedNgrams
from jaxseq.decoding.normalization import GNMT, NORMALIZATIONS
from jaxseq.decoding.options import BeamOptions, Coverage, SamplingOptions
from jaxseq.decoding.penalties import FrequencyPenalty, RepetitionPenalty, SequenceBias
from jaxseq.decoding.prompts import Prefilled, pad_prompts, prefill
from jaxseq.decoding.scoring import score, score_tokens
from jaxseq.decoding.speculative import speculative_sample
from jaxseq.decoding.speculative_loop import Speculation
from jaxseq.decoding.step import Forward, ForwardWithMemory, Step, StepWithMemory, step_of
from jaxseq.decoding.stops import Stop
from jaxseq.decoding.tree import SearchNode, SearchTree, search_tree

__all__ = [
    "GNMT",
    "NORMALIZATIONS",
    "Automaton",
    "BeamOptions",
    "Constraint",
    "Coverage",
    "EndToken",
    "Forbid",
    "Forward",
    "ForwardWithMemory",
    "FrequencyPenalty",
    "Generation",
    "Hypotheses",
    "LogitsProcessor",
    "MaxLength",
    "MinLength",
    "NoRepeatedNgrams",
    "Prefilled",
    "Prefix",
    "RepetitionPenalty",
    "Rule",
    "SamplingOptions",
    "SearchNode",
    "SearchTree",
    "SequenceBias",
    "Speculation",
    "StatelessConstraint",
    "Step",
    "StepWithMemory",
    "Stop",
    "StoppingCriterion",
    "apply_temperature",
    "beam_search",
    "filter_logits",
    "greedy",
    "keep_min_p",
    "keep_top_k",
    "keep_top_p",
    "keep_typical_p",
    "pad_prompts",
    "prefill",
    "sample",
    "score",
    "score_tokens",
    "search_tree",
    "speculative_sample",
    "step_of",
    "stream",
]
