import dataclasses
import enum
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxseq.training import (
    ConfigMismatchError,
    Run,
    RunFolderError,
    RunLockedError,
    TrainingError,
    enable_compilation_cache,
    resumable_field,
)
from jaxseq.training.settings import to_json


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass(frozen=True)
class Near:
    size: int = 3


@dataclasses.dataclass(frozen=True)
class Far:
    size: int = 3


@dataclasses.dataclass(frozen=True)
class Config:
    number: int = 3
    rate: float = 1e-3
    name: str = "lstm"
    flag: bool = False
    text: Path | None = None
    sizes: tuple[int, ...] = (1, 2)
    colour: Colour = Colour.RED
    near: Near = dataclasses.field(default_factory=Near)
    either: Near | Far = dataclasses.field(default_factory=Near)
    options: Any = None
    log_every: int = resumable_field(10)
    place: Path = resumable_field(factory=Path)


CHANGES = {
    "number": (4, "number: 3 -> 4"),
    "rate": (2e-3, "rate: 0.001 -> 0.002"),
    "name": ("gru", "name: 'lstm' -> 'gru'"),
    "flag": (True, "flag: False -> True"),
    "text": (Path("book.txt"), "text: None -> 'book.txt'"),
    "sizes": ((1, 3), "sizes: [1, 2] -> [1, 3]"),
    "colour": (Colour.BLUE, "colour: 'RED' -> 'BLUE'"),
    "near": (Near(4), "near.size: 3 -> 4"),
    "either": (Far(), "either.kind: 'Near' -> 'Far'"),
    "options": ((2.5,), "options: None -> [2.5]"),
    "log_every": (20, None),
    "place": (Path("elsewhere"), None),
}


def start(folder, config=None, fingerprint="abc", **options):
    Run.open(folder, config or Config(), fingerprint=fingerprint, **options).close()


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != ".lock"}


def test_every_field_has_its_case():
    assert CHANGES.keys() == {field.name for field in dataclasses.fields(Config)}


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_field_is_refused_by_name_unless_it_is_free(tmp_path, field):
    value, said = CHANGES[field]
    start(tmp_path)
    before = contents(tmp_path)
    changed = dataclasses.replace(Config(), **{field: value})
    if said is None:
        start(tmp_path, changed)
        assert contents(tmp_path)["config.json"] != before["config.json"]
        return
    with pytest.raises(ConfigMismatchError) as error:
        start(tmp_path, changed)
    assert next(line.strip() for line in str(error.value).splitlines() if "->" in line) == said
    assert contents(tmp_path) == before


@pytest.mark.parametrize("field", ["number", "near", "either"])
def test_a_run_without_a_newer_field_resumes_with_its_default(tmp_path, field):
    start(tmp_path)
    file = tmp_path / "config.json"
    rows = json.loads(file.read_text())
    rows.pop(field)
    file.write_text(json.dumps(rows))
    with pytest.raises(ConfigMismatchError, match=field):
        start(tmp_path, dataclasses.replace(Config(), **{field: CHANGES[field][0]}))
    start(tmp_path)
    assert json.loads(file.read_text())[field] == to_json(Config())[field]


def test_other_data_is_refused(tmp_path):
    start(tmp_path)
    with pytest.raises(ConfigMismatchError, match="data fingerprint: abc -> def"):
        start(tmp_path, fingerprint="def")


def test_an_allowed_change_goes_on_and_says_what_changed(tmp_path, capsys):
    start(tmp_path)
    start(tmp_path, Config(number=4), fingerprint="def", allow_config_change=True)
    assert "number: 3 -> 4" in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text())["number"] == 4
    start(tmp_path, Config(number=4), fingerprint="def")
    with pytest.raises(ConfigMismatchError):
        start(tmp_path, fingerprint="def")


def test_the_same_config_goes_on(tmp_path):
    for _ in range(2):
        start(tmp_path / "new" / "run")


def test_the_environment_tells_what_ran(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    start(tmp_path)
    start(tmp_path)
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert environment["data_fingerprint"] == "abc"
    assert environment["backend"] == "cpu" and environment["device_count"] == 1
    assert environment["earlier"] == []
    monkeypatch.setenv("XLA_FLAGS", "--xla_other")
    start(tmp_path)
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert [e["xla_flags"] for e in environment["earlier"]] == [""]


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunFolderError, match=r"not a run folder.*thesis\.tex"):
        start(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunFolderError, match="is a file"):
        start(tmp_path / "thesis.tex")


def test_a_link_to_a_folder_in_a_run_is_refused(tmp_path):
    start(tmp_path / "run")
    (tmp_path / "run" / "figures").symlink_to(tmp_path)
    with pytest.raises(RunFolderError, match=r"figures is a link to a folder"):
        start(tmp_path / "run")
    (tmp_path / "linked").symlink_to(tmp_path / "run")
    (tmp_path / "run" / "figures").unlink()
    start(tmp_path / "linked")


def test_a_run_killed_before_its_first_file_can_begin_again(tmp_path):
    (tmp_path / ".lock").write_text("process 1")
    (tmp_path / ".config.json.1.tmp").write_text("{")
    start(tmp_path)


def test_a_second_run_in_the_folder_is_refused_until_the_first_lets_go(tmp_path):
    run = Run.open(tmp_path, Config(), fingerprint="abc")
    with pytest.raises(RunLockedError, match=f"in use.*process {os.getpid()}"):
        start(tmp_path)
    run.close()
    start(tmp_path)


def test_a_killed_process_lets_go_of_the_folder(tmp_path):
    script = (
        "import fcntl, os, sys\nhandle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(handle, fcntl.LOCK_EX)\nprint('held', flush=True)\nsys.stdin.read()\n"
    )
    start(tmp_path)
    command = [sys.executable, "-c", script, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RunLockedError):
            start(tmp_path)
        other.kill()
        other.wait()
    start(tmp_path)


def test_results_are_flat_and_plain(tmp_path):
    with Run.open(tmp_path, Config(), fingerprint="abc") as run:
        run.write_results({"bits": jnp.asarray(1.5), "steps": np.int64(3), "core": "lstm"})
        assert json.loads((tmp_path / "results.json").read_text()) == {
            "bits": 1.5,
            "steps": 3,
            "core": "lstm",
        }
        with pytest.raises(TypeError, match="curve"):
            run.write_results({"curve": [1, 2]})
    assert json.loads((tmp_path / "results.json").read_text())["steps"] == 3


def test_what_has_no_json_is_named():
    with pytest.raises(TypeError, match=r"config\.options\.a.*function"):
        to_json(Config(options={"a": start}))


def test_what_a_user_can_put_right_is_a_training_error():
    assert issubclass(RunLockedError, TrainingError) and issubclass(ConfigMismatchError, TrainingError)


def test_the_compilation_cache_is_where_it_is_told(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    try:
        monkeypatch.setenv("JAXSEQ_COMPILATION_CACHE", "")
        assert enable_compilation_cache() is None
        monkeypatch.setenv("JAXSEQ_COMPILATION_CACHE", str(tmp_path / "a"))
        assert enable_compilation_cache() == tmp_path / "a"
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "a")
        assert enable_compilation_cache(tmp_path / "b") == tmp_path / "b"
        monkeypatch.delenv("JAXSEQ_COMPILATION_CACHE")
        assert enable_compilation_cache() == tmp_path / "b"
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert enable_compilation_cache() == tmp_path / ".cache" / "jaxseq" / "xla"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
