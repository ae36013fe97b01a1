"""The config of the training loop."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from jaxseq.files import JSON
from jaxseq.training.best import BestMode
from jaxseq.training.loggers import LOGGER_NAMES, LoggerName, WandbConfig
from jaxseq.training.settings import EXTENSIBLE, RESUMABLE, check_numbers, resumable_field
from jaxseq.training.truncation import TruncationMode

POSITIVE = (
    "steps",
    "log_every",
    "checkpoint_every",
    "max_to_keep",
    "eval_every",
    "max_consecutive_nonfinite",
    "patience",
)


@dataclass(frozen=True)
class TrainConfig:
    """The length of training, truncation, averaging, logging, evaluation, checkpoints and early stopping."""

    steps: int | None = dataclasses.field(default=1000, metadata={EXTENSIBLE: True})
    """Training steps; None for the default of the experiment's model. A run may be extended where its learning rate
    does not depend on their number: constant, inverse_sqrt, and the warm-up."""
    truncation: TruncationMode = "zero"
    """The carry at the start of a chunk: initial (zero), the previous chunk's (carry), or recomputed (recompute)."""
    ema_decay: float | None = None
    """Decay per update of a moving average of the parameters, which is then used for evaluation. The average does not
    contain the initial parameters: it is divided by 1 - ema_decay**updates, as Adam's moments are."""
    log_every: int = resumable_field(10)
    """Steps between two rows of the metrics, which are means over these steps."""
    checkpoint_every: int = resumable_field(100)
    """Steps between two checkpoints; the last step has one, too."""
    max_to_keep: int = resumable_field(3)
    """Number of newest checkpoints kept, besides the best."""
    eval_every: int | None = resumable_field(None)
    """Steps between two evaluations on held-out data; None for none while training."""
    best_metric: str | None = resumable_field(None)
    """A value of the evaluation, such as loss: the step where it is best has a checkpoint, which is kept."""
    best_mode: BestMode = dataclasses.field(default="min", metadata={RESUMABLE: True})
    """Whether the smallest or the largest best_metric is the best."""
    patience: int | None = resumable_field(None)
    """Training ends after so many evaluations in a row without an improvement of best_metric; None for never."""
    min_improvement: float = resumable_field(0.0)
    """Smaller improvements of best_metric do not count for patience."""
    final_parameters: Literal["last", "best"] = resumable_field("last")
    """The parameters that training returns, for results and samples: of the last step, or of the best evaluation."""
    max_consecutive_nonfinite: int = resumable_field(10)
    """Training stops with an error after so many consecutive steps whose loss, gradient or update is not finite."""
    loggers: tuple[LoggerName, ...] = dataclasses.field(default=(), metadata={RESUMABLE: True, LOGGER_NAMES: True})
    """Where metrics go besides metrics.jsonl, for example `tensorboard wandb`; each needs the extra of its name."""
    wandb: WandbConfig = dataclasses.field(default=WandbConfig(), metadata={RESUMABLE: True})
    """Options of Weights & Biases."""
    hang_factor: float | None = resumable_field(20.0)
    """A step that takes so many times the median ends the process with exit code 76 (a watchdog); None for never."""
    hang_seconds: float = resumable_field(60.0)
    """The shortest time after which a step counts as hanging."""

    def __post_init__(self) -> None:
        check_numbers(self, "train")
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"train {name} must be at least 1, not {value}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"train ema_decay must be in [0, 1), not {self.ema_decay}")
        if self.hang_factor is not None and not self.hang_factor > 1:
            raise ValueError(f"train hang_factor must be above 1, not {self.hang_factor}")
        if not self.hang_seconds > 0:
            raise ValueError(f"train hang_seconds must be above 0, not {self.hang_seconds}")
        if not self.min_improvement >= 0:
            raise ValueError(f"train min_improvement must be at least 0, not {self.min_improvement}")
        if self.best_metric is None:
            for name, unused in {"patience": None, "min_improvement": 0.0, "final_parameters": "last"}.items():
                if getattr(self, name) != unused:
                    raise ValueError(f"train {name}={getattr(self, name)} needs train best_metric")
        elif self.eval_every is None:
            raise ValueError(f"train best_metric={self.best_metric} needs train eval_every")
        twice = [name for name in self.loggers if self.loggers.count(name) > 1]
        if twice:
            raise ValueError(f"train loggers has {twice[0]} twice")

    @staticmethod
    def upgrade_json(json: dict[str, JSON]) -> dict[str, JSON]:
        """Translate ``tensorboard: true`` of older versions to ``loggers``."""
        if "tensorboard" not in json:
            return json
        names = ["tensorboard"] if json["tensorboard"] is True else []
        return {"loggers": names} | {name: value for name, value in json.items() if name != "tensorboard"}
