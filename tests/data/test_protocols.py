"""The protocols that training loops and models rely on: datasets and vocabularies."""

import pytest

from jaxseq.data import (
    BPE,
    BucketedPairs,
    Bytes,
    Characters,
    ContiguousStreams,
    Dataset,
    HeldOutDocuments,
    LaggedEcho,
    PackedDocuments,
    RandomCrops,
    SequenceChunks,
    Vocabulary,
    Words,
)


@pytest.mark.parametrize(
    "dataset",
    [
        ContiguousStreams(range(20), 2, 3),
        RandomCrops(range(20), 2, 3),
        LaggedEcho(2, 3, lag=1),
        SequenceChunks(RandomCrops(range(20), 2, 4), 2),
        PackedDocuments([[1, 2, 3], [4, 5]], 1, 3),
        HeldOutDocuments([[1, 2, 3], [4, 5]], 1, 3, separator=0),
        BucketedPairs([([1], [2])], 1, separator=0),
    ],
    ids=lambda dataset: type(dataset).__name__,
)
def test_every_dataset_is_a_function_of_the_step_with_a_fingerprint(dataset):
    assert isinstance(dataset, Dataset)
    assert len(dataset.fingerprint) == 64
    assert all((one == other).all() for one, other in zip(dataset(0), dataset(0), strict=True))


def test_every_vocabulary_has_the_protocols_members():
    assert all(isinstance(vocabulary, Vocabulary) for vocabulary in (Characters("ab"), Bytes(), Words(("a",))))
    pytest.importorskip("tokenizers", reason="the extra 'text' is not installed")
    assert isinstance(BPE.fit(["ab"], vocab_size=257), Vocabulary)
