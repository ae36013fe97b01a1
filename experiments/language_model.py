"""Train a language model on real text, sample from it, and leave a run folder with a report.

    python experiments/language_model.py --run runs/demo
    python experiments/language_model.py --core gru --features 512 --layers 2 --text mybook.txt --run runs/mine

The same command again goes on where it was stopped. Without --text it reads the embedded corpus (the Python
language reference that the standard library carries). The default takes two to three minutes on 2 CPU cores and
reaches 1.80 bits per character on held-out topics, where LZMA primed with the training text needs 1.88 (Python 3.11's
corpus; with --split-seed 1 and 2: 1.899 and 1.966, 1.866 and 1.872). generate.py makes text with what was trained.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxseq import data, decoding, ops, training
from jaxseq.cores import Pointwise, Stacked, block, make_core
from jaxseq.layers import Embedding
from jaxseq.models import LanguageModel
from jaxseq.training import resumable_field


@dataclass(frozen=True)
class Config:
    """What to read, what to build, how to train."""

    run: Path = resumable_field(Path("runs/language_model"))
    """The run folder; the same command again resumes what is there."""
    text: Path | None = None
    """A UTF-8 file, a .gz or a folder of files; the embedded corpus if not given."""
    split: Literal["auto", "documents", "blocks", "tail"] = "auto"
    """How held-out text is chosen from --text: whole files, blocks, or the end."""
    split_seed: int = 0
    """Draws which documents are held out."""
    tokens: Literal["characters", "bytes", "bpe"] = "characters"
    vocabulary_size: int = 1024
    """Of a bpe vocabulary."""
    core: str = "lstm"
    """A name in jaxseq.cores.CORES, or FILE.py:CLASS for a core of your own."""
    core_options: tuple[str, ...] = ()
    """Further fields of the core: num_heads=8 peepholes=True."""
    features: int = 256
    layers: int = 1
    block: Literal["auto", "none", "pre", "post"] = "auto"
    """Residual blocks with a norm before or after each core; auto: pre for attention or several layers."""
    feed_forward: int | None = None
    """Width of a feed-forward layer in each block, 0 for none; by default 4 x features for attention."""
    tied: bool = False
    """Read the embedding backwards instead of a head of its own."""
    dropout: float = 0.1
    batches: Literal["streams", "packed", "crops"] = "streams"
    """Contiguous streams (for carried states), packed whole documents, or random crops."""
    batch_size: int = 32
    length: int = 128
    """Tokens a chunk; attention's window is length + context."""
    context: int = 0
    """Earlier positions that attention keeps over a cut; needs train.truncation carry or recompute."""
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    samples: int = resumable_field(2)
    sample_length: int = resumable_field(400)
    temperature: float = resumable_field(0.8)
    train: training.TrainConfig = training.TrainConfig(steps=800, truncation="carry", eval_every=100)
    optimizer: training.OptimizerConfig = training.OptimizerConfig(
        learning_rate=1.6e-2, warmup_steps=40, weight_decay=1e-4, b2=0.99
    )
    allow_config_change: bool = resumable_field(False)
    smoke: bool = False
    """A few seconds' run, to see that everything works; sets sizes, steps and samples itself."""

    def __post_init__(self) -> None:
        least = {"layers": 1, "features": 1, "batch_size": 1, "length": 1, "context": 0, "feed_forward": 0}
        least |= {"samples": 0, "sample_length": 1, "seed": 0, "split_seed": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name} must be at least {bound}, not {value}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        if self.samples and not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")
        if self.batches != "streams" and self.train.truncation != "zero":
            raise ValueError(
                f"batches {self.batches} are no streams: train.truncation must be zero, not {self.train.truncation}"
            )
        if self.context and self.train.truncation == "zero":
            raise ValueError(f"context={self.context} looks over a cut, but train.truncation is zero")


def main(config: Config) -> dict[str, Any]:
    """Read, build, train, measure, sample, report; returns the results."""
    if config.smoke:
        config = smoke(config)
    corpus = read(config)
    print(corpus.describe(), flush=True)
    options = {"size": config.vocabulary_size} if config.tokens == "bpe" else {}
    vocabulary = data.fit_vocabulary(config.tokens, corpus.train, **options)
    batches = make_batches(config, [vocabulary.encode(text) for text in corpus.train], vocabulary.separator)
    model = build(config, vocabulary.size)
    carry = model.initial_carry((config.batch_size,), config.context)
    tokens = jnp.zeros((config.batch_size, config.length), jnp.int32)
    key, init_key, sample_key = jax.random.split(jax.random.key(config.seed), 3)
    jax.eval_shape(model.init, init_key, carry, tokens)  # whatever does not fit is said before a folder is made

    fingerprint = fingerprint_of(config, batches, corpus)
    change = config.allow_config_change
    with training.Run.open(config.run, config, fingerprint=fingerprint, allow_config_change=change) as run:
        run.write("vocabulary.json", vocabulary.to_json())
        lzma = data.lzma_bits_per_character("".join(corpus.train), "".join(corpus.held_out))
        print(f"LZMA with the training text as its dictionary: {lzma:.3f} bits per character", flush=True)
        params = jax.jit(model.init)(init_key, carry, tokens)["params"]
        optimizer = training.make_optimizer(config.optimizer, config.train.steps)
        state = training.create_state(params, optimizer, carry=carry, key=key)
        chosen = ops.implementations(partial(forward, model), params, carry, batches(0))
        runs = ", ".join(f"{op}={'/'.join(names)}" for op, names in chosen.items())
        print(f"implementations: {runs}", flush=True)
        evaluate = make_evaluation(config, model, corpus, vocabulary)
        state = training.fit(make_loss(model), state, optimizer, batches, run, config.train, evaluate=evaluate)

        measured = evaluate(state.averaged)
        results = {
            "bits_per_character": measured["bits_per_character"],
            "lzma_bits_per_character": lzma,
            "held_out_characters": corpus.held_out_characters,
            "held_out_overlap": corpus.overlap,
            "text_sha256": corpus.sha256,
            "near_copies_dropped": corpus.dropped,
            "train_characters": corpus.train_characters,
            "parameters": sum(p.size for p in jax.tree.leaves(state.params)),
            "steps": int(state.step),
            "implementations": runs,
            "train_seconds": run.train_seconds,
        }
        run.write_results(results)
        texts = sample_text(config, model, state.averaged, vocabulary, sample_key)
        report = training.write_report(run, title=f"Language model: {config.core}", samples=texts)
    print(
        f"held-out text: {results['bits_per_character']:.3f} bits per character "
        f"(LZMA primed with the training text: {lzma:.3f}; "
        f"{corpus.overlap:.1%} of its 50-character runs also stand in the training text)\n"
        f"--- a sample ---\n{texts[0] if texts else ''}\n---\nreport: {report}\n"
        f"more text: python experiments/generate.py --run {config.run}"
    )
    return results


def read(config: Config) -> data.Corpus:
    """The user's text, or the embedded one, split honestly."""
    if config.text is None:
        return data.embedded_corpus(seed=config.split_seed)
    return data.text_corpus(config.text, split=config.split, seed=config.split_seed)


def smoke(config: Config) -> Config:
    """The same experiment, tiny."""
    train = dataclasses.replace(config.train, steps=20, log_every=5, checkpoint_every=10)
    return dataclasses.replace(config, train=train, features=16, batch_size=4, length=16, samples=1, sample_length=40)


def make_batches(config: Config, documents: list[Any], separator: int) -> Any:
    """The dataset: a pure function of the step."""
    sizes = {"batch_size": config.batch_size, "length": config.length, "seed": config.seed}
    if config.batches == "packed":
        return data.PackedDocuments(documents, separator=separator, **sizes)
    kind = data.ContiguousStreams if config.batches == "streams" else data.RandomCrops
    return kind(data.joined(documents, separator=separator), **sizes)


def fingerprint_of(config: Config, batches: Any, corpus: data.Corpus) -> str:
    """Of all that the run's figures rest on: training batches, held-out text, a core's own file."""
    digest = hashlib.sha256((batches.fingerprint + corpus.sha256).encode())
    file = Path(config.core.rpartition(":")[0])
    if file.suffix == ".py":
        digest.update(file.read_bytes())
    return digest.hexdigest()


def reach(config: Config) -> int:
    """How far attention may look back, in training over a cut, and so in evaluation and sampling."""
    return config.length + config.context - 1


def build(config: Config, vocab_size: int) -> LanguageModel:
    """The model: an embedding, a stack of cores, a head."""
    policy = training.POLICIES[config.precision]
    types = {"dtype": policy.compute, "param_dtype": policy.parameters}
    attention = config.core == "attention"
    norm = config.block
    if norm == "auto":
        norm = "pre" if attention or config.layers > 1 else "none"
    hidden = config.feed_forward if config.feed_forward is not None else 4 * config.features * attention
    fields = types | ({"window": reach(config) + 1} if attention else {})
    cores = [make_core(config.core, config.features, config.core_options, **fields) for _ in range(config.layers)]
    if norm != "none":
        dropout = config.dropout
        cores = [block(c, feed_forward=hidden or None, norm=norm, dropout=dropout, **types) for c in cores]
    if norm == "pre":
        cores.append(Pointwise(nn.LayerNorm(**types), config.features))
    return LanguageModel(
        Embedding(vocab_size, config.features, **types),
        Stacked(tuple(cores)),
        head=None if config.tied else nn.Dense(vocab_size, **types),
        dropout=config.dropout,
        logits_dtype=policy.output,
    )


def forward(model: LanguageModel, params: Any, carry: Any, batch: data.Batch, key: Any = None) -> tuple[Any, Any]:
    """The carry after a batch, and its cross-entropy over real positions; with a key, dropout is on."""
    rngs = None if key is None else {"dropout": key}
    after: Any = model.apply({"params": params}, carry, batch.tokens, batch.segment_ids, rngs=rngs)
    return after[0], training.cross_entropy(after[1], batch.targets, batch.segment_ids != 0)


def make_loss(model: LanguageModel) -> Callable:
    """The mean, in nats a token."""

    def loss(params: Any, carry: Any, batch: data.Batch, key: jax.Array) -> tuple[jax.Array, training.Aux]:
        carry, entropy = forward(model, params, carry, batch, key if model.dropout else None)
        return entropy.mean, training.Aux(carry, {})

    return loss


def make_evaluation(config: Config, model: LanguageModel, corpus: data.Corpus, vocabulary: Any) -> Callable:
    """Loss and bits per character over all held-out text: every token once, each from all before it."""
    documents = [vocabulary.encode(text) for text in corpus.held_out]
    batches = data.HeldOutDocuments(documents, 16, config.length, separator=vocabulary.separator)
    escapes = vocabulary.escape_bits("".join(corpus.held_out))
    step = jax.jit(partial(forward, model))

    def evaluate(params: Any) -> dict[str, float]:
        carry, nats = model.initial_carry((16,), reach(config)), 0.0
        for batch in batches:
            carry, entropy = step(params, carry, batch)
            nats += float(entropy.total)
        bits = nats / math.log(2) + escapes
        return {"loss": nats / batches.num_tokens, "bits_per_character": bits / corpus.held_out_characters}

    return evaluate


def sample_text(config: Config, model: LanguageModel, params: Any, vocabulary: Any, key: jax.Array) -> list[str]:
    """Texts begun from the separator, as a document begins."""
    if not config.samples:
        return []
    drawn = decoding.sample(
        decoding.step_of(Partial(model.apply, {"params": params})),
        model.initial_carry((config.samples,), reach(config)),
        jnp.full((config.samples,), vocabulary.separator, jnp.int32),
        key=key,
        max_length=config.sample_length,
        end_token=vocabulary.separator,
        temperature=config.temperature,
    )
    return [vocabulary.decode(row[:n]) for row, n in zip(drawn.tokens.tolist(), drawn.lengths.tolist(), strict=True)]


if __name__ == "__main__":
    training.command_line(main, Config, __doc__)
