"""Detections in the layout of COCO's results: what is written is read back, everything that is left out is named."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.data.detection import ScoredBoxes, read_coco_ids, read_coco_results, write_coco_results


def written(path, document):
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def ids_file(folder, images):
    """A file of instances with these images (id, name) and two classes."""
    items = [{"id": key, "file_name": name} for key, name in images]
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"name": "cow"}]
    return written(folder / "ids.json", {"images": items, "categories": categories})


def scored(*rows):
    boxes = np.array([row[:4] for row in rows], np.float32).reshape(-1, 4)
    return ScoredBoxes(
        boxes, np.array([row[4] for row in rows], np.float32), np.array([row[5] for row in rows], np.int32)
    )


@given(st.lists(st.lists(st.tuples(*[st.floats(0, 500, width=32)] * 4, st.floats(0, 1, width=32), st.integers(0, 1)))))
@settings(deadline=None, max_examples=25)
def test_results_written_are_read_back_equal(tmp_path_factory, found):
    folder = tmp_path_factory.getbasetemp()
    names = [f"{index}.jpg" for index in range(len(found))]
    document = [(f"x{index}", name) for index, name in enumerate(names)]
    ids = read_coco_ids(ids_file(folder, document))
    assert ids.categories == {"cat": 3, "dog": 7}
    sorted_rows = [[(*sorted((a, c)), *sorted((b, d)), *rest) for a, b, c, d, *rest in rows] for rows in found]
    expected = [scored(*((x1, y1, x2, y2, *rest) for x1, x2, y1, y2, *rest in rows)) for rows in sorted_rows]
    write_coco_results(folder / "results.json", expected, names, ["dog", "cat"], ids)
    back = read_coco_results(folder / "results.json", names, ["dog", "cat"], ids)
    assert not back.skipped
    for a, b in zip(back.found, expected, strict=True):
        assert all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


def test_results_that_cannot_be_used_are_named(tmp_path):
    ids = read_coco_ids(ids_file(tmp_path, [(1, "a.jpg"), (1, "b.jpg"), (None, "c.jpg")]))
    assert ids.images == {"a.jpg": 1}
    whole = str(tmp_path / "a.jpg")
    assert read_coco_ids(tmp_path / "ids.json", tmp_path).images == {"a.jpg": 1, whole: 1}
    good = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}
    items = [
        good,
        good | {"image_id": 2},
        good | {"category_id": 4},
        good | {"bbox": [1, 2, -1, 4]},
        good | {"score": 1e39},
        good | {"score": float("inf")},
        {**good, "score": None},
        {key: value for key, value in good.items() if key != "score"},
        5,
    ]
    found = read_coco_results(written(tmp_path / "results.json", items), ["a.jpg"], ["cat"], ids)
    assert found.found[0].boxes.tolist() == [[1, 2, 4, 6]]
    expected = (
        "[1]: a detection of the unknown image 2",
        "[2]: a detection of the unknown category 4",
        "[3].bbox: a box of negative size: [1, 2, -1, 4]",
        "[4]: a number that is not finite as float32",
        "[5].score: not finite: Infinity",
        "[6].score: must be a number, not null",
        "[7].score: missing",
        "[8]: must be an object, not 5",
    )
    assert len(found.skipped) == len(expected)
    assert all(fragment in line for line, fragment in zip(found.skipped, expected, strict=True))
    with pytest.raises(ValueError, match=r"must be a list, not \{\}"):
        read_coco_results(written(tmp_path / "results.json", {}), ["a.jpg"], ["cat"], ids)
    written(tmp_path / "results.json", [])
    with pytest.raises(ValueError, match=r"the image 'b\.jpg' has no id"):
        read_coco_results(tmp_path / "results.json", ["b.jpg"], ["cat"], ids)


@pytest.mark.parametrize(
    ("rows", "names", "classes", "message"),
    [
        ([scored()], ["a.jpg", "b.jpg"], ["cat"], "detections of 1 images, but 2 names"),
        ([scored()], ["z.jpg"], ["cat"], r"the image 'z\.jpg' has no id"),
        ([scored()], ["a.jpg"], ["emu"], "the class 'emu' has no id"),
        ([scored((1, 2, 3, 4, 0.5, 1))], ["a.jpg"], ["cat"], r"classes must lie in \[0, 1\), not 1"),
        ([scored((1, 2, 3, 4, np.nan, 0))], ["a.jpg"], ["cat"], "'a.jpg': not finite"),
    ],
)
def test_detections_that_cannot_be_written_are_refused(tmp_path, rows, names, classes, message):
    ids = read_coco_ids(ids_file(tmp_path, [(1, "a.jpg"), (2, "b.jpg")]))
    with pytest.raises(ValueError, match=message):
        write_coco_results(tmp_path / "results.json", rows, names, classes, ids)
    assert not (tmp_path / "results.json").exists()
