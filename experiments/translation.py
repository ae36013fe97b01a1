"""Train a translator on pairs of texts, translate the held-out pairs, and write a run folder with a report.

    python experiments/translation.py --run runs/dates                                     # English dates to German
    python experiments/translation.py model:transformer task:dates --target iso --run runs/iso
    python experiments/translation.py task:names --target fr --run runs/names
    python experiments/translation.py task:files --pairs mine.tsv --tokens bpe --run runs/mine       # your own pairs
    python experiments/translation.py task:files --pairs tatoeba.tsv --columns 2,4 --run runs/tatoeba
    python experiments/translation.py task:files --pairs text.en --pairs-target text.de --run runs/aligned

The same command again resumes a run that was stopped. task: and model: choose a task and a model, and stand before
their own options (model:transformer --help lists them). The dates and names are of Unicode's locale data (Babel's
CLDR), with whole years or names held out. The default takes about a minute and a half on 2 CPU cores and gets 99.7 to
100 % of 1,000 held-out dates right; for other models and tasks see docs/translation.md.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tyro.conf import OmitArgPrefixes, subcommand

from jaxseq import analysis, data, distribution, ops, pipelines, plotting, training
from jaxseq.models import EncoderDecoder
from jaxseq.models.configs import AttentionTranslator, RNNTranslator, TransformerTranslator
from jaxseq.pipelines import Dates, Digits, Files, Names, Reversal, Words
from jaxseq.training import STEP_SCHEDULE, resumable_field

Task = (
    Annotated[Dates, subcommand("task:dates")]
    | Annotated[Names, subcommand("task:names")]
    | Annotated[Words, subcommand("task:words")]
    | Annotated[Digits, subcommand("task:digits")]
    | Annotated[Reversal, subcommand("task:reversal")]
    | Annotated[Files, subcommand("task:files")]
)
Model = (
    Annotated[RNNTranslator, subcommand("model:rnn")]
    | Annotated[AttentionTranslator, subcommand("model:attention")]
    | Annotated[TransformerTranslator, subcommand("model:transformer")]
)

SIZES = ("features", "layers", "feed_forward", "vocabulary_size")
"""The fields that determine the number of parameters."""


@dataclass(frozen=True)
class Config:
    """The task, the model, how it is trained, and how it decodes."""

    run: Path = resumable_field(Path("runs/translation"))
    """The run folder; the same command again resumes the run in it."""
    mesh: str | None = resumable_field(None)
    """The devices, as sizes of data, fsdp, sequence and tensor: data=-1 or data=2,fsdp=4; one device if not given."""
    task: OmitArgPrefixes[Task] = Dates()
    model: OmitArgPrefixes[Model] = AttentionTranslator()
    split_seed: int = 0
    """Random seed of the pairs and of the split."""
    tokens: Literal["characters", "bytes", "bpe"] = "characters"
    """What a text is split into."""
    vocabulary_size: int = 1024
    """Size of each bpe vocabulary."""
    batch_size: int = 64
    """Pairs in a batch."""
    buckets: int = 2
    """Number of padded batch shapes; each batch contains pairs of similar length."""
    label_smoothing: float = 0.0
    """Probability of the target that is spread evenly over the vocabulary, from 0 to below 1."""
    scheduled_sampling: float = dataclasses.field(default=0.0, metadata={STEP_SCHEDULE: True})
    """Scheduled sampling: probability at the end of training that the decoder reads its own token instead of the
    target's; it rises linearly from 0 (Bengio et al. 2015)."""
    seed: int = 0
    """Draws parameters, batches and dropout."""
    search: OmitArgPrefixes[pipelines.SearchConfig] = pipelines.SearchConfig()
    bleu_tokenize: str = "13a"
    """sacrebleu's tokenizer: 13a, char, zh, ja-mecab, ..."""
    samples: int = resumable_field(8)
    """Number of translations in the report."""
    train: training.TrainConfig = training.TrainConfig(steps=None, eval_every=100, checkpoint_every=200)
    optimizer: training.OptimizerConfig = training.OptimizerConfig(learning_rate=None, warmup_steps=60, b2=0.99)
    allow_config_change: bool = resumable_field(False)
    """Resume a run even if its config differs."""
    smoke: bool = False
    """A run of a few seconds, to test that everything works; sets sizes, steps and samples itself."""

    def __post_init__(self) -> None:
        training.check_numbers(self)
        minimum = {"batch_size": 1, "buckets": 1, "samples": 0, "seed": 0, "split_seed": 0, "vocabulary_size": 1}
        for name, bound in minimum.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, not {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), not {self.label_smoothing}")
        if not 0 <= self.scheduled_sampling <= 1:
            raise ValueError(f"scheduled_sampling must be in [0, 1], not {self.scheduled_sampling}")
        if self.train.steps is None:
            object.__setattr__(self, "train", dataclasses.replace(self.train, steps=self.model.default_steps))
        if self.optimizer.learning_rate is None:
            rate = self.model.default_learning_rate
            object.__setattr__(self, "optimizer", dataclasses.replace(self.optimizer, learning_rate=rate))


class ScheduledBatch(NamedTuple):
    """A batch, and the probability of scheduled sampling in this step."""

    pairs: data.PairBatch
    rate: np.float32

    @property
    def segment_ids(self) -> np.ndarray:
        """Segment ids of the targets, for counting tokens."""
        return self.pairs.segment_ids


@dataclass(frozen=True)
class ScheduledBatches:
    """Batches of pairs, in which the probability of scheduled sampling rises linearly from 0 to ``rate``."""

    pairs: data.BucketedPairs
    rate: float
    steps: int

    @property
    def batch_size(self) -> int:
        """The number of pairs of a batch."""
        return self.pairs.batch_size

    @property
    def fingerprint(self) -> str:
        """That of the pairs."""
        return self.pairs.fingerprint

    def shape_steps(self, step: int) -> list[int]:
        """Those of the pairs."""
        return self.pairs.shape_steps(step)

    def __call__(self, step: int, rows: np.ndarray | None = None) -> ScheduledBatch:
        """The batch of this step, or some of its rows."""
        return ScheduledBatch(self.pairs(step, rows), np.float32(self.rate * step / max(1, self.steps - 1)))


def main(config: Config) -> dict[str, Any]:
    """Read, build, train, translate, score, report; returns the results."""
    if config.smoke:
        config = smoke(config)
    placement = distribution.Placement.on(config.mesh)
    training.enable_compilation_cache()
    pipelines.check_user_cores(config.model.cores, config.model.features)
    corpus = config.task.corpus(config.split_seed, 32 if config.smoke else 1000)
    print(corpus.summary(), flush=True)
    translator = make_translator(config, corpus)
    model = translator.model
    ends = {"separator": translator.target.separator, "source_end": translator.source.separator}
    pairs = translator.encode_pairs(corpus.train)
    batches = data.BucketedPairs(pairs, config.batch_size, num_buckets=config.buckets, seed=config.seed, **ends)
    print(f"batches of {config.batch_size}: shapes {batches.shapes}, {batches.fill_ratio:.0%} filled", flush=True)
    key, init_key = ops.split_key(jax.random.key(config.seed))
    arrays = inputs(batches(0))
    optimizer = training.make_optimizer(config.optimizer, config.train.steps)

    init = partial(initial_params, model)
    shapes = placement.check_memory(init, init_key, *arrays, optimizer=optimizer, sizes=SIZES)  # before a folder
    check_evaluation(config, translator, shapes, arrays[0], len(corpus.held_out))

    change = config.allow_config_change
    fingerprint = batches.fingerprint + corpus.sha256
    with training.Run.open(config.run, config, fingerprint=fingerprint, allow_config_change=change) as run:
        translator.save(run)
        run.write("pairs.json", {"description": corpus.summary(), "skipped": corpus.skipped})
        loss = placement.loss(make_loss(config, model))
        evaluate = make_evaluation(translator, corpus, placement)
        steps = config.train.steps or config.model.default_steps
        scheduled = ScheduledBatches(batches, config.scheduled_sampling, steps)
        with placement.ambient():
            params = placement.build(init, init_key, *arrays)
            state = placement.place(training.create_state(params, optimizer, key=key))
            print(placement.describe(state, config.batch_size), flush=True)
            chosen = ops.used_implementations(loss, params, (), scheduled(0), key)
            placed = placement.batches(scheduled)
            state = training.fit(loss, state, optimizer, placed, run, config.train, evaluate=evaluate)
        params = placement.local(state.eval_params)
        results = {
            **score(config, translator, params, corpus, run),
            **alignment_accuracy(config, translator, params, corpus),
            "held_out_pairs": len(corpus.held_out),
            "train_pairs": len(corpus.train),
            "pairs_sha256": corpus.sha256,
            "parameters": sum(p.size for p in jax.tree.leaves(params)),
            "steps": int(state.step),
            "implementations": ", ".join(f"{op}={'/'.join(names)}" for op, names in chosen.items()) or "none",
            "train_seconds": run.train_seconds,
        }
        run.write_results(results)
        report = write_report(config, translator, params, corpus, run)
    print(
        f"held out: {results['exact_match']:.2%} exactly right, "
        f"BLEU {results['bleu']:.2f}, chrF {results['chrf']:.2f}\n"
        f"  {results['bleu_signature']}\n  {results['chrf_signature']}\nreport: {report}"
    )
    return results


def smoke(config: Config) -> Config:
    """The same experiment with small sizes."""

    def resized(part: Any, **sizes: int) -> Any:
        return dataclasses.replace(part, **{name: size for name, size in sizes.items() if hasattr(part, name)})

    evaluations = 5 if config.train.best_metric else None
    train = dataclasses.replace(config.train, steps=10, log_every=5, checkpoint_every=5, eval_every=evaluations)
    model = resized(config.model, features=16, num_heads=2, layers=1)
    task, samples = resized(config.task, num_pairs=64), min(config.samples, 1)
    return dataclasses.replace(config, train=train, model=model, task=task, batch_size=8, samples=samples)


def make_translator(config: Config, corpus: data.ParallelCorpus) -> pipelines.Translator:
    """Make the model and its vocabularies; a translation has at most 1.5 times the tokens of the longest target."""
    sides = [[pair[side] for pair in corpus.train] for side in (0, 1)]
    if config.model.tied == "all":
        sides = [sides[0] + sides[1]] * 2
    options = {"vocab_size": config.vocabulary_size} if config.tokens == "bpe" else {}
    source, target = (data.fit_vocabulary(config.tokens, side, **options) for side in sides)
    longest, held_out = (max(len(target.encode(b)) for _, b in part) for part in (corpus.train, corpus.held_out))
    max_length = max(config.task.length_extrapolation * (longest + longest // 2), held_out) + 1
    search, buckets = config.search, config.buckets
    return pipelines.Translator(config.model, source, target, search=search, num_buckets=buckets, max_length=max_length)


def initial_params(model: EncoderDecoder, key: jax.Array, *arrays: Any) -> Any:
    """The parameters before training."""
    return model.init(key, *arrays)["params"]


def check_evaluation(config: Config, translator: pipelines.Translator, params: Any, source: Any, count: int) -> None:
    """Check, before training, the options of what follows it; ``params`` and ``source`` are shapes."""
    analysis.translation_scores(["a"], ["a"], tokenize=config.bleu_tokenize)
    sizes: dict[str, Any] = {"vocab_size": translator.target.size, "max_length": translator.max_length}
    pipelines.check_beams(translator.model, params, source, config.search, count=count, **sizes)


def inputs(batch: data.PairBatch) -> tuple[Any, ...]:
    """Return the model's arguments for teacher forcing."""
    return batch.source_tokens, batch.tokens, batch.source_segment_ids, batch.segment_ids


def make_loss(config: Config, model: EncoderDecoder) -> Callable:
    """The mean cross-entropy, in nats per token; scheduled sampling replaces a part of the decoder's input."""

    def loss(params: Any, carry: Any, batch: ScheduledBatch, key: jax.Array) -> tuple[jax.Array, training.Aux]:
        source, tokens, source_segment_ids, ids = inputs(batch.pairs)
        drop, own = jax.random.split(key)
        run = partial(model.apply, {"params": params}, rngs={"dropout": drop} if model.dropout else None)
        if config.scheduled_sampling:
            logits_of: Any = lambda tokens: run(source, tokens, source_segment_ids, ids)  # noqa: E731
            tokens = training.scheduled_sampling(logits_of, jnp.asarray(tokens), rate=jnp.asarray(batch.rate), key=own)
        logits: Any = run(source, tokens, source_segment_ids, ids)
        smoothing = config.label_smoothing
        entropy = training.cross_entropy(logits, batch.pairs.targets, ids != 0, label_smoothing=smoothing)
        return entropy.mean, training.Aux(carry, {}, entropy.count)

    return loss


def make_evaluation(
    translator: pipelines.Translator, corpus: data.ParallelCorpus, placement: distribution.Placement
) -> Callable:
    """Loss under teacher forcing and exact match, decoded greedily, of the first held-out pairs."""
    pairs = corpus.held_out[:256]
    encoded = translator.encode_pairs(pairs)
    greedy = translator.with_search(pipelines.SearchConfig()).on(placement)
    ends = {"separator": translator.target.separator, "source_end": translator.source.separator}
    batches = data.BucketedPairs(encoded, min(64, len(encoded)), num_buckets=1, **ends)

    @jax.jit
    def entropy(params: Any, batch: data.PairBatch) -> Any:
        logits: Any = translator.model.apply({"params": params}, *inputs(batch))
        return training.cross_entropy(logits, batch.targets, batch.segment_ids != 0)

    def evaluate(params: Any) -> dict[str, float]:
        parts = [entropy(params, placement.batch(batches(step))) for step in range(batches.steps_per_epoch)]
        loss = sum(float(part.total) for part in parts) / sum(float(part.count) for part in parts)
        found = greedy(params, [source for source, _ in pairs])
        right = sum(made == wanted for made, (_, wanted) in zip(found, pairs, strict=True))
        return {"loss": loss, "exact_match": right / len(pairs)}

    return evaluate


def score(
    config: Config, translator: pipelines.Translator, params: Any, corpus: data.ParallelCorpus, run: training.Run
) -> dict[str, Any]:
    """Scores of all held-out pairs; translations and scores by source length are written to the run."""
    pairs = [*corpus.held_out, *config.task.longer_pairs(config.split_seed, 8 if config.smoke else 100)]
    sources, references = ([pair[side] for pair in pairs] for side in (0, 1))
    found = translator(params, sources)
    rows = zip(sources, references, found, strict=True)
    run.write("translations.json", [{"source": a, "target": b, "found": c} for a, b, c in rows])
    lengths = [len(translator.source.encode(text)) for text in sources]
    options: dict[str, Any] = {"tokenize": config.bleu_tokenize}
    run.write("by_length.json", analysis.scores_by_length(lengths, found, references, bins=12, **options))
    count = len(corpus.held_out)
    copied = sum(source == target for source, target in corpus.held_out) / count
    scores = analysis.translation_scores(found[:count], references[:count], **options)
    return {**dataclasses.asdict(scores), "exact_match_of_copying": copied}


def alignment_accuracy(
    config: Config, translator: pipelines.Translator, params: Any, corpus: data.ParallelCorpus
) -> dict[str, float]:
    """Return how often the largest attention weight is at the correct source position, for reversed strings."""
    if not isinstance(config.task, Reversal):
        return {}
    alignments = translator.alignments(params, corpus.held_out[:100])
    known = [np.append(np.arange(len(a.target_tokens) - 2, -1, -1), -1) for a in alignments]
    weights = [a.weights for a in alignments]
    return {"alignment_accuracy": analysis.alignment_accuracy(weights, known)} if alignments else {}


def write_report(
    config: Config, translator: pipelines.Translator, params: Any, corpus: data.ParallelCorpus, run: training.Run
) -> Path:
    """The report: translations, their alignments, scores by length."""
    rows, samples = run.read("translations.json")[: config.samples], {}
    for row in rows:
        right = "right" if row["found"] == row["target"] else f"wanted {row['target']}"
        samples[row["source"]] = f"{row['found']}\n({right})"
    name, figures, folder = type(config.model).__name__, dict[str, Path](), run.path / "figures"
    folder.mkdir(exist_ok=True)
    try:
        pairs = [(row["source"], row["found"]) for row in rows[:4]]
        alignments = translator.alignments(params, pairs) if pairs else []
        if alignments:
            caption = "Alignments: what was written (rows) by what was read (columns)"
            figures[caption] = plotting.draw_alignments(alignments, folder / "alignments.png")
        points = [analysis.LengthScores(**row) for row in run.read("by_length.json")]
        trained = max(len(translator.source.encode(text)) for text, _ in corpus.train)
        line: dict[str, Any] = {"trained_length": trained} if config.task.length_extrapolation > 1 else {}
        captions = {"exact_match": "Exact match against source length", "bleu": "BLEU against source length"}
        for metric, caption in captions.items():
            if any(getattr(point, metric) is not None for point in points):
                file = folder / f"{metric}_by_length.png"
                figures[caption] = plotting.draw_length_curves({name: points}, file, metric=metric, **line)
    except ImportError as error:
        print(error, flush=True)
    return training.write_report(run, title=f"Translation: {name}", samples=samples, figures=figures)


if __name__ == "__main__":
    training.run_cli(main, tyro.conf.CascadeSubcommandArgs[Config], __doc__)
