"""The tokens that a rule looks back on: the generated ones, and a prompt if it is given one.

A history is an array ``[*B P+L]`` of the last tokens, the newest at the end; -1 marks places without a token. An id of
the prompt that is outside the vocabulary stays outside it, so that a rule can detect it.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.ops.ids import check_ids, valid_ids
from jaxseq.typing import Array, Bool, Int, Integer

Prompt: TypeAlias = Sequence[int] | Integer[np.ndarray | Array, "..."] | None
"""A prompt for all rows ``[P]``, or one for each row ``[*B P]``."""

PromptLengths: TypeAlias = int | Sequence[int] | Integer[np.ndarray | Array, "..."] | None
"""The number of tokens of each prompt; the others are padding. None: there is no padding."""

NO_TOKEN = np.iinfo(np.int32).max
"""Replaces negative ids of a prompt, because -1 marks a place without a token."""


def as_array(name: str, value: Any) -> Any:
    """Convert a sequence to an array; other values (arrays, None, placeholders of a pytree) are returned unchanged.

    Raises:
        TypeError: numbers that are not integers.
    """
    found = np.asarray(value) if isinstance(value, Sequence) and len(value) else value
    if isinstance(found, np.ndarray | jax.Array) and found.dtype.kind not in "iuV":  # V: a tangent of integers
        raise TypeError(f"{name} must be integers, not {found.dtype}{found.shape}")
    return np.asarray(value, np.int32) if isinstance(value, Sequence) else value


def set_arrays(rule: Any, *names: str) -> None:
    """Make these fields of a frozen dataclass arrays, so that other values need no new compilation."""
    for name in names:
        object.__setattr__(rule, name, as_array(f"{type(rule).__name__}: {name}", getattr(rule, name)))


def check_prompt(name: str, prompt: Prompt, lengths: PromptLengths, vocab_size: int) -> None:
    """Check the lengths of prompts, and their ids except those of padding.

    Raises:
        ValueError: an id outside the vocabulary, or lengths without a prompt, of another shape, or out of range.
    """
    if prompt is None:
        if lengths is not None:
            raise ValueError(f"{name}: prompt_lengths={lengths} without a prompt")
        return
    tokens, real = as_array(f"{name}: prompt", prompt), None
    if lengths is not None:
        if np.shape(lengths) != tokens.shape[:-1]:
            raise ValueError(f"{name}: prompt_lengths of shape {np.shape(lengths)} for prompts {tokens.shape}")
        if isinstance(lengths, jax.core.Tracer):
            return
        counts = np.asarray(lengths)
        check_ids(f"{name}: prompt_lengths", counts, tokens.shape[-1] + 1)
        real = np.arange(tokens.shape[-1]) < counts[..., None]
    check_ids(f"{name}: prompt", tokens, vocab_size, real)


def initial_history(
    name: str, prompt: Prompt, lengths: PromptLengths, batch_shape: tuple[int, ...], max_length: int
) -> Int[Array, "*B H"]:
    """The history before the first generated token: the prompts, aligned at the end.

    Raises:
        ValueError: the prompts have other batch dimensions.
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
    """Whether all ids of each row are in the vocabulary."""
    return jnp.all((history == -1) | valid_ids(history, vocab_size), axis=-1)


def token_counts(tokens: Int[Array, "*B n"], vocab_size: int) -> Int[Array, "*B V"]:
    """Count each token of the vocabulary in each row; ids outside the vocabulary are not counted."""
    places = jnp.where(valid_ids(tokens, vocab_size), tokens, vocab_size)
    rows = places.reshape(int(np.prod(tokens.shape[:-1])), tokens.shape[-1])
    counts = jax.vmap(lambda row: jnp.zeros(vocab_size, jnp.int32).at[row].add(1, mode="drop"))(rows)
    return counts.reshape(*tokens.shape[:-1], vocab_size)
