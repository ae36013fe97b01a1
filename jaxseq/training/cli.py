"""The command line of an experiment: a config dataclass from arguments, errors as one line and an exit code."""

import os
import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from jaxseq.training.errors import TrainingError
from jaxseq.training.interrupts import EXIT_INTERRUPTED

C = TypeVar("C")


def run_cli(main: Callable[[C], object], config: type[C], description: str | None, *, resumable: bool = True) -> None:
    """Parse a config dataclass from the command line and call ``main`` with it; ``--help`` is generated from it.

    ValueError, OSError, ImportError and TrainingError, which a user can fix, are printed as one line on stderr, with
    exit code 1; the environment variable JAXSEQ_TRACEBACK shows the traceback. An interrupt exits with
    EXIT_INTERRUPTED; if the experiment is ``resumable``, the message says that the same command resumes.
    """
    try:
        main(tyro.cli(config, description=description))
    except (ValueError, OSError, ImportError, TrainingError) as error:
        if os.environ.get("JAXSEQ_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        resumes = "; the same command resumes from the last checkpoint" if resumable else ""
        print(f"interrupted{resumes}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
