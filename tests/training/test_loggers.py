"""Loggers by name: what is missing is found before any work, and a resumed run logs what a straight one does."""

import dataclasses
import importlib.machinery
import importlib.util
import json
import struct
import sys
import time
import tomllib
import types
from pathlib import Path

import pytest
from tiny_training import Config

from jaxseq.training import (
    LOGGERS,
    JsonLinesWriter,
    Run,
    RunFiles,
    TensorBoardWriter,
    TrainConfig,
    WandbConfig,
    WandbWriter,
    Writer,
    check_loggers,
    from_json,
    read_json_lines,
    run_cli,
    to_json,
)
from jaxseq.training.loggers import wandb_mode

ROOT = Path(__file__).resolve().parents[2]


def config(*names):
    return dataclasses.replace(Config(), train=dataclasses.replace(Config().train, loggers=names))


def without(monkeypatch, package):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else real(name))


@pytest.mark.parametrize("name", LOGGERS)
def test_a_missing_package_is_one_line_with_the_command_before_any_work(tmp_path, monkeypatch, capsys, name):
    without(monkeypatch, LOGGERS[name].package)
    said = rf"the logger {name} needs the package {LOGGERS[name].package}: pip install 'jaxseq\[{name}\]'"
    with pytest.raises(ImportError, match=said):
        check_loggers(config(name))
    with pytest.raises(ImportError, match=said):
        Run.open(tmp_path / "run", config(name), fingerprint="x")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(sys, "argv", ["train", "--train.loggers", name])
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda made: pytest.fail("work was done"), Config, "a test")
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the logger") and error.count("\n") == 1
    check_loggers(config())
    assert from_json(TrainConfig, to_json(config(name).train)).loggers == (name,), "the run can be read without it"


def test_every_logger_has_an_extra_of_its_name():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, logger in LOGGERS.items():
        assert [need for need in extras[name] if need.startswith(logger.package)]


@pytest.mark.parametrize(("old", "new"), [(True, ("tensorboard",)), (False, ())])
def test_a_run_of_an_older_version_is_read_and_resumed(tmp_path, old, new):
    rows = to_json(Config())
    for added in ("loggers", "wandb", "best_metric", "best_mode", "patience", "min_improvement", "final_parameters"):
        del rows["train"][added]
    rows["train"]["tensorboard"] = old
    assert from_json(Config, rows).train.loggers == new
    (tmp_path / "config.json").write_text(json.dumps(rows))
    Run.open(tmp_path, Config(), fingerprint="x").close()
    assert json.loads((tmp_path / "config.json").read_text())["train"]["loggers"] == []


def test_tensorboard_writes_events(tmp_path):
    pytest.importorskip("tensorboardX")
    board = TensorBoardWriter(tmp_path / "board")
    assert isinstance(board, Writer)
    board.rewind(2)
    board.write(3, {"loss": 0.5, "name": "x", "none": None})
    board.close()
    assert any(p.stat().st_size > 50 for p in (tmp_path / "board").iterdir())


def test_a_name_twice_is_refused():
    with pytest.raises(ValueError, match="loggers has wandb twice"):
        TrainConfig(loggers=("wandb", "wandb"))


def test_nothing_is_uploaded_unless_the_user_says_so(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb_mode(WandbConfig()) == "offline"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert wandb_mode(WandbConfig()) == "online"
    assert wandb_mode(WandbConfig(mode="offline")) == "offline"


@pytest.fixture
def fake_wandb(monkeypatch):
    """A package `wandb` that records the calls: one list of rows for each start, and the options of the starts."""
    segments, options = [], []

    class Started:
        def __init__(self):
            segments.append([])

        def log(self, row, step):
            segments[-1].append((step, row))

        def finish(self):
            segments[-1].append("finished")

    package = types.ModuleType("wandb")
    package.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    package.Settings = lambda **values: values
    package.init = lambda **given: (options.append(given), Started())[1]
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package.__spec__)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return segments, options


def rows_of(folder):
    return [(row.pop("step"), row) for row in read_json_lines(folder / "metrics.jsonl")]


def write(folder, first, last, *, end=True):
    """What the loop does between two steps; without an end, as a process that is killed."""
    lines = JsonLinesWriter(folder / "metrics.jsonl")
    wandb = WandbWriter(RunFiles(folder), {"features": 3}, WandbConfig(project="p"))
    for writer in (lines, wandb):
        writer.rewind(first)
    for step in range(first + 1, last + 1):
        for row in ({"loss": step / 2, "name": "x"}, {"evaluation/loss": step / 4})[: 1 + (step % 2)]:
            lines.write(step, row)
            wandb.write(step, row)
    if end:
        wandb.close()


def test_the_last_segment_of_a_resumed_run_is_the_whole_run(tmp_path, fake_wandb):
    segments, options = fake_wandb
    write(tmp_path, 0, 5, end=False)
    write(tmp_path, 3, 8)
    expected = [(step, {k: v for k, v in row.items() if k != "name"}) for step, row in rows_of(tmp_path)]
    assert segments[-1] == [*expected, "finished"]
    assert [step for step, _ in segments[0]] == [1, 1, 2, 3, 3, 4, 5, 5]
    assert options[0]["id"] == options[1]["id"] and options[1]["resume"] == "allow"
    assert options[1]["mode"] == "offline" and options[1]["project"] == "p" and options[1]["name"] == tmp_path.name
    assert options[1]["config"] == {"features": 3}
    write(tmp_path, 8, 8)
    assert len(segments) == 2, "a run that has ended starts nothing"


def records(data):
    """The records of a .wandb file: a header, then blocks of 32 KiB with parts of records."""
    place, part, found = 7, b"", []
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            found.append(part)
            part = b""
    return found


@pytest.mark.full
def test_wandb_itself_writes_the_whole_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.delenv("WANDB_MODE", raising=False)
    write(tmp_path, 0, 4)
    time.sleep(1.1)  # the names of W&B's folders have the second
    write(tmp_path, 2, 6)
    newest = max(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    logged = {}
    for data in records(newest.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            logged[record.history.step.num] = {k: json.loads(v) for k, v in items.items() if not k.startswith("_")}
    expected = {}
    for step, row in rows_of(tmp_path):
        expected.setdefault(step, {}).update({k: v for k, v in row.items() if k != "name"})
    assert logged == expected
    assert not list((tmp_path / "wandb").glob("run-*"))
