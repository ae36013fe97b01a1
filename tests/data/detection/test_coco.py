"""Objects in COCO's layouts: what is written is read back, everything that is left out is named."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.data.detection import (
    DETECTION_SCENES,
    DetectionImages,
    Objects,
    read_coco_instances,
    scene_detection_corpus,
    write_coco_corpus,
    write_coco_instances,
)
from jaxseq.data.images import ImageOptions

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

OPTIONS = ImageOptions(size=(4, 6), mode="squash", workers=1)


@pytest.fixture
def folder(tmp_path):
    """Six different images of 4 x 6 pixels, a.jpg to f.jpg; none named missing.jpg."""
    for index, letter in enumerate("abcdef"):
        Image.new("RGB", (6, 4), (40 * index, 0, 0)).save(tmp_path / f"{letter}.jpg")
    return tmp_path


def instances(images, annotations, categories=((3, "cat"), (7, "dog"))):
    """The layout of instances_train2017.json."""
    return {
        "info": {"description": "COCO 2017 Dataset", "year": 2017},
        "licenses": [{"id": 4}],
        "images": [
            {"license": 3, "file_name": name, "height": 4, "width": 6, "date_captured": "2013-11-14", "id": key}
            for key, name in images
        ],
        "annotations": [
            {
                "segmentation": [[1.0, 2.0, 3.0, 4.0]],
                "area": 2.5,
                "iscrowd": crowd,
                "image_id": image,
                "bbox": box,
                "category_id": category,
                "id": key,
            }
            for key, (image, category, box, crowd) in enumerate(annotations)
        ],
        "categories": [{"supercategory": "animal", "id": key, "name": name} for key, name in categories],
    }


def written(path, document):
    path.write_text(json.dumps(document) if not isinstance(document, str) else document, encoding="utf-8")
    return path


def found_in(corpus):
    """The objects of each image as (class, box, ignored); fails if an image is in two parts."""
    found = {}
    for part in corpus.parts.values():
        for name, objects in zip(part.names, part.objects, strict=True):
            assert name not in found
            rows = zip(*(array.tolist() for array in objects), strict=True)
            found[name] = [(corpus.class_names[index], box, ignored) for box, index, ignored in rows]
    return found


def said(skipped, *fragments):
    """Every message holds one of the fragments, in order."""
    assert len(skipped) == len(fragments), skipped
    for line, fragment in zip(skipped, fragments, strict=True):
        assert fragment in line


def test_scenes_written_as_files_are_read_back_equal(tmp_path):
    pytest.importorskip("skimage", reason="needs scikit-image")
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    scenes = scene_detection_corpus(train=4, validation=2, test=2)
    pairs = write_coco_corpus(tmp_path, scenes)
    options = ImageOptions((DETECTION_SCENES.size, DETECTION_SCENES.size), "pad", workers=1)
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        options = ImageOptions(options.size, "pad", cache, workers=1)
        corpus = read_coco_instances(*pairs["train"], held_out=pairs["validation"], test=pairs["test"], images=options)
        assert corpus.class_names == scenes.class_names and not corpus.skipped
        for name, part in corpus.parts.items():
            other, every = scenes.parts[name], np.arange(len(scenes.parts[name].names))
            assert part.names == other.names and len(part.images) == len(every)
            assert np.array_equal(part.images(every), other.images(every))
            for a, b in zip(part.objects, other.objects, strict=True):
                assert all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))
    with pytest.raises(FileExistsError, match=r"train\.json exists"):
        write_coco_corpus(tmp_path, scenes)


def test_instances_are_read_and_every_fault_is_named(folder):
    document = instances(
        [(1, "a.jpg"), (2, "b.jpg"), (3, "missing.jpg"), (2, "c.jpg"), ("5", "d.jpg"), (6, "../x.jpg"), (7, "e.jpg")],
        [
            (1, 3, [1, 0.5, 2, 3], 0),
            (1, "7", [0, 0, 6, 4], 1),
            (2, 3, [-1, 1, 3, 9], 0),
            (2, 3, [6, 1, 3, 2], 0),
            (5, 3, [1, 1, 0, 2], 0),
            (5, 7, [1, 1, 2, -2], 0),
            (5, 7, [1, 1, 2, float("nan")], 0),
            (5, 7, [1, 1, 10**400, 2], 0),
            (5, 7, [1, 1, "2", 2], 0),
            (5, 7, [1, 1, 2], 0),
            (5, 7, None, 0),
            (5, 99, [1, 1, 2, 2], 0),
            (5, 7, [1, 1, 2, 2], 2),
            (99, 7, [1, 1, 2, 2], 0),
            (6, 7, [1, 1, 2, 2], 0),
            (3, 7, [1, 1, 2, 2], 0),
            (5, 7, [-1e308, 1, 1.7e308, 2], 0),
            (5, 7, [1e308, 1, 1e308, 2], 0),
            (5, 7, [1, 1, 5.005, 2], 0),
        ],
        [(3, "cat"), (7, " dog\n"), (7, "cow"), (8, "cat"), (9, " "), (True, "x")],
    )
    document["annotations"] += [{"image_id": 5, "id": 1000, "category_id": 7, "bbox": [1, 1, 2, 2]}, 7]
    document["annotations"] += [dict(document["annotations"][0], bbox=[0, 0, 1, 1])]
    document["images"][4]["width"] = "6"
    corpus = read_coco_instances(written(folder / "instances.json", document), folder, images=OPTIONS)
    assert corpus.class_names == ("cat", "dog")
    assert found_in(corpus) == {
        "a.jpg": [("cat", [1.0, 0.5, 3.0, 3.5], False), ("dog", [0.0, 0.0, 6.0, 4.0], True)],
        "b.jpg": [("cat", [0.0, 1.0, 2.0, 4.0], False)],
        "d.jpg": [
            ("dog", [0.0, 1.0, 6.0, 3.0], False),
            ("dog", [1.0, 1.0, 6.0, 3.0], False),
            ("dog", [1.0, 1.0, 3.0, 3.0], False),
        ],
        "e.jpg": [],
    }
    assert all("missing" in line or str(folder / "instances.json") in line for line in corpus.skipped)
    said(
        sorted(corpus.skipped, key=lambda line: "partly" in line or "outside of" in line),
        "categories[2]: the id 7 for a second time (name 'cow')",
        "categories[3]: the name 'cat' for a second time, with the id 8: one class",
        "categories[4].name: not a name: ' '",
        "categories[5].id: must be an integer or a string, not true",
        "images[3]: the id 2 for a second time (file_name 'c.jpg')",
        'images[4].width: must be an integer, not "6"; the size of the file is taken',
        "images[5].file_name: not a path below the folder: '../x.jpg'",
        "annotations[4].bbox: a box without area: 1 1 1 3",
        "annotations[5].bbox: a box without area: 1 1 3 -1",
        "annotations[6].bbox[3]: not finite: NaN",
        "annotations[7].bbox[2]: not finite: 1000",
        'annotations[8].bbox[2]: must be a number, not "2"',
        "annotations[9].bbox: must be x, y, width and height, not [1, 1, 2]",
        "annotations[10].bbox: must be a list, not null",
        "annotations[11].category_id: the unknown category 99",
        "annotations[12].iscrowd: must be 0 or 1, not 2",
        "annotations[13]: an annotation of the unknown image 99",
        "annotations[14]: an annotation of the skipped image 6",
        "annotations[20]: must be an object, not 7",
        "annotations[21]: the id 0 for a second time (bbox [0, 0, 1, 1])",
        "missing.jpg: no such file",
        *sorted(line for line in corpus.skipped if "partly" in line or "outside of" in line),
    )
    clipped = "\n".join(corpus.skipped)
    assert "annotations[2].bbox: a box partly outside of the image of 6 x 4 pixels, cut off there: -1 1 2 10" in clipped
    assert "annotations[3].bbox: a box outside of the image of 6 x 4 pixels: 6 1 9 3" in clipped
    assert "annotations[16].bbox: a box partly outside" in clipped
    assert "annotations[17].bbox: a box outside of the image" in clipped
    assert "annotations[18]" not in clipped  # within the rounding
    assert f"skipped: {len(corpus.skipped)}" in corpus.summary() and "1 ignored" in corpus.summary()


@pytest.mark.parametrize("orientation", [None, 6])
def test_an_image_of_another_size_than_declared_is_skipped_with_its_objects(folder, orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", (6, 4), (0, 0, 200)).save(folder / "turned.jpg", exif=exif)
    document = instances([(1, "turned.jpg"), (2, "b.jpg")], [(1, 3, [1, 1, 2, 2], 0)] * 2)
    corpus = read_coco_instances(written(folder / "instances.json", document), folder, images=OPTIONS)
    if orientation is None:
        assert set(found_in(corpus)) == {"turned.jpg", "b.jpg"} and not corpus.skipped
    else:
        assert set(found_in(corpus)) == {"b.jpg"}
        said(corpus.skipped, "images[0]: the size 6 x 4, but upright turned.jpg has 4 x 6: skipped with 2 objects")


def test_boxes_follow_their_images_through_the_resizing_and_back(folder):
    Image.new("RGB", (20, 10), (255, 255, 255)).save(folder / "wide.png")
    document = instances([(1, "wide.png")], [(1, 3, [0, 0, 20, 10], 0), (1, 7, [5, 2, 10, 4], 0)])
    del document["images"][0]["width"], document["images"][0]["height"]
    path = written(folder / "instances.json", document)
    boxes = {"pad": [[0, 2, 11, 8], [2.75, 3.2, 8.25, 5.6]], "squash": [[0, 0, 11, 11], [2.75, 2.2, 8.25, 6.6]]}
    for mode, expected in boxes.items():
        corpus = read_coco_instances(path, folder, images=ImageOptions((11, 11), mode, workers=1))
        (part,) = (part for part in corpus.parts.values() if part.names)
        np.testing.assert_allclose(part.objects[0].boxes, expected, rtol=1e-6)
        assert part.images(np.array([0]))[0, :, :, 0].any(1).sum() == expected[0][3] - expected[0][1]
        original = part.to_original(0, part.objects[0].boxes)
        np.testing.assert_allclose(original, [[0, 0, 20, 10], [5, 2, 15, 6]], rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="'crop' cuts objects off; use pad or squash"):
        read_coco_instances(path, folder, images=ImageOptions((11, 11), "crop"))
    tiny = instances([(1, "wide.png")], [(1, 3, [1, 1, 1e-9, 2], 0), (1, 3, [19.0, 1, 1e-9, 2], 0)])
    corpus = read_coco_instances(
        written(path, tiny | {"images": document["images"]}), folder, images=ImageOptions((11, 11), "pad", workers=1)
    )
    said(corpus.skipped, *["a box without area in the resized image"] * 2)


def test_further_files_are_held_out_and_their_classes_are_matched_by_name(folder):
    first = instances([(1, "a.jpg"), (2, "b.jpg")], [(1, 3, [1, 1, 2, 2], 0)])
    second = instances(
        [(9, "c.jpg"), (8, "d.jpg")], [(9, 1, [1, 1, 2, 2], 0), (8, 2, [1, 1, 2, 2], 0)], [(1, "dog"), (2, "cow")]
    )
    third = instances([(9, "e.jpg"), (7, "a.jpg")], [])
    train = written(folder / "train.json", first)
    held_out = (written(folder / "val.json", second), folder)
    test = (written(folder / "test.json", third), folder)
    corpus = read_coco_instances(train, folder, held_out=held_out, test=test, images=OPTIONS)
    assert {name: part.names for name, part in corpus.parts.items()} == {
        "train": ("a.jpg", "b.jpg"),
        "validation": ("c.jpg", "d.jpg"),
        "test": ("e.jpg",),
    }
    assert corpus.class_names == ("cat", "dog", "cow")
    assert [name for objects in found_in(corpus).values() for name, _, _ in objects] == ["cat", "dog", "cow"]
    said(corpus.skipped, "images[1]: the file_name 'a.jpg' for a second time, with the id 7: one image")
    divided = read_coco_instances(train, folder, held_out=held_out, images=OPTIONS)
    assert set(divided.train.names) == {"a.jpg", "b.jpg"}
    assert set(divided.validation.names) | set(divided.test.names) == {"c.jpg", "d.jpg"}
    with pytest.raises(ValueError, match="test needs held_out"):
        read_coco_instances(train, folder, test=test, images=OPTIONS)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "instances.json: not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", r"must be an object, not \[\]"),
        ({"images": [], "annotations": []}, "categories: missing"),
        ({"images": {}, "annotations": [], "categories": []}, "images: must be a list, not {}"),
        (instances([], []), "no usable image; 0 skipped"),
        (instances([(1, "missing.jpg")], []), "no usable image; 1 skipped; .*missing.jpg: no such file"),
        (instances([(1, "a.jpg")], [], []), "no usable class; 0 skipped"),
    ],
)
def test_a_file_without_any_usable_image_or_class_is_refused(folder, document, message):
    with pytest.raises(ValueError, match=message):
        read_coco_instances(written(folder / "instances.json", document), folder, images=OPTIONS)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_coco_instances(folder / "none.json", folder)


class Black:
    size, fingerprint = (4, 6), "black"

    def __len__(self):
        return 1

    def __call__(self, indices):
        return np.zeros((len(indices), 4, 6, 3), np.uint8)


def test_nothing_is_written_outside_of_the_folder_or_over_other_files(folder):
    none = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool))
    for name in ("../a", "/a", "a\0"):
        with pytest.raises(ValueError, match="paths below the folder"):
            write_coco_instances(folder / "x.json", folder, DetectionImages(Black(), (none,), (name,)), ["cat"])
    (folder / "a.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"a\.png exists"):
        write_coco_instances(folder / "x.json", folder, DetectionImages(Black(), (none,), ("a",)), ["cat"])
    assert (folder / "a.png").read_bytes() == b"mine" and not (folder / "x.json").exists()


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
PLAUSIBLE = ANY | st.sampled_from([1, 2, 3, 7, "a.jpg", "b.jpg", "cat", 1e308, -1e308, 10**400])
BOX = st.lists(st.floats(-10, 10) | PLAUSIBLE, min_size=3, max_size=5)
FIELDS = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox", "iscrowd"),
}


@pytest.mark.full
@given(st.data())
@settings(deadline=None, max_examples=50)
def test_any_json_is_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    if not folder.is_dir():
        folder.mkdir()
        for name in ("a.jpg", "b.jpg"):
            Image.new("RGB", (6, 4), (0, 0, 10 * len(list(folder.iterdir())))).save(folder / name)
    good = instances(
        [(1, "a.jpg"), (2, "b.jpg")], [(1, 3, [1, 1, 2, 2], 0), (2, 7, [0, 1, 2, 2], 0), (2, 7, [0, 1, 1, 1], 0)]
    )
    document = copy.deepcopy(good)
    for _ in range(data.draw(st.integers(1, 4))):
        name = data.draw(st.sampled_from(list(FIELDS)))
        index = data.draw(st.integers(0, len(good[name]) - 1))
        key = data.draw(st.sampled_from(FIELDS[name]))
        value = data.draw(BOX if key == "bbox" else PLAUSIBLE)
        items = document[name]
        if isinstance(items, list) and index < len(items) and isinstance(items[index], dict):
            change = data.draw(st.sampled_from(["field", "field", "field", "missing", "item", "list"]))
            if change == "list":
                document[name] = value
            elif change == "item":
                items[index] = value
            elif change == "missing":
                items[index].pop(key, None)
            else:
                items[index][key] = value
    path = written(folder / "instances.json", document)
    try:
        corpus = read_coco_instances(path, folder, images=OPTIONS)
    except ValueError as error:
        assert str(path) in str(error)
        return
    kept = sum(len(objects.boxes) for part in corpus.parts.values() for objects in part.objects)
    named = sum("annotations[" in line and "partly" not in line for line in corpus.skipped)
    gone = any("same pixels" in line or "skipped with" in line or "no such" in line for line in corpus.skipped)
    assert gone or kept + named == len(document["annotations"])  # every object is kept or named, or its image is
