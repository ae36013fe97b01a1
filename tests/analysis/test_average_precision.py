"""VOC's average precision: worked out by hand, against plain Python, and what leaves it unchanged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.analysis import Found, average_precision, best_operating_point, detection_outcomes, proposal_recall
from tests.analysis.detection_cases import a_box, cases, plain_overlap, some_found, some_objects

A, B, C, FAR = (0, 0, 10, 10), (20, 0, 30, 10), (0, 20, 10, 30), (90, 90, 99, 99)
NAMES = ["cat", "dog"]


def ap_of(found, objects, **options):
    return [each.ap for each in average_precision(found, objects, NAMES, **options).classes]


def test_average_precision_worked_out_by_hand():
    found = [some_found((A, 0.9, 0), (B, 0.7, 0), (FAR, 0.6, 0), (A, 0.8, 0))]  # right, right, wrong, a second one
    objects = [some_objects((A, 0), (B, 0), (C, 0))]
    made = average_precision(found, objects, NAMES)
    cat, dog = made.classes
    np.testing.assert_allclose(cat.precision, [1, 1 / 2, 2 / 3, 2 / 4])
    np.testing.assert_allclose(cat.recall, [1 / 3, 1 / 3, 2 / 3, 2 / 3])
    np.testing.assert_array_equal(cat.scores, [0.9, 0.8, 0.7, 0.6])
    assert (cat.objects, cat.correct, cat.ap) == (3, 2, pytest.approx((1 + 2 / 3) / 3))
    # r = 0 to 0.3 has 1, r = 0.4 to 0.6 has 2/3
    assert ap_of(found, objects, method="11-point")[0] == pytest.approx((4 + 3 * 2 / 3) / 11)
    assert (made.mean, made.missing, dog.ap) == (cat.ap, ("dog",), None)
    assert made.signature == "VOC-AP|iou:0.5|method:area|classes:1|ties:in-order|scale:0-1|version:average-precision.1"


def test_recall_that_equals_one_of_eleven_points_reaches_it():
    places = [(20 * i, 0, 20 * i + 9, 9) for i in range(10)]
    objects = [some_objects(*((place, 0) for place in places))]
    for correct in range(11):  # 0.3 and 0.6 are not multiples of 0.1 in floating point
        found = [some_found(*((place, 0.5, 0) for place in places[:correct]))]
        assert ap_of(found, objects, method="11-point")[0] == pytest.approx((correct + bool(correct)) / 11)


def test_an_overlap_of_the_threshold_is_enough():
    found, objects = [some_found(((0, 0, 1, 1), 0.5, 0))], [some_objects(((0, 0, 2, 1), 0))]
    assert ap_of(found, objects) == [1, None]
    assert ap_of(found, objects, iou=0.5000001) == [0, None]


def test_without_detections_it_is_0_and_without_objects_there_is_none():
    assert ap_of([some_found()], [some_objects((A, 0))]) == [0, None]
    nothing = average_precision([some_found((A, 0.5, 0))], [some_objects()], NAMES)
    assert (nothing.mean, nothing.missing) == (None, ("cat", "dog"))
    assert np.isnan(nothing.classes[0].recall).all() and nothing.classes[0].precision.tolist() == [0]
    ignored = average_precision([some_found((A, 0.5, 0))], [some_objects((A, 0, True))], NAMES)
    assert (ignored.mean, len(ignored.classes[0].precision)) == (None, 0)


def test_ignored_objects_neither_count_nor_penalise():
    objects = [some_objects((A, 0, True), (B, 0))]
    assert ap_of([some_found((A, 0.9, 0), (A, 0.8, 0), (B, 0.7, 0))], objects) == [1, None]
    assert ap_of([some_found((FAR, 0.9, 0), (B, 0.7, 0))], objects) == [1 / 2, None]


def test_a_detection_belongs_to_its_nearest_object_even_if_that_is_found():
    taller = (0, 0, 10, 8)
    found, objects = [some_found((A, 0.9, 0), (A, 0.8, 0))], [some_objects((A, 0), (taller, 0))]
    assert ap_of(found, objects) == [1 / 2, None]
    assert detection_outcomes(found, objects, NAMES)[0].objects_found.tolist() == [True, False]
    assert ap_of([found[0].above(0.9)], objects) == [1 / 2, None] and ap_of([found[0].above(0.91)], objects) == [
        0,
        None,
    ]


def test_equal_scores_keep_the_order_given():
    objects = [some_objects((A, 0)), some_objects((A, 0))]
    first = [some_found((A, 0.5, 0)), some_found((FAR, 0.5, 0), (A, 0.5, 0))]
    assert average_precision(first, objects, NAMES).classes[0].precision.tolist() == [1, 1 / 2, 2 / 3]
    assert average_precision(first[::-1], objects, NAMES).classes[0].precision.tolist() == [0, 1 / 2, 2 / 3]


def plain_outcomes(found, objects, kind, iou):
    """The outcomes by the rules, one detection after the other: (score, image, place, 1 or 0 or None)."""
    rows = [(s, i, n) for i, each in enumerate(found) for n, s in enumerate(each.scores) if each.classes[n] == kind]
    reached, made = set(), []
    for score, image, place in sorted(rows, key=lambda row: -row[0]):
        there = objects[image]
        overlaps = [
            (plain_overlap(found[image].boxes[place], there.boxes[j]), j)
            for j in range(len(there.boxes))
            if there.classes[j] == kind
        ]
        best, j = max(overlaps, key=lambda pair: (pair[0], -pair[1]), default=(0, 0))
        if best < iou:
            made.append((score, image, place, 0))
        elif there.ignored[j]:
            made.append((score, image, place, None))
        else:
            made.append((score, image, place, int((image, j) not in reached)))
            reached.add((image, j))
    return made


def plain_ap(found, objects, kind, iou, method):
    number = sum(int(((each.classes == kind) & ~each.ignored).sum()) for each in objects)
    outcomes = [row[3] for row in plain_outcomes(found, objects, kind, iou) if row[3] is not None]
    if not number:
        return None
    points = [(sum(outcomes[:n]), sum(outcomes[:n]) / n) for n in range(1, len(outcomes) + 1)]
    if method == "area":
        return sum(max((p for c, p in points if c >= k), default=0) for k in range(1, number + 1)) / number
    return sum(max((p for c, p in points if 10 * c >= k * number), default=0) for k in range(11)) / 11


@settings(deadline=None, max_examples=60)
@given(cases(), st.sampled_from([0.25, 0.5, 0.7, 1.0]), st.sampled_from(["area", "11-point"]))
def test_it_is_its_definition(case, iou, method):
    found, objects = case
    for kind, ap in enumerate(ap_of(found, objects, iou=iou, method=method)):
        assert ap == (
            None if (wanted := plain_ap(found, objects, kind, iou, method)) is None else pytest.approx(wanted)
        )
    outcomes = detection_outcomes(found, objects, NAMES, iou=iou)
    for kind in range(2):
        for _, image, place, outcome in plain_outcomes(found, objects, kind, iou):
            assert outcomes[image].detections[place] == (-1 if outcome is None else outcome)
    made = average_precision(found, objects, NAMES, iou=iou)
    correct = sum(each.correct for each in made.classes)
    assert correct == sum((each.detections == 1).sum() for each in outcomes)
    reached = [each.objects_found & ~there.ignored for each, there in zip(outcomes, objects, strict=True)]
    assert correct == sum(each.sum() for each in reached) == sum(each.objects_found.sum() for each in outcomes)


@settings(deadline=None, max_examples=40)
@given(cases())
def test_the_best_operating_point_has_the_largest_f1_of_all_scores(case):
    found, objects = case
    number = sum(int((~each.ignored).sum()) for each in objects)
    scores = sorted({float(score) for each in found for score in each.scores}, reverse=True)
    points = []
    for score in scores:
        outcomes = detection_outcomes([each.above(score) for each in found], objects, NAMES)
        right, wrong = (sum(int((each.detections == kind).sum()) for each in outcomes) for kind in (1, 0))
        points.append((2 * right / (right + wrong + number) if right else 0.0, right, right + wrong, score))
    best = best_operating_point(found, objects, NAMES)
    if not points or not max(points)[1]:
        assert best is None
        return
    f1, right, taken, score = max(points, key=lambda point: point[0])
    assert best == pytest.approx((score, right / taken, right / number, f1))


@settings(deadline=None, max_examples=40)
@given(cases(), st.integers(0, 3))
def test_what_leaves_it_unchanged_and_what_never_raises_it(case, score):
    found, objects = case
    before = ap_of(found, objects)
    scale = np.array([4.0, 0.5, 4.0, 0.5])
    scaled = [each._replace(boxes=scale * each.boxes) for each in found]
    assert ap_of(scaled, [each._replace(boxes=scale * each.boxes) for each in objects]) == before
    assert ap_of([each._replace(scores=np.exp(each.scores) - 7) for each in found], objects) == before
    for added, same in ((score, False), (-1, True)):
        wrong = some_found((FAR, added, 0))
        more = [Found(*map(np.concatenate, zip(found[0], wrong, strict=True))), *found[1:]]
        after = ap_of(more, objects)
        assert after[1] == before[1]
        assert after[0] == before[0] if same or before[0] is None else after[0] <= before[0]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(a_box(0, 6).filter(lambda b: b[0] < b[2] and b[1] < b[3]), unique=True), min_size=1, max_size=3)
)
def test_a_perfect_detector_has_1(images):
    objects = [some_objects(*((box, n % 2, n % 5 == 4) for n, box in enumerate(boxes))) for boxes in images]
    found = [some_found(*((box, 0.5, n % 2) for n, box in enumerate(boxes))) for boxes in images]
    for method in ("area", "11-point"):
        assert set(ap_of(found, objects, method=method)) <= {1, None}


GOOD = some_found((A, 0.5, 0))


@pytest.mark.parametrize(
    ("found", "names", "message"),
    [
        (
            GOOD._replace(scores=np.array([np.nan])),
            NAMES,
            "image 0, detections: scores must be finite numbers, not nan",
        ),
        (GOOD._replace(scores=np.array([[0.5]])), NAMES, r"scores are \(1, 1\) for 1 boxes"),
        (GOOD._replace(boxes=np.array([[0.0, 0, np.inf, 1]])), NAMES, r"box \[0.0, 0.0, inf, 1.0\] is not finite"),
        (GOOD._replace(boxes=np.array([[3.0, 0, 2, 1]])), NAMES, r"box \[3.0, 0.0, 2.0, 1.0\] is not .* x1 <= x2"),
        (GOOD._replace(boxes=np.zeros((1, 5))), NAMES, r"boxes are float64 \(1, 5\), not numbers \[N 4\]"),
        (GOOD._replace(classes=np.array([2])), NAMES, "class 2 of 2 classes"),
        (GOOD._replace(classes=np.array([-1])), NAMES, "class -1 of 2 classes"),
        (GOOD._replace(classes=np.array([0.5])), NAMES, "classes must be whole numbers, not float64"),
        (GOOD, ["a", "a"], "class names must be one or more, and different"),
        (GOOD, [], "class names must be one or more, and different"),
    ],
)
def test_what_cannot_be_scored_is_named(untyped, found, names, message):
    with pytest.raises(ValueError, match=message):
        average_precision([found], [some_objects((A, 0))], names)


def test_images_methods_and_thresholds_are_checked(untyped):
    for found, objects, message in (
        ([], [], "no images to score"),
        ([GOOD], [], "detections of 1 images, but objects of 0"),
        ([GOOD], [some_objects((A, 0))._replace(ignored=np.array([0]))], "ignored must be of dtype bool, not int64"),
    ):
        with pytest.raises(ValueError, match=message):
            average_precision(found, objects, NAMES)
    with pytest.raises(ValueError, match="unknown method '101-point'; known: area, 11-point"):
        average_precision([GOOD], [some_objects()], NAMES, method="101-point")
    with pytest.raises(ValueError, match=r"iou must be in \(0, 1\], not 0"):
        average_precision([GOOD], [some_objects()], NAMES, iou=0)


@settings(deadline=None, max_examples=40)
@given(cases())
def test_recall_of_proposals_is_the_share_of_objects_that_the_first_ones_cover(case):
    found, objects = case
    counted = [(i, box) for i, each in enumerate(objects) for box in each.boxes[~each.ignored]]
    proposals = [np.concatenate([each.boxes, np.zeros((2, 4))]) for each in found]
    if not counted:
        with pytest.raises(ValueError, match="no objects that count"):
            proposal_recall(proposals, objects)
        return
    made = proposal_recall(proposals, objects, numbers=(1, 2, 50), ious=(0.3, 0.5, 1.0))
    kept = [[box for box in each if box.any()] for each in proposals]
    for row, number in enumerate(made.numbers):
        for column, iou in enumerate(made.ious):
            hits = [any(plain_overlap(p, box) >= iou for p in kept[i][:number]) for i, box in counted]
            assert made.recall[row, column] == pytest.approx(sum(hits) / len(hits))
    assert (made.objects, made.mean_number) == (len(counted), pytest.approx(sum(map(len, kept)) / len(kept)))


def test_numbers_and_thresholds_of_proposals_are_checked():
    objects = [some_objects((A, 0))]
    for options, message in (
        ({"numbers": (3, 1)}, r"numbers must be one or more and increase, not \(3, 1\)"),
        ({"numbers": (0,)}, "numbers of proposals must be 1 or more, not 0"),
        ({"ious": ()}, r"ious must be one or more and increase, not \(\)"),
        ({"ious": (0.5, 1.5)}, r"iou must be in \(0, 1\], not 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            proposal_recall([np.zeros((0, 4))], objects, **options)
