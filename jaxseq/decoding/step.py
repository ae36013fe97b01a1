"""The functions that decoding is given (a step or a forward function), and the rows that they work on.

    step(carry, tokens [*B]) -> (carry, logits [*B V])
    forward(carry, tokens [*B T], segment_ids [*B T]) -> (carry, logits [*B T V])

With ``memory=`` (an encoded source: read, never changed, leaves lead with ``*B``) both get it as their last argument.
A function bound by ``jax.tree_util.Partial`` passes its bound arguments (the parameters) as arrays, so that new
parameters, or a new Partial of the same function, need no new compilation:

    forward = Partial(apply, params)                        # apply(params, carry, tokens, segment_ids)
    step = step_of(forward)

The arrays of a plain closure are compiled in, and every new closure is compiled anew. Several sequences per prompt
(beams, samples) become more rows of the last batch dimension, so that a step sees as many dimensions as the caller's
tokens have; a single row, without batch dimensions, is mapped over by ``jax.vmap``.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxseq.decoding.end_tokens import EndToken, as_end_tokens
from jaxseq.decoding.options import known_integer
from jaxseq.ops.ids import check_ids
from jaxseq.typing import Array, Bool, Carry, Float, Int, Integer, Logits, SegmentIds, Shaped, Tokens

LARGE_ROW_BYTES = 2**14
"""Rows of at least this size are moved one by one on a CPU; smaller ones are gathered."""

Memory: TypeAlias = Any
"""A constant input of a step: a pytree whose leaves all lead with ``*B``, or None."""

Count: TypeAlias = int | np.integer | Integer[np.ndarray | Array, ""]
"""A number of tokens or rows; part of the compiled program, so not traced."""

Tree = TypeVar("Tree")


@runtime_checkable
class Step(Protocol):
    """Reads one token per row and returns the logits of the next one."""

    def __call__(self, carry: Carry, tokens: Int[Array, "*B"], /) -> tuple[Carry, Logits]:
        """The carry after the tokens (same structure, shapes and dtypes), and the logits of the next tokens."""


@runtime_checkable
class StepWithMemory(Protocol):
    """A step that also reads a memory, such as an encoded source."""

    def __call__(self, carry: Carry, tokens: Int[Array, "*B"], memory: Memory, /) -> tuple[Carry, Logits]:
        """As ``Step``; the memory has one row for each row of tokens."""


@runtime_checkable
class Forward(Protocol):
    """Reads several tokens per row and returns the logits after each of them."""

    def __call__(
        self, carry: Carry, tokens: Tokens, segment_ids: SegmentIds | None, /
    ) -> tuple[Carry, Float[Array, "*B T V"]]:
        """The carry after the tokens, and the logits; positions of segment id 0 are padding and are ignored."""


@runtime_checkable
class ForwardWithMemory(Protocol):
    """A forward function that also reads a memory."""

    def __call__(
        self, carry: Carry, tokens: Tokens, segment_ids: SegmentIds | None, memory: Memory, /
    ) -> tuple[Carry, Float[Array, "*B T V"]]:
        """As ``Forward``; the memory has one row for each row of tokens."""


AnyStep: TypeAlias = Step | StepWithMemory
"""A step; it gets the memory if one is given."""

AnyForward: TypeAlias = Forward | ForwardWithMemory
"""A forward function; it gets the memory if one is given."""


def step_of(forward: AnyForward) -> Partial:
    """A step that calls a forward function on one token at a time."""
    return Partial(_forward_one_token, as_partial(forward))


def read_tokens(step: Partial, carry: Carry, tokens: Int[Array, "*B"], live: Bool[Array, "*B"]) -> tuple[Carry, Logits]:
    """Call the step on the live rows: the others keep their carry, and their logits are undefined.

    A step made by ``step_of`` reads the tokens of the others as padding, which copies nothing; of any other step both
    carries are needed, and rows are selected.
    """
    if _reads_padding(step):
        return step(carry, tokens, live=live)
    after, logits = step(carry, tokens)
    return select_rows(live, after, carry), logits


def select_rows(chosen: Bool[Array, "*B"], tree: Tree, other: Tree) -> Tree:
    """The rows of one tree where ``chosen``, else those of the other."""

    def select(a: Array, b: Array) -> Array:
        return jnp.where(chosen.reshape(*chosen.shape, *(1,) * (a.ndim - chosen.ndim)), a, b)

    return jax.tree.map(select, tree, other)


def take_rows(x: Shaped[Array, "N n ..."], indices: Int[Array, "N k"]) -> Shaped[Array, "N k ..."]:
    """Row ``x[i, indices[i, j]]`` for every i and j."""
    return jnp.take_along_axis(x, indices.reshape(*indices.shape, *(1,) * (x.ndim - 2)), axis=1)


def document_ids(carry: Carry, batch_shape: tuple[int, ...]) -> Int[Array, "*B"]:
    """The segment id that continues each row's document.

    A part of a carry that distinguishes documents stores the id of the last token that it has read, in a field or a
    property ``segment_id`` (``[*B]``; 0 before the first token). All parts agree, so the first is used. A row that
    has read nothing, and a carry without such a part, continues with 1.
    """

    def has_id(node: Any) -> bool:
        found = getattr(node, "segment_id", None)
        return isinstance(found, Array) and found.shape == batch_shape and jnp.issubdtype(found.dtype, jnp.integer)

    for part in jax.tree.leaves(carry, is_leaf=has_id):
        if has_id(part):
            found = part.segment_id.astype(jnp.int32)
            return jnp.where(found == 0, jnp.ones_like(found), found)
    return jnp.ones(batch_shape, jnp.int32)


def as_partial(function: Callable[..., Any]) -> Partial:
    """The function as a pytree: it is compared by identity, its bound arguments are arrays."""
    return function if isinstance(function, Partial) else Partial(function)


def bind_memory(function: AnyStep | AnyForward, memory: Memory) -> Partial:
    """The step or forward function with its memory bound; unchanged where there is none."""
    return as_partial(function) if memory is None else Partial(_call_with_memory, as_partial(function), memory)


def repeat_rows(
    step: AnyStep, carry: Carry, tokens: Int[Array, "*B"], memory: Memory, copies: int
) -> tuple[Partial, Carry, Int[Array, "*R"]]:
    """Repeat each row ``copies`` times: the step, carry and tokens of the rows ``[*B[:-1], B[-1] · copies]``.

    Raises:
        ValueError: a leaf of the carry or the memory does not lead with the batch dimensions.
    """
    ndim = tokens.ndim
    if ndim:
        bound = bind_memory(step, repeat_leaves(memory, ndim, copies))
    else:
        bound = Partial(_vmapped_step, bind_memory(step, memory))
    return bound, repeat_leaves(carry, ndim, copies), repeat_leaves(tokens, ndim, copies)


def repeat_leaves(tree: Tree, ndim: int, copies: int) -> Tree:
    """Repeat each row of leaves that lead with ``ndim`` batch dimensions; the copies of a row are neighbours."""
    if ndim:
        return jax.tree.map(lambda leaf: jnp.repeat(leaf, copies, axis=ndim - 1), tree)
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], copies, axis=0), tree)


def gather_rows(tree: Tree, batch_shape: tuple[int, ...], parents: Int[Array, "N K"]) -> Tree:
    """Replace row k of each batch element by its row ``parents[k]``, for rows made by ``repeat_rows``.

    A row that is the parent of another row must be its own parent, ``parents[parents] == parents``: then no row is
    overwritten before it is read. On a CPU, large rows (a key-value cache's) are moved in place, one by one, and only
    those that change; on an accelerator all rows are gathered at once. In a mesh they are gathered within each batch
    element, so that nothing is exchanged if batch elements are sharded.
    """
    count, copies = parents.shape
    if not jax.sharding.get_abstract_mesh().empty:

        def gather(leaf: Array) -> Array:
            rows = leaf.reshape(count, copies, *leaf.shape[len(batch_shape) or 1 :])
            return take_rows(rows, parents).reshape(leaf.shape)

        return jax.tree.map(gather, tree)
    flat = (jnp.arange(count, dtype=parents.dtype)[:, None] * copies + parents).reshape(count * copies)
    num_batch_dims = len(batch_shape) or 1
    leaves, structure = jax.tree.flatten(tree)
    rows = [leaf.reshape(len(flat), *leaf.shape[num_batch_dims:]) for leaf in leaves]
    may_move = jax.default_backend() == "cpu" and len(flat) > 0
    large = [may_move and row.size * row.dtype.itemsize >= LARGE_ROW_BYTES * len(flat) for row in rows]
    moved = iter(_move_rows([row for row, is_large in zip(rows, large, strict=True) if is_large], flat))
    rows = [
        next(moved) if is_large else jnp.take(row, flat, axis=0, mode="clip")
        for row, is_large in zip(rows, large, strict=True)
    ]
    return jax.tree.unflatten(structure, [row.reshape(leaf.shape) for row, leaf in zip(rows, leaves, strict=True)])


def _move_rows(rows: list[Array], sources: Int[Array, " R"]) -> list[Array]:
    """Overwrite each row whose source is another row, one after another."""
    if not rows:
        return []
    moves = sources != jnp.arange(len(sources), dtype=sources.dtype)
    order = jnp.argsort(~moves, stable=True)

    def body(i: Array, rows: list[Array]) -> list[Array]:
        to = order[i]
        return [row.at[to].set(row[sources[to]]) for row in rows]

    return jax.lax.fori_loop(0, jnp.sum(moves), body, rows)


def check_inputs(carry: Carry, memory: Memory, batch_shape: tuple[int, ...]) -> None:
    """Check that all leaves of the carry and of the memory lead with the batch dimensions of the tokens.

    Raises:
        ValueError: names the first leaf that does not.
    """
    check_rows(carry, batch_shape, "carry")
    check_rows(memory, batch_shape, "memory")


def check_rows(tree: Carry | Memory, batch_shape: tuple[int, ...], name: str) -> None:
    """Check that all leaves lead with the batch dimensions.

    Raises:
        ValueError: names the first leaf that does not.
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        shape = jnp.shape(leaf)
        if shape[: len(batch_shape)] != batch_shape:
            leaf_name = name + jax.tree_util.keystr(path)
            raise ValueError(f"{leaf_name} has shape {shape}: it must lead with the batch dimensions {batch_shape}")


def check_step(
    step: Step, carry: Carry, tokens: Int[Array, "*B"], end_token: EndToken, copies: int | None = None
) -> jax.ShapeDtypeStruct:
    """Trace the step once and check its outputs, before anything is compiled; returns the logits' shape and dtype.

    ``copies`` is the number of copies that ``repeat_rows`` has made of each row.

    Raises:
        ValueError: a carry or logits of the wrong shape, first tokens or end tokens outside the vocabulary.
    """
    after, logits = _traced_step.eval_shape(as_partial(step), carry, tokens)
    if logits.shape[:-1] != tokens.shape or len(logits.shape) != len(tokens.shape) + 1:
        raise ValueError(f"step must return logits of shape {tokens.shape} + (V,), not {logits.shape}")
    vocab_size = logits.shape[-1]
    as_end_tokens(end_token, vocab_size)
    check_ids("first_tokens", tokens if copies is None else tokens[..., ::copies], vocab_size)
    was: Any = jax.tree.structure(carry)
    now: Any = jax.tree.structure(after)
    if was != now:
        raise ValueError(f"step must return a carry of the same structure: {was} became {now}")
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(carry)[0], jax.tree.leaves(after), strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            name = jax.tree_util.keystr(path) or "the carry"
            raise ValueError(f"step must keep {name} as {a.dtype}{a.shape}; it became {b.dtype}{b.shape}")
    return logits


def as_count(name: str, value: Count) -> int:
    """A number of tokens, rows or samples, of which there must be at least one, as a Python number.

    Raises:
        TypeError: it is traced, or not an integer.
        ValueError: it is below 1.
    """
    number = known_integer(name, value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, not {number}")
    return number


def check_context(carry: Carry, needed: int, request: str) -> None:
    """Check that the carry keeps enough earlier positions.

    A part of a carry that keeps a limited number of positions says so by a property ``context``: that number (``None``
    means that it never needs more than it has). How many positions the carry has read already is not known here;
    ``prefill`` counts its prompts.

    Raises:
        ValueError: ``needed`` earlier positions are more than some part's context.
    """
    context = min_context(carry)
    if context is not None and needed > context:
        raise ValueError(
            f"{request} looks {needed} positions back, but the carry keeps {context}: "
            f"make it with initial_carry(..., context={needed})"
        )


def min_context(carry: Carry) -> int | None:
    """The smallest number of earlier positions that a part of the carry keeps; None if no part has a bound."""

    def has_context(node: Any) -> bool:
        return isinstance(getattr(type(node), "context", None), property)

    parts = [part for part in jax.tree.leaves(carry, is_leaf=has_context) if has_context(part)]
    return min([part.context for part in parts if part.context is not None], default=None)


def as_token_ids(tokens: Sequence[int] | np.ndarray | Array | int, what: str = "tokens") -> Int[Array, "..."]:
    """Token ids as int32, whatever integer dtype they come in; ids beyond int32 stay out of range and do not wrap.

    Raises:
        TypeError: they are not integers.
    """
    ids = tokens if isinstance(tokens, Array) else np.asarray(tokens)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"{what} must be integers, not {ids.dtype}{ids.shape}")
    given, kept = jnp.iinfo(ids.dtype), jnp.iinfo(jnp.int32)
    if given.max > kept.max:
        ids = ids.clip(max(int(given.min), int(kept.min)), kept.max)
    return jnp.asarray(ids, jnp.int32)


def is_inside(shape: tuple[int, ...], lengths: Int[Array, "*B"]) -> Bool[Array, "*B T"]:
    """Which positions of an array of this shape ``[*B T]`` lie within the lengths."""
    return jnp.broadcast_to(jnp.arange(shape[-1], dtype=lengths.dtype), shape) < lengths[..., None]


def is_traced(tree: Any) -> bool:
    """Whether a leaf is traced: its buffer cannot be donated."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def as_arrays(carry: Carry) -> Carry:
    """The carry with its leaves, Python numbers too, as arrays."""
    return jax.tree.map(jnp.asarray, carry)


@jax.jit
def _traced_step(step: Partial, carry: Carry, tokens: Int[Array, "*B"]) -> tuple[Carry, Array]:
    """A step under ``jit``, which caches its output shapes."""
    return step(carry, tokens)


def _reads_padding(step: Partial) -> bool:
    """Whether the step takes ``live``: a step of a forward function, with a memory or mapped over rows too."""
    if step.func in (_call_with_memory, _vmapped_step):
        return _reads_padding(step.args[0])
    return step.func is _forward_one_token


def _forward_one_token(
    forward: AnyForward,
    carry: Carry,
    tokens: Int[Array, "*B"],
    *memory: Memory,
    live: Bool[Array, "*B"] | None = None,
) -> tuple[Carry, Logits]:
    ids = None
    if live is not None:
        document = document_ids(carry, tokens.shape)
        ids = jnp.where(live, document, jnp.zeros_like(document))[..., None]
    after, logits = forward(carry, tokens[..., None], ids, *memory)
    return after, logits[..., 0, :]


def _call_with_memory(function: Callable[..., Tree], memory: Memory, *arguments: Any, **live: Any) -> Tree:
    return function(*arguments, memory, **live)


def _vmapped_step(step: Step, carry: Carry, tokens: Int[Array, " R"], **live: Any) -> tuple[Carry, Logits]:
    return jax.vmap(step)(carry, tokens, **live)
