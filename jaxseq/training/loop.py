"""The training loop: it resumes by itself, saves as it goes, and stops when asked."""

import collections
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax

from jaxseq.training.checkpoints import Checkpoints
from jaxseq.training.console import ProgressLine, describe_devices, describe_parameters
from jaxseq.training.errors import ConfigMismatchError, NonfiniteError
from jaxseq.training.interrupts import EXIT_INTERRUPTED, Interrupted, Interrupts
from jaxseq.training.metrics import JsonLines, TensorBoard, Window, Writer
from jaxseq.training.run import Run
from jaxseq.training.settings import resumable_field
from jaxseq.training.state import TrainState, initial_average, own_buffers, parameter_table
from jaxseq.training.step import Loss, make_train_step
from jaxseq.training.truncation import Truncation, TruncationMode

IN_FLIGHT = 2
"""Steps given to the device before the host looks at the result of an earlier one."""


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, and what to note and keep on the way."""

    steps: int | None = 1000
    """Training steps; None where the experiment's model decides."""
    truncation: TruncationMode = "zero"
    """A chunk begins with the initial state, with what the chunk before left, or with that made anew."""
    ema_decay: float | None = None
    """Decay per step of a moving average of the parameters; it is what is evaluated then."""
    log_every: int = resumable_field(10)
    checkpoint_every: int = resumable_field(100)
    keep: int = resumable_field(3)
    """Checkpoints kept."""
    eval_every: int | None = resumable_field(None)
    max_consecutive_nonfinite: int = resumable_field(10)
    """Steps in a row with a loss or gradient that is not finite, at which training gives up."""
    tensorboard: bool = resumable_field(False)

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "log_every",
            "checkpoint_every",
            "keep",
            "eval_every",
            "max_consecutive_nonfinite",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"train {name} must be at least 1, not {value}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"train ema_decay must be in [0, 1), not {self.ema_decay}")


def fit(
    loss: Loss,
    state: TrainState,
    optimizer: optax.GradientTransformation,
    data: Callable[[int], Any],
    run: Run,
    config: TrainConfig,
    *,
    evaluate: Callable[[Any], dict[str, Any]] | None = None,
    writers: Sequence[Writer] = (),
) -> TrainState:
    """Train from the run's newest checkpoint, or from ``state``, up to ``config.steps``; returns the state.

    ``state`` is the fresh one (:func:`create_state`) and is left as it is; ``batch = data(step)``. Resumed,
    a run ends bit for bit where it would have ended (same machine, versions and device count).
    ``evaluate(params)`` is given the averaged parameters where an average is kept.

    SIGINT and SIGTERM finish the step, save, and raise :class:`Interrupted` (exit code EXIT_INTERRUPTED).
    Raises NonfiniteError after ``max_consecutive_nonfinite`` skipped steps in a row, with the last finite
    parameters saved.
    """
    if config.steps is None:
        raise ValueError("train steps must be given, not None")
    loop = _Loop(loss, state, optimizer, data, run, config, evaluate, writers)
    try:
        return loop.train()
    finally:
        loop.close()


def count_tokens(batch: Any) -> int:
    """Real positions of a batch: where ``segment_ids`` is not 0, else the size of its first array."""
    if hasattr(batch, "segment_ids") and batch.segment_ids is not None:
        return int(np.count_nonzero(batch.segment_ids))
    leaves = jax.tree.leaves(batch)
    return int(np.size(leaves[0])) if leaves else 0


class _Loop:
    """The host's side of a run: where it is, what it has measured, whom it tells."""

    def __init__(self, loss, state, optimizer, data, run, config, evaluate, writers):
        if config.ema_decay is not None and state.ema is None:
            state = state._replace(ema=initial_average(state.params))
        if config.ema_decay is None and state.ema is not None:
            raise ValueError("the state keeps a moving average, but train ema_decay is None")
        self.data, self.run, self.config, self.evaluate = data, run, config, evaluate
        self.state = own_buffers(state)
        self.truncation = Truncation(config.truncation, loss, data, state.carry)
        self.train_step = make_train_step(
            loss, optimizer, keep_carry=self.truncation.keep_carry, ema_decay=config.ema_decay
        )
        self.checkpoints = Checkpoints(run.checkpoints, keep=config.keep)
        board = [TensorBoard(run.path / "tensorboard")] if config.tensorboard else []
        self.writers: list[Writer] = [JsonLines(run.metrics), *board, *writers]
        self.faults = JsonLines(run.path / "nonfinite.jsonl")
        self.progress: ProgressLine | None = None
        self.step, self.saved = 0, -1
        self.window = Window()
        self.tokens, self.seconds = 0, 0.0
        self.rate_steps, self.rate_tokens, self.rate_seconds = 0, 0, 0.0
        self.most_in_row = 0
        self.pending: collections.deque[tuple[int, int, dict[str, Any]]] = collections.deque()

    def close(self) -> None:
        if self.progress is not None:
            self.progress.close()
        self.checkpoints.close()
        for writer in self.writers:
            writer.close()

    def train(self) -> TrainState:
        with Interrupts() as interrupts:
            self.restore()
            self.print_summary()
            self.progress = ProgressLine(self.config.steps, self.step)
            self.mark = time.perf_counter()
            first = True
            while self.step < self.config.steps and interrupts.name is None:
                self.advance(first)
                first = False
            saved = self.save_with_retry()
            if interrupts.name is not None:
                place = "saved; the same command goes on from here" if saved else "NOT saved; it goes on from before"
                self.progress.note(
                    f"{interrupts.name}: stopped at step {self.step} of {self.config.steps}, {place} "
                    f"(exit code {EXIT_INTERRUPTED})"
                )
                raise Interrupted(self.step)
        return self.state

    def restore(self) -> None:
        restored = self.checkpoints.restore_latest(self.state)
        if restored is not None:
            self.step, self.state, meta = restored
            self.saved = self.step
            self.tokens, self.seconds = meta["tokens"], meta["train_seconds"]
            self.window = Window(meta["window"])
        if self.step > self.config.steps:
            raise ConfigMismatchError(f"{self.run.path} is at step {self.step}, past train steps {self.config.steps}")
        for writer in [*self.writers, self.faults]:
            writer.rewind(self.step)
        self.state = self.truncation.ready(self.state, self.step)

    def print_summary(self) -> None:
        """What runs on what; printed before the first compilation."""
        table = parameter_table(self.state.params)
        self.run.write("parameters.json", [row._asdict() for row in table])
        batch = self.data(self.step)
        shapes = {tuple(np.shape(leaf)) for leaf in jax.tree.leaves(batch)}
        tokens = count_tokens(batch)
        print(describe_devices())
        print("\n".join(describe_parameters(table)))
        print(
            f"data: {tokens:,} tokens a step ({', '.join('x'.join(map(str, s)) for s in sorted(shapes))}), "
            f"about {tokens * self.config.steps:,} in {self.config.steps:,} steps"
        )
        if self.step:
            print(f"going on from step {self.step} in {self.run.path}", flush=True)
        else:
            print(f"run folder: {self.run.path}", flush=True)

    def advance(self, first: bool) -> None:
        """One step, and what is due after it."""
        assert self.progress is not None
        config = self.config
        batch = self.data(self.step)
        self.state, metrics = self.train_step(self.state, batch)
        self.pending.append((self.step, count_tokens(batch), metrics))
        self.step += 1
        self.state = self.truncation.ready(self.state, self.step)
        self.drain_metrics(0 if first else IN_FLIGHT)
        if first:
            took = self.lap()
            self.rate_steps, self.rate_tokens, self.rate_seconds = 0, 0, 0.0  # Compiling is not speed.
            self.progress.note(f"first step, compiled and run: {took:.1f} s")
        self.progress.step(self.step)
        last = self.step == config.steps
        if last or self.step % config.log_every == 0:
            self.log()
        if self.evaluate is not None and config.eval_every and self.step % config.eval_every == 0:
            self.run_evaluation()
        if last or self.step % config.checkpoint_every == 0:
            self.save()

    def drain_metrics(self, in_flight: int) -> None:
        """Read the metrics of all but the newest steps; this is what bounds how far the device is ahead."""
        while len(self.pending) > in_flight:
            step, tokens, metrics = self.pending.popleft()
            values = jax.device_get(metrics)
            self.window.add(values, tokens)
            self.tokens += tokens
            self.rate_tokens += tokens
            self.rate_steps += 1
            if values["skipped"]:
                self.note_fault(step, values)
        if self.most_in_row >= self.config.max_consecutive_nonfinite:
            self.give_up()

    def note_fault(self, step: int, values: dict[str, Any]) -> None:
        self.most_in_row = max(self.most_in_row, int(values["nonfinite_in_row"]))
        row = {
            "batch": step,
            "seed": jax.random.key_data(self.state.key).tolist(),
            "data_fingerprint": self.run.environment["data_fingerprint"],
            "loss": str(values["loss"]),
            "gradient_norm": str(values["gradient_norm"]),
            "in_row": int(values["nonfinite_in_row"]),
        }
        self.faults.write(step + 1, row)

    def give_up(self) -> None:
        most, self.most_in_row = self.most_in_row, 0
        self.drain_metrics(0)
        saved = "saved" if self.save_with_retry() else "could NOT be saved"
        raise NonfiniteError(
            f"{most} steps in a row had a loss or gradient that is not finite, up to step {self.step}. The "
            f"parameters from before are kept, and {saved}; {self.faults.file} names the batches. "
            "A lower learning rate or a tighter clip_norm may help."
        )

    def lap(self) -> float:
        """Training time since the last call goes to the totals."""
        now = time.perf_counter()
        passed, self.mark = now - self.mark, now
        self.seconds += passed
        self.rate_seconds += passed
        return passed

    def log(self) -> None:
        assert self.progress is not None
        self.drain_metrics(0)
        self.lap()
        row = {"tokens": self.tokens, **self.window.finish(), "train_seconds": self.seconds}
        if self.rate_steps:
            row["tokens_per_second"] = self.rate_tokens / self.rate_seconds
            row["steps_per_second"] = self.rate_steps / self.rate_seconds
        self.rate_steps, self.rate_tokens, self.rate_seconds = 0, 0, 0.0
        for writer in self.writers:
            writer.write(self.step, row)
        self.progress.report(self.step, row)

    def run_evaluation(self) -> None:
        assert self.evaluate is not None and self.progress is not None
        self.drain_metrics(0)
        self.lap()
        # A copy: the next step donates the state's own buffers, and the caller may keep these.
        figures = self.evaluate(own_buffers(self.state.averaged))
        row = {f"evaluation/{name}": value for name, value in figures.items()}
        for writer in self.writers:
            writer.write(self.step, {"tokens": self.tokens, **row})
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self.progress.note(f"evaluation at step {self.step}: {shown}")
        self.mark = time.perf_counter()

    def save(self) -> None:
        self.drain_metrics(0)
        self.lap()
        meta = {
            "tokens": self.tokens,
            "train_seconds": self.seconds,
            "window": copy.deepcopy(self.window.content),
        }
        self.checkpoints.save(self.step, self.state, meta)
        self.saved = self.step
        self.mark = time.perf_counter()

    def save_with_retry(self) -> bool:
        """The last save before the process may end: tried twice; True if it is on disk."""
        if self.saved != self.step:
            self.save()
        if self.checkpoints.wait():
            return True
        self.save()
        return self.checkpoints.wait()
