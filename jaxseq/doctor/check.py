"""A check, what it found, and the run of several checks, each isolated from the others."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

from jaxseq.terminal import printable, shorten

Status = Literal["ok", "warn", "fail"]
SHOWN = 500
"""Characters of a finding or an advice that are shown."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        status: ``"fail"`` where something does not work or computes wrong numbers, ``"warn"`` where it works but is
            slow, unused or soon exhausted, else ``"ok"``.
        name: what was looked at.
        found: what was found, in one line.
        advice: what to do, in one line; empty if the status is ok.
        seconds: the time from the start of the check to this finding.
    """

    status: Status
    name: str
    found: str
    advice: str = ""
    seconds: float = 0.0


class Check(NamedTuple):
    """A named function that gives findings; ``quick`` ones compile nothing."""

    name: str
    run: Callable[[], Iterable[Finding]]
    quick: bool = True
    needs_jax: bool = True


def run_checks(checks: Iterable[Check]) -> Iterator[Finding]:
    """The findings of every check, as they come.

    An exception in a check is a failed finding with its name, and the next check goes on. If the check ``start`` fails,
    checks that need JAX are not run.
    """
    started = True
    for check in checks:
        if check.needs_jax and not started:
            continue
        begin = time.perf_counter()
        for finding in isolated(check):
            started &= check.name != "start" or finding.status != "fail"
            found, advice = one_line(finding.found), one_line(finding.advice)
            seconds = round(time.perf_counter() - begin, 3)
            yield dataclasses.replace(finding, found=found, advice=advice, seconds=seconds)


def isolated(check: Check) -> Iterator[Finding]:
    """The findings of a check; an exception becomes the last one. Python's warnings are not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield from check.run()
        except Exception as error:  # whatever a driver, a library or a file system raises
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            advice = f"pip install {missing}" if missing else "if the line does not tell the cause, report this output"
            yield Finding("fail", check.name, f"{type(error).__name__}: {error}", advice)


def one_line(text: str) -> str:
    """A text without line feeds and control characters, shortened."""
    return shorten(printable(" ".join(text.split())), SHOWN)
