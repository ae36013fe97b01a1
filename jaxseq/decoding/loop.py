"""The loop that greedy decoding, sampling and streaming share: one compiled ``while_loop`` over a step.

    step(carry, tokens [*B]) -> (carry, logits [*B V])

A step may be any function; as a ``jax.tree_util.Partial`` its bound arguments (the parameters) travel as
arrays, so that new parameters, or a new Partial of the same function, need no new compilation:

    step = jax.tree_util.Partial(step_function, params)     # step_function(params, carry, tokens)

A plain closure has its arrays compiled in, and each new closure is compiled anew.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.decoding.filters import filtered
from jaxseq.typing import Array, Bool, Carry, DType, Float, Int, Key, Logits, Scalar

Step: TypeAlias = Callable[..., Any]


class Sampler(NamedTuple):
    """What a draw depends on: a key for each row, and the filters' parameters (``None``: left out)."""

    keys: Key[Array, "*B"]
    temperature: Scalar | None
    top_p: Scalar | None


class State(NamedTuple):
    """Where decoding stands: how many tokens were made, and what the next one depends on."""

    position: Int[Array, ""]
    carry: Carry
    tokens: Int[Array, "*B"]
    done: Bool[Array, "*B"]
    lengths: Int[Array, "*B"]
    log_probabilities: Float[Array, "*B"]


def as_step(step: Step) -> jax.tree_util.Partial:
    """The step as a pytree: its function is compared by identity, its bound arguments are arrays."""
    return step if isinstance(step, jax.tree_util.Partial) else jax.tree_util.Partial(step)


def check(
    step: Step, carry: Carry, tokens: Int[Array, "*B"], end_token: int | None, top_k: int | None
) -> jax.ShapeDtypeStruct:
    """Refuse what cannot be decoded, before anything is compiled; gives the logits' shape and dtype.

    Raises:
        ValueError: a carry or logits of the wrong shape, or an end token or top_k outside the vocabulary.
    """
    after, logits = jax.eval_shape(step, carry, tokens)
    if logits.shape[:-1] != tokens.shape or len(logits.shape) != len(tokens.shape) + 1:
        raise ValueError(f"step must give logits of shape {tokens.shape} + (V,), not {logits.shape}")
    vocab_size = logits.shape[-1]
    if end_token is not None and not 0 <= end_token < vocab_size:
        raise ValueError(f"end_token {end_token} outside the vocabulary of {vocab_size}")
    if top_k is not None and not 1 <= top_k <= vocab_size:
        raise ValueError(f"top_k must lie in [1, {vocab_size}] (the vocabulary), not {top_k}")
    was: Any = jax.tree.structure(carry)
    now: Any = jax.tree.structure(after)
    if was != now:
        raise ValueError(f"step must give back a carry of the same structure: {was} became {now}")
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(carry)[0], jax.tree.leaves(after), strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            name = jax.tree_util.keystr(path) or "the carry"
            raise ValueError(f"step must keep {name} as {a.dtype}{a.shape}; it became {b.dtype}{b.shape}")
    return logits


@partial(jax.jit, static_argnames=("end_token", "top_k"))
def begin(
    step: Step, carry: Carry, first_tokens: Int[Array, "*B"], *, end_token: int | None, top_k: int | None
) -> State:
    """The state before the first token is made."""
    logits = check(step, carry, first_tokens, end_token, top_k)
    return State(
        position=jnp.zeros((), jnp.int32),
        carry=carry,
        tokens=first_tokens,
        done=jnp.zeros(first_tokens.shape, bool),
        lengths=jnp.zeros(first_tokens.shape, jnp.int32),
        log_probabilities=jnp.zeros(first_tokens.shape, _at_least_float32(logits.dtype)),
    )


@partial(jax.jit, static_argnames=("length", "end_token", "top_k"))
def advance(
    step: Step,
    sampler: Sampler | None,
    state: State,
    limit: Int[Array, ""],
    *,
    length: int,
    end_token: int | None,
    top_k: int | None,
) -> tuple[State, Int[Array, "*B L"]]:
    """Make up to ``length`` tokens more, up to position ``limit``; stops as soon as every row has ended.

    What is not made is the end token (0 without one).
    """
    start = state.position
    fill = 0 if end_token is None else end_token
    buffer = jnp.full((*state.tokens.shape, length), fill, state.tokens.dtype)
    stop = jnp.minimum(start + length, limit)

    def goes_on(loop: tuple[State, Array]) -> Array:
        now, _ = loop
        return (now.position < stop) & ~jnp.all(now.done)

    def body(loop: tuple[State, Array]) -> tuple[State, Array]:
        now, made = loop
        after = _next(step, sampler, now, end_token=end_token, top_k=top_k)
        made = lax.dynamic_update_index_in_dim(made, after.tokens, now.position - start, axis=-1)
        return after, made

    return lax.while_loop(goes_on, body, (state, buffer))


def _at_least_float32(dtype: DType) -> DType:
    return dtype if jnp.dtype(dtype).itemsize >= 4 else jnp.float32


def _next(step: Step, sampler: Sampler | None, state: State, *, end_token: int | None, top_k: int | None) -> State:
    """One token more in every row; a row that has ended gets end tokens, which count for nothing."""
    carry, logits = step(state.carry, state.tokens)
    logits = logits.astype(state.log_probabilities.dtype)
    chosen = _chosen(logits, sampler, state.position, top_k)
    scores = jax.nn.log_softmax(logits, axis=-1)
    gained = jnp.take_along_axis(scores, chosen[..., None], axis=-1)[..., 0]
    chosen = chosen.astype(state.tokens.dtype)
    done = state.done
    if end_token is not None:
        chosen = jnp.where(state.done, jnp.asarray(end_token, chosen.dtype), chosen)
        done = state.done | (chosen == end_token)
    return State(
        position=state.position + 1,
        carry=carry,
        tokens=chosen,
        done=done,
        lengths=state.lengths + (~state.done).astype(jnp.int32),
        log_probabilities=state.log_probabilities + jnp.where(state.done, jnp.zeros_like(gained), gained),
    )


def _chosen(logits: Logits, sampler: Sampler | None, position: Int[Array, ""], top_k: int | None) -> Int[Array, "*B"]:
    if sampler is None:
        return jnp.argmax(logits, axis=-1)
    kept = filtered(logits, temperature=sampler.temperature, top_k=top_k, top_p=sampler.top_p)
    drawn = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, position), row))(
        sampler.keys.reshape(-1), kept.reshape(-1, kept.shape[-1])
    )
    return drawn.reshape(logits.shape[:-1])
