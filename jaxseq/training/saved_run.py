"""Read a run folder without locking it: the config, other JSON files, and parameters."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from jaxseq.files import JSON
from jaxseq.training.checkpoints import Checkpoints, Restored
from jaxseq.training.errors import RunFolderError
from jaxseq.training.run import CHECKPOINTS, CONFIG, read_json
from jaxseq.training.settings import from_json
from jaxseq.typing import PyTree

C = TypeVar("C")


@dataclass(frozen=True)
class SavedRun:
    """A run folder that is only read, so that it can be used while its run trains; made by :func:`read_run`."""

    path: Path
    config: dict[str, JSON]
    """The contents of ``config.json``."""
    checkpoints: Checkpoints

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
            RunFolderError: there is no such file, or it holds no JSON.
        """
        value = read_json(self.path / name)
        if value is None:
            raise RunFolderError(f"{self.path} has no {name}")
        return value

    def restore_parameters(self, template: PyTree) -> Restored:
        """The parameters of the newest valid checkpoint, averaged where the run keeps an average.

        ``template`` has their structure, shapes and dtypes (``jax.ShapeDtypeStruct`` leaves will do).

        Raises:
            RunFolderError: the run has no checkpoint yet.
            CheckpointError: no checkpoint is valid, or (CheckpointMismatchError) the newest belongs to another model.
        """
        restored = self.checkpoints.restore_parameters(template)
        if restored is None:
            raise RunFolderError(f"{self.path} has no checkpoint yet")
        return restored


def read_run(folder: str | os.PathLike) -> SavedRun:
    """Open a run folder for reading: nothing is locked or written.

    Raises:
        RunFolderError: there is no such folder, or it is not a run folder.
    """
    path = Path(folder).expanduser()
    if not path.exists():
        raise RunFolderError(f"{path} is not a run folder: it does not exist")
    if not path.is_dir():
        raise RunFolderError(f"{path} is a file, not a run folder")
    config = read_json(path / CONFIG)
    if not isinstance(config, dict):
        raise RunFolderError(f"{path} is not a run folder: it has no {CONFIG}")
    return SavedRun(path, config, Checkpoints(path / CHECKPOINTS))
