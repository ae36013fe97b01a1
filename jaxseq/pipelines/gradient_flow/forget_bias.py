"""The initial forget bias of an LSTM: how far its gradient reaches, by which paths, and how soon it learns addition."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.analysis import lstm_paths
from jaxseq.cores import LSTM
from jaxseq.data import Addition
from jaxseq.pipelines.gradient_flow.memory_training import HELD_OUT, MemoryModel, Trainer
from jaxseq.pipelines.gradient_flow.part import Say, Values, check_counts, check_positive
from jaxseq.plotting import Curve, CurvePanel, draw_curves
from jaxseq.training import OptimizerConfig
from jaxseq.typing import Array, Float, PyTree


@dataclass(frozen=True)
class ForgetBias:
    """LSTMs that differ in the initial forget bias alone, on the addition task."""

    biases: tuple[float, ...] = (-1.0, 0.0, 1.0, 2.0, 4.0)
    """Initial biases of the forget gate."""
    length: int = 100
    """Positions of a sequence."""
    features: int = 32
    """Units of the LSTM."""
    batch_size: int = 32
    """Sequences in a batch."""
    steps: int = 300
    """Training steps for each bias."""
    every: int = 10
    """Steps between two points of a curve."""
    learning_rate: float = 3e-3
    """Of Adam, constant; the gradient's norm is clipped at 1."""
    sequences: int = 4
    """Sequences whose derivatives are averaged (geometric mean)."""
    shown_bias: float = 1.0
    """The bias whose paths are drawn."""

    def __post_init__(self) -> None:
        check_counts("forget_bias", biases=len(self.biases), steps=self.steps, every=self.every)
        check_counts("forget_bias", sequences=self.sequences, features=self.features, batch_size=self.batch_size)
        check_counts("forget_bias", 2, length=self.length)
        check_positive("forget_bias", learning_rate=self.learning_rate)
        if self.shown_bias not in self.biases:
            raise ValueError(f"forget_bias shown_bias={self.shown_bias} is none of biases={self.biases}")

    def compute(self, seed: int, say: Say) -> Values:
        """By bias: norms against lag before training, those of the forget path and of each path, losses, and error."""
        task = Addition(self.length, self.batch_size, seed)
        model = MemoryModel(LSTM(self.features), task.outputs)
        config = OptimizerConfig(learning_rate=self.learning_rate, schedule="constant")
        trainer, lags = Trainer(model, task, config, self.steps), list(range(1, self.length))
        inputs = jnp.asarray(task(HELD_OUT).inputs[: self.sequences])
        measure = jax.jit(partial(lstm_norms, model, lags=lags))
        found: Values = {"lags": lags, "biases": {}}
        for bias in self.biases:
            state = trainer.start(seed)
            state = state._replace(params=with_forget_bias(state.params, bias))
            norms, path, paths = jax.tree.map(lambda a: np.asarray(a).tolist(), measure(state.params, inputs))
            steps, losses = [], []
            for progress in trainer.run(state, self.every):
                steps.append(int(progress.state.step))
                losses.append(float(np.mean(progress.metrics["loss"])))
            one = {"norms": norms, "path": path, "paths": paths, "steps": steps, "losses": losses}
            found["biases"][str(bias)] = one | {"error": trainer.held_out(progress.state.params).error}
            error = found["biases"][str(bias)]["error"]
            say(f"forget bias {bias:g}: derivative over {lags[-1]} steps {norms[-1]:.1e}, squared error {error:.4f}")
        return found

    def draw(self, values: Values, file: Path) -> Path:
        """Norms against lag with the forget path dashed, those of each path for one bias, and losses."""
        norms, losses = {}, {}
        for bias, one in values["biases"].items():
            norms[f"bias {float(bias):g}"] = Curve(values["lags"], one["norms"])
            norms[f"bias {float(bias):g} path"] = Curve(values["lags"], one["path"], dashed=True)
            losses[f"bias {float(bias):g}"] = Curve(one["steps"], one["losses"])
        losses["baseline: no memory"] = Curve([0, self.steps], [Addition.baseline] * 2, dashed=True)
        shown = values["biases"][str(self.shown_bias)]
        paths = {name.replace("_", " "): Curve(values["lags"], norms) for name, norms in shown["paths"].items()}
        x_label, y_label = "lag k (positions)", "|dc_T / dc_T-k| / √F"
        panels = [
            CurvePanel("Before training; dashed: forget gates alone", norms, x_label, y_label, log_y=True),
            CurvePanel(f"Paths, forget bias {self.shown_bias:g}", paths, x_label, y_label, log_y=True),
            CurvePanel("Training loss", losses, "training step", "squared error", log_y=True),
        ]
        return draw_curves(panels, file, title=f"LSTM, initial forget bias: addition of {self.length} positions")

    def results(self, values: Values) -> dict[str, float]:
        """By bias: the norm at the largest lag, that of the forget path, and the error after training."""
        found: dict[str, float] = {}
        for bias, one in values["biases"].items():
            found |= {f"{bias}_norm": one["norms"][-1], f"{bias}_path": one["path"][-1], f"{bias}_error": one["error"]}
        return found


def with_forget_bias(params: PyTree, bias: float) -> PyTree:
    """The parameters of a ``MemoryModel`` of an LSTM with another forget bias."""
    core = params["core"]
    size = core["bias"].size // 4
    return params | {"core": core | {"bias": core["bias"].at[size : 2 * size].set(bias)}}


def lstm_norms(
    model: MemoryModel, params: PyTree, inputs: Float[Array, "B T D"], lags: Sequence[int]
) -> tuple[Float[Array, " L"], Float[Array, " L"], dict[str, Float[Array, " L"]]]:
    """Norms over √F, geometric means over sequences: ``dc_T/dc_{T-lag}``, its forget path alone, and its paths."""
    xs: Any = model.apply({"params": params}, inputs, method="embed")
    state, size = model.core.initial_carry(()).state, model.core.features

    def mean(norms: Float[Array, "B L"]) -> Float[Array, " L"]:
        return jnp.exp(jnp.log(norms / jnp.sqrt(jnp.asarray(size, norms.dtype))).mean(0))

    found = jax.vmap(lambda xs: lstm_paths(params["core"], state, xs, lags=lags))(xs)
    return mean(found.norms), mean(found.forget_norms), jax.tree.map(mean, found.path_norms)._asdict()
