"""Training: train step, loop, run folder, checkpoints, report."""

from jaxseq.training.accumulation import accumulate
from jaxseq.training.best import BestTracker
from jaxseq.training.checkpoint_folder import StepChoice
from jaxseq.training.checkpoints import Checkpoints, Restored
from jaxseq.training.cli import check_outputs, check_repeated_flags, run_cli
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
from jaxseq.training.loggers import LOGGERS, TensorBoardWriter, WandbConfig, WandbWriter, check_loggers
from jaxseq.training.loop import fit
from jaxseq.training.losses import CrossEntropy, cross_entropy
from jaxseq.training.metrics import JsonLinesWriter, read_json_lines
from jaxseq.training.optimizer import OptimizerConfig, make_optimizer
from jaxseq.training.protocols import Aux, Batches, Evaluate, Loss, StreamBatches, Writer
from jaxseq.training.provenance import Provenance
from jaxseq.training.report import PageTable, write_report, write_tables
from jaxseq.training.run import Run
from jaxseq.training.run_files import RunFiles, read_json
from jaxseq.training.saved_run import SavedRun, read_run
from jaxseq.training.scheduled_sampling import scheduled_sampling
from jaxseq.training.settings import STEP_SCHEDULE, check_numbers, from_json, resumable_field, to_json
from jaxseq.training.state import Ema, ParameterInfo, TrainState, create_state, parameter_table
from jaxseq.training.step import make_train_step
from jaxseq.training.train_config import TrainConfig
from jaxseq.training.truncation import Truncation, TruncationMode

__all__ = [
    "EXIT_INTERRUPTED",
    "LOGGERS",
    "STEP_SCHEDULE",
    "Aux",
    "Batches",
    "BestTracker",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointWarning",
    "Checkpoints",
    "ConfigMismatchError",
    "CrossEntropy",
    "Ema",
    "Evaluate",
    "Interrupted",
    "JsonLinesWriter",
    "Loss",
    "NonfiniteError",
    "OptimizerConfig",
    "PageTable",
    "ParameterInfo",
    "Provenance",
    "Restored",
    "Run",
    "RunFiles",
    "RunFolderError",
    "RunLockedError",
    "SavedRun",
    "StepChoice",
    "StreamBatches",
    "TensorBoardWriter",
    "TrainConfig",
    "TrainState",
    "TrainingError",
    "Truncation",
    "TruncationMode",
    "WandbConfig",
    "WandbWriter",
    "Writer",
    "accumulate",
    "check_loggers",
    "check_numbers",
    "check_outputs",
    "check_repeated_flags",
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
    "run_cli",
    "scheduled_sampling",
    "to_json",
    "write_report",
    "write_tables",
]
