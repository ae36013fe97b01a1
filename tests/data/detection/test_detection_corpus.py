"""Images with objects: exact boxes of scenes, maps between resized and original pixels, and checks of a corpus."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.data.detection import DetectionCorpus, DetectionImages, Objects, scene_detection_corpus
from jaxseq.data.images import ImageFiles, ImageSource, SceneDesign, SceneImages
from jaxseq.data.images.decoding import placement

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")
pytest.importorskip("skimage", reason="needs scikit-image")
pytest.importorskip("sklearn", reason="needs scikit-learn")


class Black:
    """Black images."""

    def __init__(self, count: int, size: tuple[int, int] = (8, 10)):
        self.count, self.size, self.fingerprint = count, size, f"black {count}"

    def __len__(self):
        return self.count

    def __call__(self, indices):
        return np.zeros((len(indices), *self.size, 3), np.uint8)


def objects(*boxes, classes=None, ignored=None):
    rows = np.array(boxes, np.float32).reshape(-1, 4)
    classes = np.zeros(len(rows), np.int32) if classes is None else np.array(classes, np.int32)
    return Objects(rows, classes, np.zeros(len(rows), bool) if ignored is None else np.array(ignored, bool))


def part(*found, prefix, **changes):
    images = DetectionImages(Black(len(found)), found, tuple(f"{prefix}{index}" for index in range(len(found))))
    return images._replace(**changes)


def corpus(**changes):
    parts = {name: part(objects((1, 2, 3, 4)), prefix=name) for name in ("train", "validation", "test")}
    return DetectionCorpus(**{**parts, "class_names": ("cat", "dog"), "description": "made", **changes})


@pytest.fixture(scope="module")
def scenes():
    return scene_detection_corpus(train=40, validation=3, test=4, seed=1)


def test_the_objects_of_scenes_are_their_digits_with_exact_boxes(scenes):
    assert {name: len(found.images) for name, found in scenes.parts.items()} == {
        "train": 40,
        "validation": 3,
        "test": 4,
    }
    assert scenes.class_names == ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    counts = set()
    for found in scenes.parts.values():
        assert isinstance(found.images, SceneImages) and isinstance(found.images, ImageSource)
        for index, (boxes, classes, ignored) in enumerate(found.objects):
            scene = found.images.scene(index)
            assert boxes.tolist() == [list(item.box) for item in scene.objects]
            assert [scenes.class_names[i] for i in classes] == [item.description.digit for item in scene.objects]
            assert not ignored.any()
            counts.add(len(boxes))
    assert counts == {1, 2, 3, 4}
    few = [scene_detection_corpus(SceneDesign(), train=2, validation=1, test=1, seed=seed).sha256 for seed in (1, 1, 2)]
    assert few[0] == few[1] != few[2]


SIDE = st.integers(1, 40)


@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from(["pad", "squash"]))
@settings(deadline=None, max_examples=60)
def test_the_map_of_boxes_is_that_of_the_pixels(tmp_path_factory, height, width, y, x, mode):
    path = tmp_path_factory.getbasetemp() / "white.png"
    Image.new("RGB", (width, height), (255, 255, 255)).save(path)
    images = ImageFiles([path], (y, x), mode=mode, workers=1)
    assert images.original_sizes.tolist() == [[height, width]]
    found = DetectionImages(images, (objects(),), ("a",), images.original_sizes, mode)
    whole = np.array([[0, 0, width, height]], np.float64)
    x1, y1, x2, y2 = found.to_input(0, whole)[0].tolist()
    shown = np.argwhere(images(np.array([0]))[0].any(-1))  # what is not border
    (top, left), (bottom, right) = shown.min(0), shown.max(0) + 1
    np.testing.assert_allclose((x1, y1, x2, y2), (left, top, right, bottom), rtol=1e-14)
    np.testing.assert_allclose(found.to_original(0, found.to_input(0, whole)), whole, rtol=1e-12, atol=1e-9)


@given(
    st.lists(st.tuples(*[st.floats(-50, 50, width=32)] * 4), max_size=4), SIDE, SIDE, st.sampled_from(["pad", "squash"])
)
@settings(deadline=None, max_examples=40)
def test_boxes_return_from_the_pixels_of_the_original_and_empty_ones_stay_empty(boxes, height, width, mode):
    found = part(objects(), prefix="a", original_sizes=np.array([[height, width]]), mode=mode)
    rows = np.array([*boxes, (0, 0, 0, 0)], np.float32).reshape(-1, 4)
    there = found.to_original(0, rows)
    back = found.to_input(0, there)
    assert there.dtype == back.dtype == np.float32
    scale = 40 * 64  # the images have 8 x 10 pixels, the originals up to 40 x 40
    np.testing.assert_allclose(back, rows, atol=scale * np.finfo(np.float32).eps)
    assert not there[-1].any() and not back[-1].any()


def test_without_original_sizes_boxes_are_in_pixels_of_the_images():
    found = part(objects(), prefix="a")
    box = np.array([[1, 2, 3, 4.5]], np.float32)
    assert np.array_equal(found.to_original(0, box), box) and np.array_equal(found.to_input(0, box), box)
    assert found.original_size(0) == (8, 10)
    with pytest.raises(IndexError, match=r"\[0, 1\), not 1"):
        found.to_original(1, box)


def test_a_cropped_image_has_no_place_for_the_whole():
    with pytest.raises(ValueError, match="'crop' does not show the whole image"):
        placement((3, 4), (2, 2), "crop")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ()}, "class names must be given and differ"),
        ({"class_names": ("cat", "cat")}, "class names must be given and differ"),
        (
            {"train": part(objects(), objects(), prefix="t")._replace(images=Black(1))},
            r"unequal numbers .*: \[1, 2, 2\]",
        ),
        ({"train": part(objects(), prefix="t", original_sizes=np.ones((2, 2), np.int64))}, r"\[1, 1, 1, 2\]"),
        ({"train": part(objects(), prefix="t", mode="crop")}, "the train images are cropped"),
        ({"test": part(objects(), prefix="train")}, "the test image 'train0' is also in train"),
        (
            {"train": part(objects((1, 2, 3, 4), classes=[2]), prefix="t")},
            r"'t0': classes must lie in \[0, 2\), not \[2",
        ),
        ({"train": part(objects((1, 2, 1, 4)), prefix="t")}, r"object 0: \[1.0, 2.0, 1.0, 4.0\] is no box"),
        ({"train": part(objects((1, 2, 11, 4)), prefix="t")}, "positive area inside 8 x 10 pixels"),
        ({"train": part(objects((-1, 2, 3, 4)), prefix="t")}, "is no box"),
        ({"train": part(objects((1, 2, np.nan, 4)), prefix="t")}, "is no box"),
        ({"train": part(objects((1, 2, 3, 4), ignored=[]), prefix="t")}, "ignored must be bool, one for each object"),
        (
            {"train": part(objects((1, 2, 3, 4))._replace(classes=np.zeros(1)), prefix="t")},
            "classes must be int32, one for each object, not float64",
        ),
    ],
)
def test_a_corpus_that_contradicts_itself_is_refused(untyped, changes, message):
    with pytest.raises(ValueError, match=message):
        corpus(**changes)


def test_every_part_of_the_content_is_in_the_hash():
    base = corpus().sha256
    changed = [
        {"class_names": ("cat", "cow")},
        {"train": part(objects((1, 2, 3, 5)), prefix="train")},
        {"train": part(objects((1, 2, 3, 4), classes=[1]), prefix="train")},
        {"train": part(objects((1, 2, 3, 4), ignored=[True]), prefix="train")},
        {"train": part(objects((1, 2, 3, 4)), prefix="other")},
        {"train": part(objects((1, 2, 3, 4)), prefix="train", mode="squash")},
        {"train": part(objects((1, 2, 3, 4)), prefix="train", original_sizes=np.array([[3, 3]]))},
        {"train": part(objects((1, 2, 3, 4)), prefix="train", images=Black(1, (9, 10)))},
    ]
    # the fingerprint of black images does not tell sizes apart, but the size of the originals is in the hash
    hashes = {corpus(**change).sha256 for change in changed}
    assert len(hashes) == len(changed) and base not in hashes
    assert corpus(description="other", skipped=("x: y",)).sha256 == base


def test_a_summary_counts_images_objects_classes_and_what_was_skipped():
    train = part(
        objects((1, 2, 3, 4), (1, 2, 3, 4), (0, 0, 1, 1), classes=[1, 1, 0], ignored=[0, 0, 1]), objects(), prefix="t"
    )
    lines = corpus(train=train, skipped=tuple(f"{i}.jpg: broken" for i in range(8))).summary().splitlines()
    assert lines[1] == "  train: 2 images of 8 x 10 (1 without objects), 2 objects, 1 ignored"
    assert lines[2] == "    cat 0, dog 2"
    assert lines[8] == "  skipped: 8" and lines[9] == "    0.jpg: broken" and lines[-1] == "    and 3 more"
    many = corpus(class_names=tuple(f"class {i}" for i in range(103))).summary()
    assert "class 99 0, and 3 more classes" in many and "class 100" not in many
