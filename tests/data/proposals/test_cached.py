"""Proposals of a source: computed once by several processes, kept on disk, computed again if anything differs."""

from dataclasses import asdict, dataclass

import numpy as np
import pytest

from jaxseq.data.proposals import ProposalMethod, Proposals, ProposalSource, SelectiveSearch, SlidingWindows
from jaxseq.data.proposals.cached import CHUNK, padded_boxes

CALLS = []


class Numbered:
    """Image i is of the value i; 8 x 9 pixels."""

    size = 8, 9

    def __init__(self, count=5, fingerprint="numbered"):
        self.count, self.fingerprint = count, fingerprint

    def __len__(self):
        return self.count

    def __call__(self, indices):
        return np.broadcast_to(np.asarray(indices)[:, None, None, None], (len(indices), 8, 9, 3)).astype(np.uint8)


@dataclass(frozen=True)
class Corner:
    """One box more for each image, as wide as the image's value."""

    height: float = 2.0
    fault: tuple[float, ...] | None = None

    @property
    def settings(self):
        return asdict(self)

    def boxes(self, image, seed):
        CALLS.append(seed)
        value = int(image[0, 0, 0])
        if value == 3 and self.fault is not None:
            return np.array([self.fault], np.float32)
        return np.tile(np.array([[0, 0, 1 + value % 8, self.height]], np.float32), (value % 5, 1))


def made(folder, images=None, method=None, **options):
    return Proposals(
        Numbered() if images is None else images, method or Corner(), folder, **({"count": 3, "workers": 1} | options)
    )


def test_proposals_are_computed_once_and_read_by_index(tmp_path):
    CALLS.clear()
    first, second = made(tmp_path), made(tmp_path)
    assert CALLS == [0] * 5
    for found in (first, second):
        assert isinstance(found, ProposalSource) and (len(found), found.count) == (5, 3)
        boxes = found(np.array([4, 0, 2]))
        assert boxes.dtype == np.float32 and boxes.shape == (3, 3, 4)
        assert boxes[0].tolist() == [[0, 0, 5, 2]] * 3
        assert not boxes[1].any() and boxes[2].tolist() == [[0, 0, 3, 2]] * 2 + [[0] * 4]
    assert first.fingerprint == second.fingerprint
    with pytest.raises(IndexError, match="5"):
        first([5])


def test_other_images_methods_counts_or_seeds_are_computed_anew_beside_the_old(tmp_path):
    others = [{}, {"images": Numbered(4)}, {"images": Numbered(5, "other")}, {"method": Corner(3.0)}]
    others += [{"count": 4}, {"seed": 1}, {"method": SlidingWindows((4.0,))}]
    prints = set()
    for number, other in enumerate(others, 1):
        prints.add(made(tmp_path, **other).fingerprint)
        assert len(prints) == len(list(tmp_path.iterdir())) == number
    CALLS.clear()
    made(tmp_path, workers=2)
    assert not CALLS


def test_a_damaged_or_foreign_file_is_computed_again(tmp_path, caplog):
    expected = made(tmp_path)(np.arange(5))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    foreign = made(tmp_path / "other", seed=1)
    (other,) = (tmp_path / "other").iterdir()
    for content, reason in (
        (whole[:-3], "cannot be used: not a whole"),
        (whole[:200] + bytes([whole[200] ^ 1]) + whole[201:], "cannot be used: its contents"),
        (other.read_bytes(), "of other proposals"),
    ):
        path.write_bytes(content)
        caplog.clear()
        again = made(tmp_path)
        assert again.fingerprint != foreign.fingerprint and reason in caplog.text
        assert np.array_equal(again(np.arange(5)), expected)
        assert path.read_bytes() == whole


def test_several_processes_compute_what_one_does(tmp_path, caplog):
    images, method = Numbered(2 * CHUNK + 3), SlidingWindows((3.0,), stride=0.5)
    with caplog.at_level("INFO"):
        several = Proposals(images, method, tmp_path / "2", count=7, workers=2)
    assert f"{len(images)} of {len(images)} images" in caplog.text
    one = Proposals(images, method, tmp_path / "1", count=7, workers=1)
    rows = np.arange(len(images))
    assert np.array_equal(several(rows), one(rows))
    for index in (0, CHUNK, len(images) - 1):
        expected = padded_boxes(method.boxes(images([index])[0], 0), 7)
        assert np.array_equal(one([index])[0], expected)


def test_an_error_leaves_no_file(tmp_path):
    nan = float("nan")
    for fault in ((0, 0, 10, 2), (-1, 0, 2, 2), (2, 2, 2, 4), (0, 0, nan, 2), (0, 0, 0, 0)):
        with pytest.raises(ValueError, match="proposal 0 of image 3 is not a box inside the image"):
            made(tmp_path, method=Corner(fault=tuple(map(float, fault))))
    assert not list(tmp_path.iterdir())
    for options, message in (
        ({"count": 0}, "not 0 and 1"),
        ({"workers": 0}, "not 3 and 0"),
        ({"images": Numbered(0)}, "there are no images"),
    ):
        with pytest.raises(ValueError, match=message):
            made(tmp_path, **options)


def test_the_methods_have_the_protocol():
    pytest.importorskip("skimage", reason='selective search needs scikit-image (extra "images")')
    for method in (SelectiveSearch(), SlidingWindows()):
        assert isinstance(method, ProposalMethod)
    assert SelectiveSearch().settings != SelectiveSearch("quality").settings
