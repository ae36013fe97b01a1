r"""Constraints that are finite automata over tokens: a regular expression, words that must or must not occur.

    date = Automaton.from_regex(r"\d{4}-\d\d-\d\d", texts, end_token=0)         # texts[i]: the text of token i
    both = Automaton.requiring([[7, 8], [9]], vocab_size=100, end_token=0)
    clean = Automaton.avoiding([[5, 5]], vocab_size=100, end_token=0)
    greedy(step, carry, first_tokens, max_length=20, end_token=0, constraints=[both & clean])

Each is the smallest deterministic automaton of its sequences, over classes of tokens that it does not distinguish, so
that tens of thousands of tokens need a table of a few columns. It stores the distance of each state from an end, and
allows only tokens after which the sequence can still be finished within ``max_length``: a row never reaches a dead end
and is always complete. (Two separate constraints may lead to a dead end together; ``a & b`` does not.)

Dimensions, beside the glossary's: ``Q`` states, ``C`` classes of tokens.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import register_dataclass

from jaxseq.decoding.constraints import Constraint, static_end_token
from jaxseq.decoding.end_tokens import EndToken, as_end_tokens
from jaxseq.decoding.regex import compile_regex
from jaxseq.decoding.transitions import (
    MAX_WORDS,
    UNREACHED,
    TokenIds,
    aho_corasick,
    check_known,
    explored,
    lifted,
    minimal,
    numbered,
)
from jaxseq.typing import Array, Bool, Carry, Int


@partial(register_dataclass, data_fields=["classes", "table", "accepting", "distance"], meta_fields=["end_token"])
@dataclass(frozen=True, eq=False)
class Automaton(Constraint):
    """A deterministic finite automaton; it starts in state 0, and the end token may come exactly where it accepts.

        next state = table[state, classes[token]]                                  # -1: forbidden
        distance[state] = 1 if accepting[state] else 1 + min of distance[next state]

    ``distance`` is the fewest tokens, the end token among them, that finish a sequence. The end tokens (one or
    several) have the last class, which leads to no state; they and forbidden tokens do not change the state of a row.
    The arrays are inputs of the compiled program: another automaton with as many states and classes needs no new
    compilation. ``end_token`` must hold the end tokens of the decoding function.

    The constructors and ``&`` keep the states on a path from the start to an end, and merge equivalent ones by
    partition refinement (Moore 1956, Gedanken-experiments on sequential machines).
    """

    classes: Int[np.ndarray | Array, " V"]
    table: Int[np.ndarray | Array, "Q C"]
    accepting: Bool[np.ndarray | Array, " Q"]
    distance: Int[np.ndarray | Array, " Q"]
    end_token: EndToken

    def __post_init__(self) -> None:
        """Make the end tokens Python numbers, which the compiled program depends on."""
        object.__setattr__(self, "end_token", static_end_token(self.end_token))

    @property
    def num_states(self) -> int:
        """The number of states."""
        return self.table.shape[0]

    def check(self, vocab_size: int, max_length: int) -> None:
        """Check the vocabulary, and that a sequence can be finished.

        Raises:
            ValueError: a vocabulary of another size, no path to an end, or none of at most ``max_length`` tokens.
        """
        if len(self.classes) != vocab_size:
            raise ValueError(f"the automaton's vocabulary has {len(self.classes)} tokens, the logits {vocab_size}")
        shortest = 0 if isinstance(self.distance, jax.core.Tracer) else int(self.distance[0])
        if shortest == UNREACHED:
            raise ValueError("the automaton has no path to its end")
        if shortest > max_length:
            raise ValueError(f"the automaton needs {shortest} tokens with its end, more than max_length={max_length}")

    def initial_state(self, batch_shape: tuple[int, ...], max_length: int) -> Int[Array, "*B"]:
        """The start state of each row."""
        return jnp.zeros(batch_shape, jnp.int32)

    def allowed(
        self, state: Carry, vocab_size: int, num_generated: Int[Array, ""], num_remaining: Int[Array, ""]
    ) -> Bool[Array, "*B V"]:
        """The tokens after which ``num_remaining - 1`` more can finish; the end token where the state accepts."""
        left = jnp.asarray(num_remaining).astype(jnp.int32)
        after = jnp.take(jnp.asarray(self.table), state, axis=0, mode="clip")
        needed = jnp.take(jnp.asarray(self.distance), after, mode="clip")
        goes_on = (after >= 0) & (needed <= left - 1)
        ends = jnp.take(jnp.asarray(self.accepting), state, mode="clip") & (left >= 1)
        is_end = lax.broadcasted_iota(jnp.int32, after.shape, after.ndim - 1) == after.shape[-1] - 1
        fits = jnp.where(is_end, ends[..., None], goes_on)
        return jnp.take(fits, jnp.asarray(self.classes), axis=-1, mode="clip")

    def next_state(self, state: Carry, tokens: Int[Array, "*B"]) -> Int[Array, "*B"]:
        """The states that the tokens lead to."""
        columns = jnp.take(jnp.asarray(self.classes), tokens, mode="clip")
        after = jnp.asarray(self.table)[state, columns]
        return jnp.where(after >= 0, after, state)

    def accepts(self, tokens: TokenIds) -> bool:
        """Whether the automaton accepts these tokens; only end tokens may follow the first end token.

        Raises:
            ValueError: a token outside the vocabulary.
        """
        row = [int(token) for token in tokens]
        check_known("accepts", row, len(self.classes), "tokens")
        ends = set(as_end_tokens(self.end_token))
        length = next((i for i, token in enumerate(row) if token in ends), len(row))
        state = 0
        for token in row[:length]:
            state = int(self.table[state, int(self.classes[token])])
            if state < 0:
                return False
        return bool(self.accepting[state]) and set(row[length:]) <= ends

    def __and__(self, other: "Automaton") -> "Automaton":
        """The sequences of both: the product automaton (Rabin & Scott 1959). If there are none, ``check`` raises.

        Raises:
            ValueError: vocabularies or end tokens that differ, or a product of more than ``MAX_STATES`` states.
        """
        if not isinstance(other, Automaton):
            return NotImplemented
        a, b = jax.tree.map(np.asarray, (self, other))
        mine, others = ((len(x.classes), x.end_token) for x in (a, b))
        if mine[0] != others[0] or {*as_end_tokens(mine[1])} != {*as_end_tokens(others[1])}:
            raise ValueError(f"automata of (tokens, end token) {mine} and {others} have no intersection")
        width = b.table.shape[1]
        pairs, classes = np.unique(a.classes * width + b.classes, return_inverse=True)
        left, right = a.table[:, pairs // width], b.table[:, pairs % width]

        def successors(states: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n m"]:
            x, y = left[states // b.num_states], right[states % b.num_states]
            return np.where((x >= 0) & (y >= 0), x.astype(np.int64) * b.num_states + y, -1)

        states, table = explored(successors, "the product of two automata")
        accepting = a.accepting[states // b.num_states] & b.accepting[states % b.num_states]
        return _automaton(table, classes, accepting, self.end_token)

    @classmethod
    def from_transitions(
        cls,
        transitions: Mapping[tuple[int, int], int] | Int[np.ndarray, "Q V"],
        accepting: Collection[int] | Bool[np.ndarray, " Q"],
        *,
        vocab_size: int,
        end_token: EndToken,
    ) -> "Automaton":
        """From a table: ``transitions[state, token]`` is the next state; -1, or no entry in a mapping, is forbidden.

        ``accepting`` are the states after which the end token may come, or a bool for each state.

        Raises:
            ValueError: a token outside the vocabulary, a move by the end token, or states that do not exist.
        """
        ends = _known_ends("transitions", end_token, vocab_size)
        chosen = np.array(np.flatnonzero(accepting) if isinstance(accepting, np.ndarray) else sorted(accepting), int)
        if isinstance(transitions, Mapping):
            moves = [(*pair, after) for pair, after in transitions.items()]
            states, tokens, after = np.array(moves, int).reshape(-1, 3).T
            known = np.unique(tokens)
            check_known("transitions", known, vocab_size, "tokens")
            classes = np.full(vocab_size, len(known))
            classes[known] = np.arange(len(known))
            table = np.full((1 + max([0, *chosen, *states, *after]), len(known) + 1), -1)
            check_known("transitions", states, len(table), "states")
            table[states, classes[tokens]] = after
        else:
            classes, table = np.arange(vocab_size), np.asarray(transitions)
            if table.shape[1:] != (vocab_size,) or not len(table):
                raise ValueError(f"transitions must be of shape [Q {vocab_size}], not {table.shape}")
        check_known("transitions", table[table != -1], len(table), "states")
        check_known("accepting", chosen, len(table), "states")
        if np.any(table[:, classes[ends]] != -1):
            raise ValueError(f"transitions: moves by the end token {end_token}; use accepting instead")
        return _automaton(table, classes, np.isin(np.arange(len(table)), chosen), end_token)

    @classmethod
    def from_regex(cls, pattern: str, texts: Sequence[str | None], *, end_token: EndToken) -> "Automaton":
        """The token sequences that spell a text which the whole pattern matches (``compile_regex`` has the syntax).

        ``texts[i]`` is the text of token i, of any length; a token without text (None or "") is forbidden. The
        text of an end token is ignored. Every tokenization of a text is allowed, not only that of one tokenizer. Each
        token is run through the automaton of the characters from all states at once (Willard & Louf 2023,
        arXiv:2307.09702); tokens that map all states alike share their successors.

        Raises:
            ValueError: a pattern that ``compile_regex`` rejects, an end token outside the vocabulary, or a table over
                the tokens with more than ``MAX_ENTRIES`` entries.
        """
        _known_ends("from_regex", end_token, len(texts))
        characters = compile_regex(pattern)
        table, distance = minimal(characters.table, characters.accepting)
        distinct = "".join(sorted(set("".join(text for text in texts if text))))
        columns = dict(zip(distinct, characters.classes_of(distinct).tolist(), strict=True))
        table_of_tokens, classes = lifted(table, columns, texts)
        return _automaton(table_of_tokens, classes, distance == 1, end_token)

    @classmethod
    def requiring(cls, sequences: Iterable[TokenIds], *, vocab_size: int, end_token: EndToken) -> "Automaton":
        """Each of these token sequences occurs, contiguously, before the end; they may overlap.

        A state stands for the longest prefix of a sequence that the tokens so far end with (Aho & Corasick 1975,
        Efficient string matching, CACM 18(6)), and for the set of sequences that have occurred.

        Raises:
            ValueError: an empty sequence, a token that is the end token or outside the vocabulary, more sequences
                than ``MAX_WORDS``, or more than ``MAX_STATES`` states.
        """
        words = list(dict.fromkeys(tuple(map(int, sequence)) for sequence in sequences))
        ends = _known_ends("requiring", end_token, vocab_size)
        if len(words) > MAX_WORDS:
            raise ValueError(f"requiring: {len(words)} sequences, more than {MAX_WORDS}")
        table, classes, found = aho_corasick("requiring", words, vocab_size, ends)
        everything = 2 ** len(words) - 1

        def successors(states: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n m"]:
            node = table[states // (everything + 1)]
            seen = (states % (everything + 1))[:, None] | found[node]
            return np.where(seen == everything, everything, node * (everything + 1) + seen)

        states, table_of_both = explored(successors, "requiring")
        return _automaton(table_of_both, classes, states == everything, end_token)

    @classmethod
    def avoiding(cls, sequences: Iterable[TokenIds], *, vocab_size: int, end_token: EndToken) -> "Automaton":
        """None of these token sequences (n-grams) occurs contiguously (Aho & Corasick 1975, CACM 18(6)).

        Raises:
            ValueError: as ``requiring``, but any number of sequences is allowed.
        """
        words = [tuple(map(int, sequence)) for sequence in sequences]
        ends = _known_ends("avoiding", end_token, vocab_size)
        table, classes, found = aho_corasick("avoiding", words, vocab_size, ends)
        return _automaton(np.where(found[table], -1, table), classes, found == 0, end_token)


def _automaton(
    table: Int[np.ndarray, "Q M"],
    classes: Int[np.ndarray, " V"],
    accepting: Bool[np.ndarray, " Q"],
    end_token: EndToken,
) -> Automaton:
    """The smallest automaton of the same sequences; the end tokens' classes in the table are ignored."""
    ordinary = ~np.isin(np.arange(len(classes)), as_end_tokens(end_token))
    used, columns = np.unique(classes[ordinary], return_inverse=True)
    different, firsts = numbered(table[:, used].T)
    table, distance = minimal(table[:, used[firsts]], accepting)
    merged, firsts = numbered(table.T)
    final = np.full(len(classes), len(firsts), np.int32)
    final[ordinary] = merged[different[columns]]
    table = np.pad(table[:, firsts], ((0, 0), (0, 1)), constant_values=-1)
    return Automaton(final, table, distance == 1, distance, end_token)


def _known_ends(what: str, end_token: EndToken, vocab_size: int) -> tuple[int, ...]:
    """The end tokens: at least one, in the vocabulary."""
    ends = as_end_tokens(end_token)
    if not ends:
        raise ValueError(f"{what}: an automaton needs an end token, not {end_token!r}")
    check_known("end_token", ends, vocab_size, "tokens")
    return ends
