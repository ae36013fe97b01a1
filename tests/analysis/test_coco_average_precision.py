"""COCO's average precision: by hand, against plain Python and against COCO's libraries."""

import sys
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings

from jaxseq.analysis import Found, average_precision, coco_average_precision
from tests.analysis.detection_cases import cases, plain_area, plain_overlap, random_case, some_found, some_objects

A, B, FAR = (0, 0, 10, 10), (20, 0, 30, 10), (900, 900, 990, 990)
NAMES = ["cat", "dog"]
IOUS, RECALLS = np.linspace(0.5, 0.95, 10), np.linspace(0, 1, 101)
MODULES = {"faster-coco-eval": "faster_coco_eval", "pycocotools": "pycocotools"}


def numbers(scores):
    """All scores of CocoScores, -1 for None."""
    values = [value for value in asdict(scores).values() if not isinstance(value, str)]
    flat = [each for value in values for each in (value.values() if isinstance(value, dict) else [value])]
    return [-1 if each is None else each for each in flat]


def test_worked_out_by_hand():
    # Overlap 0.6 with A: correct at IoU 0.5, 0.55 and 0.6. B is found exactly, after a wrong one.
    found = [some_found(((0, 0, 10, 6), 0.9, 0), (FAR, 0.8, 0), (B, 0.7, 0))]
    made = coco_average_precision(found, [some_objects((A, 0), (B, 0))], NAMES)
    both = (51 + 50 * 2 / 3) / 101  # p = 1 up to recall 0.5, then 2/3
    one = 51 / 101 * 1 / 3  # the second of two objects, found third
    assert made.ap50 == pytest.approx(both)
    assert made.ap75 == pytest.approx(one)
    assert made.ap == pytest.approx((3 * both + 7 * one) / 10)
    assert made.ar == {1: pytest.approx(0.3 * 0.5), 10: pytest.approx(0.65), 100: pytest.approx(0.65)}
    # the wrong one lies outside the range of small areas
    assert made.ap_small == pytest.approx((3 * 1 + 7 * 51 / 101 * 1 / 2) / 10)
    assert (made.ap_medium, made.ap_large, made.ar_large) == (None, None, None)
    assert (made.class_ap, made.class_ap50) == ({"cat": made.ap, "dog": None}, {"cat": made.ap50, "dog": None})
    assert made.signature == (
        "COCO-boxes|classes:1|iou:0.50:0.95:0.05|recalls:101|max-dets:1,10,100|area:box|ignored:crowd|scale:0-1|"
        "version:coco-average-precision.1"
    )


def test_a_crowd_takes_any_number_of_detections_that_lie_in_it():
    inside = ((0, 0, 3, 3), (4, 4, 7, 7), A)
    objects = [some_objects((A, 0, True), (B, 0))]
    found = [some_found(*((box, 0.9, 0) for box in inside), (B, 0.5, 0))]
    assert coco_average_precision(found, objects, NAMES).ap == 1
    # VOC divides by the union: the small ones are wrong
    assert average_precision(found, objects, NAMES).mean == pytest.approx(1 / 3)


def test_a_detection_gets_the_next_object_if_the_nearest_is_found():
    found, objects = [some_found((A, 0.9, 0), (A, 0.8, 0))], [some_objects((A, 0), ((0, 0, 10, 8), 0))]
    assert coco_average_precision(found, objects, NAMES).ap50 == 1
    assert average_precision(found, objects, NAMES).mean == 1 / 2


WIDE = (0, 0, 20, 10)  # overlaps its two halves by 0.5 each
HALVES = ([some_found((WIDE, 0.9, 0), ((10, 0, 20, 10), 0.8, 0))], [some_objects((A, 0), ((10, 0, 20, 10), 0))])
SQUARES = [(0, 0, 32, 32), (100, 0, 196, 96)]  # small and medium; medium and large
EDGES = ([some_found(*((box, 0.5, 0) for box in SQUARES))], [some_objects(*((box, 0) for box in SQUARES))])


def test_of_equal_overlaps_the_last_is_taken():
    assert coco_average_precision(*HALVES, NAMES).ap50 == pytest.approx(51 / 101)
    assert coco_average_precision(HALVES[0], [some_objects(((10, 0, 20, 10), 0), (A, 0))], NAMES).ap50 == 1


def test_ranges_of_areas_have_both_their_ends():
    made = coco_average_precision(*EDGES, NAMES)
    assert (made.ap_small, made.ap_medium, made.ap_large, made.ar_medium) == (1, 1, 1, 1)


def test_no_detections_and_no_objects():
    assert coco_average_precision([some_found()], [some_objects((A, 0))], NAMES).ap == 0
    assert set(numbers(coco_average_precision([some_found((A, 1, 0))], [some_objects()], NAMES))) == {-1}


def plain_class(found, objects, kind, iou, limit, low, high):
    """Precision at each recall and the greatest recall, one detection after the other; None without objects."""
    number, rows = 0, []
    for here, there in zip(found, objects, strict=True):
        those = [j for j in range(len(there.boxes)) if there.classes[j] == kind]
        ignored = {j: there.ignored[j] or not low <= plain_area(there.boxes[j]) <= high for j in those}
        number += sum(not each for each in ignored.values())
        taken = set()
        ours = sorted((n for n in range(len(here.boxes)) if here.classes[n] == kind), key=lambda n: -here.scores[n])
        for n in ours[:limit]:
            box, choice = here.boxes[n], []
            for j in those:
                overlap = plain_overlap(box, there.boxes[j], crowd=there.ignored[j])
                if overlap >= iou and (there.ignored[j] or j not in taken):
                    choice.append((not ignored[j], overlap, j))
            best = max(choice, default=None)
            if best is not None:
                taken.add(best[2])
            if best[0] if best else low <= plain_area(box) <= high:
                rows.append((here.scores[n], best is not None))
    if not number:
        return None
    rows = [right for _, right in sorted(rows, key=lambda row: -row[0])]
    points = [(sum(rows[:n]) / number, sum(rows[:n]) / n) for n in range(1, len(rows) + 1)]
    return [max((p for r, p in points if r >= recall), default=0) for recall in RECALLS], sum(rows) / number


@settings(deadline=None, max_examples=60)
@given(cases(scale=16))
def test_it_is_its_definition(case):
    found, objects = case
    made = coco_average_precision(found, objects, NAMES, max_detections=(1, 3))
    ranges = {"ap": (0, 1e10), "ap_small": (0, 32**2), "ap_medium": (32**2, 96**2)}
    for name, (low, high) in ranges.items():
        each = [[plain_class(found, objects, kind, iou, 3, low, high) for iou in IOUS] for kind in range(2)]
        known = [np.mean([precision for precision, _ in rows]) for rows in each if rows[0] is not None]
        assert getattr(made, name) == (pytest.approx(np.mean(known)) if known else None)
    for limit, recall in made.ar.items():
        each = [[plain_class(found, objects, kind, iou, limit, 0, 1e10) for iou in IOUS] for kind in range(2)]
        known = [np.mean([recall for _, recall in rows]) for rows in each if rows[0] is not None]
        assert recall == (pytest.approx(np.mean(known)) if known else None)


@settings(deadline=None, max_examples=30)
@given(cases())
def test_what_leaves_it_unchanged_and_what_never_raises_it(case):
    found, objects = case
    before = coco_average_precision(found, objects, NAMES)
    scale = np.array([4.0, 0.5, 4.0, 0.5])
    scaled = [[each._replace(boxes=scale * each.boxes) for each in group] for group in case]
    assert coco_average_precision(*scaled, NAMES).class_ap == before.class_ap
    higher = [each._replace(scores=np.exp(each.scores) - 7) for each in found]
    assert coco_average_precision(higher, objects, NAMES) == before
    for score in (-1, 2):
        more = [Found(*map(np.concatenate, zip(found[0], some_found((FAR, score, 0)), strict=True))), *found[1:]]
        after = coco_average_precision(more, objects, NAMES)
        assert before.ap is None if after.ap is None else after.ap <= before.ap
        assert score > 0 or after.ap == before.ap
    # all objects found exactly, in any order; boxes without area cannot be
    kept = [[row for row in zip(*each, strict=True) if plain_area(row[0])] for each in objects]
    perfect = [some_found(*((box, n, kind) for n, (box, kind, _) in enumerate(rows))) for rows in kept]
    assert coco_average_precision(perfect, [some_objects(*rows) for rows in kept], NAMES).ap in (1, None)


@pytest.mark.parametrize("library", MODULES)
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.full) for part in range(1, 6))])
def test_all_scores_are_those_of_the_library(library, part, capfd):
    pytest.importorskip(MODULES[library], reason=f"{library} is not installed")
    drawn = [random_case(seed) for seed in range(20 * part, 20 * part + 20)]
    for index, (found, objects, names) in enumerate([(*HALVES, NAMES), (*EDGES, NAMES), *drawn]):
        limits = ((1, 10, 100), (2,), (3, 5, 7))[index % 3]
        ours = coco_average_precision(found, objects, names, max_detections=limits)
        theirs = coco_average_precision(found, objects, names, max_detections=limits, implementation=library)
        np.testing.assert_allclose(numbers(ours), numbers(theirs), rtol=0, atol=1e-12)
        assert f"|version:{library}." in theirs.signature
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("library", MODULES)
def test_without_the_library_the_error_tells_how_to_install_it(library, monkeypatch):
    for name in (MODULES[library], f"{MODULES[library]}.coco"):
        monkeypatch.setitem(sys.modules, name, None)
    install = r"'jaxseq\[vision\]'" if library == "faster-coco-eval" else "pycocotools"
    with pytest.raises(ImportError, match=f"by {library} need it: pip install {install}"):
        coco_average_precision([some_found()], [some_objects()], NAMES, implementation=library)


def test_arguments_are_checked(untyped):
    found, objects = [some_found((A, np.nan, 0))], [some_objects((A, 0))]
    with pytest.raises(ValueError, match="image 0, detections: scores must be finite numbers, not nan"):
        coco_average_precision(found, objects, NAMES)
    for limits in ((), (0, 1), (10, 10), (10, 1)):
        with pytest.raises(ValueError, match="max_detections must be 1 or more and increase"):
            coco_average_precision([some_found()], objects, NAMES, max_detections=limits)
    with pytest.raises(ValueError, match="unknown implementation 'detectron'; known: numpy, faster-coco-eval"):
        coco_average_precision([some_found()], objects, NAMES, implementation="detectron")
