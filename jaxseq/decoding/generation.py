"""Greedy decoding, sampling and streaming, over a step function and any carry."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxseq.decoding.constraints import Rule, as_constraints, check_constraints
from jaxseq.decoding.end_tokens import EndToken, as_end_tokens
from jaxseq.decoding.filters import check_top_k
from jaxseq.decoding.generation_loop import (
    GenerationState,
    Sampler,
    generate_tokens_donating,
    generate_tokens_traced,
    init_state_donating,
    init_state_with_copy,
)
from jaxseq.decoding.options import SamplingOptions, active_filters
from jaxseq.decoding.step import (
    AnyStep,
    Count,
    Memory,
    as_arrays,
    as_count,
    as_token_ids,
    bind_memory,
    check_context,
    check_inputs,
    check_step,
    is_traced,
    repeat_leaves,
    repeat_rows,
)
from jaxseq.ops.keys import fold_in_each, threefry_keys
from jaxseq.typing import Array, Carry, Float, Int, Integer, Key


class Generation(NamedTuple):
    """Generated tokens, without the first tokens.

    Attributes:
        tokens: each row's tokens, padded with the first end token (0 without one).
        lengths: the number of tokens of each row, its end token included.
        log_probabilities: the sum over each row's tokens of the log softmax, in float32 at least, of the step's own
            logits, before constraints, temperature and filters. Minus infinity for a row that ended because
            constraints ruled out every token.
        sampling_log_probabilities: the same sum under the distribution that was drawn from, after constraints,
            temperature and filters. 0 for greedy decoding, which draws nothing.
        carry: the state from which decoding can continue: it has read the first token and every token of the row but
            the last one. Rows that ended early keep the carry of their end. (A row that ended because constraints ruled
            out every token cannot be continued: its carry may have read its last token too.)
        last_tokens: each row's last token, an end token included; the first token of a row without tokens.

    ``greedy(step, made.carry, made.last_tokens, ...)`` gives the tokens that a larger ``max_length`` would have given.
    Both log-probabilities are NaN in a row whose first token is outside the vocabulary (under ``jit``; else it is an
    error).
    """

    tokens: Int[Array, "*R L"]
    lengths: Int[Array, "*R"]
    log_probabilities: Float[Array, "*R"]
    sampling_log_probabilities: Float[Array, "*R"]
    carry: Carry
    last_tokens: Int[Array, "*R"]


def greedy(
    step: AnyStep,
    carry: Carry,
    first_tokens: Integer[np.ndarray | Array, "*B"],
    *,
    max_length: Count,
    end_token: EndToken = None,
    constraints: Sequence[Rule] = (),
    memory: Memory = None,
    donate_carry: bool = False,
) -> Generation:
    """Take the most probable token at every step, among equals that of the lowest id.

    Compiled once for a step function, its shapes, ``max_length`` and ``end_token``.

    Args:
        step: ``(carry, tokens) -> (carry, logits)``, or with a third argument if ``memory`` is given.
        carry: the state before the first tokens; its leaves lead with ``*B``.
        first_tokens: the first input of the step: the last token of a prompt whose other tokens are in the carry
            (``prefill``), or a start token. They are ids of the vocabulary that the logits are over.
        max_length: the largest number of tokens to generate.
        end_token: a row ends at this token, or at the first of several; ``None`` generates ``max_length`` tokens.
        constraints: rules that exclude tokens, change logits or end rows, see ``Rule``.
        memory: a constant input of the step, such as an encoded source; its leaves lead with ``*B``.
        donate_carry: let the loop overwrite the carry's arrays instead of a copy; they cannot be used afterwards.

    Raises:
        ValueError: max_length below 1 or beyond the carry's context, a first token or an end token outside the
            vocabulary, a constraint that nothing satisfies, a leaf of the carry or the memory that does not lead with
            ``*B``, or a step that changes its carry's shape or dtype.
    """
    first_tokens, carry = as_token_ids(first_tokens, "first_tokens"), as_arrays(carry)
    check_inputs(carry, memory, first_tokens.shape)
    bound = bind_memory(step, memory)
    generator = _start(bound, carry, first_tokens, None, constraints, max_length, end_token, donate_carry)
    return _generation(*generator.generate(generator.max_length))


def sample(
    step: AnyStep,
    carry: Carry,
    first_tokens: Integer[np.ndarray | Array, "*B"],
    options: SamplingOptions = SamplingOptions(),
    *,
    key: Key[Array, "..."],
    max_length: Count,
    end_token: EndToken = None,
    num_samples: Count | None = None,
    constraints: Sequence[Rule] = (),
    memory: Memory = None,
    donate_carry: bool = False,
) -> Generation:
    """Draw each token from the step's distribution, after constraints, temperature and filters in this order.

    A row's tokens depend on its own key alone: they are the same in any batch, and a larger ``max_length`` extends
    what a smaller one returns. Keys of every implementation can be used; each row's key, where it is not threefry
    (rbg), seeds a threefry key, because ``vmap`` over rbg keys would draw all rows by the first key. New values of the
    options and of constraints of the same shapes need no new compilation, except for ``top_k`` and for filters that
    were left out before (also by a temperature, top_p or typical_p of 1).

    Args:
        step, carry, first_tokens, max_length, end_token, constraints, memory, donate_carry: as for ``greedy``.
        options: temperature and filters.
        key: one typed key per row (shape ``*B``), or a single key, of which row i (in row-major order) gets
            ``jax.random.fold_in(key, i)``. Token t of a row is drawn with ``fold_in(row_key, t)``.
        num_samples: draw n sequences per row, ``[*B n ...]`` in the results (the carry too), and sample j of a row has
            the key ``fold_in(row_key, j)`` and the row's options; ``row_key`` is the threefry key here.

    Raises:
        ValueError: as ``greedy``; top_k above V, num_samples below 1, or keys of a wrong shape or kind.
    """
    first_tokens, carry = as_token_ids(first_tokens, "first_tokens"), as_arrays(carry)
    batch_shape = first_tokens.shape
    check_inputs(carry, memory, batch_shape)
    keys, filters = threefry_keys(row_keys(key, batch_shape)), active_filters(options, batch_shape)
    bound = bind_memory(step, memory)
    if num_samples is not None:
        num_samples = as_count("num_samples", num_samples)
        bound, carry, first_tokens = repeat_rows(step, carry, first_tokens, memory, num_samples)
        keys = fold_in_each(keys, num_samples).reshape(first_tokens.shape)
        filters = jax.tree.map(lambda x: repeat_leaves(x, x.ndim, num_samples) if x.ndim else x, filters)
        donate_carry = True
    sampler = Sampler(keys, filters)
    generator = _start(
        bound, carry, first_tokens, sampler, constraints, max_length, end_token, donate_carry, batch_shape, num_samples
    )
    generation = _generation(*generator.generate(generator.max_length))
    return generation if num_samples is None else _unflatten_rows(generation, (*batch_shape, num_samples))


def stream(
    step: AnyStep,
    carry: Carry,
    first_tokens: Integer[np.ndarray | Array, "*B"],
    options: SamplingOptions | None = None,
    *,
    key: Key[Array, "..."] | None = None,
    max_length: Count,
    end_token: EndToken = None,
    constraints: Sequence[Rule] = (),
    memory: Memory = None,
    donate_carry: bool = False,
    block_length: Count = 8,
) -> Iterator[Int[np.ndarray, "*B"]]:
    """Yield the tokens of ``sample``, or without a key of ``greedy``, one ``[*B]`` array at a time.

    One compiled loop generates ``block_length`` tokens at a time. The iterator ends when every row has ended. A row
    that ended because constraints ruled out every token yields the first end token (0 without one), as after an end.

    Args:
        step, carry, first_tokens, key, max_length, end_token, constraints, memory, donate_carry: as for ``sample``.
        options: temperature and filters; ``None`` is ``SamplingOptions()``.
        block_length: the number of tokens that are generated before the first of them is yielded.

    Raises:
        ValueError: at the call, not at the first token: as ``sample``; a block length below 1, or options without a
            key.
    """
    block_length, first_tokens, carry = (
        as_count("block_length", block_length),
        as_token_ids(first_tokens, "first_tokens"),
        as_arrays(carry),
    )
    check_inputs(carry, memory, first_tokens.shape)
    sampler = make_sampler(options, key, first_tokens.shape)
    bound = bind_memory(step, memory)
    generator = _start(bound, carry, first_tokens, sampler, constraints, max_length, end_token, donate_carry)

    def blocks() -> Iterator[Int[np.ndarray, "*B"]]:
        num_generated = 0
        while num_generated < generator.max_length:
            state, tokens = generator.generate(block_length)
            position, block, done = jax.device_get((state.position, tokens, state.done))
            yield from np.moveaxis(block, -1, 0)[: int(position) - num_generated]
            num_generated = int(position)
            if done.all():
                return

    return blocks()


def make_sampler(
    options: SamplingOptions | None, key: Key[Array, "..."] | None, batch_shape: tuple[int, ...]
) -> Sampler | None:
    """The sampler of options and key; None, for greedy decoding, without a key.

    Raises:
        ValueError: options without a key, or keys of a wrong shape or kind.
    """
    if key is not None:
        filters = active_filters(SamplingOptions() if options is None else options, batch_shape)
        return Sampler(threefry_keys(row_keys(key, batch_shape)), filters)
    if options is not None:
        raise ValueError(f"sampling needs a key: without one decoding is greedy, and takes no {options}")
    return None


class _Generator:
    """Generates tokens block by block; holds the state between the blocks."""

    def __init__(
        self,
        state: GenerationState,
        step: Partial,
        sampler: Sampler | None,
        constraints: tuple[Rule, ...],
        max_length: int,
        end_tokens: tuple[int, ...],
    ) -> None:
        self._state, self._inputs = state, (step, sampler, constraints)
        self.max_length, self._limit, self._end_tokens = max_length, jnp.asarray(max_length, jnp.int32), end_tokens

    def generate(self, length: int) -> tuple[GenerationState, Int[Array, "*B L"]]:
        """Up to ``length`` more tokens, and the state after them, which the next call overwrites."""
        generate_tokens = generate_tokens_traced if is_traced((self._inputs, self._state)) else generate_tokens_donating
        self._state, tokens = generate_tokens(
            *self._inputs, self._state, self._limit, length=length, end_tokens=self._end_tokens
        )
        return self._state, tokens


def _start(
    step: Partial,
    carry: Carry,
    first_tokens: Int[Array, "*B"],
    sampler: Sampler | None,
    constraints: Sequence[Rule],
    max_length: Count,
    end_token: EndToken,
    donate_carry: bool,
    batch_shape: tuple[int, ...] | None = None,
    copies: int | None = None,
) -> _Generator:
    """Check the arguments and make the state before the first token."""
    rules, max_length = as_constraints(constraints), check_max_length(carry, max_length)
    logits = check_step(step, carry, first_tokens, end_token, copies)
    if sampler is not None and sampler.options.top_k is not None:
        check_top_k(sampler.options.top_k, logits.shape[-1])
    check_constraints(rules, logits.shape[-1], max_length, end_token)
    donate_carry = donate_carry and not is_traced(carry)
    init_state = init_state_donating if donate_carry else init_state_with_copy
    state = init_state(
        _without_shared_arrays(carry) if donate_carry else carry,
        first_tokens,
        rules,
        dtype=jnp.dtype(logits.dtype),
        vocab_size=logits.shape[-1],
        max_length=max_length,
        batch_shape=first_tokens.shape if batch_shape is None else batch_shape,
        copies=copies,
    )
    return _Generator(state, step, sampler, rules, max_length, as_end_tokens(end_token))


def _without_shared_arrays(carry: Carry) -> Carry:
    """Copy arrays that stand in several places of the carry, as in a fresh one: an array can be donated only once."""
    seen: set[int] = set()
    leaves, structure = jax.tree.flatten(carry)
    for i, leaf in enumerate(leaves):
        leaves[i] = jnp.copy(leaf) if id(leaf) in seen else leaf
        seen.add(id(leaf))
    return jax.tree.unflatten(structure, leaves)


def _generation(state: GenerationState, tokens: Int[Array, "*B L"]) -> Generation:
    sums = state.log_probabilities, state.sampling_log_probabilities
    return Generation(tokens, state.lengths, *sums, state.carry, state.tokens)


@partial(jax.jit, static_argnames="rows")
def _unflatten_rows(generation: Generation, rows: tuple[int, ...]) -> Generation:
    """Give the rows made by ``repeat_rows`` a dimension of their own: ``rows`` is ``(*B, n)``."""
    num_dims = max(len(rows) - 1, 1)
    return jax.tree.map(lambda x: x.reshape(*rows, *x.shape[num_dims:]), generation)


def check_max_length(carry: Carry, max_length: Count) -> int:
    """Check the number of tokens to generate, and give it as a Python number.

    Raises:
        ValueError: it is below 1, or beyond the carry's context.
    """
    number = as_count("max_length", max_length)
    check_context(carry, number - 1, f"max_length={number}")
    return number


def row_keys(key: Key[Array, "..."], batch_shape: tuple[int, ...]) -> Key[Array, "*B"]:
    """A key for each row: the given ones, or ``fold_in(key, i)`` of a single one.

    Raises:
        ValueError: not typed keys, or neither one key nor one per row.
    """
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise ValueError(f"key must be a typed key (jax.random.key), not {key!r}")
    if key.shape not in ((), batch_shape):
        raise ValueError(f"key must be a single key or one for each row, {batch_shape}, not {key.shape}")
    if key.shape == batch_shape:
        return key
    return fold_in_each(key, math.prod(batch_shape)).reshape(batch_shape)
