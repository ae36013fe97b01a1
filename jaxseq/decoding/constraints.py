"""What may come next: constraints that greedy decoding, sampling and beam search put on a step's logits.

A constraint is a pytree of arrays with pure functions, and may have a state that is carried along as a carry is:

    state = constraint.initial_state(batch_shape, max_length)
    logits = constraint(state, logits, made, remaining)      # what is ruled out becomes minus infinity
    state = constraint.next_state(state, tokens)

Constraints rule out, they do not renormalise: log-probabilities stay the model's own. Several are put on one after
another, and a token must be allowed by all. Each keeps a row from a dead end of its own (an automaton counts how
many tokens it still needs), but not from one that two of them make together: ``Automaton`` has ``&`` for that.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxseq.typing import Array, Bool, Carry, Int, Logits


class Constraint(abc.ABC):
    """Abstract: which tokens may come next, given those that were made."""

    def check(self, vocab_size: int, max_length: int) -> None:  # noqa: B027
        """Refuse what cannot be satisfied, before anything is compiled.

        Raises:
            ValueError: a token outside the vocabulary, or nothing of at most ``max_length`` tokens satisfies it.
        """

    def initial_state(self, batch_shape: tuple[int, ...], max_length: int) -> Carry:
        """The state before the first token; leaves lead with the batch dimensions."""
        return ()

    @abc.abstractmethod
    def allowed(
        self, state: Carry, vocab_size: int, made: Int[Array, ""], remaining: Int[Array, ""]
    ) -> Bool[Array, "*#B V"]:
        """Which tokens may come next, when ``made`` tokens were made and ``remaining`` may still be."""

    def next_state(self, state: Carry, tokens: Int[Array, "*B"]) -> Carry:
        """The state after these tokens."""
        return state

    def __call__(self, state: Carry, logits: Logits, made: Int[Array, ""], remaining: Int[Array, ""]) -> Logits:
        """The logits, minus infinity where a token is ruled out."""
        allowed = self.allowed(state, logits.shape[-1], made, remaining)
        return jnp.where(jnp.broadcast_to(allowed, logits.shape), logits, jnp.asarray(-jnp.inf, logits.dtype))


def as_constraints(constraints: Any) -> tuple[Constraint, ...]:
    """The constraints as a tuple; a single one is refused.

    Raises:
        TypeError: see there, and what is no ``Constraint`` or no pytree.
    """
    if isinstance(constraints, Constraint):
        raise TypeError(f"constraints are several: give [{type(constraints).__name__}(...)]")
    found = tuple(constraints)
    for constraint in found:
        if not isinstance(constraint, Constraint):
            raise TypeError(f"constraints must be of class Constraint, not {type(constraint).__name__}: {constraint!r}")
        if jax.tree_util.all_leaves([constraint]):
            name = type(constraint).__name__
            raise TypeError(f"{name} must be a pytree: decorate it with jax.tree_util.register_dataclass, or _static")
    return found


def check_constraints(
    constraints: Sequence[Constraint], vocab_size: int, max_length: int, end_token: int | None
) -> None:
    """Refuse what cannot be satisfied.

    Raises:
        ValueError: a constraint with another end token; see each constraint's ``check``.
    """
    for constraint in constraints:
        constraint.check(vocab_size, max_length)
        own_end = getattr(constraint, "end_token", end_token)
        if own_end != end_token:
            raise ValueError(f"{type(constraint).__name__} has the end token {own_end}, decoding {end_token}")


def constrained(
    constraints: Sequence[Constraint],
    states: Sequence[Carry],
    logits: Logits,
    made: Int[Array, ""],
    remaining: Int[Array, ""],
) -> Logits:
    """The logits under all constraints, one after another."""
    for constraint, state in zip(constraints, states, strict=True):
        logits = constraint(state, logits, made, remaining)
    return logits


@partial(register_dataclass, data_fields=["length"], meta_fields=["end_token"])
@dataclass(frozen=True)
class MinLength(Constraint):
    """At least so many tokens before the end token."""

    length: int | Int[Array, ""]
    end_token: int

    def check(self, vocab_size: int, max_length: int) -> None:
        """Refuse an end token outside the vocabulary; a length of max_length or more just never ends."""
        _check_tokens("MinLength", [self.end_token], vocab_size)
        if self.length < 0:
            raise ValueError(f"MinLength({self.length}): a length is not below 0")

    def allowed(
        self, state: Carry, vocab_size: int, made: Int[Array, ""], remaining: Int[Array, ""]
    ) -> Bool[Array, "*#B V"]:
        """All but the end token, until so many are made."""
        return (jnp.arange(vocab_size) != self.end_token) | (made >= jnp.asarray(self.length, made.dtype))


@partial(register_dataclass, data_fields=["length"], meta_fields=["end_token"])
@dataclass(frozen=True)
class MaxLength(Constraint):
    """At most so many tokens before the end token, and the end token within ``max_length`` in any case.

    With ``length=None`` it only sees to the second: a hypothesis is then complete, never cut off.
    """

    length: int | Int[Array, ""] | None
    end_token: int

    def check(self, vocab_size: int, max_length: int) -> None:
        """Refuse an end token outside the vocabulary, and a length below 0."""
        _check_tokens("MaxLength", [self.end_token], vocab_size)
        if self.length is not None and self.length < 0:
            raise ValueError(f"MaxLength({self.length}): a length is not below 0")

    def allowed(
        self, state: Carry, vocab_size: int, made: Int[Array, ""], remaining: Int[Array, ""]
    ) -> Bool[Array, "*#B V"]:
        """All, until it must be the end token."""
        open_end = remaining > 1
        if self.length is not None:
            open_end &= made < jnp.asarray(self.length, made.dtype)
        return (jnp.arange(vocab_size) == self.end_token) | open_end


@partial(register_dataclass, data_fields=["tokens"], meta_fields=[])
@dataclass(frozen=True)
class Forbid(Constraint):
    """These tokens never."""

    tokens: Sequence[int] | Int[np.ndarray | Array, " n"]

    def __post_init__(self) -> None:
        """One array, so that other tokens need no new compilation."""
        _as_tokens(self, "tokens")

    def check(self, vocab_size: int, max_length: int) -> None:
        """Refuse tokens outside the vocabulary, and all of it."""
        _check_tokens("Forbid", self.tokens, vocab_size)
        if len(set(np.asarray(self.tokens).tolist())) == vocab_size:
            raise ValueError(f"Forbid rules out all {vocab_size} tokens of the vocabulary")

    def allowed(
        self, state: Carry, vocab_size: int, made: Int[Array, ""], remaining: Int[Array, ""]
    ) -> Bool[Array, "*#B V"]:
        """All the others."""
        return jnp.ones(vocab_size, bool).at[jnp.asarray(self.tokens)].set(False)


@partial(register_dataclass, data_fields=["tokens"], meta_fields=[])
@dataclass(frozen=True)
class Prefix(Constraint):
    """Begins with these tokens: the same for every row ``[P]``, or each row its own ``[*B P]``."""

    tokens: Sequence[int] | Int[np.ndarray | Array, "*B P"]

    def __post_init__(self) -> None:
        """One array, so that other tokens need no new compilation."""
        _as_tokens(self, "tokens")

    def check(self, vocab_size: int, max_length: int) -> None:
        """Refuse tokens outside the vocabulary, and a prefix longer than may be generated."""
        _check_tokens("Prefix", self.tokens, vocab_size)
        length = np.shape(self.tokens)[-1]
        if length > max_length:
            raise ValueError(f"Prefix of {length} tokens is longer than max_length={max_length}")

    def initial_state(self, batch_shape: tuple[int, ...], max_length: int) -> Int[Array, "*B P"]:
        """Each row's prefix, so that it goes with the row."""
        tokens = jnp.asarray(self.tokens, jnp.int32)
        if tokens.ndim > 1 and tokens.shape[:-1] != batch_shape:
            raise ValueError(f"Prefix has rows {tokens.shape[:-1]}, the batch {batch_shape}")
        return jnp.broadcast_to(tokens, (*batch_shape, tokens.shape[-1]))

    def allowed(
        self, state: Carry, vocab_size: int, made: Int[Array, ""], remaining: Int[Array, ""]
    ) -> Bool[Array, "*#B V"]:
        """The prefix's next token; any, behind it."""
        length = state.shape[-1]
        if not length:
            return jnp.ones(vocab_size, bool)
        due = jnp.take(state, jnp.minimum(made, length - 1), axis=-1, mode="clip")
        return (jax.nn.one_hot(due, vocab_size, dtype=jnp.int32) == 1) | (made >= length)


@partial(register_dataclass, data_fields=[], meta_fields=["size"])
@dataclass(frozen=True)
class NoRepeatedNgrams(Constraint):
    """No n-gram of generated tokens occurs twice (Paulus et al. 2017, for n = 3)."""

    size: int

    def check(self, vocab_size: int, max_length: int) -> None:
        """Refuse a size below 1."""
        if self.size < 1:
            raise ValueError(f"NoRepeatedNgrams: size must be at least 1, not {self.size}")

    def initial_state(self, batch_shape: tuple[int, ...], max_length: int) -> Int[Array, "*B L"]:
        """The tokens made, the newest last, behind as many -1 as there is room for more."""
        return jnp.full((*batch_shape, max_length), -1, jnp.int32)

    def allowed(
        self, state: Carry, vocab_size: int, made: Int[Array, ""], remaining: Int[Array, ""]
    ) -> Bool[Array, "*#B V"]:
        """All that do not end an n-gram which is there already."""
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
        """One token more at the end."""
        return jnp.concatenate([state[..., 1:], tokens[..., None].astype(jnp.int32)], axis=-1)


def _as_tokens(constraint: Constraint, name: str) -> None:
    value = getattr(constraint, name)
    if isinstance(value, Sequence):
        object.__setattr__(constraint, name, np.asarray(value, np.int32))


def _check_tokens(name: str, tokens: Sequence[int] | np.ndarray | Array, vocab_size: int) -> None:
    for token in np.asarray(tokens).ravel().tolist():
        if not 0 <= token < vocab_size:
            raise ValueError(f"{name}: token {token} outside the vocabulary of {vocab_size}")
