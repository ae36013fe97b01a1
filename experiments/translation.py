"""Train a translator on pairs of texts, translate what was held out, and leave a run folder with its alignments.

    python experiments/translation.py --run runs/dates                                   # English dates to German ones
    python experiments/translation.py --target iso --model transformer --features 64 --train.steps 1400 \
        --optimizer.learning-rate 4e-3 --run runs/iso
    python experiments/translation.py --task names --target fr --run runs/names
    python experiments/translation.py --pairs mine.tsv --tokens bpe --run runs/mine      # your own: TSV, JSONL, .gz
    python experiments/translation.py --pairs text.en --pairs-target text.de --run runs/aligned

The same command again goes on where it was stopped. Without --pairs the pairs are made from Unicode's locale data
(Babel's CLDR), with whole years or names held out. The default takes about a minute and a half on 2 CPU cores and
gets all of 1,000 held-out dates right (600 steps, one run); what other models and tasks reach: docs/translation.md.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxseq import analysis, data, decoding, ops, training
from jaxseq.decoders import Bridge, last_attention_weights, make_decoder
from jaxseq.encoders import make_encoder
from jaxseq.layers import ATTENTIONS, Embedding
from jaxseq.models import EncoderDecoder, alignment
from jaxseq.training import resumable_field


@dataclass(frozen=True)
class Config:
    """What to read, what to build, how to train, how to decode."""

    run: Path = resumable_field(Path("runs/translation"))
    """The run folder; the same command again resumes what is there."""
    pairs: Path | None = None
    """Your own pairs: .tsv or .txt (two columns), .jsonl (fields source and target), or with pairs_target one side of
    two aligned files; each also .gz."""
    pairs_target: Path | None = None
    held_out_pairs: Path | None = None
    """Pairs to be judged by, in the same form; a tenth of the sources if not given."""
    held_out_pairs_target: Path | None = None
    task: Literal["dates", "names", "words", "digits", "reversal"] = "dates"
    """Without pairs: dates; names of territories, languages, scripts, currencies; numbers into words of the target's
    language, or words of the source's into digits; random strings backwards."""
    source: str = "en"
    target: str = "de"
    """Locales, as Babel names them; iso for dates as YYYY-MM-DD."""
    number: int = 20_000
    """Pairs to train on at most (not of names or your own)."""
    most: int = 1
    """Dates a line at most."""
    longest: int = 20
    """Characters of a string to be reversed, at most."""
    stretch: int = 1
    """Judge sources up to so many times as long as the trained ones, too (lists of dates, strings to be reversed)."""
    split_seed: int = 0
    """Draws the pairs, and which are held out."""
    tokens: Literal["characters", "bytes", "bpe"] = "characters"
    vocabulary_size: int = 1024
    """Of each bpe vocabulary."""
    model: Literal["rnn", "attention", "transformer"] = "attention"
    """One vector for the source; attention anew from every state; or Transformer blocks."""
    encoder: str = "auto"
    """transformer, or any name of jaxseq.cores.CORES or FILE.py:CLASS; auto: lstm, or transformer for itself."""
    decoder: str = "auto"
    """The same; the mixer of what was written so far."""
    bidirectional: bool = True
    """Encoders that are cores read both ways."""
    attention: str = "auto"
    """A name in jaxseq.layers.ATTENTIONS; auto: additive, or multi_head for a Transformer."""
    fusion: Literal["add", "multiply", "concat"] = "concat"
    """How a context joins a recurrent decoder's input."""
    bridge: Literal["initial", "zero", "context"] = "initial"
    """What a recurrent decoder begins from: a state made of the source's summary; zeros; or that state and, for rnn,
    the summary at every step (which zero has for rnn too)."""
    features: int = 128
    layers: int = 1
    """Of the encoder and of the decoder; a Transformer has twice as many."""
    num_heads: int = 4
    feed_forward: int | None = None
    """Width of a Transformer's feed-forward layers; 4 x features if not given."""
    norm: Literal["pre", "post"] = "pre"
    positions: Literal["add", "concat", "none"] = "add"
    """How sinusoids join a Transformer's inputs."""
    scale_embeddings: bool = True
    """Multiply a Transformer's embeddings by the root of their width."""
    tied: Literal["none", "head", "all"] = "none"
    """Read the target's embedding backwards as the head; all: one vocabulary and one embedding for everything."""
    dropout: float = 0.0
    """Of embeddings, of sublayers and before the head; a few thousand pairs want 0.1 to 0.3."""
    batch_size: int = 64
    buckets: int = 2
    """Padded shapes that batches of like length have."""
    label_smoothing: float = 0.0
    scheduled_sampling: float = 0.0
    """How often the decoder is fed its own token at the end of training; from 0, in a straight line."""
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    beams: int = 1
    """1 is greedy decoding."""
    normalization: Literal["none", "mean", "gnmt"] = "gnmt"
    """Of beams, by length."""
    coverage: float = 0.0
    """Strength of the coverage penalty, of beams."""
    bleu_tokenize: str = "13a"
    """sacrebleu's tokenizer: 13a, char, zh, ja-mecab, ..."""
    samples: int = resumable_field(8)
    train: training.TrainConfig = training.TrainConfig(steps=600, eval_every=100, checkpoint_every=200)
    optimizer: training.OptimizerConfig = training.OptimizerConfig(learning_rate=3e-3, warmup_steps=60, b2=0.99)
    allow_config_change: bool = resumable_field(False)
    smoke: bool = False
    """A few seconds' run, to see that everything works; sets sizes, steps and samples itself."""

    def __post_init__(self) -> None:
        least = {"features": 2, "layers": 1, "num_heads": 1, "batch_size": 1, "buckets": 1, "beams": 1, "samples": 0}
        least |= {
            "feed_forward": 1,
            "number": 1,
            "most": 1,
            "longest": 1,
            "stretch": 1,
            "seed": 0,
            "split_seed": 0,
            "coverage": 0,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name} must be at least {bound}, not {value}")
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if not 0 <= self.scheduled_sampling <= 1:
            raise ValueError(f"scheduled_sampling must be in [0, 1], not {self.scheduled_sampling}")
        if self.coverage and (self.beams == 1 or self.model == "rnn"):
            raise ValueError(
                f"coverage={self.coverage} is of beams that attend: model={self.model}, beams={self.beams}"
            )
        if self.attention != "auto" and self.attention not in ATTENTIONS:
            raise ValueError(f"attention={self.attention!r}; known: auto, {', '.join(ATTENTIONS)}")
        belongs = {"pairs_target": "pairs", "held_out_pairs": "pairs", "held_out_pairs_target": "held_out_pairs"}
        for name, other in belongs.items():
            if getattr(self, name) is not None and getattr(self, other) is None:
                raise ValueError(f"{name}={getattr(self, name)} belongs to {other}, which is not given")
        attends = [self.model == "transformer" if side == "auto" else side == "transformer" for side in self.sides]
        for name, idle in (
            ("attention", self.model == "rnn" and self.attention != "auto"),
            ("bridge", self.model == "attention" and self.bridge == "context"),
            ("feed_forward", self.feed_forward is not None and self.model != "transformer" and not attends[0]),
            ("positions", self.positions == "concat" and not (self.model == "transformer" and all(attends))),
        ):
            if idle:
                raise ValueError(f"{name}={getattr(self, name)} does nothing with model={self.model}, {self.sides}")
        if self.positions == "concat" and self.tied != "none":
            raise ValueError(f"tied={self.tied} needs embeddings of the model's width: not positions=concat")
        if self.stretch > 1 and (self.pairs is not None or self.task not in ("dates", "reversal")):
            raise ValueError(f"stretch={self.stretch} is of dates and of reversal alone")

    @property
    def sides(self) -> tuple[str, str]:
        """Encoder and decoder, as asked."""
        return self.encoder, self.decoder


class Task(NamedTuple):
    """Pairs (None where a trained model is used on other texts) and their vocabularies."""

    corpus: Any
    source: data.Vocabulary
    target: data.Vocabulary

    def encoded(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pairs of texts as pairs of tokens."""
        return [(self.source.encode(a), self.target.encode(b)) for a, b in pairs]


class ScheduledBatch(NamedTuple):
    """A batch, and how often the decoder is fed its own tokens in this step."""

    pairs: data.PairBatch
    rate: np.float32

    @property
    def segment_ids(self) -> np.ndarray:
        """The real positions of the targets: the tokens that count."""
        return self.pairs.segment_ids


def main(config: Config) -> dict[str, Any]:
    """Read, build, train, translate, score, report; returns the results."""
    if config.smoke:
        config = smoke(config)
    task = make_task(config)
    print(task.corpus.describe(), flush=True)
    sizes = {"separator": task.target.separator, "source_end": task.source.separator}
    pairs = task.encoded(task.corpus.train)
    batches = data.BucketedPairs(pairs, config.batch_size, buckets=config.buckets, seed=config.seed, **sizes)
    print(f"batches of {config.batch_size}: shapes {batches.shapes}, {batches.filled:.0%} filled", flush=True)
    model = build(config, task.source.size, task.target.size)
    key, init_key = jax.random.split(jax.random.key(config.seed))
    arrays = inputs(batches(0))
    jax.eval_shape(model.init, init_key, *arrays)  # whatever does not fit is said before a folder is made
    analysis.translation_scores(["a"], ["a"], tokenize=config.bleu_tokenize)

    change = config.allow_config_change
    fingerprint = batches.fingerprint + task.corpus.sha256
    with training.Run.open(config.run, config, fingerprint=fingerprint, allow_config_change=change) as run:
        run.write("source_vocabulary.json", task.source.to_json())
        run.write("target_vocabulary.json", task.target.to_json())
        run.write("pairs.json", {"description": task.corpus.describe(), "skipped": task.corpus.skipped})
        run.write("lengths.json", {"longest_answer": longest_answer(config, task)})
        params = jax.jit(model.init)(init_key, *arrays)["params"]
        optimizer = training.make_optimizer(config.optimizer, config.train.steps)
        state = training.create_state(params, optimizer, key=key)
        loss = make_loss(config, model)
        chosen = ops.implementations(loss, params, (), ScheduledBatch(batches(0), np.float32(0)), key)
        runs = ", ".join(f"{op}={'/'.join(names)}" for op, names in chosen.items()) or "none"

        def fed(step: int) -> ScheduledBatch:
            return ScheduledBatch(
                batches(step), np.float32(config.scheduled_sampling * step / max(1, config.train.steps - 1))
            )

        evaluate = make_evaluation(config, model, task)
        state = training.fit(loss, state, optimizer, fed, run, config.train, evaluate=evaluate)
        results = {
            **judge(config, model, state.averaged, task, run),
            **alignment_accuracy(config, model, state.averaged, task),
            "held_out_pairs": len(task.corpus.held_out),
            "train_pairs": len(task.corpus.train),
            "pairs_sha256": task.corpus.sha256,
            "parameters": sum(p.size for p in jax.tree.leaves(state.params)),
            "steps": int(state.step),
            "implementations": runs,
            "train_seconds": run.train_seconds,
        }
        run.write_results(results)
        report = show(config, model, state.averaged, task, run)
    print(
        f"held out: {results['exact_match']:.2%} exactly right, "
        f"BLEU {results['bleu']:.2f}, chrF {results['chrf']:.2f}\n"
        f"  {results['bleu_signature']}\n  {results['chrf_signature']}\nreport: {report}"
    )
    return results


def smoke(config: Config) -> Config:
    """The same experiment, tiny."""
    train = dataclasses.replace(config.train, steps=10, log_every=5, checkpoint_every=5, eval_every=None)
    tiny: dict[str, Any] = {"features": 16, "num_heads": 2, "layers": 1, "batch_size": 8, "number": 64, "samples": 1}
    return dataclasses.replace(config, train=train, **tiny)


def make_task(config: Config) -> Task:
    """The user's pairs or those of a task, split honestly, and vocabularies of the training part."""
    held_out = 32 if config.smoke else 1000
    seed: dict[str, Any] = {"seed": config.split_seed}
    counts: dict[str, Any] = {"number": config.number, "held_out_number": held_out, **seed}
    if config.pairs is not None:
        own = config.held_out_pairs
        judged = own if config.held_out_pairs_target is None else (own, config.held_out_pairs_target)
        corpus = data.text_pairs(config.pairs, config.pairs_target, held_out_path=judged, **seed)  # type: ignore[arg-type]
    elif config.task == "dates":
        corpus = data.date_pairs(config.source, config.target, most=config.most, **counts)
    elif config.task == "names":
        corpus = data.name_pairs(config.source, config.target, **seed)
    elif config.task == "reversal":
        corpus = data.reversal_pairs(longest=config.longest, number=config.number, **seed)
    else:
        language = config.target if config.task == "words" else config.source
        corpus = data.number_pairs(language, direction=config.task, **counts)
    sides = [[pair[side] for pair in corpus.train] for side in (0, 1)]
    if config.tied == "all":
        sides = [sides[0] + sides[1]] * 2
    options = {"size": config.vocabulary_size} if config.tokens == "bpe" else {}
    return Task(corpus, *(data.fit_vocabulary(config.tokens, side, **options) for side in sides))


def build(config: Config, source_size: int, target_size: int) -> EncoderDecoder:
    """The model: two embeddings, an encoder, a decoder, a head; for a recurrent decoder a bridge to its first state."""
    policy = training.POLICIES[config.precision]
    types: dict[str, Any] = {"dtype": policy.compute, "param_dtype": policy.parameters}
    transformer = config.model == "transformer"
    encoder, decoder = (
        name if name != "auto" else "transformer" if transformer else "lstm"
        for name in (config.encoder, config.decoder)
    )
    width = config.features // 2 if transformer and config.positions == "concat" else config.features
    root = math.sqrt(width) if config.scale_embeddings else 1.0
    source = Embedding(source_size, width, scale=root if encoder == "transformer" else 1.0, **types)
    target = Embedding(target_size, width, scale=root if decoder == "transformer" else 1.0, **types)
    target = source if config.tied == "all" else target
    common: dict[str, Any] = {"norm": config.norm, "dropout": config.dropout, "num_heads": config.num_heads, **types}
    common["positions"] = None if config.positions == "none" else config.positions
    hidden = 4 * config.features if config.feed_forward is None else config.feed_forward
    attention = config.attention
    if attention == "auto":
        attention = "multi_head" if transformer else "additive"
    bridge = None
    if not transformer:
        ends = config.bidirectional and encoder != "transformer"
        bridge = Bridge("ends" if ends else "mean", initial=config.bridge != "zero", **types)
    fusion = None if config.model == "rnn" and config.bridge == "initial" else config.fusion
    sizes = config.features, (1 + transformer) * config.layers
    return EncoderDecoder(
        source,
        make_encoder(
            encoder,
            *sizes,
            bidirectional=config.bidirectional,
            feed_forward=hidden if transformer or encoder == "transformer" else None,
            **common,
        ),
        target,
        make_decoder(config.model, decoder, *sizes, attention=attention, fusion=fusion, feed_forward=hidden, **common),
        head=nn.Dense(target_size, **types) if config.tied == "none" else None,
        bridge=bridge,
        dropout=config.dropout,
        logits_dtype=policy.output,
    )


def inputs(batch: data.PairBatch) -> tuple[Any, ...]:
    """What the model is given for training, teacher forcing."""
    return batch.source, batch.tokens, batch.source_segment_ids, batch.segment_ids


def make_loss(config: Config, model: EncoderDecoder) -> Callable:
    """The mean cross-entropy, in nats a token; with scheduled sampling of an input that is partly the model's own."""

    def loss(params: Any, carry: Any, fed: ScheduledBatch, key: jax.Array) -> tuple[jax.Array, training.Aux]:
        source, tokens, source_segment_ids, ids = inputs(fed.pairs)
        drop, own = jax.random.split(key)
        run = partial(model.apply, {"params": params}, rngs={"dropout": drop} if config.dropout else None)
        if config.scheduled_sampling:
            logits_of: Any = lambda tokens: run(source, tokens, source_segment_ids, ids)  # noqa: E731
            tokens = training.scheduled_sampling(logits_of, jnp.asarray(tokens), rate=jnp.asarray(fed.rate), key=own)
        logits: Any = run(source, tokens, source_segment_ids, ids)
        smoothing = config.label_smoothing
        entropy = training.cross_entropy(logits, fed.pairs.targets, ids != 0, label_smoothing=smoothing)
        return entropy.mean, training.Aux(carry, {})

    return loss


class Translator:
    """A model that decodes: greedily, or with beams."""

    def __init__(self, config: Config, model: EncoderDecoder, task: Task):
        self.config, self.task = config, task
        self.encode = jax.jit(partial(model.apply, method="encode"))
        self.begin = jax.jit(partial(model.apply, method="initial_carry"), static_argnums=(2, 3))
        self.decode = partial(model.apply, method="decode")

    def __call__(self, params: Any, texts: Sequence[str], max_length: int) -> list[str]:
        """The translation of each text, of at most so many tokens."""
        sources = [self.task.source.encode(text) for text in texts]
        end, found = self.task.source.separator, [""] * len(texts)
        for batch in data.HeldOutPairs(sources, 64, source_end=end, buckets=self.config.buckets):
            tokens, lengths = self.best({"params": params}, batch, max_length)
            for index, row, length in zip(batch.indices, tokens, lengths, strict=False):
                found[index] = self.task.target.decode(row[:length])
        return found

    def best(self, variables: Any, batch: data.SourceBatch, max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and lengths of the best hypothesis of each row."""
        config, rows, end = self.config, (len(batch.source),), self.task.target.separator
        encoded = self.encode(variables, batch.source, batch.source_segment_ids)
        carry = self.begin(variables, encoded, rows, max_length)
        step = decoding.step_of(Partial(self.decode, variables))
        first = np.full(rows, end, np.int32)
        common: dict[str, Any] = {"end_token": end, "max_length": max_length, "memory": encoded}
        if config.beams == 1:
            made = decoding.greedy(step, carry, first, **common)
            return np.asarray(made.tokens), np.asarray(made.lengths)
        covers = (
            decoding.Coverage(last_attention_weights, config.coverage, jnp.asarray(batch.source_segment_ids != 0))
            if config.coverage
            else None
        )
        common |= {"num_beams": config.beams, "normalization": config.normalization, "coverage": covers}
        found = decoding.beam_search(step, carry, first, num_results=1, **common)
        return np.asarray(found.tokens[:, 0]), np.asarray(found.lengths[:, 0])


def longest_answer(config: Config, task: Task) -> int:
    """How many tokens a translation may have: half as many again as the longest target trained on, or held out."""
    longest, judged = (
        max(len(task.target.encode(b)) for _, b in part) for part in (task.corpus.train, task.corpus.held_out)
    )
    return max(config.stretch * (longest + longest // 2), judged) + 1


def make_evaluation(config: Config, model: EncoderDecoder, task: Task) -> Callable:
    """Loss by teacher forcing, and how many of the first held-out sources are translated exactly, greedily."""
    pairs = task.corpus.held_out[:256]
    encoded = task.encoded(pairs)
    sizes: dict[str, Any] = {"separator": task.target.separator, "source_end": task.source.separator}
    batches = data.BucketedPairs(encoded, min(64, len(encoded)), buckets=1, **sizes)
    translator = Translator(dataclasses.replace(config, beams=1, coverage=0.0), model, task)
    length = longest_answer(config, task)

    @jax.jit
    def entropy(params: Any, batch: data.PairBatch) -> Any:
        logits: Any = model.apply({"params": params}, *inputs(batch))
        return training.cross_entropy(logits, batch.targets, batch.segment_ids != 0)

    def evaluate(params: Any) -> dict[str, float]:
        parts = [entropy(params, batches(step)) for step in range(batches.steps_per_epoch)]
        loss = sum(float(part.total) for part in parts) / sum(float(part.count) for part in parts)
        found = translator(params, [source for source, _ in pairs], length)
        right = sum(made == wanted for made, (_, wanted) in zip(found, pairs, strict=True))
        return {"loss": loss, "exact_match": right / len(pairs)}

    return evaluate


def judge(config: Config, model: EncoderDecoder, params: Any, task: Task, run: training.Run) -> dict[str, Any]:
    """Scores of the held-out pairs, all of them; translations and scores by length go to files of the run."""
    pairs = [*task.corpus.held_out, *stretched(config, task)]
    sources, references = ([pair[side] for pair in pairs] for side in (0, 1))
    found = Translator(config, model, task)(params, sources, longest_answer(config, task))
    rows = zip(sources, references, found, strict=True)
    run.write("translations.json", [{"source": a, "target": b, "found": c} for a, b, c in rows])
    lengths = [len(task.source.encode(text)) for text in sources]
    options: dict[str, Any] = {"tokenize": config.bleu_tokenize}
    run.write("by_length.json", analysis.scores_by_length(lengths, found, references, bins=12, **options))
    judged = len(task.corpus.held_out)
    copied = sum(a == b for a, b in task.corpus.held_out) / judged
    scores = analysis.translation_scores(found[:judged], references[:judged], **options)
    return {**dataclasses.asdict(scores), "exact_match_of_copying": copied}


def stretched(config: Config, task: Task) -> list[tuple[str, str]]:
    """Held-out pairs beyond the trained lengths, up to ``stretch`` times."""
    if config.stretch == 1:
        return []
    number = 8 if config.smoke else 100
    seed: dict[str, Any] = {"seed": config.split_seed + 1}
    if config.task == "reversal":
        counts = range(config.longest + 1, config.stretch * config.longest + 1)
        made = [data.random_strings(length=count, number=number, **seed) for count in counts]
        return [(text, text[::-1]) for texts in made for text in texts]
    years = data.held_out_years(seed=config.split_seed)
    longer = range(config.most + 1, config.stretch * config.most + 1)
    lists = [
        data.date_lists(config.source, config.target, years=years, count=count, number=number, **seed)
        for count in longer
    ]
    return [pair for pairs in lists for pair in pairs]


def alignments(model: EncoderDecoder, params: Any, task: Task, pairs: Any) -> list[analysis.Alignment]:
    """Where the decoder reads its source as it writes each token of these targets; nothing, if it never does."""
    encoded = task.encoded(pairs)
    sources, source_lengths = decoding.padded(
        [np.append(source, np.int32(task.source.separator)) for source, _ in encoded]
    )
    tokens, lengths = decoding.padded([np.append(np.int32(task.target.separator), target) for _, target in encoded])
    ids = [
        (np.arange(rows.shape[1]) < count[:, None]).astype(np.int32)
        for rows, count in ((sources, source_lengths), (tokens, lengths))
    ]
    weights = jax.jit(partial(alignment, model))({"params": params}, sources, tokens, *ids)
    if weights is None:
        return []
    drawn = []
    for row, (source, target) in zip(np.asarray(weights), encoded, strict=True):
        spelled = [[v.decode([t]) for t in side.tolist()] for v, side in ((task.source, source), (task.target, target))]
        read = row[: len(target) + 1, : len(source) + 1]
        drawn.append(analysis.Alignment(read, [*spelled[0], "⟨end⟩"], [*spelled[1], "⟨end⟩"]))
    return drawn


def alignment_accuracy(config: Config, model: EncoderDecoder, params: Any, task: Task) -> dict[str, float]:
    """For reversed strings: how often the most read position is the one that is written."""
    if config.task != "reversal" or config.pairs is not None:
        return {}
    drawn = alignments(model, params, task, task.corpus.held_out[:100])
    known = [np.append(np.arange(len(d.target_tokens) - 2, -1, -1), -1) for d in drawn]
    return {"alignment_accuracy": analysis.alignment_accuracy([d.weights for d in drawn], known)} if drawn else {}


def show(config: Config, model: EncoderDecoder, params: Any, task: Task, run: training.Run) -> Path:
    """The report: translations, alignments of what was found, scores by length."""
    rows, samples = run.read("translations.json")[: config.samples], {}
    for row in rows:
        right = "right" if row["found"] == row["target"] else f"wanted {row['target']}"
        samples[row["source"]] = f"{row['found']}\n({right})"
    figures: dict[str, Path] = {}
    (run.path / "figures").mkdir(exist_ok=True)
    try:
        drawn = alignments(model, params, task, [(row["source"], row["found"]) for row in rows[:4]])
        if drawn:
            caption = "Alignments: what was written (rows) by what was read (columns)"
            figures[caption] = analysis.draw_alignments(drawn, run.path / "figures" / "alignments.png")
        lengths = [analysis.LengthScores(**row) for row in run.read("by_length.json")]
        trained = max(len(task.source.encode(text)) for text, _ in task.corpus.train)
        line = {"trained_length": trained} if config.stretch > 1 else {}
        captions = {"exact_match": "Exact match against source length", "bleu": "BLEU against source length"}
        for metric, caption in captions.items():
            if all(getattr(row, metric) is None for row in lengths):
                continue
            file = run.path / "figures" / f"{metric}_by_length.png"
            figures[caption] = analysis.draw_by_length({config.model: lengths}, file, metric=metric, **line)
    except ImportError as error:
        print(error, flush=True)
    return training.write_report(run, title=f"Translation: {config.model}", samples=samples, figures=figures)


if __name__ == "__main__":
    training.command_line(main, Config, __doc__)
