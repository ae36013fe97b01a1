"""Prompts of different lengths in one batch. By the splitting law, padding does not change a carry."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxseq.decoding.step import AnyForward, Memory, as_arrays, as_token_ids, bind_memory, check_context
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
    max_length: int,
    memory: Memory = None,
) -> Prefilled:
    """Read prompts into a carry, all tokens at once: ``greedy(step, *prefill(...), max_length=...)``.

    The last token of each prompt is not read: decoding reads it first. Compiled once for a forward function and the
    shape of the prompts.

    Args:
        forward: ``(carry, tokens [*B T], segment_ids [*B T]) -> (carry, logits [*B T V])``, or with a fourth argument
            if ``memory`` is given. Segment ids are 1 in a prompt and 0 (padding) behind its length.
        carry: a fresh carry; its leaves lead with ``*B``.
        prompts: token ids.
        lengths: the number of tokens of each prompt; ``None``: all have length T.
        max_length: the number of tokens that will be generated; a carry with too little context raises an error.
        memory: a constant input of the forward function; its leaves lead with ``*B``.

    Raises:
        ValueError: a length outside [1, T], or prompt and generation together longer than the carry's context.
    """
    prompts, carry = as_token_ids(prompts), as_arrays(carry)
    time = prompts.shape[-1]
    if time < 1:
        raise ValueError(f"prompts need at least one token each, not the shape {prompts.shape}")
    longest = time
    if lengths is None:
        lengths = jnp.full(prompts.shape[:-1], time, jnp.int32)
    elif not isinstance(lengths, jax.core.Tracer):
        counts = np.asarray(lengths)
        if counts.shape != prompts.shape[:-1]:
            raise ValueError(f"lengths have shape {counts.shape}, the prompts' rows {prompts.shape[:-1]}")
        if counts.size and not (counts.min() >= 1 and counts.max() <= time):
            wrong = counts[(counts < 1) | (counts > time)][0]
            raise ValueError(f"a prompt's length must be in [1, {time}], not {wrong}")
        longest = int(counts.max(initial=1))
    check_context(carry, longest - 1, f"a prompt of {longest} tokens")
    check_context(carry, longest + max_length - 2, f"a prompt of {longest} tokens and max_length={max_length}")
    return _prefill(bind_memory(forward, memory), carry, prompts, jnp.asarray(lengths))


@jax.jit
def _prefill(forward: Partial, carry: Carry, prompts: Int[Array, "*B T"], lengths: Int[Array, "*B"]) -> Prefilled:
    last = lengths[..., None].astype(jnp.int32) - 1
    first_tokens = jnp.take_along_axis(prompts, last, axis=-1)[..., 0]
    if prompts.shape[-1] > 1:
        before = jnp.broadcast_to(jnp.arange(prompts.shape[-1] - 1, dtype=jnp.int32), prompts[..., 1:].shape) < last
        carry, _ = forward(carry, prompts[..., :-1], before.astype(jnp.int32))
    return Prefilled(carry, first_tokens)
