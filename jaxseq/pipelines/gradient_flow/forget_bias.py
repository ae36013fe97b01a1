"""The initial forget bias of an LSTM: how far its gradient reaches, and how soon it learns addition."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.analysis import carry_flow
from jaxseq.cores import LSTM
from jaxseq.data import Addition
from jaxseq.pipelines.gradient_flow.memory_training import HELD_OUT, MemoryModel, Trainer
from jaxseq.pipelines.gradient_flow.part import Say, Values, check_counts
from jaxseq.plotting import Curve, CurvePanel, draw_curves
from jaxseq.training import OptimizerConfig
from jaxseq.typing import Array, Float, PyTree


@dataclass(frozen=True)
class ForgetBias:
    """LSTMs that differ in the initial forget bias alone, on the addition task."""

    biases: tuple[float, ...] = (-1.0, 0.0, 1.0, 2.0, 4.0)
    length: int = 100
    features: int = 32
    batch_size: int = 32
    steps: int = 300
    every: int = 10
    """Steps between two points of a curve."""
    learning_rate: float = 3e-3
    """Of Adam, constant; the gradient's norm is clipped at 1."""
    sequences: int = 4
    """Sequences whose derivatives are averaged (geometric mean)."""

    def __post_init__(self) -> None:
        check_counts("forget_bias", biases=len(self.biases), steps=self.steps, every=self.every)
        check_counts("forget_bias", sequences=self.sequences)

    def compute(self, seed: int, say: Say) -> Values:
        """By bias: norms against lag before training, those of the forget path alone, losses, and the final error."""
        task = Addition(self.length, self.batch_size, seed)
        model = MemoryModel(LSTM(self.features), task.outputs)
        config = OptimizerConfig(learning_rate=self.learning_rate, schedule="constant")
        trainer, lags = Trainer(model, task, config, self.steps), list(range(self.length))
        inputs = jnp.asarray(task(HELD_OUT).inputs[: self.sequences])
        measure = jax.jit(partial(lstm_norms, model, lags=lags))
        found: Values = {"lags": lags, "biases": {}}
        for bias in self.biases:
            state = trainer.start(seed)
            state = state._replace(params=with_forget_bias(state.params, bias))
            norms, path = (np.exp(np.asarray(a, np.float64).mean(0)).tolist() for a in measure(state.params, inputs))
            steps, losses = [], []
            for progress in trainer.run(state, self.every):
                steps.append(int(progress.state.step))
                losses.append(float(np.mean(progress.metrics["loss"])))
            one = {"norms": norms, "path": path, "steps": steps, "losses": losses}
            found["biases"][str(bias)] = one | {"error": trainer.held_out(progress.state.params).error}
            error = found["biases"][str(bias)]["error"]
            say(f"forget bias {bias:g}: derivative over {lags[-1]} steps {norms[-1]:.1e}, squared error {error:.4f}")
        return found

    def draw(self, values: Values, file: Path) -> Path:
        """Norms against lag with the forget path dashed, and losses."""
        norms, losses = {}, {}
        for bias, one in values["biases"].items():
            norms[f"bias {float(bias):g}"] = Curve(values["lags"], one["norms"])
            norms[f"bias {float(bias):g} path"] = Curve(values["lags"], one["path"], dashed=True)
            losses[f"bias {float(bias):g}"] = Curve(one["steps"], one["losses"])
        losses["baseline: no memory"] = Curve([0, self.steps], [Addition.baseline] * 2, dashed=True)
        title, y_label = "Before training; dashed: product of forget gates", "|d(h,c)_T / d(h,c)_T-k|"
        panels = [
            CurvePanel(title, norms, "lag k (positions)", y_label, log_y=True),
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
) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
    """Logarithms of the largest singular values of ``d(h,c)_T/d(h,c)_{T-lag}`` and ``diag(f_T ... f_{T-lag+1})``."""
    xs: Any = model.apply({"params": params}, inputs, method="embed")
    core, variables, carry = model.core, {"params": params["core"]}, model.core.initial_carry(())
    function: Any = partial(core.apply, variables)
    size = 2 * core.features  # as many probes as numbers in the carry: exact

    def one(xs: Float[Array, "T D"]) -> tuple[Float[Array, " L"], Float[Array, " L"]]:
        flow = carry_flow(function, carry, xs, lags=lags, probes=size)
        hs = jnp.concatenate([carry.state.h[None], function(carry, xs)[1][:-1]])
        gates = [
            variables["params"][name].reshape(-1, 4, model.core.features)[:, 1] for name in ("kernel", "recurrent")
        ]
        bias = variables["params"]["bias"].reshape(4, -1)[1]
        logarithms = jax.nn.log_sigmoid(xs @ gates[0] + hs @ gates[1] + bias[None])[::-1]
        path = jnp.concatenate([jnp.zeros_like(logarithms[:1]), jnp.cumsum(logarithms, 0)]).max(-1)
        return jnp.log(flow.singular_values[:, 0]), path[jnp.asarray(lags)]

    return jax.vmap(one)(xs)
