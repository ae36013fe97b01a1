r"""Train a detector of objects, score it on the test images, and write a run folder with a report.

    python experiments/detection.py --model fast_rcnn --run runs/fast                  # digits on photographs
    python experiments/detection.py --model rcnn --run runs/rcnn
    python experiments/detection.py task:coco-instances --annotations instances_train2017.json --images train2017 \
        --held-out instances_val2017.json --held-out-images val2017 --encoder efficientnet_lite0 --run runs/coco
    python experiments/detection.py task:voc --folder VOCdevkit/VOC2007 --encoder resnet18 --weights resnet18.pth

The same command again resumes a run that was stopped. task: chooses the images (task:voc --help lists its options),
and proposals: the method that proposes boxes. The boxes of all images are proposed once, and kept in a cache.
Both models have the same backbone and layers; R-CNN (Girshick et al. 2014) computes the convolutions of every proposed
region, Fast R-CNN (Girshick 2015) those of the image. On one CPU core, the proposals of the scenes take about 3
minutes; Fast R-CNN then trains for 4 minutes and reaches AP50 0.99, R-CNN for 7 minutes and reaches 0.98
(docs/detection.md, which also says what each costs).
"""

import dataclasses
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import tyro
from tyro.conf import OmitArgPrefixes, subcommand

from jaxseq import analysis, distribution, ops, pipelines, training
from jaxseq.analysis import Found
from jaxseq.analysis.coco_libraries import coco_classes
from jaxseq.data.detection import DetectionBatch, DetectionBatches, DetectionCorpus
from jaxseq.data.images import Prefetch
from jaxseq.data.proposals import Proposals, SelectiveSearch, SlidingWindows
from jaxseq.models.detection import (
    RCNN,
    DetectorConfig,
    LinearStageConfig,
    RegionTargets,
    fast_rcnn_loss,
    region_loss,
    sample_regions,
)
from jaxseq.pipelines import CocoInstances, DetectionConfig, DetectionScenes, Detector, First, Rows, Voc
from jaxseq.plotting.detections import MOST
from jaxseq.training import resumable_field

Task = (
    Annotated[DetectionScenes, subcommand("task:scenes")]
    | Annotated[CocoInstances, subcommand("task:coco-instances")]
    | Annotated[Voc, subcommand("task:voc")]
)
Method = (
    Annotated[SelectiveSearch, subcommand("proposals:selective-search")]
    | Annotated[SlidingWindows, subcommand("proposals:sliding-windows")]
)


@dataclass(frozen=True)
class Config:
    """The task, the proposals, the model, how it is trained, and how it detects."""

    run: Path = resumable_field(Path("runs/detection"))
    """The run folder; the same command again resumes the run in it."""
    mesh: str | None = resumable_field(None)
    """The devices, as sizes of data, fsdp, sequence and tensor: data=-1 or data=2,fsdp=4; one device if not given."""
    task: OmitArgPrefixes[Task] = dataclasses.field(default_factory=DetectionScenes)
    proposals: OmitArgPrefixes[Method] = dataclasses.field(default_factory=SelectiveSearch)
    num_proposals: int = 300
    """The largest number of proposals of an image (the papers: 2,000)."""
    detector: OmitArgPrefixes[DetectorConfig] = dataclasses.field(default_factory=DetectorConfig)
    weights: Path | None = resumable_field(None)
    """A file of the encoder's weights (.safetensors, .npz, .pt, .pth). efficientnet_lite0 takes those of its installed
    package by default."""
    cache: Path = resumable_field(Path("runs/cache"))
    """A folder that keeps resized images and proposals for all runs."""
    split_seed: int = 0
    """Random seed of the scenes, or of the split of files."""
    batch_size: int = 8
    """Images in a batch."""
    flip: bool = False
    """Mirror half of the training images; mirrored digits and letters would be wrong."""
    linear: OmitArgPrefixes[LinearStageConfig] = LinearStageConfig()
    detection: OmitArgPrefixes[DetectionConfig] = DetectionConfig()
    seed: int = 0
    """Draws parameters, batches, regions and dropout."""
    coco: Literal["numpy", "faster-coco-eval", "pycocotools"] = resumable_field("numpy")
    """The evaluation that gives ap, ap50 and ap75; all give the same (faster-coco-eval: the extra vision)."""
    samples: int = resumable_field(8)
    """Number of images in the report, at most 96."""
    train: training.TrainConfig = training.TrainConfig(steps=None, checkpoint_every=500, eval_every=500)
    optimizer: training.OptimizerConfig = training.OptimizerConfig(warmup_steps=100, weight_decay=0.01)
    allow_config_change: bool = resumable_field(False)
    """Resume a run even if its config differs."""
    smoke: bool = False
    """A short run, to test that everything works: it sets the numbers of steps, scenes, proposals and samples, the
    batch size and the width itself. Of files, all images are read."""

    def __post_init__(self) -> None:
        training.check_numbers(self)
        minimum = {"num_proposals": 1, "batch_size": 1, "samples": 0, "seed": 0, "split_seed": 0}
        for name, bound in minimum.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, not {getattr(self, name)}")
        if self.samples > MOST:
            raise ValueError(f"samples must be at most {MOST}, not {self.samples}")
        if self.weights is not None:
            if self.detector.pretrained is False:
                raise ValueError(f"weights={self.weights} needs pretrained, which is switched off")
            object.__setattr__(self, "detector", dataclasses.replace(self.detector, pretrained=True))
        changed = [name for name, value in vars(self.linear).items() if value != getattr(LinearStageConfig(), name)]
        if changed and self.detector.model != "rcnn":
            raise ValueError(f"{changed[0]} is an option of model=rcnn, not of model={self.detector.model}")
        if self.train.steps is None:
            object.__setattr__(self, "train", dataclasses.replace(self.train, steps=self.detector.default_steps))


class Data(NamedTuple):
    """A corpus, and the proposals of each of its parts."""

    corpus: DetectionCorpus
    proposals: dict[str, Proposals]


def main(config: Config) -> dict[str, Any]:
    """Read, propose, build, train, detect, score, report; returns the results."""
    if config.smoke:
        config = smoke(config)
    placement = distribution.Placement.on(config.mesh)
    training.enable_compilation_cache()
    check_libraries(config)
    corpus = config.task.corpus(config.split_seed, config.cache)
    print(corpus.summary(), flush=True)
    check_objects(config, corpus)
    size = corpus.train.images.size
    options: dict[str, Any] = {"proposals": config.proposals, "num_proposals": config.num_proposals}
    options |= {"image_size": size, "resize": corpus.train.mode, "detection": config.detection}
    detector = Detector(config.detector, corpus.class_names, **options)
    key, init_key = ops.split_key(jax.random.key(config.seed))
    optimizer = training.make_optimizer(config.optimizer, config.train.steps)

    init, blank, sizes = partial(initial_params, detector), detector.blank(), ("hidden", "pooled_size")
    placement.check_memory(init, init_key, *blank, optimizer=optimizer, sizes=sizes)  # before the proposals
    backbone, weights = read_backbone(config)
    examples = Data(corpus, {name: propose(config, part.images) for name, part in corpus.parts.items()})
    batches = make_batches(config, examples)
    change = config.allow_config_change
    fingerprint = batches.fingerprint + corpus.sha256 + weights
    with training.Run.open(config.run, config, fingerprint=fingerprint, allow_config_change=change) as run:
        run.write("corpus.json", {"description": corpus.summary(), "skipped": corpus.skipped})
        run.define_model(detector.definition())
        if config.detector.model != "rcnn" or run.read("detector.json") is None:  # a finished R-CNN stays usable
            detector.write(run)
        loss = placement.loss(make_loss(config, detector, dropout=config.detector.dropout > 0))
        with placement.ambient(), Prefetch(placement.batches(batches)) as ahead:
            params = placement.build(init, init_key, *blank)
            if backbone is not None:
                params = pipelines.with_backbone(params, backbone)
            state = placement.place(training.create_state(params, optimizer, key=key))
            print(placement.describe(state, config.batch_size), flush=True)
            chosen = ops.used_implementations(loss, params, (), batches(0), key)
            evaluate = make_evaluation(config, detector.on(placement), examples)
            state = training.fit(loss, state, optimizer, ahead, run, config.train, evaluate=evaluate)
        params = placement.local(state.eval_params)
        detector, results = finish(config, detector, params, examples)
        detector.save(run)
        scored = score(config, detector, params, examples, run)
        results |= scored.results | {
            "test_images": len(corpus.test.images),
            "train_images": len(corpus.train.images),
            "corpus_sha256": corpus.sha256,
            "parameters": sum(p.size for p in jax.tree.leaves(params)),
            "steps": int(state.step),
            "implementations": ", ".join(f"{op}={'/'.join(names)}" for op, names in chosen.items()) or "none",
            "train_seconds": run.train_seconds,
        }
        run.write_results(results)
        report = write_report(config, detector, examples, scored, run)
    print(
        f"test: AP50 {results['ap50']:.3f}, AP {results['ap']:.3f}, VOC AP {results['voc_ap']:.3f}; proposals cover "
        f"{results['proposal_recall50']:.1%} of the objects\n  {results['coco_signature']}\nreport: {report}"
    )
    return results


def check_objects(config: Config, corpus: DetectionCorpus) -> None:
    """Raises ValueError if there is no object to test on, or to fit R-CNN's linear stages to."""
    if all(objects.ignored.all() for objects in corpus.test.objects):
        raise ValueError(f"{corpus.description}: no object to test on")
    rows = fitted_rows(config, corpus)
    if config.detector.model == "rcnn" and all(corpus.train.objects[row].ignored.all() for row in rows.tolist()):
        told = f"fit_images={config.linear.fit_images}: no object in the {len(rows)} training images"
        raise ValueError(f"{told} to which R-CNN's linear stages are fitted")


def smoke(config: Config) -> Config:
    """The same experiment with small sizes."""
    train = dataclasses.replace(config.train, steps=6, log_every=2, checkpoint_every=3, eval_every=6)
    changed: dict[str, Any] = {"train": train, "batch_size": 2, "num_proposals": 16}
    changed |= {"samples": min(config.samples, 2), "task": config.task.smoke()}
    if config.detector.model == "rcnn":
        changed["linear"] = dataclasses.replace(config.linear, fit_images=8)
    changed["detector"] = dataclasses.replace(config.detector, hidden=8, pooled_size=2, regions=8)
    return dataclasses.replace(config, **changed)


def initial_params(detector: Detector, key: jax.Array, *arrays: Any) -> Any:
    """The parameters before training."""
    return detector.model.init(key, *arrays)["params"]


def check_libraries(config: Config) -> None:
    """Raises ImportError, before anything is trained, if a library of what follows training is not installed."""
    if config.detector.model == "rcnn" and importlib.util.find_spec("sklearn") is None:
        raise ImportError('R-CNN needs scikit-learn: pip install "jaxseq[images]"')
    if config.coco != "numpy":
        coco_classes(config.coco)


def propose(config: Config, images: Any) -> Proposals:
    """The proposals of all images, computed once and kept in the cache."""
    start = time.perf_counter()
    found = Proposals(images, config.proposals, config.cache, count=config.num_proposals)
    print(f"proposals of {len(images):,} images: {time.perf_counter() - start:.1f} s", flush=True)
    return found


def read_backbone(config: Config) -> tuple[Any, str]:
    """The parameters of a pretrained encoder, or None, and their SHA-256, or an empty string."""
    if not config.detector.starts_trained:
        return None, ""
    file = pipelines.find_weights(config.detector.encoder, config.weights)
    params = pipelines.read_backbone(config.detector, file)
    return params, pipelines.FrozenEncoder(config.detector.backbone(), params).fingerprint


def make_batches(config: Config, examples: Data) -> DetectionBatches:
    """The training batches."""
    part = examples.corpus.train
    options: dict[str, Any] = {"seed": config.seed, "flip": config.flip}
    return DetectionBatches(part.images, part.objects, examples.proposals["train"], config.batch_size, **options)


def make_loss(config: Config, detector: Detector, *, dropout: bool) -> Callable:
    """The loss of regions drawn from the proposals: of classes and boxes, or for R-CNN's fine-tuning of classes."""
    model, sampling = detector.model, config.detector.sampling

    def loss(params: Any, carry: Any, batch: DetectionBatch, key: jax.Array) -> tuple[jax.Array, training.Aux]:
        sample_key, dropout_key = jax.random.split(key)
        given: Any = batch.proposals, batch.boxes, batch.classes, batch.ignored
        targets: RegionTargets = sample_regions(*given, sampling=sampling, key=sample_key)
        rngs = {"dropout": dropout_key} if dropout else None
        outputs: Any = model.apply({"params": params}, batch.images, targets.boxes, rngs=rngs)
        if isinstance(model, RCNN):
            found = region_loss(outputs.logits, targets)
        else:
            found = fast_rcnn_loss(outputs.logits, outputs.deltas, targets)
        metrics = {"class_loss": found.classes, "box_loss": found.boxes, "accuracy": found.accuracy}
        return found.classes + found.boxes, training.Aux(carry, metrics, found.regions)

    return loss


def make_evaluation(config: Config, detector: Detector, examples: Data) -> Callable:
    """Losses, without dropout, of the same regions of up to 16 batches of validation images; AP50 of Fast R-CNN."""
    part, proposals = examples.corpus.validation, examples.proposals["validation"]
    rows = min(config.batch_size, len(part.images))
    batches = DetectionBatches(part.images, part.objects, proposals, rows, seed=config.seed)
    objects, measure = pipelines.objects_in_files(part), jax.jit(make_loss(config, detector, dropout=False))

    def evaluate(params: Any) -> dict[str, float]:
        steps = range(min(batches.steps_per_epoch, 16))
        found = [measure(params, (), detector.place_rows(batches(step)), jax.random.key(step)) for step in steps]
        weight = sum(float(aux.weight) for _, aux in found) or 1.0
        values = {"loss": sum(float(value * aux.weight) for value, aux in found) / weight}
        for name in found[0][1].metrics:
            values[name] = sum(float(aux.metrics[name] * aux.weight) for _, aux in found) / weight
        if config.detector.model == "fast_rcnn":
            detections = pipelines.found_in_files(part, detector.detections(params, part.images, proposals))
            ap50 = analysis.coco_average_precision(detections, objects, detector.class_names).ap50
            values |= {} if ap50 is None else {"ap50": ap50}
        return values

    return evaluate


def finish(config: Config, detector: Detector, params: Any, examples: Data) -> tuple[Detector, dict[str, Any]]:
    """The detector with R-CNN's linear stages and the lowest score of detections to show; and what to report of it."""
    results: dict[str, Any] = {}
    if config.detector.model == "rcnn":
        start = time.perf_counter()
        detector = fit_linear_stages(config, detector, params, examples)
        results["linear_seconds"] = time.perf_counter() - start
        results["unfitted_classes"] = ", ".join(detector.unfitted_classes) or "none"
        if detector.unfitted_classes:
            print(f"without an object to fit to, never detected: {results['unfitted_classes']}", flush=True)
    point = operating_point(detector, params, examples)
    if point is not None:
        detector = detector.with_shown_score(point.score)
        results |= {"shown_score": point.score, "validation_f1": point.f1}
    return detector, results


def fit_linear_stages(config: Config, detector: Detector, params: Any, examples: Data) -> Detector:
    """R-CNN with its linear stages, fitted to some of the training images."""
    part, proposals, rows = examples.corpus.train, examples.proposals["train"], fitted_rows(config, examples.corpus)
    given = Rows(part.images, rows), [part.objects[row] for row in rows.tolist()], Rows(proposals, rows)
    return detector.fit_linear_stages(params, *given, config.linear)


def fitted_rows(config: Config, corpus: DetectionCorpus) -> np.ndarray:
    """The training images that R-CNN's linear stages are fitted to, evenly spread."""
    total = len(corpus.train.images)
    return np.linspace(0, total - 1, min(config.linear.fit_images, total)).round().astype(np.int64)


def operating_point(detector: Detector, params: Any, examples: Data) -> analysis.OperatingPoint | None:
    """The lowest score of detections to show: that of the largest F1 on the validation images."""
    part, proposals = examples.corpus.validation, examples.proposals["validation"]
    found = pipelines.found_in_files(part, detector.detections(params, part.images, proposals))
    return analysis.best_operating_point(found, pipelines.objects_in_files(part), detector.class_names)


class Scored(NamedTuple):
    """The detections in all test images, their scores as COCO and VOC have them, and the numbers of results.json."""

    found: list[Found]
    coco: analysis.CocoScores
    voc: analysis.AveragePrecision
    results: dict[str, Any]


def score(config: Config, detector: Detector, params: Any, examples: Data, run: training.Run) -> Scored:
    """Detect in all test images, write the detections to the run, and score them."""
    part, proposals = examples.corpus.test, examples.proposals["test"]
    count = min(64, len(part.images))
    few = First(part.images, count), First(proposals, count)
    detector.detections(params, *few)  # compiles
    start = time.perf_counter()
    detector.detections(params, *few)
    seconds = time.perf_counter() - start
    found = pipelines.found_in_files(part, detector.detections(params, part.images, proposals))
    run.write("detections.json", pipelines.detection_rows(part.names, found, detector.class_names))
    given = found, pipelines.objects_in_files(part), detector.class_names
    coco = analysis.coco_average_precision(*given, implementation=config.coco)
    voc = analysis.average_precision(*given)
    results = {"ap50": coco.ap50, "ap": coco.ap, "ap75": coco.ap75, "coco_signature": coco.signature}
    results |= {"voc_ap": voc.mean, "voc_ap_11_point": analysis.average_precision(*given, method="11-point").mean}
    results |= pipelines.proposal_results(proposals(np.arange(len(part.images))), part.objects)
    results |= {"images_per_second": count / seconds, "detections": sum(len(one.boxes) for one in found)}
    return Scored(found, coco, voc, results)


def write_report(config: Config, detector: Detector, examples: Data, scored: Scored, run: training.Run) -> Path:
    """The report: images with boxes, precision and recall, AP of each class, the proposals and their recall."""
    part, proposals = examples.corpus.test, examples.proposals["test"]
    options: dict[str, Any] = {"method": type(config.proposals).__name__, "samples": config.samples}
    options |= {"shown_score": detector.shown_score, "class_names": detector.class_names}
    figures: dict[str, Path] = {}
    try:
        arrays = proposals(np.arange(len(part.images))), scored.found, scored.voc
        figures = pipelines.draw_detector_report(run.path / "figures", part, *arrays, **options)
    except ImportError as error:
        print(error, flush=True)
    title = f"Detection: {config.detector.model}, {config.detector.encoder}"
    samples = {"AP of each class": pipelines.precision_table(scored.voc, scored.coco)}
    return training.write_report(run, title=title, samples=samples, figures=figures)


if __name__ == "__main__":
    training.run_cli(main, tyro.conf.CascadeSubcommandArgs[Config], __doc__)
