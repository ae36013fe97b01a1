"""Rules of decoding: which tokens may come next, in greedy decoding, sampling, streaming and beam search.

A rule is a pytree of arrays with pure functions. It may have a state, which is passed along like a carry:

    state = rule.initial_state(batch_shape, max_length)
    logits = rule(state, logits, num_generated, num_remaining)
    state = rule.next_state(state, tokens)
    ended = rule.stops(state)                               # None: the rule ends no row

There are three kinds. A ``Constraint`` rules tokens out (a logit of minus infinity). A ``LogitsProcessor`` changes the
logits otherwise (``penalties.py``). A ``StoppingCriterion`` ends rows (``stops.py``).

Log-probabilities stay the model's own under every rule. Of several constraints a token must satisfy all. A single
constraint leads to no dead end (an automaton counts how many tokens it still needs), but two of them may do so
together; ``Automaton`` has ``&`` for that.
"""

import abc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxseq.decoding.end_tokens import EndToken, as_end_tokens, is_end
from jaxseq.decoding.history import set_arrays
from jaxseq.decoding.options import known_number
from jaxseq.ops.ids import check_ids, valid_ids
from jaxseq.typing import Array, Bool, Carry, Int, Integer, Logits


class Rule(abc.ABC):
    """Abstract: changes the logits of the next token after the tokens generated so far, and may end a row.

    The functions work on any leading batch dimensions ``*B``, also on those of repeated rows (samples, beams).
    """

    @abc.abstractmethod
    def check(self, vocab_size: int, max_length: int) -> None:
        """Check that the rule fits the vocabulary and can be satisfied, before anything is compiled.

        Raises:
            ValueError: a token outside the vocabulary, or nothing of at most ``max_length`` tokens satisfies it.
        """

    @abc.abstractmethod
    def initial_state(self, batch_shape: tuple[int, ...], max_length: int) -> Carry:
        """The state before the first token; leaves lead with the batch dimensions."""

    @abc.abstractmethod
    def __call__(
        self, state: Carry, logits: Logits, num_generated: Int[Array, ""], num_remaining: Int[Array, ""]
    ) -> Logits:
        """The changed logits, after ``num_generated`` tokens, when ``num_remaining`` more may be generated."""

    @abc.abstractmethod
    def next_state(self, state: Carry, tokens: Int[Array, "*B"]) -> Carry:
        """The state after these tokens."""

    @abc.abstractmethod
    def stops(self, state: Carry) -> Bool[Array, "*B"] | None:
        """Whether a row ends after the tokens that led to this state; None for a rule that ends no row."""


class Constraint(Rule):
    """Abstract: a rule that excludes tokens; those that remain keep their logits.

    A constraint that holds token ids, which may be traced, can define a method ``has_valid_ids(state, vocab_size)``
    that returns ``Bool[*#B]``. Where it is False, an id is outside the vocabulary and all logits are NaN.
    """

    @abc.abstractmethod
    def allowed(
        self, state: Carry, vocab_size: int, num_generated: Int[Array, ""], num_remaining: Int[Array, ""]
    ) -> Bool[Array, "*#B V"]:
        """Which tokens may come next, after ``num_generated`` tokens, when ``num_remaining`` more may be generated."""

    def __call__(
        self, state: Carry, logits: Logits, num_generated: Int[Array, ""], num_remaining: Int[Array, ""]
    ) -> Logits:
        """The logits, minus infinity where a token is ruled out."""
        vocab_size = logits.shape[-1]
        allowed = self.allowed(state, vocab_size, num_generated, num_remaining)
        kept = jnp.where(jnp.broadcast_to(allowed, logits.shape), logits, jnp.asarray(-jnp.inf, logits.dtype))
        valid: Callable[[Carry, int], Array] | None = getattr(self, "has_valid_ids", None)
        if valid is None:
            return kept
        valid_rows = jnp.broadcast_to(valid(state, vocab_size)[..., None], logits.shape)
        return jnp.where(valid_rows, kept, jnp.asarray(jnp.nan, logits.dtype))

    def stops(self, state: Carry) -> None:
        """None: rows end with an end token only."""
        return


class StatelessConstraint(Constraint):
    """Abstract: a constraint that depends only on how many tokens have been generated."""

    def initial_state(self, batch_shape: tuple[int, ...], max_length: int) -> tuple[()]:
        """An empty state."""
        return ()

    def next_state(self, state: Carry, tokens: Int[Array, "*B"]) -> Carry:
        """An empty state."""
        return state


class LogitsProcessor(Rule):
    """Abstract: a rule that changes logits, such as a penalty of repetitions.

    Tokens are chosen and drawn by the changed logits, of which beam search takes the log softmax.
    """

    def stops(self, state: Carry) -> None:
        """None: rows end with an end token only."""
        return


class StoppingCriterion(Rule):
    """Abstract: a rule that ends rows after a token that it recognises; it changes no logits."""

    def __call__(
        self, state: Carry, logits: Logits, num_generated: Int[Array, ""], num_remaining: Int[Array, ""]
    ) -> Logits:
        """The logits, unchanged."""
        return logits


def as_constraints(constraints: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules as a tuple.

    Raises:
        TypeError: a single rule, an element that is not a ``Rule``, or a rule that is not a pytree.
    """
    if isinstance(constraints, Rule):
        raise TypeError(f"constraints must be a sequence: pass [{type(constraints).__name__}(...)]")
    found = tuple(constraints)
    for constraint in found:
        if not isinstance(constraint, Rule):
            kinds = "Constraint, LogitsProcessor or StoppingCriterion"
            raise TypeError(f"constraints must be of class {kinds}, not {type(constraint).__name__}: {constraint!r}")
        if jax.tree_util.all_leaves([constraint]):
            name = type(constraint).__name__
            raise TypeError(f"{name} must be a pytree: decorate its class with jax.tree_util.register_dataclass")
    return found


def check_constraints(constraints: Sequence[Rule], vocab_size: int, max_length: int, end_token: EndToken) -> None:
    """Check that the rules can be satisfied.

    Raises:
        ValueError: a rule with other end tokens (their order does not matter), or as the ``check`` of each rule.
    """
    ends = as_end_tokens(end_token)
    for constraint in constraints:
        constraint.check(vocab_size, max_length)
        own = as_end_tokens(getattr(constraint, "end_token", ends))
        if set(own) != set(ends):
            name, (its, others) = type(constraint).__name__, map(_in_words, (own, ends))
            raise ValueError(f"{name} has the end token {its}, decoding has {others}")


def apply_constraints(
    constraints: Sequence[Rule],
    states: Sequence[Carry],
    logits: Logits,
    num_generated: Int[Array, ""],
    num_remaining: Int[Array, ""],
) -> Logits:
    """The logits after the rules, in the order given: minus infinity where a constraint rules a token out."""
    for constraint, state in zip(constraints, states, strict=True):
        logits = constraint(state, logits, num_generated, num_remaining)
    return logits


def next_states(constraints: Sequence[Rule], states: Sequence[Carry], tokens: Int[Array, "*B"]) -> tuple[Carry, ...]:
    """The states of all rules after these tokens."""
    return tuple(rule.next_state(state, tokens) for rule, state in zip(constraints, states, strict=True))


def stopped(constraints: Sequence[Rule], states: Sequence[Carry], rows: tuple[int, ...]) -> Bool[Array, "*B"]:
    """Whether any rule ends each of the rows, after the tokens that led to these states."""
    found = jnp.zeros(rows, bool)
    for rule, state in zip(constraints, states, strict=True):
        ended = rule.stops(state)
        found = found if ended is None else found | ended
    return found


@partial(register_dataclass, data_fields=["length"], meta_fields=["end_token"])
@dataclass(frozen=True)
class MinLength(StatelessConstraint):
    """At least ``length`` tokens before an end token. ``end_token`` is one token or several."""

    length: int | Integer[np.ndarray | Array, ""]
    end_token: EndToken

    def __post_init__(self) -> None:
        """Make the end tokens Python numbers, which the compiled program depends on."""
        object.__setattr__(self, "end_token", static_end_token(self.end_token))

    def check(self, vocab_size: int, max_length: int) -> None:
        """Check end tokens and length; with a length of max_length or more no row ends."""
        _check_length(self, self.length, self.end_token, vocab_size)

    def allowed(
        self, state: Carry, vocab_size: int, num_generated: Int[Array, ""], num_remaining: Int[Array, ""]
    ) -> Bool[Array, "*#B V"]:
        """All tokens but the end tokens, until ``length`` tokens are generated."""
        long_enough = num_generated >= jnp.asarray(self.length, num_generated.dtype)
        return ~is_end(jnp.arange(vocab_size), as_end_tokens(self.end_token)) | long_enough


@partial(register_dataclass, data_fields=["length"], meta_fields=["end_token"])
@dataclass(frozen=True)
class MaxLength(StatelessConstraint):
    """At most ``length`` tokens before an end token, and an end token within ``max_length`` in any case.

    With ``length=None`` only the second holds: every row ends with an end token and is never truncated. ``end_token``
    is one token or several.
    """

    length: int | Integer[np.ndarray | Array, ""] | None
    end_token: EndToken

    def __post_init__(self) -> None:
        """Make the end tokens Python numbers, which the compiled program depends on."""
        object.__setattr__(self, "end_token", static_end_token(self.end_token))

    def check(self, vocab_size: int, max_length: int) -> None:
        """Check end tokens and length."""
        _check_length(self, self.length, self.end_token, vocab_size)

    def allowed(
        self, state: Carry, vocab_size: int, num_generated: Int[Array, ""], num_remaining: Int[Array, ""]
    ) -> Bool[Array, "*#B V"]:
        """All tokens, until the end tokens are the only ones allowed."""
        open_end = num_remaining > 1
        if self.length is not None:
            open_end &= num_generated < jnp.asarray(self.length, num_generated.dtype)
        return is_end(jnp.arange(vocab_size), as_end_tokens(self.end_token)) | open_end


@partial(register_dataclass, data_fields=["tokens"], meta_fields=[])
@dataclass(frozen=True)
class Forbid(StatelessConstraint):
    """These tokens never occur.

    With an id outside the vocabulary, known only under ``jit``, log-probabilities are NaN.
    """

    tokens: Sequence[int] | Int[np.ndarray | Array, " n"]

    def __post_init__(self) -> None:
        """Make the tokens an array, so that other tokens need no new compilation."""
        set_arrays(self, "tokens")

    def check(self, vocab_size: int, max_length: int) -> None:
        """Check that the tokens are in the vocabulary, and are not all of it."""
        tokens: Any = self.tokens
        check_ids("Forbid: tokens", tokens, vocab_size)
        if not isinstance(tokens, jax.core.Tracer) and len(np.unique(tokens)) == vocab_size:
            raise ValueError(f"Forbid rules out all {vocab_size} tokens of the vocabulary")

    def allowed(
        self, state: Carry, vocab_size: int, num_generated: Int[Array, ""], num_remaining: Int[Array, ""]
    ) -> Bool[Array, "*#B V"]:
        """All other tokens."""
        tokens = jnp.asarray(self.tokens)
        return jnp.ones(vocab_size, bool).at[tokens].set(False, mode="drop")

    def has_valid_ids(self, state: Carry, vocab_size: int) -> Bool[Array, ""]:
        """Whether all tokens are in the vocabulary."""
        return jnp.all(valid_ids(jnp.asarray(self.tokens), vocab_size))


@partial(register_dataclass, data_fields=["tokens"], meta_fields=[])
@dataclass(frozen=True)
class Prefix(Constraint):
    """The generated tokens begin with these: the same for every row ``[P]``, or one prefix per row ``[*B P]``.

    The log-probability of a row whose prefix has an id outside the vocabulary, known only under ``jit``, is NaN.
    """

    tokens: Sequence[int] | Int[np.ndarray | Array, "*B P"]

    def __post_init__(self) -> None:
        """Make the tokens an array, so that other tokens need no new compilation."""
        set_arrays(self, "tokens")

    def check(self, vocab_size: int, max_length: int) -> None:
        """Check that the tokens are in the vocabulary, and are at most max_length."""
        tokens: Any = self.tokens
        check_ids("Prefix: tokens", tokens, vocab_size)
        length = np.shape(self.tokens)[-1]
        if length > max_length:
            raise ValueError(f"Prefix of {length} tokens is longer than max_length={max_length}")

    def initial_state(self, batch_shape: tuple[int, ...], max_length: int) -> Int[Array, "*B P"]:
        """Each row's prefix.

        Raises:
            ValueError: prefixes with other batch dimensions.
        """
        tokens = jnp.asarray(self.tokens, jnp.int32)
        if tokens.ndim > 1 and tokens.shape[:-1] != batch_shape:
            raise ValueError(f"Prefix has prefixes for rows {tokens.shape[:-1]}, the batch has {batch_shape}")
        return jnp.broadcast_to(tokens, (*batch_shape, tokens.shape[-1]))

    def allowed(
        self, state: Carry, vocab_size: int, num_generated: Int[Array, ""], num_remaining: Int[Array, ""]
    ) -> Bool[Array, "*#B V"]:
        """The next token of the prefix; all tokens after it."""
        length = state.shape[-1]
        if not length:
            return jnp.ones(vocab_size, bool)
        due = jnp.take(state, jnp.minimum(num_generated, length - 1), axis=-1, mode="clip")
        return (jax.nn.one_hot(due, vocab_size, dtype=jnp.int32) == 1) | (num_generated >= length)

    def next_state(self, state: Carry, tokens: Int[Array, "*B"]) -> Int[Array, "*B P"]:
        """Each row's prefix, unchanged."""
        return state

    def has_valid_ids(self, state: Carry, vocab_size: int) -> Bool[Array, "*B"]:
        """Whether all tokens of each prefix are in the vocabulary."""
        return jnp.all(valid_ids(state, vocab_size), axis=-1)


def static_end_token(end_token: EndToken) -> int | tuple[int, ...]:
    """The end tokens as a Python number, or several of them; part of the compiled program."""
    ends = as_end_tokens(end_token)
    return ends[0] if len(ends) == 1 else ends


def _check_length(
    rule: Rule, length: int | Integer[np.ndarray | Array, ""] | None, end_token: EndToken, vocab_size: int
) -> None:
    name = type(rule).__name__
    known = known_number(f"{name}: length", length)
    if length is not None and not jnp.issubdtype(jnp.result_type(length), jnp.integer):
        raise TypeError(f"{name}: length must be an integer, not {length}")
    if not as_end_tokens(end_token, vocab_size):
        raise ValueError(f"{name} needs an end token")
    if known is not None and known < 0:
        raise ValueError(f"{name}({length}): length must be at least 0")


def _in_words(ends: tuple[int, ...]) -> str:
    return str(ends[0] if len(ends) == 1 else ends or None)
