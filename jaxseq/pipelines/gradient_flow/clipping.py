"""Clipping the norm of the gradient: an Elman network on the temporal order task, with and without it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxseq.cores import Elman
from jaxseq.data import TemporalOrder
from jaxseq.pipelines.gradient_flow.memory_training import MemoryModel, Trainer
from jaxseq.pipelines.gradient_flow.part import Say, Values, check_counts, check_positive
from jaxseq.plotting import Curve, CurvePanel, draw_curves
from jaxseq.training import OptimizerConfig

SUCCESS = 0.99
"""The accuracy from which a run has learned the task (Pascanu et al. 2013: an error below 1 %)."""


@dataclass(frozen=True)
class Clipping:
    """Runs of plain gradient descent over seeds, for each learning rate with and without clipping."""

    learning_rates: tuple[float, ...] = (0.03, 0.3)
    """Learning rates of plain gradient descent."""
    clip_norm: float = 1.0
    """The norm above which a gradient is scaled to it."""
    seeds: int = 4
    """Number of runs of each setting."""
    length: int = 30
    """Positions of a sequence."""
    features: int = 32
    """Units of the Elman network."""
    batch_size: int = 20
    """Sequences in a batch."""
    steps: int = 1500
    """Training steps of each run."""

    def __post_init__(self) -> None:
        counts = {"learning_rates": len(self.learning_rates), "seeds": self.seeds, "steps": self.steps}
        check_counts("clipping", features=self.features, batch_size=self.batch_size, **counts)
        check_counts("clipping", 10, length=self.length)
        for rate in self.learning_rates:
            check_positive("clipping", learning_rates=rate)
        check_positive("clipping", clip_norm=self.clip_norm)

    def compute(self, seed: int, say: Say) -> Values:
        """By setting, for each seed: losses, gradient norms, clipped steps so far, and the accuracy at the end."""
        task = TemporalOrder(self.length, self.batch_size, seed)
        found: Values = {}
        for rate in self.learning_rates:
            for clip in (None, self.clip_norm):
                config = OptimizerConfig(name="sgd", learning_rate=rate, schedule="constant", b1=0.0, clip_norm=clip)
                trainer = Trainer(MemoryModel(Elman(self.features), task.outputs), task, config, self.steps)
                name = f"rate {rate:g}, {'not clipped' if clip is None else f'clipped at {clip:g}'}"
                runs = [self._run(trainer, seed + index) for index in range(self.seeds)]
                found[name] = {key: [run[key] for run in runs] for key in runs[0]} | {"clip": clip}
                good, clipped = self._success(found[name]), np.mean([run["clipped"][-1] for run in runs])
                say(f"clipping: {name}: {good:.0%} of {self.seeds} runs learn it, {clipped:.1%} of the steps clipped")
        return found

    def _run(self, trainer: Trainer, seed: int) -> Values:
        (progress,) = trainer.run(trainer.start(seed), self.steps)
        metrics, piece = progress.metrics, max(self.steps // 50, 1)
        ends = np.arange(piece, self.steps + 1, piece)
        return {
            "steps": ends.tolist(),
            "losses": [float(np.mean(metrics["loss"][end - piece : end])) for end in ends],
            "clipped": (metrics["clipped"][ends - 1] / ends).tolist(),
            "norms": np.quantile(metrics["gradient_norm"], np.linspace(0, 1, 101)).tolist(),
            "accuracy": trainer.held_out(progress.state.params, batches=50).accuracy,
        }

    def _success(self, found: Values) -> float:
        return float(np.mean(np.asarray(found["accuracy"]) >= SUCCESS))

    def draw(self, values: Values, file: Path) -> Path:
        """Losses, success, gradient norms, and the fraction of clipped steps."""
        losses, norms, clipped, success = {}, {}, {}, {}
        for setting, found in values.items():
            name = setting.removeprefix("rate ")
            steps, every = found["steps"][0], np.asarray(found["losses"])
            losses[name] = Curve(steps, np.median(every, 0))
            order = np.mean(np.log10(np.maximum(np.asarray(found["norms"]), 1e-12)), 0)
            norms[name] = Curve(10**order, 1 - np.linspace(0, 1, 101))
            success[name] = Curve(np.arange(1, self.seeds + 1), np.sort(found["accuracy"])[::-1])
            if found["clip"] is not None:
                clipped[name] = Curve(steps, np.mean(found["clipped"], 0))
        at, step = f"clipped at {self.clip_norm:g}", "training step"
        losses["chance"] = Curve([0, self.steps], [TemporalOrder.baseline] * 2, dashed=True)
        success["chance"] = Curve([1, self.seeds], [0.25, 0.25], dashed=True)
        norms[at] = Curve([self.clip_norm] * 2, [0.005, 1.0], dashed=True)
        panels = [
            CurvePanel("Loss: median over seeds", losses, step, "cross-entropy (nats)"),
            CurvePanel("Accuracy of each run, in order", success, "run, best first", "accuracy"),
            CurvePanel("Gradient norms before clipping", norms, "norm", "share of the steps above", True, True),
            CurvePanel("Clipped steps", clipped, step, "fraction of the steps so far"),
        ]
        return draw_curves(
            panels,
            file,
            title=f"Temporal order of {self.length} positions, Elman network, by learning rate and clipping",
        )

    def results(self, values: Values) -> dict[str, float]:
        """By setting: the share of successful runs, clipped steps, and the largest gradient norm."""
        found = {}
        for name, one in values.items():
            label = name.replace("rate ", "").replace(", ", "_").replace(" ", "_")
            found[f"{label}_success"] = self._success(one)
            found[f"{label}_clipped_fraction"] = float(np.mean([run[-1] for run in one["clipped"]]))
            found[f"{label}_largest_norm"] = float(np.max(one["norms"]))
        return found
