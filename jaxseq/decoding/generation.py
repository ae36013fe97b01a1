"""Greedy decoding, sampling and streaming: over a step function and any carry, never a model."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.decoding.loop import Sampler, State, Step, advance, as_step, begin
from jaxseq.typing import Array, Carry, Float, Int, Key


class Generation(NamedTuple):
    """What was generated, the first tokens not among it.

    ``lengths`` counts the tokens of each row, its end token too; behind them stand end tokens only.
    ``log_probabilities`` are exact: the sum of the log softmax (in float32 at least) of the step's own
    logits, before temperature and filters, over each row's tokens.
    """

    tokens: Int[Array, "*B L"]
    lengths: Int[Array, "*B"]
    log_probabilities: Float[Array, "*B"]


def greedy(
    step: Step,
    carry: Carry,
    first_tokens: Int[Array, "*B"],
    *,
    max_length: int,
    end_token: int | None = None,
) -> Generation:
    """The most probable token again and again, of equals that of the lowest id.

    ``first_tokens`` are what the step reads first: the last token of a prompt whose others are in the
    carry, or a start token. It ends at the end token or at ``max_length``. Compiled once for a step
    function, its shapes, ``max_length`` and ``end_token`` (see ``loop.py``).

    Raises:
        ValueError: max_length below 1, an end token outside the vocabulary, or a step that changes its
        carry's shape.
    """
    return _generate(step, carry, first_tokens, None, max_length, end_token, None)


def sample(
    step: Step,
    carry: Carry,
    first_tokens: Int[Array, "*B"],
    *,
    key: Key[Array, "..."],
    max_length: int,
    end_token: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Generation:
    """Draw each token from softmax(logits / temperature), kept to the top k, then to the nucleus p of those.

    ``key`` is one key for each row (shape ``*B``), or a single one, of which row i (counted in row-major
    order) gets ``jax.random.fold_in(key, i)``. Token t of a row is drawn with ``fold_in(row_key, t)``: a
    row gets what it would get alone with its key, and a longer ``max_length`` goes on where a shorter one
    ended. ``log_probabilities`` are the model's, not those of the filtered distribution. New temperatures
    and p need no new compilation.

    Raises:
        ValueError: as ``greedy``; a temperature not above 0, top_k outside [1, V], top_p outside (0, 1], or
        keys of a
            wrong shape or kind.
    """
    sampler = _sampler(jnp.asarray(first_tokens), key, temperature, top_p)
    return _generate(step, carry, first_tokens, sampler, max_length, end_token, top_k)


def stream(
    step: Step,
    carry: Carry,
    first_tokens: Int[Array, "*B"],
    *,
    max_length: int,
    key: Key[Array, "..."] | None = None,
    end_token: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    block_length: int = 8,
) -> Iterator[Int[np.ndarray, "*B"]]:
    """The tokens of ``sample`` (of ``greedy`` without a key) as they come, one ``[*B]`` array at a time.

    They are made ``block_length`` at a time by one compiled loop. It ends when every row has ended.

    Raises:
        ValueError: at once, as ``sample``; a block length below 1.
    """
    if block_length < 1:
        raise ValueError(f"block_length must be at least 1, not {block_length}")
    if key is None and (temperature != 1.0 or top_k is not None or top_p is not None):
        raise ValueError("temperature, top_k and top_p ask for a key: without one, stream decodes greedily")
    first_tokens = jnp.asarray(first_tokens)
    sampler = None if key is None else _sampler(first_tokens, key, temperature, top_p)
    state = _begin(step, carry, first_tokens, max_length, end_token, top_k)

    def blocks(state: State) -> Iterator[Int[np.ndarray, "*B"]]:
        made = 0
        while made < max_length:
            state, tokens = advance(
                as_step(step),
                sampler,
                state,
                jnp.asarray(max_length, jnp.int32),
                length=block_length,
                end_token=end_token,
                top_k=top_k,
            )
            position, block = jax.device_get((state.position, tokens))
            yield from np.moveaxis(block, -1, 0)[: int(position) - made]
            if int(position) < min(made + block_length, max_length) or bool(np.all(state.done)):
                return
            made = int(position)

    return blocks(state)


def _generate(
    step: Step,
    carry: Carry,
    first_tokens: Int[Array, "*B"],
    sampler: Sampler | None,
    max_length: int,
    end_token: int | None,
    top_k: int | None,
) -> Generation:
    state, tokens = advance(
        as_step(step),
        sampler,
        _begin(step, carry, first_tokens, max_length, end_token, top_k),
        jnp.asarray(max_length, jnp.int32),
        length=max_length,
        end_token=end_token,
        top_k=top_k,
    )
    return Generation(tokens, state.lengths, state.log_probabilities)


def _begin(
    step: Step,
    carry: Carry,
    first_tokens: Int[Array, "*B"],
    max_length: int,
    end_token: int | None,
    top_k: int | None,
) -> State:
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, not {max_length}")
    return begin(as_step(step), carry, jnp.asarray(first_tokens), end_token=end_token, top_k=top_k)


def _sampler(
    first_tokens: Int[Array, "*B"], key: Key[Array, "..."], temperature: float, top_p: float | None
) -> Sampler:
    if temperature == 0:
        raise ValueError("temperature 0 is the most probable token always: use greedy")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be above 0, not {temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], not {top_p}")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"key must be a typed key (jax.random.key), not {key.dtype}{key.shape}")
    shape = first_tokens.shape
    if key.shape not in ((), shape):
        raise ValueError(f"key must be a single key or one for each row, {shape}, not {key.shape}")
    if key.shape != shape:
        rows = jnp.arange(first_tokens.size)
        key = jax.vmap(jax.random.fold_in, (None, 0))(key, rows).reshape(shape)
    return Sampler(
        key,
        None if temperature == 1 else jnp.asarray(temperature, float),
        None if top_p is None or top_p == 1 else jnp.asarray(top_p, float),
    )
