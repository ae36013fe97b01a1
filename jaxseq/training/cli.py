"""The command line of an experiment: a config dataclass from arguments, errors as one line and an exit code."""

import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from jaxseq.training.errors import TrainingError
from jaxseq.training.interrupts import EXIT_INTERRUPTED

C = TypeVar("C")

FLAG = re.compile(r"(--[A-Za-z][\w.-]*)(=|$)")
"""A flag, and not a value such as "-- quoted text"."""


def run_cli(
    main: Callable[[C], object],
    config: type[C],
    description: str | None,
    *,
    resumable: bool = True,
    repeatable: Sequence[str] = (),
) -> None:
    """Parse a config dataclass from the command line and call ``main`` with it; ``--help`` is generated from it.

    ValueError, OSError, ImportError and TrainingError, which a user can fix, are printed as one line on stderr, with
    exit code 1; the environment variable JAXSEQ_TRACEBACK shows the traceback. An interrupt exits with
    EXIT_INTERRUPTED; if the experiment is ``resumable``, the message says that the same command resumes. A flag that is
    given twice is refused, except for the fields in ``repeatable``, whose values are appended. Characters that standard
    output cannot encode are written as escapes.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        check_repeated_flags(sys.argv[1:], repeatable)
        main(tyro.cli(config, description=description))
    except (ValueError, OSError, ImportError, TrainingError) as error:
        if os.environ.get("JAXSEQ_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        resumes = "; the same command resumes from the last checkpoint" if resumable else ""
        print(f"interrupted{resumes}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def check_outputs(**paths: Path | None) -> None:
    """Check that files can be written where they are asked for, before anything is computed for them.

    Args:
        paths: by the name of the option; None for one that is not given.

    Raises:
        ValueError: a folder in the place of a file, or a file in a folder that does not exist.
    """
    for name, path in paths.items():
        if path is not None and path.is_dir():
            raise ValueError(f"{name}={path} is a folder, not a file to write")
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"{name}={path}: there is no folder {path.parent}")


def check_repeated_flags(arguments: Sequence[str], repeatable: Sequence[str] = ()) -> None:
    """Check that no flag occurs twice: argparse and tyro would ignore all but the last, without a message.

    ``--some-field``, ``--some_field=1`` and ``--no-some-field`` are the same flag.

    Args:
        arguments: the words of the command line, without the program.
        repeatable: names of flags that may occur several times.

    Raises:
        ValueError: names the flag and both places.
    """
    seen: dict[str, str] = {}
    for index, word in enumerate(arguments):
        if word == "--":
            return
        found = FLAG.match(word)
        if not found:
            continue
        flag = found.group(1)
        name = re.sub(r"(^|\.)no-", r"\1", flag[2:].replace("_", "-"))
        value = arguments[index + 1 : index + 2]
        said = word if found.group(2) or not value or FLAG.match(value[0]) else f"{word} {value[0]}"
        if name in seen and name not in {other.replace("_", "-") for other in repeatable}:
            raise ValueError(f"{flag} is given twice: {seen[name]} and {said}")
        seen[name] = said
