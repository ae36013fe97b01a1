"""Tables of deterministic finite automata, in NumPy: reachable states, minimisation, lifting from characters to tokens.

A table holds the next state for each state and each class of inputs, -1 where there is none; state 0 is the first.

Dimensions, beside the glossary's: ``Q`` states, ``C`` and ``M`` classes, ``E`` edges.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from jaxseq.typing import Array, Bool, Int

MAX_WORDS = 12  # sequences that ``Automaton.requiring`` distinguishes
MAX_STATES = 100_000
MAX_ENTRIES = 2**25  # of a table
UNREACHED = 2**30  # the distance where no path leads to an end
TokenIds: TypeAlias = Sequence[int] | Int[np.ndarray | Array, "..."]


def minimal(
    whole: Int[np.ndarray, "Q M"], accepting: Bool[np.ndarray, " Q"]
) -> tuple[Int[np.ndarray, "q M"], Int[np.ndarray, " q"]]:
    """The table of the smallest automaton, and each state's distance; 1 where it accepts.

    States are partitioned by their shortest and longest path to an end, then by the parts that their moves lead to,
    until the partition does not change.
    """
    states, table = explored(lambda states: whole[states], "the automaton")
    distance = _distance(*_edges(table), accepting[states])
    kept = (distance < UNREACHED) | (np.arange(len(states)) == 0)
    numbers = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1).astype(np.int32)
    table, distance = numbers[table[kept]], distance[kept]
    parts, firsts = numbered(np.stack([distance, _longest(*_edges(table), len(table))], axis=1))
    while True:
        before = len(firsts)
        parts, firsts = numbered(np.concatenate([parts[:, None], np.append(parts, np.int32(-1))[table]], axis=1))
        if len(firsts) == before:
            return np.append(parts, np.int32(-1))[table[firsts]], distance[firsts]


def numbered(rows: Int[np.ndarray, "n m"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " k"]]:
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


def explored(
    successors: Callable[[Int[np.ndarray, " n"]], Int[np.ndarray, "n m"]], what: str
) -> tuple[Int[np.ndarray, " Q"], Int[np.ndarray, "Q m"]]:
    """The states reachable from state 0, breadth first, and their table."""
    numbers, frontier, rows = {0: 0}, np.zeros(1, np.int64), []
    while frontier.size:
        rows.append(successors(frontier))
        fresh = sorted(set(rows[-1].ravel().tolist()) - numbers.keys() - {-1})
        numbers |= {state: len(numbers) + i for i, state in enumerate(fresh)}
        frontier = np.array(fresh, np.int64)
        check_size(what, len(numbers), rows[-1].shape[1])
    states, after = np.fromiter(numbers, np.int64), np.concatenate(rows)
    order = np.argsort(states)
    place = np.searchsorted(states[order], np.maximum(after, 0))
    return states, np.where(after >= 0, order[place], -1)


def lifted(
    table: Int[np.ndarray, "Q M"], columns: Mapping[str, int], texts: Sequence[str | None]
) -> tuple[Int[np.ndarray, "Q C"], Int[np.ndarray, " V"]]:
    """Lift a table over characters to tokens: a column for each map of states, and the column of each token.

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
                check_size("the automaton over these tokens", len(table), len(elements))
            element = products[pair]
        classes[token] = element if text else 1
    return np.stack(elements, axis=1), classes


def aho_corasick(
    what: str, words: Sequence[tuple[int, ...]], vocab_size: int, ends: tuple[int, ...]
) -> tuple[Int[np.ndarray, "Q C"], Int[np.ndarray, " V"], Int[np.ndarray, " Q"]]:
    """Table, token classes, and for each state the bits of the words that end there.

    A state stands for the longest prefix of a word that the tokens read so far end with.

    Raises:
        ValueError: an empty word, a token that is an end token or outside the vocabulary, or too many states.
    """
    known = sorted({token for word in words for token in word})
    check_known(what, known, vocab_size, "tokens")
    classes = np.full(vocab_size, len(known))
    classes[known] = np.arange(len(known))
    children: list[dict[int, int]] = [{}]
    found = np.zeros(1 + sum(map(len, words)), int)
    for i, word in enumerate(words):
        if not word:
            raise ValueError(f"{what}: sequence [] is empty")
        for end in {*word} & {*ends}:
            raise ValueError(f"{what}: sequence {list(word)} has the end token {end} in it")
        node = 0
        for token in word:
            node = children[node].setdefault(int(classes[token]), len(children))
            children.extend([{}] * (node == len(children)))
        found[node] |= 1 << i % MAX_WORDS
    check_size(what, len(children), len(known) + 1)
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


def check_known(what: str, values: TokenIds, count: int, kind: str) -> None:
    """Check that values are in [0, count).

    Raises:
        ValueError: names ``what`` and the first value that is not, as none of the ``kind``.
    """
    for value in np.unique(values).tolist():
        if not 0 <= value < count:
            raise ValueError(f"{what}: {value} is none of the {count} {kind}")


def check_size(what: str, states: int, columns: int) -> None:
    """Check that a table has at most ``MAX_STATES`` states and ``MAX_ENTRIES`` entries.

    Raises:
        ValueError: names ``what``, the sizes and the limits.
    """
    if states > MAX_STATES or states * columns > MAX_ENTRIES:
        raise ValueError(f"{what}: {states} states by {columns} classes; at most {MAX_STATES}, {MAX_ENTRIES} entries")
