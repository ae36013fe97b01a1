"""Errors of training that a user can fix; each message can be read without its traceback."""


class TrainingError(Exception):
    """The base class: catch it, print the message, exit with a code above 0."""


class RunFolderError(TrainingError):
    """The folder is not a run folder, cannot become one, or lacks a file."""


class RunLockedError(RunFolderError):
    """Another process is writing to this run folder."""


class ConfigMismatchError(TrainingError):
    """The run folder was made with another config or other data; the message lists the fields."""


class CheckpointError(TrainingError):
    """There are checkpoints, and none of them can be loaded."""


class CheckpointMismatchError(CheckpointError):
    """A valid checkpoint belongs to another state: other leaves, shapes or dtypes."""


class ProcessError(TrainingError):
    """A process of the run is missing, or the processes do not agree."""


class NonfiniteError(TrainingError):
    """Too many consecutive steps had a loss or gradient that is not finite."""


class CheckpointWarning(UserWarning):
    """A checkpoint could not be written, or was skipped because it is corrupted."""
