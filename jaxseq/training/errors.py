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
    """None of the checkpoints can be loaded, or the last one could not be written."""


class CheckpointMismatchError(CheckpointError):
    """A valid checkpoint belongs to another state (leaves, shapes, dtypes), or to another config, model or data."""


class ProcessError(TrainingError):
    """A process of the run is missing, or the processes do not agree."""


class NonfiniteError(TrainingError):
    """Too many consecutive steps had a loss or gradient that is not finite."""


class CheckpointWarning(UserWarning):
    """A checkpoint was not written, was skipped as corrupted, or is used although files of its run were changed."""
