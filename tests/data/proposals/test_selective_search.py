"""Selective search: its segmentation, features and grouping against their definitions, and the laws of its boxes."""

import itertools
import math

import numpy as np
import pytest

pytest.importorskip("skimage", reason='selective search needs scikit-image (extra "images")')

from jaxseq.analysis import proposal_recall
from jaxseq.data.detection.scenes import scene_objects
from jaxseq.data.images import SceneDesign, SceneImages
from jaxseq.data.proposals import SelectiveSearch, selective_search
from jaxseq.data.proposals.colour_spaces import converted
from jaxseq.data.proposals.grouping import Similarities, grouped
from jaxseq.data.proposals.region_features import derivatives, neighbours, pixel_bins, region_boxes, region_features
from jaxseq.data.proposals.segmentation import segmented, smoothed
from jaxseq.data.proposals.selective_search import STRATEGIES


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def blocks(y, x, side=3):
    """Labels of square blocks."""
    rows, columns = np.arange(y) // side, np.arange(x) // side
    return rows[:, None] * (columns[-1] + 1) + columns[None]


def check(boxes, y, x):
    """Valid boxes inside the image, all different, the whole image among them."""
    assert boxes.dtype == np.float32 and boxes.shape[1:] == (4,)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (x, y)).all() and (boxes[:, :2] < boxes[:, 2:]).all()
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    assert [0, 0, x, y] in boxes.tolist()


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (5, 1), (2, 2), (9, 30), (40, 17)], ids=str)
def test_boxes_are_inside_the_image_and_different_and_hold_the_whole(shape):
    for image in (noise(*shape, 3), noise(*shape, 1), np.full((*shape, 3), 77, np.uint8)):
        check(selective_search(image, min_side=0), *shape)
        check(selective_search(image, "single"), *shape)
    constant = np.zeros((*shape, 3), np.uint8)
    assert selective_search(constant).tolist() == [[0, 0, shape[1], shape[0]]]


@pytest.mark.full
def test_the_boxes_of_the_quality_preset_hold_those_of_the_fast_one():
    image = SceneImages(SceneDesign(size=48), "train", 1)([0])[0]
    fast, quality = (selective_search(image, preset) for preset in ("fast", "quality"))
    check(quality, 48, 48)
    assert {tuple(box) for box in fast.tolist()} <= {tuple(box) for box in quality.tolist()}


def test_presets_have_the_runs_of_the_paper():
    runs = {name: math.prod(map(len, strategy)) for name, strategy in STRATEGIES.items()}
    assert runs == {"single": 1, "fast": 8, "quality": 80}


def test_an_object_of_one_colour_is_found_exactly():
    for box in ((10, 20, 30, 44), (0, 0, 9, 25), (31, 7, 48, 60)):
        image = np.full((60, 48, 3), (40, 90, 160), np.uint8)
        image[box[1] : box[3], box[0] : box[2]] = (220, 60, 50)
        for preset in ("single", "fast"):
            assert list(box) in selective_search(image, preset).tolist()


def test_an_image_of_two_colours_has_three_boxes():
    halves = np.full((30, 40, 3), 200, np.uint8)
    halves[:, 15:] = (20, 120, 30)
    for preset in ("single", "fast"):
        found = selective_search(halves, preset, sigma=0).tolist()
        assert sorted(found) == [[0, 0, 15, 30], [0, 0, 40, 30], [15, 0, 40, 30]]


def test_a_seed_decides_on_the_order_alone():
    image = SceneImages(SceneDesign(), "train", 1)([0])[0]
    first, again, other = (selective_search(image, seed=seed) for seed in (1, 1, (1, 2)))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert sorted(first.tolist()) == sorted(other.tolist())


def test_small_boxes_are_dropped_and_small_regions_merged():
    image = noise(40, 40, 3)
    everything = selective_search(image, "single", min_size=0, min_side=0)
    for side in (6.0, 13.5):
        large = (everything[:, 2:] - everything[:, :2] >= side).all(1)
        assert 1 < large.sum() < len(everything)
        assert np.array_equal(selective_search(image, "single", min_size=0, min_side=side), everything[large])
    assert selective_search(image, "single", min_side=100).tolist() == [[0, 0, 40, 40]]
    assert len(selective_search(image, "single", min_size=100, min_side=0)) < len(everything)
    labels = segmented(smoothed(converted(image, "lab"), 0.8), scale=1.0, min_size=25)
    assert np.bincount(labels.ravel()).min() >= 25


def test_options_shrink_with_the_image():
    image = SceneImages(SceneDesign(), "train", 1)([0])[0]
    ratio = 32 / 500
    same = selective_search(image, "single", scale=ratio**0.5, min_size=round(200 * ratio), min_side=20 * ratio)
    assert np.array_equal(selective_search(image, "single"), same)


def test_bad_images_and_options_are_named():
    for image, message in (
        (noise(4, 4, 2), r"not \[4, 4, 2\]"),
        (noise(0, 4, 3), r"not \[0, 4, 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            selective_search(image)
    with pytest.raises(ValueError, match="scale must be finite and not negative, not -1"):
        SelectiveSearch(scale=-1.0)
    with pytest.raises(ValueError, match="sigma must be finite and not negative, not nan"):
        SelectiveSearch(sigma=math.nan)


def test_other_types_and_presets_are_refused(untyped):
    with pytest.raises(ValueError, match="must be uint8, not float32"):
        SelectiveSearch().boxes(np.zeros((4, 4, 3), np.float32), 0)
    with pytest.raises(ValueError, match="preset='slow'; known: single, fast, quality"):
        SelectiveSearch("slow")


def test_every_colour_space_is_scaled_to_one():
    image = noise(16, 16, 3)
    image[0] = 0
    image[1] = 255
    for space, channels in (("hsv", 3), ("lab", 3), ("rgi", 3), ("hue", 1), ("intensity", 1)):
        values = converted(image, space)
        assert values.shape == (16, 16, channels) and values.dtype == np.float32
        assert values.min() >= 0 and values.max() <= 1
        assert (values[:2] == values[:2, :1]).all(), "one colour, one value"
    assert np.allclose(converted(image, "rgi")[0], [1 / 3, 1 / 3, 0])
    assert np.allclose(converted(image, "intensity")[1], 1)


def test_derivatives_of_a_ramp_are_its_slopes():
    y, x = np.mgrid[:12, :14].astype(np.float32)
    found = derivatives(0.02 * x + 0.03 * y)[:, 5, 6]
    angles = np.arange(8) * math.pi / 4
    assert np.allclose(found, (0.02 * np.cos(angles) + 0.03 * np.sin(angles)).clip(0), atol=1e-6)


def test_boxes_and_neighbours_of_regions_equal_those_found_pixel_by_pixel():
    labels = np.random.default_rng(1).permutation(9)[blocks(8, 7)]
    labels[0, 0] = labels[7, 6]
    expected, pairs = [], set()
    for region in range(9):
        y, x = np.nonzero(labels == region)
        expected.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
    for y, x in np.ndindex(8, 7):
        for a, b in itertools.product((-1, 0, 1), repeat=2):
            if 0 <= y + a < 8 and 0 <= x + b < 7 and labels[y, x] < labels[y + a, x + b]:
                pairs.add((int(labels[y, x]), int(labels[y + a, x + b])))
    assert region_boxes(labels, 9).tolist() == expected
    assert neighbours(labels).tolist() == [list(pair) for pair in sorted(pairs)]


def test_features_of_a_union_are_the_sums_of_its_parts():
    bins, labels = pixel_bins(converted(noise(9, 12, 3), "hsv")), blocks(9, 12)
    parts = region_features(bins, labels)
    assert (parts.colour.sum(1) == 9 * 3).all() and (parts.texture.sum(1) == 9 * 24).all()
    union = region_features(bins, labels // 2)
    for whole, part in ((union.colour, parts.colour), (union.texture, parts.texture), (union.sizes, parts.sizes)):
        assert np.array_equal(whole, part[::2] + part[1::2])
    assert np.array_equal(union.boxes[:, :2], np.minimum(parts.boxes[::2, :2], parts.boxes[1::2, :2]))
    assert np.array_equal(union.boxes[:, 2:], np.maximum(parts.boxes[::2, 2:], parts.boxes[1::2, 2:]))


def grouped_by_force(bins, labels, terms):
    """Algorithm 1 of the paper: every similarity is computed anew from the pixels before each step."""
    regions = {region: labels == region for region in range(labels.max() + 1)}

    def box(mask):
        y, x = np.nonzero(mask)
        return [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]

    def histogram(bins, mask):
        counts = np.stack([np.bincount(channel[mask], minlength=25) for channel in bins])
        return counts / counts.sum()

    def touch(a, b):
        y, x = (np.abs(np.subtract.outer(*places)) <= 1 for places in zip(np.nonzero(a), np.nonzero(b), strict=True))
        return (y & x).any()

    def similarity(a, b):
        sides = box(a | b)
        area = (sides[2] - sides[0]) * (sides[3] - sides[1])
        both = (a | b).sum()
        return (
            terms.colour * np.minimum(histogram(bins.colour, a), histogram(bins.colour, b)).sum()
            + terms.texture * np.minimum(histogram(bins.texture, a), histogram(bins.texture, b)).sum()
            + terms.size * (1 - both / labels.size)
            + terms.fill * (1 - (area - both) / labels.size)
        )

    boxes = [box(mask) for mask in regions.values()]
    while len(regions) > 1:
        pairs = [(a, b) for a, b in itertools.combinations(regions, 2) if touch(regions[a], regions[b])]
        a, b = max(pairs, key=lambda pair: similarity(regions[pair[0]], regions[pair[1]]))
        merged = regions.pop(a) | regions.pop(b)
        regions[len(boxes)] = merged
        boxes.append(box(merged))
    return boxes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("terms", [(1, 1, 1, 1), (0, 1, 1, 1), (1, 0, 0, 0), (0, 1, 0, 1)], ids=str)
def test_grouping_equals_the_paper_s_algorithm_in_plain_loops(seed, terms):
    image = noise(10, 11, 3, seed=seed)
    bins = pixel_bins(converted(image, "hsv"))
    # regions of unlike sizes and shapes, so that no two pairs are equally similar
    seeds = np.random.default_rng(seed).uniform(0, 10, (8, 2))
    y, x = np.mgrid[:10, :11]
    labels = np.unique(((y[..., None] - seeds[:, 0]) ** 2 + (x[..., None] - seeds[:, 1]) ** 2).argmin(-1))
    labels = np.searchsorted(labels, ((y[..., None] - seeds[:, 0]) ** 2 + (x[..., None] - seeds[:, 1]) ** 2).argmin(-1))
    chosen = Similarities(*map(bool, terms))
    got = grouped(region_features(bins, labels), neighbours(labels), chosen)
    assert got.tolist() == grouped_by_force(bins, labels, chosen)


def test_nine_in_ten_objects_of_new_scenes_are_covered_by_300_proposals():
    images = SceneImages(SceneDesign(size=64, objects=(1, 4), digit_sizes=(14, 22)), "test", 12)

    found = [selective_search(image, seed=index) for index, image in enumerate(images(range(12)))]
    got = proposal_recall(found, [scene_objects(images, index) for index in range(12)], numbers=(300,), ious=(0.5, 0.7))
    assert got.objects > 20
    assert got.at(300, 0.5) >= 0.9 and got.at(300, 0.7) >= 0.9
