"""Train a language model on real text, sample from it, and write a run folder with a report.

    python experiments/language_model.py --run runs/demo
    python experiments/language_model.py --core gru --features 512 --layers 2 --text mybook.txt --run runs/mine

The same command again resumes a run that was stopped. Without --text it reads the embedded corpus (the Python
language reference that the standard library contains). The default takes two to three minutes on 2 CPU cores and
reaches 1.78 bits per character on held-out topics, where LZMA primed with the training text needs 1.88 (Python 3.11's
corpus; with --split-seed 1 and 2: 1.901 and 1.966, 1.871 and 1.872). generate.py generates text with what was trained.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro

from jaxseq import data, decoding, distribution, ops, pipelines, training
from jaxseq.models import LanguageModel
from jaxseq.models.configs import LanguageModelConfig
from jaxseq.training import resumable_field

SIZES = ("features", "layers", "feed_forward", "vocabulary_size")
"""The fields that determine the number of parameters."""


@dataclass(frozen=True)
class Config:
    """The data, the model, and how it is trained."""

    run: Path = resumable_field(Path("runs/language_model"))
    """The run folder; the same command again resumes the run in it."""
    mesh: str | None = resumable_field(None)
    """The devices, as sizes of data, fsdp, sequence and tensor: data=-1 or data=2,fsdp=4; one device if not given."""
    text: Path | None = None
    """A UTF-8 file, a .gz or a folder of files; the embedded corpus if not given."""
    split: Literal["auto", "documents", "blocks", "tail"] = "auto"
    """Unit of held-out text in --text: whole files, blocks, or the end."""
    split_seed: int = 0
    """Random seed of the split into training and held-out documents."""
    tokens: Literal["characters", "bytes", "bpe"] = "characters"
    """What a text is split into."""
    vocabulary_size: int = 1024
    """Size of a bpe vocabulary."""
    model: tyro.conf.OmitArgPrefixes[LanguageModelConfig] = LanguageModelConfig()
    batches: Literal["streams", "packed", "crops"] = "streams"
    """Contiguous streams (for carried states), packed whole documents, or random crops."""
    batch_size: int = 32
    """Chunks in a batch."""
    length: int = 128
    """Tokens in a chunk; attention's window is length + context."""
    context: int = 0
    """Earlier positions that attention keeps across chunks; needs train.truncation carry or recompute."""
    seed: int = 0
    """Draws parameters, batches, dropout and samples."""
    samples: int = resumable_field(2)
    """Number of texts to sample for the report."""
    sample_length: int = resumable_field(400)
    """Maximum number of tokens of a sample."""
    temperature: float = resumable_field(0.8)
    """Sampling temperature."""
    train: training.TrainConfig = training.TrainConfig(steps=800, truncation="carry", eval_every=100)
    optimizer: training.OptimizerConfig = training.OptimizerConfig(
        learning_rate=1.6e-2, warmup_steps=40, weight_decay=1e-4, b2=0.99
    )
    allow_config_change: bool = resumable_field(False)
    """Resume a run even if its config differs."""
    smoke: bool = False
    """A run of a few seconds, to test that everything works; sets sizes, steps and samples itself."""

    def __post_init__(self) -> None:
        training.check_numbers(self)
        minimum = {"batch_size": 1, "length": 1, "context": 0, "samples": 0, "sample_length": 1, "vocabulary_size": 1}
        for name, bound in (minimum | {"seed": 0, "split_seed": 0}).items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, not {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")
        decoding.SamplingOptions(self.temperature)  # refuses what it cannot use
        truncation = self.train.truncation
        if self.batches != "streams" and truncation != "zero":
            raise ValueError(f"batches={self.batches} are no streams: train.truncation must be zero, not {truncation}")
        if self.context and truncation == "zero":
            raise ValueError(f"context={self.context} keeps positions across chunks, but train.truncation is zero")


def main(config: Config) -> dict[str, Any]:
    """Read, build, train, evaluate, sample, report; returns the results."""
    if config.smoke:
        config = smoke(config)
    placement = distribution.Placement.on(config.mesh)
    training.enable_compilation_cache()
    pipelines.check_user_cores(config.model.cores, config.model.features, config.model.core_options)
    corpus = read(config)
    print(corpus.summary(), flush=True)
    options = {"vocab_size": config.vocabulary_size} if config.tokens == "bpe" else {}
    vocabulary = data.fit_vocabulary(config.tokens, corpus.train, **options)
    batches = make_batches(config, [vocabulary.encode(text) for text in corpus.train], vocabulary.separator)
    generator = pipelines.TextGenerator(config.model, vocabulary, attention_lookback=config.length + config.context - 1)
    model = generator.model
    key, init_key, sample_key = ops.split_key(jax.random.key(config.seed), 3)
    optimizer = training.make_optimizer(config.optimizer, config.train.steps)

    init = partial(initial_params, config, model)
    placement.check_memory(init, init_key, optimizer=optimizer, sizes=SIZES)  # before a folder is created
    carry = jax.jit(partial(model.initial_carry, (config.batch_size,), config.context))()

    fingerprint = fingerprint_of(config, batches, corpus)
    change = config.allow_config_change
    with training.Run.open(config.run, config, fingerprint=fingerprint, allow_config_change=change) as run:
        generator.save(run)
        lzma = data.lzma_bits_per_character("".join(corpus.train), "".join(corpus.held_out))
        print(f"LZMA with the training text as its dictionary: {lzma:.3f} bits per character", flush=True)
        evaluate = make_evaluation(config, generator, corpus, placement)
        with placement.ambient():
            params = placement.build(init, init_key)
            state = placement.place(training.create_state(params, optimizer, carry=carry, key=key))
            print(placement.describe(state, config.batch_size), flush=True)
            chosen = ops.used_implementations(partial(forward, model), params, carry, batches(0))
            implementations = ", ".join(f"{op}={'/'.join(names)}" for op, names in chosen.items())
            print(f"implementations: {implementations}", flush=True)
            loss, placed = placement.loss(make_loss(model)), placement.batches(batches)
            state = training.fit(loss, state, optimizer, placed, run, config.train, evaluate=evaluate)
            held_out = evaluate(state.eval_params)
        params = placement.to_host(state.eval_params)

        results = {
            "bits_per_character": held_out["bits_per_character"],
            "lzma_bits_per_character": lzma,
            "held_out_characters": corpus.num_held_out_characters,
            "held_out_overlap": corpus.overlap,
            "text_sha256": corpus.sha256,
            "near_copies_dropped": corpus.num_dropped,
            "near_copies_dropped_characters": corpus.num_dropped_characters,
            "near_copies_dropped_fraction": corpus.dropped_fraction,
            "train_characters": corpus.num_train_characters,
            "parameters": sum(p.size for p in jax.tree.leaves(params)),
            "steps": int(state.step),
            "implementations": implementations,
            "train_seconds": run.train_seconds,
        }
        run.write_results(results)
        sampling, length = decoding.SamplingOptions(config.temperature), config.sample_length
        texts = generator.sample(params, config.samples, sampling, key=sample_key, max_length=length)
        report = training.write_report(run, title=f"Language model: {config.model.core}", samples=texts)
    print(summary(results, texts))
    flags = pipelines.core_flags(config.model.cores)
    print(f"report: {report}\nmore text: python -m jaxseq generate --run {config.run}{flags}")
    return results


def summary(results: dict[str, Any], texts: Sequence[str]) -> str:
    """The main numbers, and the first sample if there is one."""
    lines = [
        f"held-out text: {results['bits_per_character']:.3f} bits per character "
        f"(LZMA primed with the training text: {results['lzma_bits_per_character']:.3f}; "
        f"{results['held_out_overlap']:.1%} of its 50-character runs also stand in the training text)"
    ]
    return "\n".join([*lines, *(["--- a sample ---", texts[0], "---"] if texts else [])])


def read(config: Config) -> data.Corpus:
    """Read --text or the embedded corpus, split into training and held-out text."""
    if config.text is None:
        return data.embedded_corpus(seed=config.split_seed)
    return data.text_corpus(config.text, split=config.split, seed=config.split_seed)


def smoke(config: Config) -> Config:
    """The same experiment with small sizes."""
    evaluations = 10 if config.train.best_metric else config.train.eval_every
    train = dataclasses.replace(config.train, steps=20, log_every=5, checkpoint_every=10, eval_every=evaluations)
    model, samples = dataclasses.replace(config.model, features=16), min(config.samples, 1)
    return dataclasses.replace(
        config, train=train, model=model, batch_size=4, length=16, samples=samples, sample_length=40
    )


def initial_params(config: Config, model: LanguageModel, key: jax.Array) -> Any:
    """The parameters before training."""
    tokens = jnp.zeros((config.batch_size, config.length), jnp.int32)
    return model.init(key, model.initial_carry((config.batch_size,), config.context), tokens)["params"]


def make_batches(config: Config, documents: list[Any], separator: int) -> Any:
    """The dataset: a pure function of the step."""
    sizes = {"batch_size": config.batch_size, "length": config.length, "seed": config.seed}
    if config.batches == "packed":
        return data.PackedDocuments(documents, separator=separator, **sizes)
    kind = data.ContiguousStreams if config.batches == "streams" else data.RandomCrops
    return kind(data.join_documents(documents, separator=separator), **sizes)


def fingerprint_of(config: Config, batches: Any, corpus: data.Corpus) -> str:
    """Hash the inputs that are not in the config: batches, held-out text, and the files of users' cores."""
    digest = hashlib.sha256((batches.fingerprint + corpus.sha256).encode())
    for core in pipelines.user_cores(config.model.core):
        digest.update(Path(core.rpartition(":")[0]).read_bytes())
    return digest.hexdigest()


def forward(model: LanguageModel, params: Any, carry: Any, batch: data.Batch, key: Any = None) -> tuple[Any, Any]:
    """The carry after a batch, and the cross-entropy at its real positions; with a key, dropout is on."""
    rngs = None if key is None else {"dropout": key}
    after: Any = model.apply({"params": params}, carry, batch.tokens, batch.segment_ids, rngs=rngs)
    return after[0], training.cross_entropy(after[1], batch.targets, batch.segment_ids != 0)


def make_loss(model: LanguageModel) -> Callable:
    """The mean cross-entropy, in nats per token."""

    def loss(params: Any, carry: Any, batch: data.Batch, key: jax.Array) -> tuple[jax.Array, training.Aux]:
        carry, entropy = forward(model, params, carry, batch, key if model.dropout else None)
        return entropy.mean, training.Aux(carry, {}, entropy.count)

    return loss


def make_evaluation(
    config: Config, generator: pipelines.TextGenerator, corpus: data.Corpus, placement: distribution.Placement
) -> Callable:
    """Loss and bits per character of all held-out text: each token once, predicted from all previous tokens."""
    vocabulary, batch_size = generator.vocabulary, 16
    documents = [vocabulary.encode(text) for text in corpus.held_out]
    batches = data.HeldOutDocuments(documents, batch_size, config.length, separator=vocabulary.separator)
    escapes = vocabulary.escape_bits("".join(corpus.held_out))
    step = jax.jit(partial(forward, generator.model))

    def evaluate(params: Any) -> dict[str, float]:
        carry, nats = placement.rows(generator.initial_carry((batch_size,))), 0.0
        for batch in batches:
            carry, entropy = step(params, carry, placement.batch(batch))
            nats += float(entropy.total)
        bits = nats / math.log(2) + escapes
        return {"loss": nats / batches.num_tokens, "bits_per_character": bits / corpus.num_held_out_characters}

    return evaluate


if __name__ == "__main__":
    training.run_cli(main, Config, __doc__)
