"""Constraints: which tokens may come next, in greedy decoding, sampling, streaming and beam search.

A constraint is a pytree of arrays with pure functions. It may have a state, which is passed along like a carry:

    state = constraint.initial_state(batch_shape, max_length)
    logits = constraint(state, logits, num_generated, num_remaining)    # minus infinity for tokens ruled out
    state = constraint.next_state(state, tokens)

Constraints rule tokens out and do not renormalise: log-probabilities stay the model's own. Of several constraints a
token must satisfy all. A single constraint leads to no dead end (an automaton counts how many tokens it still needs),
but two of them may do so together; ``Automaton`` has ``&`` for that.
"""

import abc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxseq.typing import Array, Bool, Carry, Int, Logits


class Constraint(abc.ABC):
    """Abstract: which tokens may come next, given those generated so far."""

    @abc.abstractmethod
    def check(self, vocab_size: int, max_length: int) -> None:
        """Check that the constraint can be satisfied, before anything is compiled.

        Raises:
            ValueError: a token outside the vocabulary, or nothing of at most ``max_length`` tokens satisfies it.
        """

    @abc.abstractmethod
    def initial_state(self, batch_shape: tuple[int, ...], max_length: int) -> Carry:
        """The state before the first token; leaves lead with the batch dimensions."""

    @abc.abstractmethod
    def allowed(
        self, state: Carry, vocab_size: int, num_generated: Int[Array, ""], num_remaining: Int[Array, ""]
    ) -> Bool[Array, "*#B V"]:
        """Which tokens may come next, after ``num_generated`` tokens, when ``num_remaining`` more may be generated."""

    @abc.abstractmethod
    def next_state(self, state: Carry, tokens: Int[Array, "*B"]) -> Carry:
        """The state after these tokens."""

    def __call__(
        self, state: Carry, logits: Logits, num_generated: Int[Array, ""], num_remaining: Int[Array, ""]
    ) -> Logits:
        """The logits, minus infinity where a token is ruled out."""
        allowed = self.allowed(state, logits.shape[-1], num_generated, num_remaining)
        return jnp.where(jnp.broadcast_to(allowed, logits.shape), logits, jnp.asarray(-jnp.inf, logits.dtype))


class StatelessConstraint(Constraint):
    """Abstract: a constraint that depends only on how many tokens have been generated."""

    def initial_state(self, batch_shape: tuple[int, ...], max_length: int) -> tuple[()]:
        """An empty state."""
        return ()

    def next_state(self, state: Carry, tokens: Int[Array, "*B"]) -> Carry:
        """An empty state."""
        return state


def as_constraints(constraints: Iterable[Constraint]) -> tuple[Constraint, ...]:
    """The constraints as a tuple.

    Raises:
        TypeError: a single constraint, an element that is no ``Constraint``, or a constraint that is no pytree.
    """
    if isinstance(constraints, Constraint):
        raise TypeError(f"constraints must be a sequence: pass [{type(constraints).__name__}(...)]")
    found = tuple(constraints)
    for constraint in found:
        if not isinstance(constraint, Constraint):
            raise TypeError(f"constraints must be of class Constraint, not {type(constraint).__name__}: {constraint!r}")
        if jax.tree_util.all_leaves([constraint]):
            name = type(constraint).__name__
            raise TypeError(f"{name} must be a pytree: decorate its class with jax.tree_util.register_dataclass")
    return found


def check_constraints(
    constraints: Sequence[Constraint], vocab_size: int, max_length: int, end_token: int | None
) -> None:
    """Check that the constraints can be satisfied.

    Raises:
        ValueError: a constraint with another end token, or as the ``check`` of each constraint.
    """
    for constraint in constraints:
        constraint.check(vocab_size, max_length)
        own_end = getattr(constraint, "end_token", end_token)
        if own_end != end_token:
            raise ValueError(f"{type(constraint).__name__} has the end token {own_end}, decoding has {end_token}")


def apply_constraints(
    constraints: Sequence[Constraint],
    states: Sequence[Carry],
    logits: Logits,
    num_generated: Int[Array, ""],
    num_remaining: Int[Array, ""],
) -> Logits:
    """The logits, minus infinity where any of the constraints rules a token out."""
    for constraint, state in zip(constraints, states, strict=True):
        logits = constraint(state, logits, num_generated, num_remaining)
    return logits


@partial(register_dataclass, data_fields=["length"], meta_fields=["end_token"])
@dataclass(frozen=True)
class MinLength(StatelessConstraint):
    """At least ``length`` tokens before the end token."""

    length: int | Int[Array, ""]
    end_token: int

    def check(self, vocab_size: int, max_length: int) -> None:
        """Check end token and length; with a length of max_length or more no row ends."""
        _check_tokens("MinLength", [self.end_token], vocab_size)
        if self.length < 0:
            raise ValueError(f"MinLength({self.length}): a length is not below 0")

    def allowed(
        self, state: Carry, vocab_size: int, num_generated: Int[Array, ""], num_remaining: Int[Array, ""]
    ) -> Bool[Array, "*#B V"]:
        """All tokens but the end token, until ``length`` tokens are generated."""
        return (jnp.arange(vocab_size) != self.end_token) | (
            num_generated >= jnp.asarray(self.length, num_generated.dtype)
        )


@partial(register_dataclass, data_fields=["length"], meta_fields=["end_token"])
@dataclass(frozen=True)
class MaxLength(StatelessConstraint):
    """At most ``length`` tokens before the end token, and the end token within ``max_length`` in any case.

    With ``length=None`` only the second holds: every row ends with the end token and is never truncated.
    """

    length: int | Int[Array, ""] | None
    end_token: int

    def check(self, vocab_size: int, max_length: int) -> None:
        """Check end token and length."""
        _check_tokens("MaxLength", [self.end_token], vocab_size)
        if self.length is not None and self.length < 0:
            raise ValueError(f"MaxLength({self.length}): a length is not below 0")

    def allowed(
        self, state: Carry, vocab_size: int, num_generated: Int[Array, ""], num_remaining: Int[Array, ""]
    ) -> Bool[Array, "*#B V"]:
        """All tokens, until the end token is the only one allowed."""
        open_end = num_remaining > 1
        if self.length is not None:
            open_end &= num_generated < jnp.asarray(self.length, num_generated.dtype)
        return (jnp.arange(vocab_size) == self.end_token) | open_end


@partial(register_dataclass, data_fields=["tokens"], meta_fields=[])
@dataclass(frozen=True)
class Forbid(StatelessConstraint):
    """These tokens never occur."""

    tokens: Sequence[int] | Int[np.ndarray | Array, " n"]

    def __post_init__(self) -> None:
        """Make the tokens an array, so that other tokens need no new compilation."""
        _as_tokens(self, "tokens")

    def check(self, vocab_size: int, max_length: int) -> None:
        """Check that the tokens are in the vocabulary, and are not all of it."""
        _check_tokens("Forbid", self.tokens, vocab_size)
        if len(set(np.asarray(self.tokens).tolist())) == vocab_size:
            raise ValueError(f"Forbid rules out all {vocab_size} tokens of the vocabulary")

    def allowed(
        self, state: Carry, vocab_size: int, num_generated: Int[Array, ""], num_remaining: Int[Array, ""]
    ) -> Bool[Array, "*#B V"]:
        """All other tokens."""
        return jnp.ones(vocab_size, bool).at[jnp.asarray(self.tokens)].set(False)


@partial(register_dataclass, data_fields=["tokens"], meta_fields=[])
@dataclass(frozen=True)
class Prefix(Constraint):
    """The generated tokens begin with these: the same for every row ``[P]``, or one prefix per row ``[*B P]``."""

    tokens: Sequence[int] | Int[np.ndarray | Array, "*B P"]

    def __post_init__(self) -> None:
        """Make the tokens an array, so that other tokens need no new compilation."""
        _as_tokens(self, "tokens")

    def check(self, vocab_size: int, max_length: int) -> None:
        """Check that the tokens are in the vocabulary, and are at most max_length."""
        _check_tokens("Prefix", self.tokens, vocab_size)
        length = np.shape(self.tokens)[-1]
        if length > max_length:
            raise ValueError(f"Prefix of {length} tokens is longer than max_length={max_length}")

    def initial_state(self, batch_shape: tuple[int, ...], max_length: int) -> Int[Array, "*B P"]:
        """Each row's prefix."""
        tokens = jnp.asarray(self.tokens, jnp.int32)
        if tokens.ndim > 1 and tokens.shape[:-1] != batch_shape:
            raise ValueError(f"Prefix has rows {tokens.shape[:-1]}, the batch {batch_shape}")
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


@partial(register_dataclass, data_fields=[], meta_fields=["size"])
@dataclass(frozen=True)
class NoRepeatedNgrams(Constraint):
    """No n-gram of generated tokens occurs twice.

    Paulus et al., "A deep reinforced model for abstractive summarization", 2017 (for n = 3).
    """

    size: int

    def check(self, vocab_size: int, max_length: int) -> None:
        """Check the size."""
        if self.size < 1:
            raise ValueError(f"NoRepeatedNgrams: size must be at least 1, not {self.size}")

    def initial_state(self, batch_shape: tuple[int, ...], max_length: int) -> Int[Array, "*B L"]:
        """The generated tokens, the newest last, preceded by -1 where there are none yet."""
        return jnp.full((*batch_shape, max_length), -1, jnp.int32)

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
        ends = jnp.where(same, state[..., before:], vocab_size).reshape(-1, starts)
        ruled_out = jax.vmap(lambda row: jnp.zeros(vocab_size, bool).at[row].set(True, mode="drop"))(ends)
        return ~ruled_out.reshape(*state.shape[:-1], vocab_size)

    def next_state(self, state: Carry, tokens: Int[Array, "*B"]) -> Int[Array, "*B L"]:
        """The tokens appended."""
        return jnp.concatenate([state[..., 1:], tokens[..., None].astype(jnp.int32)], axis=-1)


def _as_tokens(constraint: Constraint, name: str) -> None:
    value = getattr(constraint, name)
    if isinstance(value, Sequence):
        object.__setattr__(constraint, name, np.asarray(value, np.int32))


def _check_tokens(name: str, tokens: Sequence[int] | np.ndarray | Array, vocab_size: int) -> None:
    for token in np.asarray(tokens).ravel().tolist():
        if not 0 <= token < vocab_size:
            raise ValueError(f"{name}: token {token} outside the vocabulary of {vocab_size}")
