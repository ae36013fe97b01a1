"""The command line of experiments: what is refused, how errors, warnings and signals are reported."""

import io
import json
import re
import signal
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro
from jax.errors import JaxRuntimeError

from jaxseq.pipelines.config_fields import configure
from jaxseq.terminal import printable
from jaxseq.training import (
    EXIT_INTERRUPTED,
    OptimizerConfig,
    TrainingError,
    check_outputs,
    check_repeated_flags,
    run_cli,
)
from jaxseq.training.console import format_progress
from jaxseq.training.interrupts import SignalHandler


@dataclass(frozen=True)
class Part:
    steps: int = 1


@dataclass(frozen=True)
class Config:
    core: str = "gru"
    some_names: tuple[str, ...] = ()
    flag: bool = False
    vary: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    train: Part = Part()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--core lstm --core attention", "--core is given twice: --core lstm and --core attention"),
        ("--core=lstm --flag --core attention", "--core is given twice: --core=lstm and --core attention"),
        ("--some-names a b --some_names c", "--some_names is given twice"),
        ("--flag --no-flag", "--no-flag is given twice: --flag and --no-flag"),
        ("--train.steps 3 --vary a --train.steps 4", "--train.steps is given twice: --train.steps 3 and"),
    ],
)
def test_a_flag_given_twice_is_refused(words, said, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", *words.split()])
    with pytest.raises(SystemExit, match=said):
        run_cli(pytest.fail, Config, None, repeatable=("vary",))


def test_flags_given_once_and_flags_that_append_are_read(monkeypatch):
    words = "--core lstm --some-names a b --no-flag --vary a --vary b --train.steps 4"
    monkeypatch.setattr(sys, "argv", ["program", *words.split()])
    found: list[Config] = []
    run_cli(found.append, Config, None, repeatable=("vary",))
    assert found == [Config("lstm", ("a", "b"), False, ("a", "b"), Part(4))]
    check_repeated_flags(["--a", "--", "--a"])
    check_repeated_flags(["--text", "-- he said", "-- he said", "---", "---"])  # values: flags are words


def test_a_field_set_twice_by_texts_is_refused():
    with pytest.raises(ValueError, match=r"train.steps is set twice: 3 and 4"):
        configure(Config, {"steps": "3", "train.steps": "4"})
    assert configure(Config, {"steps": "3", "train.steps": "3"}).train.steps == 3
    with pytest.raises(ValueError, match="--some_names is given twice"):
        configure(Config, {"some_names": "a --some_names b"})
    assert configure(Config, {"core": "--a --a"}).core == "--a --a"
    assert configure(Config, {"some_names": "'x --a' 'y --a'"}).some_names == ("x --a", "y --a")
    with pytest.raises(ValueError, match='some_names="\'x": No closing quotation'):
        configure(Config, {"some_names": "'x"})


def test_what_standard_output_cannot_encode_is_escaped(monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "argv", ["program"])
    monkeypatch.setattr(sys, "stdout", shown)
    run_cli(lambda _: print("\udce4.png\tein caf\u00e9"), Config, None)
    shown.flush()
    assert shown.buffer.getvalue() == b"\\udce4.png\tein caf\\xe9\n"


def test_files_that_cannot_be_written_are_refused_by_name(tmp_path):
    check_outputs(output=tmp_path / "x", tree=None)
    with pytest.raises(ValueError, match=r"output=.* is a folder, not a file to write"):
        check_outputs(output=tmp_path)
    with pytest.raises(ValueError, match=r"tree=.*x: there is no folder .*none"):
        check_outputs(tree=tmp_path / "none" / "x")


@pytest.fixture(autouse=True)
def handlers():
    """The signals' handlers are those from before the test."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def failing(error, monkeypatch, capsys):
    """The code and the lines on stderr of a command whose main raises an error."""

    def main(_):
        raise error

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as stopped:
        run_cli(main, Config, None)
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("steps=0"), "error: steps=0\n"),
        (ValueError(), "error: ValueError without a message, of "),
        (FileNotFoundError(2, "No such file or directory", "a\x1b[1mb"), "No such file or directory: 'a\\x1b[1mb'\n"),
        (json.JSONDecodeError("Expecting value", "[", 1), "error: Expecting value: line 1 column 2 (char 1)\n"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "can't decode byte 0xff"),
        (MemoryError(), "error: out of memory; lower batch_size, length, features or beams\n"),
        (MemoryError("Unable to allocate 8 TiB"), "error: out of memory (Unable to allocate 8 TiB); lower batch_size"),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"),
         "error: out of memory (allocating 9 bytes); lower"),
        (JaxRuntimeError("INTERNAL: dispatching: Out of memory allocating 9 bytes."), "out of memory (allocating 9 b"),
        (JaxRuntimeError("INTERNAL: a fault\nin many\nlines"), "error: jax: INTERNAL: a fault\n"),
        (OverflowError("int too large"), "error: a number is too large (int too large)\n"),
        (RecursionError("maximum recursion depth"), "error: values are nested too deeply (maximum recursion depth)\n"),
        (KeyError("core"), "error: unexpected KeyError: 'core'; this is a fault of "),
        (AttributeError("x\nlines"), "error: unexpected AttributeError: x; this is a fault of "),
        (TrainingError("fields differ:\n  a: 1\n  b: \x1b2\nchoose"), "fields differ:\n  a: 1\n  b: \\x1b2\nchoose\n"),
        (TrainingError("run\nfolder\u202e\u2028\x9b\udcff"), "error: run folder\\u202e\\u2028\\x9b\\udcff\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)  # fmt: skip
def test_an_error_is_one_line_without_control_characters(error, said, monkeypatch, capsys):
    code, shown = failing(error, monkeypatch, capsys)
    assert code == 1 and said in shown and shown.startswith("error: ")
    assert "Traceback" not in shown
    assert shown.count("\n") == 1 or isinstance(error, TrainingError)
    assert all(printable(line) == line for line in shown.split("\n"))


@dataclass(frozen=True)
class Checked:
    part: OptimizerConfig = OptimizerConfig()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--part.b2", "2"], 1, "error: optimizer b2 must be in [0, 1), not 2.0\n"),
        (["--part.b2", "x"], 2, "Value error"),
        (["--part.b3", "2"], 2, "Unrecognized options"),
        (["--help"], 0, "--part.b2"),
    ],
)
def test_what_a_dataclass_refuses_is_one_line_and_wrong_arguments_are_tyros(words, code, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", *words])
    with pytest.raises(SystemExit) as stopped:
        run_cli(pytest.fail, Checked, None)
    shown = capsys.readouterr()
    assert stopped.value.code == code and said in shown.out + shown.err
    assert ("error: " in shown.err) == (code == 1) and shown.err.count("\n") >= 2 * (code == 2)
    assert code != 1 or shown.err.count("\n") == 1


def test_a_huge_error_is_cut(monkeypatch, capsys):
    code, shown = failing(ValueError("begin" + 30_000_000 * "x" + "end"), monkeypatch, capsys)
    assert code == 1 and len(shown) < 2100 and shown.startswith("error: begin") and shown.endswith("end\n")


def test_a_fault_is_said_to_be_of_the_file_that_raised_it(monkeypatch, capsys):
    _, shown = failing(KeyError("x"), monkeypatch, capsys)
    assert f"this is a fault of {__file__}, line " in shown
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit):
        run_cli(lambda _: format_progress({"loss": 1.0}, 0), Config, None)  # without bits_per_token
    assert "this is a fault of jaxseq. JAXSEQ_TRACEBACK=1 shows where\n" in capsys.readouterr().err


def test_the_frames_are_shown_on_request(monkeypatch, capsys):
    monkeypatch.setenv("JAXSEQ_TRACEBACK", "1")
    code, shown = failing(ValueError("steps"), monkeypatch, capsys)
    assert code == 1 and "Traceback" in shown and "raise error" in shown and shown.endswith("ValueError: steps\n")


@dataclass(frozen=True)
class Values:
    run: Path = Path("run")
    text: Path | None = None
    files: tuple[Path, ...] = ()
    prompt: tuple[str, ...] = ()
    part: Part = Part()
    regex: str | None = None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--text", ""], 'text="" is no path: give a file or a folder ("." is the working folder)'),
        (["--run="], 'run="" is no path'),
        (["--files", "a", ""], 'files="" is no path'),
        (["--prompt", "a", "b\udcff"], "prompt=b\\udcff is not UTF-8"),
        (["--regex", "\udcff\x1b"], "regex=\\udcff\\x1b is not UTF-8"),
        (["--part.steps", str(10**30)], "part.steps must be from "),
    ],
)
def test_values_that_no_type_refuses_are_refused_by_name(words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", *words])
    with pytest.raises(SystemExit) as stopped:
        run_cli(pytest.fail, Values, None)
    assert stopped.value.code == 1 and capsys.readouterr().err.startswith(f"error: {said}")
    field, _, value = said.partition("=")
    if value and "UTF-8" not in said:
        with pytest.raises(ValueError, match=re.escape(said)):
            configure(Values, {field: "a ''" if field == "files" else value.split()[0].strip('"')})


def test_a_path_may_hold_any_bytes_and_the_working_folder_has_a_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", "--run", ".", "--files", "\udcff", "--prompt", "", "\n"])
    found: list[Values] = []
    run_cli(found.append, Values, None)
    assert found == [Values(run=Path("."), files=(Path("\udcff"),), prompt=("", "\n"))]


@pytest.mark.parametrize(
    "words", [["--part.steps", "\x1b[1m\x9b"], ["--\x1b[1m"], ["\x1b[1m"], ["--text\x1b", "\udcff"]]
)
def test_wrong_arguments_are_shown_escaped(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", *words])
    with pytest.raises(SystemExit) as stopped:
        run_cli(pytest.fail, Values, None)
    shown = capsys.readouterr()
    assert stopped.value.code == 2 and "x1b" in shown.err
    assert not shown.out and all(printable(line) == line for line in shown.err.split("\n"))


def test_a_warning_is_one_escaped_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program"])
    warning = UserWarning("a \x1b[1mcheckpoint\nfailed"), UserWarning, __file__, 1

    def main(_):  # pytest records warnings; this is what Python would write
        print(warnings.formatwarning(*warning), file=sys.stderr, end="")

    run_cli(main, Config, None)
    assert capsys.readouterr().err == "warning: a \\x1b[1mcheckpoint\\x0afailed\n"
    assert __file__ in warnings.formatwarning(*warning)


@pytest.mark.parametrize("resumable", [True, False])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_outside_training_interrupts(number, resumable, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as stopped:
        run_cli(lambda _: signal.raise_signal(number), Config, None, resumable=resumable)
    assert stopped.value.code == EXIT_INTERRUPTED == 75
    assert ("the same command resumes" in capsys.readouterr().err) == resumable


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program"])
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does

    def main(_):
        signal.raise_signal(signal.SIGHUP)
        with SignalHandler() as handler:
            signal.raise_signal(signal.SIGHUP)
            assert handler.received is None

    run_cli(main, Config, None)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
