"""Objects in files as tasks: options that contradict each other and parts without images are refused."""

import json

import numpy as np
import pytest

from jaxseq.data.detection import write_coco_corpus
from jaxseq.pipelines import CocoInstances, DetectionScenes, Voc

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")


def test_halves_of_pairs_and_numbers_below_one_are_refused(tmp_path):
    def coco(**fields):
        return CocoInstances(annotations=tmp_path, images=tmp_path, **fields)

    for name in ("held_out", "test"):
        for half in (name, f"{name}_images"):
            with pytest.raises(ValueError, match=f"{name} and {name}_images belong together"):
                coco(**{half: tmp_path})
    with pytest.raises(ValueError, match="test needs held_out"):
        coco(test=tmp_path, test_images=tmp_path)
    with pytest.raises(ValueError, match="image_size must be at least 1, not 0"):
        Voc(folder=tmp_path, image_size=0)
    with pytest.raises(ValueError, match="test_images must be at least 1, not 0"):
        DetectionScenes(test_images=0)


@pytest.mark.full
def test_the_scenes_and_their_files_are_one_task(tmp_path):
    pytest.importorskip("skimage", reason="needs scikit-image")
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    task = DetectionScenes(train_images=5).smoke()
    scenes = task.corpus(3, tmp_path)
    assert [len(part.names) for part in scenes.parts.values()] == [16, 4, 6]
    (train, images), (held_out, _), (test, _) = write_coco_corpus(tmp_path, scenes).values()
    files = CocoInstances(
        annotations=train,
        images=images,
        held_out=held_out,
        held_out_images=images,
        test=test,
        test_images=images,
        image_size=task.design.size,
    )
    assert files.smoke() == files
    corpus = files.corpus(0, tmp_path / "cache")
    for name, part in corpus.parts.items():
        every = np.arange(len(part.names))
        assert np.array_equal(part.images(every), scenes.parts[name].images(every))
        assert [o.boxes.tolist() for o in part.objects] == [o.boxes.tolist() for o in scenes.parts[name].objects]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_parts_without_images_and_folders_that_are_not_there_are_refused(tmp_path):
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    document = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "iscrowd": 1}],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    task = CocoInstances(annotations=tmp_path / "a.json", images=tmp_path, image_size=4)
    with pytest.raises(ValueError, match=r"a\.json: the \w+ part has no images"):
        task.corpus(0, tmp_path / "cache")
    with pytest.raises(ValueError, match=r"images=.*gone is not a folder"):
        CocoInstances(annotations=tmp_path, images=tmp_path / "gone").corpus(0, tmp_path / "other")
    with pytest.raises(ValueError, match=r"folder/Annotations=.*Annotations is not a folder"):
        Voc(folder=tmp_path).corpus(0, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    Image.new("RGB", (6, 4), (9, 0, 0)).save(tmp_path / "b.png")
    Image.new("RGB", (6, 4), (0, 9, 0)).save(tmp_path / "c.png")
    pairs = {}
    for key in ("held_out", "test"):
        name = "b.png" if key == "held_out" else "c.png"
        (tmp_path / f"{key}.json").write_text(json.dumps(document | {"images": [{"id": 1, "file_name": name}]}))
        pairs |= {key: tmp_path / f"{key}.json", f"{key}_images": tmp_path}
    with pytest.raises(ValueError, match="no object to train on"):
        CocoInstances(annotations=tmp_path / "a.json", images=tmp_path, image_size=4, **pairs).corpus(0, tmp_path / "c")
