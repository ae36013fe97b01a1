"""Scenes: reproducible, disjoint in parts, boxes and relations that hold in the pixels, captions that parse."""

import dataclasses
import itertools
import sys

import numpy as np
import pytest

from jaxseq.data.images import (
    CaptionCorpus,
    CaptionedImages,
    Description,
    SceneDesign,
    SceneImages,
    caption_slots,
    mentions,
    scene_corpus,
    scene_layouts,
    scenes,
)
from jaxseq.data.images.scene_captions import COLOURS, DIGITS, PLACES, RELATIONS, SIZES, captions_of, converse
from jaxseq.data.images.scene_layouts import FORMS, MARGIN, uniform
from jaxseq.data.images.scenes import GREY, PHOTOGRAPHS, RGB, SPLITS, enlarged

for name in ("sklearn", "skimage"):
    pytest.importorskip(name, reason="the extra 'images' is not installed")

DESIGNS = {
    "two": SceneDesign(objects=(2, 2)),
    "one": SceneDesign(objects=(1, 1), size=32, contrast=1.0),
    "up to four, two sizes": SceneDesign(objects=(1, 4), size=64, digit_sizes=(12, 18), colours=8, contrast=0.0),
    "three": SceneDesign(objects=(3, 3), size=48, references=1),
}
COUNT = 80
MARKED = [pytest.param(name, marks=[] if name == "two" else [pytest.mark.full]) for name in DESIGNS]


@pytest.fixture(scope="module", params=MARKED)
def images(request) -> SceneImages:
    return SceneImages(DESIGNS[request.param], "train", COUNT)


def scenes_of(images):
    return [images.scene(index) for index in range(len(images))]


def test_an_image_depends_on_nothing_but_design_split_seed_and_index(images):
    everything = images(np.arange(COUNT))
    assert everything.dtype == np.uint8 and everything.shape == (COUNT, *images.size, 3)
    order = np.random.default_rng(0).permutation(COUNT)[:30]
    assert np.array_equal(images(order), everything[order])
    assert np.array_equal(images(order[:1]), everything[order[:1]])
    fewer = SceneImages(images.design, "train", 20)
    assert np.array_equal(fewer(np.arange(20)), everything[:20])
    assert scenes_of(fewer) == scenes_of(images)[:20]
    assert images(np.array([], int)).shape == (0, *images.size, 3)
    assert SceneImages(images.design, "train", COUNT).fingerprint == images.fingerprint != fewer.fingerprint
    for other in (SceneImages(images.design, "test", 20), SceneImages(images.design, "train", 20, seed=1)):
        assert other.fingerprint != images.fingerprint
        assert (other(np.arange(20)) != everything[:20]).any((1, 2, 3)).all()


@pytest.mark.full
def test_every_field_of_a_design_is_in_the_fingerprint():
    base = SceneDesign()
    others = dict(objects=(2, 2), size=56, digit_sizes=(15,), colours=5, contrast=0.25, references=3, distorted=False)
    assert others.keys() == {field.name for field in dataclasses.fields(SceneDesign)}
    designs = [base, *(dataclasses.replace(base, **{name: value}) for name, value in others.items())]
    assert len({SceneImages(design, "test", 3).fingerprint for design in designs}) == len(designs)


def test_splitmix64_gives_its_published_numbers():
    numbers = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # of seed 0
    states = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert scene_layouts._mixed(states).tolist() == numbers
    drawn = uniform((3, 1), np.arange(20_000), 5)
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert np.abs(drawn.mean(0) - 0.5).max() < 0.01 and np.abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 0.03


def layout(scene):
    """The layout: the descriptions of the digits, and their relations or place."""
    return scene.descriptions, scene.relations


@pytest.mark.parametrize("name", MARKED)
def test_parts_share_no_digit_image_no_layout_no_caption_and_no_photograph(name):
    glyphs, layouts, captions = ([set() for _ in SPLITS] for _ in range(3))
    for place, split in enumerate(SPLITS):
        for seed in (0, 1):
            made = SceneImages(DESIGNS[name], split, 1200 if split == "train" else 150, seed=seed)
            real = np.arange(made.layouts.glyph.shape[1]) < made.layouts.number[:, None]
            glyphs[place] |= set(made.layouts.glyph[real].tolist())
            layouts[place] |= set(map(layout, scenes_of(made)))
            captions[place] |= set(itertools.chain(*made.captions()))
    photographs = [set(PHOTOGRAPHS[split]) for split in SPLITS]
    for sets in (glyphs, layouts, captions, photographs):
        assert all(sets) and not any(a & b for a, b in itertools.combinations(sets, 2))
    if name == "two":
        assert all(len(part) > 0.75 * count for part, count in zip(layouts, (2400, 300, 300), strict=True))
        assert all(120 <= len(part) <= 220 for part in glyphs[1:])


def test_a_box_holds_what_is_visible_of_its_digit_and_no_more():
    design = SceneDesign(objects=(1, 1), size=40, digit_sizes=(13, 20), colours=8, contrast=0.0)
    made = SceneImages(design, "train", 40)
    assert made.captions()[0] == captions_of(made.scene(0).descriptions, made.scene(0).relations)
    for index, image in enumerate(made(np.arange(40)).astype(float)):
        (found,) = made.scene(index).objects
        colour = RGB[COLOURS.index(found.description.colour)].astype(float)
        channel = np.abs(colour - GREY).argmax()
        opacity = (image[..., channel] - GREY) / (colour[channel] - GREY)
        assert abs(image - GREY - opacity[..., None] * (colour - GREY)).max() < 3  # it has this colour
        x1, y1, x2, y2 = map(int, found.box)
        rounding = 1 / abs(colour[channel] - GREY)
        visible = np.argwhere(opacity >= 0.25 + rounding)
        assert (visible.min(0) >= (y1, x1)).all() and (visible.max(0) < (y2, x2)).all()
        inside = opacity[y1:y2, x1:x2] >= 0.25 - rounding
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
        assert max(x2 - x1, y2 - y1) <= {"small": 13, "large": 20}[found.description.size]


def test_relations_hold_between_the_boxes_and_are_clear(images):
    size = images.design.size
    counts = set()
    for scene in scenes_of(images):
        counts.add(len(scene.objects))
        assert len(set(scene.descriptions)) == len(scene.objects)
        boxes = [scene_object.box for scene_object in scene.objects]
        for x1, y1, x2, y2 in boxes:
            assert 0 <= x1 < x2 <= size and 0 <= y1 < y2 <= size
        for (a1, b1, a2, b2), (c1, d1, c2, d2) in itertools.combinations(boxes, 2):
            assert a2 <= c1 or c2 <= a1 or b2 <= d1 or d2 <= b1
        centres = [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in boxes]
        if len(boxes) == 1:
            ((x, y),) = centres
            assert scene.relations == (f"{'top' if y < size / 2 else 'bottom'} {'left' if x < size / 2 else 'right'}",)
            assert min(abs(x - size / 2), abs(y - size / 2)) >= MARGIN * size
        for ((x, y), (u, v)), relation in zip(itertools.pairwise(centres), scene.relations, strict=len(boxes) > 1):
            wide, high = abs(u - x), abs(v - y)
            assert abs(wide - high) >= MARGIN * size
            assert relation == (
                ("above" if y < v else "below") if high > wide else ("left of" if x < u else "right of")
            )
            assert len(boxes) == 2 or v - y >= MARGIN * size
    low, high = images.design.objects
    assert counts == set(range(low, high + 1))


def test_all_numbers_of_digits_are_as_frequent_even_where_few_layouts_have_room():
    number = SceneImages(SceneDesign(digit_sizes=(15,)), "train", 3000).layouts.number
    assert abs((number == 2).mean() - 0.5) < 0.03


def test_training_digits_are_distorted_alone():
    count = 400
    forms = {split: SceneImages(SceneDesign(), split, count).layouts.form for split in SPLITS}
    assert set(forms["train"].ravel().tolist()) == set(range(len(FORMS)))
    assert not forms["validation"].any() and not forms["test"].any()
    assert not SceneImages(SceneDesign(distorted=False), "train", count).layouts.form.any()
    bar = np.zeros((1, 8, 8), np.float32)
    bar[:, :, 4] = 1
    rows = np.arange(16)
    for width, slant in FORMS:
        drawn = enlarged(bar, 16, width, slant)[0]
        centre = (drawn * (rows + 0.5)).sum(1) / drawn.sum(1) - 8
        expected = width * 1 + slant * (rows + 0.5 - 8)  # the bar is half a pixel right of the centre, enlarged twice
        assert np.abs(centre - expected).max() < 0.15


def test_every_caption_gives_back_the_slots_of_its_scene(images):
    for scene, references in zip(scenes_of(images), images.captions(), strict=True):
        assert len(references) == len(set(references)) <= images.design.references
        objects = tuple(description.digit for description in scene.descriptions)
        attributes = tuple(description.attribute for description in scene.descriptions)
        for place, caption in enumerate(references):
            slots = caption_slots(caption)
            if place % 2 and len(objects) > 1:
                assert slots == (objects[::-1], attributes[::-1], tuple(map(converse, scene.relations[::-1])))
            else:
                assert slots == (objects, attributes, scene.relations)
            words = caption.split()
            named = mentions(caption, scene.descriptions)
            assert sorted(index for _, index in named) == list(range(len(objects)))
            assert all(words[word] == scene.descriptions[index].digit for word, index in named)


def test_captions_read_as_intended():
    pair = [Description("three", "red", "small"), Description("seven", "orange", "large")]
    assert captions_of(pair, ["above"]) == (
        "a small red three above a large orange seven",
        "a large orange seven below a small red three",
        "a small red three over a large orange seven",
        "a large orange seven under a small red three",
    )
    single = [Description("one", "orange")]
    assert captions_of(single, ["top left"], 4) == ("an orange one at the top left", "an orange one in the top left")
    chain = [Description("six", "red"), Description("six", "blue"), Description("two", "red")]
    assert captions_of(chain, ["left of", "above"], 2) == (
        "a red six left of a blue six above a red two",
        "a red two below a blue six right of a red six",
    )
    assert [converse(relation) for relation in RELATIONS] == ["below", "right of", "above", "left of"]


def test_the_parser_takes_the_whole_grammar_and_nothing_else():
    known = set()
    sizes = (None, *SIZES)
    for digit, colour, size in itertools.product(DIGITS[:3], COLOURS, sizes):
        first, second = Description(digit, colour, size), Description("nine", "orange")
        for place in PLACES:
            known |= {(caption, ((digit,), (first.attribute,), (place,))) for caption in captions_of([first], [place])}
        for relation in RELATIONS:
            for caption in captions_of([first, second], [relation])[::2]:
                known.add((caption, ((digit, "nine"), (first.attribute, "orange"), (relation,))))
    assert all(caption_slots(caption) == slots for caption, slots in known)
    random = np.random.default_rng(0)
    words = sorted({word for caption, _ in known for word in caption.split()} | {"", "purple ", "Red", "ein"})
    texts, accepted = sorted(caption for caption, _ in known), 0
    for _ in range(3000):
        changed = texts[random.integers(len(texts))].split()
        place = random.integers(len(changed) + 1)
        changed[place : place + random.integers(3)] = random.choice(words, random.integers(3)).tolist()
        text = " ".join(changed)
        slots = caption_slots(text)
        if slots is not None:
            accepted += 1
            pairs = zip(slots.objects, slots.attributes, strict=True)
            descriptions = [Description(digit, *reversed(attribute.split())) for digit, attribute in pairs]
            assert text in captions_of(descriptions, slots.relations)
    assert 60 < accepted < 1500
    for text in (
        "",
        " ",
        "a",
        "a red",
        "a red three",
        "an red three above a blue one",
        "a red three above",
        "a red three at the top left above a red one",
        "a red three above a red one at the top left",
        "A red three above a blue one",
        "a red three  above a blue one",
        "a red three to the above a red one",
    ):
        assert caption_slots(text) is None
        assert mentions(text, [Description("three", "red")]) == ()


def test_a_mention_of_another_description_is_left_out():
    known = [Description("one", "blue"), Description("three", "red")]
    assert mentions("a red three above a blue one", known) == ((2, 1), (6, 0))
    assert mentions("a red four above a blue one", known) == ((6, 0),)
    assert mentions("a small red three at the top left", known) == ()


def test_a_corpus_has_the_parts_it_was_asked_for():
    design = SceneDesign(objects=(2, 2))
    corpus = scene_corpus(design, train=30, validation=5, test=6)
    assert [len(part.images) for part in corpus.parts.values()] == [30, 5, 6]
    assert all(part.captions == part.images.captions() for part in corpus.parts.values())
    assert len({name for part in corpus.parts.values() for name in part.names}) == 41
    assert corpus.sha256 == scene_corpus(design, train=30, validation=5, test=6).sha256
    assert corpus.sha256 != scene_corpus(design, train=30, validation=5, test=6, seed=1).sha256
    assert corpus.sha256 != scene_corpus(SceneDesign(references=3), train=30, validation=5, test=6).sha256
    assert "train: 30 images of 32 x 32, 60 captions" in corpus.summary() and corpus.sha256 in corpus.summary()


def test_a_corpus_that_does_not_fit_is_refused():
    parts = dict(scene_corpus(train=3, validation=2, test=2).parts, description="photos")
    test = parts["test"]
    changes = {
        "photos: test holds 2 images, 1 lists of captions and 2 names": (test.captions[:1], test.names),
        "photos: the test image 'test/000001' has no caption": ((test.captions[0], ()), test.names),
        "photos: the test image 'train/000002' is also in train": (test.captions, ("x", "train/000002")),
    }
    for message, (captions, names) in changes.items():
        with pytest.raises(ValueError, match=message):
            CaptionCorpus(**parts | {"test": CaptionedImages(test.images, captions, names)})
    skipped = CaptionCorpus(**parts, skipped=tuple(f"{k}.jpg: broken" for k in range(7)))
    assert "skipped: 7" in skipped.summary() and "and 2 more" in skipped.summary()


def test_designs_that_cannot_be_are_refused(untyped, monkeypatch):
    refused = {
        "objects must be .* not \\(0, 2\\)": dict(objects=(0, 2)),
        "objects must be .* not \\(3, 2\\)": dict(objects=(3, 2)),
        "objects must be .* not \\(1, 5\\)": dict(objects=(1, 5)),
        "one or two increasing sides, not \\(18, 12\\)": dict(digit_sizes=(18, 12)),
        "one or two increasing sides, not \\(\\)": dict(digit_sizes=()),
        "between 8 and the image's size 32, not \\(7,\\)": dict(digit_sizes=(7,)),
        "between 8 and the image's size 32, not \\(16, 33\\)": dict(digit_sizes=(16, 33)),
        "colours must be 1 to 8, not 9": dict(colours=9),
        "contrast must be in \\[0, 1\\], not 1.5": dict(contrast=1.5),
        "references must be 1 to 4, not 0": dict(references=0),
    }
    for message, fields in refused.items():
        with pytest.raises(ValueError, match=message):
            SceneDesign(**fields)
    with pytest.raises(ValueError, match="split='dev'; known: train, validation, test"):
        SceneImages(SceneDesign(), "dev", 3)
    with pytest.raises(ValueError, match="at least 1 image, not 0"):
        SceneImages(SceneDesign(), "test", 0)
    crowded = r"no room: 50 draws of 4 digits of \(24,\) pixels in an image of 48 .* image 0"
    with monkeypatch.context() as patched, pytest.raises(ValueError, match=crowded):
        patched.setattr(scene_layouts, "MAX_ATTEMPTS", 50)
        SceneImages(SceneDesign(objects=(4, 4), size=48, digit_sizes=(24,)), "test", 1)
    with pytest.raises(ValueError, match="no photograph of the validation part is as large as the image: size=700"):
        SceneImages(SceneDesign(size=700), "validation", 1)
    made = SceneImages(SceneDesign(), "test", 3)
    for indices in ([3], [-1], [0, 7]):
        with pytest.raises(IndexError, match=r"must lie in \[0, 3\)"):
            made(np.array(indices))


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    for module, reader in {"sklearn.datasets": scenes._glyphs, "skimage.data": scenes._grounds}.items():
        with monkeypatch.context() as patched:
            reader.cache_clear()
            patched.setitem(sys.modules, module, None)
            with pytest.raises(ImportError, match=r'pip install "jaxseq\[images\]"'):
                scene_corpus(train=1, validation=1, test=1)
