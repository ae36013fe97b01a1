"""A loop in stages gives what one loop gives, whatever the prompts, the ends, and the other parts of the carry."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxseq.cores import GRU, Attention, Stacked
from jaxseq.cores.attention import BoundedCache
from jaxseq.decoding import (
    BeamOptions,
    SamplingOptions,
    beam_search,
    greedy,
    pad_prompts,
    prefill,
    sample,
    speculative_sample,
    stages,
    step_of,
)
from jaxseq.layers import Embedding
from jaxseq.models import LanguageModel

V, F, L, END = 9, 8, 12, 4
PROMPTS, LENGTHS = pad_prompts([[1, 2, 3, 5, 6], [7], [2, 8, 1]])
LONGEST = PROMPTS.shape[1]
RIGHT, WRAPPING, AMPLE = LONGEST + L - 1, L - 1, 8 * L
"""Contexts: as many as needed, too few for the prompts (a ring that wraps), and too many for stages."""

Decode = Callable[[Any, Any, Any], Any]


@functools.lru_cache
def model_of() -> tuple[LanguageModel, Any]:
    """Attention after a recurrent layer, in float64."""
    types: dict[str, Any] = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    core = Stacked((GRU(F, **types), Attention(F, num_heads=2, num_kv_heads=1, **types)))
    model = LanguageModel(Embedding(V, F, **types), core, head=nn.Dense(V, **types))
    params = model.init(jax.random.key(0), model.initial_carry((1,)), jnp.zeros((1, 2), jnp.int32))
    return model, jax.tree.map(lambda x: 3 * x, params)  # confident: no two tokens are nearly as probable


@pytest.fixture
def short_stages(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Sets the number of stages; the lengths and caches here are too small for any."""
    monkeypatch.setattr(stages, "TOKENS_PER_STAGE", 2)
    monkeypatch.setattr(stages, "MIN_BYTES", 0)
    yield lambda count: monkeypatch.setattr(stages, "MAX_STAGES", count)


def in_stages_and_in_one(set_stages: Callable[[int], None], context: int, decode: Decode) -> None:
    """Both results agree: integers exactly, log-probabilities and carries to rounding in float64."""
    model, params = model_of()
    start = model.initial_carry((len(PROMPTS),), context)
    apply = Partial(model.apply, params)
    carry, first = prefill(apply, start, PROMPTS, LENGTHS, max_length=max(context - LONGEST + 1, 1))
    results, slots = [], []
    for count in (1, 4):
        set_stages(count)
        seen: set[int] = set()

        # a new function for each number of stages, so that each is compiled
        def forward(params: Any, carry: Any, tokens: Any, segment_ids: Any = None, seen: set[int] = seen) -> Any:
            parts = jax.tree.leaves(carry, is_leaf=lambda node: isinstance(node, BoundedCache))
            seen |= {part.num_slots for part in parts if isinstance(part, BoundedCache)}
            return model.apply(params, carry, tokens, segment_ids)

        results.append(decode(Partial(forward, params), carry, first))
        slots.append(seen)
    one, several = results
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(several), strict=True):
        np.testing.assert_allclose(a, b, rtol=0 if jnp.issubdtype(a.dtype, jnp.integer) else 1e-9, atol=1e-12)
    assert slots[0] == {context + 1}
    if context == AMPLE:
        assert slots[1] == slots[0]
    else:
        generated = min(L, context + 1)
        assert slots[1] == {context + 1 - generated + generated * k // 4 for k in range(1, 5)}


def greedily(forward: Any, carry: Any, first: Any) -> Any:
    return greedy(step_of(forward), carry, first, max_length=L, end_token=END)


def at_random(forward: Any, carry: Any, first: Any) -> Any:
    options = SamplingOptions(0.9, top_k=7)
    return sample(step_of(forward), carry, first, options, key=jax.random.key(3), max_length=L, num_samples=2)


def by_beams(forward: Any, carry: Any, first: Any) -> Any:
    options = BeamOptions(3, normalization="mean", keep_carry=True)
    return beam_search(step_of(forward), carry, first, options, max_length=L, end_token=END)


def by_drafts(forward: Any, carry: Any, first: Any) -> Any:
    key, drafted = jax.random.key(3), Partial(lambda f, c, t, s: f(c, t, s), forward)
    return speculative_sample(drafted, forward, carry, carry, first, key=key, max_length=L, draft_length=3)


def under_jit_and_vmap(forward: Any, carry: Any, first: Any) -> Any:
    def alone(carry: Any, first: Any) -> Any:
        return greedy(step_of(forward), carry, first, max_length=L, end_token=END)

    return jax.jit(jax.vmap(alone))(carry, first)


def test_stages_change_nothing_in_greedy_decoding(x64, short_stages):
    in_stages_and_in_one(short_stages, RIGHT, greedily)


@pytest.mark.full
@pytest.mark.parametrize("decode", [at_random, by_beams, by_drafts, under_jit_and_vmap])
def test_stages_change_nothing_in_other_loops(x64, short_stages, decode):
    in_stages_and_in_one(short_stages, RIGHT, decode)


@pytest.mark.full
@pytest.mark.parametrize("context", [WRAPPING, AMPLE])
@pytest.mark.parametrize("decode", [greedily, by_beams])
def test_stages_change_nothing_with_other_contexts(x64, short_stages, context, decode):
    in_stages_and_in_one(short_stages, context, decode)


def test_a_cache_is_extended_to_what_it_was():
    cache = Attention(F).initial_carry((2,), 6)
    cache = jax.tree.map(lambda x: x + jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), cache)
    short = cache.shortened(3)
    assert short.num_slots == 3
    assert short.positions.shape == (2, 3)
    for count in (4, 7):
        longer = short.extended(cache, count)
        jax.tree.map(np.testing.assert_array_equal, longer, cache.shortened(count))


def test_carries_without_a_bounded_cache_have_one_stage(short_stages):
    short_stages(4)
    carries = (GRU(F).initial_carry((2,)), Attention(F, window=3).initial_carry((2,), L))
    traced = []

    def body(state):
        traced.append(1)
        return (state[0] + 1, state[1])

    state = (jnp.zeros((), jnp.int32), carries)
    after = stages.while_loop(lambda state: state[0] < 5, body, state, max_tokens=L)
    assert len(traced) == 1
    assert int(after[0]) == 5
