"""The command line of an experiment: a config dataclass from arguments, errors as one line and an exit code."""

import contextlib
import dataclasses
import io
import os
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar, cast

import jax
import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from jaxseq import terminal
from jaxseq.terminal import printable, shorten
from jaxseq.training.config_files import read_config, take_config
from jaxseq.training.errors import TrainingError
from jaxseq.training.interrupts import EXIT_INTERRUPTED, ending_signals
from jaxseq.training.loggers import check_loggers
from jaxseq.training.settings import check_numbers

C = TypeVar("C")

FLAG = re.compile(r"(--[A-Za-z][\w.-]*)(=|$)")
"""A flag, and not a value such as "-- quoted text"."""

OUT_OF_MEMORY = re.compile(r"(.*out of memory|RESOURCE_EXHAUSTED)[:,]?\s*", re.IGNORECASE)
LOWER = "lower batch_size, length, features or beams"
EMPTY_PATH = Path("")
"""What an empty text is read as where a path is asked for: ``check_values`` refuses this object."""

CONFIG_HELP = """
--config FILE: values for the options from a .yaml file or a run's config.json; other options override them."""

PATH_RULE = ConstructorRegistry()
"""For ``tyro.cli``: paths from texts, and ``EMPTY_PATH`` from the empty one, which would be the working folder."""


@PATH_RULE.primitive_rule
def _path_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    if info.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: Path(words[0]) if words[0] else EMPTY_PATH,
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    )


def run_cli(
    main: Callable[[C], object],
    config: type[C],
    description: str | None,
    *,
    resumable: bool = True,
    repeatable: Sequence[str] = (),
) -> None:
    """Parse a config dataclass from the command line and call ``main`` with it; ``--help`` is generated from it.

    The exit codes of an experiment:

    - 0: done.
    - 1: an error, one line on stderr. Files, settings, too little memory: the line names the cause and what to change.
      Any other exception is called unexpected. The environment variable JAXSEQ_TRACEBACK=1 shows the frames.
    - 2: arguments that are no options of the experiment or not of their types; tyro's message tells them.
    - 75 (EXIT_INTERRUPTED): stopped by SIGINT, SIGTERM or SIGHUP. If the experiment is ``resumable``, the same command
      resumes; while it trains, the state is saved first.
    - 76 (EXIT_HUNG): a step took too long, and the process ended itself (``Watchdog``).

    A flag that is given twice is refused, except for the fields in ``repeatable``, whose values are appended. So are an
    empty path, and a text that is not UTF-8. On a terminal, control characters in what is printed are shown as escapes
    (``terminal.Output``). A reader of the output that ends, as ``head`` does, does not end the experiment.
    """
    with terminal.standard_outputs(), one_line_warnings(), ending_signals():
        try:
            check_repeated_flags(sys.argv[1:], repeatable)
            made = parse_arguments(config, description)
            check_values(made)
            check_loggers(made)
            main(made)
            sys.stdout.flush()
        except KeyboardInterrupt:
            resumes = "; the same command resumes from the last checkpoint" if resumable else ""
            print(f"interrupted{resumes}", file=sys.stderr)
            sys.exit(EXIT_INTERRUPTED)
        except Exception as error:
            fail(error)


def fail(error: Exception) -> NoReturn:
    """Print an error in one line, or its frames if JAXSEQ_TRACEBACK is set, and exit with code 1."""
    if os.environ.get("JAXSEQ_TRACEBACK"):
        traceback.print_exception(error)
        sys.exit(1)
    lines = shorten(describe_error(error)).split("\n")
    lists = any(line.startswith("  ") for line in lines)  # fields, files or checkpoints, one in a line
    line = "error: " + shorten(("\n" if lists else " ").join(map(printable, lines)))
    print(line, file=sys.stderr)
    exits = SystemExit(line)
    exits.code = 1  # the interpreter prints no line then, as it would for a text
    raise exits


def describe_error(error: Exception) -> str:
    """The text that a user reads about an error."""
    text = str(error).strip()
    first = shorten(text.split("\n")[0]) or "no message"
    memory = OUT_OF_MEMORY.match(first)
    if isinstance(error, MemoryError) or (isinstance(error, jax.errors.JaxRuntimeError) and memory):
        detail = (first[memory.end() :] if memory else text and first).rstrip(".")
        return f"out of memory{detail and f' ({detail})'}; {LOWER}"
    if isinstance(error, OverflowError):
        return f"a number is too large ({first})"
    if isinstance(error, RecursionError):
        return f"values are nested too deeply ({first})"
    if isinstance(error, jax.errors.JaxRuntimeError):
        return f"jax: {first}"
    place = _place(error)
    if isinstance(error, ValueError | OSError | ImportError | TrainingError):
        return text or f"{type(error).__name__} without a message, of {place}"
    if type(error) is RuntimeError and place == "jaxseq":
        return text
    return f"unexpected {type(error).__name__}: {first}; this is a fault of {place}. JAXSEQ_TRACEBACK=1 shows where"


def _place(error: BaseException) -> str:
    """The origin of an error: jaxseq, or a file and line that are neither Python's nor of another package."""
    package = Path(terminal.__file__).resolve().parent
    ours = (str(package), str(package.parent / "experiments"))
    others = tuple(sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(ours):
            break
        if os.path.isfile(frame.filename) and not frame.filename.startswith(others):
            return f"{frame.filename}, line {frame.lineno}"
    return "jaxseq"


def parse_arguments(config: type[C], description: str | None) -> C:
    """The config that tyro reads from the command line; its messages show the arguments' control characters escaped.

    Raises:
        ValueError: a value that a dataclass of the config refuses, or a file of --config that cannot be used.
        SystemExit: after the help, or a message of tyro's.
    """
    file, words = take_config(sys.argv[1:])
    options: dict[str, Any] = {"description": f"{description or ''}\n{CONFIG_HELP}", "registry": PATH_RULE}
    if file is not None:
        options["default"] = read_config(file, config)
    nothing = io.StringIO()
    try:
        with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
            return tyro.cli(config, args=words, **options)
    except SystemExit as error:
        refused = _refused_value(error)
        if refused is not None:
            raise refused from None
        code = error.code
    # tyro formats its help and its messages for terminals itself.
    outputs = [cast(TextIO, getattr(stream, "unescaped", stream)) for stream in (sys.stdout, sys.stderr)]
    with contextlib.redirect_stdout(outputs[0]), contextlib.redirect_stderr(outputs[1]):
        tyro.cli(config, args=[printable(word) for word in words], **options)
    sys.exit(code)


def _refused_value(error: BaseException | None) -> ValueError | None:
    """The ValueError of a ``__post_init__`` that led to an error, if there is one."""
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, ValueError) and any(frame.name == "__post_init__" for frame in frames):
            return error
        error = error.__cause__ or error.__context__
    return None


def check_values(config: object, prefix: str = "") -> None:
    """Check what the types of a config's fields, or of one value of this name, do not say.

    Raises:
        ValueError: an empty path, a text that is not UTF-8, or a number that ``check_numbers`` refuses; names it.
    """
    check_numbers(config, prefix)
    for name, value in values_of(config, prefix):
        if value is EMPTY_PATH:
            raise ValueError(f'{name}="" is no path: give a file or a folder ("." is the working folder)')
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            raise ValueError(f"{name}={shorten(printable(value), 100)} is not UTF-8")


def values_of(config: object, name: str = "") -> Iterator[tuple[str, object]]:
    """The values of a config's fields, of fields of fields and items of tuples too, with their dotted names."""
    if dataclasses.is_dataclass(config):
        for field in dataclasses.fields(config):
            yield from values_of(getattr(config, field.name), f"{name}.{field.name}" if name else field.name)
    elif isinstance(config, tuple | list):
        for item in config:
            yield from values_of(item, name)
    elif isinstance(config, Mapping):
        for key, item in config.items():
            yield from values_of(key, name)
            yield from values_of(item, f"{name}.{key}")
    else:
        yield name, config


@contextlib.contextmanager
def one_line_warnings() -> Iterator[None]:
    """In the block, a warning is shown as one line, without the source line; with JAXSEQ_TRACEBACK as Python does."""
    before = warnings.formatwarning
    if not os.environ.get("JAXSEQ_TRACEBACK"):
        warnings.formatwarning = _format_warning
    try:
        yield
    finally:
        warnings.formatwarning = before


def _format_warning(message: Warning | str, *where: object, **more: object) -> str:
    return f"warning: {shorten(printable(str(message)))}\n"


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
