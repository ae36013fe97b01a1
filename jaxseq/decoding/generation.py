"""Greedy decoding, sampling and streaming: over a step function and any carry, never a model."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxseq.decoding.constraints import Constraint, as_constraints, check_constraints
from jaxseq.decoding.filters import Filters, Static, check_top_k
from jaxseq.decoding.loop import Sampler, State, advance, begin_copied, begin_donated
from jaxseq.decoding.step import (
    Step,
    as_arrays,
    as_tokens,
    check_room,
    check_rows,
    check_step,
    repeated_rows,
    with_memory,
)
from jaxseq.typing import Array, Carry, Float, Int, Integer, Key

TINY = float(np.finfo(np.float32).tiny)


class Generation(NamedTuple):
    """What was generated, the first tokens not among it.

    ``lengths`` counts the tokens of each row, its end token too; behind them stand end tokens only (0 without one).
    ``log_probabilities`` are exact: the sum of the log softmax (in float32 at least) of the step's own logits,
    before constraints, temperature and filters, over each row's tokens. ``sampling_log_probabilities`` are those of
    the distribution that was drawn from, behind all of these (0 for greedy decoding, which draws nothing). A row that
    constraints left no token ends there, and both are minus infinity.
    """

    tokens: Int[Array, "*R L"]
    lengths: Int[Array, "*R"]
    log_probabilities: Float[Array, "*R"]
    sampling_log_probabilities: Float[Array, "*R"]


def greedy(
    step: Step,
    carry: Carry,
    first_tokens: Integer[np.ndarray | Array, "*B"],
    *,
    max_length: int,
    end_token: int | None = None,
    constraints: Sequence[Constraint] = (),
    memory: Any = None,
    donate_carry: bool = False,
) -> Generation:
    """The most probable token again and again, of equals that of the lowest id.

    ``first_tokens`` are what the step reads first: the last token of a prompt whose others are in the carry
    (``prefill``), or a start token. It ends at the end token or at ``max_length``. Compiled once for a step
    function, its shapes, ``max_length`` and ``end_token`` (see ``step.py``). The loop works on a copy of the carry,
    which it overwrites in place; with ``donate_carry`` on the carry itself, which is gone then.

    Raises:
        ValueError: max_length below 1 or beyond the carry's context, an end token outside the vocabulary, a
            constraint that nothing satisfies, or a step that changes its carry's shape.
    """
    step, first_tokens = with_memory(step, memory), as_tokens(first_tokens)
    run = _begin(step, carry, first_tokens, None, constraints, max_length, end_token, donate_carry)
    return _generation(*run(max_length))


def sample(
    step: Step,
    carry: Carry,
    first_tokens: Integer[np.ndarray | Array, "*B"],
    *,
    key: Key[Array, "..."],
    max_length: int,
    end_token: int | None = None,
    num_samples: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    typical_p: float | None = None,
    constraints: Sequence[Constraint] = (),
    memory: Any = None,
    donate_carry: bool = False,
) -> Generation:
    """Draw each token from the model's distribution under constraints and filters.

    Constraints come first, then temperature, top-k, top-p, min-p, typical-p in this order, each on what the ones before
    have left, renormalised (``filtered``).

    ``key`` is one key for each row (shape ``*B``), or a single one, of which row i (counted in row-major order) gets
    ``jax.random.fold_in(key, i)``. Token t of a row is drawn with ``fold_in(row_key, t)``: a row gets what it would
    get alone with its key, and a longer ``max_length`` goes on where a shorter one ended. With ``num_samples`` n
    everything returned is ``[*B n ...]``, and sample j of a row has the key ``fold_in(row_key, j)``. New
    temperatures, p and constraints of the same shapes need no new compilation (1 leaves a filter out).

    Raises:
        ValueError: as ``greedy``; a temperature not above 0, top_k outside [1, V], a p outside (0, 1], num_samples
            below 1, or keys of a wrong shape or kind.
    """
    filters = make_filters(temperature, top_k, top_p, min_p, typical_p)
    first_tokens, carry = as_tokens(first_tokens), as_arrays(carry)
    batch_shape = first_tokens.shape
    keys = row_keys(key, batch_shape)
    if num_samples is None:
        step = with_memory(step, memory)
    else:
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, not {num_samples}")
        check_rows((carry, memory), batch_shape, "(carry, memory)")
        step, carry, first_tokens = repeated_rows(step, carry, first_tokens, memory, num_samples)
        each = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys.reshape(-1), jnp.arange(num_samples))
        keys = each.reshape(first_tokens.shape)
        donate_carry = True
    sampler = Sampler(keys, filters)
    run = _begin(
        step, carry, first_tokens, sampler, constraints, max_length, end_token, donate_carry, batch_shape, num_samples
    )
    made = _generation(*run(max_length))
    if num_samples is None:
        return made
    rows = (*batch_shape, num_samples)
    return Generation(*(x.reshape(*rows, *x.shape[first_tokens.ndim :]) for x in made))


def stream(
    step: Step,
    carry: Carry,
    first_tokens: Integer[np.ndarray | Array, "*B"],
    *,
    max_length: int,
    key: Key[Array, "..."] | None = None,
    end_token: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    typical_p: float | None = None,
    constraints: Sequence[Constraint] = (),
    memory: Any = None,
    donate_carry: bool = False,
    block_length: int = 8,
) -> Iterator[Int[np.ndarray, "*B"]]:
    """The tokens of ``sample`` (of ``greedy`` without a key) as they come, one ``[*B]`` array at a time.

    They are made ``block_length`` at a time by one compiled loop. It ends when every row has ended. A row that
    constraints left no token shows an end token (0 without one), as behind an end.

    Raises:
        ValueError: at once, as ``sample``; a block length below 1.
    """
    if block_length < 1:
        raise ValueError(f"block_length must be at least 1, not {block_length}")
    filters = make_filters(temperature, top_k, top_p, min_p, typical_p)
    if key is None and any(value is not None for value in filters):
        raise ValueError("temperature and filters ask for a key: without one, stream decodes greedily")
    step, first_tokens = with_memory(step, memory), as_tokens(first_tokens)
    sampler = None if key is None else Sampler(row_keys(key, first_tokens.shape), filters)
    run = _begin(step, carry, first_tokens, sampler, constraints, max_length, end_token, donate_carry)

    def blocks() -> Iterator[Int[np.ndarray, "*B"]]:
        made = 0
        while made < max_length:
            state, tokens = run(block_length)
            position, block, done = jax.device_get((state.position, tokens, state.done))
            yield from np.moveaxis(block, -1, 0)[: int(position) - made]
            made = int(position)
            if done.all():
                return

    return blocks()


class _Run:
    """Decoding that has begun: each call makes some tokens more."""

    def __init__(self, state: State, *before: Any, limit: int, end_token: int | None) -> None:
        self._state, self._before = state, before
        self._limit, self._end_token = jnp.asarray(limit, jnp.int32), end_token

    def __call__(self, length: int) -> tuple[State, Int[Array, "*B L"]]:
        self._state, tokens = advance(*self._before, self._state, self._limit, length=length, end_token=self._end_token)
        return self._state, tokens


def _begin(
    step: Partial,
    carry: Carry,
    first_tokens: Int[Array, "*B"],
    sampler: Sampler | None,
    constraints: Sequence[Constraint],
    max_length: int,
    end_token: int | None,
    donate_carry: bool,
    batch_shape: tuple[int, ...] | None = None,
    copies: int | None = None,
) -> _Run:
    carry, constraints = as_arrays(carry), as_constraints(constraints)
    check_max_length(carry, max_length)
    logits = check_step(step, carry, first_tokens, end_token)
    if sampler is not None and sampler.filters.top_k is not None:
        check_top_k(sampler.filters.top_k.value, logits.shape[-1])
    check_constraints(constraints, logits.shape[-1], max_length, end_token)
    start = begin_donated if donate_carry else begin_copied
    carry = _distinct(carry) if donate_carry else carry
    batch_shape = first_tokens.shape if batch_shape is None else batch_shape
    sizes = {"dtype": jnp.dtype(logits.dtype), "max_length": max_length, "batch_shape": batch_shape, "copies": copies}
    state = start(carry, first_tokens, constraints, **sizes)
    return _Run(state, step, sampler, constraints, limit=max_length, end_token=end_token)


def _distinct(carry: Carry) -> Carry:
    """A fresh carry may have one array in several places; it can be donated only once."""
    seen: set[int] = set()
    leaves, structure = jax.tree.flatten(carry)
    for i, leaf in enumerate(leaves):
        leaves[i] = jnp.copy(leaf) if id(leaf) in seen else leaf
        seen.add(id(leaf))
    return jax.tree.unflatten(structure, leaves)


def _generation(state: State, tokens: Int[Array, "*B L"]) -> Generation:
    return Generation(tokens, state.lengths, state.log_probabilities, state.sampling_log_probabilities)


def check_max_length(carry: Carry, max_length: int) -> None:
    """Refuse a length below 1, or one that the carry has no room for.

    Raises:
        ValueError: see there.
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, not {max_length}")
    check_room(carry, max_length - 1, f"max_length={max_length}")


def make_filters(
    temperature: float, top_k: int | None, top_p: float | None, min_p: float | None, typical_p: float | None
) -> Filters:
    """The filters as arrays, those that change nothing left out.

    Raises:
        ValueError: a temperature not above 0, or a p outside (0, 1].
    """
    if temperature == 0:
        raise ValueError("temperature 0 is the most probable token always: use greedy")
    if not TINY <= temperature < float("inf"):
        raise ValueError(f"temperature must be above 0, not {temperature}, and finite")
    for name, p in (("top_p", top_p), ("min_p", min_p), ("typical_p", typical_p)):
        if p is not None and not TINY <= p <= 1:
            raise ValueError(f"{name} must lie in (0, 1], not {p}")
    number = lambda value, nothing: None if value in (None, nothing) else jnp.asarray(value, float)  # noqa: E731
    return Filters(
        number(temperature, 1),
        None if top_k is None else Static(top_k),
        number(top_p, 1),
        number(min_p, None),
        number(typical_p, 1),
    )


def row_keys(key: Key[Array, "..."], batch_shape: tuple[int, ...]) -> Key[Array, "*B"]:
    """A key for each row: the given ones, or ``fold_in(key, i)`` of a single one.

    Raises:
        ValueError: not typed keys, or as many as there are no rows.
    """
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise ValueError(f"key must be a typed key (jax.random.key), not {key!r}")
    if key.shape not in ((), batch_shape):
        raise ValueError(f"key must be a single key or one for each row, {batch_shape}, not {key.shape}")
    if key.shape == batch_shape:
        return key
    rows = jnp.arange(int(np.prod(batch_shape)))
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows).reshape(batch_shape)
