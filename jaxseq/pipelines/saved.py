"""Load a trained model and its vocabularies from a run folder."""

import abc
import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import jax

from jaxseq import training
from jaxseq.distribution import Placement
from jaxseq.files import JSON
from jaxseq.pipelines.user_cores import NO_ACCESS, RunAccess, permit_code
from jaxseq.typing import PyTree


class Pipeline(abc.ABC):
    """A model with its vocabularies, which can be saved to a run folder (except its parameters)."""

    placement: Placement | None = None
    """Where a batch is computed (``on``)."""

    vocabulary: Any
    """What the model's outputs mean: a vocabulary, a pair of them, or names of classes."""

    file: ClassVar[str]
    """The JSON file that describes it in a run folder; its key ``model`` holds the model's config."""

    @classmethod
    @abc.abstractmethod
    def rebuild(cls, saved: training.SavedRun, described: JSON) -> Any:
        """Rebuild from the contents of ``file`` and what else ``write`` wrote; raises ValueError for other contents."""

    @abc.abstractmethod
    def parameter_shapes(self) -> PyTree:
        """The structure, shapes and dtypes of the model's parameters."""

    @abc.abstractmethod
    def definition(self) -> Mapping[str, object]:
        """The parts for ``Run.define_model`` that define what the parameters mean: config, vocabularies, sizes."""

    @abc.abstractmethod
    def write(self, run: training.Run) -> None:
        """Write ``file`` and the vocabularies."""

    def save(self, run: training.Run) -> None:
        """Write the model's config and the vocabularies; checkpoints that ``fit`` writes then belong to them."""
        self.write(run)
        run.define_model(self.definition())

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


def load_run(folder: str | os.PathLike, kind: type[P], access: RunAccess = NO_ACCESS) -> LoadedRun[P]:
    """Rebuild the pipeline that a run saved, with the parameters of a checkpoint.

    Nothing is locked or written, so that a run can be used while it trains. Nothing of the folder is executed, unless
    ``access`` permits a core in a file.

    Raises:
        RunFolderError: not a run folder, one without such a pipeline, one without a checkpoint, one whose files were
            changed, or one with a core in a file that is not permitted.
        CheckpointError: no checkpoint is valid, there is none of this step, or it belongs to another model.
    """
    saved = training.read_run(folder, accept_changes=access.accept_changes)
    described = saved.read(kind.file)
    stored = saved.provenance().get("model", {})
    if isinstance(described, dict) and "model" in described:
        described = described | {"model": permit_code(described["model"], access, stored, saved.path)}
    try:
        pipeline = kind.rebuild(saved, described)
        shapes, definition = pipeline.parameter_shapes(), pipeline.definition()
    except training.TrainingError:
        raise
    except Exception as error:  # of any kind: the files may hold anything
        told = f"{type(error).__name__}: " * (not isinstance(error, ValueError)) + str(error)
        raise training.RunFolderError(f"{saved.path} holds no {kind.__name__}: {told}") from error
    restored = saved.restore_parameters(shapes, definition, step=access.step, averaged=access.averaged)
    return LoadedRun(pipeline, restored.state, restored.step)
