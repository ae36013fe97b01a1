"""From a step, ``(carry, tokens) -> (carry, logits)``, to tokens: greedy, sampled, searched, streamed, scored."""

from jaxseq.decoding.automaton import Automaton
from jaxseq.decoding.beam import beam_search
from jaxseq.decoding.beam_steps import Coverage, Hypotheses
from jaxseq.decoding.constraints import (
    Constraint,
    Forbid,
    MaxLength,
    MinLength,
    NoRepeatedNgrams,
    Prefix,
)
from jaxseq.decoding.filters import filtered, keep_min_p, keep_top_k, keep_top_p, keep_typical, scale
from jaxseq.decoding.generation import Generation, greedy, sample, stream
from jaxseq.decoding.normalization import GNMT, NORMALIZATIONS
from jaxseq.decoding.prompts import Prompted, padded, prefill
from jaxseq.decoding.scoring import score, score_tokens
from jaxseq.decoding.speculative import Speculation, speculative_sample
from jaxseq.decoding.step import step_of
from jaxseq.decoding.tree import SearchTree, search_tree

__all__ = [
    "GNMT",
    "NORMALIZATIONS",
    "Automaton",
    "Constraint",
    "Coverage",
    "Forbid",
    "Generation",
    "Hypotheses",
    "MaxLength",
    "MinLength",
    "NoRepeatedNgrams",
    "Prefix",
    "Prompted",
    "SearchTree",
    "Speculation",
    "beam_search",
    "filtered",
    "greedy",
    "keep_min_p",
    "keep_top_k",
    "keep_top_p",
    "keep_typical",
    "padded",
    "prefill",
    "sample",
    "scale",
    "score",
    "score_tokens",
    "search_tree",
    "speculative_sample",
    "step_of",
    "stream",
]
