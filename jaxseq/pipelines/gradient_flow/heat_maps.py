"""The gradient of the loss at each position over training, for several cores on the addition task."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.analysis import loss_flow
from jaxseq.cores import Attention, make_core
from jaxseq.data import Addition, MemoryBatch
from jaxseq.pipelines.gradient_flow.memory_training import HELD_OUT, MemoryModel, Trainer, prediction_error
from jaxseq.pipelines.gradient_flow.part import Say, Values, check_counts, check_positive
from jaxseq.plotting import HeatMap, draw_heat_maps
from jaxseq.training import OptimizerConfig
from jaxseq.typing import Array, Carry, Float, PyTree, Scalar


@dataclass(frozen=True)
class HeatMaps:
    """Cores trained on addition; the gradient is measured on held-out sequences before and during training."""

    cores: tuple[str, ...] = ("elman", "gru", "lstm", "mingru", "attention")
    """Names of the table of cores."""
    length: int = 50
    """Positions of a sequence."""
    features: int = 32
    """Units of each core."""
    batch_size: int = 32
    """Sequences in a batch."""
    probes: int = 128
    """Held-out sequences over which the gradient's norm is averaged."""
    steps: int = 400
    """Training steps of each core."""
    every: int = 25
    """Steps between two rows of a map."""
    learning_rate: float = 1e-2
    """Of Adam, constant; the gradient's norm is clipped at 1."""

    def __post_init__(self) -> None:
        check_counts("heat_maps", cores=len(self.cores), probes=self.probes, steps=self.steps, every=self.every)
        check_counts("heat_maps", features=self.features, batch_size=self.batch_size)
        check_counts("heat_maps", 2, length=self.length)
        check_positive("heat_maps", learning_rate=self.learning_rate)

    def compute(self, seed: int, say: Say) -> Values:
        """By core: the steps, the norms at each position for each of them, and the held-out errors."""
        task = Addition(self.length, self.batch_size, seed)
        config = OptimizerConfig(learning_rate=self.learning_rate, schedule="constant")
        probe = Addition(self.length, self.probes, seed)(HELD_OUT)
        found: Values = {}
        for name in self.cores:
            trainer = Trainer(MemoryModel(make_core(name, self.features), task.outputs), task, config, self.steps)
            measure = jax.jit(position_norms(trainer.model, probe))
            state = trainer.start(seed)
            steps, norms, errors = [0], [measure(state.params)], [trainer.held_out(state.params).error]
            for progress in trainer.run(state, self.every):
                steps.append(int(progress.state.step))
                norms.append(measure(progress.state.params))
                errors.append(trainer.held_out(progress.state.params).error)
            say(f"heat maps: {name}, squared error {errors[0]:.4f} -> {errors[-1]:.4f} (baseline {task.baseline:.4f})")
            found[name] = {"steps": steps, "norms": np.asarray(norms).tolist(), "errors": errors}
        return found

    def draw(self, values: Values, file: Path) -> Path:
        """A map for each core."""
        maps = []
        for name, found in values.items():
            by = "x" if type(make_core(name, self.features)) is Attention else "state"
            last = len(found["norms"][0])
            title = f"{name} (by {'layer input' if by == 'x' else 'state'}): error {found['errors'][-1]:.3g}"
            span, steps = (1.0, float(last)), (float(found["steps"][0]), float(found["steps"][-1]))
            maps.append(
                HeatMap(
                    title,
                    found["norms"],
                    "position s",
                    "training step",
                    span,
                    steps,
                    unit="|dL/dh_s| (attention: |dL/dx_s|)",
                )
            )
        return draw_heat_maps(
            maps,
            file,
            title=f"Gradient of the loss at each position: addition, loss at position {self.length} "
            f"(baseline error {Addition.baseline:.3f})",
        )

    def results(self, values: Values) -> dict[str, float]:
        """By core: the gradient at the first position by that at the last, before and after training, and the error."""
        found = {}
        for name, core in values.items():
            for when, row in (("before", core["norms"][0]), ("after", core["norms"][-1])):
                found[f"{name}_first_to_last_{when}"] = row[0] / row[-1] if row[-1] else float("nan")
            found[f"{name}_error"] = core["errors"][-1]
        return found


def position_norms(model: MemoryModel, batch: MemoryBatch) -> Callable[[PyTree], Float[Array, " positions"]]:
    """``|dL/dh_s|`` at each position as a function of the parameters: the root mean square over the batch.

    L is the error of one sequence. The derivative is the total one by the core's state, for positions 1 to T - 1; for
    attention, which has no recurrent state, by the inputs of the layer, for positions 1 to T.
    """
    size, length = batch.inputs.shape[:2]
    apply: Any = model.apply
    apply_core: Any = model.core.apply
    recurrent = not isinstance(model.core, Attention)

    def norms(params: PyTree) -> Float[Array, " positions"]:
        def core(carry: Carry, xs: Array) -> tuple[Carry, Array]:
            return apply_core({"params": params["core"]}, carry, xs)

        def loss(ys: Array) -> Scalar:
            return size * prediction_error(apply({"params": params}, ys, method="predict"), batch)

        xs = apply({"params": params}, jnp.asarray(batch.inputs), method="embed")
        flow = loss_flow(core, model.core.initial_carry((size,)), xs, loss, carries=recurrent)
        found = flow.inputs if flow.carries is None else flow.carries[:, : length - 1]
        return jnp.sqrt(jnp.mean(found**2, 0))

    return norms
