"""From a loss function to a finished run: step, loop, run folder, checkpoints, report."""

from jaxseq.precision import POLICIES, Policy, cast_floating
from jaxseq.training.checkpoints import Checkpoints, Restored
from jaxseq.training.command_line import command_line
from jaxseq.training.environment import enable_compilation_cache
from jaxseq.training.errors import (
    CheckpointError,
    CheckpointMismatchError,
    CheckpointWarning,
    ConfigMismatchError,
    NonfiniteError,
    RunFolderError,
    RunLockedError,
    TrainingError,
)
from jaxseq.training.interrupts import EXIT_INTERRUPTED, Interrupted
from jaxseq.training.loop import TrainConfig, fit
from jaxseq.training.losses import CrossEntropy, cross_entropy
from jaxseq.training.metrics import JsonLines, TensorBoard, Writer, read_json_lines
from jaxseq.training.optimizer import OptimizerConfig, make_optimizer
from jaxseq.training.report import write_report
from jaxseq.training.run import Run, read_json
from jaxseq.training.saved_run import SavedRun, read_run
from jaxseq.training.scheduled_sampling import scheduled_sampling
from jaxseq.training.settings import from_json, resumable_field, to_json
from jaxseq.training.state import Parameter, TrainState, create_state, parameter_table
from jaxseq.training.step import Aux, make_train_step
from jaxseq.training.truncation import Truncation, TruncationMode

__all__ = [
    "EXIT_INTERRUPTED",
    "POLICIES",
    "Aux",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointWarning",
    "Checkpoints",
    "ConfigMismatchError",
    "CrossEntropy",
    "Interrupted",
    "JsonLines",
    "NonfiniteError",
    "OptimizerConfig",
    "Parameter",
    "Policy",
    "Restored",
    "Run",
    "RunFolderError",
    "RunLockedError",
    "SavedRun",
    "TensorBoard",
    "TrainConfig",
    "TrainState",
    "TrainingError",
    "Truncation",
    "TruncationMode",
    "Writer",
    "cast_floating",
    "command_line",
    "create_state",
    "cross_entropy",
    "enable_compilation_cache",
    "fit",
    "from_json",
    "make_optimizer",
    "make_train_step",
    "parameter_table",
    "read_json",
    "read_json_lines",
    "read_run",
    "resumable_field",
    "scheduled_sampling",
    "to_json",
    "write_report",
]
