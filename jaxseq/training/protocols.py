"""The functions that a caller gives to training, as protocols."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from jaxseq.typing import Array, Carry, Key, PyTree, Scalar

B = TypeVar("B")
B_in = TypeVar("B_in", contravariant=True)
B_out = TypeVar("B_out", covariant=True)
"""A batch: any pytree of arrays."""


class Aux(NamedTuple):
    """The second output of a loss.

    The scalar and the metrics of a loss are means over ``weight`` items of the batch, such as its real positions
    (``CrossEntropy.count``). Means over several batches, for accumulated gradients and in the log, divide the sum of
    ``weight * mean`` by the sum of the weights. The default counts all batches alike. The weight must not depend on
    the parameters, and not be negative.
    """

    carry: Carry  # the carry at the end of the batch
    metrics: Mapping[str, Array]  # scalars to log
    weight: Scalar | float = 1.0


@runtime_checkable
class Loss(Protocol[B_in]):
    """``loss(params, carry, batch, key) -> (scalar, Aux)``: a differentiable, jittable function."""

    def __call__(self, params: PyTree, carry: Carry, batch: B_in, key: Key[Array, ""], /) -> tuple[Scalar, Aux]:
        """The scalar to minimise, a mean over ``Aux.weight`` items.

        ``carry`` is the state at the start of the batch, ``()`` for a loss without one.
        """


@runtime_checkable
class Batches(Protocol[B_out]):
    """``batches(step) -> batch``: a pure function of the step, so that a resumed run sees the same data."""

    def __call__(self, step: int, /) -> B_out:
        """The batch of a step."""


@runtime_checkable
class StreamBatches(Batches[B_out], Protocol[B_out]):
    """Batches that are consecutive chunks of long sequences; truncation modes ``carry`` and ``recompute`` need them."""

    def stream_start(self, step: int) -> int:
        """The step at which the sequences of this step's batch begin."""


@runtime_checkable
class ShapedBatches(Batches[B_out], Protocol[B_out]):
    """Batches of several shapes, whose programs are compiled before the first step."""

    def shape_steps(self, step: int) -> Sequence[int]:
        """For each shape of batch, the first step from ``step`` on that has it."""


@runtime_checkable
class Evaluate(Protocol):
    """``evaluate(params) -> {name: value}``: held-out metrics."""

    def __call__(self, params: PyTree, /) -> Mapping[str, int | float]:
        """Metrics of these parameters, logged as ``evaluation/<name>``."""


@runtime_checkable
class Writer(Protocol):
    """A destination of metrics. Each step is written once, in order, unless `rewind` returns to an earlier step."""

    def write(self, step: int, metrics: Mapping[str, object]) -> None:
        """Record the metrics of a step."""

    def rewind(self, step: int) -> None:
        """Delete what was written after a step, because the run resumes from it."""

    def close(self) -> None:
        """Release resources; nothing is written afterwards."""
