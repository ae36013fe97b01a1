"""Addition and copy by any cores of the table, beside the error of a prediction that remembers nothing."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxseq.cores import make_core
from jaxseq.data import Addition, CopyMemory
from jaxseq.pipelines.gradient_flow.memory_training import MemoryModel, MemoryTask, Trainer
from jaxseq.pipelines.gradient_flow.part import Say, Values, check_counts, check_positive
from jaxseq.plotting import Curve, CurvePanel, draw_curves
from jaxseq.training import OptimizerConfig


@dataclass(frozen=True)
class Mixers:
    """Cores trained on both tasks."""

    cores: tuple[str, ...] = ("elman", "gru", "lstm", "mingru", "attention")
    """Names of the table of cores."""
    addition_length: int = 50
    """Positions of a sequence of the addition task."""
    copy_blank: int = 20
    """Blanks between the ten symbols and the cue."""
    features: int = 32
    """Units of each core."""
    batch_size: int = 32
    """Sequences in a batch."""
    steps: int = 800
    """Training steps of each core on each task."""
    every: int = 25
    """Steps between two points of a curve."""
    learning_rate: float = 1e-2
    """Of Adam, constant; the gradient's norm is clipped at 1."""

    def __post_init__(self) -> None:
        check_counts("mixers", cores=len(self.cores), steps=self.steps, every=self.every, features=self.features)
        check_counts("mixers", batch_size=self.batch_size, copy_blank=self.copy_blank)
        check_counts("mixers", 2, addition_length=self.addition_length)
        check_positive("mixers", learning_rate=self.learning_rate)

    def _tasks(self, seed: int) -> dict[str, MemoryTask]:
        size = self.batch_size
        return {"addition": Addition(self.addition_length, size, seed), "copy": CopyMemory(self.copy_blank, size, seed)}

    def compute(self, seed: int, say: Say) -> Values:
        """By task: its baseline, and by core the training losses and the held-out error."""
        config = OptimizerConfig(learning_rate=self.learning_rate, schedule="constant")
        found: Values = {}
        for task_name, task in self._tasks(seed).items():
            cores: Values = {}
            for name in self.cores:
                trainer = Trainer(MemoryModel(make_core(name, self.features), task.outputs), task, config, self.steps)
                steps, losses = [], []
                for progress in trainer.run(trainer.start(seed), self.every):
                    steps.append(int(progress.state.step))
                    losses.append(float(np.mean(progress.metrics["loss"])))
                cores[name] = {"steps": steps, "losses": losses, "error": trainer.held_out(progress.state.params).error}
                say(f"tasks: {task_name}, {name}: {cores[name]['error']:.4f} (baseline {task.baseline:.4f})")
            found[task_name] = {"baseline": task.baseline, "cores": cores}
        return found

    def draw(self, values: Values, file: Path) -> Path:
        """A panel for each task, with the baseline dashed."""
        panels = []
        titles = {
            "addition": (f"Addition, {self.addition_length} positions", "squared error"),
            "copy": (f"Copy of 10 symbols over {self.copy_blank} blanks", "cross-entropy (nats a position)"),
        }
        for task, found in values.items():
            curves = {name: Curve(core["steps"], core["losses"]) for name, core in found["cores"].items()}
            curves["baseline: no memory"] = Curve([0, self.steps], [found["baseline"]] * 2, dashed=True)
            panels.append(
                CurvePanel(titles[task][0], curves, "training step", titles[task][1], log_y=task == "addition")
            )
        return draw_curves(panels, file, title="Training loss of one layer, against what needs no memory")

    def results(self, values: Values) -> dict[str, float]:
        """By task: the baseline, and the held-out error of each core."""
        found = {}
        for task, one in values.items():
            found[f"{task}_baseline"] = one["baseline"]
            found |= {f"{task}_{name}": core["error"] for name, core in one["cores"].items()}
        return found

    def table(self, values: Values) -> str:
        """Held-out errors, a line for each core."""
        width = max(len(name) for name in (*self.cores, "baseline"))
        lines = [f"{'':{width}}  {'addition':>9}  {'copy':>9}"]
        rows = {name: [values[task]["cores"][name]["error"] for task in values] for name in self.cores}
        rows["baseline"] = [values[task]["baseline"] for task in values]
        return "\n".join([*lines, *(f"{n:{width}}  " + "  ".join(f"{v:9.4f}" for v in row) for n, row in rows.items())])
