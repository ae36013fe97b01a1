"""A constraint on repetitions: no n-gram occurs twice."""

from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxseq.decoding.constraints import Constraint
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
from jaxseq.decoding.options import known_integer
from jaxseq.typing import Array, Bool, Carry, Int


@partial(register_dataclass, data_fields=["prompt", "prompt_lengths"], meta_fields=["size"])
@dataclass(frozen=True, eq=False)
class NoRepeatedNgrams(Constraint):
    """No n-gram of generated tokens occurs twice, nor, with a prompt, one that occurs in the prompt.

    A prompt is ``[P]`` for all rows, or ``[*B P]``, with ``prompt_lengths`` ``[*B]`` if it is padded; an n-gram may
    begin in it. Paulus et al., "A deep reinforced model for abstractive summarization", 2017 (for n = 3).

    Raises:
        ValueError: at the call of a decoding function: a size below 1, or prompts that do not fit.
    """

    size: int
    prompt: Prompt = None
    prompt_lengths: PromptLengths = None

    def __post_init__(self) -> None:
        """Make the prompt an array, so that other prompts of its shape need no new compilation."""
        object.__setattr__(self, "size", known_integer("NoRepeatedNgrams: size", self.size))
        set_arrays(self, "prompt", "prompt_lengths")

    def check(self, vocab_size: int, max_length: int) -> None:
        """Check the size and the prompt."""
        if self.size < 1:
            raise ValueError(f"NoRepeatedNgrams: size must be at least 1, not {self.size}")
        check_prompt("NoRepeatedNgrams", self.prompt, self.prompt_lengths, vocab_size)

    def initial_state(self, batch_shape: tuple[int, ...], max_length: int) -> Int[Array, "*B H"]:
        """The prompt, preceded by a -1 for each token to generate: the newest token is the last."""
        return initial_history("NoRepeatedNgrams", self.prompt, self.prompt_lengths, batch_shape, max_length)

    def allowed(
        self, state: Carry, vocab_size: int, num_generated: Int[Array, ""], num_remaining: Int[Array, ""]
    ) -> Bool[Array, "*#B V"]:
        """All tokens that do not complete an n-gram that has occurred."""
        before = self.size - 1
        starts = state.shape[-1] - before
        if starts < 1:
            return jnp.ones(vocab_size, bool)
        same = state[..., :starts] >= 0
        for i in range(before):
            same &= state[..., i : i + starts] == state[..., starts + i, None]
        return token_counts(jnp.where(same, state[..., before:], vocab_size), vocab_size) == 0

    def next_state(self, state: Carry, tokens: Int[Array, "*B"]) -> Int[Array, "*B H"]:
        """The tokens appended."""
        return appended(state, tokens)

    def has_valid_ids(self, state: Carry, vocab_size: int) -> Bool[Array, "*B"]:
        """Whether all tokens of each row's prompt are in the vocabulary."""
        return has_valid_ids(state, vocab_size)
