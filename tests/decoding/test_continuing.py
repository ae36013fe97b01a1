"""Continuing a generation: the carry that it returns, further turns, and documents of any id."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from toy_models import model, table_step

from jaxseq.decoding import (
    Forbid,
    MinLength,
    NoRepeatedNgrams,
    SamplingOptions,
    greedy,
    pad_prompts,
    prefill,
    sample,
    score,
    score_tokens,
    speculative_sample,
    step_of,
    stream,
)

V, ENDS, WIDTH = 5, (3, 0), 14
FIRST = jnp.array([1, 2, 4], jnp.int32)
READ = jnp.array([[1, 2, 0, 4], [2, 2, 1, 0], [4, 1, 1, 2]], jnp.int32)
IDS = jnp.array([[1, 1, 2, 2], [7, 7, 7, 0], [0, 0, 0, 0]], jnp.int32)
"""The documents of the rows have the ids 2, 7, and none: the last row has read nothing."""

read_documents = jax.jit(lambda forward, carry, tokens, ids: forward(carry, tokens, ids)[0])


def padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of one width, so that they share a program, padded with ids outside every vocabulary."""
    tokens = np.full((len(rows), WIDTH), -7)
    for row, known in zip(tokens, rows, strict=True):
        row[: len(known)] = known
    return tokens, np.array([len(row) for row in rows])


def same(made, want) -> None:
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        pytest.param("hybrid", False, marks=pytest.mark.full),
        pytest.param("hybrid", True, marks=pytest.mark.full),
        pytest.param("two states", False, marks=pytest.mark.full),
        ("cache", False),
    ],
)
def test_reading_and_generating_in_turns_equals_reading_the_text_at_once(kind: str, raw: bool) -> None:
    """The documents have any id, rows end at different times, and further turns are prompts after the carry."""
    m = model(kind, V, seed=3)
    step = Partial(lambda step, carry, tokens: step(carry, tokens), m.step) if raw else m.step
    start = read_documents(m.forward, m.carry(3), READ, IDS)
    key = jax.random.key(19)  # draws from nearly uniform distributions, with ends at three different times
    made = sample(step, start, FIRST, SamplingOptions(50.0), key=key, max_length=8, end_token=ENDS)
    assert len(set(made.lengths.tolist())) == 3
    said = [tokens[:n] for tokens, n in zip(made.tokens.tolist(), made.lengths.tolist(), strict=True)]
    assert made.last_tokens.tolist() == [row[-1] for row in said]
    texts = [[first, *row] for first, row in zip(FIRST.tolist(), said, strict=True)]
    same(prefill(m.forward, start, *padded(texts), max_length=1), (made.carry, made.last_tokens))
    turns = [[2], [1, 1, 4], []]
    more = [[int(last), *turn] for last, turn in zip(made.last_tokens, turns, strict=True)]
    on = prefill(m.forward, made.carry, *padded(more), max_length=4)
    texts = [text + turn for text, turn in zip(texts, turns, strict=True)]
    same(on, prefill(m.forward, start, *padded(texts), max_length=4))


@pytest.mark.full
@pytest.mark.parametrize("kind", ["hybrid", "cache"])
def test_a_continued_generation_equals_one_long_generation(kind: str) -> None:
    m = model(kind, V, seed=3)
    head = greedy(m.step, m.carry(3), FIRST, max_length=4)
    tail = greedy(m.step, head.carry, head.last_tokens, max_length=4)
    whole = list(stream(m.step, m.carry(3), FIRST, max_length=8, block_length=4))  # the same compiled program
    assert np.array_equal(np.concatenate([head.tokens, tail.tokens], 1), np.stack(whole, 1))
    assert np.array_equal(head.last_tokens, head.tokens[:, -1])


@pytest.mark.full
def test_speculation_continues_from_its_carries_in_any_document_under_constraints() -> None:
    small, large = model("two states", V), model("hybrid", V, seed=1)
    start = [read_documents(m.forward, m.carry(3), READ, IDS) for m in (small, large)]
    rules = [MinLength(3, ENDS), NoRepeatedNgrams(3), Forbid([2])]
    common = {"max_length": 8, "end_token": ENDS, "constraints": rules}
    want = greedy(large.step, start[1], FIRST, **common)
    made = speculative_sample(small.forward, large.forward, *start, FIRST, key=None, draft_length=3, **common)
    for name in ("tokens", "lengths", "log_probabilities", "last_tokens", "carry"):
        same(getattr(made, name), getattr(want, name))
    texts = [[f, *t[:n]] for f, t, n in zip(FIRST.tolist(), made.tokens.tolist(), made.lengths.tolist(), strict=True)]
    same(prefill(small.forward, start[0], *padded(texts), max_length=1).carry, made.draft_carry)
    np.testing.assert_allclose(
        score(large.step, start[1], FIRST, made.tokens, made.lengths), made.log_probabilities, atol=1e-5
    )


@pytest.mark.full
def test_several_samples_of_a_row_and_a_row_without_batch_dimensions_can_be_continued(key: jax.Array) -> None:
    table = jax.random.normal(jax.random.key(1), (V, V))
    step, common = Partial(table_step, table), {"key": key, "max_length": 6, "end_token": ENDS}
    for carry, first in [(jnp.zeros(2, jnp.int32), FIRST[:2]), (jnp.zeros((), jnp.int32), FIRST[0])]:
        made = sample(step, carry, first, num_samples=3, **common)
        assert np.array_equal(made.carry, made.lengths)  # this carry counts the tokens read
        last = np.take_along_axis(np.asarray(made.tokens), np.asarray(made.lengths)[..., None] - 1, axis=-1)[..., 0]
        assert np.array_equal(made.last_tokens, last)


@pytest.mark.full
def test_later_calls_do_not_delete_the_carry(key: jax.Array) -> None:
    step, first = Partial(table_step, jnp.zeros((3, 3))), jnp.zeros(2, jnp.int32)
    made = greedy(step, jnp.zeros(2, jnp.int32), first, max_length=3, donate_carry=True)
    drawn = sample(step, made.carry, made.last_tokens, key=key, max_length=3)
    list(stream(step, made.carry, made.last_tokens, max_length=6, block_length=3))
    greedy(step, drawn.carry, drawn.last_tokens, max_length=3, donate_carry=True)
    assert made.carry.tolist() == [3, 3] and drawn.carry.is_deleted()


def test_a_carry_without_segment_id_starts_with_id_one() -> None:
    """Only a forward function gets ids, and only if rows may end: rows that have ended are padding."""
    seen = []

    def forward(table, carry, tokens, ids=None):
        seen.append(ids is not None)
        return carry, table[tokens] + (0.0 if ids is None else ids[..., None].astype(jnp.float32))

    step = step_of(Partial(forward, jnp.zeros((3, 3))))
    made = greedy(step, jnp.zeros(2), jnp.zeros(2, jnp.int32), max_length=2, end_token=2)
    assert made.tokens.tolist() == [[0, 0]] * 2 and seen == [False, True]
    assert np.all(score_tokens(step, jnp.zeros(2), jnp.zeros(2, jnp.int32), made.tokens) < 0)
    greedy(step, jnp.zeros(2), jnp.zeros(2, jnp.int32), max_length=2)
    assert pad_prompts([[1]])[0].shape == (1, 1) and seen[2:] == [False, False]
