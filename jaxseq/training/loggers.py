"""Destinations of metrics besides ``metrics.jsonl``, by name: TensorBoard, and Weights & Biases."""

import importlib.util
import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from jaxseq.files import JSON
from jaxseq.training.metrics import METRICS, read_json_lines
from jaxseq.training.protocols import Writer
from jaxseq.training.run_files import RunFiles
from jaxseq.training.settings import marked_fields

LoggerName = Literal["tensorboard", "wandb"]
WANDB_FILE = "wandb.json"


@dataclass(frozen=True)
class WandbConfig:
    """What Weights & Biases is told about a run."""

    project: str = "jaxseq"
    """The project that the run belongs to."""
    name: str | None = None
    """The name that is shown for the run; the name of the run folder if not given."""
    mode: Literal["offline", "online", "disabled"] | None = None
    """Whether metrics are uploaded (online) or written to the run folder only (offline), from where `wandb sync`
    uploads them. If not given: the environment variable WANDB_MODE, and offline without it."""


class TensorBoardWriter:
    """Writes scalars for TensorBoard; raises ImportError if tensorboardX is not installed."""

    def __init__(self, folder: str | os.PathLike):
        require("tensorboard")
        from tensorboardX import SummaryWriter

        self._open = lambda purge: SummaryWriter(str(folder), purge_step=purge)
        self._writer: Any = None

    def write(self, step: int, metrics: Mapping[str, object]) -> None:
        """Record the scalars; strings and missing values are ignored."""
        self._writer = self._writer or self._open(None)
        for name, number in scalars(metrics).items():
            self._writer.add_scalar(name, number, step)
        self._writer.flush()

    def rewind(self, step: int) -> None:
        """Begin a new event file that hides what earlier ones hold after ``step``."""
        self.close()
        self._writer = self._open(step + 1)

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandbWriter:
    """Writes scalars for Weights & Biases; raises ImportError if wandb is not installed.

    Nothing is uploaded unless ``WandbConfig.mode`` or WANDB_MODE says ``online``: a login alone does not. The id of the
    W&B run is stored in the run folder (``wandb.json``), and a resumed run continues the W&B run of this id. W&B
    cannot delete rows, and a killed process loses those that it holds in memory, so a resumed run logs all rows of
    ``metrics.jsonl`` up to the step it resumes from again. Offline they go to a new folder
    ``wandb/offline-run-<time>-<id>``: the newest one holds the whole run. Online, W&B ignores rows of steps that it
    has; they have the same values, as a resumed run repeats its steps bit for bit.
    """

    def __init__(self, files: RunFiles, values: JSON, config: WandbConfig):
        require("wandb")
        stored = files.read(WANDB_FILE)
        known = stored.get("id") if isinstance(stored, dict) else None
        self.id = known if isinstance(known, str) else secrets.token_hex(8)
        if self.id != known:
            files.write(WANDB_FILE, {"id": self.id})
        self._config, self._folder, self._values = config, files.folder, values
        self._resumed = 0
        self._run: Any = None

    def write(self, step: int, metrics: Mapping[str, object]) -> None:
        """Record the scalars; strings and missing values are ignored."""
        self._run = self._run or self._start()
        self._run.log(scalars(metrics), step=step)

    def rewind(self, step: int) -> None:
        """The next write begins with the rows of ``metrics.jsonl`` up to this step."""
        self.close()
        self._resumed = step

    def close(self) -> None:
        """Write what W&B holds in memory."""
        if self._run is not None:
            self._run.finish()
            self._run = None

    def _start(self) -> Any:
        mode = wandb_mode(self._config)
        if mode != "online":  # errors of wandb are reported over the network, too
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        settings = wandb.Settings(console="off", save_code=False, disable_git=True, silent=True, symlink=False)
        run = wandb.init(
            project=self._config.project,
            name=self._config.name or self._folder.name,
            id=self.id,
            resume="allow",
            dir=str(self._folder),
            config=self._values,
            mode=mode,
            settings=settings,
        )
        for row in read_json_lines(self._folder / METRICS):
            if row["step"] <= self._resumed:
                run.log(scalars({name: value for name, value in row.items() if name != "step"}), step=row["step"])
        return run


def wandb_mode(config: WandbConfig) -> Any:
    """The mode of W&B: the config's, else WANDB_MODE, else offline."""
    return config.mode or os.environ.get("WANDB_MODE") or "offline"


class Logger(NamedTuple):
    """A package, and a writer that needs it, made of a run's files and config; jaxseq's extra has the logger's name."""

    package: str
    make: Callable[[RunFiles, JSON, WandbConfig], Writer]


LOGGERS: dict[str, Logger] = {
    "tensorboard": Logger("tensorboardX", lambda files, values, wandb: TensorBoardWriter(files.folder / "tensorboard")),
    "wandb": Logger("wandb", WandbWriter),
}
LOGGER_NAMES = "jaxseq_loggers"
"""The metadata key of a config field that holds names of loggers."""


def require(name: str) -> None:
    """Raises ImportError, with the command that installs it, if the package of a logger is missing."""
    package = LOGGERS[name].package
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"the logger {name} needs the package {package}: pip install 'jaxseq[{name}]'")


def check_loggers(config: object) -> None:
    """Check that the packages of all loggers that a config names are installed, before any work is done for it.

    Args:
        config: a dataclass with a ``TrainConfig`` among its fields, or in fields of fields.

    Raises:
        ImportError: one is missing; the message has the command that installs it.
    """
    for names in marked_fields(config, LOGGER_NAMES).values():
        for name in names:
            require(name)


def make_loggers(names: Sequence[str], files: RunFiles, values: JSON, wandb: WandbConfig) -> list[Writer]:
    """The writers of the named loggers.

    Args:
        names: keys of ``LOGGERS``.
        files: of the run folder, in which the writers keep theirs.
        values: the run's config as JSON.
        wandb: options of Weights & Biases.

    Raises:
        ImportError: a package is missing.
    """
    return [LOGGERS[name].make(files, values, wandb) for name in names]


def scalars(metrics: Mapping[str, object]) -> dict[str, int | float]:
    """The finite numbers among metrics."""
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
    return {name: value for name, value in plain.items() if isinstance(value, int | float) and math.isfinite(value)}
