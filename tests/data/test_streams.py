"""Datasets over one flat text: pure functions of the step that lose and repeat nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.data import ContiguousStreams, RandomCrops, join_documents

SIZES = st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(0, 40), st.integers(0, 9))


def text_of(count: int) -> np.ndarray:
    """Every token different, so that a place can be read off a token."""
    return np.arange(100, 100 + count)


@given(SIZES)
@settings(deadline=None, max_examples=60)
def test_the_rows_of_an_epoch_joined_are_the_rotated_text(sizes):
    batch_size, length, more, epoch = sizes
    tokens = text_of(batch_size * length + 1 + more)
    data = ContiguousStreams(tokens, batch_size, length, seed=3)
    steps = range(epoch * data.steps_per_epoch, (epoch + 1) * data.steps_per_epoch)
    rows = np.concatenate([data(step).tokens for step in steps], axis=1)
    seen = rows.ravel()
    assert np.array_equal(seen, np.roll(tokens, -data.offset(epoch))[: len(seen)])
    assert len(tokens) - len(seen) <= batch_size * length


@given(SIZES)
@settings(deadline=None, max_examples=60)
def test_targets_are_the_tokens_that_follow(sizes):
    batch_size, length, more, step = sizes
    tokens = text_of(batch_size * length + 1 + more)
    for data in (ContiguousStreams(tokens, batch_size, length), RandomCrops(tokens, batch_size, length)):
        batch = data(step)
        assert np.array_equal(batch.targets, (batch.tokens - 100 + 1) % len(tokens) + 100)
        assert all(part.dtype == np.int32 and part.shape == (batch_size, length) for part in batch)
        assert (batch.segment_ids > 0).all()


def test_chunks_of_a_row_go_on_where_the_last_ended_until_the_epoch_ends():
    data = ContiguousStreams(text_of(101), 3, 4, seed=1)
    assert data.steps_per_epoch == 8
    for step in range(15):
        now, after = data(step), data(step + 1)
        follows = np.array_equal(after.tokens[:, 0], now.targets[:, -1])
        assert follows == (step != 7)


def test_the_segment_changes_with_the_epoch_and_at_the_end_of_the_text_only():
    tokens = text_of(50)
    data = ContiguousStreams(tokens, 2, 3, seed=5)
    rows = [data(step) for step in range(4 * data.steps_per_epoch)]
    ids = np.concatenate([batch.segment_ids for batch in rows], axis=1)
    seen = np.concatenate([batch.tokens for batch in rows], axis=1)
    epoch = np.arange(ids.shape[1]) // (3 * data.steps_per_epoch)
    expected = (np.diff(epoch)[None] > 0) | (seen[:, 1:] == tokens[0])
    assert np.array_equal(np.diff(ids, axis=1) != 0, expected)


def test_with_a_separator_the_segment_changes_at_every_document():
    documents = [[5, 6, 7], [8], [9, 5, 6, 5, 5]]
    tokens = join_documents(documents, separator=0)
    assert tokens.tolist() == [0, 5, 6, 7, 0, 8, 0, 9, 5, 6, 5, 5]
    data = ContiguousStreams(tokens, 1, 2, seed=2, separator=0)
    rows = [data(step) for step in range(3 * data.steps_per_epoch)]
    ids = np.concatenate([batch.segment_ids for batch in rows], axis=1)[0]
    seen = np.concatenate([batch.tokens for batch in rows], axis=1)[0]
    epoch = np.arange(len(ids)) // (2 * data.steps_per_epoch)
    assert np.array_equal(np.diff(ids) != 0, (np.diff(epoch) > 0) | (seen[1:] == 0))
    crops = RandomCrops(tokens, 1, 6, separator=0)
    for step in range(20):
        batch = crops(step)
        assert batch.segment_ids[0, 0] == 1
        assert np.array_equal(np.diff(batch.segment_ids[0]), (batch.tokens[0, 1:] == 0).astype(int))


def test_every_token_is_an_input_sooner_or_later():
    tokens = text_of(47)
    data = ContiguousStreams(tokens, 3, 7, seed=0)
    seen = {token for step in range(30) for token in data(step).tokens.ravel().tolist()}
    assert seen == set(tokens.tolist())


def test_stream_start_is_the_first_step_of_the_present_pass():
    data = ContiguousStreams(text_of(31), 2, 5)
    assert [data.stream_start(step) for step in range(7)] == [0, 0, 0, 3, 3, 3, 6]


@pytest.mark.parametrize("kind", [ContiguousStreams, RandomCrops])
def test_a_batch_is_a_pure_function_of_the_step(kind):
    tokens = np.random.default_rng(0).integers(0, 9, 300)
    data = kind(tokens, 4, 5, seed=7)
    straight = [data(step) for step in range(60)]
    other = kind(tokens.tolist(), 4, 5, seed=7)
    for step in np.random.default_rng(1).permutation(60).tolist():
        for a, b, c in zip(straight[step], other(step), data(step), strict=True):
            assert np.array_equal(a, b)
            assert np.array_equal(a, c)
    for resumed in (13, 59):
        fresh = kind(tokens, 4, 5, seed=7)
        assert all(np.array_equal(fresh(step).tokens, straight[step].tokens) for step in range(resumed, 60))


@pytest.mark.parametrize("kind", [ContiguousStreams, RandomCrops])
def test_another_seed_gives_other_batches(kind):
    tokens = text_of(300)
    assert not np.array_equal(kind(tokens, 4, 5, seed=0)(0).tokens, kind(tokens, 4, 5, seed=1)(0).tokens)


def test_a_fingerprint_changes_with_anything():
    tokens = text_of(300)
    changed = tokens.copy()
    changed[17] += 1
    made = [
        kind(text, batch, length, seed=seed, separator=separator).fingerprint
        for kind in (ContiguousStreams, RandomCrops)
        for text, batch, length, seed, separator in [
            (tokens, 4, 5, 0, None),
            (changed, 4, 5, 0, None),
            (tokens[:-1], 4, 5, 0, None),
            (tokens, 5, 4, 0, None),
            (tokens, 4, 6, 0, None),
            (tokens, 4, 5, 1, None),
            (tokens, 4, 5, 0, 0),
        ]
    ]
    assert len(set(made)) == len(made)
    assert made[0] == ContiguousStreams(tokens.astype(np.int64), 4, 5).fingerprint
    assert made[0] == ContiguousStreams(tokens.astype(np.int32), 4, 5).fingerprint


@pytest.mark.parametrize("kind", [ContiguousStreams, RandomCrops])
def test_a_batch_larger_than_the_data_names_both_numbers(kind):
    kind(text_of(21), 4, 5)
    with pytest.raises(ValueError, match=r"larger than the data.* 20 tokens.*only 19 "):
        kind(text_of(20), 4, 5)


@pytest.mark.parametrize(("batch_size", "length"), [(0, 5), (4, 0), (-1, 5)])
def test_sizes_below_one_are_refused(batch_size, length):
    with pytest.raises(ValueError, match="at least 1"):
        ContiguousStreams(text_of(99), batch_size, length)


def test_tokens_that_are_no_flat_whole_numbers_are_refused():
    for wrong in (np.zeros((3, 3), int), np.zeros(30), np.full(30, -1), np.full(30, 2**31)):
        with pytest.raises(ValueError, match="token"):
            ContiguousStreams(wrong, 1, 2)


def test_a_negative_step_is_refused():
    for data in (ContiguousStreams(text_of(9), 1, 2), RandomCrops(text_of(9), 1, 2)):
        with pytest.raises(ValueError, match="-1"):
            data(-1)
