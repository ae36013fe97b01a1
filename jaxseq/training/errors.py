"""What training refuses or gives up on; every message is made to be read alone, without its traceback."""


class TrainingError(Exception):
    """The base of the errors a user can put right: catch it, print the message, exit with a code above 0."""


class RunFolderError(TrainingError):
    """The folder is not a run folder, or cannot become one."""


class RunLockedError(RunFolderError):
    """Another process is writing to this run folder."""


class ConfigMismatchError(TrainingError):
    """The run folder was made by another config or other data; the message lists the fields."""


class CheckpointError(TrainingError):
    """There are checkpoints, and none of them can be loaded."""


class CheckpointMismatchError(CheckpointError):
    """A sound checkpoint belongs to another state: other leaves, shapes or dtypes."""


class NonfiniteError(TrainingError):
    """Too many steps in a row whose loss or gradient was not finite."""


class CheckpointWarning(UserWarning):
    """A checkpoint could not be written, or was passed over because it does not verify."""
