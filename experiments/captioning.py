r"""Train a captioner of images, caption the test images, and write a run folder with a report.

    python experiments/captioning.py --run runs/scenes                          # digits on photographs
    python experiments/captioning.py --decoder transformer --run runs/transformer
    python experiments/captioning.py task:folder --captions mine.tsv --encoder efficientnet_lite0 --frozen
    python experiments/captioning.py task:karpathy --captions dataset_flickr8k.json --images Flicker8k_Dataset \
        --encoder resnet50 --weights resnet50.pth --frozen --run runs/flickr8k

The same command again resumes a run that was stopped. task: chooses the images (task:coco --help lists its options).
The decoders are rnn, lstm, attention and transformer. The scenes are real digits on real photographs; their layouts
are made. The default trains for about 7 minutes on one CPU core and gives exactly one of the references for 96 to 97 %
of the test images; docs/captioning.md says what each decoder reaches, and defines every number of results.json.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro
from tyro.conf import OmitArgPrefixes, subcommand

from jaxseq import analysis, distribution, ops, pipelines, plotting, training
from jaxseq.data.images import CaptionBatch, CaptionBatches, CaptionCorpus, Prefetch, SceneImages
from jaxseq.models import CaptionerConfig, caption_logits
from jaxseq.pipelines import Caption, Captioner, Coco, Flickr, Folder, Karpathy, Scenes, SearchConfig
from jaxseq.training import resumable_field

Task = (
    Annotated[Scenes, subcommand("task:scenes")]
    | Annotated[Coco, subcommand("task:coco")]
    | Annotated[Karpathy, subcommand("task:karpathy")]
    | Annotated[Flickr, subcommand("task:flickr")]
    | Annotated[Folder, subcommand("task:folder")]
)


@dataclass(frozen=True)
class Config:
    """The task, the model, how it is trained, and how it decodes."""

    run: Path = resumable_field(Path("runs/captioning"))
    """The run folder; the same command again resumes the run in it."""
    mesh: str | None = resumable_field(None)
    """The devices, as sizes of data, fsdp, sequence and tensor: data=-1 or data=2,fsdp=4; one device if not given."""
    task: OmitArgPrefixes[Task] = dataclasses.field(default_factory=Scenes)
    model: OmitArgPrefixes[CaptionerConfig] = dataclasses.field(default_factory=CaptionerConfig)
    weights: Path | None = resumable_field(None)
    """A file of the encoder's weights (.safetensors, .npz, .pt, .pth). efficientnet_lite0 takes those of its installed
    package by default."""
    cache: Path = resumable_field(Path("runs/cache"))
    """A folder that keeps resized images, and the feature maps of a frozen encoder, for all runs."""
    split_seed: int = 0
    """Random seed of the scenes, or of the split of a folder."""
    batch_size: int = 32
    """Images in a batch."""
    captions_per_image: int = 2
    """Captions of an image that are trained at once; the image is encoded once for all."""
    label_smoothing: float = 0.0
    """Probability of the target that is spread evenly over the vocabulary, from 0 to below 1."""
    seed: int = 0
    """Draws parameters, batches and dropout."""
    search: OmitArgPrefixes[SearchConfig] = SearchConfig()
    compared_beams: int = 4
    """Also score beam search with this number of beams (results beam_*); 1: do not."""
    samples: int = resumable_field(6)
    """Number of images in the report."""
    train: training.TrainConfig = training.TrainConfig(steps=5000, eval_every=500, checkpoint_every=500)
    optimizer: training.OptimizerConfig = training.OptimizerConfig(
        learning_rate=None, warmup_steps=100, weight_decay=0.01
    )
    allow_config_change: bool = resumable_field(False)
    """Resume a run even if its config differs."""
    smoke: bool = False
    """A short run, to test that everything works: it sets the numbers of steps, scenes and samples, the batch size and
    the width itself. Of files, all images are read."""

    def __post_init__(self) -> None:
        training.check_numbers(self)
        minimum = {"batch_size": 1, "captions_per_image": 1, "compared_beams": 1, "samples": 0, "seed": 0}
        for name, bound in (minimum | {"split_seed": 0}).items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, not {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), not {self.label_smoothing}")
        if self.weights is not None:
            if self.model.pretrained is False:
                raise ValueError(f"weights={self.weights} needs pretrained, which is switched off")
            object.__setattr__(self, "model", dataclasses.replace(self.model, pretrained=True))
        if self.optimizer.learning_rate is None:
            rate = self.model.default_learning_rate
            object.__setattr__(self, "optimizer", dataclasses.replace(self.optimizer, learning_rate=rate))


class Data(NamedTuple):
    """A corpus, and the model's inputs for each of its parts: the images, or features of a frozen encoder."""

    corpus: CaptionCorpus
    inputs: dict[str, Any]


def main(config: Config) -> dict[str, Any]:
    """Read, build, train, caption, score, report; returns the results."""
    if config.smoke:
        config = smoke(config)
    placement = distribution.Placement.on(config.mesh)
    training.enable_compilation_cache()
    pipelines.check_user_cores(config.model.cores, config.model.features)
    corpus = config.task.corpus(config.split_seed, config.cache)
    print(corpus.summary(), flush=True)
    captioner, backbone, weights = make_captioner(config, corpus)
    key, init_key = ops.split_key(jax.random.key(config.seed))
    arrays = captioner.blank(), np.zeros((1, 1), np.int32)
    optimizer = training.make_optimizer(config.optimizer, config.train.steps)

    init, sizes = partial(initial_params, captioner), ("features", "layers", "feed_forward")
    shapes = placement.check_memory(init, init_key, *arrays, optimizer=optimizer, sizes=sizes)  # before features
    check_searches(config, captioner, shapes, len(corpus.test.images))
    examples = Data(corpus, {name: captioner.source(part.images, config.cache) for name, part in corpus.parts.items()})
    batches = make_batches(config, captioner, examples)
    fingerprint = batches.fingerprint + corpus.sha256 + weights
    change = config.allow_config_change
    with training.Run.open(config.run, config, fingerprint=fingerprint, allow_config_change=change) as run:
        captioner.save(run)
        run.write("corpus.json", {"description": corpus.summary(), "skipped": corpus.skipped})
        loss = placement.loss(make_loss(config, captioner))
        evaluate = make_evaluation(captioner.on(placement), examples, config.task.tokenizer)
        with placement.ambient(), Prefetch(placement.batches(batches)) as ahead:
            params = placement.build(init, init_key, *arrays)
            if backbone is not None and captioner.frozen is None:
                params = pipelines.with_backbone(params, backbone)
            state = placement.place(training.create_state(params, optimizer, key=key))
            print(placement.describe(state, config.batch_size), flush=True)
            chosen = ops.used_implementations(loss, params, (), batches(0), key)
            state = training.fit(loss, state, optimizer, ahead, run, config.train, evaluate=evaluate)
        params = placement.local(state.eval_params)
        rows = training.read_json_lines(run.metrics)
        rates = [row["steps_per_second"] for row in rows if "steps_per_second" in row]
        results = {
            **score(config, captioner, params, examples, run),
            "test_images": len(corpus.test.images),
            "train_images": len(corpus.train.images),
            "corpus_sha256": corpus.sha256,
            "parameters": sum(p.size for p in jax.tree.leaves(params)),
            "steps": int(state.step),
            "implementations": ", ".join(f"{op}={'/'.join(names)}" for op, names in chosen.items()) or "none",
            "train_seconds": run.train_seconds,
        }
        if rates:  # the first step, which compiles, has none
            results["train_images_per_second"] = float(np.median(rates)) * config.batch_size
        run.write_results(results)
        report = write_report(config, captioner, params, examples, run)
    print(
        f"test: {results['exact_match']:.2%} exactly one of the references, BLEU-4 {results['bleu4']:.3f}, "
        f"CIDEr-D {results['cider']:.3f}\n  {results['bleu_signature']}\n  {results['cider_signature']}\n"
        f"report: {report}"
    )
    return results


def smoke(config: Config) -> Config:
    """The same experiment with small sizes."""
    evaluations = 3 if config.train.best_metric else None
    train = dataclasses.replace(config.train, steps=6, log_every=2, checkpoint_every=3, eval_every=evaluations)
    sizes: dict[str, Any] = {"features": 8}
    if config.model.attends and config.model.attention in (None, "multi_head"):
        sizes["num_heads"] = 2
    if config.model.encoder == "patches":
        sizes["encoder_layers"] = 1
    model = dataclasses.replace(config.model, **sizes)
    samples, beams = min(config.samples, 2), min(config.compared_beams, 2)
    changed: dict[str, Any] = {"train": train, "model": model, "batch_size": 4, "samples": samples}
    return dataclasses.replace(config, task=config.task.smoke(), compared_beams=beams, **changed)


def make_captioner(config: Config, corpus: CaptionCorpus) -> tuple[Captioner, Any, str]:
    """The captioner, the parameters of a pretrained encoder (or None), and their SHA-256 (or an empty string).

    A caption has at most 1.5 times the tokens of the longest training caption.

    Raises:
        ValueError: the vocabulary has no words, as of few captions with a large ``min_count``.
    """
    model, vocabulary = config.model, config.task.vocabulary(corpus)
    if not vocabulary.words:
        least = getattr(config.task, "min_count", 1)
        raise ValueError(f"no word occurs min_count={least} times in the training captions: there is nothing to learn")
    backbone, weights, frozen = None, "", None
    if model.starts_trained:
        backbone = pipelines.read_backbone(model, pipelines.find_weights(model.encoder, config.weights))
        encoder = pipelines.FrozenEncoder(model.backbone(), backbone)
        weights, frozen = encoder.fingerprint, encoder if model.frozen else None
    longest = max(len(vocabulary.encode(text)) for texts in corpus.train.captions for text in texts)
    options: dict[str, Any] = {"image_size": corpus.train.images.size, "resize": config.task.resize}
    options |= {"search": config.search, "max_length": longest + longest // 2 + 1, "frozen": frozen}
    return Captioner(model, vocabulary, **options), backbone, weights


def initial_params(captioner: Captioner, key: jax.Array, *arrays: Any) -> Any:
    """The parameters before training."""
    return captioner.model.init(key, *arrays)["params"]


def check_searches(config: Config, captioner: Captioner, params: Any, count: int) -> None:
    """Check, before training, the searches that follow it; ``params`` are shapes."""
    given: dict[str, Any] = {"vocab_size": captioner.vocabulary.size, "max_length": captioner.max_length}
    for name, beams in {"beams": config.search.beams, "compared_beams": config.compared_beams}.items():
        search = dataclasses.replace(config.search, beams=beams, coverage=0.0)
        pipelines.check_beams(captioner.model, params, captioner.blank(), search, count=count, name=name, **given)


def make_batches(config: Config, captioner: Captioner, examples: Data) -> CaptionBatches:
    """The training batches."""
    vocabulary, texts = captioner.vocabulary, examples.corpus.train.captions
    encoded = [[vocabulary.encode(text) for text in references] for references in texts]
    options: dict[str, Any] = {"captions_per_image": config.captions_per_image, "seed": config.seed}
    batches = CaptionBatches(
        examples.inputs["train"], encoded, config.batch_size, separator=vocabulary.separator, **options
    )
    print(f"{vocabulary.size:,} words; {batches.steps_per_epoch:,} steps an epoch", flush=True)
    return batches


def make_loss(config: Config, captioner: Captioner) -> Callable:
    """The mean cross-entropy under teacher forcing, in nats per token."""
    model = captioner.model

    def loss(params: Any, carry: Any, batch: CaptionBatch, key: jax.Array) -> tuple[jax.Array, training.Aux]:
        rngs = {"dropout": key} if model.dropout else None
        arrays = batch.images, batch.tokens, batch.segment_ids
        logits: Any = model.apply({"params": params}, *arrays, rngs=rngs, method=caption_logits)
        mask, smoothing = batch.segment_ids != 0, config.label_smoothing
        entropy = training.cross_entropy(logits, batch.targets, mask, label_smoothing=smoothing)
        return entropy.mean, training.Aux(carry, {}, entropy.count)

    return loss


def make_evaluation(captioner: Captioner, examples: Data, tokenizer: str) -> Callable:
    """Loss under teacher forcing and exact match, decoded greedily, of the first validation images."""
    references = examples.corpus.validation.captions[:256]
    inputs = pipelines.First(examples.inputs["validation"], len(references))
    greedy = captioner.with_search(SearchConfig())
    measure = pipelines.CaptionLosses(captioner, references)

    def evaluate(params: Any) -> dict[str, float]:
        found = [caption.text for caption in greedy.captions(params, inputs)]
        matches = analysis.exact_matches(found, references, tokenizer=tokenizer)
        return {"loss": measure(params, inputs).all_references, "exact_match": sum(matches) / len(matches)}

    return evaluate


def score(config: Config, captioner: Captioner, params: Any, examples: Data, run: training.Run) -> dict[str, Any]:
    """Scores of all test images; the captions are written to the run."""
    (images, references, names), inputs = examples.corpus.test, examples.inputs["test"]
    part = pipelines.First(inputs, min(256, len(inputs)))
    captioner.captions(params, pipelines.First(inputs, min(64, len(inputs))))  # compiles
    start = time.perf_counter()
    captioner.captions(params, part)
    seconds = time.perf_counter() - start
    found = captioner.captions(params, inputs)
    rows = [
        {"image": name, "references": texts, "found": caption.text, "log_probability": caption.log_probability}
        for name, texts, caption in zip(names, references, found, strict=True)
    ]
    results = scores_of(config, found, references)
    if config.compared_beams > 1:
        search = dataclasses.replace(config.search, beams=config.compared_beams)
        beams = captioner.with_search(search).captions(params, inputs)
        results |= {f"beam_{name}": value for name, value in scores_of(config, beams, references).items()}
        for row, caption in zip(rows, beams, strict=True):
            row |= {"beam": caption.text, "beam_log_probability": caption.log_probability}
    run.write("captions.json", rows)
    losses = pipelines.CaptionLosses(captioner, references)(params, inputs)
    results |= {"loss": losses.all_references, "teacher_forced_loss": losses.teacher_forced}
    results |= {"free_running_loss": losses.free_running, "images_per_second": len(part) / seconds}
    if isinstance(images, SceneImages):
        results |= pipelines.scene_slots([caption.text for caption in found], references)
        results |= pipelines.attention_on_boxes(captioner, params, inputs, images, found)
    return results


def scores_of(config: Config, found: list[Caption], references: Any) -> dict[str, Any]:
    """Scores of captions under the names of results.json, and their mean log-probability."""
    scores = analysis.caption_scores([c.text for c in found], references, tokenizer=config.task.tokenizer)
    values = dataclasses.asdict(scores)
    signatures = values.pop("signatures")
    values["cider"] = values.pop("cider_d")
    values["log_probability"] = float(np.mean([caption.log_probability for caption in found]))
    values |= {f"{name.removesuffix('_d')}_signature": text for name, text in signatures.items()}
    return values


def write_report(config: Config, captioner: Captioner, params: Any, examples: Data, run: training.Run) -> Path:
    """The report: images with their captions and references, and the attention at each word."""
    every = run.read("captions.json")
    rows = every[: config.samples]
    folder, figures, samples = run.path / "figures", dict[str, Path](), dict[str, str]()
    folder.mkdir(exist_ok=True)
    images = examples.corpus.test.images(np.arange(len(rows)))
    inputs = pipelines.First(examples.inputs["test"], min(max(64, len(rows)), len(every)))  # compiled already
    tokens = [captioner.vocabulary.encode(row["found"]) for row in every[: len(inputs)]]
    maps = captioner.attentions(params, inputs, tokens)
    for index, row in enumerate(rows):
        (match,) = analysis.exact_matches([row["found"]], [row["references"]], tokenizer=config.task.tokenizer)
        right = "" if match else " (none of the references)"
        notes = [f"caption: {row['found']}{right}", *(f"reference: {text}" for text in row["references"])]
        samples[row["image"]] = "\n".join(notes)
        words = [captioner.vocabulary.decode([token]) for token in tokens[index].tolist()]
        try:
            file = plotting.draw_attention_maps(
                images[index], words, maps[index] if maps else None, folder / f"caption_{index}.png", notes=notes
            )
        except ImportError as error:
            print(error, flush=True)
            break
        figures[f"{row['image']}: the image, and the attention at each word" if maps else row["image"]] = file
    title = f"Captioning: {config.model.decoder}, {config.model.encoder}"
    return training.write_report(run, title=title, samples=samples, figures=figures)


if __name__ == "__main__":
    training.run_cli(main, tyro.conf.CascadeSubcommandArgs[Config], __doc__)
