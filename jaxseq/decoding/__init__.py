"""From a step, ``(carry, tokens) -> (carry, logits)``, to tokens: greedy, sampled, streamed."""

from jaxseq.decoding.filters import filtered, keep_top_k, keep_top_p, scale
from jaxseq.decoding.generation import Generation, greedy, sample, stream

__all__ = ["Generation", "filtered", "greedy", "keep_top_k", "keep_top_p", "sample", "scale", "stream"]
