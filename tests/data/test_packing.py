"""Documents in rows: every prediction exactly once, none across documents."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.data import HeldOutDocuments, PackedDocuments

DOCUMENTS = st.lists(st.lists(st.integers(1, 9), max_size=12), min_size=1, max_size=12)


def predictions(batches) -> list[tuple[int, ...]]:
    """Every segment of every row as (first input, targets...), sorted."""
    found = []
    for batch in batches:
        for tokens, targets, ids in zip(*batch, strict=True):
            for number in sorted(set(ids.tolist()) - {0}):
                (places,) = np.nonzero(ids == number)
                assert np.array_equal(places, np.arange(places[0], places[-1] + 1))  # one piece
                assert np.array_equal(tokens[places[1:]], targets[places[:-1]])
                found.append((int(tokens[places[0]]), *targets[places].tolist()))
            assert not tokens[ids == 0].any()
            assert not targets[ids == 0].any()
    return sorted(found)


def pieces(documents, length: int, separator: int | None) -> list[tuple[int, ...]]:
    """The expected predictions, by brute force."""
    found = []
    for text in documents:
        whole = list(text) if separator is None else [separator, *text, separator]
        for start in range(0, len(whole) - 1, length):
            found.append(tuple(whole[start : start + length + 1]))
    return sorted(found)


@given(DOCUMENTS, st.integers(1, 8), st.integers(0, 3), st.sampled_from([None, 0]))
@settings(deadline=None, max_examples=100)
def test_an_epoch_packs_every_prediction_exactly_once(documents, length, epoch, separator):
    expected = pieces(documents, length, separator)
    if not expected:
        with pytest.raises(ValueError, match="larger than the data"):
            PackedDocuments(documents, 1, length, separator=separator)
        return
    data = PackedDocuments(documents, 1, length, seed=4, separator=separator)
    steps = range(epoch * data.steps_per_epoch, (epoch + 1) * data.steps_per_epoch)
    assert predictions(data(step) for step in steps) == expected


def test_a_last_batch_that_is_not_full_is_padded_to_the_same_shape():
    documents = [[1, 2, 3, 4]] * 5
    data = PackedDocuments(documents, 2, 3)
    assert (data.rows, data.steps_per_epoch) == (5, 3)
    for epoch in range(3):
        batches = [data(3 * epoch + step) for step in range(3)]
        assert all(part.shape == (2, 3) and part.dtype == np.int32 for batch in batches for part in batch)
        assert sum(int((batch.segment_ids != 0).any(axis=1).sum()) for batch in batches) == 5


def test_packing_wastes_little():
    random = np.random.default_rng(0)
    documents = [random.integers(1, 9, size) for size in random.integers(1, 60, 400)]
    data = PackedDocuments(documents, 4, 64)
    assert np.mean(data.segment_ids != 0) > 0.94


def test_packed_documents_are_a_pure_function_of_the_step():
    random = np.random.default_rng(0)
    documents = [random.integers(1, 9, size) for size in random.integers(1, 20, 50)]
    data, other = (PackedDocuments(documents, 3, 16, seed=5, separator=0) for _ in range(2))
    straight = [data(step) for step in range(40)]
    for step in random.permutation(40).tolist():
        for a, b in zip(straight[step], other(step), strict=True):
            assert np.array_equal(a, b)
    epochs = [straight[epoch * data.steps_per_epoch].tokens for epoch in range(3)]
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


def test_a_packed_fingerprint_changes_with_anything():
    documents = [[1, 2, 3], [4, 5, 6, 7]]
    made = [
        PackedDocuments(texts, batch, length, seed=seed, separator=separator).fingerprint
        for texts, batch, length, seed, separator in [
            (documents, 1, 3, 0, None),
            (documents[::-1], 1, 3, 0, None),
            ([[1, 2], [3, 4, 5, 6, 7]], 1, 3, 0, None),
            ([[1, 2, 3], [4, 5, 6, 8]], 1, 3, 0, None),
            (documents, 2, 2, 0, None),
            (documents, 1, 2, 0, None),
            (documents, 1, 3, 1, None),
            (documents, 1, 3, 0, 9),
        ]
    ]
    made.append(HeldOutDocuments(documents, 1, 3, separator=9).fingerprint)
    assert len(set(made)) == len(made)


def test_a_packed_batch_larger_than_the_data_names_both_numbers():
    with pytest.raises(ValueError, match=r"larger than the data: 4 rows of 5 tokens.*only 1"):
        PackedDocuments([[1, 2, 3], [4, 5, 6]], 4, 5)
    with pytest.raises(ValueError, match=r"larger than the data: 2 rows of 3 tokens.*only 0"):
        PackedDocuments([[1], []], 2, 3)


@given(DOCUMENTS, st.integers(1, 5), st.integers(1, 6))
@settings(deadline=None, max_examples=100)
def test_evaluation_predicts_every_token_exactly_once_from_all_before_it(documents, batch_size, length):
    if not any(documents):
        with pytest.raises(ValueError, match="contain no token"):
            HeldOutDocuments(documents, batch_size, length, separator=0)
        return
    data = HeldOutDocuments(documents, batch_size, length, separator=0)
    batches = list(data)
    assert len(batches) == len(data)
    assert all(part.shape == (batch_size, length) and part.dtype == np.int32 for b in batches for part in b)
    rows = [np.concatenate(parts, axis=1) for parts in zip(*batches, strict=True)]
    expected = sorted((0, *text) for text in documents if text)
    assert predictions([tuple(rows)]) == expected
    counted = sum(int((batch.segment_ids != 0).sum()) for batch in batches)
    assert counted == data.num_tokens == sum(map(len, documents))
    assert not data(len(data)).segment_ids.any()


def test_evaluation_takes_no_more_batches_than_the_longest_document_asks():
    documents = [np.ones(size, int) for size in (100, 30, 30, 30, 10)]
    assert len(HeldOutDocuments(documents, 2, 10, separator=0)) == 10
    assert len(HeldOutDocuments(documents, 64, 10, separator=0)) == 10
