"""The one command for an accelerator: a part that fails or takes too long ends no other; a quick form runs on a CPU."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import accelerator
import accelerator_ops
from accelerator import Job, Part

ROW = {"name": "jaxseq", "median_s": 1.0}


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job whose scripts are those of ``part`` below."""
    monkeypatch.setattr(accelerator, "BENCHMARKS", tmp_path)
    return Job(tmp_path, "gpu-x", False)


def part(job, name, code, *, rows=(), weight=1.0, **options):
    """A part that runs code and writes rows."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    writes = f"open({str(job.file(name))!r}, 'a').write({lines!r})\n"
    (job.folder / f"{name}.py").write_text(f"import sys, time, os\n{writes}{code}")
    return Part(weight, lambda job, seconds: [f"{name}.py"], name, **options)


def test_a_part_that_fails_or_takes_too_long_ends_no_other(job, capfd):
    slow = part(job, "slow", "os.fork() or time.sleep(60)\ntime.sleep(60)", rows=[ROW])
    parts = {
        "exits": part(job, "exits", "sys.exit(3)", rows=[ROW]),
        "silent": part(job, "silent", "print('made nothing')"),
        "wrong": part(job, "wrong", "", rows=[ROW, ROW | {"error": "ArithmeticError: misses the reference"}]),
        "peer": part(job, "peer", "", rows=[ROW, {"name": "torch.compile", "error": "no compiler"}]),
        "memory": part(job, "memory", "", rows=[{"name": "lstm", "error": "out of memory: needs 9 GB"}]),
        "slow": dataclasses.replace(slow, weight=0.002),
        "good": part(job, "good", "", rows=[ROW], cuda=True),
    }
    outcomes = accelerator.run_parts(parts, job, 600.0)
    assert {name: outcome.result for name, outcome in outcomes.items()} == {
        "exits": "failed", "silent": "failed", "wrong": "failed", "peer": "ok", "memory": "ok", "slow": "failed",
        "good": "ok",
    }  # fmt: skip
    assert outcomes["exits"].why == "exit code 3" and outcomes["silent"].why == "no new rows"
    assert outcomes["wrong"].why == "1 of 2 rows, the first jaxseq: ArithmeticError: misses the reference"
    assert outcomes["slow"].why.startswith("stopped after")
    assert "=== good: at most" in capfd.readouterr().out


def test_rows_of_an_earlier_run_are_not_those_of_this_one(job):
    bad = part(job, "bad", "", rows=[ROW | {"error": "ValueError: once"}])
    assert accelerator.run_part(bad, job, 300.0).result == "failed"
    assert accelerator.run_part(part(job, "bad", "", rows=[ROW]), job, 300.0).result == "ok"
    assert accelerator.run_part(part(job, "bad", ""), job, 300.0).why == "no new rows"


def test_what_needs_cuda_is_skipped_without_it(job):
    outcome = accelerator.run_part(part(job, "cudnn", "", cuda=True), dataclasses.replace(job, device="cpu2"), 300.0)
    assert (outcome.result, outcome.why) == ("skipped", "no CUDA device")


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", accelerator.PARTS)
def test_every_part_is_a_script_that_writes_where_it_is_looked_for(name, quick, tmp_path):
    job, one = Job(tmp_path, "gpu-x", quick), accelerator.PARTS[name]
    script, *words = one.command(job, 100.0)
    assert (accelerator.BENCHMARKS / script).is_file()
    if one.file:
        assert words[words.index("--out") + 1] == str(job.file(one.file))
    assert ("--limit-s" in words) == (one.file == "throughput")


def test_the_quick_form_needs_no_accelerator_and_the_full_one_says_that_it_does(monkeypatch):
    monkeypatch.setattr(accelerator, "find_device", lambda: "cpu2")
    with pytest.raises(SystemExit, match="JAX has no accelerator here, only cpu2; --quick runs on it"):
        accelerator.main([])
    monkeypatch.setattr(accelerator, "run_parts", lambda parts, job, seconds: {})
    assert accelerator.main(["--quick"]) == 0


def test_cases_of_ops_cover_the_families_and_both_dtypes():
    cases = accelerator_ops.op_cases(accelerator_ops.QUICK)
    assert {case.op for case in cases} == {"recurrence", "linear_recurrence", "linear_attention", "delta_rule", "mlstm",
                                           "causal_convolution", "attention"}  # fmt: skip
    assert {case.dtype for case in cases} == {"float32", "bfloat16"}
    for case in cases + accelerator_ops.cudnn_cases(accelerator_ops.QUICK):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            arrays = [jax.ShapeDtypeStruct(shape, jnp.dtype(case.dtype)) for shape in case.shapes]
            out = jax.eval_shape(lambda *arrays, case=case: case.run("reference", *arrays), *arrays)
        assert out.shape[:2] == case.shapes[0][:2] and out.dtype == case.dtype


def test_auto_that_takes_something_else_than_cudnn_is_an_error():
    rows = [
        {"name": "auto", "used": {"attention": ["tiles"]}},
        {"name": "auto", "used": {"attention": ["cudnn"]}},
        {"name": "tiles"},
    ]
    accelerator_ops.check_choice(rows)
    assert [row.get("error") for row in rows] == ["auto took {'attention': ['tiles']} instead of cuDNN", None, None]


@pytest.mark.full
def test_an_op_that_is_wrong_is_found(monkeypatch):
    case = next(case for case in accelerator_ops.op_cases(accelerator_ops.QUICK) if case.op == "causal_convolution")
    right = accelerator_ops.run_case(case, 2)
    assert all(row["error_vs_reference"] < 1e-5 for row in right)

    def wrong(implementation, *arrays):
        return case.run(implementation, *arrays) * (1.0 if implementation == "reference" else 1.01)

    (row,) = accelerator_ops.run_case(dataclasses.replace(case, run=wrong), 2)
    assert "misses the reference" in row["error"]


@pytest.mark.full
def test_benchmarks_can_be_imported_where_tyro_is_not_installed():
    code = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tyro":
            raise ModuleNotFoundError("No module named 'tyro'", name="tyro")

sys.meta_path.insert(0, Absent())
import accelerator_ops, throughput, training_step
"""
    words = [sys.executable, "-c", code]
    subprocess.run(words, env=accelerator.environment(), check=True, timeout=300)


@pytest.mark.slow
def test_the_quick_form_runs_every_part(tmp_path, capfd):
    pytest.importorskip("matplotlib")
    assert accelerator.main(["--quick", "--results", str(tmp_path)]) == 0
    printed = capfd.readouterr().out
    assert printed.count(" ok ") == 5 and "skipped" in printed
    device = accelerator.find_device()
    names = ["accelerator_ops", "training_step_bfloat16", "throughput"]
    assert all((tmp_path / f"{name}-{device}.jsonl").stat().st_size for name in names)
    assert (tmp_path / f"training_step_bfloat16-{device}.png").is_file()
    modes = {json.loads(line)["mode"] for line in (tmp_path / f"throughput-{device}.jsonl").read_text().splitlines()}
    assert modes == {"forward+backward", "decode"}
