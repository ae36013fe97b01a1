"""Writers of data and weights: a full disk gives an error that names the file, and leaves the old file or none."""

import contextlib
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxseq import weights
from jaxseq.data import detection
from jaxseq.data.images import array_file

resource = pytest.importorskip("resource", reason="POSIX limits")

NUMBERS = np.arange(30_000, dtype=np.float32)


@contextlib.contextmanager
def small_disk(limit: int):
    """No file can be longer than this: the system refuses the write as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_array(file: Path) -> None:
    with array_file.new_array_file(file, (3, len(NUMBERS)), np.float32, {}) as rows:
        for row in range(3):
            rows[row] = NUMBERS


class Grey:
    """Two grey images."""

    size, fingerprint = (4, 6), "grey"

    def __len__(self):
        return 2

    def __call__(self, indices):
        return np.full((len(indices), 4, 6, 3), 99, np.uint8)


def write_instances(file: Path) -> None:
    boxes = np.tile(np.float32([0, 0, 2, 2]), (100, 1))
    objects = detection.Objects(boxes, np.zeros(100, np.int32), np.zeros(100, bool))
    images = detection.DetectionImages(Grey(), (objects, objects), ("a.png", "b.png"))
    detection.write_coco_instances(file, file.parent / "images", images, ("cat",))


def write_results(file: Path) -> None:
    boxes = np.tile(np.float32([0, 0, 2, 2]), (5000, 1))
    found = detection.ScoredBoxes(boxes, boxes[:, 2], np.zeros(5000, np.int32))
    ids = detection.CocoIds({"a.png": 1}, {"cat": 1})
    detection.write_coco_results(file, [found], ["a.png"], ["cat"], ids)


WRITERS = {
    "weights.npz": lambda file: weights.write_weights(file, {"a": NUMBERS}),
    "weights.safetensors": lambda file: weights.write_weights(file, {"a": NUMBERS}),
    "cache.array": write_array,
    "instances.json": write_instances,
    "results.json": write_results,
}


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is tested on Linux")
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("limit", [0, 100, 1000])
@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_fails_names_the_file_and_leaves_nothing_new(tmp_path, name, limit, old):
    file = tmp_path / name
    if name == "instances.json":
        pytest.importorskip("PIL.Image", reason="needs Pillow")
    if name == "weights.safetensors":
        pytest.importorskip("safetensors")
    if old and name != "instances.json":  # which replaces nothing
        file.write_bytes(b"old")
    before = sorted(tmp_path.rglob("*.*"))
    with small_disk(limit), pytest.raises(OSError, match=r"File too large: .*") as error:
        WRITERS[name](file)
    assert str(tmp_path) in str(error.value) and (name in str(error.value) or ".png" in str(error.value))
    left = sorted(tmp_path.rglob("*.*"))
    assert [path for path in left if path.suffix != ".png"] == before
    assert all(path.stat().st_size for path in left)
    if file in before:
        assert file.read_bytes() == b"old"
