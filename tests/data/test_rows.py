"""Some rows of a batch are those rows of the whole batch, for every dataset."""

import jax
import numpy as np
import pytest

from jaxseq import data
from jaxseq.data.batch import RowDataset, row_indices
from jaxseq.data.detection import DetectionBatches, Objects
from jaxseq.data.images import CaptionBatches

TEXT = np.random.default_rng(0).integers(1, 9, 300).astype(np.int32)
PAIRS = [(TEXT[i : i + 2 + i % 4], TEXT[i : i + 1 + i % 5]) for i in range(13)]


class Pixels:
    """Images whose pixels are their number."""

    fingerprint = "pixels"
    size = (4, 4)

    def __len__(self) -> int:
        return 7

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.asarray(rows, np.uint8)[:, None, None, None], (len(rows), 4, 4, 3))


BOXES = [np.array([[0, 0, i % 3 + 1, 2]], np.float32) for i in range(7)]
OBJECTS = [Objects(box, np.array([i % 2], np.int32), np.zeros(1, bool)) for i, box in enumerate(BOXES)]

DATASETS: dict[str, RowDataset] = {
    "streams": data.ContiguousStreams(TEXT, 4, 6, separator=3),
    "crops": data.RandomCrops(TEXT, 4, 6, separator=3),
    "packed": data.PackedDocuments([TEXT[i : i + 9] for i in range(0, 90, 9)], 4, 12, separator=0),
    "pairs": data.BucketedPairs(PAIRS, 4, separator=0),
    "captions": CaptionBatches(Pixels(), [[TEXT[i : i + 3]] for i in range(7)], 4, separator=0),
    "objects": DetectionBatches(Pixels(), OBJECTS, None, 4, flip=True),
}


@pytest.mark.parametrize("name", DATASETS)
def test_rows_are_those_of_the_whole_batch(name: str) -> None:
    dataset = DATASETS[name]
    assert isinstance(dataset, RowDataset)
    for step in range(5):
        whole = dataset(step)
        for rows in (np.array([0, 1]), np.array([2, 3]), np.array([1, 3]), np.array([3])):
            part = dataset(step, rows)
            jax.tree.map(lambda a, b, rows=rows: np.testing.assert_array_equal(a[rows], b), whole, part)


def test_rows_that_do_not_increase_within_the_batch_are_an_error() -> None:
    for rows in ([0, 4], [-1, 2], [2, 1], [1, 1]):
        with pytest.raises(ValueError, match=r"rows must increase within \[0, 4\)"):
            row_indices(np.array(rows), 4)
