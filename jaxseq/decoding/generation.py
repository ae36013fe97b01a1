"""Greedy decoding, sampling and streaming, over a step function and any carry."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxseq.decoding.constraints import Rule, as_constraints, check_constraints
from jaxseq.decoding.filters import check_top_k
from jaxseq.decoding.generation_loop import (
    GenerationState,
    Sampler,
    generate_tokens,
    init_state_donating,
    init_state_with_copy,
)
from jaxseq.decoding.options import SamplingOptions, active_filters
from jaxseq.decoding.step import (
    AnyStep,
    Memory,
    as_arrays,
    as_token_ids,
    bind_memory,
    check_context,
    check_rows,
    check_step,
    repeat_rows,
)
from jaxseq.typing import Array, Carry, Float, Int, Integer, Key


class Generation(NamedTuple):
    """Generated tokens, without the first tokens.

    Attributes:
        tokens: each row's tokens, padded with end tokens (0 without an end token).
        lengths: the number of tokens of each row, its end token included.
        log_probabilities: the sum over each row's tokens of the log softmax, in float32 at least, of the step's own
            logits, before constraints, temperature and filters. Minus infinity for a row that ended because
            constraints ruled out every token.
        sampling_log_probabilities: the same sum under the distribution that was drawn from, after constraints,
            temperature and filters. 0 for greedy decoding, which draws nothing.
    """

    tokens: Int[Array, "*R L"]
    lengths: Int[Array, "*R"]
    log_probabilities: Float[Array, "*R"]
    sampling_log_probabilities: Float[Array, "*R"]


def greedy(
    step: AnyStep,
    carry: Carry,
    first_tokens: Integer[np.ndarray | Array, "*B"],
    *,
    max_length: int,
    end_token: int | None = None,
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
            (``prefill``), or a start token.
        max_length: the largest number of tokens to generate.
        end_token: a row ends at this token; ``None`` generates ``max_length`` tokens.
        constraints: which tokens are allowed, see ``Constraint``.
        memory: a constant input of the step, such as an encoded source; its leaves lead with ``*B``.
        donate_carry: let the loop overwrite the carry's arrays, which cannot be used afterwards, not a copy of them.

    Raises:
        ValueError: max_length below 1 or beyond the carry's context, an end token outside the vocabulary, a
            constraint that nothing satisfies, or a step that changes its carry's shape.
    """
    step, first_tokens = bind_memory(step, memory), as_token_ids(first_tokens)
    generator = _start(step, carry, first_tokens, None, constraints, max_length, end_token, donate_carry)
    return _generation(*generator.generate(max_length))


def sample(
    step: AnyStep,
    carry: Carry,
    first_tokens: Integer[np.ndarray | Array, "*B"],
    options: SamplingOptions = SamplingOptions(),
    *,
    key: Key[Array, "..."],
    max_length: int,
    end_token: int | None = None,
    num_samples: int | None = None,
    constraints: Sequence[Rule] = (),
    memory: Memory = None,
    donate_carry: bool = False,
) -> Generation:
    """Draw each token from the step's distribution, after constraints, temperature and filters in this order.

    A row's tokens depend on its own key alone: they are the same in any batch, and a larger ``max_length`` extends
    what a smaller one returns. New values of the options and of constraints of the same shapes need no new compilation,
    except for ``top_k`` and for filters that were left out before (also by a temperature, top_p or typical_p of 1).

    Args:
        step, carry, first_tokens, max_length, end_token, constraints, memory, donate_carry: as for ``greedy``.
        options: temperature and filters.
        key: one typed key per row (shape ``*B``), or a single key, of which row i (in row-major order) gets
            ``jax.random.fold_in(key, i)``. Token t of a row is drawn with ``fold_in(row_key, t)``.
        num_samples: draw n sequences per row, ``[*B n ...]`` in the results, and sample j of a row has the
            key ``fold_in(row_key, j)``.

    Raises:
        ValueError: as ``greedy``; top_k above V, num_samples below 1, or keys of a wrong shape or kind.
    """
    first_tokens, carry = as_token_ids(first_tokens), as_arrays(carry)
    batch_shape = first_tokens.shape
    keys = row_keys(key, batch_shape)
    if num_samples is None:
        bound = bind_memory(step, memory)
    else:
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, not {num_samples}")
        check_rows((carry, memory), batch_shape, "(carry, memory)")
        bound, carry, first_tokens = repeat_rows(step, carry, first_tokens, memory, num_samples)
        each = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys.reshape(-1), jnp.arange(num_samples))
        keys = each.reshape(first_tokens.shape)
        donate_carry = True
    sampler = Sampler(keys, active_filters(options))
    generator = _start(
        bound, carry, first_tokens, sampler, constraints, max_length, end_token, donate_carry, batch_shape, num_samples
    )
    generation = _generation(*generator.generate(max_length))
    if num_samples is None:
        return generation
    rows = (*batch_shape, num_samples)
    return Generation(*(x.reshape(*rows, *x.shape[first_tokens.ndim :]) for x in generation))


def stream(
    step: AnyStep,
    carry: Carry,
    first_tokens: Integer[np.ndarray | Array, "*B"],
    options: SamplingOptions | None = None,
    *,
    key: Key[Array, "..."] | None = None,
    max_length: int,
    end_token: int | None = None,
    constraints: Sequence[Rule] = (),
    memory: Memory = None,
    donate_carry: bool = False,
    block_length: int = 8,
) -> Iterator[Int[np.ndarray, "*B"]]:
    """Yield the tokens of ``sample``, or without a key of ``greedy``, one ``[*B]`` array at a time.

    One compiled loop generates ``block_length`` tokens at a time. The iterator ends when every row has ended. A row
    that ended because constraints ruled out every token yields an end token (0 without one), as after an end.

    Args:
        step, carry, first_tokens, key, max_length, end_token, constraints, memory, donate_carry: as for ``sample``.
        options: temperature and filters; ``None`` is ``SamplingOptions()``.
        block_length: the number of tokens that are generated before the first of them is yielded.

    Raises:
        ValueError: at the call, not at the first token: as ``sample``; a block length below 1, or options without a
            key.
    """
    if block_length < 1:
        raise ValueError(f"block_length must be at least 1, not {block_length}")
    first_tokens = as_token_ids(first_tokens)
    sampler = make_sampler(options, key, first_tokens.shape)
    bound = bind_memory(step, memory)
    generator = _start(bound, carry, first_tokens, sampler, constraints, max_length, end_token, donate_carry)

    def blocks() -> Iterator[Int[np.ndarray, "*B"]]:
        num_generated = 0
        while num_generated < max_length:
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
        return Sampler(row_keys(key, batch_shape), active_filters(options or SamplingOptions()))
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
        limit: int,
        end_token: int | None,
    ) -> None:
        self._state, self._inputs = state, (step, sampler, constraints)
        self._limit, self._end_token = jnp.asarray(limit, jnp.int32), end_token

    def generate(self, length: int) -> tuple[GenerationState, Int[Array, "*B L"]]:
        """Up to ``length`` more tokens, and the state after them, which the next call overwrites."""
        self._state, tokens = generate_tokens(
            *self._inputs, self._state, self._limit, length=length, end_token=self._end_token
        )
        return self._state, tokens


def _start(
    step: Partial,
    carry: Carry,
    first_tokens: Int[Array, "*B"],
    sampler: Sampler | None,
    constraints: Sequence[Rule],
    max_length: int,
    end_token: int | None,
    donate_carry: bool,
    batch_shape: tuple[int, ...] | None = None,
    copies: int | None = None,
) -> _Generator:
    """Check the arguments and make the state before the first token."""
    carry, rules = as_arrays(carry), as_constraints(constraints)
    check_max_length(carry, max_length)
    logits = check_step(step, carry, first_tokens, end_token)
    if sampler is not None and sampler.options.top_k is not None:
        check_top_k(sampler.options.top_k, logits.shape[-1])
    check_constraints(rules, logits.shape[-1], max_length, end_token)
    init_state = init_state_donating if donate_carry else init_state_with_copy
    state = init_state(
        _without_shared_arrays(carry) if donate_carry else carry,
        first_tokens,
        rules,
        dtype=jnp.dtype(logits.dtype),
        max_length=max_length,
        batch_shape=first_tokens.shape if batch_shape is None else batch_shape,
        copies=copies,
    )
    return _Generator(state, step, sampler, rules, max_length, end_token)


def _without_shared_arrays(carry: Carry) -> Carry:
    """Copy arrays that stand in several places of the carry, as in a fresh one: an array can be donated only once."""
    seen: set[int] = set()
    leaves, structure = jax.tree.flatten(carry)
    for i, leaf in enumerate(leaves):
        leaves[i] = jnp.copy(leaf) if id(leaf) in seen else leaf
        seen.add(id(leaf))
    return jax.tree.unflatten(structure, leaves)


def _generation(state: GenerationState, tokens: Int[Array, "*B L"]) -> Generation:
    return Generation(tokens, state.lengths, state.log_probabilities, state.sampling_log_probabilities)


def check_max_length(carry: Carry, max_length: int) -> None:
    """Check the number of tokens to generate.

    Raises:
        ValueError: it is below 1, or beyond the carry's context.
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, not {max_length}")
    check_context(carry, max_length - 1, f"max_length={max_length}")


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
    rows = jnp.arange(int(np.prod(batch_shape)))
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows).reshape(batch_shape)
