"""Commands as users run them: on a terminal, into a pipe, with signals, and with arguments of any bytes."""

import ast
import dataclasses
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxseq.pipelines.config_fields import parse
from jaxseq.terminal import Output, escape_controls
from jaxseq.training import EXIT_INTERRUPTED
from jaxseq.training.console import ProgressDisplay

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "experiments").glob("*.py"))


@pytest.fixture(scope="module")
def configs():
    """The dataclasses of all experiments, with those that stand in their fields."""
    found: set[type] = set()
    for script in SCRIPTS:
        spec = importlib.util.spec_from_file_location(f"read_{script.stem}", script)
        assert spec is not None and spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found |= {value for value in vars(module).values() if isinstance(value, type)}
    return [kind for kind in found if dataclasses.is_dataclass(kind)]


def test_an_empty_path_and_a_text_that_is_not_utf_8_are_refused_for_every_field(configs):
    paths = texts = 0
    for kind in configs:
        for field in dataclasses.fields(kind):
            if not re.search(r"\b(Path|str)\b", str(field.type)) or "Mapping" in str(field.type):
                continue
            bad, said = ("''", "is no path") if "Path" in str(field.type) else ("\udcff", "is not UTF-8")
            try:
                hint = (
                    eval(field.type, vars(sys.modules[kind.__module__])) if isinstance(field.type, str) else field.type
                )
                is_tuple = "tuple" in str(field.type)
                with pytest.raises(ValueError, match=f"^{field.name}=.* {said}"):
                    parse(hint, bad if is_tuple or bad != "''" else "", field.name)
            except ValueError as error:
                raise AssertionError(f"{kind.__name__}.{field.name}: {error}") from error
            paths, texts = paths + (said == "is no path"), texts + (said != "is no path")
    assert paths > 25 and texts > 15


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_experiments_write_files_atomically(script):
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("write_text", "write_bytes"), f"{script.name}:{node.lineno}"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_progress_display_keeps_its_escapes_and_shows_those_of_texts(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out, err = Terminal(), io.StringIO()
    wrapped = Output(out, "standard output"), Output(err, "standard error")
    monkeypatch.setattr(sys, "stdout", wrapped[0])
    monkeypatch.setattr(sys, "stderr", wrapped[1])
    display = ProgressDisplay(10)
    display.start(0)
    display.print("row \x1b[31m\x9b")
    print("printed \x1b[32m")
    print("noticed \x1b[33m", file=sys.stderr)
    display.log(5, {"loss": 1.0, "bits_per_token": 1.4})
    display.close()
    assert (sys.stdout, sys.stderr) == wrapped
    shown = out.getvalue()
    assert all(text in shown for text in ("row \\x1b[31m\\x9b", "printed \\x1b[32m", "noticed \\x1b[33m"))
    assert "\x1b[2K" in shown and shown.endswith("\x1b[?25h")  # it deletes its line, and shows the cursor at the end
    assert not err.getvalue()


LINE_EDITING = re.compile(r"\x1b\[(\d*(;\d+)*[mAK]|\?25[lh])|\r")
"""What rich writes: colours, up, delete the line, hide and show the cursor."""


def on_a_terminal(*command, **options):
    """The exit code of a command on a pseudo-terminal, and what it has written there."""
    ours, theirs = os.openpty()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, **options) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the command has ended
                break
            shown += part
            if not part:
                break
        os.close(ours)
    return process.returncode, shown.decode()


def python(script, *arguments):
    return [sys.executable, str(ROOT / "experiments" / f"{script}.py"), *map(str, arguments)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One compilation cache for all commands."""
    cache = str(tmp_path_factory.mktemp("xla"))
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAXSEQ_COMPILATION_CACHE": cache, "TERM": "xterm", "PYTHONPATH": path}


@pytest.mark.slow
def test_control_characters_of_a_model_reach_no_terminal(tmp_path, environment):
    text = tmp_path / "a\x1b[1m.txt"
    lines = [f"\x1b[31m{n * 7919 % 10007} \x9b1m{n**3}\x07 \x1b]0;{n}\x07\n" for n in range(800)]
    text.write_text("".join(lines), encoding="utf-8")
    run = ["--run", tmp_path / "run\x1b[1m"]
    command = python("language_model", "--smoke", "--text", text, "--split", "tail", *run, "--train.steps", "20")
    code, shown = on_a_terminal(*command, env=environment)
    left = LINE_EDITING.sub("", shown)
    assert code == 0 and "\\x1b" in left and left == escape_controls(left), shown
    for options in ([], ["--stream"], ["--beams", "2"]):
        code, shown = on_a_terminal(*python("generate", *run, "--prompt", "\x1b[31m", *options), env=environment)
        left = shown.replace("\r\n", "\n")
        assert code == 0 and "\\x1b[31m" in left and left == escape_controls(left), shown
    piped = subprocess.run(python("generate", *run, "--prompt", "\x1b[31m"), env=environment, capture_output=True)
    assert piped.returncode == 0 and b"\x1b[31m" in piped.stdout


@pytest.mark.slow
def test_a_reader_that_ends_does_not_end_training(tmp_path, environment):
    for script, options in (("language_model", ["--smoke"]), ("generate", ["--samples", "40", "--temperature", "1"])):
        command = python(script, *options, "--run", tmp_path / "run")
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline()
            process.stdout.close()
            _, said = process.communicate(timeout=120)
        assert (process.returncode, said) == (0, b"")
    assert (tmp_path / "run/results.json").exists() and len(list((tmp_path / "run/checkpoints").iterdir())) == 2


@pytest.mark.slow
def test_a_run_folder_may_have_any_name(tmp_path, environment):
    run = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b[1m/run"))
    lines = [subprocess.run(python("language_model", "--smoke", "--run", run), env=environment, capture_output=True)
             for _ in range(2)]  # fmt: skip
    assert [(line.returncode, line.stderr) for line in lines] == [(0, b""), (0, b"")]
    assert b"/\\udcff\x1b[1m/run" in lines[0].stdout and b"resuming from step 20" in lines[1].stdout
    assert len(list((run / "checkpoints").iterdir())) == 2
    assert os.fspath(run) == json.loads((run / "config.json").read_text())["run"]
    assert (
        "\\udcff"
        in json.loads((run / "environment.json").read_text())["command"].encode("utf-8", "backslashreplace").decode()
    )
    assert "\\udcff" in (run / "report.html").read_text()
    output = run.with_name("out\udcfe.json")
    done = subprocess.run(python("generate", "--run", run, "--json", output), env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"") and json.loads(output.read_text())["results"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_any_time_ends_with_the_code_of_an_interrupt(number, tmp_path, environment):
    for index, line in enumerate(["  sha256", "LZMA", "run folder", "first step", "step 20", "more text"]):
        command = python("language_model", "--smoke", "--run", tmp_path / str(index))
        with subprocess.Popen(
            command,
            env=environment | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            for shown in process.stdout:
                if shown.startswith(line):
                    break
            process.send_signal(number)
            said, _ = process.communicate(timeout=120)
        assert process.returncode == EXIT_INTERRUPTED, (line, said)
        assert "Traceback" not in said and ("the same command resumes" in said or line == "more text")


@pytest.mark.slow
def test_after_the_end_of_its_terminal_a_run_saves(tmp_path, environment):
    ours, theirs = os.openpty()
    command = python("language_model", "--smoke", "--train.steps", "20", "--run", tmp_path / "run")
    with subprocess.Popen(
        command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        shown = b""
        while b"first step" not in shown:
            shown += os.read(ours, 65536)
        os.close(ours)
        process.send_signal(signal.SIGHUP)  # as the kernel does for the session that has the terminal
        assert process.wait(timeout=120) == EXIT_INTERRUPTED
    assert list((tmp_path / "run/checkpoints").iterdir())


@pytest.mark.slow
def test_too_large_a_model_is_one_line(tmp_path, environment):
    command = python("language_model", "--smoke", "--beams", "1")  # no option of this experiment
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 2
    command = python("language_model", "--features", "3000000", "--run", tmp_path / "run")
    begun = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and time.monotonic() - begun < 100
    assert re.fullmatch(r"error: out of memory \(allocating \d+ bytes\); lower .*features.*\n", done.stderr)
