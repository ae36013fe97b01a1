"""Logits processors: penalties of repeated tokens, and biases of token sequences.

    rules = [RepetitionPenalty(1.2), SequenceBias({(3, 4): -2.0})]
    sample(step, carry, first, key=key, max_length=50, constraints=rules)

They change the logits of the next token. ``log_probabilities`` stay the model's own; greedy decoding and sampling use
the changed logits, and beam search their log softmax. The generated tokens count, and those of a prompt only if it is
given to the rule: ``[P]`` for all rows or ``[*B P]``, with ``prompt_lengths`` ``[*B]`` if it is padded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxseq.decoding.constraints import LogitsProcessor
from jaxseq.decoding.history import (
    Prompt,
    PromptLengths,
    appended,
    check_prompt,
    has_valid_ids,
    initial_history,
    set_arrays,
    token_counts,
)
from jaxseq.decoding.options import known_number
from jaxseq.ops.ids import check_ids
from jaxseq.typing import Array, Carry, Int, Logits, Scalar

_PROMPT = ["prompt", "prompt_lengths"]


@partial(register_dataclass, data_fields=["penalty", *_PROMPT], meta_fields=[])
@dataclass(frozen=True, eq=False)
class RepetitionPenalty(LogitsProcessor):
    """Divides the logits of tokens that have occurred by ``penalty`` where positive, and multiplies negative ones.

    Each distinct token is changed once, however often it has occurred. Above 1 repetitions become less probable, below
    1 more probable. Keskar et al., "CTRL: a conditional transformer language model for controllable generation", 2019.

    Raises:
        ValueError: a penalty that is not above 0 and finite; at the call also prompts that do not fit.
    """

    penalty: float | Scalar
    prompt: Prompt = None
    prompt_lengths: PromptLengths = None

    def __post_init__(self) -> None:
        """Check the penalty, and make the prompt an array."""
        set_arrays(self, *_PROMPT)
        penalty = known_number("RepetitionPenalty: penalty", self.penalty)
        if penalty is not None and not 0 < penalty < float("inf"):
            raise ValueError(f"RepetitionPenalty: penalty must be above 0 and finite, not {penalty}")

    def check(self, vocab_size: int, max_length: int) -> None:
        """Check the prompt."""
        check_prompt("RepetitionPenalty", self.prompt, self.prompt_lengths, vocab_size)

    def initial_state(self, batch_shape: tuple[int, ...], max_length: int) -> Int[Array, "*B H"]:
        """The history, with the prompt."""
        return initial_history("RepetitionPenalty", self.prompt, self.prompt_lengths, batch_shape, max_length)

    def __call__(
        self, state: Carry, logits: Logits, num_generated: Int[Array, ""], num_remaining: Int[Array, ""]
    ) -> Logits:
        """The logits with the penalty; NaN for a row whose prompt has an id outside the vocabulary."""
        penalty = jnp.asarray(self.penalty, logits.dtype)
        changed = jnp.where(logits > 0, logits / penalty, logits * penalty)
        seen = token_counts(state, logits.shape[-1]) > 0
        return _nan_where_invalid(jnp.where(seen, _finite(changed, logits), logits), state)

    def next_state(self, state: Carry, tokens: Int[Array, "*B"]) -> Int[Array, "*B H"]:
        """The tokens appended."""
        return appended(state, tokens)


@partial(register_dataclass, data_fields=["frequency", "presence", *_PROMPT], meta_fields=[])
@dataclass(frozen=True, eq=False)
class FrequencyPenalty(LogitsProcessor):
    """Subtracts ``frequency * count + presence * (count > 0)`` from each logit; negative values encourage repetitions.

    ``count`` is how often the token has occurred. This is the definition of OpenAI's API (``frequency_penalty``,
    ``presence_penalty``), which counts generated tokens only, as this does without a prompt.

    Raises:
        ValueError: a value that is not finite; at the call also prompts that do not fit.
    """

    frequency: float | Scalar = 0.0
    presence: float | Scalar = 0.0
    prompt: Prompt = None
    prompt_lengths: PromptLengths = None

    def __post_init__(self) -> None:
        """Check the values, and make the prompt an array."""
        set_arrays(self, *_PROMPT)
        for name in ("frequency", "presence"):
            value = known_number(f"FrequencyPenalty: {name}", getattr(self, name))
            if value is not None and not np.isfinite(value):
                raise ValueError(f"FrequencyPenalty: {name} must be finite, not {value}")

    def check(self, vocab_size: int, max_length: int) -> None:
        """Check the prompt."""
        check_prompt("FrequencyPenalty", self.prompt, self.prompt_lengths, vocab_size)

    def initial_state(self, batch_shape: tuple[int, ...], max_length: int) -> Int[Array, "*B H"]:
        """The history, with the prompt."""
        return initial_history("FrequencyPenalty", self.prompt, self.prompt_lengths, batch_shape, max_length)

    def __call__(
        self, state: Carry, logits: Logits, num_generated: Int[Array, ""], num_remaining: Int[Array, ""]
    ) -> Logits:
        """The logits with the penalty; NaN for a row whose prompt has an id outside the vocabulary."""
        counts = token_counts(state, logits.shape[-1]).astype(logits.dtype)
        each, once = (jnp.asarray(x, logits.dtype) for x in (self.frequency, self.presence))
        changed = logits - each * counts - once * jnp.minimum(counts, 1)
        return _nan_where_invalid(_finite(changed, logits), state)

    def next_state(self, state: Carry, tokens: Int[Array, "*B"]) -> Int[Array, "*B H"]:
        """The tokens appended."""
        return appended(state, tokens)


@partial(register_dataclass, data_fields=["biases", *_PROMPT], meta_fields=[])
@dataclass(frozen=True, eq=False)
class SequenceBias(LogitsProcessor):
    """Adds a bias to the logit of a sequence's last token, where the tokens so far end with the tokens before it.

    ``biases`` maps token sequences to numbers, ``{(3, 4): -2.0, (5,): 1.0}``: after 3 the logit of 4 is reduced by 2,
    and the logit of 5 is increased by 1 everywhere. The biases of sequences that end with the same token are added.
    Minus infinity excludes the token. The numbers are inputs of the compiled program, the sequences are part of it.
    (As ``SequenceBias`` of transformers.)

    Raises:
        ValueError: an empty sequence, or a bias that is NaN or plus infinity; at the call also a token outside the
            vocabulary, or prompts that do not fit.
    """

    biases: Mapping[tuple[int, ...], float | Scalar]
    prompt: Prompt = None
    prompt_lengths: PromptLengths = None

    def __post_init__(self) -> None:
        """Check sequences and biases, and make the prompt an array."""
        set_arrays(self, *_PROMPT)
        if not isinstance(self.biases, Mapping):  # a placeholder of a pytree
            return
        object.__setattr__(self, "biases", {tuple(map(int, words)): bias for words, bias in self.biases.items()})
        for words, bias in self.biases.items():
            value = known_number(f"SequenceBias: the bias of {list(words)}", bias)
            if not words or (value is not None and not value < float("inf")):
                raise ValueError(f"SequenceBias: empty sequence or bias not below infinity: {list(words)}: {bias}")

    def check(self, vocab_size: int, max_length: int) -> None:
        """Check tokens and prompt."""
        for words in self.biases:
            check_ids(f"SequenceBias: {words}", np.array(words), vocab_size)
        check_prompt("SequenceBias", self.prompt, self.prompt_lengths, vocab_size)

    def initial_state(self, batch_shape: tuple[int, ...], max_length: int) -> Int[Array, "*B H"]:
        """The history, with the prompt, of at least the tokens that a sequence looks back on."""
        longest = max([max_length, *map(len, self.biases)])
        return initial_history("SequenceBias", self.prompt, self.prompt_lengths, batch_shape, longest)

    def __call__(
        self, state: Carry, logits: Logits, num_generated: Int[Array, ""], num_remaining: Int[Array, ""]
    ) -> Logits:
        """The logits with the biases; NaN for a row whose prompt has an id outside the vocabulary."""
        if not self.biases:
            return logits
        before = max(map(len, self.biases)) - 1
        numbers = jnp.stack([jnp.asarray(bias, logits.dtype) for bias in self.biases.values()])
        pad = [(-1,) * (before + 1 - len(words)) + words for words in self.biases]
        sequences = np.array(pad, np.int32)
        recent = state[..., None, state.shape[-1] - before :]
        earlier = sequences[:, :-1].reshape((1,) * (state.ndim - 1) + (len(pad), before))
        matches = jnp.all((recent == earlier) | (earlier == -1), axis=-1)
        added = jnp.where(matches, numbers.reshape((1,) * (state.ndim - 1) + (-1,)), 0)
        rows = added.reshape(int(np.prod(state.shape[:-1])), len(pad))
        zeros = jnp.zeros(logits.shape[-1], logits.dtype)
        changes = jax.vmap(lambda row: zeros.at[sequences[:, -1]].add(row))(rows)
        changed = jnp.minimum(logits + changes.reshape(logits.shape), jnp.finfo(logits.dtype).max)
        return _nan_where_invalid(changed, state)

    def next_state(self, state: Carry, tokens: Int[Array, "*B"]) -> Int[Array, "*B H"]:
        """The tokens appended."""
        return appended(state, tokens)


def _finite(changed: Logits, logits: Logits) -> Logits:
    """The changed logits, at most the largest number of their dtype in size where the logits were finite."""
    largest = jnp.finfo(logits.dtype).max
    return jnp.where(jnp.isfinite(logits), jnp.clip(changed, -largest, largest), changed)


def _nan_where_invalid(logits: Logits, history: Int[Array, "*B H"]) -> Logits:
    valid = has_valid_ids(history, logits.shape[-1])[..., None]
    return jnp.where(valid, logits, jnp.asarray(jnp.nan, logits.dtype))
