r"""Stopping criteria: a row ends after the token that completes a string, or a sequence of tokens.

    stop = Stop.at_strings(["\n\n", "END"], texts)          # texts[i]: the text of token i
    greedy(step, carry, first, max_length=50, constraints=[stop])

Only the generated text is searched, not the prompt. The token that completes a string is the last of its row, with all
its characters, also those after the string. Both criteria are automata (Aho & Corasick 1975, Efficient string
matching, CACM 18(6)); their tables are inputs of the compiled program.

Dimensions, beside the glossary's: ``Q`` states, ``C`` classes of tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxseq.decoding.constraints import StoppingCriterion
from jaxseq.decoding.transitions import TokenIds, aho_corasick, lifted
from jaxseq.typing import Array, Bool, Carry, Int


@partial(register_dataclass, data_fields=["classes", "table", "found"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class Stop(StoppingCriterion):
    """A row ends where the automaton reaches a state that ``found`` marks; it starts in state 0.

        next state = table[state, classes[token]]

    Made by ``at_strings`` and ``at_sequences``.
    """

    classes: Int[np.ndarray | Array, " V"]
    table: Int[np.ndarray | Array, "Q C"]
    found: Bool[np.ndarray | Array, " Q"]

    def check(self, vocab_size: int, max_length: int) -> None:
        """Check the size of the vocabulary.

        Raises:
            ValueError: the automaton was made for a vocabulary of another size.
        """
        if len(self.classes) != vocab_size:
            raise ValueError(f"Stop: the vocabulary has {len(self.classes)} tokens, the logits {vocab_size}")

    def initial_state(self, batch_shape: tuple[int, ...], max_length: int) -> Int[Array, "*B"]:
        """The start state of each row."""
        return jnp.zeros(batch_shape, jnp.int32)

    def next_state(self, state: Carry, tokens: Int[Array, "*B"]) -> Int[Array, "*B"]:
        """The states that the tokens lead to."""
        columns = jnp.take(jnp.asarray(self.classes), tokens, mode="clip")
        return jnp.asarray(self.table)[state, columns].astype(jnp.int32)

    def stops(self, state: Carry) -> Bool[Array, "*B"]:
        """Whether a string or a sequence has been completed."""
        return jnp.take(jnp.asarray(self.found), state, mode="clip")

    @classmethod
    def at_sequences(cls, sequences: Iterable[TokenIds], *, vocab_size: int) -> "Stop":
        """A row ends after the token that completes one of these token sequences.

        Raises:
            ValueError: no sequence, an empty one, a token outside the vocabulary, or too many states.
        """
        words = [tuple(map(int, sequence)) for sequence in sequences]
        table, classes, found = _automaton(words, vocab_size)
        return cls(classes.astype(np.int32), table, found)

    @classmethod
    def at_strings(cls, strings: Iterable[str | bytes], texts: Sequence[str | bytes | None]) -> "Stop":
        """A row ends after the token with which its text contains one of these strings.

        A string may begin and end within a token, and may span any number of tokens. ``texts[i]`` is the text of token
        i; a token without text (None or "") adds nothing. The texts may be bytes, because a token of a byte-level
        vocabulary can be a part of a character: strings are then encoded as UTF-8.

        Raises:
            ValueError: no string, an empty one, or an automaton over the tokens with more than ``MAX_ENTRIES`` entries.
            TypeError: bytes among texts, or texts among bytes.
        """
        given = list(texts)
        as_bytes = any(isinstance(text, bytes) for text in given)
        if as_bytes and any(isinstance(text, str) for text in given):
            raise TypeError("Stop.at_strings: texts must all be str, or all be bytes")
        spelled = [text.decode("latin-1") if isinstance(text, bytes) else text for text in given]
        wanted = [_characters(string, as_bytes) for string in strings]
        numbers = {character: i for i, character in enumerate(sorted(set("".join(wanted))))}
        words = [tuple(numbers[character] for character in string) for string in wanted]
        table, _, found = _automaton(words, len(numbers) + 1)
        columns = {character: len(numbers) for text in spelled if text for character in text} | numbers
        lifted_table, classes = lifted(table, columns, spelled)
        silent = np.array([not text for text in spelled], bool)
        return cls(np.where(silent, 0, classes).astype(np.int32), lifted_table, found)


def _automaton(
    words: Sequence[tuple[int, ...]], vocab_size: int
) -> tuple[Int[np.ndarray, "Q C"], Int[np.ndarray, " V"], Bool[np.ndarray, " Q"]]:
    """The table, the classes, and the states after a completed word, which are never left."""
    if not words:
        raise ValueError("Stop needs at least one string or sequence")
    table, classes, bits = aho_corasick("Stop", words, vocab_size, ())
    found = bits > 0
    return np.where(found[:, None], np.arange(len(table), dtype=np.int32)[:, None], table), classes, found


def _characters(string: str | bytes, as_bytes: bool) -> str:
    if as_bytes:
        return (string if isinstance(string, bytes) else string.encode()).decode("latin-1")
    if isinstance(string, bytes):
        raise TypeError(f"Stop.at_strings: the texts of the tokens are str, the string is {string!r}")
    return string
