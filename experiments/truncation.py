"""Truncated back-propagation: the bias of its gradient against the length of a cut, and the loss it trains to.

    python experiments/truncation.py --run runs/truncation
    python experiments/truncation.py --run runs/truncation-text task:text

The modes are those of jaxseq.training.Truncation: a chunk starts from the initial carry (zero), from the carry of the
previous chunk, which older parameters computed (carry), or from the carry of the current parameters (recompute).

Bias: the gradients of pipelines.TruncationGradients on held-out sequences, at parameters from several moments of a
training run with full back-propagation. zero and recompute are compared with the full gradient at parameters at rest;
carry along a path of one update after each chunk, with the full gradient at the same parameters. Final loss: the same
model is trained in each mode on the same tokens, with one update after each chunk or each sequence, and evaluated on
held-out sequences of the training length with the carry kept throughout.

Measured with --seeds 3 (docs/truncation.md): on an echo of lag 8, no mode learns with a cut of 8; with a cut of 16,
carry reaches 0.097 nats per token, recompute 0.079, and zero fails beyond its chunk (2.4, where no memory has 1.386).
Full back-propagation reaches 0.293 with a quarter of the updates. That run took 10 minutes on 2 busy CPU cores, two
seeds 5; the default has one.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import tyro

from jaxseq import data, distribution, pipelines, training
from jaxseq.models.configs import LanguageModelConfig
from jaxseq.pipelines.truncation_gradients import BiasRow, TruncationGradients, bias_rows
from jaxseq.pipelines.truncation_report import (
    FULL,
    MODES,
    bias_table,
    draw_truncation_bias,
    draw_truncation_losses,
    loss_estimates,
    loss_table,
    mean_microseconds,
)
from jaxseq.pipelines.truncation_runs import TruncationRun, TruncationRuns, make_loss, make_scored_loss
from jaxseq.training import resumable_field

HELD_OUT = 64
"""Held-out sequences of the final loss."""


class Source(NamedTuple):
    """The data of a task: ``batches(batch_size, length, seed=...)``, sequences [B, T] to train on and held out."""

    train: Callable[..., Any]
    held_out: Callable[..., Any]
    vocab_size: int
    unscored: int  # positions at the start of a held-out sequence that do not count
    references: dict[str, float]  # known losses in nats per token


@dataclass(frozen=True)
class Echo:
    """Random tokens; each target is the token of ``lag`` steps ago."""

    lag: int = 8
    """Steps between a token and the target that repeats it."""
    vocab_size: int = 4
    """Number of different tokens."""

    def __post_init__(self) -> None:
        for name, least in {"lag": 1, "vocab_size": 2}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")

    def source(self) -> Source:
        """Targets from before the start of a held-out sequence do not count."""
        echo = partial(data.LaggedEcho, lag=self.lag, vocab_size=self.vocab_size)
        references = {"no memory": math.log(self.vocab_size)}
        return Source(echo, partial(echo, held_out=True), self.vocab_size, self.lag, references)


@dataclass(frozen=True)
class Text:
    """Characters of the embedded corpus, or of a file or folder."""

    text: Path | None = None
    """A UTF-8 file, a .gz or a folder of files; the embedded corpus if not given."""

    def source(self) -> Source:
        """Random crops of the training documents and of the held-out ones."""
        corpus = data.embedded_corpus() if self.text is None else data.text_corpus(self.text)
        vocabulary = data.fit_vocabulary("characters", corpus.train)
        train, held_out = (
            partial(
                data.RandomCrops, data.join_documents([*map(vocabulary.encode, part)], separator=vocabulary.separator)
            )
            for part in (corpus.train, corpus.held_out)
        )
        return Source(train, held_out, vocabulary.size, 0, {})


@dataclass(frozen=True)
class Config:
    """The task, the model, the cuts, and the moments at which the bias is measured."""

    run: Path = resumable_field(Path("runs/truncation"))
    """The run folder; the same command measures everything again."""
    task: Echo | Text = Echo()
    model: tyro.conf.OmitArgPrefixes[LanguageModelConfig] = LanguageModelConfig(features=64, dropout=0.0)
    length: int = 64
    """Length of the training sequences."""
    batch_size: int = 16
    """Sequences in a batch."""
    batches: int = 300
    """Batches of training sequences that each run sees."""
    cuts: tuple[int, ...] = (8, 16, 32)
    """Lengths of a chunk of the runs, divisors of length; length itself (full back-propagation) is always added."""
    seeds: int = 1
    """Number of runs of each mode and cut."""
    seed: int = 0
    """The first seed; draws parameters and training sequences."""
    learning_rate: float = 1e-2
    """Peak learning rate of AdamW, after a warm-up over a twentieth of the updates; cosine decay."""
    updates: Literal["chunk", "sequence"] = "chunk"
    """One update after each chunk, or after each sequence with the mean of its chunks' gradients."""
    bias_length: int = 128
    """Length of the sequences of the bias, cut at its divisors that are powers of two from 2."""
    bias_batch_size: int = 16
    """Sequences of the bias."""
    moments: tuple[float, ...] = (0.0, 0.25, 1.0)
    """Fractions of a training run with full back-propagation whose parameters the bias is measured at."""
    path_learning_rate: float | None = None
    """Learning rate of the updates between chunks for the bias of mode carry; the peak learning rate by default."""
    smoke: bool = False
    """A run of a few seconds, to test that everything works."""

    def __post_init__(self) -> None:
        training.check_numbers(self)
        for name in ("length", "batch_size", "batches", "seeds", "bias_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "path_learning_rate"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        training.check_numbers(self.seed + self.seeds - 1, "last seed")
        if bad := [cut for cut in self.cuts if not 0 < cut < self.length or self.length % cut]:
            raise ValueError(f"cuts={bad} must be divisors of length={self.length} below it")
        if self.bias_length < 2:
            raise ValueError(f"bias_length must be at least 2, not {self.bias_length}")
        if not self.moments or not all(0 <= moment <= 1 for moment in self.moments):
            raise ValueError(f"moments={self.moments} must be fractions in 0..1")
        if self.model.dropout:
            raise ValueError(f"dropout={self.model.dropout}: gradients are compared without dropout")
        if isinstance(self.task, Echo) and not 0 < self.task.lag < self.length:
            raise ValueError(f"lag={self.task.lag} must be in 1..{self.length - 1}: below length")


def main(config: Config) -> dict[str, Any]:
    """Train in every mode, measure the bias, draw, report; returns the results."""
    if config.smoke:
        config = smoke(config)
    pipelines.check_user_cores(config.model.cores, config.model.features, config.model.core_options)
    source = config.task.source()
    fingerprint = source.train(config.batch_size, config.length, seed=config.seed).fingerprint
    runs = make_runs(config, source)
    with training.Run.open(config.run, config, fingerprint=fingerprint) as run:
        losses, states = train_all(config, runs)
        bias = measure_bias(config, source, runs, states)
        run.write("losses.json", [row._asdict() for row in losses])
        run.write("bias.json", [row._asdict() for row in bias])
        (run.path / "figures").mkdir(exist_ok=True)
        results = summary(config, losses, bias)
        run.write_results(results)
        figures = draw(config, source, losses, bias, run.path / "figures")
        report = training.write_report(run, title=f"Truncation: {config.model.core}", figures=figures)
    for title, table in (("final loss", loss_table(losses)), ("bias: cosine, norm ratio", bias_table(bias))):
        print(f"\n{title}\n\n{table}")
    print(f"\nreport: {report}", flush=True)
    return results


def smoke(config: Config) -> Config:
    """The same experiment with small sizes."""
    sizes: dict[str, Any] = {"length": 4, "cuts": (2,), "batch_size": 2, "batches": 4}
    sizes |= {"bias_length": 2, "bias_batch_size": 2, "seeds": 1, "moments": (1.0,)}
    task = dataclasses.replace(config.task, lag=1) if isinstance(config.task, Echo) else config.task
    return dataclasses.replace(config, task=task, model=dataclasses.replace(config.model, features=8), **sizes)


def make_runs(config: Config, source: Source) -> TruncationRuns:
    """The model and how it is trained and evaluated."""
    context = max(config.length, config.bias_length)
    model = config.model.build(source.vocab_size, context)
    optimizer = training.make_optimizer(training.OptimizerConfig(learning_rate=config.learning_rate), 1)

    def initial_params() -> Any:
        tokens = jnp.zeros((config.batch_size, config.length), jnp.int32)
        return model.init(jax.random.key(0), model.initial_carry((config.batch_size,), context), tokens)["params"]

    distribution.Placement(None).check_memory(initial_params, optimizer=optimizer)
    held_out = source.held_out(HELD_OUT, config.length, seed=0)(0)
    scored = jnp.broadcast_to(jnp.arange(config.length) >= source.unscored, held_out.tokens.shape)
    loss, carry = jax.jit(make_scored_loss(model)), model.initial_carry((HELD_OUT,), context)
    return TruncationRuns(
        model,
        lambda seed: source.train(config.batch_size, config.length, seed=seed),
        lambda params: loss(params, carry, held_out, scored),
        config.batch_size,
        config.batches,
        config.learning_rate,
        context,
        update_per_sequence=config.updates == "sequence",
    )


def train_all(config: Config, runs: TruncationRuns) -> tuple[list[TruncationRun], list[training.TrainState]]:
    """Every mode, cut and seed; returns the rows, and the states of the first full run at the moments."""
    kinds = [(FULL, config.length), *((mode, cut) for cut in sorted(config.cuts) for mode in MODES)]
    rows, states = [], []
    for seed in range(config.seed, config.seed + config.seeds):
        for mode, cut in kinds:
            begun, at = time.perf_counter(), config.moments if mode == FULL and seed == config.seed else ()
            run, made = runs.train("carry" if mode == FULL else mode, cut, seed, at)
            rows.append(run._replace(mode=mode))
            states += made
            print(
                f"[{len(rows)}/{len(kinds) * config.seeds}] {mode}, cut {cut}, seed {seed}: held-out loss "
                f"{run.loss:.3f}, {run.updates} updates, {run.microseconds_per_token:.1f} us per token, "
                f"{time.perf_counter() - begun:.1f} s",
                flush=True,
            )
    return rows, states


def measure_bias(
    config: Config, source: Source, runs: TruncationRuns, states: list[training.TrainState]
) -> list[BiasRow]:
    """Bias by moment, cut, mode and group of parameters (``bias_rows``)."""
    sequences = source.held_out(config.bias_batch_size, config.bias_length, seed=1)
    rate = config.path_learning_rate or config.learning_rate
    optimizer = training.make_optimizer(training.OptimizerConfig(learning_rate=rate, schedule="constant", b2=0.99), 1)
    losses = make_loss(runs.model), make_scored_loss(runs.model)
    gradients = TruncationGradients(*losses, optimizer, sequences, runs.initial_carry(config.bias_batch_size))
    rows = []
    for cut in bias_cuts(config):
        begun = time.perf_counter()
        for moment, state in zip(config.moments, states, strict=True):
            rows += bias_rows(gradients, state, cut, moment=moment)
        print(f"bias at cut {cut}: {time.perf_counter() - begun:.1f} s", flush=True)
    return rows


def bias_cuts(config: Config) -> list[int]:
    """2, 4, 8, ... as far as they divide the length of the bias' sequences, and the length itself."""
    powers = [2**power for power in range(1, config.bias_length.bit_length())]
    return sorted({config.bias_length, *(cut for cut in powers if config.bias_length % cut == 0)})


def summary(config: Config, rows: list[TruncationRun], bias: list[BiasRow]) -> dict[str, float | int]:
    """Loss and time by mode and cut, the bias in the middle of the moments, and the size of the carry."""
    middle = config.moments[len(config.moments) // 2]
    results: dict[str, float | int] = {}
    for (mode, cut), estimate in loss_estimates(rows).items():
        results[f"loss_{mode}_{cut}"] = estimate.mean
    for (mode, cut), microseconds in mean_microseconds(rows).items():
        results[f"microseconds_per_token_{mode}_{cut}"] = microseconds
    for row in bias:
        if row.parameters == "all" and row.moment == middle:
            name = f"{row.mode.replace(' (path)', '_path')}_{row.cut}"
            results |= {f"cosine_{name}": row.cosine, f"norm_ratio_{name}": row.norm_ratio}
    sizes = [carry_size(config, context) for context in (config.length, 8 * config.length)]
    return results | {"carry_numbers_per_sequence": sizes[0], "carry_growth_at_8_times_the_length": sizes[1] / sizes[0]}


def carry_size(config: Config, context: int) -> int:
    """The numbers in the carry of one sequence that the model can look back on for ``context`` positions."""
    carry = jax.eval_shape(lambda: config.model.build(2, context).initial_carry((1,), context))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(carry))


def draw(
    config: Config, source: Source, runs: list[TruncationRun], bias: list[BiasRow], folder: Path
) -> dict[str, Path]:
    """The figures by caption; none without matplotlib."""
    name = type(config.task).__name__.lower()
    try:
        return {
            "Bias of the gradient against the cut": draw_truncation_bias(
                bias, folder / "truncation-bias.png", title=f"{config.model.core} on {name}: gradients of cut sequences"
            ),
            "Final loss and training time against the cut": draw_truncation_losses(
                runs,
                folder / "truncation-loss.png",
                references=source.references,
                title=f"{config.model.core} on {name}",
            ),
        }
    except ImportError as error:
        print(f"no figures: {error}")
        return {}


if __name__ == "__main__":
    training.run_cli(main, Config, __doc__, resumable=False)
