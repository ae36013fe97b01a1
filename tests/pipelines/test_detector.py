"""The detector: no image depends on another one or on padding; linear stages, run folders, and pixels of files."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest
from compilation import jitted, unoptimized

from jaxseq import training
from jaxseq.analysis import Found
from jaxseq.data.detection import DetectionImages, Objects
from jaxseq.data.images import ImageFiles
from jaxseq.data.proposals import SlidingWindows
from jaxseq.models.detection import DetectorConfig, LinearStageConfig, LinearStages
from jaxseq.pipelines import (
    ArraySource,
    DetectionConfig,
    Detector,
    detection_rows,
    detector,
    file_image,
    found_in_files,
    image_paths,
    load_run,
    objects_in_files,
    read_images,
)
from jaxseq.training import RunFolderError

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

FULL = pytest.mark.full
NAMES, SIZE = ("cat", "dog", "eel"), (24, 32)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3)).astype(np.uint8)


def made_detector(model: str, **options) -> Detector:
    """A small detector of three classes in 24 x 32 pixels."""
    config = DetectorConfig(model=model, encoder="patches", hidden=6, pooled_size=1, **options)
    return Detector(config, NAMES, image_size=SIZE, proposals=SlidingWindows((8.0, 12.0)), num_proposals=9)


def random_parameters(one: Detector, seed: int = 1):
    """Random parameters, under which classes and boxes have different scores."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: random.normal(size=x.shape).astype(x.dtype) / 4, one.parameter_shapes())


@pytest.fixture(scope="module")
def fast():
    """A Fast R-CNN with random parameters, its proposals for ``IMAGES``, and its detections in them."""
    one = made_detector("fast_rcnn")
    params = random_parameters(one)
    proposals = one.propose(ArraySource(IMAGES))
    with unoptimized():
        return one, params, proposals, one.detections(params, ArraySource(IMAGES), proposals)


@pytest.fixture(scope="module")
def rcnn():
    """An R-CNN with random parameters, without linear stages."""
    one = made_detector("rcnn", crop_size=8, context=1)
    return one, random_parameters(one)


def random_stages(seed: int = 3) -> LinearStages:
    """Linear stages for the R-CNN of ``made_detector`` with random numbers."""
    random = np.random.default_rng(seed)
    shapes = {"feature_scale": (), "svm_kernel": (6, 3), "svm_bias": (3,), "pooled_scale": ()}
    shapes |= {"box_kernel": (128, 3, 4), "box_bias": (3, 4)}
    return LinearStages(**{name: jax.numpy.asarray(random.normal(size=s), np.float32) for name, s in shapes.items()})


def assert_same(one: list[Found], other: list[Found]) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.classes, b.classes)
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(a.boxes, b.boxes, rtol=1e-4, atol=1e-3)


def test_detections_depend_neither_on_the_other_images_nor_on_padding(fast, monkeypatch):
    one, params, proposals, found = fast
    assert all(len(each.boxes) for each in found) and len({len(each.boxes) for each in found} | {9}) > 1
    monkeypatch.setattr(detector, "BATCH_SIZE", 2)  # the last batch is filled up
    order = np.array([2, 0, 1])
    padded = np.pad(proposals.array, ((0, 0), (0, 6), (0, 0)))
    with unoptimized():
        again = one.detections(params, ArraySource(IMAGES[order]), ArraySource(padded[order]))
    assert_same([found[index] for index in order], again)
    assert one.detections(params, ArraySource(IMAGES[:0]), ArraySource(padded[:0])) == []


def test_detections_are_sorted_boxes_inside_the_image_of_known_classes(fast):
    found = fast[3]
    for each in found:
        assert (np.diff(each.scores) <= 0).all() and each.scores.min() >= detector.LOWEST_SCORES["fast_rcnn"]
        assert (each.boxes >= 0).all() and (each.boxes <= np.array([32, 24, 32, 24])).all()
        assert (each.boxes[:, 2:] > each.boxes[:, :2]).all() and set(each.classes.tolist()) <= {0, 1, 2}


def test_proposals_are_those_of_each_image_filled_up(fast):
    one, _, proposals, _ = fast
    for index, image in enumerate(IMAGES):
        np.testing.assert_array_equal(proposals.array[index], one.proposals.boxes(image, 0)[:9])
    more = Detector(one.config, NAMES, image_size=SIZE, proposals=SlidingWindows((24.0,), (1.0,)), num_proposals=50)
    boxes = more.propose(ArraySource(IMAGES)).array
    real = (boxes != 0).any(-1).sum(-1)
    assert boxes.shape == (3, 50, 4) and (real > 0).all() and (real < 50).all()
    assert not boxes[0, real[0] :].any()


def test_what_does_not_fit_is_refused_by_name(fast, rcnn):
    one, params, proposals, _ = fast
    wrong = ArraySource(IMAGES[:, :, :31])
    with pytest.raises(ValueError, match=r"images are \(3, 24, 31, 3\), not \[N, 24, 32, 3\]"):
        one.detections(params, wrong, proposals)
    with pytest.raises(ValueError, match="3 images, but proposals of 2"):
        one.detections(params, ArraySource(IMAGES), ArraySource(proposals.array[:2]))
    with pytest.raises(ValueError, match="R-CNN detects with linear stages, which are not fitted yet"):
        rcnn[0].detections(rcnn[1], ArraySource(IMAGES), proposals)
    given = ArraySource(IMAGES), (), proposals, LinearStageConfig()
    with pytest.raises(ValueError, match="3 images, but objects of 0"):
        rcnn[0].fit_linear_stages(rcnn[1], *given)
    with pytest.raises(ValueError, match="linear stages belong to model=rcnn, not to model=fast_rcnn"):
        one.fit_linear_stages(params, *given)
    options = {"image_size": SIZE, "proposals": SlidingWindows(), "num_proposals": 2}
    for names, changed, message in (
        ((), {}, "there is no class to detect"),
        (NAMES, {"num_proposals": 0}, "num_proposals must be at least 1, not 0"),
        (NAMES, {"linear": random_stages()}, "linear stages belong to model=rcnn, not to model=fast_rcnn"),
    ):
        with pytest.raises(ValueError, match=message):
            Detector(DetectorConfig(), names, **(options | changed))
    for changed, message in (
        ({"nms_iou": 1.5}, "nms_iou must be from 0 to 1, not 1.5"),
        ({"nms_iou": math.nan}, "nms_iou must be from 0 to 1, not nan"),
        ({"max_detections": 0}, "max_detections must be at least 1, not 0"),
    ):
        with pytest.raises(ValueError, match=message):
            DetectionConfig(**changed)


def test_a_saved_detector_is_the_same_and_its_linear_stages_are_verified(rcnn, tmp_path):
    one = rcnn[0]
    with training.Run.open(tmp_path, DetectionConfig(), fingerprint="none") as run:
        one.save(run)
        with pytest.raises(RunFolderError, match=r"holds no Detector: R-CNN's linear stages are not fitted yet"):
            load_run(tmp_path, Detector)
        one.with_linear_stages(random_stages()).save(run)
        assert one.linear is None
    saved = training.read_run(tmp_path)
    loaded = Detector.rebuild(saved, saved.read(Detector.file))
    for name in ("config", "class_names", "image_size", "resize", "proposals", "num_proposals", "detection"):
        assert getattr(loaded, name) == getattr(one, name)
    assert loaded.shown_score == 0.0 and loaded.parameter_shapes() == one.parameter_shapes()
    jax.tree.map(np.testing.assert_array_equal, loaded.linear, random_stages())
    file = tmp_path / "linear_stages.npz"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(RunFolderError, match=r"linear_stages\.npz has the SHA-256 \w+\.\.\., not \w+\.\.\. as saved"):
        load_run(tmp_path, Detector)
    file.unlink()
    with pytest.raises(RunFolderError, match=r"linear_stages\.npz is missing"):
        load_run(tmp_path, Detector)


def overlap(a: np.ndarray, b: np.ndarray, *, of_first: bool = False) -> float:
    """The IoU of two boxes, or the part of the first that the second covers."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = max(sides[0], 0) * max(sides[1], 0)
    if of_first:
        return common / ((a[2] - a[0]) * (a[3] - a[1]))
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def code(box: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    """R-CNN's code of a box."""
    size, base = box[2:] - box[:2], anchor[2:] - anchor[:2]
    shift = ((box[:2] + box[2:]) / 2 - (anchor[:2] + anchor[2:]) / 2) / base
    return np.concatenate([shift, np.log(size / base)])


def test_the_examples_of_linear_stages_are_objects_and_real_proposals_with_their_overlaps(rcnn, monkeypatch):
    one, params = rcnn
    boxes = [[[2, 3, 12, 13], [4, 4, 20, 20], [0, 0, 8, 8]], [], [[10, 2, 30, 22], [12, 2, 30, 20], [1, 1, 9, 7]]]
    kinds, hidden = [[0, 0, 2], [], [1, 1, 1]], [[False, True, False], [], [False, False, True]]
    objects = [
        Objects(np.array(b, np.float32).reshape(-1, 4), np.array(k, np.int32), np.array(h, bool))
        for b, k, h in zip(boxes, kinds, hidden, strict=True)
    ]
    random = np.random.default_rng(4)
    corner = random.uniform(0, 14, (3, 5, 2))
    regions = np.concatenate([corner, corner + random.uniform(2, 10, (3, 5, 2))], axis=-1).astype(np.float32)
    regions[:, 3], regions[0, 0], regions[2, 0] = 0, [3, 3, 13, 13], [11, 2, 29, 22]
    monkeypatch.setattr(detector, "BATCH_SIZE", 2)
    config = LinearStageConfig(regression_iou=0.5, negative_iou=0.4)
    with unoptimized():
        made = [*one._examples(params, ArraySource(IMAGES), objects, ArraySource(regions), config)]
    assert len(made) == 3 and [len(each.features) for each in made] == [6, 4, 6]
    shown = np.stack(
        [np.concatenate([each.boxes[~each.ignored][:2], np.zeros((2, 4), np.float32)])[:2] for each in objects]
    )
    every = np.concatenate([shown, regions], axis=1)
    outputs = jitted(one.model.apply)({"params": params}, IMAGES, every)
    for image, (own, each) in enumerate(zip(objects, made, strict=True)):
        kept = every[image].any(-1)
        np.testing.assert_allclose(each.features, outputs.features[image][kept], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(each.near, np.flatnonzero(each.iou.max(1) > 0.5))
        np.testing.assert_allclose(each.pooled, outputs.pooled[image][kept][each.near], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(each.objects, own.classes[~own.ignored])
        for row, region in enumerate(every[image][kept]):
            for index in range(3):
                mine = [box for box, k, h in zip(*own, strict=True) if k == index and not h]
                theirs = [box for box, k, h in zip(*own, strict=True) if k == index and h]
                values = [overlap(region, box) for box in mine]
                assert each.iou[row, index] == pytest.approx(max(values, default=0), abs=1e-5)
                assert each.ignored[row, index] == any(overlap(region, box, of_first=True) >= 0.4 for box in theirs)
                if row in each.near:
                    wanted = code(mine[int(np.argmax(values))], region) if mine else np.zeros(4)
                    found = each.codes[each.near.tolist().index(row), index]
                    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def written_images(folder: Path, sizes, suffix: str = ".png") -> list[Path]:
    """Smooth images of these heights and widths."""
    paths = []
    for index, (height, width) in enumerate(sizes):
        rows, columns = np.linspace(0, 255, height)[:, None], np.linspace(0, 255, width)[None]
        pixels = np.stack(np.broadcast_arrays(rows, columns, (rows + columns) / 2), axis=-1)
        paths.append(folder / f"{index}{suffix}")
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
    return paths


SIZES = ((60, 90), (100, 40), (24, 32), (7, 64))


@pytest.mark.parametrize("mode", ["pad", "squash"])
def test_boxes_and_images_return_to_the_pixels_of_their_files(tmp_path, mode):
    paths = written_images(tmp_path, SIZES)
    images = ImageFiles(paths, SIZE, mode=mode)
    part = DetectionImages(images, (), tuple(map(str, paths)), images.original_sizes, mode)
    for index, (height, width) in enumerate(SIZES):
        scale = np.array([32 / width, 24 / height])
        scale = scale if mode == "squash" else np.repeat(scale.min(), 2)
        shape = np.array([width, height]) * scale
        corner = (np.array([32, 24]) - shape) / 2
        boxes = np.array([[1, 2, 20, 6], [0, 0, width, height]], np.float32)
        resized = (boxes.reshape(-1, 2, 2) * scale + corner).reshape(-1, 4).astype(np.float32)
        beside = np.array([[-9, -9, 0, 0]], np.float32) + np.tile(corner, 2)[None].astype(np.float32) - 1
        over = np.array([[-3, -3, 40, 40]], np.float32)
        found = Found(np.concatenate([resized, beside, over]), np.arange(4, dtype=np.float32), np.zeros(4, np.int32))
        given = part._replace(objects=(Objects(resized, np.zeros(2, np.int32), np.array([False, True])),) * 4)
        pixels = 1.01 / scale.min()  # a padded image is placed at whole pixels
        np.testing.assert_allclose(objects_in_files(given)[index].boxes, boxes, atol=pixels)
        mapped = found_in_files(part, [found] * 4)[index]
        assert mapped.scores.tolist() == [0, 1, 3]  # the box beside the image is dropped
        np.testing.assert_allclose(mapped.boxes[:2], boxes, atol=pixels)
        np.testing.assert_array_equal(mapped.boxes[2], [0, 0, width, height])
        shown, original = file_image(part, index), np.asarray(Image.open(paths[index])).astype(int)
        assert shown.shape == (height, width, 3)
        assert np.abs(shown.astype(int) - original).max() <= 2 * 255 / shape.min() + 2


def test_images_that_are_not_resized_are_shown_as_they_are():
    class Same(ArraySource):
        size, fingerprint = SIZE, "none"

    objects = (Objects(np.array([[1, 2, 3, 4]], np.float32), np.zeros(1, np.int32), np.zeros(1, bool)),) * 3
    part = DetectionImages(Same(IMAGES), objects, ("a", "b", "c"))
    np.testing.assert_array_equal(file_image(part, 1), IMAGES[1])
    np.testing.assert_array_equal(objects_in_files(part)[2].boxes, objects[2].boxes)


def test_rows_of_detections_name_images_and_classes():
    found = Found(np.array([[0.123, 1, 2, 3]], np.float32), np.array([0.5], np.float32), np.array([2], np.int32))
    none = Found(found.boxes[:0], found.scores[:0], found.classes[:0])
    rows = detection_rows(["a", "b"], [found, none], NAMES)
    assert rows[0] == {"image": "a", "detections": [{"class": "eel", "score": 0.5, "box": [0.12, 1, 2, 3]}]}
    assert rows[1] == {"image": "b", "detections": []}
    with pytest.raises(ValueError, match="zip"):
        detection_rows(["a"], [found, none], NAMES)


def test_folders_stand_for_their_image_files_and_what_is_no_image_is_named_and_counted(tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    first = written_images(folder, SIZES[:2], ".PNG")
    (folder / "notes.txt").write_text("none")
    (folder / "2.jpeg").write_bytes(b"no image")
    paths = image_paths([tmp_path / "gone.png", folder, first[0]])
    assert paths == [tmp_path / "gone.png", *first, folder / "2.jpeg", first[0]]
    assert "folder: 1 folders and files with other suffixes: notes.txt" in capsys.readouterr().err
    images = read_images(paths, SIZE, "pad")
    assert images.kept == (1, 2, 4)
    told = capsys.readouterr().err
    assert "gone.png: no such file" in told and "2.jpeg: no image" in told and "skipped: 2 of 5 files" in told
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no image files \(\.bmp, "):
        image_paths([tmp_path / "empty"])
    with pytest.raises(ValueError, match="none of 1 files is an image that can be read"):
        read_images(paths[:1], SIZE, "pad")
