"""The detection experiment as a user runs it: a run folder, a report, objects in new images; clear errors."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from xml.sax.saxutils import escape

import jax
import numpy as np
import pytest
import tyro
from compilation import unoptimized

pytest.importorskip("PIL", reason="Pillow is not installed (extra `images`)")
pytest.importorskip("skimage", reason="scikit-image is not installed (extra `images`)")
pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra `images`)")

import jaxseq.__main__
from experiments import detect, detection
from experiments.detection import Config, main
from jaxseq import pipelines
from jaxseq.data.detection import DETECTION_SCENES, DetectionBatches, scene_detection_corpus, write_coco_corpus
from jaxseq.data.images import SceneImages
from jaxseq.data.proposals import SelectiveSearch, SlidingWindows
from jaxseq.models.detection import DetectorConfig, LinearStageConfig
from jaxseq.pipelines import CocoInstances, DetectionScenes, Detector, Voc, load_run
from jaxseq.training import ConfigMismatchError, Interrupted, RunFolderError, read_json, read_json_lines
from tests.experiments.small_runs import small_detection

FULL = pytest.mark.full
ROOT = Path(__file__).resolve().parents[2]


def parsed(line: str, kind: type = Config):
    """The config of a command line."""
    return tyro.cli(tyro.conf.CascadeSubcommandArgs[kind], args=line.split())


def saved_scenes(folder: Path, count: int = 6) -> list[Path]:
    """The first test images as PNG files, which lose nothing."""
    from PIL import Image

    images = SceneImages(DETECTION_SCENES, "test", count, seed=0)(np.arange(count))
    paths = [folder / f"{index:02d}.png" for index in range(count)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def a_threshold(rows: list[dict], count: int) -> float:
    """Between two scores, so that about ``count`` detections of all images are above it."""
    scores = sorted({item["score"] for row in rows for item in row["detections"]}, reverse=True)
    apart = [index for index in range(len(scores) - 1) if scores[index] - scores[index + 1] > 1e-5]
    place = min(apart, key=lambda index: abs(index - count))
    return (scores[place] + scores[place + 1]) / 2


def assert_found(found, rows: list[dict], threshold: float, names) -> None:
    """Detections are those of detections.json above a threshold."""
    assert len(found) == len(rows)
    for one, row in zip(found, rows, strict=True):
        wanted = [item for item in row["detections"] if item["score"] >= threshold]
        assert [names[index] for index in one.classes] == [item["class"] for item in wanted]
        np.testing.assert_allclose(one.scores, [item["score"] for item in wanted], atol=1e-3)
        np.testing.assert_allclose(one.boxes.reshape(-1), [x for item in wanted for x in item["box"]], atol=0.006)


def test_a_finished_run_detects_in_image_files_what_it_detected_in_the_test_images(detection_run, tmp_path, capsys):
    settings, results = detection_run
    assert read_json(settings.run / "results.json") == results and results["steps"] == 6
    wanted = {"ap50", "ap", "ap75", "voc_ap", "voc_ap_11_point", "coco_signature", "images_per_second", "parameters"}
    wanted |= {"proposal_recall50", "proposal_recall70", "proposal_average_recall", "proposals_per_image"}
    assert wanted | {"detections", "train_images", "train_seconds", "implementations"} <= set(results)
    (evaluated,) = [row for row in read_json_lines(settings.run / "metrics.jsonl") if "evaluation/loss" in row]
    assert evaluated["step"] == 6 and 0 <= evaluated["evaluation/ap50"] <= 1 and evaluated["evaluation/accuracy"] >= 0
    rows = read_json(settings.run / "detections.json")
    names = load_run(settings.run, Detector).pipeline.class_names
    assert len(rows) == results["test_images"] == 6 and results["train_images"] == 16 and len(names) == 10
    assert sum(len(row["detections"]) for row in rows) == results["detections"] > 20
    page = (settings.run / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") >= 5 and "AP of each class" in page and re.search(r"nine +0 +- +- +-", page)

    saved_scenes(tmp_path)
    (tmp_path / "99.png").write_bytes(b"no image")
    threshold, out, drawn = a_threshold(rows, 12), tmp_path / "out.jsonl", tmp_path / "drawn"
    config = detect.Config(run=settings.run, images=(tmp_path,), output=out, draw=drawn, threshold=threshold)
    with unoptimized():
        found = detect.main(config)
    assert_found(found, rows, threshold, names)
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [Path(row["image"]).name for row in written] == [f"{index:02d}.png" for index in range(6)]
    total, none = sum(len(one.boxes) for one in found), sum(not len(one.boxes) for one in found)
    assert sum(len(row["detections"]) for row in written) == total > 5
    assert sorted(path.name for path in drawn.iterdir()) == [f"{index:04d}-{index:02d}.png" for index in range(6)]
    told = capsys.readouterr()
    assert "99.png: no image" in told.err and "skipped: 1 of 7 files" in told.err and not told.out
    assert f"{total} objects in 6 images, {none} of them without" in told.err

    detect.write(dataclasses.replace(config, output=None), written)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    first = next(row for row in written if row["detections"])
    assert len(lines) == total and lines[0][:2] == [first["image"], first["detections"][0]["class"]]
    assert [float(x) for x in lines[0][3:]] == first["detections"][0]["box"]


def test_options_stand_behind_what_they_belong_to():
    config = parsed("--run r --model rcnn --hidden 32 --crop-size 24 --objects 1 2 --train-images 50 --svm-c 1")
    assert config.detector == DetectorConfig(model="rcnn", hidden=32, crop_size=24)
    assert config.task.design.objects == (1, 2) and config.task.train_images == 50
    assert config.linear == LinearStageConfig(svm_c=1.0)
    assert config.train.steps == config.detector.default_steps and config.proposals == SelectiveSearch()
    config = parsed("task:voc --folder v --image-size 64 --resize squash proposals:sliding-windows --stride 0.5")
    assert config.task == Voc(folder=Path("v"), image_size=64, resize="squash")
    assert config.proposals == SlidingWindows(stride=0.5) and config.linear == LinearStageConfig()
    config = parsed("task:coco-instances --annotations a --images b --encoder efficientnet_lite0 --nms-iou 0.5")
    assert config.detector.starts_trained and config.detection.nms_iou == 0.5
    assert parsed("--encoder resnet18 --weights w.pth").detector.starts_trained
    for idle in ("task:voc --folder a --objects 1 2", "task:coco-instances --images a", "--model yolo"):
        with pytest.raises(SystemExit):
            parsed(idle)


def test_documented_commands_are_read():
    pages = [detection.__doc__, detect.__doc__, jaxseq.__main__.__doc__]
    pages += [(ROOT / "README.md").read_text(encoding="utf-8")]
    pages += [page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(pages).replace("\\\n", "")
    for name, kind, least in (("detection", Config, 5), ("detect", detect.Config, 3)):
        word = "train detection" if name == "detection" else name
        pattern = rf"^ +(?:python experiments/{name}\.py|python -m jaxseq {word}) (.*)$"
        found = re.findall(pattern, text, flags=re.MULTILINE)
        assert len(found) >= least
        for line in found:
            parsed(line.partition("#")[0], kind)


def test_what_cannot_be_is_refused_by_name(tmp_path, capsys):
    run, scenes = tmp_path, DetectionScenes()
    (tmp_path / "file").write_text("none")

    def detecting(**options):
        return detect.main(detect.Config(run=run, images=(run,), **options))

    for made, message in (
        (lambda: Config(num_proposals=0), "num_proposals must be at least 1, not 0"),
        (lambda: Config(batch_size=0), "batch_size must be at least 1, not 0"),
        (lambda: Config(samples=97), "samples must be at most 96, not 97"),
        (
            lambda: Config(linear=LinearStageConfig(fit_images=5)),
            "fit_images is an option of model=rcnn, not of model=fast_rcnn",
        ),
        (lambda: Config(linear=LinearStageConfig(ridge=1.0)), "ridge is an option of model=rcnn, not of model=fast"),
        (lambda: Config(weights=tmp_path), "pretrained needs an encoder with known weights, not encoder=small"),
        (
            lambda: Config(weights=tmp_path, detector=DetectorConfig(encoder="resnet18", pretrained=False)),
            "weights=.* needs pretrained, which is switched off",
        ),
        (lambda: detect.Config(run=run, images=()), "there is no image to detect objects in: --images"),
        (lambda: detect.Config(run=run, images=(run,), threshold=np.nan), "threshold must be finite, not nan"),
        (lambda: detecting(output=run), "output=.* is a folder, not a file"),
        (lambda: detecting(output=run / "no" / "x"), "there is no folder"),
        (lambda: detecting(draw=run / "no" / "x"), "draw=.*: there is no folder"),
        (lambda: detecting(draw=run / "file"), "draw=.*file is a file, not a folder"),
        (lambda: main(Config(run=run / "none", task=Voc(folder=run / "gone"))), "folder=.*gone is not a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            made()
    with pytest.raises(RunFolderError, match="is not a run folder"):
        detecting(draw=run / "new")
    assert not (run / "new").exists() and not (run / "none").exists()
    corpus = scene_detection_corpus(train=2, validation=1, test=1)
    none = tuple(one._replace(ignored=np.ones(len(one.boxes), bool)) for one in corpus.train.objects)
    empty = dataclasses.replace(corpus, train=corpus.train._replace(objects=none))
    rcnn = Config(task=scenes, detector=DetectorConfig(model="rcnn"), linear=LinearStageConfig(fit_images=1))
    with pytest.raises(ValueError, match="fit_images=1: no object in the 1 training images to which R-CNN's"):
        detection.check_objects(rcnn, empty)
    detection.check_objects(Config(), empty)
    none = tuple(one._replace(ignored=np.ones(len(one.boxes), bool)) for one in corpus.test.objects)
    with pytest.raises(ValueError, match=r"scenes of .*: no object to test on"):
        detection.check_objects(Config(), dataclasses.replace(corpus, test=corpus.test._replace(objects=none)))


@FULL
def test_other_options_and_files_without_an_image_are_refused_by_a_finished_run(detection_run, tmp_path):
    settings = detection_run[0]
    with pytest.raises(ConfigMismatchError, match=r"detector\.dropout"):
        main(dataclasses.replace(settings, detector=dataclasses.replace(settings.detector, dropout=0.1)))
    with pytest.raises(ValueError, match="none of 1 files is an image"):
        detect.main(detect.Config(run=settings.run, images=(tmp_path / "x.png",)))
    with pytest.raises(ValueError, match="has no image files"):
        detect.main(detect.Config(run=settings.run, images=(tmp_path,)))


@FULL
def test_a_run_that_is_stopped_twice_ends_where_a_whole_one_does(rcnn_run, tmp_path, monkeypatch):
    settings, whole = rcnn_run
    config = dataclasses.replace(settings, run=tmp_path / "cut")
    draw, fit, stops = DetectionBatches.__call__, detection.fit_linear_stages, [3, "linear"]

    def drawing(batches, step):
        if step in stops:
            stops.remove(step)
            signal.raise_signal(signal.SIGTERM)
        return draw(batches, step)

    def fitting(*arguments):
        if "linear" in stops:
            stops.remove("linear")
            raise KeyboardInterrupt
        return fit(*arguments)

    monkeypatch.setattr(DetectionBatches, "__call__", drawing)
    monkeypatch.setattr(detection, "fit_linear_stages", fitting)
    with unoptimized():
        with pytest.raises(Interrupted):
            main(config)
        with pytest.raises(KeyboardInterrupt):
            main(config)
        assert not stops and not (config.run / "linear_stages.npz").exists()
        paths = tuple(saved_scenes(tmp_path))
        message = "holds no Detector: R-CNN's linear stages are not fitted yet: its run is not finished"
        with pytest.raises(RunFolderError, match=message):
            detect.main(detect.Config(run=config.run, images=paths))
        (tmp_path / "cut").rename(tmp_path / "moved")
        moved = dataclasses.replace(config, run=tmp_path / "moved")
        resumed = main(moved)
        found = detect.main(detect.Config(run=moved.run, images=paths, threshold=-1.0))
    rates = {name for name in whole if "second" in name}
    assert {name: resumed[name] for name in {*whole} - rates} == {name: whole[name] for name in {*whole} - rates}
    assert resumed["linear_seconds"] > 0 and whole["detections"] > 0
    one, two = (load_run(run, Detector) for run in (settings.run, moved.run))
    jax.tree.map(np.testing.assert_array_equal, (one.params, one.pipeline.linear), (two.params, two.pipeline.linear))
    rows = read_json(settings.run / "detections.json")
    assert rows == read_json(moved.run / "detections.json")
    assert_found(found, rows, -1.0, one.pipeline.class_names)


def assert_within_files(run: Path, names: list[str], sizes: dict[str, tuple[int, int]], folder: Path) -> None:
    """Detections lie in the pixels of their files, beyond those of the resized image, and are those of detect.py."""
    rows = read_json(run / "detections.json")
    largest = 0.0
    for row in rows:
        height, width = sizes[row["image"]]
        boxes = np.array([item["box"] for item in row["detections"]]).reshape(-1, 4)
        assert (boxes >= 0).all() and (boxes <= np.array([width, height, width, height])).all()
        largest = max(largest, boxes.max(initial=0))
    assert largest > 48
    paths = tuple(folder / row["image"] for row in rows)
    threshold = a_threshold(rows, 10**6)
    with unoptimized():
        found = detect.main(detect.Config(run=run, images=paths, threshold=threshold, output=run / "found.tsv"))
    assert_found(found, rows, threshold, names)
    lines = (run / "found.tsv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == sum(len(one.boxes) for one in found) and lines[0].split("\t")[0] == str(paths[0])


@FULL
def test_objects_in_the_layout_of_coco_are_detected_in_the_pixels_of_their_files(tmp_path):
    corpus = scene_detection_corpus(train=8, validation=2, test=3)
    (train, images), (held_out, _), (test, _) = write_coco_corpus(tmp_path / "coco", corpus).values()
    files = {"annotations": train, "images": images, "held_out": held_out, "held_out_images": images}
    task = CocoInstances(**files, test=test, test_images=images, image_size=48)
    search = SelectiveSearch()
    config = small_detection(tmp_path / "run", task=task, proposals=search, pooling="roi_max_pool", flip=True)
    with unoptimized():
        results = main(config)
    assert results["train_images"] == 8 and results["test_images"] == 3
    sizes = dict.fromkeys((f"test/{index:06d}.png" for index in range(3)), (64, 64))
    assert_within_files(config.run, list(corpus.class_names), sizes, images)


def voc_folder(folder: Path, lists: dict[str, list[str]], sizes: dict[str, tuple[int, int]], ignored=()) -> Voc:
    """Images with a rectangle each, of class "a & b" or "c", in the layout of Pascal VOC, in 48 x 48 pixels."""
    from PIL import Image

    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    for index, (name, (height, width)) in enumerate(sizes.items()):
        pixels = random.integers(0, 60, (height, width, 3)).astype(np.uint8)
        x, y = width // 4, height // 4
        pixels[y : y + height // 2, x : x + width // 2, index % 2] = 255
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.png")
        box = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width // 2, "ymax": y + height // 2}
        corners = "".join(f"<{key}>{value}</{key}>" for key, value in box.items())
        kind, difficult = escape("a & b" if index % 2 else "c"), int(name in ignored)
        (folder / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename><object><name>{kind}</name>"
            f"<difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object></annotation>"
        )
    for name, members in lists.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{member}\n" for member in members))
    return Voc(folder=folder, image_size=48)


def voc_sizes(count: int) -> dict[str, tuple[int, int]]:
    return {f"{index:03d}": ((60, 90), (100, 64), (48, 48))[index % 3] for index in range(count)}


@FULL
@pytest.mark.parametrize("model", ["fast_rcnn", "rcnn"])
def test_objects_in_the_layout_of_pascal_voc_are_detected_in_the_pixels_of_their_files(tmp_path, model):
    sizes = voc_sizes(9)
    lists = {"train": [*sizes][:5], "val": ["005"], "test": ["006", "007", "008"]}
    task = voc_folder(tmp_path / "voc", lists, sizes, ignored=("007",))  # no "a & b" in the test part counts
    resize = "squash" if model == "rcnn" else "pad"
    config = small_detection(tmp_path / "run", task=dataclasses.replace(task, resize=resize), model=model)
    with unoptimized():
        results = main(config)
    assert results["train_images"] == 5 and results["test_images"] == 3
    page = (config.run / "report.html").read_text(encoding="utf-8")
    assert re.search(r"a &amp; b +0 +- +- +-", page)
    images = tmp_path / "voc" / "JPEGImages"
    sizes = {f"{name}.png": size for name, size in sizes.items()}
    assert_within_files(config.run, ["a & b", "c"], sizes, images)


@FULL
@pytest.mark.parametrize("model", ["fast_rcnn", "rcnn"])
def test_one_image_of_few_pixels_with_one_proposal_is_enough(tmp_path, model):
    sizes = {name: (16, 16) for name in ("a", "b", "c")}
    task = voc_folder(tmp_path / "voc", {"train": ["a"], "val": ["b"], "test": ["c"]}, sizes)
    config = small_detection(tmp_path / "run", model=model, task=dataclasses.replace(task, image_size=16), samples=5)
    config = dataclasses.replace(detection.smoke(config), smoke=False, batch_size=1, num_proposals=1, samples=5)
    with unoptimized():
        results = main(config)
    assert results["test_images"] == results["train_images"] == results["proposals_per_image"] == 1
    assert np.isfinite(results["ap"])


@FULL
def test_files_without_enough_images_are_refused_before_anything_is_trained(tmp_path):
    def refused(name: str, lists: dict[str, list[str]], count: int, message: str, **options) -> None:
        task = voc_folder(tmp_path / name, lists, voc_sizes(count), **options)
        with pytest.raises(ValueError, match=message):
            main(small_detection(tmp_path / f"{name}-run", task=task))
        assert not (tmp_path / f"{name}-run").exists()

    refused("none", {}, 1, "no images; if the files name no splits, each image is in the validation part with")
    lists = {"train": ["000", "001"], "val": ["002"], "test": ["003"]}
    refused("ignored", lists, 4, "no object to test on", ignored=("003",))
    refused("few", lists | {"train": ["000"]}, 4, "a batch larger than the data: 2 images, but there are only 1")


@FULL
@pytest.mark.parametrize("command", [("train", "detection"), ("detect",)])
def test_the_commands_of_the_package_start(command):
    line = [sys.executable, "-m", "jaxseq", *command, "--help"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0 and "--run" in done.stdout and not done.stderr


def test_the_pipelines_of_detection_are_public():
    assert {"Detector", "DetectionConfig", "found_in_files", "detection_rows"} <= set(pipelines.__all__)
