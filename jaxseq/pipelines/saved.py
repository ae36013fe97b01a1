"""Load a trained model and its vocabularies from a run folder."""

import abc
import copy
import os
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax

from jaxseq import training
from jaxseq.distribution import Placement
from jaxseq.typing import PyTree


class Pipeline(abc.ABC):
    """A model with its vocabularies, which can be saved to a run folder (except its parameters)."""

    placement: Placement | None = None
    """Where a batch is computed (``on``)."""

    @classmethod
    @abc.abstractmethod
    def from_run(cls, saved: training.SavedRun) -> Any:
        """Rebuild from the files that ``save`` wrote; raises ValueError for files of another kind."""

    @abc.abstractmethod
    def parameter_shapes(self) -> PyTree:
        """The structure, shapes and dtypes of the model's parameters."""

    @abc.abstractmethod
    def save(self, run: training.Run) -> None:
        """Write the model's config and the vocabularies."""

    def on(self, placement: Placement) -> Any:
        """The same pipeline, whose methods replicate parameters on a mesh and shard the rows of a batch over it.

        Rows that the devices do not divide are replicated. So are all rows in several processes, where decoding needs
        whole arrays to check them: each device then computes the whole batch.
        """
        other = copy.copy(self)
        other.placement = placement
        return other

    def place_params(self, params: PyTree) -> PyTree:
        """The parameters, replicated on the mesh; as they are without one."""
        return params if self.placement is None else self.placement.replicate(params)

    def place_rows(self, tree: PyTree) -> PyTree:
        """Arrays of a batch, sharded by rows over the mesh; as they are without one."""
        if self.placement is None:
            return tree
        return self.placement.rows(tree) if jax.process_count() == 1 else self.placement.replicate(tree)


P = TypeVar("P", bound=Pipeline)


@dataclass(frozen=True)
class LoadedRun(Generic[P]):
    """A pipeline, the parameters of its model, and the training step that they are from."""

    pipeline: P
    params: Any
    step: int


def load_run(folder: str | os.PathLike, kind: type[P]) -> LoadedRun[P]:
    """Rebuild the pipeline that a run saved, with the parameters of the newest valid checkpoint.

    Averaged parameters are taken where the run keeps them. Nothing is locked or written, so that a run can be used
    while it trains.

    Raises:
        RunFolderError: not a run folder, one without such a pipeline, or one without a checkpoint.
        CheckpointError: no checkpoint is valid, or it belongs to another model.
    """
    saved = training.read_run(folder)
    try:
        pipeline = kind.from_run(saved)
    except (ValueError, TypeError) as error:
        raise training.RunFolderError(f"{saved.path} holds no {kind.__name__}: {error}") from None
    restored = saved.restore_parameters(pipeline.parameter_shapes())
    return LoadedRun(pipeline, restored.state, restored.step)
