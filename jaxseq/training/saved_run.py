"""Read a run folder without locking it: the config, other JSON files, and parameters."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from jaxseq.files import JSON
from jaxseq.training.checkpoint_folder import StepChoice
from jaxseq.training.checkpoints import Checkpoints, Restored
from jaxseq.training.errors import RunFolderError
from jaxseq.training.provenance import UNKNOWN, Provenance, provenance_differences
from jaxseq.training.run import CHECKPOINTS, CONFIG, ENVIRONMENT
from jaxseq.training.run_files import CHECKSUMS, RunFiles
from jaxseq.training.settings import from_json
from jaxseq.typing import PyTree

C = TypeVar("C")


@dataclass(frozen=True)
class SavedRun:
    """A run folder that is only read, so that it can be used while its run trains; made by :func:`read_run`."""

    path: Path
    """The run folder."""
    config: dict[str, JSON]
    """The contents of ``config.json``."""
    files: RunFiles
    """Its JSON files, which are verified when they are read."""

    def config_as(self, kind: type[C]) -> C:
        """The config as an instance of a dataclass, by :func:`from_json`; newer fields take their defaults.

        Raises:
            RunFolderError: the config does not fit ``kind``: the run was made by another experiment.
        """
        try:
            return from_json(kind, self.config)
        except (ValueError, TypeError) as error:
            raise RunFolderError(f"{self.path} was made by another experiment: {error}") from None

    def read(self, name: str) -> JSON:
        """The value of a JSON file of the run, such as ``results.json``.

        Raises:
            RunFolderError: there is no such file, it differs from what the run wrote, or holds no JSON; or it has no
                checksum although the run's version writes them.
        """
        value = self.files.read(name)
        if value is None:
            raise RunFolderError(f"{self.path} has no {name}")
        if not self.files.has_checksum(name) and not self.files.accept_changes and self.provenance():
            told = f"{self.path / name} has no checksum in {CHECKSUMS}, which was deleted or changed"
            raise RunFolderError(f"{told}. Restore it, or accept the change (--accept-changes)")
        return value

    def read_object(self, name: str) -> dict[str, JSON]:
        """As ``read``; raises RunFolderError for JSON that is no object, too."""
        value = self.read(name)
        if not isinstance(value, dict):
            raise RunFolderError(f"{self.path / name} must hold an object, not a {type(value).__name__}")
        return value

    def provenance(self) -> dict[str, JSON]:
        """The provenance of the newest readable checkpoint; empty if there is none, or it stores none."""
        return self._checkpoints(UNKNOWN).newest_provenance()

    def verify_config(self, config: object) -> None:
        """Compare the config and the data's fingerprint in ``environment.json`` with those of the checkpoints.

        Args:
            config: ``config_as`` of the run's class of config.

        Raises:
            RunFolderError: they differ; the message names the fields.
        """
        data = self.read_object(ENVIRONMENT).get("data_fingerprint")
        differences = provenance_differences(self.provenance(), Provenance(config, None, str(data)))
        if differences and not self.files.accept_changes:
            told = "\n  ".join(differences)
            raise RunFolderError(f"{self.path} was changed since its checkpoints were written:\n  {told}")

    def restore_parameters(
        self,
        template: PyTree,
        model: Mapping[str, object] | None = None,
        *,
        step: StepChoice = "latest",
        averaged: bool = True,
    ) -> Restored:
        """The parameters of a checkpoint, averaged where the run keeps an average.

        Args:
            template: has their structure, shapes and dtypes (``jax.ShapeDtypeStruct`` leaves will do).
            model: the parts that define the model, as they were given to ``Run.define_model``, to be compared.
            step: ``"latest"``, the newest valid checkpoint; ``"best"``, the one with the best ``train.best_metric``;
                or a step.
            averaged: if False, the parameters of the step itself, also where the run keeps an average.

        Raises:
            RunFolderError: the run has no checkpoint yet.
            CheckpointError: no checkpoint is valid, the chosen one is corrupted or does not exist (the message lists
                the steps there are), or (CheckpointMismatchError) it belongs to another model.
        """
        checkpoints = self._checkpoints(Provenance(model=model))
        restored = checkpoints.restore_parameters(template, step=step, averaged=averaged)
        if restored is None:
            raise RunFolderError(f"{self.path} has no checkpoint yet")
        return restored

    def _checkpoints(self, provenance: Provenance) -> Checkpoints:
        return Checkpoints(self.path / CHECKPOINTS, provenance=provenance, accept_changes=self.files.accept_changes)


def read_run(folder: str | os.PathLike, *, accept_changes: bool = False) -> SavedRun:
    """Open a run folder for reading: nothing is locked or written.

    Args:
        folder: the run folder.
        accept_changes: use files that differ from what the run wrote, with a warning.

    Raises:
        RunFolderError: there is no such folder, or it is not a run folder.
    """
    path = Path(folder).expanduser()
    if not path.exists():
        raise RunFolderError(f"{path} is not a run folder: it does not exist")
    if not path.is_dir():
        raise RunFolderError(f"{path} is a file, not a run folder")
    files = RunFiles(path, accept_changes=accept_changes)
    config = files.read(CONFIG)
    if config is None:
        raise RunFolderError(f"{path} is not a run folder: it has no {CONFIG}")
    if not isinstance(config, dict):
        raise RunFolderError(f"{path / CONFIG} must hold an object, not a {type(config).__name__}")
    return SavedRun(path, config, files)
