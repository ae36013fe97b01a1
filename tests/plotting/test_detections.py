"""Boxes on images: what is drawn, labels inside their panels, and clear errors."""

from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `plots`)")

from jaxseq.plotting import detections, draw_detections


class Objects(NamedTuple):
    boxes: np.ndarray
    classes: np.ndarray
    ignored: np.ndarray


class Found(NamedTuple):
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


class Outcomes(NamedTuple):
    detections: np.ndarray
    objects_found: np.ndarray


IMAGE = np.full((24, 32, 3), 90, np.uint8)
OBJECTS = Objects(np.array([[2.0, 2, 12, 20], [20, 4, 30, 20]]), np.array([0, 1]), np.array([False, False]))
FOUND = Found(np.array([[2.0, 3, 12, 20], [14, 1, 19, 6]]), np.array([0.875, 0.25]), np.array([0, 1]))
OUTCOMES = Outcomes(np.array([1, 0]), np.array([True, False]))
NAMES = ["cat", "dog"]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are made."""
    make, made = detections.make_figure, []

    def kept(*sizes, **options):
        made.append(make(*sizes, **options))
        return made[-1]

    monkeypatch.setattr(detections, "make_figure", kept)
    return made


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_detections_are_named_with_their_scores_and_objects_are_dashed(tmp_path, figures):
    file = draw_detections([IMAGE], [OBJECTS], [FOUND], NAMES, tmp_path / "a.png")
    assert file.read_bytes().startswith(b"\x89PNG")
    axes = figures[0].axes[0]
    assert texts(axes) == ["cat 0.88", "dog 0.25"]
    dashed = [patch.get_bbox().extents.tolist() for patch in axes.patches if patch.get_linestyle() != "solid"]
    assert dashed == [[2, 2, 12, 20], [20, 4, 30, 20]]


def test_wrong_detections_and_missed_objects_are_told_apart(tmp_path, figures):
    draw_detections([IMAGE], [OBJECTS], [FOUND], NAMES, tmp_path / "a.png", outcomes=[OUTCOMES], titles=["$one"])
    axes = figures[0].axes[0]
    assert texts(axes) == ["cat 0.88", "✗ dog 0.25", "missed: dog"]
    faces = [text.get_bbox_patch().get_facecolor()[:3] for text in axes.texts]
    assert faces[0] != (1, 1, 1) and faces[1:] == [(1, 1, 1)] * 2
    assert axes.get_title(loc="left") == "$one"
    ignored = OBJECTS._replace(ignored=np.array([False, True]))
    draw_detections([IMAGE], [ignored], [FOUND], NAMES, tmp_path / "b.png", outcomes=[OUTCOMES])
    assert texts(figures[1].axes[0]) == ["cat 0.88", "✗ dog 0.25"]


def test_labels_stay_inside_their_panels_apart_from_one_another(tmp_path, figures):
    corners = np.array([[0.0, 0], [24, 0], [0, 18], [24, 18], [10, 10]])
    boxes = np.concatenate([corners, corners + np.array([8.0, 6])], -1)
    found = Found(boxes, np.linspace(0.9, 0.1, 5), np.array([0, 1, 0, 1, 0]))
    names, images = ["m" * 60, "dog"], [IMAGE[:, :12], IMAGE[:8], IMAGE, IMAGE, IMAGE]
    draw_detections(images, None, [found] * 5, names, tmp_path / "a.png")
    for axes in figures[0].axes:
        panel = axes.get_window_extent()
        assert texts(axes)[1] == "dog 0.70"
        for text in axes.texts:
            place = text.get_window_extent()
            assert panel.x0 <= place.x0 and place.x1 <= panel.x1 and panel.y0 <= place.y0 and place.y1 <= panel.y1
    places = [text.get_window_extent() for text in figures[0].axes[-1].texts]
    for index, place in enumerate(places):
        assert not any(place.overlaps(other) for other in places[:index])


def test_panels_have_the_proportions_of_their_images_and_do_not_overlap(tmp_path, figures):
    images = [IMAGE, IMAGE[:6], IMAGE[:, :4], IMAGE, IMAGE[:3], IMAGE]
    draw_detections(images, None, None, NAMES, tmp_path / "a.png", titles=["a"] * 6)
    panels = [axes.get_window_extent() for axes in figures[0].axes]
    for panel, image in zip(panels, images, strict=True):
        assert panel.height / panel.width == pytest.approx(image.shape[0] / image.shape[1])
    for index, panel in enumerate(panels):
        assert not any(panel.overlaps(other) for other in panels[:index])
    modes = [axes.images[0].get_interpolation() for axes in figures[0].axes]
    assert set(modes) == {"nearest"}


INFINITE = FOUND._replace(boxes=np.full((2, 4), np.inf))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, "0 images: between 1 and 96"),
        ({"images": [IMAGE] * 97}, "97 images: between 1 and 96"),
        ({"images": [IMAGE[..., :2]]}, r"an image is \(24, 32, 2\), not \[Y X 3\]"),
        ({"images": [IMAGE - 90.5]}, "pixels lie in -0.5 to -0.5, not 0 to 255"),
        ({"objects": []}, "objects of 0 images, but 1 images"),
        ({"titles": ["a", "b"]}, "titles of 2 images, but 1 images"),
        ({"objects": None}, "outcomes are of objects and detections: give both"),
        ({"outcomes": [Outcomes(np.array([1]), np.array([True]))]}, r"outcomes of \(1, 1\) .* which are \(2, 2\)"),
        ({"found": [INFINITE]}, "image 0, detections: boxes must be finite with x1 <= x2"),
        ({"found": [FOUND._replace(boxes=np.zeros((2, 3)))]}, r"detections: boxes are \(2, 3\), not \[N 4\]"),
        ({"found": [FOUND._replace(scores=np.zeros(3))]}, r"detections: scores are \(3,\) for 2 boxes"),
        ({"found": [FOUND._replace(scores=np.array([0.5, np.nan]))]}, "detections: scores must be finite"),
        ({"objects": [OBJECTS._replace(classes=np.array([0, 2]))]}, "objects: class 0 to 2 of 2 classes"),
    ],
)
def test_what_cannot_be_drawn_is_refused(untyped, tmp_path, change, message):
    given = {"images": [IMAGE], "objects": [OBJECTS], "found": [FOUND], "outcomes": [OUTCOMES]} | change
    with pytest.raises(ValueError, match=message):
        draw_detections(class_names=NAMES, file=tmp_path / "none.png", **given)
