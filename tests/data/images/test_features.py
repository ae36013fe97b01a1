"""Features of a frozen encoder: computed once, kept on disk, computed again if anything differs."""

import numpy as np
import pytest

from jaxseq.data.images import CaptionBatches, FeatureCache


class Numbered:
    """Image i has the value i everywhere."""

    def __init__(self, count=5, fingerprint="numbered"):
        self.count, self.fingerprint = count, fingerprint

    def __len__(self):
        return self.count

    def __call__(self, indices):
        return np.broadcast_to(indices[:, None, None, None], (len(indices), 2, 2, 3)).astype(np.uint8)


class Encode:
    """The sum of each row of pixels, and the number of calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, images):
        self.calls.append(len(images))
        return images.astype(np.float32).sum((2, 3))[..., None] + 0.5


def made(folder, encode, images=None, **options):
    options = {"weights_sha256": "abc", "fields": {"backbone": "small"}, "batch_size": 2} | options
    return FeatureCache(Numbered() if images is None else images, encode, folder, **options)


def test_features_are_computed_once_and_read_by_index(tmp_path):
    encode = Encode()
    first, second = made(tmp_path, encode), made(tmp_path, encode)
    assert encode.calls == [2, 2, 2]
    for features in (first, second):
        assert (len(features), features.shape) == (5, (2, 1))
        found = features(np.array([4, 0, 4]))
        assert found.dtype == np.float32
        assert found[:, :, 0].tolist() == [[24.5] * 2, [0.5] * 2, [24.5] * 2]
    assert first.fingerprint == second.fingerprint
    with pytest.raises(IndexError, match="5"):
        first(np.array([5]))
    data = CaptionBatches(first, [[[1, 2]]] * 5, 2, separator=0)
    assert data(0).images.shape == (2, 2, 1)


def test_other_images_weights_or_fields_are_computed_anew_beside_the_old(tmp_path):
    encode, prints = Encode(), set()
    others = [{}, {"images": Numbered(4)}, {"images": Numbered(5, "other")}, {"weights_sha256": "abd"}]
    others += [{"fields": {"backbone": "small", "stride": 2}}]
    for count, other in enumerate(others, 1):
        prints.add(made(tmp_path, encode, **other).fingerprint)
        assert len(prints) == len(list(tmp_path.iterdir())) == count
    before = len(encode.calls)
    made(tmp_path, encode, batch_size=3)
    assert len(encode.calls) == before


def test_a_damaged_file_is_computed_again(tmp_path, caplog):
    encode = Encode()
    expected = made(tmp_path, encode)(np.arange(5))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-3], bytes([whole[0] ^ 1]) + whole[1:]):
        path.write_bytes(damaged)
        caplog.clear()
        assert np.array_equal(made(tmp_path, encode)(np.arange(5)), expected)
        assert "the old ones cannot be used" in caplog.text


def test_an_error_of_the_encoder_leaves_no_file(tmp_path):
    wrong = [
        (lambda images: images.sum((1, 2, 3)), "must be floats"),
        (lambda images: np.zeros((1, 3), np.float32), r"features of shape \(1, 3\) for 2 images"),
        (lambda images: np.where(images[:, 0, 0, :1] == 4, np.nan, 1.0), "images 4 to 4 are not finite"),
        (lambda images: 1 / 0, "division"),
    ]
    for encode, message in wrong:
        with pytest.raises((ValueError, ZeroDivisionError), match=message):
            made(tmp_path, encode)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="there are no images"):
        made(tmp_path, Encode(), Numbered(0))
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        made(tmp_path, Encode(), batch_size=0)
