"""Captions in files as tasks: options that contradict each other and parts without images are refused."""

import pytest

from jaxseq.pipelines import Coco, Folder

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")


def test_half_of_a_held_out_set_and_numbers_below_one_are_refused(tmp_path):
    for half in ({"held_out": tmp_path}, {"held_out_images": tmp_path}):
        with pytest.raises(ValueError, match="held_out and held_out_images belong together"):
            Coco(captions=tmp_path, images=tmp_path, **half)
    for name in ("image_size", "min_count", "max_words"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
            Folder(captions=tmp_path, **{name: 0})


def test_a_table_is_a_corpus_of_its_splits_and_a_part_without_images_is_refused(tmp_path):
    lines = []
    for index, split in enumerate(("train", "train", "val", "test")):
        Image.new("RGB", (6, 4), (50 * index, 0, 0)).save(tmp_path / f"{index}.png")
        lines.append(f"{index}.png\tA dog, number {index}.\t{split}\r\n")
    task = Folder(captions=tmp_path / "captions.tsv", image_size=3, min_count=2, max_words=2)
    task.captions.write_text("\ufeff" + "".join(lines), encoding="utf-8", newline="")
    corpus = task.corpus(0, tmp_path / "cache")
    assert {name: part.names for name, part in corpus.parts.items()} == {
        "train": ("0.png", "1.png"),
        "validation": ("2.png",),
        "test": ("3.png",),
    }
    assert corpus.train.images.size == (3, 3)
    words = task.vocabulary(corpus)
    assert words.words == ("a", "dog", "number")
    assert words.decode(words.encode("A dog, number 7.")) == "a dog"
    task.captions.write_text("".join(lines[:3]), encoding="utf-8", newline="")
    with pytest.raises(ValueError, match=r"captions\.tsv: the test part has no images"):
        task.corpus(0, tmp_path / "cache")


def test_a_folder_that_is_not_there_is_refused_before_a_cache_is_touched(tmp_path):
    (tmp_path / "captions.tsv").write_text("a.png\ta cat\n")
    with pytest.raises(ValueError, match=r"images=.*gone is not a folder"):
        Folder(captions=tmp_path / "captions.tsv", images=tmp_path / "gone").corpus(0, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
