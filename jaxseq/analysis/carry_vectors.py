"""The float leaves of a carry as one vector, and single steps of a core as functions of that vector."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.typing import Array, Carry, Float


@runtime_checkable
class CoreFunction(Protocol):
    """A core with its parameters bound, ``functools.partial(core.apply, variables)``: ``(carry, xs) -> (carry, ys)``.

    One position is an input of length one. Without batch dimensions ``xs`` is ``[T D]`` and ``ys`` is ``[T F]``.
    """

    def __call__(self, carry: Carry, xs: Array, /) -> tuple[Carry, Array]:
        """Continues from ``carry`` over ``xs``."""
        ...


def float_leaves(carry: Carry) -> list[Array]:
    """The floating-point and complex leaves of a carry, in the order of ``jax.tree.leaves``."""
    return [leaf for leaf in jax.tree.leaves(carry) if _is_float(leaf)]


def with_float_leaves(carry: Carry, leaves: list[Array]) -> Carry:
    """The carry with its float leaves replaced; the other leaves (positions, ids of documents) stay."""
    rest = iter(leaves)
    return jax.tree.map(lambda leaf: next(rest) if _is_float(leaf) else leaf, carry)


def carry_vector(carry: Carry) -> Float[Array, " C"]:
    """The float leaves of one sequence's carry, raveled and concatenated.

    A complex leaf gives its real parts, then its imaginary parts. The vector is float64 if a leaf is, else float32.

    Raises:
        ValueError: the carry has no float leaf, or none with an element.
    """
    parts: list[Array] = []
    for leaf in map(jnp.asarray, float_leaves(carry)):
        parts += [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]
    if not sum(part.size for part in parts):
        found = ", ".join(f"{jnp.result_type(leaf)}{jnp.shape(leaf)}" for leaf in jax.tree.leaves(carry)) or "nothing"
        raise ValueError(f"the carry has no floating-point numbers to differentiate by; it holds {found}")
    wide = any(part.dtype == jnp.float64 for part in parts)
    return jnp.concatenate([part.ravel().astype(jnp.float64 if wide else jnp.float32) for part in parts])


def with_carry_vector(carry: Carry, vector: Float[Array, " C"]) -> Carry:
    """The carry with its float leaves taken from a vector, the inverse of ``carry_vector``; other leaves stay.

    Raises:
        ValueError: the vector's length is not that of ``carry_vector(carry)``.
    """
    size = carry_vector(carry).size
    if vector.shape != (size,):
        raise ValueError(f"the vector of this carry has shape {(size,)}, not {vector.shape}")
    leaves, at = [], 0
    for leaf in map(jnp.asarray, float_leaves(carry)):
        parts = []
        for _ in range(2 if jnp.iscomplexobj(leaf) else 1):
            parts.append(vector[at : at + leaf.size].reshape(leaf.shape))
            at += leaf.size
        leaves.append((lax.complex(*parts) if len(parts) == 2 else parts[0]).astype(leaf.dtype))
    return with_float_leaves(carry, leaves)


def check_one_sequence(core: CoreFunction, carry: Carry, xs: Array) -> None:
    """Check that a core, its carry and its input are those of one sequence that can be read step by step.

    Raises:
        ValueError: inputs that are not ``[T D]`` with ``T >= 1``, a carry with batch dimensions, without float leaves
            or without the room for T positions, or one whose structure, shapes or dtypes a step changes.
    """
    if jnp.ndim(xs) != 2 or not jnp.shape(xs)[0]:
        raise ValueError(f"inputs of one sequence, [T D] with T >= 1, are needed, not {jnp.shape(xs)}; use jax.vmap")
    carry_vector(carry)
    for path, leaf in jax.tree.leaves_with_path(carry):
        if jax.tree_util.keystr(path[-1:]) == ".segment_id" and jnp.ndim(leaf):
            raise ValueError(
                f"the carry has batch dimensions {jnp.shape(leaf)}, but one sequence is needed, initial_carry(()); "
                f"use jax.vmap for a batch"
            )
    check_steps(core, carry, xs)


def check_steps(core: CoreFunction, carry: Carry, xs: Array) -> None:
    """Check that a carry has the room for the input's positions, and that a step returns a carry of its own kind.

    Raises:
        ValueError: it has not, or does not.
    """
    needed = jnp.shape(xs)[-2] - 1
    for part in jax.tree.leaves(carry, is_leaf=_has_context):
        if _has_context(part) and part.context is not None and part.context < needed:
            raise ValueError(
                f"{needed + 1} positions are read one by one, but the carry keeps {part.context}: "
                f"make it with initial_carry(..., context={needed})"
            )
    after, _ = jax.eval_shape(core, carry, jax.ShapeDtypeStruct((*xs.shape[:-2], 1, xs.shape[-1]), xs.dtype))
    before = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, carry))
    kinds: list[Any] = [jax.tree.map(lambda leaf: f"{leaf.dtype}{leaf.shape}", tree) for tree in (before, after)]
    structures: list[Any] = [jax.tree.structure(tree) for tree in (before, after)]
    if kinds[0] != kinds[1] or structures[0] != structures[1]:
        raise ValueError(f"a step turns the carry {kinds[0]} into {kinds[1]}: structure, shapes and dtypes must stay")


def step_carries(core: CoreFunction, carry: Carry, xs: Array) -> tuple[Carry, Carry, Array]:
    """Reads ``xs[*B T D]`` one position at a time.

    Returns:
        The carry before each position, with a leading axis T on every leaf; the last carry; the outputs ``[*B T F]``.
    """

    def step(before: Carry, x: Array) -> tuple[Carry, tuple[Carry, Array]]:
        after, y = core(before, x[..., None, :])
        return after, (before, y[..., 0, :])

    carry = jax.tree.map(jnp.asarray, carry)
    last, (before, ys) = lax.scan(step, carry, jnp.moveaxis(xs, -2, 0))
    return before, last, jnp.moveaxis(ys, 0, -2)


def push_tangents(core: CoreFunction, before: Carry, x: Float[Array, " D"], tangents: Float[Array, "K C"]) -> Array:
    """``v_k -> J v_k`` for the Jacobian J of one step's carry by the carry before it."""
    vector = carry_vector(before)
    function = _step_of_vector(core, before, x)
    return jax.vmap(lambda tangent: jax.jvp(function, (vector,), (tangent,))[1])(tangents)


def pull_cotangents(core: CoreFunction, before: Carry, x: Float[Array, " D"], cotangents: Float[Array, "K C"]) -> Array:
    """``u_k -> J^T u_k`` for the Jacobian J of one step's carry by the carry before it."""
    _, pullback = jax.vjp(_step_of_vector(core, before, x), carry_vector(before))
    return jax.vmap(lambda cotangent: pullback(cotangent)[0])(cotangents)


def stable_norm(values: Array, axis: int | tuple[int, ...] | None = None) -> Array:
    """The Euclidean norm without overflow or underflow of the squares: exactly zero only where all values are zero."""
    sizes = jnp.abs(values)
    largest = jnp.max(sizes, axis, keepdims=True, initial=0)
    scale = jnp.where((largest == 0) | jnp.isinf(largest), jnp.ones_like(largest), largest)
    return jnp.squeeze(scale, axis) * jnp.sqrt(jnp.sum(jnp.square(sizes / scale), axis))


def _step_of_vector(core: CoreFunction, before: Carry, x: Float[Array, " D"]) -> Any:
    return lambda vector: carry_vector(core(with_carry_vector(before, vector), x[None])[0])


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _has_context(node: Any) -> bool:
    return isinstance(getattr(type(node), "context", None), property)
