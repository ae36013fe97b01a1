"""The best evaluation of a run, and how many evaluations have not improved on it (early stopping)."""

import math
from collections.abc import Mapping
from typing import Literal, TypedDict, cast

from jaxseq.files import JSON
from jaxseq.training.errors import CheckpointMismatchError
from jaxseq.training.processes import from_primary

BestMode = Literal["min", "max"]


class _Content(TypedDict):
    """The JSON state of a :class:`BestTracker`, stored in checkpoints as ``meta["best"]``."""

    metric: str
    mode: str
    step: int | None
    value: float | None
    reference: float | None
    stale: int


class BestTracker:
    """Finds the best value of a metric, the first of equal ones; values that are not finite are never the best.

    For early stopping it counts the evaluations since the last improvement: a value that is better than the one of the
    last improvement by more than ``min_improvement``. A slow drift is an improvement once it adds up to that.

    Its state is plain JSON (:attr:`content`), saved with each checkpoint, so that a resumed run makes the same choices.

    Args:
        metric: the name of a value of the evaluation.
        mode: whether the smallest or the largest value is the best.
        min_improvement: in units of the metric.
        content: a stored state; one of another metric or mode is not used.
    """

    def __init__(self, metric: str, mode: BestMode, min_improvement: float, content: JSON = None):
        self.metric, self.mode, self.min_improvement = metric, mode, min_improvement
        self.content: _Content = {
            "metric": metric, "mode": mode, "step": None, "value": None, "reference": None, "stale": 0
        }  # fmt: skip
        self._earlier: list[tuple[int | None, float | None]] = []
        if isinstance(content, dict) and (content.get("metric"), content.get("mode")) == (metric, mode):
            self.content = _checked(content)

    @property
    def step(self) -> int | None:
        """The step of the best evaluation, None before the first finite one."""
        return self.content["step"]

    @property
    def value(self) -> float | None:
        """The best value."""
        return self.content["value"]

    @property
    def stale(self) -> int:
        """Evaluations since the last improvement."""
        return self.content["stale"]

    def update(self, step: int, values: Mapping[str, int | float]) -> bool:
        """Take the values of an evaluation; returns whether it is the best. All processes get the first one's answer.

        Raises:
            ValueError: the metric is not among the values, or is no number.
        """
        if self.metric not in values:
            known = ", ".join(values) or "none"
            raise ValueError(f"train best_metric {self.metric!r} is no value of the evaluation; it has {known}")
        try:
            value = float(from_primary(lambda: float(values[self.metric])))
        except TypeError:
            raise ValueError(f"train best_metric {self.metric!r} is {values[self.metric]!r}, not a number") from None
        content = self.content
        improved = self._better(value, content["reference"], self.min_improvement)
        content["stale"] = 0 if improved else content["stale"] + 1
        if improved:
            content["reference"] = value
        best = self._better(value, content["value"], 0.0)
        if best:
            self._earlier.append((content["step"], content["value"]))
            content["step"], content["value"] = step, value
        return best

    def forget(self, step: int) -> None:
        """The checkpoint of this step could not be written: the one before it is the best again."""
        self._earlier = [row for row in self._earlier if row[0] != step]
        if self.step == step:
            before = self._earlier.pop() if self._earlier else (None, None)
            self.content["step"], self.content["value"] = before

    def _better(self, value: float, than: float | None, margin: float) -> bool:
        if not math.isfinite(value) or than is None:
            return math.isfinite(value)
        return value < than - margin if self.mode == "min" else value > than + margin


def _checked(content: dict[str, JSON]) -> _Content:
    """A stored state, whose checkpoint may come from somebody else."""
    kinds = {"step": int, "value": float, "reference": float, "stale": int}
    right = all(type(content.get(name)) is kind or content.get(name) is None for name, kind in kinds.items())
    if content.keys() != _Content.__annotations__.keys() or not right or content["stale"] is None:
        raise CheckpointMismatchError(f"the best evaluation is stored as {content}, which this version cannot read")
    return cast(_Content, dict(content))
