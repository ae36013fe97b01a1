"""Speculative decoding: a small model drafts tokens, the large model verifies several of them in one forward.

Leviathan et al., "Fast inference from transformers via speculative decoding", 2023; Chen et al., "Accelerating large
language model decoding with speculative sampling", 2023. The returned tokens have exactly the distribution of the
large model's own samples, whatever the draft model is.

A carry that has read rejected tokens is not rolled back (a recurrent state cannot be). By the splitting law padding
does not change a carry, so the round's tokens are read again from the carry before the round, with the rejected ones as
padding. If no row has rejected a token, the carry of the verification is used. Rows that have ended read padding.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxseq.decoding.constraints import Rule, as_constraints, check_constraints
from jaxseq.decoding.end_tokens import EndToken, as_end_tokens
from jaxseq.decoding.filters import check_top_k
from jaxseq.decoding.generation import check_max_length, make_sampler
from jaxseq.decoding.options import SamplingOptions
from jaxseq.decoding.speculative_loop import Config, Inputs, Speculation, decode
from jaxseq.decoding.step import (
    AnyForward,
    Count,
    Memory,
    as_arrays,
    as_count,
    as_token_ids,
    bind_memory,
    check_rows,
    check_step,
    step_of,
)
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Carry, Integer, Key


def speculative_sample(
    draft: AnyForward,
    target: AnyForward,
    draft_carry: Carry,
    carry: Carry,
    first_tokens: Integer[np.ndarray | Array, "*B"],
    options: SamplingOptions | None = None,
    *,
    key: Key[Array, "..."] | None,
    max_length: Count,
    end_token: EndToken = None,
    draft_length: Count = 4,
    constraints: Sequence[Rule] = (),
    memory: Memory = None,
    draft_memory: Memory = None,
) -> Speculation:
    """Sample from ``target`` (or, with ``key=None``, decode it greedily) in fewer of its forwards.

    In each round ``draft`` draws ``draft_length`` tokens from its distribution q, and one forward of ``target`` gives
    its distribution p at each of them. A token x is accepted with probability ``min(1, p(x) / q(x))``; the first one
    that is rejected is drawn again from ``max(p - q, 0)``, normalised, and ends the round. If all are accepted, one
    more token is drawn from p. Constraints, temperature and filters act on p and q alike.

    Args:
        draft, target: ``forward(carry, tokens [*B T], segment_ids [*B T]) -> (carry, logits [*B T V])``.
        draft_carry, carry: the carries of draft and target, which have read the same tokens.
        first_tokens, max_length, end_token, constraints, memory: as for ``sample``.
        options: temperature and filters; ``None`` is ``SamplingOptions()``.
        key: as for ``sample``; ``None`` decodes greedily.
        draft_length: the number of tokens drafted in each round.
        draft_memory: the memory of the draft model.

    Raises:
        ValueError: draft_length below 1, two vocabularies, options without a key, or as ``sample``.
    """
    draft_length, longest = as_count("draft_length", draft_length), as_count("max_length", max_length)
    first_tokens = as_token_ids(first_tokens, "first_tokens")
    draft_carry, carry, rules = as_arrays(draft_carry), as_arrays(carry), as_constraints(constraints)
    trees = {"draft_carry": draft_carry, "draft_memory": draft_memory, "carry": carry, "memory": memory}
    for name, tree in trees.items():
        check_rows(tree, first_tokens.shape, name)
    sampler = make_sampler(options, key, first_tokens.shape)
    models = bind_memory(draft, draft_memory), bind_memory(target, memory)
    sizes = []
    for model, its_carry in zip(models, (draft_carry, carry), strict=True):
        check_max_length(its_carry, longest)
        logits = check_step(step_of(model), its_carry, first_tokens, end_token)
        sizes.append(logits.shape[-1])
    if sizes[0] != sizes[1]:
        raise ValueError(f"draft and target must share a vocabulary: {sizes[0]} and {sizes[1]} tokens")
    if sampler is not None and sampler.options.top_k is not None:
        check_top_k(sampler.options.top_k, sizes[1])
    check_constraints(rules, sizes[1], longest, end_token)
    dtype = jnp.dtype(at_least_float32(logits.dtype))
    config = Config(longest, draft_length, as_end_tokens(end_token), sizes[1], dtype)
    return decode(Inputs(*models, sampler, rules), draft_carry, carry, first_tokens, config)
