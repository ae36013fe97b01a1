"""Prompts of different lengths in one batch. By the splitting law, padding does not change a carry."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxseq.decoding.step import (
    AnyForward,
    Count,
    Memory,
    as_arrays,
    as_count,
    as_token_ids,
    bind_memory,
    check_context,
    check_inputs,
    check_step,
    document_ids,
    is_inside,
    step_of,
)
from jaxseq.ops.ids import check_ids, valid_ids
from jaxseq.typing import Array, Carry, Int


class Prefilled(NamedTuple):
    """The carry after all but the last token of each prompt, and those last tokens: where decoding starts."""

    carry: Carry
    first_tokens: Int[Array, "*B"]


def pad_prompts(prompts: Sequence[Sequence[int] | Int[np.ndarray, "_"]]) -> tuple[np.ndarray, np.ndarray]:
    """Pad prompts with zeros to one array ``[B T]``; returns it and their lengths ``[B]``.

    Raises:
        ValueError: no prompts, or an empty one (decoding needs a first token, such as a start token).
    """
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    if not len(prompts) or not lengths.all():
        where = f"prompt {int(np.argmin(lengths))} is empty" if len(prompts) else "there are none"
        raise ValueError(f"pad_prompts needs prompts of at least one token: {where}")
    tokens = np.zeros((len(prompts), lengths.max()), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return tokens, lengths


def prefill(
    forward: AnyForward,
    carry: Carry,
    prompts: Int[np.ndarray | Array, "*B T"],
    lengths: Int[np.ndarray | Array, "..."] | None = None,
    *,
    max_length: Count,
    memory: Memory = None,
) -> Prefilled:
    """Read prompts into a carry, all tokens at once: ``greedy(step, *prefill(...), max_length=...)``.

    The last token of each prompt is not read: decoding reads it first. Compiled once for a forward function and the
    shape of the prompts.

    Args:
        forward: ``(carry, tokens [*B T], segment_ids [*B T]) -> (carry, logits [*B T V])``, or with a fourth argument
            if ``memory`` is given. Segment ids continue the document of the carry (1 in a fresh one), and are 0
            (padding) after a prompt's length.
        carry: a fresh carry, or one that has read tokens, which the prompts continue: to add a turn to a generated
            text, pass ``made.carry`` and prompts that begin with ``made.last_tokens``, which it has not read. Its
            leaves lead with ``*B``.
        prompts: token ids; those after a prompt's length are ignored.
        lengths: the number of tokens of each prompt; ``None``: all have length T.
        max_length: the number of tokens that will be generated; a carry with too little context raises an error. Tokens
            that the carry has read before are not counted.
        memory: a constant input of the forward function; its leaves lead with ``*B``.

    Raises:
        ValueError: a token outside the vocabulary (the row's first token is -1, and its log-probabilities become NaN,
            where it is traced), a length outside [1, T], a leaf of carry or memory that does not lead with ``*B``, or
            prompt and generation together longer than the carry's context.
        TypeError: tokens or lengths that are not integers.
    """
    prompts, carry, max_length = as_token_ids(prompts, "prompts"), as_arrays(carry), as_count("max_length", max_length)
    if prompts.ndim < 1 or prompts.shape[-1] < 1:
        raise ValueError(f"prompts need at least one token each, not the shape {prompts.shape}")
    rows, time = prompts.shape[:-1], prompts.shape[-1]
    check_inputs(carry, memory, rows)
    longest = time
    if lengths is None:
        lengths = jnp.full(rows, time, jnp.int32)
    else:
        lengths = as_token_ids(lengths, "lengths")
        if lengths.shape != rows:
            raise ValueError(f"lengths have shape {lengths.shape}, the prompts' rows {rows}")
        if not isinstance(lengths, jax.core.Tracer):
            counts = np.asarray(lengths)
            for wrong in counts[(counts < 1) | (counts > time)]:
                raise ValueError(f"a prompt's length must be in [1, {time}], not {wrong}")
            longest = int(counts.max(initial=1))
    check_context(carry, longest - 1, f"a prompt of {longest} tokens")
    check_context(carry, longest + max_length - 2, f"a prompt of {longest} tokens and max_length={max_length}")
    bound, real = bind_memory(forward, memory), is_inside(prompts.shape, lengths)
    vocab_size = check_step(step_of(bound), carry, jnp.zeros(rows, jnp.int32), None).shape[-1]
    check_ids("prompts", prompts, vocab_size, real)
    return _prefill(bound, carry, prompts, lengths, vocab_size)


@partial(jax.jit, static_argnames="vocab_size")
def _prefill(
    forward: Partial, carry: Carry, prompts: Int[Array, "*B T"], lengths: Int[Array, "*B"], vocab_size: int
) -> Prefilled:
    real = is_inside(prompts.shape, lengths)
    first_tokens = jnp.take_along_axis(prompts, lengths[..., None] - 1, axis=-1)[..., 0]
    valid = jnp.all(valid_ids(prompts, vocab_size) | ~real, axis=-1) & valid_ids(lengths - 1, prompts.shape[-1])
    first_tokens = jnp.where(valid, first_tokens, -1)
    if prompts.shape[-1] > 1:
        before = is_inside(prompts[..., 1:].shape, lengths - 1)
        document = jnp.broadcast_to(document_ids(carry, lengths.shape)[..., None], before.shape)
        read = jnp.where(before, prompts[..., :-1], 0)
        carry, _ = forward(carry, read, jnp.where(before, document, 0))
    return Prefilled(carry, first_tokens)
