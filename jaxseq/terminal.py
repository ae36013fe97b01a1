"""Text for people: control characters as escapes, and standard streams that survive the end of their readers."""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator
from typing import IO, Any, TextIO, cast, final

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that a terminal obeys: C0 without tab and line feed, DEL, C1."""

NOT_PRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""All of C0, DEL, C1, controls of the writing direction, separators of lines and paragraphs, lone surrogates."""

SHOWN = 2000
"""Characters of an error that are shown."""


def printable(text: str) -> str:
    """A text in one line, as messages show it: what is not printable, line feeds too, is escaped."""
    return NOT_PRINTABLE.sub(_escape, text)


def escape_controls(text: str) -> str:
    """A text as a terminal may show it: control characters but tab and line feed are escaped."""
    return CONTROL.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def shorten(text: str, limit: int = SHOWN) -> str:
    """The beginning and the end of a text that is longer than the limit, and how much is left out."""
    if len(text) <= limit:
        return text
    end = limit // 5
    return f"{text[: limit - end]} [... {len(text) - limit:,} characters ...] {text[-end:]}"


@final
class Output:
    """A standard stream that goes on after the end of its reader, and shows no control characters on a terminal.

    After a broken pipe (``| head``) or the end of a terminal everything is written into nothing. Any other failure, as
    a full disk, is an OSError that names the stream. What this class does not define is that of the stream.

    Args:
        stream: a text stream.
        name: of the stream, for errors.
        escape: whether control characters are written as escapes; by default, if the stream is a terminal.
    """

    def __init__(self, stream: Any, name: str, escape: bool | None = None):
        self._stream, self._name = stream, name
        self._terminal = stream.isatty()
        self._escapes = self._terminal if escape is None else escape

    def write(self, text: str) -> int:
        """Write a text; returns its length."""
        with self._ends():
            self._stream.write(escape_controls(text) if self._escapes else text)
        return len(text)

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        with self._ends():
            self._stream.flush()

    @property
    def unescaped(self) -> "Output":
        """The same stream without escapes, for a display that controls the terminal."""
        return Output(self._stream, self._name, escape=False)

    @contextlib.contextmanager
    def _ends(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            discard(self._stream)  # or the interpreter would fail at its end, on what is buffered
            if error.errno != errno.EPIPE and not (error.errno == errno.EIO and self._terminal):
                raise OSError(error.errno, error.strerror, self._name) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def discard(stream: IO[Any]) -> None:
    """Direct the descriptor of a stream into nothing."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
        nothing = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nothing, stream.fileno())
        finally:
            os.close(nothing)


def _open_standard_descriptors() -> None:
    """Open those of 0, 1 and 2 that are closed: a file of a run would get the number, and what C++ writes to stderr."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free


@contextlib.contextmanager
def standard_outputs() -> Iterator[None]:
    """In the block, ``sys.stdout`` and ``sys.stderr`` are an ``Output``; they are flushed at its end.

    Characters that standard output cannot encode are written as escapes. What is written to a closed one (``>&-``) goes
    into nothing.
    """
    before = sys.stdout, sys.stderr
    _open_standard_descriptors()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    with open(os.devnull, "w", encoding="utf-8") as nothing:
        names = ("standard output", "standard error")
        made = [Output(stream or nothing, name) for stream, name in zip(before, names, strict=True)]
        sys.stdout, sys.stderr = cast(list[TextIO], made)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
            for output in made:
                with contextlib.suppress(OSError):
                    output.flush()
