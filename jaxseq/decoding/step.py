"""What decoding is given: a step or a forward function, a carry, a memory; and the rows that they work on.

    step(carry, tokens [*B]) -> (carry, logits [*B V])
    forward(carry, tokens [*B T], segment_ids [*B T]) -> (carry, logits [*B T V])

With ``memory=`` (an encoded source: read, never changed, leaves lead with ``*B``) both are given it last. Either may
be any function; as a ``jax.tree_util.Partial`` its bound arguments (the parameters) travel as arrays, so that new
parameters, or a new Partial of the same function, need no new compilation:

    forward = Partial(apply, params)                        # apply(params, carry, tokens, segment_ids)
    step = step_of(forward)

A plain closure has its arrays compiled in, and each new closure is compiled anew. Several sequences a prompt (beams,
samples) are more rows of the last batch dimension, so that a step sees as many dimensions as the caller's own
tokens have; a single row, without batch dimensions, is mapped over by ``jax.vmap``.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxseq.typing import Array, Carry, Int, Logits

LARGE = 2**14
"""Bytes of a row from which on a CPU it is worth moving only those that move."""

Step: TypeAlias = Callable[..., Any]
Forward: TypeAlias = Callable[..., Any]


def step_of(forward: Forward) -> Partial:
    """The step that a forward function takes over a stretch of one token."""
    return Partial(_one, as_partial(forward))


def as_partial(function: Callable[..., Any]) -> Partial:
    """The function as a pytree: it is compared by identity, its bound arguments are arrays."""
    return function if isinstance(function, Partial) else Partial(function)


def with_memory(function: Callable[..., Any], memory: Any) -> Partial:
    """The step or forward function with its memory bound; as it is where there is none."""
    return as_partial(function) if memory is None else Partial(_remembering, as_partial(function), memory)


def repeated_rows(
    step: Step, carry: Carry, tokens: Int[Array, "*B"], memory: Any, copies: int
) -> tuple[Partial, Carry, Int[Array, "*R"]]:
    """Each row ``copies`` times: the step, carry and tokens of the rows ``[*B[:-1], B[-1] · copies]``.

    Raises:
        ValueError: a leaf of the carry or the memory does not lead with the batch dimensions.
    """
    ndim = tokens.ndim
    step = with_memory(step, repeat(memory, ndim, copies)) if ndim else Partial(_mapped, with_memory(step, memory))
    return step, repeat(carry, ndim, copies), repeat(tokens, ndim, copies)


def repeat(tree: Any, ndim: int, copies: int) -> Any:
    """Each row of leaves that lead with so many batch dimensions, ``copies`` times one after another."""
    if ndim:
        return jax.tree.map(lambda leaf: jnp.repeat(leaf, copies, axis=ndim - 1), tree)
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], copies, axis=0), tree)


def gather_rows(tree: Any, batch_shape: tuple[int, ...], parents: Int[Array, "N K"]) -> Any:
    """Of rows as ``repeated_rows`` makes them: row k of a batch becomes what its row ``parents[k]`` was.

    Parents must keep their own rows, ``parents[parents] == parents``: then no row is overwritten that another one
    comes from. On a CPU large rows (a key-value cache's) are moved one by one where they lie, those that move; an
    accelerator gathers all, in one program.
    """
    count, copies = parents.shape
    flat = (jnp.arange(count, dtype=parents.dtype)[:, None] * copies + parents).reshape(-1)
    lead = len(batch_shape) or 1
    leaves, structure = jax.tree.flatten(tree)
    rows = [leaf.reshape(-1, *leaf.shape[lead:]) for leaf in leaves]
    large = [jax.default_backend() == "cpu" and row.size * row.dtype.itemsize >= LARGE * len(flat) for row in rows]
    moved = iter(_moved([row for row, is_large in zip(rows, large, strict=True) if is_large], flat))
    rows = [
        next(moved) if is_large else jnp.take(row, flat, axis=0, mode="clip")
        for row, is_large in zip(rows, large, strict=True)
    ]
    return jax.tree.unflatten(structure, [row.reshape(leaf.shape) for row, leaf in zip(rows, leaves, strict=True)])


def _moved(rows: list[Array], sources: Int[Array, " R"]) -> list[Array]:
    """The rows with those that come from another one overwritten, one after another."""
    if not rows:
        return []
    moves = sources != jnp.arange(len(sources), dtype=sources.dtype)
    order = jnp.argsort(~moves, stable=True)

    def body(i: Array, rows: list[Array]) -> list[Array]:
        to = order[i]
        return [row.at[to].set(row[sources[to]]) for row in rows]

    return jax.lax.fori_loop(0, jnp.sum(moves), body, rows)


def check_rows(tree: Any, batch_shape: tuple[int, ...], what: str) -> None:
    """Refuse leaves that do not lead with the batch dimensions.

    Raises:
        ValueError: names the first such leaf.
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        shape = jnp.shape(leaf)
        if shape[: len(batch_shape)] != batch_shape:
            name = what + jax.tree_util.keystr(path)
            raise ValueError(f"{name} has shape {shape}: it must lead with the batch dimensions {batch_shape}")


def check_step(step: Step, carry: Carry, tokens: Int[Array, "*B"], end_token: int | None) -> jax.ShapeDtypeStruct:
    """Refuse what cannot be decoded, before anything is compiled; gives the logits' shape and dtype.

    Raises:
        ValueError: a carry or logits of the wrong shape, or an end token outside the vocabulary.
    """
    after, logits = _probe.eval_shape(as_partial(step), carry, tokens)
    if logits.shape[:-1] != tokens.shape or len(logits.shape) != len(tokens.shape) + 1:
        raise ValueError(f"step must give logits of shape {tokens.shape} + (V,), not {logits.shape}")
    vocab_size = logits.shape[-1]
    if end_token is not None and not 0 <= end_token < vocab_size:
        raise ValueError(f"end_token {end_token} outside the vocabulary of {vocab_size}")
    was: Any = jax.tree.structure(carry)
    now: Any = jax.tree.structure(after)
    if was != now:
        raise ValueError(f"step must give back a carry of the same structure: {was} became {now}")
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(carry)[0], jax.tree.leaves(after), strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            name = jax.tree_util.keystr(path) or "the carry"
            raise ValueError(f"step must keep {name} as {a.dtype}{a.shape}; it became {b.dtype}{b.shape}")
    return logits


def check_room(carry: Carry, needed: int, asked: str) -> None:
    """Refuse to look further back than a carry can.

    A part of a carry that keeps only so many positions says so by a property ``context``: that number (``None``: it
    never needs more than it has). What the carry has read already is not known here: ``prefill`` counts its prompts.

    Raises:
        ValueError: ``needed`` earlier positions are more than some part's context.
    """
    context = context_of(carry)
    if context is not None and needed > context:
        raise ValueError(
            f"{asked} looks {needed} positions back, but the carry keeps {context}: "
            f"make it with initial_carry(..., context={needed})"
        )


def context_of(carry: Carry) -> int | None:
    """How many earlier positions every part of a carry can look back on; None where there is no such bound."""
    says = lambda node: isinstance(getattr(type(node), "context", None), property)  # noqa: E731
    parts = [part for part in jax.tree.leaves(carry, is_leaf=says) if says(part)]
    bounds = [part.context for part in parts if part.context is not None]
    return min(bounds, default=None)


def as_tokens(tokens: Any) -> Int[Array, "..."]:
    """Token ids as int32, so that any vocabulary fits.

    Raises:
        TypeError: they are no whole numbers.
    """
    tokens = jnp.asarray(tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens must be whole numbers, not {tokens.dtype}{tokens.shape}")
    return tokens.astype(jnp.int32)


def as_arrays(carry: Carry) -> Carry:
    """The carry with arrays for whatever else stands for numbers."""
    return jax.tree.map(jnp.asarray, carry)


@jax.jit
def _probe(step: Partial, carry: Carry, tokens: Int[Array, "*B"]) -> Any:
    """A step; jit remembers that it was traced, and so its shapes."""
    return step(carry, tokens)


def _one(forward: Forward, carry: Carry, tokens: Int[Array, "*B"], *memory: Any) -> tuple[Carry, Logits]:
    after, logits = forward(carry, tokens[..., None], None, *memory)
    return after, logits[..., 0, :]


def _remembering(function: Callable[..., Any], memory: Any, *arguments: Any) -> Any:
    return function(*arguments, memory)


def _mapped(step: Step, carry: Carry, tokens: Int[Array, " R"]) -> tuple[Carry, Logits]:
    return jax.vmap(step)(carry, tokens)
