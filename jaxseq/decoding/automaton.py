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

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import register_dataclass

from jaxseq.decoding.constraints import Constraint
from jaxseq.decoding.regex import compile_regex
from jaxseq.typing import Array, Bool, Carry, Int

MAX_WORDS = 12
MAX_STATES = 100_000
MAX_ENTRIES = 2**25  # of a table
UNREACHED = 2**30  # the distance where no path leads to an end
TokenIds: TypeAlias = Sequence[int] | Int[np.ndarray | Array, "..."]


@partial(register_dataclass, data_fields=["classes", "table", "accepting", "distance"], meta_fields=["end_token"])
@dataclass(frozen=True, eq=False)
class Automaton(Constraint):
    """A deterministic finite automaton; it starts in state 0, and the end token may come exactly where it accepts.

        next state = table[state, classes[token]]                                  # -1: forbidden
        distance[state] = 1 if accepting[state] else 1 + min of distance[next state]

    ``distance`` is the fewest tokens, the end token among them, that finish a sequence. The end token alone has the
    last class, which leads to no state; it and forbidden tokens do not change the state of a row. The arrays are inputs
    of the compiled program: another automaton with as many states and classes needs no new compilation. ``end_token``
    must be the end token of the decoding function.

    The constructors and ``&`` keep the states on a path from the start to an end, and merge equivalent ones by
    partition refinement (Moore 1956, Gedanken-experiments on sequential machines).
    """

    classes: Int[np.ndarray | Array, " V"]
    table: Int[np.ndarray | Array, "Q C"]
    accepting: Bool[np.ndarray | Array, " Q"]
    distance: Int[np.ndarray | Array, " Q"]
    end_token: int

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
        """Whether the automaton accepts these tokens; behind the first end token there may only be end tokens.

        Raises:
            ValueError: a token outside the vocabulary.
        """
        row = [int(token) for token in tokens]
        _check_known("accepts", row, len(self.classes), "tokens")
        length = row.index(self.end_token) if self.end_token in row else len(row)
        state = 0
        for token in row[:length]:
            state = int(self.table[state, int(self.classes[token])])
            if state < 0:
                return False
        return bool(self.accepting[state]) and set(row[length:]) <= {self.end_token}

    def __and__(self, other: "Automaton") -> "Automaton":
        """The sequences of both: the product automaton (Rabin & Scott 1959). If there are none, ``check`` raises.

        Raises:
            ValueError: vocabularies or end tokens that differ, or a product of more than ``MAX_STATES`` states.
        """
        if not isinstance(other, Automaton):
            return NotImplemented
        a, b = jax.tree.map(np.asarray, (self, other))
        mine, others = ((len(x.classes), x.end_token) for x in (a, b))
        if mine != others:
            raise ValueError(f"automata of (tokens, end token) {mine} and {others} have no intersection")
        width = b.table.shape[1]
        pairs, classes = np.unique(a.classes * width + b.classes, return_inverse=True)
        left, right = a.table[:, pairs // width], b.table[:, pairs % width]

        def successors(states: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n m"]:
            x, y = left[states // b.num_states], right[states % b.num_states]
            return np.where((x >= 0) & (y >= 0), x.astype(np.int64) * b.num_states + y, -1)

        states, table = _explored(successors, "the product of two automata")
        accepting = a.accepting[states // b.num_states] & b.accepting[states % b.num_states]
        return _automaton(table, classes, accepting, self.end_token)

    @classmethod
    def from_transitions(
        cls,
        transitions: Mapping[tuple[int, int], int] | Int[np.ndarray, "Q V"],
        accepting: Collection[int] | Bool[np.ndarray, " Q"],
        *,
        vocab_size: int,
        end_token: int,
    ) -> "Automaton":
        """From a table: ``transitions[state, token]`` is the next state; -1, or no entry in a mapping, is forbidden.

        ``accepting`` are the states after which the end token may come, or a bool for each state.

        Raises:
            ValueError: a token outside the vocabulary, a move by the end token, or states that do not exist.
        """
        _check_known("end_token", [end_token], vocab_size, "tokens")
        chosen = np.array(np.flatnonzero(accepting) if isinstance(accepting, np.ndarray) else sorted(accepting), int)
        if isinstance(transitions, Mapping):
            moves = [(*pair, after) for pair, after in transitions.items()]
            states, tokens, after = np.array(moves, int).reshape(-1, 3).T
            known = np.unique(tokens)
            _check_known("transitions", known, vocab_size, "tokens")
            classes = np.full(vocab_size, len(known))
            classes[known] = np.arange(len(known))
            table = np.full((1 + max([0, *chosen, *states, *after]), len(known) + 1), -1)
            _check_known("transitions", states, len(table), "states")
            table[states, classes[tokens]] = after
        else:
            classes, table = np.arange(vocab_size), np.asarray(transitions)
            if table.shape[1:] != (vocab_size,) or not len(table):
                raise ValueError(f"transitions must be of shape [Q {vocab_size}], not {table.shape}")
        _check_known("transitions", table[table != -1], len(table), "states")
        _check_known("accepting", chosen, len(table), "states")
        if np.any(table[:, classes[end_token]] != -1):
            raise ValueError(f"transitions: moves by the end token {end_token}; use accepting instead")
        return _automaton(table, classes, np.isin(np.arange(len(table)), chosen), end_token)

    @classmethod
    def from_regex(cls, pattern: str, texts: Sequence[str | None], *, end_token: int) -> "Automaton":
        """The token sequences that spell a text which the whole pattern matches (``compile_regex`` has the syntax).

        ``texts[i]`` is the text of token i, of any length; a token without text (None or "") is forbidden. The
        text of the end token is ignored. Every tokenization of a text is allowed, not only that of one tokenizer. Each
        token is run through the automaton of the characters from all states at once (Willard & Louf 2023,
        arXiv:2307.09702); tokens that map all states alike share their successors.

        Raises:
            ValueError: what ``compile_regex`` refuses, an end token outside the vocabulary, or tokens that take the
                automaton too many different ways.
        """
        _check_known("end_token", [end_token], len(texts), "tokens")
        characters = compile_regex(pattern)
        table, distance = _minimal(characters.table, characters.accepting)
        distinct = "".join(sorted(set("".join(text for text in texts if text))))
        columns = dict(zip(distinct, characters.classes_of(distinct).tolist(), strict=True))
        lifted, classes = _lifted(table, columns, texts)
        return _automaton(lifted, classes, distance == 1, end_token)

    @classmethod
    def requiring(cls, sequences: Iterable[TokenIds], *, vocab_size: int, end_token: int) -> "Automaton":
        """Each of these token sequences occurs, contiguously, before the end; they may overlap.

        A state is the longest prefix of a sequence that the last tokens are (Aho & Corasick 1975, Efficient string
        matching, CACM 18(6)), with the set of sequences seen.

        Raises:
            ValueError: an empty sequence, a token that is the end token or outside the vocabulary, more sequences
                than ``MAX_WORDS``, or more than ``MAX_STATES`` states.
        """
        words = list(dict.fromkeys(tuple(map(int, sequence)) for sequence in sequences))
        if len(words) > MAX_WORDS:
            raise ValueError(f"requiring: {len(words)} sequences, more than {MAX_WORDS}")
        table, classes, found = _aho_corasick("requiring", words, vocab_size, end_token)
        everything = 2 ** len(words) - 1

        def successors(states: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n m"]:
            node = table[states // (everything + 1)]
            seen = (states % (everything + 1))[:, None] | found[node]
            return np.where(seen == everything, everything, node * (everything + 1) + seen)

        states, table_of_both = _explored(successors, "requiring")
        return _automaton(table_of_both, classes, states == everything, end_token)

    @classmethod
    def avoiding(cls, sequences: Iterable[TokenIds], *, vocab_size: int, end_token: int) -> "Automaton":
        """None of these token sequences (n-grams) occurs contiguously (Aho & Corasick 1975, CACM 18(6)).

        Raises:
            ValueError: as ``requiring``, but for the number of sequences.
        """
        words = [tuple(map(int, sequence)) for sequence in sequences]
        table, classes, found = _aho_corasick("avoiding", words, vocab_size, end_token)
        return _automaton(np.where(found[table], -1, table), classes, found == 0, end_token)


def _automaton(
    table: Int[np.ndarray, "Q M"], classes: Int[np.ndarray, " V"], accepting: Bool[np.ndarray, " Q"], end_token: int
) -> Automaton:
    """The smallest automaton of the same sequences; the end token's class in the table is ignored."""
    ordinary = np.arange(len(classes)) != end_token
    used, columns = np.unique(classes[ordinary], return_inverse=True)
    different, firsts = _numbered(table[:, used].T)
    table, distance = _minimal(table[:, used[firsts]], accepting)
    merged, firsts = _numbered(table.T)
    final = np.full(len(classes), len(firsts), np.int32)
    final[ordinary] = merged[different[columns]]
    table = np.pad(table[:, firsts], ((0, 0), (0, 1)), constant_values=-1)
    return Automaton(final, table, distance == 1, distance, end_token)


def _minimal(
    whole: Int[np.ndarray, "Q M"], accepting: Bool[np.ndarray, " Q"]
) -> tuple[Int[np.ndarray, "q M"], Int[np.ndarray, " q"]]:
    """The table of the smallest automaton, and each state's distance; 1 where it accepts.

    States are partitioned by their shortest and longest path to an end, then by the parts that their moves lead to,
    until the partition does not change.
    """
    states, table = _explored(lambda states: whole[states], "the automaton")
    distance = _distance(*_edges(table), accepting[states])
    kept = (distance < UNREACHED) | (np.arange(len(states)) == 0)
    numbers = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1).astype(np.int32)
    table, distance = numbers[table[kept]], distance[kept]
    parts, firsts = _numbered(np.stack([distance, _longest(*_edges(table), len(table))], axis=1))
    while True:
        before = len(firsts)
        parts, firsts = _numbered(np.concatenate([parts[:, None], np.append(parts, np.int32(-1))[table]], axis=1))
        if len(firsts) == before:
            return np.append(parts, np.int32(-1))[table[firsts]], distance[firsts]


def _numbered(rows: Int[np.ndarray, "n m"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " k"]]:
    """A number for each distinct row, in order of first occurrence; also the indices of the first occurrences."""
    seen: dict[bytes, int] = {}
    numbers = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in rows], np.int32)
    return numbers, np.unique(numbers, return_index=True)[1]


def _edges(table: Int[np.ndarray, "Q M"]) -> tuple[Int[np.ndarray, " E"], Int[np.ndarray, " E"]]:
    """The pairs of states that a move connects, each once."""
    ordered = np.sort(table, axis=1)
    sources, columns = np.nonzero(np.diff(ordered, axis=1, prepend=-1) > 0)
    return sources, ordered[sources, columns]


def _distance(
    sources: Int[np.ndarray, " E"], targets: Int[np.ndarray, " E"], accepting: Bool[np.ndarray, " Q"]
) -> Int[np.ndarray, " Q"]:
    """The fewest tokens, the end token among them, from each state to an end: breadth first, backwards."""
    distance = np.where(accepting, 1, UNREACHED).astype(np.int32)
    for level in range(1, len(accepting) + 1):
        left = distance[sources] == UNREACHED
        sources, targets = sources[left], targets[left]
        if not len(sources):
            break
        distance[sources[distance[targets] == level]] = level + 1
    return distance


def _longest(sources: Int[np.ndarray, " E"], targets: Int[np.ndarray, " E"], count: int) -> Int[np.ndarray, " Q"]:
    """The most tokens from each state of a trimmed automaton to its end, -1 where there is no bound."""
    longest = np.full(count, -1, np.int32)
    while True:
        settled = longest < 0
        settled[sources] = False
        if not settled.any():
            return longest
        longest[settled] = longest.max() + 1
        left = longest[targets] < 0
        sources, targets = sources[left], targets[left]


def _explored(
    successors: Callable[[Int[np.ndarray, " n"]], Int[np.ndarray, "n m"]], what: str
) -> tuple[Int[np.ndarray, " Q"], Int[np.ndarray, "Q m"]]:
    """The states reachable from state 0, breadth first, and their table."""
    numbers, frontier, rows = {0: 0}, np.zeros(1, np.int64), []
    while frontier.size:
        rows.append(successors(frontier))
        fresh = sorted(set(rows[-1].ravel().tolist()) - numbers.keys() - {-1})
        numbers |= {state: len(numbers) + i for i, state in enumerate(fresh)}
        frontier = np.array(fresh, np.int64)
        _check_size(what, len(numbers), rows[-1].shape[1])
    states, after = np.fromiter(numbers, np.int64), np.concatenate(rows)
    order = np.argsort(states)
    place = np.searchsorted(states[order], np.maximum(after, 0))
    return states, np.where(after >= 0, order[place], -1)


def _lifted(
    table: Int[np.ndarray, "Q M"], columns: Mapping[str, int], texts: Sequence[str | None]
) -> tuple[Int[np.ndarray, "Q C"], Int[np.ndarray, " V"]]:
    """From characters to tokens: the map of states of each token, as columns of a table, and each token's column.

    The columns are the elements of the automaton's transition monoid for the tokens and their prefixes. The product of
    an element and a character is computed once, for all tokens that contain it.
    """
    moves = np.concatenate([table, np.full((1, table.shape[1]), -1, np.int32)])
    elements = [np.arange(len(table), dtype=np.int32), np.full(len(table), -1, np.int32)]
    numbers = {element.tobytes(): i for i, element in enumerate(elements)}
    products: dict[tuple[int, int], int] = {}
    classes = np.ones(len(texts), np.int32)
    for token, text in enumerate(texts):
        element = 0
        for character in text or "":
            pair = element, columns[character]
            if pair not in products:
                product = moves[elements[element], pair[1]]
                products[pair] = numbers.setdefault(product.tobytes(), len(elements))
                elements.extend([product] * (products[pair] == len(elements)))
                _check_size("the regular expression over these tokens", len(table), len(elements))
            element = products[pair]
        classes[token] = element if text else 1
    return np.stack(elements, axis=1), classes


def _aho_corasick(
    what: str, words: Sequence[tuple[int, ...]], vocab_size: int, end_token: int
) -> tuple[Int[np.ndarray, "Q C"], Int[np.ndarray, " V"], Int[np.ndarray, " Q"]]:
    """Table, token classes, and for each state the bits of the words that end there.

    A state is the longest prefix of a word that the last tokens are.
    """
    known = sorted({token for word in words for token in word})
    _check_known(what, [end_token, *known], vocab_size, "tokens")
    classes = np.full(vocab_size, len(known))
    classes[known] = np.arange(len(known))
    children: list[dict[int, int]] = [{}]
    found = np.zeros(1 + sum(map(len, words)), int)
    for i, word in enumerate(words):
        if not word or end_token in word:
            raise ValueError(f"{what}: sequence {list(word)} is empty or has the end token {end_token} in it")
        node = 0
        for token in word:
            node = children[node].setdefault(int(classes[token]), len(children))
            children.extend([{}] * (node == len(children)))
        found[node] |= 1 << i % MAX_WORDS
    _check_size(what, len(children), len(known) + 1)
    table = np.zeros((len(children), len(known) + 1), np.int32)
    fallback, queue = [0] * len(children), [0]
    for node in queue:
        table[node] = table[fallback[node]]
        found[node] |= found[fallback[node]]
        for column, child in children[node].items():
            fallback[child] = int(table[node, column])
            table[node, column] = child
            queue.append(child)
    return table, classes, found[: len(children)]


def _check_known(what: str, values: TokenIds, count: int, kind: str) -> None:
    for value in np.unique(values).tolist():
        if not 0 <= value < count:
            raise ValueError(f"{what}: {value} is none of the {count} {kind}")


def _check_size(what: str, states: int, columns: int) -> None:
    if states > MAX_STATES or states * columns > MAX_ENTRIES:
        raise ValueError(f"{what}: {states} states by {columns} classes; at most {MAX_STATES}, {MAX_ENTRIES} entries")
