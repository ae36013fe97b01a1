"""Text for terminals: which characters are escaped, and streams whose readers end."""

import io
import os
import subprocess
import sys
import unicodedata

import pytest

from jaxseq.terminal import Output, escape_controls, printable, shorten, standard_outputs

EVERY = [chr(code) for code in range(sys.maxunicode + 1)]
BIDIRECTIONAL = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def escaped(character):
    return f"\\x{ord(character):02x}" if character < "\u0100" else f"\\u{ord(character):04x}"


def test_what_a_terminal_obeys_is_escaped_and_all_other_text_is_unchanged():
    obeyed = {character for character in EVERY if unicodedata.category(character) == "Cc"} - {"\n", "\t"}
    assert escape_controls("".join(EVERY)) == "".join(escaped(c) if c in obeyed else c for c in EVERY)


def test_a_printable_text_is_one_line_of_utf_8_in_its_own_direction():
    hidden = {c for c in EVERY if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")}
    hidden |= {c for c in EVERY if unicodedata.bidirectional(c) in BIDIRECTIONAL} | set("\u061c\u200e\u200f")
    shown = printable("".join(EVERY))
    assert shown == "".join(escaped(c) if c in hidden else c for c in EVERY)
    shown.encode("utf-8")


def test_a_long_text_keeps_its_ends():
    text = "a" * 5000 + "z"
    shown = shorten(text)
    assert shown.startswith("aaa") and shown.endswith("az") and "3,001 characters" in shown and len(shown) < 2050
    assert shorten("a" * 2000) == "a" * 2000


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("kind", "shown"), [(Terminal, "a\\x1b[1m\\x9b\tb\n"), (io.StringIO, "a\x1b[1m\x9b\tb\n")])
def test_only_a_terminal_is_shown_escapes(kind, shown, monkeypatch):
    out, err = kind(), kind()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with standard_outputs():
        for stream in (sys.stdout, sys.stderr):
            print("a\x1b[1m\x9b\tb", file=stream)
            print("\x1b", end="", file=stream.unescaped)
    assert out.getvalue() == err.getvalue() == shown + "\x1b"
    assert (sys.stdout, sys.stderr) == (out, err)


def reader_gone(kind):
    """A text stream into a pipe, or a terminal, whose other end is closed."""
    reads, writes = os.pipe() if kind == "pipe" else os.openpty()
    stream = open(writes, "w", encoding="utf-8")  # noqa: SIM115  (closed by the test)
    assert stream.isatty() == (kind != "pipe")
    output = Output(stream, "standard output")
    os.close(reads)
    return stream, output


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_stream_without_a_reader_takes_everything(kind):
    stream, output = reader_gone(kind)
    for _ in range(3):
        print("x" * 100_000, file=output, flush=True)
    print("buffered", file=output, end="")
    stream.close()  # as the interpreter does at its end: into nothing


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_a_full_disk_is_named_once():
    named = pytest.raises(OSError, match="No space left on device: 'standard output'")
    with open("/dev/full", "w", encoding="utf-8") as stream, named:  # and it closes without an error
        print("text", file=Output(stream, "standard output"), flush=True)


def test_closed_standard_streams_are_replaced_by_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with standard_outputs():
        print("lost", flush=True)
        print("lost", file=sys.stderr, flush=True)
        assert not sys.stdout.isatty() and not sys.stderr.isatty()
    assert sys.stdout is None and sys.stderr is None


def test_no_file_gets_the_number_of_a_closed_standard_stream(tmp_path):
    code = (
        "import os, sys; from jaxseq.terminal import standard_outputs\n"
        "with standard_outputs():\n"
        "    file = open(sys.argv[1], 'w'); file.write(str(file.fileno())); os.write(2, b'lost')"
    )
    file = tmp_path / "number"
    command = f'exec "{sys.executable}" -c "$1" "$2" <&- >&- 2>&-'
    assert subprocess.run(["bash", "-c", command, "bash", code, str(file)], timeout=60).returncode == 0
    assert int(file.read_text()) > 2
