"""``python -m jaxseq doctor``: what is wrong is found, what is right is not complained about, no check stops others."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.doctor import Check, Finding, arithmetic, machine, packages, run_checks, storage
from jaxseq.doctor.__main__ import checks, line_of, main
from jaxseq.doctor.choices import typical_calls

ROOT = Path(__file__).resolve().parents[2]


def broken():
    """A check that finds something and then fails."""
    yield Finding("ok", "half", "done")
    raise OSError("no\nsuch\x1b[31m device")


def test_an_exception_is_a_failed_line_and_the_next_check_runs():
    good = Check("good", lambda: [Finding("warn", "good", "slow", "do this")])
    found = list(run_checks([Check("broken", broken), good]))
    assert [(f.status, f.name) for f in found] == [("ok", "half"), ("fail", "broken"), ("warn", "good")]
    assert found[1].found == r"OSError: no such\x1b[31m device" and found[1].advice
    assert line_of(found[2]).splitlines() == ["warn  good                 slow", "      -> do this"]


def test_what_needs_jax_is_left_out_where_it_does_not_start():
    start = Check("start", lambda: [Finding("fail", "start", "dead", "install it")], needs_jax=False)
    others = [Check("a", broken), Check("b", lambda: [Finding("ok", "b", "fine")], needs_jax=False)]
    assert [f.name for f in run_checks([start, *others])] == ["start", "b"]


@given(st.lists(st.integers(0, 13), min_size=1, max_size=3), st.lists(st.integers(0, 13), min_size=1, max_size=3))
@settings(deadline=None, max_examples=100)
def test_ranges_of_versions_are_those_of_packaging(version, bound):
    specifiers = pytest.importorskip("packaging.specifiers")
    own, other = (".".join(map(str, parts)) for parts in (version, bound))
    for sign in (">=", "<=", "==", "<", ">"):
        for wanted in (f"{sign}{other}", f">=0.1,{sign}{other}"):
            assert packages.satisfies(own, wanted) == specifiers.SpecifierSet(wanted).contains(own)


def test_every_requirement_of_the_project_is_looked_at():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = [("", line) for line in project["dependencies"]]
    own += [(name, line) for name, lines in project["optional-dependencies"].items() for line in lines]
    wanted = {(re.match(r"[\w.-]+", line)[0].lower(), extra) for extra, line in own}
    assert {(name.lower(), extra or "") for name, _, extra in packages.requirements()} == wanted
    assert [f for f in packages.check_packages() if f.status != "ok"] == []


def test_packages_that_are_missing_or_too_old_are_named(monkeypatch):
    wanted = [("jax", ">=99", None), ("nothing-here", ">=1", None), ("numpy", ">=2", None), ("nothing", ">1", "plots")]
    monkeypatch.setattr(packages, "requirements", lambda: wanted)
    found = list(packages.check_packages())
    assert [(f.status, f.advice) for f in found[:2]] == [
        ("fail", "pip install 'jax>=99'"),
        ("fail", "pip install 'nothing-here>=1'"),
    ]
    assert found[2].status == "ok" and "numpy" in found[2].found
    (extras,) = packages.check_extras()
    assert "not installed: plots (pip install 'jaxseq[plots]')" in extras.found


@pytest.mark.parametrize(
    "wrong",
    [
        lambda a, b: (a @ b) * (1 + 1e-3),
        lambda a, b: jax.lax.stop_gradient(a) @ b,  # right values, wrong derivative
        lambda a, b: (a @ b).at[3, 3].set(jnp.nan),
    ],
)
def test_a_probe_finds_wrong_values_and_wrong_derivatives(monkeypatch, wrong):
    product = arithmetic.probes()[0]
    right = arithmetic.worst_error(product, "float32", jax.devices()[0])
    assert right < 1e-5
    monkeypatch.setattr(arithmetic, "probes", lambda: (product._replace(run=wrong),))
    monkeypatch.setattr(arithmetic, "TOLERANCES", {"float32": 1e-4})
    (finding,) = arithmetic.check_arithmetic()
    assert finding.status == "fail" and finding.found.startswith("WRONG: float32 on ") and "product" in finding.found


def test_the_probes_are_right_on_this_machine():
    assert [f.status for f in arithmetic.check_sums()] == ["ok"]
    (cudnn,) = arithmetic.check_cudnn() if jax.default_backend() == "cpu" else [Finding("ok", "", "not applicable")]
    assert cudnn.found.startswith("not applicable")


@pytest.mark.full
def test_the_arithmetic_of_this_machine_is_right():
    assert {f.status for f in arithmetic.check_arithmetic()} == {"ok"}


def test_a_missing_flag_is_a_warning_and_wrong_sums_a_failure(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    assert [f.status for f in arithmetic.check_sums()] == ["warn"]
    monkeypatch.setattr(arithmetic.jax, "jit", lambda run: lambda *args: np.asarray(run(*args)) * np.float32(1.01))
    assert [f.status for f in arithmetic.check_sums()] == ["fail"]


def test_a_checkpoint_goes_round_and_damage_that_is_not_seen_fails(monkeypatch):
    assert [f.status for f in storage.check_checkpoints()] == ["ok"]
    monkeypatch.setattr(storage, "flip_bit", lambda file: None)
    (finding,) = storage.check_checkpoints()
    assert (finding.status, finding.found) == ("fail", "a checkpoint with a flipped bit is loaded")


def test_a_cache_that_cannot_be_written_is_a_warning(monkeypatch, tmp_path):
    (tmp_path / "a").write_bytes(bytes(3 * 2**20))
    for folder, status, said in [
        (tmp_path, "ok", "1 files, 3.0 MiB; 2 of the 5 programs"),
        (tmp_path / "a", "warn", "cannot be written: Not a directory"),
        (None, "warn", "off"),
    ]:
        monkeypatch.setattr(storage, "enable_compilation_cache", lambda folder=folder: folder)
        (finding,) = storage.check_cache({storage.HIT: 2, storage.REQUEST: 5})
        assert finding.status == status and said in finding.found and bool(finding.advice) == (status == "warn")


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({"cpu.max": "150000 100000\n", "memory.max": "2000\n", "memory.current": "500\n"}, 1.5, 1500),
        ({"memory.max": "2000", "memory.current": "1500", "memory.stat": "anon 1\ninactive_file 700\n"}, None, 1200),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n", "memory.current": "500\n"}, None, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None, None),
        ({"memory/memory.limit_in_bytes": "10", "memory/memory.usage_in_bytes": "40"}, None, 0),
        ({}, None, None),
    ],
)
def test_limits_of_control_groups_are_read(tmp_path, files, cores, memory):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.cpu_limit(str(tmp_path)) == cores
    free = machine.free_memory(str(tmp_path))
    assert free == memory if memory is not None else (free is None or free > 10_000)


def test_limits_of_the_groups_above_count(tmp_path, monkeypatch):
    inner = tmp_path / "slurm" / "job"
    inner.mkdir(parents=True)
    real = machine._read
    own = lambda path: "0::/slurm/job\n" if path == "/proc/self/cgroup" else real(path)  # noqa: E731
    monkeypatch.setattr(machine, "_read", own)
    for folder, cpu, memory in [(inner, "max 100000", "max"), (inner.parent, "300000 100000", "5000")]:
        for name, text in {"cpu.max": cpu, "memory.max": memory, "memory.current": "1000"}.items():
            (folder / name).write_text(text + "\n")
    assert (machine.cpu_limit(str(tmp_path)), machine.free_memory(str(tmp_path))) == (3.0, 4000)


def test_a_limit_below_the_cores_is_a_warning(monkeypatch):
    monkeypatch.setattr(machine, "cpu_limit", lambda: 0.5)
    monkeypatch.setattr(machine, "free_memory", lambda: 10)
    assert [(f.name, f.status) for f in machine.check_cores()] == [("cores", "warn"), ("memory", "warn")]


def test_a_gpu_that_is_not_used_is_named_with_what_to_do(monkeypatch):
    node, installed = ["/dev/nvidia0"], set()
    monkeypatch.setattr(machine.glob, "glob", lambda pattern: node if pattern.startswith("/dev/nvidia") else [])
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    monkeypatch.setattr(machine, "version_of", lambda name: "1" if name in installed else None)
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    assert machine.unused_accelerator()[1].startswith("pip install 'jaxseq[cuda]'")
    (finding,) = machine.check_devices()
    assert jax.default_backend() != "cpu" or (finding.status == "warn" and "/dev/nvidia0" in finding.found)
    installed.add("jax-cuda13-plugin")
    assert "does not start" in machine.unused_accelerator()[1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hides it" in machine.unused_accelerator()[1]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "keeps JAX from it" in machine.unused_accelerator()[1]
    node.clear()
    assert machine.unused_accelerator() == ("", "")


@pytest.mark.parametrize(("free", "status"), [(2**40, "ok"), (2**30, "warn"), (2**20, "fail")])
def test_disk_that_ends_is_told(monkeypatch, tmp_path, free, status):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    (finding,) = machine.check_disk([("here", tmp_path), ("cache", tmp_path / "not" / "yet")])
    assert (finding.status, bool(finding.advice)) == (status, status != "ok")


def test_variables_that_make_everything_slow_are_told(monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_JIT", "1")
    assert [f.status for f in machine.check_variables()] == ["warn"]
    monkeypatch.setenv("JAX_DISABLE_JIT", "0")
    monkeypatch.setenv("JAX_DEBUG_NANS", "false")
    assert "warn" not in [f.status for f in machine.check_variables() if "JAX_LOG_COMPILES" not in f.found]


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "jaxseq", "doctor", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=300)


def test_the_quick_command_gives_json_and_code_0(tmp_path):
    done = doctor("--quick", "--json", JAXSEQ_COMPILATION_CACHE=str(tmp_path))
    found = json.loads(done.stdout)
    assert (done.returncode, found["fail"]) == (0, 0), done.stdout + done.stderr
    assert {"python", "packages", "devices", "checkpoint", "cache"} <= {row["name"] for row in found["checks"]}
    assert found["ok"] + found["warn"] == len(found["checks"])


@pytest.mark.parametrize("broken", ["jax", "flag"])
def test_a_jax_that_does_not_start_is_one_line_and_code_1(tmp_path, broken):
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("raise ImportError('No module named \\'jaxlib\\'')\n")
    given = {"XLA_FLAGS": "--no_such_flag=1"} if broken == "flag" else {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = doctor("--quick", **given)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "fail  start" in done.stdout and "1 failed" in done.stdout
    assert ("remove it" if broken == "flag" else "pip install 'jax") in done.stdout


@pytest.mark.full
def test_all_checks_pass_on_a_sound_machine(tmp_path):
    done = doctor(JAXSEQ_COMPILATION_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"ok    {op}" in done.stdout for op in typical_calls())


def test_unknown_options_are_refused_and_every_option_has_its_default(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--fast"])
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert capsys.readouterr().out.count("(default:") == 2
    assert {check.name for check in checks() if not check.quick} == {"xla flag", "arithmetic", "cudnn", "choices"}
