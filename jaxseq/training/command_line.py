"""How an experiment ends on a command line: a clear line and an exit code, never a wall of frames."""

import os
import sys
from collections.abc import Callable
from typing import Any

import tyro

from jaxseq.training.errors import TrainingError
from jaxseq.training.interrupts import EXIT_INTERRUPTED


def command_line(main: Callable[[Any], Any], config: type, description: str | None, *, resumes: bool = True) -> None:
    """Read a config dataclass from the command line (its help page too) and run ``main`` with it.

    What a user can mend (ValueError, OSError, ImportError, TrainingError) becomes one line on stderr and exit code 1;
    the environment variable JAXSEQ_TRACEBACK shows its frames. An interrupt exits with EXIT_INTERRUPTED and says, if
    the experiment ``resumes``, that the same command goes on.
    """
    try:
        main(tyro.cli(config, description=description))
    except (ValueError, OSError, ImportError, TrainingError) as error:
        if os.environ.get("JAXSEQ_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from the last checkpoint" if resumes else ""
        print(f"interrupted{goes_on}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
