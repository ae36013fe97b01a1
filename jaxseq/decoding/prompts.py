"""Prompts of different lengths in one batch: by the splitting law, padding changes no carry."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxseq.decoding.step import Forward, as_arrays, as_tokens, check_room, with_memory
from jaxseq.typing import Array, Carry, Int


class Prompted(NamedTuple):
    """What decoding begins with: the carry after all but the last token of each prompt, and those last tokens."""

    carry: Carry
    first_tokens: Int[Array, "*B"]


def padded(prompts: Sequence[Sequence[int] | Int[np.ndarray, "_"]]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as one array ``[B T]``, zeros behind each, and their lengths ``[B]``.

    Raises:
        ValueError: no prompts, or an empty one (a model needs something to begin from: a start token).
    """
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    if not len(prompts) or not lengths.all():
        where = f"prompt {int(np.argmin(lengths))} is empty" if len(prompts) else "there are none"
        raise ValueError(f"prompts must have a token each: {where}")
    tokens = np.zeros((len(prompts), lengths.max()), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return tokens, lengths


def prefill(
    forward: Forward,
    carry: Carry,
    prompts: Int[np.ndarray | Array, "*B T"],
    lengths: Int[np.ndarray | Array, "..."] | None = None,
    *,
    max_length: int,
    memory: Any = None,
) -> Prompted:
    """Read the prompts, all at once, into a carry: what ``greedy``, ``sample`` and ``beam_search`` begin with.

        forward(carry, tokens [*B T], segment_ids [*B T]) -> (carry, logits [*B T V])

    What stands behind a prompt's length is padding (id 0; the prompt is document 1). The last token of a prompt is
    not read yet: decoding reads it first. ``max_length`` is how much shall be generated, so that a carry without
    the room for it is refused here. Compiled once for a forward function and the shape of the prompts.

    Raises:
        ValueError: a length outside [1, T], or prompt and generation together longer than the carry's context.
    """
    prompts, carry = as_tokens(prompts), as_arrays(carry)
    time = prompts.shape[-1]
    if time < 1:
        raise ValueError(f"prompts must have a token each, not the shape {prompts.shape}")
    longest = time
    if lengths is None:
        lengths = jnp.full(prompts.shape[:-1], time, jnp.int32)
    elif not isinstance(lengths, jax.core.Tracer):
        counts = np.asarray(lengths)
        if counts.shape != prompts.shape[:-1]:
            raise ValueError(f"lengths have shape {counts.shape}, the prompts' rows {prompts.shape[:-1]}")
        if counts.size and not (counts.min() >= 1 and counts.max() <= time):
            wrong = counts[(counts < 1) | (counts > time)][0]
            raise ValueError(f"a prompt's length must lie in [1, {time}], not {wrong}")
        longest = int(counts.max(initial=1))
    check_room(carry, longest - 1, f"a prompt of {longest} tokens")
    check_room(carry, longest + max_length - 2, f"a prompt of {longest} tokens and max_length={max_length}")
    return _prefill(with_memory(forward, memory), carry, prompts, jnp.asarray(lengths))


@partial(jax.jit)
def _prefill(forward: Partial, carry: Carry, prompts: Int[Array, "*B T"], lengths: Int[Array, "*B"]) -> Prompted:
    last = lengths[..., None].astype(jnp.int32) - 1
    first_tokens = jnp.take_along_axis(prompts, last, axis=-1)[..., 0]
    if prompts.shape[-1] > 1:
        before = jnp.broadcast_to(jnp.arange(prompts.shape[-1] - 1, dtype=jnp.int32), prompts[..., 1:].shape) < last
        carry, _ = forward(carry, prompts[..., :-1], before.astype(jnp.int32))
    return Prompted(carry, first_tokens)
