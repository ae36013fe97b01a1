r"""Regular expressions as finite automata over characters.

    number = compile_regex(r"[+-]?\d+(\.\d+)?")
    number.fullmatch("-3.14")                       # True

A pattern is parsed by recursive descent and turned into an automaton with empty moves (Thompson 1968, Regular
expression search algorithm, CACM 11(6)), which is made deterministic by the subset construction (Rabin & Scott 1959,
Finite automata and their decision problems, IBM J. 3(2)). The syntax tree of Python's private ``re._parser`` does not
serve: it has no positions for error messages, and no trace of comments and flags.

Dimensions, beside the glossary's: ``Q`` states, ``C`` classes of characters that the pattern does not distinguish,
``I`` intervals of code points.
"""

import functools
import re
from typing import NamedTuple, TypeAlias

import numpy as np

from jaxseq.typing import Bool, Int

Intervals: TypeAlias = tuple[tuple[int, int], ...]
"""A set of code points: the first and last of each run, in increasing order."""

LAST_CODE_POINT = 0x10FFFF
MAX_DEPTH = 50
MAX_POSITIONS = 20_000
MAX_STATES = 10_000
MAX_WORK = 3_000_000


class CharacterAutomaton(NamedTuple):
    """A deterministic automaton; it starts in state 0.

    Interval i is the code points from ``starts[i]`` up to ``starts[i + 1]``, all of class ``classes[i]``.
    ``table`` holds the next state, or -1 where no match can follow.
    """

    starts: Int[np.ndarray, " I"]
    classes: Int[np.ndarray, " I"]
    table: Int[np.ndarray, "Q C"]
    accepting: Bool[np.ndarray, " Q"]

    def classes_of(self, text: str) -> Int[np.ndarray, " T"]:
        """The class of each character."""
        points = np.fromiter(map(ord, text), np.int32, len(text))
        return self.classes[np.searchsorted(self.starts, points, side="right") - 1]

    def fullmatch(self, text: str) -> bool:
        """Whether the whole text matches, as ``re.fullmatch`` says."""
        state = 0
        for column in self.classes_of(text).tolist():
            state = int(self.table[state, column])
            if state < 0:
                return False
        return bool(self.accepting[state])


def compile_regex(pattern: str) -> CharacterAutomaton:
    r"""The automaton of the texts that the whole pattern matches, as ``re.fullmatch`` does on ``str``.

    The syntax is that of ``re``: literals, ``.`` (no newline), ``[a-z]``, ``[^...]``, ``|``, ``( )``, ``(?: )``, ``*``,
    ``+``, ``?``, ``{m}``, ``{m,}``, ``{,n}``, ``{m,n}``, also lazy (the same, for a whole match); ``\d \w \s \D \W \S``
    of Unicode; ``\a \f \n \r \t \v \xhh \uhhhh \Uhhhhhhhh``, octal ones, and any escaped punctuation. ``^`` at the
    start and ``$`` at the end of the pattern are accepted and change nothing.

    Raises:
        ValueError: a pattern that ``re`` rejects, too; other features of ``re`` (backreferences, lookaround, ``\b``,
            flags, named, atomic and conditional groups, possessive repeats); both with the position; or a pattern that
            is too large.
    """
    parser = _Parser(pattern)
    machine = _Machine(pattern)
    final = machine.add(parser.parse(), machine.new_state())
    starts, classes, columns = _partition({characters for moves in machine.moves for characters, _ in moves})
    table, accepting = machine.determinised(final, columns, int(classes.max()) + 1)
    return CharacterAutomaton(starts, classes, table, accepting)


class _Characters(NamedTuple):
    intervals: Intervals


class _Concatenation(NamedTuple):
    parts: list["_Node"]


class _Alternation(NamedTuple):
    branches: list["_Node"]


class _Repeat(NamedTuple):
    part: "_Node"
    least: int
    most: int | None


_Node: TypeAlias = _Characters | _Concatenation | _Alternation | _Repeat

_ANY = ((0, 9), (11, LAST_CODE_POINT))
_CONTROLS = {"a": 7, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}
_COUNTS = re.compile(r"\{(?!\})([0-9]*)(,?)([0-9]*)\}")
_HEX = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})")
_OCTAL = re.compile(r"0[0-7]{0,2}|[1-7][0-7]{2}")
_OCTAL_IN_SET = re.compile(r"[0-7]{1,3}")
_PLACES = {"A": "the anchor", "Z": "the anchor", "b": "the word boundary", "B": "the word boundary"}
_GROUPS = {
    "?=": "lookahead",
    "?!": "lookahead",
    "?<=": "lookbehind",
    "?<!": "lookbehind",
    "?P=": "a backreference",
    "?P<": "a named group",
    "?>": "an atomic group",
    "?(": "a conditional group",
    "?#": "a comment",
}


class _Parser:
    """Recursive descent over the pattern; ``at`` is the position in it."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at, self.depth = pattern, 0, 0

    def parse(self) -> _Node:
        """The whole pattern."""
        node = self.alternation()
        if self.at < len(self.pattern):
            raise self.error("an unbalanced )", self.at)
        return node

    def error(self, what: str, at: int) -> ValueError:
        return ValueError(f"{what} at position {at} of the regular expression {self.pattern!r} cannot be compiled")

    def peek(self) -> str:
        """The next character, '' at the end."""
        return self.pattern[self.at : self.at + 1]

    def accept(self, text: str) -> bool:
        """Whether this text is next; the position is then moved behind it."""
        here = self.pattern.startswith(text, self.at)
        self.at += len(text) * here
        return here

    def alternation(self) -> _Node:
        branches = [self.concatenation()]
        while self.accept("|"):
            branches.append(self.concatenation())
        return branches[0] if len(branches) == 1 else _Alternation(branches)

    def concatenation(self) -> _Node:
        parts: list[_Node] = []
        while self.peek() not in ("", "|", ")"):
            at_start, at_end = self.at == 0, self.at == len(self.pattern) - 1 and not self.depth
            if (at_start and self.accept("^")) or (at_end and self.accept("$")):
                continue
            part = self.atom()
            counts = self.counts()
            if counts is not None:
                part = _Repeat(part, *counts)
            parts.append(part)
        return _Concatenation(parts)

    def counts(self) -> tuple[int, int | None] | None:
        """The repeat that is next, if any."""
        start, found = self.at, _COUNTS.match(self.pattern, self.at)
        if found is not None:
            least, comma, most = found.groups()
            self.at = found.end()
            low = int(least or 0)
            high = (int(most) if most else None) if comma else low
            if high is not None and high < low:
                raise self.error(f"a repeat {found[0]} of more than its most", start)
        elif self.peek() and self.peek() in "*+?":
            low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[self.peek()]
            self.at += 1
        else:
            return None
        if self.peek() == "+":
            raise self.error("a possessive repeat", start)
        self.accept("?")
        if self.peek() and (self.peek() in "*+?" or _COUNTS.match(self.pattern, self.at)):
            raise self.error("a repeat of a repeat", self.at)
        return low, high

    def atom(self) -> _Node:
        """One character, set or group."""
        start, character = self.at, self.peek()
        if character in "*+?" or _COUNTS.match(self.pattern, start):
            raise self.error(f"a repeat {character} of nothing", start)
        self.at += 1
        match character:
            case "(":
                return self.group(start)
            case "[":
                return _Characters(self.brackets(start))
            case ".":
                return _Characters(_ANY)
            case "\\":
                escaped = self.escape(in_set=False)
                return _Characters(_single(escaped) if isinstance(escaped, int) else escaped)
            case "^" | "$":
                where = "start" if character == "^" else "end"
                raise self.error(f"the anchor {character} elsewhere than at the very {where},", start)
        return _Characters(_single(ord(character)))

    def group(self, start: int) -> _Node:
        if self.peek() == "?" and not self.accept("?:"):
            length = 3 if self.pattern[self.at + 1 : self.at + 2] in ("<", "P") else 2
            opening = self.pattern[self.at : self.at + length]
            raise self.error(f"{_GROUPS.get(opening, 'a flag or extension')} ({opening}", start)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"a group nested more than {MAX_DEPTH} deep", start)
        node = self.alternation()
        if not self.accept(")"):
            raise self.error("a group that is not closed", start)
        self.depth -= 1
        return node

    def brackets(self, start: int) -> Intervals:
        """The character set of brackets, after the opening one."""
        negated, chosen, first = self.accept("^"), [], self.at
        while self.at == first or not self.accept("]"):
            at, low = self.at, self.member(start)
            if self.peek() == "-" and self.pattern[self.at + 1 : self.at + 2] not in ("", "]"):
                self.at += 1
                high = self.member(start)
                if not isinstance(low, int) or not isinstance(high, int) or high < low:
                    raise self.error(f"the range {self.pattern[at : self.at]}", at)
                chosen.append((low, high))
            else:
                chosen.extend(_single(low) if isinstance(low, int) else low)
        return _complement(_union(chosen)) if negated else _union(chosen)

    def member(self, start: int) -> int | Intervals:
        """One character of a set, or a category in it."""
        character = self.peek()
        if not character:
            raise self.error("a set that is not closed", start)
        self.at += 1
        return self.escape(in_set=True) if character == "\\" else ord(character)

    def escape(self, in_set: bool) -> int | Intervals:
        """The code point or category of an escape, after its backslash."""
        start, letter = self.at - 1, self.peek()
        self.at += 1
        for form, base in ((_HEX, 16), (_OCTAL_IN_SET if in_set else _OCTAL, 8)):
            found = form.match(self.pattern, start + 1)
            if found is not None:
                self.at = found.end()
                value = int(found[found.lastindex or 0], base)
                if value > (LAST_CODE_POINT if base == 16 else 0o377):
                    raise self.error(f"the code point \\{found[0]}", start)
                return value
        if letter in ("d", "w", "s", "D", "W", "S"):
            return _category(letter)
        if letter in _CONTROLS:
            return _CONTROLS[letter]
        if letter == "b" and in_set:
            return 8
        if letter and letter in "123456789" and not in_set:
            raise self.error(f"the backreference \\{letter}", start)
        if not letter or (letter.isascii() and letter.isalnum()):
            raise self.error(f"{_PLACES.get(letter, 'the escape')} \\{letter}", start)
        return ord(letter)


class _Machine:
    """Thompson's automaton: a state's moves by a character, and its empty moves."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.work = pattern, 0
        self.moves: list[list[tuple[Intervals, int]]] = []
        self.empty: list[list[int]] = []

    def too_large(self, limit: str) -> ValueError:
        return ValueError(f"the regular expression {self.pattern!r} is too large: more than {limit}")

    def new_state(self, *sources: int) -> int:
        """A state, with an empty move to it from each source."""
        if len(self.moves) >= MAX_POSITIONS:
            raise self.too_large(f"{MAX_POSITIONS} positions with its repeats written out")
        self.moves.append([])
        self.empty.append([])
        for source in sources:
            self.empty[source].append(len(self.moves) - 1)
        return len(self.moves) - 1

    def add(self, node: _Node, start: int) -> int:
        """Add moves from ``start`` that match the node, none of them into ``start``; returns their end."""
        match node:
            case _Characters(intervals):
                self.moves[start].append((intervals, self.new_state()))
                return self.moves[start][-1][1]
            case _Concatenation(parts):
                end = self.new_state(start)
                for part in parts:
                    end = self.add(part, end)
                return end
            case _Alternation(branches):
                return self.new_state(*[self.add(branch, start) for branch in branches])
            case _Repeat(part, least, most):
                return self.add_repeat(part, least, most, start)

    def add_repeat(self, part: _Node, least: int, most: int | None, end: int) -> int:
        """x{m,n} is x repeated m times, then (x(x(...)?)?)?; x{m,} is x repeated m times, then a loop."""
        for _ in range(least):
            end = self.add(part, end)
        if most is None:
            loop = self.new_state(end)
            self.empty[self.add(part, loop)].append(loop)
            return self.new_state(loop)
        ends = [end]
        for _ in range(most - least):
            ends.append(self.add(part, ends[-1]))
        return self.new_state(*ends)

    def closure(self, states: frozenset[int], final: int) -> frozenset[int]:
        """The states reached by empty moves; of these, those that have other moves or are final."""
        seen, stack = set(states), list(states)
        while stack:
            fresh = [state for state in self.empty[stack.pop()] if state not in seen]
            seen.update(fresh)
            stack.extend(fresh)
        self.work += len(seen)
        return frozenset(state for state in seen if self.moves[state] or state == final)

    def determinised(
        self, final: int, columns: dict[Intervals, list[int]], num_classes: int
    ) -> tuple[Int[np.ndarray, "Q C"], Bool[np.ndarray, " Q"]]:
        """The subset construction: a state is the set of states that a text may lead to."""
        subsets = [self.closure(frozenset([0]), final)]
        numbers = {subsets[0]: 0}
        after = {frozenset[int](): -1}
        rows: list[list[int]] = []
        for subset in subsets:
            reached: list[set[int]] = [set() for _ in range(num_classes)]
            for state in subset:
                for characters, target in self.moves[state]:
                    self.work += len(columns[characters])
                    for column in columns[characters]:
                        reached[column].add(target)
            targets = [frozenset(states) for states in reached]
            for states in set(targets) - after.keys():
                closed = self.closure(states, final)
                after[states] = numbers.setdefault(closed, len(subsets))
                subsets.extend([closed] * (after[states] == len(subsets)))
            rows.append([after[states] for states in targets])
            if len(subsets) > MAX_STATES or self.work > MAX_WORK:
                raise self.too_large(f"{MAX_STATES} states or {MAX_WORK} moves between them")
        return np.array(rows, np.int32), np.array([final in subset for subset in subsets])


def _partition(
    sets: set[Intervals],
) -> tuple[Int[np.ndarray, " I"], Int[np.ndarray, " I"], dict[Intervals, list[int]]]:
    """Classes of code points that no set distinguishes: intervals, their classes, and the classes of each set."""
    ordered = sorted(sets)
    edges = {edge for intervals in ordered for low, high in intervals for edge in (low, high + 1)}
    starts = np.array(sorted({0} | (edges - {LAST_CODE_POINT + 1})), np.int32)
    member = np.zeros((len(starts), len(ordered)), bool)
    for j, intervals in enumerate(ordered):
        flat = np.array(intervals, np.int32).reshape(-1, 2)
        low = np.searchsorted(flat[:, 0], starts, side="right") - 1
        member[:, j] = (low >= 0) & (starts <= np.append(flat[:, 1], -1)[low])
    seen: dict[bytes, int] = {}
    classes = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in member], np.int32)
    columns = {intervals: np.unique(classes[member[:, j]]).tolist() for j, intervals in enumerate(ordered)}
    return starts, classes, columns


def _single(point: int) -> Intervals:
    return ((point, point),)


def _union(intervals: list[tuple[int, int]]) -> Intervals:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(intervals):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def _complement(intervals: Intervals) -> Intervals:
    lows = [0] + [high + 1 for _, high in intervals]
    highs = [low - 1 for low, _ in intervals] + [LAST_CODE_POINT]
    return tuple((low, high) for low, high in zip(lows, highs, strict=True) if low <= high)


@functools.cache
def _category(letter: str) -> Intervals:
    """The code points of an escape such as ``d``, by the string methods that ``re`` uses for it on Unicode."""
    if letter.isupper():
        return _complement(_category(letter.lower()))
    names = {"d": np.strings.isdecimal, "w": np.strings.isalnum, "s": np.strings.isspace}
    characters = np.arange(LAST_CODE_POINT + 1, dtype=np.uint32).view("U1")
    member = names[letter](characters)
    member[ord("_")] |= letter == "w"
    edges = np.flatnonzero(np.diff(member, prepend=False, append=False)).reshape(-1, 2)
    return tuple((first, after - 1) for first, after in edges.tolist())
