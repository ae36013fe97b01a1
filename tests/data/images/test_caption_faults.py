"""Captions in the layout of COCO that only unusual files have."""

import bisect
import json

import pytest

from jaxseq.data.images import ImageOptions, read_coco_captions

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

OPTIONS = ImageOptions(size=(2, 3), workers=1)


@pytest.fixture
def folder(tmp_path):
    """Different images: a.jpg, b.jpg, and val/b.jpg."""
    (tmp_path / "val").mkdir()
    for index, name in enumerate(("a.jpg", "b.jpg", "val/b.jpg")):
        Image.new("RGB", (6, 4), (50 * index, 0, 0)).save(tmp_path / name)
    return tmp_path


def written(path, *images):
    """A file of images (a name and its captions)."""
    found = [{"id": key, "file_name": name} for key, (name, *_) in enumerate(images)]
    texts = [(key, text) for key, (_, *captions) in enumerate(images) for text in captions]
    annotations = [{"id": key, "image_id": image, "caption": text} for key, (image, text) in enumerate(texts)]
    path.write_text(json.dumps({"images": found, "annotations": annotations}), encoding="utf-8")
    return path


def captions(corpus):
    parts = corpus.parts.values()
    return {name: texts for part in parts for name, texts in zip(part.names, part.captions, strict=True)}


def test_equal_file_names_in_two_folders_are_two_images(folder):
    train = written(folder / "train.json", ("a.jpg", "a"), ("b.jpg", "b of train"))
    val = written(folder / "val.json", ("b.jpg", "b of val"), ("c.jpg", "c"))
    corpus = read_coco_captions(train, folder, held_out=(val, folder / "val"), images=OPTIONS)
    held_out = str(folder / "val" / "b.jpg")
    assert captions(corpus) == {"a.jpg": ("a",), "b.jpg": ("b of train",), held_out: ("b of val",)}
    assert set(corpus.train.names) == {"a.jpg", "b.jpg"}
    assert corpus.skipped == (f"{folder / 'val' / 'c.jpg'}: no such file",)
    same = read_coco_captions(train, folder, held_out=(val, folder), images=OPTIONS)
    assert captions(same) == {"a.jpg": ("a",), "b.jpg": ("b of train", "b of val")}
    assert "images[0]: the file_name 'b.jpg' for a second time" in same.skipped[0]


def test_a_caption_without_end_is_named(folder):
    long = "a" + "\u0301" * 2_000_000 + "\u0327" * 2_000_000
    path = written(folder / "captions.json", ("a.jpg", long, "x" * 10_000, "x" * 10_001))
    corpus = read_coco_captions(path, folder, images=OPTIONS)
    assert captions(corpus) == {"a.jpg": ("x" * 10_000,)}
    assert "a caption of 4,000,001 characters, more than 10,000: 'a" in corpus.skipped[0]
    assert "a caption of 10,001 characters" in corpus.skipped[1]


def test_a_value_nested_as_deep_as_json_allows_is_named_or_refused(folder):
    def is_json(depth):
        nested = "[" * depth + "]" * depth
        annotations = f'[{{"id": 1, "image_id": 1, "caption": "a"}}, {{"id": 2, "image_id": 1, "caption": {nested}}}]'
        text = f'{{"images": [{{"id": 1, "file_name": "a.jpg"}}], "annotations": {annotations}}}'
        (folder / "captions.json").write_text(text, encoding="utf-8")
        try:
            corpus = read_coco_captions(folder / "captions.json", folder, images=OPTIONS)
        except ValueError as error:
            assert "not JSON" in str(error)
            return False
        assert captions(corpus) == {"a.jpg": ("a",)}
        assert "annotations[1].caption: must be a string, not " in corpus.skipped[0]
        return True

    deepest = bisect.bisect_left(range(2000), True, key=lambda depth: not is_json(depth)) - 1
    assert deepest > 100
    assert all(is_json(depth) for depth in range(deepest - 10, deepest))
