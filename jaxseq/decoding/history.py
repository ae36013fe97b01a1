"""The tokens that a rule looks back on: a prompt, if it is given one, and what has been generated.

A history is an array ``[*B P+L]`` of the newest tokens, the newest last; -1 stands where there are none yet. An id of
the prompt that is no token stays in it as a number outside the vocabulary, so that a rule can tell.
"""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.ops.ids import check_ids, valid_ids
from jaxseq.typing import Array, Bool, Int, Integer

Prompt: TypeAlias = Sequence[int] | Integer[np.ndarray | Array, "*B P"] | None
"""A prompt for all rows ``[P]``, or one for each row ``[*B P]``."""

PromptLengths: TypeAlias = Integer[np.ndarray | Array, "*B"] | int | None
"""The number of tokens of each prompt, the others are padding; None: all."""

NO_TOKEN = np.iinfo(np.int32).max


def check_prompt(name: str, prompt: Prompt, lengths: PromptLengths, vocab_size: int) -> None:
    """Check the ids of a prompt, but those of its padding.

    Raises:
        ValueError: an id outside the vocabulary, lengths without a prompt, or of another shape or range.
    """
    if prompt is None:
        if lengths is not None:
            raise ValueError(f"{name}: prompt_lengths={lengths} without a prompt")
        return
    tokens = prompt if isinstance(prompt, jax.Array) else np.asarray(prompt, np.int32)
    if lengths is not None:
        if jnp.shape(lengths) != tokens.shape[:-1]:
            raise ValueError(f"{name}: prompt_lengths of shape {jnp.shape(lengths)} for prompts {tokens.shape}")
        if not isinstance(lengths, jax.core.Tracer):
            check_ids(f"{name}: prompt_lengths", jnp.asarray(lengths), tokens.shape[-1] + 1)
    if not isinstance(lengths, jax.core.Tracer):
        real = None if lengths is None else np.arange(tokens.shape[-1]) < np.asarray(lengths)[..., None]
        check_ids(f"{name}: prompt", tokens, vocab_size, real)


def initial_history(
    name: str, prompt: Prompt, lengths: PromptLengths, batch_shape: tuple[int, ...], max_length: int
) -> Int[Array, "*B H"]:
    """The history before the first token: the prompts, each ending at the right.

    Raises:
        ValueError: prompts of another number of rows.
    """
    empty = jnp.full((*batch_shape, max_length), -1, jnp.int32)
    if prompt is None:
        return empty
    tokens = jnp.asarray(prompt, jnp.int32)
    if tokens.ndim > 1 and tokens.shape[:-1] != batch_shape:
        raise ValueError(f"{name} has prompts for rows {tokens.shape[:-1]}, the batch has {batch_shape}")
    width = tokens.shape[-1]
    tokens = jnp.broadcast_to(jnp.where(tokens < 0, NO_TOKEN, tokens), (*batch_shape, width))
    if lengths is not None and width:
        count = jnp.broadcast_to(jnp.asarray(lengths, jnp.int32), batch_shape)[..., None]
        source = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), tokens.shape) - (width - count)
        tokens = jnp.where(source >= 0, jnp.take_along_axis(tokens, jnp.maximum(source, 0), axis=-1), -1)
    return jnp.concatenate([empty, tokens], axis=-1)


def appended(history: Int[Array, "*B H"], tokens: Int[Array, "*B"]) -> Int[Array, "*B H"]:
    """The history after these tokens."""
    return jnp.concatenate([history[..., 1:], tokens[..., None].astype(jnp.int32)], axis=-1)


def has_valid_ids(history: Int[Array, "*B H"], vocab_size: int) -> Bool[Array, "*B"]:
    """Whether all ids of each row are tokens."""
    return jnp.all((history == -1) | valid_ids(history, vocab_size), axis=-1)


def token_counts(tokens: Int[Array, "*B n"], vocab_size: int) -> Int[Array, "*B V"]:
    """How often each token of the vocabulary occurs in each row; ids outside it are not counted."""
    places = jnp.where(valid_ids(tokens, vocab_size), tokens, vocab_size)
    rows = places.reshape(int(np.prod(tokens.shape[:-1])), tokens.shape[-1])
    counts = jax.vmap(lambda row: jnp.zeros(vocab_size, jnp.int32).at[row].add(1, mode="drop"))(rows)
    return counts.reshape(*tokens.shape[:-1], vocab_size)
