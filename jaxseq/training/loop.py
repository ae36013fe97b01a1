"""The training loop: it resumes from the newest checkpoint, saves periodically, and stops on a signal."""

import collections
import copy
import warnings
from collections.abc import Sequence
from typing import Generic

import jax
import numpy as np
import optax

from jaxseq.files import JSON
from jaxseq.training.best import BestTracker
from jaxseq.training.checkpoint_folder import BEST
from jaxseq.training.checkpoints import Checkpoints
from jaxseq.training.console import ProgressDisplay, format_devices, format_parameters
from jaxseq.training.errors import CheckpointError, CheckpointWarning, ConfigMismatchError, NonfiniteError
from jaxseq.training.interrupts import EXIT_INTERRUPTED, Interrupted, SignalHandler
from jaxseq.training.loggers import make_loggers
from jaxseq.training.metrics import JsonLinesWriter, MetricAccumulator
from jaxseq.training.nonfinite import NonfiniteLog
from jaxseq.training.processes import from_primary, is_primary
from jaxseq.training.protocols import B, Batches, Evaluate, Loss, ShapedBatches, Writer
from jaxseq.training.run import Run
from jaxseq.training.state import TrainState, copy_buffers, init_ema, parameter_table
from jaxseq.training.step import Metrics, count_tokens, make_train_step
from jaxseq.training.throughput import Throughput
from jaxseq.training.train_config import TrainConfig
from jaxseq.training.truncation import Truncation
from jaxseq.training.watchdog import Watchdog

IN_FLIGHT = 2
"""Steps that are dispatched to the device before the host reads the metrics of an earlier one."""


def fit(
    loss: Loss[B],
    state: TrainState,
    optimizer: optax.GradientTransformation,
    batches: Batches[B],
    run: Run,
    config: TrainConfig,
    *,
    evaluate: Evaluate | None = None,
    writers: Sequence[Writer] = (),
) -> TrainState:
    """Train up to ``config.steps``, from the newest checkpoint of the run or from ``state``; returns the final state.

    If ``config.patience`` evaluations in a row do not improve ``config.best_metric``, training ends before. The same
    call on a run that has ended makes no further steps. The state that is returned is that of the last step, or of the
    best evaluation (``config.final_parameters``).

    A resumed run ends bit for bit where an uninterrupted one does (same machine, versions and device count). On SIGINT
    and SIGTERM the step finishes, the state is saved and :class:`Interrupted` is raised (exit code EXIT_INTERRUPTED).

    Args:
        loss: ``loss(params, carry, batch, key) -> (scalar, Aux)``.
        state: the initial state (:func:`create_state`), also of a resumed run; it is not modified.
        optimizer: the optimizer of the state.
        batches: ``batches(step) -> batch``.
        run: an open run folder.
        config: length and intervals.
        evaluate: ``evaluate(params) -> {name: value}``, given the averaged parameters if an average is kept.
        writers: further destinations of the metrics.

    Raises:
        NonfiniteError: ``max_consecutive_nonfinite`` steps in a row were skipped; the last finite parameters are saved.
        ValueError: ``config.steps`` is None; ``config.best_metric`` without ``evaluate``, or no value of it.
        ConfigMismatchError: the run has already made more steps than ``config.steps``.
        CheckpointError: the run's checkpoints are corrupted, or belong to another state, config, model or data; the
            last one could not be written, in two attempts; or the best one is asked for and cannot be loaded.
        ImportError: a logger is not installed.
    """
    loop = _Loop(loss, state, optimizer, batches, run, config, evaluate, writers)
    try:
        state = loop.train()
    except BaseException:
        loop.close(failed=True)
        raise
    loop.close()
    return state


class _Loop(Generic[B]):
    """The host's side of training. Speed, metrics and skipped steps are kept by separate objects."""

    def __init__(
        self,
        loss: Loss[B],
        state: TrainState,
        optimizer: optax.GradientTransformation,
        batches: Batches[B],
        run: Run,
        config: TrainConfig,
        evaluate: Evaluate | None,
        writers: Sequence[Writer],
    ):
        if config.ema_decay is not None and state.ema is None:
            state = state._replace(ema=init_ema(state.params))
        if config.ema_decay is None and state.ema is not None:
            raise ValueError("the state keeps a moving average, but train ema_decay is None")
        if config.steps is None:
            raise ValueError("train steps must be given, not None")
        if config.best_metric is not None and evaluate is None:
            raise ValueError(f"train best_metric={config.best_metric} needs an evaluation, but fit was given none")
        self.batches, self.run, self.config, self.evaluate = batches, run, config, evaluate
        self.num_steps = config.steps
        self.state = copy_buffers(state)
        self.truncation = Truncation(config.truncation, loss, batches, state.carry)
        self.train_step = make_train_step(
            loss, optimizer, keep_carry=self.truncation.keep_carry, ema_decay=config.ema_decay, state=self.state
        )
        self.checkpoints = Checkpoints(
            run.checkpoints,
            max_to_keep=config.max_to_keep,
            provenance=run.provenance,
            accept_changes=run.files.accept_changes,
        )
        self.metrics = JsonLinesWriter(run.metrics)
        self.writers: list[Writer] = []
        if is_primary():
            self.writers = [self.metrics, *make_loggers(config.loggers, run.files, run.config, config.wandb), *writers]
        self.best = self.make_tracker(None)
        self.progress = ProgressDisplay(self.num_steps)
        fingerprint = run.environment["data_fingerprint"]
        self.nonfinite = NonfiniteLog(run.path / "nonfinite.jsonl", fingerprint, write=is_primary())
        self.throughput = Throughput()
        self.watchdog = Watchdog(config.hang_factor, config.hang_seconds)
        self.accumulator = MetricAccumulator()
        self.step, self.saved_step, self.tokens = 0, -1, 0
        self.pending: collections.deque[tuple[int, Metrics]] = collections.deque()

    def close(self, failed: bool = False) -> None:
        self.watchdog.close()
        self.progress.close()
        self.checkpoints.close(alone=failed)
        for writer in self.writers:
            writer.close()

    def train(self) -> TrainState:
        with SignalHandler() as signals:
            self.restore()
            self.print_summary()
            self.progress.start(self.step)
            self.throughput.start()
            first = True
            if self.step < self.num_steps and not self.out_of_patience:
                self.run.delete_results()
                self.compile_steps()
            while self.step < self.num_steps and not self.out_of_patience and not signals.stop_before(self.step):
                self.make_step(first)
                first = False
            saved = self.save_with_retry()
            if signals.received is not None:
                state = "saved; the same command resumes" if saved else "NOT saved; it resumes from the last checkpoint"
                self.progress.print(
                    f"{signals.received}: stopped at step {self.step} of {self.num_steps}, {state} "
                    f"(exit code {EXIT_INTERRUPTED})"
                )
                raise Interrupted(self.step)
            if not saved:
                raise CheckpointError(
                    f"the parameters of step {self.step} could not be saved in {self.run.checkpoints} (see the warning "
                    "above); the same command resumes from the checkpoint before"
                )
            self.print_end()
            return self.final_state()

    def restore(self) -> None:
        """Load the newest checkpoint, if there is one, and delete the metrics after it."""
        restored = self.checkpoints.restore_latest(self.state)
        if restored is not None:
            self.step, self.state, meta = restored
            self.saved_step = self.step
            self.tokens, self.throughput.seconds = meta["tokens"], meta["train_seconds"]
            self.accumulator = MetricAccumulator(meta["window"])
            self.restore_best(meta.get(BEST))
        if self.step > self.num_steps:
            raise ConfigMismatchError(f"{self.run.path} is at step {self.step}, past train steps {self.num_steps}")
        for writer in self.writers:
            writer.rewind(self.step)
        self.nonfinite.rewind(self.step)
        known = None if restored is None else restored.meta.get("metrics")
        if known is not None and is_primary() and known != self.metrics.sha256():
            told = f"{self.run.metrics} was changed: it differs from what the run wrote up to step {self.step}"
            warnings.warn(told, CheckpointWarning, stacklevel=4)
        self.state = self.truncation.prepare(self.state, self.step)

    def make_tracker(self, content: JSON) -> BestTracker | None:
        config = self.config
        if config.best_metric is None:
            return None
        return BestTracker(config.best_metric, config.best_mode, config.min_improvement, content)

    def restore_best(self, content: JSON) -> None:
        """Go on from the best evaluation of a checkpoint's ``meta``, if its checkpoint is there."""
        self.best = self.make_tracker(content)
        if self.best is None or self.best.step is None or from_primary(lambda: self.best_is_there()):
            return
        told = f"the best checkpoint, of step {self.best.step}, is missing in {self.run.checkpoints}"
        warnings.warn(f"{told}; the best of the evaluations from now on is kept", CheckpointWarning, stacklevel=5)
        self.best.forget(self.best.step)

    def best_is_there(self) -> bool:
        return self.best is not None and self.best.step in self.checkpoints.steps()

    @property
    def out_of_patience(self) -> bool:
        """Whether training ends because of early stopping."""
        return self.best is not None and self.config.patience is not None and self.best.stale >= self.config.patience

    def print_end(self) -> None:
        """Print the best evaluation, and whether training ended early."""
        if self.best is None or self.best.step is None:
            return
        if self.out_of_patience and self.step < self.num_steps:
            self.progress.print(
                f"stopped early at step {self.step} of {self.num_steps}: {self.best.metric} has not improved in the "
                f"last {self.best.stale} evaluations (train.patience {self.config.patience})"
            )
        self.progress.print(f"best {self.best.metric}: {self.best.value:.6g} at step {self.best.step}")

    def final_state(self) -> TrainState:
        """The state of the last step, or of the best evaluation."""
        if self.best is None or self.config.final_parameters == "last" or self.best.step == self.step:
            return self.state
        if self.best.step is None:
            raise CheckpointError(f"no evaluation gave a finite {self.best.metric}, so no parameters are the best")
        with self.watchdog.paused():
            restored = self.checkpoints.restore(self.state, self.best.step)
        if restored is None:
            raise CheckpointError(
                f"the best checkpoint, of step {self.best.step}, is missing in {self.run.checkpoints}"
            )
        return restored.state

    def print_summary(self) -> None:
        """Print devices, parameters and data before the first compilation."""
        table = parameter_table(self.state.params)
        self.run.write("parameters.json", [row._asdict() for row in table])
        batch = self.batches(self.step)
        shapes = {tuple(np.shape(leaf)) for leaf in jax.tree.leaves(batch)}
        tokens = int(count_tokens(batch))
        if not is_primary():
            return
        print(format_devices(self.state))
        print("\n".join(format_parameters(table)))
        print(
            f"data: {tokens:,} tokens per step ({', '.join('x'.join(map(str, s)) for s in sorted(shapes) if s)}), "
            f"about {tokens * self.num_steps:,} in {self.num_steps:,} steps"
        )
        if self.step:
            print(f"resuming from step {self.step} in {self.run.path}", flush=True)
        else:
            print(f"run folder: {self.run.path}", flush=True)

    def compile_steps(self) -> None:
        """Compile the programs for all shapes of batches to come, as far as ``batches`` tells them."""
        steps = read_shape_steps(self.batches, self.step, self.num_steps)
        self.compile_for([self.batches(step) for step in steps])

    def compile_for(self, batches: Sequence[B]) -> None:
        """Compile the programs for these batches; the time of it is in no speed, and nothing that hangs."""
        self.drain_metrics(0)
        self.throughput.lap()
        with self.watchdog.paused():
            count = self.train_step.compile(self.state, batches)
            for batch in batches:
                self.truncation.compile(self.state, batch)
        shapes = f"{count} shapes" if count > 1 else "1 shape"
        self.progress.print(f"compiled {shapes} of batches in {self.throughput.pass_over():.1f} s")

    def make_step(self, first: bool) -> None:
        """Make one step, then log, evaluate and save if they are due."""
        config = self.config
        batch = self.batches(self.step)
        if not self.train_step.is_compiled(batch):
            self.compile_for([batch])
        self.state, metrics = self.train_step(self.state, batch)
        self.pending.append((self.step, metrics))
        self.step += 1
        self.state = self.truncation.prepare(self.state, self.step)
        self.drain_metrics(0 if first else IN_FLIGHT)
        if first:
            seconds = self.throughput.lap()
            self.throughput.reset()  # it does not count as speed: memory and files are touched for the first time
            self.progress.print(f"first step: {seconds:.2f} s")
        self.watchdog.step()
        self.progress.update(self.step)
        last = self.step == self.num_steps
        if last or self.step % config.log_every == 0:
            self.log()
        if self.evaluate is not None and config.eval_every and self.step % config.eval_every == 0:
            self.run_evaluation(self.evaluate)
        if self.out_of_patience and not last:
            last = True
            if self.step % config.log_every:
                self.log()
        if (last or self.step % config.checkpoint_every == 0) and self.saved_step != self.step:
            self.save()

    def drain_metrics(self, in_flight: int) -> None:
        """Read the metrics of all but the newest steps, which bounds how far the device runs ahead."""
        while len(self.pending) > in_flight:
            step, metrics = self.pending.popleft()
            values = jax.device_get(metrics)
            tokens = int(values.pop("tokens"))
            self.accumulator.add(values, tokens)
            self.tokens += tokens
            self.throughput.add_step(tokens)
            if values["skipped"]:
                self.nonfinite.add(step, values, self.state.key)
        if self.nonfinite.longest >= self.config.max_consecutive_nonfinite:
            self.stop_nonfinite()

    def stop_nonfinite(self) -> None:
        """Save the last finite parameters and raise NonfiniteError."""
        longest, self.nonfinite.longest = self.nonfinite.longest, 0
        self.drain_metrics(0)
        saved = "saved" if self.save_with_retry() else "could NOT be saved"
        raise NonfiniteError(
            f"{longest} steps in a row had a loss, gradient or update that is not finite, up to step {self.step}. The "
            f"parameters from before are kept, and {saved}; {self.nonfinite.file} names the batches. "
            "A lower learning rate or a tighter clip_norm may help; ids outside the vocabulary make a loss of NaN, too."
        )

    def log(self) -> None:
        self.drain_metrics(0)
        self.throughput.lap()
        row = {"tokens": self.tokens, **self.accumulator.flush(), "train_seconds": self.throughput.seconds}
        row |= self.throughput.flush()
        for writer in self.writers:
            writer.write(self.step, row)
        self.progress.log(self.step, row)

    def run_evaluation(self, evaluate: Evaluate) -> None:
        self.drain_metrics(0)
        self.throughput.lap()
        # A copy: the next step donates the state's buffers, and the caller may keep these parameters.
        with self.watchdog.paused():
            values = evaluate(copy_buffers(self.state.eval_params))
        row = {f"evaluation/{name}": value for name, value in values.items()}
        for writer in self.writers:
            writer.write(self.step, {"tokens": self.tokens, **row})
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.progress.print(f"evaluation at step {self.step}: {shown}")
        self.throughput.start()
        if self.best is not None and self.best.update(self.step, values):
            self.save()

    def save(self) -> None:
        self.drain_metrics(0)
        self.throughput.lap()
        if self.saved_step != self.step and not self.checkpoints.wait() and self.best is not None:
            self.best.forget(self.saved_step)
        meta = {
            "tokens": self.tokens,
            "train_seconds": self.throughput.seconds,
            "window": copy.deepcopy(self.accumulator.content),
            "metrics": self.metrics.sha256(),
        }
        if self.best is not None:
            meta[BEST] = copy.deepcopy(self.best.content)
        with self.watchdog.paused():
            self.checkpoints.save(self.step, self.state, meta)
        self.saved_step = self.step
        self.throughput.start()

    def save_with_retry(self) -> bool:
        """Save before the process ends, in up to two attempts; True if the checkpoint is on disk."""
        self.drain_metrics(0)
        with self.watchdog.paused():
            if self.saved_step != self.step:
                self.save()
            if self.checkpoints.wait():
                return True
            self.save()
            return self.checkpoints.wait()


def read_shape_steps(batches: Batches[B], start: int, end: int) -> list[int]:
    """A step of each shape of batch from ``start`` to ``end`` that ``batches`` tells; else the first step."""
    known = batches.shape_steps(start) if isinstance(batches, ShapedBatches) else [start]
    return [step for step in known if step < end]
