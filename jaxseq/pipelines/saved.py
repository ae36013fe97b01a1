"""Load a trained model and its vocabularies from a run folder."""

import abc
import os
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from jaxseq import training
from jaxseq.typing import PyTree


class Pipeline(abc.ABC):
    """A model with its vocabularies, which can be saved to a run folder (except its parameters)."""

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
